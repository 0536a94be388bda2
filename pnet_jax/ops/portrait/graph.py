"""Graphs from edge weights: maximum spanning tree and density threshold."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@jax.jit
def spanning_tree(weights: Float[Array, "S N N"]) -> Bool[Array, "S N N"]:
    """Find the maximum spanning tree with Prim's algorithm, or a spanning forest if the positive edges do not connect all nodes.

    Args:
      weights: symmetric weights, `[S, N, N]`; edges are the positive weights.

    Returns:
      Whether each edge is in the tree, symmetric, `[S, N, N]`. Of equal weights, the one found first is taken.

    >>> spanning_tree(jnp.array([[[0, 0.9, 0.5], [0.9, 0, 0.7], [0.5, 0.7, 0]]]))[0].astype(int).tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]

    Source: Prim 1957.
    """
    return jax.vmap(_prim)(weights)


def _prim(weights: Float[Array, "N N"]) -> Bool[Array, "N N"]:
    nodes = len(weights)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        inside, best, parent = state
        node = jnp.argmax(jnp.where(inside, -1, best))
        inside = inside.at[node].set(True)
        closer = ~inside & (weights[node] > best)
        return inside, jnp.where(closer, weights[node], best), jnp.where(closer, node.astype(parent.dtype), parent)

    start = (jnp.zeros(nodes, bool), jnp.zeros(nodes, weights.dtype), jnp.zeros(nodes, jnp.int32))
    _, best, parent = jax.lax.fori_loop(0, nodes, step, start)
    half = jnp.zeros((nodes, nodes), bool).at[jnp.arange(nodes, dtype=jnp.int32), parent].set(best > 0)
    return half | half.T


def keep_strongest(weights: Float[Array, "S N N"], density: float, *, tree: bool = True) -> Float[Array, "S N N"]:
    r"""Keep the strongest positive edges of each network at a given density.

    With :math:`n` nodes, :math:`\lfloor \rho\, n (n - 1) / 2 + 1/2 \rfloor` edges are kept. With `tree`, the edges of the maximum spanning
    tree are kept first, so that the graph stays connected; the tree is kept even if it alone exceeds the density.

    Args:
      weights: symmetric weights, `[S, N, N]`; NaN, negative and diagonal values are not edges.
      density: density ρ in (0, 1], the share of the pairs of nodes with an edge; nodes whose edges are all NaN do not count.
      tree: whether to keep the maximum spanning tree.

    Returns:
      Weights of the kept edges, 0 elsewhere, `[S, N, N]`. Of equal weights, those with the lower row and column are kept first.

    Raises:
      ValueError: If the density is outside (0, 1].

    Memory: three arrays like `weights`.

    >>> kept = keep_strongest(jnp.array([[[1, 0.9, 0.5], [0.9, 1, -0.7], [0.5, -0.7, 1]]]), 0.4)
    >>> (kept[0] > 0).astype(int).tolist()
    [[0, 1, 1], [1, 0, 0], [1, 0, 0]]

    Source: van Wijk, Stam and Daffertshofer 2010 on densities; Stam et al. 2014 on spanning trees.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    return _keep_strongest(weights, float(density), tree)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _keep_strongest(weights: Float[Array, "S N N"], density: float, tree: bool) -> Float[Array, "S N N"]:
    # The number of edges is often exactly halfway between two integers: fractions decide, not the rounding of a product.
    share, size = Fraction(repr(density)), weights.shape[-1] + 1
    asked = np.array([math.floor(share * (n * (n - 1) // 2) + Fraction(1, 2)) for n in range(size)], np.int32)
    wanted = jnp.asarray(asked)[present(weights).sum(1)]
    positive = positive_edges(weights)
    first = spanning_tree(positive) if tree else jnp.zeros_like(positive, bool)
    return jax.lax.map(lambda network: _strongest(*network), (positive, first, wanted))


def _strongest(weights: Float[Array, "N N"], first: Bool[Array, "N N"], wanted: Int[Array, ""]) -> Float[Array, "N N"]:
    rows, columns = np.triu_indices(len(weights), 1)
    score = jnp.where(first, jnp.inf, weights)[rows, columns]
    order = jnp.argsort(score, descending=True)  # stable
    place = jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    kept = jnp.where((place < wanted) | jnp.isinf(score), weights[rows, columns], 0)
    half = jnp.zeros_like(weights).at[rows, columns].set(kept)
    return half + half.T


def positive_edges(weights: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    """Return the positive weights off the diagonal, 0 elsewhere."""
    return jnp.where((weights > 0) & ~jnp.eye(weights.shape[-1], dtype=bool)[None], weights, 0)


def present(weights: Float[Array, "S N N"]) -> Bool[Array, "S N"]:
    """Return the mask of present nodes: those with an edge that is not NaN. A single node is present if its diagonal is not NaN."""
    off = ~jnp.eye(weights.shape[-1], dtype=bool)[None]
    return (~jnp.isnan(weights) & (off | (weights.shape[-1] == 1))).any(2)
