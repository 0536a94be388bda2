"""Reading of user files with third-party parsers: damaged content raises `InputError`; errors of the system pass unchanged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pnet_jax.errors import InputError, SettingsError

# For unreadable content, parsers raise OSError without an errno (gzip.BadGzipFile, short reads of nibabel), or a damaged offset makes
# a seek fail. Any other errno is an error of the system: a missing file, no permission, a full or failing disk.
CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)
MOST_SAID = 300  # longest excerpt of a parser's message, in characters

T = TypeVar("T")


@contextlib.contextmanager
def reading(problem: str) -> Iterator[None]:
    """Convert errors of a parser to an `InputError` that begins with `problem`, which names the file.

    `MemoryError` and errors of the operating system pass unchanged: they do not describe the content of the file.

    Raises:
      InputError: If the content cannot be read.

    Example:
      >>> import json
      >>> with reading("sub-01: settings.json is not readable JSON"):
      ...     json.loads("[" * 3)
      Traceback (most recent call last):
      pnet_jax.errors.InputError: sub-01: settings.json is not readable JSON (JSONDecodeError: Expecting value: line 1 column 4 (char 3))
    """
    try:
        yield
    except (InputError, SettingsError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in CONTENT:
            raise
        raise InputError(f"{problem} ({type(error).__name__}: {one_line(error)})") from error


def attempt(read: Callable[[], T], what: str, where: str) -> T:
    """Read a part of a file; see `reading`."""
    with reading(f"{where}: the file is truncated or corrupt at {what}"):
        return read()


def one_line(error: BaseException | str) -> str:
    """Return a message on one line, truncated if it is very long."""
    text = " ".join(str(error).split())
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"


def check_file(path: Path, where: str) -> None:
    """Check that a path is a regular file, without opening it, because opening a named pipe would block.

    Raises:
      InputError: If the path is a folder, a named pipe or a device.
      FileNotFoundError: If the file does not exist, or the link is broken.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise FileNotFoundError(f"{where}: no such file") from error
        annexed = "; its content is in git-annex: run `datalad get`" if ".git/annex" in os.readlink(path) else ""
        raise FileNotFoundError(f"{where}: no such file: broken link to {os.readlink(path)}{annexed}") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FileNotFoundError(f"{where}: no such file: symbolic link that points to itself") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise InputError(f"{where}: expected a file, found {kind}")


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Read the object in a JSON file, with or without the byte-order mark that Windows programs write.

    Args:
      path: JSON file.
      where: Name of the scan in messages.

    Raises:
      InputError: If the content is not JSON, or not an object.
      FileNotFoundError: If the file does not exist.
    """
    check_file(path, f"{where}: {path}")
    with reading(f"{where}: {path} is not readable JSON"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object in {path}, found {type(content).__name__}")
    return content
