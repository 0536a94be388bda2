"""The symmetric model: against scipy, the simulator, finite differences, and itself in a wave."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics import linear_stochastic as model
from pnet_jax.dynamics.spectra import Spectra, frequency_bins, pool, spectra
from pnet_jax.simulate import coupling, dynamics

K = 10


def rates(seed=0, size=K):
    """A, symmetric with eigenvalues of .07 to about 2 1/s, as the simulator has them."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(size=(size, size)))
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    return -coupling.jacobian(coupling.normalise(weights))


def some_spectra(seed=0, bins=7, size=K):
    rng = np.random.default_rng(seed)
    return Spectra(
        np.linspace(0.01, 0.1, bins).astype(np.float32),
        rng.normal(size=(bins, 2, size)).astype(np.float32),
        np.r_[np.ones(bins - 1), 0].astype(np.float32),
    )


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def params(seed=0, size=K, **levels):
    return model.from_jacobian(-rates(seed, size), **{"sigma_x": 0.7, "sigma_e": 0.3, "delay": 0.4} | levels)


# Parameters


def test_from_jacobian_is_the_inverse_of_jacobian():
    assert_allclose(model.jacobian(params()), -rates(), atol=2e-6)


def test_every_free_matrix_is_stable():
    for scale in (1e-3, 1.0, 30.0):
        free = scale * np.random.default_rng(1).normal(size=(K, K)).astype(np.float32)
        j = np.float64(model.jacobian(params()._replace(coupling=free)))
        assert_allclose(j, j.T, atol=1e-4 * scale)
        a, _ = model._modes(jnp.asarray((free + free.T) / 2))
        assert (np.asarray(a) > 0).all()


def test_an_unusable_jacobian_is_refused():
    with pytest.raises(ValueError, match="symmetric"):
        model.from_jacobian(np.array([[-1.0, 0.5], [0.0, -1.0]]))
    with pytest.raises(ValueError, match=r"below 0, got 0\.1"):
        model.from_jacobian(0.1 * np.eye(2))


# Closed forms


def test_latent_covariance_solves_the_lyapunov_equation():
    found = model.covariance(params(), band=None)
    assert_allclose(found, scipy.linalg.solve_continuous_lyapunov(-rates(), -(0.7**2) * np.eye(K)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lag", [0.5, 2.0, -2.0])
def test_latent_lagged_covariance_is_the_matrix_exponential(lag):
    now = scipy.linalg.solve_continuous_lyapunov(-rates(), -(0.7**2) * np.eye(K))
    assert_allclose(model.covariance(params(), lag, None), scipy.linalg.expm(-rates() * abs(lag)) @ now, rtol=1e-4, atol=1e-5)


def test_a_very_wide_band_without_haemodynamics_comes_to_the_same(monkeypatch):
    monkeypatch.setattr(model.haemodynamics, "power", lambda frequency, delay: jnp.ones_like(frequency))
    monkeypatch.setattr(model, "BAND_POINTS", 200_001)
    found = model.covariance(params(), 1.5, (0.0, 200.0))
    assert_allclose(found, model.covariance(params(), 1.5, None), atol=5e-4)


def test_connectivity_is_the_simulators():
    truth = dynamics.true_fc(dynamics.linear_model(-rates(), delay=0.4))
    assert_allclose(model.correlation(params()), truth, atol=2e-4)


def test_lagged_covariance_in_a_band_is_the_transform_of_the_density():
    frequency = np.linspace(0.009, 0.1, 2000)
    h = 0.49 * np.abs(dynamics.haemodynamic_response(frequency, 0.4)) ** 2
    values, modes = np.linalg.eigh(rates())
    s = h[:, None] / ((2 * np.pi * frequency[:, None]) ** 2 + values**2) * np.cos(2 * np.pi * frequency * 3.0)[:, None]
    expected = (modes * 2 * np.trapezoid(s, frequency, axis=0)) @ modes.T
    assert_allclose(model.covariance(params(), 3.0), expected, rtol=1e-3, atol=1e-5)


def test_density_and_likelihood_equal_dense_ones():
    p, seen = params(), some_spectra()
    s = np.asarray(model.density(p, seen.frequency), np.float64)
    h = 0.49 * np.abs(dynamics.haemodynamic_response(np.float64(seen.frequency), 0.4)) ** 2
    omega = 2 * np.pi * np.float64(seen.frequency)
    dense = [h[f] * np.linalg.inv(omega[f] ** 2 * np.eye(K) + rates() @ rates()) + 0.09 * np.eye(K) for f in range(7)]
    assert_allclose(s, dense, rtol=1e-3, atol=1e-5)
    each = [np.linalg.slogdet(dense[f])[1] + sum(x @ np.linalg.solve(dense[f], x) for x in np.float64(seen.dft[f])) for f in range(6)]
    assert_allclose(model.negative_log_likelihood(p, seen), sum(each) / (K * 6), rtol=1e-5)


def test_pooled_recordings_have_the_likelihood_of_their_sum():
    recordings = [some_spectra(seed)._replace(weight=np.ones(7, np.float32)) for seed in range(3)]
    pooled = pool(recordings, step=1e-5)
    assert pooled.dft.shape == (7, K, K) and float(pooled.weight.sum()) == 21
    expected = np.mean([model.negative_log_likelihood(params(), s) for s in recordings])
    assert_allclose(model.negative_log_likelihood(params(), pooled), expected, rtol=1e-4)


def test_haemodynamics_are_the_simulators_and_differentiable():
    frequency = np.linspace(0, 0.3, 20)
    expected = np.abs(dynamics.haemodynamic_response(frequency, 0.7)) ** 2
    assert_allclose(haemodynamics.power(np.float32(frequency), 0.7), expected, atol=1e-6)
    with jax.enable_x64(True):
        check_grads(lambda delay: haemodynamics.power(jnp.asarray(frequency), delay), (0.7,), order=1, modes=["rev"])


# Gradients


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        p, seen = double(params()), double(some_spectra())
        likelihood = lambda p, dft: model.negative_log_likelihood(p, seen._replace(dft=dft))  # noqa: E731
        check_grads(jax.jit(likelihood), (p, seen.dft), order=1, modes=["rev"], eps=1e-6)
        weights = jnp.asarray(np.random.default_rng(2).normal(size=(K, K)))
        for function in (model.jacobian, model.correlation, lambda p: model.covariance(p, 2.0), lambda p: model.covariance(p, 2.0, None)):
            check_grads(lambda p, f=function: (weights * f(p)).sum(), (p,), order=1, modes=["rev"], eps=1e-6)


def test_gradients_reach_the_signals():
    bins = frequency_bins(np.ones(60, bool), 2.0)
    with jax.enable_x64(True):
        p, plan = double(params()), double(bins._replace(dropped=0))
        signals = jnp.asarray(np.random.default_rng(0).normal(size=(K, 60)))
        check_grads(jax.jit(lambda x: model.negative_log_likelihood(p, spectra(x, plan))), (signals,), order=1, modes=["rev"])


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-7, 1e-4])
def test_gradients_are_exact_where_modes_are_degenerate(gap):
    """Finite differences of the likelihood do not know about modes; three rates coincide here up to `gap`."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    free = (basis * [0.5, 0.5 + gap, 0.5 + 2 * gap, 1.0, 1.0]) @ basis.T
    with jax.enable_x64(True):
        p, seen = double(params(size=5))._replace(coupling=jnp.asarray((free + free.T) / 2)), double(some_spectra(size=5))
        check_grads(lambda m: model.negative_log_likelihood(p._replace(coupling=m), seen), (p.coupling,), order=1, modes=["rev"], eps=1e-6)
        weights = jnp.asarray(np.random.default_rng(2).normal(size=(5, 5)))
        check_grads(lambda m: (weights * model.correlation(p._replace(coupling=m))).sum(), (p.coupling,), order=1, modes=["rev"], eps=1e-6)


def test_gradients_of_a_multiple_of_the_identity_are_finite_in_float32():
    p = params()._replace(coupling=0.5 * jnp.eye(K))
    gradient = jax.jit(jax.grad(model.negative_log_likelihood))(p, some_spectra())
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    assert np.abs(gradient.coupling).max() > 1e-3


# Standard errors


def test_information_is_the_expected_hessian():
    """Of the dense model, entry by entry of A, by its definition: Σ tr(S⁻¹ ∂S S⁻¹ ∂S)."""
    size, seen = 4, some_spectra(size=4)
    a = rates(size=16)[:4, :4]
    p = model.from_jacobian(-a, sigma_x=0.7, sigma_e=0.3, delay=0.4)
    h = 0.49 * np.abs(dynamics.haemodynamic_response(np.float64(seen.frequency), 0.4)) ** 2
    omega, upper = 2 * np.pi * np.float64(seen.frequency), list(zip(*np.triu_indices(size), strict=True))

    def dense(a, f):
        return h[f] * np.linalg.inv(omega[f] ** 2 * np.eye(size) + a @ a) + 0.09 * np.eye(size)

    info = np.zeros((len(upper), len(upper)))
    for f in range(6):
        inverse, slopes = np.linalg.inv(dense(a, f)), []
        for i, j in upper:
            step = np.zeros((size, size))
            step[i, j] = step[j, i] = 1e-5
            slopes.append(inverse @ (dense(a + step, f) - dense(a - step, f)) / 2e-5)
        info += [[np.trace(x @ y) for y in slopes] for x in slopes]
    expected = np.sqrt(np.diag(np.linalg.inv(info)))
    found = np.asarray(model.standard_errors(p, seen))
    assert_allclose([found[i, j] for i, j in upper], expected, rtol=2e-3)


def test_one_step_estimates_are_unbiased_and_scatter_as_they_say():
    p, frequency = params(), np.linspace(0.01, 0.1, 40).astype(np.float32)
    root = np.linalg.cholesky(np.float64(model.density(p, frequency)))
    rng, step = np.random.default_rng(0), jax.jit(model.one_step)
    found, errors = [], None
    for _ in range(400):
        dft = np.einsum("fkl,fnl->fnk", root, rng.normal(size=(40, 2, K))) / np.sqrt(2)
        estimate, errors = step(p, Spectra(frequency, dft.astype(np.float32), np.ones(40, np.float32)))
        found.append(np.asarray(estimate))
    z = (np.array(found) + rates()) / np.asarray(errors)
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(400)
    assert_allclose(z.std(0), 1, atol=0.15)


# Waves


def test_a_result_does_not_depend_on_its_place_in_a_wave():
    one = jax.jit(jax.vmap(jax.value_and_grad(model.negative_log_likelihood)))
    wave = lambda seeds: jax.tree.map(lambda *x: jnp.stack(x), *[(params(s), some_spectra(s)) for s in seeds])  # noqa: E731
    first, last = one(*wave([0, 1, 2, 3])), one(*wave([3, 1, 2, 0]))
    jax.tree.map(lambda a, b: assert_array_equal(a[0], b[3]), first, last)
    alone = one(*wave([0]))
    jax.tree.map(lambda a, b: assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5), first, alone)


def test_padding_changes_nothing():
    seen = some_spectra()
    longer = jax.tree.map(lambda x: np.concatenate([x, np.zeros((5, *x.shape[1:]), np.float32)]), seen)
    longer = longer._replace(frequency=np.where(longer.weight > 0, longer.frequency, 0.05).astype(np.float32))
    plain, padded = (jax.value_and_grad(model.negative_log_likelihood)(params(), s) for s in (seen, longer))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, padded)


def test_a_step_costs_one_eigh_and_no_table_of_bins_by_parcels_by_parcels():
    size, bins = 64, 50
    seen = jax.eval_shape(lambda: Spectra(jnp.zeros(bins), jnp.zeros((bins, 2, size)), jnp.zeros(bins)))
    p = jax.eval_shape(lambda: model.Params(jnp.zeros((size, size)), jnp.zeros(()), jnp.zeros(()), jnp.zeros(())))
    step = jax.jit(jax.value_and_grad(model.negative_log_likelihood)).lower(p, seen).compile()
    assert step.as_text().count('syevd_ffi"') == 1
    assert step.memory_analysis().temp_size_in_bytes < bins * size * size * 4


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"shape \(10, 10\).*got \(4, 4\)"):
        model.negative_log_likelihood(model.from_jacobian(-np.eye(4)), some_spectra())
