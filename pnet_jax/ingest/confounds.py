"""Confounds: regressors, frames to keep and head motion, from a file, an array or an fMRIPrep table."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings as python_warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.reading import check_file, reading
from pnet_jax.ingest.tables import (
    DECIMAL_COMMA,
    drop_row_numbers,
    layout_of,
    read_table,
    refuse_text,
    shortlist,
    text_columns,
    wholly_text,
)

FMRIPREP = re.compile(r"_desc-confounds_(timeseries|regressors)\.tsv$")
FMRIPREP_COLUMNS = {"trans_x", "trans_x_derivative1", "trans_x_power2", "csf", "framewise_displacement"}
OUTLIER = re.compile("motion_outlier|non_steady_state")
REMEDY = "choose another strategy (--cleaning.strategy), or give a table of your own regressors (--confounds)"
QUALITY = ("framewise_displacement", "fd", "dvars", "std_dvars", "rmsd")  # measures of frame quality, not regressors

ConfoundsInput: TypeAlias = str | Path | pd.DataFrame | np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Confounds:
    """Confounds of a recording.

    Attributes:
      values: Regressors, `[recorded, n]`, float64, or None.
      names: Names of the n regressors.
      kept: Positions of the frames that are not outliers, ascending, or None for all frames.
      displacement: Framewise displacement in mm, `[recorded]`, or None.
      source: File, or kind of object.
      warnings: Warnings about the confounds.
    """

    values: Float[np.ndarray, "recorded n"] | None = None
    names: tuple[str, ...] = ()
    kept: Int[np.ndarray, " T"] | None = None
    displacement: Float[np.ndarray, " recorded"] | None = None
    source: str = "none"
    warnings: tuple[str, ...] = ()


def read_confounds(given: ConfoundsInput, *, bold: Path | None, n_frames: int, cleaning: CleaningConfig, where: str) -> Confounds:
    """Read regressors and the frames to keep.

    An fMRIPrep table (recognised by its columns or its name `…_desc-confounds_timeseries.tsv`) is read by nilearn's `load_confounds`
    with the strategy of `cleaning`. From any other table, all columns are used as regressors except measures of frame quality (framewise
    displacement, DVARS), columns that hold only text, and one-hot outlier columns, whose frames are excluded. NaN in the first row,
    where derivatives are undefined, is replaced by the value of the second row; a regressor that is missing in every row is left out
    with a warning.

    Args:
      given: File (.tsv, .csv, or separated by white space), array `[recorded, n]` or `[recorded]`, or DataFrame. If None, the table
        beside an fMRIPrep file is used if it exists.
      bold: File of the recording, or None.
      n_frames: Number of frames of the recording.
      cleaning: Strategy and thresholds.
      where: Name of the scan in messages.

    Raises:
      InputError: If the number of rows is not the number of frames, there is text among numbers, no regressor is left, or the file lacks
        columns that the strategy needs.
      FileNotFoundError: If the file does not exist.
    """
    if given is None:
        given = _beside(bold)
        if given is None:
            return Confounds(warnings=_none_found(bold, cleaning))
    if isinstance(given, str | Path):
        path = Path(given)
        check_file(path, f"{where}: confounds file {path}")
        table = drop_row_numbers(read_table(path, f"{where}: confounds file {path}"))
        check_rows(len(table), n_frames, f"confounds file {path}", where)
        if FMRIPREP.search(path.name) or set(table.columns) >= FMRIPREP_COLUMNS:
            return _from_fmriprep(path, table, bold, cleaning, where)
        return _from_table(table, str(path), cleaning, where)
    if isinstance(given, pd.DataFrame):
        check_rows(len(given), n_frames, "the confounds table", where)
        return _from_table(given, "DataFrame", cleaning, where)
    array = np.asarray(given, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise InputError(f"{where}: confounds must have shape [frames, regressors], got {array.shape}")
    check_rows(len(array), n_frames, "the confounds array", where)
    return _from_table(pd.DataFrame(array, columns=[f"column-{i + 1}" for i in range(array.shape[1])]), "array", cleaning, where)


def kept_frames(
    sample_mask: Bool[np.ndarray, " recorded"] | Int[np.ndarray, " T"] | None, confounds: Confounds, n_frames: int, where: str
) -> Int[np.ndarray, " T"]:
    """Return the positions of the frames that both the sample mask and the confounds keep, ascending.

    Args:
      sample_mask: True where a frame is kept, `[recorded]`; or the positions of kept frames, as returned by `load_confounds`.
      confounds: Confounds of the recording.
      n_frames: Number of frames of the recording.
      where: Name of the scan in messages.

    Raises:
      InputError: If the mask has the wrong length, positions are out of range or not ascending, or confounds hold NaN in kept frames.
    """
    kept = np.arange(n_frames) if confounds.kept is None else np.asarray(confounds.kept, np.int64)
    if sample_mask is not None:
        kept = np.intersect1d(kept, _positions(np.asarray(sample_mask), n_frames, where))
    if confounds.values is not None:
        bad = (~np.isfinite(confounds.values[kept])).sum(0)
        if bad.any():
            named = [f"{confounds.names[i]} ({bad[i]} of {len(kept)} frames)" for i in np.flatnonzero(bad)]
            raise InputError(f"{where}: confounds {confounds.source}: NaN or infinite values in {shortlist(named)}")
    return kept


def check_rows(rows: int, n_frames: int, what: str, where: str) -> None:
    """Raise if the confounds and the recording differ in length."""
    if rows != n_frames:
        raise InputError(f"{where}: {what} has {rows} rows, expected one per frame: the recording has {n_frames} frames")


def _positions(mask: np.ndarray, n_frames: int, where: str) -> Int[np.ndarray, " T"]:
    if mask.ndim != 1:
        raise InputError(f"{where}: sample_mask must have one dimension, got shape {mask.shape}")
    if mask.dtype == bool:
        if len(mask) != n_frames:
            raise InputError(f"{where}: a True/False sample_mask needs one value per frame, expected {n_frames}, got {len(mask)}")
        return np.flatnonzero(mask)
    if len(mask) and (not np.issubdtype(mask.dtype, np.integer) or mask.min() < 0 or mask.max() >= n_frames or (np.diff(mask) <= 0).any()):
        raise InputError(
            f"{where}: sample_mask must be True/False for each of {n_frames} frames, or ascending positions 0…{n_frames - 1} of "
            f"the frames to keep; got {len(mask)} values of type {mask.dtype} from {mask.min()} to {mask.max()}"
        )
    return mask.astype(np.int64)


def _beside(bold: Path | None) -> Path | None:
    if bold is None or not naming.is_bids(bold) or naming.suffix_of(bold) != "bold":
        return None
    if naming.entities_of(bold).get("desc", "preproc") not in ("preproc", "optcom", "smoothAROMAnonaggr"):
        return None  # the recording is already denoised
    return naming.confounds_beside(bold)


def _none_found(bold: Path | None, cleaning: CleaningConfig) -> tuple[str, ...]:
    if not cleaning.strategy or bold is None or "denoised" in naming.entities_of(bold).get("desc", ""):
        return ()
    if naming.suffix_of(bold) != "bold" or naming.split_name(bold)[1] not in (".nii", ".nii.gz", ".dtseries.nii", naming.GIFTI_SERIES):
        return ()
    return ("no confounds were given and no desc-confounds_timeseries.tsv lies beside the file: none were regressed out",)


def _from_table(table: pd.DataFrame, source: str, cleaning: CleaningConfig, where: str) -> Confounds:
    table = table.rename(columns=str)
    notes = []
    described = [c for c in wholly_text(table) if not table[c].map(str).str.strip().str.fullmatch(DECIMAL_COMMA.pattern).any()]
    # A word among numbers (#REF! of a spreadsheet) is damage; dropping the column would leave its noise in the signals.
    refuse_text(table, [c for c in text_columns(table) if c not in described], f"{where}: confounds {source}")
    if described:
        notes.append(f"confounds {source}: text columns were left out: {shortlist(described)}")
    if len(described) == table.shape[1]:
        raise InputError(f"{where}: confounds {source}: expected columns of numbers, found only text in {shortlist(described)}")
    table = table.drop(columns=described).apply(pd.to_numeric, errors="coerce").astype(np.float64)
    outliers = table.loc[:, [bool(OUTLIER.search(c)) for c in table.columns]]
    kept = np.flatnonzero(outliers.sum(axis=1).to_numpy() == 0) if outliers.shape[1] else None
    drop = [c for c in table.columns if c in outliers.columns or c.strip().lower() in QUALITY or c.startswith("Unnamed:")]
    regressors = _without_missing(table.drop(columns=drop), source, where, notes)
    if "scrub" in cleaning.strategy:
        notes.append(f"the strategy 'scrub' reads fMRIPrep tables only; confounds {source} is another: use sample_mask or outlier columns")
    values = _fill_first_row(regressors.to_numpy(np.float64).copy()) if regressors.shape[1] else None
    return Confounds(values, tuple(regressors.columns), kept, _displacement(table), source, tuple(notes))


def _from_fmriprep(path: Path, table: pd.DataFrame, bold: Path | None, cleaning: CleaningConfig, where: str) -> Confounds:
    refuse_text(table, text_columns(table), f"{where}: confounds file {path}")
    if "scrub" in cleaning.strategy:
        graded = [c for c in ("framewise_displacement", "std_dvars") if c in table.columns and table[c].isna().all()]
        if graded:
            raise InputError(f"{where}: confounds file {path}: the strategy 'scrub' needs {shortlist(graded)}, found n/a in every row")
    asked = f"strategy {cleaning.strategy} (motion={cleaning.motion!r}, wm_csf={cleaning.wm_csf!r}, "
    asked += f"global_signal={cleaning.global_signal!r})"
    columns = shortlist([str(c) for c in table.columns])
    failed = f"{where}: confounds file {path}: {asked}: load_confounds could not use the columns {columns}; {REMEDY}"
    with tempfile.TemporaryDirectory() as folder:
        image = _copied(path, table, bold, cleaning, Path(folder), where)
        with python_warnings.catch_warnings(record=True) as caught, reading(failed):
            python_warnings.simplefilter("always")
            try:
                chosen, kept = _load(image, cleaning)
            except (KeyError, ValueError) as error:
                if not (lacking := _lacking(error)):
                    raise
                few = "use --cleaning.motion basic, which needs the six motion parameters alone, or " if _derived(lacking) else ""
                said = f"lacks {shortlist(lacking)}, which {asked} needs; its columns are {columns}; {few}{REMEDY}"
                raise InputError(f"{where}: confounds file {path}: {said}") from error
    notes = [f"load_confounds: {one.message}" for one in caught if "strategy is empty" not in str(one.message)]
    chosen = pd.DataFrame(index=table.index) if chosen is None else _without_missing(chosen, str(path), where, notes)
    values = chosen.to_numpy(np.float64) if chosen.shape[1] else None
    return Confounds(values, tuple(map(str, chosen.columns)), kept, _displacement(table), str(path), tuple(notes))


def _lacking(error: KeyError | ValueError) -> list[str]:
    """Return the columns, or parts of a strategy, that `load_confounds` reports as missing; empty for other errors."""
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, ValueError) and "parameters are missing" not in text:
        return []
    if isinstance(error, KeyError):
        return re.findall(r"'([^']+)'", text) or [text]
    columns, _, parts = text.partition("] [")  # columns, then parts of the strategy without any column
    described = {"compcor": "columns for compcor that its JSON file describes"}
    found = [described.get(name, f"columns for {name}") for name in re.findall(r"'([^']+)'", parts)]
    return re.findall(r"'([^']+)'", columns) + found


def _derived(columns: list[str]) -> bool:
    """Return whether the columns include derivatives or squares of motion parameters."""
    return any(re.match(r"(trans|rot)_[xyz]_(derivative1|power2)", column) for column in columns)


def _copied(path: Path, table: pd.DataFrame, bold: Path | None, cleaning: CleaningConfig, folder: Path, where: str) -> Path:
    """Copy an fMRIPrep table and its JSON file to an empty folder; return the image name by which `load_confounds` finds them.

    `load_confounds` raises if the tables of several runs match the image's name; the image itself need not exist.
    """
    copy = folder / "sub-x_task-y_desc-confounds_timeseries.tsv"
    layout = layout_of(path, where)
    if layout.separator == "\t" and list(layout.fields) == list(table.columns):
        with reading(f"{where}: confounds file {path}: not a text file"):
            copy.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-8")  # copied as text, so that no digit changes
    else:
        table.to_csv(copy, sep="\t", index=False, na_rep="n/a")
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        copy.with_suffix(".json").write_bytes(sidecar.read_bytes())
    aroma = "ica_aroma" in cleaning.strategy and bold is not None and naming.entities_of(bold).get("desc") == "smoothAROMAnonaggr"
    return folder / f"sub-x_task-y_desc-{'smoothAROMAnonaggr' if aroma else 'preproc'}_bold.nii.gz"


def _load(image: Path, cleaning: CleaningConfig) -> tuple[pd.DataFrame | None, Int[np.ndarray, " T"] | None]:
    from nilearn.interfaces.fmriprep import load_confounds

    return load_confounds(
        str(image),
        strategy=cleaning.strategy,
        motion=cleaning.motion,
        wm_csf=cleaning.wm_csf,
        global_signal=cleaning.global_signal,
        scrub=cleaning.scrub,
        fd_threshold=cleaning.fd_threshold,
        std_dvars_threshold=cleaning.std_dvars_threshold,
        demean=False,
    )


def _without_missing(regressors: pd.DataFrame, source: str, where: str, notes: list[str]) -> pd.DataFrame:
    """Drop regressors that are n/a in every row, such as csf if the ventricles are too small to be segmented."""
    missing = [str(c) for c in regressors.columns if regressors[c].isna().all()]
    if not missing:
        return regressors
    if len(missing) == regressors.shape[1]:
        raise InputError(f"{where}: confounds {source}: every regressor is n/a in every row: {shortlist(missing)}")
    notes.append(f"confounds {source}: n/a in every row and therefore not regressed out: {shortlist(missing)}")
    return regressors.drop(columns=missing)


def _displacement(table: pd.DataFrame) -> Float[np.ndarray, " recorded"] | None:
    for column in table.columns:
        if str(column).strip().lower() in ("framewise_displacement", "fd"):
            values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float32).copy()
            values[:1] = np.nan_to_num(values[:1])  # the first frame has no predecessor
            return values if len(values) < 2 or np.isfinite(values[1:]).any() else None
    return None


def _fill_first_row(values: Float[np.ndarray, "recorded n"]) -> Float[np.ndarray, "recorded n"]:
    if len(values) > 1:
        missing = np.isnan(values[0])
        values[0, missing] = values[1, missing]
    return values
