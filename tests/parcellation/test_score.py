"""DCBC and homogeneity against plain loops over all pairs and a plain numpy program; nothing that is padded counts."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.parcellation.score import (
    FURTHEST_MM,
    MIN_PAIRS,
    RINGS,
    NearPairs,
    by_frame,
    dcbc,
    homogeneity,
    near_pairs,
    nearest_centroid,
    pair_correlations,
    pair_weights,
    sample_pairs,
    standardised,
)
from pnet_jax.space import LEFT, RIGHT, Space, grid_space, point_space
from tests.parcellation.helpers import check_wave

COUNT = np.float32(40)
correlations, weights, frames_of, coefficient = (jax.jit(f) for f in (pair_correlations, pair_weights, by_frame, dcbc))
homogeneous = jax.jit(homogeneity, static_argnames="n_parcels")
T = 40


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


def everything(space: Space) -> NearPairs:
    """All near pairs: one group a hemisphere."""
    return near_pairs(space, [np.flatnonzero(space.hemisphere == side) for side in (LEFT, RIGHT)])


def flat(pairs: NearPairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Locations and ring of each pair that is one, `[P]`."""
    there = np.asarray(pairs.ring) >= 0
    i, j = (np.take_along_axis(np.asarray(pairs.groups), np.asarray(at), 1)[there] for at in (pairs.first, pairs.second))
    return i, j, np.asarray(pairs.ring)[there]


def dcbc_by_numpy(y, pairs, labels):
    """NearPairs in a list, bins counted by numpy in float64."""
    i, j, ring = flat(pairs)
    inside = (labels[i] >= 0) & (labels[j] >= 0)
    i, j, ring = i[inside], j[inside], ring[inside]
    r = np.einsum("pt,pt->p", y[i].astype(float), y[j].astype(float)) / T
    cell = 2 * ring + (labels[i] == labels[j])
    count = np.bincount(cell, minlength=4 * RINGS).reshape(-1, 2)
    mean = np.bincount(cell, weights=r, minlength=4 * RINGS).reshape(-1, 2) / np.maximum(count, 1)
    good = (count >= MIN_PAIRS).all(1)
    return np.average((mean[:, 1] - mean[:, 0])[good], weights=1 / (1 / count[good]).sum(1))


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
    pairs = everything(space)
    found = coefficient(correlations(y, pairs, COUNT), pairs, labels)
    assert_allclose(found, dcbc_by_loops(y, space, labels), atol=1e-5)
    assert found > 0.05


@pytest.mark.parametrize("groups", [2, 5])
def test_dcbc_in_groups_equals_a_plain_numpy_program(groups):
    space, y, labels = scored()
    dealt = [part for side in (LEFT, RIGHT) for part in np.array_split(np.flatnonzero(space.hemisphere == side), groups)]
    pairs = near_pairs(space, [np.random.default_rng(0).permutation(part) for part in dealt])
    assert_allclose(coefficient(correlations(y, pairs, COUNT), pairs, labels), dcbc_by_numpy(y, pairs, labels), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_homogeneity_equals_plain_loops(seed):
    _, y, labels = scored(seed)
    labels[labels == 4] = -1
    labels[7] = 4  # a parcel of one location has no pairs
    assert_allclose(homogeneous(y, labels, 6, COUNT), homogeneity_by_loops(y, labels), atol=1e-5)


def test_dead_locations_count_as_uncorrelated():
    _, y, labels = scored()
    y[::9] = 0
    assert_allclose(homogeneous(y, labels, 6, COUNT), homogeneity_by_loops(y, labels), atol=1e-5)


def test_signals_are_standardised_over_the_frames_that_count():
    rng = np.random.default_rng(0)
    kept = rng.random(50) < 0.7
    y = rng.normal(3, 5, (9, 50)).astype(np.float32)
    y[4] = 2.5
    found = np.asarray(jax.jit(standardised)(y, kept.astype(np.float32)))
    expected = y.astype(float)[:, kept]
    expected = (expected - expected.mean(1, keepdims=True)) / np.where(np.arange(9) == 4, 1, expected.std(1))[:, None]
    assert_allclose(found[:, kept], expected, atol=1e-5)
    assert_array_equal(found[:, ~kept], 0)
    assert_array_equal(found[4], 0)
    assert_array_equal(standardised(y, np.zeros(50, np.float32)), 0)


def test_names_of_parcels_do_not_matter():
    space, y, labels = scored()
    pairs = everything(space)
    r = correlations(y, pairs, COUNT)
    renamed = np.where(labels < 0, -1, np.array([3, 5, 0, 1, 4, 2])[labels]).astype(np.int32)
    assert coefficient(r, pairs, renamed) == coefficient(r, pairs, labels)
    assert_allclose(homogeneous(y, renamed, 6, COUNT), homogeneous(y, labels, 6, COUNT), atol=1e-6)


def test_the_order_of_locations_does_not_matter():
    space, y, labels = scored()
    order = np.random.default_rng(0).permutation(len(labels))
    pairs = everything(space)
    back = np.append(np.argsort(order), -1).astype(np.int32)
    moved = pairs._replace(groups=back[np.asarray(pairs.groups)])
    expected = coefficient(correlations(y, pairs, COUNT), pairs, labels)
    assert_allclose(coefficient(correlations(y[order], moved, COUNT), moved, labels[order]), expected, atol=1e-6)
    assert_allclose(homogeneous(y[order], labels[order], 6, COUNT), homogeneous(y, labels, 6, COUNT), atol=1e-6)


def test_signals_outside_the_parcels_do_not_matter():
    space, y, labels = scored()
    pairs = everything(space)
    spoiled = np.where((labels < 0)[:, None], np.float32(99), y)
    one, other = (coefficient(correlations(x, pairs, COUNT), pairs, labels) for x in (spoiled, y))
    assert one == other
    assert homogeneous(spoiled, labels, 6, COUNT) == homogeneous(y, labels, 6, COUNT)


def test_padding_frames_pairs_groups_and_locations_changes_nothing():
    space, y, labels = scored()
    pairs = everything(space)
    w = weights(pairs, labels)
    expected = coefficient(correlations(y, pairs, COUNT), pairs, labels), homogeneous(y, labels, 6, COUNT)
    more = NearPairs(
        np.pad(pairs.groups, ((0, 3), (0, 7)), constant_values=-1),
        *(np.pad(x, ((0, 3), (0, 100)), constant_values=fill) for x, fill in ((pairs.first, 0), (pairs.second, 0), (pairs.ring, -1))),
    )
    tall, lost = np.pad(y, ((0, 5), (0, 8))), np.pad(labels, (0, 5), constant_values=-1)
    tall[-5:] = 9
    found = coefficient(correlations(tall, more, COUNT), more, lost), homogeneous(tall, lost, 6, COUNT)
    assert_allclose(found, expected, atol=1e-6)
    padded = weights(more, lost)
    assert_array_equal(padded[: len(w), : w.shape[1]], w)
    assert_array_equal(np.delete(padded, np.arange(len(w)), 0), 0)
    frames = frames_of(tall, more, padded, COUNT)
    assert_allclose(frames[:T], frames_of(y, pairs, w, COUNT), atol=1e-6)


def test_dcbc_of_random_labels_is_near_0_and_of_the_true_ones_is_not():
    space, y, labels = scored()
    pairs = everything(space)
    r = correlations(y, pairs, COUNT)
    shuffled = [coefficient(r, pairs, np.random.default_rng(s).permutation(labels)) for s in range(5)]
    assert np.abs(shuffled).max() < 0.2 * coefficient(r, pairs, labels)


def test_correlations_are_those_of_the_pairs():
    space, y, _ = scored()
    pairs = sample_pairs(space, np.arange(len(space)))
    i, j, _ = flat(pairs)
    assert_allclose(np.asarray(correlations(y, pairs, COUNT))[np.asarray(pairs.ring) >= 0], (y[i] * y[j]).mean(1), atol=1e-6)


def test_weights_add_to_nothing_and_leave_out_what_is_outside():
    space, _, labels = scored()
    pairs = everything(space)
    w = np.asarray(weights(pairs, labels))
    i, j, _ = flat(pairs)
    own = w[np.asarray(pairs.ring) >= 0]
    assert_array_equal(own[(labels[i] < 0) | (labels[j] < 0)], 0)
    assert_allclose(w.sum(), 0, atol=1e-5)
    assert_allclose(own[labels[i] == labels[j]].sum(), 1, atol=1e-5)


def test_frames_add_up_to_the_whole_and_equal_the_products_of_their_own_values():
    space, y, labels = scored()
    pairs = sample_pairs(space, np.arange(len(space)))
    w = weights(pairs, labels)
    frames = frames_of(y, pairs, w, COUNT)
    assert_allclose(frames.sum(), coefficient(correlations(y, pairs, COUNT), pairs, labels), atol=1e-6)
    i, j, _ = flat(pairs)
    own = np.asarray(w)[np.asarray(pairs.ring) >= 0].astype(float)
    assert_allclose(frames, own @ (y[i].astype(float) * y[j]) / T, atol=1e-6)


def test_all_near_pairs_of_one_hemisphere_are_taken_once():
    space = brain()
    i, j, ring = flat(everything(space))
    distance = np.linalg.norm(space.xyz[:, None] - space.xyz[None], axis=-1)
    wanted = (distance >= 2) & (distance <= FURTHEST_MM) & (space.hemisphere[:, None] == space.hemisphere[None])
    count = np.zeros(wanted.shape, int)
    np.add.at(count, (i, j), 1)
    assert_array_equal(count + count.T, wanted)
    assert_array_equal(ring // RINGS, space.hemisphere[i])
    assert (np.abs(distance[i, j] - (2 + 4 * (ring % RINGS) + 2)) <= 2 + 1e-4).all()


def test_a_sample_is_reproducible_in_groups_of_one_hemisphere_and_takes_all_given_locations():
    space = brain(step=4.0, size=(16, 10, 6))
    allowed = np.flatnonzero(np.random.default_rng(0).random(len(space)) < 0.8)
    a, b, c = (sample_pairs(space, allowed, seed=seed) for seed in (1, 1, 2))
    for x, y in zip(a, b, strict=True):
        assert_array_equal(x, y)
    assert (np.asarray(a.groups) != np.asarray(c.groups)).any()
    groups = [group[group >= 0] for group in np.asarray(a.groups)]
    assert_array_equal(np.sort(np.concatenate(groups)), allowed)
    assert all(len(np.unique(space.hemisphere[group])) == 1 for group in groups)
    assert np.isin(np.concatenate(flat(a)[:2]), allowed).all()


def test_tables_of_like_sizes_have_like_shapes():
    space = brain(step=4.0, size=(16, 10, 6))
    rng = np.random.default_rng(0)
    some, fewer = (sample_pairs(space, np.sort(rng.permutation(len(space))[:n]), rows=1024) for n in (900, 700))
    assert some.groups.shape == fewer.groups.shape
    assert some.first.shape[0] == some.groups.shape[0]
    assert some.first.shape[1] % 1024 == 0


def test_what_cannot_be_measured_is_nan():
    space, y, labels = scored()
    pairs = everything(space)
    r = correlations(y, pairs, COUNT)
    for unmeasured in (np.full_like(labels, -1), np.zeros_like(labels)):
        assert np.isnan(coefficient(r, pairs, unmeasured))
        assert np.isnan(frames_of(y, pairs, weights(pairs, unmeasured), COUNT)).all()
    assert np.isnan(homogeneous(y, np.arange(len(y), dtype=np.int32), len(y), COUNT))


def test_locations_far_apart_have_no_pairs():
    space = point_space([[-40.0, 0, 0], [40, 0, 0], [40, 50, 0]])
    pairs = sample_pairs(space, np.arange(3))
    assert len(flat(pairs)[0]) == 0
    assert np.isnan(coefficient(correlations(np.ones((3, T), np.float32), pairs, COUNT), pairs, np.zeros(3, np.int32)))


def test_in_a_wave_and_alone_it_is_the_same():
    pairs = sample_pairs(brain(), np.arange(len(brain())))

    def all_of_it(y, labels):
        w = pair_weights(pairs, labels)
        y = standardised(y, (np.arange(T) < 33).astype(np.float32))
        return dcbc(pair_correlations(y, pairs, COUNT), pairs, labels), by_frame(y, pairs, w, COUNT), homogeneity(y, labels, 6, COUNT)

    check_wave(all_of_it, [scored(seed)[1:] for seed in range(3)])


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
