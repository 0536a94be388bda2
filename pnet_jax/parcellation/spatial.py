"""An atlas on a Space: everything of a parcellation that no scan changes, made once and shared by all scans of that Space."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.errors import InputError
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks, make_blocks
from pnet_jax.parcellation.atlas import PADDING, Atlas, nearest_locations, on_space
from pnet_jax.parcellation.score import Pairs, sample_pairs
from pnet_jax.scan import LOCATION_BUCKET, Scan
from pnet_jax.space import LEFT, RIGHT, Space, grid_space, take

CUBE_MM = 32.0  # blocks of the spatial bootstrap: wider than the smoothness of any scan
CANDIDATE_BUCKET, CUBE_BUCKET = 8, 64
LEAST_PROBABILITY = 1e-3  # of a candidate that a cohort has nowhere: the next participant may


class SpatialPrior(NamedTuple):
    """The spatial prior on W locations and the tables that go with it: arrays on the device, the same for every scan.

    Attributes:
      candidates: parcels that a location may belong to, −1 padded, `[W, C]`.
      log_prior: log π of each, `[W, C]`.
      table: where the neighbours hold the same parcel (`ops.potts.chunked.match_table`), `[N, W, C]`.
      neighbours: adjacent locations, −1 padded, `[W, N]`.
      blocks: parcels of each block of locations (`ops.soft_assign.blocked`).
      labels: the parcel that construction starts from and falls back to, −1 in padding, `[W]`: the atlas's own, or under a learned prior
        the most probable one.
      cube: block of each location for the spatial bootstrap, `[W]`.
      cubes: its blocks, numbered, `[B]`; only their number matters.
      pairs: near pairs, for the DCBC.
      xyz: MNI mm, `[W, 3]`.
    """

    candidates: Int[Array, "W C"]
    log_prior: Float[Array, "W C"]
    table: Int[Array, "N W C"]
    neighbours: Int[Array, "W N"]
    blocks: ParcelBlocks
    labels: Int[Array, " W"]
    cube: Int[Array, " W"]
    cubes: Int[Array, " B"]
    pairs: Pairs
    xyz: Float[Array, "W 3"]


class LearnedPrior(NamedTuple):
    """A spatial prior that a cohort taught (`group.fit_group`): where its participants have the atlas's parcels.

    Attributes:
      xyz: MNI mm, `[n, 3]`.
      hemisphere: 0 left, 1 right, `[n]`.
      candidates: parcels that each location may belong to, −1 padded, `[n, C]`.
      log_prior: log π of each, `[n, C]`.
      resolution: spacing of the locations in mm.
    """

    xyz: Float[np.ndarray, "n 3"]
    hemisphere: Int[np.ndarray, " n"]
    candidates: Int[np.ndarray, "n C"]
    log_prior: Float[np.ndarray, "n C"]
    resolution: float


@dataclasses.dataclass(frozen=True, eq=False)
class AtlasOnSpace:
    """An atlas on the Space of a cohort.

    Attributes:
      atlas: K parcels.
      space: the n locations within 4 mm of a parcel; scans say of each whether they have it.
      here: their places in the whole Space (`whole_space`), `[n]`.
      prior: the spatial prior there, padded to W locations.
      nearest: location nearest to each of the atlas's points, −1 where there is none, `[N]`.
    """

    atlas: Atlas
    space: Space
    here: Int[np.ndarray, " n"]
    prior: SpatialPrior
    nearest: Int[np.ndarray, " N"]

    @property
    def n_parcels(self) -> int:
        return self.atlas.n_parcels


def whole_space(space: Space, atlas: Atlas) -> Space:
    """The Space that a scan's Space is part of: of a grid all voxels near the atlas, so that masks that differ share one; else itself."""
    if space.kind != "grid" or space.grid is None:
        return space
    grid = space.grid
    whole = grid.affine if grid.to_mni is None else grid.to_mni @ grid.affine
    # A box around the atlas: a field of view is mostly air.
    low, high = atlas.xyz.min(0) - CUBE_MM / 2, atlas.xyz.max(0) + CUBE_MM / 2
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    inside = (corners - whole[:3, 3]) @ np.linalg.inv(whole[:3, :3]).T
    first = np.clip(np.floor(inside.min(0)).astype(int), 0, grid.shape)
    last = np.clip(np.ceil(inside.max(0)).astype(int) + 1, 0, grid.shape)
    box = np.zeros(grid.shape, bool)
    box[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return grid_space(box, grid.affine, name=space.name, to_mni=grid.to_mni) if box.any() else space


def place(atlas: Atlas, space: Space, learned: LearnedPrior | None = None) -> AtlasOnSpace:
    """An atlas on the whole Space that a scan's Space is part of.

    Args:
      atlas: K parcels.
      space: of a scan.
      learned: what a cohort taught about these parcels; takes the place of distances to the atlas where it has a location near.

    Raises:
      InputError: atlas and Space do not overlap.
    """
    whole = whole_space(space, atlas)
    local = on_space(atlas, whole)
    here = np.flatnonzero(local.labels >= 0)
    # Parcel by parcel, so that blocks of locations share few candidates.
    here = here[np.argsort(local.labels[here], kind="stable")]
    own = take(whole, here)
    log_prior, labels = local.log_prior[here], local.labels[here]
    if learned is not None:
        log_prior = _learned_on(learned, own, local.candidates[here], log_prior)
        labels = _most_probable(local.candidates[here], log_prior, labels)
    candidates = _wide(pad_rows(local.candidates[here], -1), -1)
    log_prior = _wide(pad_rows(log_prior, PADDING), PADDING)
    neighbours = pad_rows(own.neighbours, -1)
    block, cube = np.unique(np.floor(own.xyz / CUBE_MM).astype(int), axis=0, return_inverse=True)
    prior = SpatialPrior(
        candidates=jnp.asarray(candidates),
        log_prior=jnp.asarray(log_prior),
        table=match_table(jnp.asarray(candidates), jnp.asarray(neighbours), n_parcels=atlas.n_parcels),
        neighbours=jnp.asarray(neighbours),
        blocks=make_blocks(candidates, atlas.n_parcels),
        labels=jnp.asarray(pad_rows(labels, -1)),
        cube=jnp.asarray(pad_rows(cube.ravel().astype(np.int32), 0)),
        cubes=jnp.arange(len(block) + -len(block) % CUBE_BUCKET, dtype=jnp.int32),
        pairs=sample_pairs(own, np.arange(len(here)), rows=len(candidates)),
        xyz=jnp.asarray(pad_rows(own.xyz, 0.0)),
    )
    return AtlasOnSpace(atlas, own, here, prior, nearest_locations(atlas, own))


def _learned_on(
    learned: LearnedPrior, space: Space, candidates: Int[np.ndarray, "n C"], log_prior: Float[np.ndarray, "n C"]
) -> Float[np.ndarray, "n C"]:
    """A learned log π over the candidates of a Space, each location's from the nearest one of its side; the atlas's where none is near."""
    reach = max(learned.resolution, space.resolution) * np.sqrt(3) / 2 + 1e-3  # corners of a voxel included
    out = np.array(log_prior)
    for side in (LEFT, RIGHT):
        own, theirs = np.flatnonzero(space.hemisphere == side), np.flatnonzero(learned.hemisphere == side)
        if not len(own) or not len(theirs):
            continue
        distance, nearest = cKDTree(learned.xyz[theirs]).query(space.xyz[own], distance_upper_bound=reach)
        near = np.isfinite(distance)
        own, at = own[near], theirs[nearest[near]]
        same = (candidates[own][:, :, None] == learned.candidates[at][:, None, :]) & (candidates[own] >= 0)[:, :, None]
        found = np.where(same, np.exp(learned.log_prior[at])[:, None, :], 0.0).sum(2)
        out[own] = log_shares(np.maximum(found, LEAST_PROBABILITY), candidates[own])
    return out


def log_shares(weights: Float[np.ndarray, "n C"], candidates: Int[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
    """log of weights normalised over the candidates of each location, `PADDING` where there is none."""
    weights = np.where(candidates >= 0, weights, 0.0)
    share = weights / np.maximum(weights.sum(1, keepdims=True), 1e-30)
    return np.where(candidates >= 0, np.log(np.maximum(share, 1e-30)), PADDING).astype(np.float32)


def _most_probable(
    candidates: Int[np.ndarray, "n C"], log_prior: Float[np.ndarray, "n C"], atlas: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The candidate of the highest prior, the nearer one of two alike; a parcel that is nowhere the most probable keeps the atlas's."""
    labels = np.take_along_axis(candidates, log_prior.argmax(1)[:, None], 1)[:, 0]
    while len(lost := np.setdiff1d(atlas, labels)):  # the locations that one gets back may be all that another had
        labels = np.where(np.isin(atlas, lost), atlas, labels)
    return labels.astype(np.int32)


def rows_of(placed: AtlasOnSpace, space: Space) -> Int[np.ndarray, " n"]:
    """For each of the n locations of an atlas, the row of a scan on `space` that is the same place; −1 where the scan has none, `[n]`.

    The scan's Space has the same key (`space_key`) as the one that the atlas was placed on.
    """
    if space.kind != "grid" or space.grid is None or placed.space.grid is None:
        return placed.here
    index = np.full(space.grid.shape, -1, np.int64)
    index[tuple(space.grid.ijk.T)] = np.arange(len(space))
    return index[tuple(placed.space.grid.ijk.T)]


class Rows(NamedTuple):
    """Where a scan has the locations of an atlas.

    Attributes:
      at: row of the scan for each of the W locations; 0 where it has none, `[W]`.
      valid: it has one, with a signal, `[W]`.
    """

    at: Int[np.ndarray, " W"]
    valid: Bool[np.ndarray, " W"]

    def take(self, y: Float[np.ndarray, "V T"], size: int | None = None) -> Float[np.ndarray, "W size"]:
        """Signals in the order of the atlas's locations, 0 where the scan has none; frames padded with 0 to `size`."""
        out = np.zeros((len(self.at), y.shape[1] if size is None else size), np.float32)
        out[self.valid, : y.shape[1]] = y[self.at[self.valid]]
        return out


def locate(placed: AtlasOnSpace, scan: Scan) -> Rows:
    """Where a scan has the locations of an atlas on its Space.

    Raises:
      InputError: none of the locations has a signal.
    """
    found = rows_of(placed, scan.space)
    rows = pad_rows(found, -1)
    at = np.maximum(rows, 0)
    valid = (rows >= 0) & scan.valid[at]
    if not valid.any():
        low, high = placed.atlas.xyz.min(0).round().tolist(), placed.atlas.xyz.max(0).round().tolist()
        raise InputError(
            f"atlas {placed.atlas.source} does not overlap {scan.label}: none of its {int(scan.valid.sum())} locations with a signal lies "
            f"within 4 mm of a parcel (the atlas spans {low} to {high} mm)"
        )
    return Rows(at, valid)


def space_key(space: Space) -> Hashable:
    """Equal for Spaces that share an atlas's tables: grids by their image, whatever their masks; others by their locations."""
    if space.kind == "grid" and space.grid is not None:
        return ("grid", space.grid.shape, *(None if x is None else x.tobytes() for x in (space.grid.affine, space.grid.to_mni)))
    tables = (space.xyz, space.hemisphere, space.structure, space.neighbours)
    return (space.kind, hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in tables)).hexdigest())


def pad_rows(table: np.ndarray, value: float, multiple: int = LOCATION_BUCKET) -> np.ndarray:
    """Rows up to a multiple, filled with a value, so that scans of like sizes share compiled steps."""
    return np.pad(table, ((0, -len(table) % multiple),) + ((0, 0),) * (table.ndim - 1), constant_values=value)


def _wide(table: np.ndarray, value: float) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, -table.shape[1] % CANDIDATE_BUCKET)), constant_values=value)
