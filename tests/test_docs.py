"""Names in the documentation exist: functions, modules, options of commands, and files of results."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import sys
from pathlib import Path

import pytest

from pnet_jax.cli import main
from pnet_jax.commands.app import QUESTIONS

ROOT = Path(__file__).parents[1]
# Notes for developers tell of what is no longer there.
PAGES = [file for file in sorted((ROOT / "docs").rglob("*.md")) if "development" not in file.parts]
DOTTED = re.compile(r"(?<![\w./])pnet_jax(?:\.[A-Za-z_]\w*)+")
PLACED = re.compile(r"`((?:pnet_jax|benchmarks|tests|docs)/[\w/]+\.py):(\w+)`")
RESULT = re.compile(r"benchmarks/results/([\w-]+\.json)")
COMMAND = re.compile(r"(?:^|[`\s\"])pnet ([a-z][a-z-]*)((?: [^`\n#]*)?)")
OPTION = re.compile(r"(?<=\s)--[A-Za-z][\w.-]*")


@functools.cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@functools.cache
def help_of(*words: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_names_in_a_page_exist(page):
    text = page.read_text("utf-8")
    dotted = {name for name in DOTTED.findall(text) if not exists(name)}
    placed = {
        f"{file}:{name}"
        for file, name in PLACED.findall(text)
        if not re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text("utf-8"), re.MULTILINE)
    }
    results = {name for name in RESULT.findall(text) if "TIER" not in name and not (ROOT / "benchmarks/results" / name).is_file()}
    assert not dotted | placed | results


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_options_in_a_page_exist(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    unknown = []
    for found in COMMAND.finditer(page.read_text("utf-8")):
        words, options = [found[1]], OPTION.findall(found[2])
        kind = re.match(r" ([a-z]+)\b", found[2])
        if found[1] == "evaluate" and kind and kind[1] in QUESTIONS:
            words.append(kind[1])
        if found[1] == "bench" or not options:
            continue
        known = f"{help_of(*words)} --help"
        unknown += [f"pnet {' '.join(words)} {option}" for option in options if not re.search(rf"{re.escape(option)}\b", known)]
    assert not unknown


def test_the_check_sees_names_that_are_not_there():
    assert not exists("pnet_jax.no_such_name")
    assert exists("pnet_jax.evaluate.diagnosis")
    assert "--dry-run" in help_of("construct")


def test_equations_become_mathml(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(ROOT / "docs/development"))
    equations = importlib.import_module("equations")
    sys.modules.pop("equations")
    page = "With $q_{vk}$ of `$OUT`, 5 $ and $x$.\n\n$$a\n= b$$\n\n```\n$$c$$ and $d$\n```\n"
    made = equations.on_page_markdown(page)
    assert made.count("<math") == 3
    assert "`$OUT`, 5 $ and" in made
    assert "```\n$$c$$ and $d$\n```" in made
