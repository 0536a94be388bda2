"""TSV and JSON as required by BIDS: `n/a` for missing values, no NaN in JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.errors import InputError
from pnet_jax.outputs.atomic import write_text

MISSING = "n/a"


def beside(stem: Path, ending: str) -> Path:
    """Return the file of a result that begins with `stem`: `beside(stem, "dseg.tsv")`."""
    return stem.with_name(f"{stem.name}_{ending}")


def write_rows(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a table with one mapping per row; missing values, None and NaN become `n/a`, tabs and line breaks become spaces.

    Raises:
      OSError: If the file cannot be written; names the file, and no part of it is left.
    """
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def write_matrix(
    path: str | os.PathLike,
    columns: Sequence[str],
    values: Float[np.ndarray, "n K"],
    index: Sequence[str] | None = None,
    corner: str = "Node",
) -> Path:
    """Write numbers under named columns to 7 digits, NaN as `n/a`; with `index`, a first column called `corner` names the rows.

    Raises:
      OSError: If the file cannot be written; names the file, and no part of it is left.
    """
    text = io.StringIO()
    np.savetxt(text, values, fmt="%.7g", delimiter="\t")
    rows = text.getvalue().replace("nan", MISSING).splitlines()
    if index is not None:
        columns = [corner, *columns]
        rows = [f"{name}\t{row}" for name, row in zip(index, rows, strict=True)]
    return write_text(path, "\n".join(["\t".join(columns), *rows]) + "\n")


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read the rows of a TSV as text, with or without a byte-order mark; `n/a` becomes an empty string.

    Raises:
      InputError: If it is not UTF-8 text, a column occurs twice, or a row has more fields than the header; names the file.
      FileNotFoundError: If it does not exist; names the file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows, names = list(reader), list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table in UTF-8 ({error}); save it as UTF-8 text") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: expected unique column names, found {twice[0]!r} {names.count(twice[0])} times")
    if long := [at for at, row in enumerate(rows, 1) if None in row]:
        raise InputError(f"{path}: expected {len(names)} fields separated by tabs in every row, found more in row {long[0]}")
    return [{key: "" if value in (MISSING, None) else value for key, value in row.items()} for row in rows]


def read_matrix(path: str | os.PathLike, *, index: bool = False) -> Float[np.ndarray, "n K"]:
    """Read a table written by `write_matrix`, float32, `n/a` as NaN; with `index`, the first column names the rows.

    Raises:
      ValueError: If a value is not a number, or rows differ in length; names the file.
      FileNotFoundError: If it does not exist; names the file.
    """
    text = Path(path).read_text("utf-8")
    width = text.partition("\n")[0].count("\t") + 1
    try:
        return np.loadtxt(
            io.StringIO(text.replace(MISSING, "nan")),
            np.float32,
            comments=None,
            delimiter="\t",
            skiprows=1,
            usecols=range(int(index), width),
            ndmin=2,
        )
    except ValueError as error:
        raise ValueError(f"{path}: not a table of numbers ({error})") from error


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> Path:
    """Write JSON; NumPy numbers and arrays, dataclasses and paths are converted to JSON types, NaN to null.

    Raises:
      OSError: If the file cannot be written; names the file, and no part of it is left.
    """
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinity become None."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class Parcels(Protocol):
    """Any object with parcel names and ids, such as a Network or a Cohort."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> Int[np.ndarray, " K"]: ...


def column_names(parcels: Parcels) -> list[str]:
    """Return a unique name for each parcel, in the order of `ids`; a name shared by several parcels is followed by the id."""

    names = [_cell(name) for name in parcels.names]
    return [name if names.count(name) == 1 else f"{name}_{index}" for name, index in zip(names, parcels.ids, strict=True)]


def _cell(value):
    value = plain(value)
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.7g}"
    return " ".join(str(value).split())
