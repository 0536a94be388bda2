"""Locks for processes that write to the same folder."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pnet_jax.errors import SettingsError

LOCK = ".in-use"


@contextlib.contextmanager
def only_here(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Keep other processes out of a folder until the block or this process ends.

    The operating system releases the lock when the process ends, so that no stale lock remains; the file names its holder. On file systems
    without locks, a warning is given and there is no protection.

    Args:
      folder: Folder to lock, created if needed.
      what: Command, for the error message of other processes.

    Raises:
      SettingsError: If another process works in the folder; names it.

    >>> import tempfile
    >>> with only_here(folder := tempfile.mkdtemp(), "an example"):
    ...     os.listdir(folder)
    ['.in-use']
    >>> os.listdir(folder)
    []
    """
    path = Path(folder) / LOCK
    handle, locks = _taken(path)
    if handle is None:
        holder = path.read_text("utf-8", errors="replace") if path.exists() else ""
        raise SettingsError(f"{path.parent} is in use by {holder or 'another process'}; wait until it has finished, or use another folder")
    if not locks:
        warnings.warn(
            f"{path.parent}: this file system does not support locks; make sure that no other process writes to the folder", stacklevel=3
        )
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{what}, process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        _let_go(path, handle)


@contextlib.contextmanager
def alongside(file: str | os.PathLike[str], tidy: Callable[[], None]) -> Iterator[None]:
    """Let any number of processes work in a folder at the same time, and clean up if there is no other one.

    Args:
      file: Lock file, created if needed and kept.
      tidy: Called if no other process works in the folder, to remove files of killed processes; a process that starts meanwhile waits.
          Never called on a file system without locks.
    """
    import fcntl

    handle = _opened(file)
    try:
        with contextlib.suppress(OSError):  # another process works there, or there are no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tidy()
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def claim(file: str | os.PathLike[str]) -> Callable[[], None] | None:
    """Claim a piece of work that any of several processes may do; the operating system drops the claim when the process ends.

    The file records who holds the claim (`holder`).

    Args:
      file: Lock file, created if needed and removed on release.

    Returns:
      Function that releases the claim; None if another process holds it. On file systems without locks, every claim succeeds.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "work"
    >>> release = claim(file)
    >>> claim(file) is None
    True
    >>> release()
    >>> file.exists()
    False
    """
    handle, _ = _taken(file)
    if handle is None:
        return None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    os.truncate(handle, 0)
    os.write(handle, f"{socket.gethostname()}, process {os.getpid()}, since {now}".encode())
    return functools.partial(_let_go, file, handle)


def holder(file: str | os.PathLike[str]) -> str:
    """Return which process has claimed a piece of work, and since when; empty if none has or if that process was killed."""
    import fcntl

    try:
        with open(file, encoding="utf-8", errors="replace") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Path(file).read_text("utf-8", errors="replace") or "another process"
    except OSError:  # there is no such file, or there are no locks
        return ""
    return ""


@contextlib.contextmanager
def waiting_for(file: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Let one process at a time run the block; others wait. On a file system without locks there is no protection.

    Args:
      file: Lock file, created if needed and kept.
      shared: Allow any number of processes that also share the lock; exclusive ones wait.
    """
    import fcntl

    handle = _opened(file)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _opened(file: str | os.PathLike[str]) -> int:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def _taken(file: str | os.PathLike[str]) -> tuple[int | None, bool]:
    """Return the handle of a lock file, or None if another process holds it, and whether the file system has locks."""
    import fcntl

    while True:
        handle, locks = _opened(file), True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None, True
        except OSError:
            locks = False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle, locks
        os.close(handle)  # its holder has removed the file in the meantime


def _let_go(file: str | os.PathLike[str], handle: int) -> None:
    """Remove a lock file, then release it: a process that waits for the name finds it missing and creates it again."""
    Path(file).unlink(missing_ok=True)
    os.close(handle)
