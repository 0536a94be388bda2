"""Signals of existing parcels as Networks, so that later steps are the same as for images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pnet_jax import edges as measures
from pnet_jax.cohort import Cohort, check_network
from pnet_jax.edges import add_layers, layers
from pnet_jax.errors import InputError
from pnet_jax.group.fit import Group
from pnet_jax.network import QC, Network, Selection
from pnet_jax.parcellation.atlas import Atlas, make_atlas
from pnet_jax.scan import Scan, halves_of, label_entities, make_scan, n_eff
from pnet_jax.space import Space, point_space

FIXED = "the parcels were made before"


def parcels_of(one: Cohort) -> Atlas:
    """Return the parcels of a Cohort as an Atlas without positions, whose digest identifies them."""
    places = np.arange(one.n_parcels, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    names = [str(name) for name in one.names]
    return make_atlas(places, np.arange(1, one.n_parcels + 1), resolution=1.0, names=names, source=one.atlas["source"])


def network_of(one: Cohort, edges: Sequence[str], atlas: Atlas) -> Network:
    """Make the Network of a Cohort with one scan.

    Edges are taken from the Cohort if available, except those that depend on other participants (`tangent`, `shrunk`, `guided`), which
    would leak information into an evaluation.

    Args:
      one: Cohort of one scan, with signals.
      edges: Names of single-scan edge measures.
      atlas: Parcels of the Cohort, from `parcels_of`.

    Raises:
      InputError: If the Cohort has no signals.
    """
    if one.signals is None or one.frames is None or one.kept is None:
        raise InputError(f"{one.table['scan'][0]}: expected a Cohort with signals, found none: read it with signals")
    kept = one.kept[0]
    signals = one.signals[0][:, kept].copy()
    present = np.isfinite(signals).all(1)
    signals[~present] = np.nan
    scan = _scan(one, np.nan_to_num(signals))
    halves = [np.where(present[:, None], half.y, np.float32(np.nan)) for half in halves_of(scan)]
    found = {name: _edges(one, name, signals, scan) for name in edges}
    degrees = tuple(half.degrees for half in halves_of(scan))
    network = Network(
        signals=signals,
        edges=found,
        ids=one.ids,
        names=one.names,
        hemispheres=one.hemispheres,
        coverage=one.coverage[0],
        frames=scan.frames,
        tr=scan.tr,
        subject=scan.subject,
        entities=dict(scan.entities),
        qc=QC(
            selection=Selection(decision="atlas", reason=FIXED, requested=True, degrees=(degrees[0], degrees[1])),
            n_eff=n_eff(scan),
            n_frames=len(scan.frames),
        ),
        provenance={"atlas": {"source": atlas.source, "digest": atlas.digest, "parcels": atlas.n_parcels}},
        halves={"pearson": np.stack([measures.compute("pearson", half) for half in halves])},
        **_locations(one),
    )
    check_network(network)
    return network


def with_layers(network: Network, group: Group | None) -> Network:
    """Return the network with the shrunk and guided edges of a group model, if there is one."""
    if group is None or group.shrinkage is None or network.qc.n_eff is None:
        return network
    return add_layers(network, layers(network.edges["pearson"], max(network.qc.n_eff, 1.0), group.shrinkage, group.guide))


def _scan(one: Cohort, signals: np.ndarray) -> Scan:
    """Return a Scan whose locations are the parcels, with its halves and degrees of freedom."""
    table, label = one.table, label_entities(str(one.table["scan"][0]))
    tr, degrees = float(table["tr"][0]), float(table["n_eff"][0])
    assert one.frames is not None and one.kept is not None
    frames = one.frames[0][one.kept[0]].astype(np.int64)
    return make_scan(
        signals,
        point_space(np.zeros((len(signals), 3))),
        tr=tr if tr > 0 else 1.0,
        frames=frames,
        recorded=int(frames[-1]) + 1,
        degrees=degrees if degrees > 0 else None,
        subject=label.pop("sub", str(table["subject"][0])),
        entities=label,
    )


def _edges(one: Cohort, name: str, signals: np.ndarray, scan: Scan) -> np.ndarray:
    if name in one.edges and measures.measure(name).function is not None:
        return one.edges[name][0]
    return measures.compute(name, signals, tr=scan.tr, frames=scan.frames)


def _locations(one: Cohort) -> dict[str, Any]:
    """Return the locations and labels of the Cohort if it has them, otherwise one location without position per parcel."""
    if one.space is not None and one.labels is not None and one.confidence is not None:
        space: Space = one.space
        labels, sure = one.labels[0].astype(np.int32), one.confidence[0]
    else:
        k = one.n_parcels
        space = point_space(np.zeros((k, 3)), names=one.names)
        space = dataclasses.replace(space, xyz=np.full((k, 3), np.nan, np.float32))
        labels, sure = np.arange(k, dtype=np.int32), np.ones(k, np.float32)
    return {
        "space": space,
        "labels": labels,
        "atlas_labels": labels,
        "candidates": labels[:, None],
        "probabilities": np.where(labels >= 0, sure, 0)[:, None].astype(np.float32),
    }
