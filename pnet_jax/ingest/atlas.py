"""Atlas files as `Atlas`."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.errors import InputError
from pnet_jax.ingest import gifti, naming
from pnet_jax.ingest.cifti import axes_of, cifti_space
from pnet_jax.ingest.lut import NamesInput, find_lut, read_lut
from pnet_jax.ingest.nifti import attempt, check_placed, open_image
from pnet_jax.ingest.surfaces import CORTICES, SurfaceInput
from pnet_jax.ingest.tables import shortlist
from pnet_jax.ingest.voxels import check_stream
from pnet_jax.parcellation.atlas import Atlas, make_atlas
from pnet_jax.space import LEFT, RIGHT, Space

# Label names that do not denote a region, in tables of Workbench and FreeSurfer and in atlases converted from them.
BACKGROUND = re.compile(
    r"\?\?\?|(?:[lr]h?[_.-])?(?:unknown|background(?:\+freesurfer_defined_medial_wall)?|medial[ _.-]?wall)", re.IGNORECASE
)


def load_atlas(file: str | Path, *, names: NamesInput = None, space: str | None = None, surfaces: SurfaceInput = None) -> Atlas:
    """Load an atlas from a file: a 3-D image of region ids (`dseg`), a CIFTI `dlabel`, or a pair of GIFTI label files.

    Values above 0 are regions; ids need not be contiguous. The image may have any orientation and data type, but its values must be
    whole numbers. Names of ids that do not occur in the atlas are dropped with a warning, so that K is the number of regions present.
    On surfaces, an id that occurs in both cortices gives two parcels (`separate_sides`), and labels named `???`, unknown, background or
    medial wall are not parcels.

    Args:
      file: .nii, .nii.gz or .dlabel.nii file, or the .label.gii of one hemisphere; the other hemisphere is read from the same folder.
      names: Mapping from id to name, one name for each id in ascending order, or a label file (.tsv or .csv with the columns `index`
        and `name`, or Workbench's two-line .txt). If None, a label file beside the atlas is used.
      space: Template; by default the `space-` or `tpl-` entity of the file name.
      surfaces: Left and right GIFTI meshes in MNI mm, for atlases with vertices. If None, the meshes of the template are used where
        available (see `load_scan`).

    Returns:
      The atlas, with K parcels.

    Raises:
      InputError: If the image is damaged, holds probabilities (4-D), values that are not whole or no value above 0, if its header has no
        affine, or if its space is not an MNI space.
      FileNotFoundError: If the atlas or its label file does not exist.

    Example:
      >>> from pnet_jax.ingest import load_atlas
      >>> atlas = load_atlas("Schaefer100_dseg.nii.gz", space="MNI152NLin6Asym")  # doctest: +SKIP
    """
    path = Path(file)
    where = f"atlas {path}"
    extension = naming.split_name(path)[1]
    if extension not in (".nii", ".nii.gz", ".dlabel.nii", naming.GIFTI_LABELS):
        raise InputError(f"{where}: expected a .nii, .nii.gz, .dlabel.nii or .label.gii file, found {extension or 'no extension'}")
    entities = naming.entities_of(path)
    space = space or entities.get("space") or entities.get("tpl")
    image = None if extension == naming.GIFTI_LABELS else open_image(path, where)
    if image is None or isinstance(image, nib.Cifti2Image):
        space = space or ("unknown" if image is None else "fsLR")
        read = _vertex_labels(path, surfaces, space, where) if image is None else _dense_labels(image, surfaces, space, where)
        locations, values, tables = read
        xyz, hemisphere, resolution = locations.xyz, locations.hemisphere, locations.resolution
        values, tables = without_background(values, tables)
        given = None if names is None else _names(names, path)
        values, names = separate_sides(values, cortex_of(locations), tables if given is None else given, where)
    else:
        _check_template(space, where)
        xyz, values, resolution = _volume_labels(image, where)
        hemisphere = None
        names = _names(names, path)
    if isinstance(names, dict):
        names = _used_names(names, values, where)
    return make_atlas(xyz, values, resolution=resolution, names=names, hemisphere=hemisphere, source=str(path), space=space or "unknown")


def centroids(atlas: Atlas) -> Float[np.ndarray, "K 3"]:
    """Return the mean coordinate of each parcel in mm, `[K, 3]`."""
    counts = np.bincount(atlas.labels, minlength=atlas.n_parcels)
    return np.stack([np.bincount(atlas.labels, weights=atlas.xyz[:, i], minlength=atlas.n_parcels) / counts for i in range(3)], axis=1)


def _volume_labels(image: nib.spatialimages.SpatialImage, where: str) -> tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, " N"], float]:
    """Return points, ids and voxel size in the closest RAS orientation, so that a flipped copy gives the same atlas."""
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
) -> tuple[Space, Int[np.ndarray, " N"], tuple[dict[int, str], dict[int, str]]]:
    maps, models = axes_of(image, axes.BrainModelAxis, "labels of vertices and voxels (dlabel)", where)
    if not isinstance(maps, axes.LabelAxis):
        raise InputError(f"{where}: expected labels (dlabel), found a {type(maps).__name__}")
    if len(maps) != 1:
        raise InputError(f"{where}: expected one map of labels, found {len(maps)}: {shortlist([str(n) for n in maps.name])}")
    locations = cifti_space(models, surfaces, space, where)
    values = _whole(attempt(lambda: np.asarray(image.dataobj[0]), "its labels", where), where)
    table = {int(key): str(label[0]) for key, label in maps.label[0].items()}
    return locations, values, (table, table)


def _vertex_labels(
    path: Path, surfaces: SurfaceInput, space: str, where: str
) -> tuple[Space, Int[np.ndarray, " N"], tuple[dict[int, str], dict[int, str]]]:
    values, tables = gifti.read_labels(gifti.both(path, where), where)
    n_vertices = {side: len(own) for side, own in values.items()}
    models = gifti.brain_models({side: np.arange(n) for side, n in n_vertices.items()}, n_vertices)
    locations = cifti_space(models, surfaces, space, where)
    return locations, _whole(np.concatenate([values["L"], values["R"]]), where), (tables["L"], tables["R"])


def without_background(
    values: Int[np.ndarray, " N"], tables: tuple[dict[int, str], dict[int, str]]
) -> tuple[Int[np.ndarray, " N"], tuple[dict[int, str], dict[int, str]]]:
    """Set labels that do not name a region to 0, and drop them from the names of both hemispheres."""
    kept = tuple({key: name for key, name in table.items() if not BACKGROUND.fullmatch(name.strip())} for table in tables)
    none = [key for table, left in zip(tables, kept, strict=True) for key in table.keys() - left.keys()]
    return np.where(np.isin(values, none), 0, values), (kept[0], kept[1])


def cortex_of(space: Space) -> Int[np.ndarray, " V"]:
    """Return 0 for vertices of the left cortex, 1 for those of the right, and −1 elsewhere, `[V]`."""
    of_structure = [list(CORTICES.values()).index(name) if name in CORTICES.values() else -1 for name in space.structures]
    return np.array(of_structure, np.int8)[space.structure]


def separate_sides(
    values: Int[np.ndarray, " N"],
    cortex: Int[np.ndarray, " N"],
    names: tuple[dict[int, str], dict[int, str]] | dict[int, str] | list[str],
    where: str,
) -> tuple[Int[np.ndarray, " N"], dict[int, str]]:
    """Split ids that occur in both cortices into one parcel per hemisphere; ids of the right one are raised by the largest id.

    Args:
      values: Ids, `[N]`.
      cortex: Hemisphere of each location: 0 left, 1 right, −1 outside the cortex, `[N]`.
      names: Names by id, separately for the left and right hemisphere or for both; or one name for each id in ascending order.
      where: Name of the atlas in messages.

    Returns:
      Ids, `[N]`, and their names; a name shared by both hemispheres becomes `L_name` and `R_name`.

    Raises:
      InputError: If the number of names is not the number of ids.
    """
    if isinstance(names, list):
        ids = np.unique(values[values > 0]).tolist()
        if len(ids) != len(names):
            raise InputError(f"{where}: {len(ids)} ids in use but {len(names)} names")
        names = dict(zip(ids, names, strict=True))
    left, right = names if isinstance(names, tuple) else (names, names)
    there = [set(np.unique(values[(cortex == side) & (values > 0)]).tolist()) for side in (LEFT, RIGHT)]
    both = sorted(there[LEFT] & there[RIGHT])
    named = {key: name for key, name in left.items() if key not in there[RIGHT] - there[LEFT]} | {
        key: name for key, name in right.items() if key not in left or key in there[RIGHT] - there[LEFT]
    }
    if not both:
        return values, named
    raised = int(values.max())
    for key in both:
        pair = [table.get(key, f"parcel-{key}") for table in (left, right)]
        pair = [f"L_{pair[0]}", f"R_{pair[1]}"] if pair[0] == pair[1] else pair
        named |= {key: pair[0], key + raised: pair[1]}
    said = shortlist([f"{key} ({named[key]}, {named[key + raised]})" for key in both], 3)
    warnings.warn(
        f"{where}: {len(both)} ids occur in both hemispheres; each is two parcels, the right one with an id raised by {raised}: {said}",
        stacklevel=3,
    )
    return np.where((cortex == RIGHT) & np.isin(values, both), values + raised, values), named


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    """Convert values to integers; NaN becomes background."""
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


def _names(given: NamesInput, atlas: Path) -> dict[int, str] | list[str] | None:
    if isinstance(given, str | Path):
        return read_lut(Path(given))
    if given is not None:
        return given if isinstance(given, dict) else list(given)
    beside = find_lut(atlas)
    return read_lut(beside) if beside is not None else None


def _used_names(names: dict[int, str], values: Int[np.ndarray, " N"], where: str) -> dict[int, str]:
    """Return the names of the ids present; warn of names without an id and of ids without a name."""
    ids = set(np.unique(values[values > 0]).tolist())
    empty = [f"{i} {name}" for i, name in sorted(names.items()) if i > 0 and i not in ids]
    if empty:
        warnings.warn(f"{where}: {len(empty)} labels have no voxel or vertex and are left out: {shortlist(empty)}", stacklevel=3)
    nameless = [str(i) for i in sorted(ids) if i not in names]
    if nameless:
        warnings.warn(f"{where}: {len(nameless)} ids have no name in the label file: {shortlist(nameless)}", stacklevel=3)
    return {i: name for i, name in names.items() if i in ids}
