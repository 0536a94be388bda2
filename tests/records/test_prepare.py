"""From files to a store: resumable, parallel, and no bad scan stops it."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.cli import main
from pnet_jax.config import CleaningConfig, PrepareConfig
from pnet_jax.execution import WorkerDiedError
from pnet_jax.ingest import find_scans, load_scan
from pnet_jax.records import open_store, prepare, read_scan, read_sites

from .helpers import PLAIN, rois, scan_of, store_files, write_bold

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def cohort(toy, tmp_path_factory):
    """Two participants, two sessions, and a file that is no image."""
    folder = tmp_path_factory.mktemp("bids")
    for number, (subject, session) in enumerate([("01", "1"), ("01", "2"), ("02", "1")]):
        write_bold(folder, toy, subject=subject, session=session, seed=number)
    write_bold(folder, toy, subject="03").write_bytes(b"no image")
    (folder / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    return folder


@pytest.fixture(scope="module")
def made(cohort, toy, tmp_path_factory):
    store = tmp_path_factory.mktemp("made") / "store"
    return store, store_files(toy, store, find_scans(cohort))


def stamps(folder):
    return {file.name: file.stat().st_mtime_ns for file in (folder / "scans").iterdir()}


def test_a_folder_becomes_a_store_and_the_bad_scan_is_listed(made, cohort):
    folder, done = made
    assert done.written == ("sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_ses-1_task-rest")
    (skipped,) = done.skipped
    assert skipped["scan"] == "sub-03_ses-1_task-rest"
    assert "sub-03_ses-1_task-rest" in skipped["reason"]
    store = open_store(folder, verify=True)
    assert store.skipped == done.skipped
    assert store.subjects == ("01", "02")
    source = find_scans(cohort)[1]
    scan = load_scan(source.bold, mask=source.mask, cleaning=PLAIN)
    assert_allclose(read_scan(store, 1).y, scan.y, atol=4e-3)
    assert store.records[1].session == "2"


def test_a_second_call_leaves_complete_scans_alone(made, cohort, toy):
    folder, _ = made
    before = stamps(folder)
    done = store_files(toy, folder, find_scans(cohort))
    assert (len(done.written), len(done.kept), len(done.skipped)) == (0, 3, 1)
    assert stamps(folder) == before


def test_a_call_that_was_killed_is_taken_up(made, cohort, toy, tmp_path):
    whole, _ = made
    folder = shutil.copytree(whole, tmp_path / "store")
    (folder / "manifest.json").unlink()
    last = sorted((folder / "scans").iterdir())[-1]
    last.rename(last.with_name(f".0123-{last.name}"))  # killed while it wrote
    before = stamps(folder)
    done = store_files(toy, folder, find_scans(cohort))
    assert done.written == ("sub-02_ses-1_task-rest",)
    assert len(done.kept) == 2
    assert open_store(folder, verify=True).digest == open_store(whole).digest
    after = stamps(folder)
    assert not [name for name in after if name.startswith(".")]
    assert {name: after[name] for name in before if name in after} == {name: before[name] for name in before if name in after}


def test_a_truncated_file_and_a_damaged_manifest_are_made_again(made, cohort, toy, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "store")
    (folder / "manifest.json").write_text("{")
    file = sorted((folder / "scans").iterdir())[0]
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.warns(UserWarning, match=r"manifest\.json is damaged: .*; it is regenerated from the files of the scans"):
        done = store_files(toy, folder, find_scans(cohort))
    assert (len(done.written), len(done.kept)) == (1, 2)
    open_store(folder, verify=True)


def flip(file, share=0.5):
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 4
    file.write_bytes(data)


def test_a_damaged_record_is_read_again(made, cohort, toy, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "store")
    file = sorted((folder / "scans").iterdir())[1]
    flip(file)
    with pytest.warns(UserWarning, match=rf"store {folder}: scans/{file.name} was changed .*; sub-01_ses-2_task-rest is read again"):
        done = store_files(toy, folder, find_scans(cohort))
    assert done.written == ("sub-01_ses-2_task-rest",) and len(done.kept) == 2
    assert open_store(folder, verify=True).digest == open_store(made[0]).digest


@pytest.mark.parametrize("whole", [True, False], ids=["the manifest whole", "the manifest damaged too"])
def test_a_damaged_space_is_written_again_by_one_scan_on_it(whole, made, cohort, toy, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "store")
    (file,) = (folder / "spaces").iterdir()
    flip(file)
    if not whole:
        flip(folder / "manifest.json")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = store_files(toy, folder, find_scans(cohort))
    space = [str(one.message) for one in said if f"store {folder}: spaces/{file.name}" in str(one.message)]
    assert len(space) == 1 and space[0].endswith("; a scan on it is read again") and len(said) == 2 - whole
    assert (len(done.written), len(done.kept)) == (1, 2)
    assert open_store(folder, verify=True).digest == open_store(made[0]).digest


def test_a_damaged_manifest_forgets_no_other_data_set(made, cohort, toy, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "store")
    write_bold(tmp_path / "other", toy, subject="09", seed=9)
    store_files(toy, folder, find_scans(tmp_path / "other"), dataset="other")
    before = open_store(folder).digest
    flip(folder / "manifest.json")
    with pytest.warns(UserWarning, match=r"manifest\.json (is damaged|was changed)"):
        done = store_files(toy, folder, find_scans(cohort))
    assert (len(done.written), len(done.kept)) == (0, 3)
    assert open_store(folder, verify=True).digest == before


def test_trouble_of_the_machine_keeps_the_older_result(made, cohort, toy, tmp_path, monkeypatch):
    folder = shutil.copytree(made[0], tmp_path / "store")

    def away(*_, **__):
        raise RuntimeError("device lost")

    monkeypatch.setattr("pnet_jax.ingest.ScanSource.load", away)
    done = store_files(toy, folder, find_scans(cohort, participant_labels=["02"]), window=50)
    assert "RuntimeError: device lost" in done.skipped[0]["reason"] and "sub-02_ses-1_task-rest" in done.skipped[0]["reason"]
    assert open_store(folder, verify=True).digest == open_store(made[0]).digest


@pytest.mark.parametrize("change", [{"window": 50}, {"cleaning": CleaningConfig(strategy=(), min_seconds=0, low_pass=0.08)}])
def test_other_settings_make_the_scans_again(made, cohort, tmp_path, change):
    folder = shutil.copytree(made[0], tmp_path / "store")
    done = prepare(find_scans(cohort, participant_labels=["02"]), folder, PrepareConfig(**({"cleaning": PLAIN} | change)))
    assert (len(done.written), len(done.kept)) == (1, 0)


def test_a_recording_that_is_refused_now_leaves_no_older_result(toy, tmp_path):
    bids, folder = tmp_path / "bids", tmp_path / "store"
    files = [write_bold(bids, toy, subject=subject) for subject in ("01", "02")]
    assert len(store_files(toy, folder, find_scans(bids)).written) == 2
    files[1].write_bytes(b"broken")
    done = store_files(toy, folder, find_scans(bids))
    assert [row["scan"] for row in done.skipped] == ["sub-02_ses-1_task-rest"]
    assert open_store(folder).subjects == ("01",)
    assert len(list((folder / "scans").iterdir())) == 1


def test_data_sets_with_the_same_labels_need_names(made, toy, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "store")
    other = tmp_path / "other"
    write_bold(other, toy, subject="01", seed=9, frames=130)
    refused = store_files(toy, folder, find_scans(other))
    assert "the store already has a scan with this name" in refused.skipped[0]["reason"]
    named = store_files(toy, folder, find_scans(other), dataset="other")
    assert named.written == ("other/sub-01_ses-1_task-rest",)
    assert open_store(folder).subjects == ("01", "02", "other/01")
    assert [record.scan for record in open_store(folder).records].count("sub-01_ses-1_task-rest") == 2


def test_a_label_of_another_data_set_is_not_taken_for_the_same_participant(toy, tmp_path):
    """Other sessions, so that no two scans have one name."""
    for name, session in (("one", "1"), ("two", "2")):
        write_bold(tmp_path / name, toy, subject="01", session=session, seed=int(session))
    folder = tmp_path / "store"
    assert len(store_files(toy, folder, find_scans(tmp_path / "one")).written) == 1
    done = store_files(toy, folder, find_scans(tmp_path / "two"))
    assert not done.written and "already has a sub-01 of another data set" in done.skipped[0]["reason"]
    assert "name the data set (--dataset)" in done.skipped[0]["reason"] and str(tmp_path / "one") in done.skipped[0]["reason"]
    both = store_files(toy, tmp_path / "both", find_scans(tmp_path))  # in one call
    assert (len(both.written), len(both.skipped)) == (1, 1)
    assert len(store_files(toy, folder, find_scans(tmp_path / "two"), dataset="two").written) == 1
    assert open_store(folder).subjects == ("01", "two/01")
    write_bold(tmp_path / "one", toy, subject="01", session="3", seed=3)
    assert len(store_files(toy, folder, find_scans(tmp_path / "one")).written) == 1  # a session more of the same data set


def test_a_data_set_that_was_moved_is_the_same(made, cohort, toy, tmp_path):
    done = store_files(toy, shutil.copytree(made[0], tmp_path / "store"), find_scans(shutil.copytree(cohort, tmp_path / "moved")))
    assert len(done.kept) == 3


def test_a_file_that_was_processed_again_is_read_again(cohort, toy, tmp_path):
    moved = shutil.copytree(cohort, tmp_path / "moved")
    folder, source = tmp_path / "store", find_scans(moved)[0]
    assert len(store_files(toy, folder, find_scans(moved)).written) == 3
    image = nib.load(source.bold)
    values = np.asanyarray(image.dataobj).copy()
    values[tuple(np.array(values.shape) // 2)] += 50
    nib.save(nib.Nifti1Image(values, image.affine, image.header), source.bold)
    done = store_files(toy, folder, find_scans(moved))
    assert done.written == (source.label,) and len(done.kept) == 2


def test_several_processes_write_the_same_store(made, cohort, toy, tmp_path):
    done = store_files(toy, tmp_path, find_scans(cohort), workers=2)
    assert len(done.written) == 3
    assert [row["scan"] for row in done.skipped] == ["sub-03_ses-1_task-rest"]
    assert open_store(tmp_path, verify=True).digest == open_store(made[0]).digest
    assert len(store_files(toy, tmp_path, find_scans(cohort)[:3], workers=2).kept) == 3  # nothing is left for the processes


def test_a_scan_whose_worker_died_is_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "pnet_jax.records.preparation.run_tasks", lambda function, tasks, workers: ((task, WorkerDiedError("killed")) for task in tasks)
    )
    done = prepare([scan_of(rois(), 0)], tmp_path)
    assert done.skipped[0]["reason"] == "sub-01_ses-1_task-rest (0.nii): killed"


def test_scans_in_memory_are_taken_one_at_a_time_and_only_once(tmp_path):
    scans = [scan_of(rois(), i, subject=str(i)) for i in range(3)]
    assert len(prepare(iter(scans), tmp_path).written) == 3
    again = prepare([*scans[:2], scan_of(rois(), 7, subject="2"), scans[0]], tmp_path)
    assert again.kept == ("sub-0_ses-1_task-rest", "sub-1_ses-1_task-rest")
    assert again.written == ("sub-2_ses-1_task-rest",)
    assert again.skipped[0]["reason"].endswith("two scans of this call have this name")


def test_interrupting_keeps_what_was_finished(tmp_path):
    def scans():
        yield scan_of(rois(), 0, subject="0")
        yield scan_of(rois(), 1, subject="1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(scans(), tmp_path)
    assert open_store(tmp_path, verify=True).subjects == ("0", "1")


def test_no_scan_at_all_and_an_old_version_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least one scan, got none"):
        prepare([], tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "pnet_jax records", "version": 0}')
    with pytest.raises(ValueError, match="another version"):
        prepare([scan_of(rois(), 0)], tmp_path)


def test_labels_no_file_can_have_are_told_apart(tmp_path):
    prepare([scan_of(rois(), i, subject=name) for i, name in enumerate(("a b", "a_b", "a/b"))], tmp_path)
    assert len({record.file for record in open_store(tmp_path, verify=True).records}) == 3


def test_sites_come_from_the_table_of_participants(cohort, tmp_path):
    assert read_sites(cohort) == {"01": "A", "02": "B"}
    assert read_sites(tmp_path) == {}


def test_the_command_stores_lists_and_goes_on(cohort, tmp_path, capsys):
    arguments = ["prepare", str(cohort), str(tmp_path / "store"), "--cleaning.strategy", "--cleaning.min-seconds", "0"]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.out.startswith("3 scans stored, 0 up to date, 1 skipped.")
    assert "skipped: sub-03_ses-1_task-rest" in told.err
    assert {record.subject: record.site for record in open_store(tmp_path / "store").records} == {"01": "A", "02": "B"}
    assert main([*arguments, "--participant-label", "01"]) == 0
    assert capsys.readouterr().out.startswith("0 scans stored, 2 up to date, 0 skipped.")


@pytest.mark.skipif(not (SHARED / "data" / "bold4d").is_dir(), reason="the real recording is absent")
def test_a_real_recording_keeps_its_correlations(tmp_path):
    (source,) = find_scans(SHARED / "data" / "bold4d")
    prepare([source], tmp_path)
    store = open_store(tmp_path, verify=True)
    scan, back = load_scan(source.bold, mask=source.mask), read_scan(store, 0)
    some = np.flatnonzero(scan.valid)[:: max(1, int(scan.valid.sum()) // 300)]
    assert np.abs(np.corrcoef(back.y[some]) - np.corrcoef(scan.y[some])).max() < 1e-3
    assert (back.tr, back.y.shape) == (scan.tr, scan.y.shape)
    assert_array_equal(back.mean, scan.mean)
    assert os.path.getsize(tmp_path / store.records[0].file) < 4.1 * scan.y.size  # float16, the whole and both halves
