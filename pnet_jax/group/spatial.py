"""Group spatial model: where a cohort has its parcels and, where participants share axes, in which directions.

The cohort is fitted by expectation–maximisation. One round adds up sufficient statistics over participants, so that a cohort of any size
streams through batches, and devices exchange one sum.
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
CERTAINTY = 0.8  # probability of a label in the model that the fit starts from
OWN_WEIGHT = 4.0  # weight of a location in the smoothing of the prior, where each of its neighbours has 1
PSEUDO_COUNT = 0.5  # participants spread evenly over the candidates of each location
OWN_STEPS = 4  # steps in which a participant without shared axes finds its own prototypes, in each round
STEPS = 6  # of the fit of one participant given the group
ROUNDS = 20
TOLERANCE = 1e-4  # nats per location


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpatialModel:
    """What a cohort teaches about the parcels of one more participant; a pytree.

    Attributes:
      candidates: Parcels a location may belong to, −1 padded, `[V, C]`.
      log_prior: Log probability of each candidate in the cohort, `[V, C]`.
      prototypes: Mean directions of the parcels, `[K, D]`; None where participants share no axes.
      kappa: Concentration of the cohort's fit.
      n_parcels: K.
    """

    candidates: Int[Array, "V C"]
    log_prior: Float[Array, "V C"]
    prototypes: Float[Array, "K D"] | None
    kappa: Float[Array, ""]
    n_parcels: int = dataclasses.field(metadata={"static": True})


class Sums(NamedTuple):
    """Sufficient statistics of one round; those of several batches or devices add.

    Attributes:
      counts: Participants at each candidate, `[V, C]`.
      directions: Sums of the embeddings of each parcel, `[K, D]`; None where participants share no axes.
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
      converged: Whether the last round gained less than the tolerance. Where it is False, more rounds would change the model.
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
    """Make the model that a fit starts from, given one label per location.

    Args:
      labels: Parcels of an atlas or of a clustering of the group mean, −1 where unknown, `[V]`.
      n_parcels: K.
      dimensions: D where all participants share the axes of their embeddings (task conditions); None where each scan has its own axes
        (resting state, whitened per scan).
      candidates: Parcels a location may belong to, −1 padded, e.g. of a `LocalPrior`; every parcel everywhere if not given.
      kappa: Concentration of the fit.

    Returns:
      A model without prototypes (all 0): its expectation is its prior, so that the first round makes the prototypes.

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
    r"""Assign the locations of S participants to parcels and add up what re-estimates the model.

    .. math:: U_{svk} \propto \pi_{vk} \exp(\kappa\, z_{sv}^\top m_{sk})

    with :math:`m_{sk} = \mu_k` where participants share axes. Elsewhere each participant's own prototypes are estimated from the prior
    and the participant's embeddings: nothing of a participant is kept between rounds.

    Args:
      model: The current model.
      z: Embeddings of length 1, `[S, V, D]`; anything at locations that are not valid.
      valid: Locations that carry a signal, `[S, V]`.

    Returns:
      `Sums` over the S participants.

    Memory: S times that of `soft_assign`; larger cohorts come in batches.
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
      model: The model that the sums were made with.
      sums: `Sums` of all participants.
      table: Where the neighbours hold the same parcel (`ops.potts.chunked.match_table`), `[N, V, C]`; N = 0 for no smoothing.

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
    """Counts of each location, with `OWN_WEIGHT`, and of its neighbours."""
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
      start: The model to start from, e.g. of `start_model`.
      cohort: Batches of embeddings and of the locations that are valid, read once per round: a list, or an object whose every iteration
        yields the same batches.
      table: Where the neighbours hold the same parcel (`ops.potts.chunked.match_table`), `[N, V, C]`.
      rounds: Largest number of rounds.
      tolerance: Gain in mean log density per location below which the fit ends, in nats.

    Returns:
      `SpatialFit`.

    Raises:
      ValueError: The cohort has no batch, or is an iterator that is exhausted after one round.
      FloatingPointError: The log density is not finite.

    Source: smoothed expectation–maximisation, Silverman et al. 1990; hierarchy of group prior and individual parcels, Kong et al. 2019.
    """
    model, densities = start, list[float]()
    for _ in range(rounds):
        sums: Sums | None = None
        for z, valid in cohort:
            part = _expectation(model, z, valid)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        if sums is None:
            raise ValueError(f"Cohort yielded no batch in round {len(densities) + 1}; expected batches that can be read in every round.")
        densities.append(float(sums.log_density / sums.locations))
        if not np.isfinite(densities[-1]):
            raise FloatingPointError(f"Log density is {densities[-1]} in round {len(densities)}; embeddings must be finite where valid.")
        model = _maximisation(model, sums, table)
        # The first round has no prototypes yet; what it gains says nothing of convergence.
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

    This is `parcellation.mixture` with the cohort's prior and prototypes, and without votes of neighbours.

    Args:
      model: The group.
      z: Embeddings of length 1, `[V, D]`.
      valid: Locations that carry a signal, `[V]`.
      kappa: Concentration, which grows with the amount of data.
      k0: Weight of the group's prototypes, in locations; without effect where participants share no axes.
      steps: Unrolled steps.

    Returns:
      `Mixture`: probabilities `[V, C]`, 0 where not valid, and prototypes `[K, D]`.
    """
    problem = _problem(model, z, valid)
    start = None if model.prototypes is None else Mixture(jnp.exp(problem.log_prior), model.prototypes)
    return mixture(problem, jnp.asarray(kappa, jnp.float32), jnp.float32(0), steps=steps, start=start, k0=k0)


def _problem(model: SpatialModel, z: Float[Array, "V D"], valid: Bool[Array, " V"]) -> Problem:
    """The mixture's input for one participant; a location that is not valid has no candidate."""
    candidates = jnp.where(valid[:, None], model.candidates, -1)
    prototypes = jnp.zeros((model.n_parcels, z.shape[1]), z.dtype) if model.prototypes is None else model.prototypes
    none = jnp.zeros((0, *candidates.shape), jnp.int32)
    return Problem(jnp.where(valid[:, None], z, 0), candidates, model.log_prior, none, prototypes)
