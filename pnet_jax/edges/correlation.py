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
    """Pearson's r, diagonal 1; a constant signal gives NaN. Take `arctanh` before averaging or testing."""
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
    """Sample covariance with T − 1 in the denominator. Signals are means of z-scored locations: a large value also says coherent."""
    centred = signals - jnp.mean(signals, axis=1, keepdims=True)
    return jnp.matmul(centred, centred.T, precision="highest") / (signals.shape[1] - 1)
