"""Scores of parcellations on held-out signals: DCBC and homogeneity. Pure functions of signals, labels and a table of near pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.ops.parts import over_parts, segment_sum
from pnet_jax.parcellation.geodesic import Sheet, between, nearest_seed, sheet
from pnet_jax.space import LEFT, RIGHT, Mesh, Space

BIN_MM = 4.0
FURTHEST_MM = 36.0
RINGS = int(np.ceil((FURTHEST_MM - BIN_MM / 2) / BIN_MM))  # number of distance bins per hemisphere
MIN_PAIRS = 50  # minimum numbers of pairs within and across parcels for a distance bin to be used
GROUP = 256  # number of locations per group; all near pairs within a group are used
PAIR_BUCKET = 1024
GROUPS_AT_A_TIME = 8


class NearPairs(NamedTuple):
    """Pairs of locations of the same hemisphere at most 36 mm apart, within groups of locations; along the cortex for vertices of a mesh.

    Attributes:
      groups: locations of each group, padded with −1, `[G, M]`.
      first, second: indices of each pair's locations in their group, `[G, Q]`.
      ring: distance bin of each pair, with separate bins for each hemisphere; −1 in the padding, `[G, Q]`.
    """

    groups: Int[Array, "G M"]
    first: Int[Array, "G Q"]
    second: Int[Array, "G Q"]
    ring: Int[Array, "G Q"]


def sample_pairs(space: Space, locations: Int[np.ndarray, " n"], *, rows: int | None = None, seed: int = 0) -> NearPairs:
    """Draw a reproducible random sample of near pairs that includes every location.

    The locations of a hemisphere are randomly split into groups, and all near pairs within a group are used. Pairs of many
    different locations are less correlated than all pairs of few locations, so fewer pairs give the same precision.

    Args:
      space: Space of V locations.
      locations: indices of the locations to sample from, `[n]`.
      rows: padded number of locations, which determines the shape of the tables; default: no padding.
      seed: random seed.

    Returns:
      The pairs.
    """
    rng = np.random.default_rng(seed)
    groups: list[Int[np.ndarray, " M"]] = []
    for side in (LEFT, RIGHT):
        here = rng.permutation(locations[space.hemisphere[locations] == side])
        groups += [np.sort(dealt) for dealt in np.array_split(here, -(-len(here) // GROUP))] if len(here) else []
    count = len(groups) if rows is None else -(-rows // GROUP) + 2
    groups += [np.zeros(0, int)] * (count - len(groups))
    return near_pairs(space, groups)


def near_pairs(space: Space, groups: list[Int[np.ndarray, " M"]]) -> NearPairs:
    """Return all near pairs within each group of locations; a group must lie in one hemisphere.

    If the Space has a mesh, distances between vertices are measured along the cortex, and a vertex and a voxel do not form a pair.
    """
    mesh = space.mesh
    sheets = (
        {} if mesh is None else {side: sheet(mesh, side) for side in {int(space.hemisphere[dealt[0]]) for dealt in groups if len(dealt)}}
    )
    found = [_of_group(space, dealt, sheets) for dealt in groups]
    most = max([len(ring) for _, _, ring in found] + [1])
    size = max([GROUP] + [len(dealt) for dealt in groups])
    first, second, ring = (np.full((len(groups), most + -most % PAIR_BUCKET), fill, np.int32) for fill in (0, 0, -1))
    table = np.full((len(groups), size), -1, np.int32)
    for at, (dealt, parts) in enumerate(zip(groups, found, strict=True)):
        table[at, : len(dealt)] = dealt
        for out, part in zip((first, second, ring), parts, strict=True):
            out[at, : len(part)] = part
    return NearPairs(jnp.asarray(table), jnp.asarray(first), jnp.asarray(second), jnp.asarray(ring))


def _of_group(space: Space, dealt: Int[np.ndarray, " M"], sheets: dict[int, Sheet]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if space.mesh is None or not len(dealt):
        pair, distance = _straight(space.xyz[dealt])
    else:
        pair, distance = _along_cortex(space, space.mesh, dealt, sheets[int(space.hemisphere[dealt[0]])])
    ring = np.floor((distance - BIN_MM / 2) / BIN_MM).astype(np.int64)
    keep = (ring >= 0) & (ring < RINGS)
    pair, ring = pair[keep], ring[keep]
    order = np.lexsort((pair[:, 1], pair[:, 0]))
    side = int(space.hemisphere[dealt[0]]) if len(dealt) else 0
    return pair[order, 0], pair[order, 1], ring[order] + side * RINGS


def _straight(xyz: Float[np.ndarray, "M 3"]) -> tuple[Int[np.ndarray, "q 2"], Float[np.ndarray, " q"]]:
    pair = cKDTree(xyz).query_pairs(FURTHEST_MM, output_type="ndarray") if len(xyz) > 1 else np.zeros((0, 2), int)
    return pair, np.linalg.norm(xyz[pair[:, 0]] - xyz[pair[:, 1]], axis=1)


def _along_cortex(
    space: Space, mesh: Mesh, dealt: Int[np.ndarray, " M"], of: Sheet
) -> tuple[Int[np.ndarray, "q 2"], Float[np.ndarray, " q"]]:
    """Near pairs of vertices, and those of voxels, as places in a group."""
    vertex, voxel = np.flatnonzero(mesh.vertex[dealt] >= 0), np.flatnonzero(mesh.vertex[dealt] < 0)
    pair, distance = _straight(space.xyz[dealt[voxel]])
    pairs, distances = [voxel[pair]], [distance]
    for first, second, mm in between(of, of.at(mesh.vertex[dealt[vertex]]), FURTHEST_MM):
        pairs.append(vertex[np.stack([first, second], 1)])
        distances.append(mm)
    return np.concatenate(pairs), np.concatenate(distances)


def standardised(y: Float[Array, "V T"], kept: Float[Array, " T"]) -> Float[Array, "V T"]:
    """Z-score the signals over the included frames; 0 in excluded frames and for constant signals."""
    count = jnp.maximum(kept.sum(), 1.0)
    y = (y - ((y * kept[None, :]).sum(1, keepdims=True) / count)) * kept[None, :]
    energy = jnp.square(y).sum(1, keepdims=True) / count
    return jnp.where(energy > 1e-12, y / jnp.sqrt(jnp.where(energy > 1e-12, energy, 1.0)), 0.0)


def pair_correlations(y: Float[Array, "V T"], pairs: NearPairs, count: Float[Array, ""]) -> Float[Array, "G Q"]:
    """Compute the correlation of each pair, with one matrix product per group.

    If a mesh splits the locations, the signals are resharded from locations to frames, because the locations of a group are on several
    devices, and the correlations are summed over the devices.

    Args:
      y: signals from `standardised`, `[V, T]`.
      pairs: pairs of the V locations.
      count: number of included frames.

    Returns:
      Correlations of the pairs, `[G, Q]`.
    """
    chex.assert_rank(y, 2)
    chex.assert_type(y, float)
    return over_parts(_products, (y,), (pairs,), along=1, total=True) / count


def _products(y: Float[Array, "V T"], pairs: NearPairs) -> Float[Array, "G Q"]:
    def one(group: tuple[Array, ...]) -> Array:
        locations, first, second = group
        x = y[locations]
        return jnp.matmul(x, x.T, precision="highest")[first, second]

    return jax.lax.map(one, (pairs.groups, pairs.first, pairs.second), batch_size=min(GROUPS_AT_A_TIME, len(pairs.groups)))


def dcbc(correlations: Float[Array, "G Q"], pairs: NearPairs, labels: Int[Array, " V"]) -> Float[Array, ""]:
    """Compute the distance-controlled boundary coefficient: correlation within minus across parcels at equal distance.

    The differences are averaged over distance bins of 4 mm with weights 1 / (1 / n_within + 1 / n_across).

    Args:
      correlations: correlations from `pair_correlations`, `[G, Q]`.
      pairs: pairs of the V locations.
      labels: parcel of each location, −1 outside, `[V]`.

    Returns:
      The DCBC, a difference of correlations; NaN if no bin has 50 pairs both within and across parcels.

    Source: Zhi et al. 2022, Human Brain Mapping.
    """
    chex.assert_equal_shape([correlations, pairs.ring])
    return (correlations * pair_weights(pairs, labels)).sum()


def pair_weights(pairs: NearPairs, labels: Int[Array, " V"]) -> Float[Array, "G Q"]:
    """Return the weight of each pair's correlation in the DCBC of the labels, `[G, Q]`; NaN if the DCBC is undefined."""
    there = jnp.where(pairs.groups < 0, -1, labels[pairs.groups])  # [G, M]
    own, other = (jnp.take_along_axis(there, at, axis=1) for at in (pairs.first, pairs.second))
    outside = (own < 0) | (other < 0) | (pairs.ring < 0)
    cell = jnp.where(outside, 4 * RINGS, pairs.ring * 2 + (own == other).astype(jnp.int32))
    ones = jnp.ones(cell.size, jnp.float32)
    count = jax.ops.segment_sum(ones, cell.ravel(), 4 * RINGS + 1)[:-1].reshape(-1, 2)
    good = (count >= MIN_PAIRS).all(1)
    share = jnp.where(good, 1 / (1 / jnp.maximum(count, 1.0)).sum(1), 0.0)  # weight of each distance bin
    total = share.sum()
    share = jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), jnp.nan)
    each = share[:, None] * jnp.array([-1.0, 1.0])[None, :] / jnp.maximum(count, 1.0)
    return jnp.append(each.ravel(), jnp.where(total > 0, 0.0, jnp.nan))[cell]


def by_frame(y: Float[Array, "V T"], pairs: NearPairs, weights: Float[Array, "G Q"], count: Float[Array, ""]) -> Float[Array, " T"]:
    r"""Compute the contribution of each frame to a weighted sum of correlations.

    A correlation is a mean of products over frames, so frame t contributes :math:`x_t^\top W x_t / T`; with `pair_weights`, the
    contributions sum to the DCBC.

    Args:
      y: signals from `standardised`, `[V, T]`.
      pairs: pairs of the V locations.
      weights: weights of the pairs, `[G, Q]`.
      count: number of included frames.

    Returns:
      The contributions, `[T]`.
    """
    chex.assert_equal_shape([weights, pairs.ring])
    return over_parts(_by_frame, (y,), (pairs, weights), along=1) / count


def _by_frame(y: Float[Array, "V T"], pairs: NearPairs, weights: Float[Array, "G Q"]) -> Float[Array, " T"]:
    size = pairs.groups.shape[1]

    def one(group: tuple[Array, ...]) -> Array:
        locations, first, second, weight = group
        x = y[locations]
        table = jnp.zeros((size, size)).at[first, second].add(weight)
        return (jnp.matmul(table, x, precision="highest") * x).sum(0)

    each = jax.lax.map(one, (pairs.groups, pairs.first, pairs.second, weights), batch_size=min(GROUPS_AT_A_TIME, len(pairs.groups)))
    return each.sum(0)


def homogeneity(y: Float[Array, "V T"], labels: Int[Array, " V"], n_parcels: int, count: Float[Array, ""]) -> Float[Array, ""]:
    """Compute the mean correlation over all pairs of locations in a parcel, weighted by parcel size.

    Compact parcels alone increase homogeneity, so compare it with that of the atlas and of a data-free parcellation.

    Args:
      y: signals from `standardised`, `[V, T]`.
      labels: parcel of each location, −1 outside, `[V]`.
      n_parcels: number of parcels K.
      count: number of included frames.

    Returns:
      The homogeneity; NaN if no parcel has two locations.
    """
    chex.assert_shape(labels, (len(y),))
    at = jnp.where(labels < 0, n_parcels, labels)
    sums = segment_sum(y, at, n_parcels + 1)[:n_parcels]
    size = segment_sum(jnp.ones(len(y), y.dtype), at, n_parcels + 1)[:n_parcels]
    energy = segment_sum(jnp.square(y).sum(1) / count, at, n_parcels + 1)[:n_parcels]
    many = size > 1
    pairwise = jnp.where(many, (jnp.square(sums).sum(1) / count - energy) / jnp.where(many, size * (size - 1), 1.0), 0.0)
    weight = jnp.where(many, size, 0.0)
    return jnp.where(many.any(), (pairwise * weight).sum() / jnp.maximum(weight.sum(), 1.0), jnp.nan)


def nearest_centroid(labels: Int[np.ndarray, " V"], space: Space) -> Int[np.ndarray, " V"]:
    """Return the data-free parcellation that assigns each location to the nearest parcel centroid in its hemisphere; −1 stays −1.

    For vertices of a mesh, distances are measured along the cortex, from the vertex of each parcel closest to the mean of its vertices.
    """
    out = np.full_like(labels, -1)
    for side, here in hemisphere_parts(space, labels >= 0):
        parcels, index = np.unique(labels[here], return_inverse=True)
        centroid = mean_places(space.xyz[here], index)
        out[here] = parcels[cKDTree(centroid).query(space.xyz[here])[1]]
        if space.mesh is not None and space.mesh.vertex[here[0]] >= 0:
            of = sheet(space.mesh, side)
            at = of.at(space.mesh.vertex[here])
            own = nearest_seed(of, at[middles(space.xyz[here], index, centroid)])[at]
            out[here] = np.where(own >= 0, parcels[own], out[here])
    return out


def hemisphere_parts(space: Space, inside: Bool[np.ndarray, " V"]) -> Iterator[tuple[int, Int[np.ndarray, " n"]]]:
    """Yield the locations of each hemisphere and its number: first those on a mesh, then the others; no part is empty."""
    for side in (LEFT, RIGHT):
        here = np.flatnonzero((space.hemisphere == side) & inside)
        on_mesh = np.zeros(len(here), bool) if space.mesh is None else space.mesh.vertex[here] >= 0
        for part in (here[on_mesh], here[~on_mesh]):
            if len(part):
                yield side, part


def mean_places(xyz: Float[np.ndarray, "n 3"], index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "k 3"]:
    """Mean coordinate of the locations of each of k parcels, numbered without gaps."""
    return np.stack([np.bincount(index, weights=xyz[:, a]) for a in range(3)], 1) / np.bincount(index)[:, None]


def middles(xyz: Float[np.ndarray, "n 3"], index: Int[np.ndarray, " n"], centroid: Float[np.ndarray, "k 3"]) -> Int[np.ndarray, " k"]:
    """The location of each of k parcels that is closest to its centroid."""
    off = np.square(xyz - centroid[index]).sum(1)
    order = np.lexsort((off, index))
    return order[np.searchsorted(index[order], np.arange(len(centroid)))]
