"""What a test returns."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Components(NamedTuple):
    """Connected components of the edges above a threshold, largest first; K // 2 places, 0 and NaN where there are fewer.

    Attributes:
      label: the component of each edge, −1 for none, `[E]`.
      extent: number of edges, `[C]`.
      intensity: sum of t − threshold over the edges, `[C]`.
      p_extent: family-wise p of the extent, `[C]`.
      p_intensity: family-wise p of the intensity, `[C]`.
      max_extent: largest extent of each rearrangement, `[P]`.
      max_intensity: largest intensity of each rearrangement, `[P]`.
      threshold: of t.
    """

    label: Int[Array, " E"]
    extent: Float[Array, " C"]
    intensity: Float[Array, " C"]
    p_extent: Float[Array, " C"]
    p_intensity: Float[Array, " C"]
    max_extent: Float[Array, " P"]
    max_intensity: Float[Array, " P"]
    threshold: Float[Array, ""]


class Enhanced(NamedTuple):
    """Threshold-free network-based statistic of each edge.

    Attributes:
      score: integral over the height of extent^E · height^H, `[E]`; NaN for edges that cannot be tested.
      p: family-wise p of the score, `[E]`.
      max_score: largest score of each rearrangement, `[P]`.
    """

    score: Float[Array, " E"]
    p: Float[Array, " E"]
    max_score: Float[Array, " P"]


class EdgeSets(NamedTuple):
    """Tests of sets of edges, such as all edges between two networks or all edges of a node; NaN for a set without testable edges.

    Family-wise p values are over the sets: of each rearrangement counts the set with the most extreme statistic, in standard deviations of
    that set's own rearrangements, because small sets vary more than large ones.

    Attributes:
      size: number of edges that were tested, `[G]`.
      mean: mean t, `[G]`; large where all edges differ in one direction.
      p, p_fwe: of the mean, in the direction of the tail, uncorrected and family-wise, `[G]`.
      square: mean t², `[G]`; large where edges differ in any direction.
      p_square, p_square_fwe: of the mean square, `[G]`.
    """

    size: Float[Array, " G"]
    mean: Float[Array, " G"]
    p: Float[Array, " G"]
    p_fwe: Float[Array, " G"]
    square: Float[Array, " G"]
    p_square: Float[Array, " G"]
    p_square_fwe: Float[Array, " G"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PermutationResult:
    """What a test found; NaN for edges that cannot be tested: a NaN in any subject, or no variation.

    Attributes:
      t: statistic, `[E]`.
      p: (1 + rearrangements that reach the edge's own t) / (1 + P), uncorrected, `[E]`.
      p_fwe: the same with the largest t of each rearrangement: family-wise, `[E]`.
      q: false discovery rate (Benjamini and Hochberg) of p, `[E]`.
      max_t: largest t of each rearrangement, by size where both tails count, `[P]`.
      df: degrees of freedom.
      components: of the edges above a threshold, if one was given.
      enhanced: threshold-free network-based statistic, if it was asked for.
      sets: tests of sets of edges by name, empty if none were given.
      tail: which values count as extreme.
    """

    t: Float[Array, " E"]
    p: Float[Array, " E"]
    p_fwe: Float[Array, " E"]
    q: Float[Array, " E"]
    max_t: Float[Array, " P"]
    df: Float[Array, ""]
    components: Components | None
    enhanced: Enhanced | None
    sets: dict[str, EdgeSets]
    tail: str = dataclasses.field(metadata={"static": True})
