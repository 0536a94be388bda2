"""CIFTI: dense series and labels on surfaces and in the volume, and parcel series."""

from __future__ import annotations

from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.errors import InputError
from pnet_jax.ingest.reading import attempt, reading
from pnet_jax.ingest.surfaces import Surface, SurfaceInput, mesh_of, read_surfaces
from pnet_jax.ingest.tables import shortlist
from pnet_jax.ingest.timing import HeaderTime
from pnet_jax.space import LEFT, RIGHT, Grid, Mesh, Space, grid_neighbours, hemisphere_of, mesh_neighbours


def axes_of(image: nib.Cifti2Image, kind: type, what: str, where: str) -> tuple[Any, Any]:
    """Return both axes of a two-dimensional CIFTI file, and check that the second is of the given kind."""
    if len(image.shape) != 2:
        raise InputError(f"{where}: expected a CIFTI file with two axes, found shape {image.shape}")
    with reading(f"{where}: its CIFTI header is damaged"):
        rows, columns = image.header.get_axis(0), image.header.get_axis(1)
    if (len(rows), len(columns)) != tuple(image.shape):
        raise InputError(f"{where}: its header is damaged: axes of {len(rows)} by {len(columns)}, data of shape {tuple(image.shape)}")
    if not isinstance(columns, kind):
        raise InputError(f"{where}: expected a CIFTI file of {what}, found one of {type(rows).__name__} by {type(columns).__name__}")
    return rows, columns


def header_time(axis: object, where: str) -> HeaderTime:
    """Return the repetition time of a series axis.

    Raises:
      InputError: If the axis is not a series axis.
    """
    if not isinstance(axis, axes.SeriesAxis):
        raise InputError(f"{where}: expected a series over time (dtseries, ptseries), found a {type(axis).__name__}")
    found = f"the series axis has steps of {float(axis.step):g} {axis.unit}, expected SECOND,"
    return HeaderTime(float(axis.step) if axis.unit == "SECOND" and axis.step > 0 else None, found)


def read_dense(image: nib.Cifti2Image, where: str) -> Float[np.ndarray, "V T"]:
    """Read the data with locations first, as float32, a block of locations at a time.

    Raises:
      InputError: If the file is truncated or corrupt.
    """
    n_frames, n = image.shape
    y = np.empty((n, n_frames), np.float32)
    for start in range(0, n, 4096):  # CIFTI stores the series of a location contiguously
        rows = slice(start, start + 4096)
        y[rows] = attempt(partial(image.dataobj.__getitem__, (slice(None), rows)), f"locations from {start}", where).T
    return y


def cifti_space(axis: axes.BrainModelAxis, surfaces: SurfaceInput, name: str, where: str) -> Space:
    """Make the Space of a dense CIFTI axis, with locations in the order of the file.

    Args:
      axis: Brain models with V vertices and voxels.
      surfaces: Meshes of both cortices in MNI mm. If None, those of the template are used where available (`surfaces.mesh_of`).
      name: Name of the space.
      where: Name of the file in messages.

    Raises:
      InputError: If a surface is missing or has a different number of vertices.
    """
    n = len(axis)
    names = np.asarray(axis.name)
    parts: list[tuple[Surface, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]] = []
    structures, structure = np.unique(names, return_inverse=True)
    volume = np.asarray(axis.volume_mask)
    voxel = np.where(volume[:, None], axis.voxel, -1).astype(np.int32)
    xyz, tables, spacing = np.zeros((n, 3)), [], []
    meshes = read_surfaces(surfaces, where)
    for surface in dict.fromkeys(names[~volume].tolist()):
        at = np.flatnonzero(names == surface)
        mesh = mesh_of(surface, meshes, axis.nvertices[surface], name, where)
        vertices = np.asarray(axis.vertex[at], np.int64)
        parts.append((mesh, at, vertices))
        xyz[at] = mesh.xyz[vertices]
        table = mesh_neighbours(mesh.faces, vertices)
        tables.append((at, table))
        lengths = np.where(table >= 0, np.linalg.norm(xyz[at][table] - xyz[at][:, None], axis=2), 0)
        count = (table >= 0).sum(1)  # 0 if no neighbour of a vertex has a signal
        spacing.append(np.divide(lengths.sum(1), count, out=np.full(len(at), np.nan), where=count > 0))
    if volume.any():
        xyz[volume] = voxel[volume] @ axis.affine[:3, :3].T + axis.affine[:3, 3]
        tables.append((np.flatnonzero(volume), grid_neighbours(voxel[volume].astype(np.int64))))
        spacing.append(np.full(int(volume.sum()), abs(np.linalg.det(axis.affine[:3, :3])) ** (1 / 3)))
    shape = tuple(int(s) for s in axis.volume_shape) if volume.any() else (0, 0, 0)
    xyz = np.round(xyz, 3).astype(np.float32)
    return Space(
        xyz=xyz,
        hemisphere=_hemisphere(names, xyz),
        structure=structure.reshape(-1).astype(np.int16),
        structures=tuple(str(s) for s in structures),
        neighbours=_merge(tables, n),
        kind="cifti",
        name=name,
        resolution=float(np.nanmedian(np.concatenate(spacing))),
        grid=Grid(voxel, (shape[0], shape[1], shape[2]), axis.affine if volume.any() else np.eye(4), brain_models=axis),
        mesh=_mesh(parts, names, n) if parts else None,
    )


def parcel_centroids(axis: axes.ParcelsAxis, surfaces: SurfaceInput, space: str, where: str) -> Float[np.ndarray, "K 3"]:
    """Return the mean coordinate of each parcel's voxels and vertices in mm, `[K, 3]`.

    Raises:
      InputError: If parcels have vertices but there are no surfaces, or if a parcel is empty.
    """
    meshes = read_surfaces(surfaces, where)
    centroids = np.full((len(axis), 3), np.nan)
    for k in range(len(axis)):
        parts = []
        voxels = np.asarray(axis.voxels[k]).reshape(-1, 3)
        if len(voxels):
            parts.append(voxels @ axis.affine[:3, :3].T + axis.affine[:3, 3])
        for surface, vertices in axis.vertices[k].items():
            if len(vertices):
                mesh = mesh_of(surface, meshes, axis.nvertices[surface], space, where, ", or atlas= with the parcels' centroids")
                parts.append(mesh.xyz[vertices])
        if parts:
            centroids[k] = np.concatenate(parts).mean(0)
    empty = [str(axis.name[k]) for k in np.flatnonzero(np.isnan(centroids).any(1))]
    if empty:
        raise InputError(
            f"{where}: {len(empty)} parcels have neither voxels nor vertices: {shortlist(empty)}; give centroids (--roi-atlas)"
        )
    return centroids


def _mesh(parts: list[tuple[Surface, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]], names: np.ndarray, n: int) -> Mesh:
    """Combine surfaces into one mesh; each is given with its locations and their vertex numbers."""
    vertex, xyz, faces, sides, count = np.full(n, -1, np.int32), [], [], [], 0
    for surface, at, vertices in parts:
        vertex[at] = vertices + count
        xyz.append(surface.xyz)
        faces.append(surface.faces + count)
        sides.append(_hemisphere(np.repeat(names[at[:1]], len(surface.xyz)), surface.xyz))
        count += len(surface.xyz)
    points = np.concatenate(xyz).round(3).astype(np.float32)
    return Mesh(points, np.concatenate(faces).astype(np.int32), np.concatenate(sides), vertex)


def _hemisphere(names: np.ndarray, xyz: Float[np.ndarray, "V 3"]) -> Int[np.ndarray, " V"]:
    left, right = (np.char.find(names.astype(str), side) >= 0 for side in ("_LEFT", "_RIGHT"))
    return np.where(left, LEFT, np.where(right, RIGHT, hemisphere_of(xyz))).astype(np.int8)


def _merge(tables: list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n N"]]], n: int) -> Int[np.ndarray, "V N"]:
    """Merge one neighbour table per part, with indices within the part, into one table over all locations."""
    merged = np.full((n, max(table.shape[1] for _, table in tables)), -1, np.int32)
    for at, table in tables:
        whole = np.append(at, -1)  # the last entry maps the padding −1 to itself
        merged[at, : table.shape[1]] = whole[table]
    return merged
