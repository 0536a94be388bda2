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
    description="Distance correlation of mean parcel signals, which linear and other relations raise alike",
    masked=lambda signals, kept: op.distance_correlation(signals[None], kept[None])[0],
)
@jax.jit
def distance_correlation(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Székely's distance correlation, diagonal 1; a constant signal gives NaN. Above 0 for independent signals too."""
    return op.distance_correlation(jnp.asarray(signals)[None])[0]
