"""Default implementation: tiles of locations × locations, so that neither a [V, V] matrix nor a second [V, T] array is stored.

Each tile rescales its two blocks of signals to unit length, which costs a few percent of the product. The matrix is
symmetric: for a sum, a tile above the diagonal contributes to its rows and its columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops._signals import centre, widen

BLOCK = 512


class SignalBlocks(NamedTuple):
    """Signals in N blocks of B locations, with the mean and scale that standardise them, and whether each location is included."""

    y: Float[Array, "N B T"]
    mean: Float[Array, "N B"]
    scale: Float[Array, "N B"]
    present: Bool[Array, "N B"]

    def unit(self, at: Int[Array, ""], kept: Float[Array, " T"]) -> Float[Array, "B T"]:
        counts = self.present[at][:, None] & (kept[None, :] > 0)
        return jnp.where(counts, (widen(self.y[at]) - self.mean[at][:, None]) * self.scale[at][:, None], 0.0)


def total(
    y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], function: Callable[[Array], Array]
) -> tuple[Float[Array, " V"], Bool[Array, " V"]]:
    blocks = blocks_of(y, kept, mask)
    count = len(blocks.present)
    tiles = jnp.asarray(np.stack(np.triu_indices(count), 1).astype(np.int32))  # [N (N + 1) / 2, 2]

    @jax.checkpoint
    def share(tile: Int[Array, "2"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        i, j = tile[0], tile[1]
        r = jnp.matmul(blocks.unit(i, kept), blocks.unit(j, kept).T, precision="highest")  # [B, B]
        part = jnp.where(_pairs(blocks, i, j), function(r), 0.0)
        return part.sum(1), jnp.where(i == j, 0.0, part.sum(0))

    def step(sums: Float[Array, "N B"], tile: Int[Array, "2"]) -> tuple[Float[Array, "N B"], None]:
        rows, columns = share(tile)
        return sums.at[tile[0]].add(rows).at[tile[1]].add(columns), None

    # The initial value takes its dtype, and under a mesh its sharding, from the signals.
    sums, _ = jax.lax.scan(step, jnp.where(blocks.present, 0.0, blocks.scale * 0), tiles)
    return sums.reshape(-1)[: len(y)], blocks.present.reshape(-1)[: len(y)]


def top(y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], k: int) -> tuple[Float[Array, "V k"], Int[Array, "V k"]]:
    blocks = blocks_of(y, kept, mask)
    count, block = blocks.present.shape

    @jax.checkpoint
    def rows(i: Int[Array, ""]) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
        unit = blocks.unit(i, kept)

        @jax.checkpoint
        def step(best: tuple[Array, Array], j: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
            r = jnp.where(_pairs(blocks, i, j), jnp.matmul(unit, blocks.unit(j, kept).T, precision="highest"), -jnp.inf)
            here = jnp.broadcast_to((j * block + jnp.arange(block, dtype=jnp.int32))[None, :], r.shape)
            # Earlier locations come first, so that ties keep the lower index, as in a sort of the whole row.
            values, at = jax.lax.top_k(jnp.concatenate([best[0], r], 1), k)
            return (values, jnp.take_along_axis(jnp.concatenate([best[1], here], 1), at, axis=1)), None

        none = unit[:, :1] * 0  # takes its dtype, and under a mesh its sharding, from the signals
        start = jnp.broadcast_to(none - jnp.inf, (block, k)), jnp.broadcast_to(none.astype(jnp.int32) - 1, (block, k))
        return jax.lax.scan(step, start, jnp.arange(count, dtype=jnp.int32))[0]

    values, indices = (x.reshape(-1, k)[: len(y)] for x in jax.lax.map(rows, jnp.arange(count, dtype=jnp.int32)))
    there = values > -jnp.inf
    return jnp.where(there, values, jnp.nan), jnp.where(there, indices, -1)


def blocks_of(y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"]) -> SignalBlocks:
    block = min(BLOCK, len(y))
    padded = -len(y) % block
    if padded:  # otherwise, avoid the copy
        y, mask = jnp.pad(y, ((0, padded), (0, 0))), jnp.pad(mask, (0, padded))
    y, mask = y.reshape(-1, block, y.shape[1]), mask.reshape(-1, block)

    @jax.checkpoint
    def moments(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        signals, mask = part
        _, energy, varies = centre(signals, kept)
        there = (kept[None, :] > 0) & varies[:, None]
        mean = jnp.where(there, widen(signals), 0.0).sum(1) / jnp.maximum(kept.sum(), 1)
        return mean, jax.lax.rsqrt(energy), varies & mask

    return SignalBlocks(y, *jax.lax.map(moments, (y, mask)))


def _pairs(blocks: SignalBlocks, i: Int[Array, ""], j: Int[Array, ""]) -> Bool[Array, "B B"]:
    other = (i != j) | ~jnp.eye(blocks.present.shape[1], dtype=bool)
    return other & blocks.present[i][:, None] & blocks.present[j][None, :]
