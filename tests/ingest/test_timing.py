"""Repetition time: which of header and JSON files says it, for volumes, surfaces and tables."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.errors import InputError
from pnet_jax.ingest import find_scans, load_scan
from pnet_jax.ingest.timing import sidecars

from .helpers import AFFINE, BOLD, PLAIN, TR, T, phantom, save_bold, save_mask
from .test_cifti import DENSE, THALAMUS, data, save_series
from .test_folder import touch


def say(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def voxels():
    inside = np.zeros((4, 4, 4), bool)
    inside[1:3, 1:3, 1:3] = True
    return axes.BrainModelAxis.from_mask(inside, THALAMUS, AFFINE)


def test_a_json_beside_a_cifti_file_wins_over_its_axis(tmp_path):
    path = save_series(tmp_path / DENSE, voxels())
    assert load_scan(path, cleaning=PLAIN).tr == TR
    say(tmp_path / DENSE.replace(".dtseries.nii", ".json"), RepetitionTime=1.5)
    scan = load_scan(path, cleaning=PLAIN)
    assert scan.tr == 1.5 and "RepetitionTime in JSON is 1.5 s, in the header 2 s: JSON is used" in scan.warnings
    assert load_scan(path, cleaning=PLAIN, tr=3).tr == 3


def test_a_series_axis_without_seconds(tmp_path):
    path = save_series(tmp_path / DENSE, voxels(), unit="HERTZ")
    with pytest.raises(InputError, match=r"no repetition time: the series axis has steps of 2 HERTZ, expected SECOND"):
        load_scan(path, cleaning=PLAIN)
    zero = axes.SeriesAxis(0, 0, T, "SECOND")
    nib.save(nib.Cifti2Image(data(8), (zero, voxels())), path)
    with pytest.raises(InputError, match="no repetition time: the series axis has steps of 0 SECOND"):
        load_scan(path, cleaning=PLAIN)
    say(tmp_path / "sub-01_task-rest_bold.json", RepetitionTime=1.5)
    assert load_scan(path, cleaning=PLAIN).tr == 1.5


def test_the_json_of_the_data_set_is_inherited(tmp_path):
    folder = tmp_path / "in" / "sub-01" / "func"
    path = save_bold(folder, tr=0.0)
    (tmp_path / "task-rest_bold.json").write_text('{"RepetitionTime": 9}')  # above the data set: of another one
    say(tmp_path / "in" / "task-other_bold.json", RepetitionTime=8)
    say(tmp_path / "in" / "task-rest_events.json", RepetitionTime=7)
    with pytest.raises(InputError, match=r"no repetition time: the header has 0 \(unit sec\) and no JSON file that applies to it"):
        load_scan(path, cleaning=PLAIN)
    say(tmp_path / "in" / "bold.json", RepetitionTime=3.0)
    assert load_scan(path, cleaning=PLAIN).tr == 3
    say(tmp_path / "in" / "task-rest_bold.json", RepetitionTime=2.5)
    assert load_scan(path, cleaning=PLAIN).tr == 2.5
    say(tmp_path / "in" / "sub-01" / "sub-01_bold.json", RepetitionTime=2.25)
    assert load_scan(path, cleaning=PLAIN).tr == 2.25
    say(folder / BOLD.replace(".nii.gz", ".json"), SkullStripped=False)  # fMRIPrep's own says other things
    assert load_scan(path, cleaning=PLAIN).tr == 2.25
    (source,) = find_scans(tmp_path / "in")
    assert [f.name for f in sidecars(path)] == [BOLD.replace(".nii.gz", ".json"), "sub-01_bold.json", "task-rest_bold.json", "bold.json"]
    assert set(sidecars(path)) <= set(source.files)


def test_a_table_takes_it_from_its_json(tmp_path):
    path = tmp_path / "sub-01_task-rest_timeseries.tsv"
    np.savetxt(path, phantom()[5, 5, 2:6].T, delimiter="\t")
    places = np.array([[-30.0, 0, 0], [30, 0, 0], [0, 10, 40], [0, -10, 40]])
    with pytest.raises(InputError, match=r"no repetition time: a table does not state it.*tr= \(--tr\)"):
        load_scan(path, atlas=places, cleaning=PLAIN)
    say(path.with_suffix(".json"), RepetitionTime=2.5)
    assert load_scan(path, atlas=places, cleaning=PLAIN).tr == 2.5


@pytest.mark.parametrize("steps", [(2.5, 1.0), (1.0, 2.5), (0.0, 2.5), (2.5, 2.5)])
@pytest.mark.parametrize("axis", [3, 4])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_time_beside_a_dimension_of_one(tmp_path, steps, axis, extension):
    """AFNI writes x, y, z, 1, time."""
    series = phantom()
    image = nib.Nifti1Image(np.expand_dims(series, axis), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], *steps))
    nib.save(image, tmp_path / f"afni{extension}")
    mask = save_mask(tmp_path / "mask.nii")
    scan = load_scan(tmp_path / f"afni{extension}", mask=mask, cleaning=PLAIN)
    expected = load_scan(save_bold(tmp_path, "plain.nii", data=series, tr=2.5), mask=mask, cleaning=PLAIN)
    assert scan.tr == 2.5
    np.testing.assert_array_equal(scan.y, expected.y)


def test_five_dimensions_otherwise_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3, 2, 40), np.float32), AFFINE), tmp_path / "x.nii")
    with pytest.raises(InputError, match=r"found 5 dimensions, shape \(3, 3, 3, 2, 40\)"):
        load_scan(tmp_path / "x.nii", cleaning=PLAIN)


def test_milliseconds_that_are_called_seconds(tmp_path):
    path = save_bold(tmp_path, tr=2000.0)
    with pytest.raises(InputError, match=r"the header's TR is 2000\.0, expected 0\.05 to 30 seconds; that looks like milliseconds"):
        load_scan(path, cleaning=PLAIN)
    say(tmp_path / BOLD.replace(".nii.gz", ".json"), RepetitionTime=2.0)
    scan = load_scan(path, cleaning=PLAIN)
    assert scan.tr == 2 and any("JSON is used" in w for w in scan.warnings)


def test_a_mask_whose_scaling_is_nan(tmp_path):
    """Bytes 112 to 119 of the header: slope and intercept that say nothing."""
    path = save_bold(tmp_path)
    mask = tmp_path / "mask.nii"
    save_mask(mask)
    content = bytearray(mask.read_bytes())
    content[112:120] = np.full(2, np.nan, "<f4").tobytes()
    mask.write_bytes(content)
    np.testing.assert_array_equal(load_scan(path, mask=mask, cleaning=PLAIN).y, load_scan(path, cleaning=PLAIN).y)


def test_a_run_of_no_data_set_has_its_own_json_only(tmp_path):
    touch(tmp_path, "rest.nii", "rest.json", "bold.json", "rest_bold.json")
    assert [f.name for f in sidecars(tmp_path / "rest.nii")] == ["rest.json"]
