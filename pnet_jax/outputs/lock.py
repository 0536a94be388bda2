"""Locks for processes that write into the same folder."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = ".in-use"


@contextlib.contextmanager
def only_here(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Keeps other processes out of a folder until the block ends, or this process does, however it does.

    The operating system holds the lock and drops it with the process, so that none is ever left behind; the file says who it is. On
    file systems without locks there is a warning and no protection.

    Args:
      folder: made if needed.
      what: the command, for the message that another one gets.

    Raises:
      ValueError: another process works there; it is named.

    >>> import tempfile
    >>> with only_here(folder := tempfile.mkdtemp(), "an example"):
    ...     os.listdir(folder)
    ['.in-use']
    >>> os.listdir(folder)
    []
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
    try:
        os.truncate(file, 0)
        os.write(file, f"{what}, process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: who waits for the name finds it gone, and makes it anew
        os.close(file)


def _locked(path: Path) -> int:
    """The file, open and locked."""
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise ValueError(f"{path.parent} is in use by {holder}: expected one at a time; wait for it, or take another folder") from error
        except OSError as error:
            warnings.warn(f"{path.parent}: no lock on this file system ({error.strerror}); see that nothing else writes here", stacklevel=4)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # whoever had it has removed it since


@contextlib.contextmanager
def alongside(file: str | os.PathLike[str], tidy: Callable[[], None]) -> Iterator[None]:
    """Let any number of processes work in a folder at the same time, and clean up if there is no other one.

    Args:
      file: Lock file, created if needed and left in place.
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

    Args:
      file: Lock file, created if needed and removed on release.

    Returns:
      Function that releases the claim; None if another process holds it. On a file system without locks every claim succeeds.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "work"
    >>> release = claim(file)
    >>> claim(file) is None
    True
    >>> release()
    >>> file.exists()
    False
    """
    import fcntl

    while True:
        handle = _opened(file)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            pass  # no locks here
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                break
        os.close(handle)  # whoever had it has removed it since

    def release() -> None:
        Path(file).unlink(missing_ok=True)
        os.close(handle)

    return release


@contextlib.contextmanager
def waiting_for(file: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Let one process at a time run the block; others wait. On a file system without locks there is no protection.

    Args:
      file: Lock file, created if needed and left in place.
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
