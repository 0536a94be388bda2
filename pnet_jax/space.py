"""Space: the locations of a scan. Voxels, vertices and ROIs are treated alike from here on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import InputError

LEFT, RIGHT = 0, 1
_OFFSETS_26 = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)], np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """V locations with their coordinates, structures and neighbours.

    Attributes:
      xyz: MNI coordinates in mm, `[V, 3]`, float32.
      hemisphere: 0 left, 1 right, `[V]`, int8. From the structure if known, else from the sign of x (left if x < 0).
      structure: index into `structures`, `[V]`, int16.
      structures: names of the structures; those of the CIFTI brain models, or `("volume",)` if nothing finer is known.
      neighbours: indices of adjacent locations, padded with −1, `[V, N]`, int32: 26 neighbours on a grid, mesh neighbours on a surface.
      kind: `"grid"`, `"cifti"` or `"points"`.
      name: name of the template or individual space, e.g. `"MNI152NLin6Asym"`.
      resolution: typical distance between adjacent locations in mm.
      grid: positions of the voxels in their image, or None.
      names: names of the locations (ROIs), or None.
      mesh: the surfaces that vertices lie on, or None where they are not known.
    """

    xyz: Float[np.ndarray, "V 3"]
    hemisphere: Int[np.ndarray, " V"]
    structure: Int[np.ndarray, " V"]
    structures: tuple[str, ...]
    neighbours: Int[np.ndarray, "V N"]
    kind: str
    name: str
    resolution: float
    grid: Grid | None = None
    names: tuple[str, ...] | None = None
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        return f"Space({len(self)} locations in {self.name}, {self.kind}, {self.resolution:.1f} mm)"

    def __len__(self) -> int:
        return len(self.xyz)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Positions of voxels in their image.

    Attributes:
      ijk: voxel index of each location in the image *as stored in its file*, `[V, 3]`; −1 for locations that are not voxels.
      shape: the three dimensions of the image.
      affine: affine from voxel indices to mm in the space of the file, `[4, 4]`.
      to_mni: affine from that space to MNI, both in mm, `[4, 4]`; None if they are the same.
      brain_models: CIFTI brain-model axis (opaque to the core), or None.
    """

    ijk: Int[np.ndarray, "V 3"]
    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    to_mni: Float[np.ndarray, "4 4"] | None = None
    brain_models: object | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """Surfaces as triangles, those of both hemispheres in one list without a triangle between them.

    Attributes:
      xyz: MNI mm of all vertices, `[M, 3]`, float32: the medial wall included, which is in no Space.
      faces: vertices of each triangle, `[F, 3]`, int32.
      hemisphere: 0 left, 1 right, `[M]`, int8.
      vertex: the vertex that location v is, `[V]`, int32; −1 for voxels.
    """

    xyz: Float[np.ndarray, "M 3"]
    faces: Int[np.ndarray, "F 3"]
    hemisphere: Int[np.ndarray, " M"]
    vertex: Int[np.ndarray, " V"]


def grid_space(
    mask: Bool[np.ndarray, "X Y Z"],
    affine: Float[np.ndarray, "4 4"],
    *,
    name: str = "unknown",
    to_mni: Float[np.ndarray, "4 4"] | None = None,
) -> Space:
    """Make the Space of the voxels in a mask.

    Locations are ordered by their position in the closest RAS orientation, so that the same brain stored as LAS, RAS or
    PIR gives the same locations in the same order.

    Args:
      mask: True inside the mask, `[X, Y, Z]`, in the orientation of the file.
      affine: affine from voxel indices to mm, `[4, 4]`.
      name: name of the space that the affine maps to.
      to_mni: affine from that space to MNI, both in mm, `[4, 4]`; None if `affine` already maps to MNI. Coordinates are
        transformed; data are not resampled.

    Returns:
      The Space, with one location per voxel in the mask.

    Raises:
      InputError: If the mask is not 3-D or is empty, or the affine is singular.
    """
    mask = np.asarray(mask, bool)
    affine = np.asarray(affine, np.float64)
    if mask.ndim != 3:
        raise InputError(f"mask: expected 3 dimensions, got shape {mask.shape}")
    if not mask.any():
        raise InputError("the mask is empty: no voxel above 0")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"the affine must be an invertible 4 x 4 matrix, got {affine.tolist()}")
    axes, flips = _closest_ras(affine)
    # Walk the voxels in RAS order but keep their index in the file.
    ras = np.argwhere(np.flip(mask.transpose(axes), tuple(axis for axis, flip in enumerate(flips) if flip)))
    ijk = np.empty_like(ras)
    for new, old in enumerate(axes):
        ijk[:, old] = mask.shape[old] - 1 - ras[:, new] if flips[new] else ras[:, new]
    to_mni = None if to_mni is None else np.asarray(to_mni, np.float64)
    whole = affine if to_mni is None else to_mni @ affine
    xyz = np.round(ijk @ whole[:3, :3].T + whole[:3, 3], 3).astype(np.float32)
    return Space(
        xyz=xyz,
        hemisphere=hemisphere_of(xyz),
        structure=np.zeros(len(xyz), np.int16),
        structures=("volume",),
        neighbours=grid_neighbours(ras),
        kind="grid",
        name=name,
        resolution=float(abs(np.linalg.det(whole[:3, :3])) ** (1 / 3)),
        grid=Grid(ijk.astype(np.int32), (mask.shape[0], mask.shape[1], mask.shape[2]), affine, to_mni),
    )


def point_space(xyz: Float[np.ndarray, "V 3"], *, names: Sequence[str] | None = None, name: str = "unknown") -> Space:
    """Make the Space of ROI centroids, without adjacency.

    Args:
      xyz: MNI coordinates in mm, `[V, 3]`.
      names: one name per ROI.
      name: template of the coordinates.

    Returns:
      The Space, with one location per ROI.

    Raises:
      InputError: If the shapes or counts do not agree.
    """
    xyz = np.asarray(xyz, np.float32)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or not np.isfinite(xyz).all():
        raise InputError(f"centroids must be finite and have shape [V, 3], got {xyz.shape}")
    if names is not None and len(names) != len(xyz):
        raise InputError(f"expected {len(xyz)} ROI names, one per centroid, got {len(names)}")
    from scipy.spatial import cKDTree

    nearest = cKDTree(xyz).query(xyz, k=2)[0][:, 1] if len(xyz) > 1 else np.ones(1)
    return Space(
        xyz=xyz,
        hemisphere=hemisphere_of(xyz),
        structure=np.zeros(len(xyz), np.int16),
        structures=("roi",),
        neighbours=np.full((len(xyz), 0), -1, np.int32),
        kind="points",
        name=name,
        resolution=float(np.median(nearest)),
        names=tuple(names) if names is not None else None,
    )


def take(space: Space, keep: Int[np.ndarray, " n"]) -> Space:
    """Return the Space of a subset of locations, in the order given; neighbours outside the subset are dropped."""
    keep = np.asarray(keep)
    new_index = np.full(len(space) + 1, -1, np.int32)  # the last entry maps the padding −1 to −1
    new_index[keep] = np.arange(len(keep), dtype=np.int32)
    grid = space.grid and dataclasses.replace(space.grid, ijk=space.grid.ijk[keep])
    mesh = space.mesh and dataclasses.replace(space.mesh, vertex=space.mesh.vertex[keep])
    return dataclasses.replace(
        space,
        xyz=space.xyz[keep],
        hemisphere=space.hemisphere[keep],
        structure=space.structure[keep],
        neighbours=new_index[space.neighbours[keep]],
        grid=grid,
        mesh=mesh,
        names=tuple(space.names[i] for i in keep) if space.names is not None else None,
    )


def join_spaces(space: Space, other: Space) -> Space | None:
    """Join the locations of two Spaces: those of the first, then those found only in the second.

    Voxels on the same image grid (same shape and affines) can be joined whatever their masks. Locations other than voxels must be the
    same in both Spaces.

    Returns:
      The joined Space, whose `neighbours` are those of `space`; None if the two cannot be joined.
    """
    if not _same_frame(space, other):
        return None
    if space.kind != "grid":
        same = len(space) == len(other) and space.names == other.names and np.allclose(space.xyz, other.xyz, atol=0.01)
        return space if same and np.array_equal(space.structure, other.structure) else None
    assert space.grid is not None and other.grid is not None
    new = ~np.isin(_flat(other.grid), _flat(space.grid))
    if not new.any():
        return space
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(space, name), getattr(other, name)[new]]) for name in ("xyz", "hemisphere", "structure")
    }
    grid = dataclasses.replace(space.grid, ijk=np.concatenate([space.grid.ijk, other.grid.ijk[new]]))
    return dataclasses.replace(space, **joined, grid=grid)


def places_in(space: Space, other: Space) -> Int[np.ndarray, " V"]:
    """Return the index in `space` of each location of `other`; `space` must come from `join_spaces`."""
    if space.grid is None or other.grid is None or space.kind != "grid":
        return np.arange(len(other))
    flat = _flat(space.grid)
    order = np.argsort(flat)
    return order[np.searchsorted(flat, _flat(other.grid), sorter=order)]


def space_tables(space: Space) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a Space into plain values and arrays for storage, without the CIFTI brain models."""
    words = {"structures": space.structures, "kind": space.kind, "name": space.name, "resolution": space.resolution, "names": space.names}
    tables = {key: getattr(space, key) for key in ("xyz", "hemisphere", "structure")}
    if space.kind != "grid":  # neighbours of voxels are large and can be derived from the voxel indices
        tables["neighbours"] = space.neighbours
    if space.grid is not None:
        tables |= {"ijk": space.grid.ijk, "shape": np.array(space.grid.shape), "affine": space.grid.affine}
        if space.grid.to_mni is not None:
            tables["to_mni"] = space.grid.to_mni
    if space.mesh is not None:
        tables |= {f"mesh_{field.name}": getattr(space.mesh, field.name) for field in dataclasses.fields(Mesh)}
    return words, tables


def space_of_tables(words: Mapping[str, Any], tables: Mapping[str, Any], brain_models: object | None = None) -> Space:
    """Make a Space from the output of `space_tables`; neighbours of voxels follow the order of the image axes."""
    tables = dict(tables)
    grid = None
    if "ijk" in tables:
        x, y, z = (int(n) for n in tables.pop("shape"))
        grid = Grid(tables.pop("ijk"), (x, y, z), tables.pop("affine"), tables.pop("to_mni", None), brain_models)
        if "neighbours" not in tables:
            tables["neighbours"] = grid_neighbours(grid.ijk)
    on_mesh = [tables.pop(f"mesh_{field.name}", None) for field in dataclasses.fields(Mesh)]
    mesh = None if on_mesh[0] is None else Mesh(*on_mesh)
    names = None if words["names"] is None else tuple(words["names"])
    about = {key: words[key] for key in ("kind", "name", "resolution")}
    return Space(**tables, **about, structures=tuple(words["structures"]), grid=grid, names=names, mesh=mesh)


def hemisphere_of(xyz: Float[np.ndarray, "V 3"]) -> Int[np.ndarray, " V"]:
    """Return 0 (left) if x < 0, else 1 (right), for each location, `[V]`."""
    return np.where(xyz[:, 0] < 0, LEFT, RIGHT).astype(np.int8)


def grid_neighbours(ijk: Int[np.ndarray, "V 3"]) -> Int[np.ndarray, "V 26"]:
    """Return the indices of the 26 surrounding voxels of each voxel, −1 if a voxel is not in the mask, `[V, 26]`."""
    low = ijk.min(0) - 1
    shape = ijk.max(0) - low + 2
    index = np.full(shape, -1, np.int32)
    at = ijk - low
    index[tuple(at.T)] = np.arange(len(ijk), dtype=np.int32)
    flat = np.ravel_multi_index(tuple(at.T), tuple(shape))
    steps = _OFFSETS_26 @ np.array([shape[1] * shape[2], shape[2], 1])
    return index.ravel()[flat[:, None] + steps]


def mesh_neighbours(faces: Int[np.ndarray, "F 3"], vertices: Int[np.ndarray, " V"]) -> Int[np.ndarray, "V N"]:
    """Return the neighbours of each location on a triangle mesh.

    Args:
      faces: vertex numbers of each triangle, `[F, 3]`.
      vertices: vertex number of each location, `[V]`; vertices that are not listed are not neighbours.

    Returns:
      Indices of the neighbouring locations, padded with −1, `[V, N]`.
    """
    location = np.full(max(int(faces.max()), int(vertices.max())) + 1, -1, np.int64)
    location[vertices] = np.arange(len(vertices))
    pairs = location[np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])]
    pairs = pairs[(pairs >= 0).all(1)]
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)  # sorted by first vertex
    degree = np.bincount(pairs[:, 0], minlength=len(vertices))
    table = np.full((len(vertices), int(degree.max(initial=0))), -1, np.int32)
    start = np.cumsum(degree) - degree
    table[pairs[:, 0], np.arange(len(pairs)) - start[pairs[:, 0]]] = pairs[:, 1]
    return table


def _same_frame(space: Space, other: Space) -> bool:
    """Return whether two Spaces are of the same kind and, if they have voxels, on the same image grid."""
    if (space.kind, space.structures) != (other.kind, other.structures):
        return False
    if space.grid is None or other.grid is None:
        return space.grid is other.grid
    one, two = (np.eye(4) if grid.to_mni is None else grid.to_mni for grid in (space.grid, other.grid))
    affines = np.allclose(space.grid.affine, other.grid.affine, atol=1e-3) and np.allclose(one, two, atol=1e-3)
    return space.grid.shape == other.grid.shape and affines


def _flat(grid: Grid) -> Int[np.ndarray, " V"]:
    return np.ravel_multi_index(tuple(grid.ijk.T), grid.shape)


def _closest_ras(affine: Float[np.ndarray, "4 4"]) -> tuple[list[int], list[bool]]:
    """Return, for each RAS axis, the image axis closest to it and whether that axis has to be flipped."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(direction[r, a]) for r, a in enumerate(axes)))
    return list(best), [bool(direction[r, a] < 0) for r, a in enumerate(best)]
