"""Fine-tuning on one recording as a function with fixed shapes, compiled once and mapped over a wave of recordings."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.config import PersonalizeConfig
from pnet_jax.dynamics.fit import DynamicsPrior
from pnet_jax.dynamics.spectra import Spectra
from pnet_jax.encoder import adapter
from pnet_jax.finetune.objective import (
    FinetuneSubject,
    IndividualParameters,
    both_halves,
    dynamics_loss,
    held_out,
    parcel_spectra,
    parcels,
    roughness,
    size,
)

PARCEL_STEPS = 2  # steps of the mixture per round, starting from the previous round
ADAM_EPS = 1e-5  # prevents steps along gradients that are only rounding error, which depend on the size of the wave


class Tuned(NamedTuple):
    """Result of fine-tuning.

    Attributes:
      own: individual parameters of the best round.
      q: probabilities of the parcels in the best round, `[V, C]`.
      round: best round on the held-out part; 0 means no change.
      curve: held-out errors of the representation and of the dynamics, before each round and after the last, `[rounds + 1, 2]`.
      ok: False if any error was not finite.
    """

    own: IndividualParameters
    q: Float[Array, "V C"]
    round: Int[Array, ""]
    curve: Float[Array, "rounds+1 2"]
    ok: Bool[Array, ""]


def initial_parameters(dimensions: int, prior: DynamicsPrior, config: PersonalizeConfig) -> IndividualParameters:
    """Return the initial parameters, which change nothing and are the same for every participant."""
    key = jax.random.key(config.seed)
    return IndividualParameters(adapter.init(dimensions, len(prior.mean.coupling), config.rank, key), prior.mean)


def fine_tune(prior: DynamicsPrior, subject: FinetuneSubject, config: PersonalizeConfig) -> Tuned:
    """Fit the individual parameters of one recording with Adam, and keep the round that predicts the held-out part best.

    The parcels are re-estimated at the start of each round, with gradients through them. The following steps use fixed parcel signals, so
    their cost depends on the number of parcels, not of locations.

    Args:
      prior: prior of the dynamics, from `dynamics.fit.subject_prior`.
      subject: one recording.
      config: settings of the fine-tuning.

    Returns:
      The result.
    """
    each = {"adapter": optax.adam(config.rate, eps=ADAM_EPS), "dynamics": optax.adam(config.dynamics_rate, eps=ADAM_EPS)}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(each, IndividualParameters("adapter", "dynamics")))  # type: ignore[arg-type]
    n_parcels = len(prior.mean.coupling)

    def on_signals(own: IndividualParameters, seen: Spectra) -> Array:
        representation = both_halves(own.adapter, subject) + config.prior_weight * size(own.adapter, config)
        return representation + config.dynamics_weight * dynamics_loss(own, prior, seen)

    def through_parcels(own: IndividualParameters, q: Array) -> tuple[Array, tuple[Array, Spectra, Spectra]]:
        found, z = parcels(own.adapter, subject, q, PARCEL_STEPS)
        seen, later = parcel_spectra(subject, found.q, n_parcels)
        return on_signals(own, seen) + config.anatomy_weight * roughness(z, subject.pairs), (found.q, seen, later)

    def update(own: IndividualParameters, state: Any, gradient: IndividualParameters) -> tuple[IndividualParameters, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and rates
            change, state = optimiser.update(gradient, state, own)
            return optax.apply_updates(own, change), state

    def looked(own: IndividualParameters, q: Array, later: Spectra, number: Array, best: Any) -> tuple[Any, Array]:
        value = held_out(own, subject, prior, later, config)
        better = value.sum() < best[0]
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), (value.sum(), own, q, number), best), value

    def one_round(carry: Any, number: Array) -> tuple[Any, Array]:
        own, state, q, best = carry
        gradient, (q, seen, later) = jax.grad(through_parcels, has_aux=True)(own, q)
        best, value = looked(own, q, later, number, best)
        own, state = update(own, state, gradient)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            own, state = carry
            return update(own, state, jax.grad(on_signals)(own, seen)), None

        (own, state), _ = jax.lax.scan(step, (own, state), length=config.steps - 1)
        return (own, state, q, best), value

    own = initial_parameters(subject.x.shape[1], prior, config)
    start = own, optimiser.init(own), subject.q, (jnp.array(jnp.inf), own, subject.q, jnp.zeros((), jnp.int32))
    (own, _, q, best), curve = jax.lax.scan(one_round, start, jnp.arange(config.rounds, dtype=jnp.int32))
    # The parameters after the last round are evaluated as well.
    q = parcels(own.adapter, subject, q, PARCEL_STEPS)[0].q
    later = parcel_spectra(subject, q, n_parcels)[1]
    best, value = looked(own, q, later, jnp.int32(config.rounds), best)
    curve = jnp.concatenate([curve, value[None]])
    return Tuned(best[1], best[2], best[3], curve, jnp.isfinite(curve).all())
