"""Power against scipy, and what the tokens of a location must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.encoder.tokens import FREQUENCIES, LEAST_POWER, POSITIONS, TAPERS, Segments, log_power, position_features, signal_features

V, T, TR = 12, 250, 2.0  # 500 s: every frequency is a bin of the FFT


def signals(seed=0, frames=T):
    return np.random.default_rng(seed).normal(size=(V, frames)).astype(np.float32)


def power_of(y, kept, tr):
    """Of frames that follow each other."""
    return log_power(y, kept, np.arange(len(kept)), tr)


def test_the_batch_has_the_fields_that_were_agreed():
    assert Segments._fields == ("y", "kept", "frames", "references", "xyz", "hemisphere", "counted", "log_tsnr", "tr", "record")


def test_power_equals_scipy():
    y = signals()
    unit = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    n = np.arange(1, T + 1)
    tapers = [np.sqrt(2 / (T + 1)) * np.sin(np.pi * k * n / (T + 1)) for k in range(1, TAPERS + 1)]
    grid, _ = scipy.signal.periodogram(unit, 1 / TR)
    # scipy divides by the energy of a boxcar, T; these tapers have energy 1.
    power = np.mean([T * scipy.signal.periodogram(unit * a[None], 1 / TR, detrend=False)[1] for a in tapers], 0)
    at = np.abs(grid[None] - FREQUENCIES[:, None]).argmin(1)
    assert_allclose(grid[at], FREQUENCIES, atol=1e-6)
    found, present = power_of(y, np.ones(T, bool), TR)
    assert present.all()
    assert_allclose(found, np.log(power[:, at] + LEAST_POWER), atol=1e-3)


def test_the_density_of_white_noise_is_that_of_its_variance():
    found, _ = power_of(np.random.default_rng(3).normal(size=(400, T)).astype(np.float32), np.ones(T, bool), TR)
    assert_allclose(np.exp(found).mean(), 2 * TR, rtol=0.05)


@pytest.mark.parametrize("tr", [0.7, 2.0, 3.0])
def test_an_oscillation_is_found_at_its_frequency_at_any_tr(tr):
    frames = round(300 / tr)
    y = np.sin(2 * np.pi * FREQUENCIES[:, None] * tr * np.arange(frames)[None] + 1).astype(np.float32)
    found, present = power_of(y, np.ones(frames, bool), tr)
    # The power of three tapers is spread over a bin and a little of the next.
    assert (np.abs(np.asarray(found)[present].argmax(1) - np.arange(len(FREQUENCIES))[present]) <= 1).all()


@pytest.mark.parametrize("before", [0, 7, 50])
def test_padding_changes_nothing(before):
    y, frames = signals(frames=200), 260
    kept = np.zeros(frames, bool)
    kept[before : before + 200] = True
    padded = np.full((V, frames), 100, np.float32)
    padded[:, kept] = y
    assert_allclose(power_of(padded, kept, TR)[0], power_of(y, np.ones(200, bool), TR)[0], atol=1e-4)
    assert_array_equal(power_of(padded, kept, TR)[1], power_of(y, np.ones(200, bool), TR)[1])


def scrubbed(frames=300, share=0.25, seed=5):
    """Frames that are left where some were scrubbed, in runs of a few as motion does it."""
    rng = np.random.default_rng(seed)
    kept = np.ones(frames, bool)
    while kept.mean() > 1 - share:
        start = rng.integers(5, frames - 10)
        kept[start : start + rng.integers(1, 6)] = False
    return np.flatnonzero(kept)


def test_an_oscillation_keeps_its_frequency_and_power_across_scrubbed_frames():
    frames = scrubbed()
    y = np.sin(2 * np.pi * FREQUENCIES[2:, None] * TR * np.arange(300)[None] + 1).astype(np.float32)
    whole, _ = power_of(y, np.ones(300, bool), TR)
    found, _ = log_power(y[:, frames], np.ones(len(frames), bool), frames, TR)
    glued, _ = power_of(y[:, frames], np.ones(len(frames), bool), TR)
    at = np.arange(len(y)), np.arange(len(y)) + 2
    assert_array_equal(np.asarray(found).argmax(1), at[1])
    # The power of a line is that of the frames that are left; what is missing of it leaks to all frequencies alike.
    assert_allclose(np.asarray(found)[at], np.asarray(whole)[at] + np.log(len(frames) / 300), atol=0.15)
    assert (np.asarray(glued)[at] < np.asarray(whole)[at] - 1).mean() > 0.5  # what comes of taking the frames for neighbours


def test_gaps_do_not_bias_the_density_of_noise():
    frames = scrubbed()
    y = np.random.default_rng(3).normal(size=(400, len(frames))).astype(np.float32)
    assert_allclose(np.exp(log_power(y, np.ones(len(frames), bool), frames, TR)[0]).mean(), 2 * TR, rtol=0.05)


def test_a_scrubbed_frame_is_as_one_that_does_not_count():
    frames, y = scrubbed(), signals(frames=300)
    kept = np.isin(np.arange(300), frames)
    ours, theirs = log_power(y[:, frames], np.ones(len(frames), bool), frames + 40, TR), power_of(y, kept, TR)
    assert_allclose(ours[0], theirs[0], atol=1e-4)
    assert_array_equal(ours[1], theirs[1])


def test_unit_and_level_change_nothing():
    y = signals()
    assert_allclose(power_of(30 * y + 5, np.ones(T, bool), TR)[0], power_of(y, np.ones(T, bool), TR)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("frames", "tr", "expected"),
    [
        (100, 6.0, FREQUENCIES < 1 / 12),
        (30, 2.0, FREQUENCIES >= 2 / 60),
        (0, 2.0, False),
        *((round(200 / tr), tr, True) for tr in (0.8, 1.0, 1.6, 2.0)),  # 200 s say something of .01 Hz, the first bin, to the digit
        (100, 5.0, np.arange(16) < 15),  # .1 Hz, the last bin, is Nyquist
    ],
)
def test_bins_above_nyquist_or_below_the_resolution_are_0_and_said_to_be_absent(frames, tr, expected):
    y = signals()
    power, present = power_of(y, np.arange(T) < frames, tr)
    assert_array_equal(present, np.broadcast_to(expected, 16))
    assert_array_equal(np.asarray(power)[:, ~np.asarray(present)], 0)
    assert (np.asarray(power)[:, np.asarray(present)] != 0).all()


def test_a_dead_location_has_the_least_power():
    assert_allclose(power_of(np.ones((2, T), np.float32), np.ones(T, bool), TR)[0], np.log(LEAST_POWER), rtol=1e-5)


def test_places_are_waves_of_8_to_160_mm():
    xyz = np.random.default_rng(1).uniform(-70, 70, (9, 3)).astype(np.float32)
    found = np.asarray(position_features(xyz))
    assert found.shape == (9, POSITIONS)
    coordinates = np.c_[xyz, np.abs(xyz[:, :1])].astype(np.float64)
    phase = 2 * np.pi * coordinates[:, :, None] / np.geomspace(8, 160, 32)
    assert_allclose(found, np.concatenate([np.sin(phase), np.cos(phase)], 1).reshape(9, -1), atol=2e-5)


def test_homotopic_places_share_all_but_the_sine_of_x():
    here = np.array([[30, -20, 40]], np.float32)
    both = np.asarray(position_features(np.concatenate([here, here * np.array([[-1, 1, 1]], np.float32)])))
    assert_array_equal(np.flatnonzero(~np.isclose(both[0], both[1], atol=1e-6)) < 32, True)


def test_a_token_is_components_power_bins_and_tsnr():
    x, y, tsnr = np.ones((V, 3), np.float32), signals(), np.arange(V, dtype=np.float32)
    found = np.asarray(signal_features(x, y, np.ones(T, bool), np.arange(T), TR, tsnr))
    power, present = power_of(y, np.ones(T, bool), TR)
    expected = np.concatenate([x, power, np.broadcast_to(present, power.shape), tsnr[:, None]], 1)
    assert_allclose(found, expected, atol=1e-5)
