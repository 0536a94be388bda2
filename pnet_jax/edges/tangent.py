"""Tangent-space connectivity of a cohort."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import _MEASURES, Measure

_MEASURES["tangent"] = Measure(
    "tangent",
    None,
    units="log ratio of covariances",
    diagonal="log variance ratio to the cohort",
    signed=True,
    description="Matrix logarithm of the Ledoit-Wolf covariance whitened by the cohort's geometric mean",
)


def _apply(matrix: Float[Array, "*S K K"], function: Callable[[Array], Array]) -> Float[Array, "*S K K"]:
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.matmul(vectors * function(values)[..., None, :], jnp.swapaxes(vectors, -1, -2), precision="highest")


@functools.partial(jax.jit, static_argnames="iterations")
def geometric_mean(covariances: Float[Array, "S K K"], iterations: int = 20) -> Float[Array, "K K"]:
    """Matrix G that minimises Σ_s |log G^-½ Σ_s G^-½|², by fixed-point steps from the arithmetic mean.

    Source: Varoquaux et al. 2010, MICCAI; Fletcher & Joshi 2007.
    """

    def step(mean: Float[Array, "K K"], _: None) -> tuple[Float[Array, "K K"], None]:
        half, inverse = _apply(mean, jnp.sqrt), _apply(mean, lambda v: 1 / jnp.sqrt(v))
        logs = _apply(inverse @ covariances @ inverse, lambda v: jnp.log(jnp.maximum(v, 1e-12)))
        new = half @ _apply(logs.mean(0), jnp.exp) @ half
        return (new + new.T) / 2, None

    return jax.lax.scan(step, covariances.mean(0), length=iterations)[0]


@jax.jit
def tangent(covariances: Float[Array, "S K K"]) -> tuple[Float[Array, "S K K"], Float[Array, "K K"]]:
    """Tangent vectors (as symmetric matrices) of positive-definite covariances at their geometric mean, and that mean.

    In a prediction study the mean belongs to the training subjects only.

    Args:
      covariances: e.g. by `inverse.ledoit_wolf`, `[S, K, K]`, two subjects or more.
    """
    mean = geometric_mean(covariances)
    inverse = _apply(mean, lambda v: 1 / jnp.sqrt(v))
    return _apply(inverse @ covariances @ inverse, lambda v: jnp.log(jnp.maximum(v, 1e-12))), mean
