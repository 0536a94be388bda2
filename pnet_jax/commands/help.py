"""Help of the commands as plain text, with separate sections for the options of nested settings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel

INDENT, COLUMN = 2, 30
SECTIONS = {
    "cleaning": "Cleaning",
    "parallel": "Devices and processes",
    "personalize": "Fine-tuning",
    "perceiver": "Perceiver",
    "input": "Batches",
    "objectives": "Objectives",
    "optimiser": "Optimiser",
}


class Help:
    """Formatter of help in the style of Unix programs; cyclopts calls it for each part."""

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        """Write a panel, with one section for each group of nested settings."""
        parts: dict[str, list[HelpEntry]] = {}
        for entry in panel.entries:
            name = next(iter(entry.positive_names), "")
            group = name.removeprefix("--").partition(".")[0] if "." in name else ""
            parts.setdefault(group, []).append(entry)
        for group, entries in parts.items():
            title = SECTIONS.get(group, group) if group else str(panel.title)
            lines = [f"{title}:", *(line for entry in entries for line in _lines(entry, console.width)), ""]
            _write(console, "\n".join(lines))

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Write the usage with arguments before options, because an option may take several values."""
        text = getattr(usage, "plain", str(usage)).strip()
        required = re.findall(r" --\S+ \S+", text)
        for part in (" [OPTIONS]", *required):
            text = text.replace(part, "")
        text += "".join(required) + (" [OPTIONS]" if "COMMAND" not in text else "")
        _write(console, f"{text if text.startswith('Usage:') else f'Usage: {text}'}\n")

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Write the description of a command."""
        text = _plain(description)
        if text:
            _write(console, "\n\n".join(textwrap.fill(part, console.width) for part in text.split("\n\n")) + "\n")


def _lines(entry: HelpEntry, width: int) -> Iterator[str]:
    label = " ".join([", ".join(entry.display_labels), *([entry.metavar] if entry.metavar and not entry.positional_label else [])])
    if entry.negative_names and len(entry.positive_names) == 1:
        label = f"{entry.positive_names[0]}, {entry.negative_names[0]}"
    said = [_plain(entry.description)]
    if entry.choices:
        said.append(f"[{' | '.join(map(str, entry.choices))}]")
    if entry.required and not entry.positional_label:
        said.append("[required]")
    elif entry.default and str(entry.default) not in ("None", "False", "True", "none", ""):
        said.append(f"[default: {entry.default}]")
    text = textwrap.wrap(" ".join(filter(None, said)), max(width - COLUMN, 30), break_on_hyphens=False)
    start = f"{' ' * INDENT}{label}"
    if len(start) < COLUMN - 1 and text:
        start = start.ljust(COLUMN) + text.pop(0)
    yield start
    yield from (" " * COLUMN + line for line in text)


def _plain(text: Any) -> str:
    """Return the text of a Rich renderable from cyclopts, with one line per paragraph."""
    if text is None or isinstance(text, str):
        return text or ""
    if hasattr(text, "plain"):
        return str(text.plain).strip()
    from rich.console import Console

    console = Console(width=10_000, no_color=True, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(text, end="")
    return "\n".join(line.rstrip() for line in capture.get().strip().splitlines())


def _write(console: Any, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
