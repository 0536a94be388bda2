"""Many scans: one bad file stops nobody, what is done is not done again, and cohort measures follow at the end."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import shutil
import threading
import warnings
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from pnet_jax.batch import pipeline, tasks
from pnet_jax.batch import run as running
from pnet_jax.batch.job import job_of
from pnet_jax.batch.pipeline import bounds_of
from pnet_jax.batch.run import construct_cohort
from pnet_jax.checkpoint import save_group, save_model
from pnet_jax.config import CleaningConfig, ConstructConfig, PrepareConfig
from pnet_jax.construction import Builder, Ready, resolve
from pnet_jax.edges import tangent
from pnet_jax.edges.inverse import ledoit_wolf
from pnet_jax.errors import SettingsError
from pnet_jax.execution import Workers
from pnet_jax.group.fit import Group
from pnet_jax.ingest import ScanSource, find_scans
from pnet_jax.ingest.memory import peak_bytes
from pnet_jax.outputs import load_network, read_records
from pnet_jax.outputs.overview import overview, summary
from pnet_jax.outputs.sidecars import stat_label
from pnet_jax.outputs.status import claim_scan, write_submission
from pnet_jax.parcellation.spatial import LearnedPrior, place
from pnet_jax.records import prepare
from pnet_jax.records.source import stored_scans

PLAIN = CleaningConfig(strategy=(), low_pass=None, high_pass=None, detrend=False)
ENTITIES = {"task": "rest", "space": "MNI152NLin6Asym", "desc": "preproc"}
K = 12


@pytest.fixture(scope="module")
def inputs(toy, toy_model, tmp_path_factory):
    """Three recordings, the second of them cut off; the atlas as a file, its ids with gaps; and a checkpoint."""
    folder = tmp_path_factory.mktemp("inputs")
    nib.save(nib.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), folder / "mask.nii.gz")
    nib.save(nib.Nifti1Image(toy.labels_volume(), toy.affine), folder / "toy_space-MNI152NLin6Asym_dseg.nii.gz")
    save_model(toy_model, folder / "checkpoint")
    sources = []
    for number in (1, 2, 3):
        image = nib.Nifti1Image(toy.volume(number, 100), toy.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 2))
        file = folder / f"sub-0{number}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        nib.save(image, file)
        sources.append(ScanSource(file, folder / "mask.nii.gz", None, f"0{number}", ENTITIES))
    bold = sources[1].bold
    bold.write_bytes(bold.read_bytes()[:5000])
    return folder, sources


@pytest.fixture(scope="module")
def config(inputs):
    folder, _ = inputs
    prior = str(folder / "toy_space-MNI152NLin6Asym_dseg.nii.gz")
    return ConstructConfig(
        checkpoint=str(folder / "checkpoint"),
        atlas=prior,
        edges=("pearson", "tangent"),
        kappa=10.0,
        beta=0.4,
        report=False,
        probabilities=False,
        cleaning=PLAIN,
    )


@pytest.fixture(scope="module")
def cohort(inputs, config, tmp_path_factory):
    """A finished folder with the rows that were returned and the progress that was told."""
    folder, told = tmp_path_factory.mktemp("derivatives"), []
    rows = construct_cohort(inputs[1], folder, config, progress=lambda *step: told.append(step))
    return folder, rows, told


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def status_of(rows) -> list[str]:
    return [row["status"] for row in rows]


def relmat(folder: Path, subject: str, measure: str) -> np.ndarray:
    (file,) = folder.rglob(f"sub-{subject}_*stat-{stat_label(measure)}_relmat.tsv")
    return pd.read_csv(file, sep="\t", index_col=0, na_values="n/a").to_numpy()


def test_one_corrupt_file_fails_and_the_others_go_on(cohort, inputs):
    _, rows, _ = cohort
    assert status_of(rows) == ["ok", "failed", "ok"]
    assert "sub-02" in rows[1]["error"]
    assert str(inputs[1][1].bold) in rows[1]["error"]
    assert "\n" not in rows[1]["error"]


def test_the_status_table_has_a_row_for_each_scan(cohort):
    folder, rows, _ = cohort
    written = pd.read_csv(folder / "status.tsv", sep="\t", dtype=str, na_values="n/a", keep_default_na=False).fillna("").to_dict("records")
    assert [row["scan"] for row in written] == ["sub-01_task-rest", "sub-02_task-rest", "sub-03_task-rest"]
    assert status_of(written) == status_of(rows)
    for row in (written[0], written[2]):
        assert (folder / row["dseg"]).is_file()
        assert (row["n_frames"], row["minutes"], row["n_absent"], row["error"]) == ("100", "3.33", "0", "")
        assert float(row["seconds"]) > 0
    assert written[1]["dseg"] == ""


def test_a_failed_scan_leaves_no_files(cohort):
    folder, *_ = cohort
    assert len(list(folder.rglob("sub-01_*_dseg.nii.gz"))) == len(list(folder.rglob("sub-03_*_dseg.nii.gz"))) == 1
    assert [file.parent.name for file in folder.rglob("sub-02*")] == [".pnet"]  # its record alone


def test_progress_tells_every_scan_and_the_end(cohort):
    *_, told = cohort
    assert [(done, total) for _, done, _, total in told] == [(1, 3), (2, 3), (3, 3)]
    assert {label: failed for label, _, failed, _ in told}["sub-03_task-rest"] == 1
    assert {label for label, *_ in told} == {f"sub-0{number}_task-rest" for number in (1, 2, 3)}


def test_edges_on_disk_have_k_parcels_with_the_priors_ids(cohort, toy):
    folder, *_ = cohort
    (table,) = folder.rglob("sub-01_*_dseg.tsv")
    assert pd.read_csv(table, sep="\t")["index"].tolist() == toy.atlas.ids.tolist()
    assert relmat(folder, "01", "pearson").shape == (K, K)
    assert_allclose(np.diag(relmat(folder, "01", "pearson")), 1, atol=1e-5)


def test_tangent_edges_are_written_for_the_scans_that_went_through(cohort):
    folder, *_ = cohort
    signals = []
    for subject in ("01", "03"):
        (file,) = folder.rglob(f"sub-{subject}_*stat-mean_timeseries.tsv")
        signals.append(pd.read_csv(file, sep="\t").to_numpy(np.float32).T)
    expected, _ = tangent(np.stack([np.asarray(ledoit_wolf(x)) for x in signals]))
    for subject, matrix in zip(("01", "03"), np.asarray(expected), strict=True):
        assert_allclose(relmat(folder, subject, "tangent"), matrix, atol=1e-3)
        assert np.abs(matrix).max() > 0.05


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """Labels of the scans that were worked on."""
    labels = []
    monkeypatch.setattr(pipeline, "read", lambda job, source: labels.append(source.label) or tasks.read(job, source))
    return labels


def test_resuming_leaves_complete_scans_alone_and_tries_failed_ones_again(cohort, inputs, config, tmp_path, tried):
    folder, rows, _ = cohort
    again = construct_cohort(inputs[1], shutil.copytree(folder, tmp_path / "copy"), config, resume=True)
    assert tried == ["sub-02_task-rest"]
    assert status_of(again) == ["ok", "failed", "ok"]
    assert [row["scan"] for row in again] == [row["scan"] for row in rows]


def test_resuming_a_complete_cohort_changes_nothing_on_disk(inputs, config, tmp_path):
    """Its tangent edges are written already, and nothing of the status has become untrue."""
    good = [inputs[1][0], inputs[1][2]]
    construct_cohort(good, tmp_path, config)
    before = contents(tmp_path)
    construct_cohort(good, tmp_path, config, resume=True)
    assert contents(tmp_path) == before


def test_a_resumed_cohort_has_the_tangent_edges_of_an_uninterrupted_one(cohort, inputs, config, tmp_path):
    folder, *_ = cohort
    good = [inputs[1][0], inputs[1][2]]
    construct_cohort(good[:1], tmp_path, config)
    assert "not written" in read_records(tmp_path)[0]["warnings"]
    construct_cohort(good, tmp_path, config, resume=True)
    for subject in ("01", "03"):
        assert_allclose(relmat(tmp_path, subject, "tangent"), relmat(folder, subject, "tangent"), atol=1e-5)
    assert [row.get("warnings", "") for row in read_records(tmp_path)] == ["", ""]


def test_a_scan_is_done_again_for_another_configuration_or_checkpoint_or_a_missing_file(inputs, config, toy_model, tmp_path, tried):
    def resumed(changed):
        tried.clear()
        assert status_of(construct_cohort(inputs[1][:1], tmp_path, changed, resume=True)) == ["ok"]
        return len(tried)

    plain = dataclasses.replace(config, edges=("pearson",))
    assert resumed(plain) == 1
    assert resumed(plain) == 0
    assert resumed(dataclasses.replace(plain, wave=3)) == 0  # no number depends on it
    assert resumed(dataclasses.replace(plain, kappa=5.0)) == 1
    weights = toy_model.encoder._replace(projection=toy_model.encoder.projection[:, ::-1])
    other = save_model(dataclasses.replace(toy_model, encoder=weights), tmp_path / "other")
    assert resumed(dataclasses.replace(plain, kappa=5.0, checkpoint=str(other))) == 1
    next(tmp_path.rglob("sub-01_*_dseg.tsv")).unlink()
    assert resumed(dataclasses.replace(plain, kappa=5.0, checkpoint=str(other))) == 1


def test_a_scan_is_done_again_for_a_group_that_was_fitted_again(inputs, config, toy, tmp_path, tried):
    atlas = resolve(config, cohort=True).atlas
    placed = place(atlas, toy.space)
    n, space, folder = len(placed.here), placed.space, tmp_path / "group"
    learned = LearnedPrior(space.xyz, space.hemisphere, *(np.asarray(x)[:n] for x in placed.prior[:2]), space.resolution)
    informed = dataclasses.replace(config, edges=("pearson",), group=str(folder))

    def resumed(group):
        tried.clear()
        shutil.rmtree(folder, ignore_errors=True)
        save_group(group, folder)
        assert status_of(construct_cohort(inputs[1][:1], tmp_path / "out", informed, resume=True)) == ["ok"]
        return len(tried)

    group = Group(atlas.digest, ("11", "12", "13"), learned)
    assert resumed(group) == 1
    assert resumed(group) == 0
    assert resumed(dataclasses.replace(group, spatial=learned._replace(log_prior=0.5 * learned.log_prior))) == 1


def test_without_resume_everything_is_done_again(inputs, config, tmp_path):
    plain = dataclasses.replace(config, edges=("pearson",))
    first = construct_cohort(inputs[1][:1], tmp_path, plain)
    second = construct_cohort(inputs[1][:1], tmp_path, plain)
    assert status_of(first) == status_of(second) == ["ok"]
    assert len(read_records(tmp_path)) == 1


def test_the_neighbours_of_a_scan_in_the_list_do_not_change_it(cohort, inputs, config, tmp_path):
    folder, *_ = cohort
    construct_cohort(inputs[1][2:], tmp_path, dataclasses.replace(config, edges=("pearson",)))
    alone = contents(tmp_path)
    shared = [name for name in alone if name.endswith(("dseg.nii.gz", "timeseries.tsv", f"{stat_label('pearson')}_relmat.tsv", "dseg.tsv"))]
    assert len(shared) == 4
    for name in shared:
        assert alone[name] == (folder / name).read_bytes(), name


def test_tangent_of_a_single_scan_is_not_written_and_the_status_says_so(inputs, config, tmp_path):
    rows = construct_cohort(inputs[1][:1], tmp_path, config)
    assert status_of(rows) == ["ok"]
    assert not list(tmp_path.rglob("*tangent*"))
    assert "tangent edges were not written: at least 2 scans" in read_records(tmp_path)[0]["warnings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": ("pearsn",)}, "unknown edge measure 'pearsn'"),
        ({"parcels": 50}, "has 12 parcels but 50 were requested"),
        ({"checkpoint": "nothing-of-the-kind"}, "checkpoint nothing-of-the-kind is missing"),
    ],
)
def test_a_mistake_in_the_configuration_is_refused_before_the_first_scan(inputs, config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        construct_cohort(inputs[1], tmp_path / "out", dataclasses.replace(config, **change))
    assert not list(tmp_path.rglob("status.tsv"))


def test_no_scan_at_all_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="expected at least one scan, got none"):
        construct_cohort([], tmp_path, config)


def test_warnings_are_in_the_status_and_those_of_the_prior_in_every_result(inputs, config, toy, tmp_path):
    _, sources = inputs
    prior = shutil.copy(config.atlas, tmp_path / "toy_space-MNI152NLin6Asym_dseg.nii.gz")
    (tmp_path / "toy_space-MNI152NLin6Asym_dseg.tsv").write_text(
        "".join(["index\tname\n", *(f"{i}\tP{i}\n" for i in toy.atlas.ids), "999\tghost\n"])
    )
    with pytest.warns(UserWarning, match="1 labels have no voxel or vertex and are left out: 999 ghost"):
        construct_cohort(sources[:1], tmp_path / "out", dataclasses.replace(config, atlas=prior, edges=("pearson",)))
    (row,) = read_records(tmp_path / "out")
    assert "short scan: 100 of 100 frames" in row["qc_warnings"]
    assert (
        "; ".join(row["said"]) == row["qc_warnings"] and "said" not in (tmp_path / "out" / "status.tsv").read_text("utf-8").split("\n")[0]
    )
    (qc,) = (tmp_path / "out").rglob("*_qc.json")
    assert "999 ghost" in qc.read_text("utf-8")


def test_a_mistake_in_the_configuration_leaves_no_folder(inputs, config, tmp_path):
    with pytest.raises(ValueError, match="unknown edge measure"):
        construct_cohort(inputs[1], tmp_path / "out", dataclasses.replace(config, edges=("foo",)))
    assert not (tmp_path / "out").exists()


def test_a_scan_with_a_known_problem_fails_with_it_and_the_others_go_on(inputs, config, tmp_path):
    folder, sources = inputs
    listing = tmp_path / "list.txt"
    listing.write_text(f"{sources[0].bold}\nsub-09_task-rest_bold.nii.gz\n")
    found = find_scans(listing, mask=folder / "mask.nii.gz")
    rows = construct_cohort(found, tmp_path / "out", dataclasses.replace(config, edges=("pearson",)))
    assert status_of(rows) == ["ok", "unavailable"]
    missing = tmp_path / "sub-09_task-rest_bold.nii.gz"
    assert rows[1]["error"] == f"sub-09_task-rest: list {listing}, line 2: bold file {missing} does not exist"
    assert status_of(read_records(tmp_path / "out")) == ["ok", "unavailable"]


def test_a_failed_rerun_leaves_nothing_of_the_older_result(inputs, config, tmp_path):
    folder = tmp_path / "out"
    sources, plain = inputs[1], dataclasses.replace(config, edges=("pearson",))
    construct_cohort([sources[0], sources[2]], folder, dataclasses.replace(plain, report=True))
    (result,) = folder.rglob("sub-01_*_dseg.tsv")
    other = result.with_name(result.name.replace("scale-12", "scale-120"))
    other.touch()
    kept = contents(folder / "sub-03")
    damaged = tmp_path / sources[0].bold.name
    damaged.write_bytes(sources[1].bold.read_bytes())
    assert status_of(construct_cohort([dataclasses.replace(sources[0], bold=damaged)], folder, plain)) == ["failed"]
    assert sorted(file for file in folder.rglob("sub-01*.*") if file.parent.name != ".pnet") == [other]
    assert contents(folder / "sub-03") == kept


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED"), TypeError("a fault")]
)
def test_trouble_of_the_machine_fails_one_scan_and_keeps_its_older_result(inputs, config, tmp_path, monkeypatch, error):
    good, plain = [inputs[1][0], inputs[1][2]], dataclasses.replace(config, edges=("pearson",))
    construct_cohort(good, tmp_path, plain)
    before, whole = contents(tmp_path / "sub-01"), ScanSource.load

    def load(source, cleaning, **options):
        if source == good[0]:
            raise error
        return whole(source, cleaning, **options)

    monkeypatch.setattr(ScanSource, "load", load)
    rows = construct_cohort(good, tmp_path, plain)
    assert status_of(rows) == ["failed", "ok"] and "sub-01_task-rest" in rows[0]["error"]
    assert contents(tmp_path / "sub-01") == before
    monkeypatch.setattr(ScanSource, "load", whole)
    assert status_of(construct_cohort(good, tmp_path, plain, resume=True)) == ["ok", "ok"]


def test_a_full_disk_ends_the_run_and_what_was_finished_is_kept(inputs, config, tmp_path, monkeypatch):
    good, plain, whole = [inputs[1][0], inputs[1][2]], dataclasses.replace(config, edges=("pearson",)), tasks.save

    def save(network, folder, **options):
        if network.subject == "03":
            raise OSError(28, "No space left on device", "dseg.nii.gz")
        return whole(network, folder, **options)

    monkeypatch.setattr(tasks, "save", save)
    with pytest.raises(OSError, match="No space left on device; run stopped: free some space and run it again with --resume"):
        construct_cohort(good, tmp_path, plain)
    assert (tmp_path / "status.tsv").read_text("utf-8").count("\tok\t") == 1
    monkeypatch.setattr(tasks, "save", whole)
    assert status_of(construct_cohort(good, tmp_path, plain, resume=True)) == ["ok", "ok"]


def test_a_disk_too_full_for_the_table_hides_no_error(inputs, config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "a file")

    monkeypatch.setattr(tasks, "save", full)
    monkeypatch.setattr(running, "write_table", full)
    with pytest.raises(OSError, match="run stopped: free some space"):
        construct_cohort(inputs[1][:1], tmp_path, dataclasses.replace(config, edges=("pearson",)))


def test_what_a_killed_run_wrote_without_a_record_goes_if_the_recording_is_refused(inputs, config, tmp_path):
    plain, out = dataclasses.replace(config, edges=("pearson",)), tmp_path / "out"
    construct_cohort(inputs[1][:1], out, plain)
    next((out / ".pnet").glob("sub-01*.json")).unlink()
    (result,) = out.rglob("sub-01_*_dseg.tsv")
    other = result.with_name(result.name.replace("scale-12", "scale-12_res-2"))
    other.touch()
    damaged = tmp_path / inputs[1][0].bold.name
    damaged.write_bytes(b"no image")
    assert status_of(construct_cohort([dataclasses.replace(inputs[1][0], bold=damaged)], out, plain, resume=True)) == ["failed"]
    assert [file for file in out.rglob("sub-01*.*") if file.parent.name != ".pnet"] == [other]


def test_a_scan_that_another_process_works_on_is_left_to_it(inputs, config, tmp_path, tried):
    good, plain = [inputs[1][0], inputs[1][2]], dataclasses.replace(config, edges=("pearson",))
    construct_cohort(good[:1], tmp_path, plain)
    tried.clear()
    release = claim_scan(tmp_path, good[0].label, "toy")
    threading.Timer(1.0, release).start()
    rows = construct_cohort(good, tmp_path, plain)
    assert status_of(rows) == ["ok", "ok"] and tried == [good[1].label]
    assert not list((tmp_path / ".pnet").glob("*.claim"))


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def _bold(folder: Path) -> Path:
    return folder / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


CHANGES = {
    "nothing": (0, lambda inputs, out: None),
    "the recording": (1, lambda inputs, out: shutil.copy(inputs / "bold.nii.gz", _bold(inputs))),
    "a sidecar": (1, lambda inputs, out: _bold(inputs).with_name(_bold(inputs).name[:-7] + ".json").write_text('{"RepetitionTime": 2}')),
    "the mask": (1, lambda inputs, out: os.utime(inputs / "mask.nii.gz", ns=(0, 0))),
    "a missing table": (1, lambda inputs, out: next(out.rglob("*_relmat.tsv")).unlink()),
    "a table that was cut": (1, lambda inputs, out: os.truncate(next(out.rglob("*_relmat.tsv")), 100)),
    "one other byte of a table": (1, lambda inputs, out: flip(next(out.rglob("*_relmat.tsv")))),
    "one other byte of a record": (1, lambda inputs, out: flip(next((out / ".pnet").glob("*.json")))),
    "the times of all files": (0, lambda inputs, out: [os.utime(file, (2**32, 2**32)) for file in out.rglob("*") if file.is_file()]),
    "a damaged record": (1, lambda inputs, out: next((out / ".pnet").glob("*.json")).write_text("{")),
    "the table of all scans": (0, lambda inputs, out: (out / "status.tsv").write_text("scan\nnone of ours\n")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_resuming_makes_again_what_changed_and_nothing_else(what, inputs, config, tmp_path, tried):
    folder, out, plain = tmp_path / "in", tmp_path / "out", dataclasses.replace(config, edges=("pearson",))
    folder.mkdir()
    shutil.copy(inputs[1][0].bold, _bold(folder))
    shutil.copy(inputs[1][2].bold, folder / "bold.nii.gz")
    shutil.copy(inputs[0] / "mask.nii.gz", folder)
    source = dataclasses.replace(inputs[1][0], bold=_bold(folder), mask=folder / "mask.nii.gz")
    construct_cohort([source], out, plain)
    before = contents(out)
    tried.clear()
    expected, change = CHANGES[what]
    change(folder, out)
    assert status_of(construct_cohort([source], out, plain, resume=True)) == ["ok"]
    assert len(tried) == expected
    after = contents(out)
    assert {name for name in after if "submissions" not in name} == {name for name in before if "submissions" not in name}
    told = ("qc.json", ".pnet", "status.tsv")  # with the time that it took
    differ = [name for name in after if after[name] != before.get(name) and not any(part in name for part in told)]
    assert bool(differ) == (what == "the recording")


def test_a_result_depends_on_the_content_of_every_file_that_is_an_option(config, tmp_path):
    plan, file = resolve(config, cohort=True), tmp_path / "left.surf.gii"

    def digests() -> list[str]:
        return [job_of(tmp_path, config, plan, options, ()).digest for options in ({"surfaces": [str(file)]}, {"atlas": str(file)})]

    file.write_text("one")
    before = digests()
    file.write_text("two")
    assert all(a != b for a, b in zip(before, digests(), strict=True))


def test_pages_and_probabilities_asked_for_later_are_made(inputs, config, tmp_path, tried):
    plain = dataclasses.replace(config, edges=("pearson",))
    construct_cohort(inputs[1][:1], tmp_path, plain)
    tried.clear()
    construct_cohort(inputs[1][:1], tmp_path, dataclasses.replace(plain, report=True), resume=True)
    assert not tried and (tmp_path / "sub-01_task-rest_seg-toy.html").is_file()  # from the files
    construct_cohort(inputs[1][:1], tmp_path, dataclasses.replace(plain, probabilities=True), resume=True)
    assert tried and list(tmp_path.rglob("*_probseg.nii.gz"))


def test_tangent_edges_that_a_kill_left_out_are_made_by_resuming(inputs, config, tmp_path, monkeypatch, tried):
    def killed(job, rows):
        raise KeyboardInterrupt

    good = [inputs[1][0], inputs[1][2]]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "add_tangent", killed)
        construct_cohort(good, tmp_path, config)
    tried.clear()
    construct_cohort(good, tmp_path, config, resume=True)
    assert not tried and len(list(tmp_path.rglob("*stat-tangent*_relmat.tsv"))) == 2


def test_two_atlases_in_one_folder_keep_their_results_rows_and_progress(inputs, config, toy, tmp_path):
    _, sources = inputs
    plain = dataclasses.replace(config, edges=("pearson",))
    other = shutil.copy(config.atlas, tmp_path / "other_space-MNI152NLin6Asym_dseg.nii.gz")
    runs = [plain, dataclasses.replace(plain, atlas=str(other))]
    rows = [construct_cohort(sources[:1], tmp_path / "out", run)[0] for run in runs]
    assert [row["atlas"] for row in rows] == ["toy", "other"] and rows[0]["dseg"] != rows[1]["dseg"]
    assert [row["dseg"] for row in read_records(tmp_path / "out")] == [row["dseg"] for row in rows[::-1]]
    before = contents(tmp_path / "out" / "sub-01")
    for run in runs:
        construct_cohort(sources[:1], tmp_path / "out", run, resume=True)
    assert contents(tmp_path / "out" / "sub-01") == before


def test_another_atlas_of_the_same_label_is_refused_before_the_first_scan(inputs, config, toy, tmp_path):
    _, sources = inputs
    plain = dataclasses.replace(config, edges=("pearson",))
    construct_cohort(sources[:1], tmp_path / "out", plain)
    before = contents(tmp_path / "out")
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / Path(config.atlas).name
    nib.save(nib.Nifti1Image(np.where(toy.labels_volume() == toy.atlas.ids[0], 9999, toy.labels_volume()), toy.affine), file)
    with pytest.raises(ValueError, match=f"two atlases have the label seg-toy: .*{config.atlas}.*{file}"):
        construct_cohort(sources[:1], tmp_path / "out", dataclasses.replace(plain, atlas=str(file)))
    assert contents(tmp_path / "out") == before


# Waves


@pytest.fixture(scope="module")
def mixed(toy, inputs, tmp_path_factory):
    """Five recordings of two lengths in turn: they wait for each other in two waves."""
    folder, sources = tmp_path_factory.mktemp("mixed"), []
    for number, frames in enumerate((100, 160, 160, 100, 100), start=1):
        image = nib.Nifti1Image(toy.volume(number, frames), toy.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 2))
        file = folder / f"sub-{number:02d}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        nib.save(image, file)
        sources.append(ScanSource(file, inputs[0] / "mask.nii.gz", None, f"{number:02d}", ENTITIES))
    return sources


@pytest.fixture
def waves(monkeypatch):
    """Subjects of every wave that was run, and the least size it was asked to have."""
    from pnet_jax.construction import Builder

    seen, put = [], Builder.put

    def watched(builder, wave, size=1):
        seen.append(([one.scan.subject for one in wave], size))
        return put(builder, wave, size)

    monkeypatch.setattr(Builder, "put", watched)
    return seen


def test_rows_are_in_the_order_of_the_sources_whatever_wave_is_done_first(mixed, config, tmp_path, waves):
    several = dataclasses.replace(config, edges=("pearson",), wave=2, workers=0)
    rows = construct_cohort(mixed, tmp_path, several)
    assert waves == [(["02", "03"], 2), (["01", "04"], 2), (["05"], 2)]  # the last is filled up
    order = [source.label for source in mixed]
    assert status_of(rows) == ["ok"] * 5
    assert [row["scan"] for row in rows] == order == [row["scan"] for row in read_records(tmp_path)]
    assert {row["parcels"] for row in rows} <= {"personalised", "atlas"}
    before = contents(tmp_path)
    construct_cohort(mixed[::-1], tmp_path, several, resume=True)
    after = contents(tmp_path)
    assert [row["scan"] for row in read_records(tmp_path)] == order
    assert {name: after[name] for name in before} == before


def test_a_scan_that_fails_in_a_wave_takes_no_other_with_it(mixed, config, tmp_path, monkeypatch, waves):
    whole = pipeline.finish

    def refused(one, *rest):
        if one.scan.subject == "02":
            raise ValueError("this one is refused")
        return whole(one, *rest)

    monkeypatch.setattr(pipeline, "finish", refused)
    rows = construct_cohort(mixed[:3], tmp_path, dataclasses.replace(config, edges=("pearson",), wave=2))
    assert status_of(rows) == ["ok", "failed", "ok"]
    assert "sub-02_task-rest" in rows[1]["error"] and rows[1]["error"].endswith("this one is refused")
    assert waves == [(["02", "03"], 2), (["01"], 2)]  # nobody goes through the step again for it


@pytest.mark.parametrize("when", ["on its way", "in the step"])
def test_a_wave_that_does_not_fit_the_device_is_tried_scan_by_scan(mixed, config, tmp_path, monkeypatch, waves, when):
    from pnet_jax.construction import Builder

    watched = Builder.put

    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def small(builder, wave, size=1):
        if len(wave) == 1:
            return watched(builder, wave, size)
        return full if when == "in the step" else full()

    monkeypatch.setattr(Builder, "put", small)
    rows = construct_cohort(mixed[1:3], tmp_path, dataclasses.replace(config, edges=("pearson",), wave=2))
    assert status_of(rows) == ["ok", "ok"] and waves == [(["02"], 1), (["03"], 1)]


def test_scans_of_many_shapes_do_not_all_wait(mixed, config, tmp_path, monkeypatch):
    """Each scan has a shape of its own, so that no wave is ever full."""
    numbers, most = {}, []
    monkeypatch.setattr(Ready, "shape", property(lambda ready: numbers.setdefault(ready.scan.label, len(numbers))))
    whole = pipeline.Pipeline._step
    monkeypatch.setattr(pipeline.Pipeline, "_step", lambda loop, more: most.append(loop._held) or whole(loop, more))
    many = [dataclasses.replace(one, subject=f"{10 * turn + number}") for turn in range(2) for number, one in enumerate(mixed)]
    rows = construct_cohort(many, tmp_path, dataclasses.replace(config, edges=("pearson",), wave=2, workers=0))
    assert status_of(rows) == ["ok"] * 10
    assert max(most) <= 6


def masked(source, folder, *corners):
    """A scan whose mask holds the voxels at these corners of its grid only."""
    image = nib.load(source.mask)
    inside = np.argwhere(np.asanyarray(image.dataobj) > 0)
    values = np.zeros(image.shape, np.uint8)
    for corner in corners:
        values[tuple(inside[corner])] = 1
    file = folder / f"sub-{source.subject}_mask.nii.gz"
    nib.save(nib.Nifti1Image(values, image.affine), file)
    return dataclasses.replace(source, mask=file)


def test_a_scan_that_costs_the_others_their_tangent_edges_is_named(inputs, config, tmp_path):
    one, other = inputs[1][0], inputs[1][2]
    with pytest.warns(UserWarning, match=r"tangent edges cover only the [01] of 12 parcels .*: sub-01_task-rest has the fewest"):
        rows = construct_cohort([masked(one, tmp_path, 0), other], tmp_path / "out", config)
    assert status_of(rows) == ["ok", "ok"] and all("sub-01_task-rest has the fewest" in row["warnings"] for row in rows)


def test_scans_without_a_parcel_in_common_have_no_tangent_edges_and_are_done(inputs, config, tmp_path):
    apart = [masked(inputs[1][0], tmp_path, 0), masked(inputs[1][2], tmp_path, -1)]
    with pytest.warns(UserWarning, match="0 of 12 parcels that every scan has"):
        rows = construct_cohort(apart, tmp_path / "out", config)
    assert all(row["warnings"].endswith("; not written") for row in rows)
    assert status_of(rows) == ["ok", "ok"] and not list(tmp_path.rglob("*tangent*"))


def test_resume_makes_a_scan_again_whose_atlas_has_other_names_or_whose_components_are_described_anew(inputs, config, tmp_path, tried):
    plain = dataclasses.replace(config, edges=("pearson",), atlas=shutil.copy(config.atlas, tmp_path))
    confounds = tmp_path / "confounds.tsv"
    confounds.write_text("a\n" + "0.5\n" * 100)
    source = [dataclasses.replace(inputs[1][0], confounds=confounds)]
    construct_cohort(source, tmp_path / "out", plain)
    construct_cohort(source, tmp_path / "out", plain, resume=True)
    assert len(tried) == 1
    Path(plain.atlas).with_name("toy_labels.csv").write_text("index,name\n" + "".join(f"{i},other {i}\n" for i in range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ids that the atlas lacks
        construct_cohort(source, tmp_path / "out", plain, resume=True)
        assert len(tried) == 2
        confounds.with_suffix(".json").write_text("{}")
        construct_cohort(source, tmp_path / "out", plain, resume=True)
    assert len(tried) == 3


# Processes, parts, clusters


def results(folder: Path) -> dict[str, bytes]:
    """Content of every result file; records and status have times."""
    return {name: data for name, data in contents(folder).items() if name.startswith("sub-") and not name.endswith("_qc.json")}


@pytest.fixture(scope="module")
def undisturbed(mixed, config, tmp_path_factory):
    """Results of five scans that this process alone made, in waves of two."""
    folder, several = tmp_path_factory.mktemp("undisturbed"), dataclasses.replace(config, edges=("pearson",), wave=2, workers=0)
    construct_cohort(mixed, folder, several)
    return folder, several


def test_worker_processes_change_no_byte(undisturbed, mixed, tmp_path):
    folder, several = undisturbed
    rows = construct_cohort(mixed, tmp_path, dataclasses.replace(several, workers=2))
    assert status_of(rows) == ["ok"] * 5 and results(tmp_path) == results(folder)


def test_parts_of_the_subjects_are_all_of_them_once_and_change_no_byte(undisturbed, mixed, tmp_path):
    folder, several = undisturbed
    rows = [construct_cohort(mixed, tmp_path, several, shard=(number, 3)) for number in (1, 2, 3)]
    assert sorted(row["scan"] for part in rows for row in part) == [one.label for one in mixed]
    assert results(tmp_path) == results(folder)
    assert [one.state for one in overview(tmp_path)] == ["done"] * 5


def test_a_part_does_not_depend_on_the_other_subjects(mixed):
    own = running.Shard(2, 3)
    assert [own.has(one) for one in mixed] == [own.has(one) for one in reversed(mixed)][::-1]


@pytest.mark.parametrize("shard", [(0, 3), (4, 3)])
def test_a_part_that_there_is_not_is_refused(mixed, config, tmp_path, shard):
    with pytest.raises(ValueError, match="shard: expected i/N"):
        construct_cohort(mixed, tmp_path, config, shard=shard)


def test_the_workers_of_an_executor_change_no_byte(undisturbed, mixed, tmp_path):
    folder, several = undisturbed
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        rows = construct_cohort(mixed, tmp_path, several, executor=executor)
    assert [row["scan"] for row in rows] == [one.label for one in mixed] and results(tmp_path) == results(folder)


def test_failed_scans_alone_are_tried_again(inputs, config, tmp_path, tried):
    plain = dataclasses.replace(config, edges=("pearson",))
    construct_cohort(inputs[1], tmp_path, plain)
    tried.clear()
    rows = construct_cohort(inputs[1], tmp_path, plain, retry_failed=True)
    assert tried == ["sub-02_task-rest"] and status_of(rows) == ["failed"] and rows[0]["fault"] == "input"


def test_failed_scans_are_tried_again_with_their_own_settings_only(inputs, config, tmp_path, tried):
    """No other scan and no other atlas is registered: `pnet status` would count them as waiting from then on."""
    plain, said = dataclasses.replace(config, edges=("pearson",)), []
    with pytest.raises(SettingsError, match="--retry-failed needs the records of an earlier run, found none"):
        construct_cohort(inputs[1], tmp_path / "out", plain, retry_failed=True)
    assert not (tmp_path / "out").exists()
    construct_cohort(inputs[1][:2], tmp_path / "out", plain)
    before = overview(tmp_path / "out")
    tried.clear()
    with pytest.raises(SettingsError, match=r"settings of the run in which they failed, .*: kappa 10.0 then, 5.0 now; give .* --resume"):
        construct_cohort(inputs[1], tmp_path / "out", dataclasses.replace(plain, kappa=5.0), retry_failed=True)
    with pytest.raises(SettingsError, match="none of its 1 failed scans is in INPUT, e.g. sub-02_task-rest"):
        construct_cohort(inputs[1][2:], tmp_path / "out", plain, retry_failed=True)
    assert tried == [] and overview(tmp_path / "out") == before
    rows = construct_cohort(inputs[1], tmp_path / "out", plain, retry_failed=True, say=said.append)
    assert [row["scan"] for row in rows] == tried == ["sub-02_task-rest"] and "constructing 1 of 1 failed scans again" in said
    assert [one.scan for one in overview(tmp_path / "out")] == ["sub-01_task-rest", "sub-02_task-rest"]


def test_where_nothing_failed_nothing_is_tried_again(inputs, config, tmp_path, tried):
    plain, said = dataclasses.replace(config, edges=("pearson",)), []
    construct_cohort(inputs[1][:1], tmp_path, plain)
    tried.clear()
    assert construct_cohort(inputs[1], tmp_path, dataclasses.replace(plain, seed=1), retry_failed=True, say=said.append) == []
    assert tried == [] and "nothing failed" in said[0] and len(overview(tmp_path)) == 1


def test_a_resumed_run_says_what_is_up_to_date_and_why_the_rest_is_not(inputs, config, tmp_path):
    plain = dataclasses.replace(config, edges=("pearson",))
    copy = dataclasses.replace(inputs[1][0], bold=Path(shutil.copy(inputs[1][0].bold, tmp_path)))
    other = dataclasses.replace(inputs[1][2], entities=ENTITIES | {"run": "2"})
    sources, said = [copy, inputs[1][1], inputs[1][2], other], []
    construct_cohort(sources[:3], tmp_path / "out", plain)
    shutil.copy(inputs[1][2].bold, copy.bold)
    rows = construct_cohort(sources, tmp_path / "out", plain, resume=True, say=said.append)
    expected = "1 stale (1 whose inputs have changed), 1 failed before, 1 new"
    assert said[0] == f"1 of 4 scans are up to date and skipped, 3 to be constructed: {expected}"
    assert [bool(row.get("skipped")) for row in rows] == [False, False, True, False]
    assert not any("skipped" in record for record in read_records(tmp_path / "out"))
    construct_cohort(sources[:1], tmp_path / "out", dataclasses.replace(plain, seed=1), resume=True, say=said.append)
    assert "1 stale (1 made with other settings or another version)" in said[-1]


def test_scans_that_were_skipped_are_so_called_where_cohort_measures_follow(inputs, config, tmp_path):
    good = [inputs[1][0], inputs[1][2]]
    construct_cohort(good[:1], tmp_path, config)
    rows = construct_cohort(good, tmp_path, config, resume=True)
    assert [bool(row.get("skipped")) for row in rows] == [True, False]
    assert not any("skipped" in record for record in read_records(tmp_path))


def test_a_part_says_how_many_subjects_and_scans_it_has(inputs, config, tmp_path):
    sources = [dataclasses.replace(inputs[1][0], subject=f"{n:02d}", entities=ENTITIES | {"ses": ses}) for n in range(6) for ses in "ab"]
    own = [one for one in sources if running.Shard(1, 6).has(one)]
    said = []
    construct_cohort(sources, tmp_path, dataclasses.replace(config, edges=("pearson",)), shard=(1, 6), say=said.append)
    assert said[0] == f"shard 1/6: {len(own) // 2} of 6 subjects, {len(own)} of 12 scans"


def test_results_for_two_atlases_are_not_called_scans(mixed, tmp_path):
    for atlas in ("a", "b"):
        write_submission(tmp_path, mixed[:3], "job", atlas)
    assert summary(overview(tmp_path))[0] == "6 results of 3 scans: 0 done, 6 waiting"


def test_scans_that_are_tried_again_get_and_change_the_tangent_edges_of_all(inputs, config, tmp_path):
    repaired = [inputs[1][0], dataclasses.replace(inputs[1][1], bold=inputs[1][0].bold), inputs[1][2]]
    construct_cohort(repaired, tmp_path / "undisturbed", config)
    construct_cohort(inputs[1], tmp_path / "out", config)
    rows = construct_cohort(repaired, tmp_path / "out", config, retry_failed=True)
    assert status_of(rows) == ["ok"] and results(tmp_path / "out") == results(tmp_path / "undisturbed")


def test_a_block_that_its_worker_does_not_survive_is_tried_scan_by_scan(undisturbed, mixed, tmp_path, monkeypatch):
    folder, several = undisturbed
    whole = running.construct_block

    def deadly(sources, job):
        if any(one.subject == "02" for one in sources):
            raise RuntimeError("KilledWorker")
        return whole(sources, job)

    monkeypatch.setattr(running, "construct_block", deadly)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        rows = construct_cohort(mixed, tmp_path, several, executor=executor)
    assert status_of(rows) == ["ok", "failed", "ok", "ok", "ok"]
    assert rows[1]["fault"] == "machine" and "sub-02_task-rest" in rows[1]["error"]
    good = {name: data for name, data in results(folder).items() if not name.startswith("sub-02")}
    assert results(tmp_path) == good


def test_a_cluster_that_is_gone_ends_the_run_with_what_to_do(mixed, config, tmp_path):
    class Gone(concurrent.futures.Executor):
        def submit(self, *_):
            future = concurrent.futures.Future()
            future.set_exception(concurrent.futures.BrokenExecutor())
            return future

    with pytest.raises(OSError, match="the connection to the cluster was lost .*--resume"):
        construct_cohort(mixed, tmp_path, dataclasses.replace(config, edges=("pearson",)), executor=Gone())


def test_what_is_asked_for_is_known_before_it_is_done(mixed, config, tmp_path):
    plain = dataclasses.replace(config, edges=("pearson",))
    release = claim_scan(tmp_path, mixed[0].label, "toy")
    construct_cohort(mixed[2:], tmp_path, plain)
    write_submission(tmp_path, mixed, job_of(tmp_path, plain, resolve(plain, cohort=True), {}, ()).digest, "toy")
    states = overview(tmp_path)
    assert [one.state for one in states] == ["running", "waiting", "done", "done", "done"]
    assert str(os.getpid()) in states[0].reason
    release()
    assert summary(overview(tmp_path))[0] == "5 scans: 3 done, 2 waiting"


def test_results_that_are_not_what_is_asked_for_are_stale(mixed, config, tmp_path):
    plain = dataclasses.replace(config, edges=("pearson",))
    copy = dataclasses.replace(mixed[0], bold=Path(shutil.copy(mixed[0].bold, tmp_path)))
    sources, out = [copy, *mixed[3:]], tmp_path / "out"
    rows = construct_cohort(sources, out, plain)
    assert [one.state for one in overview(out, verify=True)] == ["done"] * 3
    (out / rows[1]["dseg"]).unlink()
    os.utime(copy.bold, (1, 1))
    assert [one.state for one in overview(out)] == ["done", "stale", "done"]
    assert [one.state for one in overview(out, verify=True)] == ["stale", "stale", "done"]
    construct_cohort(sources[2:], out, dataclasses.replace(plain, seed=1))
    write_submission(out, sources, "another", "toy")
    assert [one.reason for one in overview(out)] == ["made with other settings or another version"] * 3


def test_claims_are_released_only_when_no_process_is_left_that_writes(mixed, config, tmp_path, monkeypatch):
    order, claim, ended = [], pipeline.claim_scan, Workers.__exit__

    def stopped(*_):
        raise KeyboardInterrupt

    def watched(*arguments):
        release = claim(*arguments)
        return lambda: order.append("released") or release()

    monkeypatch.setattr(pipeline, "land", stopped)
    monkeypatch.setattr(pipeline, "claim_scan", watched)
    monkeypatch.setattr(Workers, "__exit__", lambda *arguments: order.append("ended") or ended(*arguments))
    with pytest.raises(KeyboardInterrupt):
        construct_cohort(mixed, tmp_path, dataclasses.replace(config, edges=("pearson",), workers=0))
    assert order[0] == "ended" and set(order[1:]) == {"released"}
    assert not list((tmp_path / ".pnet").glob("*.claim"))


def test_a_recording_that_is_replaced_while_a_run_goes_on_is_named(mixed, config, tmp_path, monkeypatch):
    """It was read before: its network is that of what was there, and is known to be out of date."""
    copy = dataclasses.replace(mixed[0], bold=Path(shutil.copy(mixed[0].bold, tmp_path)))
    whole = pipeline.land

    def land(*arguments):
        shutil.copy(mixed[3].bold, copy.bold)
        return whole(*arguments)

    monkeypatch.setattr(pipeline, "land", land)
    plain = dataclasses.replace(config, edges=("pearson",), workers=0)
    rows = construct_cohort([copy, mixed[3]], tmp_path / "out", plain)
    states = overview(tmp_path / "out", verify=True)
    assert status_of(rows) == ["ok", "ok"] and [one.state for one in states] == ["stale", "done"]
    assert states[0].reason == "its input has changed"


def test_a_recording_that_is_deleted_before_it_is_read_costs_no_other(mixed, config, tmp_path, monkeypatch):
    gone = dataclasses.replace(mixed[0], bold=Path(shutil.copy(mixed[0].bold, tmp_path)))
    claim = pipeline.Pipeline._claim
    monkeypatch.setattr(pipeline.Pipeline, "_claim", lambda loop, source: gone.bold.unlink(missing_ok=True) or claim(loop, source))
    rows = construct_cohort([gone, *mixed[3:]], tmp_path / "out", dataclasses.replace(config, edges=("pearson",)))
    assert status_of(rows) == ["failed", "ok", "ok"] and str(gone.bold) in rows[0]["error"]


def test_a_scan_whose_reader_dies_costs_no_other(mixed, config, tmp_path):
    """Its file is a pipe that ends the process that opens it, as the operating system does when memory runs out."""
    plain = dataclasses.replace(config, edges=("pearson",), workers=2)
    options = {"tr": Killer()}
    rows = construct_cohort(mixed, tmp_path, plain, load=options)
    assert set(status_of(rows)) == {"failed"} and all("worker process ended unexpectedly" in row["error"] for row in rows)


class Killer:
    """Ends the process that uses it."""

    def __float__(self):
        os._exit(9)

    def __repr__(self):
        return "killer"


def test_scans_of_a_store_are_constructed_without_their_files(mixed, config, tmp_path):
    """Their signals are kept as float16, so that a few labels may differ."""
    plain = dataclasses.replace(config, edges=("pearson",))
    direct = construct_cohort(mixed[:2], tmp_path / "direct", plain)
    prepare(mixed[:2], tmp_path / "store", PrepareConfig(cleaning=plain.cleaning))
    sources = stored_scans(tmp_path / "store")
    assert [one.label for one in sources] == [one.label for one in mixed[:2]]
    rows = construct_cohort(sources, tmp_path / "out", plain)
    assert status_of(rows) == ["ok", "ok"]
    for one, other in zip(direct, rows, strict=True):
        a, b = load_network(tmp_path / "direct" / one["dseg"]), load_network(tmp_path / "out" / other["dseg"])
        assert np.mean(a.labels == b.labels) > 0.98
    (chosen,) = stored_scans(tmp_path / "store", participant_labels=["02"])
    assert chosen.label == mixed[1].label


def test_a_scan_that_takes_more_memory_than_there_is_fails_with_its_estimate(mixed, config, tmp_path, monkeypatch):
    needed = {one.bold: peak_bytes(one, config.cleaning) for one in mixed[:2]}
    monkeypatch.setattr(tasks, "all_memory", lambda: min(needed.values()))
    rows = construct_cohort(mixed[:2], tmp_path, dataclasses.replace(config, edges=("pearson",)))
    assert status_of(rows) == ["ok", "failed"] and rows[1]["fault"] == "machine"  # the second is longer
    assert "reading it takes about" in rows[1]["error"]


def test_a_scan_that_is_refused_for_its_memory_does_not_hold_up_the_others(mixed, config, tmp_path, monkeypatch):
    small = peak_bytes(mixed[0], config.cleaning)
    monkeypatch.setattr(running, "peak_bytes", lambda source, _: 1 << 50 if source is mixed[1] else small)
    said = []
    construct_cohort(mixed, tmp_path, dataclasses.replace(config, edges=("pearson",), workers=2), say=said.append)
    assert "; 2 worker processes read and write" in said[0]


@pytest.mark.parametrize(("gib", "processes", "scans"), [(0, 8, 11), (1, 1, 1), (20, 8, 10), (100, 8, 11)])
def test_the_memory_bounds_what_is_read_at_a_time(config, gib, processes, scans):
    builder = Builder(resolve(config, cohort=True))
    bounds = bounds_of(builder, 1, 8, 1 << 30, gib << 30)
    assert (bounds.processes, bounds.scans) == (processes, scans)


def test_a_subject_that_gets_a_recording_is_unavailable_no_more(inputs, config, tmp_path):
    folder, plain = tmp_path / "in", dataclasses.replace(config, edges=("pearson",))
    for one in (inputs[1][0], inputs[1][2]):
        (folder / f"sub-{one.subject}" / "func").mkdir(parents=True)
        shutil.copy(one.bold, folder / f"sub-{one.subject}" / "func")
    hidden = folder / "sub-03" / "func" / inputs[1][2].bold.name
    hidden = hidden.rename(tmp_path / hidden.name)
    states = []
    for _ in range(2):
        construct_cohort(find_scans(folder, mask=inputs[1][0].mask), tmp_path / "out", plain, resume=True)
        states.append([(one.scan, one.state) for one in overview(tmp_path / "out")])
        if hidden.exists():
            hidden.rename(folder / "sub-03" / "func" / hidden.name)
    assert states == [
        [("sub-01_task-rest", "done"), ("sub-03", "unavailable")],
        [("sub-01_task-rest", "done"), ("sub-03_task-rest", "done")],
    ]
    assert [record["scan"] for record in read_records(tmp_path / "out")] == ["sub-01_task-rest", "sub-03_task-rest"]
