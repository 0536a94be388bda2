"""The container's recipe, read without building it: what it copies exists, and its Python, extras and programs are those of the package."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "containers/Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def values(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_what_is_copied_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {name for line in values("COPY") if not line.startswith("--from") for name in line.split()[:-1]}
    assert copied == kept
    assert [name for name in copied if not (ROOT / name).exists()] == []
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "pnet_jax"}
    assert needed <= copied  # without these the package is not built


def test_python_is_one_that_the_package_and_its_lock_support():
    images = {line.split()[0] for line in values("FROM")}
    (version,) = {re.fullmatch(r"python:(3\.\d+)-slim", image)[1] for image in images}
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    assert version in (ROOT / "requirements.lock").read_text("utf-8").splitlines()[0]


def test_extras_and_programs_are_those_of_the_package():
    (argument,) = values("ARG")
    text = (ROOT / "containers/Dockerfile").read_text("utf-8")
    named = [argument.removeprefix("EXTRAS="), *re.findall(r"--build-arg EXTRAS=(\S+)", text)]
    assert {extra for extras in named for extra in extras.split(",")} <= set(PROJECT["optional-dependencies"])
    assert json.loads(values("ENTRYPOINT")[0])[0] in PROJECT["scripts"]


def test_it_runs_without_privileges():
    after = [rest if name == "USER" else "" for name, rest in instructions()]
    assert values("USER") == ["pnet"] and after.index("pnet") < [name for name, _ in instructions()].index("ENTRYPOINT")
