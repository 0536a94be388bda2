"""Reference definition on a dense [V, K] table of probabilities."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def potts(q: Float[Array, "V C"], candidates: Int[Array, "V C"], neighbours: Int[Array, "V N"], n_parcels: int) -> Float[Array, "V C"]:
    candidates, neighbours = jnp.asarray(candidates), jnp.asarray(neighbours)
    rows = jnp.arange(len(q))[:, None]
    dense = jnp.zeros((len(q), n_parcels + 1), q.dtype)  # the last column is for the padding
    dense = dense.at[rows, jnp.where(candidates < 0, n_parcels, candidates)].add(jnp.where(candidates < 0, 0.0, q))
    there = (neighbours >= 0)[:, :, None]
    total = jnp.where(there, dense[neighbours], 0.0).sum(1)  # [V, K + 1]
    return jnp.where(candidates < 0, 0.0, total[rows, candidates])
