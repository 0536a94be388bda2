"""Replication probabilities: how often an independent repeat of the scan would give a location the same parcel."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops.potts.chunked import sum_neighbours

VOTE_FLOOR = 1e-3
LEAST_Q = 1e-6
MOST = 3.0  # the exponents lie between 0 and this
START = 0.3
NEWTON_STEPS = 16
RADIUS = 0.5  # of the first step
RIDGE = 1e-4


def features(q: Float[Array, "V C"], table: Int[Array, "N V C"], degree: Float[Array, " V"]) -> Float[Array, "V C 2"]:
    """log q of each candidate, and the log of its mean over the neighbours, `[V, C, 2]`.

    Args:
      q: probabilities, `[V, C]`.
      table: see `SpatialPrior`.
      degree: neighbours of each location that count, `[V]`.
    """
    votes = sum_neighbours(q, table) / jnp.maximum(degree, 1.0)[:, None]
    return jnp.stack([jnp.log(jnp.maximum(q, LEAST_Q)), jnp.log(votes + VOTE_FLOOR)], axis=-1)


def calibrated(x: Float[Array, "V C 2"], exponents: Float[Array, " 2"], candidates: Int[Array, "V C"]) -> Float[Array, "V C"]:
    r"""Probabilities :math:`p_{vk} \propto q_{vk}^a (\bar q_{N(v)k} + .001)^b`, 0 where there is no candidate, `[V, C]`."""
    there = candidates >= 0
    logits = jnp.where(there, _weighted(x, exponents), -1e30)
    return jnp.where(there, jax.nn.softmax(logits, axis=1), 0.0)


def _weighted(x: Float[Array, "*n 2"], exponents: Float[Array, " 2"]) -> Float[Array, "*n"]:
    return exponents[0] * x[..., 0] + exponents[1] * x[..., 1]


def fit_exponents(x: Float[Array, "2 n C 2"], labels: Int[Array, "2 n"], candidates: Int[Array, "n C"]) -> Float[Array, " 2"]:
    """Exponents a and b that make each half's probabilities predict the other half's labels: conditional logit, both directions.

    Args:
      x: `features` of each half.
      labels: of the *other* half, in the same order.
      candidates: −1 where there is none, or where a location does not count.

    Returns:
      a and b, between 0 and 3, by Newton steps in a trust region.
    """
    there = (candidates >= 0)[None]
    hit = there & (candidates[None] == labels[:, :, None])
    weight = hit.any(-1).astype(x.dtype)  # [2, n]
    size = jnp.maximum(weight.sum(), 1.0)
    target = jnp.where(hit[..., None], x, 0.0).sum(2)  # [2, n, 2]

    def at(w: Array) -> _Model:
        logs = jax.nn.log_softmax(jnp.where(there, _weighted(x, w), -1e30), axis=-1)
        p = jnp.exp(logs)
        mean = (p[..., None] * x).sum(2)
        apart = x - mean[:, :, None, :]
        spread = (p[..., None, None] * apart[..., :, None] * apart[..., None, :]).sum(2)  # [2, n, 2, 2]
        value = -(weight * jnp.where(hit, logs, 0.0).sum(2)).sum() / size
        gradient = (weight[..., None] * (mean - target)).sum((0, 1)) / size
        return _Model(w, value, gradient, (weight[..., None, None] * spread).sum((0, 1)) / size + RIDGE * jnp.eye(2))

    def step(_: Array, state: tuple[_Model, Array]) -> tuple[_Model, Array]:
        here, radius = state
        tried = at(here.at + _least(here, jnp.maximum(-here.at, -radius), jnp.minimum(MOST - here.at, radius)))
        # Near the solution the values differ by rounding alone, and the step is right all the same.
        better = tried.value < here.value + 1e-6
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), tried, here)
        return kept, jnp.where(better, 2 * radius, radius / 4)

    start = at(jnp.full(2, START, x.dtype)), jnp.asarray(RADIUS, x.dtype)
    return jnp.clip(jax.lax.fori_loop(0, NEWTON_STEPS, step, start)[0].at, 0.0, MOST)


class _Model(NamedTuple):
    """Value and derivatives of what is minimised, at a point."""

    at: Float[Array, " 2"]
    value: Float[Array, ""]
    gradient: Float[Array, " 2"]
    hessian: Float[Array, "2 2"]


def _least(model: _Model, low: Float[Array, " 2"], high: Float[Array, " 2"]) -> Float[Array, " 2"]:
    """The step to the lowest point of the quadratic model in a box: inside it, or the lowest point of one of its four sides."""
    (g, h), ((a, b), (_, d)) = model.gradient, model.hessian
    inside = jnp.stack([b * h - d * g, b * g - a * h]) / (a * d - b * b)
    sides = [jnp.stack([end, jnp.clip(-(h + b * end) / d, low[1], high[1])]) for end in (low[0], high[0])]
    sides += [jnp.stack([jnp.clip(-(g + b * end) / a, low[0], high[0]), end]) for end in (low[1], high[1])]
    steps = jnp.stack([jnp.clip(inside, low, high), *sides])  # [5, 2]
    x, y = steps[:, 0], steps[:, 1]
    return steps[(g * x + h * y + a * x * x / 2 + b * x * y + d * y * y / 2).argmin()]


def never_sharper(p: Float[Array, "V C"], q: Float[Array, "V C"], weight: Float[Array, " V"]) -> Float[Array, "V C"]:
    """p, or q where p is on average more certain: replication is not correctness, and where the prior dominates both halves agree
    on what is wrong."""
    sharper = (p.max(1) * weight).sum() > (q.max(1) * weight).sum()
    return jnp.where(sharper, q, p)
