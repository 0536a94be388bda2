"""Gaussian-copula information against its closed form and scipy's ranks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import psi
from scipy.stats import norm, rankdata
from tolerance import rounding

from pnet_jax.edges.copula import gaussian_copula


def nats(x, expected):
    """Tolerance: r is a sum over frames, and information changes by r / (1 − r²) < exp(2 I) times as much."""
    return rounding(x.shape[1], condition=np.exp(2 * np.max(expected)))


def gaussians(rho, frames, seed=0):
    x = np.random.default_rng(seed).normal(size=(2, frames))
    return np.stack([x[0], rho * x[0] + np.sqrt(1 - rho**2) * x[1]]).astype(np.float32)


def test_it_equals_scipy_s_ranks_and_numpy_s_correlation_with_ties_too():
    x = np.round(np.random.default_rng(1).normal(size=(5, 70)), 1).astype(np.float32)
    r = np.corrcoef(norm.ppf(rankdata(x, axis=1) / 71))
    expected = -0.5 * np.log(1 - np.square(r - np.diag(np.diag(r))))
    assert_allclose(gaussian_copula(x), expected, rtol=0, atol=nats(x, expected))


@pytest.mark.parametrize("rho", [0.3, -0.8])
def test_gaussians_have_the_information_of_the_closed_form(rho):
    assert_allclose(gaussian_copula(gaussians(rho, 20_000))[0, 1], -0.5 * np.log(1 - rho**2), atol=0.015)


def test_monotone_changes_alter_nothing():
    x = np.random.default_rng(2).normal(size=(3, 80)).astype(np.float32)
    changed = np.stack([np.exp(x[0]), -np.arctan(x[1]), x[2] ** 3])
    assert_allclose(gaussian_copula(changed), gaussian_copula(x), rtol=0, atol=nats(x, gaussian_copula(x)))


def test_independent_signals_have_the_bias_that_is_stated():
    x = np.random.default_rng(3).normal(size=(120, 40)).astype(np.float32)
    found = np.asarray(gaussian_copula(x))[np.triu_indices(120, 1)]
    stated = 0.5 * (psi(39 / 2) - psi(38 / 2))
    assert_allclose(stated, 1 / 75, rtol=0.01)
    assert_allclose(found.mean(), stated, rtol=0.06)
    assert found.min() >= 0


def test_equal_signals_share_what_float32_can_tell_and_no_more():
    x = np.random.default_rng(4).normal(size=(1, 50)).astype(np.float32)
    found = np.asarray(gaussian_copula(np.concatenate([x, x, -x])))
    assert_array_equal(np.diag(found), 0)
    assert_allclose(found[np.triu_indices(3, 1)], -0.5 * np.log(1e-6), rtol=0.01)
