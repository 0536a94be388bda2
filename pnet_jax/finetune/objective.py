r"""Objective of individual parameters, one recording at a time.

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

NOISE_FLOOR = 0.05  # of the mean noise variance, so that no reference has all the weight
BORDER = 0.3  # of 1 − cosine: neighbours that differ by more lie on two sides of a border, and are let go


class Halves(NamedTuple):
    """Products of the components of one part of a recording with themselves and with the fingerprints of another.

    Attributes:
      own: Σ x xᵀ, `[D, D]`.
      across: Σ x fᵀ with f of the other part, `[D, R]`.
      energy: Σ f² of the other part, `[R]`.
    """

    own: Float[Array, "D D"]
    across: Float[Array, "D R"]
    energy: Float[Array, " R"]


class Subject(NamedTuple):
    """One recording as fine-tuning reads it; waves stack them.

    Attributes:
      x: components of the first part of the recording, `[V, D]`.
      parts: products with which each half of that part predicts the other, stacked, two of each.
      later: products with which that part predicts the rest, which is held out.
      weight: of each reference: its inverse noise variance, `[R]`.
      decoder: from components to fingerprints, `[D, R]`.
      rows: spectra of each location's signal in the first part, `[V, F · 2]`.
      later_rows: and in the rest, `[V, G · 2]`.
      frequency, counted: of the bins of the first part, `[F]`.
      later_frequency, later_counted: and of the rest, `[G]`.
      candidates, log_prior, table: see `Problem`.
      labels: of the prior, `[V]`.
      pairs: neighbours, `[P, 2]`; −1 padded.
      q: probabilities to begin with, `[V, C]`.
      kappa, beta: of the mixture.
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


class Own(NamedTuple):
    """θ of one participant: the adapter of the encoder and the prototypes, and the dynamics of the parcels."""

    adapter: Adapter
    dynamics: Params


def parcels(adapter: Adapter, subject: Subject, q: Float[Array, "V C"], steps: int) -> tuple[Mixture, Float[Array, "V D"]]:
    """Run a few steps of the mixture from `q` under an adapter; returns the mixture and the embedding."""
    x = adapt(adapter, subject.x)
    z = whiten(x, own_metric(x))
    prototypes = normalise(group_prototypes(z, subject.labels, len(adapter.offsets)) + adapter.offsets)
    problem = Problem(z, subject.candidates, subject.log_prior, subject.table, prototypes)
    start = initial_mixture(problem, jnp.log(jax.lax.stop_gradient(q) + 1e-6))
    return mixture(problem, subject.kappa, subject.beta, steps=steps, start=start), z


def parcel_spectra(subject: Subject, q: Float[Array, "V C"], n_parcels: int) -> tuple[Spectra, Spectra]:
    """Spectra of the parcels' mean signals in the first part of the recording and in the rest, both on the first part's scale."""
    rows = jnp.concatenate([subject.rows, subject.later_rows], axis=1)
    sums, masses = soft_sums(q, subject.candidates, rows, n_parcels)
    means = sums / jnp.maximum(masses, 1e-3)[:, None]
    here, there = jnp.split(means, [subject.rows.shape[1]], axis=1)
    seen = Spectra(subject.frequency, _bins(here), subject.counted)
    scale = scale_of(seen)
    return standardise(seen), standardise(Spectra(subject.later_frequency, _bins(there), subject.later_counted), scale)


def _bins(means: Float[Array, "K n"]) -> Float[Array, "F 2 K"]:
    return means.T.reshape(-1, 2, means.shape[0])


def split_loss(adapter: Adapter, subject: Subject, halves: Halves) -> Float[Array, ""]:
    """Error of fingerprints predicted from another part's components, relative to their variance, weighted by reference precision."""
    turn = jnp.eye(subject.decoder.shape[0]) + jnp.matmul(adapter.down, adapter.up, precision="highest")
    told = jnp.matmul(turn, subject.decoder, precision="highest")  # [D, R]
    square = (told * jnp.matmul(halves.own, told, precision="highest")).sum(0)
    error = square - 2 * (told * halves.across).sum(0) + halves.energy
    return (error @ subject.weight) / jnp.maximum(halves.energy @ subject.weight, 1e-12)


def both_halves(adapter: Adapter, subject: Subject) -> Float[Array, ""]:
    """`split_loss` of the two halves of the first part, in both directions."""
    return jax.vmap(split_loss, (None, None, 0))(adapter, subject, subject.parts).mean()


def roughness(z: Float[Array, "V D"], pairs: Int[Array, "P 2"]) -> Float[Array, ""]:
    """How much neighbours differ, saturating where they differ much: a border costs the same however sharp it is."""
    there = (pairs >= 0).all(1).astype(z.dtype)
    apart = 1 - (z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1)
    return (there * apart / (apart + BORDER)).sum() / jnp.maximum(there.sum(), 1.0)


def size(adapter: Adapter, config: PersonalizeConfig) -> Float[Array, ""]:
    """Mean squares of the adapter's entries, in units of their expected sizes."""
    low, offsets = size_of(adapter)
    return low / config.adapter_sd**2 + offsets / config.offset_sd**2


def dynamics_loss(own: Own, prior: DynamicsPrior, seen: Spectra) -> Float[Array, ""]:
    """Negative log-posterior of individual dynamics per parcel and bin, relative to the likelihood of the prior's mean."""
    size = seen.dft.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0)
    return predicted(own, prior, seen) + fit.penalty(own.dynamics, prior) / size


def predicted(own: Own, prior: DynamicsPrior, seen: Spectra) -> Float[Array, ""]:
    """Negative log-likelihood per parcel and bin relative to that of the prior's mean; below 0 if individual dynamics predict better.

    Parcels that blur or resemble each other make *any* signals easier to predict; the difference from the group's dynamics on the same
    signals does not reward that.
    """
    return negative_log_likelihood(own.dynamics, seen) - negative_log_likelihood(prior.mean, seen)


def held_out(own: Own, subject: Subject, prior: DynamicsPrior, later: Spectra, config: PersonalizeConfig) -> Float[Array, 2]:
    """Weighted errors for early stopping: the same two errors on the held-out part of the recording."""
    representation, dynamics = split_loss(own.adapter, subject, subject.later), predicted(own, prior, later)
    return jnp.stack([representation, config.dynamics_weight * dynamics])
