"""Fine-tuning on one recording as a function of fixed shape, compiled once and mapped over a wave of recordings."""

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
    Own,
    Subject,
    both_halves,
    dynamics_loss,
    held_out,
    parcel_spectra,
    parcels,
    roughness,
    size,
)

PARCEL_STEPS = 2  # of the mixture a round; it goes on from the round before
ADAM_EPS = 1e-5  # gradients that are rounding alone must not become steps: results would depend on the size of the wave


class Tuned(NamedTuple):
    """What fine-tuning found.

    Attributes:
      own: individual parameters of the best round.
      q: probabilities of the parcels then, `[V, C]`.
      round: the best one, by what was held out; 0 is no change at all.
      curve: `held_out` before each round and after the last, of the representation and of the dynamics, `[rounds + 1, 2]`.
      ok: False where anything was not finite.
    """

    own: Own
    q: Float[Array, "V C"]
    round: Int[Array, ""]
    curve: Float[Array, "rounds+1 2"]
    ok: Bool[Array, ""]


def begin(dimensions: int, prior: DynamicsPrior, config: PersonalizeConfig) -> Own:
    """Make initial parameters that change nothing; the same for every participant."""
    key = jax.random.key(config.seed)
    return Own(adapter.init(dimensions, len(prior.mean.coupling), config.rank, key), prior.mean)


def fine_tune(prior: DynamicsPrior, subject: Subject, config: PersonalizeConfig) -> Tuned:
    """Fit the individual parameters of one recording by Adam; the round that predicts the held-out part best is kept.

    Every round re-estimates the parcels, with gradients through them; the following steps keep their signals, so that their cost depends
    on the number of parcels and not of locations.

    Args:
      prior: of the dynamics, `dynamics.fit.subject_prior`.
      subject: one recording.
      config: see `PersonalizeConfig`.
    """
    each = {"adapter": optax.adam(config.rate, eps=ADAM_EPS), "dynamics": optax.adam(config.dynamics_rate, eps=ADAM_EPS)}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(each, Own("adapter", "dynamics")))  # type: ignore[arg-type]
    n_parcels = len(prior.mean.coupling)

    def on_signals(own: Own, seen: Spectra) -> Array:
        representation = both_halves(own.adapter, subject) + config.prior_weight * size(own.adapter, config)
        return representation + config.dynamics_weight * dynamics_loss(own, prior, seen)

    def through_parcels(own: Own, q: Array) -> tuple[Array, tuple[Array, Spectra, Spectra]]:
        found, z = parcels(own.adapter, subject, q, PARCEL_STEPS)
        seen, later = parcel_spectra(subject, found.q, n_parcels)
        return on_signals(own, seen) + config.anatomy_weight * roughness(z, subject.pairs), (found.q, seen, later)

    def update(own: Own, state: Any, gradient: Own) -> tuple[Own, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and rates
            change, state = optimiser.update(gradient, state, own)
            return optax.apply_updates(own, change), state

    def looked(own: Own, q: Array, later: Spectra, number: Array, best: Any) -> tuple[Any, Array]:
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

    own = begin(subject.x.shape[1], prior, config)
    start = own, optimiser.init(own), subject.q, (jnp.array(jnp.inf), own, subject.q, jnp.zeros((), jnp.int32))
    (own, _, q, best), curve = jax.lax.scan(one_round, start, jnp.arange(config.rounds, dtype=jnp.int32))
    # What the last round's steps came to is looked at as well.
    q = parcels(own.adapter, subject, q, PARCEL_STEPS)[0].q
    later = parcel_spectra(subject, q, n_parcels)[1]
    best, value = looked(own, q, later, jnp.int32(config.rounds), best)
    curve = jnp.concatenate([curve, value[None]])
    return Tuned(best[1], best[2], best[3], curve, jnp.isfinite(curve).all())
