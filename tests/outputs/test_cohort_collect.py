"""`pnet collect`: a store of what a folder of results holds, made again where results are new, changed or damaged in the store."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import pnet_jax
from pnet_jax.cli import main
from pnet_jax.cohort import cohort_of
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs import collect, load_cohort, load_network, save, scan_label, write_record
from pnet_jax.outputs.cohort_reading import stored_results
from pnet_jax.outputs.status import digests
from tests.outputs.cohorts import assert_same, make_networks
from tests.outputs.helpers import cifti_network, points_network

pytest.importorskip("zarr")
ATLAS = "Schaefer12"


def keep(folder, network, atlas=ATLAS):
    """Saves a result with its record, as `pnet construct` does."""
    files = save(network, folder, probabilities=False)
    row = {"scan": scan_label(network), "subject": network.subject, "atlas": atlas, "status": "ok", "error": ""}
    row["source"] = str(folder.parent / "in" / "a_bold.nii.gz")
    dseg = files[-1].relative_to(folder).as_posix()
    write_record(folder, row | {"dseg": dseg}, digests(folder, files), "pnet construct")


def fail(folder, network, error, atlas=ATLAS):
    row = {"scan": scan_label(network), "subject": network.subject, "atlas": atlas, "status": "failed", "error": error}
    write_record(folder, row, {}, "pnet construct")


@pytest.fixture(scope="module")
def networks():
    return make_networks(5)


@pytest.fixture
def folder(networks, tmp_path):
    out = tmp_path / "out"
    for network in networks:
        keep(out, network)
    return out


def written(folder, **options):
    return collect(folder, block=2, **options)["written"]


def test_the_store_holds_what_the_folder_does(networks, folder):
    table = "participant_id\tage\tsite_id\tdecision\tFIQ [z]\nsub-00\t3\tA\tx\t1\nsub-01\tn/a\tB\ty\t2\n"
    (folder.parent / "participants.tsv").write_text(table)
    done = collect(folder, block=2)
    assert done == {"path": str(folder / "cohort.zarr"), "done": 5, "failed": 0, "blocks": 3, "written": 3, "covariates": False}
    stored, loose = pnet_jax.load_cohort(folder / "cohort.zarr"), pnet_jax.load_cohort(folder)
    assert_same(stored, loose)
    assert stored.provenance == loose.provenance
    covariates = {"age": [3, 3, np.nan, np.nan, np.nan], "site": [*"AABB", ""], "participant_decision": [*"xxyy", ""]}
    covariates["FIQ__z_"] = np.array([1, 1, 2, 2, np.nan])
    assert_same(stored, cohort_of(networks, covariates), rtol=1e-6)


@pytest.mark.parametrize("make", [cifti_network, points_network])
def test_other_kinds_of_scans(make, tmp_path):
    networks = [dataclasses.replace(make(), subject=subject) for subject in ("01", "02")]
    for network in networks:
        save(network, tmp_path)
    collect(tmp_path)
    found = load_cohort(tmp_path / "cohort.zarr")
    assert_same(found, load_cohort(tmp_path))
    np.testing.assert_allclose(found.confidence, np.stack([network.confidence for network in networks]), rtol=1e-6)


def test_a_brief_network_has_the_labels_and_confidence_of_the_whole_one(networks, tmp_path):
    for network in (networks[0], cifti_network(), points_network()):
        file = save(network, tmp_path / network.space.kind)[-1]
        whole, brief = load_network(file), load_network(file, brief=True)
        np.testing.assert_array_equal(brief.labels, whole.labels)
        np.testing.assert_allclose(brief.confidence, whole.confidence, atol=5e-5)  # the soft parcellation is in steps
        assert brief.halves == brief.uncertainty == {} and list(brief.edges) == list(whole.edges)


def test_only_what_changed_is_written_again(networks, folder):
    assert written(folder) == 3
    assert written(folder) == 0
    keep(folder, dataclasses.replace(networks[2], coverage=networks[2].coverage / 2))
    assert written(folder) == 1
    np.testing.assert_allclose(load_cohort(folder / "cohort.zarr").coverage[2], networks[2].coverage / 2, rtol=1e-6)


def test_scans_that_failed_appear_once_they_succeed_and_new_ones_are_appended(networks, tmp_path):
    folder = tmp_path / "out"
    for network in networks[1:4]:
        keep(folder, network)
    fail(folder, networks[2], "mask.nii.gz: the mask is empty")
    counts = {"done": 2, "failed": 1, "blocks": 2, "written": 2, "covariates": False}
    assert collect(folder, block=2) == {"path": str(folder / "cohort.zarr"), **counts}
    found = load_cohort(folder / "cohort.zarr")
    assert found.provenance["left_out"] == {scan_label(networks[2]): "mask.nii.gz: the mask is empty"} and len(found) == 2
    assert load_cohort(folder).provenance == found.provenance
    keep(folder, networks[2])
    keep(folder, networks[4])
    keep(folder, networks[0])  # the first by name stands behind those that were there; its mask is larger
    assert collect(folder)["done"] == 5
    expected = cohort_of([networks[at] for at in (1, 2, 3, 0, 4)])
    assert_same(load_cohort(folder / "cohort.zarr"), expected, rtol=1e-6)


def test_a_damaged_block_is_written_again(networks, folder):
    written(folder)
    file = folder / "cohort.zarr" / "edges_partial" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[50] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"edges_partial of sub-01_ses-.*\(block 1\) is damaged"):
        load_cohort(folder / "cohort.zarr")
    assert written(folder) == 1
    assert_same(load_cohort(folder / "cohort.zarr"), load_cohort(folder))


def test_a_result_that_is_not_what_its_record_says_is_left_out(networks, folder):
    file = next(folder.rglob("sub-01_ses-a_*_stat-pearsoncorrelation_relmat.tsv"))
    text = file.read_text()
    file.write_text(text.replace("0.1", "0.2", 1))
    assert collect(folder)["failed"] == 1
    said = load_cohort(folder / "cohort.zarr").provenance["left_out"]["sub-01_ses-a_task-rest"]
    assert said == f"{file}: missing, or changed after it was written; construct the scan again"
    file.write_text(text)
    assert len(load_cohort(folder)) == 5


def test_a_damaged_result_costs_no_other(networks, tmp_path):
    for network in networks[:2]:
        save(network, tmp_path)
    next(tmp_path.rglob("sub-00_ses-b_*_dseg.json")).write_text("{")
    assert collect(tmp_path)["failed"] == 1
    (reason,) = load_cohort(tmp_path / "cohort.zarr").provenance["left_out"].values()
    assert "_dseg.json: not readable as JSON" in reason


def test_several_processes_collect(folder):
    assert written(folder, workers=2) == 3
    assert_same(load_cohort(folder / "cohort.zarr"), load_cohort(folder))


def test_covariates_that_change_are_taken_over(folder):
    written(folder)
    (folder / "participants.tsv").write_text("participant_id\tgroup\nsub-00\tpatient\nsub-02\tcontrol\n")
    assert written(folder) == 0
    assert load_cohort(folder / "cohort.zarr").table["group"].tolist() == ["patient", "patient", "", "", "control"]
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-00\t1\nsub-00\t2\n")
    with pytest.raises(InputError, match="expected one row per participant_id, found 2 rows for 1 participants"):
        collect(folder)
    (folder / "participants.tsv").write_text("subject\tage\n00\t1\n")
    with pytest.raises(InputError, match="expected a table with a column participant_id"):
        load_cohort(folder)


def test_folders_and_stores_that_do_not_fit_are_refused(networks, folder, tmp_path):
    other = tmp_path / "other"
    keep(other, dataclasses.replace(networks[0], subject="77"))
    collect(folder, tmp_path / "cohort.zarr")
    with pytest.raises(SettingsError, match="contains sub-00_ses-a_task-rest, but .*other has no result for it"):
        collect(other, tmp_path / "cohort.zarr")
    fail(folder, networks[0], "too short", atlas="Other12")
    with pytest.raises(SettingsError, match=r"has results for 2 atlases \(Other12, Schaefer12\); choose one with --atlas LABEL"):
        collect(folder)
    assert collect(folder, atlas=ATLAS)["path"] == str(folder / "cohort_seg-Schaefer12.zarr")
    with pytest.raises(SettingsError, match="expected at least one scan that succeeded, found 1 that failed"):
        collect(folder, atlas="Other12")
    (tmp_path / "in").mkdir()
    with pytest.raises(SettingsError, match="expected networks written by `pnet construct`, found none"):
        collect(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match="results folder not found"):
        collect(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="expected a cohort store or a folder of results, found nothing"):
        load_cohort(tmp_path / "nothing")


def test_the_commands(folder, tmp_path, capsys):
    assert main(["collect", str(folder), "--block", "2"]) == 0
    assert "5 scans collected, 0 failed; 3 of 3 blocks written" in capsys.readouterr().out
    assert main(["collect", str(folder)]) == 0
    assert "5 scans collected, 0 failed; all 3 blocks are up to date." in capsys.readouterr().out
    subjects = {one.split("_")[0] for one in stored_results(folder / "cohort.zarr")}
    (folder / "participants.tsv").write_text("participant_id\tage\n" + "".join(f"{one}\t30\n" for one in sorted(subjects)))
    assert main(["collect", str(folder)]) == 0
    assert "covariates updated; all 3 blocks are up to date." in capsys.readouterr().out
    (folder / "participants.tsv").unlink()
    assert main(["export", str(folder / "cohort.zarr"), str(tmp_path / "csv"), "--to", "csv"]) == 0
    assert "5 scans exported, 0 left out; 21 files" in capsys.readouterr().out
    assert main(["export", str(folder), str(folder), "--to", "bids"]) == 1
    assert "contains results of another command; export to a different folder" in capsys.readouterr().err
    assert main(["export", str(folder), "out", "--to", "cvs"]) == 2
    assert 'Did you mean "csv"?' in capsys.readouterr().err


def test_subjects_of_unusual_labels(networks, tmp_path):
    network = dataclasses.replace(networks[0], subject="A_b 1")
    keep(tmp_path / "out", network)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-A_b 1\t7\n")
    collect(tmp_path / "out")
    assert_same(load_cohort(tmp_path / "out" / "cohort.zarr"), cohort_of([network], {"age": [7.0]}), rtol=1e-6)
    save(network, tmp_path / "bare")
    collect(tmp_path / "bare")
    assert load_cohort(tmp_path / "bare" / "cohort.zarr").subjects == ("A_b 1",)
