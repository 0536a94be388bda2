"""What an encoder reads: reference signals of a scan, and where the references are."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

RADIUS_MM = 16.0


class Segments(NamedTuple):
    """A batch: two segments A and B of each of B scans, at the same V locations. What the encoder reads and the objectives compare.

    A and B are two sessions on one Space, or two parts of one scan with a gap between them. numpy or JAX arrays.

    Attributes:
      y: signals, z-scored over the segment's kept frames, 0 in padded frames and where not counted; float16 on its way to the
        device, float32 there.
      kept: frames that count; padding and nothing else is False.
      references: mean signal of every reference region over all locations of the scan, centred over the segment; 0 where the region
        is empty and in padded frames.
      xyz: MNI mm.
      hemisphere: 0 left, 1 right.
      counted: False for padding and for locations without a varying signal in both segments.
      log_tsnr: log(mean / std) of the scan a segment is from, 0 where unknown.
      tr: repetition time in seconds.
      record: number of the scan in the store, of segment A's where A and B are two; errors name scans by it.
    """

    y: Float[Array | np.ndarray, "... B 2 V T"]
    kept: Bool[Array | np.ndarray, "... B 2 T"]
    references: Float[Array | np.ndarray, "... B 2 R T"]
    xyz: Float[Array | np.ndarray, "... B V 3"]
    hemisphere: Int[Array | np.ndarray, "... B V"]
    counted: Bool[Array | np.ndarray, "... B V"]
    log_tsnr: Float[Array | np.ndarray, "... B 2 V"]
    tr: Float[Array | np.ndarray, "... B 2"]
    record: Int[Array | np.ndarray, "... B"]


def nearest_reference(xyz: Float[np.ndarray, "V 3"], references: Float[np.ndarray, "R 3"]) -> Int[np.ndarray, " V"]:
    """Index of the reference point nearest to each location, −1 where none lies within 16 mm, `[V]`."""
    distance, nearest = cKDTree(references).query(xyz, distance_upper_bound=RADIUS_MM, workers=-1)
    return np.where(np.isfinite(distance), nearest, -1).astype(np.int32)


def reference_signals(y: Float[Array, "V T"], region: Int[Array, " V"], count: int) -> Float[Array, "R T"]:
    """Mean signal of each reference region, `[R, T]`; 0 where a region has no location.

    Args:
      y: signals, `[V, T]`; rows that are 0 throughout (no signal) only scale the mean.
      region: reference of each location, −1 for none, `[V]`.
      count: R.
    """
    at = jnp.where(region < 0, count, region)
    total = jax.ops.segment_sum(y, at, count + 1)[:count]
    size = jax.ops.segment_sum(jnp.ones_like(y[:, 0]), at, count + 1)[:count]
    return total / jnp.maximum(size, 1.0)[:, None]
