"""One label for each location: connected, among its candidates, and no parcel lost that the prior can fill."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pnet_jax.parcellation.harden import SMALLEST_SHARE, harden
from pnet_jax.space import grid_neighbours

SHAPE = (12, 12)


def plane(shape=SHAPE):
    """Voxels of one slice, row by row, and their neighbours."""
    ijk = np.argwhere(np.ones((*shape, 1), bool))
    return ijk[:, :2], grid_neighbours(ijk)


def one_hot(labels, candidates):
    return (candidates == labels[:, None]).astype(np.float32)


def everyone(count, parcels):
    return np.tile(np.arange(parcels, dtype=np.int32), (count, 1))


def hardened(labels, parcels, prior_labels=None, candidates=None, shape=SHAPE):
    _, neighbours = plane(shape)
    candidates = everyone(len(labels), parcels) if candidates is None else candidates
    prior_labels = labels if prior_labels is None else prior_labels
    return harden(one_hot(labels, candidates), candidates, neighbours, prior_labels.astype(np.int32), parcels)


def smooth_problem(seed, noise=0.5, parcels=6):
    """Probabilities that fall with the distance to scattered centres, with spatial noise; a few locations lie outside."""
    rng = np.random.default_rng(seed)
    ij, neighbours = plane((20, 20))
    centres = rng.uniform(0, 20, (parcels, 2))
    distance = np.linalg.norm(ij[:, None] - centres[None], axis=-1)
    ragged = rng.normal(size=(20, 20, parcels))
    ragged = (ragged + np.roll(ragged, 1, 0) + np.roll(ragged, 1, 1) + np.roll(ragged, (1, 1), (0, 1))).reshape(400, parcels) / 2
    candidates = np.argsort(distance, 1)[:, :4].astype(np.int32)
    logits = np.take_along_axis(-distance / 2 + noise * ragged, candidates, 1)
    prior_labels = candidates[:, 0].copy()
    outside = ij.sum(1) < 3
    candidates[outside], prior_labels[outside] = -1, -1
    candidates[rng.random(400) < 0.2, 3] = -1
    q = np.where(candidates >= 0, np.exp(logits), 0)
    return q / np.maximum(q.sum(1, keepdims=True), 1e-9), candidates, neighbours, prior_labels, parcels


def components_by_hand(labels, neighbours):
    """Connected components of each parcel by walking."""
    seen, found = np.zeros(len(labels), bool), {}
    for start in range(len(labels)):
        if seen[start] or labels[start] < 0:
            continue
        found[int(labels[start])] = found.get(int(labels[start]), 0) + 1
        queue, seen[start] = [start], True
        while queue:
            near = [int(u) for u in neighbours[queue.pop()] if u >= 0 and not seen[u] and labels[u] == labels[start]]
            seen[near] = True
            queue += set(near)
    return found


def test_a_clean_parcellation_is_left_as_it_is():
    labels = np.repeat([0, 1, 2], 48)
    found = hardened(labels, 3)
    assert_array_equal(found.labels, labels)
    assert found.moved_fragments == 0
    assert len(found.restored) == 0
    assert found.components.tolist() == [1, 1, 1]
    assert found.labels.dtype == np.int32


def test_a_fragment_joins_the_parcel_around_it():
    ij, _ = plane()
    labels = (ij[:, 0] >= 6).astype(int)
    expected = labels.copy()
    labels[(ij[:, 0] >= 9) & (ij[:, 0] <= 10) & (ij[:, 1] >= 4) & (ij[:, 1] <= 6)] = 0
    found = hardened(labels, 2, prior_labels=expected)
    assert_array_equal(found.labels, expected)
    assert found.moved_fragments == 6
    assert found.components.tolist() == [1, 1]


def test_a_deep_fragment_is_eaten_from_its_rim():
    ij, _ = plane()
    labels = (ij[:, 0] >= 2).astype(int)
    labels[(ij[:, 0] >= 5) & (ij[:, 0] <= 9) & (ij[:, 1] >= 3) & (ij[:, 1] <= 6)] = 0
    assert (labels == 0).sum() == 44
    found = hardened(labels, 2)
    assert_array_equal(found.labels, ij[:, 0] >= 2)


def test_the_body_of_a_parcel_is_its_largest_piece():
    ij, _ = plane()
    labels = np.ones(len(ij), int)
    labels[ij[:, 0] >= 8] = 0
    labels[(ij[:, 0] == 0) & (ij[:, 1] < 5)] = 0
    assert_array_equal(hardened(labels, 2).labels, np.where(ij[:, 0] >= 8, 0, 1))


def test_a_fragment_joins_only_a_parcel_that_is_its_candidate():
    ij, _ = plane()
    labels = np.where(ij[:, 0] < 6, 0, 1)
    labels[ij[:, 1] >= 8] = 2
    island = (ij[:, 0] >= 8) & (ij[:, 0] <= 9) & (ij[:, 1] >= 5) & (ij[:, 1] <= 7)  # parcel 0, touches 1 and 2
    labels[island] = 0
    candidates = everyone(len(ij), 3)
    candidates[island] = [0, 2, -1]
    assert_array_equal(hardened(labels, 3, candidates=candidates).labels[island], 2)


def test_a_fragment_without_any_other_candidate_around_it_stays():
    ij, _ = plane()
    labels = (ij[:, 0] >= 4).astype(int)
    island = (ij[:, 0] == 8) & (ij[:, 1] == 6)
    labels[island] = 0
    candidates = everyone(len(ij), 2)
    candidates[island] = [0, -1]
    found = hardened(labels, 2, candidates=candidates)
    assert_array_equal(found.labels, labels)
    assert found.components.tolist() == [2, 1]


@pytest.mark.parametrize(("left", "restored"), [(0, True), (11, True), (12, False), (30, False)])
def test_a_parcel_under_a_quarter_of_its_prior_size_is_restored(left, restored):
    prior_labels = np.repeat([0, 1, 2], 48)
    labels = prior_labels.copy()
    labels[48 + left : 96] = 2
    found = hardened(labels, 3, prior_labels=prior_labels)
    assert (left < SMALLEST_SHARE * 48) == restored
    assert found.restored.tolist() == ([1] if restored else [])
    if restored:  # to a quarter: what was left of it comes first
        assert_array_equal(np.flatnonzero(found.labels == 1), 48 + np.arange(12))
    assert_array_equal(found.labels[prior_labels != 1], labels[prior_labels != 1])


def test_a_restored_parcel_gets_back_what_is_most_probably_its_own():
    prior_labels = np.repeat([0, 1], [8, 40])
    q = np.where(np.arange(2)[None] == 1, 0.6, 0.4) * np.ones((48, 1))
    q[[2, 5]] = [0.49, 0.51]
    candidates = np.tile([0, 1], (48, 1))
    found = harden(q, candidates, np.full((48, 1), -1), prior_labels, 2)
    assert_array_equal(found.restored, [0])
    assert_array_equal(np.flatnonzero(found.labels == 0), [2, 5])


def test_a_parcel_that_the_prior_does_not_have_either_is_absent():
    labels = np.repeat([0, 2], 72)
    found = hardened(labels, 3)
    assert found.restored.tolist() == []
    assert found.components.tolist() == [1, 0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_every_location_with_candidates_gets_one_of_them_and_the_others_none(seed):
    q, candidates, neighbours, prior_labels, parcels = smooth_problem(seed, noise=2.0)
    labels = harden(q, candidates, neighbours, prior_labels, parcels).labels
    assert_array_equal(labels >= 0, (candidates >= 0).any(1))
    assert ((labels[:, None] == candidates).any(1)).all()


@pytest.mark.parametrize("seed", range(8))
def test_pieces_are_counted_as_a_walk_counts_them(seed):
    q, candidates, neighbours, prior_labels, parcels = smooth_problem(seed, noise=2.0)
    found = harden(q, candidates, neighbours, prior_labels, parcels)
    counted = components_by_hand(found.labels, neighbours)
    assert found.components.tolist() == [counted.get(k, 0) for k in range(parcels)]


@pytest.mark.parametrize("seed", range(8))
def test_fewer_pieces_than_before_and_no_probable_label_changed_without_need(seed):
    q, candidates, neighbours, prior_labels, parcels = smooth_problem(seed, noise=1.0)
    first = np.where(prior_labels >= 0, candidates[np.arange(400), q.argmax(1)], -1)
    found = harden(q, candidates, neighbours, prior_labels, parcels)
    before = sum(components_by_hand(first, neighbours).values())
    assert before > parcels
    assert found.components.sum() < before
    changed = found.labels != first
    assert changed[np.isin(prior_labels, found.restored, invert=True)].sum() <= found.moved_fragments


@pytest.mark.parametrize("seed", range(8))
def test_hardening_twice_changes_nothing(seed):
    q, candidates, neighbours, prior_labels, parcels = smooth_problem(seed)
    once = harden(q, candidates, neighbours, prior_labels, parcels)
    again = harden(one_hot(once.labels, candidates), candidates, neighbours, prior_labels, parcels)
    assert once.moved_fragments > 0
    assert_array_equal(again.labels, once.labels)
    assert again.moved_fragments == 0


def test_without_neighbours_nothing_is_a_fragment():
    candidates = everyone(6, 2)
    labels = np.array([0, 1, 0, 1, 0, 0])
    found = harden(one_hot(labels, candidates), candidates, np.empty((6, 0), np.int32), labels, 2)
    assert_array_equal(found.labels, labels)
    assert found.moved_fragments == 0


def test_the_result_does_not_depend_on_the_order_of_locations():
    q, candidates, neighbours, prior_labels, parcels = smooth_problem(3)
    order = np.random.default_rng(0).permutation(len(q))
    back = np.append(np.argsort(order), -1)
    moved = harden(q[order], candidates[order], back[neighbours[order]], prior_labels[order], parcels)
    assert_array_equal(moved.labels, harden(q, candidates, neighbours, prior_labels, parcels).labels[order])
