"""Which parcels a location may belong to, against brute-force distances; ids, names and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.parcellation.atlas import (
    CUT_MM,
    MAX_CANDIDATES,
    PADDING,
    REACH_MM,
    SIGMA_MM,
    coverage_of,
    make_atlas,
    names_on_other_side,
    nearest_locations,
    on_space,
)
from pnet_jax.space import LEFT, RIGHT, grid_space, point_space


def cloud(parcels, points=1500, seed=0):
    """Scattered points of parcels that lie across each other."""
    rng = np.random.default_rng(seed)
    return make_atlas(rng.uniform(-40, 40, (points, 3)), rng.integers(1, parcels + 1, points), resolution=4)


def locations(count=250, seed=1):
    return point_space(np.random.default_rng(seed).uniform(-48, 48, (count, 3)))


def distances(prior, space):
    """Distance of every location to the nearest point of every parcel in its own hemisphere, `[V, K]`; infinite where it has none."""
    d = np.full((len(space), prior.n_parcels), np.inf)
    for v, (x, side) in enumerate(zip(np.float64(space.xyz), space.hemisphere, strict=True)):
        for k in range(prior.n_parcels):
            own = prior.xyz[(prior.labels == k) & (prior.hemisphere == side)]
            d[v, k] = np.linalg.norm(own - x, axis=1).min(initial=np.inf)
    return d


def slab(step, size):
    """Six boxes, three a hemisphere, on a grid of `step` mm."""
    axes = [np.arange(-size, size + step / 2, step) + step / 4 for _ in range(3)]
    xyz = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = 1 + np.digitize(xyz[:, 1], [-10, 10]) + 3 * (xyz[:, 0] >= 0)
    return make_atlas(xyz, values, resolution=step)


def covered(prior, space, valid=True):
    return coverage_of(prior, nearest_locations(prior, space), np.broadcast_to(valid, len(space)))


@pytest.mark.parametrize("parcels", [5, 60])
def test_candidates_and_prior_equal_brute_force_distances(parcels):
    prior, space = cloud(parcels), locations()
    local, d = on_space(prior, space), distances(prior, space)
    inside = d.min(1) <= REACH_MM
    assert 0.2 < inside.mean() < 0.9
    assert_array_equal(local.labels, np.where(inside, d.argmin(1), -1))
    d[np.arange(len(d)), d.argmin(1)] = 0
    for v in range(len(space)):
        expected = np.argsort(d[v])[: min(int((d[v] <= CUT_MM).sum()), MAX_CANDIDATES)] if inside[v] else []
        found = local.candidates[v][local.candidates[v] >= 0]
        assert_array_equal(found, expected)
        assert_array_equal(local.candidates[v, len(found) :], -1)
        weight = np.exp(-(d[v, expected] ** 2) / (2 * SIGMA_MM**2)) if inside[v] else np.zeros(0)
        assert_allclose(np.exp(np.float64(local.log_prior[v, : len(found)])), weight / weight.sum(), atol=1e-6)
    assert local.candidates.shape[1] == (MAX_CANDIDATES if parcels == 60 else 5)


def test_the_prior_sums_to_1_inside_and_has_no_weight_at_the_padding():
    local = on_space(cloud(20), locations())
    weight = np.exp(local.log_prior)
    assert_allclose(weight.sum(1), local.labels >= 0, atol=1e-5)
    assert_array_equal(local.log_prior[local.candidates < 0], np.float32(PADDING))
    assert (local.candidates[local.labels >= 0, 0] == local.labels[local.labels >= 0]).all()


def test_a_parcel_of_the_other_hemisphere_is_no_candidate_however_close():
    xyz = np.array([[-1.0, 0, 0], [1.0, 0, 0], [-1.0, 6, 0]])
    prior = make_atlas(xyz, [1, 2, 3], resolution=2)
    local = on_space(prior, point_space([[-0.5, 0, 0], [0.5, 0, 0], [-0.5, 6, 0]]))
    assert local.labels.tolist() == [0, 1, 2]
    assert local.candidates.tolist() == [[0, 2], [1, -1], [2, 0]]


def test_a_location_holds_candidates_that_no_location_is_in():
    """What a scan lacks is the step's to say: the atlas is the same for all scans."""
    prior = make_atlas(np.array([[-10.0, 0, 0], [-10.0, 8, 0]]), [1, 2], resolution=2)
    local = on_space(prior, point_space([[-10.0, 0, 0], [-10.0, -3, 0]]))
    assert local.candidates.tolist() == [[0, 1], [0, 1]]


def test_hemispheres_are_those_of_the_structure_and_not_of_the_sign_of_x():
    xyz = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    prior = make_atlas(xyz, [1, 2], resolution=2, hemisphere=[LEFT, RIGHT])
    space = dataclasses.replace(point_space([[0.5, 0, 0], [-0.5, 0, 0]]), hemisphere=np.array([LEFT, RIGHT], np.int8))
    assert on_space(prior, space).labels.tolist() == [0, 1]


@pytest.mark.parametrize("step", [2, 4])
def test_a_prior_of_another_resolution_gives_the_same_labels_away_from_borders(step):
    edge = np.array([[3.0, 0, 0, -21], [0, 3, 0, -21], [0, 0, 3, -21], [0, 0, 0, 1]])
    space = grid_space(np.ones((15, 15, 15), bool), edge)
    local = on_space(slab(step, 20), space)
    expected = np.digitize(space.xyz[:, 1], [-10, 10]) + 3 * (space.xyz[:, 0] >= 0)
    clear = (np.abs(np.abs(space.xyz[:, 1]) - 10) > 3) & (np.abs(space.xyz[:, 0]) > 0)
    assert (local.labels >= 0).all()
    assert clear.mean() > 0.5
    assert_array_equal(local.labels[clear], expected[clear])
    assert_array_equal(covered(slab(step, 20), space), 1)


def test_coverage_says_which_parcels_lie_where_there_is_no_signal():
    edge = np.array([[4.0, 0, 0, -22], [0, 4, 0, -22], [0, 0, 4, -22], [0, 0, 0, 1]])
    space = grid_space(np.ones((12, 12, 12), bool), edge)
    found = covered(slab(4, 20), space, space.xyz[:, 1] <= 5)
    assert_array_equal(found[[2, 5]], 0)
    assert_array_equal(found[[0, 3]], 1)
    assert ((found[[1, 4]] > 0) & (found[[1, 4]] < 1)).all()


def test_a_fine_prior_on_every_second_of_its_own_voxels_is_fully_covered():
    fine, coarse = (np.stack(np.meshgrid(*[np.arange(-16.0, 17, step)] * 3, indexing="ij"), -1).reshape(-1, 3) for step in (2, 4))
    space = dataclasses.replace(point_space(coarse), resolution=4.0)
    assert_array_equal(covered(make_atlas(fine, 1 + (fine[:, 1] > 1), resolution=2), space), 1)


def test_nearest_locations_and_coverage_equal_brute_force():
    prior, space = cloud(7), dataclasses.replace(locations(1500), resolution=5.0)
    valid = np.random.default_rng(2).random(1500) < 0.7
    d = np.linalg.norm(np.float64(prior.xyz)[:, None] - space.xyz[None], axis=-1)
    near = d.min(1) <= 5 * np.sqrt(3) / 2 + 1e-3
    nearest = np.where(near, d.argmin(1), -1)
    assert_array_equal(nearest_locations(prior, space), nearest)
    seen = near & valid[nearest]
    found = coverage_of(prior, nearest, valid)
    assert_allclose(found, [seen[prior.labels == k].mean() for k in range(7)], atol=1e-6)
    assert 0.1 < found.mean() < 0.9
    assert found.dtype == np.float32


def test_padding_locations_cover_nothing():
    prior, space = cloud(7), dataclasses.replace(locations(1500), resolution=5.0)
    nearest, valid = nearest_locations(prior, space), np.random.default_rng(2).random(1500) < 0.7
    assert (nearest < 0).any()
    assert_array_equal(coverage_of(prior, nearest, np.pad(valid, (0, 30))), coverage_of(prior, nearest, valid))
    assert_array_equal(coverage_of(prior, np.full_like(nearest, -1), valid), 0)


def test_the_order_of_locations_does_not_matter():
    prior, space = cloud(20), locations()
    order = np.random.default_rng(3).permutation(len(space))
    moved = dataclasses.replace(space, xyz=space.xyz[order], hemisphere=space.hemisphere[order])
    a, b = on_space(prior, space), on_space(prior, moved)
    for name in ("candidates", "log_prior", "labels"):
        assert_array_equal(getattr(b, name), getattr(a, name)[order])


def test_a_scan_that_does_not_overlap_is_refused_with_both_extents():
    message = r"atlas memory does not overlap the scan: none of 2 locations lies within 4 mm .*\(atlas spans .* mm, scan .* mm\)"
    with pytest.raises(ValueError, match=message):
        on_space(slab(4, 20), point_space([[200.0, 300, 0], [-200, 300, 0]]))


def test_ids_need_be_neither_contiguous_nor_sorted_and_background_is_dropped():
    prior = make_atlas(np.arange(18.0).reshape(6, 3) - 9, [40, 7, 0, 40, -2, 1000], resolution=2, source="toy", space="MNI152NLin6Asym")
    assert prior.ids.tolist() == [7, 40, 1000]
    assert prior.labels.tolist() == [1, 0, 1, 2]
    assert prior.names == ("parcel-7", "parcel-40", "parcel-1000")
    assert prior.n_parcels == 3
    assert prior.hemispheres == ("L", "B", "R")


@pytest.mark.parametrize("names", [{7: "a", 40: "b", 3: "unused"}, ["a", "b"]])
def test_names_come_by_id_or_in_ascending_order(names):
    assert make_atlas(np.zeros((3, 3)), [40, 7, 7], resolution=2, names=names).names == ("a", "b")


def test_the_digest_tells_priors_apart_by_points_labels_and_ids():
    xyz, values = np.eye(3), np.array([1, 2, 2])
    one = make_atlas(xyz, values, resolution=2)
    assert make_atlas(xyz, values, resolution=2, names=["x", "y"]).digest == one.digest
    others = [(2 * xyz, values), (xyz, [1, 1, 2]), (xyz, [1, 3, 3])]
    assert len({one.digest, *(make_atlas(*other, resolution=2).digest for other in others)}) == 4


def test_a_prior_without_labels_or_with_the_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match="atlas toy: no label above 0"):
        make_atlas(np.zeros((2, 3)), [0, -1], resolution=2, source="toy")
    with pytest.raises(ValueError, match="atlas toy: expected one name per id, found 2 ids and 3 names"):
        make_atlas(np.zeros((2, 3)), [1, 2], resolution=2, names=["a", "b", "c"], source="toy")


@pytest.mark.parametrize(
    "names",
    [
        ("LH_001", "RH_001"),
        ("Left-Thalamus-Proper", "Right-Thalamus-Proper"),
        ("Precentral_L", "Precentral_R"),
        ("HIP-lh", "HIP-rh"),
        ("L V1", "R V1"),
        ("7Networks_LH_Vis_1", "7Networks_RH_Vis_1"),
        ("CortexLeft", "CortexRight"),
        ("area (left)", "area (right)"),
    ],
)
def test_names_that_say_a_side(names):
    xyz = np.array([[-20.0, 0, 0], [20, 0, 0]])
    assert names_on_other_side(make_atlas(xyz, [1, 2], resolution=4, names=names)) == (0, 2)
    assert names_on_other_side(make_atlas(-xyz, [1, 2], resolution=4, names=names)) == (2, 2)


def test_names_that_say_no_side():
    xyz = np.array([[-20.0, 0, 0], [20, 0, 0], [-20, 20, 0], [-1, -20, 0], [1, -20, 0]])
    names = ("Lingual", "Rolandic", "left and right", "L vermis")
    assert names_on_other_side(make_atlas(xyz, [1, 2, 3, 4, 4], resolution=4, names=names)) == (0, 0)  # the last lies on both sides
