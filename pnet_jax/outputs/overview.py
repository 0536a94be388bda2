"""Progress of the scans in a results folder, read from disk by one function for all tables, commands and reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pnet_jax.ingest.fingerprint import inputs_fingerprint
from pnet_jax.outputs.status import RECORDS, claimed_by, missing_files, read_record_files, read_submissions, record_file

STATES = ("done", "failed", "unavailable", "running", "waiting", "stale")
MOST_LISTED = 20


class ScanState(NamedTuple):
    """State of a requested scan.

    Attributes:
      scan, subject, atlas: Labels of the scan, its subject and the atlas.
      state: `"done"`, `"failed"`, `"unavailable"` (the subject has no usable recording), `"running"`, `"waiting"` or `"stale"` (its result
          was made with other settings or inputs, is incomplete, or its record is damaged).
      reason: Why it failed or is stale, or which process is working on it.
      fault: `"input"` or `"machine"` if the scan failed, otherwise empty.
    """

    scan: str
    subject: str
    atlas: str
    state: str
    reason: str = ""
    fault: str = ""


def overview(folder: str | os.PathLike[str], *, verify: bool = False) -> list[ScanState]:
    """Return the state of every scan that any run included, sorted by scan and atlas.

    Args:
      folder: Root of the results.
      verify: Also read inputs and results and compare their fingerprints; otherwise results only have to exist.
    """
    asked: dict[tuple[str, str], Mapping[str, Any]] = {}
    for submission in read_submissions(folder):  # the last submission counts
        about = {"job": submission["job"], "atlas": submission["atlas"]}
        listed = {(one["scan"], submission["atlas"]): {**one, **about} for one in submission["scans"]}
        subjects = {(one["subject"], submission["atlas"]) for one in submission["scans"]}
        # A subject that had no recording, and hence only a subject label, may have one now.
        nameless = [key for key, one in asked.items() if key[0] == f"sub-{one['subject']}" and (one["subject"], key[1]) in subjects]
        asked = {key: one for key, one in asked.items() if key not in nameless} | listed
    records = read_record_files(folder)
    names = {record_file(folder, *key).name for key in asked}
    for name, record in records.items():
        if name not in names:  # a damaged record does not name its scan, but its file name does
            own = str(record.get("scan") or Path(name).stem), str(record.get("atlas") or "")
            asked[own] = {"scan": own[0], "atlas": own[1], "subject": record.get("subject", ""), "job": record.get("job")}
    return [_state(folder, asked[key], records, verify) for key in sorted(asked)]


def summary(states: Iterable[ScanState]) -> list[str]:
    """Return lines with the number of scans in each state, and the reasons; with several atlases, results of scans are counted."""
    states = list(states)
    counts = Counter(one.state for one in states)
    lines = [
        f"{counted(len(states), (one.scan for one in states))}: "
        + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state] or state == "done")
    ]
    for state in ("failed", "unavailable", "stale", "running"):
        listed = [one for one in states if one.state == state]
        for one in listed[:MOST_LISTED]:
            fault = f" ({one.fault})" if one.fault else ""
            where = "" if one.scan in one.reason else f"{one.scan}: "
            lines.append(f"{state}{fault}: {where}{one.reason}")
        if len(listed) > MOST_LISTED:
            lines.append(f"{state}: {len(listed) - MOST_LISTED} more")
    return lines


def counted(results: int, scans: Iterable[str]) -> str:
    """Return a count with the right noun: several atlases give several results of one scan.

    Example:
      >>> counted(2, ["sub-01", "sub-02"]), counted(2, ["sub-01", "sub-01"])
      ('2 scans', '2 results of 1 scan')
    """
    n = len(set(scans))
    of = f"{n:,} scan{'s' * (n != 1)}"
    return of if n == results else f"{results:,} results of {of}"


def _state(folder: str | os.PathLike[str], asked: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], verify: bool) -> ScanState:
    scan, atlas = str(asked["scan"]), str(asked["atlas"])
    name_of_record = record_file(folder, scan, atlas).name
    record = records.get(name_of_record)

    def state(name: str, reason: str = "", fault: str = "") -> ScanState:
        return ScanState(scan, str(asked["subject"]), atlas, name, reason, fault)

    if by := claimed_by(folder, scan, atlas):
        return state("running", by)
    if record is None:
        return state("waiting")
    if not record:
        return state("stale", f"its record {Path(folder) / RECORDS / name_of_record} is damaged")
    if record["status"] != "ok":
        return state(str(record["status"]), str(record.get("error", "")), str(record.get("fault", "")))
    if record.get("job") != asked["job"]:
        return state("stale", "made with other settings or another version")
    missing = [name for name in record["files"] if not (Path(folder) / name).is_file()]
    missing = missing or (missing_files(folder, record) if verify else [])
    if missing:
        return state("stale", f"{missing[0]} is missing or has changed")
    if verify and "files" in asked and record.get("inputs") not in _inputs(asked["files"]):
        return state("stale", "its input has changed")
    return state("done")


def _inputs(files: Iterable[str | None]) -> tuple[str, str]:
    """Return the fingerprints of the input, quick and full."""
    paths = [None if file is None else Path(file) for file in files]
    return inputs_fingerprint(paths), inputs_fingerprint(paths, whole=True)
