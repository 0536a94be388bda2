"""Where locations are: the same brain gives the same locations, whatever way its file runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.space import LEFT, RIGHT, Space, grid_neighbours, grid_space, mesh_neighbours, point_space, take

SHAPE = (9, 11, 8)
AFFINE = np.array([[4.0, 0, 0, -18], [0, 4, 0, -20], [0, 0, 4, -12], [0, 0, 0, 1]])
GOLDEN = (1 + 5**0.5) / 2


def phantom() -> np.ndarray:
    """An ellipsoid with one corner cut off and a bump on one side: no symmetry left."""
    ijk = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    mask = (((ijk - [4, 5, 3.5]) / [4.2, 5.2, 3.7]) ** 2).sum(-1) < 1
    mask[5:, 7:, 5:] = False
    mask[8, 5, 3] = True
    return mask


def oblique(affine: np.ndarray = AFFINE) -> np.ndarray:
    """The affine of a head turned by 0.3 and 0.2 rad."""
    a, b = 0.3, 0.2
    turn = np.eye(4)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    turn[:3, :3] = np.array(about_z) @ about_x
    return turn @ affine


def store(volume: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same brain with its axes in another order and some of them running the other way."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = volume.shape[old] - 1 if flip else 0
    stored = np.flip(volume.transpose(axes), [i for i, flip in enumerate(flips) if flip])
    return stored, affine @ change


ORIENTATIONS = [
    pytest.param((0, 1, 2), (True, False, False), id="LAS"),
    pytest.param((1, 2, 0), (True, True, False), id="PIR"),
    pytest.param((2, 0, 1), (False, True, True), id="SLP"),
]


@pytest.mark.parametrize("affine", [pytest.param(AFFINE, id="straight"), pytest.param(oblique(), id="oblique")])
@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_the_same_brain_stored_another_way_gives_the_same_locations_in_the_same_order(affine, axes, flips):
    mask, level = phantom(), np.random.default_rng(0).normal(size=SHAPE)
    other, other_affine = store(mask, affine, axes, flips)
    a, b = grid_space(mask, affine), grid_space(other, other_affine)
    assert len(a) == mask.sum()
    assert_allclose(b.xyz, a.xyz, atol=2e-3)
    assert_array_equal(b.neighbours, a.neighbours)
    assert_array_equal(b.hemisphere, a.hemisphere)
    assert_array_equal(store(level, affine, axes, flips)[0][tuple(b.grid.ijk.T)], level[tuple(a.grid.ijk.T)])


@pytest.mark.parametrize("affine", [AFFINE, oblique()])
def test_indices_lead_to_the_coordinates_in_the_file_itself(affine):
    stored, there = store(phantom(), affine, (2, 0, 1), (True, False, True))
    space = grid_space(stored, there)
    assert_allclose(space.xyz, space.grid.ijk @ there[:3, :3].T + there[:3, 3], atol=1e-3)
    assert stored[tuple(space.grid.ijk.T)].all()
    assert space.grid.shape == stored.shape
    assert space.resolution == pytest.approx(4)
    assert_array_equal(space.hemisphere == LEFT, space.xyz[:, 0] < 0)


def test_a_native_affine_moves_the_coordinates_and_nothing_else():
    native = oblique() @ np.diag([1.0, 1, 1, 1])
    to_mni = np.array([[1.1, 0.05, 0, 30], [0, 0.9, 0, -4], [0, 0.1, 1.2, 6], [0, 0, 0, 1]])
    plain, moved = grid_space(phantom(), native), grid_space(phantom(), native, to_mni=to_mni)
    assert_allclose(moved.xyz, plain.xyz @ to_mni[:3, :3].T + to_mni[:3, 3], atol=5e-3)
    assert_array_equal(moved.grid.ijk, plain.grid.ijk)
    assert_array_equal(moved.neighbours, plain.neighbours)
    assert_array_equal(moved.grid.affine, native)
    assert moved.resolution == pytest.approx(4 * np.linalg.det(to_mni[:3, :3]) ** (1 / 3))
    assert (moved.hemisphere == RIGHT).sum() > (plain.hemisphere == RIGHT).sum()


def test_grid_neighbours_equal_brute_force():
    ijk = np.argwhere(np.random.default_rng(1).random((5, 6, 7)) < 0.4) + 3
    table = grid_neighbours(ijk)
    assert table.shape == (len(ijk), 26)
    close = np.abs(ijk[:, None] - ijk[None]).max(-1) == 1
    for v, row in enumerate(table):
        assert sorted(row[row >= 0]) == np.flatnonzero(close[v]).tolist()


def test_each_column_of_grid_neighbours_is_one_direction():
    space = grid_space(np.ones((4, 4, 4), bool), AFFINE)
    for column in space.neighbours.T:
        v = np.flatnonzero(column >= 0)
        steps = space.xyz[column[v]] - space.xyz[v]
        assert_allclose(steps, np.broadcast_to(steps[0], steps.shape))


def test_a_single_voxel_has_no_neighbours():
    assert (grid_neighbours(np.array([[5, 0, 2]])) == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_adjacency_is_symmetric(seed):
    mask = np.random.default_rng(seed).random((6, 5, 4)) < 0.5
    table = grid_space(mask, AFFINE).neighbours
    dense = np.zeros((len(table), len(table) + 1), bool)
    dense[np.arange(len(table))[:, None], table] = True
    dense = dense[:, :-1]
    assert_array_equal(dense, dense.T)
    assert not dense.diagonal().any()


def icosahedron() -> tuple[np.ndarray, np.ndarray]:
    points = np.array([np.roll([0, a, b * GOLDEN], shift) for a, b in itertools.product((-1, 1), repeat=2) for shift in range(3)])
    near = np.linalg.norm(points[:, None] - points[None], axis=-1)
    edge = np.isclose(near, 2)
    faces = [f for f in itertools.combinations(range(12), 3) if edge[f[0], f[1]] and edge[f[1], f[2]] and edge[f[0], f[2]]]
    return np.array(faces), edge


def test_mesh_neighbours_of_an_icosahedron_are_its_edges():
    faces, edge = icosahedron()
    assert len(faces) == 20
    table = mesh_neighbours(faces, np.arange(12))
    assert table.shape == (12, 5)
    for v in range(12):
        assert sorted(table[v]) == np.flatnonzero(edge[v]).tolist()


def test_mesh_neighbours_are_counted_among_the_given_vertices_only():
    faces, edge = icosahedron()
    vertices = np.array([7, 2, 11, 4, 0, 9])
    table = mesh_neighbours(faces, vertices)
    for v, row in enumerate(table):
        assert sorted(row[row >= 0]) == np.flatnonzero(edge[vertices[v]][vertices]).tolist()


def test_a_mesh_without_edges_between_the_given_vertices_has_an_empty_table():
    faces, edge = icosahedron()
    opposite = int(np.flatnonzero(~edge[0] & (np.arange(12) != 0))[-1])
    assert (mesh_neighbours(faces, np.array([0, opposite])) == -1).all()


def test_take_keeps_order_and_drops_neighbours_that_are_gone():
    space = grid_space(phantom(), AFFINE)
    keep = np.flatnonzero(np.random.default_rng(2).random(len(space)) < 0.6)
    part = take(space, keep)
    assert_array_equal(part.xyz, space.xyz[keep])
    assert_array_equal(part.hemisphere, space.hemisphere[keep])
    assert_array_equal(part.grid.ijk, space.grid.ijk[keep])
    rebuilt = np.zeros(SHAPE, bool)
    rebuilt[tuple(part.grid.ijk.T)] = True
    assert_array_equal(part.neighbours, grid_space(rebuilt, AFFINE).neighbours)


def test_take_of_everything_changes_nothing_and_of_nothing_is_empty():
    space = grid_space(phantom(), AFFINE)
    assert_array_equal(take(space, np.arange(len(space))).neighbours, space.neighbours)
    assert len(take(space, np.zeros(0, int))) == 0


def test_points_keep_their_names_and_have_no_neighbours():
    space = point_space([[-30, 0, 0], [30, 0, 0], [30, 6, 0]], names=["a", "b", "c"], name="MNI152NLin6Asym")
    assert isinstance(space, Space)
    assert space.kind == "points"
    assert space.neighbours.shape == (3, 0)
    assert space.hemisphere.tolist() == [LEFT, RIGHT, RIGHT]
    assert space.resolution == pytest.approx(6)
    assert take(space, np.array([0, 2])).names == ("a", "c")


def test_a_single_point_is_a_space():
    assert len(point_space([[1.0, 2, 3]])) == 1


@pytest.mark.parametrize(
    ("mask", "affine", "message"),
    [
        (np.ones((3, 3), bool), AFFINE, r"3 dimensions, got shape \(3, 3\)"),
        (np.zeros((3, 3, 3), bool), AFFINE, "mask is empty"),
        (np.ones((3, 3, 3), bool), np.diag([4.0, 0, 4, 1]), "invertible 4 x 4"),
        (np.ones((3, 3, 3), bool), np.eye(3), "invertible 4 x 4"),
        (np.ones((3, 3, 3), bool), np.full((4, 4), np.nan), "invertible 4 x 4"),
    ],
)
def test_a_grid_that_cannot_be_placed_is_refused(mask, affine, message):
    with pytest.raises(ValueError, match=message):
        grid_space(mask, affine)


def test_points_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match=r"shape \[V, 3\], got \(3, 2\)"):
        point_space(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        point_space([[np.nan, 0, 0]])
    with pytest.raises(ValueError, match="expected 2 ROI names, one per centroid, got 1"):
        point_space(np.eye(3)[:2], names=["a"])
