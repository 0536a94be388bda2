"""Pages of the documentation that are generated: home, commands with their settings, the Python interface, and files that pages link to.

Run by mkdocs (`make docs`).
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path

import mkdocs_gen_files

import pnet_jax
from pnet_jax.cli import main as main_of_commands
from pnet_jax.commands.app import QUESTIONS, SECTIONS, TOOLS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
MODULES = ("edges", "dynamics", "ops", "simulate", "parcellation.mixture", "parcellation.held_out")
EXIT_CODES = """Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | something failed: a scan, an evaluation, or the command itself; the message says what |
| 2 | wrong usage: an unknown command or option, or a value that is not accepted |
| 128 + n | ended by signal n: 130 by Ctrl-C, 143 by SIGTERM, 141 by a reader that closed the output |
"""
NAVIGATION = """* [Home](index.md)
* Use
    * [Reports](reports.md)
    * [Clusters](clusters.md)
    * [Evaluation](evaluation/README.md)
* Evaluation
{evaluation}
* Methods
    * [Method](method.md)
    * [Edges](edges.md)
    * [Kernels](kernels.md)
    * [Reliability](reliability.md)
* Reference
{commands}
{python}
* Development
    * [Architecture](architecture.md)
    * [Decisions on edges](development/edges.md)
    * [Packaging](development/packaging.md)
"""


def main() -> None:
    os.environ["COLUMNS"] = "100"
    _page("index.md", _moved((ROOT / "README.md").read_text("utf-8"), ROOT))
    for file in sorted(DOCS.rglob("*.md")):
        text = file.read_text("utf-8")
        if (moved := _moved(text, file.parent)) != text:
            _page(str(file.relative_to(DOCS)), moved)
    navigation = NAVIGATION.format(
        evaluation="\n".join(f"    * [{_title(file)}](evaluation/{file.name})" for file in sorted((DOCS / "evaluation").glob("[!R]*.md"))),
        commands="\n".join(_commands()),
        python="\n".join(_python()),
    )
    _page("SUMMARY.md", navigation)


def _page(name: str, text: str) -> None:
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)


def _title(file: Path) -> str:
    return file.read_text("utf-8").splitlines()[0].removeprefix("# ")


def _moved(text: str, folder: Path) -> str:
    """Return a page whose links to files outside `docs` lead to copies of these files in the site."""

    def link(found: re.Match[str]) -> str:
        target = (folder / found[1]).resolve()
        if not target.exists():
            return found[0]
        here = "" if folder == ROOT else str(folder.relative_to(DOCS))
        if target.is_relative_to(DOCS):
            if folder != ROOT:
                return found[0]
            place = str(target.relative_to(DOCS))
            place = f"{place}/README.md" if target.is_dir() else place
        else:
            file = target / "README.md" if target.is_dir() else target
            if not file.is_file():
                return found[0].replace(f"]({found[1]}", "](index.md")
            place = f"files/{file.relative_to(ROOT)}.txt".replace(".json.txt", ".json")
            with mkdocs_gen_files.open(place, "wb") as copy:
                copy.write(file.read_bytes())
        return f"]({posixpath.relpath(place, here or '.')}{found[2] or ''})"

    return LINK.sub(link, text)


def _commands() -> list[str]:
    """Write a page with the help of each command; return lines of the navigation."""
    _page("reference/commands/index.md", f"# Commands\n\n```text\n{_help()}\n```\n\n{EXIT_CODES}")
    out = ["    * [Commands](reference/commands/index.md)"]
    for command in (*(name for section in SECTIONS.values() for name in section), "evaluate", *TOOLS, "bench"):
        parts = [f"# pnet {command}\n\n```text\n{_help(command)}\n```\n"]
        for kind in QUESTIONS if command == "evaluate" else ():
            parts.append(f"## pnet {command} {kind}\n\n```text\n{_help(command, kind)}\n```\n")
        _page(f"reference/commands/{command}.md", "\n".join(parts))
        out.append(f"        * [pnet {command}](reference/commands/{command}.md)")
    return out


def _help(*words: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main_of_commands([*words, "--help"])
    return said.getvalue().rstrip()


def _python() -> list[str]:
    """Write the pages of the Python interface; return lines of the navigation."""
    names = [name for name in pnet_jax.__all__ if not name.startswith("_")]
    where = {name: f"{getattr(pnet_jax, name).__module__}.{name}" for name in names}
    text = "# pnet_jax\n\nNames at the top of the package.\n\n" + "\n".join(f"::: {path}\n" for path in where.values())
    _page("reference/python/index.md", text)
    out = ["    * [Python](reference/python/index.md)"]
    for module in MODULES:
        _page(
            f"reference/python/{module}.md", f"# pnet_jax.{module}\n\n::: pnet_jax.{module}\n    options:\n      show_root_heading: false\n"
        )
        out.append(f"        * [pnet_jax.{module}](reference/python/{module}.md)")
    return out


main()
