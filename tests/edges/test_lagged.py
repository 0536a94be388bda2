"""Lags against scipy and numpy; gaps are not crossed."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import correlate, correlation_lags
from tolerance import rounding

from pnet_jax.edges.lagged import _best, best_lag, lagged

TR = 2.0


def delayed(delays, frames=120, seed=0, noise=0.3):
    """One source, seen later by each delay in frames."""
    rng = np.random.default_rng(seed)
    source = np.convolve(rng.normal(size=frames + 40), [1, 2, 1], "same")
    x = np.stack([source[20 - d : 20 - d + frames] for d in delays])
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32)


def by_numpy(x, frames, most):
    """Largest of numpy's correlations over pairs of frames that exist, and its lag, one pair of parcels at a time."""
    at, parcels = {int(f): i for i, f in enumerate(frames)}, len(x)
    r, lag = np.eye(parcels), np.zeros((parcels, parcels))
    for k, m in zip(*np.nonzero(~np.eye(parcels, dtype=bool)), strict=True):
        for tau in sorted(range(-most, most + 1), key=abs):
            pairs = [(i, at[f + tau]) for f, i in at.items() if f + tau in at]
            if len(pairs) >= len(frames) / 2:
                found = np.corrcoef(x[k, [i for i, _ in pairs]], x[m, [j for _, j in pairs]])[0, 1]
                if tau == 0 or abs(found) > abs(r[k, m]):
                    r[k, m], lag[k, m] = found, tau
    return r, lag


@pytest.mark.parametrize("scrubbed", [False, True])
def test_it_equals_numpy_over_the_pairs_of_kept_frames(scrubbed):
    x = np.float64(delayed([0, 1, -2, 0], frames=60, noise=1.0))
    frames = np.delete(np.arange(60), [7, 8, 9, 30, 31, 50]) if scrubbed else np.arange(60)
    r, lag = by_numpy(x[:, frames], frames, 3)
    found = best_lag(np.float32(x[:, frames]), tr=TR, frames=frames + 11, seconds=6.0)
    assert_allclose(found.r, r, rtol=0, atol=rounding(60))
    assert_allclose(found.lag, TR * lag)


def test_the_lag_is_that_of_scipy_s_cross_correlation():
    x = delayed([0, 3], frames=300)
    z = x - x.mean(1, keepdims=True)
    lags = correlation_lags(300, 300)
    near = np.abs(lags) <= 5
    expected = lags[near][np.abs(correlate(z[1], z[0])[near]).argmax()]
    assert expected == 3
    assert_allclose(best_lag(x, tr=TR, seconds=10).lag, [[0, 6], [-6, 0]])


def test_r_is_symmetric_and_lags_antisymmetric_with_signs_kept():
    x = delayed([0, 2, 1, -1])
    x[2] *= -1
    r, lag = best_lag(x, tr=TR)
    assert_array_equal(r, r.T)
    assert_array_equal(lag, -lag.T)
    assert_array_equal(np.diag(r), 1)
    assert r[0, 2] < -0.8 < 0.8 < r[0, 1]


def test_without_lags_it_is_pearson_s_r():
    x = delayed([0, 2, 1])
    assert_allclose(best_lag(x, tr=TR, seconds=1.9).r, np.corrcoef(x), rtol=0, atol=rounding(x.shape[1]))


def test_what_stands_beyond_a_gap_is_not_related_to_what_stands_before():
    rng = np.random.default_rng(5)
    source = rng.normal(size=200)
    frames = np.flatnonzero(np.arange(200) % 2 == 0)  # every second frame was left out
    x = np.stack([source[frames], np.roll(source[frames], 1)]).astype(np.float32)
    close, far = best_lag(x, tr=1.0, frames=frames, seconds=1.0), best_lag(x, tr=1.0, frames=frames, seconds=2.0)
    assert abs(close.r[0, 1]) < 0.3  # no two kept frames lie one second apart
    assert far.r[0, 1] > 0.99
    assert far.lag[0, 1] == 2


def test_a_lag_with_few_pairs_does_not_count():
    x = delayed([0, 15], frames=24, noise=0.01)
    assert np.abs(best_lag(x, tr=TR, seconds=46).lag).max() <= 12 * TR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tr": 0.0}, "tr must be above 0 s, got 0.0"),
        ({"tr": 2.0, "seconds": -1}, "seconds must be at least 0, got -1"),
        ({"tr": 2.0, "frames": np.zeros(120, int)}, "frames must be 120 ascending indices"),
        ({"tr": 2.0, "frames": np.arange(5)}, "frames must be 120 ascending indices"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        best_lag(delayed([0, 1]), **arguments)


def test_the_measure_is_the_best_lag_s_correlation_and_memory_does_not_grow_with_lags():
    x = delayed([0, 1, 2])
    assert_array_equal(lagged(x, tr=TR, frames=np.arange(120)), best_lag(x, tr=TR).r)

    def temp(most):
        shapes = (jax.ShapeDtypeStruct((50, 200), np.float32), jax.ShapeDtypeStruct((200,), np.float32))
        return _best.lower(*shapes, most=most).compile().memory_analysis().temp_size_in_bytes

    assert temp(12) < 1.3 * temp(3)
