"""Default implementation: Newton steps on the manifold, with as few eigendecompositions as possible.

One eigendecomposition per subject costs about thirty matrix products, so it is used for more than the logarithm: given the
eigenvectors, a product with the Hessian takes four matrix products per subject, and conjugate gradients solve for the Newton step.
The initial mean is the geometric mean of the arithmetic and the harmonic mean, which is exact for two subjects. Two or three
steps are enough, and the logarithms at the last mean are the tangent vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.tangent.reference import of_values

CONJUGATE = 3
STEPS = 20
TOLERANCE = 3e-5


class _State(NamedTuple):
    """Mean, eigenvectors and eigenvalues of the logarithms at it, their mean, its largest absolute entry before and now, and step count."""

    mean: Float[Array, "K K"]
    vectors: Float[Array, "S K K"]
    values: Float[Array, "S K"]
    gradient: Float[Array, "K K"]
    before: Float[Array, ""]
    now: Float[Array, ""]
    steps: Int[Array, ""]


def tangent(covariances: Float[Array, "S K K"]) -> tuple[Float[Array, "S K K"], Float[Array, "K K"]]:
    nothing = jnp.full((), jnp.inf, covariances.dtype)
    state = _solve(_at(_start(covariances), covariances, nothing, jnp.zeros((), jnp.int32)), covariances)
    return _from(state.vectors, state.values), state.mean


def logs(covariances: Float[Array, "S K K"], mean: Float[Array, "K K"]) -> Float[Array, "S K K"]:
    return _from(*_decompose(covariances, mean))


def _start(covariances: Float[Array, "S K K"]) -> Float[Array, "K K"]:
    arithmetic = covariances.mean(0)
    harmonic = jnp.linalg.inv(jnp.linalg.inv(covariances).mean(0))
    half, inverse = of_values(arithmetic, jnp.sqrt), of_values(arithmetic, lambda v: 1 / jnp.sqrt(v))
    between = of_values(_product(inverse, (harmonic + harmonic.T) / 2, inverse), lambda v: jnp.sqrt(jnp.maximum(v, 0.0)))
    mean = _product(half, between, half)
    return (mean + mean.T) / 2


def _solve(start: _State, covariances: Float[Array, "S K K"]) -> _State:
    def unfinished(state: _State) -> Bool[Array, ""]:
        # Each Newton step reduces the gradient by a factor of ten or more, until rounding dominates.
        return (state.now > TOLERANCE) & (state.now < state.before / 2) & (state.steps < STEPS)

    def step(state: _State) -> _State:
        half = of_values(state.mean, jnp.sqrt)
        new = _product(half, of_values(_newton(state), jnp.exp), half)
        return _at((new + new.T) / 2, covariances, state.now, state.steps + 1)

    return jax.lax.while_loop(unfinished, step, start)


def _at(mean: Float[Array, "K K"], covariances: Float[Array, "S K K"], before: Float[Array, ""], steps: Int[Array, ""]) -> _State:
    vectors, values = _decompose(covariances, mean)
    gradient = _from(vectors, values).mean(0)
    return _State(mean, vectors, values, gradient, before, jnp.abs(gradient).max(), steps)


def _decompose(covariances: Float[Array, "S K K"], mean: Float[Array, "K K"]) -> tuple[Float[Array, "S K K"], Float[Array, "S K"]]:
    """Return eigenvectors and log eigenvalues of the whitened covariances; eigenvalues are clipped to the rounding of the largest."""
    inverse = of_values(mean, lambda v: 1 / jnp.sqrt(v))
    values, vectors = jnp.linalg.eigh(_product(inverse[None], covariances, inverse[None]))
    return vectors, jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).eps * values[:, -1:]))


def _newton(state: _State) -> Float[Array, "K K"]:
    r"""Solve :math:`\tfrac1S \sum_s V_s (c_s \circ V_s^\top H V_s) V_s^\top = M` approximately for the step H."""
    half = (state.values[:, :, None] - state.values[:, None, :]) / 2
    far = jnp.abs(half) > 1e-3
    curvature = jnp.where(far, half / jnp.tanh(jnp.where(far, half, 1.0)), 1.0)  # [S, K, K]
    turned = jnp.swapaxes(state.vectors, 1, 2)

    def curved(h: Float[Array, "K K"]) -> Float[Array, "K K"]:
        return _product(state.vectors, curvature * _product(turned, h[None], state.vectors), turned).mean(0)

    step, _ = jax.scipy.sparse.linalg.cg(curved, state.gradient, maxiter=CONJUGATE, tol=1e-4)
    return (step + step.T) / 2


def _from(vectors: Float[Array, "S K K"], values: Float[Array, "S K"]) -> Float[Array, "S K K"]:
    return _product(vectors * values[:, None, :], jnp.swapaxes(vectors, 1, 2))


def _product(*matrices: Array) -> Array:
    first, *others = matrices
    for other in others:
        first = jnp.matmul(first, other, precision="highest")
    return first
