"""Arrays and metadata in a folder, written with digests and verified when they are read."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from pnet_jax import parallel
from pnet_jax.checkpoint.digests import check_sums, write_sums
from pnet_jax.errors import SettingsError

FORMAT = 1
METADATA = "_CHECKPOINT_METADATA"  # written by orbax; without it a folder is not a checkpoint
_SPARE_BYTES = 1 << 20
_LATE_SECONDS = 0.3  # reads in progress when the first of them fails call back within this time

T = TypeVar("T")


def save_arrays(arrays: dict[str, Any], folder: str | pathlib.Path, *, kind: str, metadata: dict[str, Any]) -> pathlib.Path:
    """Write arrays and their metadata to a new folder.

    Args:
      arrays: Nested dicts of arrays.
      folder: Folder to create.
      kind: Kind of content, such as `"group model"`; must equal the `kind` passed to `load_arrays`.
      metadata: JSON-serialisable values.

    Raises:
      SettingsError: If the folder exists.
      OSError: If the folder cannot be created or the disk is full; no part of it is left.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise SettingsError(f"{folder} already exists: expected a new folder")
    write(folder, arrays, {**metadata, "format": FORMAT, "kind": kind})
    return folder


def load_arrays(folder: str | pathlib.Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the arrays and metadata written by `save_arrays`.

    Raises:
      SettingsError: If the folder does not exist, one of its files was changed, or it has another kind or format.
    """
    metadata = load_metadata(folder, kind=kind)
    folder = pathlib.Path(folder).absolute()
    return read(folder, f"{kind} {folder}"), metadata


def load_metadata(folder: str | pathlib.Path, *, kind: str) -> dict[str, Any]:
    """Verify every file written by `save_arrays`, as `load_arrays` does, but read only the metadata."""
    folder = pathlib.Path(folder).absolute()
    where = f"{kind} {folder}"
    if not folder.is_dir():
        raise SettingsError(f"{where} does not exist: expected a folder with {kind}")
    metadata = read_metadata(folder, where)
    if metadata.get("kind") != kind or metadata.get("format") != FORMAT:
        said = [metadata.get(key) for key in ("kind", "format")]
        found = f"{said[0] or 'a model'} of format {said[1]}" if any(said) else "neither kind nor format"
        raise SettingsError(f"{where}: expected {kind} of format {FORMAT}, found {found}")
    return metadata


def write(folder: pathlib.Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write arrays, metadata and digests under a temporary name, then rename. In multi-process runs, all processes must call it.

    Args:
      folder: Folder to write; an existing one is removed once the new one is complete.
      arrays: Nested dicts of arrays.
      metadata: JSON-serialisable values.

    Raises:
      OSError: If the folder cannot be created or the disk is full; nothing new is left.
    """
    from orbax.checkpoint import v1 as ocp

    leads = jax.process_index() == 0
    part = folder.with_name(f".{folder.name}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_space(folder, sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays)))
    try:
        if leads:
            shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        parallel.meet("a folder for arrays")
        with quiet():
            ocp.save(part, arrays, custom_metadata=metadata)
        if leads:
            marker = part / "commit_success.txt"
            if marker.exists():  # orbax only checks that it exists, and writes a local path into it
                marker.write_text("complete\n", "utf-8")
            write_sums(part)
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
        parallel.meet("arrays written")
    except BaseException as error:
        for leftover in folder.parent.glob(f"{part.name}*"):  # orbax uses its own temporary names
            shutil.rmtree(leftover, ignore_errors=True)
        if isinstance(error, OSError | ValueError):
            raise OSError(getattr(error, "errno", None) or errno.EIO, f"checkpoint not written ({reason(error)})", str(folder)) from error
        raise


def read_metadata(folder: pathlib.Path, where: str) -> dict[str, Any]:
    """Verify every file of a folder against its digest and read the metadata.

    Raises:
      SettingsError: If the folder is not a checkpoint of this package, or one of its files was changed; names the file.
    """
    from orbax.checkpoint import v1 as ocp

    if not (folder / METADATA).is_file():
        raise SettingsError(f"{where} is damaged or not a checkpoint: expected a file {METADATA}, found none")
    check_sums(folder, where)
    metadata: Any = attempt(lambda: ocp.metadata(folder).custom_metadata, f"{where} is damaged or not a checkpoint")
    if not isinstance(metadata, dict):
        raise SettingsError(f"{where} was not written by pnet_jax: it has no metadata")
    return metadata


def read(folder: pathlib.Path, where: str) -> dict[str, Any]:
    """Read the arrays of a folder whose files `read_metadata` has verified.

    Raises:
      SettingsError: If the arrays cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    found: Any = attempt(lambda: jax.tree.map(np.asarray, ocp.load(folder)), f"{where} is damaged: it cannot be read")
    return found


def check_space(folder: pathlib.Path, needed: int) -> None:
    """Raise if the disk has too little space: orbax's threads do not stop cleanly on a full disk."""
    free = shutil.disk_usage(folder.parent).free
    if free < needed + _SPARE_BYTES:
        size = f"{(needed + _SPARE_BYTES) / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
        raise OSError(errno.ENOSPC, f"No space left on device for the checkpoint: {size}", str(folder))


def attempt(read: Callable[[], T], said: str) -> T:
    """Run a read; convert errors to one line, and collect orbax's pending tasks before they log errors."""
    with quiet():
        try:
            return read()
        except Exception as error:  # noqa: BLE001  damage can raise any of orbax's errors
            because = f"{type(error).__name__}: {reason(error)}"
        logging.getLogger("asyncio").addFilter(_is_not_of_a_read)  # some tasks are collected only at exit
        time.sleep(_LATE_SECONDS)
        gc.collect()
    raise SettingsError(f"{said} ({because})")


def _is_not_of_a_read(record: logging.LogRecord) -> bool:
    return "tensorstore_spec" not in record.getMessage()


def reason(error: BaseException) -> str:
    """Return an error's message on one line of at most 300 characters."""
    text = " ".join(str(error).split(" [tensorstore_spec", 1)[0].split())
    return text if len(text) < 300 else f"{text[:300]} …"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the tracebacks that orbax and its event loop log for an error that is also raised."""
    loggers = [logger for logger in map(logging.getLogger, ("absl", "asyncio")) if not logger.disabled]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else hook(found)
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.disabled = False
