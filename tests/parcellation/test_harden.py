"""One label for each location: connected, among its candidates, and no parcel lost that the atlas can fill."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.harden import SMALLEST_SHARE, bodies, components, count_components, harden, most_probable
from pnet_jax.space import grid_neighbours
from tests.parcellation.helpers import check_wave

SHAPE = (12, 12)
run = jax.jit(harden, static_argnames="n_parcels")
connected = jax.jit(components)


def plane(shape=SHAPE):
    """Voxels of one slice, row by row, and their neighbours."""
    ijk = np.argwhere(np.ones((*shape, 1), bool))
    return ijk[:, :2], grid_neighbours(ijk)


def one_hot(labels, candidates):
    return ((candidates == labels[:, None]) & (candidates >= 0)).astype(np.float32)


def everyone(count, parcels):
    return np.tile(np.arange(parcels, dtype=np.int32), (count, 1))


def given(q, candidates, neighbours, atlas_labels, parcels):
    candidates, neighbours = candidates.astype(np.int32), neighbours.astype(np.int32)
    table = np.asarray(match_table(candidates, neighbours, n_parcels=parcels))
    return q.astype(np.float32), candidates, table, neighbours, atlas_labels.astype(np.int32)


def hardened(labels, parcels, atlas_labels=None, candidates=None, shape=SHAPE):
    candidates = everyone(len(labels), parcels) if candidates is None else candidates
    atlas_labels = labels if atlas_labels is None else atlas_labels
    return run(*given(one_hot(labels, candidates), candidates, plane(shape)[1], atlas_labels, parcels), n_parcels=parcels)


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
    atlas_labels = candidates[:, 0].copy()
    outside = ij.sum(1) < 3
    candidates[outside], atlas_labels[outside] = -1, -1
    candidates[rng.random(400) < 0.2, 3] = -1
    q = np.where(candidates >= 0, np.exp(logits), 0)
    return (q / np.maximum(q.sum(1, keepdims=True), 1e-9)).astype(np.float32), candidates, neighbours, atlas_labels, parcels


def solved(problem):
    return run(*given(*problem), n_parcels=problem[-1])


def roots_by_scipy(labels, neighbours):
    """First location of everyone's component."""
    i, n = np.nonzero(neighbours >= 0)
    j = neighbours[i, n]
    same = labels[i] == labels[j]
    graph = coo_matrix((np.ones(same.sum()), (i[same], j[same])), shape=(len(labels),) * 2)
    component = connected_components(graph, directed=False)[1]
    return np.unique(component, return_index=True)[1][component]


def pieces(labels, neighbours, parcels):
    roots = np.unique(roots_by_scipy(labels, neighbours))
    return np.bincount(labels[roots][labels[roots] >= 0], minlength=parcels)


def snake(size):
    """One path of label 0 that winds through a square, one voxel wide with one between its turns."""
    image = np.ones((size, size), int)
    image[::2] = 0
    for row in range(1, size - 1, 2):
        image[row, -1 if row % 4 == 1 else 0] = 0
    return image.ravel()


@pytest.mark.parametrize("colours", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_components_equal_scipys_on_random_images(seed, colours):
    labels = np.random.default_rng(seed).integers(-1, colours, 15 * 15).astype(np.int32)
    neighbours = plane((15, 15))[1]
    assert_array_equal(connected(labels, neighbours), roots_by_scipy(labels, neighbours))


def test_components_equal_those_that_scipy_labels_in_a_volume():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 8, (9, 10, 8))
    labels = image.ravel().astype(np.int32)
    found = np.asarray(connected(labels, grid_neighbours(np.argwhere(np.ones(image.shape, bool)))))
    for k in range(8):
        expected, count = ndimage.label(image == k, np.ones((3, 3, 3)))
        inside = image.ravel() == k
        assert len(np.unique(found[inside])) == count
        assert len(np.unique(np.stack([found[inside], expected.ravel()[inside]]), axis=1).T) == count


@pytest.mark.parametrize("size", [5, 31, 64])
def test_a_long_snake_is_one_component_in_any_order_of_locations(size):
    labels, neighbours = snake(size), plane((size, size))[1]
    assert (labels == 0).sum() > size**2 / 2
    assert_array_equal(np.asarray(connected(labels, neighbours))[labels == 0], 0)
    order = np.random.default_rng(0).permutation(len(labels))
    moved = np.append(np.argsort(order), -1)[neighbours[order]]
    found = np.asarray(connected(labels[order], moved))
    assert_array_equal(found, roots_by_scipy(labels[order], moved))
    assert len(np.unique(found[labels[order] == 0])) == 1


def test_the_body_is_the_largest_component_then_the_first_and_absent_parcels_have_none():
    labels = np.array([0, 0, 1, 0, 0, 0, 1, 3, -1, 3], np.int32)
    line = np.stack([np.arange(-1, 9), np.append(np.arange(1, 10), -1)], 1).astype(np.int32)
    assert jax.jit(bodies, static_argnums=2)(labels, line, 5).tolist() == [3, 2, 10, 7, 10]


def test_components_are_counted_on_the_host_too():
    labels = np.random.default_rng(1).integers(-1, 4, 225).astype(np.int32)
    neighbours = plane((15, 15))[1]
    assert_array_equal(count_components(labels, neighbours, 6), pieces(labels, neighbours, 6))


def test_the_most_probable_candidate_is_the_first_of_equal_ones_and_none_where_there_is_none():
    candidates = np.array([[4, 2, -1], [1, 3, 0], [-1, -1, -1], [5, -1, -1]], np.int32)
    q = np.array([[0.2, 0.8, 0.9], [0.4, 0.2, 0.4], [1, 1, 1], [0, 0, 0]], np.float32)
    assert jax.jit(most_probable)(q, candidates).tolist() == [2, 1, -1, 5]


def test_a_clean_parcellation_is_left_as_it_is():
    labels = np.repeat([0, 1, 2], 48)
    found = hardened(labels, 3)
    assert_array_equal(found.labels, labels)
    assert found.moved_fragments == 0
    assert not found.restored.any()
    assert found.labels.dtype == np.int32


def test_a_fragment_joins_the_parcel_around_it():
    ij, _ = plane()
    labels = (ij[:, 0] >= 6).astype(int)
    expected = labels.copy()
    labels[(ij[:, 0] >= 9) & (ij[:, 0] <= 10) & (ij[:, 1] >= 4) & (ij[:, 1] <= 6)] = 0
    found = hardened(labels, 2, atlas_labels=expected)
    assert_array_equal(found.labels, expected)
    assert found.moved_fragments == 6


def test_a_deep_fragment_is_eaten_from_its_rim():
    ij, _ = plane()
    labels = (ij[:, 0] >= 2).astype(int)
    labels[(ij[:, 0] >= 5) & (ij[:, 0] <= 9) & (ij[:, 1] >= 3) & (ij[:, 1] <= 6)] = 0
    assert (labels == 0).sum() == 44
    assert_array_equal(hardened(labels, 2).labels, ij[:, 0] >= 2)


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
    assert_array_equal(np.asarray(hardened(labels, 3, candidates=candidates).labels)[island], 2)


def test_a_fragment_without_any_other_candidate_around_it_stays():
    ij, _ = plane()
    labels = (ij[:, 0] >= 4).astype(int)
    island = (ij[:, 0] == 8) & (ij[:, 1] == 6)
    labels[island] = 0
    candidates = everyone(len(ij), 2)
    candidates[island] = [0, -1]
    assert_array_equal(hardened(labels, 2, candidates=candidates).labels, labels)


@pytest.mark.parametrize(("left", "restored"), [(0, True), (11, True), (12, False), (30, False)])
def test_a_parcel_under_a_quarter_of_its_atlas_size_is_restored(left, restored):
    atlas_labels = np.repeat([0, 1, 2], 48)
    labels = atlas_labels.copy()
    labels[48 + left : 96] = 2
    found = hardened(labels, 3, atlas_labels=atlas_labels)
    assert (left < 48 / SMALLEST_SHARE) == restored
    assert found.restored.tolist() == [False, restored, False]
    if restored:  # to a quarter: what was left of it comes first
        assert_array_equal(np.flatnonzero(found.labels == 1), 48 + np.arange(12))
    assert_array_equal(found.labels[atlas_labels != 1], labels[atlas_labels != 1])


def test_a_restored_parcel_gets_back_what_is_most_probably_its_own():
    atlas_labels = np.repeat([0, 1], [8, 40])
    q = np.where(np.arange(2)[None] == 1, 0.6, 0.4) * np.ones((48, 1))
    q[[2, 5]] = [0.49, 0.51]
    found = solved((q, everyone(48, 2), np.full((48, 1), -1), atlas_labels, 2))
    assert found.restored.tolist() == [True, False]
    assert_array_equal(np.flatnonzero(found.labels == 0), [2, 5])


def test_a_parcel_that_the_atlas_does_not_have_either_is_absent():
    assert not hardened(np.repeat([0, 2], 72), 3).restored.any()


@pytest.mark.parametrize("seed", range(6))
def test_every_location_with_candidates_gets_one_of_them_and_the_others_none(seed):
    problem = smooth_problem(seed, noise=2.0)
    labels, candidates = np.asarray(solved(problem).labels), problem[1]
    assert_array_equal(labels >= 0, (candidates >= 0).any(1))
    assert ((labels[:, None] == candidates).any(1)).all()


@pytest.mark.parametrize("seed", range(6))
def test_fewer_pieces_than_before_and_no_probable_label_changed_without_need(seed):
    problem = smooth_problem(seed, noise=1.0)
    _, _, neighbours, atlas_labels, parcels = problem
    first, found = np.asarray(most_probable(*problem[:2])), solved(problem)
    before = pieces(first, neighbours, parcels).sum()
    assert parcels < before > pieces(np.asarray(found.labels), neighbours, parcels).sum()
    changed = np.asarray(found.labels) != first
    assert changed[~np.append(found.restored, False)[atlas_labels]].sum() <= found.moved_fragments


@pytest.mark.parametrize("seed", range(6))
def test_hardening_twice_changes_nothing(seed):
    q, candidates, *rest = smooth_problem(seed)
    once = solved((q, candidates, *rest))
    again = solved((one_hot(np.asarray(once.labels), candidates), candidates, *rest))
    assert once.moved_fragments > 0
    assert_array_equal(again.labels, once.labels)
    assert again.moved_fragments == 0


def test_without_neighbours_nothing_is_a_fragment():
    labels, candidates = np.array([0, 1, 0, 1, 0, 0]), everyone(6, 2)
    found = solved((one_hot(labels, candidates), candidates, np.empty((6, 0)), labels, 2))
    assert_array_equal(found.labels, labels)
    assert found.moved_fragments == 0


def test_the_order_of_locations_does_not_matter():
    q, candidates, neighbours, atlas_labels, parcels = smooth_problem(3)
    order = np.random.default_rng(0).permutation(len(q))
    back = np.append(np.argsort(order), -1)
    moved = solved((q[order], candidates[order], back[neighbours[order]], atlas_labels[order], parcels))
    assert_array_equal(moved.labels, np.asarray(solved((q, candidates, neighbours, atlas_labels, parcels)).labels)[order])


def test_padding_locations_and_candidates_change_nothing():
    q, candidates, neighbours, atlas_labels, parcels = smooth_problem(4, noise=2.0)
    expected = solved((q, candidates, neighbours, atlas_labels, parcels))
    tall = (np.pad(x, ((0, 24), (0, 0)), constant_values=fill) for x, fill in ((q, 1), (candidates, -1), (neighbours, -1)))
    found = solved((*tall, np.pad(atlas_labels, (0, 24), constant_values=-1), parcels))
    assert_array_equal(found.labels[:400], expected.labels)
    assert_array_equal(found.labels[400:], -1)
    assert (found.moved_fragments, found.restored.tolist()) == (expected.moved_fragments, expected.restored.tolist())
    wide = (np.pad(x, ((0, 0), (0, 3)), constant_values=fill) for x, fill in ((q, 1), (candidates, -1)))
    assert_array_equal(solved((*wide, neighbours, atlas_labels, parcels)).labels, expected.labels)


def test_the_table_of_all_candidates_serves_where_some_locations_do_not_count():
    """The step has one table for all scans: locations a scan lacks have no candidates, but the table still points to them."""
    q, candidates, neighbours, atlas_labels, parcels = smooth_problem(5, noise=2.0)
    lost = np.random.default_rng(0).random(400) < 0.15
    less = np.where(lost[:, None], -1, candidates)
    atlas = np.where(lost, -1, atlas_labels)
    found = run(q, less, given(q, candidates, neighbours, atlas, parcels)[2], neighbours, atlas, n_parcels=parcels)
    expected = solved((q, less, neighbours, atlas, parcels))
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)
    assert_array_equal(np.asarray(found.labels)[lost], -1)


def test_in_a_wave_and_alone_it_is_the_same():
    check_wave(lambda *x: harden(*x, 6), [given(*smooth_problem(seed, noise=1.0 + seed)) for seed in range(4)])
