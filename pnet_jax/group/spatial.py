"""Group spatial model: the locations of parcels in a cohort and, if participants share embedding axes, their mean directions.

The model is fitted by expectation–maximisation. Each round accumulates sufficient statistics over participants, so that a cohort of any
size can be streamed in batches, and devices exchange one sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.potts.chunked import sum_neighbours
from pnet_jax.ops.soft_assign import soft_assign
from pnet_jax.parcellation.atlas import PADDING
from pnet_jax.parcellation.held_out import log_normaliser
from pnet_jax.parcellation.mixture import Mixture, Problem, mixture, normalise

KAPPA = 20.0  # concentration of the cohort's fit
CERTAINTY = 0.8  # probability of the given label in the initial model
OWN_WEIGHT = 4.0  # weight of a location relative to each of its neighbours in the smoothing of the prior
PSEUDO_COUNT = 0.5  # prior counts in participants, spread evenly over the candidates of each location
OWN_STEPS = 4  # steps per round for estimating individual prototypes if participants do not share axes
STEPS = 6  # steps for fitting one participant given the group
ROUNDS = 20
TOLERANCE = 1e-4  # nats per location


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpatialModel:
    """Group model of the parcels, used as the prior of new participants; a pytree.

    Attributes:
      candidates: Candidate parcels of each location, padded with −1, `[V, C]`.
      log_prior: Log probability of each candidate in the cohort, `[V, C]`.
      prototypes: Mean directions of the parcels, `[K, D]`; None if participants do not share axes.
      kappa: Concentration of the cohort's fit.
      n_parcels: Number of parcels K.
    """

    candidates: Int[Array, "V C"]
    log_prior: Float[Array, "V C"]
    prototypes: Float[Array, "K D"] | None
    kappa: Float[Array, ""]
    n_parcels: int = dataclasses.field(metadata={"static": True})


class Sums(NamedTuple):
    """Sufficient statistics of one round, which are additive over batches and devices.

    Attributes:
      counts: Expected number of participants at each candidate, `[V, C]`.
      directions: Sums of the embeddings of each parcel, `[K, D]`; None if participants do not share axes.
      log_density: Log density of all embeddings under the model, in nats.
      locations: Number of embeddings.
    """

    counts: Float[Array, "V C"]
    directions: Float[Array, "K D"] | None
    log_density: Float[Array, ""]
    locations: Float[Array, ""]


class SpatialFit(NamedTuple):
    """Result of `fit_spatial`.

    Attributes:
      model: The fitted model.
      log_density: Mean log density per location at the start of each round, in nats.
      converged: Whether the last round gained less than the tolerance. If False, more rounds would change the model.
    """

    model: SpatialModel
    log_density: Float[np.ndarray, " n"]
    converged: bool


def start_model(
    labels: Int[np.ndarray, " V"],
    n_parcels: int,
    *,
    dimensions: int | None,
    candidates: Int[np.ndarray, "V C"] | None = None,
    kappa: float = KAPPA,
) -> SpatialModel:
    """Make the initial model of a fit from one label per location.

    Args:
      labels: Parcels of an atlas or of a clustering of the group mean, −1 if unknown, `[V]`.
      n_parcels: Number of parcels K.
      dimensions: Number of embedding dimensions D if all participants share axes (task conditions); None if each scan has its own axes
        (resting state, whitened per scan).
      candidates: Candidate parcels of each location, padded with −1, e.g. of a `LocalPrior`, `[V, C]`; default: all parcels.
      kappa: Concentration of the fit.

    Returns:
      A model with prototypes of 0, so that its expectation is its prior and the first round estimates the prototypes.

    >>> model = start_model(np.array([0, 1, -1]), 2, dimensions=3)
    >>> [[f"{p:.1f}" for p in row] for row in jnp.exp(model.log_prior)]
    [['0.9', '0.1'], ['0.1', '0.9'], ['0.5', '0.5']]
    """
    if candidates is None:
        candidates = np.broadcast_to(np.arange(n_parcels, dtype=np.int32), (len(labels), n_parcels))
    there = candidates >= 0
    weight = np.where(there, CERTAINTY * (candidates == labels[:, None]) + (1 - CERTAINTY) / np.maximum(there.sum(1, keepdims=True), 1), 0)
    log_prior = np.where(there, np.log(np.where(there, weight, 1) / np.where(there, weight.sum(1, keepdims=True), 1)), PADDING)
    return SpatialModel(
        jnp.asarray(candidates, jnp.int32),
        jnp.asarray(log_prior, jnp.float32),
        None if dimensions is None else jnp.zeros((n_parcels, dimensions), jnp.float32),
        jnp.float32(kappa),
        n_parcels,
    )


def expectation(model: SpatialModel, z: Float[Array, "S V D"], valid: Bool[Array, "S V"]) -> Sums:
    r"""Assign the locations of S participants to parcels, and accumulate the sufficient statistics.

    .. math:: U_{svk} \propto \pi_{vk} \exp(\kappa\, z_{sv}^\top m_{sk})

    with :math:`m_{sk} = \mu_k` if participants share axes. Otherwise, individual prototypes are estimated from the prior
    and the participant's embeddings; nothing is stored per participant between rounds.

    Args:
      model: The current model.
      z: Embeddings of unit length, `[S, V, D]`; arbitrary at invalid locations.
      valid: Locations with a signal, `[S, V]`.

    Returns:
      `Sums` over the S participants.

    Memory: S times that of `soft_assign`; process larger cohorts in batches.
    """
    chex.assert_shape(z, (None, len(model.candidates), None))
    chex.assert_shape(valid, z.shape[:2])
    each = jax.vmap(lambda z, valid: _sums_of_one(model, z, valid))(z, valid)
    return jax.tree.map(lambda x: x.sum(0), each)


def _sums_of_one(model: SpatialModel, z: Float[Array, "V D"], valid: Bool[Array, " V"]) -> Sums:
    problem = _problem(model, z, valid)
    prototypes = model.prototypes
    if prototypes is None:
        prototypes = mixture(problem, model.kappa, jnp.float32(0), steps=OWN_STEPS, k0=0.0).prototypes
    found = soft_assign(problem.z, prototypes, problem.candidates, problem.log_prior, model.kappa)
    used = (problem.candidates >= 0).any(1).sum().astype(jnp.float32)
    # log Σ_k π_k exp(κ z·μ_k) = Σ_k q_k (κ z·μ_k + log π_k − log q_k), since q is proportional to these terms.
    of_prior = (found.q * (problem.log_prior - jnp.log(jnp.maximum(found.q, 1e-30)))).sum()
    density = model.kappa * (found.sums * prototypes).sum() + of_prior + used * log_normaliser(model.kappa, z.shape[1])
    return Sums(found.q, None if model.prototypes is None else found.sums, density, used)


def maximisation(model: SpatialModel, sums: Sums, table: Int[Array, "N V C"]) -> SpatialModel:
    r"""Re-estimate the model from sufficient statistics.

    .. math::
      \pi_{vk} \propto w c_{vk} + \sum_{u \in N(v)} c_{uk}, \quad c_{vk} = \sum_s U_{svk} + \frac{a}{|C(v)|}, \qquad
      \mu_k = \operatorname{normalise}\Big(\sum_{sv} U_{svk} z_{sv}\Big)

    with w = 4 and a = 0.5.

    Args:
      model: The model with which the sums were computed.
      sums: `Sums` of all participants.
      table: Positions of the same parcel at the neighbours (`ops.potts.chunked.match_table`), `[N, V, C]`; N = 0 for no smoothing.

    Returns:
      The next model.
    """
    chex.assert_equal_shape([sums.counts, model.candidates])
    chex.assert_shape(table, (None, *model.candidates.shape))
    there = model.candidates >= 0
    width = jnp.maximum(there.astype(jnp.float32).sum(1, keepdims=True), 1.0)
    counts = jnp.where(there, sums.counts + PSEUDO_COUNT / width, 0.0)
    smooth = smoothed(counts, table)
    share = jnp.where(there, smooth, 1.0) / jnp.where(there, smooth.sum(1, keepdims=True), 1.0)
    return dataclasses.replace(
        model,
        log_prior=jnp.where(there, jnp.log(share), PADDING),
        prototypes=None if sums.directions is None else normalise(sums.directions),
    )


def smoothed(counts: Float[Array, "V C"], table: Int[Array, "N V C"]) -> Float[Array, "V C"]:
    """Return the counts of each location, weighted by `OWN_WEIGHT`, plus those of its neighbours."""
    return OWN_WEIGHT * counts + sum_neighbours(counts, table)


_expectation, _maximisation = jax.jit(expectation), jax.jit(maximisation)


def fit_spatial(
    start: SpatialModel,
    cohort: Iterable[tuple[Float[Array, "S V D"], Bool[Array, "S V"]]],
    table: Int[Array, "N V C"],
    *,
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
) -> SpatialFit:
    """Fit the model to a cohort.

    Args:
      start: Initial model, e.g. from `start_model`.
      cohort: Batches of embeddings and masks of valid locations, read once per round: a list, or an object that yields the same batches
        in every iteration.
      table: Positions of the same parcel at the neighbours (`ops.potts.chunked.match_table`), `[N, V, C]`.
      rounds: Maximum number of rounds.
      tolerance: Gain in mean log density per location below which the fit has converged, in nats.

    Returns:
      `SpatialFit`.

    Raises:
      ValueError: If the cohort has no batch, or is an iterator that is exhausted after one round.
      FloatingPointError: If the log density is not finite.

    Source: smoothed expectation–maximisation, Silverman et al. 1990; hierarchy of group prior and individual parcels, Kong et al. 2019.
    """
    model, densities = start, list[float]()
    for _ in range(rounds):
        sums: Sums | None = None
        for z, valid in cohort:
            part = _expectation(model, z, valid)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        if sums is None:
            raise ValueError(f"the cohort yielded no batch in round {len(densities) + 1}: expected batches that can be read in every round")
        densities.append(float(sums.log_density / sums.locations))
        if not np.isfinite(densities[-1]):
            raise FloatingPointError(f"log density is {densities[-1]} in round {len(densities)}: embeddings must be finite where valid")
        model = _maximisation(model, sums, table)
        # The first round has no prototypes yet, so its gain does not indicate convergence.
        if len(densities) > 2 and densities[-1] - densities[-2] < tolerance:
            return SpatialFit(model, np.array(densities), True)
    return SpatialFit(model, np.array(densities), False)


def fit_participant(
    model: SpatialModel,
    z: Float[Array, "V D"],
    valid: Bool[Array, " V"],
    *,
    kappa: Float[Array, ""] | float,
    k0: Float[Array, ""] | float,
    steps: int = STEPS,
) -> Mixture:
    r"""Fit the parcels of one participant given the group.

    .. math::
      U_{vk} \propto \pi_{vk} \exp(\kappa\, z_v^\top m_k), \qquad
      m_k = \operatorname{normalise}\Big(\sum_v U_{vk} z_v + k_0 \mu_k\Big)

    This is `parcellation.mixture` with the prior and prototypes of the group, and without the neighbour term.

    Args:
      model: Group model.
      z: Embeddings of unit length, `[V, D]`.
      valid: Locations with a signal, `[V]`.
      kappa: Concentration, which should increase with the amount of data.
      k0: Weight of the group's prototypes, in locations; without effect if participants do not share axes.
      steps: Number of unrolled steps.

    Returns:
      `Mixture`: probabilities `[V, C]`, 0 if not valid, and prototypes `[K, D]`.
    """
    problem = _problem(model, z, valid)
    start = None if model.prototypes is None else Mixture(jnp.exp(problem.log_prior), model.prototypes)
    return mixture(problem, jnp.asarray(kappa, jnp.float32), jnp.float32(0), steps=steps, start=start, k0=k0)


def _problem(model: SpatialModel, z: Float[Array, "V D"], valid: Bool[Array, " V"]) -> Problem:
    """Return the input of the mixture for one participant; invalid locations have no candidates."""
    candidates = jnp.where(valid[:, None], model.candidates, -1)
    prototypes = jnp.zeros((model.n_parcels, z.shape[1]), z.dtype) if model.prototypes is None else model.prototypes
    none = jnp.zeros((0, *candidates.shape), jnp.int32)
    return Problem(jnp.where(valid[:, None], z, 0), candidates, model.log_prior, none, prototypes)
