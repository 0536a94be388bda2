"""Personalisation of a store: waves, results on disk, one that fails, going on, and construction informed by it."""

from __future__ import annotations

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import pnet_jax
from pnet_jax import parallel
from pnet_jax.checkpoint import load_people, save_model
from pnet_jax.cli import main
from pnet_jax.config import ConstructConfig, PersonalizeConfig
from pnet_jax.construction import construct, resolve
from pnet_jax.outputs import load_network, read_status, save
from pnet_jax.parcellation.prior import make_prior
from pnet_jax.personalization import STATUS, load_adapter, memory_of, personalize, wave_size
from pnet_jax.records import open_store, prepare

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
def done(store, toy_model, tmp_path_factory):
    """Folder, rows, and what was said."""
    folder, said = tmp_path_factory.mktemp("personal"), []
    with pytest.warns(UserWarning, match="left out of what people have in common.*sub-04"):
        rows = personalize(store, folder, CONFIG, mesh=one_device(), model=toy_model, prior=toy_model.priors[K], say=said.append)
    return folder, rows, said


def test_everybody_has_a_row_and_the_one_that_fails_is_named(done, store):
    folder, rows, said = done
    assert [row["scan"] for row in sorted(rows, key=lambda row: row["scan"])] == [record.key for record in store.records]
    failed = [row for row in rows if row["status"] != "ok"]
    assert [row["subject"] for row in failed] == ["04"]
    assert "sub-04" in failed[0]["error"] and "too few frames" in failed[0]["error"]
    assert {row["scan"]: row["status"] for row in read_status(folder / STATUS)} == {row["scan"]: row["status"] for row in rows}
    assert len(said) == 1 and said[0].startswith("waves of 2: ")
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["wave-00000", "wave-00001"]


def test_one_persons_parameters_are_read_by_themselves(done, store):
    folder, rows, _ = done
    own = [load_adapter(folder, row["scan"]) for row in rows if row["status"] == "ok"]
    assert len(own) == 4 and {len(one.adapter.offsets) for one in own} == {K} == {len(one.dynamics.coupling) for one in own}
    assert any(not np.array_equal(own[0].dynamics.coupling, one.dynamics.coupling) for one in own[1:])
    with pytest.raises(ValueError, match="no parameters of sub-04.*it failed"):
        load_adapter(folder, store.records[4].key)
    with pytest.raises(ValueError, match="no parameters of sub-99.*expected one of 5"):
        load_adapter(folder, "sub-99_task-rest")


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
    with pytest.raises(ValueError, match=r"holds results with config .*this run has"):
        personalize(store, done[0], other, model=toy_model, prior=toy_model.priors[K])


def test_too_few_people(toy, toy_model, tmp_path):
    prepare([toy.scan(0, subject="00")], tmp_path / "store")
    with pytest.raises(ValueError, match="expected 3 people or more .* got 1"):
        personalize(open_store(tmp_path / "store"), tmp_path / "out", CONFIG, mesh=one_device(), model=toy_model, prior=toy_model.priors[K])


def test_a_structural_connectome_of_other_parcels_is_refused(store, toy_model, tmp_path):
    arguments = {"mesh": one_device(), "model": toy_model, "prior": toy_model.priors[K]}
    with (
        pytest.raises(ValueError, match=r"expected a structural connectome of shape \(12, 12\).* got \(11, 11\)"),
        pytest.warns(UserWarning, match="sub-04"),
    ):
        personalize(store, tmp_path, CONFIG, connectome=np.ones((11, 11)), **arguments)
    assert not (tmp_path / "people").exists()


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
    assert network.qc["dynamics"]["people"] == 4
    fitted = network.qc["dynamics"]["fit"]
    assert fitted["ok"] == (fitted["held_out"] < fitted["prior_held_out"])


def test_layers_stand_beside_the_raw_edges(network, done):
    assert {"pearson", "shrunk", "guided", "coupling"} == set(network.edges) == set(network.uncertainty)
    people = load_people(done[0])
    assert people.subjects == ("00", "01", "02", "03")
    apart = ~np.eye(K, dtype=bool)
    raw, shrunk = (np.arctanh(network.edges[name][apart]) for name in ("pearson", "shrunk"))
    mean = people.shrinkage.mean[apart]
    assert (np.abs(shrunk - mean) <= np.abs(raw - mean) + 1e-5).all()
    assert any("is called sub-00 too" in text for text in network.qc["warnings"])


def test_coupling_and_errors_come_back_from_disk(network, tmp_path):
    again = load_network(save(network, tmp_path)[-1])
    assert_allclose(again.uncertainty["coupling"], network.uncertainty["coupling"], rtol=1e-5)
    assert_allclose(again.edges["coupling"], network.edges["coupling"], rtol=1e-5, atol=1e-7)
    assert list(again.edges) == list(network.edges)


def test_directed_coupling_comes_with_errors_and_only_where_it_is_asked_for(directed, network):
    assert "effective" not in network.edges and "effective" not in network.qc["dynamics"]
    effective, error = directed.edges["effective"], directed.uncertainty["effective"]
    assert effective.shape == error.shape == (K, K) and (error > 0).all()
    assert np.linalg.eigvals(effective).real.max() < 0 and np.abs(effective - effective.T).max() > 1e-3
    assert directed.qc["dynamics"]["effective"]["ok"]
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
    assert any("directed coupling could not be fitted" in text for text in found.qc["warnings"])
    assert "in which direction" in pnet_jax.explain(found)


def test_explain_says_what_it_rests_on(network):
    said = pnet_jax.explain(network).splitlines()
    assert [line.split(":")[0] for line in said] == ["Prior", "Parcels", "Dynamics", "Left open by the data"]
    assert "12 parcels" in said[0] and "gave up locations" in said[1] and "4 other people" in said[2]


def test_a_scan_too_short_for_dynamics_has_a_network_without(done, scans, toy_model):
    found = construct(scans[4], model=toy_model, config=ConstructConfig(dynamics=True, people=str(done[0]), personalize=CONFIG))
    assert "coupling" not in found.edges and {"pearson", "shrunk", "guided"} <= set(found.edges)
    assert any("no dynamics were fitted: sub-04" in text and "too few frames" in text for text in found.qc["warnings"])


def test_people_without_dynamics_are_refused(done, scans, toy_model):
    with pytest.raises(ValueError, match="people were given, but no dynamics asked for"):
        construct(scans[0], model=toy_model, people=str(done[0]))


def test_without_dynamics_nothing_differs(scans, toy_model, network):
    plain = construct(scans[0], model=toy_model)
    assert "coupling" not in plain.edges and not plain.uncertainty and "dynamics" not in plain.qc
    if not network.qc["dynamics"]["parcels"]["kept"]:
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


def test_direction_of_too_many_parcels_is_refused_before_a_scan_is_read(toy_model):
    xyz = np.random.default_rng(0).uniform(-60, 60, (402, 3))
    many = make_prior(xyz, np.arange(402) // 2 + 1, resolution=8, names=[f"area-{k}" for k in range(201)], source="many", space="MNI")
    config = ConstructConfig(dynamics=True)
    with pytest.raises(ValueError, match='"effective" is for at most 200 parcels, prior many has 201: give a coarser prior'):
        resolve(config, prior=many, model=toy_model, edges=("pearson", "effective"))
    assert resolve(config, prior=many, model=toy_model, edges=("coupling",))[1] is many


# the command


def test_the_command_goes_from_a_store_to_rows(store, toy_model, tmp_path, capsys):
    save_model(toy_model, tmp_path / "model")
    given = ["--checkpoint", str(tmp_path / "model"), "--parcels", str(K), "--rounds", "1", "--steps", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command prints them
        assert main(["personalize", str(store.folder), str(tmp_path / "out"), *given]) == 1  # one of five fails
    said = capsys.readouterr()
    assert "left out of what people have in common: sub-04" in said.err
    assert "4 of 5 recordings done, 1 failed" in said.out
    assert "failed: sub-04" in said.err and "waves of 8" in said.err
    assert main(["personalize", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_the_command_names_a_connectome_of_another_size(store, tmp_path, capsys):
    np.savetxt(tmp_path / "sc.csv", np.ones((3, 3)), delimiter=",")
    assert main(["personalize", str(store.folder), str(tmp_path / "out"), "--structural", str(tmp_path / "sc.csv")]) == 1
    assert "sc.csv: expected 200 x 200 values" in capsys.readouterr().err
