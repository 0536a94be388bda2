"""What the JSON files beside images and tables say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

import pnet_jax
from pnet_jax.network import Network
from pnet_jax.space import Space

if TYPE_CHECKING:
    from pnet_jax.edges import Measure

STAT_LABELS = {"pearson": "pearsoncorrelation", "partial": "partialcorrelation"}
# Layers are further estimates of the same correlation.
STAT_LABELS |= {layer: f"pearsoncorrelation_desc-{layer}" for layer in ("shrunk", "guided")}
LAYERS = {
    "shrunk": "Pearson correlation drawn towards the group, edge by edge, by empirical Bayes",
    "guided": "Pearson correlation as a posterior mean, given every view of the scan and what a cohort taught of each edge and mode",
}
ROWS = "Parcels stand in the order of the rows of _dseg.tsv; parcels without any location keep their place and are n/a."


def stat_label(measure: str) -> str:
    """A measure's label in file names: `pearson` is `pearsoncorrelation`; of an unlisted name the letters and digits stay.

    Example:
      >>> stat_label("partial"), stat_label("distance correlation")
      ('partialcorrelation', 'distancecorrelation')
    """
    return STAT_LABELS.get(measure) or re.sub(r"[^a-zA-Z0-9]", "", measure)


def uncertainty_label(measure: str) -> str:
    """The same for the uncertainty of a measure or layer.

    Example:
      >>> uncertainty_label("pearson"), uncertainty_label("guided")
      ('pearsoncorrelation_desc-sd', 'pearsoncorrelation_desc-guidedsd')
    """
    label = stat_label(measure)
    return f"{label}sd" if "_desc-" in label else f"{label}_desc-sd"


def dataset_description() -> dict[str, Any]:
    """Content of dataset_description.json."""
    return {
        "Name": "Personalised brain functional networks",
        "BIDSVersion": "1.11.1",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "pnet_jax", "Version": pnet_jax.__version__}],
    }


def atlas_description() -> dict[str, Any]:
    """Content of atlas-pnet_description.json."""
    return {
        "Name": "pnet: personalised parcellations",
        "Description": "Each scan has its own parcellation. Its parcels correspond, one to one and in order, to those of the input atlas "
        "that the seg entity of the file name refers to, so that a parcel's id and name mean the same in every subject.",
        "DerivedFrom": "The input atlas described in atlas-pnet_seg-<label>_source.json",
    }


def segmentation_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the hard parcellation: image and table share their name, and so this file."""
    return {
        "Description": "Parcellation of one scan. Image values are the atlas's ids, column `index` of the table; 0 is outside.",
        "Manual": False,
        "Rows": "One row for each parcel of the atlas, always all of them, in the same order in every file.",
        "index": {"Description": "Value in the image: the atlas's id of the parcel", "Format": "integer"},
        "name": {"Description": "The atlas's name of the parcel"},
        "color": {"Description": "Suggested colour, the same for an id everywhere"},
        "hemisphere": {"Levels": {"L": "left", "R": "right", "B": "on both sides"}},
        "n_locations": {"Description": "Locations (voxels, grayordinates or ROIs) of the scan in the personalised parcel"},
        "n_atlas_locations": {"Description": "Number of locations of the parcel in the atlas"},
        "coverage": {
            "Description": "Fraction of the extent of the parcel in the atlas that valid locations of the scan cover",
            "Units": "0 to 1",
        },
        "absent": {"Description": "No location of the scan belongs to the parcel: its signal and edges are n/a"},
        "x": {"Description": "Mean position of the parcel's locations in MNI space", "Units": "mm"},
        "y": {"Description": "As x", "Units": "mm"},
        "z": {"Description": "As x", "Units": "mm"},
        "Scan": scan_description(network),
    } | _common(network)


def scan_description(network: Network) -> dict[str, Any]:
    """What names and images cannot say of the scan; `load_network` reads it."""
    space = network.space
    return {
        "Subject": network.subject,
        "Entities": dict(network.entities),
        "Space": space.name,
        "Kind": space.kind,
        "Resolution": space.resolution,
        "VoxelToMNI": voxel_to_mni(space),
        "Measures": list(network.edges),
    }


def voxel_to_mni(space: Space) -> Float[np.ndarray, "4 4"] | None:
    """Voxel index to MNI mm; None where the image's own affine leads there, and without voxels."""
    if space.kind != "grid" or space.grid is None:
        return None
    index = np.column_stack([space.grid.ijk, np.ones(len(space))])
    if np.allclose(index @ space.grid.affine.T[:, :3], space.xyz, rtol=0, atol=2e-3):
        return None
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(index, space.xyz.astype(np.float64))[0].T
    return matrix


def atlas_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of what the parcels start from, on the scan's grid."""
    spacing = network.provenance.get("atlas", {}).get("resolution")
    given = f"given every {spacing:.3g} mm and " if spacing else ""
    here = f"read at the scan's locations, {network.space.resolution:.3g} mm apart,"
    learned = f"The most probable parcel under the spatial prior that a group taught, {here} from the nearest location of the group."
    return {
        "Description": "The parcellation that the scan would have if nothing were learnt from it, on this scan's grid. "
        "Values are those of _dseg; 0 is outside.",
        "Derivation": f"The prior, {given}{here} from its nearest point." if network.start == "the atlas" else learned,
        "Manual": False,
    } | _common(network)


def locations_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the mask of the scan's locations."""
    return {
        "Description": "The voxels of the scan, its brain mask. Those that no parcel of the atlas reaches are 0 in _dseg.",
        "Type": "Brain",
    } | _common(network)


def mean_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the mean image."""
    return {
        "Description": "Mean over the kept frames before cleaning, within the mask: the background of the report's slices, since no "
        "template fits this space.",
        "Storage": "int16 in 4095 steps (scl_slope)",
    } | _common(network)


def motion_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the motion series."""
    return {
        "Description": "Head motion, one row a recorded frame.",
        "SamplingFrequency": 1 / network.tr,
        "framewise_displacement": {"Description": "Displacement from the frame before, as the confounds table gave it", "Units": "mm"},
        "kept": {"Description": "Whether the frame is a row of _stat-mean_timeseries.tsv", "Levels": {"true": "kept", "false": "left out"}},
    } | _common(network)


def probability_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the soft parcellation."""
    part = "column" if network.space.grid is None else "volume"
    return {
        "Description": f"Probability of each parcel at each location; {part} k is row k of _dseg.tsv. The probabilities of all {part}s sum "
        f"to 1 inside the parcellation and are 0 outside. {probability_meaning(network)}",
        "SumInside": 1,
        "Storage": "uint16 steps of 1/65535 (scl_slope); float32 in CIFTI; 7 digits in tables",
        "Note": "The most probable parcel differs from _dseg where spatial clean-up moved a location.",
    } | _common(network)


def confidence_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the confidence map."""
    return {
        "Description": f"Probability of each location's parcel in _dseg, 0 outside the parcellation. {probability_meaning(network)}",
        "Units": "0 to 1",
    } | _common(network)


def probability_meaning(network: Network) -> str:
    """What the probabilities of a network are probabilities of."""
    if network.qc.selection.decision == "personalised":
        return (
            "It is a replication probability: the probability that an independent repeat of the scan, of equal length, gives the location "
            "the same parcel. Replication does not imply that the parcel is correct."
        )
    if network.qc.selection.decision == "atlas":
        alone = "the atlas" if network.start == "the atlas" else "the group"
        return f"The parcels are those of {network.start}, and the probability is the spatial prior, which depends on {alone} alone."
    return "The probability was not calibrated against a repeat of the scan."


def location_table_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the table of a ROI scan's locations."""
    return {
        "Description": "The ROIs of the scan, one row each.",
        "name": {"Description": "Name of the ROI"},
        "x": {"Description": "Position in MNI space", "Units": "mm"},
        "y": {"Description": "As x", "Units": "mm"},
        "z": {"Description": "As x", "Units": "mm"},
        "index": {"Description": "Id of the parcel of the ROI, as in _dseg.tsv; 0 for none"},
        "parcel": {"Description": "Name of that parcel"},
        "atlas_index": {"Description": "Id of the parcel that the atlas gives the ROI; 0 for none"},
        "confidence": {"Description": f"Probability of that parcel. {probability_meaning(network)}", "Units": "0 to 1"},
    } | _common(network)


def coverage_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the coverage table."""
    return {
        "Description": "Share of each prior parcel's extent that valid locations of the scan cover, one column a parcel.",
        "Units": "0 to 1",
        "Columns": ROWS,
    } | _common(network)


def signals_sidecar(network: Network) -> dict[str, Any]:
    """Sidecar of the parcel signals."""
    recorded = network.qc.recorded_frames if network.displacement is None else len(network.displacement)
    return {
        "Description": "Mean over each parcel's locations (hard labels) of their cleaned, z-scored signals; one row a kept frame, one "
        "column a parcel.",
        "Units": "standard deviations of a single location's signal",
        "SamplingFrequency": 1 / network.tr,
        "RepetitionTime": network.tr,
        "KeptFrames": network.frames,
        "RecordedFrames": recorded,
        "FramesNote": "Row i is frame KeptFrames[i] of the recording, counted from 0; scrubbed frames are left out, so rows need not be "
        "evenly spaced in time.",
        "Columns": ROWS,
    } | _common(network)


def edges_sidecar(network: Network, measure: str) -> dict[str, Any]:
    """Sidecar of one connectome; of a layer, what its group model was learned from too."""
    learned = (network.provenance.get("group") or {}).get("edges_learned_from") if measure in LAYERS else None
    return relmat_description(network.edges[measure], measure) | ({"LearnedFrom": learned} if learned else {}) | _common(network)


def relmat_description(matrix: Float[np.ndarray, "K K"], measure: str) -> dict[str, Any]:
    """Return the entries of a connectome's sidecar that describe the matrix itself."""
    known = _registered("pearson" if measure in LAYERS else measure)
    finite = matrix[np.isfinite(matrix)]
    own = np.diagonal(matrix)[np.isfinite(np.diagonal(matrix))]
    constant = not len(own) or np.ptp(own) < 1e-4
    return {
        "Description": f"One value for each pair of parcels. {ROWS}",
        "RelationshipMeasure": LAYERS.get(measure) or (known.description if known else measure),
        "Measure": measure,
        "MeantFor": _purpose(measure),
        "Units": known.units if known else "see the measure",
        "Weighted": True,
        "Directed": _directed(matrix),
        "ValidDiagonal": not constant,
        "Diagonal": (known.diagonal if known else "by definition of the measure") + (", carries no information" if constant else ""),
        "StorageFormat": "Full",
        "NonNegative": bool(len(finite)) and bool((finite >= 0).all()),
        "Nodes": "Names in the header and in the first column, `Node`",
    }


def half_label(measure: str, number: int) -> str:
    """The same for the edges of one half of the scan.

    Example:
      >>> half_label("pearson", 1)
      'pearsoncorrelation_desc-half1'
    """
    return f"{stat_label(measure)}_desc-half{number}"


def half_sidecar(network: Network, measure: str, number: int) -> dict[str, Any]:
    """Sidecar of the edges of one half of the scan."""
    known = _registered(measure)
    return {
        "Description": f"Edges of half {number} of the scan, cleaned on its own, for the parcels of the whole scan. {ROWS}",
        "RelationshipMeasure": known.description if known else measure,
        "HalfOf": measure,
        "Half": number,
        "Units": known.units if known else "see the measure",
        "Weighted": True,
        "Directed": _directed(network.halves[measure][number - 1]),
        "ValidDiagonal": False,
        "StorageFormat": "Full",
        "Nodes": "Names in the header and in the first column, `Node`",
    } | _common(network)


def uncertainty_sidecar(network: Network, measure: str) -> dict[str, Any]:
    """Sidecar of the uncertainty of one connectome: of correlations in Fisher z, of what else there is in its own units."""
    matrix = network.uncertainty[measure]
    known = _registered(measure)
    own = known is not None and not known.units.startswith("correlation")
    layer = {"pearson": "raw"}.get(measure, measure if measure in LAYERS else None)
    of = f", the {layer} layer of the Pearson correlations" if layer else f" of {measure}"
    return {
        "Description": f"Standard deviation of each edge{'' if own else chr(39) + 's Fisher z'}{of}. {ROWS}",
        "UncertaintyOf": measure,
        **({"Layer": layer} if layer else {}),
        "Units": known.units if own and known else "Fisher z",
        "Weighted": True,
        "Directed": _directed(matrix),
        "ValidDiagonal": False,
        "StorageFormat": "Full",
        "NonNegative": True,
        "Nodes": "Names in the header and in the first column, `Node`",
    } | _common(network)


def _directed(matrix: Float[np.ndarray, "K K"]) -> bool:
    return not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True)


def _purpose(measure: str) -> str:
    from pnet_jax import edges

    return edges.meant_for(measure if measure in (*LAYERS, "coupling", "effective") else "raw")


def _registered(measure: str) -> Measure | None:
    from pnet_jax import edges

    return edges.measure(measure) if measure in edges.names() else None


def _common(network: Network) -> dict[str, Any]:
    space, entities = network.space, network.entities
    said = {"SpatialReference": entities.get("space") or space.name, "GeneratedBy": {"Name": "pnet_jax", "Version": pnet_jax.__version__}}
    if "res" in entities:
        said["Resolution"] = {str(entities["res"]): f"{space.resolution:.3g} mm"}
    if "den" in entities:
        said["Density"] = {str(entities["den"]): f"{len(space)} grayordinates"}
    return said | {"Provenance": network.provenance}
