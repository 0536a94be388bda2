"""Sliding windows against numpy, states against scikit-learn, the null against static signals."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from tolerance import rounding

from pnet_jax.edges.dynamic import Windows, _variance, dynamic_variability, phase_randomised, states, static_null, taper, windows

TR = 2.0


def smooth(parcels=4, frames=150, seed=0):
    rng = np.random.default_rng(seed)
    noise = np.apply_along_axis(np.convolve, 1, rng.normal(size=(parcels, frames + 2)), [1, 2, 1], "valid")
    return (noise + 0.5 * noise[:1] + 3).astype(np.float32)


def switching(seed=0, visits=6, length=50):
    """Parcels 0 and 1 go together, then against each other, and so on."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, visits * length))
    sign = np.where(np.arange(visits * length) // length % 2 == 0, 1, -1)
    x[1] = sign * x[0] + 0.3 * x[1]
    return x.astype(np.float32)


def by_numpy(x, kept, weights, ends):
    """Weighted correlation window by window in float64."""
    x, kept = np.pad(np.float64(x), ((0, 0), (ends, ends))), np.pad(kept, ends)
    out = {}
    for start in range(len(kept) - len(weights) + 1):
        w = weights * kept[start : start + len(weights)]
        if w.sum() >= weights.sum() / 2 * (1 - 1e-9):  # exactly half, by symmetry, is enough however it is rounded
            c = np.cov(x[:, start : start + len(weights)], aweights=w, ddof=0)
            out[start] = c / np.sqrt(np.outer(np.diag(c), np.diag(c)))
    return out


def test_the_taper_is_as_long_at_half_its_height_as_asked_and_symmetric():
    weights = taper(2.0)
    assert (weights >= 0.5).sum() == 22
    assert len(weights) == 22 + 18
    assert_array_equal(weights, weights[::-1])
    assert_array_equal(taper(2.0, 20.0, 0.0), np.ones(10))


@pytest.mark.parametrize("gap", [(), tuple(range(40, 70))])
def test_windows_and_their_variance_equal_numpy(gap):
    x, kept = smooth(), ~np.isin(np.arange(150), gap)
    frames = np.flatnonzero(kept)
    expected = by_numpy(x, np.float64(kept), np.float64(taper(TR)), 9)
    found = windows(x[:, frames], tr=TR, frames=frames)
    assert_array_equal(found.at, list(expected))
    r = np.stack(list(expected.values()))
    # Second moments are up to three times what is left of them when the mean of 3 is taken off.
    assert_allclose(found.edges, r, rtol=0, atol=rounding(40, condition=3))
    variance = np.var(np.arctanh(np.clip(r, None, 1 - 1e-6)), axis=0, ddof=1)
    assert_allclose(
        dynamic_variability(x[:, frames], tr=TR, frames=frames), variance * (1 - np.eye(4)), rtol=1e-3, atol=rounding(len(expected))
    )
    assert (len(expected) < 129) == bool(gap)


@pytest.mark.parametrize(("tr", "sigma"), [(TR, 6.0), (0.72, 6.0), (1.5, 4.0), (TR, 0.0)])
def test_a_window_with_exactly_half_of_its_weight_on_kept_frames_is_used(tr, sigma):
    """Its centre lies at the edge of a long gap; one frame further it has less."""
    length = 2 * (len(taper(tr, sigma=sigma)) // 2)
    seconds = 44.0 if len(taper(tr, sigma=sigma)) == length else 44.0 + tr  # of an even number of frames: no frame is the centre
    weights = taper(tr, seconds, sigma)
    ends = (len(weights) - round(seconds / tr)) // 2
    frames = np.concatenate([np.arange(200), np.arange(500, 700)])
    found = windows(smooth(frames=400), tr=tr, frames=frames, seconds=seconds, sigma=sigma).at
    half = len(weights) // 2
    assert len(weights) == 2 * half
    last, first = 200 - half + ends, 500 - half + ends
    assert_array_equal(found, np.r_[0 : last + 1, first : 700 - round(seconds / tr) + 1])


def test_rectangular_windows_are_numpy_s_correlation():
    x = smooth()
    found = windows(x, tr=TR, seconds=30, sigma=0)
    assert_allclose(found.edges[7], np.corrcoef(x[:, 7:22]), atol=1e-5)
    assert len(found.at) == 150 - 15 + 1


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (20, {}, "sliding windows of 44 s need a longer recording, got 40 s"),
        (150, {"seconds": 4}, "a window must have at least 4 frames"),
        (150, {"frames": np.arange(150) * 5}, "with half of their 44 s kept, got 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(frames, arguments, message):
    with pytest.raises(ValueError, match=message):
        windows(smooth(frames=frames), tr=TR, **arguments)


def test_variability_holds_no_table_of_windows():
    frames, weights = 400, taper(TR)
    shape = jax.ShapeDtypeStruct
    recording = jax.tree.map(lambda s: shape(s, np.float32), ((60, frames), (frames,)), is_leaf=lambda s: isinstance(s[0], int))
    starts = shape((frames - len(weights) + 1,), np.int32)
    from pnet_jax.edges._clock import TimedSignals

    used = (
        _variance.lower(TimedSignals(*recording), shape(weights.shape, np.float32), starts).compile().memory_analysis().temp_size_in_bytes
    )
    assert used < 4 * 60 * 60 * len(range(*starts.shape)) / 4


@pytest.mark.parametrize("frames", [150, 151])
def test_surrogates_have_the_same_spectra_and_static_connectivity(frames):
    x = smooth(frames=frames)
    found = np.asarray(phase_randomised(jax.random.key(0), x))
    assert_allclose(np.abs(np.fft.rfft(found)), np.abs(np.fft.rfft(x)), rtol=1e-3, atol=1e-2)
    assert_allclose(np.cov(found), np.cov(x), rtol=1e-3, atol=1e-3)
    assert np.abs(found - x).max() > 1


def test_the_null_explains_static_signals_and_not_switching_ones():
    static = static_null(jax.random.key(1), smooth(frames=200), tr=TR, surrogates=20)
    upper = np.triu_indices(4, 1)
    assert_allclose(static.observed[upper].mean(), static.mean[upper].mean(), rtol=0.35)
    assert np.median(static.p[upper]) > 0.1
    assert np.isnan(np.diag(static.p)).all()
    moving = static_null(jax.random.key(1), switching(), tr=TR, surrogates=20)
    assert moving.p[0, 1] == np.float32(1 / 21)
    assert moving.observed[0, 1] > moving.mean[0, 1] + 5 * moving.sd[0, 1]
    assert moving.p[0, 2] > 1 / 21
    with pytest.raises(ValueError, match="surrogates must be at least 2, got 1"):
        static_null(jax.random.key(1), smooth(), tr=TR, surrogates=1)


def test_states_find_the_switches_and_how_long_they_last():
    one, other = (windows(switching(seed), tr=TR) for seed in (0, 1))
    found = states([one, other], 2)
    assert sorted(found.centres[:, 0, 1].round()) == [-1, 1]
    assert_allclose(found.occupancy.sum(1), 1)
    assert_allclose(found.occupancy, 0.5, atol=0.12)
    assert_allclose(found.dwell, 100, rtol=0.25)
    assert_allclose(found.transitions.sum(2), 1)
    assert found.transitions[:, 0, 1].max() < 0.05
    assert [len(part) for part in found.labels] == [len(one.at), len(other.at)]
    again = states([one, other], 2)
    assert_array_equal(again.labels[1], found.labels[1])


def test_k_means_is_no_worse_than_scikit_learn_s():
    edges = [windows(smooth(6, 200, seed), tr=TR) for seed in (0, 1)]
    upper = np.triu_indices(6, 1)
    z = np.concatenate([np.arctanh(one.edges[:, *upper]) for one in edges])
    expected = KMeans(4, n_init=20, random_state=0).fit(z)
    found = states(edges, 4, starts=20)
    assert_allclose(found.inertia, expected.inertia_, rtol=0.01)
    label = np.concatenate(found.labels)
    centres = np.stack([z[label == m].mean(0) for m in range(4)])
    assert_allclose(found.centres[:, *upper], np.tanh(centres), atol=1e-4)
    assert (np.diff(np.bincount(label)) <= 0).all()


def test_of_equally_frequent_states_the_first_seen_is_first():
    turns = np.arange(20) // 5 % 2
    for begins in (0.8, -0.2):
        r = np.where(turns == 0, begins, 0.6 - begins)[:, None, None] * np.ones((20, 3, 3))
        one = Windows(r.astype(np.float32), np.arange(20), TR)
        for seed in range(4):
            assert_array_equal(states([one], 2, seed=seed).labels[0], turns)


def test_visits_end_where_windows_were_left_out():
    edges = np.ones((6, 2, 2), np.float32) * np.array([0.9, 0.9, 0.9, -0.9, -0.9, 0.9], np.float32)[:, None, None]
    found = states([Windows(edges, np.array([0, 1, 5, 6, 7, 9]), 2.0)], 2)
    assert_allclose(found.occupancy, [[4 / 6, 2 / 6]])
    assert_allclose(found.dwell, [[2 * 4 / 3, 4]])  # visits of 2, 1 and 1 windows, and one of 2
    assert_allclose(found.transitions, [[[0.5, 0.5], [0, 1]]])


def test_absent_parcels_stay_nan_in_states():
    x = switching()
    x = np.concatenate([x, np.full((1, x.shape[1]), np.nan, np.float32)])
    found = states([windows(x, tr=TR)], 2)
    assert np.isnan(found.centres[:, 3]).all()
    assert np.isfinite(found.centres[:, :3, :3]).all()
    assert_array_equal(found.centres, found.centres.transpose(0, 2, 1))


def test_states_that_cannot_be_are_refused():
    one = windows(switching(), tr=TR)
    nothing = one._replace(edges=one.edges * np.nan)
    for given, count, message in (
        ([], 2, "got none"),
        ([one, windows(smooth(), tr=TR)], 2, "the same parcels and TR"),
        ([one], 10_000, "n_states must be from 1 to the"),
        ([nothing], 2, "an edge that is present in all windows"),
    ):
        with pytest.raises(ValueError, match=message):
            states(given, count)
