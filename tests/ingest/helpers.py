"""Small synthetic recordings: an asymmetric phantom in MNI space, and the files that go with it."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from pnet_jax.config import CleaningConfig

SHARED = Path(__file__).parents[2].parent / "shared"
DATA = Path(os.environ.get("PNET_SHARED_DATA", SHARED / "data"))  # real data, which no repository holds
SHAPE, T, TR = (11, 13, 9), 130, 2.0
AFFINE = np.array([[8.0, 0, 0, -44], [0, 8, 0, -60], [0, 0, 8, -36], [0, 0, 0, 1]])
STEM = "sub-01_task-rest_space-MNI152NLin6Asym"
BOLD = f"{STEM}_desc-preproc_bold.nii.gz"
PLAIN = CleaningConfig(strategy=(), low_pass=None, high_pass=None, detrend=False)
FILTERED = CleaningConfig(strategy=())


def phantom_mask() -> np.ndarray:
    """A box with one corner cut off and a bump on one side: no symmetry left."""
    mask = np.zeros(SHAPE, bool)
    mask[2:9, 2:11, 2:7] = True
    mask[2:4, 2:4, 2:4] = False
    mask[9, 5, 5] = True
    return mask


def phantom(n_frames: int = T, seed: int = 0) -> np.ndarray:
    """Series with drift, slow and fast parts on a level of 1000, `[X, Y, Z, T]` float32; 0 outside the mask."""
    rng = np.random.default_rng(seed)
    slow = np.cumsum(rng.normal(size=(*SHAPE, n_frames)), axis=3)
    data = 1000 + slow + rng.normal(size=slow.shape) + np.linspace(0, 20, n_frames)
    return (data * phantom_mask()[..., None]).astype(np.float32)


def save_bold(
    folder: Path, name: str = BOLD, data: np.ndarray | None = None, affine=AFFINE, tr: float = TR, units="sec", mask=True
) -> Path:
    """A 4-D file, and its brain mask where the name is BIDS."""
    folder.mkdir(parents=True, exist_ok=True)
    data = phantom() if data is None else data
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", units)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    nib.save(image, folder / name)
    if mask and "_desc-" in name:
        save_mask(folder / (name.split("_desc-")[0] + "_desc-brain_mask.nii.gz"), affine=affine)
    return folder / name


def save_mask(path: Path, values: np.ndarray | None = None, affine=AFFINE) -> Path:
    values = phantom_mask().astype(np.uint8) if values is None else values
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def flip_x(data: np.ndarray, affine=AFFINE) -> tuple[np.ndarray, np.ndarray]:
    """The same brain stored with the first axis running from right to left."""
    flipped = affine.copy()
    flipped[:3, 0] = -affine[:3, 0]
    flipped[:3, 3] = affine[:3, 3] + affine[:3, 0] * (data.shape[0] - 1)
    return np.ascontiguousarray(data[::-1]), flipped


def fmriprep_table(n_frames: int = T, spikes: tuple[int, ...] = (), steady_from: int = 0, seed: int = 3) -> pd.DataFrame:
    """Confounds with fMRIPrep's column names; derivatives have no first row."""
    rng = np.random.default_rng(seed)
    table = {}
    for base in ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter", "global_signal"]:
        series = np.cumsum(rng.normal(size=n_frames)) * 0.01
        derivative = np.append(np.nan, np.diff(series))
        table |= {base: series, f"{base}_derivative1": derivative, f"{base}_power2": series**2, f"{base}_derivative1_power2": derivative**2}
    fd = np.append(np.nan, np.full(n_frames - 1, 0.1))
    fd[list(spikes)] = 2.0
    table |= {"framewise_displacement": fd, "std_dvars": np.append(np.nan, np.ones(n_frames - 1))}
    for i in range(steady_from):
        table[f"non_steady_state_outlier{i:02d}"] = (np.arange(n_frames) == i).astype(float)
    return pd.DataFrame(table)


def save_table(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False, na_rep="n/a")
    return path
