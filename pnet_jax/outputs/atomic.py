"""Atomic writing of files, so that readers never encounter partial files."""

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
    """Yield a temporary path next to `path`, which is renamed to `path` when the block ends without an error.

    The temporary name is hidden and keeps the extension, because writers choose their format by it. Parent folders are created.

    Args:
      path: Final path; an existing file remains intact until the new one is complete.

    Raises:
      OSError: If the disk is full or the folder is not writable; names `path`, and no part of the new file is left.

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
        # The error above matters more than a temporary file that cannot be removed.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file atomically and return its path. Raises `OSError` that names the file."""
    with atomic_path(path) as part:
        part.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write UTF-8 text with `\\n` line ends atomically and return the path. Raises `OSError` that names the file."""
    return write_bytes(path, text.encode("utf-8"))


def check_writable(folder: str | os.PathLike) -> Path:
    """Create the folder if needed and test that it is writable, so that missing permissions are detected before a long run.

    Raises:
      ValueError: If `folder` is a file.
      OSError: If it cannot be created or written to; names it.
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
    # Network file systems report a full disk or quota only here, after all writes appeared to succeed.
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
