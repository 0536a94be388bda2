"""The definition."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    weight = kept[:, None, :]
    centred = (signals - (signals * weight).sum(-1, keepdims=True) / weight.sum(-1, keepdims=True)) * weight
    products = jnp.einsum("skt,slt->skl", centred, centred, precision="highest")
    spread = jnp.sqrt(jnp.einsum("skk->sk", products))
    return products / (spread[:, :, None] * spread[:, None, :])
