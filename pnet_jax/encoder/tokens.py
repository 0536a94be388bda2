"""What an encoder reads: reference signals of a scan, and where the references are."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import cKDTree

RADIUS_MM = 16.0


def nearest_reference(xyz: Float[np.ndarray, "V 3"], references: Float[np.ndarray, "R 3"]) -> Int[np.ndarray, " V"]:
    """Index of the reference point nearest to each location, −1 where none lies within 16 mm, `[V]`."""
    distance, nearest = cKDTree(references).query(xyz, distance_upper_bound=RADIUS_MM, workers=-1)
    return np.where(np.isfinite(distance), nearest, -1).astype(np.int32)


def reference_signals(
    y: Float[Array, "V T"], region: Int[Array, " V"], count: int, total: Callable[[Array], Array] = lambda here: here
) -> Float[Array, "R T"]:
    """Mean signal of each reference region, `[R, T]`; 0 where a region has no location.

    Args:
      y: signals, `[V, T]`; rows that are 0 throughout (no signal) only scale the mean.
      region: reference of each location, −1 for none, `[V]`.
      count: R.
      total: a sum over all locations, from the sum over those here; these are all if not given.
    """
    at = jnp.where(region < 0, count, region)
    sums = jax.ops.segment_sum(y, at, count + 1)[:count]
    size = jax.ops.segment_sum(jnp.ones_like(y[:, :1]), at, count + 1)[:count]
    both = total(jnp.concatenate([sums, size], 1))  # [R, T + 1], so that one sum over devices is enough
    return both[:, :-1] / jnp.maximum(both[:, -1:], 1.0)
