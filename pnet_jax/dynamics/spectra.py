"""Spectra of parcel signals in a frequency band, the input of the Whittle likelihood.

Detrending, the Fourier transform, the compensation of filters and the segmentation at scrubbed frames are linear in the signals and the
same for all parcels. They are therefore combined once on the host into one operator `[F, 2, T]` (`Bins`). A scan with gaps has the same
shape as one without: the bins of its segments are concatenated and padded with bins of weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import signal

BAND_HZ = (0.009, 0.1)
MIN_SECONDS = 40.0  # shorter segments are left out
BRIDGED_SECONDS = 6.0  # gaps up to this length are linearly interpolated
MIN_BINS = 8
MIN_GAIN = 0.5  # minimum power gain of the filter for a bin to be used
BUTTERWORTH_ORDER = 5  # as in nilearn, forward and backward
POOL_HZ = 0.002  # spacing of pooled bins


class Bins(NamedTuple):
    """Linear operator from the frames of a recording to its frequency bins; see `frequency_bins`.

    Attributes:
      frequency: frequencies in Hz, `[F]`.
      operator: real and imaginary part of the transform, `[F, 2, T]`; 0 for frames that are not kept.
      weight: 1 for bins, 0 for padding, `[F]`.
      gain: power gain of the filter, which the operator compensates, `[F]`; 1 without a filter.
      dropped: number of segments left out because they are too short, `[]`.
    """

    frequency: Float[Array, " F"]
    operator: Float[Array, "F 2 T"]
    weight: Float[Array, " F"]
    gain: Float[Array, " F"]
    dropped: Int[Array, ""]


class Spectra(NamedTuple):
    """Spectra of K signals.

    Attributes:
      frequency: frequencies in Hz, `[F]`.
      dft: N real rows per bin, whose Gram matrix is the periodogram, `[F, N, K]`: real and imaginary part of DFT / √T (N = 2), with the
        restored mean signal (N = 3, `standardise`), or the square root of a pooled periodogram (N = K).
      weight: number of recordings contributing to each bin, `[F]`; 0 for padding.
    """

    frequency: Float[Array, " F"]
    dft: Float[Array, "F N K"]
    weight: Float[Array, " F"]


class TooShortError(ValueError):
    """Raised if a recording, or a part of one, has too few frames for the frequency band of the dynamics."""


def frequency_bins(
    kept: Bool[np.ndarray, " T"],
    tr: float,
    band: tuple[float, float] = BAND_HZ,
    *,
    frames: Int[np.ndarray, " T"] | None = None,
    filtered: tuple[float | None, float | None] = (None, None),
    size: int | None = None,
    min_seconds: float = MIN_SECONDS,
    min_bins: int = MIN_BINS,
) -> Bins:
    """Compute the bins of one recording, on the host and in float64.

    Args:
      kept: mask of the included frames, `[T]`.
      tr: repetition time in seconds.
      band: lowest and highest frequency in Hz.
      frames: index of each frame in the recording, ascending, `[T]` (`Scan.frames`); default: 0…T−1. Gaps of at most 6 s are linearly
        interpolated, which changes band-limited signals little; after a longer gap, a new segment begins.
      filtered: cut-offs `(high_pass, low_pass)` in Hz of the Butterworth filter applied to the signals; None for no cut-off. The filter is
        compensated, and bins with a power gain below 0.5 are not used.
      size: number of bins F after padding; default: no padding.
      min_seconds: minimum duration of a segment in seconds; shorter segments are left out and counted.
      min_bins: minimum number of bins.

    Returns:
      The bins.

    Raises:
      TooShortError: If there are fewer than `min_bins` bins.
      ValueError: If there are more bins than `size`, or the band or `tr` is invalid.

    >>> bins = frequency_bins(np.ones(150, bool), tr=2.0)
    >>> bins.operator.shape, float(bins.frequency[0]).__round__(3)
    ((28, 2, 150), 0.01)
    """
    kept = np.asarray(kept, bool)
    if not (0 < band[0] < band[1] and tr > 0):
        raise ValueError(f"expected a band of two ascending frequencies above 0 Hz and tr above 0 s, got {band} Hz and {tr} s")
    position = np.arange(len(kept)) if frames is None else np.asarray(frames)
    segments = _segments(kept, position, 1 + BRIDGED_SECONDS / tr)
    long = [s for s in segments if len(s) * tr >= min_seconds]
    parts = [_segment_bins(columns, position[columns], len(kept), tr, band, filtered) for columns in long]
    frequency, operator, gain = (np.concatenate([p[i] for p in parts]) if parts else np.zeros(0) for i in range(3))
    found = len(frequency)
    if found < min_bins:
        raise TooShortError(
            f"too few frames for the band of {band[0]:g} to {band[1]:g} Hz: expected at least {min_bins} bins, found {found} in "
            f"{sum(map(len, long))} of {len(kept)} frames of {tr:g} s ({len(long)} segments, {len(segments) - len(long)} shorter than "
            f"{min_seconds:g} s left out)"
        )
    size = found if size is None else size
    if found > size:
        raise ValueError(f"expected at most size = {size} bins, found {found}")
    pad = size - found
    return Bins(
        jnp.asarray(np.pad(frequency, (0, pad), constant_values=sum(band) / 2), jnp.float32),
        jnp.asarray(np.pad(operator, ((0, pad), (0, 0), (0, 0))), jnp.float32),
        jnp.asarray(np.pad(np.ones(found), (0, pad)), jnp.float32),
        jnp.asarray(np.pad(gain, (0, pad), constant_values=1), jnp.float32),
        jnp.asarray(len(segments) - len(long), jnp.int32),
    )


def spectra(signals: Float[Array, "K T"], bins: Bins) -> Spectra:
    """Compute the spectra of K signals; the operation is linear and differentiable in the signals.

    Args:
      signals: signals in any unit, without NaN, `[K, T]`.
      bins: bins from `frequency_bins`.

    Returns:
      The spectra, with N = 2.

    Raises:
      ValueError: If T differs between `signals` and `bins`.
    """
    if signals.shape[-1] != bins.operator.shape[-1]:
        raise ValueError(f"expected signals of T = {bins.operator.shape[-1]} frames, got shape {signals.shape}")
    dft = jnp.einsum("fnt,kt->fnk", bins.operator, signals, precision="highest")
    return Spectra(bins.frequency, dft, bins.weight)


def scale_of(spectra: Spectra) -> Float[Array, " K"]:
    """Return the square root of each signal's mean power over the bins, `[K]`; 1 for a signal without power."""
    power = (spectra.weight[:, None] * jnp.square(spectra.dft).sum(1)).sum(0) / jnp.maximum(spectra.weight.sum(), 1.0)
    return jnp.sqrt(jnp.where(power > 0, power, 1.0))


def standardise(spectra: Spectra, scale: Float[Array, " K"] | None = None) -> Spectra:
    """Scale the signals to mean power 1 in the band, or by the `scale` of another part of the recording, and restore the mean signal.

    If cleaning has removed the mean signal, one direction has no power. A model fitted to such data has an unbounded likelihood and
    implausible coupling of tens of 1/s that drives all parcels to 0 together. The power that the mean signal lacks compared with an average
    direction is therefore added to every bin, as a third row. Recordings whose mean signal was not removed are unchanged.
    """
    scale = scale_of(spectra) if scale is None else scale
    dft = spectra.dft / scale[None, None, :]
    return spectra._replace(dft=jnp.concatenate([dft, _missing_mean(dft, spectra.weight)], axis=1))


def _missing_mean(dft: Float[Array, "F N K"], weight: Float[Array, " F"]) -> Float[Array, "F 1 K"]:
    """Return the row of each bin that restores the power of the mean signal, over signals with power."""
    power = jnp.square(dft).sum(1)  # [F, K]
    there = (power.sum(0) > 0).astype(dft.dtype)
    count = jnp.maximum(there.sum(), 1.0)
    average = power.sum(1) / count
    mean = jnp.square((dft * there[None, None, :]).sum(2)).sum(1) / count
    lacking = jnp.maximum(1 - (weight @ mean) / jnp.maximum(weight @ average, 1e-12), 0.0)
    wanted = lacking * average
    size = jnp.where(wanted > 0, jnp.sqrt(jnp.where(wanted > 0, wanted, 1.0)), 0.0)  # with a finite gradient at 0
    return size[:, None, None] * there[None, None, :] / jnp.sqrt(count)


def power_gain(
    frequency: Float[np.ndarray, " F"], tr: float, filtered: tuple[float | None, float | None], order: int = BUTTERWORTH_ORDER
) -> Float[np.ndarray, " F"]:
    r"""Compute the power gain of a forward–backward Butterworth filter, :math:`|B(\omega)|^4`.

    Args:
      frequency: frequencies in Hz, `[F]`.
      tr: repetition time in seconds.
      filtered: cut-offs `(high_pass, low_pass)` in Hz; None or 0 for no cut-off.
      order: order of one pass.

    Returns:
      The power gain, `[F]`.
    """
    high_pass, low_pass = (edge or None for edge in filtered)
    if high_pass is None and low_pass is None:
        return np.ones(len(frequency))
    kind = "bandpass" if high_pass and low_pass else "highpass" if high_pass else "lowpass"
    edges = [edge for edge in (high_pass, low_pass) if edge]
    sections = signal.butter(order, edges if len(edges) > 1 else edges[0], kind, fs=1 / tr, output="sos")
    return np.abs(signal.freqz_sos(sections, frequency, fs=1 / tr)[1]) ** 4


def last_held_out(kept: Bool[np.ndarray, " T"], share: float = 0.2) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Split the kept frames into the first ones and the last `share` of them, and return both masks, `[T]` each."""
    kept = np.asarray(kept, bool)
    late = np.cumsum(kept) > round((1 - share) * kept.sum())
    return kept & ~late, kept & late


def pool(recordings: Sequence[Spectra], band: tuple[float, float] = BAND_HZ, step: float = POOL_HZ) -> Spectra:
    r"""Average the periodograms of many recordings of the same parcels, and return the square root, `[F, K, K]`.

    The likelihood of a symmetric model depends on each bin only through the real part of :math:`\sum_s \hat s \hat s^H`, so a group of any
    size costs as much as K recordings. Recordings of any length and TR are assigned to a common grid, which shifts a bin by at most
    `step` / 2.

    Args:
      recordings: spectra of the recordings, with the same K; standardise each first if amplitudes are arbitrary.
      band: band of the grid in Hz.
      step: spacing of the grid in Hz.

    Returns:
      The pooled spectra, with N = K.

    Raises:
      ValueError: If there is no recording, or K differs between recordings.
    """
    sizes = {s.dft.shape[-1] for s in recordings}
    if len(sizes) != 1:
        raise ValueError(f"expected recordings with the same K, got K = {sorted(sizes)}")
    (parcels,), count = sizes, max(1, round((band[1] - band[0]) / step))
    gram, weight, frequency = np.zeros((count, parcels, parcels)), np.zeros(count), np.zeros(count)
    for one in recordings:
        hz, rows, own = (np.asarray(x, np.float64) for x in one)
        at = np.clip(((hz - band[0]) / (band[1] - band[0]) * count).astype(int), 0, count - 1)
        for f in np.flatnonzero(own):
            gram[at[f]] += own[f] * rows[f].T @ rows[f]
        np.add.at(weight, at, own)
        np.add.at(frequency, at, own * hz)
    used = weight > 0
    weight, frequency = weight[used], frequency[used] / weight[used]
    values, vectors = np.linalg.eigh(gram[used] / weight[:, None, None])
    root = np.sqrt(np.maximum(values, 0))[:, :, None] * vectors.swapaxes(1, 2)
    return Spectra(jnp.asarray(frequency, jnp.float32), jnp.asarray(root, jnp.float32), jnp.asarray(weight, jnp.float32))


def _segments(kept: Bool[np.ndarray, " T"], frames: Int[np.ndarray, " T"], most: float) -> list[Int[np.ndarray, " n"]]:
    """Return the columns of each run of kept frames that are at most `most` frames apart."""
    columns = np.flatnonzero(kept)
    runs = np.split(columns, np.flatnonzero(np.diff(frames[columns]) > most) + 1)
    return [run for run in runs if len(run)]


def _segment_bins(
    columns: Int[np.ndarray, " k"],
    position: Int[np.ndarray, " k"],
    total: int,
    tr: float,
    band: tuple[float, float],
    filtered: tuple[float | None, float | None],
) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, "F 2 T"], Float[np.ndarray, " F"]]:
    n = int(position[-1] - position[0]) + 1
    hz = np.arange(1, (n - 1) // 2 + 1) / (n * tr)  # neither 0 Hz nor Nyquist, where the transform is real
    hz = hz[(hz >= band[0]) & (hz <= band[1])]
    gain = power_gain(hz, tr, filtered)
    hz, gain = hz[gain >= MIN_GAIN], gain[gain >= MIN_GAIN]
    angle = -2 * np.pi * tr * np.outer(hz, np.arange(n))
    rows = np.stack([np.cos(angle), np.sin(angle)], 1) / np.sqrt(n * gain)[:, None, None]  # [F, 2, n]
    trend = np.linalg.qr(np.stack([np.ones(n), np.arange(n)], 1))[0]
    operator = np.zeros((len(hz), 2, total))
    operator[:, :, columns] = (rows - (rows @ trend) @ trend.T) @ _bridge(position - position[0], n)
    return hz, operator, gain


def _bridge(position: Int[np.ndarray, " k"], n: int) -> Float[np.ndarray, "n k"]:
    """Return the matrix that interpolates linearly from the kept frames to all frames of a segment."""
    return np.stack([np.interp(np.arange(n), position, one) for one in np.eye(len(position))], 1)
