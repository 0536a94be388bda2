"""The tutorials of the documentation run as they are printed: shell and Python blocks in order, in one folder, page after page.

A page runs in a process of its own (`python tests/test_tutorials.py PAGE`), with commands of the package inside it, since starting the
interpreter for each would take longer than what they compute.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/tutorials"
# Blocks of each page that run; those marked `not run` are not counted. Later pages use what earlier ones made.
RUN = {"first-network": 8, "fmriprep": 8, "group-model": 3, "pretraining": 5, "cluster": 5, "evaluation": 5}
BLOCK = re.compile(r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"[|<>$;&`]")
ALONE = ("pnet pretrain ",)  # training starts JAX's own processes, which has to come before any other use of JAX


class Block(NamedTuple):
    """A block of a page, and whether it runs."""

    language: str
    text: str
    runs: bool


def blocks(page: str) -> list[Block]:
    text = (PAGES / f"{page}.md").read_text("utf-8")
    return [Block(found["language"], found["text"], not found["mark"]) for found in BLOCK.finditer(text)]


def run(page: str) -> None:
    """Run a page in the current folder; raises at the first block that fails."""
    names: dict[str, object] = {}
    for block in blocks(page):
        if not block.runs:
            continue
        print(f"$ {block.text}", flush=True)
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        elif "<<" in block.text:
            _shell(block.text)
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                _command(line)


def _command(line: str) -> None:
    if not line.startswith("pnet ") or line.startswith(ALONE) or SHELL.search(line):
        _shell(line)
        return
    from pnet_jax.cli import main

    code = main(shlex.split(line)[1:])
    assert code == 0, f"exit code {code}: {line}"


def _shell(text: str) -> None:
    command = Path("bin/pnet").absolute()
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pnet_jax "$@"\n')
    command.chmod(0o755)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], check=True, env=os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def done() -> list[str]:
    """Pages that have run."""
    return []


@pytest.mark.parametrize("page", [page if page == "first-network" else pytest.param(page, marks=pytest.mark.slow) for page in RUN])
def test_a_tutorial_runs(page, folder, done, pytestconfig):
    assert sum(block.runs for block in blocks(page)) == RUN[page]
    pages = list(RUN)
    for one in pages[: pages.index(page) + 1]:
        if one in done:
            continue
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        if hasattr(pytestconfig, "cache"):
            environment["JAX_COMPILATION_CACHE_DIR"] = str(pytestconfig.cache.mkdir("jax-tutorials"))
        ended = subprocess.run([sys.executable, __file__, one], cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{one}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        done.append(one)


def test_every_tutorial_is_run():
    assert {file.stem for file in PAGES.glob("*.md")} == set(RUN)


if __name__ == "__main__":
    run(sys.argv[1])
