"""Warnings of how an atlas lies on a scan: resolution, hemispheres, template, age, and names on the wrong side."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Int

from pnet_jax.parcellation.prior import Prior, names_on_other_side
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan
from pnet_jax.space import LEFT, RIGHT

RESOLUTION_TOLERANCE = 0.1  # voxel sizes of atlas and scan that differ by less are the same
WHOLE_SIDE = 0.1  # share of the locations from which on a hemisphere is one that was scanned
LEAST_OVERLAP = 0.5  # share of the atlas's points where the scan has a signal
# Nonlinear registration of both templates at 2 mm within the brain: median 1.9 mm, 5 to 95 %: 0.7 to 4.5 mm.
SHIFTS = {frozenset(("NLin6", "NLin2009")): "about 2 mm apart (up to 5 mm)"}
CHILDREN = ("MNIInfant", "MNIPediatric", "UNCInfant", "dhcp")


def misfits(scan: Scan, placed: AtlasOnSpace, valid: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> list[str]:
    """What a reader should know of how the atlas lies on the scan, the most harmful first.

    Args:
      scan: the recording.
      placed: the atlas on its Space, n locations.
      valid: those of them at which the scan has a signal.
      labels: their parcels, −1 for none.
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
    if scan.space.kind == "points":  # centroids of ROIs are no field of view
        return ""
    share = np.append(valid, False)[placed.nearest].mean()
    if share >= LEAST_OVERLAP:
        return ""
    return (
        f"only {share:.0%} of the atlas lies where the scan has a signal, expected at least {LEAST_OVERLAP:.0%}: check that atlas and scan "
        "are in one space, and the mask"
    )


def _mirrored(atlas: Prior) -> str:
    wrong, named = names_on_other_side(atlas)
    if wrong <= named / 2:
        return ""
    return f"{wrong} of {named} parcels whose names say left or right lie on the other side: the atlas or its label file is mirrored"


def _missing_sides(scan: Scan, placed: AtlasOnSpace, labels: Int[np.ndarray, " n"]) -> list[str]:
    said = []
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        own = scan.valid & (scan.space.hemisphere == side)
        if own.sum() > WHOLE_SIDE * scan.valid.sum() and not (labels[placed.space.hemisphere == side] >= 0).any():
            said.append(
                f"the atlas has no parcel in the {name} hemisphere, where {int(own.sum())} of the scan's {int(scan.valid.sum())} "
                "locations lie: check that atlas and scan belong together"
            )
    return said


def _age(scan: Scan, atlas: Prior) -> str:
    name = scan.space.name
    if not name.startswith(CHILDREN) or atlas.space == name:
        return ""
    return f"the scan is in {name}, a template of infants or children, and the atlas in {atlas.space}: parcels of adults may not fit it"


def _template(scan: Scan, atlas: Prior) -> str:
    ours, theirs = _generation(scan.space.name), _generation(atlas.space)
    if not _drawn(atlas) or not ours or not theirs or ours == theirs:
        return ""
    return (
        f"the scan is in {scan.space.name}, the atlas in {atlas.space}: the same place is {SHIFTS[frozenset((ours, theirs))]} in these "
        "templates; an atlas in the scan's own template has borders in the right place"
    )


def _generation(space: str) -> str:
    """The generation of an MNI152 template; empty for other spaces."""
    found = re.fullmatch(r"MNI152(NLin6|NLin2009)[abc]?A?[Ss]ym", space)
    return found[1] if found else ""


def _resolution(scan: Scan, atlas: Prior) -> str:
    here = scan.space.resolution
    if not _drawn(atlas) or scan.space.kind != "grid" or abs(here - atlas.resolution) <= RESOLUTION_TOLERANCE * atlas.resolution:
        return ""
    return (
        f"the atlas's {atlas.resolution:.3g} mm were taken to the scan's {here:.3g} mm by nearest point: an atlas at the scan's own "
        "resolution has sharper borders"
    )


def _drawn(atlas: Prior) -> bool:
    """The shipped atlases are geometric: they have no anatomical borders that a voxel size could blur or a template shift."""
    return not atlas.source.startswith("geometric")
