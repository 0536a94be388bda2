"""Construction of many networks, on this machine or on a cluster; one bad scan does not stop the others."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pnet_jax import parallel
from pnet_jax.batch.earlier import failed_before, standing
from pnet_jax.batch.job import COMMAND, FULL, Job, failed, job_of, up_to_date
from pnet_jax.batch.pipeline import Bounds, Pipeline, Told, bounds_of
from pnet_jax.batch.tangent import add_tangent
from pnet_jax.batch.tasks import SAVING
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.construction.resolve import Plan
from pnet_jax.errors import SettingsError
from pnet_jax.execution import Workers, all_memory, available_memory, cores, in_blocks, rank_in_job
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.memory import peak_bytes
from pnet_jax.outputs import AtlasKey, check_atlas, check_writable, output_stem
from pnet_jax.outputs.atomic import sweep
from pnet_jax.outputs.lock import alongside, waiting_for
from pnet_jax.outputs.status import RECORDS, check_command, remove_superseded, write_submission, write_table
from pnet_jax.report import check_installed, write_index

TABLE_SECONDS = 30.0  # least time between updates of status.tsv during a run
TABLE_SHARE = 20  # updates wait at least this many times as long as the last one took
LOOKED_AT = 8  # scans whose headers are used to estimate the memory per scan
BLOCK = 8  # scans per cluster task: enough to outweigh its overhead, few enough to repeat
RUNS = ".runs.lock"  # below RECORDS: shared by all processes that work in a folder
FEW = 4  # with fewer scans, worker processes cost more time than they save
_ONE_BLOCK = threading.Lock()  # a cluster worker with several threads constructs one block after another


class Shard(NamedTuple):
    """Part `number` of `total`, counted from 1: the subjects whose label falls into it, regardless of other subjects."""

    number: int
    total: int

    def has(self, source: ScanSource) -> bool:
        """Return whether a scan belongs to this part; all scans of a subject are in the same part."""
        digest = hashlib.sha256(source.subject.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number - 1


def construct_cohort(
    sources: Sequence[ScanSource],
    folder: str | Path,
    config: ConstructConfig | None = None,
    *,
    load: dict[str, Any] | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    shard: Shard | tuple[int, int] | None = None,
    executor: concurrent.futures.Executor | None = None,
    progress: Told | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Construct the networks of many scans and write each to a derivatives folder as soon as it is finished.

    Worker processes read and write while the devices compute (`config.workers`). If a scan fails, the error is recorded in
    `status.tsv` and the other scans continue. If the recording itself is refused, results that an earlier call wrote for it with the
    same atlas are removed, including its page. Cohort measures (tangent) are computed when every scan is done. Any number of processes
    can work in one folder at the same time; each scan is constructed by one of them. A full disk ends the call.

    Args:
      sources: Scans to construct, from `find_scans`.
      folder: Derivatives root.
      config: See `ConstructConfig`.
      load: Further arguments of `load_scan`, the same for every scan (`tr`, `native_to_mni`, `atlas`, `surfaces`, `space`).
      resume: Skip scans whose result is up to date: intact on disk, and made from the same files (`config.fingerprint`) with the same
        version, configuration, checkpoint, atlas and group.
      retry_failed: Construct only the scans of the folder that failed in earlier calls with the same settings; no other scan of `sources`
        is added to the folder.
      shard: Construct only this part of the scans: `(i, n)` is part i of n, 1 to n. Cohort measures are left to a call without `shard`.
      executor: Where blocks of scans are constructed, e.g. the workers of a cluster (`pnet_jax.execution.cluster`); they need the same
        package and the same paths, and always resume. None uses this process and its workers.
      progress: Called with the label of a scan, the numbers of completed and of failed scans, and the total.
      say: Called with messages about the run: its scans, the number of up-to-date results, limits, and waiting times.

    Returns:
      The record of each scan of this call, in order (`outputs.status`); with `skipped`, if the result was up to date. Empty if
      `retry_failed` is set and nothing failed.

    Raises:
      SettingsError: If there are no scans, a measure is unknown, an atlas or checkpoint cannot be used, the folder has results of another
        command, or all scans that failed had other settings than those to be tried again.
      OSError: If the folder cannot be written.
    """
    config = config or ConstructConfig()
    if not sources:
        raise SettingsError("expected at least one scan, got none")
    if config.report:
        check_installed()
    plan, notes = resolved(config, load or {})
    for note in notes:
        warnings.warn(note, stacklevel=2)
    config = _with_both_views(config, plan)
    tell, shard = say or (lambda _: None), checked_shard(shard)
    job = job_of(Path(folder), config, plan, load or {}, notes)
    todo = sources
    if retry_failed:
        todo, sources, said = failed_before(job, sources)
        tell(said)
        if not todo:
            return []
    folder = check_writable(folder)
    check_command(folder, COMMAND)
    check_atlas(folder, AtlasKey(job.atlas, plan.atlas.source, plan.atlas.digest, plan.atlas.n_parcels))
    mine = todo if shard is None else [one for one in todo if shard.has(one)]
    if shard is not None:
        tell(describe_share(shard, mine, todo))
    if resume:
        tell(standing(job, mine))
    write_submission(folder, todo, job.digest, job.atlas, job.settings)
    remove_superseded(folder, todo)
    told, places = _telling(folder, progress), _places(job, plan, mine)
    with alongside(folder / RECORDS / RUNS, lambda: sweep([folder, folder / RECORDS, *places])), _table_at_the_end(folder):
        rows = _here(mine, job, Builder(plan), resume, told, say) if executor is None else _on(executor, mine, job, told)
        if "tangent" in plan.edges and shard is None:
            with waiting_for(folder / RECORDS / SAVING):  # no other process writes a result while all are read
                rows = _with_tangent(job, sources, rows)
    if config.report:
        write_index(folder)
    return rows


def resolved(config: ConstructConfig, load: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """Return the plan, and warnings about the atlas file, which apply to every result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = resolve(config, cohort=True, surfaces=load.get("surfaces"))
    return plan, [str(one.message) for one in caught if one.category is UserWarning]


def _with_both_views(config: ConstructConfig, plan: Plan) -> ConstructConfig:
    """Return the configuration, changed to keep the signals before the low-pass filter if the group needs them."""
    if plan.group is None or plan.group.guide is None or len(plan.group.guide.mean) < 2:
        return config
    return dataclasses.replace(config, cleaning=dataclasses.replace(config.cleaning, wide=True))


@contextlib.contextmanager
def _table_at_the_end(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the operation that first failed reports a full disk
            write_table(folder)
        raise
    write_table(folder)


def _with_tangent(job: Job, sources: Sequence[ScanSource], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of this call with tangent edges, which depend on all scans, including those that this call did not construct."""
    made = {row["scan"]: row for row in rows}
    whole = [made.get(one.label) or up_to_date(job, one) for one in sources]
    if not all(whole):
        warnings.warn("tangent edges were not written: some scans are neither done nor failed; run again with --resume", stacklevel=3)
        return list(rows)
    found = {row["scan"]: row for row in add_tangent(job, whole)}
    return [found[row["scan"]] | ({"skipped": True} if row.get("skipped") else {}) for row in rows]


def checked_shard(shard: Shard | tuple[int, int] | None) -> Shard | None:
    """Return a part of the participants; refuse a number outside 1 to N."""
    if shard is None:
        return None
    number, total = shard
    if not 1 <= number <= total:
        raise SettingsError(f"shard: expected i/N with 1 <= i <= N, got {number}/{total}")
    return Shard(number, total)


def own_shard(config: ConstructConfig) -> Shard:
    """Return the part of the scans that this process constructs among the processes of its job.

    The part comes from `config.parallel` (`process`, `processes`), from SLURM, Open MPI or another MPI, or otherwise from
    `jax.distributed` (Kubernetes, TPU pods). Only the last couples the processes; with the others, a lost process affects no other.
    """
    own = config.parallel
    if own.process is not None and own.processes is not None:
        return Shard(own.process + 1, own.processes)
    rank = rank_in_job() or parallel.start(own)
    return Shard(rank[0] + 1, rank[1])


def describe_share(shard: Shard, mine: Sequence[ScanSource], every: Sequence[ScanSource]) -> str:
    """Describe how many participants and scans a part has."""
    subjects, total = len({one.subject for one in mine}), len({one.subject for one in every})
    return f"shard {shard.number}/{shard.total}: {subjects} of {total} subjects, {len(mine)} of {len(every)} scans"


def _places(job: Job, plan: Plan, sources: Sequence[ScanSource]) -> set[Path]:
    """Return the folders to which the results of these scans are written."""
    return {output_stem(job.folder, one.subject, one.entities, plan.atlas.n_parcels, job.atlas).parent for one in sources}


def _telling(folder: Path, progress: Told | None) -> Told:
    """Return a function to call after each scan: it reports progress to the caller and regularly writes the table of all scans."""
    last, pause = time.monotonic(), TABLE_SECONDS

    def told(label: str, done: int, failed: int, total: int) -> None:
        nonlocal last, pause
        if progress is not None:
            progress(label, done, failed, total)
        begun = time.monotonic()
        if begun - last > pause:
            write_table(folder)
            last = time.monotonic()
            pause = max(TABLE_SECONDS, TABLE_SHARE * (last - begun))

    return told


def _here(
    sources: Sequence[ScanSource], job: Job, builder: Builder, resume: bool, told: Told | None, say: Callable[[str], None] | None
) -> list[dict[str, Any]]:
    """Construct scans with this process and its workers, and return their records."""
    bounds = bounds_for(sources, job, builder)
    if say is not None and len(sources) >= FEW:
        say(describe_bounds(bounds, len(sources)))
    begun = time.perf_counter()
    pipeline = Pipeline(job, builder, Workers(bounds.processes), bounds, told)
    rows = pipeline.run(sources, resume)
    if say is not None and len(sources) >= FEW:
        whole = max(time.perf_counter() - begun, 1e-9)
        say("waited for " + ", ".join(f"{what} {seconds / whole:.0%}" for what, seconds in pipeline.waited.items()) + " of the time")
    return rows


def bounds_for(sources: Sequence[ScanSource], job: Job, builder: Builder) -> Bounds:
    """Compute the limits of a run on this machine, from the headers of its first scans."""
    processes = job.config.workers
    if processes is None:
        processes = 0 if len(sources) < FEW else min(cores(), len(sources))
    needed, most = [peak_bytes(one, job.config.cleaning) or 0 for one in sources[:LOOKED_AT] if not one.problem], all_memory()
    each = max((one for one in needed if one <= most), default=0)  # a larger scan is refused before it is read
    return bounds_of(builder, job.config.wave, processes, each, available_memory())


def describe_bounds(bounds: Bounds, scans: int) -> str:
    """Describe how many scans are computed together and held in memory."""
    devices, processes = jax.local_devices(), bounds.processes
    return (
        f"{scans} scans in waves of {bounds.wave} on {len(devices)} {devices[0].platform.upper()} device{'s' * (len(devices) > 1)}; "
        f"{processes or 'no'} worker process{'es' * (processes != 1)} read and write; at most {bounds.scans} scans and "
        f"{bounds.networks} networks in memory, the scans about {bounds.scans * bounds.each / 2**30:.1f} GiB of "
        f"{available_memory() / 2**30:.0f} GiB free"
    )


def _on(executor: concurrent.futures.Executor, sources: Sequence[ScanSource], job: Job, told: Told) -> list[dict[str, Any]]:
    """Construct scans with the workers of an executor, a block at a time, and return their records.

    If the worker of a block dies, each of its scans is tried on its own, so that a scan that takes too much memory affects no other.
    """
    rows: dict[int, dict[str, Any]] = {}
    waiting = in_blocks(range(len(sources)), BLOCK)
    bad = 0
    try:
        while waiting:
            futures = {executor.submit(construct_block, [sources[at] for at in block], job): block for block in waiting}
            waiting, begun = [], time.perf_counter()
            for future in concurrent.futures.as_completed(futures):
                block = futures[future]
                found = _result(future, [sources[at] for at in block], job, begun)
                if found is None:
                    waiting += in_blocks(block, 1)
                    continue
                for at, row in zip(block, found, strict=True):
                    rows[at], bad = row, bad + (row["status"] != "ok")
                    told(row["scan"], len(rows), bad, len(sources))
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    return [rows[at] for at in range(len(sources))]


def _result(
    future: concurrent.futures.Future[list[dict[str, Any]]], block: Sequence[ScanSource], job: Job, begun: float
) -> list[dict[str, Any]] | None:
    """Return the records of a block, or None if its scans are to be tried one by one.

    Raises:
      SettingsError: If the command cannot run there as given.
      OSError: If the disk is full, or the cluster was lost.
    """
    try:
        return future.result()
    except (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor) as error:
        raise ConnectionError(f"the connection to the cluster was lost ({type(error).__name__}); run again with --resume") from error
    except SettingsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        if len(block) > 1:
            return None
        return [failed(job, block[0], job.row(block[0], job.inputs(block[0])), error, begun)]


def construct_block(sources: Sequence[ScanSource], job: Job) -> list[dict[str, Any]]:
    """Construct some scans in this process, a worker of a cluster, and return their records.

    Results that are up to date are kept: a block whose worker was lost resumes where that worker stopped.
    """
    # This process may outlive its parent; a run started meanwhile must not treat its files as leftovers.
    with _ONE_BLOCK, alongside(job.folder / RECORDS / RUNS, lambda: None):
        plan, _ = resolved(job.config, job.options)
        builder = Builder(plan)
        return Pipeline(job, builder, Workers(0), bounds_of(builder, job.config.wave, 0)).run(sources, resume=True)
