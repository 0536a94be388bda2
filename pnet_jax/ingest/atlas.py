"""Atlas files -> Atlas."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.cifti import SurfaceInput, axes_of, cifti_space
from pnet_jax.ingest.lut import NamesInput, find_lut, read_lut
from pnet_jax.ingest.nifti import attempt, check_placed, open_image
from pnet_jax.ingest.tables import shortlist
from pnet_jax.ingest.voxels import check_stream
from pnet_jax.parcellation.atlas import Atlas, make_atlas


def load_atlas(file: str | Path, *, names: NamesInput = None, space: str | None = None, surfaces: SurfaceInput = None) -> Atlas:
    """Atlas from an atlas: a 3-D image of region ids (`dseg`), or a CIFTI `dlabel`.

    Ids need not be contiguous, values above 0 are regions, and the image may have any orientation and type as long as its values are
    whole numbers. Names of ids that occur nowhere in the atlas are dropped with a warning, so that K is the number of
    regions that exist.

    Args:
      file: .nii, .nii.gz or .dlabel.nii.
      names: id to name; or one name for each id in ascending order; or a label file (.tsv or .csv with the columns `index` and `name`,
        or Workbench's two-line .txt). None looks for a label file beside the atlas.
      space: template; by default the `space-` or `tpl-` entity of the file name.
      surfaces: left and right GIFTI meshes in MNI mm; needed for the vertices of a dlabel file.

    Raises:
      InputError: the image holds probabilities (4-D), values that are not whole, no value above 0, or is damaged; its header has no
        affine; or its space is not an MNI space.
      FileNotFoundError: the atlas or its label file is not there.

    Example:
      >>> from pnet_jax.ingest import load_atlas
      >>> atlas = load_atlas("Schaefer100_dseg.nii.gz", space="MNI152NLin6Asym")  # doctest: +SKIP
    """
    path = Path(file)
    where = f"atlas {path}"
    extension = naming.split_name(path)[1]
    if extension not in (".nii", ".nii.gz", ".dlabel.nii"):
        raise InputError(f"{where}: expected a .nii, .nii.gz or .dlabel.nii file, found {extension or 'no extension'}")
    entities = naming.entities_of(path)
    space = space or entities.get("space") or entities.get("tpl")
    image = open_image(path, where)
    if isinstance(image, nib.Cifti2Image):
        xyz, values, hemisphere, resolution, table = _dense_labels(image, surfaces, space or "fsLR", where)
        space = space or "fsLR"
    else:
        _check_template(space, where)
        xyz, values, resolution = _volume_labels(image, where)
        hemisphere, table = None, None
    names = _names(names, path, table)
    if isinstance(names, dict):
        names = _used_names(names, values, where)
    return make_atlas(xyz, values, resolution=resolution, names=names, hemisphere=hemisphere, source=str(path), space=space or "unknown")


def centroids(atlas: Atlas) -> Float[np.ndarray, "K 3"]:
    """Mean of each parcel's points, mm."""
    counts = np.bincount(atlas.labels, minlength=atlas.n_parcels)
    return np.stack([np.bincount(atlas.labels, weights=atlas.xyz[:, i], minlength=atlas.n_parcels) / counts for i in range(3)], axis=1)


def _volume_labels(image: nib.spatialimages.SpatialImage, where: str) -> tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, " N"], float]:
    """Points in the order of the closest RAS orientation, so that a flipped copy gives the same atlas."""
    shape = tuple(image.shape)
    if len(shape) == 4 and shape[3] == 1:
        image = image.slicer[..., 0]
    elif len(shape) != 3:
        probabilities = "; a 4-D probseg is not supported: take the most probable region of each voxel first" if len(shape) == 4 else ""
        raise InputError(f"{where}: expected a 3-D image of region ids, found shape {shape}{probabilities}")
    check_placed(image, where)
    check_stream(image, where)
    image = attempt(lambda: nib.as_closest_canonical(image), "its voxels", where)
    values = attempt(lambda: np.asanyarray(image.dataobj), "its voxels", where)
    labels = _whole(values, where)
    ijk = np.argwhere(labels > 0)
    affine = image.affine
    xyz = np.round(ijk @ affine[:3, :3].T + affine[:3, 3], 3)
    return xyz, labels[tuple(ijk.T)], round(float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3)), 6)


def _dense_labels(
    image: nib.Cifti2Image, surfaces: SurfaceInput, space: str, where: str
) -> tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, " N"], Int[np.ndarray, " N"], float, dict[int, str]]:
    maps, models = axes_of(image, axes.BrainModelAxis, "labels of vertices and voxels (dlabel)", where)
    if not isinstance(maps, axes.LabelAxis):
        raise InputError(f"{where}: expected labels (dlabel), found a {type(maps).__name__}")
    if len(maps) != 1:
        raise InputError(f"{where}: expected one map of labels, found {len(maps)}: {shortlist([str(n) for n in maps.name])}")
    locations = cifti_space(models, surfaces, space, where)
    values = _whole(attempt(lambda: np.asarray(image.dataobj[0]), "its labels", where), where)
    table = {int(key): str(label[0]) for key, label in maps.label[0].items()}
    return locations.xyz, values, locations.hemisphere, locations.resolution, table


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    """Values as integers, NaN as background."""
    if values.dtype.kind in "iub":
        labels = values.astype(np.int64)
    else:
        values = np.nan_to_num(values, posinf=0.5, neginf=0.5)
        labels = np.round(values).astype(np.int64)
        off = np.abs(values - labels) > 1e-3
        if off.any():
            some = [f"{v:g}" for v in np.unique(values[off])[:4]]
            raise InputError(
                f"{where}: region ids must be whole numbers, found {int(off.sum())} other values ({', '.join(some)}, …): a probability "
                "map, or an atlas that was resampled with interpolation? Resample with nearest neighbour"
            )
    if not (labels > 0).any():
        raise InputError(f"{where}: no label above 0")
    return labels


def _check_template(space: str | None, where: str) -> None:
    if space is not None and not space.startswith("MNI"):
        raise InputError(
            f"{where}: wrong space: expected an MNI space, found {space!r}; if it is MNI, say so in its name (space-MNI…) or by space="
        )


def _names(given: NamesInput, atlas: Path, table: dict[int, str] | None) -> dict[int, str] | list[str] | None:
    if isinstance(given, str | Path):
        return read_lut(Path(given))
    if given is not None:
        return given if isinstance(given, dict) else list(given)
    if table is not None:
        return table
    beside = find_lut(atlas)
    return read_lut(beside) if beside is not None else None


def _used_names(names: dict[int, str], values: Int[np.ndarray, " N"], where: str) -> dict[int, str]:
    """Names of ids that exist; says which do not, and which have no name."""
    ids = set(np.unique(values[values > 0]).tolist())
    empty = [f"{i} {name}" for i, name in sorted(names.items()) if i > 0 and i not in ids]
    if empty:
        warnings.warn(f"{where}: {len(empty)} labels have no voxel or vertex and are left out: {shortlist(empty)}", stacklevel=3)
    nameless = [str(i) for i in sorted(ids) if i not in names]
    if nameless:
        warnings.warn(f"{where}: {len(nameless)} ids have no name in the label file: {shortlist(nameless)}", stacklevel=3)
    return {i: name for i, name in names.items() if i in ids}
