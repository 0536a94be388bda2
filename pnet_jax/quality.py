"""What a reader should know of a network before believing it: figures, and warnings in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pnet_jax.parcellation.prior import LocalPrior, Prior
from pnet_jax.scan import Scan, n_eff
from pnet_jax.space import LEFT, RIGHT

MUCH_MOTION_MM = 0.25  # mean framewise displacement beyond which connectivity is commonly taken to be affected
RESOLUTION_TOLERANCE = 0.1  # voxel sizes of prior and scan that differ by less are the same
WHOLE_SIDE = 0.1  # share of the locations from which on a hemisphere is one that was scanned


def quality(scan, here, local, group, parcellation, labels, names, config) -> dict[str, Any]:
    """Figures and warnings of a network, by name: what was decided, absent and moved parcels, frames, motion, what a measure lacks."""
    size = np.bincount(labels[labels >= 0], minlength=group.n_parcels)
    independent = n_eff(scan)
    name = np.array(group.names, object)
    warnings = [*scan.warnings, *_misfits(scan, local, group)]
    if {"partial", "precision"} & set(names) and independent <= 5 * group.n_parcels:
        warnings.append(
            f"partial correlation and precision are ill-posed here: about {independent:.0f} effective frames for "
            f"{group.n_parcels} parcels, expected more than {5 * group.n_parcels}"
        )
    selection = dataclasses.asdict(parcellation.selection)
    selection["difference"] = {"dcbc": selection["difference"]}
    if selection["decision"] == "prior":
        warnings.append(f"the prior's parcels are returned: {selection['reason']}")
    if scan.displacement is not None and np.nanmean(scan.displacement[scan.frames]) > MUCH_MOTION_MM:
        warnings.append(
            f"the head moved {np.nanmean(scan.displacement[scan.frames]):.2f} mm a frame on average in the frames that were kept, "
            f'more than {MUCH_MOTION_MM} mm: add "scrub" to cleaning.strategy, or treat this network with care'
        )
    if (size == 0).any():
        warnings.append(f"{int((size == 0).sum())} of {group.n_parcels} parcels have no location; their rows are NaN")
    return {
        "selection": selection,
        "absent": name[size == 0].tolist(),
        "restored": name[parcellation.hardened.restored].tolist(),
        "fragments_joined": parcellation.hardened.moved_fragments,
        "components": {str(name[k]): int(c) for k, c in enumerate(parcellation.hardened.components) if c > 1},
        "sizes": size.tolist(),
        "moved": float((labels[here] != local.labels[here]).mean()),
        "n_locations": len(here),
        "n_outside": int(len(labels) - len(here)),
        "n_frames": int(scan.y.shape[1]),
        "recorded_frames": int(scan.recorded),
        "minutes": scan.duration / 60,
        "low_coverage": name[local.coverage < config.min_coverage].tolist(),
        "n_eff": independent,
        "mean_displacement": None if scan.displacement is None else float(np.nanmean(scan.displacement)),
        "tsnr": float(np.median(scan.mean[here] / np.maximum(scan.std[here], 1e-12))),
        "warnings": warnings,
    }


def _misfits(scan: Scan, local: LocalPrior, group: Prior) -> list[str]:
    """What a reader should know of how the prior lies on the scan."""
    warnings, here = [], scan.space.resolution
    # The shipped priors are geometric: they have no borders that a voxel size could blur.
    drawn = not group.source.startswith("geometric")
    if drawn and scan.space.kind == "grid" and abs(here - group.resolution) > RESOLUTION_TOLERANCE * group.resolution:
        warnings.append(
            f"the prior's {group.resolution:.3g} mm were taken to the scan's {here:.3g} mm by nearest point: a prior at the scan's own "
            "resolution has sharper borders"
        )
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        own = scan.valid & (scan.space.hemisphere == side)
        if own.sum() > WHOLE_SIDE * scan.valid.sum() and not (local.labels[own] >= 0).any():
            warnings.append(
                f"the prior has no parcel in the {name} hemisphere, where {int(own.sum())} of the scan's {int(scan.valid.sum())} "
                "locations lie: check that prior and scan belong together"
            )
    return warnings
