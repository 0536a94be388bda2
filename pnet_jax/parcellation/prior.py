"""Group prior: where the parcels are expected, and which parcels a location may belong to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.space import LEFT, RIGHT, Space, hemisphere_of

REACH_MM = 4.0  # a location further from every parcel than this is outside
CUT_MM = 16.0  # a parcel further than this is no candidate
SIGMA_MM = 4.0  # softness of the prior's borders
MAX_CANDIDATES = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """K parcels as labelled points in MNI mm, independent of any grid.

    Attributes:
      xyz: points, `[N, 3]`, mm.
      labels: parcel of each point, 0…K−1, `[N]`.
      hemisphere: 0 left, 1 right, `[N]`.
      ids: the source's own id of each parcel, `[K]`.
      names: `K` of them.
      resolution: spacing of the points in mm.
      source: file or recipe it was made from.
      space: template the points are in.
      embedding: mean embedding of each parcel in a model's coordinates, `[K, D]`, or None.
    """

    xyz: Float[np.ndarray, "N 3"]
    labels: Int[np.ndarray, " N"]
    hemisphere: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " K"]
    names: tuple[str, ...]
    resolution: float
    source: str
    space: str = "unknown"
    embedding: Float[np.ndarray, "K D"] | None = None

    @property
    def n_parcels(self) -> int:
        return len(self.ids)

    @property
    def hemispheres(self) -> tuple[str, ...]:
        """`"L"`, `"R"`, or `"B"` where a parcel has points on both sides."""
        left = np.bincount(self.labels[self.hemisphere == LEFT], minlength=self.n_parcels) > 0
        right = np.bincount(self.labels[self.hemisphere == RIGHT], minlength=self.n_parcels) > 0
        return tuple("B" if a and b else "L" if a else "R" for a, b in zip(left, right, strict=True))

    @property
    def digest(self) -> str:
        """SHA-256 over points, labels and ids, first 16 digits."""
        arrays = (self.xyz.astype("<f4"), self.labels.astype("<i4"), self.ids.astype("<i4"))
        return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def make_prior(
    xyz: Float[np.ndarray, "N 3"],
    values: Int[np.ndarray, " N"],
    *,
    resolution: float,
    names: dict[int, str] | Sequence[str] | None = None,
    hemisphere: Int[np.ndarray, " N"] | None = None,
    source: str = "memory",
    space: str = "unknown",
) -> Prior:
    """Prior from points that carry ids; ids need be neither contiguous nor start at 1. Points with id ≤ 0 are background.

    Args:
      xyz: MNI mm, `[N, 3]`.
      values: id of each point, `[N]`.
      resolution: spacing of the points in mm.
      names: id to name, or one name for each id in ascending order.
      hemisphere: 0 left, 1 right; by the sign of x if not given.
      source: file or recipe.
      space: template.

    Raises:
      ValueError: no id above 0, or as many names as fit neither rule.
    """
    inside = np.asarray(values) > 0
    if not inside.any():
        raise ValueError(f"prior {source}: no label above 0")
    xyz, values = np.asarray(xyz, np.float32)[inside], np.asarray(values)[inside].astype(np.int64)
    ids, labels = np.unique(values, return_inverse=True)
    if names is None:
        names = {int(i): f"parcel-{i}" for i in ids}
    elif not isinstance(names, dict):
        if len(names) != len(ids):
            raise ValueError(f"prior {source}: {len(ids)} ids in use but {len(names)} names")
        names = dict(zip(ids.tolist(), names, strict=True))
    side = hemisphere_of(xyz) if hemisphere is None else np.asarray(hemisphere)[inside].astype(np.int8)
    return Prior(
        xyz=xyz,
        labels=labels.astype(np.int32),
        hemisphere=side,
        ids=ids.astype(np.int32),
        names=tuple(str(names.get(int(i), f"parcel-{i}")) for i in ids),
        resolution=float(resolution),
        source=source,
        space=space,
    )
