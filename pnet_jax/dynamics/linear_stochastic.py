r"""Symmetric linear stochastic model, exact in the frequency domain, with one `eigh` per step.

.. math:: dx = J x\,dt + \sigma_x dW, \quad s = h * x + e, \quad S(\omega) = |H(\omega)|^2\sigma_x^2 (\omega^2 I + A^2)^{-1} + \sigma_e^2 I

with :math:`A = -J = U\,\mathrm{diag}(a)\,U^T`. A free symmetric matrix M with the same modes determines the rates such that J is stable for
any M:

.. math:: a - c^2/a = \lambda(M), \qquad \frac{a_i - a_j}{\lambda_i - \lambda_j} = \frac{a_i a_j}{a_i a_j + c^2}

**Gradients without eigenvalue gaps.** Differentiating through `eigh` divides by λi − λj and fails if modes are degenerate, as they nearly
are in a left–right symmetric brain. Only *functions* of M are needed, however, and their derivative is the table of divided differences
(f(λi) − f(λj)) / (λi − λj) in the modes of M (Daleckii and Krein 1965), which has no such pole. For a resolvent the table is a product,
1/(ω² + ai²) − 1/(ω² + aj²) = −(ai − aj)(ai + aj) / ((ω² + ai²)(ω² + aj²)), and likewise for S⁻¹; with the rates above, the difference
cancels in closed form. Sums over bins are then Gram matrices, without cancellation errors.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.spectra import BAND_HZ, Spectra

SLOW = 0.01  # c in 1/s; rates well above it equal the eigenvalues of M, so that M is −J up to c² A⁻¹
BAND_POINTS = 128  # number of points of the trapezoidal rule over a band


class Params(NamedTuple):
    """Unconstrained parameters of the model.

    Attributes:
      coupling: matrix M, close to −J, in 1/s, `[K, K]`; only its symmetric part is used.
      log_sigma_x: logarithm of the amplitude of the drive; σx² is a density per frame and thus proportional to 1 / TR.
      log_sigma_e: logarithm of the amplitude of white measurement noise.
      delay: delay of the haemodynamic peak in seconds, above −5.
    """

    coupling: Float[Array, "K K"]
    log_sigma_x: Float[Array, ""]
    log_sigma_e: Float[Array, ""]
    delay: Float[Array, ""]


def from_jacobian(jacobian: Float[ArrayLike, "K K"], *, sigma_x: float = 1.0, sigma_e: float = 0.1, delay: float = 0.0) -> Params:
    """Return the parameters of a given symmetric, stable J in 1/s, `[K, K]`.

    Raises:
      ValueError: If J is not symmetric or not stable.
    """
    j = np.asarray(jacobian, np.float64)
    if not np.allclose(j, j.T, atol=1e-6):
        raise ValueError(f"expected a symmetric Jacobian, got an asymmetry of {np.abs(j - j.T).max():.3g} 1/s")
    if (largest := np.linalg.eigvalsh(j)[-1]) >= 0:
        raise ValueError(f"expected a stable Jacobian, all eigenvalues below 0, got {largest:.3g} 1/s")
    free = -j + SLOW**2 * np.linalg.inv(j)
    return Params(*(jnp.asarray(x, jnp.float32) for x in (free, np.log(sigma_x), np.log(sigma_e), delay)))


def jacobian(params: Params) -> Float[Array, "K K"]:
    """Return J in 1/s, `[K, K]`: symmetric, with negative eigenvalues. The off-diagonal entries are the undirected coupling."""
    return -_rate_matrix(_symmetric(params.coupling))


def negative_log_likelihood(params: Params, spectra: Spectra) -> Float[Array, ""]:
    r"""Compute the Whittle negative log-likelihood per parcel and bin.

    .. math:: \frac{1}{K n_b} \sum_\omega \big[\log\det S(\omega) + \hat s(\omega)^H S(\omega)^{-1} \hat s(\omega)\big]

    Args:
      params: parameters of K parcels.
      spectra: spectra with the same K; bins are weighted by their weight.

    Returns:
      The negative log-likelihood without the constant log π, `[]`; differentiable in all parameters and `spectra.dft`. Multiplied by
      K n_b, it is the exact negative log-density of complex normal bins.

    Raises:
      ValueError: If the numbers of parcels differ.

    Memory: `[F, N, K]` twice. Time: 2 n_b K² operations plus one `eigh`.

    >>> import numpy as np
    >>> from pnet_jax.dynamics.spectra import frequency_bins, spectra
    >>> bins = frequency_bins(np.ones(100, bool), tr=2.0)
    >>> seen = spectra(jnp.asarray(np.random.default_rng(0).normal(size=(3, 100)), jnp.float32), bins)
    >>> bool(jnp.isfinite(negative_log_likelihood(from_jacobian(-np.eye(3)), seen)))
    True

    Source: Whittle 1953.
    """
    parcels = spectra.dft.shape[-1]
    if params.coupling.shape != (parcels, parcels):
        raise ValueError(f"expected a coupling of shape {(parcels, parcels)} to match the spectra, got {params.coupling.shape}")
    drive, noise = _levels(params, spectra.frequency)
    total = _whittle(_symmetric(params.coupling), drive, noise, _squared(spectra.frequency), spectra.dft, spectra.weight)
    return total / (parcels * jnp.maximum(spectra.weight.sum(), 1.0))


def density(params: Params, frequency: Float[Array, " F"]) -> Float[Array, "F K K"]:
    """Return the spectral density S(ω), real and symmetric, `[F, K, K]`: the expectation of a periodogram under the model."""
    drive, noise = _levels(params, frequency)
    matrix, eye = _symmetric(params.coupling), jnp.eye(params.coupling.shape[-1], dtype=params.coupling.dtype)
    one = jax.vmap(lambda share, square: _resolvents(matrix, share[None], square[None]))(drive, _squared(frequency))
    return one + noise * eye[None]


def covariance(params: Params, lag: Float[ArrayLike, ""] = 0.0, band: tuple[float, float] | None = BAND_HZ) -> Float[Array, "K K"]:
    r"""Compute the covariance of the signals at a lag, without measurement noise, in closed form.

    .. math:: 2\int_{band} |H|^2\sigma_x^2 (\omega^2 + A^2)^{-1} \cos(\omega\tau)\,df, \qquad
              \text{without a band: } \tfrac12 \sigma_x^2 A^{-1} e^{-A|\tau|}

    Args:
      params: parameters of K parcels.
      lag: lag τ in seconds, of any sign.
      band: frequency band in Hz; None for the latent process over all frequencies, without haemodynamics.

    Returns:
      The covariance, `[K, K]`; symmetric at every lag, because the coupling is symmetric.
    """
    lag = jnp.asarray(lag, params.coupling.dtype)
    if band is None:
        rates = _rate_matrix(_symmetric(params.coupling))
        return _symmetric(jnp.exp(2 * params.log_sigma_x) / 2 * jnp.linalg.solve(rates, jax.scipy.linalg.expm(-rates * jnp.abs(lag))))
    frequency, share = (jnp.asarray(x, lag.dtype) for x in band_grid(band))
    drive, _ = _levels(params, frequency)
    return _resolvents(_symmetric(params.coupling), 2 * share * drive * jnp.cos(2 * jnp.pi * frequency * lag), _squared(frequency))


def correlation(params: Params, lag: Float[ArrayLike, ""] = 0.0, band: tuple[float, float] | None = BAND_HZ) -> Float[Array, "K K"]:
    """Compute the functional connectivity of the model: `covariance` divided by the standard deviations at lag 0, `[K, K]`."""
    now = jnp.diagonal(covariance(params, 0.0, band))
    return covariance(params, lag, band) * jax.lax.rsqrt(now)[:, None] * jax.lax.rsqrt(now)[None, :]


def information(params: Params, spectra: Spectra) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    r"""Compute the expected (Fisher) information about A in the modes of A, in which it is diagonal.

    .. math:: I_{ij} = (2 - \delta_{ij})(a_i + a_j)^2 \sum_\omega \frac{h^2}{b_i d_i b_j d_j}, \; b = \omega^2 + a^2, d = h + \sigma_e^2 b

    Returns:
      The modes U, `[K, K]`, and the information about :math:`(U^T A U)_{ij}`, i ≤ j, `[K, K]`, given σx, σe and the delay.
    """
    drive, noise = _levels(params, spectra.frequency)
    rates, modes = _modes(_symmetric(params.coupling))
    b = _squared(spectra.frequency)[:, None] + jnp.square(rates)[None, :]
    each = drive[:, None] / (b * (drive[:, None] + noise * b))
    gram = jnp.matmul(each.T * spectra.weight[None, :], each, precision="highest")
    return modes, (2 - jnp.eye(len(rates), dtype=rates.dtype)) * _sums(rates) ** 2 * gram


def variance_of_entries(modes: Float[Array, "K K"], variance: Float[Array, "K K"], crossed: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Compute the variance of each entry of U B Uᵀ, if entry (i, j) of B is correlated only with (j, i), `[K, K]`.

    Args:
      modes: modes U, `[K, K]`.
      variance: variance of each entry of B, `[K, K]`.
      crossed: covariance of (i, j) with (j, i), `[K, K]`; equal to the variance if B is symmetric.

    Memory: `[K, K]` a few times; K⁴ operations.
    """
    apart = crossed * (1 - jnp.eye(len(modes), dtype=modes.dtype))

    def row(mode: Float[Array, " K"]) -> Float[Array, " K"]:
        both = mode[None, :] * modes  # [K, K]: U_ki U_li for this k
        return (jnp.matmul(both, apart, precision="highest") * both).sum(1)

    return _outside(jnp.square(modes), variance) + jax.lax.map(row, modes)


def standard_errors(params: Params, spectra: Spectra) -> Float[Array, "K K"]:
    """Return the standard error of each entry of J from the expected information, in 1/s, `[K, K]`; inf without information."""
    modes, info = information(params, spectra)
    return jnp.sqrt(variance_of_entries(modes, 1 / info, 1 / info))


def one_step(params: Params, spectra: Spectra) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    """Return the one-step estimate of a recording's J from these parameters, J + I⁻¹ · score, and its standard errors, `[K, K]` each.

    The estimate needs no iteration, is unbiased to first order, and exists even if the maximum likelihood estimate does not (fewer bins
    than parcels), as required for empirical Bayes.
    """
    modes, moved, variance = one_step_in_modes(params, spectra)
    return jacobian(params) + _outside(modes, moved), jnp.sqrt(variance_of_entries(modes, variance, variance))


def one_step_in_modes(params: Params, spectra: Spectra) -> tuple[Float[Array, "K K"], Float[Array, "K K"], Float[Array, "K K"]]:
    """Return the modes U of J, and Uᵀ (estimate − J) U of the one-step estimate with the variances of its independent entries."""
    modes, info = information(params, spectra)
    rates, _ = _modes(_symmetric(params.coupling))
    slope = jax.grad(negative_log_likelihood)(params, spectra).coupling * (len(modes) * jnp.maximum(spectra.weight.sum(), 1.0))
    slope = _inside(modes, _symmetric(slope)) / _differences(rates)  # by A, in the modes
    return modes, slope * (2 - jnp.eye(len(modes), dtype=modes.dtype)) / info, 1 / info


def scoring_step(params: Params, spectra: Spectra, slope: Params, precision: Params) -> Params:
    """Compute a Fisher scoring step: for the coupling in its modes, and jointly for the three levels.

    Args:
      params: current parameters.
      spectra: observed spectra.
      slope: gradient of the objective at `params`.
      precision: precision of the prior, added to the information; that of the coupling must be isotropic, and its mean is used.

    Returns:
      The step, to be subtracted from the parameters.
    """
    modes, info = information(params, spectra)
    rates, _ = _modes(_symmetric(params.coupling))
    pairs = 2 - jnp.eye(len(modes), dtype=modes.dtype)
    info = info * _differences(rates) ** 2 + pairs * precision.coupling.mean() / 2 * (1 + jnp.eye(len(modes), dtype=modes.dtype))
    inside = _inside(modes, _symmetric(slope.coupling)) * pairs / info

    def log_density(levels: Float[Array, " 3"]) -> Float[Array, "F K"]:
        drive, noise = _levels(params._replace(log_sigma_x=levels[0], log_sigma_e=levels[1], delay=levels[2]), spectra.frequency)
        return jnp.log(drive[:, None] / (_squared(spectra.frequency)[:, None] + jnp.square(rates)[None, :]) + noise)

    own = jax.jacfwd(log_density)(jnp.stack(params[1:]))  # [F, K, 3]
    levels = jnp.einsum("f,fka,fkb->ab", spectra.weight, own, own) + jnp.diag(jnp.stack(precision[1:]))
    return Params(_outside(modes, inside), *jnp.linalg.solve(levels, jnp.stack(slope[1:])))


def band_grid(band: tuple[float, float]) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """Return the frequencies and weights of the trapezoidal rule over a band, in Hz."""
    frequency = np.linspace(*band, BAND_POINTS)
    share = np.full(BAND_POINTS, frequency[1] - frequency[0])
    share[[0, -1]] /= 2
    return frequency, share


def _levels(params: Params, frequency: Float[Array, " F"]) -> tuple[Float[Array, " F"], Float[Array, ""]]:
    """Return h(ω) = |H|² σx² and σe²."""
    return jnp.exp(2 * params.log_sigma_x) * haemodynamics.power(frequency, params.delay), jnp.exp(2 * params.log_sigma_e)


def _squared(frequency: Float[Array, " F"]) -> Float[Array, " F"]:
    return jnp.square(2 * jnp.pi * frequency)


def _symmetric(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return (matrix + matrix.T) / 2


def _modes(matrix: Float[Array, "K K"]) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Return the rates a, `[K]`, and modes, `[K, K]`, of a free symmetric matrix."""
    values, modes = jnp.linalg.eigh(matrix, symmetrize_input=False)
    root = jnp.sqrt(jnp.square(values) + 4 * SLOW**2)
    positive = jnp.where(values > 0, values, 0.0)
    # Two equal expressions; each is used in the range in which the other loses precision.
    return jnp.where(values > 0, (positive + root) / 2, 2 * SLOW**2 / (root - jnp.minimum(values, 0.0))), modes


def _differences(rates: Float[Array, " K"]) -> Float[Array, "K K"]:
    """Return (ai − aj) / (λi − λj), and da/dλ on the diagonal."""
    products = rates[:, None] * rates[None, :]
    return products / (products + SLOW**2)


def _sums(rates: Float[Array, " K"]) -> Float[Array, "K K"]:
    return rates[:, None] + rates[None, :]


def _outside(modes: Float[Array, "K K"], inside: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return jnp.matmul(jnp.matmul(modes, inside, precision="highest"), modes.T, precision="highest")


def _inside(modes: Float[Array, "K K"], outside: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return jnp.matmul(jnp.matmul(modes.T, outside, precision="highest"), modes, precision="highest")


@jax.custom_vjp
def _rate_matrix(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Return A for a given M."""
    return _rate_matrix_forward(matrix)[0]


def _rate_matrix_forward(matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    rates, modes = _modes(matrix)
    return _outside(modes, jnp.diag(rates)), (rates, modes)


def _rate_matrix_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    rates, modes = saved
    return (_outside(modes, _differences(rates) * _inside(modes, _symmetric(cotangent))),)


_rate_matrix.defvjp(_rate_matrix_forward, _rate_matrix_backward)


@jax.custom_vjp
def _resolvents(matrix: Float[Array, "K K"], share: Float[Array, " F"], squares: Float[Array, " F"]) -> Float[Array, "K K"]:
    """Return Σ_f share (ω² + A²)⁻¹."""
    return _resolvents_forward(matrix, share, squares)[0]


def _resolvents_forward(matrix: Array, share: Array, squares: Array) -> tuple[Array, tuple[Array, ...]]:
    rates, modes = _modes(matrix)
    each = 1 / (squares[:, None] + jnp.square(rates)[None, :])  # [F, K]
    return _outside(modes, jnp.diag(share @ each)), (rates, modes, each, share)


def _resolvents_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    rates, modes, each, share = saved
    inside = _inside(modes, _symmetric(cotangent))
    gram = jnp.matmul(each.T * share[None, :], each, precision="highest")
    slope = -_outside(modes, _differences(rates) * _sums(rates) * gram * inside)
    return slope, each @ jnp.diagonal(inside), jnp.zeros_like(share)


_resolvents.defvjp(_resolvents_forward, _resolvents_backward)


@jax.custom_vjp
def _whittle(
    matrix: Float[Array, "K K"],
    drive: Float[Array, " F"],
    noise: Float[Array, ""],
    squares: Float[Array, " F"],
    dft: Float[Array, "F N K"],
    weight: Float[Array, " F"],
) -> Float[Array, ""]:
    """Return Σ_f weight [log det S + Σ_n ŝᵀ S⁻¹ ŝ]; in the modes, S = d / b with b = ω² + a² and d = h + σe² b."""
    return _whittle_forward(matrix, drive, noise, squares, dft, weight)[0]


def _whittle_forward(
    matrix: Array, drive: Array, noise: Array, squares: Array, dft: Array, weight: Array
) -> tuple[Array, tuple[Array, ...]]:
    rates, modes = _modes(matrix)
    b = squares[:, None] + jnp.square(rates)[None, :]  # [F, K]
    d = drive[:, None] + noise * b
    parts = jnp.matmul(dft, modes, precision="highest")  # [F, N, K]
    each = (jnp.log(d) - jnp.log(b) + jnp.square(parts).sum(1) * b / d).sum(1)
    return (weight * each).sum(), (rates, modes, b, d, parts, drive, weight, each)


def _whittle_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    rates, modes, b, d, parts, drive, weight, each = saved
    energy = jnp.square(parts).sum(1)
    w, wh = weight[:, None], (weight * drive)[:, None]
    scaled = (parts / d[:, None, :]).reshape(-1, parts.shape[-1])
    rows = jnp.repeat(weight * drive, parts.shape[1])[:, None]
    gram = jnp.matmul((rows * scaled).T, scaled, precision="highest")  # divided differences of S⁻¹ applied to `parts`, summed over bins
    slope = _sums(rates) * (gram - jnp.diag((wh / (b * d)).sum(0)))  # the diagonal is that of log det S
    by_level = w * (1 / d - energy * b / jnp.square(d))
    by_dft = 2 * weight[:, None, None] * jnp.matmul(parts * (b / d)[:, None, :], modes.T, precision="highest")
    return (
        cotangent * _outside(modes, _differences(rates) * slope),
        cotangent * by_level.sum(1),
        cotangent * (b * by_level).sum(),
        jnp.zeros_like(drive),
        cotangent * by_dft,
        cotangent * each,
    )


_whittle.defvjp(_whittle_forward, _whittle_backward)
