"""An atlas on the Space of a cohort: the same places whatever a scan's mask, and tables that say what brute force says."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.atlas import PADDING, coverage_of, make_atlas, on_space
from pnet_jax.parcellation.spatial import CUBE_MM, Rows, locate, pad_rows, place, rows_of, space_key, whole_space
from pnet_jax.scan import LOCATION_BUCKET, make_scan
from pnet_jax.space import grid_space, point_space, take


@pytest.fixture(scope="module")
def placed(toy):
    return place(toy.atlas, toy.space)


def ball(shift=0.0, radius=20.0):
    """Four parcels around a point, on 4-mm points."""
    xyz = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    xyz = xyz[np.linalg.norm(xyz, axis=1) <= radius]
    return make_atlas(xyz + [shift, 0, 0] + 1, 1 + (xyz[:, 1] > 0) + 2 * (xyz[:, 2] > 0), resolution=4, source="ball")


def air(shape=(40, 36, 30), step=4.0):
    """Affine of an image whose middle is at the origin, and all of its voxels."""
    affine = np.diag([step, step, step, 1])
    affine[:3, 3] = -step * (np.array(shape) - 1) / 2 + 0.5
    return affine, np.ones(shape, bool)


def test_the_whole_space_is_the_box_of_the_image_around_the_atlas():
    affine, full = air()
    atlas = ball()
    every = grid_space(full, affine)
    whole = whole_space(every, atlas)
    low, high = atlas.xyz.min(0) - CUBE_MM / 2, atlas.xyz.max(0) + CUBE_MM / 2
    wanted = ((every.xyz >= low) & (every.xyz <= high)).all(1)
    assert 8 * wanted.sum() < 8 * len(whole) < 4 * len(every)
    held = {tuple(ijk) for ijk in whole.grid.ijk.tolist()}
    assert {tuple(ijk) for ijk in every.grid.ijk[wanted].tolist()} <= held
    # At most one voxel further on every side.
    assert ((whole.xyz >= low - 4.01) & (whole.xyz <= high + 4.01)).all()


def test_the_box_is_found_through_a_turned_affine_and_a_way_to_mni():
    affine, full = air()
    turned = affine[:, [1, 0, 2, 3]] * [-1, 1, 1, 1]
    turned[:3, 3] = affine[:3, 3] + [0, 4.0 * (full.shape[1] - 1), 0]
    to_mni = np.eye(4)
    to_mni[:3, 3] = [12, -8, 4]
    atlas = ball()
    whole = whole_space(grid_space(full.transpose(1, 0, 2), turned, to_mni=to_mni), atlas)
    assert_array_equal(whole.grid.to_mni, to_mni)
    near = np.abs(whole.xyz).max(1) < 18
    assert near.sum() == 9**3  # all voxels of 4 mm within 18 mm
    assert len(whole) < full.size / 2


def test_masks_of_one_image_share_a_whole_space_a_key_and_tables(toy):
    less = toy.mask.copy()
    less[:, :6] = False
    space = grid_space(less, toy.affine)
    assert space_key(space) == space_key(toy.space)
    one, other = place(toy.atlas, toy.space), place(toy.atlas, space)
    assert_array_equal(one.space.grid.ijk, other.space.grid.ijk)
    for a, b in zip(jax.tree.leaves(one.prior), jax.tree.leaves(other.prior), strict=True):
        assert_array_equal(a, b)


def test_keys_tell_images_and_points_apart(toy):
    moved = toy.affine.copy()
    moved[0, 3] += 1
    points = point_space(toy.space.xyz[:50])
    others = [
        toy.space,
        grid_space(toy.mask, moved),
        grid_space(toy.mask[:-1], toy.affine),
        grid_space(toy.mask, toy.affine, to_mni=np.eye(4)),
        points,
        point_space(toy.space.xyz[:49]),
        dataclasses.replace(points, hemisphere=1 - points.hemisphere),
        dataclasses.replace(points, neighbours=np.full((50, 2), -1, np.int32)),
    ]
    assert len({space_key(space) for space in others}) == len(others)
    assert space_key(dataclasses.replace(points, name="other")) == space_key(points)
    assert hash(space_key(toy.space)) == hash(space_key(grid_space(toy.mask, toy.affine)))


def test_the_tables_are_those_of_the_locations_near_a_parcel(placed, toy):
    whole = whole_space(toy.space, toy.atlas)
    local = on_space(toy.atlas, whole)
    inside = np.flatnonzero(local.labels >= 0)
    inside = inside[np.argsort(local.labels[inside], kind="stable")]  # parcel by parcel
    assert_array_equal(placed.here, inside)
    n, prior = len(inside), placed.prior
    assert len(prior.labels) % LOCATION_BUCKET == 0
    assert prior.candidates.shape[1] % 8 == 0
    width = local.candidates.shape[1]
    assert_array_equal(prior.candidates[:n, :width], local.candidates[inside])
    assert_array_equal(prior.log_prior[:n, :width], local.log_prior[inside])
    assert_array_equal(prior.labels[:n], local.labels[inside])
    assert_array_equal(prior.xyz[:n], whole.xyz[inside])
    assert_array_equal(prior.neighbours[:n], take(whole, inside).neighbours)
    assert_array_equal(prior.table, match_table(prior.candidates, prior.neighbours, n_parcels=placed.n_parcels))


def test_padding_has_no_candidate_no_neighbour_and_no_label(placed):
    n, prior = len(placed.here), placed.prior
    for table in (prior.candidates, prior.neighbours, prior.labels):
        assert_array_equal(table[n:], -1)
    assert_array_equal(np.asarray(prior.log_prior)[np.asarray(prior.candidates) < 0], np.float32(PADDING))
    assert_allclose(np.exp(prior.log_prior[:n]).sum(1), 1, atol=1e-5)
    groups = np.asarray(prior.pairs.groups)
    assert_array_equal(np.sort(groups[groups >= 0]), np.arange(n))


def test_cubes_are_blocks_of_32_mm(placed):
    n = len(placed.here)
    cube = np.asarray(placed.prior.cube)
    block = np.floor(np.asarray(placed.prior.xyz[:n]) / CUBE_MM).astype(int)
    both = np.unique(np.column_stack([cube[:n], block]), axis=0)
    assert len(both) == len(np.unique(cube[:n])) == len(np.unique(block, axis=0)) <= len(placed.prior.cubes)
    assert cube.max() < len(placed.prior.cubes)
    assert len(placed.prior.cubes) % 64 == 0


def test_rows_are_the_same_voxels_of_a_scan(placed, toy):
    rows = rows_of(placed, toy.space)
    found = rows >= 0
    assert_array_equal(toy.space.grid.ijk[rows[found]], placed.space.grid.ijk[found])
    inside = toy.mask[tuple(placed.space.grid.ijk.T)]
    assert_array_equal(found, inside)


def test_a_scan_is_read_at_the_places_of_the_atlas_whatever_its_mask(placed, toy):
    """A mask that lacks voxels gives the same rows without them."""
    y = toy.signals(0, 30)
    lost = np.random.default_rng(0).random(len(toy.space)) < 0.2
    y[5] = 3.0  # does not vary
    whole = make_scan(y.copy(), toy.space, tr=2.0)
    part = make_scan(y[~lost].copy(), take(toy.space, np.flatnonzero(~lost)), tr=2.0)
    a, b = (locate(placed, scan) for scan in (whole, part))
    assert len(a.valid) == len(placed.prior.labels)
    assert not a.valid[len(placed.here) :].any()
    full, less = a.take(whole.y, 40), b.take(part.y, 40)
    assert full.shape == (len(a.valid), 40)
    gone = np.append(lost, False)[rows_of(placed, toy.space)]
    gone = np.pad(gone, (0, len(full) - len(gone)))
    assert_array_equal(b.valid, a.valid & ~gone)
    assert_array_equal(less, np.where(gone[:, None], 0, full))
    assert_array_equal(full[:, 30:], 0)
    at = a.at[a.valid]
    assert_array_equal(full[a.valid, :30], whole.y[at])
    assert 5 not in at
    assert_array_equal(np.sort(at), np.flatnonzero(whole.valid))


def test_rows_without_a_size_keep_all_frames():
    rows = Rows(np.array([2, 0, 0]), np.array([True, False, True]))
    assert_array_equal(rows.take(np.arange(9.0).reshape(3, 3)), [[6, 7, 8], [0, 0, 0], [0, 1, 2]])


def test_points_are_in_the_order_of_the_scan():
    xyz = np.random.default_rng(0).uniform(-30, 30, (300, 3))
    space, atlas = point_space(xyz), ball()
    placed = place(atlas, space)
    assert whole_space(space, atlas) is space
    assert 0 < len(placed.here) < 300
    assert_array_equal(rows_of(placed, space), placed.here)
    assert_array_equal(placed.space.xyz, space.xyz[placed.here])
    assert placed.prior.neighbours.shape == (LOCATION_BUCKET, 0)
    assert placed.prior.table.shape[0] == 0


def test_coverage_is_by_the_locations_of_the_scan(placed, toy):
    valid = np.ones(len(placed.here), bool)
    assert_array_equal(coverage_of(toy.atlas, placed.nearest, valid), 1)
    valid[np.asarray(placed.prior.labels)[: len(valid)] == 3] = False
    found = coverage_of(toy.atlas, placed.nearest, valid)
    assert found[3] == 0
    assert_array_equal(np.delete(found, 3), 1)


def test_an_atlas_far_from_the_image_is_refused():
    affine, full = air((8, 8, 8))
    with pytest.raises(ValueError, match=r"atlas ball does not overlap the scan: none of 512 locations"):
        place(ball(shift=300), grid_space(full, affine))


def test_a_scan_without_a_signal_near_the_atlas_is_refused_by_name(placed, toy):
    far = toy.space.xyz[:, 1] > 1e6
    far[:20] = True
    y = np.where(far[:, None], toy.signals(0, 30), 5.0).astype(np.float32)
    scan = dataclasses.replace(make_scan(y, toy.space, tr=2.0, subject="07"), valid=np.zeros(len(far), bool))
    with pytest.raises(ValueError, match=r"atlas toy does not overlap sub-07.*none of its 0 locations with a signal lies within 4 mm"):
        locate(placed, scan)


def test_rows_are_padded_to_a_bucket():
    assert pad_rows(np.ones((5, 2)), 7, multiple=4).tolist() == [[1, 1]] * 5 + [[7, 7]] * 3
    assert pad_rows(np.ones(8), 7, multiple=4).tolist() == [1] * 8
