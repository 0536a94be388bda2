"""Finding scans: files, lists and folders."""

import re

import numpy as np
import pandas as pd
import pytest

from pnet_jax.ingest import find_scans, load_scan

from .helpers import BOLD, FILTERED, SHARED, fmriprep_table, save_bold, save_mask, save_table

SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym", "T1w")


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def fmriprep(tmp_path, subjects=("01", "02"), sessions=("1", "2")):
    for subject in subjects:
        for session in sessions:
            run = f"sub-{subject}_ses-{session}_task-rest_run-1"
            names = [
                f"{run}_desc-confounds_timeseries.tsv",
                f"{run}_space-fsLR_den-91k_bold.dtseries.nii",
                f"{run}_desc-preproc_bold.nii.gz",
            ]
            for space in SPACES:
                names += [f"{run}_space-{space}_desc-preproc_bold.nii.gz", f"{run}_space-{space}_desc-brain_mask.nii.gz"]
            touch(tmp_path / f"sub-{subject}" / f"ses-{session}" / "func", *names)
            touch(tmp_path / f"sub-{subject}" / "figures", f"sub-{subject}_space-{SPACES[0]}_desc-preproc_bold.nii.gz")
    return tmp_path


def test_one_file_of_each_run_in_a_folder_with_several_spaces(tmp_path):
    sources = find_scans(fmriprep(tmp_path))
    assert [s.label for s in sources] == [f"sub-{a}_ses-{b}_task-rest_run-1" for a in ("01", "02") for b in "12"]
    first = sources[0]
    assert {s.entities["space"] for s in sources} == {"MNI152NLin2009cAsym"}
    assert first.mask.name == "sub-01_ses-1_task-rest_run-1_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"
    assert first.confounds.name == "sub-01_ses-1_task-rest_run-1_desc-confounds_timeseries.tsv"


def test_space_can_be_chosen(tmp_path):
    folder = fmriprep(tmp_path)
    assert {s.entities["space"] for s in find_scans(folder, space="MNI152NLin6Asym")} == {"MNI152NLin6Asym"}
    surfaces = find_scans(folder, space="fsLR")
    assert len(surfaces) == 4 and all(s.bold.name.endswith(".dtseries.nii") and s.mask is None and s.confounds for s in surfaces)
    with pytest.raises(ValueError, match=r"space-MNI305.*MNI152NLin2009cAsym"):
        find_scans(folder, space="MNI305")


def test_a_recording_in_another_space_only_comes_with_its_problem(tmp_path):
    run = "sub-03_task-rest_space-T1w_desc-preproc_bold.nii.gz"
    touch(fmriprep(tmp_path) / "sub-03" / "func", run, "sub-03_task-rest_echo-1_desc-preproc_bold.nii.gz")
    *good, bad = find_scans(tmp_path)
    assert {s.subject for s in good} == {"01", "02"} and not any(s.problem for s in good)
    assert bad.label == "sub-03_task-rest"
    assert bad.problem == (
        "sub-03_task-rest: subject 03 has no recording in a supported space: expected an MNI space (space-MNI…), "
        "found native space (no space- entity), space-T1w"
    )
    assert find_scans(tmp_path, participant_labels=["03"]) == [bad]
    (dense,) = find_scans(tmp_path, participant_labels=["03"], space="fsLR")
    assert "expected space-fsLR, found" in dense.problem


def test_single_echoes_beside_their_combination_are_no_recordings(tmp_path):
    run = "sub-01_task-rest"
    touch(tmp_path / "func", f"{run}_echo-1_desc-preproc_bold.nii.gz", f"{run}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    (source,) = find_scans(tmp_path)
    assert source.entities["space"] == "MNI152NLin6Asym" and not source.problem


def test_surfaces_where_there_is_no_volume(tmp_path):
    touch(tmp_path / "sub-01" / "func", DENSE := "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii")
    assert [s.bold.name for s in find_scans(tmp_path)] == [DENSE]


def test_participants_sessions_and_tasks(tmp_path):
    folder = fmriprep(tmp_path)
    assert {s.subject for s in find_scans(folder, participant_labels=["sub-02"])} == {"02"}
    assert {s.entities["ses"] for s in find_scans(folder, session_labels=["1"])} == {"1"}
    assert len(find_scans(folder, task="rest")) == 4
    with pytest.raises(ValueError, match=r"unknown participant 07; found: 01, 02"):
        find_scans(folder, participant_labels=["01", "07"])
    with pytest.raises(ValueError, match=r"unknown session 9; found: 1, 2"):
        find_scans(folder, session_labels=["ses-9"])
    with pytest.raises(ValueError, match=r"unknown task nback; found: rest"):
        find_scans(folder, task="nback")


def test_denoised_files_are_taken_where_nothing_else_is(tmp_path):
    name = "sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-denoised_bold.nii.gz"
    touch(
        tmp_path / "sub-01" / "func", name, name.replace("denoised", "denoisedSmoothed"), "sub-01_task-rest_desc-confounds_timeseries.tsv"
    )
    (source,) = find_scans(tmp_path)
    assert source.bold.name == name and source.confounds is None
    touch(tmp_path / "sub-01" / "func", name.replace("denoised", "preproc"))
    (source,) = find_scans(tmp_path)
    assert "preproc" in source.bold.name and source.confounds is not None


def test_empty_folder_says_what_was_searched_for(tmp_path):
    with pytest.raises(ValueError, match=r"searched for .*desc-preproc_bold\.nii\.gz.*desc-denoised.*dtseries"):
        find_scans(tmp_path)
    touch(tmp_path / "sub-01" / "func", "sub-01_task-rest_space-T1w_desc-preproc_bold.nii.gz")
    with pytest.raises(ValueError, match=r"in the spaces T1w"):
        find_scans(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_scans(tmp_path / "nowhere")


def test_one_file(tmp_path):
    path = save_bold(tmp_path)
    save_table(fmriprep_table(), tmp_path / "sub-01_task-rest_desc-confounds_timeseries.tsv")
    (source,) = find_scans(path)
    assert source.subject == "01" and source.mask.name.endswith("mask.nii.gz") and source.confounds.name.endswith(".tsv")
    scan = load_scan(source.bold, mask=source.mask, confounds=source.confounds, entities={"sub": source.subject, **source.entities})
    assert scan.label == source.label and scan.subject == "01" and len(scan.cleaning["confounds"]) == 26
    other = save_mask(tmp_path / "other.nii.gz")
    (source,) = find_scans(path, mask=other)
    assert source.mask == other
    with pytest.raises(FileNotFoundError, match="absent"):
        find_scans(path, mask=tmp_path / "absent.nii.gz")


def test_list_of_paths(tmp_path):
    touch(tmp_path / "d", "sub-01_bold.nii.gz", "sub-02_bold.nii.gz")
    (tmp_path / "list.txt").write_text(f"# two scans\nd/sub-02_bold.nii.gz  # relative\n\n{tmp_path / 'd' / 'sub-01_bold.nii.gz'}\n")
    assert [s.subject for s in find_scans(tmp_path / "list.txt")] == ["01", "02"]
    (tmp_path / "list.txt").write_text("d/sub-01_bold.nii.gz\nd/sub-03_bold.nii.gz\n")
    good, bad = find_scans(tmp_path / "list.txt")
    assert not good.problem
    missing = tmp_path / "d" / "sub-03_bold.nii.gz"
    assert bad.problem == f"sub-03: list {tmp_path / 'list.txt'}, line 2: bold file {missing} does not exist"
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"list\.txt: expected one path per line, found no recording"):
        find_scans(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["list.tsv", "list.csv"])
def test_list_with_columns(tmp_path, name):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "m.nii.gz", "c.tsv")
    rows = [("a.nii.gz", "m.nii.gz", "c.tsv", "007", "01"), ("b.nii.gz", "m.nii.gz", None, "sub-008", None)]
    path = save_table(pd.DataFrame(rows, columns=["bold", "mask", "confounds", "subject", "session"]), tmp_path / name)
    one, two = find_scans(path)
    assert (one.subject, one.entities, one.label) == ("007", {"ses": "01"}, "sub-007_ses-01")
    assert one.confounds.name == "c.tsv" and two.confounds is None and two.subject == "008" and two.mask.name == "m.nii.gz"


def test_a_table_of_series_is_not_a_list(tmp_path):
    path = tmp_path / "sub-04_timeseries.tsv"
    np.savetxt(path, np.zeros((5, 3)), delimiter="\t", header="a\tb\tc", comments="")
    (source,) = find_scans(path)
    assert source.bold == path and source.subject == "04"


def test_two_scans_with_one_label(tmp_path):
    touch(tmp_path / "x", "rest.nii.gz")
    touch(tmp_path / "y", "rest.nii.gz")
    (tmp_path / "list.txt").write_text("x/rest.nii.gz\ny/rest.nii.gz\n")
    (both,) = find_scans(tmp_path / "list.txt")
    assert re.search(
        r"sub-rest: expected one recording of this name, found 2: .*x/rest.*y/rest.*columns bold, subject and session", both.problem
    )


def test_one_confounds_file_is_for_one_scan(tmp_path):
    folder = fmriprep(tmp_path / "d")
    table = save_table(fmriprep_table(), tmp_path / "c.tsv")
    with pytest.raises(ValueError, match=r"one confounds file .* for 4 scans"):
        find_scans(folder, confounds=table)
    (source,) = find_scans(folder, participant_labels=["01"], session_labels=["1"], confounds=table)
    assert source.confounds == table


@pytest.mark.skipif(not (SHARED / "data" / "bold4d").is_dir(), reason="the real recording is absent")
def test_real_recording():
    (source,) = find_scans(SHARED / "data" / "bold4d")
    scan = load_scan(source.bold, mask=source.mask, cleaning=FILTERED)
    assert scan.y.shape == (26453, 260) and scan.tr == 1.5 and scan.space.name == "MNI152NLin6Asym" and scan.valid.mean() > 0.99
    assert BOLD.split("_")[1] in scan.label


def test_a_recording_that_is_listed_twice(tmp_path):
    path = tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    path.touch()
    (tmp_path / "list.txt").write_text(f"{path}\n{path}\n")
    with pytest.warns(UserWarning, match=r"list\.txt: .*sub-01.*is listed 2 times; it is read once"):
        (source,) = find_scans(tmp_path / "list.txt")
    assert not source.problem


@pytest.mark.parametrize("line", ['"run #1/sub-01_bold.nii.gz"', "run #1\\sub-01_bold.nii.gz", "run #1/sub-01_bold.nii.gz"])
def test_paths_in_lists_as_windows_writes_them(tmp_path, line):
    touch(tmp_path / "run #1", "sub-01_bold.nii.gz")
    (tmp_path / "list.txt").write_bytes(f"# made on Windows\r\n{line}\r\n".encode())
    (tmp_path / "list.tsv").write_text(f"bold\tsubject\n{line}\t01\n\t\n")
    for listing in ("list.txt", "list.tsv"):
        (source,) = find_scans(tmp_path / listing)
        assert source.bold == tmp_path / "run #1" / "sub-01_bold.nii.gz" and not source.problem and source.subject == "01"


def test_a_list_without_the_column_bold_says_so(tmp_path):
    (tmp_path / "list.tsv").write_text("file\tsubject\nsub-01_bold.nii.gz\t01\n")
    with pytest.raises(ValueError, match="a list of recordings needs a column 'bold': expected numbers .* found text in file"):
        load_scan(tmp_path / "list.tsv")


def test_a_table_in_another_encoding_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "list.tsv").write_bytes("bold\tsubject\na.nii\t01\n".encode("utf-16"))
    with pytest.raises(ValueError, match="not a text file in UTF-8: .* save it again"):
        find_scans(tmp_path / "list.tsv")
