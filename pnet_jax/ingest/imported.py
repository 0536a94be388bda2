"""Import of connectomes and ROI series from other programs as a `Cohort`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from pnet_jax.cohort import COLUMNS, NUMBERS, Cohort, make_cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.ingest import naming
from pnet_jax.ingest.reading import check_file, reading
from pnet_jax.ingest.tables import drop_row_numbers, layout_of, numbers_of, read_npy, read_table, shortlist

KINDS = ("auto", "series", "matrix")
SUBJECT, SESSION, FILE, TR = (
    ("participant_id", "subject"),
    ("session_id", "session"),
    ("file", "path", "filename"),
    ("tr", "repetition_time"),
)
LEAST_REGIONS, LEAST_FRAMES = 3, 10
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
      table: .tsv or .csv file with one row for each scan: `participant_id`, `file` (relative to the table) and optionally `session_id`,
        `tr` (s) and covariates; or a BIDS-derivatives folder with `sub-*_relmat.tsv` or `sub-*_timeseries.tsv` files and a
        `participants.tsv`.
      kind: `"series"` (frames × regions), `"matrix"` (regions × regions), or `"auto"`: symmetric square files are matrices.
      measure: Name of the matrices, e.g. `"pearson"` or `"partial"`; Pearson correlations are computed from series.
      tr: Repetition time of the series in seconds, if the table has no column `tr`.
      names: Names of the regions; by default those in the headers of the files.
      variable: Name of the array in .mat and .npz files that hold several.
      progress: Function called with the file, the number of files read and the total number.

    Returns:
      The cohort, with scans in the order of the table. Regions without a finite, varying signal are absent (NaN) in their scan, and a
      warning names the scans.

    Raises:
      FileNotFoundError: If the table or a file does not exist.
      SettingsError: If `kind` is unknown.
      InputError: If a column or value is missing, a file is not an array of real numbers, the regions or their order differ, a matrix is
        not symmetric, or a series is too short.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not measure.strip():
        raise SettingsError("measure: expected a name such as pearson or partial, got an empty one")
    path = Path(table)
    rows = _rows_of_folder(path) if path.is_dir() else _rows_of_table(path)
    arrays: list[np.ndarray] = []
    found_names: list[list[str] | None] = []
    wheres = [f"{subject}: {file}" for subject, file in zip(rows[SUBJECT[0]], rows[FILE[0]], strict=True)]
    for at, file in enumerate(rows[FILE[0]]):
        if progress is not None:
            progress(str(file), at, len(rows))
        values, regions = read_array(Path(file), wheres[at], variable)
        arrays.append(values)
        found_names.append(regions)
    matrix = _are_matrices(arrays, wheres, kind)
    _check_sizes(arrays, wheres, matrix)
    _check_names(found_names, wheres)
    shared_names = next((one for one in found_names if one is not None), None)
    about: dict[str, Any] = {"covariates": _covariates(rows, str(path)), "source": str(path), "names": names or shared_names}
    about["sessions"] = rows[SESSION[0]].str.removeprefix("ses-").tolist() if SESSION[0] in rows else None
    subjects = rows[SUBJECT[0]].str.removeprefix("sub-").tolist()
    if matrix:
        return make_cohort(subjects, edges={measure: np.stack([_single(*one) for one in zip(arrays, wheres, strict=True)])}, **about)
    signals = _signals(arrays, wheres, named=shared_names is not None)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.stack([np.corrcoef(one.astype(np.float64)) for one in signals]).astype(np.float32)
    return make_cohort(subjects, signals=signals, edges={"pearson": correlations}, tr=_repetition_times(rows, tr, str(path)), **about)


def read_array(file: Path, where: str, variable: str | None = None) -> tuple[np.ndarray, list[str] | None]:
    """Return an array of numbers and the names of its columns, from .npy, .npz, .mat, .tsv, .csv or .txt.

    Raises:
      FileNotFoundError: If the file does not exist.
      InputError: If it holds no two-dimensional array of real numbers, or several and `variable` does not select one.
    """
    check_file(file, where)
    ending = naming.split_name(file)[1]
    names: list[str] | None = None
    if ending == ".npy":
        values = read_npy(file, where)
    elif ending in (".npz", ".mat"):
        values = _one_of(_stored(file, where, ending), where, variable)
    else:
        frame = drop_row_numbers(read_table(file, where))
        if len(frame.columns) == len(frame) + 1 and not pd.api.types.is_numeric_dtype(
            frame.iloc[:, 0]
        ):  # a square table with row names in its first column
            _check_row_names(frame, where)
            frame = frame.iloc[:, 1:]
        values = numbers_of(frame, where)
        names = [str(one) for one in frame.columns]
        if all(_is_number(one) or re.fullmatch(r"column-\d+", one) for one in names):  # numbers, or no header
            names = None
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        raise InputError(f"{where}: expected a matrix of real numbers, found shape {values.shape} of type {values.dtype}")
    return np.asarray(values, np.float64), names


def _stored(file: Path, where: str, ending: str) -> dict[str, np.ndarray]:
    with reading(f"{where}: not a readable {ending} file"):
        if ending == ".npz":
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        from scipy.io import loadmat

        try:
            return {name: values for name, values in loadmat(file).items() if not name.startswith("__")}
        except NotImplementedError as error:
            raise InputError(f"{where}: MATLAB 7.3 files are HDF5 and cannot be read: save with -v7") from error


def _one_of(arrays: dict[str, np.ndarray], where: str, variable: str | None) -> np.ndarray:
    if variable is not None:
        if variable not in arrays:
            raise InputError(f"{where}: no array {variable!r}: found {shortlist(list(arrays))}")
        return arrays[variable]
    fit = [name for name, values in arrays.items() if values.ndim == 2 and values.dtype.kind in "iufc" and min(values.shape) > 1]
    if len(fit) != 1:
        raise InputError(f"{where}: expected one matrix of numbers, found {len(fit)}: {shortlist(list(arrays))}; name one (--variable)")
    return arrays[fit[0]]


def _rows_of_table(path: Path) -> pd.DataFrame:
    where = f"table {path}"
    table = _texts(path, where)
    for names in (SUBJECT, SESSION, FILE, TR):
        if old := next((name for name in names if name in table), None):
            table = table.rename(columns={old: names[0]})
    for needed in (SUBJECT, FILE):
        if needed[0] not in table:
            raise InputError(f"{where}: expected a column {' or '.join(needed)}, found {shortlist(list(table.columns))}")
        if (blank := table[needed[0]] == "").any():
            raise InputError(f"{where}: expected a value of {needed[0]} in every row, found none in row {int(blank.argmax()) + 1}")
    table[FILE[0]] = [str(path.parent / one) for one in table[FILE[0]]]
    return table


def _texts(path: Path, where: str) -> pd.DataFrame:
    """Read a table as text with empty strings for missing values; rows without any value are left out.

    Raises:
      InputError: If it is not a table, or two columns have the same name.
      FileNotFoundError: If the file does not exist.
    """
    table = read_table(path, where, dtype=str)
    fields = [one.strip() for one in layout_of(path, where).fields]
    if twice := [one for one in fields if fields.count(one) > 1]:
        raise InputError(f"{where}: expected columns with different names, found {twice[0]!r} {fields.count(twice[0])} times")
    return table.dropna(how="all").fillna("").apply(lambda column: column.str.strip()).reset_index(drop=True)


def _rows_of_folder(folder: Path) -> pd.DataFrame:
    files = sorted(folder.rglob("sub-*_relmat.tsv")) or sorted(folder.rglob("sub-*_timeseries.tsv"))
    if not files:
        raise InputError(f"{folder}: expected sub-*_relmat.tsv or sub-*_timeseries.tsv, found neither")
    entities = [naming.entities_of(file) for file in files]
    rows = pd.DataFrame({SUBJECT[0]: [one["sub"] for one in entities], FILE[0]: [str(file) for file in files]})
    if any("ses" in one for one in entities):
        rows[SESSION[0]] = [one.get("ses", "") for one in entities]
    if (participants := folder / "participants.tsv").is_file():
        about = _texts(participants, str(participants))
        if SUBJECT[0] not in about:
            raise InputError(f"{participants}: expected a column {SUBJECT[0]}, found {shortlist(list(about.columns))}")
        about[SUBJECT[0]] = about[SUBJECT[0]].str.removeprefix("sub-")
        if (twice := about[SUBJECT[0]].duplicated()).any():
            raise InputError(f"{participants}: expected one row for each participant, found several of {about[SUBJECT[0]][twice].iloc[0]}")
        rows = rows.merge(about.drop(columns=[c for c in about if c in rows and c != SUBJECT[0]]), on=SUBJECT[0], how="left").fillna("")
    return rows


def _are_matrices(arrays: Sequence[np.ndarray], wheres: Sequence[str], kind: str) -> bool:
    """Return whether the files are matrices rather than series.

    Raises:
      InputError: If `kind` is `"auto"` and only some files are symmetric matrices, or all are square but not symmetric.
    """
    if kind != "auto":
        return kind == "matrix"
    symmetric = [_is_matrix(one) for one in arrays]
    if all(symmetric):
        return True
    square = [one.shape[0] == one.shape[1] for one in arrays]
    if any(symmetric) or all(square):
        at = symmetric.index(False)
        found = "a square one that is not" if square[at] else f"{arrays[at].shape[0]} x {arrays[at].shape[1]} values"
        raise InputError(f"{wheres[at]}: expected a symmetric matrix, found {found}: correct the file, or give the kind (series or matrix)")
    return False


def _check_sizes(arrays: Sequence[np.ndarray], wheres: Sequence[str], matrix: bool) -> None:
    transposed = not matrix and len({len(one) for one in arrays}) == 1 and len(arrays) > 1
    for one, where in zip(arrays, wheres, strict=True):
        if matrix and one.shape[0] != one.shape[1]:
            raise InputError(f"{where}: expected a square matrix, found {one.shape[0]} x {one.shape[1]}")
        if one.shape[1] != arrays[0].shape[1]:
            hint = ": series have a row for each frame and a column for each region; transpose them" if transposed else ""
            raise InputError(f"{where}: expected {arrays[0].shape[1]} regions as in the first file, found {one.shape[1]}{hint}")
        if one.shape[1] < LEAST_REGIONS:
            raise InputError(f"{where}: expected {LEAST_REGIONS} regions or more, found {one.shape[1]}")
        if not matrix and len(one) < LEAST_FRAMES:
            raise InputError(f"{where}: expected {LEAST_FRAMES} frames or more, found {len(one)}")
        if matrix and not np.isfinite(one).any():
            raise InputError(f"{where}: expected edges, found no finite value")
        if matrix and np.isinf(one).any():
            raise InputError(f"{where}: expected finite edges, or NaN for absent regions, found an infinite value")
        if matrix and np.nanmax(np.abs(one - one.T), initial=0) > 1e-4 * max(1.0, np.nanmax(np.abs(one), initial=0)):
            raise InputError(f"{where}: expected a symmetric matrix, found differences up to {np.nanmax(np.abs(one - one.T)):.3g}")


def _check_names(found: Sequence[Sequence[str] | None], wheres: Sequence[str]) -> None:
    """Raise if the header of a file differs from that of the first in the names or the order of the regions."""
    first = next((at for at, names in enumerate(found) if names is not None), None)
    for names, where in zip(found, wheres, strict=True):
        if names is not None and first is not None and (expected := found[first]) is not None and list(names) != list(expected):
            at = next(at for at, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
            raise InputError(
                f"{where}: expected the regions of {wheres[first]} in the same order, found {names[at]!r} for {expected[at]!r}"
            )


def _check_row_names(frame: pd.DataFrame, where: str) -> None:
    rows, columns = [str(one).strip() for one in frame.iloc[:, 0]], [str(one) for one in frame.columns[1:]]
    if set(rows) == set(columns) and rows != columns:
        at = next(at for at, pair in enumerate(zip(rows, columns, strict=True)) if pair[0] != pair[1])
        raise InputError(f"{where}: expected rows and columns in the same order, found row {rows[at]!r} and column {columns[at]!r}")


def _single(matrix: np.ndarray, where: str) -> Float[np.ndarray, "K K"]:
    with np.errstate(over="ignore"):
        out = matrix.astype(np.float32)
    if np.isinf(out).any():
        raise InputError(f"{where}: expected values within the range of float32, found {np.nanmax(np.abs(matrix)):.3g}")
    return out


def _signals(arrays: Sequence[np.ndarray], wheres: Sequence[str], named: bool) -> list[Float[np.ndarray, "K T"]]:
    """Return the signals of each scan, NaN for regions without a finite, varying signal; warn of possible errors.

    Raises:
      InputError: If fewer than three regions of a scan have a signal.
    """
    out, lacking = [], []
    for one, where in zip(arrays, wheres, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            y = one.T.astype(np.float32)
            present = np.isfinite(y).all(1) & (np.ptp(y, axis=1) > 0)
        if present.sum() < LEAST_REGIONS:
            expected = f"expected {LEAST_REGIONS} regions or more with a finite, varying signal"
            raise InputError(f"{where}: {expected}, found {int(present.sum())} of {len(y)}")
        if not present.all():
            lacking.append(f"{int((~present).sum())} of {len(y)} in {where}")
        out.append(np.where(present[:, None], y, np.float32(np.nan)))
    if lacking:
        warnings.warn(f"regions without a finite, varying signal are absent: {shortlist(lacking, 3)}", stacklevel=3)
    if not named and all(len(one) < one.shape[1] for one in arrays):
        said = f"{len(arrays[0])} frames of {arrays[0].shape[1]} regions"
        warnings.warn(
            f"every file has more columns than rows, which are read as frames ({said}): transpose them if that is wrong", stacklevel=3
        )
    return out


def _repetition_times(rows: pd.DataFrame, tr: float | None, where: str) -> Any:
    if TR[0] not in rows:
        return tr
    texts = rows[TR[0]]
    values = pd.to_numeric(texts.where(texts != "", "nan"), errors="coerce")
    if (wrong := values.isna() & (texts != "")).any():
        found = f"{texts[wrong].iloc[0]!r} for {rows[SUBJECT[0]][wrong].iloc[0]}"
        raise InputError(f"table {where}: expected seconds in column {TR[0]}, found {found}")
    return values.fillna(np.nan if tr is None else tr).to_numpy(float)


def _covariates(rows: pd.DataFrame, where: str) -> dict[str, np.ndarray]:
    """Return the remaining columns: as numbers if all values are numbers or missing, otherwise as text.

    Characters other than letters, digits and `_` are replaced in names; names reserved by a cohort are prefixed with `participant_`.

    Raises:
      InputError: If two columns receive the same name, or a quality-control column holds text.
    """
    out: dict[str, np.ndarray] = {}
    for column in rows.columns:
        if column in (SUBJECT[0], SESSION[0], FILE[0], TR[0]):
            continue
        name = re.sub(r"\W", "_", str(column))
        name = f"participant_{name}" if name in COLUMNS and name not in NUMBERS else name
        if name in out:
            raise InputError(f"{where}: expected columns with different letters and digits, found two that become {name!r}")
        texts = rows[column]
        gaps = texts.str.lower().isin(("", "n/a", "na", "nan"))
        values = pd.to_numeric(texts.where(~gaps, "nan"), errors="coerce")
        wrong = values.isna() & ~gaps
        if name in NUMBERS and wrong.any():
            found = f"{texts[wrong].iloc[0]!r} for {rows[SUBJECT[0]][wrong].iloc[0]}"
            raise InputError(f"{where}: expected numbers in column {column}, found {found}")
        out[name] = texts.to_numpy(str) if wrong.any() or (gaps.all() and name not in NUMBERS) else values.to_numpy(float)
    return out


def _is_matrix(values: np.ndarray) -> bool:
    return values.shape[0] == values.shape[1] and np.allclose(values, values.T, atol=1e-4, equal_nan=True)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
