"""Frames that no scanner records, and signals that are one and the same."""

import numpy as np
import pytest

from pnet_jax.errors import InputError
from pnet_jax.ingest import load_scan
from pnet_jax.ingest.frames import check_different, leave_out_broken
from pnet_jax.scan import split_frames

from .helpers import FILTERED, PLAIN, T, phantom, phantom_mask, save_bold

EVERYTHING = np.arange(T)


def left_out(y, kept=EVERYTHING):
    warnings = []
    return np.setdiff1d(kept, leave_out_broken(y, kept, warnings)).tolist(), warnings


def series(level=1000.0, n=60):
    """Smooth signals at a level, of which some move together in a few frames as with head motion."""
    rng = np.random.default_rng(0)
    y = level + np.cumsum(rng.normal(size=(n, T)), axis=1) + rng.normal(size=(n, T))
    y[:20, 30:33] += 30
    return y.astype(np.float32)


@pytest.mark.parametrize("level", [1000.0, 0.0])
def test_ordinary_frames_stay(level):
    assert left_out(series(level)) == ([], [])


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda y, at: np.zeros_like(y[:, at]), "with the same value at all locations"),
        (lambda y, at: np.full_like(y[:, at], np.nan), "without finite values"),
        (lambda y, at: np.repeat(y[:, [at[0] - 1]], len(at), 1), "identical to the previous frame"),
        (lambda y, at: 100 * y[:, at], "at over 10 times the usual distance from the median signal"),
    ],
)
def test_frames_no_scanner_records_are_left_out_with_their_positions(broken, why):
    y, at = series(), [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
    y[:, at] = broken(y, at)
    gone, (said,) = left_out(y)
    assert gone == at
    assert said == f"10 of {T} frames cannot be measurements and were excluded (positions counted from 0): 10 {why} (40–49)"


def test_frames_that_are_scrubbed_already_are_not_counted():
    y = series()
    y[:, [40, 41]] = 0
    gone, (said,) = left_out(y, np.delete(EVERYTHING, [20, 41]))
    assert gone == [40] and f"1 of {T - 2}" in said


def test_locations_at_fault_are_no_reason_to_leave_a_frame_out():
    y = series()
    y[0] = np.nan
    y[1, 50] = np.inf
    y[2] = 7
    y[3, 60] = 1e9
    assert left_out(y) == ([], [])


def test_a_recording_that_changes_its_nature_has_no_outliers():
    y = series(0.0)
    y[:, 80:] *= 100
    gone, (said,) = left_out(y)
    assert gone == [] and "too many for outliers: they are kept" in said


def test_equal_values_of_a_few_locations_are_chance():
    assert left_out(np.random.default_rng(0).integers(0, 2, size=(3, T)).astype(np.float32)) == ([], [])


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_frames_that_are_left_out_have_no_say_in_scan_and_halves(tmp_path, bad):
    at = [0, 17, 18, 100]
    data = phantom()
    data[..., at] = np.where(phantom_mask()[..., None], bad, 0)
    scan = load_scan(save_bold(tmp_path / "broken", data=data), cleaning=FILTERED)
    kept = np.delete(EVERYTHING, at)
    scrubbed = load_scan(save_bold(tmp_path / "whole"), sample_mask=kept, cleaning=FILTERED)
    np.testing.assert_array_equal(scan.frames, kept)
    np.testing.assert_array_equal(scan.y, scrubbed.y)
    assert scan.cleaning["scrubbed"] == 4 and scan.recorded == T and len(scan.warnings) == 1
    for half, part, other in zip(scan.halves, split_frames(kept, scan.tr), scrubbed.halves, strict=True):
        np.testing.assert_array_equal(half.frames, kept[part])
        np.testing.assert_array_equal(half.y, other.y)


def test_too_few_frames_left_says_why(tmp_path):
    data = phantom()
    data[..., 20:] = data[..., 20:21]
    with pytest.raises(InputError, match=r"sub-01.*109 identical to the previous frame \(21–129\): too short: 21 of 130 frames are left"):
        load_scan(save_bold(tmp_path, data=data), cleaning=FILTERED)


def test_one_frame_over_and_over_is_refused(tmp_path):
    data = np.repeat(phantom()[..., :1], T, axis=3)
    with pytest.raises(InputError, match=r"sub-01_task-rest.*none of .* locations has a varying signal"):
        load_scan(save_bold(tmp_path, data=data), cleaning=PLAIN)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("cleaning", [PLAIN, FILTERED])
def test_one_signal_in_many_locations_is_refused(tmp_path, share, scaled, cleaning):
    data = phantom()
    inside = np.argwhere(phantom_mask())
    some = inside[: round(share * len(inside))]
    signal = data[5, 5, 5].copy()
    scale = 1 + np.arange(len(some))[:, None] / len(some) if scaled else np.ones((len(some), 1), np.float32)
    data[tuple(some.T)] = scale * signal
    with pytest.raises(InputError, match=r"sub-01.*(100|50)% of the locations have the same signal, expected at most 33%"):
        load_scan(save_bold(tmp_path, data=data), cleaning=cleaning)


def test_signals_alike_up_to_their_sign_are_the_same():
    y = np.random.default_rng(0).normal(size=(90, 50)).astype(np.float32)
    y[::2] = np.where(np.arange(45)[:, None] % 2, y[:1], -y[:1])
    y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    with pytest.raises(InputError, match="49% of the locations have the same signal"):
        check_different(y, np.ones(90, bool), "sub-01")
    check_different(y[1::2], np.ones(45, bool), "sub-01")


def test_nearly_black_locations_are_counted(tmp_path):
    data = phantom()
    rng = np.random.default_rng(1)
    data[4, 4:8, 3] = rng.normal(size=(4, T)) + 1
    data[4, 8, 3] = 0
    said = load_scan(save_bold(tmp_path, data=data), cleaning=FILTERED).warnings
    count = int(phantom_mask().sum())
    assert any(text.startswith(f"4 of {count} locations have a mean intensity below 1% of the median") for text in said)
    assert any(text.startswith(f"1 of {count} locations are constant") for text in said)
    centred = data - data.mean(3, keepdims=True)
    assert not any("intensity" in text for text in load_scan(save_bold(tmp_path / "centred", data=centred), cleaning=FILTERED).warnings)
