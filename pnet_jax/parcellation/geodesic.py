r"""Distances along the cortex: shortest paths on a triangle mesh, which neither cross a sulcus nor change the hemisphere.

Paths run along the edges of triangles and straight across pairs of adjacent triangles, as in Connectome Workbench. They are paths on the
surface, so that a distance is never too short; `docs/development/surfaces.md` says by how much it is too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from pnet_jax.space import Mesh

SOURCES_AT_A_TIME = 256  # whose distances to all vertices of a hemisphere are held at once: 64 MiB of fsLR 32k


class Sheet(NamedTuple):
    """The mesh of one hemisphere as a graph.

    Attributes:
      vertices: numbers of its n vertices in the whole mesh, ascending, `[n]`.
      graph: length in mm of the paths between near vertices, symmetric, `[n, n]`.
    """

    vertices: Int[np.ndarray, " n"]
    graph: csr_matrix

    def at(self, vertices: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Where vertices of the whole mesh are among those of this hemisphere."""
        return np.searchsorted(self.vertices, vertices)


def sheet(mesh: Mesh, side: int) -> Sheet:
    """The mesh of one hemisphere as a graph, the medial wall included.

    Args:
      mesh: surfaces of both hemispheres.
      side: 0 left, 1 right.
    """
    vertices = np.flatnonzero(mesh.hemisphere == side)
    faces = np.searchsorted(vertices, mesh.faces[mesh.hemisphere[mesh.faces[:, 0]] == side])
    one, other, length = paths(mesh.xyz[vertices].astype(np.float64), faces)
    n = len(vertices)
    both = np.r_[one, other], np.r_[other, one]
    return Sheet(vertices, csr_matrix((np.r_[length, length], both), shape=(n, n)))


def paths(xyz: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "F 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends and the length of every edge, and of every straight way across an edge from one of its triangles to the other.

    The way across is the line between the opposite corners when both triangles are laid flat; it is left out where it would leave them.
    """
    corners = np.concatenate([np.roll(faces, -turn, axis=1) for turn in range(3)])  # edge a-b, opposite corner c
    a, b = np.sort(corners[:, :2], axis=1).T
    order = np.lexsort((b, a))
    a, b, c = a[order], b[order], corners[order, 2]
    same = (a[1:] == a[:-1]) & (b[1:] == b[:-1])
    first = np.flatnonzero(np.r_[True, ~same])
    along = np.linalg.norm(xyz[a] - xyz[b], axis=1)
    pair = np.flatnonzero(same)  # the triangles of rows `pair` and `pair + 1` share an edge
    edge = np.maximum(along[pair], 1e-9)
    direction = (xyz[b[pair]] - xyz[a[pair]]) / edge[:, None]
    (x, y), (u, v) = (_flat(xyz[corner] - xyz[a[pair]], direction) for corner in (c[pair], c[pair + 1]))
    crossing = x + (u - x) * y / np.maximum(y + v, 1e-9)
    good = (crossing >= 0) & (crossing <= edge) & (c[pair] != c[pair + 1])
    across = np.hypot(u - x, y + v)
    ends = np.r_[a[first], c[pair][good]], np.r_[b[first], c[pair + 1][good]]
    # Paths of two corners that share two edges: the shorter one. A length of 0 would be no path to scipy.
    key = np.minimum(*ends) * len(xyz) + np.maximum(*ends)
    length = np.maximum(np.r_[along[first], across[good]], 1e-6)
    order = np.lexsort((length, key))
    kept = order[np.r_[True, np.diff(key[order]) > 0]]
    return ends[0][kept], ends[1][kept], length[kept]


def _flat(offset: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a corner along an edge and away from it."""
    along = (offset * direction).sum(1)
    return along, np.sqrt(np.maximum(np.square(offset).sum(1) - along**2, 0))


def from_group(of: Sheet, sources: Int[np.ndarray, " m"], limit: float) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Vertices within reach of the nearest of some vertices, and how far they are.

    Args:
      of: hemisphere; vertices are counted in it.
      sources: where paths begin.
      limit: reach in mm.
    """
    distance = dijkstra(of.graph, indices=sources, limit=limit, min_only=True)
    near = np.flatnonzero(np.isfinite(distance))
    return near, distance[near]


def between(of: Sheet, vertices: Int[np.ndarray, " m"], limit: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of vertices within reach of each other: places of both in `vertices`, the first one lower, and the distance.

    Memory: `SOURCES_AT_A_TIME` · n · 8 bytes.
    """
    for start in range(0, len(vertices), SOURCES_AT_A_TIME):
        distance = dijkstra(of.graph, indices=vertices[start : start + SOURCES_AT_A_TIME], limit=limit)[:, vertices]
        first, second = np.nonzero(np.isfinite(distance) & (np.arange(len(vertices)) > start + np.arange(len(distance))[:, None]))
        yield first + start, second, distance[first, second]


def nearest_seed(of: Sheet, seeds: Int[np.ndarray, " k"], start: Float[np.ndarray, " k"] | None = None) -> Int[np.ndarray, " n"]:
    """For each vertex the seed from which it is nearest, −1 where no path leads there, `[n]`.

    Args:
      of: hemisphere; vertices are counted in it.
      seeds: vertices.
      start: mm that are added to the distances from each seed, 0 or more: a seed with a lower number has a larger cell.
    """
    n, k = of.graph.shape[0], len(seeds)
    # A node for each seed, whose only path is one of the added length to its vertex.
    added = csr_matrix((np.maximum(np.zeros(k) if start is None else start, 1e-6), (np.arange(k), seeds)), shape=(k, n))
    whole = csr_matrix(
        (
            np.r_[of.graph.data, added.data],
            np.r_[of.graph.indices, added.indices],
            np.r_[of.graph.indptr, of.graph.indptr[-1] + added.indptr[1:]],
        ),
        shape=(n + k, n + k),
    )
    _, _, source = dijkstra(whole, indices=n + np.arange(k), min_only=True, return_predecessors=True)
    return np.where(source[:n] >= n, source[:n] - n, -1)
