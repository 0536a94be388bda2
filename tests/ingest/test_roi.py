"""Tables of ROI series."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pnet_jax.ingest import load_atlas, load_scan

from .helpers import AFFINE, FILTERED, PLAIN, TR, T, save_table
from .test_atlas import labels

NAMES = ["left", "right", "top"]


@pytest.fixture
def atlas(tmp_path):
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "toy_dseg.nii.gz")
    pd.DataFrame({"index": [3, 7, 40], "name": NAMES}).to_csv(tmp_path / "toy_dseg.tsv", sep="\t", index=False)
    return tmp_path / "toy_dseg.nii.gz"


def series(n=3, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(size=(T, n)), axis=0) + 100


def table(tmp_path, values=None, columns=NAMES, name="sub-05_task-rest_timeseries.tsv"):
    return save_table(pd.DataFrame(series() if values is None else values, columns=columns), tmp_path / name)


def test_columns_become_locations(tmp_path, atlas):
    scan = load_scan(table(tmp_path), atlas=atlas, tr=TR, cleaning=PLAIN)
    y = series().T
    np.testing.assert_allclose(scan.y, (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True), atol=1e-4)
    assert scan.space.names == tuple(NAMES) and scan.space.kind == "points" and scan.label == "sub-05_task-rest" and scan.warnings == ()
    np.testing.assert_allclose(scan.space.xyz[0], [-28, -32, -12])
    assert scan.space.hemisphere.tolist()[:2] == [0, 1]


@pytest.mark.parametrize("name", ["r.tsv", "r.csv", "r.npy", "r.1D", "r.txt"])
def test_tables_without_a_header(tmp_path, atlas, name):
    if name == "r.npy":
        np.save(tmp_path / name, series())
    else:
        np.savetxt(tmp_path / name, series(), delimiter="," if name == "r.csv" else "\t")
    scan = load_scan(tmp_path / name, atlas=atlas, tr=TR, cleaning=FILTERED)
    assert scan.y.shape == (3, T) and scan.space.names == tuple(NAMES)


def test_regions_are_matched_by_name(tmp_path, atlas):
    swapped = load_scan(table(tmp_path, series()[:, ::-1], NAMES[::-1], "b.tsv"), atlas=atlas, tr=TR, cleaning=PLAIN)
    plain = load_scan(table(tmp_path), atlas=load_atlas(atlas), tr=TR, cleaning=PLAIN)
    np.testing.assert_array_equal(swapped.space.xyz[::-1], plain.space.xyz)
    by_id = load_scan(table(tmp_path, series(), ["40", "7", "3"], "c.tsv"), atlas=atlas, tr=TR, cleaning=PLAIN)
    np.testing.assert_array_equal(by_id.space.xyz[::-1], plain.space.xyz)
    other = load_scan(table(tmp_path, columns=["p", "q", "r"]), atlas=atlas, tr=TR, cleaning=PLAIN)
    assert any("matched by position" in w for w in other.warnings)


def test_row_numbers_are_no_region(tmp_path, atlas):
    pd.DataFrame(series(), columns=NAMES).to_csv(tmp_path / "r.csv")
    assert load_scan(tmp_path / "r.csv", atlas=atlas, tr=TR, cleaning=PLAIN).y.shape == (3, T)


def test_centroids_from_a_table_or_an_array(tmp_path):
    xyz = np.array([[-30.0, 0, 0], [30, 0, 0], [0, 10, 40]])
    places = save_table(pd.DataFrame(xyz, columns=["x", "y", "z"]).assign(name=NAMES), tmp_path / "places.csv")
    for atlas in (places, xyz):
        scan = load_scan(table(tmp_path), atlas=atlas, tr=TR, cleaning=PLAIN)
        np.testing.assert_allclose(scan.space.xyz, xyz)
    with pytest.raises(ValueError, match=r"bad\.csv.*x, y, z"):
        load_scan(table(tmp_path), atlas=save_table(pd.DataFrame({"a": [1]}), tmp_path / "bad.csv"), tr=TR)
    with pytest.raises(ValueError, match=r"\[regions, 3\]"):
        load_scan(table(tmp_path), atlas=np.zeros((3, 2)), tr=TR)


def test_transposed_table(tmp_path, atlas):
    np.save(tmp_path / "t.npy", series().T)
    with pytest.raises(ValueError, match=r"t\.npy.*transposed.*3 rows and 130 columns"):
        load_scan(tmp_path / "t.npy", atlas=atlas, tr=TR)


def test_another_number_of_regions(tmp_path, atlas):
    with pytest.raises(ValueError, match=r"4 columns.*toy_dseg\.nii\.gz has 3 regions; check whether one column is a background"):
        load_scan(table(tmp_path, series(4), list("abcd")), atlas=atlas, tr=TR)


def test_nan_columns_are_named(tmp_path, atlas):
    values = series()
    values[:, 1] = np.nan
    values[4, 2] = np.inf
    with pytest.raises(ValueError, match=r"sub-05_task-rest.*timeseries\.tsv.*2 of 3 columns.*right \(all of 130 frames\), top \(1 of 130"):
        load_scan(table(tmp_path, values), atlas=atlas, tr=TR)
    np.save(tmp_path / "n.npy", values)
    with pytest.raises(ValueError, match=r"n\.npy.*column 2 \(all"):
        load_scan(tmp_path / "n.npy", atlas=atlas, tr=TR)


def test_what_a_table_needs(tmp_path, atlas):
    with pytest.raises(ValueError, match=r"sub-05_task-rest.*repetition time.*tr="):
        load_scan(table(tmp_path), atlas=atlas)
    with pytest.raises(ValueError, match=r"where its regions are.*atlas="):
        load_scan(table(tmp_path), tr=TR)
    with pytest.raises(ValueError, match=r"mask= is for NIfTI"):
        load_scan(table(tmp_path), atlas=atlas, tr=TR, mask=atlas)


def test_text_and_empty_tables(tmp_path, atlas):
    path = save_table(pd.DataFrame(series(), columns=NAMES).assign(top="x"), tmp_path / "r.tsv")
    with pytest.raises(ValueError, match=r"r\.tsv.*text in top"):
        load_scan(path, atlas=atlas, tr=TR)
    (tmp_path / "e.tsv").write_text("")
    with pytest.raises(ValueError, match=r"e\.tsv.*empty"):
        load_scan(tmp_path / "e.tsv", atlas=atlas, tr=TR)
    (tmp_path / "h.tsv").write_text("a\tb\tc\n")
    with pytest.raises(ValueError, match=r"h\.tsv.*empty"):
        load_scan(tmp_path / "h.tsv", atlas=atlas, tr=TR)
    (tmp_path / "x.npy").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"x\.npy.*readable"):
        load_scan(tmp_path / "x.npy", atlas=atlas, tr=TR)
    np.save(tmp_path / "one.npy", np.zeros(5))
    with pytest.raises(ValueError, match=r"one\.npy.*frames by regions.*\(5,\)"):
        load_scan(tmp_path / "one.npy", atlas=atlas, tr=TR)
