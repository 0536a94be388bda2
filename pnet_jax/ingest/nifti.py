"""4-D NIfTI volumes: header, mask and Space of a recording, and checks of all three."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import warnings as python_warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float
from nibabel import imageglobals
from nibabel.arrayproxy import ArrayProxy

from pnet_jax.errors import InputError
from pnet_jax.ingest import naming, timing
from pnet_jax.ingest.reading import attempt, check_file, one_line, reading
from pnet_jax.ingest.voxels import ZIPPED, check_stream, mean_volume
from pnet_jax.space import Space, grid_space

SAME_GRID = 0.01  # largest shift due to rounding of an affine, as a share of a voxel
MNI_BOX = np.array([[-110, 110], [-150, 120], [-100, 130]])
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}

Image: TypeAlias = nib.spatialimages.SpatialImage
ImageInput: TypeAlias = str | Path | Image
DEFLATED = 1032  # largest compression ratio of gzip, which limits the size of the content


def open_image(source: ImageInput, where: str, warnings: list[str] | None = None, kind: type[Image] | None = None) -> Image:
    """Open an image and leave its data on disk.

    Args:
      source: File, or an image, which is returned unchanged.
      where: Name of the image in messages.
      warnings: List to which nibabel's remarks on the header are appended; if None, they are issued as Python warnings.
      kind: nibabel class that opens the file; if None, it is chosen by file name and header.

    Raises:
      InputError: If the file is not an image or not a regular file, or its header is damaged or declares more data than the file can hold.
      FileNotFoundError: If the file does not exist.
    """
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    where = where if str(path) in where else f"{where}: {path}"
    check_file(path, where)
    # An open file keeps its position in the compressed stream, so that blocks are read without starting over.
    options = {} if path.suffix.lower() == ".gii" else {"keep_file_open": True}
    with reading(f"{where}: truncated, corrupt or not an image"), _header_remarks() as said:
        image = nib.load(path, **options) if kind is None else kind.from_filename(path)
    for remark in said:
        if warnings is None:
            python_warnings.warn(f"{where}: header: {remark}", stacklevel=2)
        else:
            warnings.append(f"header of {path}: {remark}")
    with reading(f"{where}: its header is damaged"):
        _check_promise(image, path, where)  # type: ignore[arg-type]
    return image  # type: ignore[return-value]


@contextlib.contextmanager
def _header_remarks() -> Iterator[list[str]]:
    """Collect nibabel's remarks on a header, which it would log without the name of the file."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(one_line(record.getMessage()))  # type: ignore[method-assign]
    logger = imageglobals.logger
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        with python_warnings.catch_warnings(record=True) as caught:
            python_warnings.simplefilter("always")
            yield said
        said += [one_line(str(one.message)) for one in caught]
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _check_promise(image: Image, path: Path, where: str) -> None:
    """Raise if a file is too small for the shape in its header, before memory is allocated."""
    data = getattr(image, "dataobj", None)
    if not isinstance(data, ArrayProxy):
        return
    shape = tuple(int(n) for n in data.shape)
    if min(shape, default=1) < 1:
        raise InputError(f"{where}: the header is damaged: expected at least one voxel, found shape {shape}")
    promised, file = data.offset + math.prod(shape) * data.dtype.itemsize, _stored_in(image, path)
    zipped, stored = file.suffix.lower() in ZIPPED, file.stat().st_size
    if promised > stored * (DEFLATED if zipped else 1) and file.suffix.lower() not in (".bz2", ".zst"):  # unlimited compression
        raise InputError(
            f"{where}: truncated or corrupt: the header declares {promised} bytes (shape {shape}), the file has {stored}"
            f"{' compressed bytes' if zipped else ''}"
        )


def _stored_in(image: Image, path: Path) -> Path:
    """Return the file that holds the voxels, which differs from the header file of a .hdr/.img pair."""
    file = getattr(image.dataobj, "file_like", None)
    return Path(file) if isinstance(file, str | Path) else path


def check_bold(image: Image, where: str) -> None:
    """Raise if an image is not a series of volumes of real numbers."""
    shape = tuple(image.shape)
    if len(shape) == 3:
        raise InputError(f"{where}: expected a 4-D image (x, y, z, time), found a 3-D one of shape {shape} (a mask or one volume)")
    if len(shape) != 4:
        raise InputError(f"{where}: expected a 4-D image (x, y, z, time), found {len(shape)} dimensions, shape {shape}")
    kind = np.dtype(image.get_data_dtype()).kind
    if kind not in "iufb":
        raise InputError(f"{where}: expected real numbers, found data of type {image.get_data_dtype()}")


def with_time_fourth(image: Image, where: str) -> Image:
    """Drop dimensions of length 1 from an image of five or more (AFNI's x, y, z, 1, time); the data stay on disk."""
    shape = tuple(image.shape)
    longer = tuple(n for n in shape[3:] if n != 1)
    if len(shape) < 5 or len(longer) != 1 or not isinstance(image, nib.Nifti1Image):
        return image
    data: Any = image.dataobj
    squeezed = type(image)(data.reshape(shape[:3] + longer), image.affine, image.header)
    steps = {float(step) for step in image.header.get_zooms()[3:]} - {0.0, 1.0}  # 0 and 1 are written if the step is unknown
    if len(steps) == 1:
        squeezed.header.set_zooms((*squeezed.header.get_zooms()[:3], steps.pop()))
    return squeezed


def header_time(image: Image, where: str) -> timing.HeaderTime:
    """Return the repetition time in a volume's header.

    Raises:
      InputError: If its code of units is not a NIfTI code.
    """
    zooms = image.header.get_zooms()
    header, unit = float(zooms[3]) if len(zooms) > 3 else 0.0, "unknown"
    if hasattr(image.header, "get_xyzt_units"):
        with reading(f"{where}: its header is damaged: unknown code of units (xyzt_units)"):
            unit = image.header.get_xyzt_units()[1]
    if not header > 0 or unit in ("hz", "ppm", "rads"):
        return timing.HeaderTime(None, f"the header has {header:g} (unit {unit})")
    note = f"the header states no unit of time; its TR of {header:g} is taken as seconds" if unit == "unknown" else ""
    return timing.HeaderTime(header * _SECONDS.get(unit, 1.0), f"the header has {header:g} (unit {unit})", note)


def load_mask(mask: ImageInput | None, bold: Image, path: Path | None, where: str, warnings: list[str]) -> Bool[np.ndarray, "X Y Z"]:
    """Load or compute the brain mask on the grid of a recording.

    Args:
      mask: Image of any type; voxels above 0 (above 0.5 if values are in 0…1) are inside. If None, the `desc-brain_mask` beside a BIDS
        file is used, and a mask is computed for other files.
      bold: Recording.
      path: File of the recording, or None.
      where: Name of the scan in messages.
      warnings: List to which warnings are appended.

    Returns:
      True inside the brain, `[X, Y, Z]`.

    Raises:
      InputError: If the mask differs from the recording in shape or affine or is empty, or a BIDS file has no mask beside it.
    """
    if mask is None and path is not None and naming.is_bids(path):
        mask = naming.mask_beside(path)
        if mask is None:
            raise InputError(
                f"{where}: no brain mask: expected a *_desc-brain_mask.nii.gz of the same space beside the file; pass mask= (--mask)"
            )
    if mask is None:
        warnings.append("no mask was given; one was computed from the mean image (nilearn compute_epi_mask)")
        return _computed_mask(bold, where)
    name = f"mask {mask}" if isinstance(mask, str | Path) else "mask (in memory)"
    image = open_image(mask, f"{where}: {name}", warnings)
    shape = tuple(image.shape[:3]) if len(image.shape) == 4 and image.shape[3] == 1 else tuple(image.shape)
    if shape != tuple(bold.shape[:3]):
        raise InputError(f"{where}: {name} has shape {shape}, the recording has {tuple(bold.shape[:3])}; resample the mask to it")
    apart, most = _apart(image.affine, bold.affine, shape), SAME_GRID * min(nib.affines.voxel_sizes(bold.affine))
    if not apart <= most:
        raise InputError(
            f"{where}: {name} has the affine {_short(image.affine)}, the recording has {_short(bold.affine)}: their voxels are up to "
            f"{apart:.3g} mm apart, expected at most {most:.3g} mm ({SAME_GRID:.0%} of a voxel); resample the mask to the recording"
        )
    check_stream(image, f"{where}: {name}")
    values = np.nan_to_num(attempt(lambda: np.asanyarray(image.dataobj), "its voxels", f"{where}: {name}").reshape(shape))
    graded = values.dtype.kind == "f" and values.max() <= 1 and ((values > 0) & (values < 1)).any()
    inside = values > (0.5 if graded else 0)
    if not inside.any():
        raise InputError(f"{where}: {name} is empty: no voxel above 0")
    return inside


def check_placed(image: Image, where: str, otherwise: str = "") -> None:
    """Check that a header has an affine; without one, nibabel assumes a mirrored, centred default.

    Args:
      image: Image; formats other than NIfTI always have an affine.
      where: Name of the image in messages.
      otherwise: Further remedy for the message.

    Raises:
      InputError: If the sform and qform codes of a NIfTI header are both 0.
    """
    header = image.header
    if isinstance(header, nib.Nifti1Header) and not int(header["sform_code"]) and not int(header["qform_code"]):
        raise InputError(
            f"{where}: the header has no affine: sform_code and qform_code are both 0, expected one above 0; copy the header of the file "
            f"that it was made from{otherwise}"
        )


def mask_space(mask: Bool[np.ndarray, "X Y Z"], bold: Image, name: str, to_mni: object, where: str, warnings: list[str]) -> Space:
    """Make the Space of the voxels in a mask; warn if they are all in one hemisphere.

    Args:
      mask: True inside the brain, on the grid of `bold`, `[X, Y, Z]`.
      bold: Recording.
      name: Name of the space to which its affine maps.
      to_mni: Transform from mm of that space to MNI mm, as an array `[4, 4]` or a text file; None for the identity.
      where: Name of the scan in messages.
      warnings: List to which warnings are appended.

    Raises:
      InputError: If `to_mni` is not a 4 x 4 matrix, the recording has no affine and `to_mni` is not given, or most voxels are outside the
        MNI template.
    """
    matrix = None if to_mni is None else read_matrix(to_mni, where)
    if matrix is None:
        check_placed(bold, where, ", or pass native_to_mni= (--native-to-mni)")
    try:
        space = grid_space(mask, bold.affine, name=name, to_mni=matrix)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    outside = ((space.xyz < MNI_BOX[:, 0]) | (space.xyz > MNI_BOX[:, 1])).any(1).mean()
    if outside > 0.5:
        low, high = space.xyz.min(0).tolist(), space.xyz.max(0).tolist()
        raise InputError(
            f"{where}: {outside:.0%} of the voxels are outside the MNI template: coordinates run from {low} to {high} mm. The affine "
            "does not lead to MNI: take the run's file in MNI space, or pass native_to_mni= (--native-to-mni)"
        )
    if len(space) > 1 and (space.hemisphere == space.hemisphere[0]).all():
        side = "left (x < 0)" if space.hemisphere[0] == 0 else "right (x >= 0)"
        warnings.append(f"all {len(space)} voxels are on the {side}: one hemisphere, or an affine that does not lead to MNI")
    return space


def read_matrix(given: object, where: str) -> Float[np.ndarray, "4 4"]:
    """Return the 4 × 4 matrix from native mm to MNI mm that an array or a text file holds."""
    if isinstance(given, str | Path):
        check_file(Path(given), f"{where}: native_to_mni {given}")
    with reading(f"{where}: native_to_mni {given} is not a text file with a 4 x 4 matrix"):
        matrix = np.loadtxt(given) if isinstance(given, str | Path) else np.asarray(given, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"{where}: native_to_mni must be a 4 x 4 matrix with last row 0 0 0 1, got {matrix.shape}: {matrix.tolist()}")
    return matrix


def _computed_mask(image: Image, where: str) -> Bool[np.ndarray, "X Y Z"]:
    from nilearn.masking import compute_epi_mask

    mean = nib.Nifti1Image(mean_volume(image, where), image.affine)
    with reading(f"{where}: no brain mask could be computed; pass mask= (--mask)"), python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # an empty mask, of which nilearn warns, is an error here
        mask = np.asanyarray(compute_epi_mask(mean).dataobj) > 0
    if not mask.any():
        raise InputError(f"{where}: the computed brain mask is empty; pass mask= (--mask)")
    return mask


def _apart(a: Float[np.ndarray, "4 4"], b: Float[np.ndarray, "4 4"], shape: tuple[int, ...]) -> float:
    """Return the largest distance in mm between the positions of a voxel under two affines of a grid."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))))
    difference = np.asarray(a, np.float64) - b
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())


def _short(affine: Float[np.ndarray, "4 4"]) -> str:
    return str(np.round(np.asarray(affine, float)[:3], 4).tolist())
