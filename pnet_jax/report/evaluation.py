"""HTML page for the answers of evaluations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pnet_jax
from pnet_jax.outputs.atomic import write_text
from pnet_jax.report.chart import ATLAS, PERSONAL, SERIES, Chart, Panel
from pnet_jax.report.extra import check_installed
from pnet_jax.report.matrices import matrix_panel
from pnet_jax.report.measures import explained
from pnet_jax.report.page import template

if TYPE_CHECKING:
    from pnet_jax.evaluate.answer import Answer, Figure, Row

MOST_ROWS, MOST_NAMES, MOST_MEASURES = 60, 40, 7  # rows of a table; labelled rows of a matrix; columns of a table
MOST_DOTS, MOST_POINTS = 20, 400  # marked points of a line; drawn values of a distribution


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
      left_out: Evaluations that were not run, with the reasons.

    Returns:
      Path of the page.

    Raises:
      OSError: If the file cannot be written.
      ReportExtraMissingError: If jinja2 is not installed.
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
        "figures": {"found": [draw(figure) for figure in answer.figures]},
        "tables": [(name, _table(rows)) for name, rows in tables.items()],
        "measures": explained(row.measure for row in answer.rows),
        "settings": [(name.replace("_", " "), value) for name, value in answer.settings.items()],
    }


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table with one column per measure if there are few, otherwise one with one line per number."""
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
    """Format a number: three decimals, whole numbers without decimals, `–` for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if value == int(value) and abs(value) >= 2:
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def draw(figure: Figure) -> Panel:
    """Draw a figure: curves, a matrix or distributions."""
    if figure.matrix is not None:
        return _matrix(figure)
    return _lines(figure) if figure.lines else _distributions(figure)


def _lines(figure: Figure) -> Panel:
    x = np.concatenate([np.asarray(line.x, float) for line in figure.lines])
    bands = [values for line in figure.lines for values in (line.y, line.low, line.high) if values is not None]
    y = np.concatenate([np.asarray(values, float) for values in bands])
    chart = Chart(figure.title, _ends(x), _ends(y), left=62)
    chart.x_axis(figure.x)
    chart.y_axis(figure.y)
    keys = []
    for at, line in enumerate(figure.lines):
        kind = SERIES[at % len(SERIES)]
        if line.low is not None and line.high is not None:
            chart.band(line.x, line.low, line.high, kind)
        chart.line(line.x, line.y, kind)
        if len(line.x) <= MOST_DOTS:
            for one, other in zip(line.x, line.y, strict=True):
                if np.isfinite(other):
                    chart.dot(one, other, kind, radius=3, said=f"{line.name}: {number(float(other))}")
        keys.append((line.name, kind))
    return Panel(figure.title, chart.svg(), tuple(keys))


def _matrix(figure: Figure) -> Panel:
    assert figure.matrix is not None
    matrix = np.asarray(figure.matrix, float)
    known = np.abs(matrix[np.isfinite(matrix)])
    limit = float(known.max()) if len(known) and known.max() > 0 else 1.0
    named = figure.names if figure.names and len(figure.names) <= MOST_NAMES else ()
    names = [(at + 0.5, name) for at, name in enumerate(named)]
    return matrix_panel(figure.title, matrix, limit=limit, names=names, x=figure.x, y=figure.y)


def _distributions(figure: Figure) -> Panel:
    known = {name: np.asarray(values, float)[np.isfinite(values)] for name, values in figure.values.items()}
    known = {name: values for name, values in known.items() if len(values)}
    every = np.concatenate([*known.values(), np.zeros(0)])
    longest = max((len(name) for name in known), default=0)
    chart = Chart(figure.title, _ends(every), (len(known) - 0.5, -0.5), height=70 + 44 * len(known), left=min(30 + 6 * longest, 200))
    chart.x_axis(figure.x)
    chart.y_axis(figure.y, [(at, name) for at, name in enumerate(known)], grid=False)
    rng = np.random.default_rng(0)
    for at, values in enumerate(known.values()):
        drawn = values if len(values) <= MOST_POINTS else rng.choice(values, MOST_POINTS, replace=False)
        for value in drawn:
            chart.dot(value, at + rng.uniform(-0.2, 0.2), ATLAS, radius=1.6)
        low, middle, high = np.percentile(values, (25, 50, 75))
        chart.bar(low, high, at + 0.3, at - 0.3, "c-box")
        chart.line((middle, middle), (at + 0.3, at - 0.3), PERSONAL)
    note = "Box: quartiles; line: median." + (f" At most {MOST_POINTS} values are drawn." if len(every) > MOST_POINTS else "")
    return Panel(figure.title, chart.svg(), note=note)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the limits of an axis that contains all values, with a margin."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.04 * abs(high) or 0.5
    return low - margin, high + margin
