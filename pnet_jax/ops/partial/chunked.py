"""Default implementation: a few subjects at a time; the inverse is computed from the Cholesky factor, which keeps it symmetric."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pnet_jax.ops._signals import centre, subjects_a_block

_Subject = tuple[Float[Array, "K T"], Float[Array, " T"]]


def ledoit_wolf(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return _over_subjects(lambda subject: _covariance(subject)[0], signals, kept)


def precision(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return _over_subjects(lambda subject: _inverse(_covariance(subject)[0]), signals, kept)


def partial(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return _over_subjects(_partial, signals, kept)


def _over_subjects(one: Callable[[_Subject], Array], signals: Array, kept: Array) -> Array:
    """Map over blocks of subjects; the gradient recomputes each block instead of storing it."""
    return jax.lax.map(jax.checkpoint(one), (signals, kept), batch_size=subjects_a_block(len(signals)))


def _covariance(subject: _Subject) -> tuple[Float[Array, "K K"], Bool[Array, " K"]]:
    signals, kept = subject
    x, _, varies = centre(signals, kept)
    parcels, frames = len(x), jnp.maximum(kept.sum(), 1)
    identity = jnp.eye(parcels, dtype=x.dtype)
    sample = jnp.matmul(x, x.T, precision="highest") / frames
    level = jnp.trace(sample) / parcels
    # Sum over t of |x_t x_t' - S|^2, without forming the T matrices.
    fourth = jnp.square(jnp.square(x).sum(0)).sum() / frames
    noise = (fourth - jnp.square(sample).sum()) / frames
    distance = jnp.square(sample - level * identity).sum()
    shrinkage = jnp.clip(noise / jnp.where(distance > 0, distance, 1.0), 0.0, 1.0)
    return (1 - shrinkage) * sample + shrinkage * level * identity, varies


def _inverse(covariance: Float[Array, "K K"]) -> Float[Array, "K K"]:
    factor = jnp.linalg.cholesky(covariance)
    half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True)
    return jnp.matmul(half.T, half, precision="highest")


def _partial(subject: _Subject) -> Float[Array, "K K"]:
    covariance, varies = _covariance(subject)
    identity = jnp.eye(len(varies), dtype=covariance.dtype)
    # If all signals of a subject are constant, the covariance is singular; any inverse will do, because all its values are masked.
    inverse = _inverse(jnp.where(varies.any(), covariance, identity))
    scale = jax.lax.rsqrt(jnp.diag(inverse))
    found = jnp.where(identity > 0, 1.0, -inverse * scale[:, None] * scale[None, :])
    return jnp.where(varies[:, None] & varies[None, :], found, jnp.nan)
