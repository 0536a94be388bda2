"""How well parcels describe signals they were not made from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from pnet_jax.space import LEFT, RIGHT, Space

BIN_MM = 4.0
FURTHEST_MM = 36.0
MIN_PAIRS = 50  # in a distance bin, within and across, for the bin to count

RESAMPLES = 2000  # of the bootstrap


class Pairs(NamedTuple):
    """Pairs of locations of one hemisphere no further apart than 36 mm, group by group.

    Attributes:
      groups: locations of each group; pairs are within groups, G of `[M]`.
      at: pairs of each group as places in its flattened `[M, M]` table, G of `[P_g]`.
      i, j: locations, `[P]`.
      ring: distance bin within its hemisphere; the hemispheres have bins of their own, `[P]`.
    """

    groups: list[Int[np.ndarray, " M"]]
    at: list[Int[np.ndarray, " p"]]
    i: Int[np.ndarray, " P"]
    j: Int[np.ndarray, " P"]
    ring: Int[np.ndarray, " P"]


def sample_pairs(space: Space, locations: Int[np.ndarray, " n"], *, group: int = 250, seed: int = 0) -> Pairs:
    """A random sample of near pairs in which every location takes part, the same for the same seed.

    The locations of a hemisphere are dealt into random groups, and all near pairs inside a group are taken: pairs of many
    different locations vary less together than all pairs of a few, so that fewer of them give the same precision.

    Args:
      space: V locations.
      locations: which of them may be drawn, `[n]`.
      group: locations in a group; the number of pairs grows with it.
      seed: of the deal.
    """
    rng = np.random.default_rng(seed)
    groups: list[Int[np.ndarray, " M"]] = []
    for side in (LEFT, RIGHT):
        here = rng.permutation(locations[space.hemisphere[locations] == side])
        groups += [np.sort(dealt) for dealt in np.array_split(here, max(1, round(len(here) / group)))]
    return near_pairs(space, groups)


def near_pairs(space: Space, groups: list[Int[np.ndarray, " M"]]) -> Pairs:
    """All near pairs inside each group of locations; a group lies in one hemisphere."""
    rings = int(np.ceil((FURTHEST_MM - BIN_MM / 2) / BIN_MM))
    at, i, j, ring = [], [], [], []
    for dealt in groups:
        pair = cKDTree(space.xyz[dealt]).query_pairs(FURTHEST_MM, output_type="ndarray") if len(dealt) > 1 else np.zeros((0, 2), int)
        distance = np.linalg.norm(space.xyz[dealt[pair[:, 0]]] - space.xyz[dealt[pair[:, 1]]], axis=1)
        bins = np.floor((distance - BIN_MM / 2) / BIN_MM).astype(np.int64)
        keep = (bins >= 0) & (bins < rings)
        place = pair[keep, 0] * len(dealt) + pair[keep, 1]
        order = np.argsort(place)  # neighbours in memory are read together
        place = place[order]
        at.append(place)
        i.append(dealt[place // len(dealt)].astype(np.int32))
        j.append(dealt[place % len(dealt)].astype(np.int32))
        side = int(space.hemisphere[dealt[0]]) if len(dealt) else 0
        ring.append((bins[keep][order] + side * rings).astype(np.int32))
    nothing = [np.zeros(0, np.int32)]
    return Pairs(groups, at, *(np.concatenate(part or nothing) for part in (i, j, ring)))


def pair_correlations(y: Float[np.ndarray, "V T"], pairs: Pairs) -> Float[np.ndarray, " P"]:
    """Correlation of each pair; a group's are one product.

    Args:
      y: signals, z-scored over the T frames, `[V, T]`.
      pairs: P pairs.
    """
    found = [np.zeros(0, np.float32)]
    for locations, at in zip(pairs.groups, pairs.at, strict=True):
        x = y[locations]
        found.append((x @ x.T).ravel()[at] / np.float32(y.shape[1]))
    return np.concatenate(found)


def dcbc(correlations: Float[np.ndarray, " P"], pairs: Pairs, labels: Int[np.ndarray, " V"]) -> float:
    """Distance-controlled boundary coefficient: correlation within minus across parcels at equal distance.

    Averaged over rings of 4 mm with weight 1 / (1 / n_within + 1 / n_across).

    Args:
      correlations: from `pair_correlations`, `[P]`.
      pairs: P pairs.
      labels: parcels, −1 outside, `[V]`.

    Returns:
      In correlation units; NaN where no ring has 50 pairs within and across.

    Source: Zhi et al. 2022, Human Brain Mapping.
    """
    return float(correlations @ pair_weights(pairs, labels)) if len(pairs.i) else float("nan")


def pair_weights(pairs: Pairs, labels: Int[np.ndarray, " V"]) -> Float[np.ndarray, " P"]:
    """What each pair's correlation counts in the DCBC of these labels, `[P]`; NaN where it cannot be measured."""
    own, other = labels[pairs.i], labels[pairs.j]
    rings = int(pairs.ring.max(initial=-1)) + 1
    cell = pairs.ring * 2 + (own == other)
    outside = (own < 0) | (other < 0)
    if outside.any():
        cell = np.where(outside, 2 * rings, cell)
    count = np.bincount(cell, minlength=2 * rings + 1)[: 2 * rings].reshape(rings, 2)
    good = (count >= MIN_PAIRS).all(1)
    if not good.any():
        return np.full(len(cell), np.nan, np.float32)
    share = np.where(good, 1 / (1 / np.maximum(count, 1)).sum(1), 0.0)  # of each ring
    each = (share / share.sum())[:, None] * [-1, 1] / np.maximum(count, 1)
    return np.append(each.ravel(), 0.0).astype(np.float32)[cell]


def sum_by_frame(y: Float[np.ndarray, "V T"], pairs: Pairs, weights: Float[np.ndarray, " P"]) -> Float[np.ndarray, " T"]:
    r"""What each frame adds to a weighted sum of correlations, `[T]`.

    A correlation is a mean of products over frames, so that frame t adds :math:`x_t^\top W x_t / T`; with `pair_weights` the frames
    sum to the DCBC.

    Args:
      y: signals, z-scored over the T frames, `[V, T]`.
      pairs: P pairs.
      weights: of the pairs, `[P]`.
    """
    total, start = np.full(y.shape[1], 0.0 if len(weights) else np.nan), 0
    for locations, at in zip(pairs.groups, pairs.at, strict=True):
        x, table = y[locations], np.zeros((len(locations),) * 2, np.float32)
        table.ravel()[at] = weights[start : start + len(at)]
        total, start = total + np.einsum("vt,vt->t", table @ x, x), start + len(at)
    return total / y.shape[1]


def homogeneity(y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int) -> float:
    """Mean correlation over all pairs of locations of a parcel, weighted by parcel size.

    Compact shapes alone raise it: print it beside the prior's and a data-free map's value only.

    Args:
      y: signals, z-scored over the T frames, `[V, T]`.
      labels: −1 outside, `[V]`.
      n_parcels: K.

    Returns:
      NaN where no parcel has two locations.
    """
    inside = np.flatnonzero(labels >= 0)
    at = (labels[inside], inside)
    sums = csr_matrix((np.ones(len(inside), np.float32), at), shape=(n_parcels, len(labels))) @ y  # [K, T]
    size = np.bincount(labels[inside], minlength=n_parcels).astype(np.float64)
    energy = np.bincount(labels[inside], weights=np.einsum("vt,vt->v", y, y)[inside] / y.shape[1], minlength=n_parcels)
    many = size > 1
    if not many.any():
        return float("nan")
    pairwise = (np.square(sums[many]).mean(1) - energy[many]) / (size[many] * (size[many] - 1))
    return float(np.average(pairwise, weights=size[many]))


def nearest_centroid(labels: Int[np.ndarray, " V"], space: Space) -> Int[np.ndarray, " V"]:
    """The data-free map: every location to the nearest centroid of the given parcels in its hemisphere, −1 where −1."""
    out = np.full_like(labels, -1)
    for side in (LEFT, RIGHT):
        here = np.flatnonzero((space.hemisphere == side) & (labels >= 0))
        if len(here):
            parcels, index = np.unique(labels[here], return_inverse=True)
            count = np.bincount(index)[:, None]
            centroid = np.stack([np.bincount(index, weights=space.xyz[here, a]) for a in range(3)], 1) / count
            out[here] = parcels[cKDTree(centroid).query(space.xyz[here])[1]]
    return out


def gain_by_block(
    y: Float[np.ndarray, "V T"], pairs: Pairs, labels: Int[np.ndarray, " V"], than: Int[np.ndarray, " V"], blocks: int
) -> Float[np.ndarray, " B"]:
    """DCBC of a map over that of another, for each of B stretches of time, on the scale of the whole.

    Args:
      y: signals as `standardised` makes them.
      pairs: of locations.
      labels, than: the map and the other.
      blocks: B.
    """
    frames = sum_by_frame(y, pairs, pair_weights(pairs, labels) - pair_weights(pairs, than))
    starts = np.linspace(0, len(frames), blocks + 1).round().astype(int)[:-1]
    return np.add.reduceat(frames, starts) * blocks


def bootstrap_interval(differences: Float[np.ndarray, " B"], seed: int) -> tuple[float, float, float]:
    """2.5 %, 50 % and 97.5 % of the mean over stretches of time, drawn again with replacement."""
    rng = np.random.default_rng([seed, len(differences)])
    resampled = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(1)
    low, middle, high = np.percentile(resampled, [2.5, 50, 97.5])
    return float(low), float(middle), float(high)


def standardised(y: Float[np.ndarray, "V T"]) -> Float[np.ndarray, "V T"]:
    """Signals of mean 0 and variance 1 over these frames; 0 where one does not vary."""
    y = y - y.mean(1, keepdims=True)
    energy = np.einsum("vt,vt->v", y, y) / y.shape[1]
    y *= np.where(energy > 0, 1 / np.sqrt(np.where(energy > 0, energy, 1)), 0).astype(y.dtype)[:, None]
    return y
