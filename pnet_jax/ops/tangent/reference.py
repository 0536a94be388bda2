"""Reference definition: a fixed number of fixed-point steps from the arithmetic mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS = 30


def of_values(matrix: Float[Array, "*S K K"], function: Callable[[Array], Array]) -> Float[Array, "*S K K"]:
    """Apply a function to the eigenvalues of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.matmul(vectors * function(values)[..., None, :], jnp.swapaxes(vectors, -1, -2), precision="highest")


def logs(covariances: Float[Array, "S K K"], mean: Float[Array, "K K"]) -> Float[Array, "S K K"]:
    inverse = of_values(mean, lambda v: 1 / jnp.sqrt(v))
    return of_values(jnp.einsum("kl,slm,mn->skn", inverse, covariances, inverse, precision="highest"), jnp.log)


def tangent(covariances: Float[Array, "S K K"]) -> tuple[Float[Array, "S K K"], Float[Array, "K K"]]:
    def step(mean: Float[Array, "K K"], _: None) -> tuple[Float[Array, "K K"], None]:
        half = of_values(mean, jnp.sqrt)
        new = jnp.linalg.multi_dot([half, of_values(logs(covariances, mean).mean(0), jnp.exp), half], precision="highest")
        return (new + new.T) / 2, None

    mean, _ = jax.lax.scan(step, covariances.mean(0), length=STEPS)
    return logs(covariances, mean), mean
