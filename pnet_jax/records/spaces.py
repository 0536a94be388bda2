"""Tables of the Spaces in a store: one file per Space, named by the hash of its locations."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pnet_jax.outputs.atomic import write_bytes
from pnet_jax.records.packing import digest_of, file_digest
from pnet_jax.space import Space, space_of_tables, space_tables


def space_hash(space: Space) -> str:
    """Hash a Space to 16 letters; equal for Spaces with the same locations in the same order."""
    return digest_of(
        np.ascontiguousarray(np.round(space.xyz, 2) + np.float32(0)).tobytes(),
        np.int8(space.hemisphere).tobytes(),
        np.int16(space.structure).tobytes(),
        json.dumps([space.structures, space.kind, space.name, space.names]),
    )[:16]


def write_space(folder: Path, space: Space) -> str:
    """Store a Space under its hash, unless it is already stored; return the hash."""
    name = space_hash(space)
    path = folder / space_file(name)
    if path.exists():
        return name
    text, tables = space_tables(space)
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, text=json.dumps(text), **tables)
    write_bytes(path, packed.getvalue())
    return name


def load_space(path: Path) -> Space:
    """Load a Space written by `write_space`, without CIFTI brain models; neighbours of voxels follow the axis order of the image."""
    with np.load(path) as file:
        text, tables = json.loads(str(file["text"])), {key: file[key] for key in file.files if key != "text"}
    return space_of_tables(text, tables)


def space_file(name: str) -> str:
    """Return the path of a Space's file, relative to the store."""
    return f"spaces/{name}.npz"


def space_row(folder: Path, name: str) -> dict[str, Any] | None:
    """Make the row of a Space in the manifest, or None if its file is missing or its content does not match its name."""
    path = folder / space_file(name)
    try:
        space = load_space(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    if space_hash(space) != name:
        return None
    about = {"kind": space.kind, "name": space.name, "resolution": space.resolution}
    return {"locations": len(space), **about, "file": space_file(name), "bytes": path.stat().st_size, "sha256": file_digest(path)}
