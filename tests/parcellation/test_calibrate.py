"""Replication probabilities: the exponents of a conditional logit, against scipy, and probabilities that mean what they say."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import log_softmax

from pnet_jax.construction.step import reliability_curve
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.calibrate import LEAST_PRIOR, LEAST_Q, MOST, VOTE_FLOOR, calibrated, features, fit_exponents, never_sharper
from pnet_jax.space import grid_neighbours
from tests.parcellation.helpers import check_wave

C = 5
fit, described, probabilities = jax.jit(fit_exponents), jax.jit(features), jax.jit(calibrated)


@functools.cache
def grid(size=(9, 8, 3)):
    """Locations, candidates of which some are missing, neighbours and how many of these count."""
    rng = np.random.default_rng(0)
    neighbours = grid_neighbours(np.argwhere(np.ones(size, bool)))
    candidates = np.argsort(rng.random((len(neighbours), 7)), 1)[:, :C].astype(np.int32)
    candidates[np.arange(C)[None] >= rng.integers(1, C + 1, (len(candidates), 1))] = -1
    candidates[::13] = -1
    counts = (candidates >= 0).any(1)
    degree = ((neighbours >= 0) & np.append(counts, False)[neighbours]).sum(1).astype(np.float32)
    return candidates, neighbours, np.asarray(match_table(candidates, neighbours, n_parcels=7)), degree


def shares(seed, concentration=0.7):
    candidates = grid()[0]
    q = np.where(candidates >= 0, np.random.default_rng(seed).gamma(concentration, size=candidates.shape) + 1e-4, 0)
    return (q / np.maximum(q.sum(1, keepdims=True), 1e-9)).astype(np.float32)


def repeats(seed, exponents, count=400, concentration=0.5, alike=0.6):
    """Features of both halves, and labels of the other half drawn from the probabilities that the exponents make."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.full(C, concentration), (2, count))
    votes = alike * q + (1 - alike) * rng.dirichlet(np.full(C, concentration), (2, count))
    x = np.stack([np.log(np.maximum(q, LEAST_Q)), np.log(votes + VOTE_FLOOR)], -1)
    drawn = (x @ np.array(exponents) + rng.gumbel(size=(2, count, C))).argmax(-1)
    candidates = np.argsort(rng.random((count, 9)), 1)[:, :C].astype(np.int32)
    labels = np.take_along_axis(candidates[None], drawn[..., None], 2)[..., 0]
    return x.astype(np.float32), labels.astype(np.int32), candidates


def loss(x, labels, candidates):
    """Mean negative log likelihood of a conditional logit, and its gradient."""
    x = x.astype(float)
    hit = candidates[None] == labels[..., None]

    def at(w):
        logs = log_softmax(x @ w, axis=-1)
        apart = ((np.exp(logs) - hit)[..., None] * x).sum(2)
        return -logs[hit].mean(), apart.mean((0, 1))

    return at


def test_features_are_logs_of_q_and_of_its_mean_over_the_neighbours():
    candidates, neighbours, table, degree = grid()
    q = shares(0)
    prior = np.random.default_rng(5).normal(-8, 6, q.shape).astype(np.float32)
    found = described(q, prior, table, degree)
    assert_array_equal(found[..., 2], np.maximum(prior, LEAST_PRIOR))
    assert_allclose(found[..., 0], np.log(np.maximum(q, LEAST_Q)), atol=1e-5)
    for v in range(0, len(q), 7):
        beside = [u for u in neighbours[v] if u >= 0 and candidates[u, 0] >= 0]
        for c in np.flatnonzero(candidates[v] >= 0):
            mean = sum(q[u][candidates[u] == candidates[v, c]].sum() for u in beside) / max(len(beside), 1)
            assert found[v, c, 1] == pytest.approx(np.log(mean + VOTE_FLOOR), abs=1e-4)


def test_without_neighbours_the_votes_are_all_alike():
    q = shares(0)
    found = features(q, np.zeros_like(q), np.zeros((0, *q.shape), np.int32), np.zeros(len(q), np.float32))
    assert_allclose(found[..., 1], np.log(VOTE_FLOOR), rtol=1e-6)


@pytest.mark.parametrize("exponents", [(1.0, 0.0, 0.0), (0.3, 0.7, 0.2), (0.0, 0.0, 0.0), (3.0, 3.0, 3.0)])
def test_probabilities_sum_to_1_where_there_is_a_candidate(exponents):
    candidates, _, table, degree = grid()
    q = shares(1)
    p = probabilities(described(q, np.zeros_like(q), table, degree), np.float32(exponents), candidates)
    assert_allclose(p.sum(1), (candidates >= 0).any(1), atol=1e-5)
    assert_array_equal(p[candidates < 0], 0)
    if exponents == (1.0, 0.0, 0.0):
        assert_allclose(p, q, atol=1e-5)
    if exponents == (0.0, 0.0, 0.0):
        assert_allclose(p, (candidates >= 0) / np.maximum((candidates >= 0).sum(1, keepdims=True), 1), atol=1e-6)


@pytest.mark.parametrize("alike", [0.0, 0.6, 0.95, 0.99])
@pytest.mark.parametrize("exponents", [(0.5, 0.2), (1.2, 0.0), (-0.8, 0.9), (0.9, -0.8), (-1.0, -1.0), (5.0, 1.0), (4.5, 4.5), (2.9, -1.8)])
def test_exponents_equal_those_of_a_bounded_optimiser(exponents, alike):
    """At the bounds too, and where q and its mean over the neighbours say nearly the same."""
    given = repeats(int(100 * alike), exponents, alike=alike)
    at = loss(*given)
    expected = min(
        (minimize(at, start, jac=True, bounds=[(0, MOST)] * 2, method="L-BFGS-B", tol=1e-14) for start in ([0.3, 0.3], [2.0, 0.1])),
        key=lambda found: found.fun,
    )
    found = np.asarray(fit(*given))
    assert ((found >= 0) & (found <= MOST)).all()
    assert at(found)[0] == pytest.approx(expected.fun, abs=1e-5)  # nats a location: steps of less are lost in float32
    # Where both say nearly the same, their sum is what is known.
    assert found.sum() == pytest.approx(expected.x.sum(), abs=0.02)
    if alike < 0.9:
        assert_allclose(found, expected.x, atol=0.02)


@pytest.mark.parametrize("exponents", [(0.3, 0.5), (1.0, 0.0), (0.1, 0.1), (1.5, 0.8)])
def test_known_exponents_are_recovered(exponents):
    assert_allclose(fit(*repeats(3, exponents, count=6000)), exponents, atol=0.07)  # three standard errors of 12000 labels


def test_labels_that_are_no_candidate_and_locations_that_do_not_count_are_not_read():
    x, labels, candidates = repeats(1, (0.6, 0.3))
    expected = fit(x, labels, candidates)
    rng = np.random.default_rng(0)
    more = np.concatenate([x, rng.normal(size=(2, 40, C, 2)).astype(np.float32)], 1)
    lost = np.concatenate([candidates, np.full((40, C), -1, np.int32)])
    assert_allclose(fit(more, np.pad(labels, ((0, 0), (0, 40)), constant_values=2), lost), expected, atol=1e-4)
    strange = np.concatenate([candidates, np.tile(np.arange(C, dtype=np.int32), (40, 1))])
    assert_allclose(fit(more, np.pad(labels, ((0, 0), (0, 40)), constant_values=50), strange), expected, atol=1e-4)
    assert_allclose(fit(more, np.pad(labels, ((0, 0), (0, 40)), constant_values=-1), lost), expected, atol=1e-4)


def test_a_candidate_that_is_not_there_takes_no_part():
    x, labels, candidates = repeats(2, (0.6, 0.3))
    wide = np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=-1.0)
    assert_allclose(fit(wide, labels, np.pad(candidates, ((0, 0), (0, 3)), constant_values=-1)), fit(x, labels, candidates), atol=1e-4)


def test_the_order_of_locations_candidates_and_halves_does_not_matter():
    x, labels, candidates = repeats(4, (0.6, 0.3))
    expected = fit(x, labels, candidates)
    rng = np.random.default_rng(0)
    order, places = rng.permutation(len(candidates)), rng.permutation(C)
    assert_allclose(fit(x[:, order], labels[:, order], candidates[order]), expected, atol=1e-4)
    assert_allclose(fit(x[:, :, places], labels, candidates[:, places]), expected, atol=1e-4)
    assert_allclose(fit(x[::-1], labels[::-1], candidates), expected, atol=1e-4)


def test_nothing_to_fit_leaves_finite_exponents():
    x, labels, candidates = repeats(0, (0.5, 0.5))
    found = fit(x, labels, np.full_like(candidates, -1))
    assert np.isfinite(found).all()


def test_in_a_wave_and_alone_it_is_the_same():
    check_wave(fit_exponents, [repeats(seed, (0.6, 0.3), count=200) for seed in range(3)], tolerance=1e-4)  # the step of a flat optimum
    candidates, _, table, degree = grid()
    check_wave(
        lambda q, w: calibrated(features(q, jnp.zeros_like(q), table, degree), w, candidates),
        [(shares(s), np.float32([0.5, s / 3, 0.1])) for s in range(3)],
    )


def test_probabilities_are_never_more_certain_than_q():
    q = shares(5)
    weight = (grid()[0][:, 0] >= 0).astype(np.float32)
    sharp, flat = q**2, np.sqrt(q)
    sharp, flat = (x / np.maximum(x.sum(1, keepdims=True), 1e-9) for x in (sharp, flat))
    assert_array_equal(jax.jit(never_sharper)(sharp, q, weight), q)
    assert_array_equal(jax.jit(never_sharper)(flat, q, weight), flat)
    # Locations that do not count have no say.
    some = weight * (np.arange(len(q)) < 50)
    mixed = np.where(some[:, None] > 0, flat, sharp)
    assert_array_equal(never_sharper(mixed, q, some), mixed)


def test_reliability_counts_what_is_in_each_bin():
    candidates = np.array([[0, 1], [2, 0], [1, -1], [1, 2], [-1, -1], [0, 2]], np.int32)
    p = np.array([[0.62, 0.38], [0.05, 0.95], [1, 0], [0.55, 0.45], [0, 0], [0.7, 0.3]], np.float32)
    other = np.array([0, 2, 1, 2, -1, 0], np.int32)
    counts = np.array([1, 1, 1, 1, 0, 0], bool)
    total, hits, size = jax.jit(reliability_curve)(p, candidates, other, counts)
    assert_array_equal(size, [0, 0, 0, 0, 0, 1, 1, 0, 0, 2])
    assert_array_equal(hits, [0, 0, 0, 0, 0, 0, 1, 0, 0, 1])
    assert_allclose(total, [0, 0, 0, 0, 0, 0.55, 0.62, 0, 0, 1.95], rtol=1e-6)


def test_calibration_makes_the_most_probable_label_as_reliable_as_it_says():
    """q is three times as certain, in log q, as the labels are: before, it promises far more than it keeps."""
    x, labels, candidates = repeats(9, (1 / 3, 0.0), count=6000)
    exponents = fit(x, labels, candidates)
    counts = np.ones(len(candidates), bool)

    def error(exponents):
        total, hits, size = sum(reliability_curve(calibrated(x[h], exponents, candidates), candidates, labels[h], counts) for h in (0, 1))
        return np.abs(total - hits).sum() / size.sum()

    assert error(np.float32([1, 0])) > 0.15
    assert error(exponents) < 0.02
