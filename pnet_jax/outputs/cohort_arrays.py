"""Arrays of a zarr v3 group with a cohort: layout, opening and checks. Only this module imports zarr."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from pnet_jax.errors import InputError
from pnet_jax.space import Space, space_of_tables, space_tables

FORMAT, VERSION = "pnet_jax cohort", 1
EDGES = "edges_"  # prefix of the names of edge arrays
LOCATIONS = "location_"  # prefix of the names of arrays that describe the locations
FILL = {"coverage": np.nan, "signals": np.nan, "frames": -1, "labels": -1, "confidence": 0.0, "qc": np.nan, "text": ""}


class CohortExtraMissingError(ImportError, ValueError):
    """The `cohort` extra is not installed. Also a ValueError, so that the command line reports it in one line."""


def exists(path: str | Path) -> bool:
    """Return whether a zarr group exists."""
    try:
        _zarr().open_group(_store(path), mode="r", zarr_format=3)
    except FileNotFoundError:
        return False
    return True


def open_store(path: str | Path, mode: str = "r") -> Any:
    """Open the zarr group of a store.

    Raises:
      FileNotFoundError: If there is no store.
      InputError: If it is not a cohort store, has another version, or its array descriptions are damaged; names it.
      CohortExtraMissingError: If zarr is not installed.
    """
    try:
        # Writers read the files themselves, because the consolidated copy dates from the last `seal`.
        group = _zarr().open_group(_store(path), mode=mode, zarr_format=3, use_consolidated=None if mode == "r" else False)
        attributes = group.attrs.asdict()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: cohort store not found") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and run `pnet collect` again") from error
    if attributes.get("format") != FORMAT or attributes.get("version") != VERSION:
        found = f"{attributes.get('format')!r}, version {attributes.get('version')}"
        raise InputError(f"{path}: expected a store of format {FORMAT!r}, version {VERSION}, found {found}")
    if attributes.get("digest") == "":
        said = "is incomplete or still being created; if no `pnet collect` is running, remove the store and run it again"
        raise InputError(f"{path}: {said}")
    if attributes.get("digest") != _digest(group):
        raise InputError(f"{path}: the array descriptions in zarr.json are damaged; remove the store and run `pnet collect` again")
    return group


def read_array(group: Any, name: str) -> np.ndarray:
    """Read an array written by `create`.

    Raises:
      InputError: If it is damaged; names it.
    """
    try:
        values = group[name][:]
        return values if values.dtype.kind in "biuf" else values.astype(object).astype(np.str_)
    except Exception as error:  # codecs raise any exception
        raise InputError(f"{group.store}: array {name} is damaged ({error}); remove the store and run `pnet collect` again") from error


def read_rows(group: Any, name: str, rows: slice, scans: Sequence[str]) -> np.ndarray:
    """Read rows of an array written by `write_block`.

    Args:
      group: Group of the store.
      name: Name of the array.
      rows: Rows of one block.
      scans: Labels of these rows.

    Raises:
      InputError: If the checksum of a chunk is wrong, or the chunk cannot be decoded; names the scan.
    """
    try:
        return group[name][rows]
    except Exception as error:  # codecs raise any exception
        bad = next(
            (scan for scan, row in zip(scans, range(rows.start, rows.stop), strict=True) if not _readable(group[name], row)), scans[0]
        )
        said = f"{name} of {bad} (block {rows.start // group.attrs['block']}) is damaged ({error})"
        raise InputError(f"{group.store}: {said}; run `pnet collect` again to rewrite the block") from error


def _readable(array: Any, row: int) -> bool:
    try:
        array[row]
    except Exception:  # noqa: BLE001  codecs raise any exception
        return False
    return True


def block_arrays(group: Any) -> Iterator[tuple[str, Any]]:
    """Return the arrays that `write_block` writes, except status and revision."""
    for name in sorted(group.array_keys()):
        if name in FILL or name.startswith(EDGES):
            yield name, group[name]


def is_empty(name: str, values: np.ndarray) -> bool:
    """Return whether values are those of an array to which nothing was written."""
    fill = fill_of(name)
    return bool(np.isnan(values).all()) if isinstance(fill, float) and np.isnan(fill) else bool((values == fill).all())


def fill_of(name: str) -> Any:
    """Return the value of a block array where nothing was written."""
    return np.nan if name.startswith(EDGES) else FILL[name]


def plain_name(name: str) -> str:
    """Return a name with letters, digits and `_` only."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def grow(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dims: Sequence[str],
    block: int,
    *,
    shard: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Create an array, or lengthen it."""
    if name in group:
        group[name].resize(shape)
        return
    sizes = {"chunks": (1, *shape[1:]), "shards": (block, *shape[1:])} if shard else {"chunks": (block, *shape[1:])}
    fill = fill_of(name) if name in FILL or name.startswith(EDGES) else 0
    codecs = _codecs(text=dtype is str)
    group.create_array(name, shape=shape, dtype=dtype, fill_value=fill, dimension_names=dims, attributes=attributes, **sizes, **codecs)


def put(group: Any, name: str, values: np.ndarray, dims: Sequence[str]) -> None:
    """Write a whole array as one chunk, replacing an older one unless it is the same."""
    text = values.dtype.kind in "UO"
    if name in group and group[name].shape == values.shape and np.array_equal(group[name][:], values, equal_nan=values.dtype.kind == "f"):
        return
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(size, 1) for size in values.shape),
        dtype=str if text else values.dtype,
        dimension_names=dims,
        overwrite=True,
        **_codecs(text),
    )
    array[...] = values.astype(object) if text else values


def _codecs(text: bool) -> dict[str, Any]:
    codecs = importlib.import_module("zarr.codecs")
    # Shuffling groups bytes by significance: 15 % less for floats. The checksum covers stored bytes, so damage is found before decoding.
    packed = codecs.ZstdCodec(level=3) if text else codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    return {"compressors": [packed, codecs.Crc32cCodec()]}


def space_content(space: Space) -> tuple[dict[str, tuple[tuple[str, ...], Any]], dict[str, Any]]:
    """Return a Space as arrays along `location`, and its other properties; without its mesh, which results do not hold either."""
    words, tables = space_tables(dataclasses.replace(space, mesh=None))
    short: dict[str, Any] = {key: np.asarray(tables.pop(key)).tolist() for key in ("shape", "affine", "to_mni") if key in tables}
    models: Any = space.grid.brain_models if space.grid is not None else None
    if models is not None:
        tables["vertex"] = np.asarray(models.vertex, np.int32)
        tables["model"] = np.asarray(models.name, str)
        short["vertices"] = {str(name): int(n) for name, n in models.nvertices.items()}
    second = {"xyz": "axis", "ijk": "axis", "neighbours": "neighbour"}
    arrays: dict[str, tuple[tuple[str, ...], Any]] = {
        LOCATIONS + key: (("location", second[key]) if key in second else ("location",), table) for key, table in tables.items()
    }
    return arrays, words | short


def read_space(group: Any, words: Mapping[str, Any], brief: bool) -> Space:
    """Read the Space that `space_content` described; `brief` omits the neighbours of voxels, which are slow to compute."""
    tables: dict[str, Any] = {
        name.removeprefix(LOCATIONS): read_array(group, name) for name in group.array_keys() if name.startswith(LOCATIONS)
    }
    tables |= {
        key: np.array(words[key], np.float64 if key != "shape" else np.int64) for key in ("shape", "affine", "to_mni") if key in words
    }
    models = None
    if "vertices" in words:
        from nibabel.cifti2 import BrainModelAxis

        volume = any(tables["vertex"] < 0)
        grid = {"affine": tables["affine"], "volume_shape": tuple(words["shape"])} if volume else {}
        names = tables.pop("model").astype(object)
        models = BrainModelAxis(names, voxel=tables["ijk"], vertex=tables.pop("vertex"), nvertices=words["vertices"], **grid)
    if brief:
        tables.setdefault("neighbours", np.zeros((len(tables["xyz"]), 0), np.int32))
    return space_of_tables(words, tables, models)


def _digest(group: Any) -> str:
    """Return the digest of the zarr.json files."""
    about = {key: value for key, value in group.attrs.asdict().items() if key != "digest"}
    arrays = {name: array.metadata.to_dict() for name, array in group.arrays()}
    return hashlib.sha256(json.dumps([about, arrays], sort_keys=True, default=str).encode()).hexdigest()


def _store(path: str | Path) -> Any:
    zarr, address = _zarr(), str(path)
    if address.startswith("file://"):
        address = unquote(urlparse(address).path)  # zarr's own local store renames finished files into place; that of fsspec does not
    return zarr.storage.FsspecStore.from_url(address) if "://" in address else zarr.storage.LocalStore(address)


def _zarr() -> Any:
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        raise CohortExtraMissingError("a cohort store needs zarr, which is not installed: pip install 'pnet_jax[cohort]'") from error


def new_store(path: str | Path) -> Any:
    """Create an empty zarr group."""
    return _zarr().open_group(_store(path), mode="w", zarr_format=3)


def clean(path: str | Path) -> None:
    """Remove partly written files of killed processes from a local store; no other process may be writing to it."""
    for file in () if "://" in str(path) else Path(path).rglob("*.partial"):
        file.unlink(missing_ok=True)


def seal(group: Any, attributes: Mapping[str, Any]) -> None:
    """Write the attributes of a complete group, their digest, and the consolidated metadata that readers open."""
    group.attrs.update(attributes)
    group.attrs["digest"] = _digest(group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that zarr v3 does not specify consolidated metadata, which here are only a copy
        _zarr().consolidate_metadata(group.store)
