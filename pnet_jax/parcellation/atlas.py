"""Group atlas, and the spatial prior and candidate parcels derived from it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.errors import InputError
from pnet_jax.parcellation.geodesic import from_group, sheet
from pnet_jax.space import LEFT, RIGHT, Mesh, Space, hemisphere_of

REACH_MM = 4.0  # locations further than this from every parcel are outside
CUT_MM = 16.0  # parcels further than this are not candidates
SIGMA_MM = 5.6  # softness of the boundaries; held-out densities of simulated and real scans are higher than with 4 mm
MAX_CANDIDATES = 8  # the nearest eight parcels include 99.8 % of the labels for 200 parcels, and 99.3 % for 400
SAME_MM = 0.01  # points of a mesh closer than this are the same vertex
_SIDES = tuple(re.compile(rf"(?<![A-Za-z])(?i:{word[0]}h?|{word})(?![A-Za-z])|{word.title()}") for word in ("left", "right"))


@dataclasses.dataclass(frozen=True, eq=False)
class Atlas:
    """K parcels as labelled points in MNI coordinates, independent of any grid.

    Attributes:
      xyz: MNI coordinates of the points in mm, `[N, 3]`.
      labels: parcel of each point, 0…K−1, `[N]`.
      hemisphere: 0 left, 1 right, `[N]`.
      ids: id of each parcel in the source, `[K]`.
      names: names of the K parcels.
      resolution: spacing of the points in mm.
      source: file or description of the source.
      space: template of the coordinates.
    """

    xyz: Float[np.ndarray, "N 3"]
    labels: Int[np.ndarray, " N"]
    hemisphere: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " K"]
    names: tuple[str, ...]
    resolution: float
    source: str
    space: str = "unknown"

    @property
    def n_parcels(self) -> int:
        return len(self.ids)

    @property
    def hemispheres(self) -> tuple[str, ...]:
        """Hemisphere of each parcel: `"L"`, `"R"`, or `"B"` if at least a tenth of it lies on either side (voxels at x = 0 are on one)."""
        left = np.bincount(self.labels, weights=self.hemisphere == LEFT, minlength=self.n_parcels)
        share = left / np.bincount(self.labels, minlength=self.n_parcels)
        return tuple("L" if s > 0.9 else "R" if s < 0.1 else "B" for s in share)

    @property
    def digest(self) -> str:
        """First 16 digits of the SHA-256 over all data that affect results."""
        arrays = [self.xyz.astype("<f4"), self.labels.astype("<i4"), self.hemisphere.astype("<i4"), self.ids.astype("<i4")]
        return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def make_atlas(
    xyz: Float[np.ndarray, "N 3"],
    values: Int[np.ndarray, " N"],
    *,
    resolution: float,
    names: dict[int, str] | Sequence[str] | None = None,
    hemisphere: Int[np.ndarray, " N"] | None = None,
    source: str = "memory",
    space: str = "unknown",
) -> Atlas:
    """Make an atlas from points with parcel ids.

    Ids do not have to be contiguous. Points with an id ≤ 0 are background.

    Args:
      xyz: MNI coordinates of the points in mm, `[N, 3]`.
      values: id of each point, `[N]`.
      resolution: spacing of the points in mm.
      names: mapping from id to name, or one name per id in ascending order.
      hemisphere: 0 left, 1 right, `[N]`; default: from the sign of x.
      source: file or description of the source.
      space: template of the coordinates.

    Returns:
      The atlas.

    Raises:
      InputError: If there is no id above 0, or the number of names is wrong.
    """
    inside = np.asarray(values) > 0
    if not inside.any():
        raise InputError(f"atlas {source}: no label above 0, expected parcel ids ≥ 1")
    xyz, values = np.asarray(xyz, np.float32)[inside], np.asarray(values)[inside].astype(np.int64)
    ids, labels = np.unique(values, return_inverse=True)
    if names is None:
        names = {int(i): f"parcel-{i}" for i in ids}
    elif not isinstance(names, dict):
        if len(names) != len(ids):
            raise InputError(f"atlas {source}: expected one name per id, found {len(ids)} ids and {len(names)} names")
        names = dict(zip(ids.tolist(), names, strict=True))
    side = hemisphere_of(xyz) if hemisphere is None else np.asarray(hemisphere)[inside].astype(np.int8)
    return Atlas(
        xyz=xyz,
        labels=labels.astype(np.int32),
        hemisphere=side,
        ids=ids.astype(np.int32),
        names=tuple(str(names.get(int(i), f"parcel-{i}")) for i in ids),
        resolution=float(resolution),
        source=source,
        space=space,
    )


def names_on_other_side(atlas: Atlas) -> tuple[int, int]:
    """Count the parcels that lie in the hemisphere opposite to their name, and the names that state a hemisphere.

    A name states a hemisphere by `L`, `LH` or `left` (`R`, `RH`, `right`) between non-letters, or by `Left` or `Right`.
    """
    wrong = named = 0
    for name, side in zip(atlas.names, atlas.hemispheres, strict=True):
        left, right = (bool(pattern.search(name)) for pattern in _SIDES)
        if left != right and side != "B":
            named += 1
            wrong += side != ("L" if left else "R")
    return wrong, named


@dataclasses.dataclass(frozen=True, eq=False)
class LocalPrior:
    """Candidate parcels and spatial prior of an atlas on one Space.

    Attributes:
      candidates: candidate parcels of each location, nearest first, padded with −1, `[V, C]`.
      log_prior: log π of each candidate, normalised over the candidates; −1e9 in the padding, `[V, C]`.
      labels: parcel of the nearest point of the atlas; −1 further than 4 mm from every parcel, `[V]`.
    """

    candidates: Int[np.ndarray, "V C"]
    log_prior: Float[np.ndarray, "V C"]
    labels: Int[np.ndarray, " V"]


PADDING = -1e9  # finite, so that a gradient through a padded candidate is 0 and not NaN


def on_space(atlas: Atlas, space: Space) -> LocalPrior:
    r"""Compute the candidate parcels of every location and the spatial prior over them.

    .. math:: \pi_{vk} \propto \exp(-d_k(v)^2 / 2\sigma^2)

    where :math:`d_k(v)` is the distance in mm from location v to the nearest point of parcel k in the same hemisphere, 0 inside.
    Candidates are the nearest 8 parcels within 16 mm. Locations further than 4 mm from every parcel have no candidates. For vertices
    of a mesh the distance is measured along the cortex (`geodesic`), from the vertices that lie in the parcel.

    Args:
      atlas: atlas of K parcels.
      space: Space of V locations.

    Returns:
      The candidates and the prior.

    Raises:
      InputError: If no location lies within 4 mm of any parcel.
    """
    labels = np.full(len(space), -1, np.int32)

    def one_side(side: int) -> list[tuple[np.ndarray, ...]]:
        here, points = (np.flatnonzero(x.hemisphere == side) for x in (space, atlas))
        if not len(here) or not len(points):
            return []
        triples = []
        if space.mesh is not None:
            vertices, here = here[space.mesh.vertex[here] >= 0], here[space.mesh.vertex[here] < 0]
            triples = _along_cortex(atlas, points, space.mesh, side, vertices, labels)
        if not len(here):
            return triples
        distance, nearest = cKDTree(atlas.xyz[points]).query(space.xyz[here], distance_upper_bound=REACH_MM + 1e-3)
        inside = np.isfinite(distance)
        here = here[inside]
        labels[here] = atlas.labels[points[nearest[inside]]]
        near = _distances(atlas, points, space.xyz[here])
        return triples + [(here[v], np.full(len(v), k, np.int32), np.where(labels[here[v]] == k, 0.0, d)) for k, v, d in near]

    with ThreadPoolExecutor(2) as pool:  # scipy's trees release the GIL
        triples = [triple for side in pool.map(one_side, (LEFT, RIGHT)) for triple in side]
    if not (labels >= 0).any():
        low, high = atlas.xyz.min(0).round().tolist(), atlas.xyz.max(0).round().tolist()
        raise InputError(
            f"atlas {atlas.source} does not overlap the scan: none of {len(space)} locations lies within {REACH_MM:g} mm of a "
            f"parcel (atlas spans {low} to {high} mm, scan {space.xyz.min(0).round().tolist()} to {space.xyz.max(0).round().tolist()} mm)"
        )
    candidates, distance = _nearest_first(len(space), *(np.concatenate(part) for part in zip(*triples, strict=True)))
    log_prior = np.where(candidates >= 0, -(distance**2) / (2 * SIGMA_MM**2), PADDING)
    peak = log_prior.max(1, keepdims=True)
    log_prior -= peak + np.log(np.exp(log_prior - peak).sum(1, keepdims=True))
    return LocalPrior(candidates, np.where(candidates >= 0, log_prior, PADDING).astype(np.float32), labels)


def _along_cortex(
    atlas: Atlas, points: Int[np.ndarray, " n"], mesh: Mesh, side: int, locations: Int[np.ndarray, " m"], labels: Int[np.ndarray, " V"]
) -> list[tuple[np.ndarray, ...]]:
    """Locations on the mesh of one side, their candidates and how far these are along the cortex; fills in the labels of the locations."""
    if not len(locations):
        return []
    of = sheet(mesh, side)
    distance, nearest = cKDTree(atlas.xyz[points]).query(mesh.xyz[of.vertices], distance_upper_bound=REACH_MM)
    # Of an atlas on the same mesh, each vertex has its own id or none; of one of voxels, those of the voxel that it lies in.
    same = distance < SAME_MM
    inside = same if same.sum() >= len(points) / 2 else distance <= atlas.resolution * np.sqrt(3) / 2
    seeds = np.where(inside, atlas.labels[points[np.minimum(nearest, len(points) - 1)]], -1)
    closest, label, found = np.full(len(seeds), np.inf), np.full(len(seeds), -1, np.int32), []
    for k in np.unique(seeds[seeds >= 0]):
        near, mm = from_group(of, np.flatnonzero(seeds == k), CUT_MM)
        closer = mm < closest[near]
        closest[near[closer]], label[near[closer]] = mm[closer], k
        found.append((k, near, mm))
    at = of.at(mesh.vertex[locations])
    labels[locations] = np.where(closest[at] <= REACH_MM, label[at], -1)
    row = np.full(len(seeds), -1)
    row[at] = np.where(labels[locations] >= 0, locations, -1)
    triples: list[tuple[np.ndarray, ...]] = []
    for k, near, mm in found:
        own = near[row[near] >= 0]
        triples.append((row[own], np.full(len(own), k, np.int32), np.where(label[own] == k, 0.0, mm[row[near] >= 0])))
    return triples


def _distances(
    atlas: Atlas, points: Int[np.ndarray, " n"], xyz: Float[np.ndarray, "m 3"]
) -> Iterator[tuple[int, Int[np.ndarray, " c"], Float[np.ndarray, " c"]]]:
    """Yield, for each parcel with points in this hemisphere, the locations within `CUT_MM` and their distances."""
    order = points[np.argsort(atlas.labels[points], kind="stable")]
    ks, starts = np.unique(atlas.labels[order], return_index=True)
    for k, own in zip(ks, np.split(order, starts[1:]), strict=True):
        low, high = atlas.xyz[own].min(0) - CUT_MM, atlas.xyz[own].max(0) + CUT_MM
        near = np.flatnonzero(((xyz >= low) & (xyz <= high)).all(1))
        beyond = np.maximum(np.maximum(low + CUT_MM - xyz[near], xyz[near] - high + CUT_MM), 0)
        near = near[np.square(beyond).sum(1) <= CUT_MM**2]  # excludes the corners of the box
        d = cKDTree(atlas.xyz[own], balanced_tree=False, compact_nodes=False).query(xyz[near], distance_upper_bound=CUT_MM + 1e-3)[0]
        close = np.isfinite(d)
        yield k, near[close], d[close]


def _nearest_first(
    n: int, v: Int[np.ndarray, " P"], k: Int[np.ndarray, " P"], d: Float[np.ndarray, " P"]
) -> tuple[Int[np.ndarray, "V C"], Float[np.ndarray, "V C"]]:
    """Arrange triples (location, parcel, distance) as tables `[V, C]`, nearest candidate first, ties by parcel index."""
    order = np.lexsort((k, d, v))
    v, k, d = v[order], k[order], d[order]
    count = np.bincount(v, minlength=n)
    rank = np.arange(len(v)) - np.repeat(np.cumsum(count) - count, count)
    kept = rank < MAX_CANDIDATES
    width = min(int(count.max()), MAX_CANDIDATES)
    candidates, distance = np.full((n, width), -1, np.int32), np.zeros((n, width))
    candidates[v[kept], rank[kept]], distance[v[kept], rank[kept]] = k[kept], d[kept]
    return candidates, distance


def nearest_locations(atlas: Atlas, space: Space) -> Int[np.ndarray, " N"]:
    """Return the location nearest to each point of the atlas, −1 if none lies within half a voxel diagonal, `[N]`."""
    reach = max(space.resolution, atlas.resolution) * np.sqrt(3) / 2 + 1e-3  # corners included
    distance, nearest = cKDTree(space.xyz).query(atlas.xyz, distance_upper_bound=reach, workers=-1)
    return np.where(np.isfinite(distance), nearest, -1)


def coverage_of(atlas: Atlas, nearest: Int[np.ndarray, " N"], valid: Bool[np.ndarray, " V"]) -> Float[np.ndarray, " K"]:
    """Return the share of each parcel's points whose nearest location has a signal, `[K]`."""
    seen = np.append(valid, False)[nearest]
    total = np.bincount(atlas.labels, minlength=atlas.n_parcels)
    return (np.bincount(atlas.labels[seen], minlength=atlas.n_parcels) / total).astype(np.float32)
