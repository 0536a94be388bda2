"""Real-world folders: links, several trees, several tasks, and runs and subjects that have no readable recording."""

import os
import re
import shutil
import warnings
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pnet_jax.errors import SettingsError
from pnet_jax.ingest import find_scans, load_scan
from pnet_jax.outputs import scan_label

from .helpers import AFFINE, FILTERED, TR, T, fmriprep_table, save_bold, save_table
from .test_atlas import labels
from .test_bids import touch

ENDING = "space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


def runs(folder, *names, confounds=True):
    """Empty recordings with masks and confounds; `names` are what stands before the space."""
    for name in names:
        subject = name.split("_")[0]
        confound = [f"{name}_desc-confounds_timeseries.tsv"] if confounds else []
        touch(folder / subject / "func", f"{name}_{ENDING}", f"{name}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", *confound)
    return folder


def labels_of(sources):
    return [s.label for s in sources]


@pytest.mark.parametrize("key", ["ce", "rec", "echo", "part", "acq", "dir"])
def test_entities_that_tell_runs_apart_are_part_of_the_label(tmp_path, key):
    runs(tmp_path, f"sub-01_task-rest_{key}-a", f"sub-01_task-rest_{key}-b", "sub-02_task-rest")
    sources = find_scans(tmp_path)
    assert labels_of(sources) == [f"sub-01_task-rest_{key}-a", f"sub-01_task-rest_{key}-b", "sub-02_task-rest"]
    assert all(not s.problem and s.confounds.name.startswith(f"{s.label}_desc") for s in sources)
    path = save_bold(tmp_path / "real", f"sub-01_task-rest_{key}-a_{ENDING}")
    assert load_scan(path, cleaning=FILTERED).label == sources[0].label


def test_every_program_calls_a_scan_the_same(network):
    network.entities.update(ce="gd", task="rest")
    assert scan_label(network) == "sub-01_task-rest_ce-gd"


@pytest.fixture
def network():
    class Named:
        subject, entities = "01", {}

    Named.entities = {}
    return Named()


def test_runs_that_cannot_be_told_apart_fail_alone(tmp_path):
    runs(tmp_path / "c", "sub-01_task-rest_flip-1", "sub-01_task-rest_flip-2", "sub-02_task-rest")  # not an entity of a scan's label
    bad, good = find_scans(tmp_path / "c")
    assert not good.problem and re.search(r"sub-01_task-rest: expected one recording of this name, found 2: .*flip-1.*flip-2", bad.problem)
    shutil.rmtree(tmp_path / "c")
    runs(tmp_path / "a", "sub-01_task-rest", "sub-02_task-rest")
    runs(tmp_path / "b", "sub-01_task-rest")
    bad, good = find_scans(tmp_path)
    assert not good.problem and good.label == "sub-02_task-rest"
    assert re.search(r"sub-01_task-rest: expected one recording .*/a/sub-01.*/b/sub-01.*folder of one data set", bad.problem)


def test_of_two_trees_the_preprocessed_one_is_taken_and_said(tmp_path):
    runs(tmp_path / "fmriprep", "sub-01_task-rest", "sub-02_task-rest")
    for subject in ("01", "02"):
        touch(tmp_path / "xcp_d" / f"sub-{subject}" / "func", f"sub-{subject}_task-rest_{ENDING.replace('preproc', 'denoised')}")
    with pytest.warns(UserWarning, match=r"several data sets hold 2 runs: read from .*/fmriprep, not from .*/xcp_d"):
        sources = find_scans(tmp_path)
    assert len(sources) == 2 and all("fmriprep" in str(s.bold) and not s.problem for s in sources)


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    runs(tmp_path / "store", "sub-01_task-rest")
    folder = runs(tmp_path / "in", "sub-02_task-rest")
    touch(tmp_path / "session" / "func", f"sub-03_ses-1_task-rest_{ENDING}", "sub-03_ses-1_task-rest_desc-confounds_timeseries.tsv")
    (folder / "sub-03").mkdir()
    (folder / "sub-01").symlink_to(tmp_path / "store" / "sub-01")
    (folder / "sub-03" / "ses-1").symlink_to(tmp_path / "session")
    (folder / "again").symlink_to(folder)
    (folder / "sub-02" / "up").symlink_to(tmp_path)
    (folder / "root").symlink_to("/")
    (folder / "self").symlink_to(folder / "self")
    (folder / "sub-04").symlink_to(folder / "away")
    (folder / "zz").symlink_to(tmp_path / "store")  # its subject was seen already
    *good, away = find_scans(folder)
    assert labels_of(good) == ["sub-01_task-rest", "sub-02_task-rest", "sub-03_ses-1_task-rest"] and not any(s.problem for s in good)
    assert away.label == "sub-04" and away.problem.endswith("sub-04: a broken link")
    (folder / "sub-03" / "ses-2").symlink_to(folder / "away")
    with pytest.warns(UserWarning, match=r"sub-03/ses-2 is a broken link"):
        assert len(find_scans(folder)) == 4


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    folder = runs(tmp_path, "sub-01_task-rest", "sub-02_task-rest")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub-02/func"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.warns(UserWarning, match=r"folder .*sub-02/func cannot be read \(Permission denied\)"):
        assert [bool(s.problem) for s in find_scans(folder)] == [False, True]


def test_subjects_without_a_recording_have_a_row(tmp_path):
    runs(tmp_path, "sub-01_task-rest")
    touch(tmp_path / "sub-02" / "anat", "sub-02_desc-preproc_T1w.nii.gz")
    touch(tmp_path / "sub-03" / "func", "sub-03_task-rest_space-T1w_desc-preproc_bold.nii.gz")
    touch(tmp_path / "sub-04", "x")
    (tmp_path / "sub-05.html").touch()
    for sources in (find_scans(tmp_path), find_scans(tmp_path, task="rest")):
        assert labels_of(sources) == ["sub-01_task-rest", "sub-02", "sub-03_task-rest", "sub-04"]
        assert re.match(r"sub-02: no preprocessed BOLD recording in .*/sub-02: ", sources[1].problem)
        assert "expected an MNI space" in sources[2].problem and sources[3].problem and not sources[0].problem
    assert labels_of(find_scans(tmp_path, participant_labels=["02"])) == ["sub-02"]
    assert labels_of(find_scans(tmp_path / "sub-01")) == ["sub-01_task-rest"]  # nothing outside of what was asked for


def test_a_folder_or_a_link_without_content_in_place_of_a_recording_is_seen(tmp_path):
    runs(tmp_path, "sub-01_task-rest", "sub-02_task-rest", "sub-03_task-rest")
    for subject in ("02", "03"):
        (tmp_path / f"sub-{subject}" / "func" / f"sub-{subject}_task-rest_{ENDING}").unlink()
    (tmp_path / "sub-02" / "func" / f"sub-02_task-rest_{ENDING}").mkdir()
    (tmp_path / "sub-03" / "func" / f"sub-03_task-rest_{ENDING}").symlink_to("../../.git/annex/objects/xx")
    sources = find_scans(tmp_path)
    assert labels_of(sources) == ["sub-01_task-rest", "sub-02_task-rest", "sub-03_task-rest"]
    with pytest.raises(ValueError, match="found a folder"):
        load_scan(sources[1].bold)
    with pytest.raises(FileNotFoundError, match=r"git-annex.*datalad get"):
        load_scan(sources[2].bold)


def test_several_tasks_are_said(tmp_path):
    runs(tmp_path, "sub-01_task-rest", "sub-01_task-nback", "sub-02_task-rest", "sub-03_task-nback")
    with pytest.warns(UserWarning, match=r"of several tasks: nback \(2 scans\), rest \(2 scans\); all are read; --task rest selects one"):
        assert len(find_scans(tmp_path)) == 4
    with pytest.warns(UserWarning, match=r"no scan of task rest for 1 subject: 03"):
        assert len(find_scans(tmp_path, task="rest")) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_scans(tmp_path, participant_labels=["02"])


def test_scans_that_alone_have_no_confounds_are_counted(tmp_path):
    runs(tmp_path, "sub-01_task-rest", "sub-02_task-rest")
    runs(tmp_path, "sub-03_task-rest", confounds=False)
    with pytest.warns(UserWarning, match=r"no confounds table found for 1 of 3 scans; .*sub-03_task-rest"):
        find_scans(tmp_path)


def test_confounds_and_masks_match_by_number(tmp_path):
    """OASIS: the recording is called run-01, its confounds run-1."""
    func = touch(
        tmp_path / "sub-01" / "func",
        *(f"sub-01_task-rest_run-{n}_{ENDING}" for n in ("01", "02", "10")),
        *(f"sub-01_task-rest_run-{n}_desc-confounds_timeseries.tsv" for n in ("1", "2", "10")),
        *(f"sub-01_task-rest_run-{n}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz" for n in ("1", "2", "10")),
    )
    for source, n in zip(find_scans(tmp_path), ("1", "2", "10"), strict=True):
        assert source.confounds == func / f"sub-01_task-rest_run-{n}_desc-confounds_timeseries.tsv"
        assert source.mask == func / f"sub-01_task-rest_run-{n}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz"


def test_what_belongs_to_another_run_is_not_taken(tmp_path):
    runs(tmp_path / "a", "sub-01_task-rest_run-1")
    runs(tmp_path / "a", "sub-01_task-rest_run-01", confounds=False)
    runs(tmp_path / "b", "sub-01_task-rest")
    runs(tmp_path / "b", "sub-01_task-rest_acq-x", "sub-01_task-rest_run-2", confounds=False)
    for folder in ("a", "b"):
        with pytest.warns(UserWarning, match="no confounds table"):
            sources = find_scans(tmp_path / folder)
        assert Counter(s.confounds is None for s in sources)[False] == 1


def test_runs_with_and_without_a_number(tmp_path):
    names = ["sub-01_task-rest", "sub-01_task-rest_run-2"]
    for seed, name in enumerate(names):
        save_bold(tmp_path / "sub-01", f"{name}_{ENDING}")
        save_table(fmriprep_table(seed=seed, spikes=(20 + seed,)), tmp_path / "sub-01" / f"{name}_desc-confounds_timeseries.tsv")
    for seed, source in enumerate(find_scans(tmp_path)):
        assert source.label == names[seed] and source.confounds.name == f"{names[seed]}_desc-confounds_timeseries.tsv"
        scan = load_scan(source.bold, confounds=source.confounds)
        assert scan.displacement[20 + seed] == 2 and len(scan.cleaning["confounds"]) == 26


def test_aroma_is_taken_where_there_is_no_plain_recording(tmp_path):
    touch(tmp_path / "sub-01" / "func", f"sub-01_task-rest_{ENDING.replace('preproc', 'smoothAROMAnonaggr')}")
    touch(tmp_path / "sub-01" / "func", f"sub-01_task-rest_{ENDING.replace('preproc', 'denoised')}")
    (source,) = find_scans(tmp_path)
    assert source.entities["desc"] == "smoothAROMAnonaggr"
    touch(tmp_path / "sub-01" / "func", f"sub-01_task-rest_{ENDING}")
    (source,) = find_scans(tmp_path)
    assert source.entities["desc"] == "preproc"


def test_confounds_of_an_aroma_recording(tmp_path):
    path = save_bold(tmp_path, f"sub-01_task-rest_{ENDING.replace('preproc', 'smoothAROMAnonaggr')}")
    save_table(fmriprep_table(), tmp_path / "sub-01_task-rest_desc-confounds_timeseries.tsv")
    assert len(load_scan(path).cleaning["confounds"]) == 26


def test_raw_data_are_said_to_be_raw(tmp_path):
    touch(tmp_path / "sub-01" / "func", "sub-01_task-rest_bold.nii.gz", "sub-01_task-rest_run-2_bold.nii.gz")
    with pytest.raises(SettingsError, match=r"expected BIDS derivatives, found raw data: none of its 2 \*_bold files.*run fMRIPrep first"):
        find_scans(tmp_path)
    runs(tmp_path / "derivatives" / "fmriprep", "sub-01_task-rest")
    assert labels_of(find_scans(tmp_path)) == ["sub-01_task-rest"]


def test_labels_between_commas_and_misspelled(tmp_path):
    runs(tmp_path, *(f"sub-{s}_ses-1_task-rest" for s in ("A01", "B02", "007")))
    assert {s.subject for s in find_scans(tmp_path, participant_labels=["A01,sub-B02"])} == {"A01", "B02"}
    assert len(find_scans(tmp_path, participant_labels=["A01, B02", "007"], session_labels=["ses-1,1"])) == 3
    for given, meant in [("a01", "A01"), ("sub_A01", "A01"), ("Sub-B02", "B02"), ("7", "007"), ("0007", "007"), ("A10", "A01")]:
        with pytest.raises(SettingsError, match=rf"unknown participant {given} \(did you mean '{meant}'\?\); found: 007, A01, B02"):
            find_scans(tmp_path, participant_labels=[given])


def test_a_space_that_one_subject_has(tmp_path):
    runs(tmp_path, "sub-01_task-rest", "sub-02_task-rest")
    touch(tmp_path / "sub-01" / "func", f"sub-01_task-rest_{ENDING.replace('6Asym', '2009cAsym')}")
    good, bad = find_scans(tmp_path, space="MNI152NLin2009cAsym")
    assert not good.problem and "expected space-MNI152NLin2009cAsym, found space-MNI152NLin6Asym" in bad.problem


@pytest.fixture
def atlas(tmp_path):
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "toy_dseg.nii.gz")
    return tmp_path / "toy_dseg.nii.gz"


@pytest.mark.parametrize(
    ("name", "separator", "label"),
    [
        ("sub-01/func/sub-01_task-rest_timeseries.tsv", "\t", "sub-01_task-rest"),
        ("sub-01_task-rest_timeseries.1D", " ", "sub-01_task-rest"),
        ("Pitt_0050003_rois_cc200.1D", "\t", "sub-Pitt0050003roiscc200"),
        ("ROISignals_001.txt", " ", "sub-ROISignals001"),
        ("ROISignals_001.txt", ",", "sub-ROISignals001"),
        ("ROISignals_001.txt", "named ", "sub-ROISignals001"),
    ],
)
def test_a_folder_of_roi_tables(tmp_path, atlas, name, separator, label):
    values = np.cumsum(np.random.default_rng(0).normal(size=(T, 3)), axis=0) + 100
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    header = "a b c" if separator.startswith("named") else ""
    np.savetxt(path, values, delimiter=separator[-1], header=header, comments="")
    (path.parent / "sub-01_task-rest_desc-confounds_timeseries.tsv").write_text("no series of regions")
    (path.parent / "participants.tsv").write_text("participant_id\n")
    for given in (tmp_path / "in", path):
        (source,) = find_scans(given)
        assert source.label == label and source.bold == path
    scan = load_scan(path, atlas=atlas, tr=TR, cleaning=FILTERED)
    assert scan.y.shape == (3, T)


def test_a_list_stays_a_list(tmp_path):
    touch(tmp_path, "sub-01_bold.nii.gz", "1.nii.gz")
    (tmp_path / "list.txt").write_text("\n# 1 2 3\n\n1.nii.gz\nsub-01_bold.nii.gz\n")
    assert [s.bold.name for s in find_scans(tmp_path / "list.txt")] == ["sub-01_bold.nii.gz", "1.nii.gz"]
    pd.DataFrame({"bold": ["sub-01_bold.nii.gz"], "mask": [str(tmp_path)]}).to_csv(tmp_path / "l.csv", sep=";", index=False)
    (source,) = find_scans(tmp_path / "l.csv")
    assert source.problem.endswith(f"mask file {tmp_path} is not a file")


def test_of_a_packed_and_an_unpacked_file_the_packed_one_is_read_and_said(tmp_path):
    touch(runs(tmp_path, "sub-01_task-rest") / "sub-01" / "func", f"sub-01_task-rest_{ENDING.removesuffix('.gz')}")
    with pytest.warns(UserWarning, match=r"sub-01_task-rest: .*_bold\.nii\.gz is read, and .*_bold\.nii beside it is not"):
        (source,) = find_scans(tmp_path)
    assert source.bold.name.endswith(".nii.gz") and not source.problem


@pytest.mark.parametrize("name", ["space-MNI152NLin6Asym_desc-cleaned_bold.nii.gz", "space-MNI152NLin6Asym_desc-preproc_bold.img"])
def test_a_subject_whose_recordings_are_of_another_kind_is_told_so(tmp_path, name):
    runs(tmp_path, "sub-01_task-rest")
    touch(tmp_path / "sub-02" / "func", f"sub-02_task-rest_{name}")
    bad = next(s for s in find_scans(tmp_path) if s.problem)
    assert f"found sub-02_task-rest_{name}" in bad.problem and "did preprocessing fail" not in bad.problem


@pytest.mark.parametrize("recording", [f"sub-01_task-rest_{ENDING}", "sub-01_task-rest_timeseries.tsv"])
def test_results_of_an_earlier_command_inside_the_input_are_not_read(tmp_path, recording):
    touch(tmp_path / "sub-01", recording)
    touch(tmp_path / "pnet" / ".pnet")
    touch(tmp_path / "pnet" / "sub-01", "sub-01_task-rest_stat-mean_timeseries.tsv", "sub-01_task-rest_stat-coverage_bold.tsv")
    with pytest.warns(UserWarning, match=r"pnet holds results of pnet"):
        (source,) = find_scans(tmp_path)
    assert source.bold == tmp_path / "sub-01" / recording


def test_a_flat_folder_of_thousands_is_listed_once(tmp_path, monkeypatch):
    """And again once it has changed."""
    for number in range(400):
        name = f"sub-{number:03d}_task-rest_space-MNI152NLin6Asym_desc"
        for ending in ("preproc_bold.nii.gz", "preproc_bold.json", "brain_mask.nii.gz"):
            (tmp_path / f"{name}-{ending}").touch()
    listed, whole = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or whole(folder))
    found = find_scans(tmp_path)
    assert all(len([file for file in one.files if file is not None]) == 3 for one in found) and len(found) == 400
    assert len(listed) < 10
    (tmp_path / "task-rest_bold.json").touch()
    assert (tmp_path / "task-rest_bold.json") in found[7].files
