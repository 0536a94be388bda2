"""Default implementation: blocks of locations; products are dense in K within a block, and everything else is [V, C].

One pass computes the probabilities and, while a block is in memory, the sums needed by the next step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops._signals import wide

BLOCK = 2048


def soft_assign(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"],
) -> tuple[Float[Array, "V C"], Float[Array, "K D"], Float[Array, " K"]]:
    n_parcels, dimensions = prototypes.shape
    block = min(BLOCK, len(z))
    padded = -(-len(z) // block) * block - len(z)

    def blocks(x: Array, value: float = 0) -> Array:
        x = jnp.pad(x, ((0, padded),) + ((0, 0),) * (x.ndim - 1), constant_values=value)
        return x.reshape(-1, block, *x.shape[1:])

    @jax.checkpoint
    def step(carry: tuple[Array, Array], rows: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        z, candidates, bias, kappa = rows
        there = candidates >= 0
        at = jnp.where(there, candidates, 0)
        products = jnp.matmul(z, prototypes.T, precision="highest", preferred_element_type=wide(z))
        similarity = jnp.take_along_axis(products, at, axis=1)
        logits = jnp.where(there, kappa[:, None] * similarity + bias.astype(wide(z)), -1e30)
        q = jnp.where(there, jax.nn.softmax(logits, axis=1), 0.0)
        dense = jnp.zeros((block, n_parcels), wide(z)).at[jnp.arange(block)[:, None], at].add(q)
        sums, masses = carry
        return (sums + jnp.matmul(dense.T, z.astype(wide(z)), precision="highest"), masses + dense.sum(0)), q

    start = (jnp.zeros((n_parcels, dimensions), wide(z)), jnp.zeros(n_parcels, wide(z)))
    (sums, masses), q = jax.lax.scan(step, start, (blocks(z), blocks(candidates, -1), blocks(bias), blocks(kappa)))
    return q.reshape(-1, candidates.shape[1])[: len(z)], sums, masses
