"""Pages for a folder of results, made from its files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pnet_jax.network import Network
from pnet_jax.outputs.atlas import network_atlas
from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.bids import page_name, scan_label
from pnet_jax.outputs.columns import result_columns
from pnet_jax.outputs.loading import load_network
from pnet_jax.outputs.status import check_intact, read_records
from pnet_jax.report.extra import check_installed
from pnet_jax.report.index import write_index
from pnet_jax.report.page import render

RESULTS = "sub-*_atlas-pnet_*_dseg.tsv"


def report_folder(folder: str | os.PathLike[str], progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Write a page for every complete result in a folder, and the cohort report, as `pnet construct` does.

    Results are those recorded by `pnet construct`, followed by every other `…_dseg.tsv` at any depth, so that records are not required.
    The page of a result is `<scan>_seg-<atlas>.html` in `folder`; the page of a second result for the same scan and atlas (in another
    space) has the name of its files. A result that cannot be read causes a warning, is listed in `index.html` with the reason, and does
    not stop the others.

    Args:
      folder: Root of the derivatives.
      progress: Function called with the label of the scan, the number done and the total number.

    Returns:
      The path of `index.html`.

    Raises:
      ValueError: If the folder does not exist or holds no result.
      ReportExtraMissingError: If jinja2 is not installed.
      OSError: If a page cannot be written.
    """
    check_installed()
    folder = Path(folder)
    rows = _results(folder)
    done: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if progress is not None:
            progress(row["scan"], number, len(rows))
        if row.get("status") == "failed":
            done.append(row)
            continue
        try:
            if not row.get("dseg"):
                raise ValueError("its record does not name its _dseg.tsv")
            check_intact(folder, row)
            network = load_network(folder / row["dseg"])
            page = render(network)
        except Exception as error:  # noqa: BLE001  a damaged result must not prevent the pages of the others
            reason = str(error) or type(error).__name__
            warnings.warn(f"{row['scan']}: the page could not be written: {reason}", stacklevel=2)
            done.append(row | {"status": "unreadable", "error": reason})
            continue
        row = _described(row, network, {other["report"] for other in done if "report" in other})
        write_text(folder / row["report"], page)
        done.append(row)
    index = write_index(folder, done, exact=True)
    if progress is not None:
        progress("", len(rows), len(rows))
    return index


def _results(folder: Path) -> list[dict[str, Any]]:
    """Return the records, followed by a row without `status` for each further result."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    rows = read_records(folder)
    listed = {row.get("dseg", "") for row in rows}
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob(RESULTS) if "_desc-" not in file.name)
    rows += [{"scan": Path(file).name.removesuffix("_dseg.tsv"), "dseg": file} for file in found if file not in listed]
    if not rows:
        raise ValueError(f"{folder}: no result to report: expected **/{RESULTS}, the table of a complete result, found none")
    return rows


def _described(row: dict[str, Any], network: Network, taken: set[str]) -> dict[str, Any]:
    """Return the row with the name of its page and the figures of the result; a row without a record also gets the fields of a record."""
    atlas, figures = network_atlas(network).label, result_columns(network)
    if row.get("status"):
        return figures | row | {"atlas": atlas, "report": page_name(row["scan"], atlas)}
    label = scan_label(network)
    page = page_name(label, atlas)
    if page in taken:
        label, page = row["scan"], f"{row['scan']}.html"
    return figures | row | {"scan": label, "subject": network.subject, "atlas": atlas, "status": "ok", "report": page}
