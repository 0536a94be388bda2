"""Bins of a band: against numpy, scipy and nilearn; gaps, padding, held-out time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.dynamics.spectra import Spectra, frequency_bins, last_held_out, power_gain, scale_of, spectra, standardise


def signals(parcels=3, frames=150, seed=0):
    return np.random.default_rng(seed).normal(size=(parcels, frames)).astype(np.float32)


def test_bins_are_those_of_the_detrended_transform():
    x, tr = signals() + np.linspace(0, 50, 150, dtype=np.float32), 2.0
    found = spectra(x, frequency_bins(np.ones(150, bool), tr))
    hz = np.fft.rfftfreq(150, tr)
    inside = (hz >= 0.009) & (hz <= 0.1)
    dft = np.fft.rfft(scipy.signal.detrend(np.float64(x)), axis=1)[:, inside] / np.sqrt(150)
    assert_allclose(found.frequency, hz[inside], rtol=1e-6)
    assert_allclose(np.asarray(found.dft), np.stack([dft.real.T, dft.imag.T], 1), atol=1e-4)
    assert_array_equal(found.weight, 1)


def test_segments_between_gaps_have_bins_of_their_own_and_short_ones_are_dropped_and_counted():
    x, kept = signals(frames=200), np.ones(200, bool)
    kept[80:84] = kept[98:102] = False  # 80, 14 and 98 frames at 2 s
    bins = frequency_bins(kept, 2.0)
    x[:, ~kept] = 1e6
    found = spectra(x, bins)
    first, last = spectra(x[:, :80], frequency_bins(np.ones(80, bool), 2.0)), spectra(x[:, 102:], frequency_bins(np.ones(98, bool), 2.0))
    assert int(bins.dropped) == 1
    assert_allclose(found.frequency, np.r_[first.frequency, last.frequency])
    assert_allclose(found.dft, np.concatenate([first.dft, last.dft]), atol=1e-4)


def test_short_gaps_are_bridged_by_a_line():
    x, kept = signals(frames=200), np.ones(200, bool)
    kept[[40, 41, 120, 121, 122]] = False
    drawn = np.stack([np.interp(np.arange(200), np.flatnonzero(kept), row[kept]) for row in x])
    expected = spectra(drawn.astype(np.float32), frequency_bins(np.ones(200, bool), 2.0))
    found = frequency_bins(kept, 2.0)
    x[:, ~kept] = 1e6
    assert int(found.dropped) == 0
    assert_allclose(spectra(x, found).dft, expected.dft, atol=1e-4)


def test_frames_say_where_a_recording_was_cut():
    x, kept = signals(frames=200), np.ones(200, bool)
    kept[60:70] = False
    whole = spectra(x, frequency_bins(kept, 2.0))
    cut = spectra(x[:, kept], frequency_bins(np.ones(190, bool), 2.0, frames=np.flatnonzero(kept)))
    assert_allclose(whole.dft, cut.dft, atol=1e-5)


def test_padded_plans_stack_and_vmap():
    masks = [np.ones(200, bool), np.r_[np.ones(90, bool), False, np.ones(109, bool)]]
    plans = [frequency_bins(m, 2.0, size=40) for m in masks]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *plans)
    x = signals(frames=200)
    wave = jax.vmap(spectra, (None, 0))(x, stacked)
    for i, mask in enumerate(masks):
        alone = spectra(x, frequency_bins(mask, 2.0))
        n = len(alone.frequency)
        assert_allclose(wave.dft[i, :n], alone.dft, atol=1e-5)
        assert_array_equal(wave.weight[i], np.r_[np.ones(n), np.zeros(40 - n)])
        assert_array_equal(wave.dft[i, n:], 0)


@pytest.mark.parametrize("filtered", [(0.009, 0.1), (0.01, None), (None, 0.08), (None, None)])
def test_the_gain_is_that_of_the_filter_run_forward_and_backward(filtered):
    from nilearn.signal import butterworth

    frames, tr = 4000, 2.0
    impulse = np.zeros((frames, 1))
    impulse[frames // 2] = 1
    if filtered != (None, None):
        impulse = butterworth(impulse, 1 / tr, high_pass=filtered[0], low_pass=filtered[1], padlen=0)
    hz = np.fft.rfftfreq(frames, tr)[1:-1]
    measured = np.abs(np.fft.rfft(impulse[:, 0]))[1:-1] ** 2
    assert_allclose(power_gain(hz, tr, filtered), measured, atol=2e-3)


def test_a_filter_is_divided_out_and_bins_it_spoiled_are_left_out():
    from nilearn.signal import butterworth

    x = signals(frames=2000)
    raw = spectra(x, frequency_bins(np.ones(2000, bool), 2.0))
    filtered = butterworth(np.float64(x.T), 0.5, high_pass=0.02, low_pass=0.08).T.astype(np.float32)
    bins = frequency_bins(np.ones(2000, bool), 2.0, filtered=(0.02, 0.08))
    assert (bins.gain >= 0.5).all() and 0.02 <= bins.frequency[0] < 0.024 and 0.075 < bins.frequency[-1] <= 0.08
    found = spectra(filtered, bins)
    same = np.isin(np.asarray(raw.frequency), bins.frequency)
    power = [np.square(s).sum((0, 1)) for s in (np.asarray(found.dft), np.asarray(raw.dft)[same])]
    assert_allclose(power[0] / power[1], 1, atol=0.02)
    assert_allclose(found.dft, np.asarray(raw.dft)[same], atol=0.15)  # the ends of the recording are not those of a circle


def test_standardised_signals_have_power_1_and_empty_ones_stay_0():
    x = signals()
    x[1] = 0
    x[2] *= 30
    found = spectra(x, frequency_bins(np.ones(150, bool), 2.0, size=40))
    made = standardise(found)
    assert_allclose(scale_of(made._replace(dft=made.dft[:, :2]))[jnp.arange(len(x)) != 1], 1, rtol=1e-5)
    assert_array_equal(made.dft[:, :, 1], 0)
    slope = jax.grad(lambda d: jnp.square(standardise(found._replace(dft=d)).dft[:3]).sum())(found.dft)
    assert np.isfinite(slope).all()
    assert_allclose(standardise(found, 2 * scale_of(found)).dft * 2, standardise(found).dft, rtol=1e-5)


def test_a_mean_that_was_removed_has_the_power_of_a_direction_on_the_average():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 400)) + 1.5 * rng.normal(size=400)).astype(np.float32)
    bins = frequency_bins(np.ones(400, bool), 2.0)
    whole = standardise(spectra(x, bins))
    assert_array_equal(whole.dft[:, 2], 0)  # it is there, and stays as it is
    rest = standardise(spectra(x - x.mean(0), bins))
    gram = np.einsum("f,fnk,fnl->kl", np.asarray(rest.weight), *(np.asarray(rest.dft[:, :2], np.float64),) * 2)
    filled = np.einsum("f,fnk,fnl->kl", np.asarray(rest.weight), *(np.asarray(rest.dft, np.float64),) * 2)
    one = np.ones(8) / np.sqrt(8)
    assert one @ gram @ one < 0.1 * np.trace(gram) / 8
    assert_allclose(one @ filled @ one, np.trace(gram) / 8, rtol=1e-4)
    apart = np.eye(8) - np.outer(one, one)
    assert_allclose(apart @ filled @ apart, apart @ gram @ apart, atol=1e-3)  # no other direction changes
    assert np.linalg.eigvalsh(filled)[0] > 100 * np.linalg.eigvalsh(gram)[0]
    for signals_ in (x, x - x.mean(0)):
        slope = jax.grad(lambda y: jnp.square(standardise(spectra(y, bins)).dft).sum())(jnp.asarray(signals_))
        assert np.isfinite(slope).all()


def test_the_last_fifth_of_the_kept_time_is_held_out():
    kept = np.ones(120, bool)
    kept[10:30] = False
    first, last = last_held_out(kept)
    assert first.sum() == 80 and last.sum() == 20
    assert_array_equal(first | last, kept)
    assert np.flatnonzero(first).max() < np.flatnonzero(last).min()


def test_a_recording_that_is_too_short_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match=r"at least 8 bins, found 6 in 30 of 50 frames of 2 s \(1 segments, 1 shorter"):
        frequency_bins(np.r_[np.ones(30, bool), np.zeros(4, bool), np.ones(16, bool)], 2.0)
    with pytest.raises(ValueError, match="at least 8 bins, found 0"):
        frequency_bins(np.zeros(50, bool), 2.0)
    with pytest.raises(ValueError, match="at most size = 10 bins, found"):
        frequency_bins(np.ones(200, bool), 2.0, size=10)
    with pytest.raises(ValueError, match="ascending"):
        frequency_bins(np.ones(200, bool), 2.0, (0.1, 0.009))
    with pytest.raises(ValueError, match=r"T = 200 frames, got shape \(3, 150\)"):
        spectra(signals(), frequency_bins(np.ones(200, bool), 2.0))


def test_spectra_are_a_tree_of_arrays():
    assert all(hasattr(x, "shape") for x in jax.tree.leaves(spectra(signals(), frequency_bins(np.ones(150, bool), 2.0))))
    assert Spectra._fields == ("frequency", "dft", "weight")
