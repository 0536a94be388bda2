"""How networks become graphs, graphs portraits and portraits one number."""

import dataclasses

import numpy as np

MOST_BINS = 2**15  # where percentiles stand is counted in int32
CONVENTIONS = ("author", "netrd")
LENGTHS = ("hops", "1/w", "1-w", "-log w", "w")


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """Every choice a portrait divergence depends on; every result carries its settings.

    Attributes:
      convention: `"author"`, P(k, l) ∝ k B[l, k], the authors' program since 2019; or `"netrd"`, P(k, l) = B[l, k] / N · P(l), their
        program of 2018 and netrd. The two differ by up to a factor of 2.
      lengths: what an edge of weight w is long: `"hops"` (1, whatever its weight), `"1/w"`, `"1-w"`, `"-log w"` or `"w"`.
      density: share of the pairs of nodes that keep their edge, the strongest first; None keeps every positive edge.
      tree: with a density, keep the spanning tree of largest weight too.
      bins: number of bins of path length whose edges are percentiles of the different path lengths of both compared networks. Coarser bins
        give larger values. Hops have a bin each.
      edges: edges of the bins, the same for all pairs, in place of `bins`; left ones included, the last one too. Longer paths do not count.
      rounding: binary digits after the first that path lengths are rounded to. Otherwise the order in which a path's edges are added makes
        two lengths of one, and percentiles of the different lengths fall between them: a network would differ from itself with its nodes in
        another order. None: no rounding, sums from either end as they come, and percentiles as numpy rounds their places, as in netrd; a
        percentile that falls on a length is then that length only up to rounding.
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
            raise ValueError("edges are for lengths other than 'hops', which have a bin each")
        if self.rounding is not None and not 0 < self.rounding <= 23:
            raise ValueError(f"rounding must be 1 to 23 binary digits or None, got {self.rounding}")
