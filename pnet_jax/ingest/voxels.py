"""Reading of voxels in file order, a few frames at a time, keeping only the voxels in the mask."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling

from pnet_jax.ingest.reading import attempt

try:
    from isal.igzip import open as open_gzip
except ImportError:  # without it, reading is slower; values and errors are the same
    from gzip import open as open_gzip

ZIPPED = (".gz", ".mgz")
BUFFER = 1 << 24  # bytes of whole volumes in memory at a time, unless a single volume is larger
MOST_FRAMES = 16  # 16 float32 values fill a cache line, so that it is written without being read first

Image = nib.spatialimages.SpatialImage


class _Stored(NamedTuple):
    """Voxels as stored in the file, to be sliced in file order, and the scaling that turns them into values."""

    data: Any
    slope: float = 1.0
    inter: float = 0.0


def read_series(image: Image, ijk: Int[np.ndarray, "V 3"], where: str) -> Float[np.ndarray, "V T"]:
    """Return the series of the given voxels, float32.

    The 4-D array is never held in memory: only the result, 16 MiB of volumes, and 16 frames of the given voxels.

    Raises:
      InputError: If the file is truncated or corrupt.
    """
    y = np.empty((len(ijk), image.shape[3]), np.float32)
    flat = np.ravel_multi_index(tuple(ijk.T), image.shape[:3], order="F")
    for frames, values in _frames(image, flat, where):
        with np.errstate(over="ignore"):  # values beyond float32 become inf and are counted as not finite
            y[:, frames] = values.T
    return y


def mean_volume(image: Image, where: str) -> Float[np.ndarray, "X Y Z"]:
    """Return the mean over time of every voxel, float32; NaN and infinite values count as 0.

    Raises:
      InputError: If the file is truncated or corrupt.
    """
    shape = tuple(image.shape)
    total = np.zeros(int(np.prod(shape[:3])))
    for _, values in _frames(image, None, where):
        total += np.nan_to_num(values, posinf=0, neginf=0).sum(0, dtype=np.float64)
    return (total / shape[3]).astype(np.float32).reshape(shape[:3], order="F")


def frames_at_once(image: Image) -> int:
    """Return how many volumes of a 4-D image are read at a time."""
    volume = int(np.prod(image.shape[:3])) * np.dtype(image.get_data_dtype()).itemsize
    return min(image.shape[3], int(np.clip(BUFFER // volume, 1, MOST_FRAMES)))


def check_stream(image: Image, where: str) -> None:
    """Verify the checksum at the end of a gzip file; for small files whose voxels are read at once.

    Raises:
      InputError: If the checksum does not match the content.
    """
    with _stored(image, "its end", where):
        pass


def _frames(image: Image, flat: Int[np.ndarray, " V"] | None, where: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of frames in file order: values `[frames, V]` of the voxels at these positions of a volume, or of all voxels."""
    n, voxels, step = image.shape[3], int(np.prod(image.shape[:3])), frames_at_once(image)
    with _stored(image, f"frames 0 to {n - 1}", where) as stored:

        def read() -> np.ndarray:
            volumes = np.asanyarray(stored.data[..., frames]).reshape(voxels, -1, order="F").T
            values = volumes if flat is None else np.take(volumes, flat, axis=1)
            return apply_read_scaling(values, stored.slope, stored.inter)  # after masking, which keeps about a quarter of the voxels

        for start in range(0, n, step):
            frames = slice(start, min(start + step, n))
            yield frames, attempt(read, f"frames {frames.start} to {frames.stop - 1}", where)


@contextlib.contextmanager
def _stored(image: Image, what: str, where: str) -> Iterator[_Stored]:
    """Open the voxels of an image; on exit, verify the checksum of a gzip file.

    nibabel stops reading after the last voxel, before the checksum, so damage that leaves the length intact would go unnoticed.
    """
    data = image.dataobj
    file = getattr(data, "file_like", None)
    if type(data) is not ArrayProxy or not isinstance(file, str | Path):  # in memory, or with format-specific scaling (AFNI, PAR/REC)
        yield _Stored(data)
        return
    zipped = str(file).lower().endswith(ZIPPED)
    with open_gzip(file) if zipped else ImageOpener(str(file)) as stream:
        raw = ArrayProxy(stream, (data.shape, data.dtype, data.offset, 1.0, 0.0), mmap=False, order=data.order)
        yield _Stored(raw, data.slope, data.inter)
        if zipped:
            attempt(lambda: collections.deque(iter(lambda: stream.read(1 << 20), b""), maxlen=0), what, where)
