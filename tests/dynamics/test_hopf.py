"""The linearised Hopf model against scipy and a simulation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pnet_jax.dynamics import hopf
from pnet_jax.dynamics.spectra import frequency_bins, spectra

K = 8


def nodes():
    rng = np.random.default_rng(0)
    c = rng.random((K, K)).astype(np.float32)
    return (c + c.T) / 2, rng.uniform(0.03, 0.07, K).astype(np.float32)


def test_all_frequencies_solve_the_lyapunov_equation():
    j = hopf.hopf_jacobian(*nodes(), gain=0.05)
    expected = scipy.linalg.solve_continuous_lyapunov(np.float64(j), -np.eye(2 * K))
    assert_allclose(hopf.covariance(j), expected[:K, :K], rtol=2e-3, atol=2e-3)
    assert_allclose(jnp.diagonal(hopf.correlation(j)), 1, rtol=1e-5)


def test_a_band_is_the_integral_of_the_density():
    j = np.float64(hopf.hopf_jacobian(*nodes(), gain=0.05))
    hz = np.linspace(0.01, 0.1, 4000)
    resolvent = np.linalg.inv(2j * np.pi * hz[:, None, None] * np.eye(2 * K) - j)
    density = (resolvent @ resolvent.conj().swapaxes(1, 2)).real[:, :K, :K]
    expected = 2 * np.trapezoid(density, hz, axis=0)
    assert_allclose(hopf.covariance(np.float32(j), band=(0.01, 0.1)), expected, rtol=0.02, atol=0.02 * expected.max())


def test_uncoupled_nodes_peak_at_their_own_frequencies():
    hz, frames, tr = np.array([0.03, 0.05, 0.08]), 600, 2.0
    rng = np.random.default_rng(1)
    y = np.sin(2 * np.pi * hz[:, None] * tr * np.arange(frames)) + 0.5 * rng.normal(size=(3, frames))
    seen = spectra(y.astype(np.float32), frequency_bins(np.ones(frames, bool), tr, size=120))
    assert_allclose(hopf.node_frequencies(seen, 0.004), hz, atol=0.004)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        c, hz = (jnp.asarray(np.float64(x)) for x in nodes())
        check_grads(lambda c: hopf.correlation(hopf.hopf_jacobian(c, hz, gain=0.05))[0, 1:].sum(), (c,), order=1, modes=["rev"])


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*got \(8, 8\)"):
        hopf.hopf_jacobian(nodes()[0], np.ones(3))
