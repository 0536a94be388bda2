r"""Fits of the symmetric model: a group's, what its members differ by, and a subject's given both.

The hierarchy is group → site or patient group → subject. What subjects differ by is learned by empirical Bayes from one-step estimates of
each training subject (`linear_stochastic.one_step`), which exist and know their errors where a scan has fewer bins than parcels; a subject
is then the maximum a posteriori, by Adam, in one compiled loop that `vmap` runs for a wave of subjects at once.
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

LEVEL_SD = 0.5  # of log σx and log σe between subjects
DELAY_SD = 0.5  # seconds between subjects
NEW_COUPLING_MM = 20.0
TYPICAL_RATE = 0.7  # 1/s: where a fit begins; only its ratio to the band's frequencies is in the data
WEAK_SD = 3.0  # 1/s: prior standard deviation of a group's coupling about the start of its fit; weak, see `fit_group`
SMALLEST_VARIANCE = 1e-8


class DynamicsPrior(NamedTuple):
    """Independent normal prior of the parameters.

    Attributes:
      mean: of each parameter.
      precision: 1 / variance of each; 0 is flat. Of the coupling, `[K, K]`, entries (k, l) and (l, k) are one parameter.
    """

    mean: Params
    precision: Params


class Hierarchy(NamedTuple):
    """What a group's subjects have in common and what they differ by.

    Attributes:
      group: parameters of all subjects together.
      subgroups: mean coupling of each site or patient group, `[G, K, K]`.
      variance: of a subject's coupling about its subgroup's mean, `[K, K]`.
      error: standard error of the group's coupling, `[K, K]`: so many subjects were not more.
    """

    group: Params
    subgroups: Float[Array, "G K K"]
    variance: Float[Array, "K K"]
    error: Float[Array, "K K"]


class Fit(NamedTuple):
    """A subject's fit; under `vmap` each entry has a leading axis.

    Attributes:
      params: maximum a posteriori, or the prior's mean where `ok` is False.
      seen: negative log-likelihood of the bins that were fitted, a parcel and a bin.
      held_out: that of the bins held out; NaN without any.
      prior_held_out: the same at the prior's mean.
      step: of the optimiser, after which it was stopped.
      ok: False where the fit was not finite, or held-out bins were best foreseen by the prior's mean itself.
      regularised: True where the scan has fewer independent values than parcels (K > n_eff): the prior decides much of the fit.
    """

    params: Params
    seen: Float[Array, ""]
    held_out: Float[Array, ""]
    prior_held_out: Float[Array, ""]
    step: Int[Array, ""]
    ok: Bool[Array, ""]
    regularised: Bool[Array, ""]


_Search = tuple[Params, optax.OptState, Params, Array, Array]  # where it is, Adam's state; the best, its score, its step


def fit(
    spectra: Spectra, prior: DynamicsPrior, held_out: Spectra | None = None, *, start: Params | None = None, steps: int = 100,
    rate: float = 1e-3, every: int = 5,
) -> Fit:  # fmt: skip
    r"""Maximum a posteriori of one recording.

    .. math:: L_{dyn}(\theta) + \frac{1}{2 K n_b} \sum_p \pi_p (\theta_p - m_p)^2

    Pure, of fixed shape: `jax.vmap(fit, (0, None, 0))` fits a wave of subjects.

    Args:
      spectra: to fit, K parcels.
      prior: see `DynamicsPrior`, `subject_prior`.
      held_out: of later frames (`last_held_out`). The parameters that foresee them best are returned, the prior's mean included.
      start: where to begin; at the prior's mean if not given.
      steps: of Adam.
      rate: of Adam, falling to a tenth by a cosine.
      every: steps between looks at the held-out bins.

    Raises:
      ValueError: the prior is not of K parcels.
    """
    parcels = spectra.dft.shape[-1]
    if prior.mean.coupling.shape != (parcels, parcels):
        raise ValueError(f"expected a prior of K = {parcels} parcels, as the spectra have, got shape {prior.mean.coupling.shape}")
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
    """Negative logarithm of the prior's density, without its constant."""
    own = [jnp.square(a - m) * p for a, m, p in zip(params, prior.mean, prior.precision, strict=True)]
    coupling = (own[0].sum() + jnp.diagonal(own[0]).sum()) / 2  # each pair once
    return (coupling + own[1] + own[2] + own[3]) / 2


def fit_group(pooled: Spectra, *, mean: Params | None = None, sd: float = WEAK_SD, steps: int = 20) -> Params:
    """Parameters of a group from its pooled periodograms (`spectra.pool`), by Fisher scoring from a moment estimate.

    The expected information is diagonal in the modes (`linear_stochastic.information`), so a scoring step costs a gradient. A weak
    isotropic prior, diagonal there as well, keeps what the data do not say.

    Args:
      pooled: of all training recordings.
      mean: of the weak prior, e.g. `structural`; the moment estimate if not given.
      sd: of the weak prior in 1/s. A group of a few recordings needs .1 and a mean that was not made from them alone.
      steps: of scoring.
    """
    start = moments(pooled)
    mean = start if mean is None else mean
    levels = (jnp.full((), sd**-2) for sd in (2.0, 2.0, DELAY_SD))
    return by_scoring(pooled, DynamicsPrior(mean, Params(jnp.full_like(mean.coupling, sd**-2), *levels)), start, steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def by_scoring(spectra: Spectra, prior: DynamicsPrior, start: Params | None = None, *, steps: int = 20) -> Params:
    """Maximum a posteriori by safeguarded Fisher scoring from `start`, or the prior's mean, for a prior isotropic in the coupling.

    A step costs a gradient; 6 to 10 are enough for one recording.
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
    """Parameters whose density, averaged over the bins, is the mean periodogram: mode by mode, on the host."""
    hz, dft, weight = (np.asarray(x, np.float64) for x in spectra)
    total = np.einsum("f,fnk,fnl->kl", weight, dft, dft) / weight.sum()
    power, modes = np.linalg.eigh(total)
    level, share = power.mean(), weight / weight.sum()
    h = np.asarray(haemodynamics.power(hz.astype(np.float32)), np.float64)
    rates = np.geomspace(0.05, 3.0, 200)
    gain = (share * h) @ (1 / ((2 * np.pi * hz[:, None]) ** 2 + rates**2))  # [200], falling
    noise = 0.2 * level
    drive = (level - noise) / np.interp(TYPICAL_RATE, rates, gain)
    wanted = np.maximum(power - noise, 0) / drive
    own = np.interp(-wanted, -gain, rates)
    return from_jacobian(-(modes * own) @ modes.T, sigma_x=drive**0.5, sigma_e=noise**0.5)


def empirical_bayes(group: Params, recordings: Sequence[Spectra], subgroup: Sequence[int] | None = None) -> Hierarchy:
    r"""What subjects differ by, from one recording of each.

    Each recording gives a one-step estimate of its J with known errors. Their scatter beyond those errors is the variance between
    subjects, and likewise between subgroups. A single entry's is too uncertain with few subjects, so the variance is a function of the
    group's coupling, :math:`\tau^2_{kl} = \alpha + \beta J_{kl}^2` (a level and a share, as of a log-normal factor), fitted to all entries
    and drawn towards each entry's own value as subjects become many.

    Args:
      group: of `fit_group`.
      recordings: of S training subjects, standardised as the group's were.
      subgroup: 0…G−1 for each, e.g. of its site; one group if not given.

    Raises:
      ValueError: fewer than 3 recordings, or not one subgroup for each.
    """
    if len(recordings) < 3:
        raise ValueError(f"expected 3 training recordings or more to learn what subjects differ by, got {len(recordings)}")
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
    # M is −J but for c² A⁻¹, the same in all: what J differs by, M differs by with the other sign.
    subgroups = jnp.asarray(np.asarray(group.coupling) - shrunk, jnp.float32)
    error = np.sqrt((variance + noise.mean(0)) / len(recordings))
    return Hierarchy(group, subgroups, jnp.asarray(variance, jnp.float32), jnp.asarray(error, jnp.float32))


def subject_prior(
    hierarchy: Hierarchy, subgroup: int | Int[ArrayLike, ""] = 0, *, strength: float = 1.0, anatomy: Float[ArrayLike, "K K"] | None = None
) -> DynamicsPrior:
    """The prior of a new subject of a subgroup.

    Args:
      hierarchy: of `empirical_bayes`.
      subgroup: 0…G−1.
      strength: above 1 draws subjects more towards their subgroup than empirical Bayes found right.
      anatomy: precision that distance adds (`distance_precision`), `[K, K]`.
    """
    precision = strength / hierarchy.variance + (0.0 if anatomy is None else jnp.asarray(anatomy))
    levels = (jnp.asarray(sd**-2, precision.dtype) for sd in (LEVEL_SD, LEVEL_SD, DELAY_SD))
    return DynamicsPrior(hierarchy.group._replace(coupling=hierarchy.subgroups[subgroup]), Params(precision, *levels))


def posterior_sd(params: Params, spectra: Spectra, prior: DynamicsPrior, group_error: Float[ArrayLike, "K K"] = 0.0) -> Float[Array, "K K"]:
    r"""Standard deviation of each entry of a subject's J, given their recording and the prior, in 1/s.

    .. math:: \mathrm{sd}^2 = v + (\pi v)^2 e^2, \qquad v = (1 / s^2 + \pi)^{-1}

    with s the standard error of the recording alone, π the prior's precision and e the error of the prior's own mean. Entries are taken one
    by one: what the prior says of others would narrow an entry a little more.

    Args:
      params: the subject's, of `fit`.
      spectra: those that were fitted.
      prior: that they were fitted with.
      group_error: e, `Hierarchy.error`.
    """
    own = 1 / jnp.square(standard_errors(params, spectra))
    variance = 1 / (own + prior.precision.coupling)
    return jnp.sqrt(variance + jnp.square(prior.precision.coupling * variance * jnp.asarray(group_error)))


def distance_precision(distance: Float[ArrayLike, "K K"], strength: float = 1.0) -> Float[Array, "K K"]:
    r"""Precision by which new coupling over long distances costs more.

    .. math:: \lambda \sum_{k,l} (1 - e^{-d_{kl}/20\,mm}) (J_{kl} - J^{grp}_{kl})^2

    Args:
      distance: between parcels in mm, `[K, K]`.
      strength: λ in s², to be set beside K n_b times the likelihood.

    Raises:
      ValueError: `distance` is not square.
    """  # fmt: skip
    d = jnp.asarray(distance)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise ValueError(f"expected distances of shape [K, K], got {d.shape}")
    return 4 * strength * -jnp.expm1(-d / NEW_COUPLING_MM)


def structural(group: Params, connectome: Float[ArrayLike, "K K"]) -> Params:
    """Parameters whose coupling is proportional to a structural connectome, as the mean of a group's prior.

    The connectome is normalised by the strengths of its parcels, as a random walk is; level and rate are least squares to the group's J.

    Args:
      group: any parameters of the same parcels, e.g. `moments`.
      connectome: weights, 0 or above, symmetric, `[K, K]`.

    Raises:
      ValueError: as `checked_connectome`.
    """
    own = np.asarray(jacobian(group), np.float64)
    weights = checked_connectome(connectome, len(own))
    weights = weights - np.diag(np.diag(weights))
    strength = np.maximum(weights.sum(1), 1e-12)
    normal, apart = weights / np.sqrt(np.outer(strength, strength)), ~np.eye(len(own), dtype=bool)
    gain = max((normal * own)[apart].sum() / max((normal**2)[apart].sum(), 1e-12), 0.0)
    rate = max(-np.diag(own).mean(), 1.01 * gain)  # stable: the normalised connectome's largest eigenvalue is 1
    fitted = from_jacobian(gain * normal - rate * np.eye(len(own)))
    return group._replace(coupling=fitted.coupling)


def checked_connectome(connectome: Float[ArrayLike, "K K"], n_parcels: int) -> Float[np.ndarray, "K K"]:
    """A structural connectome, if that is what it is.

    Raises:
      ValueError: it is not of so many parcels, or holds weights that are not finite, below 0 or asymmetric; the first of them is named.
    """
    weights = np.asarray(connectome, np.float64)
    if weights.shape != (n_parcels, n_parcels):
        raise ValueError(f"expected {n_parcels} x {n_parcels} weights, as there are parcels, found {' x '.join(map(str, weights.shape))}")
    _refuse(weights, ~np.isfinite(weights), "NaN or infinite")
    _refuse(weights, weights < 0, "negative")
    _refuse(weights, ~np.isclose(weights, weights.T, atol=1e-6 * weights.max()), "asymmetric")
    return weights


def _refuse(weights: np.ndarray, bad: np.ndarray, fault: str) -> None:
    if not bad.any():
        return
    row, column = np.argwhere(bad)[0]
    also = f" and {weights[column, row]:g} the other way" if fault == "asymmetric" else ""
    raise ValueError(
        f"expected weights that are finite, 0 or above and symmetric, found {bad.sum()} of {bad.size} {fault}; the first, in row "
        f"{row + 1} and column {column + 1}, is {weights[row, column]:g}{also}"
    )


def _subgroup_means(apart: np.ndarray, noise: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each subgroup, `[G, K, K]`, and the variance between the true means, `[K, K]`; all 0 for one group."""
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
    """Variance of each subgroup's mean, `[G, K, K]`."""
    return variance[None] / np.bincount(of)[:, None, None]


def _variance_function(scatter: np.ndarray, noise: np.ndarray, coupling: np.ndarray, subjects: int) -> np.ndarray:
    """τ² of each entry from the scatter beyond the noise, `[K, K]`; the diagonal by itself."""
    eye, out = np.eye(len(scatter), dtype=bool), np.empty_like(scatter)
    for part in (eye, ~eye):
        trust = 1 / np.square(noise[part] + np.median(np.maximum(scatter[part], 0)) + SMALLEST_VARIANCE)
        design = np.stack([np.ones(part.sum()), coupling[part] ** 2], 1)[:, : 1 if part is eye else 2]
        smooth = np.maximum(design @ _non_negative(design, scatter[part], trust), SMALLEST_VARIANCE)
        error = 2 * np.square(noise[part] + smooth) / max(subjects - 1, 1)  # of an entry's own value
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
