"""From signals to the bins of a band: all that a Whittle likelihood reads of a recording.

Detrending, the Fourier transform, the division by a filter and the cutting at scrubbed frames are linear in the signals and the same
for all parcels. So they are planned once on the host, as one matrix `[F, 2, T]` (`Bins`), and a scan with gaps has the same shape as one
without: its bins are those of all its segments, one after the other, filled up with bins of weight 0.
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
BRIDGED_SECONDS = 6.0  # frames that lack no more than this in a row are drawn in as a line between their neighbours
MIN_BINS = 8
MIN_GAIN = 0.5  # of the filter's power, for a bin to be used
BUTTERWORTH_ORDER = 5  # nilearn's, forward and backward
POOL_HZ = 0.002  # between pooled bins


class Bins(NamedTuple):
    """How the bins of one recording come from its frames; see `frequency_bins`.

    Attributes:
      frequency: Hz, `[F]`.
      operator: real and imaginary part of the transform, `[F, 2, T]`; 0 at frames that are not kept.
      weight: 1 for a bin, 0 for padding, `[F]`.
      gain: power gain of the filter that the operator divides out, `[F]`; 1 where there was none.
      dropped: segments that were too short, `[]`.
    """

    frequency: Float[Array, " F"]
    operator: Float[Array, "F 2 T"]
    weight: Float[Array, " F"]
    gain: Float[Array, " F"]
    dropped: Int[Array, ""]


class Spectra(NamedTuple):
    """Spectra of K signals.

    Attributes:
      frequency: Hz, `[F]`.
      dft: N real rows a bin whose Gram matrix is the periodogram, `[F, N, K]`: real and imaginary part of DFT / √T (N = 2), a mean that
        was missing (N = 3, `standardise`), or of a pooled periodogram its square root (N = K).
      weight: how many recordings stand behind a bin, `[F]`; 0 is padding.
    """

    frequency: Float[Array, " F"]
    dft: Float[Array, "F N K"]
    weight: Float[Array, " F"]


class TooShortError(ValueError):
    """A recording, or a part of one, has too few frames for the band of the dynamics."""


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
    """Plans the bins of one recording. Host code, in float64.

    Args:
      kept: frames that count, `[T]`.
      tr: seconds between frames.
      band: lowest and highest frequency in Hz.
      frames: position of each frame in the recording, ascending, `[T]` (`Scan.frames`); 0…T−1 if not given. Gaps of 6 s at most are
        bridged by a line, which band-limited signals differ little from; after a longer one a new segment begins.
      filtered: `(high_pass, low_pass)` in Hz of the Butterworth filter that the signals went through; None for no edge. It is divided
        out, and bins it left less than half the power of are not used.
      size: F to fill up to; as many as there are if not given.
      min_seconds: shorter segments are left out and counted.
      min_bins: fewer are an error.

    Raises:
      TooShortError: too few bins.
      ValueError: more bins than `size`, or a band that is none.

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
    """The bins of K signals; linear, so that gradients reach the signals.

    Args:
      signals: any unit, free of NaN, `[K, T]`.
      bins: of `frequency_bins`.

    Raises:
      ValueError: `signals` and `bins` are not of the same T.
    """
    if signals.shape[-1] != bins.operator.shape[-1]:
        raise ValueError(f"expected signals of T = {bins.operator.shape[-1]} frames, got shape {signals.shape}")
    dft = jnp.einsum("fnt,kt->fnk", bins.operator, signals, precision="highest")
    return Spectra(bins.frequency, dft, bins.weight)


def scale_of(spectra: Spectra) -> Float[Array, " K"]:
    """Root of each signal's mean power over the bins, `[K]`; 1 for a signal without power."""
    power = (spectra.weight[:, None] * jnp.square(spectra.dft).sum(1)).sum(0) / jnp.maximum(spectra.weight.sum(), 1.0)
    return jnp.sqrt(jnp.where(power > 0, power, 1.0))


def standardise(spectra: Spectra, scale: Float[Array, " K"] | None = None) -> Spectra:
    """Signals of mean power 1 in the band, or divided by the `scale` of another part of the recording, with a mean that varies.

    Where cleaning has removed the mean signal, a direction is left without power, which no brain has: a model that follows it finds
    coupling of tens of 1/s that pulls all parcels to 0 together, and likelihoods without bound. What the mean of the signals lacks beside
    a direction on the average is therefore added to every bin, as a third row. Recordings that have their mean keep it.
    """
    scale = scale_of(spectra) if scale is None else scale
    dft = spectra.dft / scale[None, None, :]
    return spectra._replace(dft=jnp.concatenate([dft, _missing_mean(dft, spectra.weight)], axis=1))


def _missing_mean(dft: Float[Array, "F N K"], weight: Float[Array, " F"]) -> Float[Array, "F 1 K"]:
    """Of each bin, along the mean of the signals that have power."""
    power = jnp.square(dft).sum(1)  # [F, K]
    there = (power.sum(0) > 0).astype(dft.dtype)
    count = jnp.maximum(there.sum(), 1.0)
    average = power.sum(1) / count
    mean = jnp.square((dft * there[None, None, :]).sum(2)).sum(1) / count
    lacking = jnp.maximum(1 - (weight @ mean) / jnp.maximum(weight @ average, 1e-12), 0.0)
    wanted = lacking * average
    size = jnp.where(wanted > 0, jnp.sqrt(jnp.where(wanted > 0, wanted, 1.0)), 0.0)  # a slope at 0 as well
    return size[:, None, None] * there[None, None, :] / jnp.sqrt(count)


def power_gain(
    frequency: Float[np.ndarray, " F"], tr: float, filtered: tuple[float | None, float | None], order: int = BUTTERWORTH_ORDER
) -> Float[np.ndarray, " F"]:
    r"""What a Butterworth filter, run forward and backward, multiplies the power by: :math:`|B(\omega)|^4`, `[F]`.

    Args:
      frequency: Hz, `[F]`.
      tr: seconds.
      filtered: `(high_pass, low_pass)` in Hz; None or 0 for no edge.
      order: of one pass.
    """
    high_pass, low_pass = (edge or None for edge in filtered)
    if high_pass is None and low_pass is None:
        return np.ones(len(frequency))
    kind = "bandpass" if high_pass and low_pass else "highpass" if high_pass else "lowpass"
    edges = [edge for edge in (high_pass, low_pass) if edge]
    sections = signal.butter(order, edges if len(edges) > 1 else edges[0], kind, fs=1 / tr, output="sos")
    return np.abs(signal.freqz_sos(sections, frequency, fs=1 / tr)[1]) ** 4


def last_held_out(kept: Bool[np.ndarray, " T"], share: float = 0.2) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """The kept frames without the last `share` of them, and those, `[T]` each."""
    kept = np.asarray(kept, bool)
    late = np.cumsum(kept) > round((1 - share) * kept.sum())
    return kept & ~late, kept & late


def pool(recordings: Sequence[Spectra], band: tuple[float, float] = BAND_HZ, step: float = POOL_HZ) -> Spectra:
    r"""One mean periodogram of many recordings of the same parcels, `[F, K, K]` as its square root.

    For a symmetric model the real part of :math:`\sum_s \hat s \hat s^H` in a bin is all that the likelihood reads, so a group of any
    size costs what K recordings cost. Recordings of any length and TR meet on a grid; the error is that of moving a bin by `step` / 2.

    Args:
      recordings: of the same K; standardise each first where amplitudes say nothing.
      band: of the grid in Hz.
      step: of the grid in Hz.

    Raises:
      ValueError: no recording, or recordings of different K.
    """
    sizes = {s.dft.shape[-1] for s in recordings}
    if len(sizes) != 1:
        raise ValueError(f"expected recordings of one K, got K = {sorted(sizes)}")
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
    """Columns of each run of kept frames that are no further from each other than `most`."""
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
    """From frames that were kept to all of a segment: lines between neighbours where frames are missing."""
    return np.stack([np.interp(np.arange(n), position, one) for one in np.eye(len(position))], 1)
