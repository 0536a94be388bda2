"""Reading of result files as arrays, tables and mappings; every error names the file."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pnet_jax.ingest.nifti import attempt, open_image
from pnet_jax.outputs.tables import read_rows

ENDINGS = ("_desc-locations_dseg.tsv", "_dseg.tsv", "_dseg.json", "_dseg.nii.gz", "_dseg.dlabel.nii")


def read_volume(file: Path) -> tuple[np.ndarray, Float[np.ndarray, "4 4"]]:
    """Read the voxels and affine of a NIfTI image; an error names the file."""
    image: Any = open_image(file, str(file))
    return np.asarray(attempt(partial(image.dataobj.__getitem__, ...), "its voxels", str(file))), image.affine


def read_numbers(image: Any, shape: tuple[int, ...], file: Path) -> np.ndarray:
    """Read the values of a CIFTI image with a known shape, float32; an error names the file."""
    expect_shape(image.shape, shape, file)
    return np.asarray(attempt(partial(image.dataobj.__getitem__, ...), "its maps", str(file)), np.float32)


def expect_shape(found: tuple[int, ...], shape: tuple[int, ...], file: Path) -> None:
    """Refuse any other shape; the error names the file."""
    if tuple(found) != tuple(shape):
        raise ValueError(f"{file}: expected the shape {tuple(shape)}, found {tuple(found)}")


def there(file: Path) -> Path:
    """Return the path of a file that must exist."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: file not found, but required to read the result")
    return file


def read_table(file: Path, *columns: str) -> list[dict[str, str]]:
    """Read the rows of a table as text; it must have rows and these columns. An error names the file."""
    rows = read_rows(there(file))
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise ValueError(f"{file}: lacks the columns {', '.join(missing)}, or has no rows")
    return rows


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that must have these keys; an error names the file."""
    try:
        found = json.loads(there(file).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error})") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{file}: lacks {', '.join(missing)}: damaged, or written by an older version; construct the scan again")
    return found


def stem_of(result: str | os.PathLike[str]) -> Path:
    """Return the part of the file names that all files of a result share."""
    path = Path(result)
    if path.is_dir():
        raise ValueError(f"{path}: expected one result's …_dseg.tsv, found a folder")
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
    return path.with_name(path.name.removesuffix(ending))
