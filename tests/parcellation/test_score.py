"""DCBC and homogeneity against plain loops over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.parcellation.score import (
    MIN_PAIRS,
    dcbc,
    homogeneity,
    nearest_centroid,
    pair_correlations,
    pair_weights,
    sample_pairs,
    sum_by_frame,
)
from pnet_jax.space import LEFT, RIGHT, Space, grid_space, point_space

T = 40
ALL = 10_000  # a group so large that every pair is taken


def brain(step=6.0, size=(8, 6, 4)) -> Space:
    affine = np.diag([step, step, step, 1])
    affine[:3, 3] = -step * (np.array(size) - 1) / 2
    return grid_space(np.ones(size, bool), affine)


def scored(seed=0, parcels=6):
    """A space, z-scored signals that share something within parcels, and labels with a few locations outside."""
    rng = np.random.default_rng(seed)
    space = brain()
    labels = nearest(space.xyz, rng.uniform(-20, 20, (parcels // 2, 3)) * [0, 1, 1]) + parcels // 2 * (space.hemisphere == RIGHT)
    y = rng.normal(size=(parcels, T))[labels] + rng.normal(size=(len(space), T)) + 0.5 * rng.normal(size=T)
    labels[rng.random(len(space)) < 0.1] = -1
    y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    return space, y.astype(np.float32), labels.astype(np.int32)


def nearest(xyz, centres):
    return np.linalg.norm(xyz[:, None] - centres[None], axis=-1).argmin(1)


def dcbc_by_loops(y, space, labels):
    """Within minus across in rings of 4 mm from 2 mm on, up to 36 mm, each hemisphere with rings of its own."""
    cells: dict[tuple, list[float]] = {}
    for i, j in itertools.combinations(np.flatnonzero(labels >= 0), 2):
        distance = np.linalg.norm(np.float64(space.xyz[i]) - space.xyz[j])
        if space.hemisphere[i] == space.hemisphere[j] and 2 <= distance <= 36:
            key = (space.hemisphere[i], int((distance - 2) // 4), labels[i] == labels[j])
            cells.setdefault(key, []).append(float(np.float64(y[i]) @ y[j]) / T)
    total, weights = 0.0, 0.0
    for side, ring, same in cells:
        within, across = cells.get((side, ring, True), []), cells.get((side, ring, False), [])
        if same and len(within) >= MIN_PAIRS and len(across) >= MIN_PAIRS:
            weight = 1 / (1 / len(within) + 1 / len(across))
            total, weights = total + weight * (np.mean(within) - np.mean(across)), weights + weight
    return total / weights


def homogeneity_by_loops(y, labels):
    values, sizes = [], []
    for k in np.unique(labels[labels >= 0]):
        own = np.flatnonzero(labels == k)
        if len(own) > 1:
            values.append(np.mean([float(np.float64(y[i]) @ y[j]) / T for i, j in itertools.combinations(own, 2)]))
            sizes.append(len(own))
    return np.average(values, weights=sizes)


@pytest.mark.parametrize("seed", range(3))
def test_dcbc_equals_plain_loops(seed):
    space, y, labels = scored(seed)
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    found = dcbc(pair_correlations(y, pairs), pairs, labels)
    assert_allclose(found, dcbc_by_loops(y, space, labels), atol=1e-5)
    assert found > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_homogeneity_equals_plain_loops(seed):
    _, y, labels = scored(seed)
    labels[labels == 4] = -1
    labels[7] = 4  # a parcel of one location has no pairs
    assert_allclose(homogeneity(y, labels, 6), homogeneity_by_loops(y, labels), atol=1e-5)


def test_dead_locations_count_as_uncorrelated():
    _, y, labels = scored()
    y[::9] = 0
    assert_allclose(homogeneity(y, labels, 6), homogeneity_by_loops(y, labels), atol=1e-5)


def test_names_and_order_of_parcels_do_not_matter():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    r = pair_correlations(y, pairs)
    renamed = np.where(labels < 0, -1, np.array([3, 5, 0, 1, 4, 2])[labels])
    assert_allclose(dcbc(r, pairs, renamed), dcbc(r, pairs, labels), rtol=1e-12)
    assert_allclose(homogeneity(y, renamed, 6), homogeneity(y, labels, 6), atol=1e-6)


def test_signals_outside_the_parcels_do_not_matter():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    spoiled = np.where((labels < 0)[:, None], np.float32(99), y)
    assert_array_equal(dcbc(pair_correlations(spoiled, pairs), pairs, labels), dcbc(pair_correlations(y, pairs), pairs, labels))
    assert homogeneity(spoiled, labels, 6) == homogeneity(y, labels, 6)


def test_dcbc_of_random_labels_is_near_0_and_of_the_true_ones_is_not():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    r = pair_correlations(y, pairs)
    shuffled = [dcbc(r, pairs, np.random.default_rng(s).permutation(labels)) for s in range(5)]
    assert np.abs(shuffled).max() < 0.2 * dcbc(r, pairs, labels)


def test_correlations_are_those_of_the_pairs():
    space, y, _ = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=60)
    assert_allclose(pair_correlations(y, pairs), (y[pairs.i] * y[pairs.j]).mean(1), atol=1e-6)


def test_frames_add_up_to_the_whole_and_equal_the_products_of_their_own_values():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=60)
    frames = sum_by_frame(y, pairs, pair_weights(pairs, labels))
    assert_allclose(frames.sum(), dcbc(pair_correlations(y, pairs), pairs, labels), atol=1e-6)
    one = [dcbc(np.float64(y[pairs.i, t]) * y[pairs.j, t], pairs, labels) / T for t in range(T)]
    assert_allclose(frames, one, atol=1e-6)


def test_all_near_pairs_of_one_hemisphere_are_taken_once():
    space = brain()
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    distance = np.linalg.norm(space.xyz[:, None] - space.xyz[None], axis=-1)
    wanted = (distance >= 2) & (distance <= 36) & (space.hemisphere[:, None] == space.hemisphere[None])
    count = np.zeros(wanted.shape, int)
    np.add.at(count, (pairs.i, pairs.j), 1)
    assert_array_equal(count + count.T, wanted)
    d = distance[pairs.i, pairs.j]
    rings = 9
    assert_array_equal(pairs.ring // rings, space.hemisphere[pairs.i])
    assert (np.abs(d - (2 + 4 * (pairs.ring % rings) + 2)) <= 2 + 1e-4).all()


def test_a_sample_of_pairs_is_reproducible_and_stays_among_the_given_locations():
    space = brain()
    allowed = np.flatnonzero(np.random.default_rng(0).random(len(space)) < 0.5)
    a, b, c = (sample_pairs(space, allowed, group=15, seed=seed) for seed in (1, 1, 2))
    assert_array_equal(a.i, b.i)
    assert_array_equal(a.j, b.j)
    assert len(c.i) != len(a.i) or (c.i != a.i).any()
    assert np.isin(np.concatenate([a.i, a.j]), allowed).all()
    assert len(np.unique(np.concatenate([a.i, a.j]))) == len(allowed)


def test_what_cannot_be_measured_is_nan():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)), group=ALL)
    r = pair_correlations(y, pairs)
    for unmeasured in (np.full_like(labels, -1), np.zeros_like(labels)):
        assert np.isnan(dcbc(r, pairs, unmeasured))
        assert np.isnan(sum_by_frame(y, pairs, pair_weights(pairs, unmeasured))).all()
    assert np.isnan(homogeneity(y, np.arange(len(y), dtype=np.int32), len(y)))


def test_locations_far_apart_have_no_pairs():
    space = point_space([[-40.0, 0, 0], [40, 0, 0], [40, 50, 0]])
    pairs = sample_pairs(space, np.arange(3))
    assert len(pairs.i) == 0
    assert np.isnan(dcbc(pair_correlations(np.ones((3, T), np.float32), pairs), pairs, np.zeros(3, np.int32)))


def test_the_centroid_map_equals_brute_force_and_never_crosses_the_midline():
    space, _, labels = scored()
    found = nearest_centroid(labels, space)
    for side in (LEFT, RIGHT):
        here = np.flatnonzero((space.hemisphere == side) & (labels >= 0))
        parcels = np.unique(labels[here])
        centres = np.stack([np.float64(space.xyz[here][labels[here] == k]).mean(0) for k in parcels])
        distance = np.linalg.norm(space.xyz[here][:, None] - centres[None], axis=-1)
        picked = distance[np.arange(len(here)), np.searchsorted(parcels, found[here])]
        assert_allclose(picked, distance.min(1), atol=1e-5)
    assert_array_equal(found < 0, labels < 0)
