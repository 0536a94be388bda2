"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Temporary name beside `path`: write to it, and it becomes `path` when the block ends without an error.

    The temporary name is hidden and keeps the extension, because writers choose their format by it. Parent folders are made.

    Args:
      path: the file's final name; an older file of that name stays intact until the new one is complete.

    Raises:
      OSError: the disk is full, the folder is not writable …; the error names `path` and nothing of the new file is left.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with atomic_path(folder / "a.txt") as part:
      ...     _ = part.write_text("whole")
      >>> [file.name for file in folder.iterdir()]
      ['a.txt']
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _flush(part)
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error) or "could not be written"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        # What went wrong above matters more than a leftover that cannot be removed either.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Writes a file whole or not at all; returns its path. Raises `OSError` that names the file."""
    with atomic_path(path) as part:
        part.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes UTF-8 text with `\\n` line ends, whole or not at all; returns its path. Raises `OSError` that names the file."""
    return write_bytes(path, text.encode("utf-8"))


def check_writable(folder: str | os.PathLike) -> Path:
    """Makes the folder if needed and tries to write into it: hours of work should not end in a missing permission.

    Raises:
      ValueError: `folder` is a file.
      OSError: it cannot be made or written into; the error names it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {folder} is a file")
    probe = folder / f".{secrets.token_hex(4)}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = f"cannot write into the output folder ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, str(folder)) from error
    return folder


def sweep(folders: Iterable[Path]) -> None:
    """Remove temporary files that killed processes left in these folders; no other process may be writing there."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for file in folder.iterdir():
                if re.match(r"\.[0-9a-f]{8}-", file.name):
                    file.unlink()


def _flush(part: Path) -> None:
    # Network file systems report a full disk or quota only here, after every write has seemed to succeed.
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
