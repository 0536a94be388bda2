"""The choice of κ, β and T: high where there are parcels, worth nothing where there is noise, the same whatever is beside it."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation import decide
from pnet_jax.parcellation.choose import BETAS, FREE_SHARPNESS, KAPPAS, _parabola, choose, data_free
from pnet_jax.parcellation.held_out import held_out
from pnet_jax.parcellation.mixture import Problem
from tests.parcellation.helpers import check_wave, halves, stack

K = 12
GRID = np.log(np.float32(KAPPAS))


@functools.partial(jax.jit, static_argnames=("kappas", "betas"))
def chosen(problems, kappas=KAPPAS, betas=BETAS):
    return choose(problems, data_free(problems[0], jnp.asarray(betas)), K, kappas=kappas, betas=betas)


def most_probable(candidates, q):
    return candidates[np.arange(len(q)), np.asarray(q).argmax(1)]


def noise(toy, seed, frames=120):
    return halves(toy, np.random.default_rng(seed).normal(size=(len(toy.space), frames)))


@pytest.fixture(scope="module")
def planted(toy):
    problems = halves(toy, toy.signals(0))
    return problems, chosen(problems)


@pytest.mark.parametrize("peak", [4.0, 7.0, 9.5, 25.0])
def test_the_parabola_finds_the_peak_of_a_parabola(peak):
    y = np.float32(-2 * np.square(GRID - np.log(peak)) + 40)
    assert_allclose(jax.jit(_parabola)(GRID, y, np.int32(y.argmax())), peak, rtol=1e-3)  # |y| ~ 40 in float32 over a bend of 2


def test_the_parabola_never_leaves_the_points_beside_the_best():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, len(GRID))).astype(np.float32)
    best = y.argmax(1)
    found = np.log(jax.jit(jax.vmap(_parabola, (None, 0, 0)))(GRID, y, best))
    low, high = GRID[np.maximum(best - 1, 0)], GRID[np.minimum(best + 1, len(GRID) - 1)]
    assert ((found >= low - 1e-5) & (found <= high + 1e-5)).all()
    edge = (best == 0) | (best == len(GRID) - 1)
    assert_allclose(found[edge], GRID[best[edge]], atol=1e-6)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([1, 1, 1, 1, 1], 2.0),  # nothing between them: the smallest
        ([5, 4, 3, 2, 1], 2.0),
        ([1, 2, 3, 4, 5], 40.0),
        ([0, 0, 1, 0, 0], 10.0),
        ([0, 1, 1, 0, 0], None),  # two alike: between them
        ([5, 0, 0, 0, 4], 2.0),
    ],
)
def test_the_parabola_where_it_is_flat_or_at_the_edge(y, expected):
    y = np.float32(y)
    found = float(_parabola(GRID, y, np.int32(y.argmax())))
    if expected is None:
        assert 5 < found < 10
    else:
        assert found == pytest.approx(expected, rel=0.03 if expected == 10 else 1e-5)  # the grid is not quite even in log κ


def test_without_data_it_is_the_prior_smoothed_by_votes(toy):
    problem, _ = halves(toy, toy.signals(0))
    betas = np.float32([0, 0.2, 0.4])
    free = jax.jit(data_free)(problem, betas)
    assert free.shape == (3, *problem.candidates.shape)
    assert_allclose(free.sum(2), 1, atol=1e-5)
    sharp = np.where(problem.candidates >= 0, np.exp(FREE_SHARPNESS * (problem.log_prior - problem.log_prior.max(1, keepdims=True))), 0)
    assert_allclose(free[0], sharp / sharp.sum(1, keepdims=True), atol=1e-5)
    other = problem._replace(z=problem.z[::-1], prototypes=-problem.prototypes)
    assert_array_equal(jax.jit(data_free)(other, betas), free)
    certain = np.asarray(free.max(2)).mean(1)
    assert (np.diff(certain) > 0).all()


def test_planted_parcels_are_recovered_and_score_above_what_has_no_data(planted, toy):
    problems, found = planted
    for half in found.halves:
        own = most_probable(problems[0].candidates, half.q)
        assert (toy.expected == toy.truth).mean() < 0.75
        assert (own == toy.truth).mean() > 0.95
        assert_allclose(half.q.sum(1), 1, atol=1e-5)
    assert found.score > found.free + 1
    assert found.kappa > KAPPAS[1]


def test_the_choice_is_the_best_of_its_trials(planted):
    problems, found = planted
    assert_allclose(found.kappas[: len(KAPPAS)], KAPPAS)
    assert_allclose(found.betas[: len(KAPPAS)], BETAS[1])
    assert_array_equal(found.kappas[len(KAPPAS) :], np.full(len(BETAS), found.kappa))
    assert_allclose(found.betas[len(KAPPAS) :], BETAS)
    at = len(KAPPAS) + int(found.scores[len(KAPPAS) :].argmax())
    assert (found.score, found.beta, found.temperature) == (found.scores[at], found.betas[at], found.temperatures[at])
    rows = np.arange(0, len(problems[0].z), 4)
    free = np.asarray(data_free(problems[0], jnp.asarray(BETAS)))
    both = [np.mean([held_out(q, p.candidates, p.z, K, rows).mean for p in problems]) for q in free]
    assert_allclose(found.free, max(both), rtol=1e-5)
    assert found.free_beta == int(np.argmax(both))


def test_one_value_fixes_a_setting_and_is_no_edge(planted):
    problems, _ = planted
    found = chosen(problems, kappas=(7.0,), betas=(0.3,))
    assert (found.kappa, found.beta) == (np.float32(7), np.float32(0.3))
    assert found.scores.shape == (1,)
    assert not found.edge
    two = chosen(problems, kappas=(1.0, 7.0), betas=(0.3,))
    assert two.kappa == 7
    assert two.edge


def test_a_best_kappa_at_the_end_of_its_grid_is_an_edge(planted):
    problems, _ = planted
    found = chosen(problems, kappas=(0.5, 1.0, 2.0), betas=(0.2,))
    assert found.kappa == 2
    assert found.edge


def test_padding_and_locations_that_do_not_count_change_nothing(planted, toy):
    problems, _ = planted
    lost = np.random.default_rng(0).random(len(toy.space)) < 0.2
    rows = ((0, 12), (0, 0))
    neighbours = toy.space.neighbours

    def without(one: Problem, z: float, pad: bool) -> Problem:
        candidates = np.where(lost[:, None], -1, one.candidates)
        z = np.where(lost[:, None], np.float32(z), one.z)
        log_prior, beside = one.log_prior, neighbours
        if pad:
            candidates, beside = (np.pad(x, rows, constant_values=-1) for x in (candidates, neighbours))
            z, log_prior = np.pad(z, rows, constant_values=3), np.pad(log_prior, rows)
        return Problem(z, candidates, log_prior, match_table(candidates, beside, n_parcels=K), one.prototypes)

    plain, spoiled, padded = (chosen(tuple(without(one, *how) for one in problems)) for how in ((0, False), (7, False), (7, True)))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(spoiled), strict=True):
        assert_array_equal(a, b)
    assert_array_equal(plain.halves[0].q[lost], 0)
    # Sums over more rows are rounded in another way, and a mixture of high κ answers to it.
    assert_allclose(padded.scores, plain.scores, rtol=1e-4)
    assert_allclose(padded.halves[0].q[: len(lost)], plain.halves[0].q, atol=1e-2)


def test_in_a_wave_and_alone_it_is_the_same(toy):
    def settings(first, second):
        found = choose((first, second), data_free(first, jnp.array([0.1, 0.3])), K, kappas=(2.0, 6.0, 18.0), betas=(0.1, 0.3))
        return found.kappa, found.beta, found.temperature, found.scores, found.free, found.edge

    # The parabola divides differences of scores of 50 nats: 1e-3 of κ for 1e-5 of the scores.
    check_wave(settings, [halves(toy, toy.signals(seed, 80)) for seed in range(3)], tolerance=1e-3)


def test_noise_gets_the_lowest_kappa_and_no_certain_gain_more_often_than_chance(toy):
    """Forty scans without any parcel: the lowest κ is the best, and intervals over κ = 0 lie above 0 no more often than 2.5 % allow.

    White noise favours the flattest parcels, so that κ = 0 has the prior of the other κ here, and not the sharp one of `data_free`.
    """
    cube = np.unique(np.floor(toy.space.xyz / 32), axis=0, return_inverse=True)[1].ravel()
    counts = np.ones(len(cube), bool)
    betas = jnp.asarray(BETAS)

    def one(key, first, second, free):
        found = choose((first, second), free, K)
        both = itertools.product(((found.halves[0].q, second.z), (found.halves[1].q, first.z)), (None, free[found.free_beta]))
        a, b, c, d = (held_out(q if none is None else none, first.candidates, z, K).each for (q, z), none in both)
        return found.kappa, found.scores, decide.over_cubes(key, (a + c - b - d) / 2, counts, cube, int(cube.max()) + 1)

    shared = noise(toy, 0)[0]
    flat = shared._replace(log_prior=shared.log_prior / FREE_SHARPNESS)
    free = jax.jit(data_free)(flat, betas)
    keys = jax.random.split(jax.random.key(0), 40)
    problems = stack([noise(toy, 1000 + seed) for seed in range(40)])
    kappas, scores, gains = jax.jit(jax.vmap(one, (0, 0, 0, None)))(keys, *problems, free)
    assert int((gains[:, 0] > 0).sum()) <= binom.isf(1e-3, 40, 0.025)
    assert (np.diff(scores[:, : len(KAPPAS)].mean(0)) < 0).all()
    low, high = (int(x.sum()) for x in (kappas < KAPPAS[1], kappas >= KAPPAS[-1]))
    assert low > 20 > 4 * high
