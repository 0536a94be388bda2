"""One cleaned recording: standardised over time, dead locations marked, halves that never touch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.scan import make_scan, some_frames, split, zscore_in_place
from pnet_jax.space import point_space

V, T = 7, 50


@pytest.fixture
def space():
    return point_space(np.random.default_rng(0).uniform(-60, 60, (V, 3)))


@pytest.fixture
def signals():
    return 900 + 5 * np.random.default_rng(1).normal(size=(V, T))


def test_signals_have_mean_0_and_spread_1(signals, space):
    scan = make_scan(signals, space, tr=2.0)
    assert scan.y.dtype == np.float32
    assert scan.valid.all()
    assert_allclose(scan.y, (signals - signals.mean(1, keepdims=True)) / signals.std(1, keepdims=True), atol=1e-3)
    assert_allclose(scan.mean, signals.mean(1), rtol=1e-6)
    assert_allclose(scan.std, signals.std(1), rtol=1e-4)


def test_the_given_array_is_left_alone(space):
    signals = np.random.default_rng(2).normal(size=(V, T)).astype(np.float32)
    before = signals.copy()
    make_scan(signals, space, tr=2.0)
    assert_array_equal(signals, before)


def test_unit_and_level_of_the_signals_do_not_matter(signals, space):
    a, b = make_scan(signals - 900, space, tr=2.0), make_scan(1e-3 * (signals - 900) + 0.5, space, tr=2.0)
    assert_allclose(a.y, b.y, atol=2e-3)


@pytest.mark.parametrize("dead", [0.0, 7.3, -1e4, np.nan, np.inf])
def test_constant_and_non_finite_rows_are_invalid_and_zero(signals, space, dead):
    signals[3] = dead
    scan = make_scan(signals, space, tr=2.0)
    assert_array_equal(scan.valid, np.arange(V) != 3)
    assert_array_equal(scan.y[3], 0)
    assert scan.mean[3] == 0
    assert scan.std[3] == 0


def test_one_nan_frame_makes_the_row_invalid_and_no_other(signals, space):
    signals[5, 17] = np.nan
    scan = make_scan(signals, space, tr=2.0)
    assert_array_equal(scan.valid, np.arange(V) != 5)
    assert np.isfinite(scan.y).all()


def test_blocks_do_not_change_the_standardisation(signals):
    whole, pieces = np.float32(signals), np.float32(signals)
    whole[2], pieces[2] = 4, 4
    for a, b in zip(zscore_in_place(whole), zscore_in_place(pieces, block=3), strict=True):
        assert_array_equal(a, b)
    assert_array_equal(whole, pieces)


def test_label_names_subject_session_task_and_run(signals, space):
    entities = {"run": "2", "task": "rest", "ses": "b", "space": "MNI152NLin6Asym", "acq": "x"}
    assert make_scan(signals, space, tr=2.0, subject="01", entities=entities).label == "sub-01_ses-b_task-rest_acq-x_run-2"


@pytest.mark.parametrize(
    ("shape", "tr", "message"),
    [
        ((V + 1, T), 2.0, rf"V = {V} locations, got shape \({V + 1}, {T}\)"),
        ((V,), 2.0, "y must be"),
        ((V, 2), 2.0, "at least 3 frames, got 2"),
        ((V, T), 0.0, "above 0 s, got 0"),
        ((V, T), float("nan"), "above 0 s, got nan"),
    ],
)
def test_a_scan_that_cannot_be_used_is_refused(space, shape, tr, message):
    with pytest.raises(ValueError, match=message):
        make_scan(np.random.default_rng(0).normal(size=shape), space, tr=tr)


def scrubbed(frames, tr, space):
    scan = make_scan(np.random.default_rng(0).normal(size=(V, len(frames))), space, tr=tr)
    return dataclasses.replace(scan, frames=np.asarray(frames), recorded=int(frames[-1]) + 1)


FRAMES = {
    "all": np.arange(300),
    "odd": np.arange(301),
    "few": np.arange(12),
    "scrubbed": np.setdiff1d(np.arange(300), [*range(40, 55), 120, 121, *range(200, 231)]),
    "hole in the middle": np.r_[np.arange(100), np.arange(220, 320)],
    "late start": np.arange(90, 400),
    "mostly scrubbed": np.sort(np.random.default_rng(3).permutation(600)[:150]),
}


@pytest.mark.parametrize("tr", [0.72, 2.0, 3.0])
@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_halves_never_overlap_and_leave_the_gap(space, frames, tr):
    scan = scrubbed(frames, tr, space)
    first, second = split(scan)
    gap = min(30.0 / tr, len(frames) / 10)  # in frames
    assert len(first)
    assert len(second)
    assert first.max() < second.min()
    assert frames[second.min()] - frames[first.max()] > gap - 1e-9
    left_out = np.setdiff1d(np.arange(len(frames)), np.r_[first, second])
    assert len(left_out) <= np.ceil(gap) + 1
    assert abs(len(first) - len(second)) <= gap + 2


def test_the_gap_is_30_s_of_a_long_scan(space):
    first, second = split(scrubbed(np.arange(300), 2.0, space))
    assert_array_equal(first, np.arange(143))
    assert_array_equal(second, np.arange(158, 300))


def test_the_gap_of_a_short_scan_shrinks_to_a_tenth_of_it(space):
    first, second = split(scrubbed(np.arange(40), 2.0, space))
    assert len(first) + len(second) >= 36


def test_some_frames_are_a_scan_of_their_own(signals, space):
    wide = np.arange(signals.size).reshape(signals.shape).astype(np.float16)
    scan = make_scan(signals, space, tr=2.0, wide=wide)
    columns = np.arange(5, 30)
    part = some_frames(scan, columns)
    assert_allclose(part.y[part.valid].mean(1), 0, atol=1e-5)
    assert_allclose(part.y[part.valid].std(1), 1, rtol=1e-4)
    assert_allclose(part.std, scan.std * scan.y[:, columns].std(1), rtol=1e-4)  # in the file's unit
    assert_array_equal(part.frames, scan.frames[columns])
    assert_array_equal(part.wide, wide[:, columns])
    assert part.recorded == scan.recorded and part.label == scan.label


def test_columns_of_the_halves_point_into_the_kept_frames(space):
    frames = FRAMES["scrubbed"]
    first, second = split(scrubbed(frames, 2.0, space))
    assert second.max() == len(frames) - 1
    assert first.min() == 0
    assert frames[first].max() < frames[second].min()
