"""Overlap of label maps: agreement, Dice of each parcel and adjusted Rand index. Pure functions on arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort


def agreement(labels: Int[np.ndarray, "S V"], other: Int[np.ndarray, "M V"]) -> Float[np.ndarray, "S M"]:
    """Return the share of locations inside both maps with the same parcel; NaN if no locations are inside both.

    Args:
      labels, other: Parcel of each location, −1 outside.
    """
    a, b = np.asarray(labels, np.int16), np.asarray(other, np.int16)
    inside_a, inside_b = (a >= 0).astype(np.float32), (b >= 0).astype(np.float32)
    shared = np.matmul(inside_a, inside_b.T)
    neither = np.matmul(1 - inside_a, (1 - inside_b).T)
    same = np.array([np.count_nonzero(b == one[None], axis=1) for one in a]) - neither
    return same / np.where(shared > 0, shared, np.nan)


def pair_agreement(labels: Int[np.ndarray, "S V"], pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, " P"]:
    """Return the agreement of pairs of maps."""
    found = [agreement(labels[i][None], labels[j][None])[0, 0] for i, j in pairs]
    return np.array(found, float)


def dice(one: Int[np.ndarray, " V"], other: Int[np.ndarray, " V"], n_parcels: int) -> Float[np.ndarray, " K"]:
    r"""Dice overlap of each parcel, :math:`2 |A \cap B| / (|A| + |B|)`, over the locations inside both maps; NaN if it is in neither map.

    Source: Dice 1945.
    """
    inside = (one >= 0) & (other >= 0)
    a, b = one[inside], other[inside]
    both = np.bincount(a[a == b], minlength=n_parcels)
    size = np.bincount(a, minlength=n_parcels) + np.bincount(b, minlength=n_parcels)
    return 2 * both / np.where(size > 0, size, np.nan)


def rand_index(one: Int[np.ndarray, " V"], other: Int[np.ndarray, " V"]) -> float:
    """Return the adjusted Rand index over the locations inside both maps: 1 for equal parcels, 0 on average for unrelated ones.

    Source: Hubert and Arabie 1985.
    """
    inside = (one >= 0) & (other >= 0)
    a, b = one[inside].astype(np.int64), other[inside].astype(np.int64)
    if len(a) < 2:
        return float("nan")
    width = int(b.max()) + 1
    cells, rows, columns = (_pairs(np.bincount(x)) for x in (a * width + b, a, b))
    expected = rows * columns / _pairs(np.array([len(a)]))
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else float((cells - expected) / (largest - expected))


def centroids(cohort: Cohort) -> Float[np.ndarray, "K 3"] | None:
    """Return the mean position of each parcel in mm, averaged over scans; NaN for parcels absent from all scans, None without labels."""
    if cohort.labels is None or cohort.space is None:
        return None
    k, xyz = cohort.n_parcels, np.asarray(cohort.space.xyz, np.float64)
    total, scans = np.zeros((k, 3)), np.zeros(k)
    for labels in cohort.labels:
        inside = labels >= 0
        size = np.bincount(labels[inside], minlength=k)
        sums = np.stack([np.bincount(labels[inside], weights=xyz[inside, axis], minlength=k) for axis in range(3)], 1)
        total += np.where(size[:, None] > 0, sums / np.maximum(size, 1)[:, None], 0)
        scans += size > 0
    return total / np.where(scans > 0, scans, np.nan)[:, None]


def _pairs(counts: Int[np.ndarray, " n"]) -> float:
    return float((counts.astype(float) * (counts - 1) / 2).sum())
