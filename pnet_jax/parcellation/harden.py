"""From probabilities to one label per location: connected, never empty where the prior can fill it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

PASSES = 5
SMALLEST_SHARE = 0.25  # of the prior's size

_Edges = tuple[np.ndarray, np.ndarray]  # adjacent locations, each pair once


class Hardened(NamedTuple):
    """Labels and what was done to them.

    Attributes:
      labels: `[V]`, −1 where a location has no candidate.
      restored: parcels put back to the prior because less than a quarter of their prior size was left, ascending.
      moved_fragments: how many locations changed because they hung apart from the body of their parcel.
      components: connected components of each parcel in the result, `[K]`; 0 for absent parcels.
    """

    labels: Int[np.ndarray, " V"]
    restored: Int[np.ndarray, " r"]
    moved_fragments: int
    components: Int[np.ndarray, " K"]


def harden(
    q: Float[np.ndarray, "V C"],
    candidates: Int[np.ndarray, "V C"],
    neighbours: Int[np.ndarray, "V N"],
    prior_labels: Int[np.ndarray, " V"],
    n_parcels: int,
) -> Hardened:
    """Most probable candidate; fragments join the majority of their neighbours; parcels that nearly vanished are restored.

    Args:
      q: probabilities, `[V, C]`.
      candidates: −1 padded, `[V, C]`.
      neighbours: −1 padded, `[V, N]`; without neighbours (ROIs) nothing is a fragment.
      prior_labels: the prior's answer, −1 outside, `[V]`.
      n_parcels: K.
    """
    rows = np.arange(len(q))
    labels = np.where(candidates[:, 0] >= 0, candidates[rows, np.where(candidates >= 0, q, -1.0).argmax(1)], -1).astype(np.int32)
    first = labels.copy()
    pairs = _pairs(neighbours)
    if neighbours.shape[1]:
        labels = _join_fragments(labels, candidates, neighbours, pairs, n_parcels)
    moved = int((labels != first).sum())
    size, expected = (np.bincount(x[x >= 0], minlength=n_parcels) for x in (labels, prior_labels))
    restored = np.flatnonzero((size < SMALLEST_SHARE * expected) & (expected > 0))
    for k in restored.tolist():
        labels[_most_probable(q, candidates, prior_labels, k, math.ceil(SMALLEST_SHARE * expected[k]))] = k
    return Hardened(labels, restored.astype(np.int32), moved, _component_count(labels, pairs, n_parcels))


def _most_probable(
    q: Float[np.ndarray, "V C"], candidates: Int[np.ndarray, "V C"], prior_labels: Int[np.ndarray, " V"], k: int, count: int
) -> Int[np.ndarray, " n"]:
    """The `count` locations of prior parcel k that are most probably its own."""
    here = np.flatnonzero(prior_labels == k)
    probability = np.where(candidates[here] == k, q[here], 0.0).sum(1)
    return here[np.argsort(-probability, kind="stable")[:count]]


def unchanged(prior_labels: Int[np.ndarray, " V"], neighbours: Int[np.ndarray, "V N"], n_parcels: int) -> Hardened:
    """The prior's labels as they are, with the components they fall into."""
    none = np.zeros(0, np.int32)
    return Hardened(prior_labels.astype(np.int32), none, 0, _component_count(prior_labels, _pairs(neighbours), n_parcels))


def _join_fragments(
    labels: Int[np.ndarray, " V"], candidates: Int[np.ndarray, "V C"], neighbours: Int[np.ndarray, "V N"], pairs: _Edges, n_parcels: int
) -> Int[np.ndarray, " V"]:
    labels = labels.copy()
    for _ in range(PASSES):
        component = _components(labels, pairs)
        size = np.bincount(component)
        # The largest component of a parcel is its body; ties go to the one with the first location.
        order = np.lexsort((np.arange(len(labels)), -size[component]))
        inside = order[labels[order] >= 0]
        parcel, at = np.unique(labels[inside], return_index=True)
        body = np.full(n_parcels, -1)
        body[parcel] = component[inside[at]]
        loose = np.flatnonzero((labels >= 0) & (component != body[labels]))
        if not len(loose):
            break
        settled = np.append(labels, -1)
        settled[loose] = -1
        votes = (settled[neighbours[loose]][:, :, None] == candidates[loose][:, None, :]) & (candidates[loose] >= 0)[:, None, :]
        votes = votes.sum(1)  # [loose, C]
        heard = votes.max(1) > 0
        labels[loose[heard]] = candidates[loose[heard], votes[heard].argmax(1)]
    return labels


def _pairs(neighbours: Int[np.ndarray, "V N"]) -> _Edges:
    v, n = np.nonzero(neighbours > np.arange(len(neighbours))[:, None])  # each pair once
    return v, neighbours[v, n]


def _components(labels: Int[np.ndarray, " V"], pairs: _Edges) -> Int[np.ndarray, " V"]:
    i, j = pairs
    same = labels[i] == labels[j]
    graph = coo_matrix((np.ones(int(same.sum()), bool), (i[same], j[same])), shape=(len(labels),) * 2)
    return connected_components(graph, directed=False)[1]


def _component_count(labels: Int[np.ndarray, " V"], pairs: _Edges, n_parcels: int) -> Int[np.ndarray, " K"]:
    component = _components(labels, pairs)
    first = np.unique(component, return_index=True)[1]
    own = labels[first]
    return np.bincount(own[own >= 0], minlength=n_parcels)
