"""The held-out score: its normaliser against scipy's Bessel function, its sum against plain numpy, and its limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import gammaln, ive, logsumexp

from pnet_jax.parcellation.held_out import FLOOR, log_density, log_normaliser


def exact(kappa, d):
    order = d / 2 - 1
    return order * np.log(kappa) - d / 2 * np.log(2 * np.pi) - np.log(ive(order, kappa)) - kappa


def uniform(d):
    """Log of one over the surface of the unit sphere."""
    return gammaln(d / 2) - np.log(2) - d / 2 * np.log(np.pi)


def some(seed=0, locations=9, width=3, parcels=5, dimensions=16):
    rng = np.random.default_rng(seed)
    candidates = np.argsort(rng.random((locations, parcels)), 1)[:, :width].astype(np.int32)
    candidates[1, 2] = candidates[4, 1:] = -1
    candidates[6] = -1
    q = np.where(candidates >= 0, rng.random(candidates.shape), 0)
    q[2, 0] = 0  # the floor
    q = q / np.maximum(q.sum(1, keepdims=True), 1e-9)
    z, prototypes = (rng.normal(size=(n, dimensions)) for n in (locations, parcels))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    return q.astype(np.float32), candidates, z.astype(np.float32), prototypes.astype(np.float32)


@pytest.mark.parametrize("d", [16, 28, 64, 128])
def test_the_normaliser_is_that_of_the_bessel_function(d):
    kappa = np.geomspace(0.5, 200, 60)
    assert_allclose(log_normaliser(kappa.astype(np.float32), d), exact(kappa, d), atol=1e-3)


@pytest.mark.parametrize("d", [16, 64, 128])
def test_without_concentration_the_density_is_uniform(d):
    assert_allclose(log_normaliser(jnp.float32(0), d), uniform(d), atol=1e-3)
    assert_allclose(log_normaliser(jnp.float32(1e-4), d), uniform(d), atol=1e-3)
    assert abs(float(jax.grad(lambda kappa: log_normaliser(kappa, d))(0.0))) < 1e-5


def test_the_slope_of_the_normaliser_is_minus_the_mean_cosine():
    kappa, d = 20.0, 16
    mean_cosine = ive(d / 2, kappa) / ive(d / 2 - 1, kappa)
    assert_allclose(jax.grad(lambda kappa: log_normaliser(kappa, d))(kappa), -mean_cosine, atol=1e-4)


def test_the_score_is_that_of_plain_numpy():
    q, candidates, z, prototypes = some()
    kappa = 7.0
    terms = np.log(np.maximum(q, FLOOR)) + kappa * np.einsum("vd,vcd->vc", z, prototypes[candidates])
    expected = logsumexp(np.where(candidates >= 0, terms, -np.inf), axis=1) + exact(kappa, z.shape[1])
    expected[(candidates < 0).all(1)] = 0
    assert_allclose(log_density(q, candidates, z, prototypes, kappa), expected, atol=1e-3)


def test_padding_changes_nothing():
    q, candidates, z, prototypes = some()
    wider = log_density(np.pad(q, ((0, 0), (0, 2))), np.pad(candidates, ((0, 0), (0, 2)), constant_values=-1), z, prototypes, 7.0)
    assert_allclose(wider, log_density(q, candidates, z, prototypes, 7.0), atol=1e-6)


def test_true_probabilities_score_higher_than_overconfident_and_flat_ones():
    """Data of two directions that a location cannot tell apart by more than seven to three."""
    rng = np.random.default_rng(0)
    prototypes = np.eye(16, dtype=np.float32)[:2]
    z = prototypes[(rng.random(4000) < 0.3).astype(int)] + 0.15 * rng.normal(size=(4000, 16))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    candidates = np.tile(np.arange(2, dtype=np.int32), (4000, 1))

    def score(first):
        return float(log_density(np.tile(np.array([first, 1 - first], np.float32), (4000, 1)), candidates, z, prototypes, 30.0).mean())

    assert score(0.7) > score(0.5) > score(0.99)


def test_gradients_are_finite_at_the_floor_and_without_candidates():
    q, candidates, z, prototypes = some()
    slopes = jax.grad(lambda q, z, m, kappa: log_density(q, candidates, z, m, kappa).sum(), (0, 1, 2, 3))(
        jnp.asarray(q), jnp.asarray(z), jnp.asarray(prototypes), jnp.float32(5)
    )
    assert all(np.isfinite(slope).all() for slope in slopes)
