"""Memory that loading a recording will take, from headers alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import naming, nifti, tables, voxels
from pnet_jax.ingest.cleaning import BLOCK
from pnet_jax.ingest.source import DENSE, ScanSource

PER_LOCATION = 250  # bytes of the Space: coordinates, 26 neighbours, and the names that a CIFTI axis gives each location
PER_PAIR = 44  # bytes for each pair of frames while nilearn makes the operator: five matrices of float64, one of float32
PER_VALUE = 28  # bytes for each value of a block that is cleaned
PER_FIELD = 70  # bytes for each field of a text table while pandas reads and checks it
UNMASKED = 0.5  # share of the grid that a computed mask is taken to cover; masks of whole heads cover 0.2 to 0.6


class _Size(NamedTuple):
    """Locations, frames, and the bytes that opening and reading take beside the series."""

    locations: int
    frames: int
    reading: int


def peak_bytes(source: ScanSource, cleaning: CleaningConfig = CleaningConfig()) -> int | None:  # noqa: B008  frozen
    """Estimate the bytes that `load_scan` takes at its peak for a recording, the Scan that it returns included.

    Headers and sizes of files are read, and of a volume the brain mask, which alone says how many voxels are kept; the series are not.
    For V locations and T frames the peak is about 4 V T bytes, twice that with `cleaning.halves`, and half as much again with
    `cleaning.wide`. What the imported libraries take (about 150 MiB) is not counted. Frames are counted as recorded: scrubbing leaves
    fewer.

    Args:
      source: recording and mask; without a mask, of a volume, half of its grid is taken to be brain.
      cleaning: whether halves and unfiltered signals are kept.

    Returns:
      Bytes, within a factor of 2 for recordings of 10 MiB or more; None if the files cannot be read, for which `load_scan` says why.

    Example:
      >>> from pathlib import Path
      >>> peak_bytes(ScanSource(Path("missing_bold.nii.gz"))) is None
      True
    """
    try:
        size = _size_of(source)
    except (InputError, OSError):
        return None
    n, t = size.locations, size.frames
    series, pairs, block = 4 * n * t, PER_PAIR * t * t, PER_VALUE * min(n, BLOCK) * t
    results = series * cleaning.halves + series // 2 * cleaning.wide
    return PER_LOCATION * n + series + max(size.reading, pairs, pairs // 4 + results + block)


def _size_of(source: ScanSource) -> _Size:
    path, where = source.bold, str(source.bold)
    extension = naming.split_name(path)[1]
    if extension == ".npy":
        values = tables.map_npy(path, where)
        if values.ndim != 2:
            raise InputError(f"{where}: expected a matrix of numbers, found shape {values.shape}")
        return _Size(values.shape[1], values.shape[0], (values.itemsize + 8) * values.size)
    if extension in naming.TABLES:
        return _of_text(path, where)
    if extension in (*DENSE, ".ptseries.nii"):
        return _of_cifti(path, where)
    return _of_volume(source, where)


def _of_text(path: Path, where: str) -> _Size:
    """As many rows as lines like the last of the first hundred fit into the file."""
    line = [line for line in tables.first_lines(path, where) if line.strip()][-1:]
    if not line:
        raise InputError(f"{where}: expected a table, found only empty lines")
    columns = len(re.split(r"[\t,;]|\s+", line[0].strip()))
    rows = path.stat().st_size // (len(line[0].encode()) + 1) + 1
    return _Size(columns, rows, PER_FIELD * columns * rows)


def _of_cifti(path: Path, where: str) -> _Size:
    """From the NIfTI-2 header: the XML behind it, which names every location, is not parsed."""
    image = nifti.open_image(path, where, [], nib.Nifti2Image)
    shape = tuple(image.shape)
    if len(shape) != 6:
        raise InputError(f"{where}: expected a CIFTI file with two axes, found shape {shape}")
    return _Size(shape[5], shape[4], 2 * BLOCK * shape[4] * np.dtype(image.get_data_dtype()).itemsize)


def _of_volume(source: ScanSource, where: str) -> _Size:
    image = nifti.with_time_fourth(nifti.open_image(source.bold, where, []), where)
    nifti.check_bold(image, where)
    grid = int(np.prod(image.shape[:3]))
    mask = source.mask or (naming.mask_beside(source.bold) if naming.is_bids(source.bold) else None)
    inside = int(UNMASKED * grid) if mask is None else int(nifti.load_mask(mask, image, source.bold, where, []).sum())
    # As the file stores them, twice: while they are read and while the mask is taken; of the voxels inside also as float64.
    volume = 2 * grid * np.dtype(image.get_data_dtype()).itemsize + 16 * inside
    return _Size(inside, image.shape[3], voxels.frames_at_once(image) * volume)
