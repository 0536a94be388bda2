"""Construction of many networks: the host loop that loads, constructs, saves and reports, and that one bad scan does not stop."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pnet_jax
from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, Ready, finish, resolve
from pnet_jax.construction.resolve import Plan
from pnet_jax.construction.step import Outputs
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.finetune.person import Personal
from pnet_jax.ingest import ScanSource, load_scan
from pnet_jax.ingest.fingerprint import file_fingerprint, inputs_fingerprint
from pnet_jax.outputs import (
    Atlas,
    atlas_label,
    check_atlas,
    check_writable,
    load_network,
    output_stem,
    page_name,
    result_columns,
    save,
    save_edges,
)
from pnet_jax.outputs.atomic import sweep
from pnet_jax.outputs.lock import alongside, waiting_for
from pnet_jax.outputs.status import (
    RECORDS,
    check_command,
    claim_scan,
    digests,
    missing_files,
    read_record,
    remove_files,
    write_record,
    write_table,
)
from pnet_jax.personalization import find_personal
from pnet_jax.report import check_installed, write_index, write_report

Progress = Callable[[str, int, int], None]
COMMAND = "pnet construct"
SAVING = ".saving.lock"
POLL_SECONDS = 0.2  # between two looks at a scan that another process works on
TABLE_SECONDS = 30.0  # between two versions of status.tsv while a run goes on
FULL = (errno.ENOSPC, errno.EDQUOT)  # nothing more can be written, so further computation would be wasted
ACCELERATOR_WAVE = 8  # scans that a device takes at a time where none is asked for
MOST_WAITING = 2  # waves' scans that wait for others of their shapes


def construct_cohort(
    sources: Sequence[ScanSource],
    folder: str | Path,
    config: ConstructConfig | None = None,
    *,
    load: dict[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Construct the networks of many scans and write each to a derivatives folder as soon as it is finished.

    The error of a scan that fails is recorded in `status.tsv`, and the other scans continue. If the recording itself is refused, results
    that an earlier call wrote for it with the same atlas are removed, including its page. Cohort measures (tangent) follow when every
    scan is done. Any number of processes may work in one folder at the same time; each scan is constructed by one of them. A full disk
    ends the call.

    Args:
      sources: what to construct, from `find_scans`.
      folder: derivatives root.
      config: see `ConstructConfig`.
      load: further arguments of `load_scan`, the same for every scan (`tr`, `native_to_mni`, `atlas`, `surfaces`, `space`).
      resume: skip scans whose result is up to date: intact on disk, and made by the same version, configuration, checkpoint, atlas and
        group from the same files (`config.fingerprint`).
      progress: called with the scan's label, how many are done and how many there are.

    Returns:
      The record of each scan of this call, in order (`outputs.status`).

    Raises:
      SettingsError: there is no scan, a measure is unknown, a prior or checkpoint cannot be used, or the folder holds another command's
        results.
      OSError: the folder cannot be written.
    """
    config = config or ConstructConfig()
    if not sources:
        raise SettingsError("expected at least one scan, got none")
    if config.report:
        check_installed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = resolve(config, cohort=True)
    notes = [str(one.message) for one in caught if one.category is UserWarning]  # of the atlas's file: they belong to every result
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if plan.group is not None and plan.group.guide is not None and len(plan.group.guide.mean) > 1:
        config = dataclasses.replace(config, cleaning=dataclasses.replace(config.cleaning, wide=True))
    atlas = Atlas(atlas_label(plan.atlas.source, plan.atlas.n_parcels), plan.atlas.source, plan.atlas.digest, plan.atlas.n_parcels)
    folder = check_writable(folder)
    check_command(folder, COMMAND)
    check_atlas(folder, atlas)
    loop = _Loop(folder, config, Builder(plan), notes, atlas.label, load or {})
    with alongside(folder / RECORDS / ".runs.lock", lambda: sweep([folder, folder / RECORDS, *loop.places(sources)])):
        try:
            rows = loop.over(sources, resume, progress)
            if "tangent" in plan.edges:
                with waiting_for(folder / RECORDS / SAVING):  # no other process is writing a result while all are read
                    rows = loop.tangent(rows)
        finally:
            loop.give_up()
            write_table(folder)
    if config.report:
        write_index(folder)
    if progress is not None:
        progress("", len(sources), len(sources))
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    """A scan that was read and waits for others of its shape."""

    number: int
    source: ScanSource
    row: dict[str, Any]
    ready: Ready
    personal: Personal | None
    notes: list[str]
    begun: float
    loaded: float


class _Loop:
    """What the loop over scans does with one of them, and with a wave."""

    def __init__(self, folder: Path, config: ConstructConfig, builder: Builder, notes: Sequence[str], atlas: str, options: dict[str, Any]):
        self.folder, self.config, self.builder, self.notes, self.atlas = folder, config, builder, list(notes), atlas
        self.options, self.job = options, _job(config, builder.plan, options)
        self.wave = config.wave or builder.mesh.shape["subject"] * (1 if jax.devices()[0].platform == "cpu" else ACCELERATOR_WAVE)
        self.claims: dict[str, Callable[[], None]] = {}  # functions that release the scans in progress
        self._compiled: set[Hashable] = set()  # shapes of which a whole wave went through
        self._told = time.monotonic()

    def over(self, sources: Sequence[ScanSource], resume: bool, progress: Progress | None) -> list[dict[str, Any]]:
        """The record of each scan, in order; scans of one shape go through the step together.

        Scans that another process is working on are left to it.
        """
        rows: dict[int, dict[str, Any]] = {}
        waiting: dict[Hashable, list[_Waiting]] = {}
        others: list[int] = []
        for number, source in enumerate(sources):
            if progress is not None:
                progress(source.label, len(rows), len(sources))
            if resume and (earlier := self.earlier(source)):
                rows[number] = earlier
                continue
            if not self.claim(source):
                others.append(number)
                continue
            one = self.load(number, source)
            if not isinstance(one, _Waiting):
                rows[number] = one
                continue
            waiting.setdefault(one.ready.shape, []).append(one)
            fullest = max(waiting, key=lambda shape: len(waiting[shape]))
            # Scans in native space have a shape each: without a limit all of them would wait, and be held, until the end.
            if len(waiting[fullest]) == self.wave or sum(map(len, waiting.values())) > MOST_WAITING * self.wave:
                rows.update(self.take(waiting.pop(fullest)))
        while waiting:
            rows.update(self.take(waiting.pop(next(iter(waiting)))))
        rows.update((number, self.after(number, sources[number])) for number in others)
        return [rows[number] for number in range(len(sources))]

    def after(self, number: int, source: ScanSource) -> dict[str, Any]:
        """The record of a scan once another process is done with it; if that process failed or was killed, the scan is constructed here."""
        while not self.claim(source):
            time.sleep(POLL_SECONDS)
        if earlier := self.earlier(source):
            self.claims.pop(source.label)()
            return earlier
        one = self.load(number, source)
        return self.take([one])[0][1] if isinstance(one, _Waiting) else one

    def claim(self, source: ScanSource) -> bool:
        """Claims a scan until its record is written; False if another process has claimed it."""
        release = claim_scan(self.folder, source.label, self.atlas)
        if release is not None:
            self.claims[source.label] = release
        return release is not None

    def give_up(self) -> None:
        """Releases the scans that are not finished, if the loop ended early."""
        for release in self.claims.values():
            release()
        self.claims.clear()

    def earlier(self, source: ScanSource) -> dict[str, Any]:
        """The record of an earlier run if its settings and inputs are the same and its files are unchanged; else empty."""
        record = read_record(self.folder, source.label, self.atlas)
        if record.get("status") != "ok" or record.get("job") != self.job or record.get("inputs") != self.inputs(source):
            return {}
        if missing_files(self.folder, record):
            return {}
        if self.config.probabilities and not any("_probseg." in name for name in record["files"]):
            return {}
        page = page_name(source.label, self.atlas)
        if self.config.report and page not in record["files"]:
            network = load_network(self.folder / record["dseg"])
            files = digests(self.folder, [write_report(network, self.folder / page)])
            return write_record(self.folder, _columns(record), record["files"] | files, COMMAND)
        return record

    def inputs(self, source: ScanSource) -> str:
        """Fingerprint of the files of a scan."""
        return inputs_fingerprint(source.files, whole=self.config.fingerprint == "full")

    def places(self, sources: Sequence[ScanSource]) -> set[Path]:
        """Folders to which results of these scans are written."""
        n_parcels = self.builder.plan.atlas.n_parcels
        return {output_stem(self.folder, one.subject, one.entities, n_parcels, self.atlas).parent for one in sources}

    def note(self, row: dict[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
        """Writes the record of a scan and, from time to time, the table of all scans."""
        record = write_record(self.folder, row, files, COMMAND)
        self.claims.pop(row["scan"])()
        if time.monotonic() - self._told > TABLE_SECONDS:
            write_table(self.folder)
            self._told = time.monotonic()
        return record

    def load(self, number: int, source: ScanSource) -> _Waiting | dict[str, Any]:
        """A scan ready for a wave, or the record that says why it failed."""
        begun = time.perf_counter()
        row: dict[str, Any] = {"scan": source.label, "subject": source.subject, "atlas": self.atlas, "source": str(source.bold)}
        row |= {"job": self.job, "inputs": self.inputs(source)}
        try:
            if source.problem:
                raise InputError(source.problem)
            entities = {"sub": source.subject, **source.entities}
            cleaning = self.config.cleaning
            scan = load_scan(
                source.bold, mask=source.mask, confounds=source.confounds, entities=entities, cleaning=cleaning, **self.options
            )
            personal, notes = None, list(self.notes)
            if self.config.personal is not None and self.config.dynamics:
                plan = self.builder.plan
                personal, said = find_personal(self.config.personal, scan, plan, self.config.personalize)
                notes += said
            ready = self.builder.ready(scan)
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            return self.failed(row, source, error, begun)
        return _Waiting(number, source, row, ready, personal, notes, begun, time.perf_counter() - begun)

    def take(self, wave: Sequence[_Waiting]) -> list[tuple[int, dict[str, Any]]]:
        """Records of a wave; if it fails as a whole, each of its scans is tried on its own.

        The last scans of a shape fill up a wave that was compiled before, rather than have one compiled for their number.
        """
        shape, start = wave[0].ready.shape, time.perf_counter()
        try:
            found = self.builder.run([one.ready for one in wave], self.wave if shape in self._compiled else 1)
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            self._compiled.discard(shape)
            if len(wave) == 1:
                return [(wave[0].number, self.failed(wave[0].row, wave[0].source, error, wave[0].begun))]
            return [row for one in wave for row in self.take([one])]
        if len(wave) == self.wave:
            self._compiled.add(shape)
        each = (time.perf_counter() - start) / len(wave)
        return [(one.number, self.made(one, outputs, each)) for one, outputs in zip(wave, found, strict=True)]

    def made(self, one: _Waiting, outputs: Outputs, seconds: float) -> dict[str, Any]:
        """The record of a scan that went through the step, its files written."""
        source = one.source
        try:
            network = finish(one.ready, outputs, self.builder, one.personal, seconds)
            before, qc = time.perf_counter(), network.qc.warn(*one.notes)
            network = dataclasses.replace(network, qc=dataclasses.replace(qc, seconds={"load": round(one.loaded, 3)} | qc.seconds))
            with waiting_for(self.folder / RECORDS / SAVING, shared=True):
                files = save(network, self.folder, probabilities=self.config.probabilities)
            dseg = files[-1]
            if self.config.report:
                files.append(write_report(network, self.folder / page_name(source.label, self.atlas)))
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            return self.failed(one.row, source, error, one.begun)
        stages = network.qc.seconds | {"save and report": round(time.perf_counter() - before, 3)}
        row = one.row | {
            "status": "ok",
            "error": "",
            "seconds": round(sum(stages.values()), 2),
            **result_columns(network, self.notes),
            "dseg": dseg.relative_to(self.folder).as_posix(),
            "stages": json.dumps(stages),
        }
        return self.note(row, digests(self.folder, files))

    def failed(self, row: dict[str, Any], source: ScanSource, error: Exception, begun: float) -> dict[str, Any]:
        """The row of a scan that failed.

        A recording that is refused must not leave an older result behind. Any other error (a missing file, a full disk, too little
        memory, a lost device, a fault of the program) does not concern the recording, and its earlier results stay.
        """
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, f"{error.strerror}; run stopped: free some space and run it again with --resume", error.filename)
        earlier = read_record(self.folder, source.label, self.atlas)
        if isinstance(error, InputError) and not source.problem:
            remove_files(self.folder, earlier)
            earlier = {}
        # Messages of pnet_jax name the file; those of other libraries need the type to be understood.
        message = str(error) if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: {error}"
        where = "" if source.label in message else f"{source.label} ({source.bold}): "
        seconds = round(time.perf_counter() - begun, 2)
        row |= {"status": "failed", "error": " ".join(f"{where}{message}".split()), "seconds": seconds}
        return self.note(row, earlier.get("files", {}))

    def tangent(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tangent edges of the parcels that every scan has; a parcel that is absent from one scan is NaN in all.

        Nothing is done if the scans and their results are those of an earlier run whose edges are on disk.
        """
        complete = [at for at, row in enumerate(rows) if row["status"] == "ok"]
        rows = list(rows)
        if len(complete) < 2:
            return self.noted(rows, f"tangent edges were not written: at least 2 scans of one call are needed, got {len(complete)}")
        names = [(rows[at]["scan"], rows[at]["files"][rows[at]["dseg"]], rows[at]["inputs"]) for at in complete]
        cohort = hashlib.sha256(json.dumps([self.job, names]).encode()).hexdigest()[:12]
        if all(rows[at].get("cohort") == cohort for at in complete):
            return rows
        # From disk, one at a time: scans of an earlier call count too, and a large cohort's locations need not be held.
        signals = [load_network(self.folder / rows[at]["dseg"]).signals for at in complete]
        present = np.stack([np.isfinite(x).all(1) for x in signals])
        shared = np.all(present, axis=0)
        said = _few_shared(present, [rows[at]["scan"] for at in complete])
        if said:
            warnings.warn(said, stacklevel=3)
        if shared.sum() < 2:
            return self.noted(rows, f"{said}; not written")
        for at, matrix in zip(complete, measures.cohort_tangent(signals, shared), strict=True):
            network = load_network(self.folder / rows[at]["dseg"])
            written = digests(self.folder, save_edges(dataclasses.replace(network, edges={"tangent": matrix}), self.folder))
            row = _columns(rows[at]) | {"cohort": cohort}
            row.pop("warnings", None)  # of an earlier call, with other scans
            row |= {"warnings": said} if said else {}
            rows[at] = write_record(self.folder, row, rows[at]["files"] | written, COMMAND)
        return rows

    def noted(self, rows: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
        """The rows with a warning that concerns the whole cohort."""
        return [write_record(self.folder, _columns(row) | {"warnings": said}, row["files"], COMMAND) for row in rows]


def _few_shared(present: np.ndarray, scans: Sequence[str]) -> str:
    """A warning where a scan or two cost all the others many of their parcels, and the scan that costs most; else empty."""
    counts, shared = present.sum(1), int(present.all(0).sum())
    if shared >= 2 and shared >= 0.8 * np.median(counts):
        return ""
    least = int(counts.argmin())
    return (
        f"tangent edges are those of the {shared} of {present.shape[1]} parcels that every scan has: {scans[least]} has the fewest "
        f"({counts[least]}, median {np.median(counts):g}); leave it out (--participant-label) or mend its mask"
    )


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the fields that `write_record` adds."""
    return {key: value for key, value in record.items() if key not in ("files", "command")}


def _job(config: ConstructConfig, plan: Plan, options: Mapping[str, Any]) -> str:
    """Digest of everything but the scan that determines a result; whether a report is written does not make it out of date."""
    without = ("report", "probabilities", "wave", "parallel", "fingerprint")
    deciding = {key: value for key, value in dataclasses.asdict(config).items() if key not in without}
    given = {key: value if isinstance(value, list | tuple) else [value] for key, value in options.items()}
    content = {key: [_content(one) for one in values] for key, values in given.items()}
    group = "" if plan.group is None else plan.group.digest
    everything = [pnet_jax.__version__, deciding, content, plan.model.digest, plan.atlas.digest, plan.atlas.names, group]
    return hashlib.sha256(json.dumps(everything, default=str, sort_keys=True).encode()).hexdigest()[:12]


def _content(value: object) -> object:
    """Fingerprint of a file in place of its path; any other value as it is."""
    return file_fingerprint(value) if isinstance(value, str | Path) and Path(value).is_file() else value
