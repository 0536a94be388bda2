"""Pearson correlation and covariance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register
from pnet_jax.ops.correlation import correlation


@register(
    "pearson",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description="Pearson correlation of mean parcel signals",
    masked=lambda signals, kept: correlation(signals[None], kept[None])[0],
)
@jax.jit
def pearson(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute Pearson's r, with diagonal 1; NaN for a constant signal. Apply `arctanh` before averaging or testing."""
    return correlation(jnp.asarray(signals)[None])[0]


@register(
    "covariance",
    units="squared unit of the signals",
    diagonal="variance",
    signed=True,
    description="Sample covariance of mean parcel signals",
)
@jax.jit
def covariance(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute the sample covariance with denominator T − 1.

    Signals are means of z-scored locations, so large values also reflect coherence within parcels.
    """
    centred = signals - jnp.mean(signals, axis=1, keepdims=True)
    return jnp.matmul(centred, centred.T, precision="highest") / (signals.shape[1] - 1)
