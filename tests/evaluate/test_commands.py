"""From other programs' files to an evaluation on disk: `pnet import` and `pnet evaluate`."""

import json

import numpy as np
import pandas as pd
import pytest

from pnet_jax.cli import main
from pnet_jax.errors import InputError
from pnet_jax.ingest.imported import import_cohort
from pnet_jax.outputs import load_cohort


def series(folder, n=24, k=8, frames=60, seed=0):
    """A table of ROI series: cases have a further signal in two regions."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(n):
        y = rng.normal(size=(frames, k)) + rng.normal(size=(frames, 1))
        y[:, :2] += 2 * (at % 2) * rng.normal(size=(frames, 1))
        pd.DataFrame(y, columns=[f"r{one}" for one in range(k)]).to_csv(folder / f"s{at}.tsv", sep="\t", index=False)
        rows.append({"participant_id": f"sub-{at:02d}", "file": f"s{at}.tsv", "dx": "case" if at % 2 else "control", "age": 20 + at})
    pd.DataFrame(rows).to_csv(folder / "table.tsv", sep="\t", index=False)
    return folder / "table.tsv"


def test_series_are_imported_and_evaluated(tmp_path, capsys):
    table = series(tmp_path)
    assert main(["import", str(table), str(tmp_path / "c.zarr"), "--tr", "2"]) == 0
    cohort = load_cohort(tmp_path / "c.zarr")
    assert cohort.names[:2] == ("r0", "r1")
    assert cohort.table["age"].tolist() == list(range(20, 44))
    assert cohort.table["minutes"][0] == pytest.approx(2.0)
    own = pd.read_csv(tmp_path / "s3.tsv", sep="\t").to_numpy()
    np.testing.assert_allclose(cohort.edges["pearson"][3], np.corrcoef(own.T), atol=1e-6)
    out = tmp_path / "out"
    options = ["--target", "dx", "--positive", "case", "--permutations", "0", "--repeats", "1", "--learning", "0.5", "--folds", "3"]
    assert main(["evaluate", "diagnosis", str(tmp_path / "c.zarr"), str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "separates case from control in held-out participants with AUC = " in said
    rows = pd.read_csv(out / "diagnosis.tsv", sep="\t")
    assert set(rows.columns) == {"table", "name", "measure", "value", "low", "high", "p", "n", "note"}
    content = json.loads((out / "diagnosis.json").read_text())
    assert content["settings"]["target"] == "dx" and content["settings"]["seed"] == 0 and content["scans"] == 24
    value = rows[(rows.name == "tangent + ridge") & (rows.measure == "AUC")].value.iloc[0]
    assert f"AUC = {value:.3f}" in content["sentences"][0]
    predictions = pd.read_csv(out / "diagnosis_predictions.tsv", sep="\t")
    assert len(predictions) == 24
    page = (out / "diagnosis.html").read_text()
    assert content["sentences"][0] in page.replace("&#39;", "'").replace("&gt;", ">")
    assert "http" not in page.replace("http-equiv", "")


def test_matrices_of_every_format_are_read_alike(tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    matrices = [np.corrcoef(rng.normal(size=(5, 30))) for _ in range(5)]
    np.save(tmp_path / "0.npy", matrices[0])
    np.savez(tmp_path / "1.npz", fc=matrices[1], other=np.arange(3))
    savemat(tmp_path / "2.mat", {"fc": matrices[2]})
    np.savetxt(tmp_path / "3.csv", matrices[3], delimiter=",")
    names = [f"p{k}" for k in range(5)]
    pd.DataFrame(matrices[4], names, names).to_csv(tmp_path / "4.tsv", sep="\t")
    files = ["0.npy", "1.npz", "2.mat", "3.csv", "4.tsv"]
    pd.DataFrame({"subject": list("abcde"), "file": files}).to_csv(tmp_path / "t.csv", index=False)
    cohort = import_cohort(tmp_path / "t.csv", measure="partial")
    np.testing.assert_allclose(cohort.edges["partial"], np.stack(matrices), atol=1e-6)
    assert cohort.signals is None


def test_what_cannot_be_imported_is_refused_with_file_and_participant(tmp_path):
    good = np.corrcoef(np.random.default_rng(0).normal(size=(4, 30)))
    np.save(tmp_path / "a.npy", good)

    def table(**files):
        pd.DataFrame({"participant_id": list(files), "file": list(files.values())}).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
        return tmp_path / "t.tsv"

    np.save(tmp_path / "small.npy", good[:3, :3])
    with pytest.raises(InputError, match=r"two: .*small.npy: expected 4 regions as in the first file, found 3"):
        import_cohort(table(one="a.npy", two="small.npy"))
    wrong = good.copy()
    wrong[0, 1] += 0.5
    np.save(tmp_path / "wrong.npy", wrong)
    with pytest.raises(InputError, match=r"two: .*wrong.npy: expected a symmetric matrix"):
        import_cohort(table(one="a.npy", two="wrong.npy"), kind="matrix")
    with pytest.raises(FileNotFoundError, match=r"one: .*none.npy: no such file"):
        import_cohort(table(one="none.npy"))
    with pytest.raises(InputError, match="expected every scan once"):
        (tmp_path / "t.tsv").write_text("participant_id\tfile\n1\ta.npy\n1\ta.npy\n")
        import_cohort(tmp_path / "t.tsv")
    with pytest.raises(InputError, match="expected a column file or path"):
        (tmp_path / "t.tsv").write_text("participant_id\tage\n1\t3\n")
        import_cohort(tmp_path / "t.tsv")


def test_fixed_folds_are_read_and_a_subject_in_two_folds_is_refused(tmp_path, capsys):
    table = series(tmp_path)
    main(["import", str(table), str(tmp_path / "c.zarr"), "--tr", "2"])
    folds = tmp_path / "folds.tsv"
    folds.write_text("participant_id\tfold\n" + "".join(f"sub-{at:02d}\t{at // 8}\n" for at in range(24)))
    few = ["--target", "dx", "--permutations", "0", "--features", "pearson", "--no-report", "--models", "ridge"]
    assert main(["evaluate", "diagnosis", str(tmp_path / "c.zarr"), str(tmp_path / "o"), *few, "--fold-list", str(folds)]) == 0
    assert json.loads((tmp_path / "o" / "diagnosis.json").read_text())["settings"]["folds"] == "folds from a list"
    folds.write_text(folds.read_text() + "sub-00\t2\n")
    assert main(["evaluate", "diagnosis", str(tmp_path / "c.zarr"), str(tmp_path / "o"), *few, "--fold-list", str(folds)]) == 1
    assert "found sub-00 in folds 0 and 2" in capsys.readouterr().err


def test_networks_and_threshold_of_circuits_are_options(tmp_path):
    table = series(tmp_path)
    main(["import", str(table), str(tmp_path / "c.zarr"), "--tr", "2"])
    networks = tmp_path / "networks.tsv"
    networks.write_text("name\tlobe\n" + "".join(f"r{one}\t{'first' if one < 2 else 'rest'}\n" for one in range(8)))
    few = ["--target", "dx", "--permutations", "99", "--no-report", "--primary-p", "0.01"]
    command = ["evaluate", "circuits", str(tmp_path / "c.zarr"), str(tmp_path / "o"), *few]
    assert main([*command, "--modules", str(networks), "--modules-column", "lobe"]) == 0
    settings = json.loads((tmp_path / "o" / "circuits.json").read_text())["settings"]
    assert (settings["networks"], settings["primary_p"]) == (["first", "rest"], 0.01)
    assert len(pd.read_csv(tmp_path / "o" / "circuits_blocks.tsv", sep="\t")) == 3
    assert main([*command, "--modules", "3"]) == 0
    assert len(json.loads((tmp_path / "o" / "circuits.json").read_text())["settings"]["networks"]) == 3


def test_networks_made_in_another_way_are_compared(tmp_path, capsys):
    for name, k in (("c", 8), ("w", 5)):
        (tmp_path / name).mkdir()
        main(["import", str(series(tmp_path / name, k=k, seed=k)), str(tmp_path / f"{name}.zarr"), "--tr", "2"])
    few = ["--target", "dx", "--permutations", "0", "--features", "pearson", "--no-report", "--models", "ridge", "--repeats", "1"]
    command = ["evaluate", "diagnosis", str(tmp_path / "c.zarr"), str(tmp_path / "o"), *few, "--folds", "3"]
    assert main([*command, "--beside", f"Ward={tmp_path / 'w.zarr'}", "--beside", f"same={tmp_path / 'c.zarr'}"]) == 0
    content = json.loads((tmp_path / "o" / "diagnosis.json").read_text())
    assert {name: one["parcels"] for name, one in content["settings"]["beside"].items()} == {"Ward": 5, "same": 8}
    apart = {row["name"]: row["value"] for row in content["rows"] if row["table"] == "differences"}
    assert apart["same: tangent + ridge"] == 0 and "Ward: tangent + ridge" in apart
    capsys.readouterr()
    assert main([*command, "--beside", "w.zarr"]) == 1
    assert "--beside: expected NAME=COHORT, got 'w.zarr'" in capsys.readouterr().err


def test_all_lists_what_cannot_be_evaluated(tmp_path, capsys):
    table = series(tmp_path)
    main(["import", str(table), str(tmp_path / "c.zarr"), "--tr", "2"])
    assert main(["evaluate", "all", str(tmp_path / "c.zarr"), str(tmp_path / "o"), "--prediction", "age", "--permutations", "19"]) == 1
    said = capsys.readouterr()
    assert "diagnosis was not evaluated: no column was given (--diagnosis COLUMN)" in said.err
    assert "motion was not evaluated: expected values of mean_fd, found none in 24 scans" in said.err
    assert "does not detectably predict age in held-out participants with r = " in said.out
    page = (tmp_path / "o" / "evaluation.html").read_text()
    assert "<strong>Diagnosis</strong> was not evaluated" in page
    assert "<dt>R²</dt><dd>Explained variance of held-out participants" in page


def test_an_unknown_question_names_the_nearest(capsys):
    assert main(["evaluate", "diagnoses"]) == 2
    assert 'Did you mean "diagnosis"?' in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "consistency  " in capsys.readouterr().out
