"""What differs between the brains of a cohort by design: a planted disease and age. Both act on the normalised coupling N.

A changed coupling propagates: the connectivity of edges without a planted change changes too. The truth therefore lists both the
planted couplings and the edges whose closed-form connectivity differs.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import SettingsError

Kind = Literal["circuits", "lesion"]

WEAK_NODES = 8  # C1: couplings among them × (1 − .9 severity)
WEAK_LOSS = 0.9
STRONG_NODES = 6  # C2: couplings among them + .06 severity
STRONG_GAIN = 0.06
AFFECTED_FC = 0.05  # an edge is affected where its closed-form correlation differs by so much
AGE_YEARS = (20.0, 70.0)
AGE_CENTRE = 45.0
AGE_EDGES = 0.05  # share of the edges that age
AGE_LOSS_PER_DECADE = 0.1  # of their coupling


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Where a cohort's disease and ageing act; the same in every patient.

    Attributes:
      weak: C1, 8 nodes of the largest module (all of it where it is smaller), ascending.
      strong: C2, 6 nodes outside that module, ascending.
      lesion: the node that a lesion hits, the most coupled one of the largest module.
      ageing: True at the edges that age, symmetric, `[K, K]`.
    """

    weak: Int[np.ndarray, " a"]
    strong: Int[np.ndarray, " b"]
    lesion: int
    ageing: Bool[np.ndarray, "K K"]


@dataclasses.dataclass(frozen=True, eq=False)
class DiseaseTruth:
    """What the disease did to one subject; nothing in a healthy one.

    Attributes:
      kind: `"circuits"`, `"lesion"` or `"none"`.
      severity: 0…1.
      nodes: nodes whose couplings were changed, ascending.
      planted: True at the couplings that were changed, `[K, K]`.
      fc_change: closed-form connectivity with the disease minus the same subject's without it, `[K, K]`.
      affected: True where that differs by .05 or more, `[K, K]`.
    """

    kind: str
    severity: float
    nodes: Int[np.ndarray, " n"]
    planted: Bool[np.ndarray, "K K"]
    fc_change: Float[np.ndarray, "K K"]
    affected: Bool[np.ndarray, "K K"]


def plan(modules: Int[np.ndarray, " K"], strength: Float[np.ndarray, " K"], rng: np.random.Generator) -> Plan:
    """Draws where a cohort's disease and ageing act.

    Args:
      modules: the group's module of each parcel, `[K]`.
      strength: the group's summed coupling of each parcel, `[K]`.
      rng: the cohort's.
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
    """Coupling at an age: ageing edges lose a tenth of what they are at 45 years with every decade."""
    factor = 1 - AGE_LOSS_PER_DECADE * (age - AGE_CENTRE) / 10
    return np.where(plan.ageing, coupling * factor, coupling)


def with_disease(coupling: Float[np.ndarray, "K K"], plan: Plan, severity: float, kind: Kind = "circuits") -> Float[np.ndarray, "K K"]:
    """Coupling of a patient.

    `"circuits"` weakens the couplings among the C1 nodes (× (1 − .9 severity)) and adds .06 severity to those among the C2 nodes;
    `"lesion"` weakens all couplings of one node by the C1 factor.

    Args:
      coupling: healthy N, `[K, K]`.
      plan: where.
      severity: 0…1; at 0 the coupling comes back unchanged.
      kind: what.

    Raises:
      ValueError: unknown kind or a severity outside 0…1.
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
    """Truth of a patient, given the closed-form connectivity with and without the disease."""
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
    """Truth of a healthy subject."""
    nothing = np.zeros((parcels, parcels), bool)
    return DiseaseTruth("none", 0.0, np.zeros(0, np.int64), nothing, np.zeros((parcels, parcels)), nothing)


def _clique(parcels, nodes):
    """True at the couplings among some nodes, `[K, K]`; never at the diagonal, which is no coupling."""
    inside = np.isin(np.arange(parcels), nodes)
    return np.outer(inside, inside) & ~np.eye(parcels, dtype=bool)


def _star(parcels, node):
    """True at all couplings of one node, `[K, K]`."""
    hit = np.arange(parcels) == node
    return np.logical_xor.outer(hit, hit)
