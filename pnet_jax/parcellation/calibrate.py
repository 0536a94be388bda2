"""Replication probabilities: how often an independent repeat of the scan would give a location the same parcel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops.potts.chunked import sum_neighbours

VOTE_FLOOR = 1e-3
LEAST_Q = 1e-6
LEAST_PRIOR = -12.0  # log π; a candidate at 16 mm has −8
MOST = 3.0  # the exponents lie between 0 and this
START = 0.3
NEWTON_STEPS = 12
MOST_STEP = 0.5
RIDGE = 1e-4


def features(
    q: Float[Array, "V C"], log_prior: Float[Array, "V C"], table: Int[Array, "N V C"], degree: Float[Array, " V"]
) -> Float[Array, "V C 3"]:
    """log q of each candidate, the log of its mean over the neighbours, and log π, `[V, C, 3]`.

    Args:
      q: probabilities, `[V, C]`.
      log_prior: log π of each candidate, `[V, C]`.
      table: see `SpatialPrior`.
      degree: neighbours of each location that count, `[V]`.
    """
    votes = sum_neighbours(q, table) / jnp.maximum(degree, 1.0)[:, None]
    return jnp.stack([jnp.log(jnp.maximum(q, LEAST_Q)), jnp.log(votes + VOTE_FLOOR), jnp.maximum(log_prior, LEAST_PRIOR)], axis=-1)


def calibrated(x: Float[Array, "V C F"], exponents: Float[Array, " F"], candidates: Int[Array, "V C"]) -> Float[Array, "V C"]:
    r"""Probabilities :math:`p_{vk} \propto q_{vk}^a\, (\bar q_{N(v)k} + .001)^b\, \pi_{vk}^c`, 0 where there is no candidate, `[V, C]`."""
    there = candidates >= 0
    logits = jnp.where(there, (x * exponents).sum(-1), -1e30)
    return jnp.where(there, jax.nn.softmax(logits, axis=1), 0.0)


def fit_exponents(x: Float[Array, "2 n C F"], labels: Int[Array, "2 n"], candidates: Int[Array, "n C"]) -> Float[Array, " F"]:
    """Exponents that make each half's probabilities predict the other half's labels: conditional logit, both directions.

    Args:
      x: `features` of each half.
      labels: of the *other* half, in the same order.
      candidates: −1 where there is none, or where a location does not count.

    Returns:
      Exponents between 0 and 3, by projected Newton steps.
    """
    there = (candidates >= 0)[None]
    hit = there & (candidates[None] == labels[:, :, None])
    weight = hit.any(-1).astype(x.dtype)  # [2, n]
    size = jnp.maximum(weight.sum(), 1.0)
    target = jnp.where(hit[..., None], x, 0.0).sum(2)  # [2, n, F]
    count = x.shape[-1]

    def step(_: Array, w: Array) -> Array:
        p = jax.nn.softmax(jnp.where(there, (x * w).sum(-1), -1e30), axis=-1)
        mean = jnp.einsum("hnc,hncf->hnf", p, x)
        second = jnp.einsum("hn,hnc,hncf,hncg->fg", weight, p, x, x)
        hessian = (second - jnp.einsum("hn,hnf,hng->fg", weight, mean, mean)) / size + RIDGE * jnp.eye(count)
        gradient = jnp.einsum("hn,hnf->f", weight, mean - target) / size
        at_bound = ((w <= 0) & (gradient > 0)) | ((w >= MOST) & (gradient < 0))
        free = jnp.where(at_bound, 0.0, 1.0)
        hessian = hessian * free[:, None] * free[None, :] + jnp.diag(1 - free)
        return jnp.clip(w - jnp.clip(jnp.linalg.solve(hessian, gradient * free), -MOST_STEP, MOST_STEP), 0.0, MOST)

    return jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.full(count, START, x.dtype))


def never_sharper(p: Float[Array, "V C"], q: Float[Array, "V C"], weight: Float[Array, " V"]) -> Float[Array, "V C"]:
    """p, or q where p is on average more certain: replication is not correctness, and where the prior dominates both halves agree
    on what is wrong."""
    sharper = (p.max(1) * weight).sum() > (q.max(1) * weight).sum()
    return jnp.where(sharper, q, p)
