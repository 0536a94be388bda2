"""Reference definitions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._signals import widen


def ledoit_wolf(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    weight, frames = kept[:, None, :], kept.sum(1)
    x = jnp.where(weight > 0, widen(signals), 0.0)
    x = (x - x.sum(-1, keepdims=True) / frames[:, None, None]) * weight
    sample = jnp.einsum("skt,slt->skl", x, x, precision="highest") / frames[:, None, None]
    target = jax.vmap(lambda s: jnp.trace(s) / len(s) * jnp.eye(len(s), dtype=s.dtype))(sample)  # [S, K, K]
    each = jnp.einsum("skt,slt->stkl", x, x, precision="highest") - sample[:, None]  # [S, T, K, K]
    noise = (jnp.square(each).sum((2, 3)) * kept).sum(1) / jnp.square(frames)
    distance = jnp.square(sample - target).sum((1, 2))
    shrinkage = jnp.minimum(noise / jnp.where(distance > 0, distance, 1.0), 1.0)[:, None, None]
    return (1 - shrinkage) * sample + shrinkage * target


def precision(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return jnp.linalg.inv(ledoit_wolf(signals, kept))


def partial(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    inverse = precision(signals, kept)
    scale = jnp.sqrt(jnp.einsum("skk->sk", inverse))
    found = -inverse / (scale[:, :, None] * scale[:, None, :])
    return jnp.where(jnp.eye(found.shape[1], dtype=bool)[None], 1.0, found)
