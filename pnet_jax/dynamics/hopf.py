r"""Linearised Hopf model: subcritical oscillators with diffusive coupling, driven by noise.

.. math:: dz_j = (a + i\omega_j) z_j\,dt + g \sum_k C_{jk} (z_k - z_j)\,dt + \beta\,d\eta_j

Its real and imaginary parts follow 2K linear equations, so covariances have closed forms: over all frequencies by a Lyapunov equation, and
in a band by the spectral density. The real part is the BOLD signal itself; the model has no haemodynamic response.
Source: Ponce-Alvarez and Deco 2024.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pnet_jax.dynamics.linear_stochastic import band_grid
from pnet_jax.dynamics.spectra import Spectra

DAMPING = -0.02  # a in 1/s; below 0, nodes do not oscillate without noise
SMOOTH_HZ = 0.01  # standard deviation of the smoothing of the power spectra before peak detection
DOUBLINGS = 20


def node_frequencies(spectra: Spectra, smooth: float = SMOOTH_HZ) -> Float[Array, " K"]:
    """Return the peak frequency of each signal in Hz, after Gaussian smoothing of the power spectrum by `smooth` Hz, `[K]`."""
    power = jnp.square(spectra.dft).sum(1)  # [F, K]
    apart = (spectra.frequency[:, None] - spectra.frequency[None, :]) / smooth
    kernel = jnp.exp(-jnp.square(apart) / 2) * spectra.weight[None, :]
    level = jnp.matmul(kernel, power, precision="highest") / jnp.maximum(kernel.sum(1), 1e-12)[:, None]
    return spectra.frequency[jnp.argmax(jnp.where(spectra.weight[:, None] > 0, level, -jnp.inf), axis=0)]


def hopf_jacobian(
    coupling: Float[ArrayLike, "K K"], frequency: Float[ArrayLike, " K"], *, gain: float | Array = 1.0, damping: float | Array = DAMPING
) -> Float[Array, "2K 2K"]:
    """Return the Jacobian of the real parts followed by the imaginary parts, in 1/s.

    Args:
      coupling: coupling C ≥ 0 from column to row, `[K, K]`; the diagonal is ignored.
      frequency: frequency of each node in Hz, `[K]`.
      gain: global coupling g in 1/s.
      damping: bifurcation parameter a in 1/s, below 0.

    Returns:
      The Jacobian, `[2K, 2K]`.

    Raises:
      ValueError: If shapes do not agree.

    >>> hopf_jacobian(jnp.zeros((2, 2)), jnp.array([0.05, 0.1])).shape
    (4, 4)
    """
    c, hz = jnp.asarray(coupling), jnp.asarray(frequency)
    if c.shape != (len(hz), len(hz)):
        raise ValueError(f"expected a coupling of shape {(len(hz), len(hz))} for {len(hz)} frequencies, got {c.shape}")
    eye = jnp.eye(len(hz), dtype=c.dtype)
    c = c * (1 - eye)
    still = gain * (c - jnp.diag(c.sum(1))) + damping * eye
    turn = jnp.diag(2 * jnp.pi * hz)
    return jnp.block([[still, -turn], [turn, still]])


def covariance(
    jacobian: Float[Array, "2K 2K"], *, sigma: float | Array = 1.0, band: tuple[float, float] | None = None
) -> Float[Array, "K K"]:
    """Compute the covariance of the real parts, with white noise of amplitude `sigma` in both parts.

    Args:
      jacobian: stable Jacobian of `hopf_jacobian`, `[2K, 2K]`.
      sigma: noise amplitude β.
      band: frequency band in Hz; None for all frequencies.

    Returns:
      The covariance, `[K, K]`.
    """
    size = len(jacobian) // 2
    eye = jnp.eye(len(jacobian), dtype=jacobian.dtype)
    if band is None:
        return lyapunov(jacobian, jnp.square(sigma) * eye)[:size, :size]
    frequency, share = (jnp.asarray(x, jacobian.dtype) for x in band_grid(band))

    def one(hz: Array) -> Array:
        # (iω − J)⁻¹ by real solves: (ω² + J²) X = −J, (ω² + J²) Y = −ω, X + iY.
        both = jnp.linalg.solve(
            jnp.square(2 * jnp.pi * hz) * eye + jacobian @ jacobian, jnp.concatenate([-jacobian, -2 * jnp.pi * hz * eye], 1)
        )
        rows = both[:size]
        return jnp.matmul(rows, rows.T, precision="highest")

    each = jax.lax.map(one, frequency)
    return 2 * jnp.square(sigma) * (share[:, None, None] * each).sum(0)


def correlation(jacobian: Float[Array, "2K 2K"], band: tuple[float, float] | None = None) -> Float[Array, "K K"]:
    """Compute the functional connectivity of the model, with diagonal 1, `[K, K]`."""
    c = covariance(jacobian, band=band)
    scale = jax.lax.rsqrt(jnp.diagonal(c))
    return c * scale[:, None] * scale[None, :]


def lyapunov(jacobian: Float[Array, "n n"], noise: Float[Array, "n n"]) -> Float[Array, "n n"]:
    r"""Solve :math:`J P + P J^T + Q = 0` for P, given a stable J; differentiable and available on all devices.

    A Cayley transform gives :math:`P = B P B^T + R`, whose series is summed by doubling (Smith 1968).
    """
    eye = jnp.eye(len(jacobian), dtype=jacobian.dtype)
    shift = jnp.sqrt(jnp.square(jacobian).sum(1).max())  # approximately the largest rate
    inverse = jnp.linalg.inv(shift * eye - jacobian)
    step = jnp.matmul(inverse, shift * eye + jacobian, precision="highest")
    total = 2 * shift * jnp.matmul(jnp.matmul(inverse, noise, precision="highest"), inverse.T, precision="highest")

    def double(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        step, total = carry
        total = total + jnp.matmul(jnp.matmul(step, total, precision="highest"), step.T, precision="highest")
        return (jnp.matmul(step, step, precision="highest"), total), None

    (_, total), _ = jax.lax.scan(double, (step, total), None, length=DOUBLINGS)
    return total
