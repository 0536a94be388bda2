"""The implementation in use: one network or one pair at a time, so that nothing larger than a network's own table is held.

Hops come from products of 0/1 matrices; lengths from Floyd and Warshall's pass, which is one min-plus product in all. The bins of a pair
are read from the merged order of two sorted lists, found by a search that begins in the right one of many buckets; nothing is sorted twice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.portrait.reference import distribution, places
from pnet_jax.ops.portrait.settings import PortraitSettings

NETWORKS = 8  # whose hops are taken at once
PAIRS = 16  # compared at once when the bins are common to all
STRIDE = 64  # of the sorted path lengths between two counts that are kept
FEW = 1024  # different path lengths in every network: so few are searched by themselves, without the padding
BUCKETS = 1 << 15  # of equal width, at most, in which different path lengths are looked up


def shortest_paths(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    nodes = lengths.shape[-1]

    def through(k: Int[Array, ""], paths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        return jnp.minimum(paths, jax.lax.dynamic_slice_in_dim(paths, k, 1, 1) + jax.lax.dynamic_slice_in_dim(paths, k, 1, 0))

    def one(lengths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        start = jnp.where(jnp.eye(nodes, dtype=bool), jnp.zeros_like(lengths), lengths)
        return jax.lax.fori_loop(0, nodes, through, start)

    return jax.lax.map(one, lengths)


def paths_from_source(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    """Paths whose lengths are added up from the source outward, as the definition's are, to the last bit.

    Sweeps as in `shortest_paths`, but with an edge behind the path in place of a second path, until nothing changes. Rounded sums are
    monotone, so that the end does not depend on the order in which paths are found.
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
            # Only whether a sum of zeros and ones is 0 matters, so the precision of the product does not.
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
    """What a comparison needs to know of each network: its distribution where bins are common to all, else its paths in order."""
    if edges is not None:
        return distribution(portraits(distances, edges, present), settings.convention)
    # A path counts once where both directions have one length.
    different = distances[0].size if settings.rounding is None else distances[0].size // 2 + 1
    return jax.lax.map(lambda network: _order(network, different), _among(distances, present))


def compared(
    networks: Any, present: Bool[Array, "S N"], pairs: Int[Array, "P 2"], edges: Float[Array, " L+1"] | None, settings: PortraitSettings
) -> Float[Array, " P"]:
    """The divergences of pairs of `prepared` networks."""
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
    """Different values in ascending order, and where to look for one.

    Attributes:
      values: padded with inf, `[U]`.
      first: the place of the first value of each bucket, and of the first inf behind the last one, `[B + 1]`.
      origin, scale: a value x is in the bucket numbered (x − origin) · scale, held inside the range.
      steps: of a binary search in the fullest bucket.
    """

    values: Float[Array, " U"]
    first: Int[Array, " B+1"]
    origin: Float[Array, ""]
    scale: Float[Array, ""]
    steps: Int[Array, ""]

    def bucket(self, x: Float[Array, " M"]) -> Int[Array, " M"]:
        return jnp.clip((x - self.origin) * self.scale, 0, len(self.first) - 2).astype(jnp.int32)

    def smaller(self, x: Float[Array, " M"]) -> Int[Array, " M"]:
        """How many values lie before each x: `searchsorted`, with as many steps as the fullest bucket needs."""
        bucket = self.bucket(x)

        def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            before = (self.values[jnp.minimum(middle, len(self.values) - 1)] < x) & (low < high)
            return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

        return jax.lax.fori_loop(0, self.steps, halve, (self.first[bucket], self.first[bucket + 1]))[0]


def _lookup(values: Float[Array, " U"]) -> _Lookup:
    finite, buckets = jnp.isfinite(values), min(BUCKETS, len(values))
    # The first is the 0 of the diagonal, which may lie far from the others.
    origin, last = values[min(1, len(values) - 1)], jnp.max(values, initial=0, where=finite)
    wide = jnp.isfinite(origin) & (last > origin)
    found = _Lookup(values, jnp.zeros(buckets + 1, jnp.int32), jnp.where(wide, origin, 0), jnp.zeros_like(last), jnp.zeros((), jnp.int32))
    found = found._replace(scale=jnp.where(wide, buckets / jnp.where(wide, last - origin, 1), 0))
    held = jnp.zeros(buckets, jnp.int32).at[found.bucket(values)].add(finite.astype(jnp.int32))
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(held, dtype=jnp.int32)])
    return found._replace(first=first, steps=32 - jax.lax.clz(held.max()))


class _Ordered(NamedTuple):
    """The path lengths of a network in ascending order, N² of them.

    Attributes:
      lengths: padded with inf, `[M]`.
      rows: the node each starts from, `[M]`.
      before: how many of the first 0, STRIDE, 2 STRIDE … start from each node, `[M / STRIDE + 1, N]`.
      lookup: of the different finite ones.
    """

    lengths: Float[Array, " M"]
    rows: Int[Array, " M"]
    before: Int[Array, "B N"]
    lookup: _Lookup


def _order(distances: Float[Array, "N N"], size: int) -> _Ordered:
    nodes = len(distances)
    padded = -(-distances.size // STRIDE) * STRIDE - distances.size
    flat = jnp.abs(jnp.pad(distances.reshape(-1), (0, padded), constant_values=jnp.inf))  # no −0, whose bits are no 0
    ascending = _sorted(flat)
    new = jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
    different = jnp.full(size, jnp.inf, flat.dtype).at[jnp.cumsum(new, dtype=jnp.int32) - 1].set(ascending, mode="drop")
    rows = jnp.arange(len(flat), dtype=jnp.int32) // nodes  # the padding's row is out of range, and dropped below
    # A length's place among the different ones and its row make one whole number where they fit into it: such sort fastest.
    if (size + 1) * (nodes + 2) < 2**31:
        place = jnp.searchsorted(different, flat).astype(jnp.int32)
        rows = jax.lax.rem(jnp.sort(place * (nodes + 2) + jnp.minimum(rows, nodes + 1)), jnp.int32(nodes + 2))
    else:
        rows = rows[jnp.argsort(flat)]
    block = jnp.arange(len(rows), dtype=jnp.int32) // STRIDE + 1
    starts = jnp.zeros((len(rows) // STRIDE + 1, nodes), jnp.int32).at[block, rows].add(1, mode="drop")
    return _Ordered(ascending, rows, jnp.cumsum(starts, axis=0, dtype=jnp.int32), _lookup(different))


def _sorted(x: Float[Array, " M"]) -> Float[Array, " M"]:
    """Values ≥ 0 in ascending order; by their bits, which order the same way and compare faster."""
    whole = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(jnp.sort(jax.lax.bitcast_convert_type(x, whole)), x.dtype)


def _below(network: _Ordered, edges: Float[Array, " L+1"]) -> Int[Array, "L+1 N"]:
    """How many path lengths from each node lie below each edge; up to the last one, it included."""
    cut = jnp.searchsorted(network.lengths, edges).astype(jnp.int32)
    cut = cut.at[-1].set(jnp.searchsorted(network.lengths, edges[-1], side="right"))
    block, rest = cut // STRIDE, cut % STRIDE
    ahead = jnp.arange(STRIDE - 1, dtype=jnp.int32)
    at = jnp.minimum(block[:, None] * STRIDE + ahead[None, :], len(network.rows) - 1)
    inside = (ahead[None, :] < rest[:, None]).astype(network.before.dtype)
    return network.before[block].at[jnp.arange(len(edges), dtype=jnp.int32)[:, None], network.rows[at]].add(inside, mode="drop")


def _jensen_shannon(p: Float[Array, "L K"], q: Float[Array, "L K"]) -> Float[Array, ""]:
    # Cell by cell, so that equal cells give exactly 0.
    return ((_xlog2x(p) + _xlog2x(q)) / 2 - _xlog2x((p + q) / 2)).sum()


def _xlog2x(x: Float[Array, "L K"]) -> Float[Array, "L K"]:
    return x * jnp.log2(jnp.where(x > 0, x, 1))


def _percentiles(one: _Lookup, other: _Lookup, bins: int, *, exact: bool) -> Float[Array, " L+1"]:
    """Percentiles of the union of two sorted lists a and b of different values, interpolated linearly.

    A value's place in the union is its place in a, plus how many of b lie before it, less how many before it both have. Shared ones are
    counted a block at a time; inside a block only where a value is wanted.
    """
    b, finite = other.values, other.first[-1]
    a = jnp.pad(one.values, (0, -len(one.values) % STRIDE), constant_values=jnp.inf)
    smaller = other.smaller(a)  # how many of b lie before each of a
    shared = (b[jnp.minimum(smaller, len(b) - 1)] == a) & jnp.isfinite(a)
    smaller, inside = smaller.reshape(-1, STRIDE), shared.reshape(-1, STRIDE)
    in_blocks = jnp.cumsum(inside.sum(1, dtype=jnp.int32))
    before = in_blocks - inside.sum(1, dtype=jnp.int32)  # shared ones before each block
    first = jnp.arange(len(before), dtype=jnp.int32) * STRIDE
    place = first + smaller[:, 0] - before  # of each block's first value in the union
    n = jnp.isfinite(a).sum(dtype=jnp.int32) + finite - in_blocks[-1]

    def value(wanted: Int[Array, " L+1"]) -> Float[Array, " L+1"]:
        block = jnp.maximum(jnp.searchsorted(place, wanted, side="right").astype(jnp.int32) - 1, 0)
        to = jnp.cumsum(inside[block], axis=1, dtype=jnp.int32) + before[block][:, None]  # [L + 1, STRIDE]
        own = inside[block].astype(jnp.int32)
        rank = (first[block][:, None] + jnp.arange(STRIDE, dtype=jnp.int32)[None, :]) + smaller[block] - to + own
        up_to = (rank <= wanted[:, None]).sum(1, dtype=jnp.int32)  # of the block, up to the wanted one
        last = jnp.maximum(up_to - 1, 0)[:, None]
        at, share = jnp.take_along_axis(rank, last, 1)[:, 0], jnp.where(up_to > 0, jnp.take_along_axis(to, last, 1)[:, 0], 0)
        i = first[block] + last[:, 0]
        in_b = wanted - (first[block] + up_to) + share
        return jnp.where((up_to > 0) & (at == wanted), a[i], b[jnp.clip(in_b, 0, len(b) - 1)])

    low, t = places(n, bins, a.dtype, exact=exact)
    x, y = value(low), value(jnp.minimum(low + 1, n - 1))
    return jnp.where(t < 0.5, x + (y - x) * t, y - (y - x) * (1 - t))
