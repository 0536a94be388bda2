"""Default implementation: a table of the position of each location's candidates among the candidates of each neighbour.

The table depends only on the atlas and the Space, so it is made once and used in every step. Adjacency is symmetric, so
the sum is its own transpose and the gradient is the same gather instead of a scatter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def potts(
    q: Float[Array, "V C"], candidates: Int[np.ndarray, "V C"], neighbours: Int[np.ndarray, "V N"], n_parcels: int
) -> Float[Array, "V C"]:
    return sum_neighbours(q, match_table(jnp.asarray(candidates), jnp.asarray(neighbours), n_parcels=n_parcels))


@functools.partial(jax.jit, static_argnames="n_parcels")
def match_table(candidates: Int[Array, "V C"], neighbours: Int[Array, "V N"], *, n_parcels: int) -> Int[Array, "N V C"]:
    """Return the position of the same parcel at neighbour n in the flattened `[V, C]`; V·C, one past the end, if it is not a candidate."""
    size, width = candidates.shape
    # Column of each parcel in a location's row of candidates, or `width` if it is not one; the extra row and column are for the padding.
    rows, at = jnp.arange(size)[:, None], jnp.where(candidates < 0, n_parcels, candidates)
    place = jnp.full((size + 1, n_parcels + 1), width, jnp.uint8).at[rows, at].set(jnp.arange(width, dtype=jnp.uint8)[None, :])
    place = place.at[:, n_parcels].set(width)

    def one(neighbour: Int[Array, " V"]) -> Int[Array, "V C"]:
        there = jnp.where(neighbour < 0, size, neighbour)[:, None]
        found = place[there, at].astype(jnp.int32)
        return jnp.where(found < width, there * width + found, size * width)

    return jax.lax.map(one, neighbours.T)


@jax.custom_vjp
def sum_neighbours(q: Float[Array, "V C"], table: Int[Array, "N V C"]) -> Float[Array, "V C"]:
    start = jnp.zeros(table.shape[1:], q.dtype)
    if not len(table):  # ROIs: a loop over an empty table cannot be traced
        return start
    flat = jnp.concatenate([q.ravel(), jnp.zeros(1, q.dtype)])
    return jax.lax.fori_loop(0, len(table), lambda n, total: total + flat[table[n]], start)


def _forward(q: Float[Array, "V C"], table: Int[Array, "N V C"]) -> tuple[Float[Array, "V C"], Int[Array, "N V C"]]:
    return sum_neighbours(q, table), table


def _backward(table: Int[Array, "N V C"], gradient: Float[Array, "V C"]) -> tuple[Float[Array, "V C"], None]:
    return sum_neighbours(gradient, table), None


sum_neighbours.defvjp(_forward, _backward)
