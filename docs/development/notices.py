"""Write THIRD_PARTY_NOTICES.md: the packages that pnet_jax installs, with their licences. `make notices`

Reads the metadata of the installed packages, and follows their requirements on this platform. A package of an extra that is not installed
cannot be read: it is named in `BY_HAND`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILE = ROOT / "THIRD_PARTY_NOTICES.md"
TOOLS = ("test", "docs")  # extras of what runs beside the package
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
HEAD = """# Third-party notices

pnet_jax is distributed under the Apache License 2.0 and contains no code of other projects. The packages below are installed beside it by
pip, each under its own licence, whose text is part of that package. "direct" packages are named in `pyproject.toml`; an extra's name stands
for those that only `pip install pnet_jax[extra]` asks for; "indirect" ones are required by them.

| package | licence | required |
|---|---|---|
"""
# Packages that development does not install, from their pages in the package index: what they are required by, and their licences.
BY_HAND = {
    "attrs": ("indirect", "MIT"),
    "fastjsonschema": ("indirect", "BSD-3-Clause"),
    "jax-cuda12-pjrt": ("gpu", "Apache-2.0"),
    "jax-cuda12-plugin": ("gpu", "Apache-2.0"),
    "jsonschema": ("indirect", "MIT"),
    "jsonschema-specifications": ("indirect", "MIT"),
    "jupyter-core": ("indirect", "BSD-3-Clause"),
    "libtpu": ("tpu", "Google Cloud Platform Terms of Service (proprietary)"),
    "llvmlite": ("indirect", "BSD-2-Clause AND Apache-2.0 WITH LLVM-exception"),
    "msgspec": ("indirect", "BSD-3-Clause"),
    "nbformat": ("indirect", "BSD-3-Clause"),
    "numba": ("indirect", "BSD-2-Clause"),
    "nvidia-*-cu12": ("gpu", "NVIDIA Software License Agreement (proprietary)"),
    "platformdirs": ("indirect", "MIT"),
    "plotly": ("indirect", "MIT"),
    "pynndescent": ("indirect", "BSD-2-Clause"),
    "referencing": ("indirect", "MIT"),
    "rpds-py": ("indirect", "MIT"),
    "seaborn": ("indirect", "BSD-3-Clause"),
    "traitlets": ("indirect", "BSD-3-Clause"),
    "templateflow": ("surfaces", "Apache-2.0"),
    "umap-learn": ("indirect", "BSD-3-Clause"),
}


def declared() -> dict[str, tuple[Requirement, str]]:
    """The requirements of pyproject.toml by name, each with "direct" or the name of its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"direct": project["dependencies"]}
    groups |= {extra: lines for extra, lines in project["optional-dependencies"].items() if extra not in TOOLS}
    out: dict[str, tuple[Requirement, str]] = {}
    for group, lines in groups.items():
        for line in lines:
            requirement = Requirement(line)
            out.setdefault(canonicalize_name(requirement.name), (requirement, group))
    return out


def required(requirement: Requirement, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """What an installed package requires here."""
    for line in distribution(requirement.name).requires or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def packages() -> dict[str, str]:
    """All packages that pnet_jax installs, with what they are required by; those that are not installed here are not followed."""
    top = declared()
    out = {name: group for name, (_, group) in top.items()}
    waiting = [requirement for requirement, _ in top.values()]
    while waiting:
        one = waiting.pop()
        try:
            below = list(required(one, frozenset(one.extras)))
        except PackageNotFoundError:
            continue
        for requirement in below:
            name = canonicalize_name(requirement.name)
            if name not in out:
                out[name] = "indirect"
                waiting.append(requirement)
    return out


def licence(name: str) -> str | None:
    """The licence that a package's metadata name, in one line; None where it is not installed, or names none."""
    try:
        about = distribution(name).metadata
    except PackageNotFoundError:
        return None
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", ()) if line.startswith("License ::")]
    classified = [line for line in classified if line != "OSI Approved"]
    said = about.get("License-Expression") or ", ".join(classified) or (about.get("License") or "").strip().partition("\n")[0]
    return said or None


def written() -> dict[str, str]:
    """The licence of each package in the file."""
    return {name: licence for name, licence, _ in ROW.findall(FILE.read_text("utf-8"))[1:]} if FILE.exists() else {}


def notices() -> str:
    """The file's text."""
    kept, found = written(), packages() | {name: by for name, (by, _) in BY_HAND.items()}
    said = {name: licence(name) or BY_HAND.get(name, ("", kept.get(name, "not found")))[1] for name in sorted(found)}
    return HEAD + "".join(f"| {name} | {said[name]} | {found[name]} |\n" for name in said)


if __name__ == "__main__":
    FILE.write_text(notices(), "utf-8")
