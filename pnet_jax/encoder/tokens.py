"""Inputs of the encoders: reference signals, and the power spectrum and position of each location."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.ops.fingerprint.reference import unit
from pnet_jax.ops.parts import segment_sum
from pnet_jax.scan import FRAME_BUCKET, LOCATION_BUCKET, Scan

RADIUS_MM = 16.0
FREQUENCIES = np.linspace(0.01, 0.10, 16, dtype=np.float32)  # Hz
TAPERS = 3  # the half bandwidth is (TAPERS + 1) / (2 · duration): 0.007 Hz for 5 minutes, about the spacing of the bins
MARGIN = 1e-6  # relative tolerance for comparisons of frequencies in float32
LEAST_POWER = 1e-2  # 1/Hz; a signal of variance 1 within 0.01–0.10 Hz has about 11
WAVELENGTHS = np.geomspace(8, 160, 32, dtype=np.float32)  # mm
POSITIONS = 4 * 2 * len(WAVELENGTHS)  # columns of `position_features`


class Segments(NamedTuple):
    """A training batch: two segments of each of B scans, at the same V locations, as numpy or JAX arrays.

    The two segments are two sessions on one Space, or two parts of one scan separated by a gap.

    Attributes:
      y: signals, z-scored over the kept frames of the segment, 0 in padded frames and if not counted; transferred to the device in float16
        and converted to float32 there.
      kept: mask of the frames; False only in the padding.
      frames: index of each frame in the recording, relative to the first of the segment; not consecutive if frames were scrubbed; 0 in
        padded frames.
      references: mean signal of every reference region over all locations of the scan, centred over the segment; 0 for empty regions and
        in padded frames.
      xyz: MNI coordinates in mm.
      hemisphere: 0 left, 1 right.
      counted: False for padding and for locations whose signal is constant in a segment.
      log_tsnr: log(mean / std) of the scan of each segment, 0 if unknown.
      tr: repetition time in seconds.
      record: number of the scan in the store, or of the first segment's scan if there are two; used in error messages.
    """

    y: Float[ArrayLike, "B 2 V T"]
    kept: Bool[ArrayLike, "B 2 T"]
    frames: Int[ArrayLike, "B 2 T"]
    references: Float[ArrayLike, "B 2 R T"]
    xyz: Float[ArrayLike, "B V 3"]
    hemisphere: Int[ArrayLike, "B V"]
    counted: Bool[ArrayLike, "B V"]
    log_tsnr: Float[ArrayLike, "B 2 V"]
    tr: Float[ArrayLike, "B 2"]
    record: Int[ArrayLike, " B"]


class Observed(NamedTuple):
    """One recording as input of an encoder.

    Attributes:
      y: signals, any unit, `[V, T]`.
      kept: mask of the included frames, `[T]`.
      frames: index of each frame in the recording, ascending if kept; only differences matter, `[T]`.
      counted: mask of the included locations, without padding and constant signals, `[V]`.
      region: reference region of each location (`nearest_reference`), `[V]`.
      xyz: MNI coordinates in mm, `[V, 3]`.
      log_tsnr: log temporal signal-to-noise ratio from `log_tsnr`, `[V]`.
      tr: repetition time in seconds.
    """

    y: Float[ArrayLike, "V T"]
    kept: Bool[ArrayLike, " T"]
    frames: Int[ArrayLike, " T"]
    counted: Bool[ArrayLike, " V"]
    region: Int[ArrayLike, " V"]
    xyz: Float[ArrayLike, "V 3"]
    log_tsnr: Float[ArrayLike, " V"]
    tr: Float[ArrayLike, ""]


def log_tsnr(mean: Float[np.ndarray, " V"], std: Float[np.ndarray, " V"], valid: Bool[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
    """Return log(mean / std), 0 if unknown, `[V]`; a mean below the standard deviation indicates a centred series, not a raw level."""
    known = valid & (std > 0) & (mean > std)
    return np.log(np.where(known, mean, 1) / np.where(known, std, 1)).astype(np.float32)


def observe(
    scan: Scan,
    references: Float[np.ndarray, "R 3"],
    *,
    here: Int[np.ndarray, " n"] | None = None,
    counted: Bool[np.ndarray, " V"] | None = None,
) -> Observed:
    """Prepare a scan as input of an encoder.

    Args:
      scan: the scan, of V locations.
      references: MNI coordinates of the encoder's reference points in mm, `[R, 3]`.
      here: indices of the locations to use, `[n]`; default: all.
      counted: mask of the included locations, `[V]`; default: locations with a signal.
    """
    rows = slice(None) if here is None else here
    counted = (scan.valid if counted is None else counted)[rows]
    xyz = scan.space.xyz[rows]
    region = np.where(counted, nearest_reference(xyz, np.asarray(references)), -1).astype(np.int32)
    tsnr = log_tsnr(scan.mean[rows], scan.std[rows], counted)
    kept, frames = np.ones(scan.y.shape[1], bool), (scan.frames - scan.frames[0]).astype(np.int32)
    return Observed(scan.y[rows], kept, frames, counted, region, xyz, tsnr, np.float32(scan.tr))


def at_frames(observed: Observed, columns: Int[np.ndarray, " n"] | Bool[np.ndarray, " T"]) -> Observed:
    """Select frames of a recording; their times are kept."""
    y, kept, frames = np.asarray(observed.y), np.asarray(observed.kept), np.asarray(observed.frames)
    return observed._replace(y=np.ascontiguousarray(y[:, columns]), kept=kept[columns], frames=frames[columns])


def bucketed(observed: Observed, locations: int = LOCATION_BUCKET, frames: int = FRAME_BUCKET) -> Observed:
    """Pad to multiples of `locations` and `frames`, so that scans of similar size share a compiled step; padding is masked."""
    y, kept, at, counted, region, xyz, tsnr, tr = (np.asarray(part) for part in observed)
    v, t = ((0, -size % multiple) for size, multiple in zip(y.shape, (locations, frames), strict=True))
    return Observed(
        np.pad(y, (v, t)),
        np.pad(kept, t),
        np.pad(at, t),
        np.pad(counted, v),
        np.pad(region, v, constant_values=-1),
        np.pad(xyz, (v, (0, 0))),
        np.pad(tsnr, v),
        tr,
    )


def nearest_reference(xyz: Float[np.ndarray, "V 3"], references: Float[np.ndarray, "R 3"]) -> Int[np.ndarray, " V"]:
    """Return the index of the reference point nearest to each location, −1 if none lies within 16 mm, `[V]`."""
    distance, nearest = cKDTree(references).query(xyz, distance_upper_bound=RADIUS_MM, workers=-1)
    return np.where(np.isfinite(distance), nearest, -1).astype(np.int32)


def reference_signals(y: Float[Array, "V T"], region: Int[Array, " V"], count: int) -> Float[Array, "R T"]:
    """Compute the mean signal of each reference region.

    Args:
      y: signals, `[V, T]`; rows of zeros (no signal) only scale the mean.
      region: reference region of each location, −1 if none, `[V]`.
      count: number of reference regions R.

    Returns:
      Reference signals, `[R, T]`; 0 for regions without locations.
    """
    at = jnp.where(region < 0, count, region)
    sums = segment_sum(y, at, count + 1)[:count]
    size = segment_sum(jnp.ones_like(y[:, :1]), at, count + 1)[:count]
    return sums / jnp.maximum(size, 1.0)


def log_power(
    y: Float[Array, "V T"], kept: Bool[Array, " T"], frames: Int[Array, " T"], tr: Float[ArrayLike, ""]
) -> tuple[Float[Array, "V 16"], Bool[Array, " 16"]]:
    r"""Compute the log multitaper power spectral density at 0.01–0.10 Hz of signals scaled to variance 1.

    .. math::
      s_{vf} = \log\Big(\tfrac23 \mathrm{TR} \sum_{k=1}^{3} \Big|\sum_t a_k(t)\, y_v(t)\, e^{-2\pi i f t \mathrm{TR}}\Big|^2 + .01\Big),
      \qquad a_k(t) \propto \sin \frac{\pi k (t + 1)}{n + 1}, \quad \sum_t a_k(t)^2 = 1

    where t is the index of each kept frame relative to the first one, and n is the number of frames from the first to the last.
    Scrubbed frames are treated as gaps in time.

    Args:
      y: signals, any unit, `[V, T]`.
      kept: mask of the included frames, `[T]`; the position of the padding has no effect.
      frames: index of each frame in the recording, ascending if kept, `[T]`.
      tr: repetition time in seconds.

    Returns:
      The log power in log 1/Hz, 0 in bins that are not resolved, `[V, 16]`; and the mask of resolved bins: those below the Nyquist
      frequency whose bandwidth excludes 0 Hz, `[16]`.

    Source: sine tapers, Riedel & Sidorenko 1995; tapers over the gaps of a record, Chave 2019.
    """
    chex.assert_rank(y, 2)
    chex.assert_shape([kept, frames], y.shape[1:])
    weight = kept.astype(jnp.float32)
    count = weight.sum()
    time = since_first(kept, frames)
    span = jnp.where(kept, time + 1, 0).max()
    phase = 2 * jnp.pi * tr * FREQUENCIES[:, None] * time[None, :]  # [16, T]
    k = jnp.arange(1, TAPERS + 1, dtype=jnp.float32)
    taper = jnp.sin(jnp.pi * k[:, None] * (time[None, :] + 1) / (span + 1)) * weight[None, :]  # [3, T]
    energy = jnp.square(taper).sum(1, keepdims=True)
    taper = taper / jnp.sqrt(jnp.where(energy > 0, energy, 1.0))
    waves = jnp.stack([jnp.cos(phase), jnp.sin(phase)])  # [2, 16, T]
    basis = (taper[:, None, None, :] * waves[None]).reshape(-1, len(kept))
    parts = jnp.matmul(unit(y, weight), basis.T, precision="highest")  # [V, 3 · 2 · 16]
    power = 2 * tr * count / TAPERS * jnp.square(parts).reshape(-1, 2 * TAPERS, len(FREQUENCIES)).sum(1)
    lowest, bins = (TAPERS + 1) / 2 / jnp.maximum(span * tr, 1e-6), jnp.asarray(FREQUENCIES)
    # For 100 frames of 2 s, the lowest frequency equals the first bin (0.01 Hz); for a TR of 5 s, Nyquist equals the last (0.1 Hz). The
    # margin makes the comparison independent of rounding.
    present = (bins >= lowest * (1 - MARGIN)) & (bins < 0.5 / tr * (1 - MARGIN))
    return jnp.where(present[None, :], jnp.log(power + LEAST_POWER), 0.0), present


def since_first(kept: Bool[Array, " T"], frames: Int[Array, " T"]) -> Float[Array, " T"]:
    """Return the number of frames since the first included one, 0 for excluded frames, `[T]`."""
    frames = jnp.asarray(frames)
    first = jnp.where(kept, frames, jnp.iinfo(frames.dtype).max).min()
    return jnp.where(kept, frames - first, 0).astype(jnp.float32)


def position_features(xyz: Float[Array, "V 3"]) -> Float[Array, "V 256"]:
    """Return the sine and cosine of x, y, z and |x| at 32 wavelengths from 8 to 160 mm; |x| is equal at homotopic locations, `[V, 256]`."""
    coordinates = jnp.concatenate([xyz, jnp.abs(xyz[:, :1])], 1)  # [V, 4]
    phase = (2 * jnp.pi * coordinates[:, :, None] / WAVELENGTHS[None, None, :]).reshape(len(xyz), -1)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], 1)


def signal_features(
    x: Float[Array, "V D"],
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
    frames: Int[Array, " T"],
    tr: Float[ArrayLike, ""],
    log_tsnr: Float[Array, " V"],
) -> Float[Array, "V F"]:
    """Return the signal features of each location: components, log power with the mask of its bins, and log tSNR, `[V, D + 33]`."""
    power, present = log_power(y, kept, frames, tr)
    there = jnp.broadcast_to(present.astype(power.dtype)[None, :], power.shape)
    return jnp.concatenate([x, power, there, log_tsnr[:, None]], 1)
