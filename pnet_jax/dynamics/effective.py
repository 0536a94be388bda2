r"""Directed (effective) coupling: the linear stochastic model with a J that need not be symmetric.

.. math:: S(\omega) = |H|^2\sigma_x^2 R R^H + \sigma_e^2 I, \qquad R = (i\omega I - J)^{-1}

Direction shows in the imaginary part of the cross-spectra. Every bin is a dense complex problem, so K ≤ 200.

The expected information about J is, per bin and without forming it, a sum of two Kronecker products,

.. math:: I_{(ij),(kl)} = 2\,\mathrm{Re}\,(X_{jk} X_{li} + Y_{jl} Z_{ki}), \quad X = C S^{-1} R,\; Y = C S^{-1} C,\; Z = R^H S^{-1} R

with :math:`C = |H|^2\sigma_x^2 R R^H`. Where J is symmetric it falls apart, in the modes of J, into 2 × 2 blocks of (i, j) and (j, i).
The full matrix steers the fit (Fisher scoring, safeguarded) up to 30 parcels and gives standard errors up to 60; above that the blocks do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
DENSE = 60  # parcels up to which standard errors come from the full information
ROUNDS = 4  # of fits, each with the prior's width measured at the last
STEER_DENSE = 30  # parcels up to which every step of a fit uses it as well
LEVEL_SDS = (2.0, 2.0, 0.5)  # of log σx, log σe and the delay about where a fit begins


class DirectedParams(NamedTuple):
    """Parameters of the model.

    Attributes:
      jacobian: J in 1/s, `[K, K]`; entry (k, l) is what l does to k.
      log_sigma_x, log_sigma_e, delay: as those of `linear_stochastic.Params`.
    """

    jacobian: Float[Array, "K K"]
    log_sigma_x: Float[Array, ""]
    log_sigma_e: Float[Array, ""]
    delay: Float[Array, ""]


class CrossSpectra(NamedTuple):
    """Pooled cross-spectra.

    Attributes:
      frequency: Hz, `[F]`.
      gram: mean of ŝ ŝᴴ, `[F, K, K]`.
      weight: bins behind it, `[F]`.
    """

    frequency: Float[Array, " F"]
    gram: Complex[Array, "F K K"]
    weight: Float[Array, " F"]


_Saved = tuple[Array, Array, Array, Array, CrossSpectra]


class DirectedFit(NamedTuple):
    """A fit of directed coupling.

    Attributes:
      params: maximum a posteriori, or the prior where `ok` is False.
      standard_errors: of J in 1/s, `[K, K]`.
      objective: negative log-likelihood and prior together, a parcel and a bin.
      ok: False where no step from the prior was finite, stable and better.
      regularised: True where the scan has fewer independent values than parcels.
    """

    params: DirectedParams
    standard_errors: Float[Array, "K K"]
    objective: Float[Array, ""]
    ok: Bool[Array, ""]
    regularised: Bool[Array, ""]


def cross_spectra(recordings: Sequence[Spectra], band: tuple[float, float] = BAND_HZ, step: float = POOL_HZ) -> CrossSpectra:
    """Mean cross-spectra of one or more recordings on a grid of a band. Host code.

    Args:
      recordings: of `spectra`, N = 2, the same K.
      band: Hz.
      step: of the grid in Hz.

    Raises:
      ValueError: recordings of different K, or more parcels than 200.
    """
    sizes = {one.dft.shape[-1] for one in recordings}
    if len(sizes) != 1 or max(sizes) > MOST_PARCELS:
        raise ValueError(f"expected recordings of one K of at most {MOST_PARCELS} parcels, got K = {sorted(sizes)}")
    (parcels,), count = sizes, max(1, round((band[1] - band[0]) / step))
    gram, weight, frequency = np.zeros((count, parcels, parcels), complex), np.zeros(count), np.zeros(count)
    for one in recordings:
        hz, rows, own = (np.asarray(x, np.float64) for x in one)
        at = np.clip(((hz - band[0]) / (band[1] - band[0]) * count).astype(int), 0, count - 1)
        for f in np.flatnonzero(own):
            z = rows[f, 0] + 1j * rows[f, 1]
            gram[at[f]] += own[f] * np.outer(z, z.conj())
        np.add.at(weight, at, own)
        np.add.at(frequency, at, own * hz)
    used = weight > 0
    mean = gram[used] / weight[used, None, None]
    return CrossSpectra(
        jnp.asarray(frequency[used] / weight[used], jnp.float32), jnp.asarray(mean, jnp.complex64), jnp.asarray(weight[used], jnp.float32)
    )


def density(params: DirectedParams, frequency: Float[Array, " F"]) -> Complex[Array, "F K K"]:
    """S(ω), Hermitian, `[F, K, K]`."""
    drive, noise = _levels(params, frequency)
    return _parts(params.jacobian, drive, noise, frequency)[2]


def negative_log_likelihood(params: DirectedParams, seen: CrossSpectra) -> Float[Array, ""]:
    """Whittle's, a parcel and a bin; for a symmetric J that of `linear_stochastic`.

    Raises:
      ValueError: the numbers of parcels differ, or are above 200.
    """
    parcels = seen.gram.shape[-1]
    if params.jacobian.shape != (parcels, parcels):
        raise ValueError(f"expected a Jacobian of shape {(parcels, parcels)}, as the spectra have it, got {params.jacobian.shape}")
    if parcels > MOST_PARCELS:
        raise ValueError(f"directed coupling is for at most {MOST_PARCELS} parcels, got {parcels}; the symmetric model takes any number")
    drive, noise = _levels(params, seen.frequency)
    return _whittle(params.jacobian, drive, noise, seen) / (parcels * jnp.maximum(seen.weight.sum(), 1.0))


def covariance(params: DirectedParams, lag: Float[ArrayLike, ""] = 0.0, band: tuple[float, float] | None = BAND_HZ) -> Float[Array, "K K"]:
    """Covariance of signal k at t + `lag` and signal l at t, without measurement noise, `[K, K]`; J must be stable.

    Args:
      params: K parcels.
      lag: seconds, any.
      band: Hz; None takes the latent process over all frequencies, without haemodynamics.
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
    """`covariance` over the standard deviations at lag 0, `[K, K]`."""
    now = jnp.diagonal(covariance(params, 0.0, band))
    return covariance(params, lag, band) * jax.lax.rsqrt(now)[:, None] * jax.lax.rsqrt(now)[None, :]


def fit_effective(seen: CrossSpectra, prior: DirectedParams, *, sd: tuple[float, float] | None = None, steps: int = 60) -> DirectedFit:
    """Maximum a posteriori of directed coupling and its standard errors.

    Args:
      seen: of `cross_spectra`.
      prior: where the fit begins and what it is drawn to: a stable J that was *not* fitted to the same scan, e.g. the group's or a multiple
        of the identity; else the standard errors are too small.
      sd: of J about the prior's in 1/s, of its symmetric and of its skew part: an entry's variance is the mean of both squares. Large for
        maximum likelihood. None measures both on the scan (`measured_sd`), so that intervals hold the truth as often as they say.
      steps: of scoring, each taken only where it is finite, stable and better.

    Raises:
      ValueError: shapes that do not agree, K above 200, or a prior that is not stable.
    """
    slowest = np.linalg.eigvals(np.asarray(prior.jacobian, np.float64)).real.max()
    if not slowest < 0:
        raise ValueError(f"expected a stable prior, real parts of all eigenvalues below 0, got {slowest:.3g} 1/s")
    own = measured_sd(seen, prior) if sd is None else sd
    found = _fit(seen, prior, own, steps, prior)
    for _ in range(ROUNDS if sd is None and len(prior.jacobian) <= STEER_DENSE and bool(found.ok) else 0):
        before, own = own, _expected_sd(seen, prior, found.params, own)
        if max(abs(np.log(np.array(own) / before))) < np.log(2):
            break  # EM run to its end makes a prior that is too sure where coupling is sparse; this one covers
        found = _fit(seen, prior, own, steps, found.params)
    return found


def _fit(seen: CrossSpectra, prior: DirectedParams, sd: tuple[float, float], steps: int, start: DirectedParams) -> DirectedFit:
    precision = jnp.asarray(sd, jnp.float32) ** -2
    best, share, moved = start, 1.0, start is not prior
    lowest = float(_evaluate(best, prior, seen, precision))
    for _ in range(steps):
        step, tried = (_dense_step if len(prior.jacobian) <= STEER_DENSE else _advance)(best, prior, seen, precision), None
        while share > 1e-3:
            tried = DirectedParams(*(jnp.asarray(a - share * d, jnp.float32) for a, d in zip(best, step, strict=True)))
            value = float(_evaluate(tried, prior, seen, precision))
            if np.isfinite(value) and value < lowest and np.linalg.eigvals(np.asarray(tried.jacobian, np.float64)).real.max() < 0:
                break
            share, tried = share / 4, None
        if tried is None:
            break
        gained, lowest, best, share, moved = lowest - value, value, tried, min(1.0, 2 * share), True
        if gained < 1e-7:
            break
    parcels = len(prior.jacobian)
    return DirectedFit(
        best, standard_errors(best, seen, sd=sd), jnp.asarray(lowest), jnp.asarray(moved), parcels > 2 * seen.weight.sum()
    )  # fmt: skip


def measured_sd(seen: CrossSpectra, prior: DirectedParams, iterations: int = 200) -> tuple[float, float]:
    """Standard deviations of the symmetric and the skew part of J about the prior's that a scan speaks for, in 1/s.

    EM, with the likelihood taken as normal around the prior, whose symmetric part should be most of it; closed in its modes.
    """
    slope = _slope(prior, seen).jacobian * (seen.gram.shape[-1] * seen.weight.sum())
    modes, own, cross = (np.asarray(x, np.float64) for x in _blocks(prior, seen))
    pull = -modes.T @ np.asarray(slope, np.float64) @ modes  # the score
    even, odd, apart = 0.01, 0.01, ~np.eye(len(modes), dtype=bool)
    for _ in range(iterations if np.isfinite(pull).all() else 0):
        sharp, tied = own + (1 / even + 1 / odd) / 2, cross + (1 / even - 1 / odd) / 2
        determinant = sharp * sharp.T - tied**2
        mean, variance, between = (sharp.T * pull - tied * pull.T) / determinant, (sharp + sharp.T) / determinant, -2 * tied / determinant
        even = float((((mean + mean.T) ** 2 + variance + between) / 2)[apart].mean())
        odd = float((((mean - mean.T) ** 2 + variance - between) / 2)[apart].mean())
    return even**0.5, odd**0.5


def standard_errors(params: DirectedParams, seen: CrossSpectra, *, sd: tuple[float, float] = (np.inf, np.inf)) -> Float[Array, "K K"]:
    """Standard error of each entry of J, in 1/s, `[K, K]`, from the expected information and a prior of `sd`.

    Up to 60 parcels from the full information, with the levels and the delay as unknown; above that from the 2 × 2 blocks in the modes of
    the symmetric part, which are exact for a symmetric J and levels that are known.
    """
    precision = np.asarray(sd, float) ** -2
    if len(params.jacobian) <= DENSE:
        return jnp.asarray(_dense_errors(params, seen, precision), jnp.float32)
    modes, own, cross = _blocks(params, seen)
    own, cross = own + float(precision.mean()), cross + float(precision[0] - precision[1]) / 2
    determinant = own * own.T - jnp.square(cross)
    eye = jnp.eye(len(modes), dtype=modes.dtype)
    variance = jnp.where(eye > 0, 1 / (own + cross), own.T / determinant)
    between = jnp.where(eye > 0, 0.0, -cross / determinant)
    return jnp.sqrt(variance_of_entries(modes, variance, between))


def _levels(params: DirectedParams, frequency: Float[Array, " F"]) -> tuple[Float[Array, " F"], Float[Array, ""]]:
    return jnp.exp(2 * params.log_sigma_x) * haemodynamics.power(frequency, params.delay), jnp.exp(2 * params.log_sigma_e)


def _parts(jacobian: Array, drive: Array, noise: Array, frequency: Array) -> tuple[Array, Array, Array]:
    """R, C and S of each bin, `[F, K, K]`."""
    eye = jnp.eye(len(jacobian), dtype=jacobian.dtype)
    shape = (len(frequency), *jacobian.shape)
    omega = (2 * jnp.pi * frequency)[:, None, None] * eye[None]
    r = jnp.linalg.inv(jax.lax.complex(-jnp.broadcast_to(jacobian[None], shape), omega))
    c = jnp.matmul(r, r.conj().swapaxes(1, 2), precision="highest") * drive[:, None, None].astype(r.dtype)
    return r, c, c + (noise * eye).astype(r.dtype)[None]


@jax.custom_vjp
def _whittle(jacobian: Array, drive: Array, noise: Array, seen: CrossSpectra) -> Array:
    """Σ weight [log det S + tr S⁻¹ P]."""
    return _whittle_forward(jacobian, drive, noise, seen)[0]


def _whittle_forward(jacobian: Array, drive: Array, noise: Array, seen: CrossSpectra) -> tuple[Array, _Saved]:
    r, c, s = _parts(jacobian, drive, noise, seen.frequency)
    inverse = jnp.linalg.inv(s)
    each = jnp.linalg.slogdet(s)[1] + (inverse * seen.gram.swapaxes(1, 2)).sum((1, 2)).real
    return (seen.weight * each).sum(), (r, c, inverse, drive, seen)


def _whittle_backward(saved: _Saved, cotangent: Array) -> tuple[Array, Array, Array, CrossSpectra]:
    r, c, inverse, drive, seen = saved
    weight = cotangent * seen.weight
    slope = inverse - inverse @ seen.gram @ inverse  # by S
    by_jacobian = 2 * (weight[:, None, None] * (c @ slope @ r).real.swapaxes(1, 2)).sum(0)
    by_drive = (slope * c.swapaxes(1, 2)).sum((1, 2)).real / drive
    by_noise = jnp.trace(slope, axis1=1, axis2=2).real
    return by_jacobian, weight * by_drive, (weight * by_noise).sum(), jax.tree.map(jnp.zeros_like, seen)


_whittle.defvjp(_whittle_forward, _whittle_backward)


def _objective(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> Array:
    change = params.jacobian - prior.jacobian
    apart = (precision[0] * jnp.square(change + change.T).sum() + precision[1] * jnp.square(change - change.T).sum()) / 4
    levels = sum(jnp.square((a - b) / sd) for a, b, sd in zip(params[1:], prior[1:], LEVEL_SDS, strict=True))
    return negative_log_likelihood(params, seen) + (apart + levels) / (2 * seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0))


def _blocks(params: DirectedParams, seen: CrossSpectra) -> tuple[Array, Array, Array]:
    """Modes of the symmetric part, and the information about entry (i, j) alone and with (j, i), `[K, K]` each."""
    values, modes = jnp.linalg.eigh((params.jacobian + params.jacobian.T) / 2)
    rates = jnp.maximum(-values, 1e-2)[None, :]
    omega = (2 * jnp.pi * seen.frequency)[:, None]
    drive, noise = _levels(params, seen.frequency)
    power = 1 / (jnp.square(omega) + jnp.square(rates))  # |r|²
    c = drive[:, None] * power
    s, weight = c + noise, seen.weight[:, None]
    real, imaginary = rates * power * c / s, omega * power * c / s
    own = 2 * jnp.matmul((weight * power / s).T, jnp.square(c) / s, precision="highest")
    in_phase, apart = (jnp.matmul((weight * part).T, part, precision="highest") for part in (real, imaginary))
    return modes, own, 2 * (in_phase - apart)


def _scoring_step(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> DirectedParams:
    counts = seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0)
    slope = jax.tree.map(lambda x: counts * x, jax.grad(_objective)(params, prior, seen, precision))
    modes, own, cross = _blocks(params, seen)
    own, cross = own + precision.mean() + 1e-6 * own.mean(), cross + (precision[0] - precision[1]) / 2
    inside = jnp.matmul(jnp.matmul(modes.T, slope.jacobian, precision="highest"), modes, precision="highest")
    eye = jnp.eye(len(modes), dtype=modes.dtype)
    pair = (own.T * inside - cross * inside.T) / (own * own.T - jnp.square(cross) + eye)
    step = jnp.where(eye > 0, inside / (own + cross), pair)
    step = jnp.matmul(jnp.matmul(modes, step, precision="highest"), modes.T, precision="highest")

    def log_density(levels: Array) -> Array:
        drive, noise = _levels(params._replace(log_sigma_x=levels[0], log_sigma_e=levels[1], delay=levels[2]), seen.frequency)
        rates = jnp.maximum(-jnp.linalg.eigvalsh((params.jacobian + params.jacobian.T) / 2), 1e-2)
        return jnp.log(drive[:, None] / (jnp.square(2 * jnp.pi * seen.frequency)[:, None] + jnp.square(rates)[None, :]) + noise)

    own_levels = jax.jacfwd(log_density)(jnp.stack(params[1:]))
    info = jnp.einsum("f,fka,fkb->ab", seen.weight, own_levels, own_levels)
    info = info + jnp.diag(jnp.asarray(LEVEL_SDS, info.dtype) ** -2)
    return DirectedParams(step, *jnp.linalg.solve(info, jnp.stack(slope[1:])))


_evaluate, _objective_slope = jax.jit(_objective), jax.jit(jax.grad(_objective))
_advance, _slope = jax.jit(_scoring_step), jax.jit(jax.grad(negative_log_likelihood))


def _expected_sd(seen: CrossSpectra, prior: DirectedParams, at: DirectedParams, sd: tuple[float, float]) -> tuple[float, float]:
    """One step of EM at a fit, with its full information: what J's change and its uncertainty make of `sd`."""
    size = len(at.jacobian)
    scatter = np.linalg.inv(_dense_information(at, seen, np.asarray(sd, float) ** -2.0))[:-3, :-3]
    turned = np.arange(size**2).reshape(size, size).T.ravel()
    alone, tied = np.diag(scatter), scatter[np.arange(size**2), turned]
    change = np.asarray(at.jacobian - prior.jacobian, np.float64)
    alone, tied, apart = alone + alone[turned], 2 * tied, ~np.eye(size, dtype=bool).ravel()
    even = ((change + change.T).ravel() ** 2 + alone + tied)[apart].mean() / 2
    odd = ((change - change.T).ravel() ** 2 + alone - tied)[apart].mean() / 2
    return float(even**0.5), float(odd**0.5)


def _dense_errors(params: DirectedParams, seen: CrossSpectra, precision: np.ndarray) -> np.ndarray:
    info = _dense_information(params, seen, precision)
    return np.sqrt(np.maximum(np.diag(np.linalg.inv(info))[:-3], 0)).reshape(params.jacobian.shape)


def _dense_step(params: DirectedParams, prior: DirectedParams, seen: CrossSpectra, precision: Array) -> DirectedParams:
    counts = float(seen.gram.shape[-1] * jnp.maximum(seen.weight.sum(), 1.0))
    slope = _objective_slope(params, prior, seen, precision)
    flat = counts * np.concatenate([np.asarray(x, np.float64).ravel() for x in slope])
    if not np.isfinite(flat).all():
        return slope
    step = np.linalg.solve(_dense_information(params, seen, np.asarray(precision, np.float64)), flat)
    return DirectedParams(jnp.asarray(step[:-3].reshape(params.jacobian.shape)), *map(jnp.asarray, step[-3:]))


def _dense_information(params: DirectedParams, seen: CrossSpectra, precision: np.ndarray) -> np.ndarray:
    """Of J and the three levels, with the prior's, `[K² + 3, K² + 3]`, in float64 on the host."""
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
    info += np.diag(np.r_[np.full(size**2, precision.mean()), np.asarray(LEVEL_SDS) ** -2.0])
    turned = np.arange(size**2).reshape(size, size).T.ravel()  # where (j, i) stands
    info[np.arange(size**2), turned] += (precision[0] - precision[1]) / 2
    return info
