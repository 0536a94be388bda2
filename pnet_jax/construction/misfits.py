"""Warnings about the fit of an atlas to a scan: overlap, hemispheres, mirrored names, age, template and resolution."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Int

from pnet_jax.parcellation.atlas import Atlas, names_on_other_side
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan
from pnet_jax.space import LEFT, RIGHT

RESOLUTION_TOLERANCE = 0.1  # largest relative difference at which voxel sizes count as equal
WHOLE_SIDE = 0.1  # share of locations above which a hemisphere counts as scanned
LEAST_OVERLAP = 0.5  # least share of the atlas's points with a signal in the scan
# Nonlinear registration of the two templates at 2 mm, within the brain: median 1.9 mm, 5th to 95th percentile 0.7 to 4.5 mm.
SHIFTS = {frozenset(("NLin6", "NLin2009")): "about 2 mm apart (up to 5 mm)"}
CHILDREN = ("MNIInfant", "MNIPediatric", "UNCInfant", "dhcp")


def misfits(scan: Scan, placed: AtlasOnSpace, valid: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> list[str]:
    """Collect warnings about the fit of the atlas to the scan, most serious first.

    Args:
      scan: The recording.
      placed: The atlas on the scan's Space, with n locations.
      valid: Whether the scan has a signal at each location, `[n]`.
      labels: Parcel of each location, −1 for none, `[n]`.
    """
    said = [
        _overlap(scan, placed, valid),
        _mirrored(placed.atlas),
        *_missing_sides(scan, placed, labels),
        _age(scan, placed.atlas),
        _template(scan, placed.atlas),
        _resolution(scan, placed.atlas),
    ]
    return [text for text in said if text]


def _overlap(scan: Scan, placed: AtlasOnSpace, valid: Bool[np.ndarray, " n"]) -> str:
    if scan.space.kind == "points":  # centroids of ROIs do not define a field of view
        return ""
    share = np.append(valid, False)[placed.nearest].mean()
    if share >= LEAST_OVERLAP:
        return ""
    return (
        f"the scan has a signal at only {share:.0%} of the atlas, expected at least {LEAST_OVERLAP:.0%}; check the mask, and that atlas "
        "and scan are in the same space"
    )


def _mirrored(atlas: Atlas) -> str:
    wrong, named = names_on_other_side(atlas)
    if wrong <= named / 2:
        return ""
    return f"{wrong} of {named} parcels with left or right in their names lie in the other hemisphere; the atlas or its labels are mirrored"


def _missing_sides(scan: Scan, placed: AtlasOnSpace, labels: Int[np.ndarray, " n"]) -> list[str]:
    said = []
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        own = scan.valid & (scan.space.hemisphere == side)
        if own.sum() > WHOLE_SIDE * scan.valid.sum() and not (labels[placed.space.hemisphere == side] >= 0).any():
            said.append(
                f"the atlas has no parcel in the {name} hemisphere, which contains {int(own.sum())} of the scan's {int(scan.valid.sum())} "
                "locations; check that atlas and scan match"
            )
    return said


def _age(scan: Scan, atlas: Atlas) -> str:
    name = scan.space.name
    if not name.startswith(CHILDREN) or atlas.space == name:
        return ""
    return f"the scan is in {name}, a pediatric template, and the atlas is in {atlas.space}; an adult atlas may not fit"


def _template(scan: Scan, atlas: Atlas) -> str:
    ours, theirs = _generation(scan.space.name), _generation(atlas.space)
    if not _drawn(atlas) or not ours or not theirs or ours == theirs:
        return ""
    return (
        f"the scan is in {scan.space.name}, the atlas in {atlas.space}; corresponding points are {SHIFTS[frozenset((ours, theirs))]}, so "
        "parcel boundaries are shifted; use an atlas in the template of the scan"
    )


def _generation(space: str) -> str:
    """Return the generation of an MNI152 template, or an empty string for other spaces."""
    found = re.fullmatch(r"MNI152(NLin6|NLin2009)[abc]?A?[Ss]ym", space)
    return found[1] if found else ""


def _resolution(scan: Scan, atlas: Atlas) -> str:
    here = scan.space.resolution
    if not _drawn(atlas) or scan.space.kind != "grid" or abs(here - atlas.resolution) <= RESOLUTION_TOLERANCE * atlas.resolution:
        return ""
    return (
        f"the atlas was resampled from {atlas.resolution:.3g} mm to the scan's {here:.3g} mm by nearest neighbour; an atlas at the "
        "resolution of the scan has sharper boundaries"
    )


def _drawn(atlas: Atlas) -> bool:
    """Return whether the atlas has anatomical boundaries, which resampling or a template shift can degrade."""
    return not atlas.source.startswith("geometric")
