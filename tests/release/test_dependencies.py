"""Every package that pnet_jax imports is declared in pyproject.toml, and every declared one is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("test", "docs", "gpu", "tpu")  # extras of what runs beside the package, or of jaxlib's plugins
BY_OTHERS = {
    "fsspec": "zarr opens addresses such as s3:// with it",
    "distributed": "dask.distributed is this package",
}


def name_of(requirement: str) -> str:
    """The normalised distribution name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all modules that a file imports, at its head, in functions, or by `importlib.import_module("…")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module" and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value.partition(".")[0]


def distributions(modules: set[str]) -> set[str]:
    """Distributions that hold the modules; one that is not installed is expected to have the name of its module."""
    known = packages_distributions()
    return {name_of(distribution) for module in modules for distribution in known.get(module, [module])}


def test_declared_and_imported_packages_are_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for extra, lines in project["optional-dependencies"].items() if extra not in TOOLS for line in lines]
    declared = {name_of(line) for line in project["dependencies"] + extras}
    files = (ROOT / "pnet_jax").rglob("*.py")
    modules = {name for file in files for name in imported(ast.parse(file.read_text("utf-8")))} - {"pnet_jax", *sys.stdlib_module_names}
    used = distributions(modules)
    assert not used - declared, "imported and not declared in pyproject.toml"
    assert not declared - used - set(BY_OTHERS), "declared in pyproject.toml and imported nowhere"
    assert not set(BY_OTHERS) - (declared - used), "no longer an exception"


def test_imports_are_found_wherever_they_stand():
    code = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h as i\n    importlib.import_module('j.k')\n"
    assert sorted(imported(ast.parse(code))) == ["a", "c", "h", "j"]
