"""Answer: the result of one evaluation, as data. Other modules write it to tables and reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One number of an evaluation; a line of its tidy table.

    Attributes:
      table: Table that the row belongs to, e.g. `"features"`.
      name: Object that was measured, e.g. the pipeline `"tangent + ridge"`.
      measure: Measure, with its unit if it has one, e.g. `"AUC"`.
      value: Estimate; NaN if there is none.
      low, high: Limits of its 95 % confidence interval; NaN if there is none.
      p: p value; NaN if nothing was tested.
      n: Number of participants, scans or edges on which the estimate is based; see the documentation of the evaluation.
      note: Reason for a missing value, or a limitation.
    """

    table: str
    name: str
    measure: str
    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: int = 0
    note: str = ""


class Line(NamedTuple):
    """A line of a figure, `[n]` each; limits are drawn as a band."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """Figure of an evaluation.

    Attributes:
      title: Title.
      x, y: Labels of the axes, with units.
      lines: Curves, if it shows curves.
      matrix: Values by row and column, if it shows a matrix.
      values: Samples by name, if it shows distributions.
      names: Names of the rows and columns of the matrix.
    """

    title: str
    x: str = ""
    y: str = ""
    lines: tuple[Line, ...] = ()
    matrix: np.ndarray | None = None
    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """Result of one evaluation.

    Attributes:
      question: Name of the evaluation, e.g. `"diagnosis"`.
      sentences: Conclusions, in sentences that need no further context; the answer to the question first.
      rows: All numbers.
      settings: All settings that the numbers depend on, including the seed.
      tables: Further tables by name, each with columns of equal length, e.g. the predictions of all participants.
      figures: Figures.
      warnings: Limitations that a reader must know before using the numbers.
    """

    question: str
    sentences: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    warnings: tuple[str, ...] = ()

    def value(self, name: str, measure: str) -> float:
        """Return the value of a row.

        Raises:
          KeyError: If there is no such row.
        """
        for row in self.rows:
            if (row.name, row.measure) == (name, measure):
                return row.value
        raise KeyError(f"no row {name!r} with measure {measure!r}; rows are {sorted({(row.name, row.measure) for row in self.rows})}")


def interval_of(draws: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws; NaN if none is finite."""
    known = np.asarray(draws, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def mean_row(table: str, name: str, measure: str, values: np.ndarray, seed: int = 0, draws: int = 2000) -> Row:
    """Return the mean over participants with its bootstrap interval.

    Args:
      values: One value per participant; NaN if unknown.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return Row(table, name, measure, math.nan, note="no participant has this value")
    if len(known) < 3:
        return Row(table, name, measure, float(known.mean()), n=len(known), note="fewer than 3 participants: no interval")
    drawn = np.random.default_rng(seed).integers(len(known), size=(draws, len(known)))
    return Row(table, name, measure, float(known.mean()), *interval_of(known[drawn].mean(1)), n=len(known))


def with_p(p: float) -> str:
    """Return a p value as text.

    >>> with_p(0.0004), with_p(0.0312), with_p(0.31)
    ('p < 0.001', 'p = 0.031', 'p = 0.31')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def with_interval(row: Row, digits: int = 3) -> str:
    """Return a value with its interval as text.

    >>> with_interval(Row("features", "tangent + ridge", "AUC", 0.7921, 0.7611, 0.8202))
    '0.792, 95 % CI [0.761, 0.820]'
    """
    beside = f", 95 % CI [{row.low:.{digits}f}, {row.high:.{digits}f}]" if math.isfinite(row.low) else ""
    return f"{row.value:.{digits}f}{beside}"
