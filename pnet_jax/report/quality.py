"""Distributions and outliers of the quality figures of a cohort."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MADS = 3.0  # scaled median absolute deviations from the median to a limit
TO_SD = 1.4826  # converts the MAD of a normal distribution to its standard deviation
MEAN_TO_SD = 1.2533  # likewise for the mean absolute deviation
LEAST_SCANS = 10  # no limits are set for fewer results
MOST_SITES = 10  # largest number named in a sentence
RULE = f"median ± {MADS:g} MAD, where MAD is the median absolute deviation times {TO_SD}"


class Figure(NamedTuple):
    """Column whose distribution is shown.

    Attributes:
      key: Column of a row.
      title: Heading.
      unit: Unit, written after the value.
      scale: Factor that converts the column to the displayed value.
      digits: Number of decimals displayed.
      step: Smallest difference that matters, in units of the column; limits are at least this far from the median.
      most: Largest possible value of the column; the smallest is 0.
    """

    key: str
    title: str
    unit: str
    scale: float
    digits: int
    step: float
    most: float = math.inf

    def text(self, value: float) -> str:
        return f"{value * self.scale:.{self.digits}f}{' ' if self.unit else ''}{self.unit}"


FIGURES = (
    Figure("minutes", "Minutes of signal kept", "min", 1, 1, 0.1),
    Figure("mean_fd", "Mean framewise displacement", "mm", 1, 2, 0.01),
    Figure("agreement", "Agreement of the halves", "%", 100, 1, 0.01, 1),
    Figure("expected_agreement", "Expected agreement with a repeat", "%", 100, 1, 0.01, 1),
    Figure("ece", "Expected calibration error", "", 1, 3, 0.005, 1),
    Figure("coverage", "Mean coverage of the parcels", "%", 100, 1, 0.01, 1),
)


class Limits(NamedTuple):
    """Limits beyond which values are outliers; `by_mean` if more than half of the values are the same."""

    low: float
    high: float
    by_mean: bool


def limits(values: Float[np.ndarray, " S"], step: float = 0.0) -> Limits | None:
    """Compute the limits beyond which a value is an outlier: median ± 3 MAD.

    The MAD is scaled by 1.4826, so that it estimates the standard deviation of normal data (Leys et al. 2013,
    doi:10.1016/j.jesp.2013.03.013). If it is 0, because more than half of the values are the same, the mean absolute deviation times 1.2533
    takes its place (Iglewicz and Hoaglin 1993).

    Args:
      values: Finite values.
      step: Smallest distance from the median to a limit.

    Returns:
      None for fewer than 10 values.

    Example:
      >>> limits(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 50])).high
      16.6195
    """
    if len(values) < LEAST_SCANS:
        return None
    middle = float(np.median(values))
    away = np.abs(values - middle)
    spread, by_mean = TO_SD * float(np.median(away)), False
    if spread == 0:
        spread, by_mean = MEAN_TO_SD * float(away.mean()), True
    reach = max(MADS * spread, step)
    return Limits(middle - reach, middle + reach, by_mean)


class Peers(NamedTuple):
    """Group of results that share limits: those for one atlas, from one site if `site` is given."""

    atlas: str
    site: str = ""


class Distribution(NamedTuple):
    """Distribution of a figure over the results that have it.

    Attributes:
      figure: The figure.
      values: Finite values, `[S]`.
      limits: Limits of each group of results, if it has limits.
      outliers: Value, group and limits of each outlier, by index of the row.
    """

    figure: Figure
    values: Float[np.ndarray, " S"]
    limits: dict[Peers, Limits]
    outliers: dict[int, tuple[float, Peers, Limits]]

    @property
    def only(self) -> Limits | None:
        """Return the limits if they are the same for all values."""
        return next(iter(self.limits.values())) if len(self.limits) == 1 else None


def distribution(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> Distribution:
    """Collect a figure from rows, and find its outliers; rows without the figure are left out.

    Atlases and scanners shift most figures, so a value is compared with results for the same atlas: those from the same site if there are
    at least 10, otherwise those from all sites.

    Args:
      figure: The figure.
      rows: Rows with the figure, `atlas` and `site`.
    """
    given = {number: float(row[figure.key]) for number, row in enumerate(rows) if row[figure.key] is not None}
    groups: defaultdict[Peers, list[float]] = defaultdict(list)
    for number, value in given.items():
        for peers in {Peers(rows[number]["atlas"]), Peers(rows[number]["atlas"], rows[number]["site"])}:
            groups[peers].append(value)
    large = {peers: found for peers, own in groups.items() if (found := limits(np.array(own), figure.step)) is not None}
    used, beyond = {}, {}
    for number, value in given.items():
        peers = Peers(rows[number]["atlas"], rows[number]["site"])
        peers = peers if peers in large else Peers(peers.atlas)
        if (found := large.get(peers)) is not None:
            used[peers] = found
            # Beyond a limit by more than rounding error: a value on the limit is not an outlier.
            if value < found.low - 1e-9 or value > found.high + 1e-9:
                beyond[number] = value, peers, found
    return Distribution(figure, np.array(list(given.values())), used, beyond)


def outliers(distributions: Sequence[Distribution]) -> dict[int, list[tuple[Figure, float, Peers, Limits]]]:
    """Find the figures in which each row is an outlier; rows furthest from the median, relative to the limit, come first."""
    found: dict[int, list[tuple[Figure, float, Peers, Limits]]] = {}
    distance: dict[int, float] = {}
    for one in distributions:
        for number, (value, peers, own) in one.outliers.items():
            middle, reach = (own.low + own.high) / 2, (own.high - own.low) / 2
            found.setdefault(number, []).append((one.figure, value, peers, own))
            distance[number] = max(distance.get(number, 0.0), abs(value - middle) / reach)
    return {number: found[number] for number in sorted(found, key=lambda number: (-distance[number], number))}


def compared(distributions: Sequence[Distribution]) -> str:
    """Describe the results with which values are compared; empty if all results share their limits.

    Example:
      >>> compared([Distribution(FIGURES[0], np.zeros(0), {Peers("A"): Limits(0, 1, False), Peers("B"): Limits(0, 1, False)}, {})])
      'for each atlas'
    """
    groups = {peers for one in distributions for peers in one.limits}
    atlases, sites = {peers.atlas for peers in groups}, sorted({peers.site for peers in groups} - {""})
    each = ["for each atlas"] if len(atlases) > 1 else []
    if sites:
        listed = ", ".join(sites[:MOST_SITES]) + (f" and {len(sites) - MOST_SITES} more" if len(sites) > MOST_SITES else "")
        rest = "; results from other sites are compared with those from all sites" if any(not peers.site for peers in groups) else ""
        each.append(f"within each site that has at least {LEAST_SCANS} results ({listed}){rest}")
    return " and ".join(each)


def spread(values: Float[np.ndarray, " S"], figure: Figure) -> str:
    """Format the median and the quartiles: `8.1 min (7.9–9.8)`."""
    if not len(values):
        return "–"
    low, middle, high = (float(x) * figure.scale for x in np.percentile(values, (25, 50, 75)))
    text = f"{middle:.{figure.digits}f}{' ' if figure.unit else ''}{figure.unit}"
    return f"{text} ({low:.{figure.digits}f}–{high:.{figure.digits}f})"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose at most `most` + 1 round numbers within an interval.

    Example:
      >>> ticks(0.03, 0.52)
      [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]
