"""Tables: delimited text with or without a header, and .npy matrices."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from pnet_jax.errors import InputError

MISSING = ["n/a", "N/A", "NA", "NaN", "nan", ""]
SEPARATORS = {".tsv": "\t", ".csv": ","}


def read_table(path: Path, where: str | None = None, dtype: type | None = None) -> pd.DataFrame:
    """A delimited table as it is in its file; columns are called `column-1`, … where there is no header.

    Tabs separate a .tsv, commas a .csv, white space anything else. The first line is a header unless all of its fields
    are numbers; different whole numbers above fractions, or in ascending order, are a header too (region ids).

    Raises:
      InputError: the file is empty or not a table.
      FileNotFoundError: it is not there.
    """
    where = where or str(path)
    separator = separator_of(path)
    named = has_header(path, separator, where)
    try:
        table = pd.read_csv(
            path, sep=separator, header=0 if named else None, dtype=dtype, na_values=MISSING, keep_default_na=False, skipinitialspace=True
        )
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{where}: not a readable table ({error})") from error
    table.columns = [str(c).strip() for c in table.columns] if named else [f"column-{i + 1}" for i in range(table.shape[1])]
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise InputError(f"{where}: the table is empty, expected rows and columns, found shape {table.shape}")
    return table


def first_lines(path: Path, separator: str, where: str) -> tuple[list[str], list[str]]:
    """Fields of the first and of the second line; the second is empty where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = stream.readline().strip("\r\n"), stream.readline().strip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error})") from error
    if not lines[0].strip():
        raise InputError(f"{where}: the file is empty or starts with an empty line, expected a table")
    if separator not in "\t,":
        return lines[0].split(), lines[1].split()
    first, second = ([f.strip() for f in next(csv.reader([line], delimiter=separator), [])] for line in lines)
    return first, second


def separator_of(path: Path) -> str:
    """What separates columns, by extension."""
    return SEPARATORS.get(path.suffix.lower(), r"\s+")


def has_header(path: Path, separator: str, where: str) -> bool:
    """Whether the first line names the columns."""
    fields, below = first_lines(path, separator, where)
    if any(_number(field) is None for field in fields):
        return True
    if not all(field.isdigit() for field in fields) or len(set(fields)) < len(fields) or len(fields) < 2:
        return False
    ascending = all(int(a) < int(b) for a, b in itertools.pairwise(fields))
    return not all(field.isdigit() for field in below) or (ascending and len(fields) > 2)


def drop_row_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Without the leading unnamed column of row numbers that `DataFrame.to_csv` writes."""
    first = str(table.columns[0])
    if (first == "" or first.startswith("Unnamed:")) and table.shape[1] > 1:
        values = pd.to_numeric(table.iloc[:, 0], errors="coerce").to_numpy(float)
        if np.array_equal(values - values[0], np.arange(len(values))):
            return table.iloc[:, 1:]
    return table


def text_columns(table: pd.DataFrame) -> list[str]:
    """Names of the columns that hold something else than numbers."""
    numbers = table.apply(pd.to_numeric, errors="coerce")
    return [str(c) for c in table.columns[(numbers.isna() & table.notna()).any().to_numpy()]]


def shortlist(items: list[str], most: int = 8) -> str:
    """`a, b, c and 12 more`."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _number(field: str) -> float | None:
    if field in MISSING:
        return float("nan")
    try:
        return float(field)
    except ValueError:
        return None
