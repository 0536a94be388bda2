"""Meshes of the cortex, from given files or from the template."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int

from pnet_jax.errors import InputError
from pnet_jax.ingest.nifti import open_image
from pnet_jax.ingest.reading import reading

LEFT_CORTEX, RIGHT_CORTEX = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
CORTICES = {"L": LEFT_CORTEX, "R": RIGHT_CORTEX}
DENSITIES = {10242: "10k", 40962: "41k", 163842: "164k", 32492: "32k"}  # vertices of a hemisphere
# MNI305, the space of fsaverage, to MNI152 in mm (FreeSurfer's average/mni152.register.dat).
MNI305_TO_MNI152 = np.array(
    [[0.9975, -0.0073, 0.0176, -0.0429], [0.0146, 1.0009, -0.0024, 1.5496], [-0.0130, -0.0093, 0.9971, 1.1840], [0, 0, 0, 1]]
)


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """Mesh of one hemisphere: `xyz[n, 3]` in mm, `faces[F, 3]`, and the name of the file."""

    xyz: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "F 3"]
    source: str


SurfaceInput: TypeAlias = Sequence[str | Path | nib.gifti.GiftiImage] | dict[str, Surface] | None


def read_surfaces(given: SurfaceInput, where: str) -> dict[str, Surface]:
    """Read meshes, by CIFTI structure name.

    The hemisphere is taken from the metadata of the GIFTI file (AnatomicalStructurePrimary), otherwise from `hemi-L` or `.L.` in its name,
    otherwise from the order of the files.

    Raises:
      InputError: If a file is not a surface, or two files are of the same hemisphere.
    """
    if isinstance(given, dict):  # already read
        return given
    found: dict[str, Surface] = {}
    given = [given] if isinstance(given, str | Path | nib.gifti.GiftiImage) else (given or ())
    for position, item in enumerate(given):
        source = str(item) if isinstance(item, str | Path) else f"surface {position + 1}"
        image: Any = open_image(item, where) if isinstance(item, str | Path) else item
        surface = _surface(image, source, where)
        name = side_of(image, source, position)
        if name in found:
            raise InputError(f"{where}: {source} and {found[name].source} are both {name}, expected one left and one right")
        found[name] = surface
    return found


def _surface(image: Any, source: str, where: str) -> Surface:
    with reading(f"{where}: {source} is damaged"):
        points = image.agg_data("NIFTI_INTENT_POINTSET") if isinstance(image, nib.gifti.GiftiImage) else ()
        faces = image.agg_data("NIFTI_INTENT_TRIANGLE") if isinstance(image, nib.gifti.GiftiImage) else ()
    if not isinstance(points, np.ndarray) or not isinstance(faces, np.ndarray) or points.shape[1:] != (3,) or faces.shape[1:] != (3,):
        raise InputError(f"{where}: {source} is not a GIFTI surface with points and triangles (.surf.gii)")
    if faces.size and not 0 <= int(faces.min()) <= int(faces.max()) < len(points):
        raise InputError(f"{where}: {source} has triangles of vertices up to {int(faces.max())}, expected 0 to {len(points) - 1}")
    return Surface(np.asarray(points, np.float64), np.asarray(faces, np.int64), source)


def mesh_of(structure: str, meshes: dict[str, Surface], n_vertices: int, space: str, where: str, also: str = "") -> Surface:
    """Return the mesh of a structure: the given one or, if none is given, that of the template.

    Args:
      structure: CIFTI structure name.
      meshes: Given meshes, from `read_surfaces`.
      n_vertices: Required number of vertices.
      space: Template of the vertex numbers.
      where: Name of the file in messages.
      also: Further remedy for the message.

    Raises:
      InputError: If the mesh is missing or has a different number of vertices.
    """
    if structure not in meshes:
        found = _of_template(structure, n_vertices, space, where) if not meshes else None
        if found is not None:
            return found
        raise InputError(f"{where}: the file has vertices of {structure} without their coordinates; pass {needed(space, n_vertices)}{also}")
    mesh = meshes[structure]
    if len(mesh.xyz) != n_vertices:
        raise InputError(
            f"{where}: expected {n_vertices} vertices for {structure}, found {len(mesh.xyz)} in {mesh.source}; pass "
            f"{needed(space, n_vertices)}"
        )
    return mesh


def needed(space: str, n_vertices: int) -> str:
    """Return the description of the two surface files that are needed, for messages."""
    density = DENSITIES.get(n_vertices)
    template = "fsaverage" if space.startswith("fsaverage") else "fsLR"
    files, installed = f"two GIFTI midthickness surfaces of {n_vertices} vertices each", ""
    if density is not None and (template == "fsaverage") == (density != "32k"):
        kind = "midthickness" if template == "fsLR" else "white, or the mean of white and pial"
        files = (
            f"two GIFTI files with the vertices' coordinates, e.g. the {template} {density} {kind} (tpl-{template}_den-{density}_hemi-L_"
            f"{'midthickness' if template == 'fsLR' else 'white'}.surf.gii and its right one)"
        )
        installed = "; or install templateflow, which downloads them once: pip install 'pnet_jax[surfaces]'"
    return f"surfaces=(left, right) (--surfaces LEFT RIGHT), {files}{installed}"


def _of_template(structure: str, n_vertices: int, space: str, where: str) -> Surface | None:
    """Return the midthickness of fsLR, or the mean of white and pial of fsaverage in MNI152 space; None if unavailable."""
    density, hemi = DENSITIES.get(n_vertices), {name: side for side, name in CORTICES.items()}.get(structure)
    if density is None or hemi is None:
        return None
    if space == "fsLR" and density == "32k":
        return _templateflow("fsLR", density, hemi, "midthickness", where)
    if not space.startswith("fsaverage") or density == "32k":
        return None
    if density == "10k":  # included in nilearn
        white, pial = (_nilearn(hemi, kind) for kind in ("white", "pial"))
    else:
        found = [_templateflow("fsaverage", density, hemi, kind, where) for kind in ("white", "pial")]
        if found[0] is None or found[1] is None:
            return None
        white, pial = found[0], found[1]
    middle = (white.xyz + pial.xyz) / 2
    moved = middle @ MNI305_TO_MNI152[:3, :3].T + MNI305_TO_MNI152[:3, 3]
    return Surface(moved, white.faces, f"the mean of {white.source} and {pial.source}")


def _nilearn(hemi: str, kind: str) -> Surface:
    from nilearn.datasets import load_fsaverage

    meshes: Any = load_fsaverage("fsaverage5")["white_matter" if kind == "white" else kind]
    part = meshes.parts["left" if hemi == "L" else "right"]
    source = f"nilearn's fsaverage5 {kind}"
    return Surface(np.asarray(part.coordinates, np.float64), np.asarray(part.faces, np.int64), source)


def _templateflow(template: str, density: str, hemi: str, suffix: str, where: str) -> Surface | None:
    """Read a TemplateFlow file, downloaded if it is not in the cache; None if the package is not installed.

    Raises:
      InputError: If the file is not in the cache and cannot be downloaded.
    """
    try:
        api: Any = importlib.import_module("templateflow.api")
    except ImportError:
        return None
    name = f"tpl-{template}_den-{density}_hemi-{hemi}_{suffix}.surf.gii"
    try:
        found = api.get(template, density=density, hemi=hemi, suffix=suffix, desc=None, space=None, extension=".surf.gii")
    except Exception as error:
        raise InputError(
            f"{where}: TemplateFlow could not provide {name} ({type(error).__name__}); without a connection give the two surfaces with "
            "surfaces=(left, right) (--surfaces LEFT RIGHT)"
        ) from error
    files = [Path(file) for file in (found if isinstance(found, list) else [found])]
    if len(files) != 1 or not files[0].is_file() or not files[0].stat().st_size:
        raise InputError(
            f"{where}: TemplateFlow has {len(files)} files {name} in its cache, expected one with content; give the two surfaces with "
            "surfaces=(left, right) (--surfaces LEFT RIGHT)"
        )
    return _surface(open_image(files[0], where), str(files[0]), where)


def side_of(image: nib.gifti.GiftiImage, source: str, position: int) -> str:
    """Return the CIFTI structure of a GIFTI image: from its metadata, otherwise its name, otherwise its position in the list."""
    said = {str(array.meta.get("AnatomicalStructurePrimary", "")) for array in image.darrays} | {
        str(image.meta.get("AnatomicalStructurePrimary", ""))
    }
    file = Path(source).name
    if "CortexLeft" in said or "hemi-L" in file or ".L." in file or file.startswith("lh."):
        return LEFT_CORTEX
    if "CortexRight" in said or "hemi-R" in file or ".R." in file or file.startswith("rh."):
        return RIGHT_CORTEX
    return (LEFT_CORTEX, RIGHT_CORTEX)[position % 2]
