"""Scan: a cleaned recording on a Space."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import InputError
from pnet_jax.space import Space

# Entities that distinguish the recordings of one subject, in BIDS order.
LABEL_KEYS = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part")
LOCATION_BUCKET, FRAME_BUCKET = 4096, 64  # scans are padded to multiples of these, so that scans of similar size share compiled steps


class Half(NamedTuple):
    """One half of a recording, cleaned separately, so that cleaning introduces no dependence on the other half.

    Attributes:
      y: signals, z-scored over the frames of the half, `[V, T_half]`, float32.
      frames: indices of these frames in the recording, ascending, `[T_half]`.
      degrees: degrees of freedom left after filtering, detrending and regression; 0 if the half is too short to be cleaned.
    """

    y: Float[np.ndarray, "V t"]
    frames: Int[np.ndarray, " t"]
    degrees: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """A cleaned recording.

    Attributes:
      y: signals, z-scored over the kept frames, `[V, T]`, float32; 0 where `valid` is False.
      space: the V locations.
      tr: repetition time in seconds.
      frames: indices of the T kept frames in the recording, ascending, `[T]`.
      recorded: number of frames in the recording before scrubbing.
      valid: False if the signal of a location is constant or not finite, `[V]`.
      mean: mean over time before cleaning, in the unit of the file, `[V]`.
      std: standard deviation over the kept frames after cleaning, in the unit of the file, `[V]`.
      subject: subject label without `sub-`.
      entities: the other BIDS entities of the source (`ses`, `task`, `run`, `space`, `res`, …).
      source: file from which the recording was read.
      displacement: framewise displacement in mm of all recorded frames, or None.
      wide: signals before low-pass filtering, z-scored, `[V, T]`, float16; None if they were not kept or no low-pass filter was applied.
      halves: both halves, each cleaned separately; None if the recording had been cleaned as a whole before it was read.
      degrees: degrees of freedom left after cleaning, or None if unknown.
      cleaning: description of the cleaning, for the provenance.
      warnings: warnings about the recording.
    """

    y: Float[np.ndarray, "V T"]
    space: Space
    tr: float
    frames: Int[np.ndarray, " T"]
    recorded: int
    valid: Bool[np.ndarray, " V"]
    mean: Float[np.ndarray, " V"]
    std: Float[np.ndarray, " V"]
    subject: str = "unknown"
    entities: dict[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    displacement: Float[np.ndarray, " recorded"] | None = None
    wide: Float[np.ndarray, "V T"] | None = None
    halves: tuple[Half, Half] | None = None
    degrees: float | None = None
    cleaning: dict[str, object] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return a one-line summary without arrays."""
        return (
            f"Scan({scan_label(self.subject, self.entities)}: {len(self.space)} locations in {self.space.name}, {len(self.frames)} of "
            f"{self.recorded} frames, TR {self.tr:g} s)"
        )

    @property
    def duration(self) -> float:
        """Duration of the kept frames in seconds."""
        return len(self.frames) * self.tr

    @property
    def band(self) -> tuple[float | None, float | None]:
        """Lower and upper cut-off of the temporal filter in Hz; None for a filter that was not applied."""
        low, high = (self.cleaning.get(name) for name in ("high_pass", "low_pass"))
        return (float(low) if isinstance(low, int | float) else None, float(high) if isinstance(high, int | float) else None)

    @property
    def label(self) -> str:
        """Label of the scan in messages: `sub-01_ses-1_task-rest_run-1`."""
        return scan_label(self.subject, self.entities)


def scan_label(subject: str, entities: Mapping[str, str]) -> str:
    """Return the label of a recording in messages, reports and tables.

    Example:
      >>> scan_label("01", {"task": "rest", "ses": "1", "ce": "gd", "space": "T1w"})
      'sub-01_ses-1_task-rest_ce-gd'
    """
    return "_".join([f"sub-{subject}"] + [f"{key}-{entities[key]}" for key in LABEL_KEYS if key in entities])


def label_entities(label: str) -> dict[str, str]:
    """Return the subject (`sub`) and the other entities of a label made by `scan_label`.

    Example:
      >>> label_entities("sub-A_1_ses-1_task-rest")
      {'sub': 'A_1', 'ses': '1', 'task': 'rest'}
    """
    found = re.fullmatch("sub-(?P<sub>.*?)" + "".join(f"(?:_{key}-(?P<{key}>.*?))?" for key in LABEL_KEYS), label)
    return {key: value for key, value in found.groupdict().items() if value is not None} if found else {}


def n_eff(scan: Scan) -> float:
    """Return the effective number of independent frames: the degrees of freedom left after cleaning.

    If these are unknown, return their upper bound, 2 · bandwidth · duration.
    """
    return scan.degrees if scan.degrees is not None else band_limit(scan, len(scan.frames))


def band_limit(scan: Scan, frames: int) -> float:
    """Return 2 · bandwidth · duration: the number of independent values in a band-limited signal of `frames` frames, before regression."""
    low, high = scan.band
    return 2 * ((high or 0.5 / scan.tr) - (low or 0.0)) * frames * scan.tr


def halves_of(scan: Scan) -> tuple[Half, Half]:
    """Return the two halves that are used to select and score parcels.

    For a scan that had been cleaned before it was read, the halves are columns of its signals, z-scored again. They are then not
    independent, because the regression was fitted to the whole recording.
    """
    return scan.halves or _halves_of_whole(scan)


def _halves_of_whole(scan: Scan) -> tuple[Half, Half]:
    share = 1.0 if scan.degrees is None else scan.degrees / max(band_limit(scan, len(scan.frames)), 1e-9)

    def half(columns: Int[np.ndarray, " t"]) -> Half:
        y = np.array(scan.y[:, columns], np.float32)
        zscore_in_place(y)
        return Half(y, scan.frames[columns], share * band_limit(scan, len(columns)))

    first, second = split(scan)
    return half(first), half(second)


def make_scan(y: Float[np.ndarray, "V T"], space: Space, *, tr: float, **fields: object) -> Scan:
    """Make a Scan from cleaned signals in memory.

    Constant and non-finite locations are marked as invalid, and the signals are z-scored over time.

    Args:
      y: cleaned signals, any unit, `[V, T]`.
      space: the V locations.
      tr: repetition time in seconds.
      **fields: any other attribute of `Scan`.

    Returns:
      The Scan.

    Raises:
      InputError: If the number of locations in `y` and `space` differs, there are fewer than 3 frames, or `tr` is not positive.
    """
    y = np.array(y, np.float32)
    if y.ndim != 2 or len(y) != len(space):
        raise InputError(f"y must be [V, T] with V = {len(space)} locations, got shape {y.shape}")
    if y.shape[1] < 3:
        raise InputError(f"expected a scan of at least 3 frames, got {y.shape[1]}")
    if not tr > 0:
        raise InputError(f"expected a repetition time above 0 s, got {tr}")
    mean, std, valid = zscore_in_place(y)
    given: dict[str, object] = dict(frames=np.arange(y.shape[1]), recorded=y.shape[1], mean=mean, std=std, valid=valid)
    return Scan(y=y, space=space, tr=float(tr), **(given | fields))  # type: ignore[arg-type]


def some_frames(scan: Scan, columns: Int[np.ndarray, " n"]) -> Scan:
    """Return a scan of at least 3 selected columns, z-scored again; the cleaning of the whole recording is kept."""
    y = np.array(scan.y[:, columns], np.float32)
    _, std, valid = zscore_in_place(y)
    wide = None if scan.wide is None else scan.wide[:, columns]
    degrees = None if scan.degrees is None else scan.degrees * len(columns) / len(scan.frames)
    return dataclasses.replace(
        scan, y=y, frames=scan.frames[columns], std=scan.std * std, valid=valid, wide=wide, halves=None, degrees=degrees
    )


def zscore_in_place(
    y: Float[np.ndarray, "V T"], block: int = 1024
) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """Z-score the rows of `y` in place; return their means, standard deviations and whether they vary, `[V]` each.

    Computed in float64, `block` rows at a time, so that the rows stay in the processor cache between passes.
    """
    mean, std = np.zeros(len(y), np.float32), np.zeros(len(y), np.float32)
    valid = np.zeros(len(y), bool)
    for start in range(0, len(y), block):
        rows = slice(start, start + block)
        piece = y[rows].astype(np.float64)
        with np.errstate(invalid="ignore"):  # rows with an infinity are marked below
            centre = piece.mean(1)
            piece -= centre[:, None]
            spread = np.sqrt(np.vecdot(piece, piece) / piece.shape[1])
        # Rounding in float32 leaves a constant series with a spread of about eps times its level.
        varies = np.isfinite(spread) & (spread > 1e-5 * np.abs(centre)) & (spread > 1e-12)
        piece /= np.where(varies, spread, 1)[:, None]
        piece[~varies] = 0
        y[rows] = piece
        mean[rows], std[rows], valid[rows] = np.where(varies, centre, 0), np.where(varies, spread, 0), varies
    return mean, std, valid


def split(scan: Scan) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Return the columns of the first and second half of a scan; see `split_frames`."""
    return split_frames(scan.frames, scan.tr)


def split_frames(
    frames: Int[np.ndarray, " T"], tr: float, gap_seconds: float = 30.0
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Return the indices, among the kept frames, of the first and second half of a recording, separated by a gap of `gap_seconds`.

    In short scans the gap is a tenth of the scan, so that at most a tenth of the data is lost.
    """
    kept = len(frames)
    gap = min(gap_seconds / tr, kept / 10)
    middle = frames[kept // 2]
    first = np.flatnonzero(frames < middle - gap / 2)
    second = np.flatnonzero(frames >= middle + gap / 2)
    return first, second
