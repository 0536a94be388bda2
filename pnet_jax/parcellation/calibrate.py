"""Replication probabilities: calibrated probabilities that an independent scan gives a location the same parcel."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops.potts.chunked import sum_neighbours

VOTE_FLOOR = 1e-3
LEAST_Q = 1e-6
LEAST_PRIOR = -12.0  # minimum log π; a candidate at 16 mm has −8
MOST = 3.0  # maximum of the exponents
START = 0.3
NEWTON_STEPS = 16
RADIUS = 0.5  # initial trust-region radius
RIDGE = 1e-4
SWEEPS = 40


def features(
    q: Float[Array, "V C"], log_prior: Float[Array, "V C"], table: Int[Array, "N V C"], degree: Float[Array, " V"]
) -> Float[Array, "V C 3"]:
    """Compute log q of each candidate, the log of its mean over the neighbours, and log π.

    Args:
      q: probability of each candidate, `[V, C]`.
      log_prior: log π of each candidate, `[V, C]`.
      table: positions of the same parcel at the neighbours, see `SpatialPrior`, `[N, V, C]`.
      degree: number of valid neighbours of each location, `[V]`.

    Returns:
      The features, `[V, C, 3]`.
    """
    chex.assert_equal_shape([q, log_prior])
    chex.assert_shape([table, degree], [(None, *q.shape), (len(q),)])
    votes = sum_neighbours(q, table) / jnp.maximum(degree, 1.0)[:, None]
    return jnp.stack([jnp.log(jnp.maximum(q, LEAST_Q)), jnp.log(votes + VOTE_FLOOR), jnp.maximum(log_prior, LEAST_PRIOR)], axis=-1)


def calibrated(x: Float[Array, "V C F"], exponents: Float[Array, " F"], candidates: Int[Array, "V C"]) -> Float[Array, "V C"]:
    r"""Return :math:`p_{vk} \propto q_{vk}^a\, (\bar q_{N(v)k} + 0.001)^b\, \pi_{vk}^c`, 0 in the padding, `[V, C]`."""
    there = candidates >= 0
    logits = jnp.where(there, _weighted(x, exponents), -1e30)
    return jnp.where(there, jax.nn.softmax(logits, axis=1), 0.0)


def _weighted(x: Float[Array, "*n F"], exponents: Float[Array, " F"]) -> Float[Array, "*n"]:
    """Return x·w, summed feature by feature, because a matrix product with few columns is slower."""
    total = exponents[0] * x[..., 0]
    for i in range(1, x.shape[-1]):
        total = total + exponents[i] * x[..., i]
    return total


def fit_exponents(x: Float[Array, "2 n C F"], labels: Int[Array, "2 n"], candidates: Int[Array, "n C"]) -> Float[Array, " F"]:
    """Fit the exponents with which each half's probabilities predict the labels of the other half, by conditional logistic regression.

    Args:
      x: `features` of each half, `[2, n, C, F]`.
      labels: labels of the *other* half, in the same order, `[2, n]`.
      candidates: candidate parcels, −1 in the padding and for excluded locations, `[n, C]`.

    Returns:
      Exponents between 0 and 3, `[F]`, from Newton steps in a trust region.
    """
    chex.assert_rank(x, 4)
    chex.assert_shape([labels, candidates], [x.shape[:2], x.shape[1:3]])
    there = (candidates >= 0)[None]
    hit = there & (candidates[None] == labels[:, :, None])
    weight = hit.any(-1).astype(x.dtype)  # [2, n]
    size = jnp.maximum(weight.sum(), 1.0)
    count = x.shape[-1]
    target = jnp.where(hit[..., None], x, 0.0).sum(2)  # [2, n, F]

    def at(w: Array) -> _Model:
        logs = jax.nn.log_softmax(jnp.where(there, _weighted(x, w), -1e30), axis=-1)
        p = jnp.exp(logs)
        mean = (p[..., None] * x).sum(2)
        apart = x - mean[:, :, None, :]
        heavy = p * weight[..., None]
        spread = jnp.stack([jnp.stack([(heavy * apart[..., i] * apart[..., j]).sum() for j in range(count)]) for i in range(count)])
        value = -(weight * jnp.where(hit, logs, 0.0).sum(2)).sum() / size
        gradient = (weight[..., None] * (mean - target)).sum((0, 1)) / size
        return _Model(w, value, gradient, spread / size + RIDGE * jnp.eye(count))

    def step(_: Array, state: tuple[_Model, Array]) -> tuple[_Model, Array]:
        here, radius = state
        tried = at(here.at + _least(here, jnp.maximum(-here.at, -radius), jnp.minimum(MOST - here.at, radius)))
        # Near the solution, values differ only by rounding, and the step is still valid.
        better = tried.value < here.value + 1e-6
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), tried, here)
        return kept, jnp.where(better, 2 * radius, radius / 4)

    start = at(jnp.full(count, START, x.dtype)), jnp.asarray(RADIUS, x.dtype)
    return jnp.clip(jax.lax.fori_loop(0, NEWTON_STEPS, step, start)[0].at, 0.0, MOST)


class _Model(NamedTuple):
    """Value and derivatives of the objective at a point."""

    at: Float[Array, " F"]
    value: Float[Array, ""]
    gradient: Float[Array, " F"]
    hessian: Float[Array, "F F"]


def _least(model: _Model, low: Float[Array, " F"], high: Float[Array, " F"]) -> Float[Array, " F"]:
    """Return the step that minimises the quadratic model in a box, by coordinate descent, which is exact along each axis."""
    gradient, hessian = model.gradient, model.hessian

    def sweep(_: Array, x: Array) -> Array:
        for i in range(len(gradient)):
            slope = gradient[i] + (hessian[i] * x).sum() - hessian[i, i] * x[i]
            x = x.at[i].set(jnp.clip(-slope / hessian[i, i], low[i], high[i]))
        return x

    return jax.lax.fori_loop(0, SWEEPS, sweep, jnp.clip(jnp.zeros_like(gradient), low, high))


def never_sharper(p: Float[Array, "V C"], q: Float[Array, "V C"], weight: Float[Array, " V"]) -> Float[Array, "V C"]:
    """Return p, or q if p is more certain on average.

    Replication does not imply correctness: if the prior dominates, both halves agree on wrong labels.
    """
    sharper = (p.max(1) * weight).sum() > (q.max(1) * weight).sum()
    return jnp.where(sharper, q, p)
