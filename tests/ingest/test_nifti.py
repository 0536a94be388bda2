"""Volumes: what is read, and what is refused."""

import gzip
import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
from pnet_jax.ingest import load_scan

from .helpers import AFFINE, BOLD, FILTERED, PLAIN, SHAPE, TR, T, flip_x, phantom, phantom_mask, save_bold, save_mask


def test_series_are_standardised_and_the_mean_is_that_of_the_file(tmp_path):
    scan = load_scan(save_bold(tmp_path), cleaning=PLAIN)
    i, j, k = scan.space.grid.ijk.T
    raw = phantom()[i, j, k]
    assert scan.y.shape == (phantom_mask().sum(), T) and scan.y.dtype == np.float32
    np.testing.assert_allclose(scan.y, (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(scan.mean, raw.mean(1), rtol=1e-5)
    np.testing.assert_allclose(scan.std, raw.std(1), rtol=1e-4)
    assert (scan.label, scan.tr, scan.recorded, scan.space.name) == ("sub-01_task-rest", TR, T, "MNI152NLin6Asym")
    assert scan.valid.all() and scan.warnings == () and scan.source.endswith(BOLD)


def test_std_is_that_after_cleaning(tmp_path):
    path = save_bold(tmp_path)
    plain, filtered = load_scan(path, cleaning=PLAIN), load_scan(path, cleaning=FILTERED)
    np.testing.assert_allclose(plain.mean, filtered.mean, rtol=1e-6)
    assert (filtered.std < plain.std).all()


def test_orientation_changes_nothing(tmp_path):
    ras = load_scan(save_bold(tmp_path / "ras"), cleaning=FILTERED)
    data, affine = flip_x(phantom())
    las_bold = save_bold(tmp_path / "las", data=data, affine=affine, mask=False)
    save_mask(tmp_path / "las" / BOLD.replace("preproc_bold", "brain_mask"), flip_x(phantom_mask().astype(np.uint8))[0], affine)
    las = load_scan(las_bold, cleaning=FILTERED)
    assert nib.aff2axcodes(affine) == ("L", "A", "S")
    np.testing.assert_array_equal(ras.y, las.y)
    np.testing.assert_array_equal(ras.space.xyz, las.space.xyz)
    np.testing.assert_array_equal(ras.space.neighbours, las.space.neighbours)
    np.testing.assert_array_equal(ras.space.hemisphere, las.space.hemisphere)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_stored_type_of_the_data(tmp_path, dtype):
    data = (phantom() / 10).astype(dtype)
    scan = load_scan(save_bold(tmp_path, data=data), cleaning=PLAIN)
    i, j, k = scan.space.grid.ijk.T
    np.testing.assert_allclose(scan.mean, data[i, j, k].mean(1), rtol=1e-4)


def test_images_in_memory(tmp_path):
    image = nib.Nifti1Image(phantom(), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((8, 8, 8, TR))
    mask = nib.Nifti1Image(phantom_mask().astype(np.uint8), AFFINE)
    scan = load_scan(image, mask=mask, space="MNI152NLin6Asym", entities={"sub": "sub-07", "ses": "2"}, cleaning=FILTERED)
    assert scan.label == "sub-07_ses-2" and scan.warnings == ()
    np.testing.assert_array_equal(scan.y, load_scan(save_bold(tmp_path), cleaning=FILTERED).y)


@pytest.mark.parametrize("values", ["bool", "int", "float", "graded", "nan"])
def test_masks_of_any_type(tmp_path, values):
    inside = phantom_mask()
    stored = {
        "bool": inside.astype(np.uint8) * 255,
        "int": inside.astype(np.int32) * 3,
        "float": inside.astype(np.float64),
        "graded": np.where(inside, 0.9, 0.2).astype(np.float32),
        "nan": np.where(inside, 1, np.nan).astype(np.float32),
    }[values]
    scan = load_scan(save_bold(tmp_path), mask=save_mask(tmp_path / "m.nii.gz", stored), cleaning=PLAIN)
    assert len(scan.space) == inside.sum()


def test_a_mask_is_computed_for_files_without_a_bids_name(tmp_path):
    scan = load_scan(save_bold(tmp_path, "patient_7.nii.gz"), cleaning=PLAIN)
    assert scan.label == "sub-patient7" and 0 < len(scan.space) <= np.prod(SHAPE)
    assert any("mask" in w for w in scan.warnings) and any("MNI" in w for w in scan.warnings)


def test_missing_mask_beside_a_bids_file(tmp_path):
    with pytest.raises(ValueError, match=r"sub-01_task-rest .*desc-brain_mask.*mask="):
        load_scan(save_bold(tmp_path, mask=False))


def test_mask_of_another_shape(tmp_path):
    mask = save_mask(tmp_path / "small.nii.gz", np.ones((5, 5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"bold\.nii\.gz.*small\.nii\.gz has shape \(5, 5, 5\).*\(11, 13, 9\)"):
        load_scan(save_bold(tmp_path), mask=mask)


def test_mask_with_another_affine(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 0.12
    mask = save_mask(tmp_path / "moved.nii.gz", affine=moved)
    said = r"bold\.nii\.gz.*moved\.nii\.gz has the affine .*-43\.88.*-44.* up to 0\.12 mm apart, expected at most 0\.08 mm"
    with pytest.raises(ValueError, match=said):
        load_scan(save_bold(tmp_path), mask=mask)
    turned = AFFINE.copy()
    turned[0, 1] += 0.02  # little at the origin, 0.24 mm at the far corner
    with pytest.raises(ValueError, match=r"up to 0\.24 mm apart"):
        load_scan(save_bold(tmp_path), mask=save_mask(tmp_path / "turned.nii.gz", affine=turned))


def test_mask_whose_affine_differs_by_rounding(tmp_path):
    rounded = AFFINE.copy()
    rounded[0, 3] += 0.005
    rounded[1, 2] += 0.002
    scan = load_scan(save_bold(tmp_path), mask=save_mask(tmp_path / "rounded.nii.gz", affine=rounded), cleaning=PLAIN)
    np.testing.assert_array_equal(scan.space.grid.affine, AFFINE)
    assert scan.warnings == ()


def without_affine(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def test_a_header_without_sform_and_qform_is_refused(tmp_path):
    path = without_affine(save_bold(tmp_path))
    mask = without_affine(tmp_path / BOLD.replace("preproc_bold", "brain_mask"))
    made_up = nib.load(path).affine
    assert made_up[0, 0] == -8  # nibabel's own: mirrored
    said = r"sub-01_task-rest.*sform_code and qform_code are both 0, expected one above 0.*native_to_mni="
    for options in ({}, {"space": "MNI152NLin6Asym"}, {"mask": mask}):
        with pytest.raises(InputError, match=said):
            load_scan(path, cleaning=PLAIN, **options)
    moved = load_scan(path, native_to_mni=AFFINE @ np.linalg.inv(made_up), cleaning=PLAIN)
    here = load_scan(save_bold(tmp_path), cleaning=PLAIN)
    np.testing.assert_allclose(np.unique(moved.space.xyz, axis=0), np.unique(here.space.xyz, axis=0), atol=1e-3)


def test_empty_mask(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        load_scan(save_bold(tmp_path), mask=save_mask(tmp_path / "m.nii.gz", np.zeros(SHAPE, np.uint8)))


def test_three_dimensional_image(tmp_path):
    with pytest.raises(ValueError, match=r"sub-01_task-rest .*4-D.*3-D.*\(11, 13, 9\)"):
        load_scan(save_bold(tmp_path, data=phantom()[..., 0]))


def test_truncated_and_corrupt_files(tmp_path):
    whole = save_bold(tmp_path)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*bold\.nii\.gz.*truncated or corrupt"):
        load_scan(whole)
    whole.write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(ValueError, match=r"bold\.nii\.gz.*corrupt"):
        load_scan(whole)
    middle = bytearray(content)
    middle[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    whole.write_bytes(bytes(middle))
    with pytest.raises(ValueError, match=r"bold\.nii\.gz.*corrupt"):
        load_scan(whole)


def test_truncated_uncompressed_file(tmp_path):
    path = save_bold(tmp_path, BOLD.removesuffix(".gz"))
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ValueError, match=r"bold\.nii.*truncated or corrupt"):
        load_scan(path)


def test_missing_file_and_unknown_type(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii\.gz.*no such file"):
        load_scan(tmp_path / "nowhere.nii.gz")
    (tmp_path / "x.mat").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"x\.mat.*cannot read \.mat.*\.dtseries\.nii"):
        load_scan(tmp_path / "x.mat")
    with pytest.raises(ValueError, match=r"found a folder; find_scans"):
        load_scan(tmp_path)
    with pytest.raises(ValueError, match="dict"):
        load_scan({})


def test_nan_and_inf_voxels(tmp_path):
    data = phantom()
    data[4, 5, 3, 10] = np.nan
    data[5, 5, 3, 20] = np.inf
    scan = load_scan(save_bold(tmp_path, data=data), cleaning=FILTERED)
    assert (~scan.valid).sum() == 2 and (scan.y[~scan.valid] == 0).all() and np.isfinite(scan.y).all()
    assert any(w.startswith("2 of ") and "NaN" in w for w in scan.warnings)
    data[:, :, :5] = np.nan
    with pytest.raises(ValueError, match=r"sub-01_task-rest.* hold NaN or infinite"):
        load_scan(save_bold(tmp_path, data=data))


@pytest.mark.parametrize("cleaning", [PLAIN, FILTERED])
def test_constant_voxels(tmp_path, cleaning):
    data = phantom()
    data[4, 5, 3] = 1000.1
    data[5, 5, 3] = 0
    scan = load_scan(save_bold(tmp_path, data=data), cleaning=cleaning)
    assert (~scan.valid).sum() == 2 and (scan.y[~scan.valid] == 0).all()
    assert any("2 of" in w and "constant" in w for w in scan.warnings)
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*none of .* has a varying signal"):
        load_scan(save_bold(tmp_path, data=np.full_like(data, 7)), cleaning=cleaning)


def test_wrong_space_entity(tmp_path):
    path = save_bold(tmp_path, BOLD.replace("MNI152NLin6Asym", "T1w"))
    with pytest.raises(ValueError, match=r"wrong space entity.*space-T1w.*native_to_mni"):
        load_scan(path)
    shift = np.eye(4)
    shift[0, 3] = 5
    np.savetxt(tmp_path / "shift.txt", shift)
    moved = load_scan(path, native_to_mni=tmp_path / "shift.txt", cleaning=PLAIN)
    here = load_scan(path, space="MNI152NLin6Asym", cleaning=PLAIN)
    np.testing.assert_allclose(moved.space.xyz - here.space.xyz, np.tile([5, 0, 0], (len(here.space), 1)), atol=1e-3)
    np.testing.assert_array_equal(moved.y, here.y)
    # The image and so its derivatives stay in T1w, whichever template the transform leads to.
    assert load_scan(path, native_to_mni=np.eye(4), space="MNI152NLin6Asym", cleaning=PLAIN).space.name == moved.space.name == "T1w"
    with pytest.raises(ValueError, match="4 x 4"):
        load_scan(path, native_to_mni=np.eye(3))


def test_native_output_of_fmriprep_is_not_taken_for_mni(tmp_path):
    name = "sub-01_task-rest_desc-preproc_bold.nii.gz"
    path = save_bold(tmp_path, name)
    said = r"sub-01_task-rest.*desc-preproc without a space- entity .* native space .* expected an MNI space.*--native-to-mni"
    with pytest.raises(InputError, match=said):
        load_scan(path, cleaning=PLAIN)
    assert load_scan(path, space="MNI152NLin6Asym", cleaning=PLAIN).space.name == "MNI152NLin6Asym"
    assert load_scan(path, native_to_mni=np.eye(4), cleaning=PLAIN).space.name == "native"


def test_coordinates_that_are_not_mni(tmp_path):
    far = AFFINE.copy()
    far[2, 3] += 500
    with pytest.raises(ValueError, match=r"outside the MNI template.*native_to_mni"):
        load_scan(save_bold(tmp_path, affine=far))


def test_voxels_on_one_side_are_warned_of(tmp_path):
    scan = load_scan(save_bold(tmp_path, affine=np.diag([8.0, 8, 8, 1])), cleaning=PLAIN)
    assert any("on the right" in w for w in scan.warnings)


def test_no_mask_can_be_computed_from_noise(tmp_path):
    noise = np.random.default_rng(0).normal(size=(*SHAPE, T)).astype(np.float32)
    with pytest.raises(ValueError, match=r"noise\.nii\.gz.*mask.*empty; pass mask="):
        load_scan(save_bold(tmp_path, "noise.nii.gz", noise), cleaning=PLAIN)


def test_tr_missing_or_zero(tmp_path):
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*no repetition time.*tr= \(--tr\)"):
        load_scan(save_bold(tmp_path, tr=0))
    assert load_scan(save_bold(tmp_path, tr=0), tr=1.5, cleaning=PLAIN).tr == 1.5
    with pytest.raises(ValueError, match=r"tr= is 2000.*milliseconds"):
        load_scan(save_bold(tmp_path), tr=2000)


def test_tr_in_milliseconds_and_without_unit(tmp_path):
    assert load_scan(save_bold(tmp_path, tr=2000, units="msec"), cleaning=PLAIN).tr == 2.0
    scan = load_scan(save_bold(tmp_path, tr=2, units="unknown"), cleaning=PLAIN)
    assert scan.tr == 2 and any("unit" in w for w in scan.warnings)
    with pytest.raises(ValueError, match="milliseconds"):
        load_scan(save_bold(tmp_path, tr=2000, units="unknown"))


def test_tr_of_the_sidecar_wins_over_the_header(tmp_path):
    path = save_bold(tmp_path, tr=1.0)
    sidecar = tmp_path / BOLD.replace(".nii.gz", ".json")
    sidecar.write_text(json.dumps({"RepetitionTime": 2.2}))
    scan = load_scan(path, cleaning=PLAIN)
    assert scan.tr == 2.2 and any("JSON" in w for w in scan.warnings)
    assert load_scan(path, tr=3, cleaning=PLAIN).tr == 3
    sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"\.json is not readable JSON"):
        load_scan(path)


def test_too_few_frames(tmp_path):
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*25 of 25 frames.*at least 30"):
        load_scan(save_bold(tmp_path, data=phantom(25)))


def test_too_few_seconds(tmp_path):
    with pytest.raises(ValueError, match=r"too short.*40\.0 s.*at least 60 s"):
        load_scan(save_bold(tmp_path, data=phantom(40), tr=1.0))


def test_short_scans_are_warned_of(tmp_path):
    scan = load_scan(save_bold(tmp_path, data=phantom(100)), cleaning=FILTERED)
    assert any("200.0 s" in w and "240 s" in w for w in scan.warnings)
    assert load_scan(save_bold(tmp_path), cleaning=FILTERED).warnings == ()


def test_thirty_frames_can_be_filtered(tmp_path):
    scan = load_scan(save_bold(tmp_path, data=phantom(30), tr=3.0), cleaning=FILTERED)
    assert scan.y.shape[1] == 30 and scan.valid.all()


def test_low_pass_above_nyquist_is_dropped(tmp_path):
    scan = load_scan(save_bold(tmp_path, tr=6.0), cleaning=CleaningConfig(strategy=(), low_pass=0.1))
    assert scan.cleaning["low_pass"] is None and any("Nyquist" in w and "TR = 6.0" in w for w in scan.warnings)
    with pytest.raises(ValueError, match=r"high_pass = 0\.2 .*Nyquist"):
        load_scan(save_bold(tmp_path, tr=6.0), cleaning=CleaningConfig(strategy=(), low_pass=None, high_pass=0.2))


def test_memory_stays_near_the_masked_series(tmp_path):
    import nilearn.signal  # noqa: F401  its import is no part of the measurement

    rng = np.random.default_rng(0)
    shape, n_frames = (40, 48, 40), 160
    affine = AFFINE.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] = [-80, -110, -70]
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, s) for s in shape], indexing="ij"))
    inside = (grid**2).sum(0) < 0.9
    data = rng.integers(900, 1100, size=(*shape, n_frames), dtype=np.int16)
    path = tmp_path / BOLD
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((4, 4, 4, 2))
    image.header.set_slope_inter(0.5, 10)
    path.write_bytes(gzip.compress(image.to_bytes(), 1))
    mask = save_mask(tmp_path / "m.nii.gz", inside.astype(np.uint8), affine)
    del data, image, grid
    tracemalloc.start()
    scan = load_scan(path, mask=mask, sample_mask=np.delete(np.arange(n_frames), [40, 41]), cleaning=FILTERED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The series, the halves cleaned on their own, and half as much again on the way.
    assert peak < 3.5 * inside.sum() * n_frames * 4
    assert scan.y.flags.c_contiguous


@pytest.mark.parametrize("damaged", ["bold", "mask"])
def test_damage_that_keeps_the_length_is_noticed_by_the_checksum(tmp_path, damaged):
    path = save_bold(tmp_path)
    file = path if damaged == "bold" else tmp_path / BOLD.replace("preproc_bold", "brain_mask")
    stored = bytearray(gzip.compress(gzip.decompress(file.read_bytes()), 0))
    stored[len(stored) // 2] ^= 1
    file.write_bytes(bytes(stored))
    with pytest.raises(ValueError, match=rf"sub-01_task-rest.*{damaged}.*truncated or corrupt.*CRC check failed"):
        load_scan(path, cleaning=PLAIN)


def test_a_single_frame_is_too_short_before_its_confounds_are_read(tmp_path):
    path = save_bold(tmp_path, data=phantom(1))
    with pytest.raises(ValueError, match=r"too short: 1 of 1 frames.*at least 30"):
        load_scan(path, confounds=tmp_path / "missing.tsv")


def test_masks_in_packed_formats_and_in_two_files(tmp_path):
    path = save_bold(tmp_path, mask=False, data=phantom(40))
    mask = nib.Nifti1Image(phantom_mask().astype(np.uint8), AFFINE)
    nib.save(nib.MGHImage(phantom_mask().astype(np.uint8), AFFINE), tmp_path / "mask.mgz")
    nib.save(mask, tmp_path / "mask.nii.bz2")
    nib.save(nib.Nifti1Pair(mask.dataobj, AFFINE), tmp_path / "mask.hdr")
    for name in ("mask.mgz", "mask.nii.bz2", "mask.hdr"):
        assert len(load_scan(path, mask=tmp_path / name, cleaning=PLAIN).space) == phantom_mask().sum()
    (tmp_path / "mask.img").write_bytes((tmp_path / "mask.img").read_bytes()[:100])
    with pytest.raises(ValueError, match="the file has 100"):
        load_scan(path, mask=tmp_path / "mask.hdr", cleaning=PLAIN)
