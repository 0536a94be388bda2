"""Reliability of repeated measurements: intraclass correlation, identification and discriminability. Pure functions on arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata

from pnet_jax.evaluate.answer import Row, interval_of

Z95 = float(norm.ppf(0.975))
GOOD_ICC = 0.4  # Cicchetti 1994: lower values are poor


class Variances(NamedTuple):
    """Sums for a one-way analysis of variance.

    Attributes:
      mean: Mean over a participant's scans, `[n, E]`.
      within: Sum of squared deviations from it, `[n, E]`.
      scans: Number of scans, `[n]`.
    """

    mean: Float[np.ndarray, "n E"]
    within: Float[np.ndarray, "n E"]
    scans: Int[np.ndarray, " n"]


def variances_of(x: Float[np.ndarray, "S E"], subject: Int[np.ndarray, " S"]) -> Variances:
    """Compute the sums of an analysis of variance.

    Args:
      x: Measurements of all scans, `[S, E]`; NaN makes the whole column NaN.
      subject: Participant of each scan, 0…n−1, each at least once.
    """
    x = np.asarray(x, np.float64)
    count = np.bincount(subject)
    mean = np.zeros((len(count), x.shape[1]))
    np.add.at(mean, subject, x)
    mean /= count[:, None]
    within = np.zeros_like(mean)
    np.add.at(within, subject, np.square(x - mean[subject]))
    return Variances(mean, within, count)


def icc(found: Variances, weights: Float[np.ndarray, "B n"] | None = None) -> Float[np.ndarray, "*B E"]:
    r"""Intraclass correlation ICC(1,1) of each column, one-way random effects, single measurement.

    .. math:: \mathrm{ICC} = \frac{MS_b - MS_w}{MS_b + (k_0 - 1) MS_w}, \quad
      k_0 = \frac{1}{n - 1} \Big( N - \frac{\sum_i k_i^2}{N} \Big)

    with k_i scans of participant i, N in total, and a common mean of all participants. Negative values are kept: they occur by chance for
    edges without reliable differences, and setting them to 0 would bias the average upwards.

    Args:
      found: Sums from `variances_of`.
      weights: Number of times each participant counts in each bootstrap sample, `[B, n]`; each row sums to n.

    Returns:
      ICC, `[E]`, or `[B, E]` with weights; NaN for columns without variance. With weights, the mean square between participants is
      multiplied by n / (n − 1), because a bootstrap of n participants underestimates it by this factor.

    Source: Shrout and Fleiss 1979; k_0 for unequal numbers of scans by Donner 1986.
    """
    n = len(found.scans)
    w = np.ones((1, n)) if weights is None else np.asarray(weights, np.float64)
    scans = w * found.scans
    total = scans.sum(1, keepdims=True)  # [B, 1]
    k0 = (total - (w @ np.square(found.scans))[:, None] / total) / (n - 1)
    centre = found.mean.mean(0)  # any constant would do; this one improves precision
    mean = found.mean - centre
    between = (scans @ np.square(mean) - np.square(scans @ mean) / total) / (n - 1)
    within = (w @ found.within) / np.maximum(total - n, 1)
    between = between if weights is None else between * n / (n - 1)
    whole = between + (k0 - 1) * within
    out = (between - within) / np.where(whole > 0, whole, np.nan)
    return out[0] if weights is None else out


def bootstrap_weights(n: int, draws: int, seed: int) -> Float[np.ndarray, "B n"]:
    """Return the number of times each of n participants is drawn in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def icc_rows(
    edges: Float[np.ndarray, "n E"], subject: Int[np.ndarray, " n"], layer: str, *, draws: int = 500, seed: int = 0
) -> tuple[list[Row], Float[np.ndarray, " E"]]:
    """Return rows that summarise the edge-wise ICC, with intervals over participants, and the ICC of every edge."""
    found = variances_of(edges, subject)
    values, n = icc(found), len(found.scans)
    drawn = [icc(found, weights) for weights in np.array_split(bootstrap_weights(n, draws, seed), max(draws // 50, 1))] if n > 2 else []
    boot = np.concatenate(drawn) if drawn else np.full((0, len(values)), np.nan)
    rows = []
    for name, average in (("median", np.nanmedian), ("mean", np.nanmean)):
        limits = interval_of(average(boot, axis=1)) if len(boot) else (math.nan, math.nan)
        note = "" if len(boot) else "fewer than 3 participants: no interval"
        rows.append(Row("edges", layer, f"ICC(1,1), {name} edge", float(average(values)), *limits, n=n, note=note))
    # A bootstrap widens the distribution of edge ICCs, so it gives no valid interval for the share beyond a threshold.
    shares = {f"share of edges with ICC of {GOOD_ICC} or above": values >= GOOD_ICC, "share of edges with ICC below 0": values < 0}
    return [*rows, *(Row("edges", layer, name, float(beyond.mean()), n=n) for name, beyond in shares.items())], values


def hits(similarity: Float[np.ndarray, "n n"]) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Return the most similar scan of the other occasion, for each scan of the first (rows) and of the second (columns).

    Args:
      similarity: Similarity of the first occasion to the second, with participants in the same order, `[n, n]`.

    Returns:
      Two arrays, `[n, n]`: 1 at the most similar scan, split evenly among ties; each row of the first and each column of the second sums to
      1. The diagonals give the participants that were identified.

    Source: Finn et al. 2015, Nature Neuroscience 18:1664.
    """
    won = [similarity >= similarity.max(axis, keepdims=True) for axis in (1, 0)]
    return won[0] / won[0].sum(1, keepdims=True), won[1] / won[1].sum(0, keepdims=True)


def others_mean(similarity: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Return the mean similarity of each participant's scans to the other occasion of all other participants, in both directions."""
    n = len(similarity)
    return (similarity.sum(0) + similarity.sum(1) - 2 * np.diag(similarity)) / (2 * (n - 1))


def discriminability(distance: Float[np.ndarray, "S S"], subject: Int[np.ndarray, " S"]) -> Float[np.ndarray, " n"]:
    r"""Share of other participants' scans that are more distant from a scan than a repeated scan of the same participant.

    .. math:: D_i = \operatorname{mean}_{t \ne t'} \operatorname{mean}_{i' \ne i,\, t''}
      \big[ \delta(x_{it}, x_{it'}) < \delta(x_{it}, x_{i't''}) \big]

    with ties counted as one half. Chance is 0.5; the discriminability of a data set is the mean over participants.

    Args:
      distance: Distances between all scans, `[S, S]`.
      subject: Participant of each scan, 0…n−1, each at least twice.

    Source: Bridgeford et al. 2021, PLOS Computational Biology 17:e1009279.
    """
    return _discriminability(_nearer(distance), distance, subject)


def discriminability_null(
    distance: Float[np.ndarray, "S S"], subject: Int[np.ndarray, " S"], permutations: int, seed: int
) -> Float[np.ndarray, " P"]:
    """Return the discriminability when scans are assigned to participants at random, with the numbers of scans preserved."""
    rng, nearer = np.random.default_rng(seed), _nearer(distance)
    return np.array([_discriminability(nearer, distance, rng.permutation(subject)).mean() for _ in range(permutations)])


def _nearer(distance: Float[np.ndarray, "S S"]) -> Float[np.ndarray, "S S"]:
    """Count the scans more distant from each row's scan than each column's, ties as one half, without the scans of row and column."""
    d = np.array(distance, np.float64)
    np.fill_diagonal(d, -np.inf)
    # Rank of a value among S, with mean ranks for ties; the scan of the row comes first, and the value itself is not a tie.
    return len(d) - rankdata(d, axis=1)


def _discriminability(
    nearer: Float[np.ndarray, "S S"], distance: Float[np.ndarray, "S S"], subject: Int[np.ndarray, " S"]
) -> Float[np.ndarray, " n"]:
    order, count = np.argsort(subject, kind="stable"), np.bincount(subject)
    start, out = np.cumsum(count) - count, np.zeros(len(count))
    for k in np.unique(count):
        here = np.flatnonzero(count == k)
        own = order[start[here][:, None] + np.arange(k)]  # [m, k]
        block = distance[own[:, :, None], own[:, None, :]]  # [m, t, t']
        # The more distant scans include the participant's other scans, which are excluded.
        near, far = block[:, :, :, None], block[:, :, None, :]  # [m, t, t', t'']
        eye = np.eye(k, dtype=bool)
        further = np.where(eye[:, None, :] | eye[None, :, :], 0.0, (far > near) + 0.5 * (far == near)).sum(3)
        share = (nearer[own[:, :, None], own[:, None, :]] - further) / (len(subject) - k)
        out[here] = share[:, ~eye].mean(1)
    return out


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n participants; unlike a bootstrap interval, it has a width even for shares of 0 and 1.

    Source: Wilson 1927.
    """
    centre, spread = share + Z95**2 / (2 * n), Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = (float(x) for x in ((centre - spread) / (1 + Z95**2 / n), (centre + spread) / (1 + Z95**2 / n)))
    return max(low, 0.0), min(high, 1.0)


def correlations(x: Float[np.ndarray, "n E"], y: Float[np.ndarray, "m E"]) -> Float[np.ndarray, "n m"]:
    """Return Pearson's correlation over edges of each row of x with each row of y."""

    def standard(z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, np.float32) - z.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    return standard(x) @ standard(y).T


def p_value(null: Float[np.ndarray, " P"], value: float) -> float:
    """Return (1 + number of permutations that reach the value) / (1 + P)."""
    return float((1 + (np.asarray(null) >= value - 1e-12).sum()) / (1 + len(null)))
