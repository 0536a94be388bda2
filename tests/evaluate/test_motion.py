"""Motion in edges: planted, absent, and confounded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import false_discovery_control, pearsonr, spearmanr

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import motion, scores
from pnet_jax.evaluate.features import Given
from pnet_jax.evaluate.pipeline import Pipeline, predict
from pnet_jax.evaluate.qc_fc import CHANCE, DISTANCE, R2, SHARE, SIZE, R, couple, motion_rows
from pnet_jax.evaluate.split import by_subject
from tests.evaluate.planted import make_cohort, planted, symmetric

FAST = {"permutations": 100, "draws": 30}


def moved(n=80, k=14, size=0.1, seed=0, scans=1, **fields):
    """Edges that grow with FD, the short ones more; FD in its table."""
    rng = np.random.default_rng(seed)
    fd = np.repeat(rng.gamma(3, 0.05, n), scans)
    xyz = rng.uniform(-60, 60, (k, 3))
    i, j = np.triu_indices(k, 1)
    distance = np.linalg.norm(xyz[i] - xyz[j], axis=1)
    edges = 0.1 * rng.normal(size=(n * scans, len(i))) + size * np.outer((fd - fd.mean()) / fd.std(), 2 - distance / 60)
    subjects = np.repeat([f"{s:03d}" for s in range(n)], scans)
    cohort = make_cohort(subjects, np.tile(np.arange(scans), n), {"pearson": symmetric(edges, k)}, mean_fd=fd, **fields)
    return cohort, edges, fd, distance


def rows_of(rows, name="edges"):
    return {row.measure: row for row in rows if row.name == name}


def test_rows_are_their_definitions():
    _, edges, fd, distance = moved()
    row = rows_of(motion_rows(edges, fd, distance=distance, permutations=50))
    each = [pearsonr(edges[:, e], fd) for e in range(edges.shape[1])]
    r, p = np.array([one.statistic for one in each]), np.array([one.pvalue for one in each])
    assert row[SIZE].value == pytest.approx(np.abs(r).mean(), abs=1e-5) and row[SIZE].n == 80
    assert row[SHARE].value == pytest.approx((false_discovery_control(p) < 0.05).mean(), abs=0.02)
    assert row[DISTANCE].value == pytest.approx(spearmanr(r, distance).statistic, abs=1e-3) and row[DISTANCE].value < -0.5
    assert row[SIZE].p == pytest.approx(1 / 51) and row[DISTANCE].p == pytest.approx(1 / 51)
    assert row[R2].value > 0.5 and row[R2].low < row[R2].value < row[R2].high


def test_without_motion_all_is_chance():
    _, edges, fd, distance = moved(size=0.0, n=60)
    row = rows_of(motion_rows(edges, fd, distance=distance, permutations=200))
    assert row[CHANCE].value == pytest.approx(np.sqrt(2 / np.pi / 59), rel=0.05)
    assert row[SIZE].p > 0.01 and row[SHARE].value == 0 and row[R2].value < 0.1 and row[R].p > 0.01


def test_covariates_are_held_constant():
    rng = np.random.default_rng(0)
    age = rng.normal(size=100)
    fd, edges = 0.2 + 0.05 * age + 0.001 * rng.normal(size=100), age[:, None] + 0.2 * rng.normal(size=(100, 30))
    plain, held = (rows_of(motion_rows(edges, fd, q, permutations=50)) for q in (None, age[:, None]))
    assert plain[SIZE].value > 0.9 and held[SIZE].value < 0.2 and held[SIZE].p > 0.02
    found, q = couple(edges, fd, age[:, None]), np.column_stack([np.ones(100), age])
    rest = [z - q @ np.linalg.lstsq(q, z, rcond=None)[0] for z in (edges, fd)]
    np.testing.assert_allclose(found.y @ found.x, [np.corrcoef(rest[0][:, e], rest[1])[0, 1] for e in range(30)], atol=1e-5)
    assert found.freedom == 97


def test_a_constant_edge_counts_as_unrelated():
    _, edges, fd, _ = moved()
    edges[:, 3] = 0.5
    assert all(np.isfinite(row.value) for row in motion_rows(edges, fd, permutations=20))


def test_layers_are_compared_on_the_same_participants():
    cohort, edges, _, _ = moved()
    less = symmetric(0.1 * np.random.default_rng(1).normal(size=edges.shape), 14)
    both = dataclasses.replace(cohort, edges=cohort.edges | {"partial": less}, views={})
    found = motion(both, **FAST)
    row = next(row for row in found.rows if row.table == "layers")
    assert row.name == "partial - pearson" and row.high < 0
    assert row.value == pytest.approx(found.value("partial", SIZE) - found.value("pearson", SIZE))
    assert "The mean absolute correlation of pearson edges with head motion is |r| =" in found.sentences[0] and any(
        "Distance" in said for said in found.warnings
    )


def test_scans_of_a_participant_count_once():
    cohort, *_ = moved(n=20, scans=3)
    found = motion(cohort, **FAST)
    assert next(row for row in found.rows if row.measure == SIZE).n == 20
    other = motion(cohort.take(np.random.default_rng(0).permutation(60)), **FAST)
    np.testing.assert_allclose([row[3:7] for row in found.rows], [row[3:7] for row in other.rows], rtol=1e-5)


def test_distances_are_those_of_the_labels(toy):
    rng = np.random.default_rng(0)
    fd, labels = rng.gamma(3, 0.05, 30), np.broadcast_to(toy.expected, (30, len(toy.space))).astype(np.int16)
    where = np.stack([toy.space.xyz[toy.expected == k].mean(0) for k in range(12)])
    i, j = np.triu_indices(12, 1)
    distance = np.linalg.norm(where[i] - where[j], axis=1)
    edges = 0.05 * rng.normal(size=(30, 66)) - np.outer((fd - fd.mean()) / fd.std(), distance / 100)
    cohort = make_cohort(
        [str(s) for s in range(30)], ["1"] * 30, {"pearson": symmetric(edges, 12)}, labels=labels, space=toy.space, mean_fd=fd
    )
    found = motion(cohort, **FAST)
    assert found.value("pearson", DISTANCE) < -0.8 and "with motion depends on the distance" in found.sentences[1]


def test_what_cannot_be_evaluated_is_refused():
    cohort, *_ = moved(n=12)
    some = cohort.table["mean_fd"].copy()
    some[:3] = np.nan
    with pytest.raises(InputError, match="expected 10 participants or more with a value of framewise displacement, found 9"):
        motion(dataclasses.replace(cohort, table=cohort.table | {"mean_fd": some}), **FAST)
    with pytest.raises(InputError, match="differs between participants, found only 0.2 mm"):
        motion(dataclasses.replace(cohort, table=cohort.table | {"mean_fd": np.full(12, 0.2)}), **FAST)
    with pytest.raises(InputError, match="expected values of mean_fd, found none in 24 scans"):
        motion(planted(), **FAST)
    with pytest.raises(SettingsError, match="no column 'fd'"):
        motion(cohort, fd="fd")
    with pytest.raises(InputError, match="covariate age: expected values that differ"):
        motion(dataclasses.replace(cohort, table=cohort.table | {"age": np.ones(12)}), covariates=["age"])
    with pytest.raises(InputError, match="expected covariates that leave some of the differences"):
        motion_rows(np.random.default_rng(0).normal(size=(12, 3)), cohort.table["mean_fd"], np.eye(12)[:, :11])
    with pytest.raises(InputError, match="expected finite edges"):
        motion_rows(np.full((12, 3), np.nan), cohort.table["mean_fd"])


def test_scans_without_a_value_are_left_out_and_named():
    cohort, *_ = moved(n=30)
    some = cohort.table["mean_fd"].copy()
    some[:4] = np.nan
    found = motion(dataclasses.replace(cohort, table=cohort.table | {"mean_fd": some}), **FAST)
    assert found.settings["participants"] == 26 and any("4 scans have no mean_fd" in said for said in found.warnings)


def test_held_out_values_are_not_seen():
    """FD of a held-out fold does not change how that fold is predicted."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 200)), rng.normal(size=50)
    split = by_subject([str(i) for i in range(50)], y, folds=5)
    held, changed = split.folds[0][1], y.copy()
    changed[held] += 100
    first, second = (predict([Pipeline((Given("edges", x),))], split, fd, classes=False)[0].decision[0] for fd in (y, changed))
    np.testing.assert_allclose(first[held], second[held], atol=1e-9)
    assert np.abs(first - second).max() > 1


def test_r_is_within_folds():
    """That one fold moved more than another does not count as a prediction."""
    rng = np.random.default_rng(0)
    y, guess, fold = rng.normal(size=20), rng.normal(size=20), np.arange(20) % 2
    score, once = scores.within(scores.weighted_r, fold), np.ones((1, 20))
    expected = np.mean([np.corrcoef(y[fold == one], guess[fold == one])[0, 1] for one in (0, 1)])
    np.testing.assert_allclose(score(guess - 3 * fold, y + 7 * fold, once), expected)


@pytest.mark.parametrize("n", [10, 11])
def test_the_fewest_participants_are_enough(n):
    rng = np.random.default_rng(n)
    rows = motion_rows(rng.normal(size=(n, 30)), rng.uniform(0.1, 0.5, n), permutations=20)
    assert {row.measure for row in rows} >= {R2, R}
