"""Forecasts: stable, right on dynamics that are known, and scored on frames that were not fitted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pnet_jax.dynamics.forecast import fit_transition, forecast_r2


def recording(step, seed, frames=400):
    rng = np.random.default_rng(seed)
    y = np.zeros((len(step), frames))
    y[:, 0] = rng.normal(size=len(step))
    for t in range(1, frames):
        y[:, t] = step @ y[:, t - 1] + 0.3 * rng.normal(size=len(step))
    return y


def known_step():
    angle = 0.3
    block = 0.95 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.block([[block, 0.2 * np.eye(2)], [np.zeros((2, 2)), 0.7 * np.eye(2)]])


def test_a_group_fit_recovers_the_step_and_foresees_held_out_signals_as_well_as_the_truth():
    step = known_step()
    found = fit_transition([recording(step, s) for s in range(8)], ridge=1e-6)
    assert_allclose(found, step, atol=0.05)
    held_out = recording(step, 100)
    fitted, best = forecast_r2(np.float32(found), np.float32(held_out)), forecast_r2(np.float32(step), np.float32(held_out))
    assert_allclose(fitted, best, atol=0.01)
    assert (np.diff(best) < 0).all() and best[0] > 0.6


def test_a_fit_to_growing_signals_is_stable():
    y = np.exp(0.1 * np.arange(60))[None, :] * np.array([[1.0], [2.0], [-1.0]]) + np.random.default_rng(0).normal(size=(3, 60))
    assert np.abs(np.linalg.eigvals(fit_transition([y], ridge=1e-8))).max() <= 0.999 + 1e-9


def test_frames_that_do_not_count_change_nothing():
    y, kept = recording(known_step(), 0), np.ones(400, bool)
    kept[100:120] = False
    spoiled = np.where(kept, y, 1e3)
    assert_allclose(fit_transition([spoiled], [kept]), fit_transition([np.where(kept, y, 0)], [kept]))
    step = np.float32(known_step())
    assert_allclose(forecast_r2(step, np.float32(spoiled), kept), forecast_r2(step, np.float32(np.where(kept, y, 0)), kept), rtol=1e-5)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"the same D, got D = \[2, 3\]"):
        fit_transition([np.zeros((2, 9)), np.zeros((3, 9))])
    with pytest.raises(ValueError, match="one pair of consecutive kept frames, got none"):
        fit_transition([np.zeros((2, 4))], [np.array([True, False, True, False])])
    with pytest.raises(ValueError, match="T = 5, got 5"):
        forecast_r2(np.eye(2), np.zeros((2, 5)), horizon=5)
