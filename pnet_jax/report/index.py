"""The page that lists every scan's report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import pnet_jax
from pnet_jax.network import QC
from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.bids import page_name
from pnet_jax.outputs.loading import read_qc
from pnet_jax.outputs.status import read_records
from pnet_jax.report.extra import check_installed
from pnet_jax.report.page import template
from pnet_jax.report.words import known


def write_index(
    folder: str | os.PathLike, status: Iterable[Mapping[str, str]] | None = None, unread: Mapping[str, str] | None = None
) -> Path:
    """Write `index.html`: every scan of the folder with its key figures and a relative link to its report.

    The report is the file that the row names under `report`, else `<scan>_seg-<atlas>.html` in `folder`; numbers come from the row and
    from the `_desc-pnet_qc.json` beside its `dseg`. Reports without a row are listed too.

    Args:
      folder: root of the derivatives.
      status: rows to list instead of the records of `pnet construct`.
      unread: scan to the reason why its result could not be read, listed on their own.

    Returns:
      The path of `index.html`.

    Raises:
      OSError: the file cannot be written; the error names it.
      ReportExtraMissingError: matplotlib or jinja2 is not installed.
    """
    check_installed()
    folder = Path(folder)
    rows = [_row(folder, row) for row in (read_records(folder) if status is None else status)]
    listed = {row["link"] for row in rows}
    for page in sorted(folder.glob("sub-*.html")):
        if quote(page.name) not in listed:
            rows.append(_row(folder, {"scan": page.stem, "report": page.name}))
    failed = [row for row in rows if row["status"] == "failed"]
    page = template("index.html").render(
        rows=rows,
        summary=_summary(rows, failed),
        failed=failed,
        unread=unread or {},
        name=folder.resolve().name,
        version=pnet_jax.__version__,
    )
    return write_text(folder / "index.html", page)


def _row(folder: Path, status: Mapping[str, str]) -> dict[str, Any]:
    qc = _qc(folder, status.get("dseg") or "")
    gain, dcbc_gain = qc.selection.gain, qc.selection.dcbc_gain
    return {
        "scan": status.get("scan", ""),
        "atlas": status.get("atlas") or "",
        "link": _report(folder, status),
        "status": status.get("status") or "unknown",
        "error": status.get("error") or "",
        "minutes": _number(status.get("minutes")),
        "frames": _number(status.get("n_frames")),
        "absent": _number(status.get("n_absent")),
        "seconds": _number(status.get("seconds")),
        "parcels": status.get("parcels") or "",
        "moved": _number(qc.moved),
        "gain": gain[1] if known(gain) else None,
        "dcbc_gain": dcbc_gain[1] if known(dcbc_gain) else None,
        "motion": _number(qc.mean_displacement),
        "n_warnings": len(qc.warnings),
    }


def _summary(rows: list[dict[str, Any]], failed: list[dict[str, Any]]) -> list[dict[str, str]]:
    done = [row for row in rows if row["status"] == "ok"]
    cards = [("Scans", str(len(rows))), ("Finished", str(len(done))), ("Failed", str(len(failed)))]
    if decided := [row["parcels"] for row in done if row["parcels"]]:
        cards.append(("Personalised", f"{decided.count('personalised')} of {len(decided)}"))
    for title, key, form in (
        ("Median signal", "minutes", "{:.1f} min"),
        ("Median moved", "moved", "{:.0f} %"),
        ("Median gain, nats", "gain", "{:+.3f}"),
        ("Median DCBC gain", "dcbc_gain", "{:+.4f}"),
        ("Median motion", "motion", "{:.2f} mm"),
    ):
        values = [row[key] * (100 if key == "moved" else 1) for row in rows if row[key] is not None]
        if values:
            cards.append((title, form.format(float(np.median(values)))))
    return [{"title": title, "value": value} for title, value in cards]


def _report(folder: Path, status: Mapping[str, str]) -> str | None:
    for name in (status.get("report"), page_name(status.get("scan") or "", status.get("atlas") or "")):
        if name and (folder / name).is_file():
            return quote(Path(name).as_posix())
    return None


def _qc(folder: Path, dseg: str) -> QC:
    """Quality control of a result; that of which nothing is known where its file cannot be read."""
    file = folder / re.sub(r"_(desc-locations_)?dseg\..*$", "_desc-pnet_qc.json", dseg)
    try:
        return read_qc(file)[0] if dseg else QC()
    except (OSError, ValueError):
        return QC()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
