"""A Network as a folder of BIDS derivatives."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pnet_jax.ingest import naming
from pnet_jax.network import Network
from pnet_jax.outputs import images, sidecars
from pnet_jax.outputs.atlas import check_atlas, describe_atlas, network_atlas
from pnet_jax.outputs.atomic import check_writable, write_text
from pnet_jax.outputs.locations import write_confidence, write_locations, write_motion, write_soft_table
from pnet_jax.outputs.names import safe_label, safe_name
from pnet_jax.outputs.surfaces import is_surface_only, label_gifti
from pnet_jax.outputs.tables import beside, column_names, write_json, write_matrix, write_rows

# BIDS orders entities; entities of the source that are irrelevant to a result (desc, label …) are omitted.
ENTITIES = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "proc", "hemi", "space", "recording", "chunk")
# Not yet allowed by BIDS: `atlas` in the name of a mask, and CIFTI files (`den`) as segmentations of functional scans.
IGNORED = (
    *("*_relmat.*", "*_timeseries.*", "*_boldmap.*", "*_stat-*", "*_desc-locations_dseg.*", "*_desc-locations_mask.*", "*_den-*"),
    *("*_desc-atlas_labels.*", "*_desc-mean_boldref.*", "*_probseg.tsv", "*_qc.*", "*.html", "status.tsv", "atlas-pnet_*.json"),
    *("*.zarr", "cohort.tsv"),
)
# Optional files: those left by an older result with the same name must not be attributed to this one.
SOMETIMES = (
    *("probseg.*", "stat-*_relmat.*", "desc-locations_*", "desc-atlas_labels.*", "desc-mean_boldref.*", "desc-motion_timeseries.*"),
    "desc-confidence_*",
)
LUT_COLUMNS = ("index", "name", "color", "hemisphere", "n_locations", "n_atlas_locations", "coverage", "absent", "x", "y", "z")


def save(network: Network, folder: str | os.PathLike, *, probabilities: bool = True) -> list[Path]:
    """Write one subject's result as BIDS derivatives.

    For sub-01 and the shipped atlas of 200 parcels, every file below `folder` has a name that begins with
    `sub-01/func/sub-01_task-rest_space-…_atlas-pnet_seg-geometric200_scale-200_res-2`, where `seg` names the input atlas (`atlas_label`),
    followed by

    - `_dseg.nii.gz` (`.dlabel.nii` for CIFTI; ROI scans: `_desc-locations_dseg.tsv`, one row per ROI), `_dseg.json`, `_dseg.tsv`
    - for scans with vertices only, also a `_dseg.label.gii` per hemisphere, with `hemi-L` or `hemi-R` before `space` in the name
    - `_probseg.nii.gz` (`.dscalar.nii`, `.tsv`) and `_probseg.json`
    - `_desc-confidence_boldmap.nii.gz` (`.dscalar.nii`; ROI scans: column `confidence` of `_desc-locations_dseg.tsv`), the probability of
      each location's parcel, with `.json`
    - `_desc-atlas_labels.nii.gz`, the atlas on the scan's grid, and `_desc-locations_mask.nii.gz`, the scan's voxels, each with `.json`
      (CIFTI: `_desc-locations_dseg.dscalar.nii`; ROI scans: `_desc-locations_dseg.json`); outside MNI space `_desc-mean_boldref.nii.gz`
    - `_stat-coverage_bold`, `_stat-mean_timeseries` and a `_stat-<measure>_relmat` for each measure, each `.tsv` with `.json`
    - `_stat-pearsoncorrelation_desc-shrunk_relmat`, `…_desc-guided_relmat` for shrunk and guided edges, and `…_desc-sd_relmat`,
      `…_desc-shrunksd_relmat`, `…_desc-guidedsd_relmat` for their uncertainty, where estimated, each `.tsv` with `.json`
    - `_stat-pearsoncorrelation_desc-half1_relmat` and `…_desc-half2_relmat`, the edges of the scan's halves (also `…whitened…`, if
      signals before low-pass filtering are available), each `.tsv` with `.json`
    - `_desc-motion_timeseries.tsv` with `.json`, if head motion is known
    - `_desc-pnet_qc.json`

    `load_network` reads the Network back. Every table has the same K parcels in the same order; missing values of absent parcels are
    `n/a`. Files are written under a temporary name and renamed. `_dseg.tsv` is removed first and written last, so a result that has it is
    complete. Optional files of an older result with the same name are removed.

    Args:
      network: Result of a subject.
      folder: Root of the derivatives; `dataset_description.json` and `.bidsignore` are added if missing.
      probabilities: Whether to write the soft parcellation.

    Returns:
      Files of this result in the order in which they were written, `_dseg.tsv` last.

    Raises:
      ValueError: If `folder` is a file or has results of another atlas with the same label, or shapes in `network` are inconsistent.
      OSError: If the folder is not writable or the disk is full; names the file, and nothing written by this call is left.
    """
    check_shapes(network)
    folder, atlas = check_writable(folder), network_atlas(network)
    check_atlas(folder, atlas)
    stem = network_stem(folder, network)
    complete = beside(stem, "dseg.tsv")
    complete.unlink(missing_ok=True)
    write_dataset_files(folder)
    describe_atlas(folder, atlas)
    written: list[Path] = []
    try:
        for file in _write_maps(network, stem, probabilities):
            written.append(file)
        for file in _write_tables(network, stem):
            written.append(file)
        written.append(write_json(beside(stem, "dseg.json"), sidecars.segmentation_sidecar(network)))
        for pattern in SOMETIMES:
            for old in set(stem.parent.glob(f"{stem.name}_{pattern}")) - set(written):
                old.unlink()
        written.append(write_rows(complete, LUT_COLUMNS, parcel_rows(network)))
    except BaseException:
        # An incomplete result is useless, and on a full disk other results may need the space.
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return written


def save_edges(network: Network, folder: str | os.PathLike) -> list[Path]:
    """Write (or replace) only the `_relmat` tables of a result, e.g. a cohort measure once all scans are available."""
    return list(_write_edges(network, network_stem(folder, network)))


def network_stem(folder: str | os.PathLike, network: Network) -> Path:
    """Return the `output_stem` of a result."""
    label = network_atlas(network).label
    return output_stem(folder, network.subject, network.entities, network.n_parcels, label, space=network.space.name)


def _hemisphere_stem(network: Network, stem: Path, side: str) -> Path:
    """Stem of the files that hold one hemisphere only."""
    label, entities = network_atlas(network).label, dict(network.entities) | {"hemi": side}
    return stem.with_name(output_stem("", network.subject, entities, network.n_parcels, label, space=network.space.name).name)


def output_stem(
    folder: str | os.PathLike, subject: str, entities: Mapping[str, Any], n_parcels: int, atlas: str, *, space: str = "unknown"
) -> Path:
    """Return the path prefix of all files of a result, to which `_dseg.tsv` etc. are appended; writes nothing.

    Args:
      folder: Root of the derivatives.
      subject: Label without `sub-`.
      entities: BIDS entities of the source; those that identify the recording and its space are kept, in BIDS order.
      n_parcels: Number of parcels K.
      atlas: Label of the input atlas, from `atlas_label`.
      space: Template, used if `entities` has no `space`.

    Example:
      >>> output_stem("out", "01", {"task": "rest", "ses": "1"}, 200, "geometric200").as_posix()
      'out/sub-01/ses-1/func/sub-01_ses-1_task-rest_atlas-pnet_seg-geometric200_scale-200'
    """
    given = {key: safe_label(value) for key, value in entities.items() if value not in (None, "")}
    if space not in ("", "unknown", "native"):
        given.setdefault("space", safe_label(space))
    parts = [f"sub-{safe_label(subject)}"] + [f"{key}-{given[key]}" for key in ENTITIES if key in given]
    parts += ["atlas-pnet", f"seg-{atlas}", f"scale-{n_parcels}"] + [f"{key}-{given[key]}" for key in ("res", "den") if key in given]
    place = Path(folder) / parts[0]
    if "ses" in given:
        place /= f"ses-{given['ses']}"
    return place / "func" / "_".join(parts)


def write_dataset_files(folder: str | os.PathLike) -> None:
    """Write dataset_description.json, atlas-pnet_description.json and .bidsignore if they are missing or out of date.

    A dataset_description.json of another program is kept, and lines are only appended to an existing .bidsignore.

    Raises:
      OSError: If a file cannot be written; names the file.
    """
    folder = Path(folder)
    about = {"dataset_description.json": sidecars.dataset_description(), "atlas-pnet_description.json": sidecars.atlas_description()}
    for name, content in about.items():
        # Many processes share one folder: files that are already correct are not rewritten.
        found = _read_json(folder / name)
        ours = name.startswith("atlas-pnet") or "pnet_jax" in json.dumps(found.get("GeneratedBy", ""))
        if not (folder / name).exists() or (ours and found != content):
            write_json(folder / name, content)
    ignore = folder / ".bidsignore"
    lines = ignore.read_text("utf-8").splitlines() if ignore.exists() else []
    missing = [line for line in IGNORED if line not in lines]
    if missing:
        write_text(ignore, "\n".join([*lines, *missing]) + "\n")


def scan_label(network: Network) -> str:
    """Return the label of a scan in messages, reports and status.tsv: `sub-01_ses-1_task-rest_run-1`."""
    return naming.scan_label(network.subject, network.entities)


def page_name(scan: str, atlas: str) -> str:
    """Return the file name of a scan's HTML report, which is unique for each atlas in a folder.

    Args:
      scan: Label of the scan, as in `status.tsv`.
      atlas: Label of the input atlas, from `atlas_label`.

    Example:
      >>> page_name("sub-01_task-rest", "geometric200")
      'sub-01_task-rest_seg-geometric200.html'
    """
    return f"{safe_name(scan)}_seg-{atlas}.html"


def parcel_rows(network: Network) -> list[dict[str, Any]]:
    """Return the look-up table, one mapping for each of the K parcels in order; columns as in `_dseg.tsv`."""
    sizes = _sizes(network, network.labels)
    before = _sizes(network, network.atlas_labels)
    centre = parcel_centroids(network)
    colors = np.rint(images.parcel_colors(network.ids) * 255).astype(int)
    return [
        {
            "index": int(network.ids[k]),
            "name": name,
            "color": "#" + "".join(f"{c:02x}" for c in colors[k]),
            "hemisphere": network.hemispheres[k],
            "n_locations": int(sizes[k]),
            "n_atlas_locations": int(before[k]),
            "coverage": float(network.coverage[k]),
            "absent": bool(sizes[k] == 0),
            **dict(zip("xyz", np.round(centre[k].astype(float), 2).tolist(), strict=True)),
        }
        for k, name in enumerate(column_names(network))
    ]


def parcel_centroids(network: Network) -> Float[np.ndarray, "K 3"]:
    """Return the mean position of each parcel's locations in MNI mm, NaN for absent parcels."""
    inside = network.labels >= 0
    total = np.zeros((network.n_parcels, 3))
    np.add.at(total, network.labels[inside], network.space.xyz[inside].astype(np.float64))
    sizes = _sizes(network, network.labels).astype(float)[:, None]
    return np.divide(total, sizes, out=np.full_like(total, np.nan), where=sizes > 0)


def _write_maps(network: Network, stem: Path, probabilities: bool) -> Iterator[Path]:
    grid = network.space.grid
    cifti = grid is not None and grid.brain_models is not None
    if grid is not None:
        yield images.write_image(images.labels_image(network), beside(stem, "dseg.dlabel.nii" if cifti else "dseg.nii.gz"))
    if is_surface_only(network.space):
        for side, image in label_gifti(network).items():
            yield images.write_image(image, beside(_hemisphere_stem(network, stem, side), "dseg.label.gii"))
    if probabilities:
        if grid is None:
            yield write_soft_table(network, stem)
        else:
            yield images.write_probabilities(network, beside(stem, "probseg.dscalar.nii" if cifti else "probseg.nii.gz"))
        yield write_json(beside(stem, "probseg.json"), sidecars.probability_sidecar(network))
    yield from write_confidence(network, stem)
    yield from write_locations(network, stem)


def _write_tables(network: Network, stem: Path) -> Iterator[Path]:
    names = column_names(network)
    yield write_matrix(beside(stem, "stat-coverage_bold.tsv"), names, network.coverage[None])
    yield write_json(beside(stem, "stat-coverage_bold.json"), sidecars.coverage_sidecar(network))
    yield write_matrix(beside(stem, "stat-mean_timeseries.tsv"), names, network.signals.T)
    yield write_json(beside(stem, "stat-mean_timeseries.json"), sidecars.signals_sidecar(network))
    yield from _write_edges(network, stem)
    yield from _write_halves(network, stem)
    yield from write_motion(network, stem)
    judged = {"scan": scan_label(network), **dataclasses.asdict(network.qc), "Provenance": network.provenance}
    yield write_json(beside(stem, "desc-pnet_qc.json"), judged)


def _write_edges(network: Network, stem: Path) -> Iterator[Path]:
    names = column_names(network)
    for measure, matrix in network.edges.items():
        file = f"stat-{sidecars.stat_label(measure)}_relmat"
        yield write_matrix(beside(stem, f"{file}.tsv"), names, matrix, index=names)
        yield write_json(beside(stem, f"{file}.json"), sidecars.edges_sidecar(network, measure))
    for measure, matrix in network.uncertainty.items():
        file = f"stat-{sidecars.uncertainty_label(measure)}_relmat"
        yield write_matrix(beside(stem, f"{file}.tsv"), names, matrix, index=names)
        yield write_json(beside(stem, f"{file}.json"), sidecars.uncertainty_sidecar(network, measure))


def _write_halves(network: Network, stem: Path) -> Iterator[Path]:
    names = column_names(network)
    for measure, both in network.halves.items():
        for number, matrix in enumerate(both, 1):
            file = f"stat-{sidecars.half_label(measure, number)}_relmat"
            yield write_matrix(beside(stem, f"{file}.tsv"), names, matrix, index=names)
            yield write_json(beside(stem, f"{file}.json"), sidecars.half_sidecar(network, measure, number))


def check_shapes(network: Network) -> None:
    """Refuse a Network with inconsistent array shapes, and name the array."""
    locations, parcels = len(network.space), network.n_parcels
    expected = {
        "labels": (locations,),
        "atlas_labels": (locations,),
        "candidates": (locations, network.candidates.shape[1]),
        "probabilities": (locations, network.candidates.shape[1]),
        "signals": (parcels, len(network.frames)),
        "coverage": (parcels,),
    }
    shapes = {name: (getattr(network, name).shape, shape) for name, shape in expected.items()}
    shapes |= {f"edges[{measure!r}]": (matrix.shape, (parcels, parcels)) for measure, matrix in network.edges.items()}
    shapes |= {f"uncertainty[{measure!r}]": (matrix.shape, (parcels, parcels)) for measure, matrix in network.uncertainty.items()}
    shapes |= {f"halves[{measure!r}]": (both.shape, (2, parcels, parcels)) for measure, both in network.halves.items()}
    shapes |= {"names": ((len(network.names),), (parcels,)), "hemispheres": ((len(network.hemispheres),), (parcels,))}
    for name, (got, wanted) in shapes.items():
        if got != wanted:
            raise ValueError(f"sub-{network.subject}: `{name}` should have shape {wanted}, got {got}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(network: Network, labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels[labels >= 0], minlength=network.n_parcels)
