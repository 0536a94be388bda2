"""Personalisation of a store: waves, results on disk, one that fails, going on, and construction informed by it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

import pnet_jax
from pnet_jax import parallel, personalization
from pnet_jax.checkpoint import load_model, load_people, save_model
from pnet_jax.cli import main
from pnet_jax.cohort import construct_cohort
from pnet_jax.config import CleaningConfig, ConstructConfig, PersonalizeConfig, PrepareConfig
from pnet_jax.construction import construct, resolve
from pnet_jax.construction.informed import edge_views, tunable
from pnet_jax.dynamics.fit import moments, structural
from pnet_jax.dynamics.spectra import pool
from pnet_jax.edges import layers
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.connectome import read_connectome
from pnet_jax.outputs import append_status, load_network, read_status, save
from pnet_jax.parcellation.prior import make_prior
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.people import fit_people
from pnet_jax.personalization import STATUS, find_personal, load_personal, member, memory_of, personalize, signals_digest, wave_size
from pnet_jax.records import open_store, prepare, read_scan

CONFIG = PersonalizeConfig(rounds=2, steps=2, wave=2)
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
def told():
    """What the progress of `done` was told: label, done, total."""
    return []


@pytest.fixture(scope="module")
def done(store, toy_model, tmp_path_factory, told):
    """Folder, rows, and what was said."""
    folder, said = tmp_path_factory.mktemp("personal"), []
    given = {"mesh": one_device(), "model": toy_model, "prior": toy_model.priors[K], "say": said.append}
    with pytest.warns(UserWarning, match="left out of what people have in common.*sub-04"):
        rows = personalize(store, folder, CONFIG, progress=lambda *seen: told.append(seen), **given)
    return folder, rows, said


def test_everybody_has_a_row_and_the_one_that_fails_is_named(done, store):
    folder, rows, said = done
    assert [row["scan"] for row in sorted(rows, key=lambda row: row["scan"])] == [record.key for record in store.records]
    failed = [row for row in rows if row["status"] != "ok"]
    assert [row["subject"] for row in failed] == ["04"]
    assert "sub-04" in failed[0]["error"] and "too few frames" in failed[0]["error"]
    assert {row["scan"]: row["status"] for row in read_status(folder / STATUS)} == {row["scan"]: row["status"] for row in rows}
    assert [text.split(":")[0] for text in said] == ["guided edges will be made of one view", "waves of 2"]
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["wave-00000", "wave-00001"]


def test_progress_goes_on_within_a_wave_and_counts_what_is_done(done, told, store):
    names = [record.key for record in store.records]
    assert told[:5] == [(f"all people, {name}", 0, 5) for name in names]
    assert told[5:] == [
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


def test_one_persons_parameters_are_read_by_themselves(done, store):
    folder, rows, _ = done
    own = [load_personal(folder, row["scan"]) for row in rows if row["status"] == "ok"]
    assert {one.round for one in own} <= {0, 1, 2} and all(one.verdict.reason for one in own)
    own = [one.own for one in own]
    assert len(own) == 4 and {len(one.adapter.offsets) for one in own} == {K} == {len(one.dynamics.coupling) for one in own}
    assert any(not np.array_equal(own[0].dynamics.coupling, one.dynamics.coupling) for one in own[1:])
    with pytest.raises(ValueError, match="no parameters of sub-04.*it failed"):
        load_personal(folder, store.records[4].key)
    with pytest.raises(ValueError, match="no parameters of sub-99.*expected one of 5"):
        load_personal(folder, "sub-99_task-rest")


def test_a_result_is_found_by_the_signals_of_its_recording(done, scans, store, toy, toy_model):
    folder, (first, second, *_) = done[0], scans
    known = (toy_model, toy_model.priors[K], CONFIG)
    renamed = dataclasses.replace(first, subject="elsewhere", source="another/file.nii.gz", entities={})
    for scan in (first, renamed, read_scan(store, 0)):
        found, said = find_personal(folder, scan, *known)
        assert said == []
        assert_array_equal(found.own.adapter.up, load_personal(folder, store.records[0].key).own.adapter.up)
    other = dataclasses.replace(first, y=second.y + np.float32(0.01))
    assert find_personal(folder, other, *known) == (
        None,
        [f"sub-00_task-rest is fine-tuned again: {folder} holds a recording of this name with other signals"],
    )
    assert find_personal(folder, dataclasses.replace(other, subject="98"), *known) == (None, [])
    changed = dataclasses.replace(CONFIG, rate=0.5, rounds=7)
    none, (said,) = find_personal(folder, first, *known[:2], changed)
    assert none is None and said.startswith(f"sub-00_task-rest is fine-tuned again: {folder} holds it by other settings (")
    assert "config.rate 0.01 there, 0.5 now" in said and "config.rounds 2 there, 7 now" in said
    assert find_personal(folder, first, *known[:2], dataclasses.replace(CONFIG, wave=5))[1] == []  # no number depends on it


def test_the_digest_of_signals_forgives_what_a_store_rounds_and_nothing_else(scans):
    scan = scans[0]
    stored = dataclasses.replace(scan, y=scan.y.astype(np.float16).astype(np.float32), subject="99")
    assert signals_digest(stored) == signals_digest(scan)
    y = scan.y.copy()
    y[3, 5] += 0.01
    assert signals_digest(dataclasses.replace(scan, y=y)) != signals_digest(scan)


def test_what_stands_is_not_made_again(done, store, toy_model, monkeypatch):
    folder, rows, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("wave-*")}
    monkeypatch.setattr("pnet_jax.personalization._take", lambda *_: pytest.fail("a wave was made again"))
    again = personalize(store, folder, CONFIG, mesh=one_device(), model=toy_model, prior=toy_model.priors[K])
    assert {row["scan"]: str(row["round"]) for row in again if row["status"] == "ok"} == {
        row["scan"]: str(row["round"]) for row in rows if row["status"] == "ok"
    }
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("wave-*")}


def test_results_of_other_settings_are_not_mixed(done, store, toy_model):
    other = dataclasses.replace(CONFIG, rate=0.5)
    with pytest.raises(
        ValueError, match=r"of other settings: expected the same, or a new folder, found config\.rate: 0\.01 there, 0\.5 now$"
    ):
        personalize(store, done[0], other, model=toy_model, prior=toy_model.priors[K])


def test_a_folder_is_one_commands(done, store, scans, toy_model, tmp_path):
    with pytest.raises(ValueError, match=r"status.tsv: expected a table of `pnet construct`, or none, found one of `pnet personalize`"):
        construct_cohort([ScanSource(tmp_path / "sub-01_bold.nii.gz", None, None, None, "01")], done[0], ConstructConfig(report=False))
    append_status(tmp_path / STATUS, [{"scan": "sub-01", "status": "failed", "job": "0"}])
    with pytest.raises(ValueError, match=r"status.tsv: expected a table of `pnet personalize`, or none, found one of `pnet construct`"):
        personalize(store, tmp_path, CONFIG, model=toy_model, prior=toy_model.priors[K])


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


def test_a_damaged_record_is_a_row_and_the_others_go_on(damaged, done, toy_model, tmp_path, monkeypatch):
    store, files = damaged
    monkeypatch.setattr(personalization, "_take", lambda wave, *_: [one.row | {"status": "ok", "wave": "wave-00000"} for one in wave])
    arguments = {"mesh": one_device(), "model": toy_model, "prior": toy_model.priors[K], "people": load_people(done[0])}
    rows = {row["subject"]: row for row in personalize(store, tmp_path / "out", CONFIG, **arguments)}
    assert {name: row["status"] for name, row in rows.items()} == {"00": "ok"} | dict.fromkeys(("01", "02", "03", "04"), "failed")
    assert all(file in rows[name]["error"] for name, file in zip(("01", "02", "03"), files, strict=True))
    assert f"{files[0]} has another size than when it was written: expected" in rows["01"]["error"]
    assert "this file of the store is damaged" in rows["02"]["error"] and "it is not there" in rows["03"]["error"]


def test_a_damaged_record_is_left_out_of_what_people_have_in_common(damaged, toy_model, tmp_path):
    store, files = damaged
    with (
        pytest.warns(UserWarning, match="left out of what people") as seen,
        pytest.raises(ValueError, match="expected 3 people or more .* got 1"),
    ):
        personalize(store, tmp_path / "out", CONFIG, model=toy_model, prior=toy_model.priors[K])
    assert all(any(file in str(one.message) for one in seen) for file in files)


def test_people_are_looked_for_where_they_were_written(done, tmp_path):
    with pytest.raises(
        ValueError, match="nowhere: expected a folder that `pnet personalize` wrote, with people/ in it, found no such folder"
    ):
        load_people(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="with people/ in it, found an empty folder"):
        load_people(tmp_path)
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "status.tsv").touch()
    with pytest.raises(ValueError, match=r"with people/ in it, found status.tsv, sub-01/$"):
        load_people(tmp_path)
    with pytest.raises(ValueError, match="expected dynamics and edges of people of format 1, found adapters of format 1"):
        load_people(done[0] / "adapters" / "wave-00000")
    assert load_people(done[0] / "people").subjects == load_people(done[0]).subjects


def test_people_of_others_stand_in_the_folder_too(done, store, toy_model, tmp_path):
    people = load_people(done[0])
    personalize(store, tmp_path, CONFIG, mesh=one_device(), model=toy_model, prior=toy_model.priors[K], people=people)
    assert load_people(tmp_path).subjects == people.subjects  # so that `pnet construct --people` finds all in one place
    rows = {row["scan"]: row for row in read_status(tmp_path / STATUS)}
    assert {row["regularised"] for row in rows.values() if row["status"] == "ok"} == {"false"}


def test_too_few_people(toy, toy_model, tmp_path):
    prepare([toy.scan(0, subject="00")], tmp_path / "store")
    with pytest.raises(ValueError, match="expected 3 people or more .* got 1"):
        personalize(open_store(tmp_path / "store"), tmp_path / "out", CONFIG, mesh=one_device(), model=toy_model, prior=toy_model.priors[K])


def test_a_structural_connectome_of_other_parcels_is_refused(store, toy_model, tmp_path):
    arguments = {"mesh": one_device(), "model": toy_model, "prior": toy_model.priors[K]}
    with (
        pytest.raises(ValueError, match=r"expected 12 x 12 weights, as there are parcels, found 11 x 11"),
        pytest.warns(UserWarning, match="sub-04"),
    ):
        personalize(store, tmp_path, CONFIG, connectome=np.ones((11, 11)), **arguments)
    assert not (tmp_path / "people").exists()


def test_a_structural_connectome_draws_the_group_to_it(toy, toy_builder):
    members = [member(toy.scan(number), toy_builder) for number in range(3)]
    connectome = np.triu(np.random.default_rng(0).uniform(size=(K, K)), 1)
    connectome += connectome.T
    plain, drawn = (np.asarray(fit_people(members, "", given).hierarchy.group.coupling) for given in (None, connectome))
    expected = structural(moments(pool([one.spectra for one in members])), connectome).coupling
    assert np.square(drawn - expected).sum() < 0.5 * np.square(plain - expected).sum()


def test_a_wave_fits_into_memory_and_divides_over_devices(done, store, toy_model):
    leaf = np.zeros(2**20, np.float32)
    size = memory_of((leaf, leaf))
    assert size > 2 * leaf.nbytes
    assert wave_size((leaf,), devices=1, most=8) == 8
    assert wave_size((leaf,), devices=4, most=6) == 4
    assert wave_size((_Sized(2**60),), devices=2, most=8) == 2


class _Sized:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


# construction


@pytest.fixture(scope="module")
def network(done, scans, toy_model):
    config = ConstructConfig(dynamics=True, people=str(done[0]), personalize=CONFIG)
    return construct(scans[0], model=toy_model, config=config)


@pytest.fixture(scope="module")
def directed(done, scans, toy_model):
    config = ConstructConfig(dynamics=True, people=str(done[0]), personalize=CONFIG)
    return construct(scans[0], model=toy_model, edges=("pearson", "effective"), config=config)


def test_an_informed_network_has_coupling_and_its_errors(network):
    coupling, error = network.edges["coupling"], network.uncertainty["coupling"]
    assert coupling.shape == error.shape == (K, K)
    assert_allclose(coupling, coupling.T, atol=1e-5)
    assert np.linalg.eigvalsh(coupling).max() < 0 and (error > 0).all()
    assert network.qc.dynamics["people"] == 4
    fitted = network.qc.dynamics["fit"]
    assert fitted["ok"] == (fitted["held_out"] < fitted["prior_held_out"])


def test_layers_stand_beside_the_raw_edges(network, done):
    assert {"pearson", "shrunk", "guided", "coupling"} == set(network.edges) == set(network.uncertainty)
    people = load_people(done[0])
    assert people.subjects == ("00", "01", "02", "03")
    apart = ~np.eye(K, dtype=bool)
    raw, shrunk = (np.arctanh(network.edges[name][apart]) for name in ("pearson", "shrunk"))
    mean = people.shrinkage.mean[apart]
    assert (np.abs(shrunk - mean) <= np.abs(raw - mean) + 1e-5).all()
    assert any("is called sub-00 too" in text for text in network.qc.warnings)


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
    assert "column l is what parcel l does to parcel k" in sidecar["RelationshipMeasure"]
    assert any(file.name.endswith("stat-effective_desc-sd_relmat.json") for file in files)


def test_where_direction_cannot_be_fitted_the_symmetric_coupling_stands(done, scans, toy_model, monkeypatch):
    def refused(*_, **__):
        raise ValueError("expected a stable start")

    monkeypatch.setattr("pnet_jax.finetune.person.fit_effective", refused)
    config = ConstructConfig(dynamics=True, people=str(done[0]), personalize=CONFIG)
    found = construct(scans[0], model=toy_model, edges=("effective",), config=config)
    assert_array_equal(found.edges["effective"], found.edges["coupling"])
    assert_array_equal(found.uncertainty["effective"], found.uncertainty["coupling"])
    assert any("directed coupling could not be fitted" in text for text in found.qc.warnings)
    assert "Not determined by the scan: the direction of the coupling." in pnet_jax.explain(found)


def test_explain_says_what_it_rests_on(network):
    said = {line.split(":")[0]: line for line in pnet_jax.explain(network).splitlines()}
    assert list(said)[:2] == ["Atlas", "Parcels"] and "12 parcels" in said["Atlas"]
    assert "learned from 4 participants" in said["Dynamics"]


def test_a_scan_too_short_for_dynamics_has_a_network_without(done, scans, toy_model):
    found = construct(scans[4], model=toy_model, config=ConstructConfig(dynamics=True, people=str(done[0]), personalize=CONFIG))
    assert "coupling" not in found.edges and {"pearson", "shrunk", "guided"} <= set(found.edges)
    assert any("no dynamics were fitted: sub-04" in text and "too few frames" in text for text in found.qc.warnings)


def test_people_without_dynamics_give_layers_alone(done, scans, toy_model, network):
    found = construct(scans[0], model=toy_model, people=str(done[0]))
    assert set(found.edges) == {"pearson", "shrunk", "guided"} and found.qc.dynamics is None
    if not network.qc.dynamics["parcels"]["kept"]:
        assert_array_equal(found.edges["guided"], network.edges["guided"])


def test_without_dynamics_nothing_differs(scans, toy_model, network):
    plain = construct(scans[0], model=toy_model)
    assert "coupling" not in plain.edges and not plain.uncertainty and plain.qc.dynamics is None
    if not network.qc.dynamics["parcels"]["kept"]:
        assert_array_equal(plain.labels, network.labels)


def test_dynamics_need_people_of_the_same_parcels(done, scans, toy, toy_model):
    with pytest.raises(ValueError, match="give the folder of a `pnet personalize`"):
        construct(scans[0], model=toy_model, config=ConstructConfig(dynamics=True))
    for name in ("coupling", "effective"):
        with pytest.raises(ValueError, match=f'"{name}" is made by fitting dynamics'):
            construct(scans[0], model=toy_model, edges=(name,))
    other = dataclasses.replace(load_people(done[0]), prior="another")
    with pytest.raises(ValueError, match="of the parcels of another prior: expected .*, found another"):
        construct(scans[0], model=toy_model, people=other, config=ConstructConfig(dynamics=True))


def test_a_second_view_enters_the_guided_edges(toy, toy_model, toy_builder):
    def scan(number):
        one = toy.scan(number, subject=f"{number:02d}")
        clear = np.asarray(parcel_signals(one.y, toy.truth, K))[toy.truth]  # less noise than there is in the first view
        return dataclasses.replace(one, wide=(one.y + 4 * clear).astype(np.float16), cleaning={"low_pass": 0.1})

    people = fit_people([member(scan(number), toy_builder) for number in range(4)], toy.prior.digest)
    assert people.guide.mean.shape == (2, K, K)
    config = ConstructConfig(dynamics=True, personalize=CONFIG)
    whole = scan(9)
    both = construct(whole, prior=toy.prior, model=toy_model, people=people, config=config)
    alone = construct(dataclasses.replace(whole, wide=None), prior=toy.prior, model=toy_model, people=people, config=config)
    views = edge_views(whole, both.signals, both.labels)
    made = layers(views[0], both.qc.n_eff, people.shrinkage, people.guide, views[1:])
    assert_allclose(both.edges["guided"], made["guided"].edges, atol=rounding(both.signals.shape[1]))
    assert_array_equal(both.edges["pearson"], alone.edges["pearson"])
    assert np.abs(both.edges["guided"] - alone.edges["guided"]).max() > 1e-4
    asked = "keep the signals before the low-pass"
    assert any(asked in text for text in alone.qc.warnings) and not any(asked in text for text in both.qc.warnings)
    # Signals without any low-pass are a second view of themselves; of signals that come without a word, nobody knows.
    unfiltered, unknown = (dataclasses.replace(whole, wide=None, cleaning=cleaning) for cleaning in ({"low_pass": None}, {}))
    assert len(edge_views(unfiltered, both.signals, both.labels)) == 2 and len(edge_views(unknown, both.signals, both.labels)) == 1


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
    personalize(store, out, CONFIG, mesh=one_device(), model=load_model(tmp_path / "model"), prior=toy_model.priors[K])
    config = ConstructConfig(
        dynamics=True, people=str(out), personalize=dataclasses.replace(CONFIG, wave=5), checkpoint=str(tmp_path / "model"), report=False
    )
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
    said = f"sub-00_task-rest is fine-tuned again: {out} holds it by other settings (config.steps 2 there, 1 now)"
    assert said in load_network(tmp_path / "again" / rows[0]["dseg"]).qc.warnings


def test_direction_of_too_many_parcels_is_refused_before_a_scan_is_read(toy_model):
    xyz = np.random.default_rng(0).uniform(-60, 60, (402, 3))
    many = make_prior(xyz, np.arange(402) // 2 + 1, resolution=8, names=[f"area-{k}" for k in range(201)], source="many", space="MNI")
    config = ConstructConfig(dynamics=True)
    with pytest.raises(ValueError, match='"effective" is for at most 200 parcels, prior many has 201: give a coarser prior'):
        resolve(config, prior=many, model=toy_model, edges=("pearson", "effective"))
    with pytest.raises(ValueError, match="give the folder of a `pnet personalize`"):  # and nothing of the number of parcels
        resolve(config, prior=many, model=toy_model, edges=("coupling",))


# the command


def test_the_command_goes_from_a_store_to_rows(store, toy_model, tmp_path, capsys):
    save_model(toy_model, tmp_path / "model")
    folder = shutil.copytree(store.folder, tmp_path / "store")
    cut = folder / store.records[3].file
    cut.write_bytes(cut.read_bytes()[:-1])
    given = ["--checkpoint", str(tmp_path / "model"), "--parcels", str(K), "--rounds", "1", "--steps", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command prints them
        assert main(["personalize", str(folder), str(tmp_path / "out"), *given]) == 1  # two of five fail
    said = capsys.readouterr()
    assert "left out of what people have in common: sub-04" in said.err
    assert "3 of 5 recordings done, 2 failed" in said.out
    assert "failed: sub-04" in said.err and "waves of 8" in said.err
    assert f"failed: store {folder}: scans/{cut.name} has another size" in said.err
    assert main(["personalize", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_the_command_names_a_connectome_of_another_size(store, tmp_path, capsys):
    np.savetxt(tmp_path / "sc.csv", np.ones((3, 3)), delimiter=",")
    assert main(["personalize", str(store.folder), str(tmp_path / "out"), "--structural", str(tmp_path / "sc.csv")]) == 1
    assert "sc.csv: expected 200 x 200 weights, as there are parcels, found 3 x 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "found 1 of 9 NaN or infinite; the first, in row 1 and column 2, is nan"),
        (-0.5, "found 1 of 9 negative; the first, in row 1 and column 2, is -0.5"),
        (0.75, "found 2 of 9 asymmetric; the first, in row 1 and column 2, is 0.75 and 0.5 the other way"),
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
    assert str(error.value) == f"structural connectome {file}: expected weights that are finite, 0 or above and symmetric, {message}"


def test_a_structural_connectome_is_read(tmp_path):
    np.savetxt(tmp_path / "sc.csv", np.eye(3), delimiter=",")
    assert_array_equal(read_connectome(tmp_path / "sc.csv", 3), np.eye(3))
    (tmp_path / "text.csv").write_text("a,b\n1,x\nx,1\n")
    for name, said in (("text.csv", "expected numbers in every column, found text in a, b"), ("none.csv", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=f"structural connectome .*{name}: {said}"):
            read_connectome(tmp_path / name, 2)
