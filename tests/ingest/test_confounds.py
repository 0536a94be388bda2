"""Confounds: which columns, which frames, and which tables are refused."""

import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds

from pnet_jax.config import CleaningConfig
from pnet_jax.errors import InputError
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
    with pytest.raises(ValueError, match=r"desc-confounds_timeseries\.tsv: lacks rot_z_derivative1.*motion.*use --cleaning.motion basic"):
        _read(path, CleaningConfig(strategy=("motion",)))
    with pytest.raises(
        ValueError, match=r"sub-01.*desc-confounds_timeseries\.tsv: lacks csf, which .*wm_csf.* needs; its columns are .*--confounds\)$"
    ):
        _read(path, CleaningConfig(strategy=("wm_csf",)))
    with pytest.raises(ValueError, match=r"desc-confounds.*lacks csf.*csf_derivative1"):
        _read(path, CleaningConfig(strategy=("wm_csf",), wm_csf="full"))
    path = save_table(fmriprep_table().drop(columns=["std_dvars"]), tmp_path / TABLE)
    with pytest.raises(ValueError, match=r"lacks std_dvars, which"):
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


@pytest.mark.parametrize("name", ["confounds.tsv", "confounds.csv", "c.txt"])
def test_fmriprep_tables_are_known_by_their_columns(tmp_path, name):
    path = save_bold(tmp_path)
    table = fmriprep_table()
    named = read_confounds(save_table(table, tmp_path / TABLE), bold=path, n_frames=T, cleaning=MOTION, where="sub-01")
    table.to_csv(tmp_path / name, sep={".tsv": "\t", ".csv": ";", ".txt": " "}[name[-4:]], index=False, na_rep="n/a")
    noise = _read(tmp_path / name, MOTION)
    assert noise.names == named.names and len(noise.names) == 26
    np.testing.assert_allclose(noise.values, named.values, rtol=1e-12)


def test_a_table_of_ones_own_regressors_with_fmripreps_names_is_used_whole(tmp_path):
    own = fmriprep_table()[["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "framewise_displacement"]]
    noise = _read(save_table(own, tmp_path / "own.tsv"), MOTION)
    assert noise.names == tuple(own.columns[:-1]) and noise.displacement is not None


def test_other_runs_tables_in_the_folder_do_not_matter(tmp_path):
    """`load_confounds` looks for every part of an image's name and refuses where it finds two."""
    folder = tmp_path / "sub-01_tsv"
    path = save_bold(folder, BOLD.replace("task-rest", "task-rest_run-2"))
    for name in (TABLE, TABLE.replace("task-rest", "task-rest_run-2")):
        save_table(fmriprep_table(), folder / name)
    assert len(load_scan(path).cleaning["confounds"]) == 26


def test_a_regressor_that_is_missing_throughout_is_left_out(tmp_path):
    table = fmriprep_table()
    table[[c for c in table if c.startswith("csf")]] = np.nan
    path = save_bold(tmp_path)
    save_table(table, tmp_path / TABLE)
    scan = load_scan(path)
    assert len(scan.cleaning["confounds"]) == 25 and "csf" not in scan.cleaning["confounds"]
    assert any(w.endswith("n/a in every row and therefore not regressed out: csf") for w in scan.warnings)
    noise = _read(save_table(pd.DataFrame({"a": np.arange(T) % 7, "b": np.nan}), tmp_path / "own.tsv"))
    assert noise.names == ("a",) and any("n/a in every row" in w for w in noise.warnings)


def test_a_scan_is_not_silently_left_uncleaned(tmp_path):
    path = save_bold(tmp_path)
    table = fmriprep_table()
    save_table(table.assign(**{c: np.nan for c in table}), tmp_path / TABLE)
    with pytest.raises(InputError, match=rf"sub-01_task-rest.*{TABLE}: every regressor is n/a in every row: csf, rot_x"):
        load_scan(path)
    save_table(table.assign(framewise_displacement=np.nan), tmp_path / TABLE)
    with pytest.raises(InputError, match=r"the strategy 'scrub' needs framewise_displacement, found n/a in every row"):
        load_scan(path, cleaning=CleaningConfig(strategy=("motion", "scrub")))
    assert load_scan(path).displacement is None
    with pytest.raises(InputError, match=r"t\.tsv: expected columns of numbers, found only text in site, scanner"):
        _read(save_table(pd.DataFrame({"site": ["x"] * T, "scanner": ["y"] * T}), tmp_path / "t.tsv"))


def test_text_among_numbers_is_damage_and_not_a_description(tmp_path):
    table = pd.DataFrame({"a": np.arange(T) % 7, "b": np.arange(T) % 5, "site": "x"}).astype({"b": object})
    assert _read(save_table(table, tmp_path / "c.tsv")).names == ("a", "b")
    table.loc[3, "b"] = "#REF!"
    with pytest.raises(InputError, match=r"sub-01.*c\.tsv: .*text in b \('#REF!' in row 4\)"):
        _read(save_table(table, tmp_path / "c.tsv"))


@pytest.mark.parametrize("decimal", [".", ","])
def test_a_german_spreadsheet(tmp_path, decimal):
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(T, 6)), columns=[f"m{i}" for i in range(6)])
    values.to_csv(tmp_path / "c.csv", sep=";", decimal=decimal, index=False)
    if decimal == ".":
        np.testing.assert_allclose(_read(tmp_path / "c.csv").values, values)
        return
    with pytest.raises(InputError, match=r"sub-01.*c\.csv: decimal commas .* in m0, m1, m2, m3, m4, m5; .*decimal points"):
        _read(tmp_path / "c.csv")


def test_nearly_all_frames_scrubbed(tmp_path):
    path = save_bold(tmp_path)
    save_table(fmriprep_table().assign(framewise_displacement=3.0), tmp_path / TABLE)
    with pytest.raises(InputError, match=r"sub-01_task-rest.*0 of 130 frames"):
        load_scan(path, cleaning=CleaningConfig(strategy=("motion", "scrub")))


def test_compcor_without_its_json(tmp_path):
    table = fmriprep_table().assign(a_comp_cor_00=np.arange(T) % 7)
    save_table(table, tmp_path / TABLE)
    (tmp_path / TABLE.replace(".tsv", ".json")).write_text("{}")
    with pytest.raises(
        InputError, match=rf"{TABLE}: lacks columns for compcor that its JSON file describes, which .*compcor.*its columns are trans_x"
    ):
        _read(tmp_path / TABLE, CleaningConfig(strategy=("motion", "compcor", "high_pass")))
    (tmp_path / TABLE.replace(".tsv", ".json")).write_text("[" * 100_000)
    with pytest.raises(InputError, match=rf"{TABLE}.*RecursionError"):
        _read(tmp_path / TABLE, CleaningConfig(strategy=("motion", "compcor", "high_pass")))


def test_an_fmriprep_table_that_was_saved_with_row_numbers(tmp_path):
    fmriprep_table().to_csv(tmp_path / "confounds.tsv", sep="\t", na_rep="n/a")
    assert len(_read(tmp_path / "confounds.tsv", MOTION).names) == 26
