"""Execution of tasks by worker processes on this machine or by the workers of a cluster. Only this module imports loky, Dask and MPI."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

from pnet_jax.errors import SettingsError

MOST_WORKERS = 64  # limit, or four per core on machines with more cores
IDLE_SECONDS = 60  # after which an idle process ends; it is started again when needed
CLUSTERS = ("local", "slurm", "pbs", "sge", "lsf", "mpi")
CGROUP = Path("/sys/fs/cgroup")
RANKS = (  # rank of the process, and number of processes
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # set within a step: the batch script itself has no rank
)
PR_SET_PDEATHSIG = 1  # option of Linux's prctl: the signal sent to a process when its parent ends
RETRIES = 2  # by the scheduler of the cluster, for a task whose worker was lost


class WorkerDiedError(RuntimeError):
    """A worker process ended while running a task."""


class Done(NamedTuple):
    """A finished task: its key, and its value or the exception that it raised."""

    key: Any
    value: Any = None
    error: Exception | None = None


class _Task(NamedTuple):
    key: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    alone: bool = False  # run alone, because a process died while this task was running


class Workers:
    """Pool of worker processes in which the death of a process fails only its own task.

    If a process dies, every running task is a suspect and is retried alone; a task whose process dies again fails.

    Args:
      processes: Number of worker processes; with 0, tasks run in this process as they are submitted.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self._pool: Any = None
        self._running: dict[concurrent.futures.Future[Any], tuple[_Task, Any]] = {}  # task and its pool
        self._suspects: deque[_Task] = deque()
        self._later: deque[_Task] = deque()  # submitted while suspects are being tried
        self._here: deque[Done] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=kind is not None)

    def __len__(self) -> int:
        """Number of submitted tasks whose results have not been taken yet."""
        return len(self._running) + len(self._suspects) + len(self._later) + len(self._here)

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Submit a task.

        Args:
          key: Identifies the task in its result.
          function: Module-level function, so that it can be sent to a process.
          arguments: Picklable arguments.
        """
        task = _Task(key, function, arguments)
        if self.processes == 0:
            try:
                with threadpool_limits(1):  # as in worker processes, so that results do not depend on their number
                    self._here.append(Done(key, function(*arguments)))
            except Exception as error:  # noqa: BLE001  returned, as a worker process would
                self._here.append(Done(key, error=error))
        elif self._suspects:
            self._later.append(task)
        else:
            self._start(task)

    def take(self, timeout: float | None = None) -> list[Done]:
        """Return all available results, after waiting for the first.

        Args:
          timeout: Longest time to wait in seconds; None waits until there is a result. Returns at once if no task is running.
        """
        found = [self._here.popleft() for _ in range(len(self._here))]
        if found or not self._running:
            return found
        done, _ = concurrent.futures.wait(self._running, timeout, concurrent.futures.FIRST_COMPLETED)
        for future in done:
            (task, pool), error = self._running.pop(future), future.exception()
            if isinstance(error, concurrent.futures.BrokenExecutor):
                found += self._after_death(task, pool, error)
            elif error is not None and not isinstance(error, Exception):
                raise error
            else:
                found.append(Done(task.key, None if error else future.result(), error))
        self._go_on()
        return found

    def _start(self, task: _Task) -> None:
        if self._pool is None:
            self._pool = _pool(self.processes)
        try:
            with _terminal_blocked():
                self._running[self._pool.submit(task.function, *task.arguments)] = task, self._pool
        except concurrent.futures.BrokenExecutor:  # it broke after the last check
            self._pool = None
            self._start(task)

    def _after_death(self, task: _Task, pool: Any, error: Exception) -> list[Done]:
        """Handle a task that was running when a process of its pool died, which ends the others: retry it alone, or return it as failed."""
        if pool is self._pool:  # otherwise a later task found it broken and started a new pool
            self._pool = None
        if not task.alone:
            self._suspects.append(task._replace(alone=True))
            return []
        codes = re.search(r"exit codes? of the workers? (?:are|is) \{([^}]*)\}", str(error))
        how = f" ({codes[1]})" if codes else ""
        return [Done(task.key, error=WorkerDiedError(f"its worker process ended unexpectedly{how}, possibly because memory ran out"))]

    def _go_on(self) -> None:
        """Start the next suspect once nothing else is running; after the last suspect, start the tasks that waited."""
        if self._running:
            return
        if self._suspects:
            self._start(self._suspects.popleft())
            return
        while self._later:
            self._start(self._later.popleft())


def run_tasks(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yield each task with its result as it finishes; the result of a task whose process died is a `WorkerDiedError`.

    Args:
      function: Module-level function; exceptions that it raises are raised here and end the loop.
      tasks: Picklable tasks, drawn when a process is free.
      workers: Number of processes; with 1, tasks run in this process.
    """
    waiting = iter(tasks)
    with Workers(0 if workers == 1 else workers) as pool:
        exhausted = False
        while True:
            while not exhausted and len(pool) < workers:
                try:
                    task = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                pool.submit(task, function, task)
            if not len(pool):
                return
            for done in pool.take():
                if done.error is not None and not isinstance(done.error, WorkerDiedError):
                    raise done.error
                yield done.key, done.error or done.value


def check_workers(workers: int | None, name: str) -> None:
    """Raise a SettingsError if there are more worker processes than this machine can use; each needs its own memory."""
    most = max(MOST_WORKERS, 4 * (os.cpu_count() or 1))
    if workers is not None and workers > most:
        raise SettingsError(f"{name}: expected at most {most} on this machine with {os.cpu_count()} cores, got {workers}")


def duration(seconds: float) -> str:
    """Format a duration for progress messages.

    >>> duration(20), duration(180), duration(7300)
    ('20 s', '3 min', '2 h 2 min')
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def cache_folder() -> Path:
    """Return the user's cache folder, for files that can be regenerated or downloaded again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnet_jax"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank_in_job() -> tuple[int, int] | None:
    """Return the rank of this process and the number of processes, as set by `srun` or `mpiexec`; None if neither started it."""
    for number, total in RANKS:
        if number in os.environ and total in os.environ:
            return int(os.environ[number]), int(os.environ[total])
    return None


def available_memory() -> int:
    """Return the bytes of memory that this process can still allocate, limited by the machine, its control group and `PNET_MEM_MB`."""
    import psutil

    limit, used = _group_memory()
    own = _own_limit() - psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, max(limit - used, 0), max(own, 0))


def all_memory() -> int:
    """Return the bytes of memory that a process can use at most, limited by the machine, its control group and `PNET_MEM_MB`."""
    import psutil

    return min(psutil.virtual_memory().total, _group_memory()[0], _own_limit())


def _own_limit() -> int:
    """Return the memory that the user allows, in bytes: the environment variable PNET_MEM_MB."""
    megabytes = os.environ.get("PNET_MEM_MB", "")
    return int(megabytes) * 1_000_000 if megabytes.isdigit() else 1 << 62


def _group_memory() -> tuple[int, int]:
    """Return the memory limit of the control group and its current use; the limit is practically infinite if none is set."""
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit ("max")
            return int((CGROUP / most).read_text()), int((CGROUP / used).read_text())
    return 1 << 62, 0


@contextlib.contextmanager
def cluster(kind: str | None = None, *, scheduler: str | None = None, jobs: int | None = None) -> Iterator[concurrent.futures.Executor]:
    """Open an executor whose workers belong to a cluster.

    Args:
      kind: Type. `"slurm"`, `"pbs"`, `"sge"` and `"lsf"` submit workers as jobs (dask-jobqueue, which reads cores, memory, queue and
          walltime of a job from its own configuration); `"local"` starts Dask workers on this machine; `"mpi"` uses the ranks of
          `mpiexec -n N python -m mpi4py.futures -m pnet_jax construct …`.
      scheduler: Address of a running Dask scheduler, e.g. `"tcp://node1:8786"`, instead of `kind`.
      jobs: Largest number of jobs (or local processes) at a time; they are started on demand.

    Raises:
      SettingsError: If the kind is unknown, a package is missing, or the scheduler does not answer.
    """
    if scheduler is None and kind not in CLUSTERS:
        raise SettingsError(f"cluster: expected one of {', '.join(CLUSTERS)}, got {kind!r}")
    if scheduler is None and kind == "mpi":
        with _mpi() as executor:
            yield executor
        return
    try:
        import dask.distributed as dask
    except ImportError as error:
        raise SettingsError('a cluster needs Dask, which is not installed: pip install "pnet_jax[cluster]"') from error
    with contextlib.ExitStack() as stack:
        try:
            address = scheduler or stack.enter_context(_dask_cluster(str(kind), jobs))
            client = stack.enter_context(dask.Client(address))
        except (OSError, TimeoutError, ValueError) as error:
            raise SettingsError(f"no Dask scheduler at {scheduler or kind}: {error}") from error
        yield client.get_executor(pure=False, retries=RETRIES)


@contextlib.contextmanager
def _dask_cluster(kind: str, jobs: int | None) -> Iterator[Any]:
    import dask.distributed as dask

    if kind == "local":
        with dask.LocalCluster(n_workers=jobs or cores(), threads_per_worker=1, dashboard_address=None) as found:
            yield found
        return
    try:
        import dask_jobqueue
    except ImportError as error:
        raise SettingsError('a queue needs dask-jobqueue, which is not installed: pip install "pnet_jax[cluster]"') from error
    with getattr(dask_jobqueue, f"{kind.upper()}Cluster")() as found:
        found.adapt(minimum=0, maximum_jobs=jobs or 10)
        yield found


@contextlib.contextmanager
def _mpi() -> Iterator[concurrent.futures.Executor]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise SettingsError('--cluster mpi needs mpi4py, which is not installed: pip install "pnet_jax[cluster]"') from error
    if MPI.COMM_WORLD.Get_size() < 2:
        raise SettingsError("--cluster mpi found 1 rank, expected 2 or more: mpiexec -n N python -m mpi4py.futures -m pnet_jax construct …")
    with MPIPoolExecutor() as executor:
        yield executor


def in_blocks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split items into blocks of at most `size`, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextlib.contextmanager
def _terminal_blocked() -> Iterator[None]:
    """Block terminal signals for processes started in the meantime, since their parent handles these signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pool(processes: int) -> Any:
    from loky import ProcessPoolExecutor  # unlike multiprocessing, it works in scripts without the guard `if __name__ == "__main__"`

    # BLAS has one thread per worker, and no worker takes an accelerator from the process that computes.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = single | {"JAX_PLATFORMS": "cpu"}
    with _terminal_blocked():  # first, because starting this process in Python ends the block
        resource_tracker.ensure_running()
    with _terminal_blocked():
        return ProcessPoolExecutor(processes, timeout=IDLE_SECONDS, initializer=_begin, initargs=(os.getpid(),), env=own)


def _begin(parent: int) -> None:
    """Initialise a worker process, which must end with its parent, so that it cannot write the same files as the next run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:  # also covers a parent that ended before the signal was requested
        time.sleep(1)
    os._exit(1)
