"""An atlas on a Space: the data of a parcellation that do not depend on the scan, shared by all scans on that Space."""

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
from pnet_jax.parcellation.score import NearPairs, sample_pairs
from pnet_jax.scan import LOCATION_BUCKET, Scan
from pnet_jax.space import LEFT, RIGHT, Space, grid_space, take

CUBE_MM = 32.0  # block size of the spatial bootstrap, larger than the smoothness of any scan
CANDIDATE_BUCKET, CUBE_BUCKET = 8, 64
LEAST_PROBABILITY = 1e-3  # minimum probability of candidates that do not occur in the cohort at a location


class SpatialPrior(NamedTuple):
    """The spatial prior on W locations with its tables: arrays on the device, the same for every scan.

    Attributes:
      candidates: candidate parcels of each location, padded with −1, `[W, C]`.
      log_prior: log π of each candidate, `[W, C]`.
      table: positions of the same parcel at the neighbours (`ops.potts.chunked.match_table`), `[N, W, C]`.
      neighbours: adjacent locations, padded with −1, `[W, N]`.
      blocks: parcels of each block of locations (`ops.soft_assign.blocked`).
      labels: initial parcel of each location, also the fallback, −1 in the padding, `[W]`: that of the atlas, or the most probable one
        under a learned prior.
      cube: block of each location for the spatial bootstrap, `[W]`.
      cubes: indices of the blocks, `[B]`; only their number is used.
      pairs: near pairs for the DCBC.
      xyz: MNI coordinates in mm, `[W, 3]`.
    """

    candidates: Int[Array, "W C"]
    log_prior: Float[Array, "W C"]
    table: Int[Array, "N W C"]
    neighbours: Int[Array, "W N"]
    blocks: ParcelBlocks
    labels: Int[Array, " W"]
    cube: Int[Array, " W"]
    cubes: Int[Array, " B"]
    pairs: NearPairs
    xyz: Float[Array, "W 3"]


class LearnedPrior(NamedTuple):
    """Spatial prior learned from the parcels of a cohort (`group.fit_group`).

    Attributes:
      xyz: MNI coordinates in mm, `[n, 3]`.
      hemisphere: 0 left, 1 right, `[n]`.
      candidates: candidate parcels of each location, padded with −1, `[n, C]`.
      log_prior: log π of each candidate, `[n, C]`.
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
      atlas: atlas of K parcels.
      space: the n locations within 4 mm of a parcel; a scan can lack some of them.
      here: indices of these locations in the whole Space (`whole_space`), `[n]`.
      prior: spatial prior on these locations, padded to W locations.
      nearest: location nearest to each point of the atlas, −1 if none is near, `[N]`.
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
    """Return the Space that contains a scan's Space: all grid voxels near the atlas, so that scans with different masks share it.

    For Spaces that are not grids, return the Space itself.
    """
    if space.kind != "grid" or space.grid is None:
        return space
    grid = space.grid
    whole = grid.affine if grid.to_mni is None else grid.to_mni @ grid.affine
    # Limited to a box around the atlas, because most of the field of view is air.
    low, high = atlas.xyz.min(0) - CUBE_MM / 2, atlas.xyz.max(0) + CUBE_MM / 2
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    inside = (corners - whole[:3, 3]) @ np.linalg.inv(whole[:3, :3]).T
    first = np.clip(np.floor(inside.min(0)).astype(int), 0, grid.shape)
    last = np.clip(np.ceil(inside.max(0)).astype(int) + 1, 0, grid.shape)
    box = np.zeros(grid.shape, bool)
    box[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return grid_space(box, grid.affine, name=space.name, to_mni=grid.to_mni) if box.any() else space


def place(atlas: Atlas, space: Space, learned: LearnedPrior | None = None) -> AtlasOnSpace:
    """Place an atlas on the whole Space that contains a scan's Space.

    Args:
      atlas: atlas of K parcels.
      space: Space of a scan.
      learned: spatial prior learned from a cohort, which replaces the distance-based prior at locations near its own.

    Returns:
      The atlas on the Space.

    Raises:
      InputError: If atlas and Space do not overlap.
    """
    whole = whole_space(space, atlas)
    local = on_space(atlas, whole)
    here = np.flatnonzero(local.labels >= 0)
    # Sorted by parcel, so that blocks of locations share few candidates.
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
    """Return the learned log π at the nearest location of the same hemisphere, or that of the atlas if no location is near, `[n, C]`."""
    reach = max(learned.resolution, space.resolution) * np.sqrt(3) / 2 + 1e-3  # includes the corners of a voxel
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
    """Return the log of the weights normalised over the candidates of each location; `PADDING` in the padding, `[n, C]`."""
    weights = np.where(candidates >= 0, weights, 0.0)
    share = weights / np.maximum(weights.sum(1, keepdims=True), 1e-30)
    return np.where(candidates >= 0, np.log(np.maximum(share, 1e-30)), PADDING).astype(np.float32)


def _most_probable(
    candidates: Int[np.ndarray, "n C"], log_prior: Float[np.ndarray, "n C"], atlas: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Return the candidate with the highest prior; parcels that are nowhere the most probable keep their atlas locations, `[n]`."""
    labels = np.take_along_axis(candidates, log_prior.argmax(1)[:, None], 1)[:, 0]
    while len(lost := np.setdiff1d(atlas, labels)):  # restoring one parcel may remove the last locations of another
        labels = np.where(np.isin(atlas, lost), atlas, labels)
    return labels.astype(np.int32)


def rows_of(placed: AtlasOnSpace, space: Space) -> Int[np.ndarray, " n"]:
    """Return the row in `space` of each of the n locations of an atlas; −1 if `space` lacks the location, `[n]`.

    `space` must have the same key (`space_key`) as the Space on which the atlas was placed.
    """
    if space.kind != "grid" or space.grid is None or placed.space.grid is None:
        return placed.here
    index = np.full(space.grid.shape, -1, np.int64)
    index[tuple(space.grid.ijk.T)] = np.arange(len(space))
    return index[tuple(placed.space.grid.ijk.T)]


class Rows(NamedTuple):
    """Rows of a scan that correspond to the locations of an atlas.

    Attributes:
      at: row of the scan for each of the W locations; 0 if it lacks the location, `[W]`.
      valid: whether the scan has a signal at the location, `[W]`.
    """

    at: Int[np.ndarray, " W"]
    valid: Bool[np.ndarray, " W"]

    def take(self, y: Float[np.ndarray, "V T"], size: int | None = None) -> Float[np.ndarray, "W size"]:
        """Return the signals in the order of the atlas locations, 0 if missing; frames are padded with 0 to `size`."""
        out = np.zeros((len(self.at), y.shape[1] if size is None else size), np.float32)
        out[self.valid, : y.shape[1]] = y[self.at[self.valid]]
        return out


def locate(placed: AtlasOnSpace, scan: Scan) -> Rows:
    """Find the rows of a scan that correspond to the locations of an atlas.

    Raises:
      InputError: If no location of the atlas has a signal. The message names the scan.
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
    """Return a key that is equal for Spaces that can share an atlas's tables: same image grid, or else same locations."""
    if space.kind == "grid" and space.grid is not None:
        return ("grid", space.grid.shape, *(None if x is None else x.tobytes() for x in (space.grid.affine, space.grid.to_mni)))
    on_mesh = () if space.mesh is None else (space.mesh.xyz, space.mesh.faces, space.mesh.hemisphere, space.mesh.vertex)
    tables = (space.xyz, space.hemisphere, space.structure, space.neighbours, *on_mesh)
    return (space.kind, hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in tables)).hexdigest())


def pad_rows(table: np.ndarray, value: float, multiple: int = LOCATION_BUCKET) -> np.ndarray:
    """Pad the rows with a value to a multiple, so that scans of similar size share compiled steps."""
    return np.pad(table, ((0, -len(table) % multiple),) + ((0, 0),) * (table.ndim - 1), constant_values=value)


def _wide(table: np.ndarray, value: float) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, -table.shape[1] % CANDIDATE_BUCKET)), constant_values=value)
