"""Status of every scan: one record on disk for each scan and atlas, and `status.tsv`, the table of all records.

A record is written atomically when its scan is done or has failed, so that any number of processes can work in one folder. The table is
generated from the records and never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.fingerprint import file_fingerprint
from pnet_jax.outputs.lock import claim, holder, waiting_for
from pnet_jax.outputs.names import safe_name
from pnet_jax.outputs.tables import plain, write_json, write_rows

RECORDS = ".pnet"  # hidden, so that validators and file browsers ignore it
SUBMISSIONS = "submissions"  # below RECORDS: the lists of requested scans
TABLE = "status.tsv"
DIGEST = "digest"  # key of the digest in the file of a record
COLUMNS = ("scan", "subject", "status", "error", "seconds", "n_frames", "minutes", "n_absent", "parcels", "dseg")
NOT_IN_TABLE = ("files", "command", "said")  # `said`: the warnings of `qc_warnings`, one by one


def write_record(folder: str | os.PathLike[str], row: Mapping[str, Any], files: Mapping[str, str], command: str) -> dict[str, Any]:
    """Write the record of a scan, replacing an older one of the same scan and atlas.

    Args:
      folder: Root of the results.
      row: Columns of the scan's row in the table: `scan`, `atlas` if there are several, `status` (`"ok"` or `"failed"`), `error` …
      files: Name of each file of the result, relative to `folder`, with its digest (`digests`).
      command: Command that wrote the result, e.g. `"pnet construct"`.

    Returns:
      The record, as `read_record` returns it.

    Raises:
      ValueError: If the row has no `scan`.
      OSError: If the record cannot be written; names the file.
    """
    if not row.get("scan"):
        raise ValueError(f"a record needs the label of its scan, got {dict(row)}")
    record = plain({**row, "command": command, "files": dict(files)})
    write_json(record_file(folder, str(row["scan"]), str(row.get("atlas") or "")), record | {DIGEST: _digest(record)})
    return record


def write_submission(
    folder: str | os.PathLike[str], sources: Sequence[ScanSource], job: str, atlas: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write the list of scans requested at the start of a run; a later run adds its own list and leaves the others unchanged.

    Lists are numbered, independently of the clock; a list identical to the last one, as in the tasks of an array, is not written again.

    Args:
      folder: Root of the results.
      sources: All scans of the run, including those that other processes construct.
      job: Digest of the settings.
      atlas: Label of the atlas in file names.
      settings: Settings by name, so that a later run can report differences.
    """
    scans = [{"scan": one.label, "subject": one.subject, "files": [file and str(file) for file in one.files]} for one in sources]
    content = {"job": job, "atlas": atlas, "settings": dict(settings or {}), "scans": scans}
    place, digest = Path(folder) / RECORDS / SUBMISSIONS, _digest(content)
    with waiting_for(Path(folder) / RECORDS / ".submissions.lock"):
        earlier = _submissions(folder)
        if earlier and earlier[-1].stem.endswith(f"-{digest}") and _submission(earlier[-1]):
            return earlier[-1]
        number = 1 + (int(earlier[-1].stem.partition("-")[0]) if earlier else 0)
        file = write_json(place / f"{number:06d}-{digest}.json", content)
        for old in earlier:
            if old.stem.endswith(f"-{digest}"):
                old.unlink(missing_ok=True)
    return file


def remove_superseded(folder: str | os.PathLike[str], sources: Sequence[ScanSource]) -> None:
    """Remove the records of subjects that had no recording in an earlier run and have one now, under the label of that recording."""
    labels, subjects = {one.label for one in sources}, {one.subject for one in sources if not one.problem}
    for record in read_records(folder):
        if record["status"] == "unavailable" and record.get("subject") in subjects and record["scan"] not in labels:
            record_file(folder, str(record["scan"]), str(record.get("atlas") or "")).unlink(missing_ok=True)


def read_submissions(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lists written by `write_submission`, oldest first; damaged ones are skipped with a warning."""
    found = []
    for file in _submissions(folder):
        if content := _submission(file):
            found.append(content)
        else:
            warnings.warn(f"{file}: damaged; its scans are counted only if another run also lists them", stacklevel=2)
    return found


def _submissions(folder: str | os.PathLike[str]) -> list[Path]:
    """List the files written by `write_submission`, oldest first."""
    files = (Path(folder) / RECORDS / SUBMISSIONS).glob("*.json")
    return sorted((file for file in files if re.fullmatch(r"\d+-[0-9a-f]+", file.stem)), key=lambda file: int(file.stem.partition("-")[0]))


def _submission(file: Path) -> dict[str, Any]:
    """Read a list; empty if its content does not match the digest in its name."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and file.stem.endswith(f"-{_digest(found)}") else {}


def claim_scan(folder: str | os.PathLike[str], scan: str, atlas: str) -> Callable[[], None] | None:
    """Claim a scan, so that no other process works on it; see `lock.claim`."""
    return claim(_claim_file(folder, scan, atlas))


def claimed_by(folder: str | os.PathLike[str], scan: str, atlas: str) -> str:
    """Return which process is working on a scan; empty if none is."""
    return holder(_claim_file(folder, scan, atlas))


def _claim_file(folder: str | os.PathLike[str], scan: str, atlas: str) -> Path:
    return record_file(folder, scan, atlas).with_suffix(".claim")


def read_record(folder: str | os.PathLike[str], scan: str, atlas: str = "") -> dict[str, Any]:
    """Read the record of a scan and atlas; empty if there is none, or if it is damaged, so that the scan counts as not done."""
    return _read(record_file(folder, scan, atlas))


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read all records of a folder, sorted by scan and atlas; damaged ones are omitted."""
    found = filter(None, read_record_files(folder).values())
    return sorted(found, key=lambda record: (str(record["scan"]), str(record.get("atlas") or "")))


def read_record_files(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read all records of a folder by the names of their files; a damaged one is empty."""
    return {file.name: _read(file) for file in (Path(folder) / RECORDS).glob("*.json")}


def missing_files(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> list[str]:
    """List the files of a record that are missing or changed on disk."""
    return [name for name, digest in record["files"].items() if not _intact(Path(folder) / name, digest)]


def digests(folder: str | os.PathLike[str], files: Iterable[Path]) -> dict[str, str]:
    """Compute `files` of a record: names relative to the folder, with digests of every byte."""
    return {file.relative_to(folder).as_posix(): file_fingerprint(file, whole=True) for file in files}


def check_intact(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Raise an InputError that names a file of a result, except its report, that is missing or differs from its record."""
    files = {name: digest for name, digest in record.get("files", {}).items() if not name.endswith(".html")}
    if changed := missing_files(folder, {"files": files}):
        raise InputError(
            f"{Path(folder) / changed[0]}: missing, or changed after it was written; construct {record['scan']} again (--resume)"
        )


def remove_files(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Remove the files of a record; `_dseg.tsv` first, so that a partly removed result does not look complete.

    A file that cannot be removed is left without an error, which would hide why the scan failed.
    """
    for name in sorted(record.get("files", {}), key=lambda name: not name.endswith("_dseg.tsv")):
        with contextlib.suppress(OSError):
            (Path(folder) / name).unlink()


def write_table(folder: str | os.PathLike[str]) -> Path:
    """Write `status.tsv` from the records: a row for each scan and atlas; missing values are `n/a`.

    Raises:
      OSError: If the table cannot be written; names the file.
    """
    folder = Path(folder)
    with waiting_for(folder / RECORDS / ".table.lock"):  # the later of two processes reads the records of both
        rows = [{key: value for key, value in record.items() if key not in NOT_IN_TABLE} for record in read_records(folder)]
        extra = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
        return write_rows(folder / TABLE, [*COLUMNS, *extra], rows)


def check_command(folder: str | os.PathLike[str], command: str) -> None:
    """Check that a folder has no results of another command.

    Raises:
      SettingsError: If it has; names both commands.
    """
    records = (_read(file) for file in (Path(folder) / RECORDS).glob("*.json"))
    first = next(filter(None, records), None)
    if first is not None and first.get("command") != command:
        raise SettingsError(f"{folder} contains results of `{first.get('command')}`; use another folder for `{command}`")


def record_file(folder: str | os.PathLike[str], scan: str, atlas: str = "") -> Path:
    """Return the path of the record of a scan and atlas."""
    return Path(folder) / RECORDS / f"{safe_name(f'{scan}_seg-{atlas}' if atlas else scan)}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and found.pop(DIGEST, "") == _digest(found)
    whole = whole and isinstance(found.get("files"), dict) and found.get("scan") and found.get("status")
    whole = whole and file.name == record_file("", str(found["scan"]), str(found.get("atlas") or "")).name
    inside = whole and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in found["files"])
    return found if inside else {}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _intact(file: Path, digest: str) -> bool:
    try:
        return file_fingerprint(file, whole=True) == digest
    except OSError:
        return False
