"""Intervals by a bootstrap of blocks: numpy's, with the coverage that theory gives them, whatever is padded."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom, t

from pnet_jax.parcellation.decide import QUANTILES, RESAMPLES, over_blocks, over_cubes, over_time
from tests.parcellation.helpers import check_wave

KEY = jax.random.key(0)
blocks = jax.jit(over_blocks)
cubes = jax.jit(over_cubes, static_argnames="n_cubes")
time = jax.jit(over_time, static_argnames="n_blocks")


def by_numpy(sums, sizes, resamples=20_000, seed=0):
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return np.percentile(means, QUANTILES), means.std()


def some(seed=0, count=25):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 30, count).astype(np.float32)
    return (sizes * rng.normal(0.3, 1, count)).astype(np.float32), sizes


@pytest.mark.parametrize("seed", range(4))
def test_quantiles_equal_numpys_up_to_chance(seed):
    sums, sizes = some(seed)
    expected, spread = by_numpy(sums, sizes)
    # A 2.5 % quantile of 1000 draws has a standard error of sqrt(.025 .975 / 1000) / .058 = .085 standard deviations.
    assert_allclose(blocks(jax.random.key(seed), sums, sizes), expected, atol=4 * 0.09 * spread)


def test_the_interval_covers_the_mean_as_often_as_theory_says():
    """Percentiles of means of n Gaussian blocks are those of a t with a standard error too small by sqrt((n − 1) / n)."""
    n, scans = 20, 1000
    sums = np.random.default_rng(0).normal(0.5, 1, (scans, n)).astype(np.float32)
    low, _, high = jax.jit(jax.vmap(over_blocks))(jax.random.split(KEY, scans), sums, np.ones_like(sums)).T
    covered = int(((low < 0.5) & (high > 0.5)).sum())
    expected = 1 - 2 * t.sf(1.96 * np.sqrt((n - 1) / n), n - 1)
    assert binom.ppf(1e-3, scans, expected - 0.01) <= covered <= binom.isf(1e-3, scans, expected + 0.01)


def test_one_block_or_equal_ones_leave_no_doubt():
    assert_allclose(blocks(KEY, np.float32([6]), np.float32([4])), 1.5)
    sizes = np.float32([2, 5, 9, 1])
    assert_allclose(blocks(KEY, 0.7 * sizes, sizes), 0.7, rtol=1e-6)


def test_without_any_block_it_is_nan():
    assert np.isnan(blocks(KEY, np.zeros(5, np.float32), np.zeros(5, np.float32))).all()


def test_empty_blocks_are_never_drawn_wherever_they_are():
    sums, sizes = some()
    expected = blocks(KEY, sums, sizes)
    behind = blocks(KEY, np.pad(sums, (0, 39), constant_values=99), np.pad(sizes, (0, 39)))
    assert_allclose(behind, expected, rtol=1e-5)
    between = (np.insert(x, [0, 3, 3, 17], fill) for x, fill in ((sums, np.float32(99)), (sizes, np.float32(0))))
    assert_allclose(blocks(KEY, *between), expected, rtol=1e-5)


def test_the_scale_of_the_values_is_that_of_the_interval():
    sums, sizes = some()
    expected = blocks(KEY, sums, sizes)
    assert_allclose(blocks(KEY, 8 * sums, sizes), 8 * expected, rtol=1e-5)
    assert_allclose(blocks(KEY, -sums, sizes), -expected[::-1], atol=1e-5)
    assert_allclose(blocks(KEY, sums + 2 * sizes, sizes), 2 + expected, atol=1e-5)


def test_draws_follow_the_key():
    sums, sizes = some()
    assert_array_equal(blocks(KEY, sums, sizes), blocks(KEY, sums, sizes))
    assert (blocks(KEY, sums, sizes) != blocks(jax.random.key(1), sums, sizes)).any()
    assert RESAMPLES >= 1000


def located(seed=0, count=300):
    rng = np.random.default_rng(seed)
    return rng.normal(size=count).astype(np.float32), rng.random(count) < 0.8, rng.integers(0, 12, count).astype(np.int32)


def test_cubes_hold_the_values_of_their_locations():
    values, counts, cube = located()
    sums, sizes = (np.bincount(cube, weights=w, minlength=12).astype(np.float32) for w in (values * counts, counts))
    assert_allclose(cubes(KEY, values, counts, cube, n_cubes=12), blocks(KEY, sums, sizes), atol=1e-6)


def test_padding_locations_cubes_and_values_that_do_not_count_change_nothing():
    values, counts, cube = located()
    expected = cubes(KEY, values, counts, cube, n_cubes=12)
    assert_allclose(cubes(KEY, np.where(counts, values, 50).astype(np.float32), counts, cube, n_cubes=12), expected, atol=1e-6)
    padded = np.pad(values, (0, 40), constant_values=9), np.pad(counts, (0, 40)), np.pad(cube, (0, 40))
    assert_allclose(cubes(KEY, *padded, n_cubes=64), expected, atol=1e-6)
    order = np.random.default_rng(1).permutation(len(values))
    assert_allclose(cubes(KEY, values[order], counts[order], cube[order], n_cubes=12), expected, atol=1e-5)


def recorded(seed=0, frames=60, length=10, last=50):
    """What the frames of two halves add to a difference; the second half is shorter. Blocks are counted through both."""
    values = np.random.default_rng(seed).normal(0.02, 0.05, (2, frames)).astype(np.float32)
    block = np.stack([np.arange(frames) // length, frames // length + np.arange(frames) // length]).astype(np.int32)
    block[1, last:] = -1
    return values, block


def test_stretches_of_time_are_on_the_scale_of_the_difference():
    values, block = recorded()
    frames = [values[0], values[1, :50]]
    sums = np.concatenate([x.reshape(-1, 10).sum(1) * len(x) for x in frames])
    found = time(KEY, values, block, n_blocks=120)
    assert_allclose(found, blocks(KEY, sums, np.full(11, 10, np.float32)), rtol=1e-4)
    # The mean of the bootstrap is the difference of the halves, by their frames.
    whole = np.average([x.sum() for x in frames], weights=[60, 50])
    assert abs(found[1] - whole) < 0.1 * (found[2] - found[0])


def test_padding_frames_change_nothing():
    values, block = recorded()
    expected = time(KEY, values, block, n_blocks=120)
    spoiled = np.where(block < 0, np.float32(77), values)
    assert_allclose(time(KEY, spoiled, block, n_blocks=120), expected, rtol=1e-5)
    padded = np.pad(values, ((0, 0), (0, 36)), constant_values=5), np.pad(block, ((0, 0), (0, 36)), constant_values=-1)
    assert_allclose(time(KEY, *padded, n_blocks=192), expected, rtol=1e-5)
    assert np.isnan(time(KEY, values, np.full_like(block, -1), n_blocks=120)).all()


def test_what_could_not_be_measured_stays_nan():
    values, block = recorded()
    assert np.isnan(time(KEY, np.full_like(values, np.nan), block, n_blocks=120)).all()


def test_in_a_wave_and_alone_it_is_the_same():
    seeds = [np.uint32(seed) for seed in range(3)]
    check_wave(lambda seed, *x: over_blocks(jax.random.key(seed), *x), [(seed, *some(int(seed))) for seed in seeds])
    check_wave(lambda seed, *x: over_cubes(jax.random.key(seed), *x, 12), [(seed, *located(int(seed))) for seed in seeds])
    check_wave(lambda seed, *x: over_time(jax.random.key(seed), *x, 120), [(seed, *recorded(int(seed))) for seed in seeds])
