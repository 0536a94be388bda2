"""Planted differences between subjects: a disease and ageing. Both act on the normalised coupling N.

Changes in coupling propagate to the connectivity of other edges. The ground truth therefore lists both the planted couplings and the edges
whose closed-form connectivity differs.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import SettingsError

Kind = Literal["circuits", "lesion"]

WEAK_NODES = 8  # circuit C1: couplings among these nodes × (1 − 0.9 severity)
WEAK_LOSS = 0.9
STRONG_NODES = 6  # circuit C2: couplings among these nodes + 0.06 severity
STRONG_GAIN = 0.06
AFFECTED_FC = 0.05  # least difference in closed-form correlation of an affected edge
AGE_YEARS = (20.0, 70.0)
AGE_CENTRE = 45.0
AGE_EDGES = 0.05  # share of edges with an ageing effect
AGE_LOSS_PER_DECADE = 0.1  # relative loss of their coupling


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Sites of disease and ageing effects in a cohort, identical in all patients.

    Attributes:
      weak: Circuit C1, 8 nodes of the largest module (or all of a smaller one), ascending.
      strong: Circuit C2, 6 nodes outside that module, ascending.
      lesion: Node of the lesion, the most strongly coupled one of the largest module.
      ageing: True for edges with an ageing effect, symmetric, `[K, K]`.
    """

    weak: Int[np.ndarray, " a"]
    strong: Int[np.ndarray, " b"]
    lesion: int
    ageing: Bool[np.ndarray, "K K"]


@dataclasses.dataclass(frozen=True, eq=False)
class DiseaseTruth:
    """Effects of the disease on one subject; empty for healthy subjects.

    Attributes:
      kind: `"circuits"`, `"lesion"` or `"none"`.
      severity: Severity, 0…1.
      nodes: Nodes whose couplings were changed, ascending.
      planted: True for couplings that were changed, `[K, K]`.
      fc_change: Closed-form connectivity with disease minus that of the same subject without it, `[K, K]`.
      affected: True where the absolute change is at least 0.05, `[K, K]`.
    """

    kind: str
    severity: float
    nodes: Int[np.ndarray, " n"]
    planted: Bool[np.ndarray, "K K"]
    fc_change: Float[np.ndarray, "K K"]
    affected: Bool[np.ndarray, "K K"]


def plan(modules: Int[np.ndarray, " K"], strength: Float[np.ndarray, " K"], rng: np.random.Generator) -> Plan:
    """Draw the sites of disease and ageing effects in a cohort.

    Args:
      modules: Group module of each parcel, `[K]`.
      strength: Summed group coupling of each parcel, `[K]`.
      rng: Random generator of the cohort.
    """
    parcels = len(modules)
    largest = np.flatnonzero(modules == np.argmax(np.bincount(modules)))
    outside = np.setdiff1d(np.arange(parcels), largest)
    row, column = np.triu_indices(parcels, 1)
    chosen = rng.choice(len(row), round(AGE_EDGES * len(row)), replace=False)
    ageing = np.zeros((parcels, parcels), bool)
    ageing[row[chosen], column[chosen]] = ageing[column[chosen], row[chosen]] = True
    return Plan(
        weak=np.sort(rng.choice(largest, min(WEAK_NODES, len(largest)), replace=False)),
        strong=np.sort(rng.choice(outside, min(STRONG_NODES, len(outside)), replace=False)),
        lesion=int(largest[np.argmax(strength[largest])]),
        ageing=ageing,
    )


def with_age(coupling: Float[np.ndarray, "K K"], plan: Plan, age: float) -> Float[np.ndarray, "K K"]:
    """Compute the coupling at an age: affected edges lose a tenth of their value at 45 years per decade."""
    factor = 1 - AGE_LOSS_PER_DECADE * (age - AGE_CENTRE) / 10
    return np.where(plan.ageing, coupling * factor, coupling)


def with_disease(coupling: Float[np.ndarray, "K K"], plan: Plan, severity: float, kind: Kind = "circuits") -> Float[np.ndarray, "K K"]:
    """Compute the coupling of a patient.

    `"circuits"` weakens the couplings among the C1 nodes (× (1 − 0.9 severity)) and adds 0.06 severity to those among the C2 nodes;
    `"lesion"` weakens all couplings of one node by the C1 factor.

    Args:
      coupling: Healthy coupling N, `[K, K]`.
      plan: Sites of the effects.
      severity: Severity, 0…1; 0 leaves the coupling unchanged.
      kind: Kind of disease.

    Raises:
      ValueError: If the kind is unknown or the severity is outside 0…1.
    """
    if kind not in get_args(Kind):
        raise SettingsError(f"expected the disease to be one of {get_args(Kind)}, got {kind!r}")
    if not 0 <= severity <= 1:
        raise SettingsError(f"SimulateConfig.severity: expected 0…1, got {severity!r}")
    factor = 1 - WEAK_LOSS * severity
    if kind == "lesion":
        return np.where(_star(len(coupling), plan.lesion), coupling * factor, coupling)
    weakened = np.where(_clique(len(coupling), plan.weak), coupling * factor, coupling)
    return weakened + STRONG_GAIN * severity * _clique(len(coupling), plan.strong)


def disease_truth(
    plan: Plan, severity: float, kind: Kind, *, healthy_fc: Float[np.ndarray, "K K"], fc: Float[np.ndarray, "K K"]
) -> DiseaseTruth:
    """Return the disease effects of a patient, given the closed-form connectivity with and without the disease."""
    if kind == "lesion":
        nodes, planted = np.array([plan.lesion]), _star(len(fc), plan.lesion)
    else:
        nodes = np.sort(np.concatenate([plan.weak, plan.strong]))
        planted = _clique(len(fc), plan.weak) | _clique(len(fc), plan.strong)
    if severity == 0:
        return no_disease(len(fc))
    change = fc - healthy_fc
    return DiseaseTruth(kind, float(severity), nodes, planted, change, np.abs(change) >= AFFECTED_FC)


def no_disease(parcels: int) -> DiseaseTruth:
    """Return the (empty) disease effects of a healthy subject."""
    nothing = np.zeros((parcels, parcels), bool)
    return DiseaseTruth("none", 0.0, np.zeros(0, np.int64), nothing, np.zeros((parcels, parcels)), nothing)


def _clique(parcels, nodes):
    """Mask of the couplings among some nodes, `[K, K]`, with a False diagonal."""
    inside = np.isin(np.arange(parcels), nodes)
    return np.outer(inside, inside) & ~np.eye(parcels, dtype=bool)


def _star(parcels, node):
    """Mask of all couplings of one node, `[K, K]`."""
    hit = np.arange(parcels) == node
    return np.logical_xor.outer(hit, hit)
