"""The store on disk: one ArrayRecord file a scan, one table a Space, and the manifest that names and counts them all."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.outputs.atomic import atomic_path, write_text
from pnet_jax.records.packing import digest_of, file_digest, pack, unpack
from pnet_jax.records.spaces import load_space, space_row, write_space
from pnet_jax.scan import Half, Scan
from pnet_jax.space import Space

FORMAT, VERSION = "pnet_jax records", 1
MANIFEST = "manifest.json"
# Band-limited float16 shrinks by 8 % under zstd and takes twice as long to read.
_WRITING = "group_size:1,uncompressed"
_READING = "readahead_buffer_size:0,max_parallelism:0"  # what ArrayRecord advises for random access
_COMPARED = ("low_pass", "high_pass", "detrend", "strategy")


@dataclasses.dataclass(frozen=True)
class Record:
    """One scan in a store: its row of the manifest.

    Attributes:
      scan: label, `sub-01_ses-1_task-rest`.
      subject: who: the label without `sub-`, after the data set's name where one was given (`abide/01`).
      dataset: name of the data set, or empty.
      session: label, or empty.
      run: label, or empty.
      site: where it was recorded, or empty.
      space: hash of its Space.
      tr: repetition time in seconds.
      frames: T, kept frames.
      recorded: frames before scrubbing.
      bounds: first frame of each window, and T.
      file: its ArrayRecord file, relative to the store.
      bytes: size of the file.
      sha256: of the file.
      settings: how it was cleaned, without the names of the confounds.
      source: file it came from.
      origin: name and size of the files it came from, or a hash of the signals it was made of.
      job: hash of all that decides what is stored of these files.
      warnings: what the reader should know.
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
        """The scan's name in the store."""
        return record_key(self.dataset, self.scan)


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """Records that can be read.

    Attributes:
      folder: where they are.
      records: one a scan; a scan's number is its place here.
      spaces: size, file and hash of each Space, by its own hash.
      skipped: scans that could not be used: `scan`, `source`, `reason`.
      digest: hash of everything the manifest counts; two stores with the same digest hold the same signals.
      damaged: what is wrong with a record's file, by the record's key; only in a store that was opened with `allow_damaged`.
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
        """Who is in it, sorted."""
        return tuple(sorted({record.subject for record in self.records}))


class Locations(NamedTuple):
    """What a record says of its scan beside the signals: `valid`, `mean` and `std` `[V]` (see `Scan`), and the kept `frames` `[T]`."""

    valid: Bool[np.ndarray, " V"]
    mean: Float[np.ndarray, " V"]
    std: Float[np.ndarray, " V"]
    frames: Int[np.ndarray, " T"]


def record_key(dataset: str, scan: str) -> str:
    """`abide/sub-01_task-rest`, or the scan's label alone."""
    return f"{dataset}/{scan}" if dataset else scan


def open_store(folder: str | os.PathLike[str], *, verify: bool = False, allow_mixed: bool = False, allow_damaged: bool = False) -> Store:
    """Opens a store and checks that it can be trained on.

    Args:
      folder: what `prepare` wrote.
      verify: compare the SHA-256 of every file with the manifest; existence and sizes are compared always.
      allow_mixed: accept scans that were cleaned by different settings.
      allow_damaged: list scans whose file is missing or not what the manifest says in `damaged`, for one who goes on without them.

    Raises:
      FileNotFoundError: no store in that folder, or a file of it is missing.
      ValueError: the manifest is damaged or of another version, no scan is in it, a file is not what the manifest says, or scans
        were cleaned by different settings (two of them are named).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        hint = f", which makes one of scans: `pnet prepare {folder} STORE`" if folder.exists() else ""
        raise FileNotFoundError(f"store {folder}: no {MANIFEST} in it; expected a folder that `pnet prepare` wrote{hint}")
    records = tuple(record_of_row(row) for row in manifest["scans"])
    skipped = tuple(manifest["skipped"])
    if not records:
        because = f"; {len(skipped)} scans were skipped, the first: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"store {folder} is empty: expected at least one scan{because}")
    files = {record.file: (record.bytes, record.sha256) for record in records}
    files |= {space["file"]: (space["bytes"], space["sha256"]) for space in manifest["spaces"].values()}
    keys, damaged = {record.file: record.key for record in records}, {}
    for file, (size, digest) in files.items():
        try:
            _check_file(folder, file, size, digest if verify else None)
        except (FileNotFoundError, ValueError) as error:
            if not allow_damaged or file not in keys:  # without its Space no scan can be read
                raise
            damaged[keys[file]] = str(error)
    if not allow_mixed:
        _check_settings(folder, records)
    digest = digest_of(*(f"{name} {files[name][1]}" for name in sorted(files)))
    return Store(folder, records, manifest["spaces"], skipped, digest, damaged)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none. ValueError if it is damaged or of another version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"store {folder}: {MANIFEST} is damaged: {error}; `pnet prepare` into the same folder repairs it") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"store {folder}: {MANIFEST} is no manifest of records: expected format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"store {folder} was written by another version (pnet_jax {manifest.get('made_with')}): expected format version {VERSION}, "
            f"found {manifest.get('version')}; prepare the scans again into a new folder"
        )
    return manifest


def write_manifest(folder: Path, records: Sequence[Record], skipped: Sequence[Mapping[str, str]]) -> Path:
    """Writes the manifest of these scans, whole or not at all; Spaces are those that the scans are on."""
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
        "spaces": {name: space_row(folder, name) for name in hashes},
        "scans": [dataclasses.asdict(record) for record in sorted(records, key=lambda record: record.key)],
        "skipped": sorted((dict(row) for row in skipped), key=lambda row: row["scan"]),
    }
    return write_text(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# Scans


def write_scan(
    folder: Path, scan: Scan, *, dataset: str = "", site: str = "", window: int = 100, job: str = "", origin: tuple[Any, ...] = ()
) -> Record:
    """Writes one scan and, where it is new, its Space; returns its row. The file has its name only when it is complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    frames = scan.y.shape[1]
    count = -(-frames // window)
    bounds = tuple(frames * i // count for i in range(count + 1))
    cleaning = {key: scan.cleaning[key] for key in sorted(scan.cleaning) if _plain(scan.cleaning[key])}
    settings = {key: cleaning[key] for key in cleaning if not key.startswith("confounds")}  # long lists; the scan's own file has them
    subject = record_key(dataset, scan.subject)
    session, run = scan.entities.get("ses", ""), scan.entities.get("run", "")
    row = Record(
        scan.label, subject, dataset, session, run, site, write_space(folder, scan.space), scan.tr, frames, scan.recorded, bounds,
        scan_file(dataset, scan.label), 0, "", settings, scan.source, origin, job, scan.warnings,
    )  # fmt: skip
    header = {
        "format": FORMAT,
        "version": VERSION,
        "entities": scan.entities,
        "label": scan.subject,
        "cleaning": cleaning,
        "wide": scan.wide is not None,
        "halves": None if scan.halves is None else [half.degrees for half in scan.halves],
        "degrees": scan.degrees,
        "row": dataclasses.asdict(row),
    }
    own: dict[str, np.ndarray] = {
        "valid": scan.valid,
        "mean": scan.mean.astype(np.float32),
        "std": scan.std.astype(np.float32),
        "frames": scan.frames.astype(np.int32),
    }
    of_window = {"subject": subject, "session": session, "run": run, "site": site, "space": row.space, "tr": scan.tr, "scale": 1.0}
    path = folder / row.file
    with atomic_path(path) as part:
        try:
            writer = ArrayRecordWriter(str(part), _WRITING)
            writer.write(pack(header, own))
            for start, stop in itertools.pairwise(bounds):
                y = scan.y[:, start:stop].astype(np.float16)
                writer.write(pack(of_window | {"start": start, "position": int(scan.frames[start])}, {"y": y}))
            if scan.wide is not None:  # behind all others: pre-training reads none
                for start, stop in itertools.pairwise(bounds):
                    writer.write(pack(of_window | {"start": start}, {"wide": scan.wide[:, start:stop].astype(np.float16)}))
            for half in scan.halves or ():
                writer.write(pack(of_window, {"y": half.y.astype(np.float16), "frames": half.frames.astype(np.int32)}))
            writer.close()  # a full disk is noticed here
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error)) from error
    return dataclasses.replace(row, bytes=path.stat().st_size, sha256=file_digest(path))


def recover(folder: Path, file: str) -> Record | None:
    """The row of a complete scan file that no manifest names (the process was stopped before it wrote one); None if it is unusable."""
    path = folder / file
    try:
        header, _ = unpack(_read(path, [0])[0])
        if header["version"] != VERSION:
            return None
        return dataclasses.replace(record_of_row(header["row"]), bytes=path.stat().st_size, sha256=file_digest(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scan_file(dataset: str, label: str) -> str:
    """File of a scan, relative to the store."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in label)
    return f"scans/{record_key(dataset, plain if plain == label else f'{plain}-{digest_of(label)[:8]}')}.array_record"


def read_locations(store: Store, number: int) -> Locations:
    """What a record says of its scan beside the signals."""
    return Locations(**unpack(_read(store.folder / store.records[number].file, [0])[0])[1])


def read_windows(store: Store, number: int, windows: Sequence[int]) -> list[Float[np.ndarray, "V n"]]:
    """Signals of some windows of a scan, float16 and read-only, `[V, frames of the window]` each."""
    packed = _read(store.folder / store.records[number].file, [1 + window for window in windows])
    return [unpack(data)[1]["y"] for data in packed]


def read_scan(store: Store, number: int) -> Scan:
    """A whole scan, as `prepare` was given it but for the float16 in which its signals were kept."""
    record = store.records[number]
    header, own = unpack(_read(store.folder / record.file, [0])[0])
    windows = range(len(record.bounds) - 1)
    y = np.concatenate(read_windows(store, number, windows), axis=1, dtype=np.float32)
    wide = None
    if header.get("wide"):
        packed = _read(store.folder / record.file, [1 + len(windows) + window for window in windows])
        wide = np.concatenate([unpack(data)[1]["wide"] for data in packed], axis=1)
    halves = None
    if header.get("halves"):
        start = 1 + len(windows) * (2 if header.get("wide") else 1)
        parts = [unpack(data)[1] for data in _read(store.folder / record.file, [start, start + 1])]
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


def _read(path: Path, numbers: Sequence[int]) -> list[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise FileNotFoundError(f"{path}: the store's manifest names this file, and it is not there")
    try:  # the library's exceptions share no class below RuntimeError
        reader = ArrayRecordReader(str(path), _READING)
        try:
            return reader.read(list(numbers))
        finally:
            reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: this file of the store is damaged ({error}); prepare its scan again") from error


def read_space(store: Store, name: str) -> Space:
    """A Space of the store, by its hash, without CIFTI's brain models. Neighbours of voxels come in the order of the image's own axes."""
    return load_space(store.folder / store.spaces[name]["file"])


# Checks


def _check_file(folder: Path, file: str, size: int, digest: str | None) -> None:
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"store {folder}: {file} is missing; `pnet prepare` into the same folder writes it again")
    if path.stat().st_size != size:
        raise ValueError(
            f"store {folder}: {file} has another size than when it was written: expected {size} bytes, found {path.stat().st_size}"
        )
    if digest is not None and (found := file_digest(path)) != digest:
        raise ValueError(f"store {folder}: {file} was changed after it was written: expected SHA-256 {digest}, found {found}")


def _check_settings(folder: Path, records: Sequence[Record]) -> None:
    """Signals of different bands are no samples of one distribution: their correlations differ for that reason alone."""
    first: dict[str, Record] = {}
    for record in records:
        for key in _COMPARED:
            if key not in record.settings:  # made elsewhere, which does not say
                continue
            other = first.setdefault(key, record)
            ours, theirs = record.settings[key] or None, other.settings[key] or None
            if ours != theirs:
                raise ValueError(
                    f"store {folder} mixes scans that were cleaned by different settings: {other.key} by {_said(other)}, {record.key} by "
                    f"{_said(record)}; prepare them with one setting, or allow it (allow_mixed)"
                )


def _said(record: Record) -> str:
    return ", ".join(f"{key} = {record.settings[key]}" for key in _COMPARED if key in record.settings)


def record_of_row(row: Mapping[str, Any]) -> Record:
    known = {field.name for field in dataclasses.fields(Record)}
    values = {key: tuple(value) if key in ("bounds", "warnings") else value for key, value in row.items() if key in known}
    return Record(**{**values, "origin": _nested(row["origin"])})


def _nested(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(_nested(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
