"""Reference definitions on a dense [V, V] matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops._signals import centre


def total(
    y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], function: Callable[[Array], Array]
) -> tuple[Float[Array, " V"], Bool[Array, " V"]]:
    r, present = _table(y, kept, mask)
    pairs = present[:, None] & present[None, :] & ~jnp.eye(len(y), dtype=bool)
    return jnp.where(pairs, function(r), 0.0).sum(1), present


def top(y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"], k: int) -> tuple[Float[Array, "V k"], Int[Array, "V k"]]:
    r, present = _table(y, kept, mask)
    pairs = present[:, None] & present[None, :] & ~jnp.eye(len(y), dtype=bool)
    values, indices = jax.lax.top_k(jnp.where(pairs, r, -jnp.inf), k)
    there = values > -jnp.inf
    return jnp.where(there, values, jnp.nan), jnp.where(there, indices, -1).astype(jnp.int32)


def _table(y: Float[Array, "V T"], kept: Float[Array, " T"], mask: Bool[Array, " V"]) -> tuple[Float[Array, "V V"], Bool[Array, " V"]]:
    centred, energy, varies = centre(y, kept)
    unit = centred / jnp.sqrt(energy)[:, None]
    return jnp.matmul(unit, unit.T, precision="highest"), varies & mask
