"""Bootstrap intervals of the gains by which personalised or atlas parcels are selected."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RESAMPLES = 1000
QUANTILES = (2.5, 50.0, 97.5)


def over_blocks(key: Array, sums: Float[Array, " B"], sizes: Float[Array, " B"]) -> Float[Array, " 3"]:
    """Compute the 2.5th, 50th and 97.5th percentile of a mean, by a block bootstrap.

    Args:
      key: random key of the bootstrap.
      sums: sum of the values in each block, `[B]`.
      sizes: number of values in each block, `[B]`; empty blocks are never drawn.

    Returns:
      The percentiles, `[3]`; NaN without any block.
    """
    chex.assert_rank(sums, 1)
    chex.assert_equal_shape([sums, sizes])
    some = sizes > 0
    count = some.sum()
    order = jnp.argsort(~some, stable=True)
    uniform = jax.random.uniform(key, (len(sums), RESAMPLES)).T  # drawn per block, so that trailing empty blocks do not change the draws
    draw = jnp.floor(uniform * count.astype(jnp.float32)).astype(jnp.int32)
    drawn = order[jnp.minimum(draw, jnp.maximum(count - 1, 0))]
    taken = (jnp.arange(len(sums))[None, :] < count).astype(sums.dtype)
    means = (sums[drawn] * taken).sum(1) / jnp.maximum((sizes[drawn] * taken).sum(1), 1e-12)
    return jnp.where(count > 0, jnp.percentile(means, jnp.array(QUANTILES)), jnp.nan)


def over_cubes(
    key: Array, values: Float[Array, " V"], counts: Bool[Array, " V"], cube: Int[Array, " V"], n_cubes: int
) -> Float[Array, " 3"]:
    """Apply `over_blocks` to values of locations, with spatial blocks."""
    chex.assert_equal_shape([values, counts, cube])
    weight = counts.astype(values.dtype)
    sums, sizes = (jax.ops.segment_sum(x, cube, n_cubes) for x in (values * weight, weight))
    return over_blocks(key, sums, sizes)


def over_time(key: Array, frames: Float[Array, "2 T"], block: Int[Array, "2 T"], n_blocks: int) -> Float[Array, " 3"]:
    """Apply `over_blocks` to the contributions of frames to a difference in DCBC, with blocks of time from both halves.

    Args:
      key: random key of the bootstrap.
      frames: contributions from `score.by_frame`, which sum to the difference in each half, `[2, T]`.
      block: time block of each frame, numbered across both halves, −1 for excluded frames, `[2, T]`.
      n_blocks: maximum number of blocks.

    Returns:
      The percentiles, `[3]`.
    """
    chex.assert_equal_shape([frames, block])
    at = jnp.where(block < 0, n_blocks, block)
    own = (block >= 0).astype(frames.dtype)
    per_half = own.sum(1, keepdims=True)  # scales the mean of a block to the difference in its half
    sums = jax.ops.segment_sum((frames * per_half).ravel(), at.ravel(), n_blocks + 1)[:n_blocks]
    sizes = jax.ops.segment_sum(own.ravel(), at.ravel(), n_blocks + 1)[:n_blocks]
    return over_blocks(key, sums, sizes)
