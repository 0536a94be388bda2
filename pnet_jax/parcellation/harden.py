"""Hard labels from probabilities, with connected parcels that are non-empty if possible. Pure and compiled."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.potts.chunked import sum_neighbours

PASSES = 5
SMALLEST_SHARE = 4  # a parcel below 1 / SMALLEST_SHARE of its atlas size is given its most probable locations back


class Hardened(NamedTuple):
    """Hard labels and their corrections.

    Attributes:
      labels: parcel of each location, −1 without candidates, `[V]`.
      restored: whether each parcel was given atlas locations back, because less than a quarter of its atlas size was left, `[K]`.
      moved_fragments: number of locations reassigned because they were disconnected from the main component of their parcel.
    """

    labels: Int[Array, " V"]
    restored: Bool[Array, " K"]
    moved_fragments: Int[Array, ""]


def most_probable(q: Float[Array, "V C"], candidates: Int[Array, "V C"]) -> Int[Array, " V"]:
    """Return the most probable candidate of each location, the first of equal ones; −1 without candidates, `[V]`."""
    best = jnp.where(candidates >= 0, q, -1.0).argmax(1)
    return jnp.take_along_axis(candidates, best[:, None], axis=1)[:, 0]


def harden(
    q: Float[Array, "V C"],
    candidates: Int[Array, "V C"],
    table: Int[Array, "N V C"],
    neighbours: Int[Array, "V N"],
    atlas_labels: Int[Array, " V"],
    n_parcels: int,
) -> Hardened:
    """Assign each location to its most probable candidate, reassign fragments to adjacent parcels, and restore parcels that nearly vanish.

    Args:
      q: probability of each candidate, `[V, C]`.
      candidates: candidate parcels, padded with −1; excluded locations have none, `[V, C]`.
      table: positions of the same parcel at the neighbours, see `SpatialPrior`, `[N, V, C]`.
      neighbours: adjacent locations, padded with −1, `[V, N]`; without neighbours (ROIs), there are no fragments.
      atlas_labels: parcels of the atlas, −1 outside and for excluded locations, `[V]`.
      n_parcels: number of parcels K.

    Returns:
      The labels and their corrections.
    """
    chex.assert_equal_shape([q, candidates])
    chex.assert_shape(table, (None, *q.shape))
    chex.assert_shape([neighbours, atlas_labels], [(len(q), None), (len(q),)])
    chex.assert_type([candidates, table, neighbours, atlas_labels], int)
    first = most_probable(q, candidates)
    labels = _join_fragments(first, candidates, table, neighbours, n_parcels) if neighbours.shape[1] else first
    moved = (labels != first).sum().astype(jnp.int32)
    size, expected = _sizes(labels, n_parcels), _sizes(atlas_labels, n_parcels)
    restored = (SMALLEST_SHARE * size < expected) & (expected > 0)
    # Rank of each location within its atlas parcel, by the probability of that parcel.
    own = jnp.where(candidates == atlas_labels[:, None], q, 0.0).sum(1)
    at = jnp.where(atlas_labels < 0, n_parcels, atlas_labels)
    order = jnp.lexsort((-own, at))
    starts = jnp.cumsum(jnp.append(expected, 0)) - jnp.append(expected, 0)
    rank = jnp.zeros(len(at), jnp.int32).at[order].set(jnp.arange(len(at), dtype=jnp.int32)) - starts[at]
    wanted = -(-expected // SMALLEST_SHARE)
    back = jnp.append(restored, False)[at] & (rank < jnp.append(wanted, 0)[at])
    return Hardened(jnp.where(back, atlas_labels, labels), restored, moved)


def _sizes(labels: Int[Array, " V"], n_parcels: int) -> Int[Array, " K"]:
    at = jnp.where(labels < 0, n_parcels, labels)
    return jax.ops.segment_sum(jnp.ones(len(labels), jnp.int32), at, n_parcels + 1)[:n_parcels]


def _join_fragments(
    labels: Int[Array, " V"], candidates: Int[Array, "V C"], table: Int[Array, "N V C"], neighbours: Int[Array, "V N"], n_parcels: int
) -> Int[Array, " V"]:
    def loose_ones(labels: Array) -> Array:
        return (labels >= 0) & (components(labels, neighbours) != bodies(labels, neighbours, n_parcels)[labels])

    def again(state: tuple[Array, Array, Array]) -> Array:
        _, loose, passes = state
        return loose.any() & (passes < PASSES)

    def join(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        labels, loose, passes = state
        settled = jnp.where((labels >= 0) & ~loose, labels, -2)
        votes = sum_neighbours((candidates == settled[:, None]).astype(jnp.float32), table)
        votes = jnp.where(candidates >= 0, votes, 0.0)
        best = jnp.take_along_axis(candidates, votes.argmax(1)[:, None], axis=1)[:, 0]
        labels = jnp.where(loose & (votes.max(1) > 0), best, labels)
        return labels, loose_ones(labels), passes + 1

    return jax.lax.while_loop(again, join, (labels, loose_ones(labels), jnp.int32(0)))[0]


def bodies(labels: Int[Array, " V"], neighbours: Int[Array, "V N"], n_parcels: int) -> Int[Array, " K"]:
    """Return the largest component of each parcel, of equal ones that with the first location; V for absent parcels, `[K]`."""
    component, count = components(labels, neighbours), len(labels)
    size = jax.ops.segment_sum(jnp.ones(count, jnp.int32), component, count)[component]
    at = jnp.where(labels < 0, n_parcels, labels)
    largest = jax.ops.segment_max(size, at, n_parcels + 1)
    own = jnp.where(size == largest[at], component, count)
    return jnp.minimum(jax.ops.segment_min(own, at, n_parcels + 1)[:n_parcels], count)


def components(labels: Int[Array, " V"], neighbours: Int[Array, "V N"]) -> Int[Array, " V"]:
    """Return the connected component of equal labels of each location, identified by its first location, `[V]`.

    Each location takes the smallest root among its neighbours of the same label, with pointer jumping, until nothing changes; this takes
    about log₂ of a parcel's diameter passes.
    """
    count = len(labels)
    beside = jnp.where((neighbours >= 0) & (labels[neighbours] == labels[:, None]), neighbours, count)

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        root, _ = state
        lowest = jnp.minimum(jnp.append(root, count)[beside].min(1, initial=count), root)
        # The old root is updated with the new one; then all locations jump to the root of their root.
        found = root.at[root].min(lowest)
        found = jnp.minimum(found, lowest)
        found = found[found]
        return found, (found != root).any()

    start = jnp.arange(count, dtype=jnp.int32)
    return jax.lax.while_loop(lambda state: state[1], spread, (start, jnp.array(True)))[0]


def count_components(labels: Int[np.ndarray, " V"], neighbours: Int[np.ndarray, "V N"], n_parcels: int) -> Int[np.ndarray, " K"]:
    """Count the connected components of each parcel, on the host; 0 for absent parcels, `[K]`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    i, n = np.nonzero(neighbours > np.arange(len(neighbours))[:, None])  # each pair once
    j = neighbours[i, n]
    same = labels[i] == labels[j]
    graph = coo_matrix((np.ones(int(same.sum()), bool), (i[same], j[same])), shape=(len(labels),) * 2)
    own = labels[np.unique(connected_components(graph, directed=False)[1], return_index=True)[1]]
    return np.bincount(own[own >= 0], minlength=n_parcels)
