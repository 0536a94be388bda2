"""Tasks over processes, where the death of a process is told of the task it had and stops nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from threadpoolctl import threadpool_limits

from pnet_jax.errors import SettingsError

MOST_WORKERS = 64  # or four a core, where there are many


class WorkerError(RuntimeError):
    """A worker process met an error that no task is to blame for."""


@dataclasses.dataclass(frozen=True)
class Died:
    """In place of a result: how the worker process ended in the middle of the task."""

    how: str


def check_workers(workers: int, name: str) -> None:
    """Raise a SettingsError for more worker processes than this machine can use; each takes its own memory."""
    most = max(MOST_WORKERS, 4 * (os.cpu_count() or 1))
    if workers > most:
        raise SettingsError(f"{name}: expected at most {most} on this machine with {os.cpu_count()} cores, got {workers}")


def run_tasks(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Results of `function` as they come: pairs of a task and its result, or `Died` where its process did.

    Tasks are drawn when a process is free for them. With one worker they run here. BLAS has one thread either way, so that the number
    of workers changes no bit of a result.

    Args:
      function: of a module, so that it can be sent; what it raises is raised here, and ends everything.
      tasks: picklable.
      workers: processes.
    """
    if workers == 1:
        for task in tasks:
            with threadpool_limits(1):
                result = function(task)
            yield task, result
        return
    # Spawned: a fork would copy the threads' locks of JAX and BLAS as they happen to stand.
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks)
    busy: dict[Connection, tuple[Any, Any]] = {}  # connection -> its process and what it works on
    idle: list[tuple[Connection, Any]] = []
    try:
        exhausted = False
        while True:
            while not exhausted and len(busy) < workers:
                try:
                    task = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                connection, process = idle.pop() if idle else _start(context, function)
                busy[connection] = (process, task)
                with contextlib.suppress(BrokenPipeError):  # it died while it was idle: read below as a death
                    connection.send(task)
            if not busy:  # to wait for nothing is to wait for ever
                return
            for connection in [one for one in wait(list(busy)) if isinstance(one, Connection)]:
                process, task = busy.pop(connection)
                try:
                    kind, result = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    connection.close()
                    yield task, Died(_how(process.exitcode))
                    continue
                idle.append((connection, process))
                if kind == "error":
                    raise result
                yield task, result
    finally:
        for connection, process in [*idle, *((connection, process) for connection, (process, _) in busy.items())]:
            connection.close()
            process.terminate()
            process.join()


def _start(context: Any, function: Callable[[Any], Any]) -> tuple[Connection, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # it stands: a death from here on is the task's
    except (EOFError, OSError) as error:
        process.join()
        raise WorkerError(f"a worker process could not be started {_how(process.exitcode)}; workers = 1 needs none") from error
    return ours, process


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it ends the workers
    with threadpool_limits(1):
        connection.send("ready")
        while True:
            try:
                task = connection.recv()
            except (EOFError, OSError):  # the parent has ended
                return
            try:
                answer = ("result", function(task))
            except (OSError, ValueError) as error:
                answer = ("error", error)
            except Exception as error:  # noqa: BLE001  of a kind that may not be picklable
                answer = ("error", WorkerError(f"{type(error).__name__}: {error}"))
            connection.send(answer)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"(signal {-code}{', as when memory runs out' if code == -9 else ''})"
    return f"(exit code {code})"
