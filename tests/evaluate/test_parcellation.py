"""Overlap of parcels, and parcels scored beside what they must beat."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import label_maps, parcellation
from pnet_jax.evaluate.null_parcels import pieces, random_parcels, ward
from pnet_jax.evaluate.parcel_scores import RANDOM, parcellation_scores
from tests.evaluate.planted import make_cohort, planted

N = 6


@pytest.fixture(scope="module")
def cohort(toy):
    rng, v = np.random.default_rng(0), len(toy.space)
    own = [np.where(rng.random(v) < 0.4, rng.integers(0, 12, v), toy.expected) for _ in range(N)]
    labels = np.stack([np.where(rng.random(v) < 0.1, rng.integers(0, 12, v), own[s // 2]) for s in range(2 * N)]).astype(np.int16)
    subjects = np.repeat([str(s) for s in range(N)], 2)
    numbers = {name: rng.normal(size=2 * N) for name in ("gain", "dcbc_gain", "agreement", "expected_agreement", "moved")}
    decision = np.array(["personalised"] * 9 + ["atlas"] * 3)
    edges = {"pearson": planted(n=N, k=12).edges["pearson"]}
    return make_cohort(subjects, [1, 2] * N, edges, labels=labels, space=toy.space, decision=decision, **numbers)


def test_overlap_within_and_between_participants(cohort):
    found = parcellation(cohort, others=N)
    labels = cohort.labels
    within = [(2 * s, 2 * s + 1) for s in range(N)]
    between = [(2 * s, 2 * t + 1) for s in range(N) for t in range(N) if s != t]
    for which, pairs in (("within", within), ("between", between)):
        each = np.array([label_maps.dice(labels[i], labels[j], 12) for i, j in pairs])
        assert found.value("Dice", which) == pytest.approx(each.mean())
        np.testing.assert_allclose(found.tables["parcels"][which], each.mean(0))
        expected = np.mean([label_maps.rand_index(labels[i], labels[j]) for i, j in pairs])
        assert found.value("adjusted Rand index", which) == pytest.approx(expected)
    assert found.value("Dice", "within - between") == pytest.approx(found.value("Dice", "within") - found.value("Dice", "between"))
    assert "overlap more than parcels of two participants" in found.sentences[0]


def test_quality_and_decisions(cohort):
    found = parcellation(cohort)
    assert found.value("DCBC gain", "mean") == pytest.approx(cohort.table["dcbc_gain"].mean())
    assert found.value("DCBC gain", "median") == pytest.approx(np.median(cohort.table["dcbc_gain"]))
    row = next(row for row in found.rows if row.name == "personalised")
    assert row.value == 0.75 and row.low < 0.75 < row.high
    assert {figure.title for figure in found.figures} >= {"Parcels: dcbc_gain", "Dice of each parcel"}


def test_of_single_scans_there_is_quality_only(cohort):
    found = parcellation(cohort.take(cohort.table["session"] == "1"))
    assert not [row for row in found.rows if row.table == "overlap"] and "two scans" in found.warnings[0]
    bare = dataclasses.replace(cohort, labels=None, confidence=None, space=None)
    assert "no labels" in parcellation(bare).warnings[0]


def test_a_cohort_with_nothing_to_say_is_refused():
    cohort = planted()
    with pytest.raises(InputError, match="expected values of quality or labels"):
        parcellation(dataclasses.replace(cohort, table=cohort.table | {"decision": np.full(len(cohort), "")}))


def test_random_parcels_keep_sizes_and_hemispheres(toy):
    labels = toy.expected.copy()
    labels[:50] = -1
    one, two = (random_parcels(labels, toy.space, np.random.default_rng(seed)) for seed in (0, 1))
    assert ((one < 0) == (labels < 0)).all() and not np.array_equal(one, two)
    for side in (0, 1):
        here = (toy.space.hemisphere == side) & (labels >= 0)
        assert set(one[here]) == set(labels[here])
        expected, found = (np.sort(np.bincount(x[here], minlength=12)) for x in (labels, one))
        assert np.abs(expected - found).sum() < 0.15 * here.sum()
    assert pieces(one, toy.space) <= 16
    assert label_maps.rand_index(one, labels) < 0.6


def test_ward_finds_planted_parcels_in_each_hemisphere(toy):
    y = toy.signals(0, frames=400)
    y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    found = ward(y, toy.expected, toy.space)
    assert len(np.unique(found)) == 12 and pieces(found, toy.space) == 12
    assert label_maps.rand_index(found, toy.truth) > label_maps.rand_index(toy.expected, toy.truth)
    assert not set(found[toy.space.hemisphere == 0]) & set(found[toy.space.hemisphere == 1])


def test_ward_of_locations_that_hang_apart(toy):
    labels = toy.expected.copy()
    labels[np.abs(toy.space.xyz[:, 1]) < 9] = -1  # cuts each hemisphere in two
    assert len(np.unique(ward(toy.signals(0), labels, toy.space))) == 13


def test_pieces_counts_what_hangs_together(toy):
    assert pieces(np.zeros(len(toy.space), int), toy.space) == 1
    assert pieces(np.arange(len(toy.space)), toy.space) == len(toy.space)
    assert pieces(np.full(len(toy.space), -1), toy.space) == 0


def test_true_parcels_beat_what_they_must_beat(toy):
    other = np.where(toy.space.hemisphere == 0, toy.expected, toy.truth)
    labels = np.stack([toy.truth, other])
    signals = [toy.signals(5), toy.signals(6)]
    found = parcellation_scores(labels, iter(signals), toy.space, 12, atlas=toy.expected, made_from=[toy.signals(7)] * 2, nulls=4)
    names = {row.name for row in found.rows if row.table == "maps"}
    assert names == {"own", "atlas", "centroids", "another participant", RANDOM, "Ward"}
    assert found.value(f"own - {RANDOM}", "DCBC") > 0.02 and found.value(f"own - {RANDOM}", "homogeneity") > 0
    assert found.value("own - atlas", "DCBC") > 0 and found.value("own", "connected pieces") >= 12
    assert next(row for row in found.rows if row.name == f"own - {RANDOM}").p == pytest.approx(1 / 5)
    assert "Against the atlas" not in found.sentences[0] and "individual parcels have DCBC" in found.sentences[0]


def test_numbers_of_maps_and_signals_must_agree(toy):
    labels = np.stack([toy.truth, toy.expected])
    for count, said in ((1, "found 1"), (3, "found more")):
        with pytest.raises(InputError, match=said):
            parcellation_scores(labels, [toy.signals(0)] * count, toy.space, 12, nulls=1)
    with pytest.raises(SettingsError, match="nulls: expected 1"):
        parcellation_scores(labels, [], toy.space, 12, nulls=0)
