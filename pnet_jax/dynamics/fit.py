r"""Fits of the symmetric model: to a group, to the variance between its subjects, and to a subject given both.

The hierarchy is group → site or patient group → subject. The variance between subjects is estimated by empirical Bayes from one-step
estimates of the training subjects (`linear_stochastic.one_step`), which exist with known errors even if a scan has fewer bins than parcels.
A subject's parameters are then the maximum a posteriori (MAP) estimate, computed by Adam in one compiled loop, which `vmap` runs for a wave
of subjects at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.linear_stochastic import (
    Params,
    from_jacobian,
    jacobian,
    negative_log_likelihood,
    one_step,
    scoring_step,
    standard_errors,
)
from pnet_jax.dynamics.spectra import Spectra

LEVEL_SD = 0.5  # between-subject standard deviation of log σx and log σe
DELAY_SD = 0.5  # between-subject standard deviation of the delay in seconds
NEW_COUPLING_MM = 20.0
TYPICAL_RATE = 0.7  # initial rate of a fit in 1/s; the data determine only its ratio to the frequencies of the band
WEAK_SD = 3.0  # standard deviation of the weak prior of a group's coupling in 1/s, see `fit_group`
SMALLEST_VARIANCE = 1e-8


class DynamicsPrior(NamedTuple):
    """Independent normal prior of the parameters.

    Attributes:
      mean: prior mean of each parameter.
      precision: inverse prior variance of each parameter; 0 for a flat prior. Entries (k, l) and (l, k) of the coupling are one parameter.
    """

    mean: Params
    precision: Params


class Hierarchy(NamedTuple):
    """Parameters of a group and the variance between its subjects.

    Attributes:
      group: parameters of the group.
      subgroups: mean coupling of each site or patient group, `[G, K, K]`.
      variance: variance of the subjects' coupling around their subgroup mean, `[K, K]`.
      error: standard error of the group's coupling, given the number of subjects, `[K, K]`.
    """

    group: Params
    subgroups: Float[Array, "G K K"]
    variance: Float[Array, "K K"]
    error: Float[Array, "K K"]


class Fit(NamedTuple):
    """Fit of one subject; under `vmap`, each entry has a leading axis.

    Attributes:
      params: MAP estimate, or the prior mean if `ok` is False.
      seen: negative log-likelihood of the fitted bins, per parcel and bin.
      held_out: negative log-likelihood of the held-out bins, per parcel and bin; NaN without held-out bins.
      prior_held_out: the same at the prior mean.
      step: optimiser step of the returned parameters.
      ok: False if the fit was not finite, or the prior mean predicts the held-out bins best.
      regularised: True if the scan has fewer independent values than parcels (K > n_eff), so that the fit depends strongly on the prior.
    """

    params: Params
    seen: Float[Array, ""]
    held_out: Float[Array, ""]
    prior_held_out: Float[Array, ""]
    step: Int[Array, ""]
    ok: Bool[Array, ""]
    regularised: Bool[Array, ""]


_Search = tuple[Params, optax.OptState, Params, Array, Array]  # current parameters, state of Adam; best parameters, their score and step


def fit(
    spectra: Spectra, prior: DynamicsPrior, held_out: Spectra | None = None, *, start: Params | None = None, steps: int = 100,
    rate: float = 1e-3, every: int = 5,
) -> Fit:  # fmt: skip
    r"""Compute the MAP estimate of one recording by minimising

    .. math:: L_{dyn}(\theta) + \frac{1}{2 K n_b} \sum_p \pi_p (\theta_p - m_p)^2

    The function is pure and has fixed shapes: `jax.vmap(fit, (0, None, 0))` fits a wave of subjects.

    Args:
      spectra: spectra to fit, of K parcels.
      prior: prior of the parameters, see `subject_prior`.
      held_out: spectra of later, held-out frames (`last_held_out`). The parameters that predict them best are returned, which can be the
        prior mean.
      start: initial parameters; default: the prior mean.
      steps: number of steps of Adam.
      rate: initial learning rate of Adam, which decays to a tenth by a cosine schedule.
      every: number of steps between evaluations of the held-out bins.

    Returns:
      The fit.

    Raises:
      ValueError: If the number of parcels of the prior is not K.
    """
    parcels = spectra.dft.shape[-1]
    if prior.mean.coupling.shape != (parcels, parcels):
        raise ValueError(f"expected a prior of K = {parcels} parcels to match the spectra, got shape {prior.mean.coupling.shape}")
    rounds = -(-steps // every)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, rounds * every, 0.1))
    bins = jnp.maximum(spectra.weight.sum(), 1.0)

    def objective(params: Params) -> Array:
        return negative_log_likelihood(params, spectra) + penalty(params, prior) / (parcels * bins)

    def one(_: int, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and rates
            updates, state = optimiser.update(jax.grad(objective)(params), state)
            return optax.apply_updates(params, updates), state

    def look(carry: _Search, number: Array) -> tuple[_Search, None]:
        params, state, best, best_score, best_step = carry
        params, state = jax.lax.fori_loop(0, every, one, (params, state))
        score = objective(params) if held_out is None else negative_log_likelihood(params, held_out)
        better = (score < best_score) & _finite(params)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
        return (params, state, best, jnp.where(better, score, best_score), jnp.where(better, number, best_step)), None

    start = prior.mean if start is None else start
    begin = objective(start) if held_out is None else negative_log_likelihood(prior.mean, held_out)
    carry = (start, optimiser.init(start), prior.mean, begin, jnp.zeros((), jnp.int32))
    numbers = every * jnp.arange(1, rounds + 1, dtype=jnp.int32)
    (_, _, best, score, step), _ = jax.lax.scan(look, carry, numbers)
    nothing = jnp.full((), jnp.nan, score.dtype)
    return Fit(
        params=best,
        seen=negative_log_likelihood(best, spectra),
        held_out=nothing if held_out is None else score,
        prior_held_out=nothing if held_out is None else begin,
        step=step,
        ok=step > 0,
        regularised=parcels > 2 * bins,
    )


def penalty(params: Params, prior: DynamicsPrior) -> Float[Array, ""]:
    """Return the negative log-density of the prior, without its constant."""
    own = [jnp.square(a - m) * p for a, m, p in zip(params, prior.mean, prior.precision, strict=True)]
    coupling = (own[0].sum() + jnp.diagonal(own[0]).sum()) / 2  # each pair once
    return (coupling + own[1] + own[2] + own[3]) / 2


def fit_group(pooled: Spectra, *, mean: Params | None = None, sd: float = WEAK_SD, steps: int = 20) -> Params:
    """Fit the parameters of a group to its pooled periodograms (`spectra.pool`), by Fisher scoring from a moment estimate.

    The expected information is diagonal in the modes (`linear_stochastic.information`), so a scoring step costs as much as a gradient. A
    weak isotropic prior, which is also diagonal there, determines what the data do not.

    Args:
      pooled: pooled spectra of all training recordings.
      mean: mean of the weak prior, e.g. from `structural`; default: the moment estimate.
      sd: standard deviation of the weak prior in 1/s. A group of only a few recordings needs 0.1 and a mean from other data.
      steps: number of scoring steps.

    Returns:
      The parameters of the group.
    """
    start = moments(pooled)
    mean = start if mean is None else mean
    levels = (jnp.full((), sd**-2) for sd in (2.0, 2.0, DELAY_SD))
    return by_scoring(pooled, DynamicsPrior(mean, Params(jnp.full_like(mean.coupling, sd**-2), *levels)), start, steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def by_scoring(spectra: Spectra, prior: DynamicsPrior, start: Params | None = None, *, steps: int = 20) -> Params:
    """Compute the MAP estimate by safeguarded Fisher scoring, for a prior that is isotropic in the coupling.

    The default start is the prior mean. A step costs as much as a gradient; 6 to 10 steps are enough for one recording.
    """
    start = prior.mean if start is None else start
    counts = spectra.dft.shape[-1] * spectra.weight.sum()

    def objective(params: Params) -> Array:
        return counts * negative_log_likelihood(params, spectra) + penalty(params, prior)

    def one(carry: tuple[Params, Params, Array, Array], _: None) -> tuple[tuple[Params, Params, Array, Array], None]:
        best, tried, lowest, share = carry
        value = objective(tried)
        better = (value < lowest) & _finite(tried)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, best)
        share = jnp.where(better, jnp.minimum(2 * share, 1.0), share / 4)
        step = scoring_step(best, spectra, jax.grad(objective)(best), prior.precision)
        return (best, jax.tree.map(lambda a, d: a - share * d, best, step), jnp.where(better, value, lowest), share), None

    (best, *_), _ = jax.lax.scan(one, (start, start, jnp.full((), jnp.inf), jnp.ones(())), None, length=steps + 1)
    return best


def moments(spectra: Spectra) -> Params:
    """Estimate parameters by matching the mean spectral density over bins to the mean periodogram, mode by mode, on the host."""
    hz, dft, weight = (np.asarray(x, np.float64) for x in spectra)
    total = np.einsum("f,fnk,fnl->kl", weight, dft, dft) / weight.sum()
    power, modes = np.linalg.eigh(total)
    level, share = power.mean(), weight / weight.sum()
    h = np.asarray(haemodynamics.power(hz.astype(np.float32)), np.float64)
    rates = np.geomspace(0.05, 3.0, 200)
    gain = (share * h) @ (1 / ((2 * np.pi * hz[:, None]) ** 2 + rates**2))  # [200], descending
    noise = 0.2 * level
    drive = (level - noise) / np.interp(TYPICAL_RATE, rates, gain)
    wanted = np.maximum(power - noise, 0) / drive
    own = np.interp(-wanted, -gain, rates)
    return from_jacobian(-(modes * own) @ modes.T, sigma_x=drive**0.5, sigma_e=noise**0.5)


def empirical_bayes(group: Params, recordings: Sequence[Spectra], subgroup: Sequence[int] | None = None) -> Hierarchy:
    r"""Estimate the variance between subjects from one recording of each.

    Each recording gives a one-step estimate of its J with known errors. The variance in excess of these errors is the variance between
    subjects, and likewise between subgroups. With few subjects, the variance of a single entry is too uncertain. It is therefore shrunk
    towards a function of the group's coupling, :math:`\tau^2_{kl} = \alpha + \beta J_{kl}^2` (an additive and a multiplicative part), which
    is fitted to all entries; the shrinkage decreases with the number of subjects.

    Args:
      group: parameters of the group from `fit_group`.
      recordings: spectra of S training subjects, standardised like those of the group.
      subgroup: subgroup of each recording, 0…G−1, e.g. its site; default: one group.

    Returns:
      The hierarchy.

    Raises:
      ValueError: If there are fewer than 3 recordings, or the number of subgroup labels differs from that of recordings.
    """
    if len(recordings) < 3:
        raise ValueError(f"at least 3 training recordings are needed to estimate between-subject variance, got {len(recordings)}")
    of = np.zeros(len(recordings), int) if subgroup is None else np.asarray(subgroup)
    if len(of) != len(recordings):
        raise ValueError(f"expected a subgroup for each of {len(recordings)} recordings, got {len(of)}")
    step = jax.jit(one_step)
    found = [step(group, one) for one in recordings]
    estimates = np.stack([np.asarray(j, np.float64) for j, _ in found])
    noise = np.stack([np.asarray(se, np.float64) ** 2 for _, se in found])
    common = np.asarray(jacobian(group), np.float64)
    means, left = _subgroup_means(estimates - common, noise, of)
    apart = estimates - common - means[of]
    scatter = (apart**2).sum(0) / max(len(recordings) - len(means), 1) - noise.mean(0)
    variance = _variance_function(scatter, noise.mean(0), common, len(recordings))
    shrunk = means * left / np.maximum(left + _of_means(variance + noise.mean(0), of), SMALLEST_VARIANCE)
    # M is −J up to c² A⁻¹, which is the same for all: deviations of M are those of J with opposite sign.
    subgroups = jnp.asarray(np.asarray(group.coupling) - shrunk, jnp.float32)
    error = np.sqrt((variance + noise.mean(0)) / len(recordings))
    return Hierarchy(group, subgroups, jnp.asarray(variance, jnp.float32), jnp.asarray(error, jnp.float32))


def subject_prior(
    hierarchy: Hierarchy, subgroup: int | Int[ArrayLike, ""] = 0, *, strength: float = 1.0, anatomy: Float[ArrayLike, "K K"] | None = None
) -> DynamicsPrior:
    """Return the prior of a new subject of a subgroup.

    Args:
      hierarchy: hierarchy from `empirical_bayes`.
      subgroup: index of the subgroup, 0…G−1.
      strength: factor of the prior precision; above 1, subjects are shrunk more towards their subgroup than by empirical Bayes.
      anatomy: precision added for distance (`distance_precision`), `[K, K]`.
    """
    precision = strength / hierarchy.variance + (0.0 if anatomy is None else jnp.asarray(anatomy))
    levels = (jnp.asarray(sd**-2, precision.dtype) for sd in (LEVEL_SD, LEVEL_SD, DELAY_SD))
    return DynamicsPrior(hierarchy.group._replace(coupling=hierarchy.subgroups[subgroup]), Params(precision, *levels))


def posterior_sd(params: Params, spectra: Spectra, prior: DynamicsPrior, group_error: Float[ArrayLike, "K K"] = 0.0) -> Float[Array, "K K"]:
    r"""Compute the posterior standard deviation of each entry of a subject's J in 1/s, `[K, K]`.

    .. math:: \mathrm{sd}^2 = v + (\pi v)^2 e^2, \qquad v = (1 / s^2 + \pi)^{-1}

    where s is the standard error from the recording alone, π the prior precision and e the standard error of the prior mean. Entries are
    treated separately; the prior of other entries would reduce the standard deviations slightly.

    Args:
      params: parameters of the subject from `fit`.
      spectra: spectra to which they were fitted.
      prior: prior of the fit.
      group_error: standard error e of the prior mean, `Hierarchy.error`.
    """
    own = 1 / jnp.square(standard_errors(params, spectra))
    variance = 1 / (own + prior.precision.coupling)
    return jnp.sqrt(variance + jnp.square(prior.precision.coupling * variance * jnp.asarray(group_error)))


def distance_precision(distance: Float[ArrayLike, "K K"], strength: float = 1.0) -> Float[Array, "K K"]:
    r"""Return a prior precision that penalises long-range deviations from the group's coupling.

    .. math:: \lambda \sum_{k,l} (1 - e^{-d_{kl}/20\,mm}) (J_{kl} - J^{grp}_{kl})^2

    Args:
      distance: distances between parcels in mm, `[K, K]`.
      strength: weight λ in s², relative to K n_b times the negative log-likelihood.

    Returns:
      The precision, `[K, K]`.

    Raises:
      ValueError: If `distance` is not square.
    """  # fmt: skip
    d = jnp.asarray(distance)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise ValueError(f"expected distances of shape [K, K], got {d.shape}")
    return 4 * strength * -jnp.expm1(-d / NEW_COUPLING_MM)


def structural(group: Params, connectome: Float[ArrayLike, "K K"]) -> Params:
    """Return parameters whose coupling is proportional to a structural connectome, for use as the mean of a group's prior.

    The connectome is normalised symmetrically by node strength; its scale and the decay rate are fitted to the J of `group` by least
    squares.

    Args:
      group: parameters of the same parcels, e.g. from `moments`.
      connectome: non-negative, symmetric weights, `[K, K]`.

    Raises:
      ValueError: As for `checked_connectome`.
    """
    own = np.asarray(jacobian(group), np.float64)
    weights = checked_connectome(connectome, len(own))
    weights = weights - np.diag(np.diag(weights))
    strength = np.maximum(weights.sum(1), 1e-12)
    normal, apart = weights / np.sqrt(np.outer(strength, strength)), ~np.eye(len(own), dtype=bool)
    gain = max((normal * own)[apart].sum() / max((normal**2)[apart].sum(), 1e-12), 0.0)
    rate = max(-np.diag(own).mean(), 1.01 * gain)  # stable, because the largest eigenvalue of the normalised connectome is 1
    fitted = from_jacobian(gain * normal - rate * np.eye(len(own)))
    return group._replace(coupling=fitted.coupling)


def checked_connectome(connectome: Float[ArrayLike, "K K"], n_parcels: int) -> Float[np.ndarray, "K K"]:
    """Check a structural connectome, and return it in float64.

    Raises:
      ValueError: If the number of parcels differs, or weights are not finite, negative or asymmetric. The message names the first one.
    """
    weights = np.asarray(connectome, np.float64)
    if weights.shape != (n_parcels, n_parcels):
        raise ValueError(
            f"expected {n_parcels} x {n_parcels} weights, one per pair of parcels, found {' x '.join(map(str, weights.shape))}"
        )
    _refuse(weights, ~np.isfinite(weights), "NaN or infinite")
    _refuse(weights, weights < 0, "negative")
    _refuse(weights, ~np.isclose(weights, weights.T, atol=1e-6 * weights.max()), "asymmetric")
    return weights


def _refuse(weights: np.ndarray, bad: np.ndarray, fault: str) -> None:
    if not bad.any():
        return
    row, column = np.argwhere(bad)[0]
    also = f", but {weights[column, row]:g} in the transpose" if fault == "asymmetric" else ""
    raise ValueError(
        f"expected finite, non-negative and symmetric weights, found {bad.sum()} of {bad.size} {fault}; the first, in row "
        f"{row + 1} and column {column + 1}, is {weights[row, column]:g}{also}"
    )


def _subgroup_means(apart: np.ndarray, noise: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each subgroup, `[G, K, K]`, and the variance between the true means, `[K, K]`; all 0 for one group."""
    count = int(of.max()) + 1
    if count == 1:
        return np.zeros((1, *apart.shape[1:])), np.zeros(apart.shape[1:])
    size = np.bincount(of, minlength=count)
    if (size == 0).any():
        raise ValueError(f"expected a recording of each subgroup 0…{count - 1}, got none of {np.flatnonzero(size == 0).tolist()}")
    means = np.stack([apart[of == g].mean(0) for g in range(count)])
    within = sum(((apart[of == g] - means[g]) ** 2).sum(0) for g in range(count)) / max(len(of) - count, 1)
    between = (means - means.mean(0)) ** 2
    return means, np.maximum(between.sum(0) / (count - 1) - within * np.mean(1 / size), 0).mean() * np.ones(apart.shape[1:])


def _of_means(variance: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the variance of each subgroup's mean, `[G, K, K]`."""
    return variance[None] / np.bincount(of)[:, None, None]


def _variance_function(scatter: np.ndarray, noise: np.ndarray, coupling: np.ndarray, subjects: int) -> np.ndarray:
    """Estimate τ² of each entry from the variance in excess of the noise, `[K, K]`; the diagonal is treated separately."""
    eye, out = np.eye(len(scatter), dtype=bool), np.empty_like(scatter)
    for part in (eye, ~eye):
        trust = 1 / np.square(noise[part] + np.median(np.maximum(scatter[part], 0)) + SMALLEST_VARIANCE)
        design = np.stack([np.ones(part.sum()), coupling[part] ** 2], 1)[:, : 1 if part is eye else 2]
        smooth = np.maximum(design @ _non_negative(design, scatter[part], trust), SMALLEST_VARIANCE)
        error = 2 * np.square(noise[part] + smooth) / max(subjects - 1, 1)  # error variance of an entry's estimate
        spread = max(float(np.average(np.square(scatter[part] - smooth) - error, weights=trust)), 0.0)
        own = spread / (spread + error)
        out[part] = np.maximum(smooth + own * (scatter[part] - smooth), smooth / 10)
    return out


def _non_negative(design: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    root = np.sqrt(weight / weight.mean())
    return nnls(design * root[:, None], target * root)[0]


def _finite(params: Params) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in params]))
