"""status.tsv: what became of every scan, one row for each scan and atlas."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pnet_jax.outputs.tables import read_rows, write_rows

_OF_CONSTRUCT = "job"  # every row of `pnet construct` has one, no row of `pnet personalize`
STATUS_COLUMNS = ("scan", "subject", "status", "error", "seconds", "n_frames", "minutes", "n_absent", "parcels", "dseg")


def write_status(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a status table: one row a scan, what a row lacks is `n/a`, keys beyond the usual columns are added at the end.

    Args:
      path: `…/status.tsv`.
      rows: mappings with `scan`, `subject`, `status` (`"ok"` or `"failed"`), `error`, `seconds`, `n_frames`, `minutes`,
        `n_absent`, `parcels` (`"personalised"` or `"atlas"`) and `dseg` (the file, relative to the folder of `path`).

    Raises:
      ValueError: a row without `scan`.
      OSError: names the file; nothing of it is left.
    """
    rows = [dict(row) for row in rows]
    for row in rows:
        if not row.get("scan"):
            raise ValueError(f"a status row needs a `scan`, got {row}")
    extra = dict.fromkeys(key for row in rows for key in row if key not in STATUS_COLUMNS)
    return write_rows(path, [*STATUS_COLUMNS, *extra], rows)


def append_status(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Adds rows to a status table, or starts one; a row of the same scan and atlas (`atlas`, if rows have it) is replaced in its place.

    One process at a time: the table is read and written whole, so rows that another process adds in between are lost.

    Raises:
      ValueError: a row without `scan`.
      OSError: names the file; the older table stays as it was.
    """
    path = Path(path)
    merged = {_identity(row): dict(row) for row in read_status(path)}
    for row in rows:
        merged[_identity(row)] = dict(row)
    return write_status(path, merged.values())


def order_status(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Puts the rows of these scans and atlases in this order, in the places that they have in the table; others stay where they are.

    Raises:
      OSError: names the file; the older table stays as it was.
    """
    before = read_status(path)
    table = {_identity(row): row for row in before}
    wanted = dict.fromkeys(_identity(row) for row in rows)
    order = iter([name for name in wanted if name in table])
    after = [table[next(order)] if name in wanted else table[name] for name in table]
    if after != before:
        write_status(path, after)


def _identity(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("scan") or ""), str(row.get("atlas") or "")


def check_status(path: str | os.PathLike, command: str) -> None:
    """Refuses a table that the other command wrote, whose rows say something else.

    Args:
      path: `…/status.tsv`.
      command: `"pnet construct"` or `"pnet personalize"`.

    Raises:
      ValueError: it is the other's; both are named.
    """
    rows = read_status(path)
    writer = "pnet construct" if any(row.get(_OF_CONSTRUCT) for row in rows) else "pnet personalize"
    if rows and writer != command:
        raise ValueError(
            f"{path}: expected a table of `{command}`, or none, found one of `{writer}`: give each command a folder of its own"
        )


def read_status(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a status table as text, `n/a` as an empty string; no rows where there is no table yet."""
    return read_rows(path) if Path(path).exists() else []
