"""Settings of the portrait divergence."""

import dataclasses

import numpy as np

MOST_BINS = 2**15  # ranks of percentiles are computed in int32
CONVENTIONS = ("author", "netrd")
LENGTHS = ("hops", "1/w", "1-w", "-log w", "w")


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """All settings of a portrait divergence; stored with every result.

    Attributes:
      convention: definition of P: `"author"`, P(k, l) ∝ k B[l, k], as in the authors' program since 2019; or `"netrd"`,
        P(k, l) = B[l, k] / N · P(l), as in their program of 2018 and in netrd. The divergences differ by up to a factor of 2.
      lengths: length of an edge of weight w: `"hops"` (1 for every edge), `"1/w"`, `"1-w"`, `"-log w"` or `"w"`.
      density: share of the pairs of nodes whose edges are kept, the strongest first; None keeps every positive edge.
      tree: whether to keep the maximum spanning tree as well; only with a density.
      bins: number of path-length bins; their edges are percentiles of the distinct path lengths of both networks compared. Coarser bins
        give larger divergences. With `"hops"`, every number of hops is a bin.
      edges: bin edges common to all pairs, instead of `bins`; bins include their left edge, and the last bin also its right edge. Longer
        paths are ignored.
      rounding: number of mantissa bits to which path lengths are rounded. Without rounding, the order of summation can split one length
        into two, so that percentiles fall between them and a network differs from itself with permuted nodes. None disables rounding: sums
        are used as computed from either end, and percentiles are interpolated as in numpy and netrd; a percentile that falls on a length
        then equals it only up to rounding.
    """

    convention: str = "author"
    lengths: str = "hops"
    density: float | None = 0.15
    tree: bool = True
    bins: int = 100
    edges: tuple[float, ...] | None = None
    rounding: int | None = 15

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {CONVENTIONS}, got {self.convention!r}")
        if self.lengths not in LENGTHS:
            raise ValueError(f"lengths must be one of {LENGTHS}, got {self.lengths!r}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1] or None, got {self.density}")
        if not 1 <= self.bins <= MOST_BINS:
            raise ValueError(f"bins must be from 1 to {MOST_BINS}, got {self.bins}")
        if self.edges is not None and (len(self.edges) < 2 or not np.all(np.diff(self.edges) >= 0)):
            raise ValueError(f"edges must be two or more ascending numbers, got {self.edges}")
        if self.edges is not None and self.lengths == "hops":
            raise ValueError("edges are for lengths other than 'hops', for which every number of hops is a bin")
        if self.rounding is not None and not 0 < self.rounding <= 23:
            raise ValueError(f"rounding must be 1 to 23 binary digits or None, got {self.rounding}")
