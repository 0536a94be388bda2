"""Files that are needed besides maps and tables to read a result back: locations, their atlas labels, and head motion.

On a grid, these are two images. The atlas is stored as `_desc-atlas_labels` rather than as another `_dseg`, so that a search for
`*_dseg.nii*` finds only the parcellation of the scan. The mask distinguishes voxels of value 0 that were part of the scan; a reserved
value in the image would appear as an additional region to programs that average signals over labels. CIFTI files do not contain the
coordinates of vertices; these are stored with the atlas in one dscalar file, the counterpart of the table of a ROI scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pnet_jax.network import Network
from pnet_jax.outputs import images, sidecars
from pnet_jax.outputs.tables import beside, column_names, write_json, write_matrix, write_rows

MASK, PRIOR, MEAN = "desc-locations_mask", "desc-atlas_labels", "desc-mean_boldref"
CONFIDENCE = "desc-confidence_boldmap"
LOCATIONS, MOTION = "desc-locations_dseg", "desc-motion_timeseries"
CIFTI_MAPS = ("x", "y", "z", "atlas_index")
TABLE_COLUMNS = ("name", "x", "y", "z", "index", "parcel", "atlas_index", "confidence")
MEAN_LEVELS = 4095  # 12 bits, as from a scanner; float32 compresses to three times the size


def write_locations(network: Network, stem: Path) -> Iterator[Path]:
    """Write the locations and their labels in the atlas."""
    grid = network.space.grid
    if grid is None:
        yield write_rows(beside(stem, f"{LOCATIONS}.tsv"), TABLE_COLUMNS, _location_rows(network))
        yield write_json(beside(stem, f"{LOCATIONS}.json"), sidecars.location_table_sidecar(network))
    elif grid.brain_models is not None:
        values = np.column_stack([network.space.xyz, _ids(network, network.atlas_labels)]).T
        yield images.write_image(images.scalars_image(network, CIFTI_MAPS, values), beside(stem, f"{LOCATIONS}.dscalar.nii"))
    else:
        mask = images.location_image(network, np.ones(len(network.space), np.uint8))
        yield images.write_image(mask, beside(stem, f"{MASK}.nii.gz"))
        yield write_json(beside(stem, f"{MASK}.json"), sidecars.locations_sidecar(network))
        yield images.write_image(images.atlas_image(network), beside(stem, f"{PRIOR}.nii.gz"))
        yield write_json(beside(stem, f"{PRIOR}.json"), sidecars.atlas_sidecar(network))
        yield from _write_mean(network, stem)


def write_confidence(network: Network, stem: Path) -> Iterator[Path]:
    """Write the probability of each location's parcel as a map; ROI scans have it as a column of their table instead."""
    grid = network.space.grid
    if grid is None:
        return
    if grid.brain_models is not None:
        image = images.scalars_image(network, ("confidence",), network.confidence[None])
        yield images.write_image(image, beside(stem, f"{CONFIDENCE}.dscalar.nii"))
    else:
        yield images.write_image(images.location_image(network, network.confidence), beside(stem, f"{CONFIDENCE}.nii.gz"))
    yield write_json(beside(stem, f"{CONFIDENCE}.json"), sidecars.confidence_sidecar(network))


def write_motion(network: Network, stem: Path) -> Iterator[Path]:
    """Write the displacement in mm of every recorded frame and whether it was retained; nothing if it was not measured."""
    if network.displacement is None:
        return
    kept = np.isin(np.arange(len(network.displacement)), network.frames)
    rows = ({"framewise_displacement": float(mm), "kept": bool(is_kept)} for mm, is_kept in zip(network.displacement, kept, strict=True))
    yield write_rows(beside(stem, f"{MOTION}.tsv"), ("framewise_displacement", "kept"), rows)
    yield write_json(beside(stem, f"{MOTION}.json"), sidecars.motion_sidecar(network))


def write_soft_table(network: Network, stem: Path) -> Path:
    """Write the probabilities of a ROI scan: one row per ROI, one column per parcel."""
    return write_matrix(beside(stem, "probseg.tsv"), column_names(network), images.dense_probabilities(network), _names(network), "name")


def _write_mean(network: Network, stem: Path) -> Iterator[Path]:
    # In MNI space the report uses the template as background, and the mean image would exceed the rest of the result in size.
    if network.mean is None or network.space.name.startswith("MNI"):
        return
    mean = np.nan_to_num(np.asarray(network.mean, np.float64), posinf=0, neginf=0)
    step = float(np.abs(mean).max(initial=0)) / MEAN_LEVELS or 1.0
    image = images.location_image(network, np.rint(mean / step).astype(np.int16))
    image.header.set_slope_inter(step, 0)
    yield images.write_image(image, beside(stem, f"{MEAN}.nii.gz"))
    yield write_json(beside(stem, f"{MEAN}.json"), sidecars.mean_sidecar(network))


def _location_rows(network: Network) -> Iterator[dict[str, Any]]:
    parcels, names = column_names(network), _names(network)
    index, before, confidence = _ids(network, network.labels), _ids(network, network.atlas_labels), network.confidence
    for v, label in enumerate(network.labels):
        x, y, z = network.space.xyz[v].tolist()
        yield {
            "name": names[v],
            "x": x,
            "y": y,
            "z": z,
            "index": index[v],
            "parcel": parcels[label] if label >= 0 else None,
            "atlas_index": before[v],
            "confidence": confidence[v] if label >= 0 else None,
        }


def _ids(network: Network, labels: np.ndarray) -> np.ndarray:
    return np.where(labels >= 0, network.ids[labels], 0)


def _names(network: Network) -> list[str]:
    given = network.space.names or [f"location-{v + 1}" for v in range(len(network.space))]
    return [" ".join(name.split()) for name in given]
