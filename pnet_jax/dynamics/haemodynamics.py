"""Double-gamma haemodynamic response in the frequency domain, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

PEAK_SHAPE, UNDERSHOOT_SHAPE, UNDERSHOOT_RATIO = 6, 16, 6.0  # two gamma densities with a scale of 1 s; peak at 5 s
PEAK_SECONDS = PEAK_SHAPE - 1.0  # time to peak without delay


def response(frequency: Float[ArrayLike, " F"], delay: Float[ArrayLike, ""] = 0.0) -> Complex[Array, " F"]:
    r"""Compute the Fourier transform of the double-gamma response.

    .. math:: H(\omega) = (1 + i\omega s)^{-6} - (1 + i\omega s)^{-16}/6, \qquad s = 1 + \mathrm{delay}/5

    Args:
      frequency: frequencies in Hz, `[F]`.
      delay: delay of the peak beyond 5 s, in seconds, above −5. The response is stretched, because a shift would not change the spectrum.

    Returns:
      Complex response, `[F]`; 1 − 1/6 at 0 Hz.

    >>> round(float(response(jnp.zeros(1))[0].real), 3)
    0.833

    Source: Friston 1998, with the shape parameters of SPM.
    """
    angle = 2 * jnp.pi * jnp.asarray(frequency) * (1 + delay / PEAK_SECONDS)
    base = jax.lax.complex(jnp.ones_like(angle), angle)
    return base**-PEAK_SHAPE - base**-UNDERSHOOT_SHAPE / UNDERSHOOT_RATIO


def power(frequency: Float[ArrayLike, " F"], delay: Float[ArrayLike, ""] = 0.0) -> Float[Array, " F"]:
    r"""Compute the power response :math:`|H(\omega)|^2`, `[F]`, which is differentiable in `delay`; see `response`."""
    h = response(frequency, delay)
    return jnp.square(h.real) + jnp.square(h.imag)
