"""State of a folder after earlier runs: which scans failed with the same settings, and which results are up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pnet_jax.batch.job import Job
from pnet_jax.errors import SettingsError
from pnet_jax.ingest import ScanSource
from pnet_jax.outputs.status import read_records, read_submissions

MOST_NAMED = 6  # largest number of differing settings named in a message
STALE = {
    "settings": "made with other settings or another version",
    "inputs": "whose inputs have changed",
    "files": "whose files are missing",
}


def failed_before(job: Job, sources: Sequence[ScanSource]) -> tuple[list[ScanSource], list[ScanSource], str]:
    """Find the scans that failed in earlier runs with the settings of this one.

    If a subject of the input has no recording, this counts as a failed scan of that subject.

    Args:
      job: The current run.
      sources: Scans of the input.

    Returns:
      The scans to construct again; all scans of the input that any run with this atlas started; and a message with their number.

    Raises:
      SettingsError: If there was no earlier run, every failed scan had other settings (which are named), or none is in the input.
    """
    records = read_records(job.folder)
    if not records:
        raise SettingsError(f"{job.folder}: --retry-failed needs the records of an earlier run, found none; omit it in the first run")
    failures = [record for record in records if record["status"] != "ok"]
    if not failures:
        return [], [], f"nothing failed: all {len(records)} results in {job.folder} are finished"
    same = [record for record in failures if record.get("job") == job.digest]
    if not same:
        raise SettingsError(_other_settings(job, failures))
    labels = {record["scan"] for record in same}
    subjects = {record.get("subject") for record in same if record["status"] == "unavailable"}
    known = {record["scan"] for record in records if record.get("atlas") == job.atlas}
    asked = {one["scan"] for given in read_submissions(job.folder) if given["atlas"] == job.atlas for one in given["scans"]}
    chosen = [one for one in sources if one.label in labels or (one.label not in known and one.subject in subjects)]
    if not chosen:
        raise SettingsError(
            f"{job.folder}: none of its {len(same)} failed scans is in INPUT, e.g. {same[0]['scan']}; give the INPUT and the selection of "
            "the run in which they failed"
        )
    left = len(failures) - len(same)
    said = f"constructing {len(chosen)} of {len(failures)} failed scans again"
    said += f"; {left} failed with other settings and are left as they are" if left else ""
    here = {one.label for one in chosen}
    return chosen, [one for one in sources if one.label in known | asked | here], said


def standing(job: Job, sources: Sequence[ScanSource]) -> str:
    """Summarise how many scans are up to date according to their records, and why the others have to be constructed.

    Checksums of results, and of inputs with `fingerprint="full"`, are compared later, scan by scan.
    """
    counts = Counter(_standing(job, one) for one in sources)
    current = counts.pop("current", 0)
    line = f"{current} of {len(sources)} scans are up to date and skipped, {len(sources) - current} to be constructed"
    stale = [f"{counts[reason]} {text}" for reason, text in STALE.items() if counts[reason]]
    parts = [f"{sum(counts[reason] for reason in STALE)} stale ({', '.join(stale)})"] if stale else []
    parts += [f"{counts[name]} {text}" for name, text in (("failed", "failed before"), ("new", "new")) if counts[name]]
    return f"{line}: {', '.join(parts)}" if parts else line


def _standing(job: Job, source: ScanSource) -> str:
    record = job.record(source)
    if not record:
        return "new"
    if record["status"] != "ok":
        return "failed"
    if record.get("job") != job.digest:
        return "settings"
    if job.config.fingerprint != "full" and record.get("inputs") != job.inputs(source):
        return "inputs"
    there = all((job.folder / name).is_file() for name in record["files"])
    return "current" if there else "files"


def _other_settings(job: Job, failures: Sequence[Mapping[str, Any]]) -> str:
    """List the settings that differ between this run and the last run with a failed scan."""
    jobs = {record.get("job") for record in failures}
    given = [one.get("settings") or {} for one in read_submissions(job.folder) if one["job"] in jobs]
    then, now = given[-1] if given else {}, job.settings
    names = [name for name in dict.fromkeys((*now, *then)) if then.get(name) != now.get(name)] if then else []
    if "atlas" in names:
        names = [name for name in names if not name.endswith(" of the atlas")]  # these follow from the atlas
    differ = [f"{name} {_word(then.get(name))} then, {_word(now.get(name))} now" for name in names[:MOST_NAMED]]
    differ += [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    what = f"which differ from these: {'; '.join(differ)}" if differ else "which differ from these and are no longer known"
    return (
        f"{job.folder}: --retry-failed constructs failed scans again with the settings of the run in which they failed, {what}; give the "
        "options of that run, or use --resume instead of --retry-failed to construct all scans of INPUT with these"
    )


def _word(value: object) -> str:
    return "none" if value in (None, "", []) else ",".join(map(str, value)) if isinstance(value, list) else str(value)
