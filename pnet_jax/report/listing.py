"""Rows of the cohort report from records of scans, and the JSON of its table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from pnet_jax.outputs.bids import page_name
from pnet_jax.report.reasons import bare

UNRECORDED = "no record"  # status of a page without a record
NUMBERS = (
    *("minutes", "n_frames", "mean_fd", "moved", "agreement", "expected_agreement", "ece", "gain", "dcbc_gain"),
    *("n_absent", "coverage", "n_warnings", "seconds"),
)


class Column(NamedTuple):
    """Column of the table.

    Attributes:
      key: Field of a row.
      title: Heading of the column.
      hint: Explanation, shown as a tooltip of the heading.
      kind: `"scan"`, `"text"`, `"choice"` (few distinct values), `"number"` or `"notes"`.
      scale: Factor that converts the field to the displayed value.
      digits: Number of decimals.
      unit: Unit, written after the value.
      shown: Whether the column is shown initially.
    """

    key: str
    title: str
    hint: str
    kind: str = "number"
    scale: float = 1
    digits: int = 0
    unit: str = ""
    shown: bool = True


COLUMNS = (
    Column("scan", "Scan", "Label of the scan, with a link to its report", "scan"),
    Column("subject", "Subject", "BIDS subject", "text", shown=False),
    Column("session", "Session", "BIDS session", "choice"),
    Column("atlas", "Atlas", "Input atlas", "choice"),
    Column("site", "Site", "Column site of participants.tsv", "choice"),
    Column("status", "Status", "ok: finished", "choice"),
    Column("parcels", "Parcels", "Whether personalised parcels or those of the atlas were returned", "choice"),
    Column("moved", "Moved", "Share of locations that left their atlas parcel", scale=100, unit="%"),
    Column("minutes", "Minutes", "Duration of the kept signal", digits=1),
    Column("n_frames", "Frames", "Number of kept frames"),
    Column("mean_fd", "Mean FD", "Mean framewise displacement in mm", digits=2),
    Column("agreement", "Agreement", "Share of locations with the same label in both halves of the scan", scale=100, unit="%"),
    Column(
        "expected_agreement",
        "Expected agreement",
        "Share of locations expected to have the same label in a repeat of equal length",
        scale=100,
        unit="%",
    ),
    Column("ece", "ECE", "Expected calibration error: mean difference between probability and replication", digits=3),
    Column("gain", "Gain", "Held-out gain over data-free parcels, nats per location", digits=3, shown=False),
    Column("dcbc_gain", "DCBC gain", "Gain in DCBC over data-free parcels, across halves", digits=4, shown=False),
    Column("n_absent", "Absent", "Parcels without any location"),
    Column("coverage", "Coverage", "Mean share of a parcel's extent that the scan covers", scale=100, unit="%"),
    Column("n_warnings", "Warnings", "Number of warnings"),
    Column("seconds", "Seconds", "Processing time of the scan", shown=False),
    Column("notes", "Error or warnings", "Select a text to read it in full", "notes"),
)


def row_of(folder: Path, record: Mapping[str, Any], site: str, pages: set[str]) -> dict[str, Any]:
    """Return the row of one scan.

    Args:
      folder: Root of the results.
      record: Record of the scan, or row from `report_folder`; `report` is the name of its page if it is not the default one.
      site: Site of the scan, or empty.
      pages: Names of the files in `folder`.

    Returns:
      The fields of `COLUMNS`, None for an unknown number, and `link`, `error` and `reason`.
    """
    scan = str(record.get("scan") or "")
    texts = {key: str(record.get(key) or "") for key in ("subject", "atlas", "error", "parcels", "reason")}
    session = re.search(r"_ses-([^_]+)", scan)
    said = [bare(texts["error"]) if texts["error"] else "", str(record.get("qc_warnings") or ""), str(record.get("warnings") or "")]
    return {
        "scan": scan,
        **texts,
        "session": session[1] if session else "",
        "site": site,
        "status": str(record.get("status") or UNRECORDED),
        **{key: _number(record.get(key)) for key in NUMBERS},
        "notes": "; ".join(text for text in said if text),
        "link": _link(folder, record, pages),
    }


def table_json(rows: Sequence[Mapping[str, Any]], outliers: Mapping[int, Sequence[str]], reasons: Mapping[int, str]) -> str:
    """Return rows as the JSON of the table, column by column; `<` is escaped, so that text cannot close the script element.

    Args:
      rows: Rows from `row_of`.
      outliers: Columns in which a row is an outlier, by index of the row.
      reasons: Kind of the reason for failure, by index of the row.
    """
    kinds = list(dict.fromkeys(reasons.values()))
    number = {kind: at for at, kind in enumerate(kinds)}
    content = {
        "columns": [_described(column, rows) for column in COLUMNS],
        "links": [row["link"] for row in rows],
        "outliers": {str(at): list(keys) for at, keys in outliers.items()},
        "reasons": kinds,
        "reason": {str(at): number[kind] for at, kind in reasons.items()},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _described(column: Column, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a column with its values; it is initially hidden if it would be uninformative."""
    given = [row[column.key] for row in rows]
    found: dict[str, Any] = {"key": column.key, "title": column.title, "hint": column.hint, "kind": column.kind}
    if column.kind == "number":
        values = [None if value is None else round(value * column.scale, column.digits) for value in given]
        found |= {"digits": column.digits, "unit": column.unit}
        found["values"] = [int(v) if v is not None and column.digits == 0 else v for v in values]
        told = any(value is not None for value in values)
    elif column.kind == "choice":
        levels = sorted(set(given))
        place = {level: at for at, level in enumerate(levels)}
        found |= {"levels": levels, "values": [place[value] for value in given]}
        told = bool([level for level in levels if level]) and (len(levels) > 1 or column.key in ("status", "parcels"))
    else:
        found["values"], told = given, any(given)
    return found | {"shown": column.shown and told, "empty": not told}


def _link(folder: Path, record: Mapping[str, Any], pages: set[str]) -> str:
    """Return the relative address of a scan's page; empty if there is none."""
    for name in (record.get("report"), page_name(str(record.get("scan") or ""), str(record.get("atlas") or ""))):
        if name and (name in pages or (os.sep in name and (folder / name).is_file())):
            return quote(Path(name).as_posix())
    return ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
