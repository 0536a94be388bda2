"""Edges that require all scans of a cohort, computed last from the results on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pnet_jax import edges as measures
from pnet_jax.batch.job import COMMAND, Job, columns
from pnet_jax.outputs import load_network, save_edges
from pnet_jax.outputs.status import digests, write_record


def add_tangent(job: Job, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add tangent edges between the parcels that every scan has; a parcel that is absent from one scan is NaN in all.

    Nothing is done if the edges of the same scans and results are already on disk.

    Returns:
      The records of all scans, updated.
    """
    complete = [at for at, row in enumerate(rows) if row["status"] == "ok"]
    rows = list(rows)
    if len(complete) < 2:
        return _noted(job, rows, f"tangent edges were not written: at least 2 scans of one call are needed, got {len(complete)}")
    names = [(rows[at]["scan"], rows[at]["files"][rows[at]["dseg"]], rows[at]["inputs"]) for at in complete]
    cohort = hashlib.sha256(json.dumps([job.digest, names]).encode()).hexdigest()[:12]
    if all(rows[at].get("cohort") == cohort for at in complete):
        return rows
    # Read one at a time from disk: scans of earlier calls are included, and a large cohort need not fit in memory.
    signals = [load_network(job.folder / rows[at]["dseg"], brief=True).signals for at in complete]
    present = np.stack([np.isfinite(x).all(1) for x in signals])
    shared = np.all(present, axis=0)
    said = _few_shared(present, [rows[at]["scan"] for at in complete])
    if said:
        warnings.warn(said, stacklevel=3)
    if shared.sum() < 2:
        return _noted(job, rows, f"{said}; not written")
    for at, matrix in zip(complete, measures.cohort_tangent(signals, shared), strict=True):
        network = load_network(job.folder / rows[at]["dseg"], brief=True)
        written = digests(job.folder, save_edges(dataclasses.replace(network, edges={"tangent": matrix}), job.folder))
        row = columns(rows[at]) | {"cohort": cohort}
        row.pop("warnings", None)  # from an earlier call with other scans
        row |= {"warnings": said} if said else {}
        rows[at] = write_record(job.folder, row, rows[at]["files"] | written, COMMAND)
    return rows


def _noted(job: Job, rows: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """Write a warning about the whole cohort to the records, and return them."""
    return [write_record(job.folder, columns(row) | {"warnings": said}, row["files"], COMMAND) for row in rows]


def _few_shared(present: np.ndarray, scans: Sequence[str]) -> str:
    """Return a warning that names the scan with the fewest parcels if few parcels are shared by all scans; otherwise an empty text."""
    counts, shared = present.sum(1), int(present.all(0).sum())
    if shared >= 2 and shared >= 0.8 * np.median(counts):
        return ""
    least = int(counts.argmin())
    return (
        f"tangent edges cover only the {shared} of {present.shape[1]} parcels that every scan has: {scans[least]} has the fewest "
        f"({counts[least]}, median {np.median(counts):g}); leave it out (--participant-label) or correct its mask"
    )
