"""Personalised parcels or the atlas: gains over the data-free member of the family, each with its interval."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RESAMPLES = 1000
QUANTILES = (2.5, 50.0, 97.5)


def over_blocks(key: Array, sums: Float[Array, " B"], sizes: Float[Array, " B"]) -> Float[Array, " 3"]:
    """2.5 %, 50 % and 97.5 % of a mean, by a bootstrap of whole blocks drawn with replacement.

    Args:
      key: of the draw.
      sums: of the values in each block.
      sizes: how many values a block has; empty ones are never drawn.

    Returns:
      NaN without any block.
    """
    chex.assert_rank(sums, 1)
    chex.assert_equal_shape([sums, sizes])
    some = sizes > 0
    count = some.sum()
    order = jnp.argsort(~some, stable=True)
    uniform = jax.random.uniform(key, (len(sums), RESAMPLES)).T  # block by block: what is drawn does not depend on empty ones behind
    draw = jnp.floor(uniform * count.astype(jnp.float32)).astype(jnp.int32)
    drawn = order[jnp.minimum(draw, jnp.maximum(count - 1, 0))]
    taken = (jnp.arange(len(sums))[None, :] < count).astype(sums.dtype)
    means = (sums[drawn] * taken).sum(1) / jnp.maximum((sizes[drawn] * taken).sum(1), 1e-12)
    return jnp.where(count > 0, jnp.percentile(means, jnp.array(QUANTILES)), jnp.nan)


def over_cubes(
    key: Array, values: Float[Array, " V"], counts: Bool[Array, " V"], cube: Int[Array, " V"], n_cubes: int
) -> Float[Array, " 3"]:
    """`over_blocks` of a value of each location, in blocks of space."""
    chex.assert_equal_shape([values, counts, cube])
    weight = counts.astype(values.dtype)
    sums, sizes = (jax.ops.segment_sum(x, cube, n_cubes) for x in (values * weight, weight))
    return over_blocks(key, sums, sizes)


def over_time(key: Array, frames: Float[Array, "2 T"], block: Int[Array, "2 T"], n_blocks: int) -> Float[Array, " 3"]:
    """`over_blocks` of what the frames of both halves add to a difference in DCBC, in blocks of time.

    Args:
      key: of the draw.
      frames: from `score.by_frame`, which sum to the difference in each half.
      block: stretch of time that a frame belongs to, counted through both halves; −1 for frames that do not count.
      n_blocks: most stretches there can be.
    """
    chex.assert_equal_shape([frames, block])
    at = jnp.where(block < 0, n_blocks, block)
    own = (block >= 0).astype(frames.dtype)
    per_half = own.sum(1, keepdims=True)  # so that a block's mean is on the scale of the difference of its half
    sums = jax.ops.segment_sum((frames * per_half).ravel(), at.ravel(), n_blocks + 1)[:n_blocks]
    sizes = jax.ops.segment_sum(own.ravel(), at.ravel(), n_blocks + 1)[:n_blocks]
    return over_blocks(key, sums, sizes)
