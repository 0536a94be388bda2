"""Clean raw series and assemble a Scan.

For fixed frames and confounds, `nilearn.signal.clean` (interpolation, detrending, filtering, censoring, regression) is a linear
operator, the same for every location. nilearn therefore cleans unit impulses once, which gives the operator as a matrix, and the
recording is multiplied by this matrix in blocks of locations. The values equal those of cleaning every location with nilearn, whose
Butterworth filter is a Python loop over locations, at a fraction of the time and memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest.frames import check_different, leave_out_broken
from pnet_jax.scan import Half, Scan, split_frames, zscore_in_place
from pnet_jax.space import Space

BLOCK = 4096
CONSTANT = 1e-5  # largest spread due to float32 rounding, relative to the level or to the spread before cleaning
FEW_DEGREES = 10.0
DIM, LEVELLED = 0.01, 2.0  # a location below this share of the median intensity is air; a median above this many spreads is an intensity


@dataclasses.dataclass
class Recording:
    """Raw recording to be cleaned.

    Attributes:
      y: Raw signals, `[V, recorded]`, float32, C order; overwritten by cleaning.
      space: Space of the V locations.
      tr: Repetition time in seconds.
      where: Label and file of the scan, for messages.
      warnings: Warnings so far.
    """

    y: Float[np.ndarray, "V recorded"]
    space: Space
    tr: float
    where: str
    warnings: list[str]


def clean_recording(
    recording: Recording,
    *,
    kept: Int[np.ndarray, " T"],
    confounds: Float[np.ndarray, "recorded n"] | None,
    cleaning: CleaningConfig,
    done: dict[str, object] | None = None,
    **fields: object,
) -> Scan:
    """Clean and standardise a recording in place, and assemble the Scan.

    In addition to the recording, memory is needed for one block of 4096 locations, a few T × T matrices, the halves (as large as the
    recording) and, with `wide`, half the size of the recording.

    Args:
      recording: Raw signals; `recording.y` is overwritten and reused by the Scan.
      kept: Positions of the frames to keep, ascending; invalid frames among them (`frames.leave_out_broken`) are excluded.
      confounds: Regressors over all recorded frames, `[recorded, n]`, in any unit; None for no regression.
      cleaning: Band, trend and minimum length of a scan.
      done: Record of the cleaning in addition to band and trend, stored in the Scan.
      **fields: Further attributes of the Scan (`subject`, `entities`, `source`, `displacement`).

    Returns:
      The cleaned scan.

    Raises:
      InputError: If no location has a finite, varying signal, more than half of them are not finite, more than a third have the same
        signal, too few frames remain, or the filter and regressors remove the whole signal.
    """
    recorded, where, warnings = recording.y.shape[1], recording.where, recording.warnings
    left = leave_out_broken(recording.y, kept, warnings)
    because = "" if len(left) == len(kept) else f": {warnings[-1]}"
    kept = left
    check_length(len(kept), recorded, recording.tr, cleaning, f"{where}{because}", warnings)
    low_pass, high_pass = band(cleaning, recording.tr, where, warnings)
    same = dict(tr=recording.tr, detrend=cleaning.detrend, high_pass=high_pass, confounds=confounds, where=where)
    operator = time_operator(kept, low_pass=low_pass, **same)  # type: ignore[arg-type]
    wide = time_operator(kept, low_pass=None, **same) if cleaning.wide and low_pass is not None else None  # type: ignore[arg-type]
    n_confounds = 0 if confounds is None else confounds.shape[1]
    degrees = degrees_of(operator)
    check_degrees(degrees, len(kept), n_confounds, (low_pass, high_pass), where, warnings)
    parts = split_frames(kept, recording.tr) if cleaning.halves else ()
    each = [half_operator(kept[part], low_pass=low_pass, **same) for part in parts]  # type: ignore[arg-type]
    applied = apply_in_place(recording.y, kept, operator, wide, list(zip(parts, each, strict=True)))
    check_locations(applied.counts, len(applied.y), where, warnings)
    valid = applied.std > 0
    check_different(applied.y, valid, where)
    check_intensity(applied.mean, applied.std, valid, warnings)
    halves = [Half(x, kept[part], degrees_of(one)) for x, part, one in zip(applied.halves, parts, each, strict=True)]
    done = {**(done or {}), "detrend": cleaning.detrend, "low_pass": low_pass, "high_pass": high_pass}
    done |= {"wide": wide is not None, "degrees_of_freedom": round(degrees, 1), "scrubbed": recorded - len(kept)}
    return Scan(
        y=applied.y,
        space=recording.space,
        tr=recording.tr,
        frames=kept,
        recorded=recorded,
        valid=valid,
        mean=applied.mean,
        std=applied.std,
        cleaning=done,
        warnings=tuple(warnings),
        wide=applied.wide,
        halves=(halves[0], halves[1]) if halves else None,
        degrees=degrees,
        **fields,  # type: ignore[arg-type]
    )


def degrees_of(operator: Float[np.ndarray, "T T"]) -> float:
    """Return the degrees of freedom of white noise after a linear operator: the sum of its squared entries."""
    return float(np.sum(operator**2, dtype=np.float64))


def half_operator(kept: Int[np.ndarray, " t"], *, where: str, **same: Any) -> Float[np.ndarray, "t t"]:
    """Return the `time_operator` of one half of the frames; zeros (0 degrees of freedom) if there are too few frames to clean."""
    try:
        return time_operator(kept, where=where, **same)
    except ValueError:  # the whole scan was long enough for the filter, but this half is not
        return np.zeros((len(kept), len(kept)), np.float32)


def time_operator(
    kept: Int[np.ndarray, " T"],
    *,
    tr: float,
    detrend: bool,
    low_pass: float | None,
    high_pass: float | None,
    confounds: Float[np.ndarray, "recorded n"] | None,
    where: str = "scan",
) -> Float[np.ndarray, "T T"]:
    """Return `nilearn.signal.clean` as a matrix that maps the kept frames of a series to the cleaned frames.

    Scrubbed frames between kept ones are interpolated by a cubic spline before filtering and removed afterwards; those before the first
    and after the last kept frame are left out, as in nilearn (Lindquist et al. 2019).

    Args:
      kept: Positions of the T frames to keep, ascending.
      tr: Repetition time in seconds.
      detrend: Whether to remove the linear trend.
      low_pass: Upper cut-off frequency in Hz, or None.
      high_pass: Lower cut-off frequency in Hz, or None.
      confounds: Regressors over all recorded frames, `[recorded, n]`, or None.
      where: Name of the scan in messages.

    Raises:
      InputError: If nilearn raises an error, e.g. because there are fewer frames than the padding of the filter.
    """
    from nilearn.signal import clean

    inside = kept - kept[0]
    expand = _interpolation(inside, tr)
    if confounds is not None:
        confounds = expand @ confounds[kept]
    span = len(expand)
    options: dict[str, Any] = {"butterworth__copy": True}  # filters all columns at once, ten times faster with the same values
    if span <= 34:
        options["butterworth__padlen"] = span - 1  # the default padding of 33 frames does not fit
    operator = np.empty((len(kept), len(kept)), np.float32)
    for start in range(0, len(kept), 1024):
        columns = slice(start, start + 1024)
        try:
            operator[:, columns] = clean(
                expand[:, columns],
                detrend=detrend,
                standardize=None,
                # A copy, because nilearn modifies its input. The gaps are filled beforehand, because nilearn fills the wrong
                # frames where the mirror image (T − 1 − t) of a scrubbed frame is scrubbed too.
                sample_mask=None if len(kept) == span else inside.copy(),
                confounds=confounds,
                low_pass=low_pass,
                high_pass=high_pass,
                t_r=tr,
                **options,
            )
        except ValueError as error:
            raise InputError(f"{where}: {len(kept)} frames of {tr} s could not be cleaned: {error}") from error
    return operator


def band(cleaning: CleaningConfig, tr: float, where: str, warnings: list[str]) -> tuple[float | None, float | None]:
    """Return the band that the repetition time allows: `(low_pass, high_pass)` in Hz."""
    nyquist, low_pass, high_pass = 0.5 / tr, cleaning.low_pass or None, cleaning.high_pass or None
    if low_pass is not None and low_pass >= nyquist:
        warnings.append(f"low_pass = {low_pass} Hz is not below the Nyquist frequency {nyquist:.4g} Hz of TR = {tr} s: dropped")
        low_pass = None
    if high_pass is not None and high_pass >= nyquist:
        raise InputError(f"{where}: high_pass = {high_pass} Hz must be below the Nyquist frequency {nyquist:.4g} Hz of TR = {tr} s")
    if low_pass is not None and high_pass is not None and high_pass >= low_pass:
        raise InputError(f"{where}: high_pass = {high_pass} Hz must be below low_pass = {low_pass} Hz")
    return low_pass, high_pass


def check_length(n_kept: int, recorded: int, tr: float, cleaning: CleaningConfig, where: str, warnings: list[str]) -> None:
    """Raise if a scan is too short; warn if it is barely long enough."""
    left = f"{n_kept} of {recorded} frames are left, {n_kept * tr:.1f} s at TR = {tr} s"
    if n_kept < cleaning.min_frames:
        raise InputError(f"{where}: too short: {left}; at least {cleaning.min_frames} frames are needed (min_frames)")
    if n_kept < 3:
        raise InputError(f"{where}: too short: {left}; at least 3 frames are needed")
    if n_kept * tr < cleaning.min_seconds:
        raise InputError(f"{where}: too short: {left}; at least {cleaning.min_seconds:g} s are needed (min_seconds)")
    if n_kept * tr < cleaning.warn_seconds:
        warnings.append(f"short scan: {left}; {cleaning.warn_seconds:g} s or more are advised (warn_seconds)")


def check_degrees(
    degrees: float, n_kept: int, n_confounds: int, edges: tuple[float | None, float | None], where: str, warnings: list[str]
) -> None:
    """Raise if cleaning removes all degrees of freedom; warn if it removes nearly all."""
    said = (
        f"{n_confounds} regressors and a band of {edges[1] or 0} to {edges[0] or 'Nyquist'} Hz leave {degrees:.1f} degrees of "
        f"freedom of {n_kept} frames"
    )
    if degrees < 3:
        raise InputError(f"{where}: {said}; use fewer confounds (--cleaning.motion basic has 6 of motion), a wider band or a longer scan")
    if degrees < FEW_DEGREES:
        warnings.append(
            f"{said}; correlations will be poor; fewer confounds (--cleaning.motion basic has 6 of motion) would help a short scan"
        )


def check_locations(counts: dict[str, int], total: int, where: str, warnings: list[str]) -> None:
    """Warn of locations without a usable signal; raise if there is no usable location or more than half are NaN."""
    broken, flat = counts["not_finite"], counts["constant"]
    if broken > total / 2:
        raise InputError(f"{where}: {broken} of {total} locations hold NaN or infinite values, expected at most half; check mask and file")
    if broken + flat == total:
        raise InputError(f"{where}: none of {total} locations has a varying signal ({flat} constant, {broken} with NaN or inf)")
    if broken:
        warnings.append(f"{broken} of {total} locations hold NaN or infinite values and are marked invalid")
    if flat:
        warnings.append(f"{flat} of {total} locations are constant and are marked invalid")


def check_intensity(
    mean: Float[np.ndarray, " V"], std: Float[np.ndarray, " V"], valid: Bool[np.ndarray, " V"], warnings: list[str]
) -> None:
    """Warn of locations of very low intensity: noise outside the brain or field of view, which z-scored signals do not show."""
    level, spread = float(np.median(mean[valid])), float(np.median(std[valid]))
    dark = valid & (np.abs(mean) < DIM * level)
    if level > LEVELLED * spread and dark.any():  # centred signals have no intensity to compare
        warnings.append(
            f"{int(dark.sum())} of {len(valid)} locations have a mean intensity below {DIM:.0%} of the median: check whether the mask "
            "extends beyond the brain or the field of view"
        )


class Applied(NamedTuple):
    """Recording after cleaning.

    Attributes:
      y: Cleaned series, z-scored, 0 for locations without a finite, varying signal, `[V, T]`.
      mean: Mean over the kept frames before cleaning, `[V]`.
      std: Standard deviation over the kept frames after cleaning, 0 for locations without a finite, varying signal, `[V]`.
      counts: Numbers of locations that are `not_finite` or `constant`.
      wide: Series cleaned without a low-pass filter, z-scored, `[V, T]`, float16, or None.
      halves: Series of each half of the frames, cleaned separately and z-scored.
    """

    y: Float[np.ndarray, "V T"]
    mean: Float[np.ndarray, " V"]
    std: Float[np.ndarray, " V"]
    counts: dict[str, int]
    wide: Float[np.ndarray, "V T"] | None
    halves: list[Float[np.ndarray, "V t"]]


def apply_in_place(
    y: Float[np.ndarray, "V recorded"],
    kept: Int[np.ndarray, " T"],
    operator: Float[np.ndarray, "T T"],
    wide: Float[np.ndarray, "T T"] | None = None,
    parts: Sequence[tuple[Int[np.ndarray, " t"], Float[np.ndarray, "t t"]]] = (),
) -> Applied:
    """Multiply every series by the operator and standardise it in place; apply the other operators into new arrays.

    Args:
      y: Raw series, `[V, recorded]`; overwritten.
      kept: Positions of the T frames to keep.
      operator: Cleaning operator of these frames, `[T, T]`.
      wide: Cleaning operator of the same frames without a low-pass filter, or None.
      parts: Columns among the kept frames and the cleaning operator of these alone, for each half.
    """
    flat, n, frames = y.reshape(-1), len(kept), _run(kept)
    mean, std, counts = np.zeros(len(y), np.float32), np.zeros(len(y), np.float32), {"not_finite": 0, "constant": 0}
    beside = None if wide is None else np.zeros((len(y), n), np.float16)
    halves = [np.zeros((len(y), len(columns)), np.float32) for columns, _ in parts]
    for start in range(0, len(y), BLOCK):
        rows = slice(start, min(start + BLOCK, len(y)))
        piece = y[rows][:, frames]
        with np.errstate(invalid="ignore"):
            centre = piece.mean(1, dtype=np.float64)
        finite = np.isfinite(centre)  # a float64 sum of float32 values cannot overflow
        if not finite.all():
            piece, centre = np.where(finite[:, None], piece, 0), np.where(finite, centre, 0)
        # Each half is centred on its mean: the mean of the whole recording would leak information from the other half.
        apart = [_centred(piece[:, _run(columns)]) for columns, _ in parts]
        piece = piece - centre[:, None].astype(np.float32)
        wider = piece.astype(np.float64)
        spread = np.sqrt(np.vecdot(wider, wider) / n)
        cleaned = piece @ operator.T
        _, left, varies = zscore_in_place(cleaned)
        varies &= (spread > np.maximum(CONSTANT * np.abs(centre), 1e-12)) & (left > CONSTANT * spread)
        cleaned[~varies] = 0
        if beside is not None and wide is not None:
            beside[rows] = _cleaned(piece, wide, varies)
        for half, own, (_, one) in zip(halves, apart, parts, strict=True):
            _cleaned(own, one, varies, half[rows])
        # Rows only move towards the front, so that no unread row is overwritten.
        flat[rows.start * n : rows.stop * n] = cleaned.reshape(-1)
        mean[rows], std[rows] = centre, np.where(varies, left, 0)
        counts["not_finite"] += int((~finite).sum())
        counts["constant"] += int((finite & ~varies).sum())
    return Applied(flat[: len(y) * n].reshape(len(y), n), mean, std, counts, beside, halves)


def _run(at: Int[np.ndarray, " n"]) -> slice | Int[np.ndarray, " n"]:
    """Return ascending positions as a slice if they have no gaps, which gives a view instead of a copy."""
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) and at[-1] - at[0] + 1 == len(at) else at


def _cleaned(
    y: Float[np.ndarray, "V t"], operator: Float[np.ndarray, "t t"], varies: Bool[np.ndarray, " V"], out: np.ndarray | None = None
) -> Float[np.ndarray, "V t"]:
    """Apply an operator to series and z-score them; 0 for locations that do not vary in the whole recording."""
    cleaned = np.matmul(y, operator.T, out=out)
    zscore_in_place(cleaned)
    cleaned[~varies] = 0
    return cleaned


def _centred(y: Float[np.ndarray, "V t"]) -> Float[np.ndarray, "V t"]:
    return y - y.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)


def _interpolation(inside: Int[np.ndarray, " T"], tr: float) -> Float[np.ndarray, "span T"]:
    """Return the matrix that interpolates the gaps between kept frames by a cubic spline."""
    from scipy.interpolate import CubicSpline

    span = int(inside[-1]) + 1
    expand = np.zeros((span, len(inside)))
    expand[inside, np.arange(len(inside))] = 1
    gaps = np.setdiff1d(np.arange(span), inside)
    if len(gaps):
        expand[gaps] = CubicSpline(inside * tr, np.eye(len(inside)))(gaps * tr)
    return expand
