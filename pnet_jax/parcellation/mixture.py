"""Differentiable soft parcellation: a von Mises–Fisher mixture with a spatial prior and mean-field Potts smoothing."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops.parts import segment_sum
from pnet_jax.ops.potts.chunked import sum_neighbours
from pnet_jax.ops.soft_assign import Assignment, soft_assign
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks

ALPHA = 1.0  # weight of the spatial prior
K0 = 10.0  # weight of a group prototype, in locations
STEPS = 12
BLOCK = 4096  # number of locations whose dense probabilities are in memory at a time


class Problem(NamedTuple):
    """Input of the mixture for one scan and one spatial prior.

    Attributes:
      z: embeddings of unit length, `[V, D]`.
      candidates: candidate parcels of each location, padded with −1, `[V, C]`.
      log_prior: log π of each candidate, `[V, C]`.
      table: positions of the same parcel at the neighbours (`ops.potts.chunked.match_table`), `[N, V, C]`.
      prototypes: group prototypes μ^grp of unit length, `[K, D]`; 0 for parcels without one.
      blocks: tables of `ops.soft_assign.blocked`, or None.
    """

    z: Float[Array, "V D"]
    candidates: Int[Array, "V C"]
    log_prior: Float[Array, "V C"]
    table: Int[Array, "N V C"]
    prototypes: Float[Array, "K D"]
    blocks: ParcelBlocks | None = None


class Mixture(NamedTuple):
    """Result of the mixture: probabilities `[V, C]` and prototypes `[K, D]`."""

    q: Float[Array, "V C"]
    prototypes: Float[Array, "K D"]


def mixture(
    problem: Problem,
    kappa: Float[Array, " V"] | Float[Array, ""],
    beta: Float[Array, ""],
    *,
    steps: int = STEPS,
    start: Mixture | None = None,
    k0: Float[Array, ""] | float = K0,
) -> Mixture:
    r"""Fit the mixture by unrolled mean-field steps.

    .. math::
      \log q_{vk} = \kappa_v z_v^\top \mu_k + \beta \sum_{u \in N(v)} q_{uk} + \alpha \log \pi_{vk} + \text{const}, \qquad
      \mu_k = \operatorname{normalise}\Big(\sum_v q_{vk} z_v + k_0 \mu_k^{grp}\Big)

    Args:
      problem: input of the mixture.
      kappa: concentration κ, one number or `[V]`.
      beta: weight β of the neighbours.
      steps: number of unrolled steps.
      start: initial mixture, e.g. the result at a smaller κ or from `initial_mixture`; default: the spatial prior.
      k0: weight k₀ of a group prototype, in locations.

    Returns:
      `Mixture`, differentiable in `z`, the prototypes, `kappa`, `beta` and `k0`.
    """
    _check(problem)
    there = problem.candidates >= 0
    log_prior = ALPHA * jnp.where(there, problem.log_prior, 0.0)

    @jax.checkpoint
    def step(carry: Mixture, _: None) -> tuple[Mixture, None]:
        bias = log_prior + beta * sum_neighbours(carry.q, problem.table)
        found = soft_assign(problem.z, carry.prototypes, problem.candidates, bias, kappa, blocks=problem.blocks)
        return _updated(problem, found, k0), None

    return jax.lax.scan(step, start or initial_mixture(problem, log_prior, k0), length=steps)[0]


def initial_mixture(problem: Problem, log_q: Float[Array, "V C"], k0: Float[Array, ""] | float = K0) -> Mixture:
    """Return the mixture of given log probabilities, which may be unnormalised, with the corresponding prototypes."""
    chex.assert_equal_shape([log_q, problem.candidates])
    return _updated(problem, soft_assign(problem.z, problem.prototypes, problem.candidates, log_q, 0.0, blocks=problem.blocks), k0)


def _check(problem: Problem) -> None:
    """Assert that all arrays have the same locations, candidates and dimensions."""
    z, candidates, log_prior, table, prototypes, _ = problem
    chex.assert_rank([z, candidates, prototypes], 2)
    chex.assert_equal_shape_prefix([z, candidates], 1)
    chex.assert_equal_shape_suffix([z, prototypes], 1)
    chex.assert_equal_shape([log_prior, candidates])
    chex.assert_shape(table, (None, *candidates.shape))
    chex.assert_type([z, log_prior, prototypes, candidates, table], [float, float, float, int, int])


def _updated(problem: Problem, found: Assignment, k0: Float[Array, ""] | float) -> Mixture:
    return Mixture(found.q, normalise(found.sums + k0 * problem.prototypes))


def group_prototypes(z: Float[Array, "V D"], labels: Int[Array, " V"], n_parcels: int) -> Float[Array, "K D"]:
    """Return the mean direction of the embeddings in each atlas parcel, `[K, D]`; 0 for parcels without locations."""
    return normalise(segment_sum(z, jnp.where(labels < 0, n_parcels, labels), n_parcels + 1)[:n_parcels])


def soft_sums(
    q: Float[Array, "V C"], candidates: Int[Array, "V C"], rows: Float[Array, "V n"], n_parcels: int
) -> tuple[Float[Array, "K n"], Float[Array, " K"]]:
    """Return sums of the rows over locations, weighted by the probabilities of each parcel, `[K, n]`, and sums of the weights, `[K]`.

    Memory: one block of `[4096, K]`, which is recomputed in the backward pass.
    """
    chex.assert_equal_shape([q, candidates])
    chex.assert_equal_shape_prefix([q, rows], 1)
    block = min(BLOCK, len(q))
    padded = -(-len(q) // block) * block - len(q)
    q, candidates, rows = (jnp.pad(x, ((0, padded), (0, 0))) for x in (q, candidates, rows))

    @jax.checkpoint
    def step(carry: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        q, candidates, rows = part
        at = jnp.where(candidates >= 0, candidates, 0)
        weight = jnp.where(candidates >= 0, q, 0.0)
        dense = jnp.zeros((block, n_parcels), q.dtype).at[jnp.arange(block)[:, None], at].add(weight)
        return (carry[0] + jnp.matmul(dense.T, rows, precision="highest"), carry[1] + dense.sum(0)), None

    start = jnp.zeros((n_parcels, rows.shape[1]), rows.dtype), jnp.zeros(n_parcels, rows.dtype)
    return jax.lax.scan(step, start, tuple(x.reshape(-1, block, x.shape[1]) for x in (q, candidates, rows)))[0]


def normalise(x: Float[Array, "n D"]) -> Float[Array, "n D"]:
    """Scale the rows to unit length; a row of zeros stays 0, with a gradient of 0."""
    energy = jnp.square(x).sum(-1, keepdims=True)
    some = energy > 1e-12
    return jnp.where(some, x / jnp.sqrt(jnp.where(some, energy, 1.0)), 0.0)
