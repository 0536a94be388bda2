"""Results of permutation tests."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Components(NamedTuple):
    """Connected components of the edges above a threshold, largest first; padded with 0 and NaN to C = K // 2 components.

    Attributes:
      label: component of each edge, −1 if none, `[E]`.
      extent: number of edges, `[C]`.
      intensity: sum of t − threshold over the edges, `[C]`.
      p_extent: family-wise p of the extent, `[C]`.
      p_intensity: family-wise p of the intensity, `[C]`.
      max_extent: largest extent of each permutation, `[P]`.
      max_intensity: largest intensity of each permutation, `[P]`.
      threshold: threshold of t.
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
      max_score: largest score of each permutation, `[P]`.
    """

    score: Float[Array, " E"]
    p: Float[Array, " E"]
    max_score: Float[Array, " P"]


class EdgeSets(NamedTuple):
    """Tests of sets of edges, such as all edges between two networks or all edges of a node; NaN for a set without testable edges.

    Family-wise p values are over the sets: the most extreme set of each permutation counts, with each statistic standardised by its
    distribution over permutations, because small sets vary more than large ones.

    Attributes:
      size: number of tested edges, `[G]`.
      mean: mean t, `[G]`; large if the edges differ in the same direction.
      p, p_fwe: uncorrected and family-wise p of the mean, in the direction of the tail, `[G]`.
      square: mean t², `[G]`; large if the edges differ in any direction.
      p_square, p_square_fwe: uncorrected and family-wise p of the mean square, `[G]`.
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
    """Result of a permutation test; NaN for edges that cannot be tested, because a subject has NaN or the edge does not vary.

    Attributes:
      t: t statistic, `[E]`.
      p: uncorrected p, (1 + number of permutations that reach the t of the edge) / (1 + P), `[E]`.
      p_fwe: family-wise p, computed likewise from the largest t of each permutation, `[E]`.
      q: false discovery rate (Benjamini and Hochberg), `[E]`.
      max_t: largest t of each permutation, in absolute value if both tails count, `[P]`.
      df: degrees of freedom.
      components: components of the edges above the threshold, if one was given.
      enhanced: threshold-free network-based statistic, if requested.
      sets: tests of sets of edges by name; empty if none were given.
      tail: `"both"`, `"greater"` or `"less"`.
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
