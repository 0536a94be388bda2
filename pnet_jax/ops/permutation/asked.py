"""What is computed of every rearrangement beside the edges' own t, and what is kept of it."""

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
      extent: E, power of the number of edges of a component.
      height: H, power of the threshold.
      step: distance of the thresholds, in t; between two of them the integral over h^H is exact and components are those of the lower one.
      top: highest threshold, in t; components above it are those at it.
    """

    extent: float = 0.4
    height: float = 3.0
    step: float = 0.2
    top: float = 6.0


class Asked(NamedTuple):
    """What is computed; a pytree.

    Attributes:
      ends: the two nodes of each edge, `[E, 2]`.
      table: number of the edge between two nodes, −1 where there is none, `[K, K]`.
      threshold: of t, for components; None: none are computed.
      levels: thresholds of the threshold-free statistic, rising, `[L]`; None: it is not computed.
      powers: E and H of the threshold-free statistic, `[2]`.
      sets: members of sets of edges as 0 and 1, by name, `[E, G]` each.
    """

    ends: Int[Array, "E 2"]
    table: Int[Array, "K K"]
    threshold: Float[Array, ""] | None
    levels: Float[Array, " L"] | None
    powers: Float[Array, " 2"]
    sets: dict[str, Float[Array, "E G"]]

    @property
    def graph(self) -> bool:
        """Whether anything needs to know which edges meet."""
        return self.threshold is not None or self.levels is not None


class Kept(NamedTuple):
    """What is kept of each of P rearrangements.

    Attributes:
      largest: largest r, `[P]`.
      extent, intensity: largest of a component, `[P]`; None where no threshold was given.
      score: largest threshold-free score, `[P]`; None where it was not asked for.
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
    """Check what is asked for.

    Raises:
      ValueError: a threshold or setting that is not above 0, sets of another number of edges, or ends that are no graph's.
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
    """The two nodes of each edge: all pairs of K nodes, row by row, where they are not given."""
    if ends is None:
        nodes = int((1 + np.sqrt(1 + 8 * n_edges)) / 2)
        if nodes * (nodes - 1) // 2 != n_edges:
            raise ValueError(f"edges must be all K (K - 1) / 2 pairs of K nodes where ends are not given, got {n_edges}")
        ends = np.stack(np.triu_indices(nodes, 1), 1)
    ends = np.asarray(ends)
    if ends.shape != (n_edges, 2) or ends.min() < 0 or (ends[:, 0] == ends[:, 1]).any():
        raise ValueError(f"ends must be two different nodes, 0 or more, of each of {n_edges} edges, got shape {ends.shape}")
    return ends


def edge_table(n_edges: int, ends: Int[np.ndarray, "E 2"] | None) -> Int[np.ndarray, "K K"]:
    """The number of the edge between two nodes, −1 where there is none."""
    ends = edge_ends(n_edges, ends)
    table = np.full((ends.max() + 1,) * 2, -1, np.int32)
    table[ends[:, 0], ends[:, 1]] = table[ends[:, 1], ends[:, 0]] = np.arange(n_edges)
    if (table >= 0).sum() != 2 * n_edges:
        raise ValueError("ends name an edge twice")
    return table
