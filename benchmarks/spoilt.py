"""A small synthetic participant with the file names of fMRIPrep, and the ways in which inputs are made invalid for `reliability.py`."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.memory import peak_bytes

SHAPE, FRAMES, TR = (22, 27, 21), 120, 2.0
AFFINE = np.array([[8.0, 0, 0, -84], [0, 8, 0, -120], [0, 0, 8, -68], [0, 0, 0, 1]])
SPACE = "space-MNI152NLin6Asym"
FINER = 10  # voxels of a large recording per voxel of a small one, along each axis


def write_participant(folder: Path, subject: str, seed: int) -> Path:
    """Write one participant's recording, mask, confounds and sidecar; return the recording."""
    rng = np.random.default_rng(seed)
    func = folder / f"sub-{subject}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    xyz = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    mask = (np.square((xyz - [0, -16, 8]) / [68, 88, 66]).sum(-1) < 1) & (np.abs(xyz[..., 0]) > 2)
    centres = xyz[mask][rng.choice(mask.sum(), 40, replace=False)]
    near = np.exp(-np.square(xyz[mask][:, None] - centres).sum(-1) / (2 * 14**2))
    latent = np.cumsum(rng.normal(size=(40, FRAMES)), axis=1)
    latent -= latent.mean(1, keepdims=True)
    y = 1000 + 4 * near @ latent + 3 * rng.normal(size=(mask.sum(), FRAMES))
    data = np.zeros((*SHAPE, FRAMES), np.int16)
    data[mask] = y.astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((8, 8, 8, TR))
    image.set_sform(AFFINE, 4)
    bold = func / f"sub-{subject}_task-rest_{SPACE}_desc-preproc_bold.nii.gz"
    nib.save(image, bold)
    brain = nib.Nifti1Image(mask.astype(np.uint8), AFFINE)
    brain.set_sform(AFFINE, 4)
    nib.save(brain, func / f"sub-{subject}_task-rest_{SPACE}_desc-brain_mask.nii.gz")
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = pd.DataFrame(np.cumsum(rng.normal(size=(FRAMES, 6)), axis=0) * 0.01, columns=names)
    for name in ("csf", "white_matter"):
        table[name] = rng.normal(size=FRAMES)
    table["framewise_displacement"] = 0.1
    table.to_csv(func / f"sub-{subject}_task-rest_desc-confounds_timeseries.tsv", sep="\t", index=False)
    bold.with_name(bold.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": TR}))
    return bold


def write_large(folder: Path, subject: str, needed: int) -> int:
    """Write a recording that needs at least this number of bytes of memory; the file has a header and holes.

    Returns:
      Estimated memory in bytes.

    Raises:
      OSError: If the file system does not support files of this size.
    """
    bold = write_participant(folder, subject, 0)
    mask = nib.load(next(bold.parent.glob("*mask.nii.gz")))
    fine = np.kron(np.asanyarray(mask.dataobj), np.ones((FINER,) * 3, np.uint8))
    affine = AFFINE @ np.diag([1 / FINER] * 3 + [1])
    nib.save(nib.Nifti1Image(fine, affine), mask.get_filename())
    large, frames = bold.with_name(bold.name.removesuffix(".gz")), FRAMES
    bold.unlink()
    for _ in range(8):  # memory grows faster than the number of frames
        header = nib.Nifti1Header(endianness="<")
        header.set_data_dtype(np.int16)
        header.set_data_shape((*fine.shape, frames))
        header.set_zooms((8 / FINER,) * 3 + (TR,))
        header.set_xyzt_units("mm", "sec")
        header.set_sform(affine, 4)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with open(large, "wb") as file:
            file.write(header.binaryblock + bytes(4))
            file.truncate(352 + 2 * fine.size * frames)
        estimate = peak_bytes(ScanSource(large, Path(mask.get_filename())))
        assert estimate is not None
        if estimate >= needed:
            break
        frames = min(int(1.02 * frames * needed / estimate) + 1, 32767)
    table = next(bold.parent.glob("*confounds*.tsv"))
    rows = pd.read_csv(table, sep="\t")
    rows.iloc[np.arange(frames) % FRAMES].to_csv(table, sep="\t", index=False)
    return estimate


def other_confounds(func: Path) -> None:
    file = next(func.glob("*confounds*.tsv"))
    table = pd.read_csv(file, sep="\t")
    table["csf"] = table["csf"][::-1].to_numpy()
    table.to_csv(file, sep="\t", index=False)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def _patched(offset: int, kind: str, value: float) -> Callable[[Path], object]:
    """Overwrite a header field of a recording."""

    def spoil(bold: Path) -> None:
        raw = bytearray(gzip.decompress(bold.read_bytes()))
        struct.pack_into(f"<{kind}", raw, offset, value)
        bold.write_bytes(gzip.compress(bytes(raw), 1))

    return spoil


def _in_confounds(old: str, new: str, count: int = 1) -> Callable[[Path], object]:
    def spoil(bold: Path) -> None:
        file = next(bold.parent.glob("*confounds*.tsv"))
        head, _, rest = file.read_text().partition("\n")
        file.write_text(head + "\n" + re.sub(old, new, rest, count=count))

    return spoil


def _voxels(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def spoil(bold: Path) -> None:
        image = nib.load(bold)
        mask = np.asanyarray(nib.load(next(bold.parent.glob("*mask.nii.gz"))).dataobj) > 0
        data = change(np.array(image.dataobj, np.float32), mask)
        nib.save(nib.Nifti1Image(data, image.affine, nib.Nifti1Header.from_header(image.header)), bold)

    return spoil


def _one_signal(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    data[mask] = 1000 + np.cumsum(np.random.default_rng(0).normal(size=data.shape[3]))
    return data


def _one_frame(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.repeat(data[..., :1], data.shape[3], axis=3)


def _no_frames(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    data[..., 40:50] = np.nan
    return data


def _spikes(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    data[..., 30] *= 100
    return data


# Changes to one of three participants, and whether its scan must still be done ("ok"), must fail, or may do either.
BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a word in the confounds": ("failed", _in_confounds(r"^[^\t]+", "#REF!")),
    "decimal commas in the confounds": ("failed", _in_confounds(r"\.", ",", 0)),
    "a field of 200 kB in the confounds": ("failed", _in_confounds(r"^[^\t]+", "t" * 200_000)),
    "csf not available": ("ok", lambda bold: _column(bold, "csf", "n/a")),
    "a sidecar nested 100,000 deep": ("failed", lambda bold: _json(bold).write_text("[" * 100_000)),
    "a sidecar with a byte order mark": ("ok", lambda bold: _json(bold).write_bytes(b"\xef\xbb\xbf" + _json(bold).read_bytes())),
    "a sidecar that is a folder": ("either", lambda bold: (_json(bold).unlink(), _json(bold).mkdir())),
    "unknown units in the header": ("either", _patched(123, "B", 64)),
    "data that begin at infinity": ("failed", _patched(108, "f", float("inf"))),
    "an axis of length 0": ("failed", _patched(42, "h", 0)),
    "a header of a trillion voxels": ("failed", _patched(46, "h", 32767)),
    "an empty file": ("failed", lambda bold: bold.write_bytes(b"")),
    "half a file": ("failed", lambda bold: bold.write_bytes(bold.read_bytes()[: bold.stat().st_size // 2])),
    "a flipped byte in the voxels": ("failed", flip),
    "a folder called like a recording": ("failed", lambda bold: (bold.unlink(), bold.mkdir())),
    "a dangling link": ("failed", lambda bold: (bold.unlink(), bold.symlink_to("/nowhere/x.nii.gz"))),
    "a link to itself": ("failed", lambda bold: (bold.unlink(), bold.symlink_to(bold))),
    "a pipe called like a recording": ("failed", lambda bold: (bold.unlink(), os.mkfifo(bold))),
    "one frame, 120 times": ("failed", _voxels(_one_frame)),
    "one signal everywhere": ("failed", _voxels(_one_signal)),
    "ten frames of NaN": ("ok", _voxels(_no_frames)),
    "one frame 100 times as bright": ("ok", _voxels(_spikes)),
    "no affine": ("failed", lambda bold: _no_affine(bold)),
}


def _json(bold: Path) -> Path:
    return bold.with_name(bold.name.replace(".nii.gz", ".json"))


def _column(bold: Path, name: str, value: str) -> None:
    file = next(bold.parent.glob("*confounds*.tsv"))
    table = pd.read_csv(file, sep="\t")
    table[name] = value
    table.to_csv(file, sep="\t", index=False)


def _no_affine(bold: Path) -> None:
    for file in (bold, next(bold.parent.glob("*mask.nii.gz"))):
        image = nib.load(file)
        plain = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
        plain.set_sform(None, 0)
        plain.set_qform(None, 0)
        nib.save(plain, file)
