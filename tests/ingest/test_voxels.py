"""Voxels: the values that nibabel gives, and damage that either gzip program notices."""

import bz2
import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from pnet_jax.errors import InputError
from pnet_jax.ingest import load_scan, voxels
from pnet_jax.ingest.nifti import open_image, with_time_fourth

from .helpers import AFFINE, BOLD, PLAIN, phantom, phantom_mask, save_bold

IJK = np.argwhere(phantom_mask())


def _save(path, dtype, slope=1.0, inter=0.0, shape=None):
    stored = (phantom(40) / 10).astype(dtype)
    image = nib.Nifti1Image(stored if shape is None else stored.reshape(shape), AFFINE)
    image.header.set_data_dtype(stored.dtype)
    image.header.set_slope_inter(slope, inter)
    content = image.to_bytes()
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix)
    path.write_bytes(packed(content) if packed else content)
    return path


@pytest.fixture(params=["isal", "standard library"])
def program(request, monkeypatch):
    """Both programs that may read gzip files."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(voxels, "open_gzip", gzip.open)
    return request.param


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nii.bz2"])
@pytest.mark.parametrize(("dtype", "slope", "inter"), [("<i2", 1, 0), (">i2", 0.37, -12.5), ("<f8", 1, 0), ("u1", 2.5, 0), ("<f4", 1, 3)])
def test_values_are_those_that_nibabel_gives(tmp_path, monkeypatch, program, name, dtype, slope, inter):
    monkeypatch.setattr(voxels, "BUFFER", 7 * 11 * 13 * 9 * np.dtype(dtype).itemsize)  # pieces of 7 frames, the last of 5
    image = open_image(_save(tmp_path / name, dtype, slope, inter), "x")
    whole = np.asanyarray(nib.load(tmp_path / name).dataobj)
    np.testing.assert_array_equal(voxels.read_series(image, IJK, "x"), whole[tuple(IJK.T)].astype(np.float32))
    np.testing.assert_allclose(voxels.mean_volume(image, "x"), whole.mean(3), rtol=1e-6)


def test_images_in_memory_and_with_a_dimension_of_one(tmp_path):
    data = phantom(40)
    for stored in (data, np.asfortranarray(data)):
        np.testing.assert_array_equal(voxels.read_series(nib.Nifti1Image(stored, AFFINE), IJK, "x"), data[tuple(IJK.T)])
    five = with_time_fourth(open_image(_save(tmp_path / "x.nii.gz", "<i2", 0.5, 1, (11, 13, 9, 1, 40)), "x"), "x")
    four = open_image(_save(tmp_path / "y.nii.gz", "<i2", 0.5, 1), "x")
    np.testing.assert_array_equal(voxels.read_series(five, IJK, "x"), voxels.read_series(four, IJK, "x"))


def test_a_file_in_two_members_and_padded_with_zeros_is_read_whole(tmp_path, program):
    path = save_bold(tmp_path)
    whole = load_scan(path, cleaning=PLAIN)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:300_000]) + gzip.compress(content[300_000:]) + bytes(100))
    np.testing.assert_array_equal(load_scan(path, cleaning=PLAIN).y, whole.y)


def _truncated(packed, content):
    return packed[: len(packed) * 2 // 3], "end-of-stream marker"


def _without_its_end(packed, content):
    return packed[:-6], ""


def _zeros_inside(packed, content):
    return packed[: len(packed) // 2] + bytes(64) + packed[len(packed) // 2 + 64 :], ""


def _one_bit(packed, content):
    stored = bytearray(gzip.compress(content, 0))
    stored[len(stored) // 2] ^= 1
    return bytes(stored), "CRC check failed"


def _other_length(packed, content):
    return packed[:-4] + b"\1\0\0\0", "Incorrect length of data produced"


def _something_behind(packed, content):
    return packed + b"nonsense" * 4, "Not a gzipped file"


def _declares_more_than_it_can_hold(packed, content):
    larger = bytearray(content)
    larger[42:50] = np.array([2000, 2000, 2000, 60], "<i2").tobytes()
    return gzip.compress(bytes(larger)), "the header declares"


@pytest.mark.parametrize(
    "spoil",
    [_truncated, _without_its_end, _zeros_inside, _one_bit, _other_length, _something_behind, _declares_more_than_it_can_hold],
)
def test_damage_is_refused_by_either_program(tmp_path, program, spoil):
    path = save_bold(tmp_path)
    packed = path.read_bytes()
    spoilt, said = spoil(packed, gzip.decompress(packed))
    path.write_bytes(spoilt)
    with pytest.raises(InputError, match=rf"sub-01_task-rest.*{re.escape(BOLD)}.*truncated or corrupt.*{re.escape(said)}") as error:
        load_scan(path, cleaning=PLAIN)
    assert "\n" not in str(error.value)
