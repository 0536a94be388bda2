"""Implementation for locations sharded over several devices: the shards are passed around a ring of devices, one step at a time.

A device holds at most its own shard of the signals and one from another device. For a sum, each pair of shards meets once: the partial
sums of a shard's rows are passed along with it, half way around the ring, and then sent back. For the largest correlations, shards are
passed all the way around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.location_correlation import chunked

_Best = tuple[Float[Array, "N B k"], Int[Array, "N B k"]]


def total(
    y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], function: Callable[[Array], Array], axis: str
) -> tuple[Float[Array, " V"], Bool[Array, " V"]]:
    """Compute `chunked.total` inside `shard_map`, with n // 2 permutes of the signals over n devices and as many of their sums."""
    parts = jax.lax.axis_size(axis)
    sums, present = chunked.total(y, kept, mask, function)
    own = _unit(y, kept, mask)

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        mine, visitor, theirs = carry
        visitor, theirs = (_onward(x, axis) for x in (visitor, theirs))
        rows, columns = _meet(own, visitor, function)
        return (mine + rows, visitor, theirs + columns), None

    none, half = jnp.zeros(own.shape[:2], own.dtype), (parts - 1) // 2
    (mine, visitor, theirs), _ = jax.lax.scan(step, (none, own, none), length=half)
    mine += _onward(theirs, axis, -half) if half else 0.0
    if parts % 2 == 0:  # the opposite shard: both devices compute the pair, and each keeps its own rows
        mine += _meet(own, _onward(visitor, axis), function)[0]
    return sums + mine.reshape(-1)[: len(y)], present


def top(
    y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], k: int, axis: str
) -> tuple[Float[Array, "V k"], Int[Array, "V k"]]:
    """Compute `chunked.top` inside `shard_map`, with n − 1 permutes of the signals over n devices; indices are global."""
    parts, here = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    own = _unit(y, kept, mask)
    none = jnp.full((*own.shape[:2], k), -jnp.inf, own.dtype), jnp.full((*own.shape[:2], k), -1, jnp.int32)

    def visit(best: _Best, held: _Best, visitor: Float[Array, "N B T"], number: Int[Array, ""]) -> tuple[_Best, _Best]:
        who = jax.lax.rem(here + number, jnp.int32(parts))
        # Shards arrive in ascending order, except for the wrap from the last to the first. Candidates found before the wrap are kept
        # separately and appended at the end, so that ties keep the lower index, as on one device.
        first = who == 0
        held, best = _where(first, best, held), _where(first, none, best)
        return _merged(own, visitor, best, who * len(y), who == here), held

    def step(carry: tuple[_Best, _Best, Array], number: Int[Array, ""]) -> tuple[tuple[_Best, _Best, Array], None]:
        best, held, visitor = carry
        return (*visit(best, held, visitor, number), _onward(visitor, axis, -1)), None

    (best, held, visitor), _ = jax.lax.scan(step, (none, none, own), jnp.arange(parts - 1, dtype=jnp.int32))
    best, held = visit(best, held, visitor, jnp.int32(parts - 1))
    values, at = jax.lax.top_k(jnp.concatenate([best[0], held[0]], 2), k)
    indices = jnp.take_along_axis(jnp.concatenate([best[1], held[1]], 2), at, axis=2)
    values, indices = values.reshape(-1, k)[: len(y)], indices.reshape(-1, k)[: len(y)]
    there = values > -jnp.inf
    return jnp.where(there, values, jnp.nan), jnp.where(there, indices, -1)


def _unit(y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"]) -> Float[Array, "N B T"]:
    """Scale the signals to unit length, 0 if excluded; 0 marks the excluded locations, so that no mask has to be communicated."""
    blocks = chunked.blocks_of(y, kept, mask)
    return jax.lax.map(lambda at: blocks.unit(at, kept), jnp.arange(len(blocks.present), dtype=jnp.int32))


def _present(unit: Float[Array, "... T"]) -> Bool[Array, " ..."]:
    return (unit != 0).any(-1)


def _meet(
    own: Float[Array, "N B T"], visitor: Float[Array, "N B T"], function: Callable[[Array], Array]
) -> tuple[Float[Array, "N B"], Float[Array, "N B"]]:
    """Return the sums over a visiting shard for each local location, and over the local shard for each visiting location."""
    tiles = jnp.asarray(np.argwhere(np.ones((len(own), len(own)))).astype(np.int32))  # [N², 2]

    @jax.checkpoint
    def share(tile: Int[Array, " 2"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        a, b = own[tile[0]], visitor[tile[1]]
        r = jnp.matmul(a, b.T, precision="highest")  # [B, B]
        part = jnp.where(_present(a)[:, None] & _present(b)[None, :], function(r), 0.0)
        return part.sum(1), part.sum(0)

    def step(sums: tuple[Array, Array], tile: Int[Array, " 2"]) -> tuple[tuple[Array, Array], None]:
        rows, columns = share(tile)
        return (sums[0].at[tile[0]].add(rows), sums[1].at[tile[1]].add(columns)), None

    none = jnp.zeros(own.shape[:2], own.dtype)
    return jax.lax.scan(step, (none, none), tiles)[0]


def _merged(own: Float[Array, "N B T"], visitor: Float[Array, "N B T"], best: _Best, first: Int[Array, ""], same: Bool[Array, ""]) -> _Best:
    """Update the largest correlations with those of a visiting shard, whose first location has the index `first`."""
    count, block, _ = own.shape
    order = jnp.arange(count, dtype=jnp.int32)

    @jax.checkpoint
    def rows(i: Int[Array, ""], values: Float[Array, "B k"], indices: Int[Array, "B k"]) -> tuple[Array, Array]:
        @jax.checkpoint
        def step(best: tuple[Array, Array], j: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
            itself = jnp.eye(block, dtype=bool) & same & (i == j)
            pairs = _present(own[i])[:, None] & _present(visitor[j])[None, :] & ~itself
            r = jnp.where(pairs, jnp.matmul(own[i], visitor[j].T, precision="highest"), -jnp.inf)
            here = jnp.broadcast_to((first + j * block + jnp.arange(block, dtype=jnp.int32))[None, :], r.shape)
            values, at = jax.lax.top_k(jnp.concatenate([best[0], r], 1), best[0].shape[1])
            return (values, jnp.take_along_axis(jnp.concatenate([best[1], here], 1), at, axis=1)), None

        return jax.lax.scan(step, (values, indices), order)[0]

    return jax.lax.map(lambda row: rows(*row), (order, *best))


def _where(choice: Bool[Array, ""], a: Any, b: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), a, b)


def _onward(x: Array, axis: str, steps: int = 1) -> Array:
    """Send an array from each device to the one `steps` further along the ring."""
    parts = jax.lax.axis_size(axis)
    return jax.lax.ppermute(x, axis, [(part, (part + steps) % parts) for part in range(parts)])
