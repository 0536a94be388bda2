"""Reading of results written by `save` into a Network."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.ingest.cifti import axes_of
from pnet_jax.ingest.nifti import attempt, open_image
from pnet_jax.network import QC, Network
from pnet_jax.outputs.bids import check_shapes
from pnet_jax.outputs.locations import CIFTI_MAPS, CONFIDENCE, LOCATIONS, MASK, MEAN, MOTION, PRIOR
from pnet_jax.outputs.reading import expect_shape, read_json, read_numbers, read_table, read_volume, stem_of, there
from pnet_jax.outputs.sidecars import stat_label
from pnet_jax.outputs.tables import beside, read_matrix
from pnet_jax.space import LEFT, RIGHT, Grid, Space, grid_space, hemisphere_of, point_space


def load_network(result: str | os.PathLike[str], *, brief: bool = False) -> Network:
    """Read a result written by `save`.

    Labels, ids, frames and identity are restored exactly; numbers have the 7 digits of the tables, and probabilities steps of 1/65535.
    Without a soft parcellation (`--no-probabilities`), the parcel of a location is its only candidate. Candidates are sorted by falling
    probability. Information that the files lack is omitted: the neighbours of CIFTI locations, and the mean image in MNI space.

    Args:
      result: Its `…_dseg.tsv`, or the name without that ending (`output_stem`).
      brief: Read only what a cohort contains: the parcel of each location as its only candidate, with the probability from the confidence
          map; no halves and no uncertainties. An order of magnitude faster for images.

    Raises:
      FileNotFoundError: If a file of the result is missing; names the file.
      ValueError: If a file is damaged, or was written by an incompatible version; names the file.

    Example:
      >>> from pnet_jax.outputs import load_network
      >>> network = load_network("derivatives/sub-01/func/sub-01_atlas-pnet_seg-geometric200_scale-200_dseg.tsv")  # doctest: +SKIP
    """
    stem = stem_of(result)
    try:
        network = _read(stem, brief)
        check_shapes(network)
    except (ValueError, KeyError, TypeError) as error:
        if str(stem) in str(error):
            raise
        raise ValueError(f"{stem}_…: damaged, or of another version ({type(error).__name__}: {error})") from error
    return network


def read_qc(file: Path) -> tuple[QC, dict[str, Any]]:
    """Read QC and provenance from a `…_desc-pnet_qc.json`.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If it is not JSON, or its fields are not those of `QC`; names the file.
    """
    found = read_json(file, "Provenance")
    try:
        return qc_of({key: value for key, value in found.items() if key not in ("scan", "Provenance")}), found["Provenance"]
    except ValueError as error:
        raise ValueError(f"{file}: {error}: damaged, or of another version; construct the scan again") from error


def qc_of(mapping: Mapping[str, Any]) -> QC:
    """Convert the JSON form of `dataclasses.asdict(qc)` to a QC; null in place of a number becomes NaN.

    Raises:
      ValueError: If a field is missing, unknown or of another type; names the field.

    Example:
      >>> qc_of(dataclasses.asdict(QC(warnings=("short scan",)))).warnings
      ('short scan',)
    """
    return _value(QC, mapping, "")


def _value(kind: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to the annotated type of a QC field."""
    parts: tuple[Any, ...] = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _value(next(part for part in parts if part is not types.NoneType), value, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = dict(value) if isinstance(value, Mapping) else {}
        missing, unknown = sorted(hints.keys() - given.keys()), sorted(given.keys() - hints.keys())
        if missing or unknown:
            said = [f"{what} {', '.join(fields)}" for what, fields in (("lacks", missing), ("has unknown fields:", unknown)) if fields]
            raise ValueError(f"{name or 'quality control'} {' and '.join(said)}")
        return kind(**{key: _value(hint, given[key], f"{name}.{key}".lstrip(".")) for key, hint in hints.items()})
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        each = [parts[0]] * len(value) if parts[-1] is ... else parts
        if len(each) == len(value):
            return tuple(_value(part, item, f"{name}[{at}]") for at, (part, item) in enumerate(zip(each, value, strict=True)))
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return {str(key): _value(parts[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return float("nan") if value is None else float(value)
    if kind is Any or (isinstance(kind, type) and type(value) is kind):
        return value
    raise ValueError(f"{name} holds {value!r}, expected {getattr(kind, '__name__', kind) if not parts else kind}")


def _read(stem: Path, brief: bool) -> Network:
    parcels = read_table(beside(stem, "dseg.tsv"), "index", "name", "hemisphere", "coverage")
    scan = read_json(beside(stem, "dseg.json"), "Scan")["Scan"]
    about = read_json(beside(stem, "stat-mean_timeseries.json"), "KeptFrames", "RepetitionTime")
    qc, provenance = read_qc(beside(stem, "desc-pnet_qc.json"))
    ids = np.array([int(row["index"]) for row in parcels], np.int32)
    space, labels, atlas_labels = locations_of(stem, scan, ids)
    if brief:
        candidates, probabilities = labels[:, None], read_confidence(stem, space)[:, None]
    else:
        candidates, probabilities = _soft(stem, space, labels, len(ids))
    return Network(
        space=space,
        labels=labels,
        candidates=candidates,
        probabilities=probabilities,
        signals=read_matrix(there(beside(stem, "stat-mean_timeseries.tsv"))).T,
        edges=_edges(stem, scan["Measures"]),
        ids=ids,
        names=tuple(row["name"] for row in parcels),
        hemispheres=tuple(row["hemisphere"] for row in parcels),
        atlas_labels=atlas_labels,
        coverage=np.array([row["coverage"] or "nan" for row in parcels], np.float32),
        frames=np.array(about["KeptFrames"], np.int64),
        tr=float(about["RepetitionTime"]),
        subject=scan["Subject"],
        entities=scan["Entities"],
        qc=qc,
        provenance=provenance,
        mean=_mean(beside(stem, f"{MEAN}.nii.gz"), space),
        displacement=_displacement(beside(stem, f"{MOTION}.tsv")),
        halves={} if brief else _halves(stem),
        uncertainty={} if brief else {of: read_matrix(there(file), index=True) for of, file in _matrices(stem, "UncertaintyOf")},
    )


def locations_of(stem: Path, scan: Mapping[str, Any], ids: np.ndarray) -> tuple[Space, Int[np.ndarray, " V"], Int[np.ndarray, " V"]]:
    """Return the Space, the labels, and the labels of the atlas."""
    read = {"grid": _from_grid, "cifti": _from_cifti, "points": _from_points}.get(scan["Kind"])
    if read is None:
        raise ValueError(f"{beside(stem, 'dseg.json')}: unknown kind of scan {scan['Kind']!r}: expected grid, cifti or points")
    return read(stem, scan, ids)


def _from_grid(stem, scan, ids):
    files = [beside(stem, ending) for ending in ("dseg.nii.gz", f"{PRIOR}.nii.gz", f"{MASK}.nii.gz")]
    (labels, affine), (prior, _), (mask, _) = (read_volume(file) for file in files)
    for file, volume in zip(files[1:], (prior, mask), strict=True):
        if volume.shape != labels.shape:
            raise ValueError(f"{file}: expected the shape of the parcellation, {labels.shape}, found {volume.shape}")
    whole = scan["VoxelToMNI"]
    to_mni = None if whole is None else np.array(whole) @ np.linalg.inv(affine)
    space = grid_space(mask > 0, affine, name=scan["Space"], to_mni=to_mni)
    assert space.grid is not None
    at = tuple(space.grid.ijk.T)
    return space, _parcels(labels[at], ids, files[0]), _parcels(prior[at], ids, files[1])


def _from_cifti(stem, scan, ids):
    file, beyond = beside(stem, "dseg.dlabel.nii"), beside(stem, f"{LOCATIONS}.dscalar.nii")
    image: Any = open_image(file, str(file))
    models: Any = axes_of(image, _brain_models(), "labels of vertices and voxels", str(file))[1]
    x, y, z, prior = read_numbers(open_image(beyond, str(beyond)), (len(CIFTI_MAPS), len(models)), beyond)
    labels = read_numbers(image, (1, len(models)), file)[0]
    names, volume = np.asarray(models.name, str), np.asarray(models.volume_mask)
    xyz = np.column_stack([x, y, z]).astype(np.float32)
    sides = [np.char.find(names, side) >= 0 for side in ("_LEFT", "_RIGHT")]
    structures, structure = np.unique(names, return_inverse=True)
    shape = tuple(map(int, models.volume_shape)) if volume.any() else (0, 0, 0)
    voxel = np.where(volume[:, None], models.voxel, -1).astype(np.int32)
    space = Space(
        xyz=xyz,
        hemisphere=np.select(sides, (LEFT, RIGHT), hemisphere_of(xyz)).astype(np.int8),
        structure=structure.reshape(-1).astype(np.int16),
        structures=tuple(map(str, structures)),
        neighbours=np.full((len(xyz), 0), -1, np.int32),
        kind="cifti",
        name=scan["Space"],
        resolution=float(scan["Resolution"]),
        grid=Grid(voxel, (shape[0], shape[1], shape[2]), models.affine if volume.any() else np.eye(4), brain_models=models),
    )
    return space, _parcels(labels, ids, file), _parcels(prior, ids, beyond)


def _from_points(stem, scan, ids):
    file = beside(stem, f"{LOCATIONS}.tsv")
    rows = read_table(file, "name", "x", "y", "z", "index", "atlas_index")
    xyz = np.array([[row[axis] for axis in "xyz"] for row in rows], np.float32)
    space = point_space(xyz, names=[row["name"] for row in rows], name=scan["Space"])
    return space, *(_parcels(np.array([row[column] for row in rows], np.int64), ids, file) for column in ("index", "atlas_index"))


def _soft(stem: Path, space: Space, labels: np.ndarray, n_parcels: int) -> tuple[Int[np.ndarray, "V C"], Float[np.ndarray, "V C"]]:
    """Return candidates by falling probability, and the probabilities; a location's parcel is always among its candidates."""
    columns = _columns(stem, space, n_parcels)
    if columns is None:
        return labels[:, None], (labels >= 0).astype(np.float32)[:, None]
    places, parcels, chances = [], [], []
    for k, values in enumerate(columns):
        own = np.flatnonzero((values > 0) | (labels == k))
        places.append(own)
        parcels.append(np.full(len(own), k, np.int32))
        chances.append(values[own])
    place, parcel, chance = (np.concatenate(parts) for parts in (places, parcels, chances))
    order = np.lexsort((-chance, place))
    place = place[order]
    slot = np.arange(len(place)) - np.searchsorted(place, place)
    shape = (len(labels), int(slot.max(initial=0)) + 1)
    candidates, probabilities = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    candidates[place, slot], probabilities[place, slot] = parcel[order], chance[order]
    return candidates, probabilities


def read_confidence(stem: Path, space: Space) -> Float[np.ndarray, " V"]:
    """Read the probability of each location's parcel, 0 outside; an error names the file."""
    if space.grid is None:
        rows = read_table(beside(stem, f"{LOCATIONS}.tsv"), "confidence")
        return np.array([row["confidence"] or 0 for row in rows], np.float32)
    file = beside(stem, f"{CONFIDENCE}.dscalar.nii" if space.kind == "cifti" else f"{CONFIDENCE}.nii.gz")
    if space.kind == "cifti":
        return read_numbers(open_image(file, str(file)), (1, len(space)), file)[0]
    volume, _ = read_volume(file)
    expect_shape(volume.shape, space.grid.shape, file)
    return volume[tuple(space.grid.ijk.T)].astype(np.float32)


def _columns(stem: Path, space: Space, n_parcels: int) -> Iterable[Float[np.ndarray, " V"]] | None:
    """Yield each parcel's probability at all locations, one parcel at a time; None if no soft parcellation was written."""
    file = beside(stem, {"grid": "probseg.nii.gz", "cifti": "probseg.dscalar.nii", "points": "probseg.tsv"}[space.kind])
    if not file.exists():
        return None
    if space.grid is None:
        table = read_matrix(file, index=True)
        expect_shape(table.shape, (len(space), n_parcels), file)
        return table.T
    image: Any = open_image(file, str(file))
    if space.kind == "cifti":
        return read_numbers(image, (n_parcels, len(space)), file)
    expect_shape(image.shape, (*space.grid.shape, n_parcels), file)
    return _volumes(image, tuple(space.grid.ijk.T), n_parcels, file)


def _volumes(image: Any, at: tuple[np.ndarray, ...], n_parcels: int, file: Path) -> Iterator[Float[np.ndarray, " V"]]:
    for k in range(n_parcels):
        yield np.asarray(attempt(partial(image.dataobj.__getitem__, (..., k)), f"volume {k}", str(file)))[at].astype(np.float32)


def _edges(stem: Path, measures: list[str]) -> dict[str, Float[np.ndarray, "K K"]]:
    """Read the requested measures in their order, then those that were added later (cohort measures)."""
    files = {measure: beside(stem, f"stat-{stat_label(measure)}_relmat.tsv") for measure in measures}
    for measure, file in _matrices(stem, "Measure"):
        files.setdefault(measure, file)
    return {measure: read_matrix(there(file), index=True) for measure, file in files.items()}


def _matrices(stem: Path, key: str) -> Iterator[tuple[str, Path]]:
    """Yield the tables whose sidecar names a measure under `key`, with that name."""
    for about in sorted(stem.parent.glob(f"{stem.name}_stat-*_relmat.json")):
        said = read_json(about)
        if not {"Measure", "UncertaintyOf", "HalfOf"} & set(said):
            raise ValueError(f"{about}: lacks Measure: damaged, or written by an older version; construct the scan again")
        if key in said:
            yield said[key], about.with_suffix(".tsv")


def _halves(stem: Path) -> dict[str, Float[np.ndarray, "2 K K"]]:
    """Read the edges of both halves for each measure that has them; files are sorted by name, half 1 first."""
    found: dict[str, list[np.ndarray]] = {}
    for measure, file in _matrices(stem, "HalfOf"):
        found.setdefault(measure, []).append(read_matrix(there(file), index=True))
    return {measure: np.stack(both) for measure, both in found.items()}


def _mean(file: Path, space: Space) -> Float[np.ndarray, " V"] | None:
    if not file.exists() or space.grid is None:
        return None
    volume, _ = read_volume(file)
    expect_shape(volume.shape, space.grid.shape, file)
    return volume[tuple(space.grid.ijk.T)].astype(np.float32)


def _displacement(file: Path) -> Float[np.ndarray, " recorded"] | None:
    if not file.exists():
        return None
    return np.array([row["framewise_displacement"] or "nan" for row in read_table(file, "framewise_displacement")], np.float64)


def _parcels(values: np.ndarray, ids: np.ndarray, file: Path) -> Int[np.ndarray, " V"]:
    """Convert ids to parcel indices, −1 for id 0."""
    order = np.argsort(ids)
    position = order[np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)]
    unknown = values[(values != 0) & (ids[position] != values)]
    if len(unknown):
        raise ValueError(f"{file}: contains {unknown[0]:g}, which is not an id in the table _dseg.tsv")
    return np.where(values != 0, position, -1).astype(np.int32)


def _brain_models():
    from nibabel.cifti2 import BrainModelAxis

    return BrainModelAxis
