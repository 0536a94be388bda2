"""Settings shared by all scans of a run, and decisions about a scan that depend on its files alone."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pnet_jax
from pnet_jax.config import ConstructConfig
from pnet_jax.errors import InputError
from pnet_jax.execution import WorkerDiedError
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.fingerprint import file_fingerprint, inputs_fingerprint
from pnet_jax.outputs import atlas_label, load_network, output_stem, page_name
from pnet_jax.outputs.status import digests, missing_files, read_record, remove_files, write_record
from pnet_jax.report import write_report

if TYPE_CHECKING:
    from pnet_jax.construction.resolve import Plan  # imports jax, which worker processes do not need

COMMAND = "pnet construct"
FULL = (errno.ENOSPC, errno.EDQUOT)  # nothing more can be written, so further computation would be wasted
# Settings that do not affect results: whether a page is written, and how the work is distributed.
NOT_DECIDING = ("report", "probabilities", "wave", "workers", "parallel", "fingerprint")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run over many scans, as it is sent to worker processes.

    Attributes:
      folder: Root of the results.
      config: See `ConstructConfig`.
      options: Further arguments of `load_scan`, the same for every scan.
      atlas: Label of the atlas in file names.
      digest: Fingerprint of `settings`.
      notes: Warnings that apply to every result.
      parcels: K.
      settings: Everything that determines a result except the scan, by name: text, numbers and lists of these.
    """

    folder: Path
    config: ConstructConfig
    options: Mapping[str, Any]
    atlas: str
    digest: str
    notes: tuple[str, ...] = ()
    parcels: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def inputs(self, source: ScanSource) -> str:
        """Return the fingerprint of the files of a scan."""
        return inputs_fingerprint(source.files, whole=self.config.fingerprint == "full")

    def record(self, source: ScanSource) -> dict[str, Any]:
        """Read the record of a scan from disk; empty if there is none."""
        return read_record(self.folder, source.label, self.atlas)

    def row(self, source: ScanSource, inputs: str) -> dict[str, Any]:
        """Return the columns of a scan's record that are known before the scan is read."""
        row = {"scan": source.label, "subject": source.subject, "atlas": self.atlas, "source": str(source.bold)}
        return row | {"job": self.digest, "inputs": inputs}


def job_of(folder: Path, config: ConstructConfig, plan: Plan, options: Mapping[str, Any], notes: Sequence[str]) -> Job:
    """Make the job of a plan."""
    deciding = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_DECIDING}
    given = {key: value if isinstance(value, list | tuple) else [value] for key, value in options.items()}
    label = atlas_label(plan.atlas.source, plan.atlas.n_parcels)
    settings = _flat(deciding) | {f"scan {key}": [_content(one) for one in values] for key, values in given.items()}
    settings |= {"version": pnet_jax.__version__, "atlas": label, "content of the atlas": plan.atlas.digest}
    settings |= {"names of the atlas": _digest(plan.atlas.names), "content of the checkpoint": plan.model.digest}
    settings |= {"content of the group": "" if plan.group is None else plan.group.digest}
    settings = json.loads(json.dumps(settings, default=str))  # as they are read from disk again
    return Job(folder, config, options, label, _digest(settings), tuple(notes), plan.atlas.n_parcels, settings)


def up_to_date(job: Job, source: ScanSource) -> dict[str, Any]:
    """Return the record of an earlier run if its settings, inputs and files are unchanged; otherwise an empty record."""
    record = job.record(source)
    if record.get("status") != "ok" or record.get("job") != job.digest or record.get("inputs") != job.inputs(source):
        return {}
    if missing_files(job.folder, record):
        return {}
    if job.config.probabilities and not any("_probseg." in name for name in record["files"]):
        return {}
    page = page_name(source.label, job.atlas)
    if job.config.report and page not in record["files"]:
        network = load_network(job.folder / record["dseg"])
        files = digests(job.folder, [write_report(network, job.folder / page)])
        return write_record(job.folder, columns(record), record["files"] | files, COMMAND)
    return record


def failed(job: Job, source: ScanSource, row: Mapping[str, Any], error: Exception, begun: float) -> dict[str, Any]:
    """Write the record of a scan that failed.

    Earlier results of a refused recording are removed. Any other error (a missing file, a full disk, too little memory, a lost device,
    a bug) says nothing about the recording, and its earlier results are kept.

    Raises:
      OSError: If the disk is full; nothing more can be written.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        raise OSError(error.errno, f"{error.strerror}; run stopped: free some space and run it again with --resume", error.filename)
    earlier, refused = job.record(source), isinstance(error, InputError)
    if refused and not source.problem:
        remove_files(job.folder, {"files": [*earlier.get("files", {}), *_unrecorded(job, source)]})
        earlier = {}
    # Messages of pnet_jax name the file; those of other libraries are hard to understand without the type of the error.
    ours = isinstance(error, ValueError | OSError | MemoryError | WorkerDiedError) and str(error)
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    where = "" if source.label in message else f"{source.label} ({source.bold}): "
    status = "unavailable" if source.problem else "failed"
    found = {"status": status, "fault": "input" if refused else "machine", "error": " ".join(f"{where}{message}".split())}
    seconds = {"seconds": round(time.perf_counter() - begun, 2)}
    return write_record(job.folder, dict(row) | found | seconds, earlier.get("files", {}), COMMAND)


def columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the fields that `write_record` adds, and without `skipped`, which applies to a single run."""
    return {key: value for key, value in record.items() if key not in ("files", "command", "skipped")}


def _unrecorded(job: Job, source: ScanSource) -> list[str]:
    """List the files of a scan's result, including those of a run that was killed before it could write the record."""
    stem = output_stem(job.folder, source.subject, source.entities, job.parcels, job.atlas)
    found = [file for file in stem.parent.glob(f"{stem.name}_*") if not re.match("_(res|den)-", file.name.removeprefix(stem.name))]
    return [file.relative_to(job.folder).as_posix() for file in [*found, job.folder / page_name(source.label, job.atlas)]]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted names, as options are named."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _content(value: object) -> object:
    """Return the fingerprint of a file in place of its path; any other value unchanged."""
    return file_fingerprint(value) if isinstance(value, str | Path) and Path(value).is_file() else value
