r"""Directed (effective) coupling: the linear stochastic model without the symmetry constraint on J.

.. math:: S(\omega) = |H|^2\sigma_x^2 R R^H + \sigma_e^2 I, \qquad R = (i\omega I - J)^{-1}

Directions are identified by the imaginary part of the cross-spectra. Every bin requires dense complex algebra, so K is limited to 200.

For each bin, the expected information about J is a sum of two Kronecker products,

.. math:: I_{(ij),(kl)} = 2\,\mathrm{Re}\,(X_{jk} X_{li} + Y_{jl} Z_{ki}), \quad X = C S^{-1} R,\; Y = C S^{-1} C,\; Z = R^H S^{-1} R

with :math:`C = |H|^2\sigma_x^2 R R^H`. If J is symmetric, the information decomposes, in the modes of J, into 2 × 2 blocks of (i, j) and
(j, i) and one block of the diagonal and the levels. The full matrix is used for the fit (safeguarded Fisher scoring) up to 30 parcels and
for standard errors up to 60; above that, the blocks are used.

Three measures ensure that the intervals are calibrated:

- In a band up to 0.1 Hz, rates of about 1/s are hardly distinguishable. The prior therefore applies to the *shape* of J, i.e. J divided by
  its mean rate, and the rate has a separate wide prior; otherwise, a scan with little information about the rate would shrink all of J.
- The widths of the prior of the shape, for its symmetric and skew-symmetric part, are estimated from the scan (empirical Bayes).
- The K² entries also fit part of the noise, so the joint maximum over entries, noise, rate and delay underestimates the noise and the
  rates. The objective therefore includes the volume term of J, half the log-determinant of the information about its shape (Laplace
  approximation): the levels are then those of the likelihood with J integrated out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Complex, Float

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.hopf import lyapunov
from pnet_jax.dynamics.linear_stochastic import band_grid, variance_of_entries
from pnet_jax.dynamics.spectra import BAND_HZ, POOL_HZ, Spectra

MOST_PARCELS = 200
DENSE = 60  # maximum number of parcels for standard errors from the full information
ROUND = 8  # steps of a fit between two estimates of the prior widths
SETTLED = 1.1  # the widths have converged if they change by less than this factor between rounds
NARROWEST = 1e-3  # minimum width of the prior relative to the widest
ENOUGH = 1e-3  # minimum gain of a step in log-likelihood, times K²; entries are then within a few hundredths of their standard errors
RATE_SD = 0.5  # prior standard deviation of the logarithm of the mean rate
STEER_DENSE = 30  # maximum number of parcels for fits with the full information
LEVEL_SDS = (2.0, 2.0, 0.5)  # prior standard deviations of log σx, log σe and the delay


class DirectedParams(NamedTuple):
    """Parameters of the model.

    Attributes:
      jacobian: J in 1/s, `[K, K]`; entry (k, l) is the effect of l on k.
      log_sigma_x, log_sigma_e, delay: as in `linear_stochastic.Params`.
    """

    jacobian: Float[Array, "K K"]
    log_sigma_x: Float[Array, ""]
    log_sigma_e: Float[Array, ""]
    delay: Float[Array, ""]


class CrossSpectra(NamedTuple):
    """Pooled cross-spectra.

    Attributes:
      frequency: frequencies in Hz, `[F]`.
      gram: mean of ŝ ŝᴴ, `[F, K, K]`.
      weight: number of bins averaged, `[F]`.
    """

    frequency: Float[Array, " F"]
    gram: Complex[Array, "F K K"]
    weight: Float[Array, " F"]


_Saved = tuple[Array, Array, Array, Array, CrossSpectra]


class DirectedFit(NamedTuple):
    """A fit of directed coupling.

    Attributes:
      params: maximum a posteriori (MAP) estimate, or the start if `ok` is False.
      standard_errors: standard errors of J in 1/s, `[K, K]`.
      objective: sum of negative log-likelihood, prior and volume term, per parcel and bin.
      sd: prior standard deviations used, of the symmetric and the skew-symmetric part; see `fit_effective`.
      ok: False if no step from the start was finite, stable and better.
      regularised: True if the scan has fewer independent values than parcels.
    """

    params: DirectedParams
    standard_errors: Float[Array, "K K"]
    objective: Float[Array, ""]
    sd: tuple[float, float]
    ok: Bool[Array, ""]
    regularised: Bool[Array, ""]


def cross_spectra(recordings: Sequence[Spectra], band: tuple[float, float] = BAND_HZ, step: float = POOL_HZ) -> CrossSpectra:
    """Average the cross-spectra of one or more recordings on a frequency grid, on the host.

    Args:
      recordings: spectra of the recordings, with the same K; standardised or not.
      band: frequency band in Hz.
      step: spacing of the grid in Hz.

    Returns:
      The mean cross-spectra.

    Raises:
      ValueError: If K differs between recordings or is above 200.
    """
    sizes = {one.dft.shape[-1] for one in recordings}
    if len(sizes) != 1 or max(sizes) > MOST_PARCELS:
        raise ValueError(f"expected recordings with the same K, at most {MOST_PARCELS} parcels, got K = {sorted(sizes)}")
    (parcels,), count = sizes, max(1, round((band[1] - band[0]) / step))
    gram, weight, frequency = np.zeros((count, parcels, parcels), complex), np.zeros(count), np.zeros(count)
    for one in recordings:
        hz, rows, own = (np.asarray(x, np.float64) for x in one)
        at = np.clip(((hz - band[0]) / (band[1] - band[0]) * count).astype(int), 0, count - 1)
        for f in np.flatnonzero(own):
            z = rows[f, 0] + 1j * rows[f, 1]
            gram[at[f]] += own[f] * (np.outer(z, z.conj()) + rows[f, 2:].T @ rows[f, 2:])
        np.add.at(weight, at, own)
        np.add.at(frequency, at, own * hz)
    used = weight > 0
    mean = gram[used] / weight[used, None, None]
    return CrossSpectra(
        jnp.asarray(frequency[used] / weight[used], jnp.float32), jnp.asarray(mean, jnp.complex64), jnp.asarray(weight[used], jnp.float32)
    )


def density(params: DirectedParams, frequency: Float[Array, " F"]) -> Complex[Array, "F K K"]:
    """Return the spectral density S(ω), Hermitian, `[F, K, K]`."""
    drive, noise = _levels(params, frequency)
    return _parts(params.jacobian, drive, noise, frequency)[2]


def negative_log_likelihood(params: DirectedParams, seen: CrossSpectra) -> Float[Array, ""]:
    """Compute the Whittle negative log-likelihood per parcel and bin; for a symmetric J, it equals that of `linear_stochastic`.

    Raises:
      ValueError: If the numbers of parcels differ or are above 200.
    """
    parcels = seen.gram.shape[-1]
    if params.jacobian.shape != (parcels, parcels):
        raise ValueError(f"expected a Jacobian of shape {(parcels, parcels)} to match the spectra, got {params.jacobian.shape}")
    if parcels > MOST_PARCELS:
        raise ValueError(f"directed coupling supports at most {MOST_PARCELS} parcels, got {parcels}; use the symmetric model instead")
    drive, noise = _levels(params, seen.frequency)
    return _whittle(params.jacobian, drive, noise, seen) / (parcels * jnp.maximum(seen.weight.sum(), 1.0))


def covariance(params: DirectedParams, lag: Float[ArrayLike, ""] = 0.0, band: tuple[float, float] | None = BAND_HZ) -> Float[Array, "K K"]:
    """Compute the covariance of signal k at t + `lag` and signal l at t, without measurement noise; J must be stable.

    Args:
      params: parameters of K parcels.
      lag: lag in seconds, of any sign.
      band: frequency band in Hz; None for the latent process over all frequencies, without haemodynamics.

    Returns:
      The covariance, `[K, K]`.
    """
    lag = jnp.asarray(lag, params.jacobian.dtype)
    if band is None:
        eye = jnp.eye(len(params.jacobian), dtype=params.jacobian.dtype)
        now = lyapunov(params.jacobian, jnp.exp(2 * params.log_sigma_x) * eye)
        later = jnp.matmul(jax.scipy.linalg.expm(params.jacobian * jnp.abs(lag)), now, precision="highest")
        return jnp.where(lag >= 0, later, later.T)
    frequency, share = (jnp.asarray(x, lag.dtype) for x in band_grid(band))
    drive, noise = _levels(params, frequency)
    c = _parts(params.jacobian, drive, noise, frequency)[1]
    angle = 2 * jnp.pi * frequency * lag
    return 2 * ((share * jnp.cos(angle))[:, None, None] * c.real - (share * jnp.sin(angle))[:, None, None] * c.imag).sum(0)


def correlation(params: DirectedParams, lag: Float[ArrayLike, ""] = 0.0, band: tuple[float, float] | None = BAND_HZ) -> Float[Array, "K K"]:
    """Compute `covariance` divided by the standard deviations at lag 0, `[K, K]`."""
    now = jnp.diagonal(covariance(params, 0.0, band))
    return covariance(params, lag, band) * jax.lax.rsqrt(now)[:, None] * jax.lax.rsqrt(now)[None, :]


def fit_effective(
    seen: CrossSpectra,
    prior: DirectedParams,
    *,
    sd: tuple[float, float] | None = None,
    start: DirectedParams | None = None,
    steps: int = 60,
) -> DirectedFit:
    """Estimate directed coupling by maximum a posteriori, with standard errors.

    Args:
      seen: cross-spectra from `cross_spectra`.
      prior: mean of the prior of J's shape: a stable J that was *not* fitted to the same scan, e.g. that of a group or a negative multiple
        of the identity; otherwise, the standard errors are too small.
      sd: prior standard deviations of J in 1/s at the mean rate of the prior, for the symmetric and the skew-symmetric part; the prior
        variance of an entry is the mean of both squares. Use large values for a flat prior. With None, both are estimated from the scan
        (`measured_sd`), so that intervals have their nominal coverage.
      start: initial parameters with a stable J, e.g. the symmetric fit of the same scan; default: the prior.
      steps: maximum number of scoring steps, each accepted only if it is finite, stable and better.

    Returns:
      The fit.

    Raises:
      ValueError: If shapes do not agree, K is above 200, or the prior or the start is not stable.
    """
    start = prior if start is None else start
    for name, one in (("prior", prior), ("start", start)):
        slowest = np.linalg.eigvals(np.asarray(one.jacobian, np.float64)).real.max()
        if not slowest < 0:
            raise ValueError(f"expected a stable {name} (all eigenvalues with negative real parts), got {slowest:.3g} 1/s")
    own = (widest(prior),) * 2 if sd is None else sd
    found, done = _fit(seen, prior, own, min(ROUND, steps), start)
    for _ in range(steps // ROUND - 1 if found.ok else 0):
        before, own = own, measured_sd(found.params, seen, prior, own) if sd is None else sd
        if done and max(abs(np.log(np.array(own) / before))) < np.log(SETTLED):
            break
        again, done = _fit(seen, prior, own, ROUND, found.params)
        found = again._replace(ok=found.ok)
    scale = _at_rate(found.params, prior)
    return found._replace(standard_errors=standard_errors(found.params, seen, sd=(scale * found.sd[0], scale * found.sd[1])))


def _fit(seen: CrossSpectra, prior: DirectedParams, sd: tuple[float, float], steps: int, start: DirectedParams) -> tuple[DirectedFit, bool]:
    """Fit with given prior widths, without standard errors; return the fit and whether it has converged."""
    precision, parcels = jnp.asarray(sd, jnp.float32) ** -2, len(prior.jacobian)
    best, share, moved, done = start, 1.0, False, False
    lowest = float(_evaluate(best, prior, seen, precision))
    enough = max(ENOUGH * parcels / float(seen.weight.sum()), 1e-7)
    for _ in range(steps):
        step, tried = (_dense_step if parcels <= STEER_DENSE else _advance)(best, prior, seen, precision), None
        while share > 1e-3:
            tried = DirectedParams(*(jnp.asarray(a - share * d, jnp.float32) for a, d in zip(best, step, strict=True)))
            value = float(_evaluate(tried, prior, seen, precision))
            if np.isfinite(value) and value < lowest and np.linalg.eigvals(np.asarray(tried.jacobian, np.float64)).real.max() < 0:
                break
            share, tried = share / 4, None
        if done := tried is None:
            break
        gained, lowest, best, share, moved = lowest - value, value, tried, min(1.0, 2 * share), True
        if done := gained < enough:
            break
    unknown = jnp.full((parcels, parcels), jnp.nan)
    return DirectedFit(best, unknown, jnp.asarray(lowest), sd, jnp.asarray(moved), parcels > 2 * seen.weight.sum()), done


def widest(prior: DirectedParams) -> float:
    """Return the width in 1/s at which a random perturbation of J reaches the stability limit, by Wigner's semicircle law."""
    return -float(jnp.trace(prior.jacobian)) / len(prior.jacobian) / (2 * len(prior.jacobian)) ** 0.5


def measured_sd(params: DirectedParams, seen: CrossSpectra, prior: DirectedParams, sd: tuple[float, float]) -> tuple[float, float]:
    r"""Update the prior widths of the symmetric and the skew-symmetric part of J from a fit, by one step of empirical Bayes.

    .. math:: \tau^2 = |\text{change}|^2 / \gamma, \qquad \gamma = n - \mathrm{tr}\,\Sigma / \tau^2_{\text{before}}

    where γ is the effective number of the n parameters of a part that are determined by the scan. The blocks in the modes are used for
    any K.

    Args:
      params: parameters of a fit with `sd`.
      seen: cross-spectra to which they were fitted.
      prior: prior of the fit.
      sd: prior widths of the fit.

    Returns:
      The widths of the symmetric and the skew-symmetric part in 1/s.

    Source: MacKay 1992.
    """
    size, scale = len(params.jacobian), _at_rate(params, prior)
    change = np.asarray(_apart(params, prior)[0], np.float64)
    left = np.asarray(_spread(params, seen, (jnp.asarray(sd) * scale) ** -2), np.float64) / scale**2
    count, square = np.array([size * (size + 1) / 2 - 1, size * (size - 1) / 2]), np.array([change + change.T, change - change.T]) / 2
    found = np.sqrt(np.square(square).sum((1, 2)) / np.maximum(count - left / np.square(sd), 1e-6))
    symmetric, skew = np.clip(found, NARROWEST * widest(prior), 2 * widest(prior)).tolist()
    return symmetric, skew


def standard_errors(params: DirectedParams, seen: CrossSpectra, *, sd: tuple[float, float] = (np.inf, np.inf)) -> Float[Array, "K K"]:
    """Compute the standard error of each entry of J in 1/s, `[K, K]`, from the expected information and a prior of width `sd`.

    `sd` refers to the mean rate of J. The uncertainty of the levels, the delay and the rate is included. Up to 60 parcels, the full
    information is used; above that, the blocks in the modes of the symmetric part, which are exact for a symmetric J.
    """
    if len(params.jacobian) <= DENSE:
        scatter = np.linalg.inv(_dense_information(params, seen, np.asarray(sd, float) ** -2.0))
        return jnp.asarray(np.sqrt(np.maximum(np.diag(scatter)[:-3], 0)).reshape(params.jacobian.shape), jnp.float32)
    return jnp.sqrt(variance_of_entries(*_scatter(params, seen, jnp.asarray(sd) ** -2)[:3]))


def _levels(params: DirectedParams, frequency: Float[Array, " F"]) -> tuple[Float[Array, " F"], Float[Array, ""]]:
    return jnp.exp(2 * params.log_sigma_x) * haemodynamics.power(frequency, params.delay), jnp.exp(2 * params.log_sigma_e)


def _parts(jacobian: Array, drive: Array, noise: Array, frequency: Array) -> tuple[Array, Array, Array]:
    """Return R, C and S of each bin, `[F, K, K]` each."""
    eye = jnp.eye(len(jacobian), dtype=jacobian.dtype)
    shape = (len(frequency), *jacobian.shape)
    omega = (2 * jnp.pi * frequency)[:, None, None] * eye[None]
    r = jnp.linalg.inv(jax.lax.complex(-jnp.broadcast_to(jacobian[None], shape), omega))
    c = jnp.matmul(r, r.conj().swapaxes(1, 2), precision="highest") * drive[:, None, None].astype(r.dtype)
    return r, c, c + (noise * eye).astype(r.dtype)[None]


@jax.custom_vjp
def _whittle(jacobian: Array, drive: Array, noise: Array, seen: CrossSpectra) -> Array:
    """Return Σ weight [log det S + tr S⁻¹ P]."""
    return _whittle_forward(jacobian, drive, noise, seen)[0]


def _whittle_forward(jacobian: Array, drive: Array, noise: Array, seen: CrossSpectra) -> tuple[Array, _Saved]:
    r, c, s = _parts(jacobian, drive, noise, seen.frequency)
    root = jnp.linalg.cholesky(s)  # NaN if S is not positive definite
    eye = jnp.broadcast_to(jnp.eye(s.shape[-1], dtype=s.dtype), s.shape)
    whitened = jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
    inverse = jnp.matmul(whitened.conj().swapaxes(1, 2), whitened, precision="highest")
    log_det = 2 * jnp.log(jnp.diagonal(root, axis1=1, axis2=2).real).sum(1)
    each = log_det + (inverse * seen.gram.swapaxes(1, 2)).sum((1, 2)).real
    return (seen.weight * each).sum(), (r, c, inverse, drive, seen)


def _whittle_backward(saved: _Saved, cotangent: Array) -> tuple[Array, Array, Array, CrossSpectra]:
    r, c, inverse, drive, seen = saved
    weight = cotangent * seen.weight
    slope = inverse - inverse @ seen.gram @ inverse  # with respect to S
    by_jacobian = 2 * (weight[:, None, None] * (c @ slope @ r).real.swapaxes(1, 2)).sum(0)
    by_drive = (slope * c.swapaxes(1, 2)).sum((1, 2)).real / drive
    by_noise = jnp.trace(slope, axis1=1, axis2=2).real
    return by_jacobian, weight * by_drive, (weight * by_noise).sum(), jax.tree.map(jnp.zeros_like, seen)


_whittle.defvjp(_whittle_forward, _whittle_backward)


def _objective(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> Array:
    change, faster = _apart(params, prior)
    apart = (precision[0] * jnp.square(change + change.T).sum() + precision[1] * jnp.square(change - change.T).sum()) / 4
    levels = sum(jnp.square((a - b) / sd) for a, b, sd in zip(params[1:], prior[1:], LEVEL_SDS, strict=True))
    cost = apart + jnp.square(faster / RATE_SD) + levels + _volume(params, seen, precision, jnp.exp(2 * faster))
    return negative_log_likelihood(params, seen) + cost / (2 * seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0))


def _apart(params: DirectedParams, prior: DirectedParams) -> tuple[Float[Array, "K K"], Float[Array, ""]]:
    """Return the deviation of J's shape from the prior, at the mean rate of the prior, and the log ratio of the mean rates."""
    own, typical = jnp.trace(params.jacobian), jnp.trace(prior.jacobian)
    return params.jacobian * (typical / own) - prior.jacobian, jnp.log(own / typical)


def _at_rate(params: DirectedParams, prior: DirectedParams) -> float:
    """Return the ratio of the mean rates, which converts widths of J's shape to widths of J."""
    return float(jnp.trace(params.jacobian) / jnp.trace(prior.jacobian))


def _modes(params: DirectedParams) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    values, modes = jnp.linalg.eigh((params.jacobian + params.jacobian.T) / 2)
    return jnp.maximum(-values, 1e-2), modes


def _pairs(rates: Float[Array, " K"], params: DirectedParams, seen: CrossSpectra) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    """Return the information about each entry (i, j) in the modes, and the cross-information with (j, i)."""
    omega = (2 * jnp.pi * seen.frequency)[:, None]
    drive, noise = _levels(params, seen.frequency)
    power = 1 / (jnp.square(omega) + jnp.square(rates)[None, :])  # |r|²
    c = drive[:, None] * power
    s, weight = c + noise, seen.weight[:, None]
    real, imaginary = rates[None, :] * power * c / s, omega * power * c / s
    own = 2 * jnp.matmul((weight * power / s).T, jnp.square(c) / s, precision="highest")
    in_phase, apart = (jnp.matmul((weight * part).T, part, precision="highest") for part in (real, imaginary))
    return own, 2 * (in_phase - apart)


def _volume(params: DirectedParams, seen: CrossSpectra, precision: Array, scale: Float[Array, ""]) -> Float[Array, ""]:
    """Return the log-determinant of the information about J's shape, from the blocks in the modes.

    `scale` converts the information about J to that about its shape. Only eigenvalues are used, whose derivatives need no eigenvalue gaps.
    """
    rates = jnp.maximum(-jnp.linalg.eigvalsh((params.jacobian + params.jacobian.T) / 2), 1e-2)
    own, cross = (scale * x for x in _pairs(rates, params, seen))
    own, cross = own + precision.mean(), cross + (precision[0] - precision[1]) / 2
    eye = jnp.eye(len(rates), dtype=bool)
    apart = jnp.where(eye, 1.0, own * own.T - jnp.square(cross))
    return jnp.where(eye, jnp.log(own + cross), jnp.log(jnp.maximum(apart, 1e-30)) / 2).sum()


def _central(rates: Float[Array, " K"], params: DirectedParams, seen: CrossSpectra, precision: Array) -> Float[Array, "K+3 K+3"]:
    """Return the information about the diagonal in the modes and the three levels, plus the prior precision."""

    def log_density(diagonal: Array, levels: Array) -> Array:
        drive, noise = _levels(params._replace(log_sigma_x=levels[0], log_sigma_e=levels[1], delay=levels[2]), seen.frequency)
        return jnp.log(drive[:, None] / (jnp.square(2 * jnp.pi * seen.frequency)[:, None] + jnp.square(diagonal)[None, :]) + noise)

    ones, levels = jnp.ones_like(rates), jnp.stack(params[1:])
    by_own = jax.jvp(lambda diagonal: log_density(diagonal, levels), (-rates,), (ones,))[1]  # [F, K]
    by_level = jax.jacfwd(lambda levels: log_density(-rates, levels))(levels)  # [F, K, 3]
    crossed = jnp.einsum("f,fk,fka->ka", seen.weight, by_own, by_level)
    info = jnp.diag(seen.weight @ jnp.square(by_own)) + _of_shape(jnp.diag(precision[0] * ones), -rates, ones / rates.sum())
    last = jnp.einsum("f,fka,fkb->ab", seen.weight, by_level, by_level) + jnp.diag(jnp.asarray(LEVEL_SDS, info.dtype) ** -2)
    return jnp.block([[info, crossed], [crossed.T, last]])


def _of_shape(pull: Any, own: Any, one: Any) -> Any:
    """Return the prior precision of J, given the precision `pull` of its shape at the same rate and the prior of the rate."""
    pulled = pull @ own
    lower = pulled[:, None] * one[None, :]
    both = one[:, None] * one[None, :]
    return pull + lower + lower.T + (own @ pulled + RATE_SD**-2) * both


def _scatter(params: DirectedParams, seen: CrossSpectra, precision: Array) -> tuple[Array, Array, Array, Array]:
    """Return the modes, the variance of each entry of J in them, its covariance with (j, i), and that of the diagonal, `[K, K]` each."""
    rates, modes = _modes(params)
    own, cross = _pairs(rates, params, seen)
    own, cross = own + precision.mean(), cross + (precision[0] - precision[1]) / 2
    eye = jnp.eye(len(modes), dtype=bool)
    determinant = jnp.where(eye, 1.0, own * own.T - jnp.square(cross))
    diagonal = jnp.linalg.inv(_central(rates, params, seen, precision))[:-3, :-3]
    # In U B Uᵀ, the covariance of (i, i) and (j, j) enters like that of (i, j) and (j, i).
    return modes, jnp.where(eye, diagonal, own.T / determinant), jnp.where(eye, 0.0, diagonal - cross / determinant), diagonal


@jax.jit
def _spread(params: DirectedParams, seen: CrossSpectra, precision: Array) -> Float[Array, " 2"]:
    """Return the summed variances of the symmetric and the skew-symmetric part of J's shape, at the rate of J."""
    _, variance, crossed, diagonal = _scatter(params, seen, precision)
    rates, _ = _modes(params)
    eye = jnp.eye(len(rates), dtype=bool)
    alone, tied = jnp.where(eye, 0.0, variance).sum(), jnp.where(eye, 0.0, crossed - diagonal).sum()
    turn = jnp.eye(len(rates), dtype=variance.dtype) - rates[:, None] / rates.sum()  # projects out the rate
    own = jnp.trace(turn @ diagonal @ turn.T)
    return jnp.stack([(alone + tied) / 2 + own, (alone - tied) / 2])


def _scoring_step(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> DirectedParams:
    counts = seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0)
    slope = jax.tree.map(lambda x: counts * x, jax.grad(_objective)(params, prior, seen, precision))
    precision = precision * jnp.exp(-2 * _apart(params, prior)[1])
    rates, modes = _modes(params)
    own, cross = _pairs(rates, params, seen)
    own, cross = own + precision.mean() + 1e-6 * own.mean(), cross + (precision[0] - precision[1]) / 2
    inside = jnp.matmul(jnp.matmul(modes.T, slope.jacobian, precision="highest"), modes, precision="highest")
    eye = jnp.eye(len(modes), dtype=modes.dtype)
    pair = (own.T * inside - cross * inside.T) / (own * own.T - jnp.square(cross) + eye)
    central = jnp.linalg.solve(_central(rates, params, seen, precision), jnp.concatenate([jnp.diagonal(inside), jnp.stack(slope[1:])]))
    step = jnp.where(eye > 0, jnp.diag(central[:-3]), pair)
    return DirectedParams(jnp.matmul(jnp.matmul(modes, step, precision="highest"), modes.T, precision="highest"), *central[-3:])


_evaluate, _objective_slope = jax.jit(_objective), jax.jit(jax.grad(_objective))
_advance = jax.jit(_scoring_step)


def _dense_step(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> DirectedParams:
    counts = float(seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0))
    slope = _objective_slope(params, prior, seen, precision)
    flat = counts * np.concatenate([np.asarray(x, np.float64).ravel() for x in slope])
    if not np.isfinite(flat).all():
        return slope
    at_rate = np.asarray(precision, np.float64) / _at_rate(params, prior) ** 2
    step = np.linalg.solve(_dense_information(params, seen, at_rate), flat)
    return DirectedParams(jnp.asarray(step[:-3].reshape(params.jacobian.shape)), *map(jnp.asarray, step[-3:]))


def _dense_information(params: DirectedParams, seen: CrossSpectra, precision: np.ndarray) -> np.ndarray:
    """Return the information about J and the three levels plus the prior precision, `[K² + 3, K² + 3]`, in float64 on the host."""
    j, frequency, weight = (np.asarray(x, np.float64) for x in (params.jacobian, seen.frequency, seen.weight))
    size, eye = len(j), np.eye(len(j))
    drive, noise = (np.asarray(x, np.float64) for x in _levels(params, seen.frequency))
    stretch = np.asarray(jax.jacfwd(lambda d: jnp.log(haemodynamics.power(seen.frequency, d)))(params.delay), np.float64)
    r = np.linalg.inv(2j * np.pi * frequency[:, None, None] * eye - j)
    c = drive[:, None, None] * r @ r.conj().swapaxes(1, 2)
    inverse = np.linalg.inv(c + noise * eye)
    x, y, z = c @ inverse @ r, c @ inverse @ c, r.conj().swapaxes(1, 2) @ inverse @ r
    w = weight[:, None, None]
    info = np.zeros((size**2 + 3, size**2 + 3))
    pairs = np.einsum("fjk,fli->ijkl", w * x, x, optimize=True) + np.einsum("fjl,fki->ijkl", w * y, z, optimize=True)
    info[:-3, :-3] = 2 * pairs.real.reshape(size**2, size**2)
    by_level = [2 * c, 2 * noise * eye + 0 * c, stretch[:, None, None] * c]
    for a, left in enumerate(by_level):
        info[:-3, a - 3] = info[a - 3, :-3] = 2 * (w * (c @ inverse @ left @ inverse @ r)).sum(0).real.T.ravel()
        for b, right in enumerate(by_level):
            info[a - 3, b - 3] = np.einsum("f,fij,fji->", weight, inverse @ left, inverse @ right).real
    info[range(-3, 0), range(-3, 0)] += np.asarray(LEVEL_SDS) ** -2.0
    turned = np.arange(size**2).reshape(size, size).T.ravel()  # index of (j, i)
    pull = np.diag(np.full(size**2, precision.mean()))
    pull[np.arange(size**2), turned] += (precision[0] - precision[1]) / 2
    info[:-3, :-3] += _of_shape(pull, j.ravel(), -eye.ravel() / np.trace(j))
    return info
