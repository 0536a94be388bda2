"""Contents of the JSON sidecars of images and tables."""

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
# Shrunk and guided edges are further estimates of the same correlation.
STAT_LABELS |= {layer: f"pearsoncorrelation_desc-{layer}" for layer in ("shrunk", "guided")}
LAYERS = {
    "shrunk": "Pearson correlation shrunk towards the group mean of each edge by empirical Bayes",
    "guided": "Posterior mean of the Pearson correlation given all views of the scan, with priors per edge and mode learned from a cohort",
}
ROWS = "Parcels are in the order of the rows of _dseg.tsv; parcels without any location keep their position and are n/a."


def stat_label(measure: str) -> str:
    """Return the label of a measure in file names: `pearson` is `pearsoncorrelation`; unlisted names are reduced to letters and digits.

    Example:
      >>> stat_label("partial"), stat_label("distance correlation")
      ('partialcorrelation', 'distancecorrelation')
    """
    return STAT_LABELS.get(measure) or re.sub(r"[^a-zA-Z0-9]", "", measure)


def uncertainty_label(measure: str) -> str:
    """Return the label in file names for the uncertainty of a measure.

    Example:
      >>> uncertainty_label("pearson"), uncertainty_label("guided")
      ('pearsoncorrelation_desc-sd', 'pearsoncorrelation_desc-guidedsd')
    """
    label = stat_label(measure)
    return f"{label}sd" if "_desc-" in label else f"{label}_desc-sd"


def dataset_description() -> dict[str, Any]:
    """Return the content of dataset_description.json."""
    return {
        "Name": "Personalised brain functional networks",
        "BIDSVersion": "1.11.1",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "pnet_jax", "Version": pnet_jax.__version__}],
    }


def atlas_description() -> dict[str, Any]:
    """Return the content of atlas-pnet_description.json."""
    return {
        "Name": "pnet: personalised parcellations",
        "Description": "Each scan has its own parcellation. Its parcels correspond, one to one and in order, to those of the input atlas "
        "named by the seg entity of the file name, so that the id and name of a parcel have the same meaning in every subject.",
        "DerivedFrom": "The input atlas described in atlas-pnet_seg-<label>_source.json",
    }


def segmentation_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the hard parcellation, shared by image and table, which have the same name."""
    return {
        "Description": "Parcellation of one scan. Image values are the atlas ids, column `index` of the table; 0 is outside.",
        "Manual": False,
        "Rows": "One row for every parcel of the atlas, in the same order in every file.",
        "index": {"Description": "Id of the parcel in the atlas, the value in the image", "Format": "integer"},
        "name": {"Description": "Name of the parcel in the atlas"},
        "color": {"Description": "Suggested colour, which depends on the id alone"},
        "hemisphere": {"Levels": {"L": "left", "R": "right", "B": "on both sides"}},
        "n_locations": {"Description": "Locations (voxels, grayordinates or ROIs) of the scan in the personalised parcel"},
        "n_atlas_locations": {"Description": "Number of locations of the parcel in the atlas"},
        "coverage": {
            "Description": "Fraction of the extent of the parcel in the atlas that valid locations of the scan cover",
            "Units": "0 to 1",
        },
        "absent": {"Description": "Whether no location of the scan belongs to the parcel; its signal and edges are then n/a"},
        "x": {"Description": "Mean position of the parcel's locations in MNI space", "Units": "mm"},
        "y": {"Description": "As x", "Units": "mm"},
        "z": {"Description": "As x", "Units": "mm"},
        "Scan": scan_description(network),
    } | _common(network)


def scan_description(network: Network) -> dict[str, Any]:
    """Return properties of the scan that names and images cannot represent, for `load_network`."""
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
    """Return the transformation from voxel index to MNI mm, or None if it equals the image's affine or there are no voxels."""
    if space.kind != "grid" or space.grid is None:
        return None
    index = np.column_stack([space.grid.ijk, np.ones(len(space))])
    if np.allclose(index @ space.grid.affine.T[:, :3], space.xyz, rtol=0, atol=2e-3):
        return None
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(index, space.xyz.astype(np.float64))[0].T
    return matrix


def atlas_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the starting parcels on the scan's grid."""
    spacing = network.provenance.get("atlas", {}).get("resolution")
    given = f"defined every {spacing:.3g} mm and " if spacing else ""
    here = f"sampled at the scan's locations, {network.space.resolution:.3g} mm apart,"
    learned = f"The most probable parcel under the spatial prior of the group model, {here} from the nearest location of the group."
    return {
        "Description": "The starting parcellation, which does not depend on the scan's data, on the scan's grid. "
        "Values are those of _dseg; 0 is outside.",
        "Derivation": f"The atlas, {given}{here} from its nearest point." if network.start == "the atlas" else learned,
        "Manual": False,
    } | _common(network)


def locations_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the mask of the scan's locations."""
    return {
        "Description": "Brain mask of the scan. Voxels outside all parcels of the atlas are 0 in _dseg.",
        "Type": "Brain",
    } | _common(network)


def mean_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the mean image."""
    return {
        "Description": "Mean over the retained frames before cleaning, within the mask: the background of the slices in the report, since "
        "no template is available for this space.",
        "Storage": "int16 in 4095 steps (scl_slope)",
    } | _common(network)


def motion_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the motion series."""
    return {
        "Description": "Head motion, one row per recorded frame.",
        "SamplingFrequency": 1 / network.tr,
        "framewise_displacement": {"Description": "Displacement from the previous frame, from the confounds table", "Units": "mm"},
        "kept": {
            "Description": "Whether the frame is a row of _stat-mean_timeseries.tsv",
            "Levels": {"true": "kept", "false": "removed"},
        },
    } | _common(network)


def probability_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the soft parcellation."""
    part = "column" if network.space.grid is None else "volume"
    return {
        "Description": f"Probability of each parcel at each location; {part} k is row k of _dseg.tsv. The probabilities of all {part}s sum "
        f"to 1 inside the parcellation and are 0 outside. {probability_meaning(network)}",
        "SumInside": 1,
        "Storage": "uint16 steps of 1/65535 (scl_slope); float32 in CIFTI; 7 digits in tables",
        "Note": "The most probable parcel can differ from _dseg where spatial clean-up reassigned a location.",
    } | _common(network)


def confidence_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the confidence map."""
    return {
        "Description": f"Probability of each location's parcel in _dseg, 0 outside the parcellation. {probability_meaning(network)}",
        "Units": "0 to 1",
    } | _common(network)


def probability_meaning(network: Network) -> str:
    """Describe the meaning of a network's probabilities."""
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
    """Return the sidecar of the table of a ROI scan's locations."""
    return {
        "Description": "The ROIs of the scan, one row each.",
        "name": {"Description": "Name of the ROI"},
        "x": {"Description": "Position in MNI space", "Units": "mm"},
        "y": {"Description": "As x", "Units": "mm"},
        "z": {"Description": "As x", "Units": "mm"},
        "index": {"Description": "Id of the parcel of the ROI, as in _dseg.tsv; 0 for none"},
        "parcel": {"Description": "Name of that parcel"},
        "atlas_index": {"Description": "Id of the atlas parcel of the ROI; 0 for none"},
        "confidence": {"Description": f"Probability of that parcel. {probability_meaning(network)}", "Units": "0 to 1"},
    } | _common(network)


def coverage_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the coverage table."""
    return {
        "Description": "Fraction of the extent of each atlas parcel that valid locations of the scan cover, one column per parcel.",
        "Units": "0 to 1",
        "Columns": ROWS,
    } | _common(network)


def signals_sidecar(network: Network) -> dict[str, Any]:
    """Return the sidecar of the parcel signals."""
    recorded = network.qc.recorded_frames if network.displacement is None else len(network.displacement)
    return {
        "Description": "Mean of the cleaned, z-scored signals of each parcel's locations (hard labels); one row per retained frame, one "
        "column per parcel.",
        "Units": "standard deviations of a single location's signal",
        "SamplingFrequency": 1 / network.tr,
        "RepetitionTime": network.tr,
        "KeptFrames": network.frames,
        "RecordedFrames": recorded,
        "FramesNote": "Row i is frame KeptFrames[i] of the recording, counted from 0; scrubbed frames are omitted, so rows may be "
        "unevenly spaced in time.",
        "Columns": ROWS,
    } | _common(network)


def edges_sidecar(network: Network, measure: str) -> dict[str, Any]:
    """Return the sidecar of one connectome; shrunk and guided edges include the training data of their group model."""
    learned = (network.provenance.get("group") or {}).get("edges_learned_from") if measure in LAYERS else None
    return relmat_description(network.edges[measure], measure) | ({"LearnedFrom": learned} if learned else {}) | _common(network)


def relmat_description(matrix: Float[np.ndarray, "K K"], measure: str) -> dict[str, Any]:
    """Return the sidecar entries that describe the matrix of a connectome."""
    known = _registered("pearson" if measure in LAYERS else measure)
    finite = matrix[np.isfinite(matrix)]
    own = np.diagonal(matrix)[np.isfinite(np.diagonal(matrix))]
    constant = not len(own) or np.ptp(own) < 1e-4
    return {
        "Description": f"One value per pair of parcels. {ROWS}",
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
    """Return the label in file names for the edges of one half of the scan.

    Example:
      >>> half_label("pearson", 1)
      'pearsoncorrelation_desc-half1'
    """
    return f"{stat_label(measure)}_desc-half{number}"


def half_sidecar(network: Network, measure: str, number: int) -> dict[str, Any]:
    """Return the sidecar of the edges of one half of the scan."""
    known = _registered(measure)
    return {
        "Description": f"Edges of half {number} of the scan, cleaned separately, for the parcels of the whole scan. {ROWS}",
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
    """Return the sidecar of the uncertainty of one connectome: in Fisher z for correlations, otherwise in the units of the measure."""
    matrix = network.uncertainty[measure]
    known = _registered(measure)
    own = known is not None and not known.units.startswith("correlation")
    layer = {"pearson": "raw"}.get(measure, measure if measure in LAYERS else None)
    of = f", the {layer} Pearson correlations" if layer else f" of {measure}"
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
