"""Fingerprints of files, which show whether the inputs of a result, or the result itself, have changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

EDGE = 1 << 16  # bytes at either end of a file


def file_fingerprint(path: str | os.PathLike[str], *, whole: bool = False) -> str:
    """Compute a digest of a file's size and content, 16 hexadecimal digits.

    Args:
      path: File to read.
      whole: Read every byte; otherwise the first and the last 64 KiB, which cover all of a small file.

    Raises:
      OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for its other end
        raise OSError(f"{path}: not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(str(size).encode())
        if whole:
            while part := file.read(1 << 20):
                digest.update(part)
        else:
            digest.update(file.read(EDGE))
            if size > EDGE:
                file.seek(max(EDGE, size - EDGE))
                digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]


def inputs_fingerprint(files: Iterable[Path | None], *, whole: bool = False) -> str:
    """Compute a digest of the files that a result is made from, in order; a file that does not exist counts as absent.

    Without `whole` the modification times count as well, because the middle of a large file is not read.

    Args:
      files: Recording, mask, confounds, sidecars …; None for a file that a scan does not have.
      whole: See `file_fingerprint`.
    """
    parts = []
    for file in files:
        try:
            parts.append("" if file is None else file_fingerprint(file, whole=whole) + ("" if whole else f"@{os.stat(file).st_mtime_ns}"))
        except OSError as error:
            parts.append(type(error).__name__)
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
