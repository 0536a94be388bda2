"""Reference definition."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._signals import widen


def correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    weight = kept[:, None, :]
    signals = jnp.where(weight > 0, widen(signals), 0.0)
    centred = (signals - signals.sum(-1, keepdims=True) / weight.sum(-1, keepdims=True)) * weight
    products = jnp.einsum("skt,slt->skl", centred, centred, precision="highest")
    spread = jnp.sqrt(jnp.einsum("skk->sk", products))
    return products / (spread[:, :, None] * spread[:, None, :])
