"""Precision and partial correlation from a shrunk covariance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register
from pnet_jax.ops import partial as op


@jax.jit
def ledoit_wolf(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute the covariance of one subject's signals, shrunk towards its mean variance; see `ops.partial.ledoit_wolf`."""
    return op.ledoit_wolf(jnp.asarray(signals)[None])[0]


@register(
    "precision",
    units="inverse squared unit of the signals",
    diagonal="inverse of the variance not explained by all other parcels",
    signed=True,
    description="Inverse of the Ledoit-Wolf covariance of mean parcel signals",
)
@jax.jit
def precision(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute the inverse of the Ledoit–Wolf covariance."""
    return op.precision(jnp.asarray(signals)[None])[0]


@register(
    "partial",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description="Partial correlation from the Ledoit-Wolf covariance of mean parcel signals",
)
@jax.jit
def partial(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Compute the correlation of two parcels given all others, with diagonal 1; NaN for a constant signal.

    The problem is ill-posed unless the effective number of frames (about 2 · bandwidth · duration) is well above K; see `n_eff` in the QC.
    """
    return op.partial(jnp.asarray(signals)[None])[0]
