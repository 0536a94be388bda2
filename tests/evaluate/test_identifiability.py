"""Identifiability on cohorts whose participants can, or cannot, be told apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.errors import InputError
from pnet_jax.evaluate import identifiability
from tests.evaluate.planted import make_cohort, planted, symmetric

FAST = {"permutations": 200, "draws": 20}


@pytest.fixture(scope="module")
def cohort():
    return planted(n=12, k=16, own=0.15, noise=0.3, seed=1)


@pytest.fixture(scope="module")
def answer(cohort):
    return identifiability(cohort, **FAST)


def brute(cohort) -> dict[str, float]:
    """Accuracy of both directions, I_self and I_others, and discriminability, by loops."""
    i, j = np.triu_indices(cohort.n_parcels, 1)
    x = cohort.edges["pearson"][:, i, j].astype(float)
    r = np.corrcoef(x)
    first, second = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
    block = r[np.ix_(first, second)]
    n = len(block)
    off = ~np.eye(n, dtype=bool)
    d = []
    for t in range(len(x)):
        own = t + 1 if t % 2 == 0 else t - 1
        d.append(np.mean([1 - r[t, own] < 1 - r[t, u] for u in range(len(x)) if u // 2 != t // 2]))
    return {
        "accuracy, first to second": np.mean(block.argmax(1) == np.arange(n)),
        "accuracy, second to first": np.mean(block.argmax(0) == np.arange(n)),
        "I_self": np.diag(block).mean(),
        "I_others": block[off].mean(),
        "discriminability": np.mean(d),
    }


def test_numbers_are_their_definitions(cohort, answer):
    for measure, expected in brute(cohort).items():
        assert answer.value("pearson", measure) == pytest.approx(expected, abs=1e-6), measure
    assert answer.value("pearson", "I_diff (x 100)") == pytest.approx(
        100 * (answer.value("pearson", "I_self") - answer.value("pearson", "I_others"))
    )
    own = answer.tables["participants"]
    assert own["pearson"].mean() == pytest.approx(answer.value("pearson", "accuracy")) and own["participant"][0] == "000"
    assert answer.value("pearson", "ICC(1,1), median edge") == pytest.approx(0.2, abs=0.15)


def test_self_similarity_is_that_of_the_closed_form():
    """Edges m + a + e: two scans correlate by (v_m + v_a) / (v_m + v_a + v_e) over many edges, scans of two participants by v_m."""
    found = identifiability(planted(n=20, k=60, own=0.2, noise=0.2, group=0.3), permutations=20, draws=5)
    whole = 0.3**2 + 0.2**2 + 0.2**2
    assert found.value("pearson", "I_self") == pytest.approx((0.3**2 + 0.2**2) / whole, abs=0.02)
    assert found.value("pearson", "I_others") == pytest.approx(0.3**2 / whole, abs=0.02)
    assert found.value("pearson", "accuracy") == 1 and found.value("pearson", "discriminability") == 1


def test_all_identified_leaves_an_interval_with_a_width():
    row = {row.measure: row for row in identifiability(planted(noise=0.01), **FAST).rows if row.name == "pearson"}["accuracy"]
    assert (row.value, row.high) == (1, 1) and 0.7 < row.low < 0.8 and row.p == pytest.approx(1 / 201)


def test_shuffled_participants_are_identified_by_chance():
    cohort = planted(n=40, k=12)
    shuffle = np.random.default_rng(0).permutation(len(cohort))
    found = identifiability(dataclasses.replace(cohort, edges={"pearson": cohort.edges["pearson"][shuffle]}), **FAST)
    row = {row.measure: row for row in found.rows if row.name == "pearson"}
    assert row["accuracy by chance"].value == pytest.approx(1 / 40, abs=0.01)
    assert row["accuracy"].value < 0.15 and row["accuracy"].p > 0.05
    assert row["discriminability"].value == pytest.approx(0.5, abs=0.1) and row["discriminability"].p > 0.01


def test_the_order_of_the_scans_changes_nothing(cohort, answer):
    other = identifiability(cohort.take(np.random.default_rng(3).permutation(len(cohort))), **FAST)
    for one, two in zip(answer.rows, other.rows, strict=True):
        assert one[:3] == two[:3]
        np.testing.assert_allclose(one[3:7], two[3:7], rtol=1e-5, atol=1e-7)


def test_three_scans_of_unequal_numbers():
    cohort = planted(n=10, scans=3, k=12, noise=0.05)
    found = identifiability(cohort.take(np.delete(np.arange(30), [2, 29])), **FAST)
    assert found.value("pearson", "accuracy") == 1 and found.value("pearson", "discriminability") == 1


def test_quality_alone_is_the_baseline(cohort):
    fd = np.repeat(np.linspace(0.1, 0.4, 12), 2)
    table = cohort.table | {"mean_fd": fd + 1e-4 * np.arange(24), "n_frames": np.full(24, 200.0)}
    found = identifiability(dataclasses.replace(cohort, table=table), **FAST)
    assert found.value("mean_fd", "accuracy") == 1  # n_frames does not vary, tsnr is unknown
    assert "From scan-quality measures alone (mean_fd), 100.0 % of the participants are identified, 95 % CI [" in " ".join(found.sentences)
    assert "unknown" in identifiability(cohort, **FAST).sentences[-1]
    table["tsnr"] = np.where(np.arange(24) == 3, np.nan, 50.0)
    assert "tsnr (1 scans)" in identifiability(dataclasses.replace(cohort, table=table), **FAST).warnings[0]


def test_labels_are_scored_apart_from_edges(toy):
    rng, n, v = np.random.default_rng(0), 8, len(toy.space)
    own = [np.where(rng.random(v) < 0.3, rng.integers(0, 12, v), toy.expected) for _ in range(n)]
    labels = np.stack([np.where(rng.random(v) < 0.2, rng.integers(0, 12, v), own[s // 2]) for s in range(2 * n)]).astype(np.int16)
    noise = np.random.default_rng(1).normal(size=(2 * n, 66))
    subjects = np.repeat([str(s) for s in range(n)], 2)
    cohort = make_cohort(subjects, [1, 2] * n, {"pearson": symmetric(noise, 12)}, labels=labels, space=toy.space)
    found = identifiability(cohort, **FAST)
    assert found.value("labels", "accuracy") == 1 and found.value("pearson", "accuracy") < 0.5
    atlas = dataclasses.replace(cohort, labels=np.broadcast_to(toy.expected, labels.shape).astype(np.int16))
    same = identifiability(atlas, **FAST)  # ties are split
    assert same.value("labels", "accuracy") == pytest.approx(1 / n) and same.value("labels", "discriminability") == 0.5


def test_directed_edges_count_both_ways(cohort):
    rng = np.random.default_rng(0)
    j = np.repeat(rng.normal(size=(12, 16, 16)), 2, 0) + 0.01 * rng.normal(size=(24, 16, 16))
    both = dataclasses.replace(cohort, edges={"effective": j.astype(np.float32)}, views={"effective": {"directed": True}})
    found = identifiability(both, **FAST)
    assert found.settings["edges_used"] == {"effective": 240} and found.value("effective", "accuracy") == 1
    assert any("effective: edges that are shrunk" in said for said in found.warnings)


def test_one_session_is_refused(cohort):
    with pytest.raises(InputError, match="identifiability: expected at least two participants with two scans"):
        identifiability(cohort.take(cohort.table["session"] == "2"))


def test_absent_parcels_are_left_out(cohort):
    edges = cohort.edges["pearson"].copy()
    edges[0, 4] = edges[0, :, 4] = np.nan
    found = identifiability(dataclasses.replace(cohort, edges={"pearson": edges}), **FAST)
    assert found.settings["edges_used"] == {"pearson": 15 * 14 // 2} and np.isfinite(found.value("pearson", "accuracy"))
