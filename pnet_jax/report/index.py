"""Cohort report: all scans of a folder, failures with reasons, quality and group figures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pnet_jax
from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.overview import counted
from pnet_jax.outputs.status import read_records
from pnet_jax.report.extra import check_installed
from pnet_jax.report.group_drawing import group_figures
from pnet_jax.report.histogram import histogram
from pnet_jax.report.listing import UNRECORDED, row_of, table_json
from pnet_jax.report.page import template
from pnet_jax.report.png import gradient
from pnet_jax.report.quality import FIGURES, LEAST_SCANS, RULE, Distribution, compared, distribution, outliers, spread
from pnet_jax.report.reasons import Kind, bare, decision, kinds
from pnet_jax.report.sites import site_rows, sites_of

MOST_KINDS, MOST_NAMED, MOST_OUTLIERS, MOST_SITES = 12, 5, 25, 200  # limits of the lists outside the table
NAMED_FIRST = 3  # number of reasons named in the first lines


def write_index(folder: str | os.PathLike, status: Iterable[Mapping[str, Any]] | None = None, *, exact: bool = False) -> Path:
    """Write `index.html`, the report of all scans in a folder of results.

    The page lists failures with their reasons, a searchable and sortable table of all scans with links to their pages, distributions of
    quality figures with outliers, decisions and sites; for three or more participants also group maps and the mean and standard deviation
    of the Pearson matrices. The page is one self-contained file. Group figures use at most 200 participants and are cached in `.pnet/`.

    Args:
      folder: Root of the derivatives.
      status: Rows to list; by default the records of `pnet construct`.
      exact: Whether to regenerate group figures if any of their results has changed, see `group_figures`.

    Returns:
      The path of `index.html`.

    Raises:
      OSError: If the file cannot be written.
      ReportExtraMissingError: If jinja2 is not installed.
    """
    check_installed()
    folder = Path(folder)
    records = list(read_records(folder) if status is None else status)
    rows = _rows(folder, records)
    spreads = [distribution(figure, rows) for figure in FIGURES]
    beyond = outliers(spreads)
    failed = [at for at, row in enumerate(rows) if row["status"] not in ("ok", UNRECORDED)]
    reasons = [Kind(kind.title, [failed[at] for at in kind.members]) for kind in kinds(rows[at]["error"] for at in failed)]
    of_row = {at: kind.title for kind in reasons for at in kind.members}
    noun = "result" if len({row["scan"] for row in rows}) < len(rows) else "scan"
    page = template("index.html").render(
        name=folder.resolve().name,
        gradient=gradient,
        version=pnet_jax.__version__,
        atlases=sorted({row["atlas"] for row in rows if row["atlas"]}),
        lead=_lead(rows, reasons, len(beyond)),
        noun=noun,
        cards=_cards(rows, spreads, f"{noun}s, by the rule below", len(beyond)),
        any=bool(rows),
        failures=[_failure(kind, rows) for kind in reasons[:MOST_KINDS]],
        more_failures=sum(len(kind.members) for kind in reasons[MOST_KINDS:]),
        quality=[_panel(one) for one in spreads if len(one.values)],
        rule=f"{RULE}, {among}" if (among := compared(spreads)) else RULE,
        limited=any(one.limits for one in spreads),
        drawn=any(one.only for one in spreads),
        least=LEAST_SCANS,
        outliers=[_outlier(rows[at], found) for at, found in list(beyond.items())[:MOST_OUTLIERS]],
        n_outliers=len(beyond),
        decisions=_decisions(rows),
        sites=_sites(rows),
        most_sites=MOST_SITES,
        group=group_figures(folder, records, exact=exact),
        data=table_json(rows, {at: [figure.key for figure, *_ in found] for at, found in beyond.items()}, of_row),
    )
    return write_text(folder / "index.html", page)


def _rows(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each record, then one for each page without a record."""
    pages = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    sites = sites_of(folder, records)
    rows = [row_of(folder, record, site, pages) for record, site in zip(records, sites, strict=True)]
    stray = [{"scan": Path(name).stem, "report": name} for name in sorted(pages) if name.startswith("sub-") and name.endswith(".html")]
    listed = {row["link"] for row in rows}
    return rows + [row for page in stray if (row := row_of(folder, page, "", pages))["link"] not in listed]


def _lead(rows: Sequence[Mapping[str, Any]], reasons: Sequence[Kind], n_outliers: int) -> dict[str, Any]:
    """Return the contents of the first lines: numbers of scans and failures, the reasons, and what to do."""
    counts = Counter(row["status"] for row in rows)
    participants = len({row["subject"] for row in rows if row["subject"]})
    parts = [f"{counts.pop('ok', 0):,} finished", f"{counts.pop('failed', 0):,} failed"]
    parts += [f"{count:,} {'without a record' if status == UNRECORDED else status}" for status, count in sorted(counts.items())]
    return {
        "scans": counted(len(rows), (row["scan"] for row in rows)),
        "participants": f" of {participants:,} participant{'' if participants == 1 else 's'}" if participants else "",
        "counts": ", ".join(parts),
        "reasons": [(kind.title, len(kind.members)) for kind in reasons[:NAMED_FIRST]],
        "more": len(reasons) - NAMED_FIRST,
        "unreadable": counts.get("unreadable", 0),
        "outliers": n_outliers,
    }


def _cards(rows: Sequence[Mapping[str, Any]], spreads: Sequence[Distribution], note: str, n_outliers: int) -> list[dict[str, str]]:
    done = [row for row in rows if row["status"] == "ok"]
    cards = [("Finished", f"{len(done):,}", f"of {len(rows):,}")]
    if decided := [row["parcels"] for row in done if row["parcels"]]:
        cards.append(("Personalised", f"{100 * decided.count('personalised') / len(decided):.0f} %", f"of {len(decided):,} finished"))
    cards += [(one.figure.title, spread(one.values, one.figure).partition(" (")[0], "median") for one in spreads if len(one.values)]
    if any(one.limits for one in spreads):
        cards.append(("Outliers", f"{n_outliers:,}", note))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards]


def _failure(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the scans that failed for one kind of reason: the first few, with their messages if these differ."""
    first = kind.members[:MOST_NAMED]
    texts = [bare(rows[at]["error"]) for at in first]
    members = [{"row": rows[at], "said": text} for at, text in zip(first, texts, strict=True)]
    same = all(text.startswith(kind.title) for text in texts)
    status = sorted({rows[at]["status"] for at in kind.members})
    return {"title": kind.title, "n": len(kind.members), "members": members, "same": same, "status": status}


def _panel(one: Distribution) -> dict[str, Any]:
    """Return the histogram of a figure and its caption."""
    bounds = []
    if one.only is not None:
        # A limit that no value can exceed is not shown.
        bounds += [f"below {one.figure.text(one.only.low)}"] if one.only.low > 0 else []
        bounds += [f"above {one.figure.text(one.only.high)}"] if one.only.high < one.figure.most else []
    elif one.limits:
        bounds = [f"by the limits of {len(one.limits)} groups"]
    return {
        "title": one.figure.title,
        "spread": spread(one.values, one.figure),
        "n": f"{len(one.values):,}",
        "svg": histogram(one),
        "bounds": f"{len(one.outliers):,} {'outlier' if len(one.outliers) == 1 else 'outliers'}, {' or '.join(bounds)}" if bounds else "",
        "by_mean": any(own.by_mean for own in one.limits.values()),
    }


def _outlier(row: Mapping[str, Any], found: Sequence[Any]) -> dict[str, Any]:
    said = []
    for figure, value, peers, limits in found:
        high = value > limits.high
        limit = figure.text(limits.high if high else limits.low) + (f", the limit of site {peers.site}" if peers.site else "")
        said.append(f"{figure.title} {figure.text(value)} ({'above' if high else 'below'} {limit})")
    return {"scan": row["scan"], "atlas": row["atlas"], "link": row["link"], "said": "; ".join(said)}


def _decisions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Count the finished scans with personalised parcels, and the reasons for atlas parcels in the others."""
    counts = Counter(row["parcels"] for row in rows if row["status"] == "ok" and row["parcels"])
    total = sum(counts.values())
    if not total:
        return None
    texts = [decision(row["reason"]) for row in rows if row["status"] == "ok" and row["parcels"] == "atlas"]
    returned = [{"n": len(kind.members), "title": kind.title} for kind in kinds(texts)[:MOST_KINDS]]
    moved = np.array([row["moved"] for row in rows if row["parcels"] == "personalised" and row["moved"] is not None])
    shares = [{"name": name, "n": count, "share": 100 * count / total} for name, count in counts.most_common()]
    return {"counts": shares, "total": total, "returned": returned, "moved": float(np.median(moved)) if len(moved) else None}


def _sites(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    known = [row for row in rows if row["status"] != UNRECORDED]
    return site_rows(known) if any(row["site"] for row in known) else []
