"""`load_scan`: read and clean one recording in any supported format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Int
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import cifti, gifti, naming, nifti, roi, timing, voxels
from pnet_jax.ingest.cleaning import Recording, check_length, clean_recording
from pnet_jax.ingest.confounds import ConfoundsInput, kept_frames, read_confounds
from pnet_jax.ingest.surfaces import CORTICES, Surface, SurfaceInput
from pnet_jax.scan import Scan
from pnet_jax.space import Space, point_space

if TYPE_CHECKING:
    from nilearn.surface import SurfaceImage

KINDS = (
    ".nii, .nii.gz (4-D), .dtseries.nii, .ptseries.nii, .func.gii (a pair of hemispheres), .tsv, .csv, .1D, .txt or .npy (a table of "
    "ROI series)"
)
MEDIAL_WALL = 0.15  # share of vertices that may lack a signal without a warning; the medial wall is 0.09 of fsaverage and fsLR


@dataclasses.dataclass
class _Opened:
    """Open recording whose series are not yet read; `read()` returns them once, `[V, recorded]`, float32."""

    space: Space
    tr: float
    n_frames: int
    read: Callable[[], Float[np.ndarray, "V recorded"]]


def load_scan(
    bold: str | Path | nifti.Image | nib.Cifti2Image | SurfaceImage,
    *,
    mask: nifti.ImageInput | None = None,
    confounds: ConfoundsInput = None,
    tr: float | None = None,
    native_to_mni: str | Path | Float[np.ndarray, "4 4"] | None = None,
    space: str | None = None,
    atlas: roi.AtlasInput = None,
    surfaces: SurfaceInput = None,
    sample_mask: Bool[np.ndarray, " recorded"] | Int[np.ndarray, " T"] | None = None,
    entities: Mapping[str, str] | None = None,
    cleaning: CleaningConfig = CleaningConfig(),  # noqa: B008  frozen
) -> Scan:
    """Read and clean one recording: detrending, band-pass filter, confound regression and scrubbing as in `nilearn.signal.clean`.

    Volumes are read a few frames at a time. Peak memory is about 2.4 times the float32 series within the mask, including the halves
    (`cleaning.halves`), which are as large as the series; `memory.peak_bytes` estimates it from headers.

    Args:
      bold: 4-D NIfTI, dense or parcel CIFTI series, GIFTI series of one hemisphere (`hemi-L` or `hemi-R` in its name; the other hemisphere
        is read from the same folder), table of ROI series (one row per frame), or image in memory (nibabel image or nilearn
        SurfaceImage).
      mask: Brain mask on the grid of a NIfTI recording. If None, the `desc-brain_mask` beside a BIDS file is used, and a mask is computed
        for other files.
      confounds: File, array `[recorded, n]` or DataFrame; see `read_confounds` for the choice of columns. If None, the fMRIPrep table
        beside the recording is used if it exists; with `cleaning.strategy = ()` it is ignored.
      tr: Repetition time in seconds; by default RepetitionTime in the JSON files that apply to the recording (BIDS inheritance
        principle), then that of the header.
      native_to_mni: Affine from native mm to MNI mm, as an array `[4, 4]` or a text file, for volumes that are not in MNI space.
        Coordinates are transformed; data are not resampled.
      space: Template, instead of the `space-` entity.
      atlas: Locations of the ROIs of a table, for which it is required: dseg image, table with columns x, y, z, centroids `[V, 3]` in MNI
        mm, or Atlas.
      surfaces: Left and right GIFTI meshes in MNI mm, for recordings with vertices. By default the mesh of a SurfaceImage, the fsaverage5
        mesh of nilearn, or the fsLR 32k and fsaverage meshes of TemplateFlow if that package is installed.
      sample_mask: True for frames to keep, `[recorded]`, or the positions of these frames, `[T]`.
      entities: BIDS entities that take precedence over the file name, e.g. `{"sub": "01", "ses": "2"}`.
      cleaning: Strategy, band and minimum length of a scan.

    Returns:
      The cleaned scan, with z-scored series `[V, T]`.

    Raises:
      InputError: If the file or a file that belongs to it cannot be used, or too little signal remains after cleaning.
      FileNotFoundError: If a file does not exist.

    Example:
      >>> from pnet_jax.ingest import load_scan
      >>> scan = load_scan("sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")  # doctest: +SKIP
      >>> scan.y.shape, scan.tr, scan.warnings  # doctest: +SKIP
    """
    path = _path_of(bold)
    subject, others = naming.identity(path, entities)
    where = f"{naming.scan_label(subject, others)} ({path or 'image in memory'})"
    notes: list[str] = []
    opened = _open(bold, path, mask, tr, native_to_mni, space, atlas, surfaces, others, where, notes)
    check_length(opened.n_frames, opened.n_frames, opened.tr, cleaning, where, [])  # before the confounds, which need frames
    noise = read_confounds(confounds, bold=path, n_frames=opened.n_frames, cleaning=cleaning, where=where)
    notes += noise.warnings
    kept = kept_frames(sample_mask, noise, opened.n_frames, where)
    check_length(len(kept), opened.n_frames, opened.tr, cleaning, where, [])  # before the series are read; cleaning warns
    return clean_recording(
        Recording(opened.read(), opened.space, opened.tr, where, notes),
        kept=kept,
        confounds=noise.values,
        cleaning=cleaning,
        subject=subject,
        entities=others,
        source=str(path) if path else "memory",
        displacement=noise.displacement,
        done={"confounds": list(noise.names), "confounds_source": noise.source, "strategy": list(cleaning.strategy)},
    )


def _path_of(bold: object) -> Path | None:
    if isinstance(bold, str | Path):
        return Path(bold)
    if _is_surface_image(bold):
        return None
    if not isinstance(bold, nib.filebasedimages.FileBasedImage):
        raise InputError(f"expected a file name, a nibabel image or a SurfaceImage, got {type(bold).__name__}; supported files: {KINDS}")
    name = bold.get_filename()
    return Path(name) if name else None


def _open(
    bold: object,
    path: Path | None,
    mask: nifti.ImageInput | None,
    tr: float | None,
    native_to_mni: object,
    space: str | None,
    atlas: roi.AtlasInput,
    surfaces: SurfaceInput,
    entities: Mapping[str, str],
    where: str,
    notes: list[str],
) -> _Opened:
    extension = naming.split_name(path)[1] if path is not None else ".nii"
    is_file = isinstance(bold, str | Path)
    if _is_surface_image(bold) or (is_file and extension == naming.GIFTI_SERIES):
        _refuse(where, mask=mask, native_to_mni=native_to_mni)
        return _open_surface(bold, path, tr, space or entities.get("space"), surfaces, where, notes)
    if is_file and extension in naming.TABLES:
        _refuse(where, mask=mask, native_to_mni=native_to_mni)
        return _open_table(Path(path), tr, space, atlas, surfaces, where, notes)  # type: ignore[arg-type]
    if is_file and path is not None and path.is_dir():
        raise InputError(f"{where}: expected one recording, found a folder; find_scans(folder) lists its recordings")
    if is_file and extension not in (".nii", ".nii.gz", ".dtseries.nii", ".ptseries.nii"):
        raise InputError(f"{where}: cannot read {extension or 'a file without an extension'}; expected {KINDS}")
    image = nifti.open_image(bold, where, notes)  # type: ignore[arg-type]
    if isinstance(image, nib.Cifti2Image):
        _refuse(where, mask=mask, native_to_mni=native_to_mni)
        return _open_cifti(image, path, tr, space or entities.get("space"), atlas, surfaces, where, notes)
    if extension in (".dtseries.nii", ".ptseries.nii"):
        raise InputError(f"{where}: expected CIFTI by its name, found {type(image).__name__} of shape {tuple(image.shape)}")
    return _open_volume(image, path, mask, tr, native_to_mni, space, entities, where, notes)


def _open_volume(
    image: nifti.Image,
    path: Path | None,
    mask: nifti.ImageInput | None,
    tr: float | None,
    native_to_mni: object,
    space: str | None,
    entities: Mapping[str, str],
    where: str,
    notes: list[str],
) -> _Opened:
    image = nifti.with_time_fourth(image, where)
    nifti.check_bold(image, where)
    name, said = naming.mni_name(space, entities, native_to_mni is not None, where)
    notes += said
    seconds = timing.repetition_time(tr, path, nifti.header_time(image, where), where, notes)
    inside = nifti.load_mask(mask, image, path, where, notes)
    locations = nifti.mask_space(inside, image, name, native_to_mni, where, notes)
    assert locations.grid is not None
    ijk = locations.grid.ijk
    return _Opened(locations, seconds, image.shape[3], lambda: voxels.read_series(image, ijk, where))


def _open_cifti(
    image: nib.Cifti2Image,
    path: Path | None,
    tr: float | None,
    space: str | None,
    atlas: roi.AtlasInput,
    surfaces: SurfaceInput,
    where: str,
    notes: list[str],
) -> _Opened:
    series, columns = cifti.axes_of(image, axes.Axis, "series", where)
    seconds = timing.repetition_time(tr, path, cifti.header_time(series, where), where, notes)
    if isinstance(columns, axes.ParcelsAxis):
        names = [str(n) for n in columns.name]
        if atlas is not None:
            locations, said = roi.locate(atlas, names, image.shape, surfaces, where)
            notes += said
        else:
            xyz = cifti.parcel_centroids(columns, surfaces, space or "fsLR", where)
            locations = point_space(xyz, names=names, name=space or "fsLR")
    else:
        _, models = cifti.axes_of(image, axes.BrainModelAxis, "series of vertices and voxels, or of parcels", where)
        locations = cifti.cifti_space(models, surfaces, space or "fsLR", where)
    return _Opened(locations, seconds, image.shape[0], lambda: cifti.read_dense(image, where))


def _open_surface(
    bold: Any, path: Path | None, tr: float | None, space: str | None, surfaces: SurfaceInput, where: str, notes: list[str]
) -> _Opened:
    seconds = timing.repetition_time(tr, path, timing.HeaderTime(None, "a surface recording does not state it"), where, notes)
    if path is not None:
        series = gifti.read_series(gifti.both(path, where), where)
    else:
        series, meshes = _of_surface_image(bold, where)
        surfaces = surfaces or meshes
    kept = {side: np.flatnonzero(gifti.with_signal(values)) for side, values in series.items()}
    total, left = (sum(len(one[side]) for side in gifti.SIDES) for one in (series, kept))
    if not left:
        raise InputError(f"{where}: none of {total} vertices has a varying, finite signal")
    if total - left > MEDIAL_WALL * total:
        notes.append(f"{total - left} of {total} vertices have no signal and are left out, expected the medial wall (9 %) only")
    axis = gifti.brain_models(kept, {side: len(values) for side, values in series.items()})
    locations = cifti.cifti_space(axis, surfaces, space or "unknown", where)
    n_frames = series[gifti.SIDES[0]].shape[1]
    return _Opened(locations, seconds, n_frames, lambda: np.concatenate([series[side][kept[side]] for side in gifti.SIDES]))


def _is_surface_image(bold: object) -> bool:
    return all(hasattr(bold, name) for name in ("mesh", "data")) and hasattr(bold.data, "parts")  # type: ignore[attr-defined]


def _of_surface_image(bold: Any, where: str) -> tuple[dict[str, Float[np.ndarray, "n T"]], dict[str, Surface]]:
    """Return the series and meshes of a nilearn SurfaceImage, by hemisphere."""
    names = dict(zip(gifti.SIDES, ("left", "right"), strict=True))
    missing = [name for name in names.values() if name not in bold.data.parts]
    if missing:
        raise InputError(f"{where}: expected both hemispheres in the SurfaceImage, the {missing[0]} one is missing")
    series = {side: np.asarray(bold.data.parts[name], np.float32) for side, name in names.items()}
    if any(values.ndim != 2 for values in series.values()):
        raise InputError(f"{where}: expected a SurfaceImage of many frames, found data of shape {tuple(bold.shape)}")
    gifti.check_frames(series, where)
    meshes = {
        CORTICES[side]: Surface(
            np.asarray(bold.mesh.parts[name].coordinates, np.float64), np.asarray(bold.mesh.parts[name].faces, np.int64), "the SurfaceImage"
        )
        for side, name in names.items()
    }
    return series, meshes


def _open_table(
    path: Path, tr: float | None, space: str | None, atlas: roi.AtlasInput, surfaces: SurfaceInput, where: str, notes: list[str]
) -> _Opened:
    values, names = roi.read_roi_table(path, where)
    seconds = timing.repetition_time(tr, path, timing.HeaderTime(None, "a table does not state it"), where, notes)
    locations, said = roi.locate(atlas, names, (values.shape[0], values.shape[1]), surfaces, where)
    notes += said
    if space is not None:
        locations = dataclasses.replace(locations, name=space)
    series = np.ascontiguousarray(values.T, np.float32)
    return _Opened(locations, seconds, len(values), lambda: series)


def _refuse(where: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{where}: {name}= is for NIfTI volumes, but this file has its own locations; omit it")
