"""Tables of Spaces in a store: each once, in a file that is named by the hash of its locations."""

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
from pnet_jax.space import Grid, Space, grid_neighbours


def space_hash(space: Space) -> str:
    """Equal for Spaces with the same locations in the same order, 16 letters."""
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
    text = {"structures": space.structures, "kind": space.kind, "name": space.name, "resolution": space.resolution, "names": space.names}
    tables = {key: getattr(space, key) for key in ("xyz", "hemisphere", "structure")}
    if space.kind != "grid":  # those of voxels are many, and found again from their places
        tables["neighbours"] = space.neighbours
    if space.grid is not None:
        tables |= {"ijk": space.grid.ijk, "shape": np.array(space.grid.shape), "affine": space.grid.affine}
        if space.grid.to_mni is not None:
            tables["to_mni"] = space.grid.to_mni
    packed = io.BytesIO()
    np.savez_compressed(packed, text=json.dumps(text), **tables)
    write_bytes(path, packed.getvalue())
    return name


def load_space(path: Path) -> Space:
    """What `write_space` wrote, but for CIFTI's brain models; neighbours of voxels in the order of the image's own axes."""
    with np.load(path) as file:
        text, tables = json.loads(str(file["text"])), {key: file[key] for key in file.files if key != "text"}
    grid = None
    if "ijk" in tables:
        x, y, z = (int(n) for n in tables.pop("shape"))
        grid = Grid(tables.pop("ijk"), (x, y, z), tables.pop("affine"), tables.pop("to_mni", None))
    if grid is not None and "neighbours" not in tables:
        tables["neighbours"] = grid_neighbours(grid.ijk)
    names = None if text["names"] is None else tuple(text["names"])
    return Space(
        **tables, structures=tuple(text["structures"]), kind=text["kind"], name=text["name"], resolution=text["resolution"], grid=grid,
        names=names,
    )  # fmt: skip


def space_file(name: str) -> str:
    """File of a Space, relative to the store."""
    return f"spaces/{name}.npz"


def space_row(folder: Path, name: str) -> dict[str, Any] | None:
    """Make the row of a Space in the manifest; None if its file is missing, or its content does not match its name."""
    path = folder / space_file(name)
    try:
        space = load_space(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    if space_hash(space) != name:
        return None
    about = {"kind": space.kind, "name": space.name, "resolution": space.resolution}
    return {"locations": len(space), **about, "file": space_file(name), "bytes": path.stat().st_size, "sha256": file_digest(path)}
