"""GIFTI: functional and label files of both hemispheres, combined along CIFTI axes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Int
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.errors import InputError
from pnet_jax.ingest.nifti import open_image
from pnet_jax.ingest.reading import reading
from pnet_jax.ingest.surfaces import CORTICES

SIDES = ("L", "R")
# Hemisphere in a file name: BIDS (hemi-L), HCP (.L.), FreeSurfer (lh.); group 1 is the letter.
MARKS = (re.compile(r"(?<![A-Za-z0-9])hemi-([LR])(?![A-Za-z0-9])"), re.compile(r"\.([LR])\."), re.compile(r"^([lr])h\."))


def pair_of(path: Path) -> dict[str, Path] | None:
    """Return the files of both hemispheres by `"L"` and `"R"`, given one of them; None if its name does not state the hemisphere.

    The files need not exist.

    Example:
      >>> pair_of(Path("sub-01_task-rest_hemi-R_space-fsaverage5_bold.func.gii"))["L"].name
      'sub-01_task-rest_hemi-L_space-fsaverage5_bold.func.gii'
    """
    for mark in MARKS:
        found = mark.search(path.name)
        if found:
            start, stop = found.span(1)
            cased = [side.lower() if found[1].islower() else side for side in SIDES]
            return {side: path.with_name(path.name[:start] + said + path.name[stop:]) for side, said in zip(SIDES, cased, strict=True)}
    return None


def both(path: Path, where: str) -> dict[str, Path]:
    """Return `pair_of` and check that both files exist.

    Raises:
      InputError: If the name does not state the hemisphere, or the file of the other hemisphere is missing.
      FileNotFoundError: If neither file exists.
    """
    pair = pair_of(path)
    if pair is None:
        raise InputError(f"{where}: expected hemi-L or hemi-R (or lh., rh., .L., .R.) in the name of a GIFTI file, found {path.name}")
    missing = [side for side, file in pair.items() if not file.exists()]
    if len(missing) == 2:
        raise FileNotFoundError(f"{where}: {path}: no such file")
    if missing:
        name = {"L": "left", "R": "right"}[missing[0]]
        raise InputError(f"{where}: the {name} hemisphere is missing: expected {pair[missing[0]].name} beside {path.name}")
    return pair


def read_series(pair: Mapping[str, Path], where: str) -> dict[str, Float[np.ndarray, "n T"]]:
    """Read the series of all vertices of each hemisphere, `[n, T]`, float32.

    Raises:
      InputError: If a file is damaged or holds no series, or the hemispheres have different numbers of frames.
    """
    found = {side: _values(open_image(file, where), file, where) for side, file in pair.items()}
    check_frames(found, where)
    return found


def check_frames(series: Mapping[str, Float[np.ndarray, "n T"]], where: str) -> None:
    """Raise if the hemispheres have different numbers of frames."""
    left, right = (series[side].shape[1] for side in SIDES)
    if left != right:
        said = f"found {left} in the left and {right} in the right"
        raise InputError(f"{where}: expected equal numbers of frames in both hemispheres, {said}")


def _values(image: Any, file: Path, where: str) -> Float[np.ndarray, "n T"]:
    if not isinstance(image, nib.gifti.GiftiImage):
        raise InputError(f"{where}: {file}: expected a GIFTI image, found {type(image).__name__}")
    with reading(f"{where}: {file}: truncated or corrupt"):
        parts = [np.asarray(array.data) for array in image.darrays]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) != 1 or len(shapes[0]) not in (1, 2):
        raise InputError(f"{where}: {file}: expected one array of equal length for each frame, found {len(parts)} of shapes {shapes[:3]}")
    if len(shapes[0]) == 1:
        values = np.empty((shapes[0][0], len(parts)), np.float32)
        for at, part in enumerate(parts):
            values[:, at] = part
        return values
    if len(parts) != 1:
        raise InputError(f"{where}: {file}: expected one array of all frames, or one for each, found {len(parts)} of shape {shapes[0]}")
    # FreeSurfer writes vertices × frames; the longer axis is that of the vertices.
    whole = parts[0] if parts[0].shape[0] >= parts[0].shape[1] else parts[0].T
    return np.ascontiguousarray(whole, np.float32)


def with_signal(series: Float[np.ndarray, "n T"]) -> Bool[np.ndarray, " n"]:
    """Return the vertices with a finite, varying series, which excludes the medial wall and vertices outside the field of view."""
    finite = np.isfinite(series).all(1)
    return finite & (series != series[:, :1]).any(1)


def brain_models(kept: Mapping[str, Int[np.ndarray, " k"]], n_vertices: Mapping[str, int]) -> axes.BrainModelAxis:
    """Make the CIFTI axis of both cortices, left first.

    Args:
      kept: Numbers of the vertices on the axis, by hemisphere.
      n_vertices: Number of vertices of the whole mesh, by hemisphere.
    """
    left, right = (axes.BrainModelAxis.from_surface(kept[side], n_vertices[side], CORTICES[side]) for side in SIDES)
    return left + right


def read_labels(pair: Mapping[str, Path], where: str) -> tuple[dict[str, Int[np.ndarray, " n"]], dict[str, dict[int, str]]]:
    """Read the ids of all vertices, `[n]`, and the names of ids by hemisphere; an id may denote different regions in the two.

    Raises:
      InputError: If a file is damaged, or does not hold one map of whole numbers.
    """
    values: dict[str, Int[np.ndarray, " n"]] = {}
    tables: dict[str, dict[int, str]] = {}
    for side, file in pair.items():
        image: Any = open_image(file, where)
        found = _values(image, file, where)
        if found.shape[1] != 1:
            raise InputError(f"{where}: {file}: expected one map of labels, found {found.shape[1]}")
        values[side] = found[:, 0].astype(np.int64)
        if not np.array_equal(values[side], found[:, 0]):
            raise InputError(f"{where}: {file}: region ids must be whole numbers")
        tables[side] = {int(key): str(name) for key, name in image.labeltable.get_labels_as_dict().items()}
    return values, tables
