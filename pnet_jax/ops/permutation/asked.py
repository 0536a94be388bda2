"""Statistics requested of every permutation in addition to t, and the values kept of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Enhancement:
    """Settings of the threshold-free network-based statistic.

    Attributes:
      extent: exponent E of the number of edges of a component.
      height: exponent H of the threshold.
      step: step between thresholds, in t; between two thresholds, the integral over h^H is exact with the components of the lower one.
      top: highest threshold, in t; above it, the components at this threshold are used.
    """

    extent: float = 0.4
    height: float = 3.0
    step: float = 0.2
    top: float = 6.0


class Asked(NamedTuple):
    """Statistics requested; a pytree.

    Attributes:
      ends: the two nodes of each edge, `[E, 2]`.
      table: index of the edge between two nodes, −1 if there is none, `[K, K]`.
      threshold: threshold of t for components; None if components are not requested.
      levels: ascending thresholds of the threshold-free statistic, `[L]`; None if it is not requested.
      powers: exponents E and H of the threshold-free statistic, `[2]`.
      sets: membership of edges in sets as 0 and 1, by name, `[E, G]` each.
    """

    ends: Int[Array, "E 2"]
    table: Int[Array, "K K"]
    threshold: Float[Array, ""] | None
    levels: Float[Array, " L"] | None
    powers: Float[Array, " 2"]
    sets: dict[str, Float[Array, "E G"]]

    @property
    def graph(self) -> bool:
        """Whether a requested statistic depends on which edges share a node."""
        return self.threshold is not None or self.levels is not None


class Kept(NamedTuple):
    """Values kept of each of the P permutations.

    Attributes:
      largest: largest r, `[P]`.
      extent, intensity: largest extent and intensity of a component, `[P]`; None if no threshold was given.
      score: largest threshold-free score, `[P]`; None if it was not requested.
      sets: mean t and mean t² of each set, by name, `[P, G]` each.
    """

    largest: Float[Array, " P"]
    extent: Float[Array, " P"] | None
    intensity: Float[Array, " P"] | None
    score: Float[Array, " P"] | None
    sets: dict[str, tuple[Float[Array, "P G"], Float[Array, "P G"]]]


def make_asked(
    edges: int,
    dtype: Any,
    threshold: float | None,
    enhancement: Enhancement | None,
    sets: Mapping[str, Bool[np.ndarray, "E G"]] | None,
    ends: Int[np.ndarray, "E 2"] | None,
) -> Asked:
    """Check the requested statistics and prepare their tables.

    Raises:
      ValueError: If a threshold or setting is not above 0, the number of edges of a set differs, or the ends do not describe a graph.
    """
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    levels, powers = None, np.zeros(2, dtype)
    if enhancement is not None:
        given = dataclasses.asdict(enhancement)
        if wrong := [f"{name} {value}" for name, value in given.items() if not value > 0]:
            raise ValueError(f"settings of the threshold-free statistic must be above 0, got {', '.join(wrong)}")
        if not enhancement.step <= enhancement.top:
            raise ValueError(f"step must not be above top, got {enhancement.step} and {enhancement.top}")
        levels = (enhancement.step * np.arange(1, int(enhancement.top / enhancement.step + 1e-6) + 1)).astype(dtype)
        powers = np.array([enhancement.extent, enhancement.height], dtype)
    members: dict[str, Any] = {name: np.asarray(one).astype(dtype) for name, one in (sets or {}).items()}
    for name, one in members.items():
        if one.ndim != 2 or len(one) != edges:
            raise ValueError(f"set {name!r} must have shape ({edges}, sets), got {one.shape}")
    if threshold is None and levels is None:
        ends, table = np.zeros((1, 2), np.int32), np.zeros((1, 1), np.int32)
    else:
        ends = edge_ends(edges, ends)
        table = edge_table(edges, ends)
    cut = None if threshold is None else np.asarray(threshold, dtype)
    return Asked(ends.astype(np.int32), table, cut, levels, powers, members)  # type: ignore[arg-type]


def edge_ends(n_edges: int, ends: Int[np.ndarray, "E 2"] | None) -> Int[np.ndarray, "E 2"]:
    """Return the two nodes of each edge; by default, all pairs of K nodes, row by row."""
    if ends is None:
        nodes = int((1 + np.sqrt(1 + 8 * n_edges)) / 2)
        if nodes * (nodes - 1) // 2 != n_edges:
            raise ValueError(f"without ends, edges must be all K (K - 1) / 2 pairs of K nodes, got {n_edges} edges")
        ends = np.stack(np.triu_indices(nodes, 1), 1)
    ends = np.asarray(ends)
    if ends.shape != (n_edges, 2) or ends.min() < 0 or (ends[:, 0] == ends[:, 1]).any():
        raise ValueError(f"ends must be two different nodes (≥ 0) of each of the {n_edges} edges, got an array of shape {ends.shape}")
    return ends


def edge_table(n_edges: int, ends: Int[np.ndarray, "E 2"] | None) -> Int[np.ndarray, "K K"]:
    """Return the index of the edge between two nodes, −1 if there is none, `[K, K]`."""
    ends = edge_ends(n_edges, ends)
    table = np.full((ends.max() + 1,) * 2, -1, np.int32)
    table[ends[:, 0], ends[:, 1]] = table[ends[:, 1], ends[:, 0]] = np.arange(n_edges)
    if (table >= 0).sum() != 2 * n_edges:
        raise ValueError("ends must list each edge once, found an edge twice")
    return table
