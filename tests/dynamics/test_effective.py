"""Directed coupling: against the symmetric model, scipy, finite differences, and a known J with calibrated errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pnet_jax.dynamics import effective, linear_stochastic
from pnet_jax.dynamics.effective import CrossSpectra, DirectedParams, cross_spectra
from pnet_jax.dynamics.spectra import Spectra

K = 8
APART = ~np.eye(K, dtype=bool)


def known_jacobian(seed=0, size=K):
    rng = np.random.default_rng(seed)
    j = 0.25 * rng.normal(size=(size, size)) / np.sqrt(size / 8) * (rng.random((size, size)) < 0.5)
    return j - np.diag(np.diag(j)) - 0.8 * np.eye(size)


def params(j=None):
    j = known_jacobian() if j is None else j
    return DirectedParams(jnp.asarray(j, jnp.float32), *(jnp.float32(x) for x in (0.0, -1.5, 0.2)))


def drawn(p, bins=40, repeats=8, seed=0):
    """Bins drawn from the model itself, `repeats` of each frequency."""
    rng = np.random.default_rng(seed)
    hz = np.linspace(0.01, 0.1, bins)
    root = np.linalg.cholesky(np.asarray(effective.density(p, jnp.asarray(hz, jnp.float32)), np.complex128))
    z = root @ (rng.normal(size=(bins, len(p.jacobian), repeats)) + 1j * rng.normal(size=(bins, len(p.jacobian), repeats))) / np.sqrt(2)
    gram = z @ z.conj().swapaxes(1, 2) / repeats
    return CrossSpectra(jnp.asarray(hz, jnp.float32), jnp.asarray(gram, jnp.complex64), jnp.full(bins, repeats, jnp.float32))


def test_a_symmetric_jacobian_has_the_likelihood_and_the_errors_of_the_symmetric_model():
    rng = np.random.default_rng(0)
    j = (known_jacobian() + known_jacobian().T) / 2
    seen = Spectra(np.linspace(0.01, 0.1, 9).astype(np.float32), rng.normal(size=(9, 2, K)).astype(np.float32), np.ones(9, np.float32))
    p = linear_stochastic.from_jacobian(j, sigma_e=np.exp(-1.5), delay=0.2)
    expected = linear_stochastic.negative_log_likelihood(p, seen)
    found = effective.negative_log_likelihood(params(j), cross_spectra([seen], step=1e-4))
    assert_allclose(found, expected, rtol=1e-5)
    assert_allclose(effective.correlation(params(j), 2.0), linear_stochastic.correlation(p, 2.0), atol=1e-4)


def test_lagged_covariance_is_the_matrix_exponential():
    j = known_jacobian()
    now = scipy.linalg.solve_continuous_lyapunov(j, -np.eye(K))
    assert_allclose(effective.covariance(params(), 2.0, None), scipy.linalg.expm(2 * j) @ now, rtol=1e-3, atol=1e-4)
    assert_allclose(effective.covariance(params(), -2.0, None), (scipy.linalg.expm(2 * j) @ now).T, rtol=1e-3, atol=1e-4)


def test_lagged_covariance_in_a_band_is_the_transform_of_the_density():
    hz = np.linspace(0.009, 0.1, 1500)
    noiseless = params()._replace(log_sigma_e=jnp.float32(-20.0))
    s = np.asarray(effective.density(noiseless, jnp.asarray(hz, jnp.float32)), np.complex128)
    expected = 2 * np.trapezoid((s * np.exp(2j * np.pi * hz * 3.0)[:, None, None]).real, hz, axis=0)
    assert_allclose(effective.covariance(params(), 3.0), expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        p, seen = (
            jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.result_type(x.dtype, np.float64))), t) for t in (params(), drawn(params()))
        )
        check_grads(jax.jit(lambda p: effective.negative_log_likelihood(p, seen)), (p,), order=1, modes=["rev"], eps=1e-6)


def test_information_blocks_are_the_full_ones_for_a_symmetric_jacobian(monkeypatch):
    j = (known_jacobian() + known_jacobian().T) / 2
    seen = drawn(params(j))
    monkeypatch.setattr(effective, "LEVEL_SDS", (1e-4, 1e-4, 1e-4))  # levels that are known
    dense = effective.standard_errors(params(j), seen, sd=(0.5, 0.2))
    monkeypatch.setattr(effective, "DENSE", 0)
    # The prior is isotropic in both; on the diagonal of the modes as well.
    assert_allclose(effective.standard_errors(params(j), seen, sd=(0.5, 0.2)), dense, rtol=2e-2)


def test_a_known_directed_jacobian_is_recovered_with_calibrated_errors():
    inside = []
    for seed in range(3):
        truth = known_jacobian(seed)
        seen = drawn(params(truth), repeats=20, seed=seed)
        start = params(-0.8 * np.eye(K))
        found = effective.fit_effective(seen, start)
        assert found.ok and not found.regularised
        j, error = np.asarray(found.params.jacobian), np.asarray(found.standard_errors)
        assert np.corrcoef(j[APART], truth[APART])[0, 1] > 0.8
        strong = APART & (np.abs(truth) > 0.2)
        assert (np.sign(j) == np.sign(truth))[strong].mean() > 0.9
        skew = j - j.T
        assert np.corrcoef(skew[APART], (truth - truth.T)[APART])[0, 1] > 0.7
        inside.append((np.abs(j - truth) < 1.96 * error)[APART].mean())
    assert 0.88 < np.mean(inside) <= 0.99  # of 168 entries


def test_noise_is_not_explained_away_by_as_many_entries_as_bins():
    """16² entries and 40 bins: the joint maximum has next to no noise, e^-3.6 where e^-1.5 is true."""
    rng = np.random.default_rng(0)
    j = 0.15 * rng.normal(size=(16, 16)) * (1 - np.eye(16)) - 0.8 * np.eye(16)
    found = effective.fit_effective(drawn(params(j), repeats=1), params(-0.8 * np.eye(16)))
    assert found.ok and abs(found.params.log_sigma_e + 1.5) < 0.6 and abs(found.params.delay - 0.2) < 0.6
    assert_allclose(found.sd, 0.15, rtol=0.3)  # measured, of the symmetric and of the skew part
    assert 0.85 < (np.abs(found.params.jacobian - j) < 1.96 * found.standard_errors)[~np.eye(16, dtype=bool)].mean() < 0.99


def test_a_fit_may_begin_elsewhere_and_not_where_it_is_unstable():
    truth, prior = params(), params(-0.8 * np.eye(K))
    seen = drawn(truth, repeats=20)
    near, far = (effective.fit_effective(seen, prior, sd=(0.3, 0.3), start=start).params.jacobian for start in (truth, prior))
    assert_allclose(near, far, atol=0.02)
    with pytest.raises(ValueError, match="stable start.*got 0.5"):
        effective.fit_effective(seen, prior, start=params(0.5 * np.eye(K)))


def test_a_strong_prior_is_returned_and_a_hopeless_scan_says_so():
    seen = drawn(params())
    start = params(-0.8 * np.eye(K))
    held = np.asarray(effective.fit_effective(seen, start, sd=(1e-4, 1e-4)).params.jacobian)
    rate = -np.trace(held) / K  # the prior is of J's shape: how fast parcels forget is the scan's
    assert_allclose(held, start.jacobian * rate / 0.8, atol=1e-3)
    assert 0.6 < rate < 1.0
    broken = seen._replace(gram=seen.gram * np.nan)
    found = effective.fit_effective(broken, start)
    assert not found.ok
    assert_allclose(found.params.jacobian, start.jacobian)
    short = seen._replace(weight=jnp.where(jnp.arange(40) < 3, 1.0, 0.0))
    assert effective.fit_effective(short, start, steps=2).regularised


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8, 8\).*got \(2, 2\)"):
        effective.negative_log_likelihood(params(-np.eye(2)), drawn(params()))
    with pytest.raises(ValueError, match="stable prior.*got 0.5"):
        effective.fit_effective(drawn(params()), params(0.5 * np.eye(K)))
    with pytest.raises(ValueError, match=r"at most 200 parcels, got K = \[201\]"):
        cross_spectra([Spectra(np.ones(1), np.ones((1, 2, 201)), np.ones(1))])
