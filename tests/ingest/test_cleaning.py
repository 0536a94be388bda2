"""Cleaning: equal to nilearn, right where nilearn is not, and honest about what is left."""

import numpy as np
import pytest
from nilearn.signal import clean
from tolerance import rounding

from pnet_jax.config import CleaningConfig
from pnet_jax.ingest import load_scan
from pnet_jax.ingest.cleaning import Recording, apply_in_place, clean_recording, time_operator
from pnet_jax.space import point_space

from .helpers import FILTERED, TR, T, phantom, save_bold

BAND = dict(detrend=True, low_pass=0.1, high_pass=0.009)


def _series(n=300, n_frames=T, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(n, n_frames)), axis=1) + 3 * rng.normal(size=(n, n_frames)) + 500


def _plain(y, kept=None, confounds=None, **options):
    """nilearn on the whole array in float64, standardised as a Scan is."""
    cleaned = clean(y.T.copy(), t_r=TR, standardize=None, confounds=confounds, sample_mask=None if kept is None else kept.copy(), **options)
    return ((cleaned - cleaned.mean(0)) / cleaned.std(0)).T


def _ours(y, kept=None, confounds=None, cleaning=FILTERED, **options):
    space = point_space(np.random.default_rng(1).normal(size=(len(y), 3)) * 40)
    kept = np.arange(y.shape[1]) if kept is None else kept
    recording = Recording(y.astype(np.float32), space, TR, "sub-01 (x.nii)", [])
    return clean_recording(recording, kept=kept, confounds=confounds, cleaning=cleaning, **options)


@pytest.mark.parametrize("n_confounds", [0, 8])
@pytest.mark.parametrize("scrubbed", [(), (20, 21, 60, 88), (0, 1, 50, 129)])
@pytest.mark.parametrize(
    "options", [BAND, dict(detrend=True, low_pass=None, high_pass=None), dict(detrend=False, low_pass=0.1, high_pass=None)]
)
def test_equals_nilearn_on_the_whole_array(n_confounds, scrubbed, options):
    y = _series()
    confounds = np.cumsum(np.random.default_rng(5).normal(size=(T, n_confounds)), axis=0) if n_confounds else None
    kept = np.setdiff1d(np.arange(T), scrubbed)
    ours = _ours(y, kept, confounds, CleaningConfig(strategy=(), **options))
    if scrubbed and scrubbed[0] == 0 and options["low_pass"]:
        # nilearn shifts the frames where the first and the last are scrubbed alike; cutting them off first is what it means to do.
        y, confounds, kept = y[:, 2:129], None if confounds is None else confounds[2:129], kept - 2
    plain = _plain(y.astype(np.float32).astype(np.float64), kept if scrubbed else None, confounds, **options)
    np.testing.assert_allclose(ours.y, plain, rtol=0, atol=rounding(T, scale=np.abs(plain).max()))


@pytest.mark.parametrize("scrubbed", [(), (20, 21, 60)])
def test_signals_before_the_low_pass_are_those_of_a_cleaning_without_one(scrubbed):
    y = _series()
    y[3] = 5.0
    kept = np.setdiff1d(np.arange(T), scrubbed)
    both = _ours(y, kept, cleaning=CleaningConfig(strategy=(), wide=True, **BAND))
    np.testing.assert_array_equal(both.y, _ours(y, kept, cleaning=CleaningConfig(strategy=(), **BAND)).y)
    assert both.wide.dtype == np.float16 and not both.wide[3].any()
    alone = _ours(y, kept, cleaning=CleaningConfig(strategy=(), **{**BAND, "low_pass": None}, wide=True))
    np.testing.assert_allclose(both.wide, alone.y, atol=4e-3)
    assert alone.wide is None and both.cleaning["wide"] and not alone.cleaning["wide"]  # it is not filtered, once is enough


def test_scrubbed_frames_have_no_say():
    y = _series()
    kept = np.delete(np.arange(T), [30, 99])  # 30 and 129 − 30: nilearn 0.14 would leave both unfilled
    spoilt = y.copy()
    spoilt[:, [30, 99]] += 1e4
    np.testing.assert_array_equal(_ours(y, kept).y, _ours(spoilt, kept).y)


def test_scrubbing_keeps_the_right_frames(tmp_path):
    data = phantom()
    bad = [0, 1, 40, 41, 90]
    data[..., bad] += 500
    kept = np.delete(np.arange(T), bad)
    path = save_bold(tmp_path, data=data)
    by_position = load_scan(path, sample_mask=kept, cleaning=FILTERED)
    flags = np.ones(T, bool)
    flags[bad] = False
    by_flag = load_scan(path, sample_mask=flags, cleaning=FILTERED)
    np.testing.assert_array_equal(by_position.frames, kept)
    np.testing.assert_array_equal(by_position.y, by_flag.y)
    assert by_position.recorded == T and by_position.cleaning["scrubbed"] == 5
    i, j, k = by_position.space.grid.ijk.T
    raw = data[i, j, k].astype(np.float64)
    np.testing.assert_allclose(by_position.mean, raw[:, kept].mean(1), rtol=1e-5)
    plain = _plain(raw, kept, **BAND)
    np.testing.assert_allclose(by_position.y, plain, rtol=0, atol=rounding(T, scale=np.abs(plain).max()))


@pytest.mark.parametrize("mask", [np.ones(5, bool), np.array([3, 2, 1]), np.array([0, T]), np.array([0.5, 1.0]), np.ones((2, T), bool)])
def test_bad_sample_masks(tmp_path, mask):
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*sample_mask"):
        load_scan(save_bold(tmp_path), sample_mask=mask)


def test_too_little_left_after_scrubbing(tmp_path):
    with pytest.raises(ValueError, match=r"sub-01_task-rest.*20 of 130 frames are left.*min_frames"):
        load_scan(save_bold(tmp_path), sample_mask=np.arange(20))


def test_works_in_place_and_blocks_do_not_matter():
    y = _series(5000).astype(np.float32)
    kept = np.delete(np.arange(T), [5, 6])
    operator = time_operator(kept, tr=TR, confounds=None, **BAND)
    expected = (y[:, kept] - y[:, kept].mean(1, keepdims=True)) @ operator.T
    cleaned, _, std, *_ = apply_in_place(y, kept, operator)
    assert np.shares_memory(cleaned, y) and cleaned.flags.c_contiguous
    np.testing.assert_allclose(cleaned, (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(std, expected.std(1), rtol=1e-5)


def test_regressors_that_leave_nothing():
    confounds = np.random.default_rng(0).normal(size=(T, 60))
    with pytest.raises(ValueError, match=r"sub-01.*60 regressors.*degrees of freedom"):
        _ours(_series(), confounds=confounds)
    few = _ours(_series(), confounds=confounds[:, :41])
    assert any("degrees of freedom" in w for w in few.warnings)


def test_the_recording_says_what_was_done():
    done = _ours(_series(), cleaning=FILTERED).cleaning
    assert done["low_pass"] == 0.1 and done["high_pass"] == 0.009 and done["detrend"] and done["scrubbed"] == 0
    assert 2 * T * TR * 0.091 * 0.8 < done["degrees_of_freedom"] < 2 * T * TR * 0.091 * 1.2
