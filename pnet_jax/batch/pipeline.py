"""The loop over scans: worker processes read, the devices compute one wave while the next is prepared, and worker processes write."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from pnet_jax.batch.job import COMMAND, Job, failed, up_to_date
from pnet_jax.batch.tasks import Read, Written, read, with_notes, write
from pnet_jax.construction import Builder, Ready, finish
from pnet_jax.construction.step import Outputs
from pnet_jax.construction.wave import land
from pnet_jax.execution import Done, Workers
from pnet_jax.ingest import ScanSource
from pnet_jax.network import Network
from pnet_jax.outputs.columns import result_columns
from pnet_jax.outputs.status import claim_scan, write_record

if TYPE_CHECKING:  # with optax, which only dynamics need
    from pnet_jax.finetune.person import Personal

Row = dict[str, Any]
Told = Callable[[str, int, int, int], None]
ACCELERATOR_WAVE = 8  # default number of scans that an accelerator takes at a time
SHARE = 0.5  # share of the memory for scans; the step, the networks and the programs take the rest
LOOK_SECONDS = 0.01  # between checks of a wave in progress, while readers and writers may finish
POLL_SECONDS = 0.2  # between checks of a scan that another process is working on


class Bounds(NamedTuple):
    """Limits on what a run holds in memory at a time.

    Attributes:
      wave: Scans that go through the step together.
      processes: Worker processes that read and write.
      scans: Scans that are being read, waiting for a wave or in a wave.
      writing: Largest number of networks being written when a wave is started.
      each: Peak memory for reading one scan in bytes, the largest estimate among the first scans; 0 if unknown.
    """

    wave: int
    processes: int
    scans: int
    writing: int
    each: int = 0

    @property
    def networks(self) -> int:
        """Largest number of networks being written at a time, given that two waves may be computed meanwhile."""
        return self.writing + 2 * self.wave


def bounds_of(builder: Builder, wave: int | None, processes: int, each: int = 0, memory: int = 0) -> Bounds:
    """Compute the limits that fit the worker processes and the memory.

    Args:
      builder: Builder of the plan, on its devices.
      wave: Scans that go through the step together; None for the default of the devices.
      processes: Largest number of worker processes.
      each: Bytes needed to read one scan; 0 if unknown.
      memory: Available bytes, of which the share `SHARE` may hold scans.
    """
    wave = wave or builder.mesh.shape["subject"] * (1 if jax.devices()[0].platform == "cpu" else ACCELERATOR_WAVE)
    most = max(int(SHARE * memory / each), 1) if each and memory else 1 << 30
    processes = min(processes, most)
    return Bounds(wave, processes, max(min(3 * wave + processes, most), wave), wave + 2 * processes, each)


@dataclasses.dataclass(eq=False)
class _Scan:
    """A scan in progress."""

    number: int
    source: ScanSource
    begun: float
    row: Row = dataclasses.field(default_factory=dict)
    ready: Ready | None = None
    personal: Personal | None = None
    notes: tuple[str, ...] = ()
    loaded: float = 0.0
    network: Network | None = None


class Pipeline:
    """The loop that turns scans into records; each scan is constructed by one of the processes that work in the folder.

    Args:
      job: Settings shared by all scans.
      builder: Builder of the job's plan.
      workers: Processes that read and write, not started yet.
      bounds: Limits on what is held in memory.
      told: Called with the label of a scan, the numbers of completed and of failed scans, and the total.
    """

    def __init__(self, job: Job, builder: Builder, workers: Workers, bounds: Bounds, told: Told | None = None):
        self.job, self.builder, self.workers, self.bounds, self.told = job, builder, workers, bounds, told
        self.claims: dict[str, Callable[[], None]] = {}  # functions that release the scans in progress
        self.waited = {"reading": 0.0, "computing": 0.0, "writing": 0.0}  # seconds that this process waited for each
        self.rows: dict[int, Row] = {}
        self._reading = self._writing = self._failed = self._total = 0
        self._waiting: dict[Hashable, list[_Scan]] = {}
        self._flying: deque[tuple[list[_Scan], Future[Outputs], float]] = deque()
        # A step with loops returns only when the GPU has finished; in a thread, the next wave can be transferred meanwhile.
        self._device = ThreadPoolExecutor(1, "device")

    def run(self, sources: Sequence[ScanSource], resume: bool) -> list[Row]:
        """Return the record of each scan, in order; scans that another process is working on are left to it and checked last.

        The workers are ended, and only then are claims released, so that no worker writes a scan that another process has claimed.
        """
        try:
            with self.workers:
                return self._run(sources, resume)
        finally:
            self._device.shutdown(wait=False, cancel_futures=True)
            for release in self.claims.values():
                release()
            self.claims.clear()

    def _run(self, sources: Sequence[ScanSource], resume: bool) -> list[Row]:
        self.rows, self._failed, self._total = {}, 0, len(sources)
        others: list[_Scan] = []
        todo = self._to_read(sources, resume, others)
        more = True
        while more or self._busy:
            while more and self._reading <= self.workers.processes and self._held < self.bounds.scans:
                one = next(todo, None)
                if one is None:
                    more = False
                    break
                self._reading += 1
                self.workers.submit(("read", one), read, self.job, one.source)
            self._step(more)
        for one in others:
            self.rows[one.number] = self._after(one)
        return [self.rows[number] for number in range(len(sources))]

    @property
    def _held(self) -> int:
        """Number of scans that are in memory or being read."""
        return self._reading + sum(map(len, self._waiting.values())) + sum(len(wave) for wave, _, _ in self._flying)

    @property
    def _busy(self) -> bool:
        return bool(self._held or self._writing)

    def _step(self, more: bool) -> None:
        """Do what is due next: start a wave, finish one, or wait for a process that reads or writes."""
        wave = self._next_wave(more)
        if wave and len(self._flying) < 2 and self._writing <= self.bounds.writing:
            self._launch(wave)
        elif self._flying and (_is_ready(self._flying[0][1]) or len(self._flying) == 2 or not (self._reading or self._writing)):
            self._land(*self._flying.popleft())
        elif len(self.workers):
            what = "computing" if self._flying else "reading" if self._reading else "writing"
            begun = time.perf_counter()
            found = self.workers.take(LOOK_SECONDS if self._flying else None)
            self.waited[what] += time.perf_counter() - begun
            for done in found:
                self._take(done)

    def _next_wave(self, more: bool) -> list[_Scan]:
        """Return scans of one shape: a full wave, or the largest one once no further scan can arrive; otherwise an empty list."""
        if not self._waiting:
            return []
        shape = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
        # Scans in native space each have their own shape: without a limit, all of them would wait in memory until the end.
        stuck = not self._reading and (not more or self._held >= self.bounds.scans)
        return self._waiting[shape] if len(self._waiting[shape]) >= self.bounds.wave or stuck else []

    def _to_read(self, sources: Sequence[ScanSource], resume: bool, others: list[_Scan]) -> Iterator[_Scan]:
        """Claim and yield the scans to construct here; note finished ones, and append those of other processes to `others`."""
        for number, source in enumerate(sources):
            if resume and (earlier := up_to_date(self.job, source)):
                self._note(number, earlier | {"skipped": True})
                continue
            one = _Scan(number, source, time.perf_counter())
            if self._claim(source):
                yield one
            else:
                others.append(one)

    def _after(self, one: _Scan) -> Row:
        """Return the record of a scan after another process finished it; if that process failed or was killed, construct the scan here."""
        while not self._claim(one.source):
            time.sleep(POLL_SECONDS)
        if earlier := up_to_date(self.job, one.source):
            self.claims.pop(one.source.label)()
            self._note(one.number, earlier | {"skipped": True})
            return self.rows[one.number]
        self._reading += 1
        self.workers.submit(("read", one), read, self.job, one.source)
        while self._busy:
            self._step(more=False)
        return self.rows[one.number]

    def _claim(self, source: ScanSource) -> bool:
        """Claim a scan until its record is written; return False if another process has claimed it."""
        release = claim_scan(self.job.folder, source.label, self.job.atlas)
        if release is not None:
            self.claims[source.label] = release
        return release is not None

    def _take(self, done: Done) -> None:
        """Prepare a scan that was read for its wave, or note a scan that was written."""
        what, one = done.key
        if what == "read":
            self._reading -= 1
            one.row = self.job.row(one.source, done.value.inputs if done.error is None else self.job.inputs(one.source))
            if done.error is None:
                self._make_ready(one, done.value)
            else:
                self._fail(one, done.error)
            return
        self._writing -= 1
        network, one.network = one.network, None
        if done.error is not None:
            self._fail(one, done.error)
            return
        assert network is not None
        written: Written = done.value
        _warn(written.said)
        self._enter(one, write_record(self.job.folder, one.row | _figures(network, written, self.job.notes), written.files, COMMAND))

    def _make_ready(self, one: _Scan, found: Read) -> None:
        _warn(found.said)
        one.loaded, one.notes = found.seconds, self.job.notes
        try:
            config = self.job.config
            if config.personalized is not None and config.dynamics:
                from pnet_jax.personalization import find_personal

                one.personal, said = find_personal(config.personalized, found.scan, self.builder.plan, config.personalize)
                one.notes += tuple(said)
            one.ready = self.builder.ready(found.scan)
        except Exception as error:  # noqa: BLE001  whatever the error, the other scans continue
            self._fail(one, error)
            return
        self._waiting.setdefault(one.ready.shape, []).append(one)

    def _launch(self, wave: list[_Scan]) -> None:
        """Start a wave, padded to full size: waves of one size share a compiled step and give bit-identical results."""
        wave, rest = wave[: self.bounds.wave], wave[self.bounds.wave :]
        shape = wave[0].ready.shape  # type: ignore[union-attr]
        if rest:
            self._waiting[shape] = rest
        else:
            self._waiting.pop(shape)
        begun = time.perf_counter()
        try:
            outputs = self._device.submit(self.builder.put([one.ready for one in wave if one.ready], self.bounds.wave))
        except Exception as error:  # noqa: BLE001  whatever the error, the other scans continue
            self._alone(wave, error)
            return
        self._flying.append((wave, outputs, begun))

    def _land(self, wave: list[_Scan], outputs: Future[Outputs], begun: float) -> None:
        """Pass the results of a wave to the writers."""
        waiting = time.perf_counter()
        try:
            found = land(outputs.result(), len(wave))
        except Exception as error:  # noqa: BLE001  whatever the error, the other scans continue
            self._alone(wave, error)
            return
        now = time.perf_counter()
        self.waited["computing"] += now - waiting
        for one, own in zip(wave, found, strict=True):
            self._write(one, own, (now - begun) / len(wave))

    def _alone(self, wave: list[_Scan], error: Exception) -> None:
        """Try each scan of a wave that failed as a whole on its own."""
        if len(wave) == 1 and self.bounds.wave == 1:
            self._fail(wave[0], error)
            return
        for one in wave:
            begun = time.perf_counter()
            try:
                assert one.ready is not None
                (found,) = self.builder.run([one.ready])
            except Exception as own:  # noqa: BLE001
                self._fail(one, own)
                continue
            self._write(one, found, time.perf_counter() - begun)

    def _write(self, one: _Scan, outputs: Outputs, seconds: float) -> None:
        """Make the network of a scan from the outputs of the step, and submit it for writing."""
        try:
            assert one.ready is not None
            network = finish(one.ready, outputs, self.builder, one.personal, seconds)
        except Exception as error:  # noqa: BLE001  whatever the error, the other scans continue
            self._fail(one, error)
            return
        one.network, one.ready = with_notes(network, one.notes, one.loaded), None
        self._writing += 1
        self.workers.submit(("write", one), write, self.job, one.network, one.source.label)

    def _fail(self, one: _Scan, error: Exception) -> None:
        one.ready = one.network = None
        self._enter(one, failed(self.job, one.source, one.row, error, one.begun))

    def _enter(self, one: _Scan, record: Row) -> None:
        self.claims.pop(one.source.label)()
        self._note(one.number, record)

    def _note(self, number: int, record: Row) -> None:
        self.rows[number] = record
        self._failed += record["status"] != "ok"
        if self.told is not None:
            self.told(record["scan"], len(self.rows), self._failed, self._total)


def _is_ready(outputs: Future[Outputs]) -> bool:
    if not outputs.done() or outputs.exception() is not None:
        return outputs.done()
    return all(leaf.is_ready() for leaf in jax.tree.leaves(outputs.result()))


def _warn(said: Sequence[str]) -> None:
    for text in said:
        warnings.warn(text, stacklevel=2)


def _figures(network: Network, written: Written, notes: Sequence[str]) -> Row:
    """Return the record columns of a finished scan."""
    stages = network.qc.seconds | written.seconds
    done = {"status": "ok", "error": "", "seconds": round(sum(stages.values()), 2), "dseg": written.dseg}
    said = [text for text in network.qc.warnings if text not in notes]
    return done | result_columns(network, notes) | {"stages": json.dumps(stages), "said": said}
