"""Assembly of a Network from a scan and the arrays that the step returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

import pnet_jax
from pnet_jax import edges as measures
from pnet_jax.construction.qc import quality
from pnet_jax.construction.resolve import Plan
from pnet_jax.construction.step import Outputs, Subject
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import coverage_of
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.parcellation.spatial import AtlasOnSpace, locate
from pnet_jax.scan import Scan, halves_of

if TYPE_CHECKING:
    from pnet_jax.group.fit import Group


def assemble(scan: Scan, placed: AtlasOnSpace, plan: Plan, subject: Subject, found: Outputs) -> Network:
    """Assemble a scan's Network from the outputs of the step.

    Args:
      scan: The recording.
      placed: The atlas on the scan's Space.
      plan: The resolved settings.
      subject: The scan as read by the step.
      found: Outputs of the step.
    """
    atlas, n = placed.atlas, len(placed.here)
    rows = locate(placed, scan)
    here = np.flatnonzero(rows.valid)
    spread = _Spread(len(scan.space), here, rows.at[here])
    labels = spread(found.labels, -1)
    signals = found.signals[:, : scan.y.shape[1]]
    coverage = coverage_of(atlas, placed.nearest, subject.valid[:n])
    known = {"tr": scan.tr, "frames": scan.frames, "y": scan.y, "labels": labels}
    edges = {
        name: found.edges[name] if name in found.edges else measures.compute(name, signals, **known)
        for name in plan.edges
        if name in found.edges or measures.measure(name).function is not None
    }
    return Network(
        space=scan.space,
        labels=labels,
        candidates=spread(found.candidates, -1),
        probabilities=spread(found.probabilities, 0.0),
        signals=signals,
        edges=edges,
        ids=atlas.ids,
        names=atlas.names,
        hemispheres=atlas.hemispheres,
        atlas_labels=spread(np.asarray(placed.prior.labels), -1),
        coverage=coverage,
        frames=scan.frames,
        tr=scan.tr,
        subject=scan.subject,
        entities=dict(scan.entities),
        qc=quality(scan, placed, plan, subject, found, coverage),
        provenance=_provenance(scan, plan, subject),
        mean=scan.mean,
        displacement=scan.displacement,
        halves={"pearson": found.halves} | _whitened_halves(scan, labels, atlas.n_parcels),
    )


def _whitened_halves(scan: Scan, labels: Int[np.ndarray, " V"], n_parcels: int) -> dict[str, np.ndarray]:
    """Return `second_view` of both halves, or an empty mapping if the preprocessing is unknown."""
    signals = _unfiltered_signals(scan, labels, n_parcels)
    if signals is None:
        return {}
    columns = [np.searchsorted(scan.frames, half.frames) for half in halves_of(scan)]
    return {"whitened": np.stack([measures.compute("whitened", signals[:, own]) for own in columns])}


def second_view(
    scan: Scan, labels: Int[np.ndarray, " V"], n_parcels: int, columns: Int[np.ndarray, " t"] | slice = slice(None)
) -> Float[np.ndarray, "K K"] | None:
    """Return the second view of guided edges (`edges.fit_guided`) over the given frames; None if the preprocessing is unknown."""
    signals = _unfiltered_signals(scan, labels, n_parcels)
    return None if signals is None else measures.compute("whitened", signals[:, columns])


def _unfiltered_signals(scan: Scan, labels: Int[np.ndarray, " V"], n_parcels: int) -> Float[np.ndarray, "K T"] | None:
    """Return parcel signals without low-pass filtering, or None if the scan has none or its preprocessing is unknown."""
    if scan.wide is not None:
        return np.asarray(parcel_signals(np.float32(scan.wide), labels, n_parcels))
    unfiltered = "low_pass" in scan.cleaning and scan.band[1] is None
    return np.asarray(parcel_signals(scan.y, labels, n_parcels)) if unfiltered else None


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Map of values from the atlas's locations to the scan's."""

    size: int
    here: Int[np.ndarray, " m"]
    rows: Int[np.ndarray, " m"]

    def __call__(self, values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full((self.size, *values.shape[1:]), fill, values.dtype)
        out[self.rows] = values[self.here]
        return out


def _group(group: Group) -> dict[str, Any]:
    return {
        "digest": group.digest,
        "participants": len(group.subjects),
        "spatial_prior": group.spatial is not None,
        "edges_learned_from": f"{group.n_pairs} pairs of {group.pairs}" if group.pairs else None,
        "views": 0 if group.guide is None else len(group.guide.mean),
    }


def _provenance(scan: Scan, plan: Plan, subject: Subject) -> dict[str, Any]:
    atlas, model = plan.atlas, plan.model
    return {
        "pnet_jax": pnet_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "checkpoint": {"name": model.name, "digest": model.digest},
        "atlas": {
            "source": atlas.source,
            "digest": atlas.digest,
            "parcels": atlas.n_parcels,
            "space": atlas.space,
            "resolution": atlas.resolution,
        },
        "group": None if plan.group is None else _group(plan.group),
        "config": _deciding(plan),
        "seed": int(subject.seed),
        "source": str(scan.source),
        "cleaning": scan.cleaning,
        "device": jax.devices()[0].device_kind,
    }


def _deciding(plan: Plan) -> dict[str, Any]:
    """Return the configuration without the settings that distribute the work, which do not affect results."""
    config = dataclasses.asdict(plan.config)
    del config["workers"]
    config["parallel"] = {name: config["parallel"][name] for name in ("subject", "location")}
    return config
