"""Preparation of a store: each recording is read and cleaned once; up-to-date scans are skipped, unreadable ones are listed."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pnet_jax.config import PrepareConfig
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.execution import WorkerDiedError, check_workers, run_tasks
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.fingerprint import file_fingerprint
from pnet_jax.ingest.naming import dataset_folder
from pnet_jax.outputs.atomic import check_writable
from pnet_jax.outputs.lock import only_here
from pnet_jax.outputs.tables import read_rows
from pnet_jax.records.manifest import (
    MANIFEST,
    REPAIRS,
    VERSION,
    DamagedManifestError,
    Record,
    read_manifest,
    record_key,
    record_of_row,
    write_manifest,
)
from pnet_jax.records.packing import digest_of, file_digest
from pnet_jax.records.scans import recover, scan_file, write_scan
from pnet_jax.records.spaces import space_file, space_row
from pnet_jax.scan import Scan

Progress = Callable[[str, int, int], None]
_SAVED_EVERY = 50  # save the manifest after this many scans or a tenth of the store; later scans are recovered from their files


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Result of a call of `prepare`.

    Attributes:
      written: Keys of the scans that were read and written.
      kept: Keys of the scans that were up to date and skipped.
      skipped: Scans that could not be used: `scan`, `source`, `reason`.
      manifest: Manifest file of the store.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[dict[str, str], ...]
    manifest: Path


@dataclasses.dataclass(frozen=True)
class _Task:
    item: ScanSource | Scan
    folder: Path
    config: PrepareConfig
    load: dict[str, Any]
    site: str
    job: str
    origin: tuple[Any, ...]

    @property
    def key(self) -> str:
        return record_key(self.config.dataset, self.item.label)


@dataclasses.dataclass(frozen=True)
class _Refusal:
    """Reason why a scan was not stored; final if the recording was refused, not if the machine failed."""

    reason: str
    final: bool


def prepare(
    sources: Iterable[ScanSource | Scan],
    folder: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    *,
    load: Mapping[str, Any] | None = None,
    sites: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write scans to a new or existing store. Scans on different Spaces can share a store.

    A scan that is up to date in the store, i.e. made from the same files with the same settings, is skipped, even if the earlier call was
    interrupted. Files are compared with their SHA-256; a damaged file of a scan or of its Space is written again, with a warning. Scans
    that cannot be read are listed with the reason; if the recording itself is refused, its entry in the store is removed.

    Each worker holds one scan in memory. Only one call at a time can write to a store; others are refused.

    Args:
      sources: Sources from `find_scans`, or scans in memory (an iterator can produce them one at a time).
      folder: Folder of the store.
      config: Settings; see `PrepareConfig`.
      load: Further arguments of `load_scan`, shared by all scans (`tr`, `native_to_mni`, `atlas`, `surfaces`, `space`).
      sites: Site of each subject, by label (`read_sites`).
      progress: Called with the key of a scan, the number of completed scans, and the total (0 if unknown).

    Raises:
      SettingsError: If there is no scan, the store has another version, another process is writing to it, or there are too many workers.
      OSError: If the store cannot be written; names the file.

    Example:
      >>> import tempfile
      >>> from pnet_jax.records import open_store
      >>> from pnet_jax.scan import make_scan
      >>> from pnet_jax.space import point_space
      >>> rng = np.random.default_rng(0)
      >>> space = point_space(rng.uniform(-60, 60, (20, 3)))
      >>> scans = [make_scan(rng.normal(size=(20, 150)), space, tr=2.0, subject=name) for name in ("01", "02")]
      >>> done = prepare(scans, folder := tempfile.mkdtemp())
      >>> done.written, open_store(folder).records[0].bounds
      (('sub-01', 'sub-02'), (0, 75, 150))
    """
    config, load = config or PrepareConfig(), dict(load or {})
    check_workers(config.workers, "PrepareConfig.workers")
    folder = check_writable(folder)
    with only_here(folder, "pnet prepare"):
        return _prepare(sources, folder, config, load, sites or {}, progress)


def _prepare(
    sources: Iterable[ScanSource | Scan],
    folder: Path,
    config: PrepareConfig,
    load: dict[str, Any],
    sites: Mapping[str, str],
    progress: Progress | None,
) -> Prepared:
    for leftover in folder.glob("scans/**/.*.array_record"):  # from a call that was killed
        leftover.unlink(missing_ok=True)
    book = _Book(folder)

    def tell(key: str) -> None:
        if progress is not None:
            progress(key, book.done, max(len(sources) if isinstance(sources, list | tuple) else 0, book.done))

    def to_do() -> Iterator[_Task]:
        for item in sources:
            task = _task(item, folder, config, load, sites)
            wanted = book.enters(task)
            tell(task.key)
            if wanted:
                yield task

    try:
        for task, result in run_tasks(_write_one, to_do(), config.workers):
            book.enter(task, result)
            tell(task.key)
    finally:
        if book.seen:  # also after an interruption, to keep finished scans
            book.save()
    if not book.seen:
        raise SettingsError("expected at least one scan, got none")
    return Prepared(tuple(book.written), tuple(book.kept), tuple(book.failed), folder / MANIFEST)


class _Book:
    """State of a store during preparation: its rows, the scans that were refused, and the scans that this call has completed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.standing: dict[str, Record] = {}
        self.skipped: dict[str, dict[str, str]] = {}
        self.spaces: dict[str, dict[str, Any]] = {}
        self.written: list[str] = []
        self.kept: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.seen: set[str] = set()
        self._whole: dict[str, bool] = {}  # Spaces whose file was checked, and whether it is intact
        self._open()
        self._folders: dict[str, str] = {}  # of unnamed data sets, by subject label
        for record in self.standing.values():
            came_from = "" if record.dataset else dataset_folder(record.source, record.subject)
            if came_from and Path(record.source).is_file():  # a file that was moved cannot be compared
                self._folders.setdefault(record.subject, came_from)
        self._save_at = _SAVED_EVERY

    def _open(self) -> None:
        """Read the rows of the store from the manifest or, if it is damaged, from the files of the scans, which also contain them."""
        try:
            manifest = read_manifest(self.folder) or {}
        except DamagedManifestError as error:
            warnings.warn(str(error).replace(REPAIRS, "it is regenerated from the files of the scans"), stacklevel=5)
            (self.folder / MANIFEST).rename(self.folder / f"{MANIFEST}.damaged")
            files = sorted(self.folder.glob("scans/**/*.array_record"))
            found = [recover(self.folder, file.relative_to(self.folder).as_posix()) for file in files]
            self.standing = {record.key: record for record in found if record is not None and self._has_space(record.space)}
            return
        self.spaces = manifest.get("spaces", {})
        self.standing = {record.key: record for record in map(record_of_row, manifest.get("scans", ()))}
        self.skipped = {row["scan"]: row for row in manifest.get("skipped", ())}

    @property
    def done(self) -> int:
        return len(self.written) + len(self.kept) + len(self.failed)

    def enters(self, task: _Task) -> bool:
        """Return whether a scan has to be read; otherwise record the reason."""
        problem = _problem(task, self.standing, self.seen)
        self.seen.add(task.key)
        if problem:
            self._fail(task, problem)
            return False
        record = self._standing_record(task)
        if record is None and (problem := self._of_another_dataset(task)):
            self._fail(task, problem)
            return False
        if record is None:
            return True
        self.standing[task.key] = record
        self.skipped.pop(task.key, None)
        self.kept.append(task.key)
        return False

    def _standing_record(self, task: _Task) -> Record | None:
        """Return the row of a scan that is up to date in the store, even if the manifest lacks its file; None otherwise."""
        record = self.standing.get(task.key)
        if record is not None and not _is_of(record, task):
            return None
        if record is not None and (damage := _damage(self.folder / record.file, record.bytes, record.sha256)):
            warnings.warn(f"store {self.folder}: {record.file} {damage}; {task.key} is read again", stacklevel=6)
            record = None
        record = record or recover(self.folder, scan_file(task.config.dataset, task.item.label))
        return record if record is not None and _is_of(record, task) and self._has_space(record.space) else None

    def _has_space(self, name: str) -> bool:
        """Return whether the file of a Space is intact; remove it otherwise, so that the next scan on the Space writes it again."""
        if name not in self._whole:
            path = self.folder / space_file(name)
            row = self.spaces.get(name)
            if row is None:
                row = space_row(self.folder, name)
                damage = "is damaged or missing" if row is None else ""
                self.spaces |= {} if row is None else {name: row}
            else:
                damage = _damage(path, row["bytes"], row["sha256"])
            if damage:
                warnings.warn(f"store {self.folder}: {space_file(name)} {damage}; a scan on it is read again", stacklevel=7)
                path.unlink(missing_ok=True)
            self._whole[name] = not damage
        return self._whole[name]

    def _of_another_dataset(self, task: _Task) -> str:
        """Explain why a scan is refused if its subject label already belongs to another data set, since the two would be merged."""
        source = _source_of(task.item)
        folder = "" if task.config.dataset else dataset_folder(source, task.item.subject)
        if not folder:
            return ""
        other = self._folders.setdefault(task.item.subject, folder)
        if os.path.realpath(other) == os.path.realpath(folder):
            return ""
        return (
            f"{task.key} ({source}): the store already has a sub-{task.item.subject} of another data set, from {other}, and both "
            "would be taken for one participant; name the data set (--dataset)"
        )

    def enter(self, task: _Task, result: Record | _Refusal | WorkerDiedError) -> None:
        """Record the outcome of a scan."""
        if isinstance(result, Record):
            self.standing[task.key] = result
            if not self._whole.get(result.space) and (row := space_row(self.folder, result.space)):
                self.spaces[result.space], self._whole[result.space] = row, True
            self.skipped.pop(task.key, None)
            self.written.append(task.key)
        elif isinstance(result, WorkerDiedError):
            self._fail(task, f"{task.key} ({_source_of(task.item)}): {result}")
        else:
            if result.final and task.key in self.standing:  # an older result must not represent a recording that is now refused
                (self.folder / self.standing.pop(task.key).file).unlink(missing_ok=True)
            self._fail(task, result.reason)
        if len(self.written) >= self._save_at:
            self.save()
            self._save_at += max(_SAVED_EVERY, len(self.standing) // 10)

    def save(self) -> None:
        write_manifest(self.folder, list(self.standing.values()), list(self.skipped.values()), self.spaces)

    def _fail(self, task: _Task, reason: str) -> None:
        row = {"scan": task.key, "source": _source_of(task.item), "reason": " ".join(reason.split())}
        self.skipped[task.key] = row
        self.failed.append(row)


def read_sites(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Read each subject's site, by label, from column `site` (or `site_id`) of a folder's participants.tsv; empty if there is none."""
    path = Path(folder) / "participants.tsv"
    if not path.is_file():
        return {}
    rows = read_rows(path)
    column = next((name for name in ("site", "site_id") if rows and name in rows[0]), None)
    if column is None or "participant_id" not in rows[0]:
        return {}
    return {row["participant_id"].removeprefix("sub-"): row[column] for row in rows if row[column]}


def _task(item: ScanSource | Scan, folder: Path, config: PrepareConfig, load: dict[str, Any], sites: Mapping[str, str]) -> _Task:
    origin: tuple[Any, ...]
    site = sites.get(item.subject, "")
    if isinstance(item, Scan):
        origin = (
            "memory",
            digest_of(np.ascontiguousarray(item.y).tobytes(), item.frames.tobytes(), item.mean.tobytes(), item.std.tobytes()),
        )
        cleaned: object = item.cleaning
    else:
        origin = tuple(_fingerprint(file) for file in item.files)
        cleaned = [dataclasses.asdict(config.cleaning), load]
    job = digest_of(json.dumps([VERSION, config.window, site, cleaned], default=str, sort_keys=True))[:12]
    return _Task(item, folder, config, load, site, job, origin)


def _fingerprint(file: Path | None) -> tuple[str, str] | None:
    """Return name and content digest of a file; a copied or moved data set counts as the same, a reprocessed file does not.

    A gzip file ends with the checksum of its content, so its beginning and end suffice.
    """
    if file is None:
        return None
    return (file.name, file_fingerprint(file, whole=file.suffix != ".gz") if file.is_file() else "")


def _problem(task: _Task, standing: dict[str, Record], seen: set[str]) -> str:
    """Explain why a scan cannot enter the store, as far as this is known before it is opened."""
    if task.key in seen:
        return f"{task.key}: two scans of this call have this name"
    if isinstance(task.item, ScanSource) and task.item.problem:
        return task.item.problem
    other = standing.get(task.key)
    source = _source_of(task.item)
    if other is not None and isinstance(task.item, ScanSource) and other.source != source and other.origin[:1] != task.origin[:1]:
        return (
            f"{task.key} ({source}): the store already has a scan with this name, from {other.source}; name the data set (--dataset) to "
            "keep both"
        )
    return ""


def _is_of(record: Record, task: _Task) -> bool:
    return (record.job, record.origin) == (task.job, task.origin)


def _damage(path: Path, size: int, digest: str) -> str:
    """Describe how a file differs from its row in the manifest, or return an empty string."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has changed in size (expected {size} bytes, found {path.stat().st_size})"
    return "" if file_digest(path) == digest else "was changed after it was written"


def _source_of(item: ScanSource | Scan) -> str:
    return str(item.source if isinstance(item, Scan) else item.bold)


def _write_one(task: _Task) -> Record | _Refusal:
    """Write a scan; return its row, or the reason why it was not written."""
    config, item = task.config, task.item
    try:
        scan = item if isinstance(item, Scan) else item.load(config.cleaning, **task.load)
        if scan.y.shape[1] < config.cleaning.min_frames:
            raise InputError(
                f"{scan.label}: too short: expected at least {config.cleaning.min_frames} frames (min_frames), got {scan.y.shape[1]}"
            )
    except Exception as error:  # noqa: BLE001  whatever the error, the other scans continue
        # Errors of the machine (a missing file, too little memory) say nothing about the recording.
        message = str(error) if isinstance(error, InputError | OSError) and str(error) else f"{type(error).__name__}: {error}"
        named = message if item.label in message else f"{item.label} ({_source_of(item)}): {message}"
        return _Refusal(named, final=isinstance(error, InputError))
    # Outside the try block: a full disk is not an error of the scan and ends the call.
    return write_scan(task.folder, scan, dataset=config.dataset, site=task.site, window=config.window, job=task.job, origin=task.origin)
