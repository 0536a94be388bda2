"""The estimate of the memory that a recording takes, beside what it takes."""

import tracemalloc

import nibabel as nib
import nilearn.signal  # noqa: F401  its import is no part of what is measured
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.config import CleaningConfig
from pnet_jax.ingest import ScanSource, load_scan
from pnet_jax.ingest.memory import peak_bytes

from .helpers import AFFINE, STEM, TR, phantom, save_bold, save_mask

GRID, N_FRAMES = (40, 48, 40), 160
FINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -110], [0, 0, 4, -70], [0, 0, 0, 1]])
SCRUBBED = np.delete(np.arange(N_FRAMES), [40, 41])


def _measured(path, **options):
    tracemalloc.start()
    scan = load_scan(path, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, scan


def _volume(folder, dtype, share=0.9, n_frames=N_FRAMES):
    rng = np.random.default_rng(0)
    data = rng.integers(900, 1100, size=(*GRID, n_frames), dtype=np.int16).astype(dtype)
    axis = np.stack(np.meshgrid(*[np.linspace(-1, 1, s) for s in GRID], indexing="ij"))
    mask = save_mask(folder / f"{STEM}_desc-brain_mask.nii.gz", ((axis**2).sum(0) < share).astype(np.uint8), FINE)
    return save_bold(folder, data=data, affine=FINE, mask=False), mask


@pytest.mark.parametrize(
    ("dtype", "share", "n_frames", "options"),
    [
        (np.int16, 0.9, N_FRAMES, {}),
        (np.int16, 0.9, N_FRAMES, {"halves": False}),
        (np.float64, 0.3, N_FRAMES, {"wide": True}),
        (np.float32, 0.05, 600, {"halves": False}),  # more pairs of frames than values
    ],
)
def test_within_a_factor_of_two_of_what_a_volume_takes(tmp_path, dtype, share, n_frames, options):
    cleaning = CleaningConfig(strategy=(), **options)
    path, mask = _volume(tmp_path, dtype, share, n_frames)
    estimate = peak_bytes(ScanSource(path, mask), cleaning)
    measured, _ = _measured(path, mask=mask, cleaning=cleaning, sample_mask=SCRUBBED if n_frames == N_FRAMES else None)
    assert measured / 2 < estimate < 2 * measured
    assert peak_bytes(ScanSource(path), cleaning) == estimate  # the mask beside the file


def test_the_series_are_not_read(tmp_path):
    path, mask = _volume(tmp_path, np.int16)
    estimate = peak_bytes(ScanSource(path, mask))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert peak_bytes(ScanSource(path, mask)) == estimate


def test_a_volume_without_a_mask(tmp_path):
    path = save_bold(tmp_path, "patient_7.nii.gz")
    whole = peak_bytes(ScanSource(path, save_mask(tmp_path / "all.nii.gz", np.ones((11, 13, 9), np.uint8))))
    assert whole / 2 < peak_bytes(ScanSource(path)) < whole


@pytest.mark.parametrize("halves", [True, False])
def test_within_a_factor_of_two_of_what_a_dense_series_takes(tmp_path, halves):
    inside = np.zeros(GRID, bool)
    inside[4:36, 4:44, 4:36] = True
    models = axes.BrainModelAxis.from_mask(inside, "CIFTI_STRUCTURE_THALAMUS_LEFT", FINE)
    data = np.random.default_rng(0).normal(size=(N_FRAMES, len(models))).astype(np.float32)
    path = tmp_path / "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii"
    nib.save(nib.Cifti2Image(data, (axes.SeriesAxis(0, TR, N_FRAMES), models)), path)
    del data
    cleaning = CleaningConfig(strategy=(), halves=halves)
    measured, scan = _measured(path, cleaning=cleaning)
    assert measured / 2 < peak_bytes(ScanSource(path), cleaning) < 2 * measured
    assert len(scan.space) == inside.sum()


@pytest.mark.parametrize("name", ["sub-01_timeseries.tsv", "sub-01_timeseries.csv", "sub-01_timeseries.txt", "sub-01_timeseries.npy"])
def test_within_a_factor_of_two_of_what_a_table_takes(tmp_path, name):
    values = np.cumsum(np.random.default_rng(0).normal(size=(N_FRAMES, 1000)), axis=0)
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        separator = {".tsv": "\t", ".csv": ","}.get(path.suffix, " ")
        np.savetxt(path, values, "%.5f", separator, header=separator.join(f"r{i}" for i in range(1000)), comments="")
    atlas = np.random.default_rng(1).normal(size=(1000, 3)) * 30
    measured, _ = _measured(path, tr=TR, atlas=atlas, cleaning=CleaningConfig(strategy=()))
    assert measured / 2 < peak_bytes(ScanSource(path)) < 2 * measured


def test_what_cannot_be_read_has_no_estimate(tmp_path):
    path = save_bold(tmp_path)
    assert peak_bytes(ScanSource(path)) is not None
    assert peak_bytes(ScanSource(tmp_path)) is None
    assert peak_bytes(ScanSource(tmp_path / "missing.nii.gz")) is None
    assert peak_bytes(ScanSource(path, tmp_path / "missing_mask.nii.gz")) is None
    assert peak_bytes(ScanSource(save_bold(tmp_path / "flat", data=phantom()[..., 0]))) is None
    for name in ("x_bold.nii.gz", "x.dtseries.nii", "x.npy", "x.tsv", "x.mat"):
        (tmp_path / name).write_bytes(b"\n\n")
        assert peak_bytes(ScanSource(tmp_path / name)) is None
    nib.save(nib.Nifti2Image(np.zeros((2, 2, 2, 9), np.float32), AFFINE), tmp_path / "y.dtseries.nii")
    assert peak_bytes(ScanSource(tmp_path / "y.dtseries.nii")) is None
    np.save(tmp_path / "one.npy", np.arange(9.0))
    assert peak_bytes(ScanSource(tmp_path / "one.npy")) is None
