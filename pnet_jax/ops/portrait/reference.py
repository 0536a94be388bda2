"""Reference definition."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.portrait.settings import PortraitSettings


def shortest_paths(lengths: Float[Array, "S N N"]) -> Float[Array, "S N N"]:
    """Iterate min-plus products to convergence; lengths are summed from the source outward, bit for bit as in Dijkstra's algorithm."""

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
    seen = inside.sum(2)  # [S, N, L]: number of nodes at each node's distance bin
    exactly = (seen[..., None] == jnp.arange(nodes + 1)[None, None, None, :]) & present[:, :, None, None]
    return exactly.sum(1).astype(distances.dtype)


def distribution(portrait: Float[Array, "*S L K"], convention: str) -> Float[Array, "*S L K"]:
    pairs = portrait * jnp.broadcast_to(jnp.arange(portrait.shape[-1], dtype=portrait.dtype), portrait.shape)
    total = pairs.sum((-2, -1), keepdims=True)
    if convention == "author":
        return pairs / total
    return portrait / portrait.sum(-1, keepdims=True) * pairs.sum(-1, keepdims=True) / total


def percentile_edges(distances: Float[Array, " M"], bins: int, *, exact: bool) -> Float[Array, " L+1"]:
    """Return linearly interpolated percentiles of the distinct path lengths."""
    values = jnp.unique(distances, size=distances.size, fill_value=jnp.inf)
    n = jnp.isfinite(values).sum(dtype=jnp.int32)
    low, t = places(n, bins, values.dtype, exact=exact)
    a, b = values[low], values[jnp.minimum(low + 1, n - 1)]
    return jnp.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))


def places(n: Int[Array, ""], bins: int, dtype: np.dtype, *, exact: bool) -> tuple[Int[Array, " L+1"], Float[Array, " L+1"]]:
    """Return the ranks of the percentiles 0, 100 / bins, …, 100 among n sorted values, as an integer part and a fraction.

    With `exact`, integer arithmetic is used, so that a percentile that falls on a value is that value. A floating-point product can be
    rounded to just above it and move all paths of that length to the previous bin, differently in float32 and float64. Without `exact`,
    that product is used, as in numpy and netrd.
    """
    if not exact:
        at = (n - 1).astype(dtype) * jnp.asarray(np.linspace(0, 100, bins + 1) / 100, dtype)
        return jnp.floor(at).astype(n.dtype), at - jnp.floor(at)
    step = jnp.arange(bins + 1, dtype=jnp.int32)
    whole, rest = (n - 1) // bins, (n - 1) % bins  # (n - 1) · step itself would overflow
    return whole * step + rest * step // bins, (rest * step % bins).astype(dtype) / bins


def divergences(
    distances: Float[Array, "S N N"],
    present: Bool[Array, "S N"],
    pairs: Int[Array, "P 2"],
    edges: Float[Array, " L+1"] | None,
    settings: PortraitSettings,
) -> Float[Array, " P"]:
    def one(pair: Int[Array, " 2"]) -> Float[Array, ""]:
        shown = jnp.where(present[pair][:, :, None] & present[pair][:, None, :], distances[pair], jnp.inf)
        common = percentile_edges(shown.reshape(-1), settings.bins, exact=settings.rounding is not None) if edges is None else edges
        p, q = distribution(portraits(shown, common, present[pair]), settings.convention)
        m = (p + q) / 2
        entropy = [jnp.where(x > 0, x * jnp.log2(jnp.where(x > 0, x, 1) / jnp.where(m > 0, m, 1)), 0).sum() for x in (p, q)]
        return (entropy[0] + entropy[1]) / 2

    return jax.lax.map(one, pairs)
