"""Personalisation of a store: waves, results on disk, one that fails, going on, and construction informed by it and by a group."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import warnings
import weakref

import chex
import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

import pnet_jax
from pnet_jax import parallel, personalization
from pnet_jax.batch.run import construct_cohort
from pnet_jax.checkpoint import load_model, save_group, save_model
from pnet_jax.cli import main
from pnet_jax.config import CleaningConfig, ConstructConfig, PersonalizeConfig, PrepareConfig
from pnet_jax.construction import build, construct, resolve
from pnet_jax.construction.assemble import second_view
from pnet_jax.construction.informed import tunable
from pnet_jax.edges import layers
from pnet_jax.errors import SettingsError
from pnet_jax.group.fit import fit_group
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.connectome import read_connectome
from pnet_jax.outputs import load_network, read_record, read_records, save, write_record
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.personalization import (
    COMMAND,
    CPU_WAVE_BYTES,
    find_personal,
    load_personal,
    memory_of,
    personalize,
    signals_digest,
    wave_size,
)
from pnet_jax.records import open_store, prepare, read_scan

CONFIG = PersonalizeConfig(rounds=2, steps=2, wave=2)
# The group's map is the toy's own parcels, over which no scan of it gains anything.
FORCED = ConstructConfig(dynamics=True, personalize=CONFIG, labels="personalised")
K = 12


def one_device():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def scans(toy):
    whole = [toy.scan(seed, subject=f"{seed:02d}") for seed in range(4)]
    return [*whole, toy.scan(4, frames=34, subject="04")]  # too short for the band


@pytest.fixture(scope="module")
def store(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    prepare(scans, folder)
    return open_store(folder)


@pytest.fixture(scope="module")
def group(scans, toy_builder):
    """Learned from the networks of the first four."""
    networks = [build([toy_builder.ready(scan)], toy_builder)[0] for scan in scans[:4]]
    return fit_group(networks, toy_builder.plan.atlas, dynamics=True)


@pytest.fixture(scope="module")
def plan(toy_model, group):
    return resolve(ConstructConfig(dynamics=True), model=toy_model, group=group)


@pytest.fixture(scope="module")
def told():
    """What the progress of `done` was told: label, done, total."""
    return []


@pytest.fixture(scope="module")
def done(store, toy_model, group, tmp_path_factory, told):
    """Folder, rows, and what was said. Two waves, with one trace of fine-tuning."""
    folder, said = tmp_path_factory.mktemp("personal"), []
    given = {"mesh": one_device(), "model": toy_model, "atlas": toy_model.atlases[K], "group": group, "say": said.append}
    with pytest.MonkeyPatch.context() as patch:
        chex.clear_trace_counter()
        patch.setattr(personalization, "fine_tune", chex.assert_max_traces(personalization.fine_tune, n=1))
        rows = personalize(store, folder, CONFIG, progress=lambda *seen: told.append(seen), **given)
    return folder, rows, said


def test_every_recording_has_a_row_and_the_one_that_fails_is_named(done, store):
    folder, rows, said = done
    assert [row["scan"] for row in sorted(rows, key=lambda row: row["scan"])] == [record.key for record in store.records]
    failed = [row for row in rows if row["status"] != "ok"]
    assert [row["subject"] for row in failed] == ["04"]
    assert "sub-04" in failed[0]["error"] and "too few frames" in failed[0]["error"]
    assert {row["scan"]: row["status"] for row in read_records(folder)} == {row["scan"]: row["status"] for row in rows}
    assert [text.split(":")[0] for text in said] == ["waves of 2"]
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["wave-00000", "wave-00001"]


def test_progress_goes_on_within_a_wave_and_counts_what_is_done(done, told, store):
    names = [record.key for record in store.records]
    assert told == [
        *((name, 0, 5) for name in names[:2]),
        ("wave-00000, 2 recordings", 0, 5),
        (names[0], 0, 5),
        (names[1], 1, 5),
        *((name, 2, 5) for name in names[2:4]),
        ("wave-00001, 2 recordings", 2, 5),
        (names[2], 2, 5),
        (names[3], 3, 5),
        (names[4], 4, 5),  # fails at once
        ("", 5, 5),
    ]


def test_one_participants_parameters_are_read_by_themselves(done, store):
    folder, rows, _ = done
    own = [load_personal(folder, row["scan"]) for row in rows if row["status"] == "ok"]
    assert {one.round for one in own} <= {0, 1, 2} and all(one.verdict.reason for one in own)
    own = [one.own for one in own]
    assert len(own) == 4 and {len(one.adapter.offsets) for one in own} == {K} == {len(one.dynamics.coupling) for one in own}
    assert any(not np.array_equal(own[0].dynamics.coupling, one.dynamics.coupling) for one in own[1:])
    with pytest.raises(ValueError, match="expected the parameters of sub-04.*it failed"):
        load_personal(folder, store.records[4].key)
    with pytest.raises(ValueError, match="expected the parameters of sub-99.*record is missing"):
        load_personal(folder, "sub-99_task-rest")


def test_a_result_is_found_by_the_signals_of_its_recording(done, scans, store, plan):
    folder, (first, second, *_) = done[0], scans
    known = (plan, CONFIG)
    renamed = dataclasses.replace(first, subject="elsewhere", source="another/file.nii.gz", entities={})
    for scan in (first, renamed, read_scan(store, 0)):
        found, said = find_personal(folder, scan, *known)
        assert said == []
        assert_array_equal(found.own.adapter.up, load_personal(folder, store.records[0].key).own.adapter.up)
    other = dataclasses.replace(first, y=second.y + np.float32(0.01))
    assert find_personal(folder, other, *known) == (
        None,
        [f"sub-00_task-rest is fine-tuned again: {folder} contains a recording with this name but other signals"],
    )
    assert find_personal(folder, dataclasses.replace(other, subject="98"), *known) == (None, [])
    changed = dataclasses.replace(CONFIG, rate=0.5, rounds=7)
    none, (said,) = find_personal(folder, first, plan, changed)
    assert none is None and said.startswith(f"sub-00_task-rest is fine-tuned again: {folder} contains it with other settings (")
    assert "config.rate 0.01 there, 0.5 now" in said and "config.rounds 2 there, 7 now" in said
    assert find_personal(folder, first, plan, dataclasses.replace(CONFIG, wave=5))[1] == []  # no number depends on it
    spread = plan.group.hierarchy._replace(variance=2 * plan.group.hierarchy.variance)
    refitted = dataclasses.replace(plan, group=dataclasses.replace(plan.group, hierarchy=spread))
    none, (said,) = find_personal(folder, first, refitted, CONFIG)
    assert none is None and f"(group {plan.group.digest} there, {refitted.group.digest} now)" in said


def test_the_digest_of_signals_forgives_what_a_store_rounds_and_nothing_else(scans):
    scan = scans[0]
    stored = dataclasses.replace(scan, y=scan.y.astype(np.float16).astype(np.float32), subject="99")
    assert signals_digest(stored) == signals_digest(scan)
    y = scan.y.copy()
    y[3, 5] += 0.01
    assert signals_digest(dataclasses.replace(scan, y=y)) != signals_digest(scan)


def test_what_stands_is_not_made_again(done, store, toy_model, group, monkeypatch):
    folder, rows, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("wave-*")}
    monkeypatch.setattr("pnet_jax.personalization._take", lambda *_: pytest.fail("a wave was made again"))
    again = personalize(store, folder, CONFIG, mesh=one_device(), model=toy_model, atlas=toy_model.atlases[K], group=group)
    assert {row["scan"]: str(row["round"]) for row in again if row["status"] == "ok"} == {
        row["scan"]: str(row["round"]) for row in rows if row["status"] == "ok"
    }
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("wave-*")}


def test_a_damaged_wave_is_fine_tuned_again(done, store, toy_model, group, tmp_path, monkeypatch):
    folder = shutil.copytree(done[0], tmp_path / "copy")
    file = max((folder / "adapters" / "wave-00000").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        SettingsError,
        match=rf"adapters {folder}/adapters/wave-00000 is damaged: .*{file.name} does not have the SHA-256 listed in SHA256SUMS",
    ):
        load_personal(folder, store.records[0].key)
    again = []

    def take(wave, *_):
        again.extend(one.row["scan"] for one in wave)
        return [one.row | {"status": "ok"} for one in wave]

    monkeypatch.setattr(personalization, "_take", take)
    with pytest.warns(UserWarning, match=r"wave-00000 is damaged: .* \(its recordings are fine-tuned again\)"):
        personalize(store, folder, CONFIG, mesh=one_device(), model=toy_model, atlas=toy_model.atlases[K], group=group)
    assert again == [store.records[number].key for number in (0, 1)]


def test_a_changed_record_changes_no_result(done, store, tmp_path):
    folder, name = shutil.copytree(done[0], tmp_path / "copy"), store.records[0].key
    whole, record = load_personal(folder, name), read_record(folder, name)
    write_record(folder, record | {"round": 1 - (record["round"] == 1), "held_out_score": 9.9, "parcels": "other"}, {}, COMMAND)
    found = load_personal(folder, name)
    assert (found.round, repr(found.verdict)) == (whole.round, repr(whole.verdict))
    write_record(folder, record | {"wave": "wave-00001"}, {}, COMMAND)
    with pytest.raises(SettingsError, match=rf"{name}\.json is damaged: expected the parameters of {name} in .*wave-00001, found"):
        load_personal(folder, name)


def test_results_of_other_settings_are_not_mixed(done, store, toy_model, group):
    other = dataclasses.replace(CONFIG, rate=0.5)
    with pytest.raises(
        ValueError, match=r"of other settings \(config\.rate: 0\.01 there, 0\.5 now\); use the same settings, or a new folder$"
    ):
        personalize(store, done[0], other, model=toy_model, atlas=toy_model.atlases[K], group=group)


def test_a_folder_is_one_commands(done, store, toy_model, group, tmp_path):
    with pytest.raises(ValueError, match="contains results of `pnet personalize`; use another folder for `pnet construct`"):
        construct_cohort([ScanSource(tmp_path / "sub-01_bold.nii.gz", None, None, None, "01")], done[0], ConstructConfig(report=False))
    write_record(tmp_path, {"scan": "sub-01", "status": "failed", "job": "0"}, {}, "pnet construct")
    with pytest.raises(ValueError, match="contains results of `pnet construct`; use another folder for `pnet personalize`"):
        personalize(store, tmp_path, CONFIG, model=toy_model, atlas=toy_model.atlases[K], group=group)


@pytest.fixture
def damaged(store, tmp_path):
    """One record is cut, one changed inside, one gone after the store was opened."""
    folder = shutil.copytree(store.folder, tmp_path / "store")
    cut, changed, gone = (folder / store.records[number].file for number in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    opened = open_store(folder, allow_damaged=True)
    gone.unlink()
    return opened, [file.name for file in (cut, changed, gone)]


def test_a_damaged_record_is_a_row_and_the_others_go_on(damaged, toy_model, group, tmp_path, monkeypatch):
    store, files = damaged
    monkeypatch.setattr(personalization, "_take", lambda wave, *_: [one.row | {"status": "ok", "wave": "wave-00000"} for one in wave])
    arguments = {"mesh": one_device(), "model": toy_model, "atlas": toy_model.atlases[K], "group": group}
    rows = {row["subject"]: row for row in personalize(store, tmp_path / "out", CONFIG, **arguments)}
    assert {name: row["status"] for name, row in rows.items()} == {"00": "ok"} | dict.fromkeys(("01", "02", "03", "04"), "failed")
    assert all(file in rows[name]["error"] for name, file in zip(("01", "02", "03"), files, strict=True))
    assert f"{files[0]} has changed in size: expected" in rows["01"]["error"]
    assert files[1] in rows["02"]["error"] and files[2] in rows["03"]["error"]


def test_a_group_of_other_parcels_or_without_dynamics_is_refused_before_anything_is_written(store, toy_model, group, tmp_path):
    given = {"mesh": one_device(), "model": toy_model, "atlas": toy_model.atlases[K]}
    with pytest.raises(ValueError, match=r"group was fitted with another atlas: expected .* \(toy\), found another; give the atlas"):
        personalize(store, tmp_path, CONFIG, group=dataclasses.replace(group, atlas="another"), **given)
    with pytest.raises(ValueError, match="group was fitted without dynamics; refit it with `pnet fit-group --dynamics`"):
        personalize(store, tmp_path, CONFIG, group=dataclasses.replace(group, hierarchy=None), **given)
    assert not (tmp_path / "status.tsv").exists()


def test_a_wave_fits_into_memory_and_divides_over_devices():
    leaf = np.zeros(2**20, np.float32)
    size = memory_of((leaf, leaf))
    assert size > 2 * leaf.nbytes
    assert wave_size((leaf,), devices=1, most=8) == 8
    assert wave_size((leaf,), devices=4, most=6) == 4
    assert wave_size((_Sized(2**60),), devices=2, most=8) == 2


def test_a_wave_on_cpu_is_bounded_whatever_the_machine_has(monkeypatch):
    """Recordings beside each other take as long there as one after another: only the peak of the memory grows."""
    assert wave_size((_Sized(CPU_WAVE_BYTES // (2 * memory_of((_Sized(1),)))),), devices=1, most=100) == 2
    assert wave_size((_Sized(2**28),), devices=1, most=100) == 1


def test_a_wave_that_is_done_is_let_go_before_the_next_recordings_are_read(store, toy_model, group, tmp_path, monkeypatch):
    read, held = [], []

    def watched(store, number):
        gc.collect()
        held.append(sum(one() is not None for one in read))
        scan = read_scan(store, number)
        read.append(weakref.ref(scan.y))
        return scan

    monkeypatch.setattr(personalization, "_read", watched)
    monkeypatch.setattr(personalization, "_take", lambda wave, *_: [one.row | {"status": "ok", "wave": "wave-00000"} for one in wave])
    personalize(store, tmp_path, CONFIG, mesh=one_device(), model=toy_model, atlas=toy_model.atlases[K], group=group)
    assert held == [0, 1, 0, 1, 0]


class _Sized:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


# construction


@pytest.fixture(scope="module")
def network(group, scans, toy_model):
    return construct(scans[0], model=toy_model, group=group, config=FORCED)


@pytest.fixture(scope="module")
def directed(group, scans, toy_model):
    return construct(scans[0], model=toy_model, edges=("pearson", "effective"), group=group, config=FORCED)


def test_an_informed_network_has_coupling_and_its_errors(network):
    coupling, error = network.edges["coupling"], network.uncertainty["coupling"]
    assert coupling.shape == error.shape == (K, K)
    assert_allclose(coupling, coupling.T, atol=1e-5)
    assert np.linalg.eigvalsh(coupling).max() < 0 and (error > 0).all()
    assert network.qc.dynamics["participants"] == 4 and network.qc.dynamics["atlas"] == network.provenance["atlas"]["digest"]
    fitted = network.qc.dynamics["fit"]
    assert fitted["ok"] == (fitted["held_out"] < fitted["prior_held_out"])


def test_layers_stand_beside_the_raw_edges(network, group):
    assert {"pearson", "shrunk", "guided", "coupling"} == set(network.edges) == set(network.uncertainty)
    apart = ~np.eye(K, dtype=bool)
    raw, shrunk = (np.arctanh(network.edges[name][apart]) for name in ("pearson", "shrunk"))
    mean = group.shrinkage.mean[apart]
    assert (np.abs(shrunk - mean) <= np.abs(raw - mean) + 1e-5).all()
    assert any("was also learned from a participant sub-00" in text for text in network.qc.warnings)


def test_coupling_and_errors_come_back_from_disk(network, tmp_path):
    again = load_network(save(network, tmp_path)[-1])
    assert_allclose(again.uncertainty["coupling"], network.uncertainty["coupling"], rtol=1e-5)
    assert_allclose(again.edges["coupling"], network.edges["coupling"], rtol=1e-5, atol=1e-7)
    assert list(again.edges) == list(network.edges)


def test_directed_coupling_comes_with_errors_and_only_where_it_is_asked_for(directed, network):
    assert "effective" not in network.edges and "effective" not in network.qc.dynamics
    effective, error = directed.edges["effective"], directed.uncertainty["effective"]
    assert effective.shape == error.shape == (K, K) and (error > 0).all()
    assert np.linalg.eigvals(effective).real.max() < 0 and np.abs(effective - effective.T).max() > 1e-3
    assert directed.qc.dynamics["effective"]["ok"]
    assert_array_equal(directed.edges["coupling"], network.edges["coupling"])
    assert "directed coupling was fitted" in pnet_jax.explain(directed)


def test_directed_coupling_comes_back_from_disk_with_its_direction(directed, tmp_path):
    files = save(directed, tmp_path)
    again = load_network(files[-1])
    assert_allclose(again.edges["effective"], directed.edges["effective"], rtol=1e-5, atol=1e-7)
    assert_allclose(again.uncertainty["effective"], directed.uncertainty["effective"], rtol=1e-5)
    (sidecar,) = (json.loads(file.read_text()) for file in files if file.name.endswith("stat-effective_relmat.json"))
    assert sidecar["Directed"] and sidecar["Units"] == "1/s" and "direction" in sidecar["MeantFor"]
    assert "column l is the effect of parcel l on parcel k" in sidecar["RelationshipMeasure"]
    assert any(file.name.endswith("stat-effective_desc-sd_relmat.json") for file in files)


def test_where_direction_cannot_be_fitted_the_symmetric_coupling_stands(group, scans, toy_model, monkeypatch):
    def refused(*_, **__):
        raise ValueError("expected a stable start")

    monkeypatch.setattr("pnet_jax.finetune.person.fit_effective", refused)
    found = construct(scans[0], model=toy_model, edges=("effective",), group=group, config=FORCED)
    assert_array_equal(found.edges["effective"], found.edges["coupling"])
    assert_array_equal(found.uncertainty["effective"], found.uncertainty["coupling"])
    assert any("directed coupling could not be estimated" in text for text in found.qc.warnings)
    assert "Not determined by the scan: the direction of the coupling." in pnet_jax.explain(found)


def test_explain_says_what_it_rests_on(network):
    said = {line.split(":")[0]: line for line in pnet_jax.explain(network).splitlines()}
    assert list(said)[:2] == ["Atlas", "Parcels"] and "12 parcels" in said["Atlas"]
    assert "learned from 4 participants" in said["Dynamics"]


def test_a_scan_too_short_for_dynamics_has_a_network_without(group, scans, toy_model):
    found = construct(scans[4], model=toy_model, group=group, config=ConstructConfig(dynamics=True, personalize=CONFIG))
    assert "coupling" not in found.edges and {"pearson", "shrunk", "guided"} <= set(found.edges)
    assert any("no dynamics were fitted: sub-04" in text and "too few frames" in text for text in found.qc.warnings)


def test_without_dynamics_a_group_gives_the_spatial_prior_and_layers_alone(group, scans, toy_model, network, tmp_path):
    save_group(group, tmp_path / "group")
    found = construct(scans[0], model=toy_model, group=tmp_path / "group", config=ConstructConfig(labels="personalised"))
    assert_array_equal(found.atlas_labels, network.atlas_labels)
    assert set(found.edges) == {"pearson", "shrunk", "guided"} and found.qc.dynamics is None
    if not network.qc.dynamics["parcels"]["kept"]:
        assert_array_equal(found.edges["guided"], network.edges["guided"])


def test_without_a_group_nothing_of_it_is_there(scans, toy, toy_model):
    plain = construct(scans[0], model=toy_model)
    assert set(plain.edges) == {"pearson"} and not plain.uncertainty and plain.qc.dynamics is None and plain.provenance["group"] is None
    assert_array_equal(plain.atlas_labels, toy.expected)


def test_dynamics_need_a_group_with_dynamics_of_the_same_parcels(group, scans, toy_model, tmp_path):
    config = ConstructConfig(dynamics=True)
    with pytest.raises(ValueError, match="give the folder written by `pnet fit-group --dynamics`"):
        construct(scans[0], model=toy_model, config=config)
    for name in ("coupling", "effective"):
        with pytest.raises(ValueError, match=f'"{name}" requires fitted dynamics'):
            construct(scans[0], model=toy_model, edges=(name,), group=group)
    with pytest.raises(ValueError, match=r"group was fitted with another atlas: expected .*, found another"):
        construct(scans[0], model=toy_model, group=dataclasses.replace(group, atlas="another"), config=config)
    save_group(dataclasses.replace(group, hierarchy=None), tmp_path / "edges")
    with pytest.raises(ValueError, match=r"group .*edges was fitted without dynamics"):
        construct(scans[0], model=toy_model, config=dataclasses.replace(config, group=str(tmp_path / "edges")))


def test_a_second_view_enters_the_guided_edges(toy, toy_model, toy_builder):
    def scan(number):
        one = toy.scan(number, subject=f"{number:02d}")
        clear = np.asarray(parcel_signals(one.y, toy.truth, K))[toy.truth]  # less noise than there is in the first view
        return dataclasses.replace(one, wide=(one.y + 4 * clear).astype(np.float16), cleaning={"low_pass": 0.1})

    group = fit_group(
        [build([toy_builder.ready(scan(number))], toy_builder)[0] for number in range(4)], toy.atlas, dynamics=True, second_view=True
    )
    assert group.guide.mean.shape == (2, K, K)
    config = ConstructConfig(dynamics=True, personalize=CONFIG)
    whole = scan(9)
    both = construct(whole, atlas=toy.atlas, model=toy_model, group=group, config=config)
    alone = construct(dataclasses.replace(whole, wide=None), atlas=toy.atlas, model=toy_model, group=group, config=config)
    assert list(both.halves) == ["pearson", "whitened"] and list(alone.halves) == ["pearson"]
    second = second_view(whole, both.labels, K)
    made = layers(both.edges["pearson"], both.qc.n_eff, group.shrinkage, group.guide, [second])
    assert_allclose(both.edges["guided"], made["guided"].edges, atol=rounding(both.signals.shape[1]))
    assert_array_equal(both.edges["pearson"], alone.edges["pearson"])
    assert np.abs(both.edges["guided"] - alone.edges["guided"]).max() > 1e-4
    asked = "keep the signals before low-pass filtering"
    assert any(asked in text for text in alone.qc.warnings) and not any(asked in text for text in both.qc.warnings)


def test_the_second_view_is_of_signals_that_are_known_to_have_no_low_pass(toy):
    scan = toy.scan(0)
    unfiltered, unknown = (dataclasses.replace(scan, cleaning=cleaning) for cleaning in ({"low_pass": None}, {}))
    assert second_view(unknown, toy.truth, K) is None and second_view(unfiltered, toy.truth, K).shape == (K, K)
    some = np.arange(40, 120)
    part = dataclasses.replace(unfiltered, y=scan.y[:, some], frames=scan.frames[some])
    assert_allclose(second_view(unfiltered, toy.truth, K, some), second_view(part, toy.truth, K), atol=1e-5)


def test_a_cohort_reads_what_stands_and_the_second_view(toy, toy_model, tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), tmp_path / "mask.nii.gz")
    sources = []
    for number in range(4):
        image = nib.Nifti1Image(toy.volume(number), toy.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 2))
        nib.save(image, file := tmp_path / f"sub-0{number}_task-rest_space-MNI152NLin6Asym_bold.nii.gz")
        sources.append(ScanSource(file, tmp_path / "mask.nii.gz", None, f"0{number}", {"task": "rest", "space": "MNI152NLin6Asym"}))
    save_model(toy_model, tmp_path / "model")
    prepare(sources, tmp_path / "store", PrepareConfig(dataset="toy", cleaning=CleaningConfig(wide=True)))
    out, store = tmp_path / "out", open_store(tmp_path / "store")
    config = ConstructConfig(checkpoint=str(tmp_path / "model"), cleaning=CleaningConfig(wide=True), report=False)
    rows = construct_cohort(sources, tmp_path / "first", config)
    networks = (load_network(tmp_path / "first" / row["dseg"]) for row in rows)
    group = fit_group(networks, toy_model.atlases[K], dynamics=True, second_view=True)
    assert len(group.guide.mean) == 2
    save_group(group, tmp_path / "group")
    personalize(store, out, CONFIG, mesh=one_device(), model=load_model(tmp_path / "model"), atlas=toy_model.atlases[K], group=group)
    own = dataclasses.replace(CONFIG, wave=5)
    config = dataclasses.replace(config, cleaning=CleaningConfig(), dynamics=True, personalize=own)
    config = dataclasses.replace(config, group=str(tmp_path / "group"), personalized=str(out), labels="personalised")
    made = []
    monkeypatch.setattr("pnet_jax.construction.informed.tunable", lambda *given: made.append(given) or tunable(*given))
    rows = construct_cohort(sources[:1], tmp_path / "networks", config)
    assert not made and rows[0]["status"] == "ok" and "keep the signals before" not in rows[0]["qc_warnings"]
    network = load_network(tmp_path / "networks" / rows[0]["dseg"])
    stored = load_personal(out, "toy/sub-00_task-rest")
    assert network.qc.dynamics["round"] == stored.round
    assert network.qc.dynamics["parcels"]["reason"] == stored.verdict.reason
    changed = dataclasses.replace(config, edges=("pearson", "tangent"), personalize=dataclasses.replace(CONFIG, steps=1))
    rows = construct_cohort(sources[:1], tmp_path / "again", changed)
    assert made and rows[0]["status"] == "ok"
    said = f"sub-00_task-rest is fine-tuned again: {out} contains it with other settings (config.steps 2 there, 1 now)"
    assert said in load_network(tmp_path / "again" / rows[0]["dseg"]).qc.warnings


def test_direction_of_too_many_parcels_is_refused_before_a_scan_is_read(toy_model):
    xyz = np.random.default_rng(0).uniform(-60, 60, (402, 3))
    many = make_atlas(xyz, np.arange(402) // 2 + 1, resolution=8, names=[f"area-{k}" for k in range(201)], source="many", space="MNI")
    config = ConstructConfig(dynamics=True)
    with pytest.raises(ValueError, match='"effective" supports at most 200 parcels, atlas many has 201: use a coarser atlas'):
        resolve(config, atlas=many, model=toy_model, edges=("pearson", "effective"))
    with pytest.raises(ValueError, match="give the folder written by `pnet fit-group --dynamics`"):  # and nothing of the number of parcels
        resolve(config, atlas=many, model=toy_model, edges=("coupling",))


# the command


def test_the_command_goes_from_a_store_to_rows(store, toy_model, group, tmp_path, capsys):
    save_model(toy_model, tmp_path / "model")
    save_group(group, tmp_path / "group")
    folder = shutil.copytree(store.folder, tmp_path / "store")
    cut = folder / store.records[3].file
    cut.write_bytes(cut.read_bytes()[:-1])
    given = [
        "--checkpoint",
        str(tmp_path / "model"),
        "--parcels",
        str(K),
        "--group",
        str(tmp_path / "group"),
        "--rounds",
        "1",
        "--steps",
        "1",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command prints them
        assert main(["personalize", str(folder), str(tmp_path / "out"), *given]) == 1  # two of five fail
    said = capsys.readouterr()
    assert "3 of 5 scans done, 2 failed" in said.out
    assert "failed: sub-04" in said.err and "waves of 8" in said.err
    assert f"failed: store {folder}: scans/{cut.name} has changed in size" in said.err
    assert main(["personalize", str(tmp_path / "nothing"), str(tmp_path / "other"), "--group", str(tmp_path / "group")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_the_command_asks_for_a_group(store, tmp_path, capsys):
    assert main(["personalize", str(store.folder), str(tmp_path / "out")]) == 2
    assert "--group is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "found 1 of 9 NaN or infinite; the first, in row 1 and column 2, is nan"),
        (-0.5, "found 1 of 9 negative; the first, in row 1 and column 2, is -0.5"),
        (0.75, "found 2 of 9 asymmetric; the first, in row 1 and column 2, is 0.75, but 0.5 in the transpose"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".npy"])
def test_a_structural_connectome_that_is_none_is_named_by_its_file(value, message, ending, tmp_path):
    weights, file = np.full((3, 3), 0.5), tmp_path / f"sc{ending}"
    weights[0, 1] = value
    if ending == ".npy":
        np.save(file, weights)
    else:
        np.savetxt(file, weights, delimiter=",", header="a,b,c", comments="")
    with pytest.raises(ValueError) as error:
        read_connectome(file, 3)
    assert str(error.value) == f"structural connectome {file}: expected finite, non-negative and symmetric weights, {message}"


def test_a_structural_connectome_is_read(tmp_path):
    np.savetxt(tmp_path / "sc.csv", np.eye(3), delimiter=",")
    assert_array_equal(read_connectome(tmp_path / "sc.csv", 3), np.eye(3))
    (tmp_path / "text.csv").write_text("a,b\n1,x\nx,1\n")
    for name, said in (("text.csv", "expected numbers in every column, found text in a .*, b"), ("none.csv", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=f"structural connectome .*{name}: {said}"):
            read_connectome(tmp_path / name, 2)
