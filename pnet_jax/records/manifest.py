"""Manifest of a store: names, counts and digests of all scans and Spaces in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs.atomic import write_text
from pnet_jax.records.packing import digest_of

FORMAT, VERSION = "pnet_jax records", 1
MANIFEST = "manifest.json"
REPAIRS = "`pnet prepare` into the same folder repairs it"


@dataclasses.dataclass(frozen=True)
class Record:
    """One scan in a store, as a row of the manifest.

    Attributes:
      scan: Label, `sub-01_ses-1_task-rest`.
      subject: Label without `sub-`, prefixed by the name of the data set if there is one (`abide/01`).
      dataset: Name of the data set, or empty.
      session: Session label, or empty.
      run: Run label, or empty.
      site: Site of the recording, or empty.
      space: Hash of its Space.
      tr: Repetition time in seconds.
      frames: Number of retained frames T.
      recorded: Number of frames before scrubbing.
      bounds: First frame of each window, followed by T.
      file: ArrayRecord file, relative to the store.
      bytes: Size of the file in bytes.
      sha256: SHA-256 of the file.
      settings: Cleaning settings, without the names of the confounds.
      source: File from which the scan was read.
      origin: Name and content digest of the files from which the scan was read, or a hash of its signals.
      job: Hash of everything that determines what is stored for these files.
      warnings: Warnings about the scan.
    """

    scan: str
    subject: str
    dataset: str
    session: str
    run: str
    site: str
    space: str
    tr: float
    frames: int
    recorded: int
    bounds: tuple[int, ...]
    file: str
    bytes: int
    sha256: str
    settings: dict[str, Any]
    source: str
    origin: tuple[Any, ...]
    job: str
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the scan in the store."""
        return record_key(self.dataset, self.scan)


def record_key(dataset: str, scan: str) -> str:
    """Return the name of a scan in a store: `abide/sub-01_task-rest`, or its label alone without a data set."""
    return f"{dataset}/{scan}" if dataset else scan


class DamagedManifestError(InputError):
    """The manifest is damaged; `prepare` regenerates it from the files of the scans."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest, or return None if there is none.

    Raises:
      DamagedManifestError: If the manifest was changed after it was written.
      SettingsError: If it was written by another program or version.
    """
    where = f"store {folder}: {MANIFEST}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DamagedManifestError(f"{where} is damaged: {error}; {REPAIRS}") from error
    expected = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
    found = _digest(manifest)
    if expected not in (None, found):
        raise DamagedManifestError(f"{where} was changed after it was written: expected SHA-256 {expected}, found {found}; {REPAIRS}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SettingsError(f"{where} is not a manifest of records: expected format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise SettingsError(
            f"{where} was written by another version (pnet_jax {manifest.get('made_with')}): expected format version {VERSION}, "
            f"found {manifest.get('version')}; prepare the scans again into a new folder"
        )
    if expected is None:
        raise DamagedManifestError(f"{where} is damaged: expected a SHA-256 of its content, found none; {REPAIRS}")
    return manifest


def write_manifest(
    folder: Path, records: Sequence[Record], skipped: Sequence[Mapping[str, str]], spaces: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Write the manifest of these scans atomically.

    Args:
      folder: Folder of the store.
      records: Scans in the store.
      skipped: Scans that could not be used: `scan`, `source`, `reason`.
      spaces: Rows of the scans' Spaces (`space_row`), by hash.
    """
    import pnet_jax

    hashes = sorted({record.space for record in records})
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made_with": pnet_jax.__version__,
        "counts": {
            "scans": len(records),
            "subjects": len({record.subject for record in records}),
            "windows": sum(len(record.bounds) - 1 for record in records),
            "frames": sum(record.frames for record in records),
            "hours": round(sum(record.frames * record.tr for record in records) / 3600, 3),
            "bytes": sum(record.bytes for record in records),
            "spaces": len(hashes),
            "skipped": len(skipped),
        },
        "spaces": {name: spaces[name] for name in hashes},
        "scans": [dataclasses.asdict(record) for record in sorted(records, key=lambda record: record.key)],
        "skipped": sorted((dict(row) for row in skipped), key=lambda row: row["scan"]),
    }
    return write_text(folder / MANIFEST, json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False) + "\n")


def _digest(content: Any) -> str:
    """Compute the digest of a manifest, which is independent of its layout, so that it is equal before writing and after reading."""
    return digest_of(json.dumps(content, sort_keys=True))


def record_of_row(row: Mapping[str, Any]) -> Record:
    """Convert a row of the manifest to a `Record`."""
    known = {field.name for field in dataclasses.fields(Record)}
    values = {key: tuple(value) if key in ("bounds", "warnings") else value for key, value in row.items() if key in known}
    return Record(**{**values, "origin": _nested(row["origin"])})


def _nested(value: Any) -> Any:
    """Convert lists back to tuples, which JSON stores as lists."""
    return tuple(_nested(item) for item in value) if isinstance(value, list | tuple) else value
