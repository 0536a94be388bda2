"""The double-gamma haemodynamic response, in closed form in frequency."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

PEAK_SHAPE, UNDERSHOOT_SHAPE, UNDERSHOOT_RATIO = 6, 16, 6.0  # of the two gamma densities, 1 s scale: peak at 5 s
PEAK_SECONDS = PEAK_SHAPE - 1.0  # of the response without delay


def response(frequency: Float[ArrayLike, " F"], delay: Float[ArrayLike, ""] = 0.0) -> Complex[Array, " F"]:
    r"""Fourier transform of the double-gamma response.

    .. math:: H(\omega) = (1 + i\omega s)^{-6} - (1 + i\omega s)^{-16}/6, \qquad s = 1 + \mathrm{delay}/5

    Args:
      frequency: Hz, `[F]`.
      delay: seconds by which the peak comes after 5 s, above −5. The whole response is stretched: a mere shift would change no spectrum.

    Returns:
      `[F]`, complex; 1 − 1/6 at 0 Hz.

    >>> response(jnp.zeros(1))[0].real.round(3).item()
    0.833

    Source: Friston 1998; the shapes are SPM's.
    """
    angle = 2 * jnp.pi * jnp.asarray(frequency) * (1 + delay / PEAK_SECONDS)
    base = jax.lax.complex(jnp.ones_like(angle), angle)
    return base**-PEAK_SHAPE - base**-UNDERSHOOT_SHAPE / UNDERSHOOT_RATIO


def power(frequency: Float[ArrayLike, " F"], delay: Float[ArrayLike, ""] = 0.0) -> Float[Array, " F"]:
    r""":math:`|H(\omega)|^2`, `[F]`; differentiable in `delay`. See `response`."""
    h = response(frequency, delay)
    return jnp.square(h.real) + jnp.square(h.imag)
