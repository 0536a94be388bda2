"""Reference definition on a dense [V, K] table."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops._signals import wide


def soft_assign(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"],
) -> tuple[Float[Array, "V C"], Float[Array, "K D"], Float[Array, " K"]]:
    n_parcels = len(prototypes)
    bias = bias.astype(wide(z))
    rows, there = jnp.arange(len(z))[:, None], candidates >= 0
    at = jnp.where(there, candidates, n_parcels)  # the last column is for the padding
    dense_bias = jnp.full((len(z), n_parcels + 1), -jnp.inf, wide(z)).at[rows, at].max(jnp.where(there, bias, -jnp.inf))
    similarity = jnp.matmul(z, prototypes.T, precision="highest", preferred_element_type=wide(z))  # [V, K]
    logits = kappa[:, None] * similarity + dense_bias[:, :n_parcels]
    some = there.any(1, keepdims=True)
    dense = jnp.where(some, jax.nn.softmax(jnp.where(some, logits, 0.0), axis=1), 0.0)
    q = jnp.where(there, jnp.pad(dense, ((0, 0), (0, 1)))[rows, at], 0.0)
    return q, jnp.matmul(dense.T, z.astype(wide(z)), precision="highest"), dense.sum(0)
