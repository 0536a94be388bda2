"""File of one scan in a store: an ArrayRecord of its locations, windows and halves."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pnet_jax.errors import InputError
from pnet_jax.outputs.atomic import atomic_path
from pnet_jax.records.manifest import FORMAT, REPAIRS, VERSION, Record, record_key, record_of_row
from pnet_jax.records.packing import digest_of, file_digest, pack, unpack
from pnet_jax.records.spaces import write_space
from pnet_jax.scan import Scan

# Uncompressed: zstd shrinks band-limited float16 by only 8 % and doubles the reading time.
_WRITING = "group_size:1,uncompressed"
_READING = "readahead_buffer_size:0,max_parallelism:0"  # recommended by ArrayRecord for random access


def write_scan(
    folder: Path, scan: Scan, *, dataset: str = "", site: str = "", window: int = 100, job: str = "", origin: tuple[Any, ...] = ()
) -> Record:
    """Write one scan and, if it is new, its Space; return its row. The file is renamed to its final name when it is complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    frames = scan.y.shape[1]
    count = -(-frames // window)
    bounds = tuple(frames * i // count for i in range(count + 1))
    cleaning = {key: scan.cleaning[key] for key in sorted(scan.cleaning) if _plain(scan.cleaning[key])}
    settings = {key: cleaning[key] for key in cleaning if not key.startswith("confounds")}  # long lists; the file of the scan has them
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
            if scan.wide is not None:  # last, because pre-training does not read them
                for start, stop in itertools.pairwise(bounds):
                    writer.write(pack(of_window | {"start": start}, {"wide": scan.wide[:, start:stop].astype(np.float16)}))
            for half in scan.halves or ():
                writer.write(pack(of_window, {"y": half.y.astype(np.float16), "frames": half.frames.astype(np.int32)}))
            writer.close()  # a full disk raises here
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error)) from error
    return dataclasses.replace(row, bytes=path.stat().st_size, sha256=file_digest(path))


def recover(folder: Path, file: str) -> Record | None:
    """Read the row of a scan file that no manifest names (the process stopped before it wrote one); None if the file is unusable.

    The whole file is read once, to verify the checksums that ArrayRecord keeps of every chunk.
    """
    path = folder / file
    try:
        header, _ = unpack(read_records(path, [0])[0])
        if header["version"] != VERSION:
            return None
        row = dataclasses.replace(record_of_row(header["row"]), bytes=path.stat().st_size, sha256=file_digest(path))
        read_records(path)
        return row
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scan_file(dataset: str, label: str) -> str:
    """Return the path of a scan's file, relative to the store."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in label)
    return f"scans/{record_key(dataset, plain if plain == label else f'{plain}-{digest_of(label)[:8]}')}.array_record"


def read_records(path: Path, numbers: Sequence[int] | None = None) -> list[bytes]:
    """Read records of a scan's file, all if no numbers are given.

    Raises:
      FileNotFoundError: If the file does not exist.
      InputError: If the file is damaged; names it.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise FileNotFoundError(f"{path}: this file is missing, although the manifest of the store lists it; {REPAIRS}")
    try:  # the library's exceptions share no class below RuntimeError
        reader = ArrayRecordReader(str(path), _READING)
        try:
            return reader.read_all() if numbers is None else reader.read(list(numbers))
        finally:
            reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(f"{path}: this file of the store is damaged ({error}); {REPAIRS}") from error


def _plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
