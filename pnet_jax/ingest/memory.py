"""Memory needed to load a recording, estimated from headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import gifti, naming, nifti, tables, voxels
from pnet_jax.ingest.cleaning import BLOCK
from pnet_jax.ingest.source import DENSE, GIFTI, ScanSource

PER_LOCATION = 250  # bytes of the Space: coordinates, 26 neighbours, and the names that a CIFTI axis assigns to each location
PER_PAIR = 44  # bytes per pair of frames while the operator is computed: five float64 matrices and one float32 matrix
PER_VALUE = 28  # bytes per value of a block during cleaning
PER_FIELD = 70  # bytes per field of a text table while pandas reads and checks it
UNMASKED = 0.5  # assumed share of the grid within a computed mask; for whole heads it is 0.2 to 0.6


class Size(NamedTuple):
    """Numbers of locations and frames, and the bytes needed for opening and reading in addition to the series."""

    locations: int
    frames: int
    reading: int


def peak_bytes(source: ScanSource, cleaning: CleaningConfig = CleaningConfig()) -> int | None:  # noqa: B008  frozen
    """Estimate the peak memory of `load_scan` for a recording in bytes, including the Scan that it returns.

    Only headers, file sizes and, for volumes, the brain mask are read, because the mask determines how many voxels are kept. For V
    locations and T frames the peak is about 4 V T bytes, plus 4 V T with `cleaning.halves` and 2 V T with `cleaning.wide`. The imported
    libraries (about 150 MiB) are not included. All recorded frames are counted; scrubbing leaves fewer.

    Args:
      source: Recording and mask; for a volume without a mask, half of the grid is assumed to be brain.
      cleaning: Cleaning settings, which determine whether halves and unfiltered signals are kept.

    Returns:
      Bytes, within a factor of 2 for recordings of 10 MiB or more; None if the files cannot be read, for which `load_scan` raises an error.

    Example:
      >>> from pathlib import Path
      >>> peak_bytes(ScanSource(Path("missing_bold.nii.gz"))) is None
      True
    """
    try:
        size = size_of(source)
    except (InputError, OSError):
        return None
    n, t = size.locations, size.frames
    series, pairs, block = 4 * n * t, PER_PAIR * t * t, PER_VALUE * min(n, BLOCK) * t
    results = series * cleaning.halves + series // 2 * cleaning.wide
    return PER_LOCATION * n + series + max(size.reading, pairs, pairs // 4 + results + block)


def size_of(source: ScanSource) -> Size:
    """Read the size of a recording from headers.

    Raises:
      InputError, OSError: If the recording cannot be read.
    """
    path, where = source.bold, str(source.bold)
    extension = naming.split_name(path)[1]
    if extension == ".npy":
        values = tables.map_npy(path, where)
        if values.ndim != 2:
            raise InputError(f"{where}: expected a matrix of numbers, found shape {values.shape}")
        return Size(values.shape[1], values.shape[0], (values.itemsize + 8) * values.size)
    if extension in naming.TABLES:
        return _of_text(path, where)
    if extension in GIFTI:
        return _of_gifti(path, where)
    if extension in (*DENSE, ".ptseries.nii"):
        return _of_cifti(path, where)
    return _of_volume(source, where)


def _of_text(path: Path, where: str) -> Size:
    """Estimate the number of rows from the file size and the length of the last of the first hundred lines."""
    line = [line for line in tables.first_lines(path, where) if line.strip()][-1:]
    if not line:
        raise InputError(f"{where}: expected a table, found only empty lines")
    columns = len(re.split(r"[\t,;]|\s+", line[0].strip()))
    rows = path.stat().st_size // (len(line[0].encode()) + 1) + 1
    return Size(columns, rows, PER_FIELD * columns * rows)


def _of_cifti(path: Path, where: str) -> Size:
    """Read the sizes from the NIfTI-2 header, without parsing the XML extension that lists every location."""
    image = nifti.open_image(path, where, [], nib.Nifti2Image)
    shape = tuple(image.shape)
    if len(shape) != 6:
        raise InputError(f"{where}: expected a CIFTI file with two axes, found shape {shape}")
    return Size(shape[5], shape[4], 2 * BLOCK * shape[4] * np.dtype(image.get_data_dtype()).itemsize)


def _of_gifti(path: Path, where: str) -> Size:
    """Read the sizes from the first lines of both files; nibabel decodes whole files, and both are in memory at once."""
    sizes = []
    for file in gifti.both(path, where).values():
        with file.open("rb") as opened:
            text = opened.read(1 << 16)
        found = [re.search(rb'%s="(\d+)"' % name, text) for name in (b"NumberOfDataArrays", b"Dim0")]
        if found[0] is None or found[1] is None:
            raise InputError(f"{where}: {file}: expected a GIFTI file of a series")
        second = re.search(rb'Dim1="(\d+)"', text)
        sizes.append((int(found[1][1]), int(found[0][1]) if second is None else int(second[1])))
    n, t = sum(size[0] for size in sizes), sizes[0][1]
    return Size(n, t, 8 * n * t)


def _of_volume(source: ScanSource, where: str) -> Size:
    image = nifti.with_time_fourth(nifti.open_image(source.bold, where, []), where)
    nifti.check_bold(image, where)
    grid = int(np.prod(image.shape[:3]))
    mask = source.mask or (naming.mask_beside(source.bold) if naming.is_bids(source.bold) else None)
    inside = int(UNMASKED * grid) if mask is None else int(nifti.load_mask(mask, image, source.bold, where, []).sum())
    # Two copies as stored, for reading and masking, and the voxels inside the mask as float64.
    volume = 2 * grid * np.dtype(image.get_data_dtype()).itemsize + 16 * inside
    return Size(inside, image.shape[3], voxels.frames_at_once(image) * volume)
