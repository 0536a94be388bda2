"""The public interface: a change of a name or of a signature shows in `tests/public_api.txt`, which is committed.

Regenerate it by `make api`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_name("public_api.txt")
SITE = Path(__file__).parents[1] / "docs/development/site.py"
PACKAGE = Path(__file__).parents[1] / "pnet_jax"
EMPTY = inspect.Parameter.empty
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def modules() -> list[str]:
    """The package, the modules that have a page in the documentation, the kernels, and the questions of an evaluation."""
    listed = re.search(r"^MODULES = \((.*?)\)$", SITE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ops = sorted(f"ops.{file.parent.name}" for file in PACKAGE.glob("ops/*/__init__.py"))
    return ["pnet_jax", *(f"pnet_jax.{name}" for name in [*re.findall(r'"([\w.]+)"', listed[1]), *ops, "evaluate"])]


def names(module: types.ModuleType) -> list[str]:
    """`__all__`, or what a module without it defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return sorted(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def described(path: str, value: object) -> Iterator[str]:
    """Lines on one name: the signature of a function, the fields and methods of a class, the type of anything else."""
    if inspect.isclass(value):
        record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
        yield f"class {path}" if record else f"class {path}{signature(value)}"
        fields = inspect.signature(value).parameters if record else {}
        yield from (f"{path}.{field.replace(annotation=EMPTY, default=short(field.default))}" for field in fields.values())
        for name, member in sorted(vars(value).items()):
            if name.startswith("_") or name in fields:
                continue
            if isinstance(member, property):
                yield f"{path}.{name}: property"
            elif callable(getattr(value, name)):
                yield f"{path}.{name}{signature(getattr(value, name))}"
    elif isinstance(value, types.ModuleType):
        yield f"{path}: module"
    elif callable(value):
        yield f"{path}{signature(value)}"
    else:
        yield f"{path}: {type(value).__name__}"


def signature(value: object) -> str:
    """Parameters with their defaults, without annotations, which the documentation shows."""
    found = inspect.signature(value)
    plain = [one.replace(annotation=EMPTY, default=short(one.default)) for one in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=EMPTY))


def short(default: object) -> object:
    """A default as it is printed: settings by their name, as their own fields have lines, and functions without an address."""
    if default is EMPTY:
        return default
    plain = f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else ADDRESS.sub("", repr(default))
    return _Printed(plain)


class _Printed(str):
    """Text that prints without quotes."""

    __repr__ = str.__str__


def snapshot() -> str:
    lines = []
    for name in modules():
        module = importlib.import_module(name)
        lines += [line for public in names(module) for line in described(f"{name}.{public}", getattr(module, public))]
    return "\n".join(lines) + "\n"


def test_the_public_interface_is_the_committed_one():
    expected, found = FILE.read_text("utf-8").splitlines(), snapshot().splitlines()
    changes = [f"- {line}" for line in expected if line not in found] + [f"+ {line}" for line in found if line not in expected]
    assert expected == found, "the public interface has changed (make api, and a line in CHANGELOG.md):\n" + "\n".join(changes)


def test_a_changed_signature_changes_its_line():
    def before(x, *, seed=0): ...

    def after(x, *, seed=1): ...

    assert list(described("f", before)) == ["f(x, *, seed=0)"] != list(described("f", after))


if __name__ == "__main__":
    FILE.write_text(snapshot(), "utf-8")
