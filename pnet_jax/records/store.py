"""A store on disk: one ArrayRecord file per scan, one table per Space, and the manifest that lists them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.records.manifest import MANIFEST, REPAIRS, Record, read_manifest, record_of_row
from pnet_jax.records.packing import digest_of, file_digest, unpack
from pnet_jax.records.scans import read_records
from pnet_jax.records.spaces import load_space
from pnet_jax.scan import Half, Scan
from pnet_jax.space import Space

_COMPARED = ("low_pass", "high_pass", "detrend", "strategy")


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """A readable store of scans.

    Attributes:
      folder: Folder of the store.
      records: One record per scan; the number of a scan is its index here.
      spaces: Size, file and digest of each Space, by its hash.
      skipped: Scans that could not be used: `scan`, `source`, `reason`.
      digest: Hash of the manifest's content; stores with the same digest contain the same signals.
      damaged: Errors in the files of scans or their Spaces, by scan key; only in stores opened with `allow_damaged`.
    """

    folder: Path
    records: tuple[Record, ...]
    spaces: dict[str, dict[str, Any]]
    skipped: tuple[dict[str, str], ...]
    digest: str
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Labels of the subjects, sorted."""
        return tuple(sorted({record.subject for record in self.records}))


class Locations(NamedTuple):
    """Data of a record besides the signals: `valid`, `mean` and `std`, `[V]` each (see `Scan`), and the retained `frames`, `[T]`."""

    valid: Bool[np.ndarray, " V"]
    mean: Float[np.ndarray, " V"]
    std: Float[np.ndarray, " V"]
    frames: Int[np.ndarray, " T"]


def open_store(folder: str | os.PathLike[str], *, verify: bool = False, allow_mixed: bool = False, allow_damaged: bool = False) -> Store:
    """Open a store and check that it can be used for training.

    Args:
      folder: Folder written by `prepare`.
      verify: Compare the SHA-256 of every file with the manifest. Existence, sizes and the SHA-256 of Spaces are always compared, and the
          checksums of a scan's file when it is read.
      allow_mixed: Accept scans that were cleaned with different settings.
      allow_damaged: List scans with a missing or damaged file, or Space, in `damaged` instead of raising an error.

    Raises:
      FileNotFoundError: If the folder contains no store, or one of its files is missing.
      InputError: If the manifest or another file is damaged; names the file.
      SettingsError: If the store has another version or no scans, or scans were cleaned with different settings (names two).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        hint = f", which creates one from scans: `pnet prepare {folder} STORE`" if folder.exists() else ""
        raise FileNotFoundError(f"store {folder}: found no {MANIFEST}; expected a folder written by `pnet prepare`{hint}")
    records = tuple(record_of_row(row) for row in manifest["scans"])
    skipped = tuple(manifest["skipped"])
    if not records:
        because = f"; {len(skipped)} scans were skipped, the first: {skipped[0]['reason']}" if skipped else ""
        raise SettingsError(f"store {folder} is empty: expected at least one scan{because}")
    damaged: dict[str, str] = {}
    for file, size, digest, keys in _files(records, manifest["spaces"], verify):
        try:
            _check_file(folder, file, size, digest)
        except (FileNotFoundError, InputError) as error:
            if not allow_damaged:
                raise
            damaged |= dict.fromkeys(keys, str(error))
    if not allow_mixed:
        _check_settings(folder, records)
    files = {record.file: record.sha256 for record in records} | {row["file"]: row["sha256"] for row in manifest["spaces"].values()}
    digest = digest_of(*(f"{name} {files[name]}" for name in sorted(files)))
    return Store(folder, records, manifest["spaces"], skipped, digest, damaged)


def _files(
    records: Sequence[Record], spaces: Mapping[str, Mapping[str, Any]], verify: bool
) -> Iterator[tuple[str, int, str | None, list[str]]]:
    """List every file of a store with its size, its expected digest (None if not compared) and the keys of the scans that need it."""
    for record in records:
        yield record.file, record.bytes, record.sha256 if verify else None, [record.key]
    for name, row in spaces.items():  # small files without internal checksums
        yield row["file"], row["bytes"], row["sha256"], [record.key for record in records if record.space == name]


def read_locations(store: Store, number: int) -> Locations:
    """Read the data of a record besides the signals."""
    return Locations(**unpack(read_records(store.folder / store.records[number].file, [0])[0])[1])


def read_windows(store: Store, number: int, windows: Sequence[int]) -> list[Float[np.ndarray, "V n"]]:
    """Read the signals of some windows of a scan, float16 and read-only, `[V, frames of the window]` each."""
    packed = read_records(store.folder / store.records[number].file, [1 + window for window in windows])
    return [unpack(data)[1]["y"] for data in packed]


def read_scan(store: Store, number: int) -> Scan:
    """Read a whole scan, as it was passed to `prepare` except that its signals were stored as float16."""
    record = store.records[number]
    header, own = unpack(read_records(store.folder / record.file, [0])[0])
    windows = range(len(record.bounds) - 1)
    y = np.concatenate(read_windows(store, number, windows), axis=1, dtype=np.float32)
    wide = None
    if header.get("wide"):
        packed = read_records(store.folder / record.file, [1 + len(windows) + window for window in windows])
        wide = np.concatenate([unpack(data)[1]["wide"] for data in packed], axis=1)
    halves = None
    if header.get("halves"):
        start = 1 + len(windows) * (2 if header.get("wide") else 1)
        parts = [unpack(data)[1] for data in read_records(store.folder / record.file, [start, start + 1])]
        first, second = (
            Half(part["y"].astype(np.float32), part["frames"].astype(np.int64), degrees)
            for part, degrees in zip(parts, header["halves"], strict=True)
        )
        halves = first, second
    return Scan(
        y=y,
        space=read_space(store, record.space),
        tr=record.tr,
        frames=own["frames"].astype(np.int64),
        recorded=record.recorded,
        valid=own["valid"],
        mean=own["mean"],
        std=own["std"],
        subject=header["label"],
        entities=header["entities"],
        source=record.source,
        cleaning=header["cleaning"],
        warnings=record.warnings,
        wide=wide,
        halves=halves,
        degrees=header.get("degrees"),
    )


def read_space(store: Store, name: str) -> Space:
    """Read a Space of the store by its hash, without CIFTI brain models; neighbours of voxels follow the axis order of the image.

    Raises:
      FileNotFoundError: If its file is missing.
      InputError: If its file was changed after it was written; names the file.
    """
    row = store.spaces[name]
    _check_file(store.folder, row["file"], row["bytes"], row["sha256"])
    return load_space(store.folder / row["file"])


def _check_file(folder: Path, file: str, size: int, digest: str | None) -> None:
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"store {folder}: {file} is missing; {REPAIRS}")
    if path.stat().st_size != size:
        raise InputError(f"store {folder}: {file} has changed in size: expected {size} bytes, found {path.stat().st_size}; {REPAIRS}")
    if digest is not None and (found := file_digest(path)) != digest:
        raise InputError(f"store {folder}: {file} was changed after it was written: expected SHA-256 {digest}, found {found}; {REPAIRS}")


def _check_settings(folder: Path, records: Sequence[Record]) -> None:
    """Refuse signals from different bands: they are not samples of one distribution, since the band alone affects correlations."""
    first: dict[str, Record] = {}
    for record in records:
        for key in _COMPARED:
            if key not in record.settings:  # cleaned elsewhere, with unknown settings
                continue
            other = first.setdefault(key, record)
            ours, theirs = record.settings[key] or None, other.settings[key] or None
            if ours != theirs:
                raise SettingsError(
                    f"store {folder} mixes scans that were cleaned with different settings: {other.key} by {_said(other)}, {record.key} by "
                    f"{_said(record)}; prepare them with one setting, or allow it (allow_mixed)"
                )


def _said(record: Record) -> str:
    return ", ".join(f"{key} = {record.settings[key]}" for key in _COMPARED if key in record.settings)
