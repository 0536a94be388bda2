"""How well parcels describe signals they were not made from."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from pnet_jax.space import LEFT, RIGHT, Space

BIN_MM = 4.0
FURTHEST_MM = 36.0
MIN_PAIRS = 50  # in a distance bin, within and across, for the bin to count


class Pairs(NamedTuple):
    """Pairs of locations of one hemisphere no further apart than 36 mm.

    Attributes:
      i, j: locations, `[P]`.
      ring: distance bin within its hemisphere; the hemispheres have bins of their own, `[P]`.
    """

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
    rings = int(np.ceil((FURTHEST_MM - BIN_MM / 2) / BIN_MM))
    found = []
    for side in (LEFT, RIGHT):
        here = rng.permutation(locations[space.hemisphere[locations] == side])
        for dealt in np.array_split(here, max(1, round(len(here) / group))):
            if len(dealt) < 2:
                continue
            pair = cKDTree(space.xyz[dealt]).query_pairs(FURTHEST_MM, output_type="ndarray")
            i, j = dealt[pair[:, 0]], dealt[pair[:, 1]]
            distance = np.linalg.norm(space.xyz[i] - space.xyz[j], axis=1)
            ring = np.floor((distance - BIN_MM / 2) / BIN_MM).astype(np.int64)
            keep = (ring >= 0) & (ring < rings)
            found.append((i[keep], j[keep], ring[keep] + side * rings))
    if not found:
        return Pairs(*(np.zeros(0, np.int64),) * 3)
    i, j, ring = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(i, kind="stable")  # neighbours in memory are read together: twice as fast to score
    return Pairs(i[order].astype(np.int32), j[order].astype(np.int32), ring[order].astype(np.int32))


def pair_correlations(y: Float[np.ndarray, "V T"], pairs: Pairs, blocks: int = 1) -> Float[np.ndarray, "B P"]:
    """Contribution of each of B successive stretches of time to the correlation of each pair; their sum is r.

    Args:
      y: signals, z-scored over the T frames, `[V, T]`.
      pairs: P pairs.
      blocks: B.
    """
    edges = np.linspace(0, y.shape[1], blocks + 1).round().astype(int)
    out = np.empty((blocks, len(pairs.i)), np.float32)
    for b, (start, stop) in enumerate(itertools.pairwise(edges)):
        piece = np.ascontiguousarray(y[:, start:stop])
        for first in range(0, len(pairs.i), 65536):  # a bounded copy of both sides
            rows = slice(first, first + 65536)
            out[b, rows] = np.einsum("pt,pt->p", piece[pairs.i[rows]], piece[pairs.j[rows]])
    return out / y.shape[1]


def dcbc(correlations: Float[np.ndarray, "B P"], pairs: Pairs, labels: Int[np.ndarray, " V"]) -> Float[np.ndarray, " B"]:
    """Distance-controlled boundary coefficient: correlation within minus across parcels at equal distance, `[B]`.

    Averaged over rings of 4 mm with weight 1 / (1 / n_within + 1 / n_across). It is linear in the correlations, so that the
    values of stretches of time add up to the value of the whole.

    Args:
      correlations: from `pair_correlations`, `[B, P]`.
      pairs: P pairs.
      labels: parcels, −1 outside, `[V]`.

    Returns:
      Values in correlation units; NaN where no ring has 50 pairs within and across.

    Source: Zhi et al. 2022, Human Brain Mapping.
    """
    own, other = labels[pairs.i], labels[pairs.j]
    used = (own >= 0) & (other >= 0)
    if not used.any():
        return np.full(len(correlations), np.nan)
    rings = int(pairs.ring.max()) + 1
    cell = pairs.ring * 2 + (own == other)
    if not used.all():  # what a scan is judged on lies inside as a rule, and copies of millions of pairs cost
        cell, correlations = cell[used], correlations[:, used]
    count = np.bincount(cell, minlength=2 * rings).reshape(rings, 2)
    good = (count >= MIN_PAIRS).all(1)
    if not good.any():
        return np.full(len(correlations), np.nan)
    total = np.stack([np.bincount(cell, weights=r, minlength=2 * rings).reshape(rings, 2) for r in correlations])
    mean = total[:, good] / count[good]  # [B, rings, 2]
    weight = 1 / (1 / count[good]).sum(1)
    return ((mean[..., 1] - mean[..., 0]) * weight).sum(1) / weight.sum()


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
