"""Icosahedral meshes of both hemispheres, and the files that go with them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from .helpers import TR, T

NAMES = {"L": "CortexLeft", "R": "CortexRight"}
SERIES = "sub-01_task-rest_hemi-{}_space-fsaverage5_bold.func.gii"


def icosphere(level: int, radius: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[10 · 4^level + 2, 3]` and faces of a subdivided icosahedron."""
    golden = (1 + 5**0.5) / 2
    xyz = np.array([[a, b * golden, 0] for a in (-1, 1) for b in (-1, 1)])
    xyz = np.concatenate([np.roll(xyz, shift, axis=1) for shift in range(3)])
    gap = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    near = np.abs(gap - 2) < 1e-9
    faces = [(a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]]
    faces = np.array(faces)
    for _ in range(level):
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        unique, at = np.unique(edges, axis=0, return_inverse=True)
        middle = len(xyz) + at.reshape(3, -1)
        xyz = np.concatenate([xyz, xyz[unique].mean(1)])
        a, b, c = faces.T
        ab, bc, ca = middle
        faces = np.concatenate([np.stack(part, 1) for part in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return radius * xyz / np.linalg.norm(xyz, axis=1, keepdims=True), faces


def surface(xyz: np.ndarray, faces: np.ndarray, side: str | None = None) -> nib.GiftiImage:
    meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": NAMES[side]}) if side else None
    points = nib.gifti.GiftiDataArray(xyz.astype(np.float32), "NIFTI_INTENT_POINTSET", meta=meta)
    return nib.gifti.GiftiImage(darrays=[points, nib.gifti.GiftiDataArray(faces.astype(np.int32), "NIFTI_INTENT_TRIANGLE")])


def hemispheres(level: int = 2, radius: float = 30.0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A sphere on each side of the midline, 20 mm apart."""
    xyz, faces = icosphere(level, radius)
    return {side: (xyz + np.array([x, 0, 0]), faces) for side, x in (("L", -radius - 10), ("R", radius + 10))}


def save_surfaces(folder: Path, level: int = 2, radius: float = 30.0) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"hemi-{side}_midthickness.surf.gii" for side in "LR")
    for path, (side, mesh) in zip(paths, hemispheres(level, radius).items(), strict=True):
        nib.save(surface(*mesh, side), path)
    return paths


def vertex_series(n: int, seed: int = 0, frames: int = T) -> np.ndarray:
    return (1000 + np.cumsum(np.random.default_rng(seed).normal(size=(n, frames)), axis=1)).astype(np.float32)


def save_gifti(path: Path, values: np.ndarray, intent: str = "NIFTI_INTENT_TIME_SERIES", labels: dict | None = None) -> Path:
    """One array for each column, as fMRIPrep and Workbench write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.asarray(values).reshape(len(values), -1).T
    image = nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.ascontiguousarray(column), intent) for column in columns])
    for key, name in (labels or {}).items():
        label = nib.gifti.GiftiLabel(key, 0.5, 0.5, 0.5, 1.0)
        label.label = name
        image.labeltable.labels.append(label)
    nib.save(image, path)
    return path


def save_pair(folder: Path, name: str = SERIES, n: int = 162, frames: tuple[int, int] = (T, T), wall: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A recording of both hemispheres whose medial wall is 0 on the left and NaN on the right; the left file."""
    for at, side in enumerate("LR"):
        values = vertex_series(n, at, frames[at])
        values[list(wall)] = (0, np.nan)[at]
        file = save_gifti(folder / name.format(side), values)
        file.with_name(file.name.replace(".func.gii", ".json")).write_text(f'{{"RepetitionTime": {TR}}}')
    return folder / name.format("L")
