"""Confounds: which columns, which frames, and which tables are refused."""

import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds

from pnet_jax.config import CleaningConfig
from pnet_jax.ingest import load_scan
from pnet_jax.ingest.confounds import read_confounds

from .helpers import BOLD, FILTERED, PLAIN, TR, T, fmriprep_table, save_bold, save_table

TABLE = "sub-01_task-rest_desc-confounds_timeseries.tsv"
MOTION = CleaningConfig(strategy=("motion", "wm_csf"))


def _read(given, cleaning=FILTERED, n_frames=T):
    return read_confounds(given, bold=None, n_frames=n_frames, cleaning=cleaning, where="sub-01 (x.nii)")


def test_fmriprep_table_beside_the_file_is_used(tmp_path):
    path = save_bold(tmp_path)
    save_table(fmriprep_table(), tmp_path / TABLE)
    scan = load_scan(path, cleaning=MOTION)
    expected, _ = load_confounds(str(path), strategy=("motion", "wm_csf"), motion="full", wm_csf="basic", demean=False)
    assert scan.cleaning["confounds"] == list(expected.columns) and len(expected.columns) == 26
    np.testing.assert_array_equal(scan.y, load_scan(path, confounds=expected, cleaning=FILTERED).y)
    assert scan.displacement.shape == (T,) and scan.displacement[0] == 0 and scan.displacement[1] == np.float32(0.1)
    assert load_scan(path, cleaning=FILTERED).cleaning["confounds"] == []


def test_scrubbing_and_non_steady_state(tmp_path):
    path = save_bold(tmp_path)
    save_table(fmriprep_table(spikes=(50, 90), steady_from=3), tmp_path / TABLE)
    scan = load_scan(path, cleaning=CleaningConfig(strategy=("motion", "scrub"), motion="basic"))
    np.testing.assert_array_equal(scan.frames, np.delete(np.arange(T), [0, 1, 2, 50, 90]))
    assert scan.displacement[50] == 2 and scan.cleaning["scrubbed"] == 5
    both = load_scan(path, sample_mask=np.arange(10, T), cleaning=CleaningConfig(strategy=("scrub",)))
    np.testing.assert_array_equal(both.frames, np.setdiff1d(np.arange(10, T), [50, 90]))


def test_no_table_is_warned_of_but_not_for_denoised_files(tmp_path):
    assert any("no confounds" in w for w in load_scan(save_bold(tmp_path), cleaning=MOTION).warnings)
    denoised = save_bold(tmp_path, BOLD.replace("preproc", "denoised"))
    save_table(fmriprep_table(), tmp_path / TABLE)
    scan = load_scan(denoised, cleaning=MOTION)
    assert scan.cleaning["confounds"] == [] and scan.warnings == ()


def test_columns_that_the_strategy_needs_are_missing(tmp_path):
    path = save_table(fmriprep_table().drop(columns=["csf", "csf_derivative1", "rot_z_derivative1"]), tmp_path / TABLE)
    with pytest.raises(ValueError, match=r"sub-01.*desc-confounds_timeseries\.tsv.*motion.*rot_z_derivative1"):
        _read(path, CleaningConfig(strategy=("motion",)))
    with pytest.raises(ValueError, match=r"desc-confounds.*wm_csf.*lacks a column.*csf"):
        _read(path, CleaningConfig(strategy=("wm_csf",)))
    with pytest.raises(ValueError, match=r"desc-confounds.*lacks a column.*csf_derivative1"):
        _read(path, CleaningConfig(strategy=("wm_csf",), wm_csf="full"))
    path = save_table(fmriprep_table().drop(columns=["std_dvars"]), tmp_path / TABLE)
    with pytest.raises(ValueError, match=r"lacks a column: std_dvars"):
        _read(path, CleaningConfig(strategy=("scrub",)))
    with pytest.raises(ValueError, match="desc-confounds"):
        _read(path, CleaningConfig(strategy=("movement",)))


def test_wrong_number_of_rows(tmp_path):
    bold = save_bold(tmp_path)
    for given in (save_table(fmriprep_table(T - 5), tmp_path / "short.tsv"), save_table(fmriprep_table(T - 5), tmp_path / TABLE)):
        with pytest.raises(ValueError, match=rf"{BOLD}.*{given.name} has 125 rows.*130 frames"):
            load_scan(bold, confounds=given)
    with pytest.raises(ValueError, match="array has 7 rows"):
        load_scan(bold, confounds=np.zeros((7, 2)))
    with pytest.raises(ValueError, match="table has 7 rows"):
        load_scan(bold, confounds=pd.DataFrame(np.zeros((7, 2))))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv"):
        load_scan(bold, confounds=tmp_path / "nowhere.tsv")


def test_nan_column(tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(T, 3)), columns=["a", "b", "c"])
    table.loc[5, "b"] = np.nan
    table["c"] = np.nan
    with pytest.raises(ValueError, match=r"c\.tsv.*b \(1 of 130 frames\)"):
        load_scan(save_bold(tmp_path), confounds=save_table(table, tmp_path / "c.tsv"))
    table = table.drop(columns="c")
    kept = np.delete(np.arange(T), 5)
    assert len(load_scan(save_bold(tmp_path), confounds=table, sample_mask=kept, cleaning=FILTERED).frames) == T - 1


def test_first_row_of_derivatives_takes_the_second(tmp_path):
    series = np.random.default_rng(0).normal(size=(T, 2))
    with_gap = pd.DataFrame(series, columns=["a", "b"])
    with_gap.loc[0, "b"] = np.nan
    noise = _read(save_table(with_gap, tmp_path / "c.tsv"))
    assert noise.values[0, 1] == noise.values[1, 1] and noise.values[0, 0] == pytest.approx(series[0, 0])


def test_columns_that_are_no_regressors(tmp_path):
    table = pd.DataFrame({"a": np.arange(T) % 7, "framewise_displacement": 0.2, "std_dvars": 1.0, "site": "x"})
    table["motion_outlier00"] = (np.arange(T) == 17).astype(int)
    noise = _read(save_table(table, tmp_path / "c.csv"))
    assert noise.names == ("a",) and 17 not in noise.kept and len(noise.kept) == T - 1
    assert noise.displacement[3] == np.float32(0.2) and any("site" in w for w in noise.warnings)
    assert any("scrub" in w for w in _read(table, CleaningConfig(strategy=("scrub",))).warnings)


def test_files_without_a_header_and_vectors(tmp_path):
    values = np.random.default_rng(0).normal(size=(T, 4))
    np.savetxt(tmp_path / "motion.par", values)
    np.savetxt(tmp_path / "motion.tsv", values, delimiter="\t")
    for name in ("motion.par", "motion.tsv"):
        np.testing.assert_allclose(_read(tmp_path / name).values, values)
    assert _read(values[:, 0]).values.shape == (T, 1)


def test_regression_removes_the_confound(tmp_path):
    path = save_bold(tmp_path)
    confound = np.sin(np.arange(T) / 9)
    scan = load_scan(path, confounds=confound, cleaning=PLAIN)
    centred = confound - confound.mean()
    assert np.abs(scan.y @ centred).max() < 1e-3 * T
    assert scan.tr == TR
