"""Default implementation: one subject, and one tile (frames × frames) of its distance matrices, at a time.

The tiles of all parcels form a [K, BLOCK²] table, so the contribution to every pair of parcels is one matrix product. The distance
matrices are symmetric: tiles below the diagonal are skipped, and those above it count twice.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops._signals import centre

BLOCK = 32

_Blocks = Float[Array, "N K B"]


def distance_correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"], bias_corrected: bool) -> Float[Array, "S K K"]:
    return jax.lax.map(jax.checkpoint(functools.partial(_one, bias_corrected)), (signals, kept))


def _one(bias_corrected: bool, subject: tuple[Float[Array, "K T"], Float[Array, " T"]]) -> Float[Array, "K K"]:
    centred, energy, varies = centre(*subject)
    kept, least = subject[1], 4 if bias_corrected else 1
    n = jnp.maximum(kept.sum(), least)
    x, weight = _blocks(centred * jax.lax.rsqrt(energy / n)[:, None]), _blocks(kept[None])  # [N, K, B] and [N, 1, B]
    at_rows, at_all = (n - 2, (n - 1) * (n - 2)) if bias_corrected else (n, n * n)
    sums = jax.lax.map(functools.partial(_sums_of_rows, x, weight), x) * weight  # [N, K, B]
    total = sums.sum((0, 2)) / at_all
    products = _products(x, weight, sums / at_rows, total, bias_corrected)
    spread = jnp.diag(products)
    usable = varies & (spread > 0) & (kept.sum() >= least)
    both = usable[:, None] & usable[None, :]
    scale = jax.lax.rsqrt(jnp.where(usable, spread, 1.0))
    found = products * scale[:, None] * scale[None, :]
    if not bias_corrected:  # sqrt has no gradient at 0, which rounding may produce
        found = jnp.where(found > 0, jnp.sqrt(jnp.where(found > 0, found, 1.0)), 0.0)
    return jnp.where(both, found, jnp.nan)


def _blocks(x: Float[Array, "K T"]) -> _Blocks:
    block = min(BLOCK, x.shape[1])
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)))
    return jnp.swapaxes(padded.reshape(len(x), -1, block), 0, 1)


def _sums_of_rows(x: _Blocks, weight: _Blocks, rows: Float[Array, "K B"]) -> Float[Array, "K B"]:
    """Sum the distances of a block of frames to all included frames."""

    @jax.checkpoint
    def add(total: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
        x, weight = columns
        return total + (_distances(rows, x) * weight[:, None, :]).sum(2), None

    return jax.lax.scan(add, rows * 0, (x, weight))[0]


def _distances(rows: Float[Array, "K B"], columns: Float[Array, "K B"]) -> Float[Array, "K B B"]:
    return jnp.abs(rows[:, :, None] - columns[:, None, :])


def _products(x: _Blocks, weight: _Blocks, means: _Blocks, total: Float[Array, " K"], bias_corrected: bool) -> Float[Array, "K K"]:
    """Sum the products of centred distances over all pairs of frames, for every pair of parcels."""
    blocks, parcels, block = x.shape
    tiles = jnp.asarray(np.stack(np.triu_indices(blocks), 1).astype(np.int32))  # [N (N + 1) / 2, 2]

    @jax.checkpoint
    def add(products: Float[Array, "K K"], tile: Int[Array, "2"]) -> tuple[Float[Array, "K K"], None]:
        (xi, xj), (wi, wj), (mi, mj) = ((part[tile[0]], part[tile[1]]) for part in (x, weight, means))
        centred = _distances(xi, xj) - mi[:, :, None] - mj[:, None, :] + total[:, None, None]
        pairs = wi[:, :, None] * wj[:, None, :]  # [1, B, B]
        if bias_corrected:
            pairs = jnp.where(tile[0] == tile[1], 1 - jnp.eye(block, dtype=x.dtype)[None], 1.0) * pairs
        flat = (centred * pairs).reshape(parcels, -1)
        times = jnp.where(tile[0] == tile[1], 1.0, 2.0).astype(x.dtype)
        return products + times * jnp.matmul(flat, flat.T, precision="highest"), None

    # The initial value takes its dtype, and under a mesh its sharding, from the signals.
    return jax.lax.scan(add, total[:, None] * total[None, :] * 0, tiles)[0]
