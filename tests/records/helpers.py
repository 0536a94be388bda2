"""Scans, files and stores that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from pnet_jax.config import CleaningConfig, PrepareConfig
from pnet_jax.records import prepare
from pnet_jax.scan import Scan, make_scan
from pnet_jax.space import Space, point_space

CLEANED = {"low_pass": 0.1, "high_pass": 0.009, "detrend": True}
PLAIN = CleaningConfig(strategy=(), min_seconds=0)


def scan_of(space: Space, seed: int, *, frames: int = 230, tr: float = 2.0, subject: str = "01", session: str = "1", **fields) -> Scan:
    """White noise around a level of 1000, cleaned by name."""
    y = 1000 + 10 * np.random.default_rng(seed).normal(size=(len(space), frames))
    given = {"subject": subject, "entities": {"ses": session, "task": "rest"}, "cleaning": CLEANED, "source": f"{seed}.nii"}
    return make_scan(y, space, tr=tr, **(given | fields))


def rois(seed: int = 0, count: int = 60) -> Space:
    return point_space(np.random.default_rng(seed).uniform(-50, 50, (count, 3)), name="MNI152NLin6Asym")


def mixed_scans(toy) -> list[Scan]:
    """Four subjects on voxels, the last with three sessions, one on ROIs at another repetition time, one short."""
    scans = [scan_of(toy.space, 10 * s + n, subject=f"0{s}", session=str(n)) for s in range(4) for n in ((1, 2, 3) if s == 3 else (1, 2))]
    scans.append(scan_of(rois(), 50, frames=400, tr=0.72, subject="roi"))
    scans.append(scan_of(toy.space, 51, frames=60, subject="short"))
    return scans


def write_bold(folder: Path, toy, *, subject: str, session: str = "1", seed: int = 0, frames: int = 120) -> Path:
    """A recording with mask and TR, named as fMRIPrep does."""
    func = folder / f"sub-{subject}" / f"ses-{session}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    stem = func / f"sub-{subject}_ses-{session}_task-rest_space-MNI152NLin6Asym"
    image = nibabel.Nifti1Image(toy.volume(seed, frames), toy.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((8, 8, 8, 2.0))
    file = Path(f"{stem}_desc-preproc_bold.nii.gz")
    nibabel.save(image, file)
    nibabel.save(nibabel.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), f"{stem}_desc-brain_mask.nii.gz")
    return file


def store_files(toy, folder: Path, sources, **options):
    return prepare(sources, folder, PrepareConfig(cleaning=PLAIN, **options))
