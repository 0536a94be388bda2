"""Consistency on cohorts whose reliability is known."""

from __future__ import annotations

import dataclasses

import networkx as nx
import numpy as np
import pytest

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import consistency
from pnet_jax.evaluate.portraits import shuffled, similarity, standard_settings
from pnet_jax.evaluate.repeats import repeats_of
from pnet_jax.ops.portrait import PortraitSettings, portrait_divergence
from tests.evaluate.planted import geometric, make_cohort, planted, symmetric

FEW = (PortraitSettings(density=0.15), PortraitSettings(density=0.2, lengths="1/w", convention="netrd", bins=20))
NAME = "pearson, pair-weighted, binary, 15 %"


@pytest.fixture(scope="module")
def cohort():
    return geometric()


@pytest.fixture(scope="module")
def answer(cohort):
    return consistency(cohort, settings=FEW, draws=100)


def test_similarity_in_blocks_is_that_of_all_at_once(cohort):
    networks = cohort.edges["pearson"]
    pairs = np.array([(i, j) for i in range(24) for j in range(i + 1, 24)][:100])
    for setting in FEW:
        whole = 1 - np.asarray(portrait_divergence(networks, setting).divergence)
        np.testing.assert_allclose(similarity(networks, pairs, setting, block=7), whole[pairs[:, 0], pairs[:, 1]], atol=1e-6)


def test_values_within_stand_beside_between_noise_and_a_constant_network(answer):
    within, between, part, noise = (
        answer.value(NAME, name) for name in ("1 - PDiv within", "1 - PDiv between", "individual part", "1 - PDiv noise floor")
    )
    assert part == pytest.approx(within - between) and within > between
    assert noise > 0.75  # without any structure, and with few nodes
    assert answer.value(NAME, "1 - PDiv constant network") == 1
    row = next(row for row in answer.rows if (row.name, row.measure) == (NAME, "individual part"))
    assert row.low < row.value < row.high and row.n == 12
    assert answer.settings["portraits"][1] == dataclasses.asdict(FEW[1])
    assert "(individual part) is" in answer.sentences[0] and f"{noise:.3f}" in answer.sentences[1]


def test_all_settings_that_a_value_depends_on_are_compared_by_default():
    made = {(one.convention, one.lengths, one.density, one.tree) for one in standard_settings()}
    assert made == {(c, w, d, True) for c in ("author", "netrd") for w in ("hops", "1/w") for d in (0.05, 0.1, 0.15, 0.2)}


def test_edges_have_the_planted_icc_and_negative_values_are_kept():
    found = consistency(planted(n=60, k=16, own=0.2, noise=0.1), settings=FEW[:1], draws=200)
    row = next(row for row in found.rows if (row.table, row.measure) == ("edges", "ICC(1,1), mean edge"))
    assert row.value == pytest.approx(0.8, abs=0.02) and row.low < 0.8 < row.high
    noise = consistency(planted(n=30, k=16, own=0.0), settings=FEW[:1], draws=20)
    assert noise.value("pearson", "share of edges with ICC below 0") == pytest.approx(0.5, abs=0.15)
    assert abs(noise.value("pearson", "ICC(1,1), mean edge")) < 0.05


def test_shrinkage_towards_one_group_leaves_the_icc(cohort):
    raw = cohort.edges["pearson"]
    mean = raw.mean(0)
    both = dataclasses.replace(cohort, edges={"pearson": raw, "shrunk": mean + 0.3 * (raw - mean)}, views=cohort.views | {"shrunk": {}})
    found = consistency(both, settings=FEW[:1], draws=10)
    measure = "ICC(1,1), median edge"
    assert found.value("shrunk", measure) == pytest.approx(found.value("pearson", measure), abs=1e-5)
    assert any("shrunk towards a group" in said for said in found.warnings)


def test_the_order_of_the_scans_changes_nothing(cohort, answer):
    order = np.random.default_rng(5).permutation(len(cohort))
    other = consistency(cohort.take(order), settings=FEW, draws=100)
    for one, two in zip(answer.rows, other.rows, strict=True):
        assert one[:3] == two[:3]
        np.testing.assert_allclose(one[3:7], two[3:7], rtol=1e-6)


def test_of_shuffled_participants_nothing_is_individual(cohort):
    shuffle = np.random.default_rng(0).permutation(len(cohort))
    mixed = dataclasses.replace(cohort, edges={"pearson": cohort.edges["pearson"][shuffle]})
    row = {row.measure: row for row in consistency(mixed, settings=FEW[:1], draws=50).rows if row.name == NAME}["individual part"]
    assert row.low < 0 < row.high


def test_one_session_is_refused(cohort):
    with pytest.raises(InputError, match="consistency: expected at least two participants with two scans of one task, found 0 among 12"):
        consistency(cohort.take(cohort.table["session"] == "1"))


def test_scans_of_other_tasks_are_no_repeats(cohort):
    tasks = np.where(cohort.table["session"] == "1", "rest", "motor")
    with pytest.raises(InputError, match="found 0 among 12 participants with 24 scans"):
        repeats_of(dataclasses.replace(cohort, table=cohort.table | {"task": tasks}), "consistency")
    assert len(repeats_of(dataclasses.replace(cohort, table=cohort.table | {"task": tasks}), "consistency", same=()).within) == 12


def test_pairs_between_participants_are_matched_in_occasion():
    repeats = repeats_of(planted(n=5, scans=3, k=4), "consistency")
    assert len(repeats.within) == 15
    pairs = repeats.between(3, 0)
    assert len(pairs) == 45 and (repeats.subject[pairs[:, 0]] != repeats.subject[pairs[:, 1]]).all()
    assert set(map(tuple, repeats.occasion[pairs].tolist())) == {(0, 1), (0, 2), (1, 2)}
    assert len(repeats.between(99, 0)) == 15 * 4


def test_single_scans_are_left_out_and_named(cohort):
    found = consistency(cohort.take(np.arange(1, 24)), settings=FEW[:1], draws=10)
    assert found.rows[1].n == 11 and "1 scans were left out" in found.warnings[0]


def test_absent_parcels_are_left_out_of_all_scans(cohort):
    edges = cohort.edges["pearson"].copy()
    edges[3, 5] = edges[3, :, 5] = np.nan
    found = consistency(dataclasses.replace(cohort, edges={"pearson": edges}), settings=FEW[:1], draws=10)
    assert all(np.isfinite(row.value) for row in found.rows) and any("Only the 23 of 24" in said for said in found.warnings)


def test_the_reference_is_what_to_judge_by(cohort):
    rng = np.random.default_rng(9)
    k = cohort.n_parcels
    i, j = np.triu_indices(k, 1)
    own = cohort.edges["pearson"][:, i, j].reshape(12, 2, -1).mean(1)
    names = [f"{s:03d}" for s in range(12)]
    truth = make_cohort(names, ["truth"] * 12, {"pearson": symmetric(own, k)})
    noisy = dataclasses.replace(cohort, edges={"pearson": symmetric(rng.normal(size=(24, len(i))), k)})
    good, bad = (consistency(one, settings=FEW[:1], reference=truth, draws=10) for one in (cohort, noisy))
    assert good.value(NAME, "1 - PDiv to reference") > bad.value(NAME, "1 - PDiv to reference")
    assert good.value(NAME, "to reference, individual part") > 0.01 > bad.value(NAME, "to reference, individual part")
    assert "reference of the same participant" in good.sentences[2]
    r = np.corrcoef(cohort.edges["pearson"][:, i, j], own)[:24, 24:]
    mine = np.repeat(np.eye(12, dtype=bool), 2, 0)
    assert good.value("pearson", "r with reference") == pytest.approx(r[mine].mean(), abs=1e-5)
    assert good.value("pearson", "r with other references") == pytest.approx(r[~mine].mean(), abs=1e-5)
    some = consistency(cohort, settings=FEW[:1], reference=truth.take(np.arange(5)), draws=10)
    assert next(row for row in some.rows if row.measure == "1 - PDiv to reference").n == 5


def test_references_that_would_mislead_are_refused(cohort):
    with pytest.raises(InputError, match="sub-000_ses-1_task-rest is also a scan of the cohort"):
        consistency(cohort, settings=FEW[:1], reference=cohort)
    with pytest.raises(InputError, match=r"expected the atlas of the cohort \(24 parcels\), found 10"):
        consistency(cohort, settings=FEW[:1], reference=planted(k=10))
    others = dataclasses.replace(cohort, table=cohort.table | {"subject": np.full(24, "x"), "scan": np.array([f"x{i}" for i in range(24)])})
    with pytest.raises(InputError, match="expected scans of two participants of the cohort or more, found 0"):
        consistency(cohort, settings=FEW[:1], reference=others)


def test_directed_and_unknown_edges_are_refused(cohort):
    both = dataclasses.replace(cohort, edges=cohort.edges | {"effective": cohort.edges["pearson"]}, views={"effective": {"directed": True}})
    assert {row.name for row in consistency(both, settings=FEW[:1], draws=5).rows if row.table == "edges"} == {"pearson"}
    with pytest.raises(SettingsError, match="edges 'effective' are directed"):
        consistency(both, ["effective"])
    with pytest.raises(SettingsError, match="did you mean 'pearson'"):
        consistency(both, ["pearsn"])


def test_labels_agree_as_planted(toy):
    rng = np.random.default_rng(0)
    v, n = len(toy.space), 6
    own = [np.where(rng.random(v) < 0.4, rng.integers(0, 12, v), toy.expected) for _ in range(n)]
    labels = np.stack([np.where(rng.random(v) < 0.1, rng.integers(0, 12, v), own[s // 2]) for s in range(2 * n)]).astype(np.int16)
    edges = planted(n=n, k=12).edges["pearson"]
    subjects = np.repeat([f"{i}" for i in range(n)], 2)
    table = {"expected_agreement": np.full(12, 0.8), "decision": np.array(["atlas"] + ["personalised"] * 11)}
    cohort = make_cohort(subjects, [1, 2] * n, {"pearson": edges}, labels=labels, space=toy.space, **table)
    found = consistency(cohort, settings=FEW[:1], draws=10)
    within = np.mean([(labels[2 * s] == labels[2 * s + 1]).mean() for s in range(n)])
    assert found.value("labels", "agreement within") == pytest.approx(within)
    assert found.value("labels", "agreement expected") == pytest.approx(0.8)
    assert found.value("labels", "individual part") > 0.2
    assert any("1 of 12 scans have the labels of the atlas" in said for said in found.warnings)


def test_shuffled_networks_keep_their_weights():
    networks = planted(k=10).edges["pearson"][:3]
    found = shuffled(networks, 0)
    i, j = np.triu_indices(10, 1)
    np.testing.assert_array_equal(np.sort(found[:, i, j]), np.sort(networks[:, i, j]))
    assert (found == found.swapaxes(1, 2)).all() and not np.array_equal(found, networks)


def test_noise_scores_high_at_the_size_of_real_networks():
    """Random graphs of one size and density have nearly the same portrait."""
    graphs = [nx.to_numpy_array(nx.gnm_random_graph(100, 743, seed=s)).astype(np.float32) for s in range(6)]
    found = similarity(np.stack(graphs), np.array([(0, 1), (2, 3), (4, 5)]), PortraitSettings(density=0.15))
    assert found.min() > 0.8
