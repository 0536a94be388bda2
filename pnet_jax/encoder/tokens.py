"""What an encoder reads of a scan: reference signals, and of a location its power spectrum and its place."""

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
TAPERS = 3  # the band of a bin is ±(TAPERS + 1) / 2 of 1 / duration: ±.007 Hz in 5 minutes, about the distance of two bins
MARGIN = 1e-6  # relative, of frequencies that are compared in float32
LEAST_POWER = 1e-2  # 1/Hz; a signal of variance 1 within .01–.10 Hz has about 11
WAVELENGTHS = np.geomspace(8, 160, 32, dtype=np.float32)  # mm
POSITIONS = 4 * 2 * len(WAVELENGTHS)  # columns of `position_features`


class Segments(NamedTuple):
    """A batch: two segments A and B of each of B scans, at the same V locations. What the encoder reads and the objectives compare.

    A and B are two sessions on one Space, or two parts of one scan with a gap between them. numpy or JAX arrays.

    Attributes:
      y: signals, z-scored over the segment's kept frames, 0 in padded frames and where not counted; float16 on its way to the
        device, float32 there.
      kept: frames that count; padding and nothing else is False.
      frames: position of each frame in the recording, from the segment's first on; scrubbed frames are left out, so that positions need
        not be consecutive. 0 in padded frames.
      references: mean signal of every reference region over all locations of the scan, centred over the segment; 0 where the region
        is empty and in padded frames.
      xyz: MNI mm.
      hemisphere: 0 left, 1 right.
      counted: False for padding and for locations without a varying signal in both segments.
      log_tsnr: log(mean / std) of the scan a segment is from, 0 where unknown.
      tr: repetition time in seconds.
      record: number of the scan in the store, of segment A's where A and B are two; errors name scans by it.
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
    """One recording as an encoder reads it.

    Attributes:
      y: signals, any unit, `[V, T]`.
      kept: frames that count, `[T]`.
      frames: position of each frame in the recording, ascending where `kept`; only their differences matter, `[T]`.
      counted: locations that make up the scan; padding and dead locations do not, `[V]`.
      region: reference region of each location (`nearest_reference`), `[V]`.
      xyz: MNI mm, `[V, 3]`.
      log_tsnr: from `log_tsnr`, `[V]`.
      tr: seconds.
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
    """log(mean / std), 0 where it is unknown: a mean below the spread is no recording's level, but a centred series', `[V]`."""
    known = valid & (std > 0) & (mean > std)
    return np.log(np.where(known, mean, 1) / np.where(known, std, 1)).astype(np.float32)


def observe(
    scan: Scan,
    references: Float[np.ndarray, "R 3"],
    *,
    here: Int[np.ndarray, " n"] | None = None,
    counted: Bool[np.ndarray, " V"] | None = None,
) -> Observed:
    """A scan as an encoder reads it.

    Args:
      scan: V locations.
      references: the encoder's reference points in MNI mm.
      here: only these locations; all if not given.
      counted: those that make up the scan; the ones with a signal if not given.
    """
    rows = slice(None) if here is None else here
    counted = (scan.valid if counted is None else counted)[rows]
    xyz = scan.space.xyz[rows]
    region = np.where(counted, nearest_reference(xyz, np.asarray(references)), -1).astype(np.int32)
    tsnr = log_tsnr(scan.mean[rows], scan.std[rows], counted)
    kept, frames = np.ones(scan.y.shape[1], bool), (scan.frames - scan.frames[0]).astype(np.int32)
    return Observed(scan.y[rows], kept, frames, counted, region, xyz, tsnr, np.float32(scan.tr))


def at_frames(observed: Observed, columns: Int[np.ndarray, " n"] | Bool[np.ndarray, " T"]) -> Observed:
    """Some frames of a recording, each where it was."""
    y, kept, frames = np.asarray(observed.y), np.asarray(observed.kept), np.asarray(observed.frames)
    return observed._replace(y=np.ascontiguousarray(y[:, columns]), kept=kept[columns], frames=frames[columns])


def bucketed(observed: Observed, locations: int = LOCATION_BUCKET, frames: int = FRAME_BUCKET) -> Observed:
    """Padded to multiples of `locations` and `frames`, so that scans of like sizes share a compiled step; padding does not count."""
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
    sums = segment_sum(y, at, count + 1)[:count]
    size = segment_sum(jnp.ones_like(y[:, :1]), at, count + 1)[:count]
    return sums / jnp.maximum(size, 1.0)


def log_power(
    y: Float[Array, "V T"], kept: Bool[Array, " T"], frames: Int[Array, " T"], tr: Float[ArrayLike, ""]
) -> tuple[Float[Array, "V 16"], Bool[Array, " 16"]]:
    r"""Log multitaper power density at .01–.10 Hz, of signals scaled to variance 1.

    .. math::
      s_{vf} = \log\Big(\tfrac23 \mathrm{TR} \sum_{k=1}^{3} \Big|\sum_t a_k(t)\, y_v(t)\, e^{-2\pi i f t \mathrm{TR}}\Big|^2 + .01\Big),
      \qquad a_k(t) \propto \sin \frac{\pi k (t + 1)}{n + 1}, \quad \sum_t a_k(t)^2 = 1

    with t the positions of the kept frames in the recording from the first of them on, and n the frames from the first to the last.
    A scrubbed frame is a gap in time, not a shorter recording.

    Args:
      y: signals, any unit, `[V, T]`.
      kept: frames that count; padding anywhere changes nothing, `[T]`.
      frames: position of each frame in the recording, ascending where `kept`, `[T]`.
      tr: seconds.

    Returns:
      The log of 1/Hz, `[V, 16]`, 0 in the bins that the segment says nothing of; and the bins that it does: those below Nyquist,
      and so high that 0 Hz is not within their band, `[16]`.

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
    # 100 frames of 2 s begin at .01 Hz, the first bin, and 5 s end below .1 Hz, the last: rounding must not decide these.
    present = (bins >= lowest * (1 - MARGIN)) & (bins < 0.5 / tr * (1 - MARGIN))
    return jnp.where(present[None, :], jnp.log(power + LEAST_POWER), 0.0), present


def since_first(kept: Bool[Array, " T"], frames: Int[Array, " T"]) -> Float[Array, " T"]:
    """Frames since the first that counts, 0 where a frame does not count, `[T]`."""
    frames = jnp.asarray(frames)
    first = jnp.where(kept, frames, jnp.iinfo(frames.dtype).max).min()
    return jnp.where(kept, frames - first, 0).astype(jnp.float32)


def position_features(xyz: Float[Array, "V 3"]) -> Float[Array, "V 256"]:
    """Sine and cosine of x, y, z and |x| at 32 wavelengths from 8 to 160 mm; |x| is the same in homotopic places, `[V, 256]`."""
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
    """All that a location's signal says of it: components, log power with the bins that there are, log tSNR, `[V, D + 33]`."""
    power, present = log_power(y, kept, frames, tr)
    there = jnp.broadcast_to(present.astype(power.dtype)[None, :], power.shape)
    return jnp.concatenate([x, power, there, log_tsnr[:, None]], 1)
