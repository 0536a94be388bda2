"""Complete fine-tuning on one recording: the parameters, whether their parcels are kept, and the dynamics of these parcels."""

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
from pnet_jax.finetune.objective import Own, Subject, parcels
from pnet_jax.finetune.subject import bins_of, judged_embedding, last_part
from pnet_jax.finetune.wave import Tuned, begin, fine_tune
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.decide import over_cubes
from pnet_jax.parcellation.held_out import Score, held_out
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan

FINAL_STEPS = 6
LOOK_EVERY = 2  # steps between looks at the held-out part

tune = functools.partial(jax.jit, static_argnames="config")(fine_tune)
_fit = jax.jit(fit, static_argnames=("steps", "rate", "every"))


class Verdict(NamedTuple):
    """Whether the fine-tuned parcels are kept.

    Attributes:
      kept: they are.
      score: their held-out log predictive density on the part of the recording that judges, nats per location.
      without: of the parcels without fine-tuning, there too.
      reason: one sentence.
    """

    kept: bool
    score: float
    without: float
    reason: str


class Personal(NamedTuple):
    """What fine-tuning one recording came to.

    Attributes:
      own: individual parameters.
      round: the best one; 0 is no change at all.
      verdict: whether the parcels are kept.
    """

    own: Own
    round: int
    verdict: Verdict


class Dynamics(NamedTuple):
    """Dynamics of the K' parcels that are present in the participant.

    Attributes:
      fit: see `dynamics.fit.Fit`.
      coupling: J in 1/s, `[K', K']`.
      error: posterior standard deviation of each entry, `[K', K']`.
    """

    fit: Fit
    coupling: Float[np.ndarray, "k k"]
    error: Float[np.ndarray, "k k"]


class Effective(NamedTuple):
    """Directed coupling of the K' parcels that are present.

    Attributes:
      coupling: J in 1/s, `[K', K']`; row k, column l is what l does to k.
      error: standard error of each entry, `[K', K']`.
      sd: widths of the prior that the scan spoke for, of the symmetric and of the skew part, in 1/s; see `fit_effective`.
      ok: False where the fit was not finite, not stable or no better than where it began: the symmetric coupling is given.
    """

    coupling: Float[np.ndarray, "k k"]
    error: Float[np.ndarray, "k k"]
    sd: tuple[float, float]
    ok: bool


def dynamics_prior(hierarchy: Hierarchy, parcels: Atlas, config: PersonalizeConfig) -> DynamicsPrior:
    """Make the prior of the dynamics of a new participant; coupling is penalised more at larger distances."""
    centres = np.stack([parcels.xyz[parcels.labels == k].mean(0) for k in range(parcels.n_parcels)])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    typical = float(1 / np.median(np.asarray(hierarchy.variance)))
    return subject_prior(hierarchy, anatomy=distance_precision(distance, config.anatomy_weight * typical / 4))


def judge(
    scan: Scan, placed: AtlasOnSpace, model: Model, subject: Subject, prior: DynamicsPrior, tuned: Tuned, config: PersonalizeConfig
) -> Verdict:
    """Parcels of the fitted part of the recording, with and without fine-tuning, scored on the part that judges.

    The score is the held-out log predictive density of that part's embeddings (`parcellation.held_out`), by the model without an adapter
    for both. Fine-tuned parcels are kept only where the bootstrap interval of their gain, over 32-mm cubes, lies above 0. The round was
    picked on another part, so that the best of several rounds is not judged by the luck that made it the best.
    """
    nothing = float("nan")
    if not bool(tuned.ok):
        return Verdict(False, nothing, nothing, "fine-tuning was not finite")
    if int(tuned.round) == 0:
        return Verdict(False, nothing, nothing, "no round predicted the held-out part better than no fine-tuning")
    z = judged_embedding(scan, placed, model, config)
    plain = begin(subject.x.shape[1], prior, config).adapter
    ours, before = (_judged(adapter, subject, z, placed.prior.blocks) for adapter in (tuned.own.adapter, plain))
    counts = (subject.candidates >= 0).any(1)
    key = jax.random.key(config.seed)
    gain = over_cubes(key, ours.each - before.each, counts, placed.prior.cube, len(placed.prior.cubes))
    low, middle, high = (float(x) for x in gain)
    said = f"the held-out log predictive density changes by {middle:+.4f} nats per location (95 % interval {low:+.4f} to {high:+.4f})"
    return Verdict(low > 0, float(ours.mean), float(before.mean), said)


@jax.jit
def _judged(adapter: Adapter, subject: Subject, z: Float[Array, "W D"], blocks: ParcelBlocks) -> Score:
    q = parcels(adapter, subject, subject.q, FINAL_STEPS)[0].q
    return held_out(q, subject.candidates, z, len(adapter.offsets), blocks=blocks)


def dynamics_of(
    scan: Scan,
    signals: Float[np.ndarray, "K T"],
    prior: DynamicsPrior,
    config: PersonalizeConfig,
    group_error: Float[np.ndarray, "K K"] | None = None,
) -> Dynamics:
    """Dynamics of the parcels that have a signal; `group_error` is that of the prior's mean (`Hierarchy.error`).

    Raises:
      ValueError: too few frames for the band; names the scan.
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
    return Dynamics(found, np.asarray(jacobian(found.params)), np.asarray(posterior_sd(found.params, seen, own, error)))


def refuse_directed(parcels: Atlas) -> None:
    """Refuses a prior with too many parcels for directed coupling, before a scan is read.

    Raises:
      SettingsError: it has more than 200.
    """
    if parcels.n_parcels > MOST_PARCELS:
        raise SettingsError(
            f'edge measure "effective" is for at most {MOST_PARCELS} parcels, prior {parcels.source} has {parcels.n_parcels}: give a '
            'coarser prior, or use "coupling", which is undirected and takes any number'
        )


def effective_of(
    scan: Scan, signals: Float[np.ndarray, "K T"], prior: DynamicsPrior, symmetric: Dynamics, config: PersonalizeConfig
) -> Effective:
    """Directed coupling of the parcels that have a signal, from the whole recording.

    It is shrunk towards the group's coupling and starts from the participant's symmetric one, which was fitted to the same scan and as a
    prior would count it twice.

    Raises:
      ValueError: more than 200 parcels have a signal.
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
    except (ValueError, np.linalg.LinAlgError):  # a start on the border of stability, or spectra that are not positive definite
        ok = False
    if not ok:
        return Effective(symmetric.coupling, symmetric.error, (0.0, 0.0), False)
    return Effective(coupling, error, found.sd, True)


def _present(prior: DynamicsPrior, present: Int[np.ndarray, " k"]) -> DynamicsPrior:
    at = np.ix_(present, present)
    one = [params._replace(coupling=params.coupling[at]) for params in prior]
    return DynamicsPrior(*one)
