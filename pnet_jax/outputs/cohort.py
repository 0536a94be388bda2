"""The cohort store: many results in one zarr v3 group, `cohort.zarr`, which many processes can fill without a lock.

A block is a run of consecutive scans. Each array has one file per block (a shard, or a chunk if the array is small), and only the process
that writes a block touches its files. Arrays that describe the scans and parcels are written only by `create` and `extend`. Every chunk has
a CRC-32C. `status` records which scans are stored; it is written last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from pnet_jax.cohort import COLUMNS, NUMBERS, TEXTS, Cohort, atlas_of, check_network, row_of, view_of
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.network import Network
from pnet_jax.outputs.cohort_arrays import (
    EDGES,
    FILL,
    FORMAT,
    LOCATIONS,
    VERSION,
    block_arrays,
    exists,
    fill_of,
    grow,
    is_empty,
    new_store,
    open_store,
    plain_name,
    put,
    read_array,
    read_rows,
    read_space,
    seal,
    space_content,
)
from pnet_jax.outputs.tables import column_names, plain
from pnet_jax.scan import label_entities, scan_label
from pnet_jax.space import Space, join_spaces, places_in

BLOCK = 32  # scans: see docs/architecture.md
FRAMES = 64  # T is padded to a multiple of this, so that slightly longer scans do not change array shapes
PENDING, DONE, FAILED = 0, 1, 2  # values of `status`
WORDS = (*TEXTS, "error", "provenance", "arrays", "result")  # columns of `text`


class Entry(NamedTuple):
    """Outcome of a scan.

    Attributes:
      network: Its result; None if it failed.
      error: Reason for the failure.
      result: Digest of the result files, by which later calls detect changes; empty if there is no result.
    """

    network: Network | None
    error: str = ""
    result: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Dimensions and contents for which the arrays of a store have room.

    Attributes:
      ids, names, hemispheres: Properties of the K parcels, as in `Network`.
      atlas: `source` and `digest` of the input atlas.
      edges: Edge measures, including shrunk and guided edges.
      frames: T, the number of frames of the longest scan.
      space: Space with V locations; scans on other Spaces have no labels in the store. None for a store without labels.
    """

    ids: Int[np.ndarray, " K"]
    names: tuple[str, ...]
    hemispheres: tuple[str, ...]
    atlas: dict[str, str]
    edges: tuple[str, ...]
    frames: int
    space: Space | None = None


def layout_of(network: Network) -> Layout:
    """Return the layout required by one network."""
    return Layout(
        network.ids, network.names, network.hemispheres, atlas_of(network), tuple(network.edges), len(network.frames), network.space
    )


def join_layouts(one: Layout, other: Layout) -> Layout:
    """Return a layout with room for the contents of both; locations that cannot be joined to those of the first are omitted.

    Raises:
      InputError: If the parcels or the atlas differ.
    """
    digests = one.atlas["digest"], other.atlas["digest"]
    if not np.array_equal(one.ids, other.ids) or (all(digests) and digests[0] != digests[1]):
        said = [f"{len(layout.ids)} parcels of {layout.atlas['source'] or 'an unnamed atlas'}" for layout in (one, other)]
        raise InputError(
            f"all scans of a cohort must have the same atlas, found {said[0]} (digest {digests[0]}) and {said[1]} (digest {digests[1]})"
        )
    space = one.space if one.space is None or other.space is None else join_spaces(one.space, other.space) or one.space
    edges = tuple(dict.fromkeys((*one.edges, *other.edges)))
    return dataclasses.replace(one, edges=edges, frames=max(one.frames, other.frames), space=space)


def create(
    path: str | Path, scans: Sequence[str], layout: Layout, covariates: Mapping[str, np.ndarray] | None = None, block: int = BLOCK
) -> None:
    """Create a store in which every scan is pending. One process calls this before any process writes a block.

    Args:
      path: A folder, or an fsspec address (`s3://…`, `memory://…`).
      scans: Unique labels in the order of the rows.
      layout: Dimensions and contents of the store.
      covariates: Further columns of the table by name, with one value per scan.
      block: Number of scans per block.

    Raises:
      SettingsError: If the store already exists, there are no scans, or a label occurs twice.
      CohortExtraMissingError: If zarr is not installed.
      OSError: If the store cannot be written.
    """
    if not scans or len(set(scans)) < len(scans):
        raise SettingsError(f"{path}: expected scans with different labels, got {len(scans)} with {len(set(scans))} labels")
    if exists(path):
        raise SettingsError(f"{path}: a cohort store already exists; choose another path or remove it")
    covariates = _checked_covariates(path, covariates, len(scans))
    _lay_out(new_store(path), scans, layout, covariates, block)


def extend(path: str | Path, scans: Sequence[str], layout: Layout, covariates: Mapping[str, np.ndarray] | None = None) -> None:
    """Make room in a store for further scans, edges, frames and locations, and replace the covariates.

    Only one process may call this, while no other process reads or writes. Existing scans keep their rows and must come first in `scans`.

    Raises:
      SettingsError: If `scans` does not begin with those of the store.
      InputError: If the atlas differs, or the store is damaged.
    """
    group = open_store(path, "r+")
    there = scans_of(group)
    if list(scans[: len(there)]) != there:
        raise SettingsError(f"{path}: expected the {len(there)} scans of the store first, in the same order")
    covariates = _checked_covariates(path, covariates, len(scans))
    _lay_out(group, scans, join_layouts(read_layout(group), layout), covariates, group.attrs["block"])


def write_block(path: str | Path, number: int, entries: Mapping[str, Entry]) -> None:
    """Write scans of one block; no other process may write the same block at the same time.

    Scans of the block that are not in `entries` remain unchanged. If the process is killed while writing, those in `entries` are pending. A
    network refused by `check_network` is stored as failed.

    Args:
      path: As for `create`.
      number: Index of the block; block b contains the scans b·n … b·n + n − 1 of the store, where n is `block`.
      entries: Outcomes of the scans, by label.

    Raises:
      SettingsError: If a scan is not in this block, or does not fit in the store (`extend`); names it.
      InputError: If the store is damaged, or a network has another atlas.
      OSError: If the store cannot be written.
    """
    group = open_store(path, "r+")
    scans = scans_of(group)[block_rows(group, number)]
    if unknown := [scan for scan in entries if scan not in scans]:
        raise SettingsError(f"{path}: block {number} has no scan {unknown[0]}: expected some of {scans[0]} … {scans[-1]}")
    layout = read_layout(group, brief=True)
    entries = {scan: _checked(scan, entry, layout) for scan, entry in entries.items()}
    content = {scans.index(scan): _content(entry, layout) for scan, entry in entries.items()}
    done = {scans.index(scan): DONE if entry.network is not None else FAILED for scan, entry in entries.items()}
    _write_rows(group, number, scans, content, done)


def write_cohort(path: str | Path, cohort: Cohort, block: int = BLOCK) -> None:
    """Write a Cohort to a new store; labels are omitted.

    Raises:
      SettingsError: If the store already exists, or the name of a covariate is reserved.
      OSError: If the store cannot be written.
    """
    frames = 1 if cohort.frames is None else cohort.frames.shape[1]
    layout = Layout(cohort.ids, cohort.names, cohort.hemispheres, cohort.atlas, tuple(cohort.edges), frames)
    covariates = {name: column for name, column in cohort.table.items() if name not in COLUMNS}
    create(path, [str(scan) for scan in cohort.table["scan"]], layout, covariates, block)
    group = open_store(path, "r+")
    scans = scans_of(group)
    for number in range(n_blocks(group)):
        rows = block_rows(group, number)
        content = {at: _row_of_cohort(cohort, s) for at, s in enumerate(range(rows.start, rows.stop))}
        _write_rows(group, number, scans[rows], content, dict.fromkeys(content, DONE))


def _row_of_cohort(cohort: Cohort, s: int) -> dict[str, np.ndarray]:
    out = {EDGES + plain_name(name): matrices[s] for name, matrices in cohort.edges.items()}
    out |= {"coverage": cohort.coverage[s], "qc": np.array([cohort.table[name][s] for name in NUMBERS], np.float64)}
    if cohort.signals is not None and cohort.frames is not None:
        out |= {"signals": cohort.signals[s], "frames": cohort.frames[s]}
    holds = [name for name, values in out.items() if not is_empty(name, values)]
    words = {name: str(cohort.table[name][s]) for name in TEXTS} | {"error": "", "result": "", "arrays": " ".join(holds)}
    words["provenance"] = json.dumps(plain({key: value for key, value in cohort.provenance.items() if key != "left_out"}), sort_keys=True)
    return out | {"text": np.array([words[word] for word in WORDS], object)}


def _write_rows(
    group: Any, number: int, scans: Sequence[str], content: Mapping[int, dict[str, np.ndarray]], done: Mapping[int, int]
) -> None:
    """Write the arrays of rows of a block; they are pending until all are written."""
    rows = block_rows(group, number)
    given = np.isin(np.arange(len(scans)), list(content))
    before, status = group["status"][rows], group["status"][rows]
    status[given] = PENDING
    group["status"][rows] = status
    # The revision tells a concurrent reader that rows changed, even if their status is the same afterwards.
    group["revision"][rows] = group["revision"][rows] + given
    keep = (before[~given] != PENDING).any()
    for name, array in block_arrays(group):
        shape = (len(scans), *array.shape[1:])
        values = read_rows(group, name, rows, scans) if keep else np.full(shape, fill_of(name), object if name == "text" else array.dtype)
        for at, arrays in content.items():
            values[at] = fill_of(name)
            if name in arrays:
                values[at][tuple(map(slice, arrays[name].shape))] = arrays[name]
        array[rows] = values
    status[list(done)] = list(done.values())
    group["status"][rows] = status


def scans_of(group: Any) -> list[str]:
    """Return the labels of a store's scans."""
    return read_array(group, "scan").tolist()


def n_blocks(group: Any) -> int:
    """Return the number of blocks in a store."""
    return -(-group["status"].shape[0] // group.attrs["block"])


def block_rows(group: Any, number: int) -> slice:
    """Return the rows of a block."""
    block, n = group.attrs["block"], group["status"].shape[0]
    if not 0 <= number < n_blocks(group):
        raise SettingsError(f"expected a block 0…{n_blocks(group) - 1}, got {number}")
    return slice(number * block, min((number + 1) * block, n))


def read_layout(group: Any, brief: bool = False) -> Layout:
    """Read the layout of a store; `brief` omits the neighbours of voxels, which are slow to compute."""
    about = group.attrs.asdict()
    edges = tuple(group[name].attrs["layer"] for name, _ in block_arrays(group) if name.startswith(EDGES))
    return Layout(
        ids=read_array(group, "parcel_id").astype(np.int32),
        names=tuple(read_array(group, "parcel_name").tolist()),
        hemispheres=tuple(read_array(group, "hemisphere").tolist()),
        atlas=about["atlas"],
        edges=tuple(sorted(edges, key=about["edges"].index)),
        frames=group["signals"].shape[2],
        space=None if about["space"] is None else read_space(group, about["space"], brief),
    )


def _checked(scan: str, entry: Entry, layout: Layout) -> Entry:
    """Return the entry, marked as failed if its network is refused."""
    network = entry.network
    if network is None:
        return entry
    if scan_label(network.subject, network.entities) != scan:
        raise SettingsError(f"expected a network of {scan}, got one of {scan_label(network.subject, network.entities)}")
    join_layouts(layout, layout_of(network))
    missing = [name for name in network.edges if name not in layout.edges]
    if missing or len(network.frames) > layout.frames:
        what = f"edges {missing[0]}" if missing else f"{len(network.frames)} frames"
        raise SettingsError(f"{scan}: the store has no room for {what}; extend it")
    try:
        check_network(network)
    except InputError as error:
        return Entry(None, str(error), entry.result)
    return entry


def _content(entry: Entry, layout: Layout) -> dict[str, np.ndarray]:
    """Return the rows of one scan, by array."""
    network = entry.network
    if network is None:
        return {"text": np.array([entry.error if word == "error" else entry.result if word == "result" else "" for word in WORDS], object)}
    row = row_of(network)
    out = {EDGES + plain_name(name): matrix for name, matrix in network.edges.items()}
    out |= {"coverage": network.coverage, "signals": network.signals, "frames": network.frames, "qc": np.array([row[x] for x in NUMBERS])}
    out |= _maps(network, layout)
    holds = [name for name, values in out.items() if not is_empty(name, values)]
    words = {name: row[name] for name in TEXTS} | {"error": "", "result": entry.result, "arrays": " ".join(holds)}
    words["provenance"] = json.dumps(plain(network.provenance), sort_keys=True)
    return out | {"text": np.array([words[word] for word in WORDS], object)}


def _maps(network: Network, layout: Layout) -> dict[str, np.ndarray]:
    """Return labels and confidence at the locations of the store; empty if the scan is in another Space."""
    if layout.space is None:
        return {}
    joined = join_spaces(layout.space, network.space)
    if joined is None:
        return {}
    at = places_in(joined, network.space)
    labels, confidence = np.full(len(joined), -1, np.int16), np.zeros(len(joined), np.float32)
    labels[at], confidence[at] = network.labels, network.confidence
    if (labels[len(layout.space) :] >= 0).any():
        raise SettingsError(f"{scan_label(network.subject, network.entities)}: the store has no room for all of its locations; extend it")
    return {"labels": labels[: len(layout.space)], "confidence": confidence[: len(layout.space)]}


def reserved(name: str) -> bool:
    """Return whether a covariate cannot have this name, because it is taken in a store or table or has invalid characters."""
    ours = {
        *COLUMNS,
        *FILL,
        "status",
        "revision",
        "parcel",
        "parcel_to",
        "parcel_name",
        "parcel_id",
        "hemisphere",
        "qc_column",
        "text_column",
    }
    return name in ours or name.startswith((EDGES, LOCATIONS)) or name != plain_name(name)


def _checked_covariates(path: str | Path, covariates: Mapping[str, np.ndarray] | None, n: int) -> Mapping[str, np.ndarray]:
    for name, column in (covariates or {}).items():
        if reserved(name) or len(column) != n:
            said = "the name is reserved, or has characters other than letters, digits and _"
            said = said if reserved(name) else f"expected one value for each of {n} scans, got {len(column)}"
            raise SettingsError(f"{path}: covariate {name!r}: {said}")
    return covariates or {}


def _lay_out(group: Any, scans: Sequence[str], layout: Layout, covariates: Mapping[str, np.ndarray], block: int) -> None:
    """Create or lengthen all arrays of a store, and write those that do not depend on results."""
    s, k, frames = len(scans), len(layout.ids), -(-layout.frames // FRAMES) * FRAMES
    group.attrs.update({"format": FORMAT, "version": VERSION, "digest": ""})  # the digest is added when everything is written
    matrix = ("scan", "parcel", "parcel_to")
    for name in layout.edges:
        view = view_of(name) | {"layer": name}
        grow(group, EDGES + plain_name(name), (s, k, k), np.float32, matrix, block, shard=True, attributes=view)
    grow(group, "coverage", (s, k), np.float32, matrix[:2], block)
    grow(group, "signals", (s, k, frames), np.float32, ("scan", "parcel", "frame"), block, shard=True)
    grow(group, "frames", (s, frames), np.int32, ("scan", "frame"), block)
    if layout.space is not None:
        for name, kind in (("labels", np.int16), ("confidence", np.float32)):
            grow(group, name, (s, len(layout.space)), kind, ("scan", "location"), block, shard=True)
    grow(group, "qc", (s, len(NUMBERS)), np.float64, ("scan", "qc_column"), block)
    grow(group, "text", (s, len(WORDS)), str, ("scan", "text_column"), block)
    meaning = {"flag_values": [PENDING, DONE, FAILED], "flag_meanings": "pending done failed"}
    grow(group, "status", (s,), np.int8, ("scan",), block, attributes=meaning)
    grow(group, "revision", (s,), np.int32, ("scan",), block)
    columns = _identity(scans) | dict(covariates)
    for name in group.attrs.get("covariates", []):
        if name not in covariates:
            del group[name]
    fixed: dict[str, tuple[tuple[str, ...], Any]] = {name: (("scan",), np.asarray(column)) for name, column in columns.items()}
    titles = column_names(layout)
    fixed |= {"parcel": (("parcel",), titles), "parcel_to": (("parcel_to",), titles), "parcel_name": (("parcel",), layout.names)}
    fixed |= {"parcel_id": (("parcel",), layout.ids), "hemisphere": (("parcel",), layout.hemispheres)}
    fixed |= {"qc_column": (("qc_column",), NUMBERS), "text_column": (("text_column",), WORDS)}
    tables, words = ({}, None) if layout.space is None else space_content(layout.space)
    for name, (dims, values) in (fixed | tables).items():
        put(group, name, np.asarray(values), dims)
    coordinates = " ".join([*columns, "parcel_name", "parcel_id", "hemisphere", *tables])
    about = {"format": FORMAT, "version": VERSION, "block": block, "atlas": layout.atlas, "edges": list(layout.edges), "space": words}
    seal(group, plain(about | {"covariates": list(covariates), "coordinates": coordinates}))


def _identity(scans: Sequence[str]) -> dict[str, np.ndarray]:
    keys = {"subject": "sub", "session": "ses", "task": "task", "run": "run"}
    entities = [label_entities(scan) for scan in scans]
    return {"scan": np.array(scans)} | {name: np.array([one.get(key, "") for one in entities]) for name, key in keys.items()}
