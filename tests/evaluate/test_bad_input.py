"""Input that cannot be evaluated is refused with one sentence, before anything is fitted; nothing wrong passes in silence."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pnet_jax.cli import main
from pnet_jax.cohort import make_cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import circuits, diagnosis, identifiability, motion, prediction
from pnet_jax.evaluate.checks import absent_parcels, equal_networks
from pnet_jax.evaluate.columns import missing
from pnet_jax.evaluate.compare import first_minutes
from pnet_jax.evaluate.split import joined_values
from pnet_jax.ingest.imported import import_cohort
from pnet_jax.outputs import write_cohort
from pnet_jax.outputs.tables import read_rows
from tests.evaluate.small import FEW, K, N, cohort, matrices, table

# tables of pnet import


@pytest.fixture
def files(tmp_path):
    for at, one in enumerate(matrices(3)):
        np.save(tmp_path / f"m{at}.npy", one)
        np.save(tmp_path / f"s{at}.npy", np.random.default_rng(at).normal(size=(40, K)))
    return tmp_path


def test_a_table_of_a_spreadsheet_is_read(files):
    text = "participant_id\tfile\tage (y)\tsubject\tsex\r\nsub-1\tm0.npy\tNA\tx\tF\r\n2 \tm1.npy\t31\ty\tNA\r\n\t\t\t\t\r\n"
    (files / "t.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = import_cohort(files / "t.tsv")
    assert found.subjects == ("1", "2")
    np.testing.assert_array_equal(found.table["age__y_"], [np.nan, 31])
    assert found.table["participant_subject"].tolist() == ["x", "y"] and missing(found.table["sex"]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "t.tsv: the file is empty"),
        (b"participant_id\tfile\n", "t.tsv: the table is empty"),
        ("participant_id\tfile\n1\tm0.npy\n".encode("utf-16"), "t.tsv: not a text file in UTF-8"),
        ("participant_id\tfile\tsite\n1\tm0.npy\tZürich\n".encode("latin-1"), "t.tsv: not a text file in UTF-8"),
        (b"participant_id\tfile\n1\tm0.npy\n2\tm1.npy\ta\tb\n", "t.tsv: not a readable table"),
        (b"participant_id\tfile\tdx\tdx\n1\tm0.npy\ta\tb\n", "expected columns with different names, found 'dx' 2 times"),
        (b"participant_id\tfile\n1\tm0.npy\nn/a\tm1.npy\n", "expected a value of participant_id in every row, found none in row 2"),
        (b"participant_id\tfile\n1\tm0.npy\n2\t\n", "expected a value of file in every row, found none in row 2"),
        (b"participant_id\tfile\n1\tm0.npy\nx_ses-2\tm1.npy\n", "without keys such as _ses- or _run-, found subject 'x_ses-2'"),
        (b"participant_id\tfile\tmean_fd\n1\tm0.npy\tlow\n", "expected numbers in column mean_fd, found 'low' for 1"),
        (b"participant_id\tfile\ttr\n1\ts0.npy\tfast\n", "expected seconds in column tr, found 'fast' for 1"),
        (b"participant_id\tfile\ttr\n1\ts0.npy\t-2\n", "tr: expected seconds above 0, found -2 for subject 1"),
        (b"participant_id\tfile\ta b\ta-b\n1\tm0.npy\tx\ty\n", "found two that become 'a_b'"),
    ],
)
def test_a_table_that_cannot_be_imported_is_refused(files, content, said, capsys):
    (files / "t.tsv").write_bytes(content)
    assert main(["import", str(files / "t.tsv"), str(files / "c.zarr")]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (files / "c.zarr").exists()


def damaged(name, folder):
    if name == "cut.npz":
        np.savez(folder / "whole.npz", fc=matrices(1)[0])
        content = (folder / "whole.npz").read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    elif name == "objects.npz":
        np.savez(folder / name, fc=np.array([{"a": 1}], object))
    elif name == "complex.npz":
        np.savez(folder / name, fc=matrices(1)[0] + 1j)
    else:
        (folder / name).write_bytes(b"")
    return name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.npz", "not a readable .npz file"),
        ("empty.mat", "not a readable .mat file"),
        ("cut.npz", "not a readable .npz file"),
        ("objects.npz", "allow_pickle=False"),
        ("complex.npz", "expected a matrix of real numbers, found shape"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(files, name, said, capsys):
    given = table(files, [("1", damaged(name, files)), ("2", "m0.npy")])
    assert main(["import", str(given), str(files / "c.zarr")]) == 1
    error = capsys.readouterr().err
    assert said in error and f"1: {files / name}" in error and "Traceback" not in error


def changed(change):
    one = matrices(1)[0]
    change(one)
    return one


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(lambda m: m.__setitem__((0, 1), m[0, 1] + 0.3)), "expected a symmetric matrix, found a square one that is not"),
        (np.zeros((40, K)), "expected a symmetric matrix, found 40 x 6 values"),
        (np.full((K, K), np.nan), "expected edges, found no finite value"),
        (changed(lambda m: m.__setitem__(([0, 1], [1, 0]), np.inf)), "found an infinite value"),
        (changed(lambda m: m.__setitem__(([0, 1], [1, 0]), 1.7)), "are correlations: expected −1…1, found an absolute value of 1.7"),
        (np.full((K, K), 1e300), "within the range of float32"),
    ],
)
def test_a_matrix_that_is_none_is_refused(files, values, said):
    np.save(files / "bad.npy", values)
    with pytest.raises(InputError, match=said):
        import_cohort(table(files, [("1", "m0.npy"), ("2", "bad.npy")]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((2, K)), "expected 10 frames or more, found 2"),
        (np.random.default_rng(0).normal(size=(40, K)) * 1e200, "expected 3 regions or more with a finite, varying signal, found 0 of 6"),
        (np.random.default_rng(0).normal(size=(K, 40)), "expected 6 regions as in the first file, found 40"),
    ],
)
def test_series_that_are_none_are_refused(files, values, said):
    np.save(files / "bad.npy", values)
    with pytest.raises(InputError, match=said):
        import_cohort(table(files, [("1", "s0.npy"), ("2", "bad.npy")]), tr=2.0)


def test_a_region_without_a_signal_is_absent_with_a_warning(files):
    y = np.random.default_rng(0).normal(size=(40, K))
    y[3, 2], y[:, 4] = np.nan, 5
    np.save(files / "part.npy", y)
    with pytest.warns(UserWarning, match=r"signal are absent: 2 of 6 in 2: .*part.npy"):
        found = import_cohort(table(files, [("1", "s0.npy"), ("2", "part.npy")]), tr=2.0)
    assert np.isnan(found.signals[1]).all(1).tolist() == [False, False, True, False, True, False]
    assert absent_parcels(found) == ["Only the 4 of 6 parcels that are in every scan are used; sub-2 lacks 2."]
    np.save(files / "t.npy", np.random.default_rng(0).normal(size=(12, 40)))
    with pytest.warns(UserWarning, match="transpose them if that is wrong"):
        import_cohort(table(files, [("1", "t.npy")]), tr=2.0)


def test_regions_in_another_order_are_refused(tmp_path):
    names = list("abcd")
    one = matrices(1, 4)[0]
    pd.DataFrame(one, names, names).to_csv(tmp_path / "1.csv")
    pd.DataFrame(one, names[::-1], names[::-1]).to_csv(tmp_path / "2.csv")
    with pytest.raises(InputError, match=r"2: .*2.csv: expected the regions of 1: .* in the same order, found 'd' for 'a'"):
        import_cohort(table(tmp_path, [("1", "1.csv"), ("2", "2.csv")]))
    pd.DataFrame(one, names[::-1], names).to_csv(tmp_path / "3.csv")
    with pytest.raises(InputError, match="expected rows and columns in the same order, found row 'd' and column 'a'"):
        import_cohort(table(tmp_path, [("1", "3.csv")]))


def test_participants_of_a_folder_are_checked(tmp_path):
    (tmp_path / "sub-1_relmat.tsv").write_text("a\tb\tc\n1\t0\t0\n0\t1\t0\n0\t0\t1\n")
    (tmp_path / "participants.tsv").write_text("subject\tage\n1\t30\n")
    with pytest.raises(InputError, match=r"participants.tsv: expected a column participant_id, found subject, age"):
        import_cohort(tmp_path)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n1\t30\nsub-1\t31\n")
    with pytest.raises(InputError, match="expected one row for each participant, found several of 1"):
        import_cohort(tmp_path)


def test_rows_of_a_table_are_whole(tmp_path):
    file = tmp_path / "participants.tsv"
    file.write_bytes(b"\xef\xbb\xbfparticipant_id\tage\r\n1\t30\r\n")
    assert read_rows(file) == [{"participant_id": "1", "age": "30"}]
    file.write_text("participant_id\tage\n1\t30\t4\n")
    with pytest.raises(InputError, match="expected 2 fields separated by tabs in every row, found more in row 1"):
        read_rows(file)
    file.write_bytes("participant_id\tsite\n1\tZürich\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"participants.tsv: not a table in UTF-8"):
        read_rows(file)


# cohorts made in Python


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"edges": {"pearson": matrices(3)}}, "pearson: expected one value for each of the 2 scans, found 3"),
        ({"signals": [np.zeros((3, 40))]}, "signals: expected one value for each of the 2 scans, found 1"),
        ({"edges": {"pearson": matrices(2)}, "sessions": ["a"]}, "sessions: expected one value for each of the 2 scans, found 1"),
        ({"edges": {"pearson": matrices(2)}, "covariates": {"mean_fd": [1]}}, "mean_fd: expected one value for each of the 2 scans"),
        ({"edges": {"pearson": matrices(2)}, "covariates": {"mean_fd": ["a", "b"]}}, "mean_fd: expected numbers"),
        ({"signals": [np.zeros(40)] * 2}, r"signals of scan 1: expected an array \[parcels, frames\], found shape"),
        ({"edges": {"pearson": matrices(2) + 1j}}, "pearson: expected real numbers, found values of type complex128"),
        ({"signals": [np.ones((3, 40))] * 2, "tr": [2, 2, 2]}, "tr: expected one number or one for each of the 2 scans, found 3"),
        ({"signals": [np.ones((3, 40))] * 2, "tr": 0}, "tr: expected seconds above 0, found 0 for subject a"),
        ({"edges": {"pearson": 5 * matrices(2)}}, "sub-a: edges 'pearson' are correlations"),
    ],
)
def test_a_cohort_of_parts_that_do_not_fit_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        make_cohort(["a", "b"], **arguments)


# settings and columns of evaluations


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"folds": 1}, SettingsError, "expected 2 folds or more and 1 repeat or more, got 1 folds"),
        ({"repeats": 0}, SettingsError, "1 repeat or more, got 3 folds and 0 repeats"),
        ({"permutations": -1}, SettingsError, "permutations: expected 0 or more, got -1"),
        ({"learning": [0.0]}, SettingsError, "learning: expected fractions above 0, up to 1, got 0"),
        ({"learning": [float("nan")]}, SettingsError, "learning: expected fractions"),
        ({"models": []}, SettingsError, "models: expected some of ridge"),
        ({"models": ["ridg"]}, SettingsError, "models: expected some of .*, got 'ridg'; did you mean 'ridge'"),
        ({"site": "sit"}, SettingsError, "the cohort has no column 'sit'"),
        ({"leave_out": "sites"}, SettingsError, "leave_out: expected site, subject or auto"),
        ({"covariates": ["agee"]}, SettingsError, "the cohort has no column 'agee'; did you mean 'age'"),
        ({"covariates": ["subject"]}, SettingsError, "subject: expected a property of the participants"),
        ({"covariates": ["dx"]}, SettingsError, "covariates: expected columns other than the target, got 'dx'"),
        ({"held_out": [["00"]]}, InputError, "expected both classes among the held-out scans, found 1 scans"),
        ({"held_out": [[f"{at:02d}" for at in range(0, N, 2)]]}, InputError, "the training scans of fold 1 are all of class control"),
        ({"held_out": [["zz"]]}, InputError, "fold 1 names 1 subjects that the cohort does not have, first zz"),
    ],
)
def test_settings_of_diagnosis_are_refused_before_the_first_fit(settings, error, said):
    with pytest.raises(error, match=said):
        diagnosis(cohort(), "dx", **(FEW | settings))


def test_labels_are_neither_targets_nor_covariates():
    given = cohort()
    few = {name: value for name, value in FEW.items() if name != "models"}
    with pytest.raises(SettingsError, match="subject: expected a property of the participants"):
        prediction(given, "subject", **few)
    with pytest.raises(SettingsError, match="subject: expected a property of the participants"):
        circuits(given, "dx", covariates=["subject"], permutations=1)
    with pytest.raises(InputError, match="expected 3 values of age or more that differ among the held-out scans, found 2"):
        prediction(given, "age", held_out=[["00", "01"]], **few)
    with pytest.raises(InputError, match=r"covariate q: expected finite numbers, found an infinite one for sub-02"):
        circuits(cohort(q=np.array(["1", "2", "inf"] * (N // 3))), "dx", covariates=["q"], permutations=1)


def test_numbers_and_parcels_that_give_no_valid_score_are_refused():
    few = {name: value for name, value in FEW.items() if name != "models"}
    with pytest.raises(InputError, match=r"age: expected numbers up to 1e\+100, found 1e\+300 for sub-02"):
        prediction(cohort(age=np.where(np.arange(N) == 2, 1e300, np.arange(N))), "age", **few)
    with pytest.raises(InputError, match="age: expected 3 numbers or more, found 2"):
        prediction(cohort(age=np.array([1.0, 2.0] + [np.nan] * (N - 2))), "age", **few)
    with pytest.raises(InputError, match="edges 'pearson': expected 3 parcels or more, found 2"):
        diagnosis(cohort(matrices(k=2)), "dx", **FEW)
    with pytest.raises(InputError, match="expected at least one scan, found an empty cohort"):
        diagnosis(cohort().take(np.zeros(N, bool)), "dx", **FEW)


def test_motion_and_identifiability_refuse_what_gives_no_number():
    fd, same = np.linspace(0.1, 0.4, N), np.stack([matrices(1)[0]] * N)
    with pytest.raises(InputError, match="expected framewise displacement of 0 mm or more, found -0.4 mm"):
        motion(cohort(mean_fd=-fd))
    with pytest.raises(InputError, match="motion: expected edges that differ between participants, found none in 'pearson'"):
        motion(cohort(same, mean_fd=fd))
    with pytest.raises(SettingsError, match="motion: expected 1 permutation or more and 2 folds or more, got 0 and 5"):
        motion(cohort(mean_fd=fd), permutations=0)
    repeated = {"subjects": [f"{at // 2:02d}" for at in range(N)], "sessions": ["1", "2"] * (N // 2)}
    with pytest.raises(SettingsError, match="identifiability: expected 1 permutation or more, got 0"):
        identifiability(cohort(**repeated), permutations=0)
    with pytest.raises(InputError, match="identifiability: expected edges that differ between scans"):
        identifiability(cohort(same, **repeated))


def test_participants_without_a_target_may_be_in_a_list_of_folds():
    dx = np.array(["case", "control"] * (N // 2))
    dx[5] = "n/a"
    held = [[f"{at:02d}" for at in range(start, N, 3)] for start in range(3)]
    answer = diagnosis(cohort(dx=dx), "dx", held_out=held, **FEW)
    assert answer.settings["left_out_without_target"] == 1 and len(answer.tables["predictions"]["scan"]) == N - 1


def test_a_participant_in_both_classes_is_reported():
    dx = np.repeat(["case", "control"] * (N // 4), 2)
    dx[0] = "control"
    subjects, sessions = [f"{at // 2:02d}" for at in range(N)], ["1", "2"] * (N // 2)
    answer = diagnosis(cohort(subjects=subjects, sessions=sessions, dx=dx), "dx", **FEW)
    assert any("1 of 12 participants have scans of both classes, first 00" in one for one in answer.warnings)


def test_one_file_for_several_participants_is_noticed():
    edges = matrices()
    edges[7] = edges[2]
    assert equal_networks(cohort()) == []
    assert equal_networks(cohort(edges)) == [
        "1 scans have the same network as a scan of another participant, first sub-02 and sub-07: check the files."
    ]
    with pytest.raises(InputError, match="expected networks that differ between scans, found 24 scans with the same values"):
        diagnosis(cohort(np.stack([edges[0]] * N)), "dx", **FEW)


def test_folds_are_named_by_their_number():
    few = {name: value for name, value in FEW.items() if name != "models"} | {"folds": 13}
    assert prediction(cohort(), "age", **few).settings["folds"] == "6-fold by subject"


def test_lengths_of_a_learning_curve_need_times():
    signals = [np.random.default_rng(at).normal(size=(4, 40)) for at in range(3)]
    given = make_cohort(["1", "2", "3"], signals=signals, tr=[2.0, np.nan, 2.0])
    with pytest.raises(InputError, match="needs repetition times, but that of sub-2 is unknown"):
        first_minutes(given, 1.0)
    with pytest.raises(SettingsError, match="minutes: expected lengths above 0, got -1"):
        first_minutes(given, -1.0)


def test_the_command_checks_seed_output_and_folds_first(tmp_path, capsys):
    write_cohort(tmp_path / "c.zarr", cohort())
    command = ["evaluate", "diagnosis", str(tmp_path / "c.zarr")]
    few = ["--target", "dx", "--features", "pearson", "--models", "ridge", "--permutations", "0", "--no-report"]
    assert main([*command, str(tmp_path / "o"), *few, "--seed", "-1"]) == 2
    assert "--seed: expected a whole number from 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*command, str(tmp_path / "file"), *few]) == 1
    assert "file is a file" in capsys.readouterr().err
    (tmp_path / "folds.tsv").write_text("participant_id\tfold\n00\tn/a\n")
    assert main([*command, str(tmp_path / "o"), *few, "--fold-list", str(tmp_path / "folds.tsv")]) == 1
    assert "expected a participant and a fold in every row, found 00 and none" in capsys.readouterr().err


def test_names_from_tables_are_escaped_in_the_page(tmp_path):
    text = "<script>alert(1)</script>"
    given = cohort(dx=np.array([text, "control"] * (N // 2)))
    write_cohort(tmp_path / "c.zarr", given)
    few = ["--target", "dx", "--features", "pearson", "--models", "ridge", "--permutations", "0", "--repeats", "1", "--folds", "3"]
    assert main(["evaluate", "diagnosis", str(tmp_path / "c.zarr"), str(tmp_path / "o"), *few]) == 0
    assert "<script>alert" not in (tmp_path / "o" / "diagnosis.html").read_text()
    assert text in json.loads((tmp_path / "o" / "diagnosis.json").read_text())["settings"]["classes"]


# few participants: one rule for classes and numbers


NUMBERS = {name: value for name, value in FEW.items() if name != "models"}


def test_fewer_than_ten_participants_are_refused_for_classes_and_numbers():
    with pytest.raises(InputError, match="dx: expected 5 participants or more of class case, found 3"):
        diagnosis(cohort().take(np.arange(6)), "dx", **FEW)
    with pytest.raises(InputError, match="age: expected 10 participants or more with a value of age, found 6"):
        prediction(cohort().take(np.arange(6)), "age", **NUMBERS)
    twice = cohort(subjects=[f"{at // 4:02d}" for at in range(N)], sessions=[str(at % 4) for at in range(N)])
    with pytest.raises(InputError, match="dx: expected 10 participants or more with a value of dx, found 6"):
        diagnosis(twice, "dx", **FEW)


def test_few_participants_give_the_same_warning_for_classes_and_numbers():
    said = [diagnosis(cohort(), "dx", **FEW), prediction(cohort(), "age", **NUMBERS)]
    assert "There are only 12 participants of class case (fewer than 20)" in said[0].warnings[0]
    assert "There are only 24 participants with a value of age (fewer than 40)" in said[1].warnings[0]
    assert all(one.warnings[0].endswith(": intervals are wide, and pipelines cannot be ranked.") for one in said)


def test_a_scale_with_a_rare_value_is_predicted():
    scale = np.repeat([0.0, 1, 2, 3], [10, 8, 5, 1])
    np.testing.assert_array_equal(joined_values(scale, np.arange(N).astype(str), 3), np.repeat([0, 1, 2], [10, 8, 6]))
    np.testing.assert_array_equal(joined_values(scale, np.repeat("a", N), 3), np.zeros(N))
    assert prediction(cohort(scale=scale), "scale", **NUMBERS).settings["folds"] == "3-fold by subject"


def test_sites_with_one_class_can_be_training_sites():
    """The inner folds then hold out participants, since a classifier cannot be fitted to one class."""
    dx = np.array(["case", "control"] * 8 + ["control"] * 8)
    answer = diagnosis(cohort(dx=dx, site=np.repeat(["a", "b", "c"], 8)), "dx", **FEW | {"models": ["ridge", "logistic", "svm"]})
    assert answer.settings["folds"] == "leave one site out"
    lone = np.array(["case"] * 8 + ["control"] * 7 + ["case"] + ["control"] * 8)
    with pytest.raises(InputError, match="two participants or more of class case in the training part of fold 1, found 1"):
        diagnosis(cohort(dx=lone, site=np.repeat(["a", "b", "c"], 8)), "dx", **FEW)


def test_a_graph_network_that_cannot_be_fitted_is_left_out_with_the_reason(monkeypatch):
    from pnet_jax.evaluate import graph

    answer = prediction(cohort(), "age", **NUMBERS | {"features": ["pearson", "graph"]})
    assert any("'graph' was not compared: the graph network classifies two groups" in one for one in answer.warnings)
    monkeypatch.setattr(graph.Split, "inner", lambda *_: [(np.array([0, 2, 4]), np.array([1, 3, 5]))])
    split = graph.Split(np.arange(N).astype(str), ((np.arange(12), np.arange(12, N)),), "fold")
    with pytest.raises(InputError, match="fold: no inner fold, which chooses the number of epochs, has both classes in both parts"):
        graph.graph_predictions(cohort(), split, np.arange(N) % 2.0)
