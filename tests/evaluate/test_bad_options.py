"""Options, files and folders of `pnet evaluate` that cannot be used are refused in one sentence; `all` names what a cohort lacks."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from pnet_jax.cli import main
from pnet_jax.cohort import make_cohort
from pnet_jax.outputs import write_cohort
from pnet_jax.outputs.tables import read_rows
from tests.evaluate.small import K, N, cohort, matrices, table


@pytest.fixture
def stored(tmp_path):
    write_cohort(tmp_path / "c.zarr", cohort(mean_fd=np.linspace(0.1, 0.4, N)))
    return tmp_path


def evaluated(question, folder, *words, out="o"):
    return main(["evaluate", question, str(folder / "c.zarr"), str(folder / out), "--no-report", *map(str, words)])


def networks(folder, rows, column="network"):
    return table(folder, rows, f"name\t{column}", "networks.tsv")


CIRCUITS = ("--target", "dx", "--permutations", "19")
NAMES = [f"parcel {at + 1}" for at in range(K)]


@pytest.mark.parametrize("p", ["0", "1", "0.5", "-0.1"])
def test_a_primary_threshold_out_of_range_is_refused(stored, p, capsys):
    assert evaluated("circuits", stored, *CIRCUITS, "--primary-p", p) == 1
    assert f"primary_p: expected a number between 0 and 0.5, got {float(p)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0", "modules: expected a number from 2 to 5 for 6 parcels, got 0"),
        ("1", "modules: expected a number from 2 to 5 for 6 parcels, got 1"),
        ("6", "modules: expected a number from 2 to 5 for 6 parcels, got 6"),
        ("-1", "--modules: expected a table or a whole number of clusters, got -1"),
        ("nan", "--modules: expected a table or a whole number of clusters, got nan"),
        ("2.5", "--modules: expected a table or a whole number of clusters, got 2.5"),
        ("none.tsv", "table of networks none.tsv: no such file"),
    ],
)
def test_a_number_of_modules_out_of_range_is_refused(stored, given, said, capsys):
    assert evaluated("circuits", stored, *CIRCUITS, "--modules", given) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(name, "x") for name in NAMES], "modules: expected two networks or more among the 6 parcels of all scans, found only 'x'"),
        (
            [(name, "n/a") for name in NAMES],
            "expected the 6 parcels of the cohort, such as 'parcel 1', in column 'name', found 'parcel 1' first",
        ),
        ([("area 1", "x"), ("area 2", "y")], "expected the 6 parcels of the cohort, such as 'parcel 1'"),
        ([(NAMES[0], "x"), (NAMES[1], "y"), (NAMES[0], "y")], "parcel 'parcel 1' has two networks, 'x' and 'y': expected one"),
    ],
)
def test_a_table_of_networks_that_cannot_be_used_is_refused(stored, rows, said, capsys):
    assert evaluated("circuits", stored, *CIRCUITS, "--modules", networks(stored, rows)) == 1
    assert said in capsys.readouterr().err


def test_networks_are_matched_by_name_and_missing_parcels_are_reported(stored, capsys):
    of = dict(zip(NAMES, "aabbcc", strict=True))
    rows = [*reversed(of.items()), ("parcel of another atlas", "d"), (NAMES[0], "a")]
    assert evaluated("circuits", stored, *CIRCUITS, "--modules", networks(stored, rows)) == 0
    found = read_rows(stored / "o" / "circuits_nodes.tsv")
    assert {row["parcel"]: row["module"] for row in found} == of
    capsys.readouterr()
    assert evaluated("circuits", stored, *CIRCUITS, "--modules", networks(stored, list(of.items())[:4])) == 0
    assert "2 of 6 parcels belong to no network" in capsys.readouterr().err


def test_a_column_of_networks_needs_a_table_that_has_it(stored, capsys):
    file = networks(stored, list(zip(NAMES, "aabbcc", strict=True)))
    for words, said in (
        (("--modules", file, "--modules-column", "lobe"), "expected a column 'lobe' with the network of each parcel, found name, network"),
        (("--modules", file, "--modules-column", "name"), "with the parcels beside 'name', found name, network"),
        (
            ("--modules-column", "lobe"),
            "--modules-column: expected the table of an atlas with it (--modules FILE), got 'lobe' without a table",
        ),
        (("--modules", "3", "--modules-column", "lobe"), "got 'lobe' without a table"),
    ):
        assert evaluated("circuits", stored, *CIRCUITS, *words) == 1
        assert said in capsys.readouterr().err


FAST = ("--target", "age", "--features", "pearson", "--permutations", "0", "--repeats", "1", "--learning", "1")


def test_a_path_that_is_not_a_cohort_is_refused(stored, capsys):
    (stored / "empty").mkdir()
    (stored / "x.npy").write_bytes(b"")
    for name, said in (
        (".", "found none; the folder contains the stores c.zarr"),
        ("empty", "expected networks written by `pnet construct`, found none\n"),
        ("x.npy", "x.npy: expected a cohort store or a folder of results, found a file"),
        ("nothing", "nothing: expected a cohort store or a folder of results, found nothing"),
    ):
        assert main(["evaluate", "prediction", str(stored / name), str(stored / "o"), *FAST]) == 1
        assert said in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_used_is_refused(stored, capsys):
    (stored / "file").write_text("")
    for out, said in (
        ("file", "file is a file"),
        ("file/o", "cannot write into the output folder"),
        ("c.zarr", "which must not hold other files: choose another folder"),
        ("c.zarr/o", "which must not hold other files: choose another folder"),
    ):
        assert evaluated("prediction", stored, *FAST, out=out) == 1
        assert said in capsys.readouterr().err
    assert not list((stored / "c.zarr").glob("prediction*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder_is_refused(stored, capsys):
    (stored / "locked").mkdir(mode=0o500)
    assert evaluated("prediction", stored, *FAST, out="locked") == 1
    assert "cannot write into the output folder (Permission denied)" in capsys.readouterr().err


def test_options_for_folders_are_refused_for_a_store(stored, capsys):
    for option in ("--atlas", "--participants"):
        assert evaluated("prediction", stored, *FAST, option, "x") == 1
        assert "is a store, which has one atlas and its own table: use" in capsys.readouterr().err


def test_a_folder_with_results_for_two_atlases_is_refused(stored, capsys):
    for atlas in ("A", "B"):
        for end in ("dseg.tsv", "relmat.tsv"):
            file = stored / "results" / "sub-1" / "func" / f"sub-1_task-rest_atlas-pnet_seg-{atlas}_{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("index\tname\n1\ta\n")
    folder = str(stored / "results")
    for words in ((folder, str(stored / "o"), *FAST), (str(stored / "c.zarr"), str(stored / "o"), *FAST, "--beside", f"two={folder}")):
        assert main(["evaluate", "prediction", *words]) == 1
        assert "has networks for 2 atlases (A, B); choose one with --atlas LABEL" in capsys.readouterr().err


def test_networks_beside_are_matched_by_scan_and_not_by_position(stored, capsys):
    write_cohort(stored / "reversed.zarr", cohort().take(np.arange(N)[::-1]))
    assert evaluated("prediction", stored, *FAST, "--beside", f"reversed={stored / 'reversed.zarr'}") == 0
    apart = [row for row in json.loads((stored / "o" / "prediction.json").read_text())["rows"] if row["table"] == "differences"]
    assert [(row["value"], row["low"], row["high"]) for row in apart] == [(0, 0, 0)]
    capsys.readouterr()
    write_cohort(stored / "others.zarr", cohort(subjects=[f"x{at}" for at in range(N)]))
    write_cohort(stored / "three.zarr", cohort().take(np.arange(3)))
    for name, said in (
        ("others", "others: expected networks of the same scans, found no scan in common"),
        ("three", "with a value of age, found 3"),
    ):
        assert evaluated("prediction", stored, *FAST, "--beside", f"{name}={stored / name}.zarr") == 1
        assert said in capsys.readouterr().err


# all evaluations of a cohort that lacks what some of them need


ALL = ("--diagnosis", "dx", "--prediction", "age", "--permutations", "9")


@pytest.fixture
def quick(monkeypatch):
    """The evaluations that need no fits; the others take long and have tests of their own."""
    from pnet_jax.commands import questions as module

    every = module._every

    def few(*given):
        return {name: one for name, one in every(*given).items() if name in ("consistency", "identifiability", "motion", "circuits")}

    monkeypatch.setattr(module, "_every", few)


def test_all_names_what_a_cohort_lacks_and_makes_the_others(stored, quick, capsys):
    assert evaluated("all", stored, *ALL) == 1
    said = capsys.readouterr()
    assert "consistency was not evaluated: expected at least two participants with two scans" in said.err
    assert "correlation of pearson edges with head motion" in said.out and "dx control (n = 12) against case" in said.out
    assert {file.name for file in (stored / "o").glob("*.json")} == {"motion.json", "circuits.json"}


@pytest.mark.parametrize(
    ("columns", "words", "said"),
    [
        ({}, (), "circuits was not evaluated: the cohort has no column 'dx'; its columns are"),
        ({"dx": np.array(["case"] * N)}, (), "circuits was not evaluated: dx: expected two classes, found 1: case"),
        (
            {"dx": np.array(["a", "b"] * 12), "q": np.r_[np.nan, np.arange(23.0)]},
            ("--covariates", "q"),
            "covariate q: 1 of 24 scans have no value",
        ),
        (
            {"dx": np.array(["a", "b"] * 12), "site": np.array(["x"] * 23 + [""])},
            (),
            "circuits was not evaluated: site: 1 scans have no value",
        ),
    ],
)
def test_all_reports_each_reason(tmp_path, quick, columns, words, said, capsys):
    given = make_cohort(
        [f"{at:02d}" for at in range(N)], edges={"pearson": matrices()}, covariates=columns | {"mean_fd": np.linspace(0.1, 0.4, N)}
    )
    write_cohort(tmp_path / "c.zarr", given)
    assert evaluated("all", tmp_path, *ALL, *words) == 1
    assert said in capsys.readouterr().err


def test_all_does_not_count_an_evaluation_that_was_not_requested(tmp_path, quick, capsys):
    repeated = {"subjects": [f"{at // 2:02d}" for at in range(N)], "sessions": ["1", "2"] * (N // 2)}
    write_cohort(tmp_path / "c.zarr", cohort(mean_fd=np.linspace(0.1, 0.4, N), **repeated))
    assert evaluated("all", tmp_path, "--permutations", "9") == 0
    assert "circuits was not evaluated: no column was given (--diagnosis COLUMN)" in capsys.readouterr().err


def test_all_without_any_result_is_an_error(tmp_path, quick, capsys):
    write_cohort(tmp_path / "c.zarr", cohort())
    assert evaluated("all", tmp_path) == 1
    assert "no evaluation was possible" in capsys.readouterr().err
