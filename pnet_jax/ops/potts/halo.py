"""Neighbour sums where the locations lie on several devices in equal parts, one after another.

A location's neighbours lie near it in the order of the locations: in its own part, or among the first or last rows of the two parts
beside it, the halo. Each device sends these rows of q to its two neighbours and then sums as if it held them; nothing else travels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops.potts.chunked import gather


def halo_width(neighbours: Int[np.ndarray, "*S V N"], parts: int) -> int:
    """How many rows of the parts beside it a part needs, at most.

    Args:
      neighbours: adjacent locations, −1 padded, `[V, N]`, or of several subjects, `[S, V, N]`.
      parts: into how many the locations are split; it divides V.

    Raises:
      ValueError: V is no multiple of `parts`, or a neighbour lies beyond the part beside its own.

    >>> chain = np.array([[-1, 1], [0, 2], [1, 3], [2, -1]])
    >>> halo_width(chain, 2), halo_width(chain, 1)
    (1, 0)
    """
    size = neighbours.shape[-2]
    if parts < 1 or size % parts:
        raise ValueError(f"the number of locations must be a multiple of the parts, {parts}; got {size}: pad them")
    rows = size // parts
    width = _beyond(neighbours, rows)
    if width > rows:
        fit = max(n for n in range(1, parts) if size % n == 0 and _beyond(neighbours, size // n) <= size // n)
        raise ValueError(
            f"expected neighbours at most {rows} rows outside a part ({size} locations in {parts} parts), got {width}: "
            f"split into {fit} part{'s' * (fit > 1)}, or order the locations by `banded_order`"
        )
    return width


def _beyond(neighbours: Int[np.ndarray, "*S V N"], rows: int) -> int:
    first = np.arange(neighbours.shape[-2])[:, None] // rows * rows  # of the part that holds a location
    outside = np.maximum(first - neighbours, neighbours - first - rows + 1)
    return int(np.where(neighbours < 0, 0, outside).max(initial=0))


def banded_order(neighbours: Int[np.ndarray, "V N"]) -> Int[np.ndarray, " V"]:
    """An order of the locations in which neighbours are near each other, for meshes whose own order is none.

    Locations in C order of a grid are in a good order already. Source: reverse Cuthill–McKee, by `scipy.sparse.csgraph`.

    >>> banded_order(np.array([[2, -1], [2, -1], [0, 1]])).tolist()  # a chain: 1, 2, 0
    [1, 2, 0]
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    rows, at = np.nonzero(neighbours >= 0)
    adjacent = csr_matrix((np.ones(len(rows), bool), (rows, neighbours[rows, at])), shape=(len(neighbours),) * 2)
    return np.asarray(reverse_cuthill_mckee(adjacent, symmetric_mode=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def sum_neighbours(q: Float[Array, "V C"], table: Int[Array, "N V C"], halo: int, axis: str) -> Float[Array, "V C"]:
    """`chunked.sum_neighbours` inside `shard_map`, by at most two collective-permutes.

    Args:
      q: this device's rows.
      table: this device's columns of the `match_table` of *all* locations: its entries are positions in the whole `[V, C]`.
      halo: rows to exchange, from `halo_width`; fewer give wrong sums.
      axis: the mesh axis that splits the locations.

    Returns:
      Sums of this device's locations.
    """
    rows, width = q.shape
    halo = halo if jax.lax.axis_size(axis) > 1 else 0
    # What is nowhere is past the end of the whole array, hence past the end here, or in the last device's halo, which is 0.
    first, end = (jax.lax.axis_index(axis) * rows - halo) * width, (rows + 2 * halo) * width
    return gather(_with_halo(q, halo, axis), table, lambda at: jnp.minimum(at - first, end))


def _with_halo(q: Float[Array, "V C"], halo: int, axis: str) -> Float[Array, "W C"]:
    """Rows with the last ones of the part before and the first ones of the part behind; 0 at the ends."""
    if not halo:
        return q
    steps = [(part, part + 1) for part in range(jax.lax.axis_size(axis) - 1)]
    before = jax.lax.ppermute(q[-halo:], axis, steps)
    behind = jax.lax.ppermute(q[:halo], axis, [(b, a) for a, b in steps])
    return jnp.concatenate([before, q, behind])


def _forward(q: Float[Array, "V C"], table: Int[Array, "N V C"], halo: int, axis: str) -> tuple[Float[Array, "V C"], Int[Array, "N V C"]]:
    return sum_neighbours(q, table, halo, axis), table


def _backward(halo: int, axis: str, table: Int[Array, "N V C"], gradient: Float[Array, "V C"]) -> tuple[Float[Array, "V C"], None]:
    return sum_neighbours(gradient, table, halo, axis), None  # adjacency is symmetric, over devices too


sum_neighbours.defvjp(_forward, _backward)
