"""`SHA256SUMS`: the SHA-256 of every file in a folder, to detect changed files and name them."""

from __future__ import annotations

import hashlib
import pathlib
import re

from pnet_jax.errors import SettingsError

SUMS = "SHA256SUMS"  # in the format of the command `sha256sum`, so that `sha256sum --check SHA256SUMS` works too


def write_sums(folder: pathlib.Path) -> None:
    """Write `SHA256SUMS`, which lists the SHA-256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def check_sums(folder: pathlib.Path, where: str) -> None:
    """Compare every listed file with its digest; unlisted files are ignored.

    Args:
      folder: Folder to check.
      where: Kind of folder and its path, for the error message.

    Raises:
      SettingsError: If a file is missing or was changed, or there is no list.
      OSError: If a file cannot be read.
    """
    if not (folder / SUMS).is_file():
        raise SettingsError(f"{where} is incomplete: expected a file {SUMS}, found none; regenerate it")
    for number, line in enumerate((folder / SUMS).read_text("utf-8", errors="replace").removesuffix("\n").split("\n"), 1):
        listed = re.fullmatch(r"([0-9a-f]{64})  (.+)", line, re.DOTALL)
        if listed is None:
            raise SettingsError(f"{where} is damaged: line {number} of {SUMS} is not a SHA-256 and a file name; regenerate it")
        expected, name = listed.groups()
        path = folder / name.replace("\0", "?")
        if not path.is_file():
            raise SettingsError(f"{where} is damaged: expected the file {name!a} listed in {SUMS}, found none; regenerate it")
        if _sha256(path) != expected:
            raise SettingsError(f"{where} is damaged: {name} does not have the SHA-256 listed in {SUMS}; regenerate it")


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
