"""Named problem sizes, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of one problem; sizes that do not apply are 0.

    Attributes:
      name: name of the problem in tests and in `pnet bench --shapes`.
      S: number of subjects.
      V: number of locations.
      T: number of frames.
      R: number of reference signals.
      D: number of embedding dimensions.
      K: number of parcels.
      C: number of candidate parcels per location.
      N: number of neighbours per location: 26 on a grid, 6 on a mesh.
      P: number of permutations.

    >>> SHAPES["mni3mm-k200"].V
    65536
    >>> SHAPES["cohort-1k-k200"].E
    19900
    """

    name: str
    S: int = 1
    V: int = 0
    T: int = 0
    R: int = 0
    D: int = 0
    K: int = 0
    C: int = 0
    N: int = 0
    P: int = 0

    @property
    def E(self) -> int:  # noqa: N802  a capital letter like the others
        """Number of edges of a network, i.e. of pairs of parcels."""
        return self.K * (self.K - 1) // 2


# V is a multiple of 4096, because scans are padded to one.
_SCANS = (
    Shape("tiny", V=512, T=48, R=24, D=8, K=12, C=6, N=26),
    Shape("tiny-mesh", V=512, T=48, R=24, D=8, K=12, C=6, N=6),
    Shape("mni4mm-k200", V=20_480, T=260, R=400, D=64, K=216, C=16, N=26),
    Shape("mni3mm-k200", V=65_536, T=300, R=400, D=64, K=200, C=16, N=26),
    Shape("fslr32k-k400", V=65_536, T=1200, R=400, D=64, K=400, C=16, N=6),
    Shape("mni2mm-k400", V=204_800, T=300, R=400, D=64, K=400, C=16, N=26),
)
_COHORTS = (
    Shape("tiny-cohort", S=10, T=48, K=12, P=50),
    Shape("cohort-100-k200", S=100, T=300, K=200, P=5000),
    Shape("cohort-1k-k200", S=1000, T=300, K=200, P=5000),
)

SHAPES: dict[str, Shape] = {shape.name: shape for shape in _SCANS + _COHORTS}
SCANS: tuple[str, ...] = tuple(shape.name for shape in _SCANS)
COHORTS: tuple[str, ...] = tuple(shape.name for shape in _COHORTS)
TINY: tuple[str, ...] = tuple(name for name in SHAPES if name.startswith("tiny"))  # for tests; at most one second each
