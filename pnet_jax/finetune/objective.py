r"""Objective of the individual parameters of one recording.

.. math::
  L_s = L_{split} + w_{dyn} L_{dyn} + w_{anat} L_{anat} + \lambda \lVert\theta_s\rVert^2_{\Sigma^{-1}}

:math:`L_{split}` is the error of predicting the fingerprints of one half of the recording from the components of the other,
:math:`L_{dyn}` the negative Whittle likelihood of the parcels' signals under linear stochastic dynamics with a prior on differences
between participants, in which coupling is penalised more at larger distances, and :math:`L_{anat}` the differences between neighbouring
embeddings, which saturate at borders. All terms that are quadratic in the components use products that are computed once, so that only
the parcels are computed per location.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.config import PersonalizeConfig
from pnet_jax.dynamics import fit
from pnet_jax.dynamics.fit import DynamicsPrior
from pnet_jax.dynamics.linear_stochastic import Params, negative_log_likelihood
from pnet_jax.dynamics.spectra import Spectra, scale_of, standardise
from pnet_jax.encoder.adapter import Adapter, adapt
from pnet_jax.encoder.adapter import size as size_of
from pnet_jax.encoder.linear import own_metric, whiten
from pnet_jax.parcellation.mixture import Mixture, Problem, group_prototypes, initial_mixture, mixture, normalise, soft_sums

NOISE_FLOOR = 0.05  # floor relative to the mean noise variance, so that no reference dominates
BORDER = 0.3  # scale of 1 − cosine above which the penalty saturates, because neighbours are then separated by a boundary


class Halves(NamedTuple):
    """Products of the components of one part of a recording with themselves and with the fingerprints of another part.

    Attributes:
      own: Σ x xᵀ, `[D, D]`.
      across: Σ x fᵀ, with fingerprints f of the other part, `[D, R]`.
      energy: Σ f², with fingerprints f of the other part, `[R]`.
    """

    own: Float[Array, "D D"]
    across: Float[Array, "D R"]
    energy: Float[Array, " R"]


class FinetuneSubject(NamedTuple):
    """One recording as input of fine-tuning; stacked in waves.

    Attributes:
      x: components from the fitted part of the recording, `[V, D]`.
      parts: products for predicting each half of the fitted part from the other, stacked along a leading axis of 2.
      later: products for predicting the held-out part from the fitted part.
      weight: inverse noise variance of each reference, `[R]`.
      decoder: map from components to fingerprints, `[D, R]`.
      rows: spectra of each location's signal in the fitted part, `[V, F · 2]`.
      later_rows: spectra of each location's signal in the held-out part, `[V, G · 2]`.
      frequency, counted: frequencies in Hz and weights of the bins of the fitted part, `[F]`.
      later_frequency, later_counted: frequencies in Hz and weights of the bins of the held-out part, `[G]`.
      candidates, log_prior, table: as in `Problem`.
      labels: initial parcel of each location under the spatial prior, `[V]`.
      pairs: pairs of adjacent locations, padded with −1, `[P, 2]`.
      q: initial probabilities of the candidates, `[V, C]`.
      kappa, beta: concentration and weight of the neighbours in the mixture.
    """

    x: Float[Array, "V D"]
    parts: Halves
    later: Halves
    weight: Float[Array, " R"]
    decoder: Float[Array, "D R"]
    rows: Float[Array, "V m"]
    later_rows: Float[Array, "V n"]
    frequency: Float[Array, " F"]
    counted: Float[Array, " F"]
    later_frequency: Float[Array, " G"]
    later_counted: Float[Array, " G"]
    candidates: Int[Array, "V C"]
    log_prior: Float[Array, "V C"]
    table: Int[Array, "N V C"]
    labels: Int[Array, " V"]
    pairs: Int[Array, "P 2"]
    q: Float[Array, "V C"]
    kappa: Float[Array, ""]
    beta: Float[Array, ""]


class IndividualParameters(NamedTuple):
    """Individual parameters θ of one participant: adapter of the encoder and the prototypes, and dynamics of the parcels."""

    adapter: Adapter
    dynamics: Params


def parcels(adapter: Adapter, subject: FinetuneSubject, q: Float[Array, "V C"], steps: int) -> tuple[Mixture, Float[Array, "V D"]]:
    """Run a few steps of the mixture from `q` with an adapter, and return the mixture and the embedding."""
    x = adapt(adapter, subject.x)
    z = whiten(x, own_metric(x))
    prototypes = normalise(group_prototypes(z, subject.labels, len(adapter.offsets)) + adapter.offsets)
    problem = Problem(z, subject.candidates, subject.log_prior, subject.table, prototypes)
    start = initial_mixture(problem, jnp.log(jax.lax.stop_gradient(q) + 1e-6))
    return mixture(problem, subject.kappa, subject.beta, steps=steps, start=start), z


def parcel_spectra(subject: FinetuneSubject, q: Float[Array, "V C"], n_parcels: int) -> tuple[Spectra, Spectra]:
    """Return the spectra of the parcel signals in the fitted and the held-out part, both scaled by the fitted part."""
    rows = jnp.concatenate([subject.rows, subject.later_rows], axis=1)
    sums, masses = soft_sums(q, subject.candidates, rows, n_parcels)
    means = sums / jnp.maximum(masses, 1e-3)[:, None]
    here, there = jnp.split(means, [subject.rows.shape[1]], axis=1)
    seen = Spectra(subject.frequency, _bins(here), subject.counted)
    scale = scale_of(seen)
    return standardise(seen), standardise(Spectra(subject.later_frequency, _bins(there), subject.later_counted), scale)


def _bins(means: Float[Array, "K n"]) -> Float[Array, "F 2 K"]:
    return means.T.reshape(-1, 2, means.shape[0])


def split_loss(adapter: Adapter, subject: FinetuneSubject, halves: Halves) -> Float[Array, ""]:
    """Compute the error of fingerprints predicted from another part, relative to their variance and weighted by reference precision."""
    turn = jnp.eye(subject.decoder.shape[0]) + jnp.matmul(adapter.down, adapter.up, precision="highest")
    told = jnp.matmul(turn, subject.decoder, precision="highest")  # [D, R]
    square = (told * jnp.matmul(halves.own, told, precision="highest")).sum(0)
    error = square - 2 * (told * halves.across).sum(0) + halves.energy
    return (error @ subject.weight) / jnp.maximum(halves.energy @ subject.weight, 1e-12)


def both_halves(adapter: Adapter, subject: FinetuneSubject) -> Float[Array, ""]:
    """Return the `split_loss` between the two halves of the fitted part, averaged over both directions."""
    return jax.vmap(split_loss, (None, None, 0))(adapter, subject, subject.parts).mean()


def roughness(z: Float[Array, "V D"], pairs: Int[Array, "P 2"]) -> Float[Array, ""]:
    """Return the mean difference between neighbouring embeddings, saturating so that sharp boundaries are not penalised further."""
    there = (pairs >= 0).all(1).astype(z.dtype)
    apart = 1 - (z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1)
    return (there * apart / (apart + BORDER)).sum() / jnp.maximum(there.sum(), 1.0)


def size(adapter: Adapter, config: PersonalizeConfig) -> Float[Array, ""]:
    """Return the mean squares of the adapter's entries, in units of their expected variances."""
    low, offsets = size_of(adapter)
    return low / config.adapter_sd**2 + offsets / config.offset_sd**2


def dynamics_loss(own: IndividualParameters, prior: DynamicsPrior, seen: Spectra) -> Float[Array, ""]:
    """Return the negative log-posterior of the individual dynamics per parcel and bin, relative to the likelihood of the prior mean."""
    size = seen.dft.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0)
    return predicted(own, prior, seen) + fit.penalty(own.dynamics, prior) / size


def predicted(own: IndividualParameters, prior: DynamicsPrior, seen: Spectra) -> Float[Array, ""]:
    """Return the negative log-likelihood per parcel and bin relative to that of the prior mean; below 0 if individual dynamics are better.

    Blurred or similar parcels have signals that *any* dynamics predict more easily; the difference from the group's dynamics on the same
    signals does not reward this.
    """
    return negative_log_likelihood(own.dynamics, seen) - negative_log_likelihood(prior.mean, seen)


def held_out(
    own: IndividualParameters, subject: FinetuneSubject, prior: DynamicsPrior, later: Spectra, config: PersonalizeConfig
) -> Float[Array, 2]:
    """Return the errors of the representation and of the dynamics on the held-out part, weighted for early stopping, `[2]`."""
    representation, dynamics = split_loss(own.adapter, subject, subject.later), predicted(own, prior, later)
    return jnp.stack([representation, config.dynamics_weight * dynamics])
