"""One HTML page for the answers of evaluations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pnet_jax
from pnet_jax.outputs.atomic import write_text
from pnet_jax.report.extra import check_installed
from pnet_jax.report.measures import explained
from pnet_jax.report.page import template
from pnet_jax.report.style import ABSENT, ALARM, ATLAS, DATA_FREE, GRID, PERSONAL, as_png, drawing, new_figure

if TYPE_CHECKING:
    from pnet_jax.evaluate.answer import Answer, Figure, Row

MOST_ROWS, MOST_NAMES, MOST_MEASURES = 60, 40, 7  # of a table on the page; of labelled rows in a matrix; columns of a table
COLOURS = (PERSONAL, ALARM, ATLAS, DATA_FREE, "#7c3aed", "#b45309")


def write_evaluation(
    answers: Sequence[Answer],
    file: str | os.PathLike,
    *,
    title: str,
    about: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """Write a self-contained page with the sentences, tables and figures of evaluations, the conclusions first.

    Args:
      answers: Results, in the order of the page.
      file: Path of the page, `….html`.
      title: Name of the cohort.
      about: Facts for the head of the page by name, e.g. the numbers of scans and participants.
      left_out: Evaluations that were not made, with the reasons.

    Returns:
      Path of the page.

    Raises:
      OSError: The file cannot be written; the error names it.
      ReportExtraMissingError: matplotlib or jinja2 is not installed.
    """
    check_installed()
    page = template("evaluation.html").render(
        title=title,
        about=list((about or {}).items()),
        answers=[_shown(answer) for answer in answers],
        left_out=list((left_out or {}).items()),
        version=pnet_jax.__version__,
    )
    return write_text(file, page)


def _shown(answer: Answer) -> dict[str, Any]:
    tables: dict[str, list[Row]] = {}
    for row in answer.rows:
        tables.setdefault(row.table, []).append(row)
    return {
        "question": answer.question,
        "sentences": answer.sentences,
        "warnings": answer.warnings,
        "figures": [{"title": figure.title, "image": draw(figure)} for figure in answer.figures],
        "tables": [(name, _table(rows)) for name, rows in tables.items()],
        "measures": explained(row.measure for row in answer.rows),
        "settings": [(name.replace("_", " "), value) for name, value in answer.settings.items()],
    }


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table with a column for each measure if there are few, otherwise one with a line for each number."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    if 1 < len(measures) <= MOST_MEASURES and len(names) < len(rows):
        of = {(row.name, row.measure): row for row in rows}
        lines = [[_cell(of.get((name, measure))) for measure in measures] for name in names]
        notes = {name: "; ".join(dict.fromkeys(row.note for row in rows if row.name == name and row.note)) for name in names}
        shown: list[dict[str, Any]] = [
            {"name": name, "cells": cells, "note": notes[name]} for name, cells in zip(names, lines, strict=True)
        ]
        head = measures
    else:
        cells = [[row.measure, number(row.value), interval(row), p_value(row.p), row.n or ""] for row in rows]
        shown = [{"name": row.name, "cells": each, "note": row.note} for row, each in zip(rows, cells, strict=True)]
        head = ["Measure", "Value", "95 % CI", "p", "n"]
    hidden = max(len(shown) - MOST_ROWS, 0)
    return {"head": head, "shown": shown[:MOST_ROWS], "hidden": hidden, "noted": any(row["note"] for row in shown[:MOST_ROWS])}


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    said = f"{number(row.value)} {interval(row)}".strip()
    return said if math.isnan(row.p) else f"{said}, p {p_value(row.p)}" if row.p < 0.001 else f"{said}, p = {p_value(row.p)}"


def interval(row: Row) -> str:
    return "" if math.isnan(row.low) else f"[{number(row.low)}, {number(row.high)}]"


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float) -> str:
    """Return a formatted number: three decimals, whole numbers without decimals, `–` for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if value == int(value) and abs(value) >= 2:
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def draw(figure: Figure) -> str:
    """Return a figure as a `data:` address: curves, a matrix or distributions."""
    with drawing():
        page = new_figure(4.6 if figure.matrix is not None else 3.4, layout="constrained")
        axes = page.subplots(1, 1)
        if figure.matrix is not None:
            _matrix(page, axes, figure)
        elif figure.lines:
            _lines(axes, figure)
        else:
            _distributions(axes, figure)
        axes.set(xlabel=figure.x, ylabel=figure.y)
        return as_png(page)


def _lines(axes: Any, figure: Figure) -> None:
    for line, colour in zip(figure.lines, COLOURS * len(figure.lines), strict=False):
        marker = "o" if len(line.x) <= 20 else ""
        axes.plot(line.x, line.y, color=colour, label=line.name, marker=marker, markersize=4, linewidth=1.4)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.grid(True, color=GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _matrix(page: Any, axes: Any, figure: Figure) -> None:
    import matplotlib

    assert figure.matrix is not None
    values = np.ma.masked_invalid(figure.matrix)
    limit = float(np.abs(values).max()) if values.count() else 1.0
    cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad=ABSENT)
    shown = axes.imshow(values, cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest")
    if figure.names and len(figure.names) <= MOST_NAMES:
        axes.set_xticks(range(len(figure.names)), figure.names, rotation=90)
        axes.set_yticks(range(len(figure.names)), figure.names)
    page.colorbar(shown, ax=axes, shrink=0.8, pad=0.02).outline.set_visible(False)


def _distributions(axes: Any, figure: Figure) -> None:
    known = {name: np.asarray(values, float)[np.isfinite(values)] for name, values in figure.values.items()}
    known = {name: values for name, values in known.items() if len(values)}
    axes.boxplot(list(known.values()), orientation="horizontal", widths=0.6, showfliers=False, medianprops={"color": PERSONAL})
    rng = np.random.default_rng(0)
    for at, values in enumerate(known.values(), 1):
        drawn = values if len(values) <= 500 else rng.choice(values, 500, replace=False)
        axes.plot(drawn, at + rng.uniform(-0.2, 0.2, len(drawn)), ".", color=ATLAS, alpha=0.4, markersize=3)
    axes.set_yticks(range(1, len(known) + 1), list(known))
    axes.grid(True, axis="x", color=GRID)
