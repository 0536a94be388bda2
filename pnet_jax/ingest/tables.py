"""Reading of delimited text with or without a header, and of .npy matrices."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from pnet_jax.errors import InputError
from pnet_jax.ingest.reading import check_file, reading

MISSING = ["n/a", "N/A", "NA", "NaN", "nan", ""]
SEPARATORS = {".tsv": "\t", ".csv": ","}
WHITE_SPACE = r"\s+"
NAMED = {"\t": "tabs", ",": "commas", ";": "semicolons", WHITE_SPACE: "white space"}
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
NOT_TEXT = "not a text file in UTF-8: if it is a table, save it again as text in UTF-8"
LOOKED_AT = 100  # number of lines from which the layout is determined
LONGEST_LINE = 1 << 22
LONGEST_NAME, LONGEST_PATH = 60, 200


@dataclasses.dataclass(frozen=True)
class Layout:
    """Separator and header of a table.

    Attributes:
      separator: Separator between two fields, a regular expression for white space.
      named: Whether the first line names the columns.
      fields: Fields of the first line, without the comment sign of a .1D file.
      skipped: Number of lines before the first line of the table.
      commented: Whether the first line is a comment that names the columns.
    """

    separator: str
    named: bool
    fields: tuple[str, ...]
    skipped: int = 0
    commented: bool = False


def read_table(path: Path, where: str | None = None, dtype: type | None = None) -> pd.DataFrame:
    """Read a delimited table; columns are called `column-1`, … if there is no header.

    The separator is a tab in .tsv files, a comma in .csv files and white space in others, unless another separator clearly divides the
    lines into columns. The first line is a header unless all of its fields are numbers; distinct whole numbers above fractions, or in
    ascending order, are a header too (region ids). In files other than .tsv and .csv, # begins a comment, and a comment directly above
    the first row with as many fields as there are columns names them.

    Raises:
      InputError: If the file is empty or not a table.
      FileNotFoundError: If the file does not exist.
    """
    where = where or str(path)
    layout = layout_of(path, where)
    named = layout.named and not layout.commented
    with reading(f"{where}: not a readable table, expected columns separated by {NAMED[layout.separator]}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # callers that need numbers check columns of mixed types
        table = pd.read_csv(
            path,
            sep=layout.separator,
            header=0 if named else None,
            skiprows=layout.skipped + layout.commented,
            comment="#" if _may_comment(path) else None,
            dtype=dtype,
            na_values=MISSING,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    table = _without_row_names(table, where)
    names = [str(c) for c in (table.columns if named else layout.fields)]
    table.columns = [n.strip() for n in names] if layout.named else [f"column-{i + 1}" for i in range(table.shape[1])]
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise InputError(f"{where}: the table is empty, expected rows and columns, found shape {table.shape}")
    return table


def layout_of(path: Path, where: str) -> Layout:
    """Determine the separator and header of a table from its first lines.

    Raises:
      InputError: If the file is not text, or empty.
      FileNotFoundError: If the file does not exist.
    """
    lines = first_lines(path, where)
    if not lines or not lines[0].strip():
        raise InputError(f"{where}: the file is empty or starts with an empty line, expected a table")
    skipped, heading = 0, ""
    if _may_comment(path):
        skipped = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), len(lines))
        heading = lines[skipped - 1].strip().lstrip("#") if skipped else ""
        lines = [line.split("#", 1)[0] for line in lines]
    lines = [line for line in lines[skipped:] if line.strip()]
    if not lines:
        raise InputError(f"{where}: the table is empty, expected rows of numbers, found only comments at its beginning")
    with reading(f"{where}: not a readable table"):
        separator = _separator(lines, SEPARATORS.get(path.suffix.lower(), WHITE_SPACE))
        first, below = (_fields(line, separator) for line in [*lines, ""][:2])
        names = [field.lstrip("#").strip() for field in _fields(heading, separator)]
    if heading and len(names) == len(first):
        return Layout(separator, True, tuple(names), skipped - 1, commented=True)
    return Layout(separator, _is_header(first, below), tuple(first), skipped)


def first_lines(path: Path, where: str) -> list[str]:
    """Read the first lines of a text file.

    Raises:
      InputError: If the file is not text.
      FileNotFoundError: If the file does not exist.
    """
    check_file(path, where)
    with reading(f"{where}: {NOT_TEXT}"), path.open(encoding="utf-8-sig") as stream:
        read = iter(lambda: stream.readline(LONGEST_LINE), "")
        lines = [line.rstrip("\n") for line in itertools.islice(read, LOOKED_AT)]
    if any("\0" in line for line in lines):
        raise InputError(f"{where}: {NOT_TEXT}")
    return lines


def drop_row_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Drop the leading unnamed column of row numbers that `DataFrame.to_csv` writes."""
    first = str(table.columns[0])
    if (first == "" or first.startswith("Unnamed:")) and table.shape[1] > 1:
        values = pd.to_numeric(table.iloc[:, 0], errors="coerce").to_numpy(float)
        if np.array_equal(values - values[0], np.arange(len(values))):
            return table.iloc[:, 1:]
    return table


def numbers_of(table: pd.DataFrame, where: str) -> Float[np.ndarray, "rows columns"]:
    """Return the values of a table of numbers.

    Raises:
      InputError: If a column holds text; the message names the column and the text.
    """
    refuse_text(table, text_columns(table), where)
    return table.to_numpy(np.float64)


def text_columns(table: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold anything other than numbers."""
    return [str(c) for c in table.columns[_text(table).any().to_numpy()]]


def wholly_text(table: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold text and no number: these are descriptive, whereas one word among numbers is damage."""
    text = _text(table)
    return [str(c) for c in table.columns[(text.any() & (text | table.isna()).all()).to_numpy()]]


def refuse_text(table: pd.DataFrame, columns: list[str], where: str) -> None:
    """Raise an `InputError` that names `columns` and the first text in each, unless `columns` is empty."""
    if not columns:
        return
    cells = {c: _first_text(table, c) for c in columns}
    if all(DECIMAL_COMMA.fullmatch(text.strip()) for text, _ in cells.values()):
        example = next(iter(cells.values()))[0]
        raise InputError(f"{where}: decimal commas ({example.strip()!r}) in {shortlist(list(cells))}; save the table with decimal points")
    said = [f"{brief(c)} ({brief(text)!r} in row {row + 1})" for c, (text, row) in cells.items()]
    raise InputError(f"{where}: expected numbers in every column, found text in {shortlist(said)}")


def read_npy(path: Path, where: str) -> np.ndarray:
    """Read a numeric array from a .npy file.

    Raises:
      InputError: If the file is damaged, or does not hold a numeric array.
      FileNotFoundError: If the file does not exist.
    """
    return np.array(map_npy(path, where))


def map_npy(path: Path, where: str) -> np.ndarray:
    """Map a numeric array of a .npy file into memory without reading it; errors as those of `read_npy`."""
    check_file(path, where)
    with reading(f"{where}: not a readable .npy file"):
        # A damaged header that declares more than the file holds is refused before memory is allocated.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufb":
        found = f"values of type {values.dtype}" if isinstance(values, np.ndarray) else "an archive of several arrays"
        raise InputError(f"{where}: expected a matrix of numbers, found {found}")
    return values


def shortlist(items: list[str], most: int = 8) -> str:
    """Return a list for messages: `a, b, c and 12 more`."""
    return ", ".join(brief(item, LONGEST_PATH) for item in items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def plural(n: int, word: str) -> str:
    """Return a number with its noun: `1 scan`, `2 scans`."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def brief(text: str, most: int = LONGEST_NAME) -> str:
    """Return a name on one line, truncated for messages; with an unclosed quote, a name may contain the lines that follow it."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def number(field: str) -> float | None:
    """Parse a field of a table: NaN for a missing value, None if it is not a number."""
    if field in MISSING:
        return float("nan")
    try:
        return float(field)
    except ValueError:
        return None


def _separator(lines: list[str], expected: str) -> str:
    """Choose the expected separator, unless only another one divides the lines into columns or another one yields more numbers."""
    scores = {separator: _score(lines, separator, expected) for separator in dict.fromkeys((expected, "\t", ";", ",", WHITE_SPACE))}
    return max(scores, key=scores.__getitem__)  # the first among equals, which is the expected one


def _score(lines: list[str], separator: str, expected: str) -> tuple[float, bool]:
    """Return the share of numbers below the first line (−1 if lines differ in length), and whether there are several columns."""
    rows = [_fields(line, separator) for line in lines]
    below = rows[1:] or rows
    n, asked = len(below[0]), separator == expected
    # R omits the name of the column of row names. The last of the lines may be truncated.
    if any(len(row) != n for row in below[:-1]) or len(rows[0]) not in ((n, n - 1) if asked else (n,)) or (n == 1 and not asked):
        return -1.0, False
    if separator == "," and not asked and not _is_header(rows[0], below[0]) and not any("." in line for line in lines):
        return -1.0, False  # whole numbers between commas may be one column with decimal commas
    fields = [field for row in below for field in row]
    numbers = [number(f) is not None or (separator != "," and bool(DECIMAL_COMMA.fullmatch(f))) for f in fields]
    return sum(numbers) / len(numbers), n > 1 and (asked or separator != WHITE_SPACE)


def _fields(line: str, separator: str) -> list[str]:
    if separator == WHITE_SPACE:
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=separator), [])]


def _is_header(fields: list[str], below: list[str]) -> bool:
    """Return whether the first line names the columns."""
    if any(number(field) is None for field in fields):
        return not all(number(field) is not None or DECIMAL_COMMA.fullmatch(field) for field in fields)
    if not all(field.isdigit() for field in fields) or len(set(fields)) < len(fields) or len(fields) < 2:
        return False
    ascending = all(int(a) < int(b) for a, b in itertools.pairwise(fields))
    return not all(field.isdigit() for field in below) or (ascending and len(fields) > 2)


def _without_row_names(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Drop the row names that R writes without a header field, which pandas reads as an index."""
    index = table.index
    if isinstance(index, pd.RangeIndex):
        return table
    if index.nlevels == 1:
        values = pd.to_numeric(index.to_series(), errors="coerce").to_numpy(float)
        if np.isnan(values).all() or np.array_equal(values - values[0], np.arange(len(values))):
            return table.reset_index(drop=True)
    raise InputError(
        f"{where}: the first line has {table.shape[1]} fields and the rows have {table.shape[1] + index.nlevels}, expected equal numbers: "
        "check for decimal commas and for separators at the ends of lines"
    )


def _may_comment(path: Path) -> bool:
    return path.suffix.lower() not in SEPARATORS


def _text(table: pd.DataFrame) -> pd.DataFrame:
    return table.apply(pd.to_numeric, errors="coerce").isna() & table.notna()


def _first_text(table: pd.DataFrame, column: str) -> tuple[str, int]:
    position = [str(c) for c in table.columns].index(column)
    row = int(np.argmax(_text(table.iloc[:, [position]]).to_numpy()[:, 0]))
    return str(table.iloc[row, position]), row
