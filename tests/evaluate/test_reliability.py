"""Intraclass correlation, identification, discriminability and overlap of labels against brute force and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from pnet_jax.evaluate import label_maps
from pnet_jax.evaluate.reliability import (
    bootstrap_weights,
    correlations,
    discriminability,
    discriminability_null,
    hits,
    icc,
    others_mean,
    variances_of,
    wilson,
)


def anova(x: np.ndarray, subject: np.ndarray) -> float:
    """ICC(1,1) of one measurement by its definition."""
    groups = [x[subject == s] for s in np.unique(subject)]
    n, total = len(groups), len(x)
    between = sum(len(g) * (g.mean() - x.mean()) ** 2 for g in groups) / (n - 1)
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (total - n)
    k0 = (total - sum(len(g) ** 2 for g in groups) / total) / (n - 1)
    return (between - within) / (between + (k0 - 1) * within)


@pytest.mark.parametrize("subject", [np.repeat(np.arange(8), 2), np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3])])
def test_icc_is_that_of_the_analysis_of_variance(subject):
    x = np.random.default_rng(0).normal(size=(len(subject), 7)) + 5 + subject[:, None] * 0.3
    np.testing.assert_allclose(icc(variances_of(x, subject)), [anova(x[:, e], subject) for e in range(7)], rtol=1e-9)


def test_icc_of_two_scans_is_the_formula_of_pairs():
    x = np.random.default_rng(1).normal(size=(20, 2, 50))
    within, between = np.square(x[:, 0] - x[:, 1]).mean(0) / 2, 2 * x.mean(1).var(0, ddof=1)
    found = icc(variances_of(x.reshape(40, 50), np.repeat(np.arange(20), 2)))
    np.testing.assert_allclose(found, (between - within) / (between + within), rtol=1e-9)
    assert (found < 0).any()  # chance; none is set to 0


def test_weights_of_a_bootstrap_are_repeated_participants():
    rng, n = np.random.default_rng(2), 9
    x, subject = rng.normal(size=(2 * n, 5)) + np.repeat(rng.normal(size=(n, 5)), 2, 0), np.repeat(np.arange(n), 2)
    found = variances_of(x, subject)
    drawn = rng.integers(n, size=n)
    repeated = np.concatenate([x[2 * s : 2 * s + 2] for s in drawn])
    groups = repeated.reshape(n, 2, 5)
    between, within = 2 * groups.mean(1).var(0, ddof=1) * n / (n - 1), groups.var(1, ddof=1).mean(0)
    weighted = icc(found, np.bincount(drawn, minlength=n)[None].astype(float))
    np.testing.assert_allclose(weighted[0], (between - within) / (between + within), rtol=1e-9)
    assert bootstrap_weights(n, 10, 0).sum(1).tolist() == [n] * 10


def test_planted_icc_is_recovered():
    rng = np.random.default_rng(3)
    own, noise = rng.normal(size=(400, 30)), rng.normal(size=(800, 30))
    x = np.repeat(own, 2, 0) + 0.5 * noise
    assert icc(variances_of(x, np.repeat(np.arange(400), 2))).mean() == pytest.approx(1 / 1.25, abs=0.01)


def test_hits_and_ties():
    similarity = np.array([[3.0, 1, 2], [0, 1, 5], [4, 4, 4]])
    forward, backward = hits(similarity)
    assert np.diag(forward).tolist() == [1, 0, pytest.approx(1 / 3)]
    assert np.diag(backward).tolist() == [0, 0, 0]  # the third scan is nearer to the second participant
    assert forward.sum(1).tolist() == pytest.approx([1, 1, 1]) and backward.sum(0).tolist() == pytest.approx([1, 1, 1])
    assert others_mean(similarity).tolist() == [(1 + 2 + 0 + 4) / 4, (1 + 4 + 0 + 5) / 4, (2 + 5 + 4 + 4) / 4]


@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (2, 3, 4, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_discriminability_is_its_definition(counts, ties):
    subject = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    d = np.random.default_rng(1).integers(6, size=(len(subject),) * 2).astype(float)
    d = d + d.T if ties else np.random.default_rng(1).random(d.shape)
    expected = np.zeros(4)
    for s in range(4):
        scores = []
        for t, u in itertools.permutations(np.flatnonzero(subject == s), 2):
            other = d[t, subject != s]
            scores.append(np.mean((other > d[t, u]) + 0.5 * (other == d[t, u])))
        expected[s] = np.mean(scores)
    np.testing.assert_allclose(discriminability(d, subject), expected, rtol=1e-12)


def test_chance_of_discriminability_is_a_half():
    x = np.random.default_rng(0).normal(size=(40, 6))
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    subject = np.repeat(np.arange(20), 2)
    null = discriminability_null(d, subject, 200, 0)
    assert null.mean() == pytest.approx(0.5, abs=0.01) and null.std() < 0.1
    np.testing.assert_array_equal(null, discriminability_null(d, subject, 200, 0))


def test_wilson_has_a_width_where_all_are_identified():
    low, high = wilson(1.0, 20)
    assert high == 1 and low == pytest.approx(0.8389, abs=1e-3)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


def test_correlations_are_numpys():
    x, y = np.random.default_rng(0).normal(3, 1, size=(2, 5, 40))
    np.testing.assert_allclose(correlations(x, y), np.corrcoef(x, y)[:5, 5:], atol=1e-6)


def maps(seed: int, v: int = 300, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    one = rng.integers(-1, k, v)
    return one, np.where(rng.random(v) < 0.3, rng.integers(-1, k, v), one)


@pytest.mark.parametrize("seed", range(3))
def test_overlap_of_labels_is_that_of_other_programs(seed):
    one, other = maps(seed)
    inside = (one >= 0) & (other >= 0)
    a, b = one[inside], other[inside]
    assert label_maps.rand_index(one, other) == pytest.approx(adjusted_rand_score(a, b), rel=1e-9)
    expected = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(6)]
    np.testing.assert_allclose(label_maps.dice(one, other, 7), [*expected, np.nan])
    assert label_maps.agreement(one[None], other[None])[0, 0] == pytest.approx((a == b).mean())
    both = np.stack([one, other, np.full_like(one, -1)])
    table = label_maps.agreement(both, both)
    np.testing.assert_allclose(table[:2, :2], [[1, (a == b).mean()], [(a == b).mean(), 1]])
    assert np.isnan(table[2]).all()
    assert label_maps.pair_agreement(both, np.array([[0, 1]]))[0] == pytest.approx((a == b).mean())


def test_rand_index_of_equal_maps_is_one():
    one = np.array([0, 0, 1, 1, -1])
    assert label_maps.rand_index(one, 1 - one) == 1 and label_maps.rand_index(np.zeros(4, int), np.zeros(4, int)) == 1
