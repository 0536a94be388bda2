"""Images of a Network on the grid of the scan."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.network import Network
from pnet_jax.outputs.atomic import atomic_path
from pnet_jax.space import Grid, Space

if TYPE_CHECKING:
    import nibabel

LEVELS = 65535  # probabilities are stored as uint16 steps of 1/65535: NIfTI has no float16, and float32 doubles the file


def labels_image(network: Network) -> nibabel.Nifti1Image | nibabel.Cifti2Image:
    """Return the parcellation as an image on the scan's grid and orientation; values are the atlas ids, 0 is outside.

    Args:
      network: Result of a subject on a grid or on CIFTI grayordinates.

    Returns:
      NIfTI `[X, Y, Z]`, int16 if the ids fit, otherwise int32; for CIFTI scans a dlabel image `[1, V]` with names and colours.

    Raises:
      ValueError: If the scan consists of ROIs, which have no image.
    """
    return _labels_on(network, network.labels)


def atlas_image(network: Network) -> nibabel.Nifti1Image | nibabel.Cifti2Image:
    """Return the starting parcellation on the scan's grid, in the form of `labels_image`: the parcellation without data of the scan."""
    return _labels_on(network, network.atlas_labels)


def location_image(network: Network, values: Float[np.ndarray, "V ..."]) -> nibabel.Nifti1Image:
    """Return one number or series per location as a NIfTI image on the scan's grid, 0 outside the scan's mask.

    Args:
      network: Result of a subject on a grid.
      values: One number per location, or a series, `[V]` or `[V, T]`.

    Returns:
      NIfTI `[X, Y, Z]` or `[X, Y, Z, T]`.

    Raises:
      ValueError: If the scan has no voxel grid.
    """
    grid = _grid(network.space)
    if grid.brain_models is not None:
        raise ValueError("a CIFTI scan has no voxel grid with all of its locations")
    volume = np.zeros((*grid.shape, *np.shape(values)[1:]), np.asarray(values).dtype)
    volume[tuple(grid.ijk.T)] = values
    return _nifti(volume, network.space)


def signals_image(network: Network, signals: Float[np.ndarray, "K T"]) -> nibabel.Nifti1Image | nibabel.Cifti2Image:
    """Give every location the signal of its parcel, on the scan's grid.

    Args:
      network: a subject's result on a grid or on CIFTI grayordinates.
      signals: of its K parcels, `[K, T]`.

    Returns:
      `[X, Y, Z, T]` float32 NIfTI, 0 outside the parcels; for CIFTI scans a dense series `[T, V]`.

    Raises:
      ValueError: a scan of ROIs, which has no image.
    """
    signals = np.asarray(signals, np.float32)
    values = np.where(network.labels[:, None] >= 0, signals[np.maximum(network.labels, 0)], np.float32(0))
    if _grid(network.space).brain_models is None:
        image = location_image(network, values)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((*image.header.get_zooms()[:3], network.tr))
        return image
    import nibabel

    axes = (nibabel.cifti2.SeriesAxis(0, network.tr, signals.shape[1]), brain_models(network.space))
    return _cifti(values.T, axes, "NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")


def probabilities_image(network: Network) -> nibabel.Nifti1Image | nibabel.Cifti2Image:
    """Return the probability of every parcel at every location; sums to 1 inside, is 0 outside.

    The volumes of a NIfTI are computed on access (`image.dataobj[..., k]`) from the candidates of each location. The whole array, with
    4·X·Y·Z·K bytes, is built only if all of it is requested, which `write_probabilities` never does.

    Args:
      network: Result of a subject on a grid or on CIFTI grayordinates.

    Returns:
      NIfTI `[X, Y, Z, K]`, float32, with volumes in the order of `network.ids`; for CIFTI scans a dscalar image `[K, V]`.

    Raises:
      ValueError: If the scan consists of ROIs, which have no image.
    """
    grid = _grid(network.space)
    if grid.brain_models is None:
        return _nifti(_ProbabilityVolumes(network), network.space)
    return scalars_image(network, network.names, dense_probabilities(network).T)


def scalars_image(network: Network, names: Sequence[str], values: Float[np.ndarray, "n V"]) -> nibabel.Cifti2Image:
    """Return named maps over the grayordinates of a CIFTI scan, float32."""
    import nibabel

    axes = (nibabel.cifti2.ScalarAxis(list(names)), brain_models(network.space))
    return _cifti(np.asarray(values, np.float32), axes, "NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")


def dense_probabilities(network: Network) -> Float[np.ndarray, "V K"]:
    """Return the probability of every parcel at every location; large unless there are few locations."""
    dense = np.zeros((len(network.space), network.n_parcels), np.float32)
    location, slot = np.nonzero(network.candidates >= 0)
    dense[location, network.candidates[location, slot]] = network.probabilities[location, slot]
    return dense


def write_probabilities(network: Network, path: Path) -> Path:
    """Write `probabilities_image` volume by volume as uint16 with a scale of 1/65535, with memory for one volume.

    The steps of every location add up to exactly 65535, so rounding preserves the sum of 1. Equal networks give equal bytes.

    Raises:
      ValueError: If the scan consists of ROIs.
      OSError: If the file cannot be written; names the file, and no part of it is left.
    """
    if _grid(network.space).brain_models is not None:
        return write_image(probabilities_image(network), path)
    volumes = _ProbabilityVolumes(network)
    header: Any = _nifti(volumes, network.space).header.copy()
    header.set_data_dtype(np.uint16)
    header.set_slope_inter(1 / LEVELS, 0)
    header["vox_offset"] = 352  # 348 bytes of header, 4 that indicate that there is no extension
    with atomic_path(path) as part, _gzip(part) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for k in range(network.n_parcels):
            file.write(volumes.levels(k).tobytes("F"))
    return Path(path)


def write_image(image: nibabel.Nifti1Image | nibabel.Cifti2Image | nibabel.GiftiImage, path: Path) -> Path:
    """Write an image atomically; equal images give equal bytes, including compressed ones.

    Raises:
      OSError: If the file cannot be written; names the file, and no part of it is left.
    """
    with atomic_path(path) as part:
        if str(path).endswith(".gz"):
            with _gzip(part) as file:
                file.write(image.to_bytes())
        else:
            image.to_filename(part)
    return Path(path)


def parcel_colors(ids: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K 3"]:
    """Return RGB colours in 0…1 that depend on the id alone, so that a parcel has the same colour in every subject, map and table.

    Hue, lightness and saturation follow a low-discrepancy sequence, so that neighbouring ids differ in all three.
    """
    steps = np.mod(np.outer(np.asarray(ids, np.float64), (0.819173, 0.671044, 0.549700)), 1)
    lightness, chroma, hue = 0.55 + 0.27 * steps[:, 1], 0.08 + 0.09 * steps[:, 2], 2 * np.pi * steps[:, 0]
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], 1)
    linear = ((lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


# From OKLab, which is perceptually uniform, to linear sRGB via cone responses (Ottosson 2020).
_OKLAB_TO_LMS = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def label_table(network: Network) -> dict[int, tuple[str, tuple[float, ...]]]:
    """Name and RGBA of each id, as CIFTI and GIFTI hold them; 0 is `???`, transparent."""
    table: dict[int, tuple[str, tuple[float, ...]]] = {0: ("???", (0.0, 0.0, 0.0, 0.0))}
    for k, color in enumerate(parcel_colors(network.ids)):
        table[int(network.ids[k])] = (network.names[k], (*map(float, color), 1.0))
    return table


class _ProbabilityVolumes:
    """Array-like `[X, Y, Z, K]` whose volumes are computed on access, for use as nibabel image data."""

    is_proxy = True
    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, network: Network):
        grid = _grid(network.space)
        self.shape = (*grid.shape, network.n_parcels)
        location, slot = np.nonzero(network.candidates >= 0)
        parcel = network.candidates[location, slot]
        order = np.argsort(parcel, kind="stable")
        position = np.ravel_multi_index(tuple(grid.ijk.T), grid.shape)
        self._position = position[location[order]]
        self._level = _quantise(network.probabilities)[location, slot][order]
        self._start = np.searchsorted(parcel[order], np.arange(network.n_parcels + 1))

    def levels(self, k: int) -> Int[np.ndarray, "X Y Z"]:
        volume = np.zeros(int(np.prod(self.shape[:3])), np.uint16)
        own = slice(self._start[k], self._start[k + 1])
        volume[self._position[own]] = self._level[own]
        return volume.reshape(self.shape[:3])

    def __getitem__(self, key) -> Float[np.ndarray, " *cut"]:
        from nibabel.fileslice import canonical_slicers

        *space, last = (part for part in canonical_slicers(key, self.shape) if part is not None)
        wanted = np.arange(self.shape[3])[last]
        volumes = [(self.levels(k)[tuple(space)] / np.float32(LEVELS)).astype(np.float32) for k in np.atleast_1d(wanted)]
        return np.stack(volumes, -1) if np.ndim(wanted) else volumes[0]

    def __array__(self, dtype=None, copy=None) -> Float[np.ndarray, "X Y Z K"]:
        whole = np.zeros(self.shape, dtype or self.dtype)
        for k in range(self.shape[3]):
            whole[..., k] = self.levels(k) / np.float32(LEVELS)
        return whole


@contextlib.contextmanager
def _gzip(path):
    # No name and no time in the header: equal content gives equal files.
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
        yield file


def _quantise(probabilities):
    """Round to steps of 1/65535 and preserve the sum of each row: the rounding error is added to its largest value."""
    exact = probabilities.astype(np.float64) * LEVELS
    level = np.rint(exact)
    row = np.arange(len(level))
    level[row, exact.argmax(1)] += np.rint(exact.sum(1)) - level.sum(1)
    return level.clip(0, LEVELS).astype(np.uint16)


def _labels_on(network, labels):
    grid = _grid(network.space)
    small = network.ids.max(initial=0) <= np.iinfo(np.int16).max
    values = np.where(labels >= 0, network.ids[labels], 0).astype(np.int16 if small else np.int32)
    if grid.brain_models is None:
        image = location_image(network, values)
        image.header.set_intent("label")
        return image
    import nibabel

    axes = (nibabel.cifti2.LabelAxis(["pnet"], [label_table(network)]), brain_models(network.space))
    return _cifti(values[None].astype(np.float32), axes, "NIFTI_INTENT_CONNECTIVITY_DENSE_LABELS")


def _grid(space: Space) -> Grid:
    if space.grid is None:
        raise ValueError(
            f"a scan of {len(space)} ROIs cannot be drawn as an image: its parcellation is a table, "
            "`dseg.tsv` (one row per parcel) with `desc-locations_dseg.tsv` (one row per ROI)"
        )
    return space.grid


def brain_models(space: Space) -> Any:
    """CIFTI's axis of the locations; refuses a Space that has none."""
    models: Any = _grid(space).brain_models
    if models is None:
        raise ValueError(f"expected a scan on CIFTI grayordinates, found {space!r}")
    if len(models) != len(space):
        raise ValueError(f"the CIFTI brain models have {len(models)} grayordinates but the scan has {len(space)} locations")
    return models


def _nifti(data, space: Space):
    import nibabel

    affine = _grid(space).affine
    image = nibabel.Nifti1Image(data, affine)
    code = "mni" if space.name.startswith("MNI") else "aligned"
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    # A qform cannot represent shears: it is omitted if it would differ from the sform.
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None)
    image.header.set_xyzt_units("mm")
    return image


def _cifti(data, axes, intent):
    import nibabel

    image = nibabel.Cifti2Image(data, axes)
    image.nifti_header.set_intent(intent)
    return image
