"""Public functions of the op."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops._choose import choose
from pnet_jax.ops.portrait import chunked, graph, reference, spread
from pnet_jax.ops.portrait.settings import PortraitSettings

_PATHS = {"reference": reference.shortest_paths, "chunked": chunked.shortest_paths}
_FROM_SOURCE = {"reference": reference.shortest_paths, "chunked": chunked.paths_from_source}
_HOPS = {"reference": reference.hops, "chunked": chunked.hops}
_PORTRAITS = {"reference": reference.portraits, "chunked": chunked.portraits}
_DIVERGENCES = {"reference": reference.divergences, "chunked": chunked.divergences}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PortraitDivergence:
    """Portrait divergences and the settings used.

    Attributes:
      divergence: divergences from 0 (same portrait) to 1, `[S, S]`, or `[P]` for given pairs; NaN for a network without nodes.
      nodes: number of nodes of each network, `[S]`.
      density: share of the pairs of nodes with an edge in the graph used, `[S]`.
      negative: share of the pairs of nodes with a negative weight, which is not an edge, `[S]`.
      settings: settings used.
    """

    divergence: Float[Array, " *P"]
    nodes: Int[Array, " S"]
    density: Float[Array, " S"]
    negative: Float[Array, " S"]
    settings: PortraitSettings = dataclasses.field(metadata={"static": True})


def shortest_paths(lengths: Float[Array, "S N N"], *, hops: bool = False, implementation: str | None = None) -> Float[Array, "S N N"]:
    r"""Compute the lengths of the shortest paths between all pairs of nodes of each network.

    .. math:: d_{ij} = \min_{i \to m_1 \to \dots \to j} \ell_{i m_1} + \ell_{m_1 m_2} + \dots

    Args:
      lengths: length of each edge, ≥ 0, inf if there is no edge, `[S, N, N]`; the diagonal is ignored.
      hops: whether to count edges instead of adding lengths; much faster.
      implementation: `"reference"` (min-plus products) or `"chunked"` (default; Floyd–Warshall, or products of 0/1 matrices for hops).

    Returns:
      Shortest path lengths d, `[S, N, N]`; 0 on the diagonal, inf for unconnected nodes.

    Raises:
      ValueError: If `lengths` is not a stack of square matrices or the implementation is unknown.

    Memory: the result plus a few [N, N] matrices (of 8 networks for hops).

    >>> shortest_paths(jnp.array([[[0, 1, 5], [1, 0, 2], [5, 2, 0.0]]]))[0].tolist()
    [[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]

    Source: Floyd 1962; Warshall 1962.
    """
    _check_square("lengths", lengths)
    if not hops:
        return choose(_PATHS, implementation)(lengths)
    off = ~jnp.eye(lengths.shape[-1], dtype=bool)[None]
    return choose(_HOPS, implementation)(jnp.isfinite(lengths) & off, lengths.dtype)


def portraits(
    distances: Float[Array, "S N N"],
    edges: Float[Array, " L+1"],
    present: Bool[Array, "S N"] | None = None,
    *,
    implementation: str | None = None,
) -> Float[Array, "S L N+1"]:
    """Compute network portraits: B[l, k] is the number of nodes that have exactly k nodes at a distance in bin l.

    Args:
      distances: shortest path lengths from `shortest_paths`, `[S, N, N]`.
      edges: bin edges, ascending, `[L+1]`; bins include their left edge, and the last bin also its right edge.
      present: mask of the present nodes, `[S, N]`; default: all.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Portraits B of integer values, `[S, L, N+1]`; each row sums to the number of nodes.

    Raises:
      ValueError: If shapes do not agree or the implementation is unknown.

    Memory: the result plus the [N, L] counts of one network (`chunked`), or [S, N, L, N+1] (`reference`).

    >>> chain = jnp.array([[[0, 1, 2], [1, 0, 1], [2, 1, 0.0]]])
    >>> portraits(chain, jnp.arange(4.0))[0].astype(int).tolist()
    [[0, 3, 0, 0], [0, 2, 1, 0], [1, 2, 0, 0]]

    Source: Bagrow et al. 2008, EPL 81:68004.
    """
    _check_square("distances", distances)
    if edges.ndim != 1 or len(edges) < 2:
        raise ValueError(f"edges must have shape [L + 1] with at least two values, got shape {edges.shape}")
    present = jnp.ones(distances.shape[:2], bool) if present is None else present
    if present.shape != distances.shape[:2]:
        raise ValueError(f"present must have shape {distances.shape[:2]} (networks, nodes), got {present.shape}")
    return choose(_PORTRAITS, implementation)(distances, edges, present)


def portrait_divergence(
    weights: Float[Array, "S N N"],
    settings: PortraitSettings | None = None,
    *,
    pairs: Int[Array, "P 2"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> PortraitDivergence:
    r"""Compute portrait divergences, which compare the distance distributions of networks; nodes need not correspond.

    .. math::
      D = \tfrac12 \mathrm{KL}(P \| M) + \tfrac12 \mathrm{KL}(Q \| M), \quad M = \tfrac12 (P + Q), \quad
      P(k, l) = k B_{lk} \big/ \textstyle\sum_{l k} k B_{lk}

    in bits, so that 0 ≤ D ≤ 1. For the alternative definition of P, see `PortraitSettings.convention`.

    Args:
      weights: symmetric weights, `[S, N, N]`. Edges are the positive weights off the diagonal, thresholded by `settings.density`. A node is
        absent if all its edges are NaN; a node without edges is present.
      settings: settings of the portraits; default: hops at 15 % density with the spanning tree, in the authors' convention.
      pairs: pairs of networks to compare, `[P, 2]`; default: all pairs.
      implementation: `"reference"` or `"chunked"` (default).
      mesh: mesh whose axis "subject" splits the networks and the pairs; default: no split. The data needed for comparisons are gathered
        once.

    Returns:
      `PortraitDivergence`, with the settings.

    Raises:
      ValueError: If weights or pairs have the wrong shape, weights are not symmetric, infinite, or above 1 if their length would then be
        negative (values are checked outside `jit` only), the implementation is unknown, or the mesh lacks the axis or its size does not
        divide S.

    Memory: three arrays like `weights`, plus the portraits `[S, levels, N + 1]` if bins are common to all pairs (`"hops"`, `edges`).
    The number of levels for hops is N inside `jit`, and that of the longest path outside.

    >>> star = jnp.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0.0]])
    >>> chain = jnp.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0.0]])
    >>> found = portrait_divergence(jnp.stack([star, chain]), PortraitSettings(density=None))
    >>> f"{found.divergence[0, 1]:.3f}", found.settings.convention
    ('0.598', 'author')

    Source: Bagrow and Bollt 2019, Applied Network Science 4:45.
    """
    settings = settings or PortraitSettings()
    _check_square("weights", weights)
    _check_values(weights, settings)
    if pairs is not None and (pairs.ndim != 2 or pairs.shape[1] != 2):
        raise ValueError(f"pairs must have shape [P, 2], got {pairs.shape}")
    if pairs is not None:
        chex.assert_type(pairs, int, exception_type=ValueError, custom_message="pairs must be integers")
    choose(_DIVERGENCES, implementation)
    spread.check(mesh, len(weights), implementation)
    graphs, present, density, negative = spread.each(mesh, _graphs, settings.density, settings.tree)(weights)
    distances, edges = _distances(graphs, settings, implementation, mesh)
    found, nodes = _divergences(distances, present, pairs, edges, _of_pairs(settings), implementation, mesh)
    return PortraitDivergence(found, nodes, density, negative, settings)


def _of_pairs(settings: PortraitSettings) -> PortraitSettings:
    """Return only the settings on which the comparison depends, so that other settings do not trigger a recompilation."""
    plain, hops = PortraitSettings(), settings.lengths == "hops"
    return dataclasses.replace(
        plain,
        convention=settings.convention,
        bins=plain.bins if hops else settings.bins,
        rounding=plain.rounding if hops or settings.rounding else None,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _graphs(weights: Array, density: float | None, tree: bool) -> tuple[Array, Array, Array, Array]:
    """Return the weights of the kept edges, the present nodes, and the density and share of negative weights of each network."""
    kept = graph.positive_edges(weights) if density is None else graph.keep_strongest(weights, density, tree=tree)
    present = graph.present(weights)
    nodes = present.sum(1, dtype=jnp.int32)
    edges = jnp.maximum(nodes * (nodes - 1), 1)
    negative = (weights < 0) & ~jnp.eye(weights.shape[-1], dtype=bool)[None]
    shares = [(edge.sum((1, 2), dtype=jnp.int32) / edges).astype(weights.dtype) for edge in (kept > 0, negative)]
    return kept, present, shares[0], shares[1]


def _distances(
    graphs: Array, settings: PortraitSettings, implementation: str | None, mesh: Mesh | None
) -> tuple[Array, Array | np.ndarray | None]:
    """Return the lengths of the shortest paths, and the bin edges if they are common to all pairs."""
    if settings.lengths == "hops":
        hops = spread.each(mesh, _paths, "hops", None, implementation)(graphs)
        levels = hops.shape[-1]
        if not isinstance(hops, jax.core.Tracer):
            farthest = int(jnp.max(hops, where=jnp.isfinite(hops), initial=0))
            levels = min(levels, 1 << farthest.bit_length())  # a power of 2 ≥ farthest + 1, so that few shapes are compiled
        return hops, np.arange(levels + 1).astype(graphs.dtype)
    paths = spread.each(mesh, _paths, settings.lengths, settings.rounding, implementation)(graphs)
    return paths, None if settings.edges is None else np.asarray(settings.edges, graphs.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _paths(graphs: Array, lengths: str, rounding: int | None, implementation: str | None) -> Array:
    w = jnp.where(graphs > 0, graphs, 1)
    length = {"hops": jnp.ones_like(w), "1/w": 1 / w, "1-w": 1 - w, "-log w": -jnp.log(w), "w": w}[lengths]
    edges = jnp.where(graphs > 0, length, jnp.inf)
    if lengths == "hops":
        return shortest_paths(edges, hops=True, implementation=implementation)
    if rounding is None:  # sums in the order of Dijkstra's algorithm
        return choose(_FROM_SOURCE, implementation)(edges)
    paths = shortest_paths(edges, implementation=implementation)
    return jax.lax.reduce_precision(jnp.minimum(paths, paths.swapaxes(1, 2)), jnp.finfo(paths.dtype).nexp, rounding)


@functools.partial(jax.jit, static_argnames=("settings", "implementation", "mesh"))
def _divergences(
    distances: Array,
    present: Array,
    pairs: Array | None,
    edges: Array | None,
    settings: PortraitSettings,
    implementation: str | None,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    """Return the divergences of the given pairs or of all pairs, and the numbers of nodes."""
    nodes, compare = present.sum(1, dtype=jnp.int32), choose(_DIVERGENCES, implementation)
    if mesh is not None:
        compare = functools.partial(spread.divergences, mesh)
    if pairs is not None:
        return compare(distances, present, pairs, edges, settings), nodes
    rows, columns = np.triu_indices(len(distances), 1)
    found = compare(distances, present, jnp.asarray(np.stack([rows, columns], 1), jnp.int32), edges, settings)
    upper = jnp.zeros((len(distances),) * 2, found.dtype).at[rows, columns].set(found)
    return jnp.where((nodes[:, None] > 0) & (nodes[None, :] > 0), upper + upper.T, jnp.nan), nodes


def _check_square(name: str, x: Any) -> None:
    if x.ndim != 3 or x.shape[1] != x.shape[2] or not x.shape[1]:
        raise ValueError(f"{name} must be [networks, nodes, nodes], got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _check_values(weights: Any, settings: PortraitSettings) -> None:
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights)
    for index, network in enumerate(values):
        off = ~np.eye(len(network), dtype=bool)
        if np.isinf(network).any():
            raise ValueError(f"weights must be finite or NaN, network {index} has an infinite weight")
        if not np.allclose(network, network.T, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"weights must be symmetric, network {index} differs from its transpose by {np.nanmax(np.abs(network - network.T)):.2g}"
            )
        largest = np.max(network, where=off & ~np.isnan(network), initial=0)
        if settings.lengths in ("1-w", "-log w") and largest > 1:
            raise ValueError(f"weights must be at most 1 for lengths {settings.lengths!r}, network {index} has {largest:.4g}")
