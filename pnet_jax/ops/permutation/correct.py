"""Corrections for multiple comparisons."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def false_discovery_rate(p: Float[Array, " E"]) -> Float[Array, " E"]:
    r"""Compute the smallest false discovery rate at which each edge is significant (Benjamini and Hochberg).

    .. math:: q_{(i)} = \min_{j \ge i} \; p_{(j)} n / j

    Args:
      p: p values, `[E]`; NaN values are ignored.

    Returns:
      q values, `[E]`; NaN if p is NaN.

    >>> [f"{q:.3f}" for q in false_discovery_rate(jnp.array([0.01, 0.04, 0.03, jnp.nan]))]
    ['0.030', '0.040', '0.040', 'nan']

    Source: Benjamini and Hochberg 1995.
    """
    order = jnp.argsort(p)  # NaN last
    there = ~jnp.isnan(p)
    scaled = jnp.where(there, p, jnp.inf)[order] * there.sum().astype(p.dtype) / jnp.arange(1, len(p) + 1, dtype=p.dtype)
    q = jnp.zeros_like(p).at[order].set(jnp.minimum(jax.lax.cummin(scaled, reverse=True), 1))
    return jnp.where(there, q, jnp.nan)
