"""Reference definition on all distance matrices [S, K, T, T]."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._signals import widen


def distance_correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"], bias_corrected: bool) -> Float[Array, "S K K"]:
    x = jnp.where(kept[:, None, :] > 0, widen(signals), 0.0)
    pairs = (kept[:, :, None] * kept[:, None, :])[:, None]  # [S, 1, T, T]
    n = kept.sum(1)[:, None, None, None]
    distance = jnp.abs(x[:, :, :, None] - x[:, :, None, :]) * pairs
    rows, columns, total = distance.sum(3, keepdims=True), distance.sum(2, keepdims=True), distance.sum((2, 3), keepdims=True)
    if bias_corrected:
        pairs = pairs * (1 - jnp.eye(x.shape[2], dtype=x.dtype))[None, None]
        centred = (distance - (rows + columns) / (n - 2) + total / ((n - 1) * (n - 2))) * pairs
    else:
        centred = (distance - (rows + columns) / n + total / n**2) * pairs
    products = jnp.einsum("skij,slij->skl", centred, centred, precision="highest")
    spread = jnp.sqrt(jnp.einsum("skk->sk", products))
    found = products / (spread[:, :, None] * spread[:, None, :])
    return found if bias_corrected else jnp.sqrt(jnp.maximum(found, 0.0))
