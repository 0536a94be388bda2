"""Complete fine-tuning on one recording: individual parameters, the decision whether to keep their parcels, and dynamics."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.config import PersonalizeConfig
from pnet_jax.dynamics.effective import MOST_PARCELS, DirectedParams, cross_spectra, fit_effective
from pnet_jax.dynamics.fit import DynamicsPrior, Fit, Hierarchy, distance_precision, fit, posterior_sd, subject_prior
from pnet_jax.dynamics.linear_stochastic import jacobian
from pnet_jax.dynamics.spectra import scale_of, spectra, standardise
from pnet_jax.encoder.adapter import Adapter
from pnet_jax.encoder.model import Model
from pnet_jax.errors import SettingsError
from pnet_jax.finetune.objective import FinetuneSubject, IndividualParameters, parcels
from pnet_jax.finetune.subject import bins_of, judged_embedding, last_part
from pnet_jax.finetune.wave import Tuned, fine_tune, initial_parameters
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.decide import over_cubes
from pnet_jax.parcellation.held_out import Score, held_out
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan

FINAL_STEPS = 6
LOOK_EVERY = 2  # number of steps between evaluations of the held-out part

tune = functools.partial(jax.jit, static_argnames="config")(fine_tune)
_fit = jax.jit(fit, static_argnames=("steps", "rate", "every"))


class Verdict(NamedTuple):
    """Decision whether the fine-tuned parcels are kept.

    Attributes:
      kept: whether the fine-tuned parcels are kept.
      score: held-out log predictive density of the fine-tuned parcels on the test part of the recording, in nats per location.
      without: the same for the parcels without fine-tuning.
      reason: reason for the decision, one sentence.
    """

    kept: bool
    score: float
    without: float
    reason: str


class Personal(NamedTuple):
    """Result of fine-tuning on one recording.

    Attributes:
      own: individual parameters.
      round: best round; 0 means no change.
      verdict: decision whether the parcels are kept.
    """

    own: IndividualParameters
    round: int
    verdict: Verdict


class IndividualDynamics(NamedTuple):
    """Dynamics of the K' parcels that are present in the participant.

    Attributes:
      fit: fit of the dynamics, see `dynamics.fit.Fit`.
      coupling: coupling J in 1/s, `[K', K']`.
      error: posterior standard deviation of each entry in 1/s, `[K', K']`.
    """

    fit: Fit
    coupling: Float[np.ndarray, "k k"]
    error: Float[np.ndarray, "k k"]


class DirectedCoupling(NamedTuple):
    """Directed coupling of the K' parcels that are present in the participant.

    Attributes:
      coupling: coupling J in 1/s, `[K', K']`; row k, column l is the effect of l on k.
      error: standard error of each entry in 1/s, `[K', K']`.
      sd: estimated prior widths of the symmetric and the skew-symmetric part in 1/s; see `fit_effective`.
      ok: False if the fit was not finite, not stable or no better than its start; the symmetric coupling is then returned.
    """

    coupling: Float[np.ndarray, "k k"]
    error: Float[np.ndarray, "k k"]
    sd: tuple[float, float]
    ok: bool


def dynamics_prior(hierarchy: Hierarchy, parcels: Atlas, config: PersonalizeConfig) -> DynamicsPrior:
    """Return the prior of the dynamics of a new participant; deviations from the group are penalised more at larger distances."""
    centres = np.stack([parcels.xyz[parcels.labels == k].mean(0) for k in range(parcels.n_parcels)])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    typical = float(1 / np.median(np.asarray(hierarchy.variance)))
    return subject_prior(hierarchy, anatomy=distance_precision(distance, config.anatomy_weight * typical / 4))


def judge(
    scan: Scan, placed: AtlasOnSpace, model: Model, subject: FinetuneSubject, prior: DynamicsPrior, tuned: Tuned, config: PersonalizeConfig
) -> Verdict:
    """Score the parcels of the fitted part of the recording, with and without fine-tuning, on the test part.

    The score is the held-out log predictive density of the embeddings of the test part (`parcellation.held_out`), computed without an
    adapter in both cases. Fine-tuned parcels are kept only if the bootstrap interval of their gain, over 32-mm cubes, lies above 0. The
    best round is selected on another part of the recording to avoid selection bias.
    """
    nothing = float("nan")
    if not bool(tuned.ok):
        return Verdict(False, nothing, nothing, "fine-tuning was not finite")
    if int(tuned.round) == 0:
        return Verdict(False, nothing, nothing, "no round predicted the held-out part better than no fine-tuning")
    z = judged_embedding(scan, placed, model, config)
    plain = initial_parameters(subject.x.shape[1], prior, config).adapter
    ours, before = (_judged(adapter, subject, z, placed.prior.blocks) for adapter in (tuned.own.adapter, plain))
    counts = (subject.candidates >= 0).any(1)
    key = jax.random.key(config.seed)
    gain = over_cubes(key, ours.each - before.each, counts, placed.prior.cube, len(placed.prior.cubes))
    low, middle, high = (float(x) for x in gain)
    said = f"the held-out log predictive density changes by {middle:+.4f} nats per location (95 % interval {low:+.4f} to {high:+.4f})"
    return Verdict(low > 0, float(ours.mean), float(before.mean), said)


@jax.jit
def _judged(adapter: Adapter, subject: FinetuneSubject, z: Float[Array, "W D"], blocks: ParcelBlocks) -> Score:
    q = parcels(adapter, subject, subject.q, FINAL_STEPS)[0].q
    return held_out(q, subject.candidates, z, len(adapter.offsets), blocks=blocks)


def dynamics_of(
    scan: Scan,
    signals: Float[np.ndarray, "K T"],
    prior: DynamicsPrior,
    config: PersonalizeConfig,
    group_error: Float[np.ndarray, "K K"] | None = None,
) -> IndividualDynamics:
    """Fit the dynamics of the parcels that have a signal; `group_error` is the standard error of the prior mean (`Hierarchy.error`).

    Raises:
      ValueError: If there are too few frames for the frequency band. The message names the scan.
    """
    present = np.flatnonzero(np.isfinite(signals).all(1))
    some = jnp.asarray(signals[present])
    bins = bins_of(scan, *last_part(scan, config.held_out))
    seen, later = (spectra(some, one) for one in bins)
    scale = scale_of(seen)
    seen, later = standardise(seen), standardise(later, scale)
    own = _present(prior, present)
    found = _fit(seen, own, later, steps=config.rounds * config.steps, rate=config.dynamics_rate, every=LOOK_EVERY)
    error = 0.0 if group_error is None else np.asarray(group_error)[np.ix_(present, present)]
    return IndividualDynamics(found, np.asarray(jacobian(found.params)), np.asarray(posterior_sd(found.params, seen, own, error)))


def refuse_directed(parcels: Atlas) -> None:
    """Check, before a scan is read, that an atlas does not have too many parcels for directed coupling.

    Raises:
      SettingsError: If it has more than 200 parcels.
    """
    if parcels.n_parcels > MOST_PARCELS:
        raise SettingsError(
            f'edge measure "effective" supports at most {MOST_PARCELS} parcels, atlas {parcels.source} has {parcels.n_parcels}: use a '
            'coarser atlas, or the undirected measure "coupling", which has no limit'
        )


def effective_of(
    scan: Scan, signals: Float[np.ndarray, "K T"], prior: DynamicsPrior, symmetric: IndividualDynamics, config: PersonalizeConfig
) -> DirectedCoupling:
    """Fit the directed coupling of the parcels that have a signal, from the whole recording.

    It is shrunk towards the group's coupling. The participant's symmetric coupling is used as the start but not as the prior, because it
    was fitted to the same scan.

    Raises:
      ValueError: If more than 200 parcels have a signal.
    """
    present = np.flatnonzero(np.isfinite(signals).all(1))
    first, later = (spectra(jnp.asarray(signals[present]), one) for one in bins_of(scan, *last_part(scan, config.held_out)))
    scale = scale_of(first)
    seen = cross_spectra([standardise(first), standardise(later, scale)])
    group, own = _present(prior, present).mean, symmetric.fit.params
    typical, start = (DirectedParams(jacobian(one), *one[1:]) for one in (group, own))
    try:
        found = fit_effective(seen, typical, start=start)
        coupling, error = np.asarray(found.params.jacobian), np.asarray(found.standard_errors)
        stable = np.isfinite(coupling).all() and np.linalg.eigvals(coupling.astype(np.float64)).real.max() < 0
        ok = bool(found.ok) and bool(stable) and bool(np.isfinite(error).all())
    except (ValueError, np.linalg.LinAlgError):  # start at the stability limit, or spectra that are not positive definite
        ok = False
    if not ok:
        return DirectedCoupling(symmetric.coupling, symmetric.error, (0.0, 0.0), False)
    return DirectedCoupling(coupling, error, found.sd, True)


def _present(prior: DynamicsPrior, present: Int[np.ndarray, " k"]) -> DynamicsPrior:
    at = np.ix_(present, present)
    one = [params._replace(coupling=params.coupling[at]) for params in prior]
    return DynamicsPrior(*one)
