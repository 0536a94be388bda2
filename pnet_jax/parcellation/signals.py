"""Parcel signals."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pnet_jax.ops.parts import segment_sum


@functools.partial(jax.jit, static_argnames="n_parcels")
def parcel_signals(y: Float[ArrayLike, "V T"], labels: Int[ArrayLike, " V"], n_parcels: int) -> Float[Array, "K T"]:
    """Compute the mean signal of each parcel over its locations.

    Args:
      y: signals of the locations, `[V, T]`.
      labels: parcel of each location, −1 outside, `[V]`.
      n_parcels: number of parcels K.

    Returns:
      Parcel signals, `[K, T]`; NaN for parcels without locations.

    >>> parcel_signals(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0, 0]), 2).tolist()
    [[2.0, 3.0], [nan, nan]]
    """
    labels = jnp.asarray(labels)
    at, rows = jnp.where(labels < 0, n_parcels, labels), jnp.asarray(y)
    chex.assert_rank(rows, 2)
    chex.assert_shape(labels, (len(rows),))
    chex.assert_type([rows, labels], [float, int])
    sums = segment_sum(rows, at, n_parcels + 1)[:n_parcels]
    size = segment_sum(jnp.ones(len(rows), rows.dtype), at, n_parcels + 1)[:n_parcels, None]
    return jnp.where(size > 0, sums / jnp.maximum(size, 1.0), jnp.nan)
