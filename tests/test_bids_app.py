"""`pnet-bids`: what it runs, what it refuses, and both levels on a simulated cohort."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pnet_jax import execution
from pnet_jax.bids_app import command_of, main, make_parser
from pnet_jax.checkpoint import save_model
from pnet_jax.config import SimulateConfig
from pnet_jax.outputs import load_cohort
from pnet_jax.outputs.simulated import write_cohort


@pytest.fixture
def raw(tmp_path):
    """A raw dataset with the folder of derivatives of fMRIPrep in it."""
    folder = tmp_path / "raw"
    (folder / "derivatives/fmriprep").mkdir(parents=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "a", "BIDSVersion": "1.10.0"}))
    return folder


def ran(*arguments) -> list[str]:
    return command_of(make_parser().parse_args([str(one) for one in arguments]))


def test_the_participant_level_constructs_the_derivatives_in_a_raw_dataset(raw, tmp_path):
    out = tmp_path / "out"
    options = ("--participant-label", "01", "02", "--session_label", "a", "--task", "rest", "--space", "fsLR", "--config", "c.toml")
    expected = ["construct", str(raw / "derivatives/fmriprep"), str(out), "--resume", "--participant-label", "01", "02"]
    expected += ["--session-label", "a", "--task", "rest", "--space", "fsLR", "--config", "c.toml"]
    assert ran(raw, out, "participant", *options) == expected
    (tmp_path / "other").mkdir()
    assert ran(raw, out, "participant", "-d", tmp_path / "other")[1] == str(tmp_path / "other")


def test_a_folder_of_derivatives_is_read_itself(raw, tmp_path):
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "a", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}))
    (raw / "derivatives/fmriprep").rmdir()
    assert ran(raw, tmp_path / "out", "participant")[1] == str(raw)


def test_the_group_level_collects_with_the_participants(raw, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "status.tsv").touch()
    assert ran(raw, out, "group") == ["collect", str(out)]
    (raw / "participants.tsv").touch()
    assert ran(raw, out, "group") == ["collect", str(out), "--participants", str(raw / "participants.tsv")]


@pytest.mark.parametrize(
    ("broken", "arguments", "message"),
    [
        (lambda raw: None, ("{raw}/none", "{out}", "participant"), r"BIDS_DIR .*none: folder not found"),
        (lambda raw: None, ("{raw}", "{raw}", "participant"), r"OUT_DIR and BIDS_DIR are the same folder"),
        (lambda raw: (raw / "dataset_description.json").unlink(), ("{raw}", "{out}", "participant"), r"found no dataset_description.json"),
        (lambda raw: (raw / "dataset_description.json").write_text("{"), ("{raw}", "{out}", "participant"), r"expected JSON, found"),
        (
            lambda raw: (raw / "dataset_description.json").write_text('{"Name": "a"}'),
            ("{raw}", "{out}", "participant"),
            r"found no BIDSVersion; correct it, or use --skip-bids-validation",
        ),
        (
            lambda raw: (raw / "derivatives/fmriprep").rmdir(),
            ("{raw}", "{out}", "participant"),
            r"run fMRIPrep first, or give the folder of its results",
        ),
        (lambda raw: None, ("{raw}", "{out}", "participant", "-d", "{raw}/none"), r"--derivatives: folder .* not found"),
        (lambda raw: None, ("{raw}", "{out}", "group"), r"found no status.tsv; run the participant level first"),
        (lambda raw: None, ("{raw}", "{out}", "group", "--task", "rest"), r"--task is an option of the participant level"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(broken, arguments, message, raw, tmp_path, capsys):
    broken(raw)
    code = main([one.format(raw=raw, out=tmp_path / "out") for one in arguments])
    told = capsys.readouterr().err
    assert code == 1 and told.startswith("pnet-bids: ") and told.count("\n") == 1
    assert re.search(message, told), told


def test_without_validation_no_description_is_read(raw, tmp_path):
    (raw / "dataset_description.json").unlink()
    assert ran(raw, tmp_path / "out", "participant", "--skip-bids-validation")


@pytest.mark.parametrize("wrong", [("somewhere",), ("participant", "--mem-mb", "much"), ("participant", "--nprocs", "0")])
def test_wrong_usage_ends_with_2(wrong, raw, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(raw), str(tmp_path / "out"), *wrong])
    assert stop.value.code == 2


def test_cores_memory_and_folder_are_limits(raw, tmp_path):
    code = "import sys; from pnet_jax import bids_app, execution; bids_app.limit(bids_app.make_parser().parse_args(sys.argv[1:]));"
    code += "import tempfile; print(execution.cores(), execution.all_memory(), tempfile.gettempdir())"
    options = ["--n-cpus", "1", "--mem_mb", "1500", "-w", str(tmp_path / "work")]
    done = subprocess.run([sys.executable, "-c", code, "a", "b", "group", *options], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1500000000", str(tmp_path / "work")]


def test_the_memory_that_is_left_counts_what_is_used(monkeypatch):
    monkeypatch.setenv("PNET_MEM_MB", "1")
    assert execution.available_memory() == 0  # this process has more than a megabyte
    monkeypatch.delenv("PNET_MEM_MB")
    assert execution.available_memory() > 0


@pytest.fixture(scope="module")
def dataset(toy, toy_model, tmp_path_factory):
    """Derivatives of two participants as fMRIPrep writes them, and the options of a quick construction."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "toy", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}))
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-01\t31\nsub-02\t44\n")
    for subject in ("01", "02"):
        stem = folder / f"sub-{subject}/func/sub-{subject}_task-rest_space-MNI152NLin6Asym"
        stem.parent.mkdir(parents=True)
        for ending, data in (("brain_mask", toy.mask.astype(np.uint8)), ("preproc_bold", toy.volume(int(subject), 100))):
            image = nib.Nifti1Image(data, toy.affine)
            image.header.set_xyzt_units("mm", "sec")
            image.header.set_zooms((8, 8, 8, 2)[: data.ndim])
            nib.save(image, f"{stem}_desc-{ending}.nii.gz")
    beside = tmp_path_factory.mktemp("beside")
    nib.save(nib.Nifti1Image(toy.labels_volume(), toy.affine), beside / "toy_space-MNI152NLin6Asym_dseg.nii.gz")
    save_model(toy_model, beside / "checkpoint")
    options = f'checkpoint = "{beside}/checkpoint"\natlas = "{beside}/toy_space-MNI152NLin6Asym_dseg.nii.gz"\nkappa = 10.0\nbeta = 0.4\n'
    (beside / "config.toml").write_text(
        options + 'edges = ["pearson"]\nreport = false\n[parallel]\nsubject = 1\n[cleaning]\nstrategy = []\n'
    )
    return folder, beside / "config.toml"


@pytest.fixture(scope="module")
def results(dataset, tmp_path_factory):
    """What both levels write."""
    folder, config = dataset
    out = tmp_path_factory.mktemp("results")
    assert main([str(folder), str(out), "participant", "--config", str(config)]) == 0
    assert main([str(folder), str(out), "group"]) == 0
    return out


def test_both_levels_give_a_cohort_with_its_participants_and_a_report(results):
    cohort = load_cohort(results / "cohort.zarr")
    assert sorted(cohort.subjects) == ["01", "02"] and sorted(cohort.table["age"]) == [31, 44]
    assert (results / "index.html").is_file()


def test_a_second_run_constructs_nothing_and_a_subject_that_is_not_there_is_named(dataset, results, capsys):
    folder, config = dataset
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*_dseg.nii.gz")}
    assert main([str(folder), str(results), "participant", "--config", str(config), "--participant-label", "sub-01"]) == 0
    assert before == {file: file.stat().st_mtime_ns for file in results.rglob("*_dseg.nii.gz")}
    assert main([str(folder), str(results), "participant", "--config", str(config), "--participant-label", "09"]) == 1
    assert "09" in capsys.readouterr().err


def errors_of(folder) -> list[str]:
    """What the BIDS validator calls errors in a dataset."""
    found = shutil.which("bids-validator-deno", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("the BIDS validator is not installed: pip install bids-validator-deno")
    done = subprocess.run([found, "--format", "json", str(folder)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return sorted({f"{one['code']}: {one.get('location')}" for one in issues if one["severity"] == "error"})


def test_results_are_valid_bids(results):
    assert errors_of(results) == []


def test_a_simulated_cohort_is_valid_bids(tmp_path):
    write_cohort(tmp_path / "cohort", SimulateConfig(subjects=1, sessions=1, parcels=20, minutes=1.0))
    assert errors_of(tmp_path / "cohort") == []
    (tmp_path / "cohort/sub-001/ses-1/func/sub-001_ses-1_task-rest_boldd.nii.gz").touch()
    assert errors_of(tmp_path / "cohort") != []
