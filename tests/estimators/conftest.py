"""Scans of the toy brain, and settings under which their construction compiles in seconds."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

FAST = {"n_parcels": None, "labels": "personalised", "kappa": 20.0, "beta": 0.2}


@pytest.fixture(scope="session")
def fast(toy_model):
    """Parameters of an estimator that constructs with the toy's model under fixed κ and β."""
    return FAST | {"model": toy_model}


@pytest.fixture(scope="session")
def scans(toy):
    """One scan of each of eight participants."""
    return [toy.scan(seed, subject=f"{seed:02d}") for seed in range(8)]


@pytest.fixture(scope="session")
def image_of(toy):
    """4-D image of a recording in memory, by its seed."""

    def make(seed: int, frames: int = 160):
        return placed(toy.volume(seed, frames), toy.affine, tr=2.0)

    return make


@pytest.fixture(scope="session")
def brain(toy):
    """The mask of the toy brain as an image."""
    return placed(toy.mask.astype(np.uint8), toy.affine)


def placed(values: np.ndarray, affine: np.ndarray, tr: float | None = None) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, "mni")
    if tr is not None:
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    return image
