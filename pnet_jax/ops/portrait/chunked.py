"""Default implementation: one network or one pair at a time, so that memory is limited to a few matrices of one network.

Hops are computed by products of 0/1 matrices, and lengths by the Floyd–Warshall algorithm, whose cost is one min-plus product. The bin
edges of a pair are read from the merged order of two sorted lists; a lookup table of buckets shortens the binary search, so that nothing
is sorted twice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.portrait.reference import distribution, places
from pnet_jax.ops.portrait.settings import PortraitSettings

NETWORKS = 8  # number of networks whose hops are computed at once
PAIRS = 16  # number of pairs compared at once if the bins are common to all
STRIDE = 64  # number of sorted path lengths between two stored counts
FEW = 1024  # up to this number of distinct path lengths in every network, the padding is left out of the search
BUCKETS = 1 << 15  # maximum number of equal-width buckets for looking up distinct path lengths


def shortest_paths(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    nodes = lengths.shape[-1]

    def through(k: Int[Array, ""], paths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        return jnp.minimum(paths, jax.lax.dynamic_slice_in_dim(paths, k, 1, 1) + jax.lax.dynamic_slice_in_dim(paths, k, 1, 0))

    def one(lengths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        start = jnp.where(jnp.eye(nodes, dtype=bool), jnp.zeros_like(lengths), lengths)
        return jax.lax.fori_loop(0, nodes, through, start)

    return jax.lax.map(one, lengths)


def paths_from_source(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    """Compute shortest paths whose lengths are summed from the source outward, bit for bit as in the reference definition.

    Sweeps as in `shortest_paths`, but extends each path by an edge instead of a second path, until nothing changes. Rounded sums are
    monotone, so the result does not depend on the order in which paths are found.
    """

    def one(lengths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        def through(k: Int[Array, ""], paths: Float[Array, "N N"]) -> Float[Array, "N N"]:
            return jnp.minimum(paths, jax.lax.dynamic_slice_in_dim(paths, k, 1, 1) + jax.lax.dynamic_slice_in_dim(lengths, k, 1, 0))

        def sweep(state: tuple[Array, Array]) -> tuple[Array, Array]:
            paths = jax.lax.fori_loop(0, len(lengths), through, state[0])
            return paths, jnp.any(paths < state[0])

        start = jnp.where(jnp.eye(len(lengths), dtype=bool), jnp.zeros_like(lengths), lengths)
        return jax.lax.while_loop(lambda state: state[1], sweep, (start, jnp.array(True)))[0]

    return jax.lax.map(one, lengths)


def hops(adjacency: Bool[Array, "S N N"], dtype: np.dtype) -> Float[Array, "S N N"]:
    def one(adjacency: Bool[Array, "N N"]) -> Float[Array, "N N"]:
        steps = adjacency.astype(jnp.float32)

        def further(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            distance, front, level = state
            # Only whether the sum of zeros and ones is 0 matters, so the default precision is enough.
            new = (jnp.matmul(front, steps) > 0) & jnp.isinf(distance)
            return jnp.where(new, level, distance), new.astype(jnp.float32), level + 1

        eye = jnp.eye(len(adjacency), dtype=jnp.float32)
        start = (jnp.where(eye > 0, 0, jnp.inf).astype(dtype), eye, jnp.ones((), dtype))
        return jax.lax.while_loop(lambda state: (state[1] > 0).any(), further, start)[0]

    return jax.lax.map(one, adjacency, batch_size=NETWORKS)


def portraits(distances: Float[Array, "S N N"], edges: Float[Array, " L+1"], present: Bool[Array, "S N"]) -> Float[Array, "S L N+1"]:
    return jax.lax.map(lambda network: _portrait(network[0], network[1], edges), (_among(distances, present), present))


def _among(distances: Float[Array, "S N N"], present: Bool[Array, "S N"]) -> Float[Array, "S N N"]:
    return jnp.where(present[:, :, None] & present[:, None, :], distances, jnp.inf)


def _portrait(distances: Float[Array, "N N"], present: Bool[Array, " N"], edges: Float[Array, " L+1"]) -> Float[Array, "L N+1"]:
    d = distances[:, :, None]  # [N, N, 1]; the sum over its middle axis is fused with the comparison
    below = (d < edges[None, None, :]).sum(1, dtype=jnp.int32)  # [N, L+1]
    below = below.at[:, -1].set((distances <= edges[-1]).sum(1, dtype=jnp.int32))
    return _count(below.T, present, distances.dtype)


def _count(below: Int[Array, "L+1 N"], present: Bool[Array, " N"], dtype: np.dtype) -> Float[Array, "L N+1"]:
    seen = jnp.diff(below, axis=0)  # [L, N]
    levels, nodes = seen.shape
    return jnp.zeros((levels, nodes + 1), dtype).at[jnp.arange(levels, dtype=jnp.int32)[:, None], seen].add(present.astype(dtype)[None, :])


def divergences(
    distances: Float[Array, "S N N"],
    present: Bool[Array, "S N"],
    pairs: Int[Array, "P 2"],
    edges: Float[Array, " L+1"] | None,
    settings: PortraitSettings,
) -> Float[Array, " P"]:
    return compared(prepared(distances, present, edges, settings), present, pairs, edges, settings)


def prepared(
    distances: Float[Array, "S N N"], present: Bool[Array, "S N"], edges: Float[Array, " L+1"] | None, settings: PortraitSettings
) -> Any:
    """Return the data of each network needed for comparisons: its distribution if bins are common to all, else its sorted paths."""
    if edges is not None:
        return distribution(portraits(distances, edges, present), settings.convention)
    # Both directions of a path have the same length after rounding, so they count once.
    different = distances[0].size if settings.rounding is None else distances[0].size // 2 + 1
    return jax.lax.map(lambda network: _order(network, different), _among(distances, present))


def compared(
    networks: Any, present: Bool[Array, "S N"], pairs: Int[Array, "P 2"], edges: Float[Array, " L+1"] | None, settings: PortraitSettings
) -> Float[Array, " P"]:
    """Return the divergences of pairs of `prepared` networks."""
    if edges is not None:
        return jax.lax.map(lambda pair: _jensen_shannon(networks[pair[0]], networks[pair[1]]), pairs, batch_size=PAIRS)

    def compare(size: int) -> Float[Array, " P"]:
        def one(pair: Int[Array, " 2"]) -> Float[Array, ""]:
            two = [(jax.tree.map(lambda x: x[i], networks), present[i]) for i in pair]  # noqa: B023
            a, b = (network.lookup._replace(values=network.lookup.values[:size]) for network, _ in two)
            common = _percentiles(a, b, settings.bins, exact=settings.rounding is not None)
            p, q = (distribution(_count(_below(network, common), there, common.dtype), settings.convention) for network, there in two)
            return _jensen_shannon(p, q)

        return jax.lax.map(one, pairs)

    different = networks.lookup.values.shape[1]
    if different <= FEW:
        return compare(different)
    few = jnp.isinf(networks.lookup.values[:, FEW]).all()
    return jax.lax.cond(few, lambda: compare(FEW), lambda: compare(different))


class _Lookup(NamedTuple):
    """Distinct values in ascending order, with a table of buckets for searching them.

    Attributes:
      values: distinct values, padded with inf, `[U]`.
      first: index of the first value of each bucket, followed by the index of the first inf, `[B + 1]`.
      origin, scale: parameters of the bucket of a value x, (x − origin) · scale, clipped to the range of buckets.
      steps: number of steps of a binary search in the fullest bucket.
    """

    values: Float[Array, " U"]
    first: Int[Array, " B+1"]
    origin: Float[Array, ""]
    scale: Float[Array, ""]
    steps: Int[Array, ""]

    def bucket(self, x: Float[Array, " M"]) -> Int[Array, " M"]:
        return jnp.clip((x - self.origin) * self.scale, 0, len(self.first) - 2).astype(jnp.int32)

    def smaller(self, x: Float[Array, " M"]) -> Int[Array, " M"]:
        """Return the number of values below each x, as `searchsorted` does, in as many steps as the fullest bucket needs."""
        bucket = self.bucket(x)

        def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            before = (self.values[jnp.minimum(middle, len(self.values) - 1)] < x) & (low < high)
            return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

        return jax.lax.fori_loop(0, self.steps, halve, (self.first[bucket], self.first[bucket + 1]))[0]


def _lookup(values: Float[Array, " U"]) -> _Lookup:
    finite, buckets = jnp.isfinite(values), min(BUCKETS, len(values))
    # The first value is the 0 of the diagonal, which may be far from the others.
    origin, last = values[min(1, len(values) - 1)], jnp.max(values, initial=0, where=finite)
    wide = jnp.isfinite(origin) & (last > origin)
    found = _Lookup(values, jnp.zeros(buckets + 1, jnp.int32), jnp.where(wide, origin, 0), jnp.zeros_like(last), jnp.zeros((), jnp.int32))
    found = found._replace(scale=jnp.where(wide, buckets / jnp.where(wide, last - origin, 1), 0))
    held = jnp.zeros(buckets, jnp.int32).at[found.bucket(values)].add(finite.astype(jnp.int32))
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(held, dtype=jnp.int32)])
    return found._replace(first=first, steps=32 - jax.lax.clz(held.max()))


class _Ordered(NamedTuple):
    """The N² path lengths of a network in ascending order.

    Attributes:
      lengths: path lengths, padded with inf, `[M]`.
      rows: start node of each path, `[M]`.
      before: number of paths from each node among the first 0, STRIDE, 2 STRIDE, …, `[M / STRIDE + 1, N]`.
      lookup: lookup table of the distinct finite lengths.
    """

    lengths: Float[Array, " M"]
    rows: Int[Array, " M"]
    before: Int[Array, "B N"]
    lookup: _Lookup


def _order(distances: Float[Array, "N N"], size: int) -> _Ordered:
    nodes = len(distances)
    padded = -(-distances.size // STRIDE) * STRIDE - distances.size
    flat = jnp.abs(jnp.pad(distances.reshape(-1), (0, padded), constant_values=jnp.inf))  # avoids −0, whose bits differ from those of 0
    ascending = _sorted(flat)
    new = jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
    different = jnp.full(size, jnp.inf, flat.dtype).at[jnp.cumsum(new, dtype=jnp.int32) - 1].set(ascending, mode="drop")
    rows = jnp.arange(len(flat), dtype=jnp.int32) // nodes  # rows of the padding are out of range and dropped below
    # If the rank of a length and its row fit into one integer, sorting these integers is fastest.
    if (size + 1) * (nodes + 2) < 2**31:
        place = jnp.searchsorted(different, flat).astype(jnp.int32)
        rows = jax.lax.rem(jnp.sort(place * (nodes + 2) + jnp.minimum(rows, nodes + 1)), jnp.int32(nodes + 2))
    else:
        rows = rows[jnp.argsort(flat)]
    block = jnp.arange(len(rows), dtype=jnp.int32) // STRIDE + 1
    starts = jnp.zeros((len(rows) // STRIDE + 1, nodes), jnp.int32).at[block, rows].add(1, mode="drop")
    return _Ordered(ascending, rows, jnp.cumsum(starts, axis=0, dtype=jnp.int32), _lookup(different))


def _sorted(x: Float[Array, " M"]) -> Float[Array, " M"]:
    """Sort values ≥ 0 by their bits, which have the same order and compare faster."""
    whole = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(jnp.sort(jax.lax.bitcast_convert_type(x, whole)), x.dtype)


def _below(network: _Ordered, edges: Float[Array, " L+1"]) -> Int[Array, "L+1 N"]:
    """Count the path lengths from each node below each bin edge; the last edge is inclusive."""
    cut = jnp.searchsorted(network.lengths, edges).astype(jnp.int32)
    cut = cut.at[-1].set(jnp.searchsorted(network.lengths, edges[-1], side="right"))
    block, rest = cut // STRIDE, cut % STRIDE
    ahead = jnp.arange(STRIDE - 1, dtype=jnp.int32)
    at = jnp.minimum(block[:, None] * STRIDE + ahead[None, :], len(network.rows) - 1)
    inside = (ahead[None, :] < rest[:, None]).astype(network.before.dtype)
    return network.before[block].at[jnp.arange(len(edges), dtype=jnp.int32)[:, None], network.rows[at]].add(inside, mode="drop")


def _jensen_shannon(p: Float[Array, "L K"], q: Float[Array, "L K"]) -> Float[Array, ""]:
    # Elementwise, so that equal elements give exactly 0.
    return ((_xlog2x(p) + _xlog2x(q)) / 2 - _xlog2x((p + q) / 2)).sum()


def _xlog2x(x: Float[Array, "L K"]) -> Float[Array, "L K"]:
    return x * jnp.log2(jnp.where(x > 0, x, 1))


def _percentiles(one: _Lookup, other: _Lookup, bins: int, *, exact: bool) -> Float[Array, " L+1"]:
    """Return linearly interpolated percentiles of the union of two sorted lists, a and b, of distinct values.

    The rank of a value of a in the union is its rank in a, plus the number of values of b below it, minus the number of shared values below
    it. Shared values are counted per block, and within a block only if a percentile falls into it.
    """
    b, finite = other.values, other.first[-1]
    a = jnp.pad(one.values, (0, -len(one.values) % STRIDE), constant_values=jnp.inf)
    smaller = other.smaller(a)  # number of values of b below each of a
    shared = (b[jnp.minimum(smaller, len(b) - 1)] == a) & jnp.isfinite(a)
    smaller, inside = smaller.reshape(-1, STRIDE), shared.reshape(-1, STRIDE)
    in_blocks = jnp.cumsum(inside.sum(1, dtype=jnp.int32))
    before = in_blocks - inside.sum(1, dtype=jnp.int32)  # shared values before each block
    first = jnp.arange(len(before), dtype=jnp.int32) * STRIDE
    place = first + smaller[:, 0] - before  # rank of each block's first value in the union
    n = jnp.isfinite(a).sum(dtype=jnp.int32) + finite - in_blocks[-1]

    def value(wanted: Int[Array, " L+1"]) -> Float[Array, " L+1"]:
        block = jnp.maximum(jnp.searchsorted(place, wanted, side="right").astype(jnp.int32) - 1, 0)
        to = jnp.cumsum(inside[block], axis=1, dtype=jnp.int32) + before[block][:, None]  # [L + 1, STRIDE]
        own = inside[block].astype(jnp.int32)
        rank = (first[block][:, None] + jnp.arange(STRIDE, dtype=jnp.int32)[None, :]) + smaller[block] - to + own
        up_to = (rank <= wanted[:, None]).sum(1, dtype=jnp.int32)  # number of values of the block up to the wanted rank
        last = jnp.maximum(up_to - 1, 0)[:, None]
        at, share = jnp.take_along_axis(rank, last, 1)[:, 0], jnp.where(up_to > 0, jnp.take_along_axis(to, last, 1)[:, 0], 0)
        i = first[block] + last[:, 0]
        in_b = wanted - (first[block] + up_to) + share
        return jnp.where((up_to > 0) & (at == wanted), a[i], b[jnp.clip(in_b, 0, len(b) - 1)])

    low, t = places(n, bins, a.dtype, exact=exact)
    x, y = value(low), value(jnp.minimum(low + 1, n - 1))
    return jnp.where(t < 0.5, x + (y - x) * t, y - (y - x) * (1 - t))
