"""Control parcels for individual parcels: random parcels of equal sizes, and Ward clusters of the same signals."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.spatial import cKDTree

from pnet_jax.parcellation.geodesic import Sheet, nearest_seed, sheet
from pnet_jax.parcellation.score import hemisphere_parts, mean_places, middles
from pnet_jax.space import LEFT, RIGHT, Space

ROUNDS = 60  # iterations that adjust the sizes of random parcels
STEP = 0.5


def random_parcels(labels: Int[np.ndarray, " V"], space: Space, rng: np.random.Generator) -> Int[np.ndarray, " V"]:
    """Return compact parcels at random positions with approximately the sizes of the given ones, within each hemisphere.

    Each location is assigned to the seed with the smallest d² − w (a power diagram), and each vertex of a mesh to the seed with the
    smallest d + w along the cortex; the weights w of seeds with too few or too many locations are adjusted until the sizes match.

    Args:
      labels: Given parcels, −1 outside, which remains outside.
      space: Space with V locations.
      rng: Random generator that draws seeds from the locations and assigns sizes to seeds.

    Returns:
      Labels; those of each hemisphere are the given labels of that hemisphere.

    Source: Aurenhammer 1987 on power diagrams with given sizes; random parcels of the same number and size as a null by Gordon et al. 2016.
    """
    out = np.full_like(labels, -1)
    for side, here in hemisphere_parts(space, labels >= 0):
        parcels, sizes = np.unique(labels[here], return_counts=True)
        dealt, xyz = rng.permutation(len(parcels)), space.xyz[here].astype(np.float64)
        if space.mesh is not None and space.mesh.vertex[here[0]] >= 0:
            of = sheet(space.mesh, side)
            cells = _cells_on_cortex(of, of.at(space.mesh.vertex[here]), xyz, sizes[dealt], rng)
        else:
            cells = _power_diagram(xyz, sizes[dealt], rng)
        out[here] = parcels[dealt][cells]
    return out


def _cells_on_cortex(
    of: Sheet, at: Int[np.ndarray, " n"], xyz: Float[np.ndarray, "n 3"], sizes: Int[np.ndarray, " k"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Cells around seeds on a mesh, each in one piece on it, of about the given sizes.

    Args:
      of: hemisphere.
      at: its vertices that are dealt.
      xyz: their places, mm.
      sizes: numbers of vertices.
      rng: draws the seeds.
    """
    seeds, start = rng.choice(len(at), len(sizes), replace=False), np.zeros(len(sizes))
    width = np.sqrt(sizes) * float(np.median(of.graph.data))  # mm, about
    best, error = np.zeros(len(at), int), np.inf
    for turn in range(ROUNDS):
        cell = nearest_seed(of, at[seeds], start - start.min())[at]
        lost = cell < 0  # a piece of the mesh without a seed
        cell[lost] = cKDTree(xyz[seeds]).query(xyz[lost])[1]
        count = np.bincount(cell, minlength=len(sizes))
        off = float(np.abs(count - sizes).sum())
        if off < error:
            best, error = cell, off
        if turn < ROUNDS // 3:
            there, index = np.unique(cell, return_inverse=True)
            seeds[there] = middles(xyz, index, mean_places(xyz, index))
        start -= STEP / 2 * width * np.clip((sizes - count) / sizes, -1, 1)
    return best


def _power_diagram(xyz: Float[np.ndarray, "n 3"], sizes: Int[np.ndarray, " k"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    seeds = xyz[rng.choice(len(xyz), len(sizes), replace=False)]
    area = np.cbrt(np.prod(np.ptp(xyz, axis=0) + 1) / len(sizes)) ** 2  # mm², squared width of a parcel
    weight = np.zeros(len(sizes))
    best, error = np.zeros(len(xyz), int), np.inf
    for turn in range(ROUNDS):
        nearest = (np.square(xyz[:, None] - seeds[None]).sum(2) - weight).argmin(1)
        count = np.bincount(nearest, minlength=len(sizes))
        off = float(np.abs(count - sizes).sum())
        if off < error:
            best, error = nearest, off
        # Seeds move to their centroids in the first rounds; otherwise, seeds at a boundary could not grow.
        if turn < ROUNDS // 3:
            sums = np.stack([np.bincount(nearest, weights=xyz[:, axis], minlength=len(sizes)) for axis in range(3)], 1)
            seeds = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], seeds)
        weight += STEP * area * np.clip((sizes - count) / sizes, -1, 1)
    return best


def ward(y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"], space: Space) -> Int[np.ndarray, " V"]:
    """Return Ward clusters of adjacent locations, with as many clusters per hemisphere as given parcels.

    Args:
      y: Signals, standardised over time, `[V, T]`.
      labels: Given parcels, −1 outside, which remains outside; they determine only the numbers of clusters.
      space: Space with V locations and neighbours.

    Source: Ward 1963; scikit-learn's AgglomerativeClustering; for parcellations Thirion et al. 2014.
    """
    from sklearn.cluster import AgglomerativeClustering

    row, at = np.nonzero(space.neighbours >= 0)
    graph = coo_matrix((np.ones(len(row)), (row, space.neighbours[row, at])), shape=(len(space),) * 2).tocsr()
    out, used = np.full_like(labels, -1), 0
    for side in (LEFT, RIGHT):
        here = np.flatnonzero((space.hemisphere == side) & (labels >= 0))
        if len(here):
            count = len(np.unique(labels[here]))
            out[here] = used + AgglomerativeClustering(count, linkage="ward", connectivity=_connected(graph[here][:, here])).fit_predict(
                y[here]
            )
            used += count
    return out


def _connected(graph):
    """Link disconnected components by one edge each; scikit-learn would do this with a warning and compute all distances."""
    from scipy.sparse.csgraph import connected_components

    count, piece = connected_components(graph, directed=False)
    if count == 1:
        return graph
    first = np.array([np.flatnonzero(piece == one)[0] for one in range(count)])
    main = first[np.bincount(piece).argmax()]
    links = first[first != main]
    extra = coo_matrix(
        (np.ones(2 * len(links)), (np.r_[links, np.full(len(links), main)], np.r_[np.full(len(links), main), links])), graph.shape
    )
    return (graph + extra).tocsr()


def pieces(labels: Int[np.ndarray, " V"], space: Space) -> int:
    """Return the total number of connected components of all parcels. DCBC rewards fragments: compare maps with similar numbers."""
    from scipy.sparse.csgraph import connected_components

    row, at = np.nonzero(space.neighbours >= 0)
    other = space.neighbours[row, at]
    alike: Bool[np.ndarray, " m"] = (labels[row] == labels[other]) & (labels[row] >= 0)
    graph = coo_matrix((np.ones(alike.sum()), (row[alike], other[alike])), shape=(len(labels),) * 2)
    count, _ = connected_components(graph, directed=False)
    return int(count - (labels < 0).sum())
