"""Distance correlation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register
from pnet_jax.ops import distance_correlation as op


@register(
    "distance_correlation",
    units="distance correlation",
    diagonal="1",
    signed=False,
    description="Distance correlation of mean parcel signals, sensitive to linear and nonlinear dependence",
    masked=lambda signals, kept: op.distance_correlation(signals[None], kept[None])[0],
)
@jax.jit
def distance_correlation(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute Székely's distance correlation, with diagonal 1; NaN for a constant signal. It is biased: above 0 for independent signals."""
    return op.distance_correlation(jnp.asarray(signals)[None])[0]
