"""The implementation in use: a table of where each (location, candidate) finds itself at each neighbour.

The table depends on the prior and the Space only, so that it is made once and used in every step. Adjacency is symmetric, so
the sum is its own transpose and the gradient is the same gather instead of a scatter.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def potts(
    q: Float[Array, "V C"], candidates: Int[np.ndarray, "V C"], neighbours: Int[np.ndarray, "V N"], n_parcels: int
) -> Float[Array, "V C"]:
    return sum_neighbours(q, jnp.asarray(match_table(np.asarray(candidates), np.asarray(neighbours))))


def match_table(candidates: Int[np.ndarray, "V C"], neighbours: Int[np.ndarray, "V N"]) -> Int[np.ndarray, "N V C"]:
    """Position in the flattened `[V, C]` of the same parcel at neighbour n; V·C, one past the end, where it is none."""
    size, width = candidates.shape
    # One byte for each (location, parcel): at which place in its row a location holds a parcel; `width` says it does not.
    place = np.full((size + 1, int(candidates.max(initial=0)) + 2), width, np.uint8)
    rows = np.arange(size)
    for c in range(width - 1, -1, -1):
        place[rows, candidates[:, c]] = c
    place[:, -1] = width  # the padding −1 was written there
    table = np.empty((neighbours.shape[1], size, width), np.int32)
    for n, neighbour in enumerate(neighbours.T):
        found = place[neighbour[:, None], candidates]  # neighbour −1 reads the last row, which holds nothing
        table[n] = np.where(found < width, neighbour[:, None] * width + found, size * width)
    return table


@jax.custom_vjp
def sum_neighbours(q: Float[Array, "V C"], table: Int[Array, "N V C"]) -> Float[Array, "V C"]:
    if not len(table):  # ROIs: a loop over an empty table cannot be traced
        return jnp.zeros_like(q)
    flat = jnp.concatenate([q.ravel(), jnp.zeros(1, q.dtype)])
    return jax.lax.fori_loop(0, len(table), lambda n, total: total + flat[table[n]], jnp.zeros_like(q))


def _forward(q: Float[Array, "V C"], table: Int[Array, "N V C"]) -> tuple[Float[Array, "V C"], Int[Array, "N V C"]]:
    return sum_neighbours(q, table), table


def _backward(table: Int[Array, "N V C"], gradient: Float[Array, "V C"]) -> tuple[Float[Array, "V C"], None]:
    return sum_neighbours(gradient, table), None


sum_neighbours.defvjp(_forward, _backward)
