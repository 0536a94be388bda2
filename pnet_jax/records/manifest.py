"""The manifest of a store, which names and counts every scan and Space in it."""

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
    """One scan in a store: its row of the manifest.

    Attributes:
      scan: label, `sub-01_ses-1_task-rest`.
      subject: label without `sub-`, after the name of the data set if it has one (`abide/01`).
      dataset: name of the data set, or empty.
      session: label, or empty.
      run: label, or empty.
      site: site of the recording, or empty.
      space: hash of its Space.
      tr: repetition time in seconds.
      frames: T, kept frames.
      recorded: frames before scrubbing.
      bounds: first frame of each window, and T.
      file: its ArrayRecord file, relative to the store.
      bytes: size of the file.
      sha256: SHA-256 of the file.
      settings: cleaning settings, without the names of the confounds.
      source: file from which it was read.
      origin: name and content digest of the files from which it was read, or a hash of its signals.
      job: hash of everything that determines what is stored of these files.
      warnings: warnings about the scan.
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
    """Read the manifest; None if there is none.

    Raises:
      DamagedManifestError: the manifest was changed after it was written.
      SettingsError: it was written by another program or version.
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
      folder: the store.
      records: the scans in it.
      skipped: scans that could not be used: `scan`, `source`, `reason`.
      spaces: rows of the Spaces of the scans (`space_row`), by hash.
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
    """Digest of a manifest, the same before it is written and after it is read, whatever its layout."""
    return digest_of(json.dumps(content, sort_keys=True))


def record_of_row(row: Mapping[str, Any]) -> Record:
    """Convert a row of the manifest to a `Record`."""
    known = {field.name for field in dataclasses.fields(Record)}
    values = {key: tuple(value) if key in ("bounds", "warnings") else value for key, value in row.items() if key in known}
    return Record(**{**values, "origin": _nested(row["origin"])})


def _nested(value: Any) -> Any:
    """Converts lists, which JSON makes of tuples, back to tuples."""
    return tuple(_nested(item) for item in value) if isinstance(value, list | tuple) else value
