"""Precision and partial correlation, from a shrunk covariance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register


@jax.jit
def ledoit_wolf(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Covariance shrunk towards its mean variance, always invertible.

    .. math:: \hat\Sigma = (1 - \delta) S + \delta\, \tfrac{\mathrm{tr} S}{K} I

    with the δ that minimises the expected squared error; S has T in the denominator.

    Args:
      signals: any unit, `[K, T]`.

    Source: Ledoit & Wolf 2004, Journal of Multivariate Analysis.
    """
    parcels, frames = signals.shape
    x = signals - signals.mean(1, keepdims=True)
    sample = jnp.matmul(x, x.T, precision="highest") / frames
    level = jnp.trace(sample) / parcels
    # Sum over t of |x_t x_t' - S|^2 without forming any of the T matrices.
    fourth = jnp.square(jnp.square(x).sum(0)).sum() / frames
    noise = (fourth - jnp.square(sample).sum()) / frames
    distance = jnp.square(sample - level * jnp.eye(parcels)).sum()
    shrinkage = jnp.clip(noise / jnp.where(distance > 0, distance, 1.0), 0.0, 1.0)
    return (1 - shrinkage) * sample + shrinkage * level * jnp.eye(parcels)


@register(
    "precision",
    units="inverse squared unit of the signals",
    diagonal="inverse of the variance left by all other parcels",
    signed=True,
    description="Inverse of the Ledoit-Wolf covariance of mean parcel signals",
)
@jax.jit
def precision(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    """Inverse of the Ledoit–Wolf covariance."""
    inverse = jnp.linalg.inv(ledoit_wolf(jnp.asarray(signals)))
    return (inverse + inverse.T) / 2


@register(
    "partial",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description="Partial correlation from the Ledoit-Wolf covariance of mean parcel signals",
)
@jax.jit
def partial(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Correlation of two parcels given all others, :math:`-P_{kl} / \sqrt{P_{kk} P_{ll}}`, diagonal 1.

    Ill-posed unless the effective number of frames (about 2 · bandwidth · duration) is well above K: see `n_eff` in the QC.
    """
    inverse = precision(signals)
    scale = 1 / jnp.sqrt(jnp.diag(inverse))
    return jnp.where(jnp.eye(len(inverse), dtype=bool), 1.0, -inverse * scale[:, None] * scale[None, :])
