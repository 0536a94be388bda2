"""The mixture: what it is without data, what it finds with them, and that its gradient is right."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.atlas import PADDING, make_atlas, on_space
from pnet_jax.parcellation.mixture import K0, Problem, group_prototypes, mixture, normalise
from pnet_jax.space import grid_neighbours, grid_space

TOLERANCE = rounding(14, condition=8 / 4)  # prototypes are sums over at most 14 locations; a softmax at κ = 8 enlarges their rounding


@functools.partial(jax.jit, static_argnames="steps")
def fit(problem, kappa, beta, start=None, *, steps=12):
    return mixture(problem, kappa, beta, steps=steps, start=start)


def fitted(problem, kappa, beta, **options):
    return jax.tree.map(np.asarray, fit(problem, np.float32(kappa), np.float32(beta), **options))


def tiny(seed=0, dtype=np.float32):
    """A few voxels in a row; some with fewer candidates, one with none, one parcel without prototype."""
    rng = np.random.default_rng(seed)
    neighbours = grid_neighbours(np.argwhere(np.ones((7, 2, 1), bool)))
    count, parcels, width = len(neighbours), 4, 3
    candidates = np.argsort(rng.random((count, parcels)), 1)[:, :width].astype(np.int32)
    candidates[np.arange(width)[None] >= rng.integers(1, width + 1, (count, 1))] = -1
    candidates[5] = -1
    weight = np.where(candidates >= 0, rng.random((count, width)) + 0.2, 0)
    log_prior = np.where(candidates >= 0, np.log(np.maximum(weight, 1e-9) / np.maximum(weight.sum(1, keepdims=True), 1e-9)), PADDING)
    z, prototypes = rng.normal(size=(count, 3)), rng.normal(size=(parcels, 3))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    prototypes[3] = 0
    return Problem(
        z.astype(dtype),
        candidates,
        log_prior.astype(dtype),
        match_table(candidates, neighbours, n_parcels=len(prototypes)),
        prototypes.astype(dtype),
    )


@functools.cache
def planted():
    """Four parcels whose borders lie two voxels from where the atlas expects them, and embeddings that show them."""
    rng = np.random.default_rng(0)
    space = grid_space(np.ones((10, 10, 3), bool), np.diag([4.0, 4, 4, 1]) + np.outer([1, 1, 1, 0], [0, 0, 0, 4]))
    i, j, _ = space.grid.ijk.T
    expected, truth = (2 * (i >= 5) + (j >= 5), 2 * (i >= 3) + (j >= 7))
    local = on_space(make_atlas(space.xyz, expected + 1, resolution=4), space)
    directions = np.linalg.qr(rng.normal(size=(6, 4)))[0].T
    z = normalised(directions[truth] + 0.35 * rng.normal(size=(len(space), 6))).astype(np.float32)
    prototypes = np.asarray(group_prototypes(jnp.asarray(z), jnp.asarray(local.labels), 4))
    table = match_table(local.candidates, space.neighbours, n_parcels=4)
    return Problem(z, local.candidates, local.log_prior, table, prototypes), local, truth


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def most_probable(problem, q):
    return problem.candidates[np.arange(len(q)), q.argmax(1)]


@pytest.mark.parametrize("kappa", [0.0, 5.0, 200.0])
def test_probabilities_sum_to_1_where_there_is_a_candidate(kappa):
    problem = tiny()
    found = fitted(problem, kappa, 0.4)
    assert_allclose(found.q.sum(1), (problem.candidates >= 0).any(1), atol=1e-5)
    assert_array_equal(found.q[problem.candidates < 0], 0)
    assert np.isfinite(found.prototypes).all()


def test_without_data_and_neighbours_it_is_the_prior():
    problem = tiny()
    prior = np.where(problem.candidates >= 0, np.exp(problem.log_prior), 0)
    assert_allclose(fitted(problem, 0, 0).q, prior, rtol=0, atol=rounding(3))


def test_four_planted_parcels_are_recovered_against_the_prior():
    problem, local, truth = planted()
    own = most_probable(problem, fitted(problem, 10, 0.4).q)
    assert (local.labels == truth).mean() < 0.7
    assert (own == truth).mean() > 0.97


def test_neighbours_votes_smooth_the_result():
    problem, _, truth = planted()
    rough, smooth = (most_probable(problem, fitted(problem, 10, beta).q) for beta in (0, 0.4))
    assert (smooth == truth).mean() > (rough == truth).mean()


def test_prototypes_are_the_mean_direction_pulled_towards_the_group():
    problem, *_ = planted()
    found = fitted(problem, 10, 0.4)
    sums = np.zeros((4, 6))
    np.add.at(sums, problem.candidates[problem.candidates >= 0], (found.q[..., None] * problem.z[:, None])[problem.candidates >= 0])
    assert_allclose(found.prototypes, normalised(sums + K0 * problem.prototypes), atol=1e-4)
    held = jax.jit(lambda problem: mixture(problem, np.float32(10), np.float32(0.4), k0=1e7))(problem)
    assert_allclose(held.prototypes, problem.prototypes, atol=1e-4)


def test_turning_all_embeddings_together_changes_nothing():
    problem, *_ = planted()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    turned = problem._replace(z=problem.z @ turn, prototypes=problem.prototypes @ turn)
    assert_allclose(fitted(turned, 10, 0.4).q, fitted(problem, 10, 0.4).q, atol=1e-3)


def test_padding_rows_change_nothing():
    problem = tiny()
    rows = ((0, 9), (0, 0))
    inside = len(problem.z)
    table = np.full((problem.table.shape[0], inside + 9, 3), (inside + 9) * 3, np.int32)
    table[:, :inside] = np.where(problem.table == inside * 3, (inside + 9) * 3, problem.table)
    padded = Problem(
        np.pad(problem.z, rows, constant_values=7),
        np.pad(problem.candidates, rows, constant_values=-1),
        np.pad(problem.log_prior, rows, constant_values=PADDING),
        table,
        problem.prototypes,
    )
    plain, found = fitted(problem, 8, 0.4), fitted(padded, 8, 0.4)
    assert_allclose(found.q[:inside], plain.q, rtol=0, atol=TOLERANCE)
    assert_array_equal(found.q[inside:], 0)
    assert_allclose(found.prototypes, plain.prototypes, rtol=0, atol=TOLERANCE)


def test_going_on_from_a_result_equals_going_on():
    problem = tiny()
    halfway = fitted(problem, 8, 0.4, steps=3)
    for a, b in zip(fitted(problem, 8, 0.4, start=halfway, steps=3), fitted(problem, 8, 0.4, steps=6), strict=True):
        assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_locations_without_neighbours_are_fitted_alone():
    problem = tiny()
    alone = problem._replace(table=np.zeros((0, *problem.candidates.shape), np.int32))
    assert_allclose(fitted(alone, 8, 0.4).q, fitted(problem, 8, 0.0).q, rtol=0, atol=TOLERANCE)


def test_one_kappa_for_each_location():
    problem = tiny()
    each = np.full(len(problem.z), 8, np.float32)
    assert_allclose(fitted(problem, each, 0.4).q, fitted(problem, 8, 0.4).q, rtol=0, atol=TOLERANCE)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        problem = tiny(dtype=np.float64)
        bias = np.where(problem.candidates >= 0, problem.log_prior, 0)

        def face(z, prototypes, bias, kappa, beta):
            return tuple(mixture(problem._replace(z=z, prototypes=prototypes, log_prior=bias), kappa, beta, steps=3))

        # A parcel without prototype has no direction to differentiate by: `normalise` is 0 around it.
        given = (problem.z, problem.prototypes, bias, np.float64(4), np.float64(0.4))
        check_grads(jax.jit(face), given, order=1, modes=["rev"], eps=1e-6, atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_with_padding_and_empty_parcels():
    problem = tiny()

    def loss(z, prototypes, log_prior, kappa, beta):
        found = mixture(problem._replace(z=z, prototypes=prototypes, log_prior=log_prior), kappa, beta)
        return jnp.square(found.q).sum() + found.prototypes.sum()

    given = (problem.z, problem.prototypes, problem.log_prior, np.float32(50), np.float32(0.8))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))(*given)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    assert_array_equal(gradients[2][problem.candidates < 0], 0)
    assert np.abs(gradients[0]).max() > 0


def test_group_prototypes_are_mean_directions_and_0_for_empty_parcels():
    z = normalised(np.random.default_rng(2).normal(size=(9, 3))).astype(np.float32)
    labels = np.array([0, 0, 2, 2, 2, -1, 0, -1, 3])
    found = np.asarray(group_prototypes(jnp.asarray(z), jnp.asarray(labels), 4))
    assert_allclose(found[[0, 2, 3]], normalised(np.stack([z[labels == k].sum(0) for k in (0, 2, 3)])), rtol=0, atol=rounding(9))
    assert_array_equal(found[1], 0)


def test_a_row_of_zeros_stays_0_with_a_gradient_of_0():
    x = np.array([[3.0, 4], [0, 0]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: normalise(x)[:, 0].sum())(x)
    assert value == pytest.approx(0.6)
    assert_array_equal(gradient[1], 0)
    assert np.isfinite(gradient).all()
