"""Distances along the cortex, and everything that is made from them: candidates, near pairs, centroids and null parcels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.csgraph import dijkstra

from pnet_jax.evaluate.null_parcels import pieces, random_parcels
from pnet_jax.parcellation.atlas import CUT_MM, make_atlas, on_space
from pnet_jax.parcellation.geodesic import between, from_group, nearest_seed, paths, sheet
from pnet_jax.parcellation.score import BIN_MM, FURTHEST_MM, RINGS, near_pairs, nearest_centroid, sample_pairs
from pnet_jax.parcellation.spatial import place, space_key
from pnet_jax.space import Mesh, Space, mesh_neighbours, take
from tests.ingest.meshes import icosphere


def mesh_space(*sheets: tuple[np.ndarray, np.ndarray], sides: tuple[int, ...] = (0,)) -> Space:
    """A Space of all vertices of some meshes."""
    start = np.cumsum([0, *(len(xyz) for xyz, _ in sheets)])
    xyz = np.concatenate([xyz for xyz, _ in sheets]).astype(np.float32)
    faces = np.concatenate([faces + first for (_, faces), first in zip(sheets, start, strict=False)]).astype(np.int32)
    side = np.repeat(np.array(sides, np.int8), np.diff(start))
    vertex = np.arange(len(xyz), dtype=np.int32)
    return Space(
        **{"xyz": xyz, "hemisphere": side, "structure": side.astype(np.int16), "structures": ("L", "R"), "kind": "cifti"},
        **{"neighbours": mesh_neighbours(faces, vertex), "name": "toy", "resolution": 1.0, "mesh": Mesh(xyz, faces, side, vertex)},
    )


def grid(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles between neighbours of a table of points, `[U, W, 3]`."""
    index = np.arange(points.shape[0] * points.shape[1]).reshape(points.shape[:2])
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    return points.reshape(-1, 3).astype(float), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def plane(length: int = 21, width: int = 15) -> tuple[np.ndarray, np.ndarray]:
    u, w = np.meshgrid(np.arange(length), np.arange(width), indexing="ij")
    return grid(np.stack([np.zeros(u.shape), w, u], -1))


def sulcus(depth: int = 30, width: int = 24, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two banks whose vertices lie `gap` mm apart, connected at the bottom; and for each vertex how far along it is, in mm."""
    down, y = np.arange(depth + 1), np.arange(width)
    x, z = np.r_[np.zeros(depth + 1), np.full(depth + 1, gap)], np.r_[down[::-1], down]
    points = np.stack([np.repeat(x[:, None], width, 1), np.repeat(y[None], len(x), 0), np.repeat(z[:, None], width, 1)], -1)
    along = np.repeat(np.r_[down, depth + gap + down], width)
    return *grid(points), along


def sphere_errors(level: int) -> np.ndarray:
    """Relative errors of distances from 20 vertices of a sphere of 100 mm to those 2 to 34 mm away."""
    xyz, faces = icosphere(level, 100.0)
    of = sheet(mesh_space((xyz, faces)).mesh, 0)
    sources = np.random.default_rng(0).choice(len(xyz), 20, replace=False)
    found = dijkstra(of.graph, indices=sources, limit=40)
    exact = 100 * np.arccos(np.clip(xyz[sources] @ xyz.T / 1e4, -1, 1))
    return (found / np.where(exact > 0, exact, 1) - 1)[(exact > 2) & (exact < 34)]


@pytest.mark.parametrize("level", [4, 5])
def test_distances_on_a_sphere(level):
    errors = sphere_errors(level)
    assert errors.min() > -2e-3  # the chords of triangles are a little shorter than arcs
    assert errors.max() < 0.05 and 0.005 < errors.mean() < 0.025


def test_ways_across_edges_are_straight():
    xyz, faces = plane(3, 3)
    one, other, length = paths(xyz, faces)
    found = dict(zip(zip(np.minimum(one, other), np.maximum(one, other), strict=True), length, strict=True))
    # Vertex 3u + w is at (u, w); squares are cut along 0-4, so that 1-3 crosses an edge, and so does 0-5 (two triangles, one up, one over).
    assert_allclose([found[0, 1], found[0, 4], found[1, 3], found[0, 5], found[0, 7]], [1, 2**0.5, 2**0.5, 5**0.5, 5**0.5])
    assert all(np.isclose(mm, np.linalg.norm(xyz[a] - xyz[b])) for (a, b), mm in found.items())
    assert (0, 2) not in found  # along two edges


def test_ways_that_would_leave_both_triangles_are_none():
    xyz = np.array([[0.0, 0, 0], [1, 0, 0], [3, 1, 0], [3, -1, 0]])  # the line from 2 to 3 passes beside the edge 0-1
    one, other, _ = paths(xyz, np.array([[0, 1, 2], [1, 0, 3]]))
    assert {tuple(sorted(pair)) for pair in zip(one.tolist(), other.tolist(), strict=True)} == {(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)}


def test_distances_go_around_a_sulcus():
    xyz, faces, along = sulcus()
    of = sheet(mesh_space((xyz, faces)).mesh, 0)
    near, mm = from_group(of, np.flatnonzero(along == 0), 36.0)
    assert_allclose(mm, along[near], rtol=1e-6)  # straight down, and up on the other side
    assert near.tolist() == np.flatnonzero(along <= 36).tolist()


def test_no_way_leads_to_the_other_hemisphere():
    left, right = plane(), plane()
    space = mesh_space(left, (right[0] + [0.5, 0, 0], right[1]), sides=(0, 1))
    for side in (0, 1):
        of = sheet(space.mesh, side)
        assert of.graph.shape == (315, 315) and (space.hemisphere[of.vertices] == side).all()
        assert np.isfinite(dijkstra(of.graph, indices=0)).all()
    pairs = near_pairs(space, [np.flatnonzero(space.hemisphere == side) for side in (0, 1)])
    assert int((np.asarray(pairs.ring[0]) >= 0).sum()) == int((np.asarray(pairs.ring[1]) >= 0).sum()) > 0


def test_the_side_of_a_mixed_mesh_is_the_same_as_alone():
    xyz, faces = icosphere(2, 20.0)
    both = mesh_space((xyz, faces), (1.5 * xyz, faces), sides=(1, 0))
    for side, alone in ((1, (xyz, faces)), (0, (1.5 * xyz, faces))):
        one, other = sheet(both.mesh, side), sheet(mesh_space(alone, sides=(side,)).mesh, side)
        assert_allclose((one.graph - other.graph).toarray(), 0, atol=1e-6)
    assert sheet(both.mesh, 0).at(np.array([162, 163, 323])).tolist() == [0, 1, 161]


def test_between_gives_each_pair_once():
    xyz, faces = icosphere(3, 30.0)
    of = sheet(mesh_space((xyz, faces)).mesh, 0)
    chosen = np.random.default_rng(1).choice(len(xyz), 300, replace=False)
    parts = list(between(of, chosen, 20.0))
    assert len(parts) == 2
    first, second, mm = (np.concatenate(part) for part in zip(*parts, strict=True))
    whole = dijkstra(of.graph, indices=chosen)[:, chosen]
    expected = np.argwhere(np.triu(whole <= 20, 1))
    assert_array_equal(np.stack([first, second], 1)[np.lexsort((second, first))], expected)
    assert_allclose(mm, whole[first, second])


def test_nearest_seed():
    xyz, faces = icosphere(3, 30.0)
    of = sheet(mesh_space((xyz, faces)).mesh, 0)
    rng = np.random.default_rng(2)
    seeds, start = rng.choice(len(xyz), 12, replace=False), rng.uniform(0, 8, 12)
    whole = dijkstra(of.graph, indices=seeds)
    assert_array_equal(nearest_seed(of, seeds), whole.argmin(0))
    assert_array_equal(nearest_seed(of, seeds, start), (whole + start[:, None]).argmin(0))
    lonely = mesh_space((xyz, faces), (xyz + 100, faces), sides=(0, 0))
    assert (nearest_seed(sheet(lonely.mesh, 0), seeds)[642:] == -1).all()


def bands(space: Space, along: np.ndarray, width: float = 10.0):
    """An atlas on the mesh itself, of stretches along the sulcus."""
    return make_atlas(space.xyz, 1 + (along // width).astype(int), resolution=1.0, hemisphere=space.hemisphere)


def test_candidates_lie_along_the_cortex():
    xyz, faces, along = sulcus()
    space = mesh_space((xyz, faces))
    atlas = bands(space, along)
    local = on_space(atlas, space)
    assert_array_equal(local.labels, atlas.labels)
    top = np.flatnonzero(along == 5)  # of the first bank; the last parcel is 1 mm away, through the sulcus
    for v in top[:3]:
        there = {int(k) for k in local.candidates[v] if k >= 0}
        assert there == {0, 1, 2}  # 0 is its own, 1 begins 5 mm away, 2 15 mm, 3 25 mm
    # Of the next parcel: exp(-5² / 2σ²), of its own: 1.
    weight = np.exp(local.log_prior[top[0], :2])
    assert_allclose(weight[1] / weight[0], np.exp(-(5.0**2) / (2 * 5.6**2)), rtol=1e-5)
    through = on_space(atlas, dataclasses.replace(space, mesh=None))
    assert {6, 5} & {int(k) for k in through.candidates[top[0]]}  # what distances in space would say


def test_candidates_beyond_the_reach_are_none():
    xyz, faces, along = sulcus()
    space = mesh_space((xyz, faces))
    local = on_space(bands(space, along, 4.0), space)
    for v in np.random.default_rng(0).choice(len(xyz), 50, replace=False):
        found = sorted(int(k) for k in local.candidates[v] if k >= 0)
        gaps = {k: max(0.0, along[along // 4 == k].min() - along[v], along[v] - along[along // 4 == k].max()) for k in range(16)}
        assert set(found) <= {k for k, mm in gaps.items() if mm <= CUT_MM + 1e-6} and int(along[v] // 4) in found


def test_a_gap_of_the_atlas_is_filled_along_the_cortex():
    xyz, faces, along = sulcus()
    space = mesh_space((xyz, faces))
    ids = np.where(along < 10, 0, 1 + (along // 10).astype(int))  # nothing on the first 10 mm, opposite to the last parcel
    local = on_space(make_atlas(space.xyz, ids, resolution=1.0, hemisphere=space.hemisphere), space)
    first = int(np.unique(local.labels[along == 10])[0])
    assert (local.labels[(along >= 6) & (along < 10)] == first).all() and (local.labels[along < 6] == -1).all()
    assert (local.candidates[along < 6] == -1).all()
    assert_allclose(np.exp(local.log_prior[along == 7]).sum(1), 1, rtol=1e-5)


def test_an_atlas_of_voxels_on_a_mesh():
    xyz, faces, along = sulcus(gap=8.0)
    space = mesh_space((xyz, faces))
    voxels = np.stack(np.meshgrid(*(np.arange(-4, n, 2.0) for n in (14, 30, 36)), indexing="ij"), -1).reshape(-1, 3) + np.array([0, 0, 0.4])
    ids = np.where(voxels[:, 0] < 4, 1, 2) + 2 * (voxels[:, 2] > 15)  # the two banks, each in two halves
    local = on_space(make_atlas(voxels, ids, resolution=2.0, hemisphere=np.zeros(len(voxels), np.int8)), space)
    assert_array_equal(local.labels == 2, along <= 14)
    assert (local.labels >= 0).all() and set(local.candidates[along == 0].ravel().tolist()) == {2, 0} | {-1}


def test_pairs_are_counted_along_the_cortex():
    xyz, faces, along = sulcus(width=8)
    space = mesh_space((xyz, faces))
    (groups, first, second, ring) = (np.asarray(x)[0] for x in near_pairs(space, [np.arange(len(xyz))]))
    used = ring >= 0
    a, b = groups[first[used]], groups[second[used]]
    whole = dijkstra(sheet(space.mesh, 0).graph)
    assert_array_equal(ring[used], np.floor((whole[a, b] - BIN_MM / 2) / BIN_MM).astype(int))
    expected = np.triu((whole >= BIN_MM / 2) & (whole < BIN_MM / 2 + RINGS * BIN_MM) & (whole <= FURTHEST_MM), 1)
    assert len(a) == expected.sum() and (a < b).all()
    assert not ((along[a] == 0) & (along[b] > 40)).any()  # 1 mm apart in space
    straight = near_pairs(dataclasses.replace(space, mesh=None), [np.arange(len(xyz))])
    assert (np.asarray(straight.ring) >= 0).sum() > used.sum()


def test_a_vertex_and_a_voxel_are_no_pair():
    xyz, faces = plane()
    space = mesh_space((xyz, faces))
    mesh = dataclasses.replace(space.mesh, vertex=np.where(np.arange(len(xyz)) % 3 == 0, -1, space.mesh.vertex))
    space = dataclasses.replace(space, mesh=mesh)
    groups, first, second, ring = (np.asarray(x)[0] for x in near_pairs(space, [np.arange(len(xyz))]))
    a, b = groups[first[ring >= 0]], groups[second[ring >= 0]]
    assert ((mesh.vertex[a] < 0) == (mesh.vertex[b] < 0)).all() and (mesh.vertex[a] < 0).any() and (mesh.vertex[a] >= 0).any()


def test_samples_of_pairs_hold_every_vertex():
    xyz, faces = icosphere(3, 40.0)
    space = mesh_space((xyz, faces), (xyz + np.array([90, 0, 0]), faces), sides=(0, 1))
    pairs = sample_pairs(space, np.arange(len(space)))
    groups = np.asarray(pairs.groups)
    assert sorted(groups[groups >= 0].tolist()) == list(range(len(space)))
    sides = space.hemisphere[groups.clip(0)]
    assert all(len(set(row[own].tolist())) <= 1 for row, own in zip(sides, groups >= 0, strict=True))


def test_centroids_along_the_cortex():
    xyz, faces, along = sulcus()
    space = mesh_space((xyz, faces))
    labels = (along // 15.5).astype(int)
    labels[:24] = -1
    found = nearest_centroid(labels, space)
    assert (found[:24] == -1).all()
    assert (found[24:] == labels[24:]).mean() > 0.9  # cells around the middles of the stretches are the stretches
    through = nearest_centroid(labels, dataclasses.replace(space, mesh=None))
    assert (through[24:] == labels[24:]).mean() < 0.8


def test_random_parcels_on_a_mesh_are_in_one_piece_and_of_the_sizes():
    xyz, faces, _ = sulcus(depth=40, width=30)
    space = mesh_space((xyz, faces))
    labels = np.repeat(np.arange(8), [100, 150, 200, 250, 300, 400, 460, 600])
    labels = np.r_[labels, np.full(len(xyz) - len(labels), -1)][: len(xyz)]
    found = random_parcels(labels, space, np.random.default_rng(0))
    assert_array_equal(found < 0, labels < 0)
    assert pieces(found, space) == 8
    wanted, got = (np.sort(np.bincount(x[x >= 0])) for x in (labels, found))
    assert np.abs(got - wanted).sum() < 0.1 * wanted.sum()
    assert_array_equal(found, random_parcels(labels, space, np.random.default_rng(0)))
    assert (found != random_parcels(labels, space, np.random.default_rng(1))).any()


def test_an_atlas_is_placed_on_a_mesh():
    xyz, faces = icosphere(3, 40.0)
    apart = np.array([50, 0, 0])
    space = mesh_space((xyz - apart, faces), (xyz + apart, faces), sides=(0, 1))
    ids = 1 + 4 * space.hemisphere + 2 * (space.xyz[:, 1] > 0) + (space.xyz[:, 2] > 0)
    placed = place(make_atlas(space.xyz, ids, resolution=4.0, hemisphere=space.hemisphere), space)
    assert len(placed.space) == len(space) and placed.space.mesh is not None
    assert_array_equal(placed.space.mesh.vertex, placed.here)
    assert_array_equal(np.asarray(placed.prior.labels)[: len(space)], ids[placed.here] - 1)
    flat = dataclasses.replace(space, mesh=None)
    assert space_key(space) != space_key(flat)
    other = dataclasses.replace(space, mesh=dataclasses.replace(space.mesh, xyz=1.1 * space.mesh.xyz))
    assert space_key(space) != space_key(other)


def test_part_of_a_mesh():
    space = mesh_space(plane())
    part = take(space, np.array([5, 0, 200]))
    assert part.mesh.vertex.tolist() == [5, 0, 200] and part.mesh.xyz is space.mesh.xyz
    # Ways lead over vertices that the part does not have.
    _, first, second, ring = (np.asarray(x)[0] for x in near_pairs(part, [np.arange(3)]))
    assert set(zip(first[ring >= 0].tolist(), second[ring >= 0].tolist(), strict=True)) == {(0, 1), (0, 2), (1, 2)}
