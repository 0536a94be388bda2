"""Equations of pages: `$…$` and `$$…$$` become MathML, which browsers show without a script. A hook of mkdocs."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

# Code comes first, so that what looks like an equation inside it is left alone.
CODE = r"^(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=fence)[^\n]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)"
BLOCK = r"^\$\$(?P<block>.+?)\$\$[ \t]*$"
INLINE = r"(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\d$])"
EQUATION = re.compile(f"{CODE}|{BLOCK}|{INLINE}", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Rewrite a page before it becomes HTML."""
    return EQUATION.sub(_rewritten, markdown)


def mathml(latex: str, display: str) -> str:
    """Return an equation as MathML; `display` is `block` or `inline`."""
    return convert(" ".join(latex.split()), display=display)


def _rewritten(found: re.Match[str]) -> str:
    if found["block"]:
        return f"\n{mathml(found['block'], 'block')}\n"
    if found["inline"]:
        # Markdown takes a line that begins with <math> for a paragraph of its own.
        return f"<span>{mathml(found['inline'], 'inline')}</span>"
    return found[0]
