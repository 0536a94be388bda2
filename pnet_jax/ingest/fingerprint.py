"""Fingerprints of files, used to detect changes of the inputs of a result or of the result itself."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

EDGE = 1 << 16  # bytes read at each end of a file


def file_fingerprint(path: str | os.PathLike[str], *, whole: bool = False) -> str:
    """Compute a digest of the size and content of a file, 16 hexadecimal digits.

    Args:
      path: File to read.
      whole: Whether to read every byte, or only the first and last 64 KiB (the whole of a small file).

    Raises:
      OSError: If the file cannot be read.
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
    """Compute a digest of the input files of a result, in order; a file that does not exist counts as absent.

    Without `whole`, modification times are included, because the middle of a large file is not read.

    Args:
      files: Recording, mask, confounds, sidecars, …; None for a file that the scan lacks.
      whole: See `file_fingerprint`.
    """
    parts = []
    for file in files:
        try:
            parts.append("" if file is None else file_fingerprint(file, whole=whole) + ("" if whole else f"@{os.stat(file).st_mtime_ns}"))
        except OSError as error:
            parts.append(type(error).__name__)
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
