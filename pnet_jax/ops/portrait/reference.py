"""The definition."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.portrait.settings import PortraitSettings


def shortest_paths(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    """Min-plus products until nothing changes; lengths add up from the source outward, as in Dijkstra's algorithm, to the last bit."""

    def one(lengths: Float[Array, "N N"]) -> Float[Array, "N N"]:
        def further(state: tuple[Array, Array]) -> tuple[Array, Array]:
            paths, _ = state
            longer = jnp.min(paths[:, :, None] + lengths[None, :, :], axis=1)
            return jnp.minimum(paths, longer), jnp.any(longer < paths)

        start = jnp.where(jnp.eye(len(lengths), dtype=bool), jnp.zeros_like(lengths), jnp.inf)
        return jax.lax.while_loop(lambda state: state[1], further, (start, jnp.array(True)))[0]

    return jax.lax.map(one, lengths)


def hops(adjacency: Bool[Array, "S N N"], dtype: np.dtype) -> Float[Array, "S N N"]:
    return shortest_paths(jnp.where(adjacency, 1, jnp.inf).astype(dtype))


def portraits(distances: Float[Array, "S N N"], edges: Float[Array, " L+1"], present: Bool[Array, "S N"]) -> Float[Array, "S L N+1"]:
    nodes = distances.shape[-1]
    at_least, below = edges[None, None, None, :-1], edges[None, None, None, 1:]
    last = jnp.arange(len(edges) - 1) == len(edges) - 2
    d = jnp.where(present[:, :, None] & present[:, None, :], distances, jnp.inf)[..., None]  # [S, N, N, 1]
    inside = (d >= at_least) & ((d < below) | (last[None, None, None, :] & (d == below)))
    seen = inside.sum(2)  # [S, N, L]: how many nodes each node has in each bin
    exactly = (seen[..., None] == jnp.arange(nodes + 1)[None, None, None, :]) & present[:, :, None, None]
    return exactly.sum(1).astype(distances.dtype)


def distribution(portrait: Float[Array, "*S L K"], convention: str) -> Float[Array, "*S L K"]:
    pairs = portrait * jnp.broadcast_to(jnp.arange(portrait.shape[-1], dtype=portrait.dtype), portrait.shape)
    total = pairs.sum((-2, -1), keepdims=True)
    if convention == "author":
        return pairs / total
    return portrait / portrait.sum(-1, keepdims=True) * pairs.sum(-1, keepdims=True) / total


def percentile_edges(distances: Float[Array, " M"], bins: int) -> Float[Array, " L+1"]:
    """Percentiles of the different path lengths, interpolated linearly."""
    values = jnp.unique(distances, size=distances.size, fill_value=jnp.inf)
    n = jnp.isfinite(values).sum()
    at = (n - 1).astype(values.dtype) * jnp.asarray(np.linspace(0, 100, bins + 1) / 100, values.dtype)
    low = jnp.floor(at).astype(n.dtype)
    a, b, t = values[low], values[jnp.minimum(low + 1, n - 1)], at - jnp.floor(at)
    return jnp.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))


def divergences(
    distances: Float[Array, "S N N"],
    present: Bool[Array, "S N"],
    pairs: Int[Array, "P 2"],
    edges: Float[Array, " L+1"] | None,
    settings: PortraitSettings,
) -> Float[Array, " P"]:
    def one(pair: Int[Array, " 2"]) -> Float[Array, ""]:
        shown = jnp.where(present[pair][:, :, None] & present[pair][:, None, :], distances[pair], jnp.inf)
        common = percentile_edges(shown.reshape(-1), settings.bins) if edges is None else edges
        p, q = distribution(portraits(shown, common, present[pair]), settings.convention)
        m = (p + q) / 2
        entropy = [jnp.where(x > 0, x * jnp.log2(jnp.where(x > 0, x, 1) / jnp.where(m > 0, m, 1)), 0).sum() for x in (p, q)]
        return (entropy[0] + entropy[1]) / 2

    return jax.lax.map(one, pairs)
