"""Connectomes and ROI series that other programs made -> Cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pnet_jax.cohort import Cohort, make_cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.ingest import naming
from pnet_jax.ingest.tables import drop_row_numbers, numbers_of, read_npy, read_table, shortlist

KINDS = ("auto", "series", "matrix")
SUBJECT, SESSION, FILE, TR = (
    ("participant_id", "subject"),
    ("session_id", "session"),
    ("file", "path", "filename"),
    ("tr", "repetition_time"),
)
Progress = Callable[[str, int, int], None]


def import_cohort(
    table: str | Path,
    *,
    kind: str = "auto",
    measure: str = "pearson",
    tr: float | None = None,
    names: Sequence[str] | None = None,
    variable: str | None = None,
    progress: Progress | None = None,
) -> Cohort:
    """Read connectomes or ROI series of any atlas, one file for each scan.

    Args:
      table: .tsv or .csv with one row for each scan: `participant_id`, `file` (relative to the table) and optionally `session_id`, `tr` (s)
        and covariates; or a BIDS-derivatives folder with `sub-*_relmat.tsv` or `sub-*_timeseries.tsv` files and a `participants.tsv`.
      kind: `"series"` (frames by regions), `"matrix"` (regions by regions), or `"auto"`: symmetric square files are matrices.
      measure: name of the matrices, e.g. `"pearson"` or `"partial"`; Pearson correlations are computed from series.
      tr: seconds between frames of the series, if the table has no column `tr`.
      names: names of the regions; from the headers of tables if not given.
      variable: name of the array in .mat and .npz files that hold several.
      progress: called with the file, and how many of how many are read.

    Returns:
      The Cohort, in the order of the table.

    Raises:
      FileNotFoundError: the table or a file does not exist.
      SettingsError: `kind` is unknown.
      InputError: a column is missing, a file is no array of numbers, the number of regions differs, or a matrix is not symmetric; names the
        file and the participant.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    path = Path(table)
    rows = _rows_of_folder(path) if path.is_dir() else _rows_of_table(path)
    arrays: list[np.ndarray] = []
    found_names: list[list[str] | None] = []
    for at, file in enumerate(rows[FILE[0]]):
        if progress is not None:
            progress(str(file), at, len(rows))
        values, regions = read_array(Path(file), f"{rows[SUBJECT[0]].iloc[at]}: {file}", variable)
        arrays.append(values)
        found_names.append(regions)
    matrix = kind == "matrix" or (kind == "auto" and all(_is_matrix(one) for one in arrays))
    _check_sizes(arrays, rows, matrix)
    given = _covariates(rows)
    about: dict[str, Any] = {"covariates": given, "source": str(path), "names": names if names is not None else found_names[0]}
    about["sessions"] = rows[SESSION[0]].astype(str).tolist() if SESSION[0] in rows else None
    subjects = [str(one).removeprefix("sub-") for one in rows[SUBJECT[0]]]
    if matrix:
        return make_cohort(subjects, edges={measure: np.stack(arrays).astype(np.float32)}, **about)
    times = rows[TR[0]].astype(float).to_numpy() if TR[0] in rows else tr
    signals = [one.T for one in arrays]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.stack([np.corrcoef(one) for one in signals]).astype(np.float32)
    return make_cohort(subjects, signals=signals, edges={"pearson": correlations}, tr=times, **about)


def read_array(file: Path, where: str, variable: str | None = None) -> tuple[np.ndarray, list[str] | None]:
    """Return an array of numbers and the names of its columns, from .npy, .npz, .mat, .tsv, .csv or .txt.

    Raises:
      FileNotFoundError: the file does not exist.
      InputError: it holds no two-dimensional array of numbers, or several and `variable` names none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{where}: no such file")
    ending = naming.split_name(file)[1]
    if ending == ".npy":
        values, names = read_npy(file, where), None
    elif ending in (".npz", ".mat"):
        values, names = _one_of(_stored(file, where, ending), where, variable), None
    else:
        frame = drop_row_numbers(read_table(file, where))
        if len(frame.columns) == len(frame) + 1 and not pd.api.types.is_numeric_dtype(
            frame.iloc[:, 0]
        ):  # a square table with names in its first column
            frame = frame.iloc[:, 1:]
        values = numbers_of(frame, where)
        names = [str(one) for one in frame.columns] if any(not _is_number(one) for one in frame.columns) else None
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{where}: expected a matrix of numbers, found shape {values.shape} of type {values.dtype}")
    return np.asarray(values, np.float64), names


def _stored(file: Path, where: str, ending: str) -> dict[str, np.ndarray]:
    try:
        if ending == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        from scipy.io import loadmat

        return {name: values for name, values in loadmat(file).items() if not name.startswith("__")}
    except (ValueError, OSError, NotImplementedError) as error:
        said = "MATLAB 7.3 files are HDF5: save with -v7" if isinstance(error, NotImplementedError) else str(error)
        raise InputError(f"{where}: cannot be read: {said}") from error


def _one_of(arrays: dict[str, np.ndarray], where: str, variable: str | None) -> np.ndarray:
    if variable is not None:
        if variable not in arrays:
            raise InputError(f"{where}: no array {variable!r}: found {shortlist(list(arrays))}")
        return arrays[variable]
    fit = [name for name, values in arrays.items() if values.ndim == 2 and np.issubdtype(values.dtype, np.number) and min(values.shape) > 1]
    if len(fit) != 1:
        raise InputError(f"{where}: expected one matrix of numbers, found {len(fit)}: {shortlist(list(arrays))}; name one (--variable)")
    return arrays[fit[0]]


def _rows_of_table(path: Path) -> pd.DataFrame:
    where = f"table {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such file or folder")
    table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    table = table.rename(columns={old: names[0] for names in (SUBJECT, SESSION, FILE, TR) for old in names if old in table.columns})
    for needed in (SUBJECT, FILE):
        if needed[0] not in table:
            raise InputError(f"{where}: expected a column {' or '.join(needed)}, found {shortlist(list(table.columns))}")
    if not len(table):
        raise InputError(f"{where}: expected a row for each scan, found none")
    table[FILE[0]] = [str(path.parent / one) for one in table[FILE[0]]]
    return table


def _rows_of_folder(folder: Path) -> pd.DataFrame:
    files = sorted(folder.rglob("sub-*_relmat.tsv")) or sorted(folder.rglob("sub-*_timeseries.tsv"))
    if not files:
        raise InputError(f"{folder}: expected sub-*_relmat.tsv or sub-*_timeseries.tsv, found neither")
    entities = [naming.entities_of(file) for file in files]
    rows = pd.DataFrame({SUBJECT[0]: [one["sub"] for one in entities], FILE[0]: [str(file) for file in files]})
    if any("ses" in one for one in entities):
        rows[SESSION[0]] = [one.get("ses", "") for one in entities]
    if (participants := folder / "participants.tsv").is_file():
        about = pd.read_csv(participants, sep="\t", dtype=str, keep_default_na=False)
        about[SUBJECT[0]] = about[SUBJECT[0]].str.removeprefix("sub-")
        rows = rows.merge(about.drop(columns=[c for c in about if c in rows and c != SUBJECT[0]]), on=SUBJECT[0], how="left").fillna("")
    return rows


def _check_sizes(arrays: Sequence[np.ndarray], rows: pd.DataFrame, matrix: bool) -> None:
    for at, one in enumerate(arrays):
        where = f"{rows[SUBJECT[0]].iloc[at]}: {rows[FILE[0]].iloc[at]}"
        if matrix and one.shape[0] != one.shape[1]:
            raise InputError(f"{where}: expected a square matrix, found {one.shape[0]} x {one.shape[1]}")
        if one.shape[1] != arrays[0].shape[1]:
            raise InputError(f"{where}: expected {arrays[0].shape[1]} regions as in the first file, found {one.shape[1]}")
        if matrix and np.nanmax(np.abs(one - one.T), initial=0) > 1e-4 * max(1.0, np.nanmax(np.abs(one), initial=0)):
            raise InputError(f"{where}: expected a symmetric matrix, found differences up to {np.nanmax(np.abs(one - one.T)):.3g}")


def _covariates(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the further columns: numbers where all values are numbers or missing, texts otherwise."""
    out: dict[str, np.ndarray] = {}
    for name in rows.columns:
        if name in (SUBJECT[0], SESSION[0], FILE[0], TR[0]):
            continue
        texts = rows[name].astype(str).str.strip()
        gaps = texts.str.lower().isin(("", "n/a", "nan"))
        values = pd.to_numeric(texts.where(~gaps, "nan"), errors="coerce")
        out[str(name)] = texts.to_numpy(str) if (values.isna() & ~gaps).any() or gaps.all() else values.to_numpy(float)
    return out


def _is_matrix(values: np.ndarray) -> bool:
    return values.shape[0] == values.shape[1] and np.allclose(values, values.T, atol=1e-4, equal_nan=True)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
