"""Sites of the participants, and a summary of the scans of each site."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pnet_jax.outputs.tables import read_rows
from pnet_jax.report.quality import FIGURES, spread

TABLE = "participants.tsv"
ABOVE = 3  # levels searched for a table above the subject folders, because derivatives are inside their dataset
SHOWN = ("minutes", "mean_fd", "agreement")


def sites_of(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Find the site of each record in `participants.tsv`, column `site`.

    The table is looked up in the dataset of the recording and its parent folders, then beside the results.

    Args:
      folder: Root of the results.
      records: Records with `subject` and `source` (the recording).

    Returns:
      The site of each record; empty if unknown.
    """
    tables: dict[Path, dict[str, str]] = {}
    found = []
    for record in records:
        root = _dataset(str(record.get("source") or "")) or folder
        if root not in tables:
            tables[root] = _sites(root, folder)
        found.append(tables[root].get(str(record.get("subject") or "").removeprefix("sub-"), ""))
    return found


def site_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarise each site: scans, finished and personalised scans, and median and quartiles of minutes, motion and agreement."""
    members: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["site"], []).append(row)
    figures = [figure for figure in FIGURES if figure.key in SHOWN]
    table = []
    for site in sorted(members, key=lambda site: (site == "", site)):
        own = members[site]
        done = [row for row in own if row["status"] == "ok"]
        values = {f.key: np.array([row[f.key] for row in done if row[f.key] is not None]) for f in figures}
        table.append(
            {
                "site": site or "unknown",
                "value": site,
                "scans": len(own),
                "failed": len(own) - len(done),
                "personalised": sum(row["parcels"] == "personalised" for row in done),
                "done": len(done),
                **{f.key: spread(values[f.key], f) for f in figures},
            }
        )
    return table


def _dataset(source: str) -> Path | None:
    """Return the folder that contains the subject folder of a recording; None if the recording is not in a subject folder."""
    path = Path(source)
    return next((parent.parent for parent in path.parents if parent.name.startswith("sub-")), path.parent if source else None)


def _sites(root: Path, folder: Path) -> dict[str, str]:
    """Return the site of each subject label, from the first table that has both columns."""
    for file in _tables(root, folder):
        try:
            rows = read_rows(file)
        except (OSError, ValueError, csv.Error):
            continue
        column = next((name for name in (rows[0] if rows else {}) if name and name.lower() == "site"), None)
        if column is not None and "participant_id" in rows[0]:
            return {row["participant_id"].removeprefix("sub-"): row[column] for row in rows if row[column]}
    return {}


def _tables(root: Path, folder: Path) -> Iterator[Path]:
    for place in (*(root, *root.parents)[: ABOVE + 1], folder, folder.resolve().parent):
        if (place / TABLE).is_file():
            yield place / TABLE
