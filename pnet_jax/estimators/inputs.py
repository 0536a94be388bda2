"""Inputs of estimators: recordings to load, or signals of existing parcels (as a Cohort of one scan each)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from pnet_jax.cohort import Cohort, make_cohort
from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import ScanSource, find_scans, load_scan
from pnet_jax.scan import Scan

KINDS = (
    "a file, a nibabel image, a Scan, a ScanSource, a folder of BIDS derivatives or a list of these; region series as a list of arrays "
    "[frames, regions], an array [scans, frames, regions] or a Cohort"
)


class Inputs(NamedTuple):
    """Recordings, in order.

    Attributes:
      items: Paths, images, Scans and ScanSources, or Cohorts of one scan each.
      single: Whether a single recording was given, rather than a list.
    """

    items: list[Any]
    single: bool

    @property
    def are_series(self) -> bool:
        """Return whether the items are signals of existing parcels.

        Raises:
          InputError: If only some of them are.
        """
        kinds = {isinstance(item, Cohort) for item in self.items}
        if len(kinds) > 1:
            raise InputError("expected images alone or region series alone, found both in one list")
        return kinds == {True}


def inputs_of(imgs: Any, tr: float | None = None) -> Inputs:
    """Return the recordings of an input.

    Args:
      imgs: Input of one of the types in `KINDS`.
      tr: Repetition time of region series in seconds, or None if unknown.

    Raises:
      InputError: If the input is of another type or empty.
      FileNotFoundError: If a folder or file does not exist.
    """
    items: list[Any]
    if isinstance(imgs, Cohort):
        items, single = [imgs[at] for at in range(len(imgs))], False
    elif isinstance(imgs, str | os.PathLike):
        items = [*find_scans(Path(imgs))]
        single = len(items) == 1 and items[0].bold == Path(imgs)
    elif isinstance(imgs, Scan | ScanSource | nibabel.filebasedimages.FileBasedImage):
        items, single = [imgs], True
    else:
        items, single = [_item(one, tr) for one in _listed(imgs)], False
    if not items:
        raise InputError(f"expected at least one recording, found none: give {KINDS}")
    return Inputs(items, single)


def _listed(imgs: Any) -> list[Any]:
    """Return the elements of a list or array of recordings."""
    ndim = getattr(imgs, "ndim", None)
    if ndim is None and isinstance(imgs, Iterable):
        return list(imgs)
    if ndim == 3 or (ndim == 1 and imgs.dtype.kind not in "biufc"):
        return list(imgs)
    shape = f"shape {tuple(imgs.shape)}" if ndim is not None else type(imgs).__name__
    raise InputError(f"expected recordings, found {shape}. Reshape your data: give {KINDS}")


def _item(one: Any, tr: float | None) -> Any:
    """Return an element of a list unchanged, or region series as a Cohort of one scan named by a digest of its content."""
    if isinstance(one, Cohort) and len(one) != 1:
        raise InputError(f"expected Cohorts of one scan each in a list, found one of {len(one)} scans: give the Cohort by itself")
    if isinstance(one, Cohort | str | os.PathLike | Scan | ScanSource | nibabel.filebasedimages.FileBasedImage):
        return one
    series = np.asarray(one)
    if series.ndim != 2 or series.dtype.kind not in "biuf":
        raise InputError(f"expected a recording, found {type(one).__name__} of shape {series.shape}: give {KINDS}")
    series = np.asarray(series, np.float32)
    return make_cohort([_digest(series)], signals=[series.T], tr=tr)


def per_recording(name: str, given: Any, inputs: Inputs) -> list[Any]:
    """Return one value of `confounds` or `sample_mask` for each recording.

    Raises:
      InputError: If the number of values is not the number of recordings.
    """
    count = len(inputs.items)
    if given is None or inputs.single:
        return [given] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        found = f"{len(given)}" if isinstance(given, list | tuple) else f"one {type(given).__name__}"
        raise InputError(f"{name}: expected a list with one for each of the {count} recordings, found {found}")
    return list(given)


def load(item: Any, confounds: Any, sample_mask: Any, *, mask: Any, tr: float | None, cleaning: CleaningConfig) -> Scan:
    """Load and clean a recording; without a name, it is named by its content, so that results do not depend on its position.

    Raises:
      InputError: If it cannot be used, or confounds are given for a Scan, which is already cleaned.
    """
    if isinstance(item, Scan):
        if confounds is not None or sample_mask is not None:
            raise InputError(f"{item.label}: confounds and sample_mask are for recordings to clean, and a Scan has been cleaned: omit them")
        scan = item
    elif isinstance(item, ScanSource):
        if item.problem:
            raise InputError(f"{item.label}: {item.problem}")
        scan = load_scan(
            item.bold,
            mask=item.mask if mask is None else mask,
            confounds=item.confounds if confounds is None else confounds,
            tr=tr,
            sample_mask=sample_mask,
            entities={"sub": item.subject, **item.entities},
            cleaning=cleaning,
        )
    else:
        scan = load_scan(item, mask=mask, confounds=confounds, tr=tr, sample_mask=sample_mask, cleaning=cleaning)
    return dataclasses.replace(scan, subject=_digest(scan.y)) if scan.subject == "unknown" else scan


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]
