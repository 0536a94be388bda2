"""Interventions in closed form: equal to brute force, at the energy asked for, never unstable."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import solve_continuous_lyapunov

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.interventions import all_frequencies, amplitudes_at, decompose, energy, in_band, intervene, limits

K = 9
NOISE, DELAY, BAND = 0.3, 0.4, (0.009, 0.1)
SETS = ([3, -1, -1], [1, 5, 7])


@pytest.fixture(scope="module")
def own() -> np.ndarray:
    draw = np.random.default_rng(0).normal(size=(K, K))
    return -np.eye(K) + 0.06 * (draw + draw.T)


def changed(own: np.ndarray, nodes: list[int], kind: str, amplitude: float) -> np.ndarray:
    """J under an intervention, entry by entry."""
    inside = np.isin(np.arange(K), nodes)
    links = (inside[:, None] | inside) & ~np.eye(K, dtype=bool)
    return np.where(links if kind == "coupling" else np.diag(inside), own * (1 + amplitude), own)


def correlation(covariance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


@pytest.mark.parametrize("nodes", SETS)
@pytest.mark.parametrize("kind", ["coupling", "local"])
def test_connectivity_and_energy_are_those_of_the_lyapunov_equation(own, nodes, kind):
    plain = all_frequencies()
    model = decompose(jnp.asarray(own, jnp.float32), plain)
    for amplitude in (-0.3, 0.4):
        after = changed(own, nodes, kind, amplitude)
        covariance = solve_continuous_lyapunov(after, -np.eye(K))
        found = intervene(model, plain, jnp.array(nodes), kind, jnp.float32(amplitude))
        assert_allclose(found, correlation(covariance), atol=1e-5)
        added = after - own
        power = np.trace(added @ covariance @ added.T) / (-np.trace(own) / 2 / K)
        assert_allclose(energy(model, jnp.array(nodes), kind, jnp.float32(amplitude)), power, rtol=1e-4)


def in_band_by_hand(own: np.ndarray, input_: np.ndarray | None = None, hz0: float = 0.05) -> np.ndarray:
    hz = np.linspace(*BAND, 2000)
    h = np.asarray(haemodynamics.power(jnp.asarray(hz, jnp.float32), DELAY), np.float64)
    density = np.linalg.inv((2 * np.pi * hz[:, None, None]) ** 2 * np.eye(K) + own @ own) * h[:, None, None]
    out = 2 * np.trapezoid(density, hz, axis=0) + 2 * (BAND[1] - BAND[0]) * NOISE * np.eye(K)
    if input_ is not None:
        response = np.linalg.solve(2j * np.pi * hz0 * np.eye(K) - own, input_)
        gain = float(haemodynamics.power(jnp.asarray([hz0], jnp.float32), DELAY)[0])
        out = out + gain * np.real(np.outer(response, response.conj())) / 2
    return out


@pytest.mark.parametrize("nodes", SETS)
def test_connectivity_in_a_band_is_the_integral_of_the_density(own, nodes):
    band = in_band(BAND, noise=NOISE, delay=DELAY)
    model = decompose(jnp.asarray(own, jnp.float32), band)
    for kind in ("coupling", "local"):
        expected = correlation(in_band_by_hand(changed(own, nodes, kind, 0.4)))
        assert_allclose(intervene(model, band, jnp.array(nodes), kind, jnp.float32(0.4)), expected, atol=1e-4)
    inside = np.isin(np.arange(K), nodes).astype(float)
    found = intervene(model, band, jnp.array(nodes), "forcing", jnp.float32(1.5))
    assert_allclose(found, correlation(in_band_by_hand(own, 1.5 * inside)), atol=1e-4)


@pytest.mark.parametrize("kind", ["coupling", "local"])
def test_stability_is_lost_at_the_limit_and_refused_beyond(own, kind):
    plain = all_frequencies()
    model = decompose(jnp.asarray(own, jnp.float32), plain)
    nodes = jnp.array([1, 5, 7])
    low, high = (float(x) for x in limits(model, nodes, kind))
    edge = high if kind == "coupling" else low
    largest = np.linalg.eigvalsh(changed(own, [1, 5, 7], kind, edge / 0.98))[-1]
    assert_allclose(largest, 0, atol=1e-4)
    assert np.isfinite(intervene(model, plain, nodes, kind, jnp.float32(edge))).all()
    assert np.isnan(intervene(model, plain, nodes, kind, jnp.float32(edge / 0.97))).all()


@pytest.mark.parametrize("kind", ["coupling", "local", "forcing"])
def test_amplitudes_reach_the_cap_or_the_limit(own, kind):
    model = decompose(jnp.asarray(own, jnp.float32), in_band())
    nodes = jnp.array([1, 5, 7])
    for amplitude, bound in zip(amplitudes_at(model, nodes, kind, 0.3), limits(model, nodes, kind), strict=True):
        spent = float(energy(model, nodes, kind, amplitude))
        assert spent <= 0.3 + 1e-4
        assert abs(spent - 0.3) < 1e-3 or float(amplitude) == pytest.approx(float(bound))


def test_an_intervention_without_amplitude_changes_nothing(own):
    plain = all_frequencies()
    model = decompose(jnp.asarray(own, jnp.float32), plain)
    for kind in ("coupling", "local", "forcing"):
        assert_allclose(intervene(model, plain, jnp.array([2]), kind, jnp.float32(0)), correlation(np.linalg.inv(-own)), atol=1e-5)
