"""Scan: one cleaned recording on a Space."""

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
LOCATION_BUCKET, FRAME_BUCKET = 4096, 64  # scans are padded to multiples, so that scans of like sizes share compiled steps


class Half(NamedTuple):
    """One half of a recording, cleaned from its own frames alone, so that nothing but the brain ties it to the other half.

    Attributes:
      y: signals, z-scored over the half's frames, `[V, T_half]`, float32.
      frames: position of these frames in the recording, ascending, `[T_half]`.
      degrees: degrees of freedom that filter, detrending and regressors leave; 0 where the half is too short to be cleaned.
    """

    y: Float[np.ndarray, "V t"]
    frames: Int[np.ndarray, " t"]
    degrees: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """One cleaned recording.

    Attributes:
      y: signals, z-scored over the kept frames, `[V, T]`, float32; 0 where `valid` is False.
      space: the V locations.
      tr: repetition time in seconds.
      frames: position of the T kept frames in the recording, ascending, `[T]`.
      recorded: how many frames the recording had before scrubbing.
      valid: False where a location has no varying, finite signal, `[V]`.
      mean: mean over time before cleaning, in the file's unit, `[V]`.
      std: standard deviation over the kept frames after cleaning, in the file's unit, `[V]`.
      subject: label without `sub-`.
      entities: the other BIDS entities of the source (`ses`, `task`, `run`, `space`, `res`, …).
      source: file the recording came from.
      displacement: framewise displacement in mm of all recorded frames, or None.
      wide: the signals before the low-pass, z-scored, `[V, T]`, float16; None where they were not kept, or there is no low-pass.
      halves: both halves, each cleaned on its own; None where the signals were cleaned before they were read, as a whole.
      degrees: degrees of freedom that cleaning left, or None where it is not known.
      cleaning: what was done to the signals, for provenance.
      warnings: what the reader should know.
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
        """Return a line without any array: what there is, and how much of it."""
        return (
            f"Scan({scan_label(self.subject, self.entities)}: {len(self.space)} locations in {self.space.name}, {len(self.frames)} of "
            f"{self.recorded} frames, TR {self.tr:g} s)"
        )

    @property
    def duration(self) -> float:
        """Seconds of signal that were kept."""
        return len(self.frames) * self.tr

    @property
    def band(self) -> tuple[float | None, float | None]:
        """Edges of the band-pass that the signals went through in Hz, None for one that was not."""
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
    """Return the subject (`sub`) and the other entities of a label that `scan_label` made.

    Example:
      >>> label_entities("sub-A_1_ses-1_task-rest")
      {'sub': 'A_1', 'ses': '1', 'task': 'rest'}
    """
    found = re.fullmatch("sub-(?P<sub>.*?)" + "".join(f"(?:_{key}-(?P<{key}>.*?))?" for key in LABEL_KEYS), label)
    return {key: value for key, value in found.groupdict().items() if value is not None} if found else {}


def n_eff(scan: Scan) -> float:
    """Independent frames of a recording: the degrees of freedom that cleaning left.

    Where nobody said what was removed they are at most 2 · bandwidth · duration, which is returned.
    """
    return scan.degrees if scan.degrees is not None else band_limit(scan, len(scan.frames))


def band_limit(scan: Scan, frames: int) -> float:
    """2 · bandwidth · duration: independent values of a band-limited signal of so many frames, before any regression."""
    low, high = scan.band
    return 2 * ((high or 0.5 / scan.tr) - (low or 0.0)) * frames * scan.tr


def halves_of(scan: Scan) -> tuple[Half, Half]:
    """The halves that parcels are chosen and judged by.

    Of a scan that was cleaned before it was read they are columns of its signals, standardised again, and regressors of the whole
    recording tie them together.
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
    """A Scan from cleaned signals in memory: checks shapes, marks constant or non-finite locations, z-scores over time.

    Args:
      y: cleaned signals, any unit, `[V, T]`.
      space: the V locations.
      tr: repetition time in seconds.
      **fields: any other attribute of `Scan`.

    Raises:
      InputError: `y` and `space` disagree, there are fewer than 3 frames, or `tr` is not positive.
    """
    y = np.array(y, np.float32)
    if y.ndim != 2 or len(y) != len(space):
        raise InputError(f"y must be [V, T] with V = {len(space)} locations, got shape {y.shape}")
    if y.shape[1] < 3:
        raise InputError(f"a scan needs at least 3 frames, got {y.shape[1]}")
    if not tr > 0:
        raise InputError(f"the repetition time must be above 0 s, got {tr}")
    mean, std, valid = zscore_in_place(y)
    given: dict[str, object] = dict(frames=np.arange(y.shape[1]), recorded=y.shape[1], mean=mean, std=std, valid=valid)
    return Scan(y=y, space=space, tr=float(tr), **(given | fields))  # type: ignore[arg-type]


def some_frames(scan: Scan, columns: Int[np.ndarray, " n"]) -> Scan:
    """Some columns of a scan, standardised anew; it was cleaned as a whole. At least 3."""
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
    """Standardise the rows of `y` in place; return their mean, standard deviation and whether they vary.

    Computed in float64, `block` rows at a time, which stay in the processor's cache between passes.
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
    """Columns of the first and the second half of a scan; see `split_frames`."""
    return split_frames(scan.frames, scan.tr)


def split_frames(
    frames: Int[np.ndarray, " T"], tr: float, gap_seconds: float = 30.0
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Places of the first and of the second half among the kept frames of a recording, with `gap_seconds` left out between them.

    The gap shrinks to a tenth of the scan where the scan is short, so that at most a tenth of the data is lost.
    """
    kept = len(frames)
    gap = min(gap_seconds / tr, kept / 10)
    middle = frames[kept // 2]
    first = np.flatnonzero(frames < middle - gap / 2)
    second = np.flatnonzero(frames >= middle + gap / 2)
    return first, second
