r"""Linear stochastic dynamics observed through a haemodynamic response, exact in the frequency domain.

.. math:: dx = J x\,dt + dW, \qquad s = h * x, \qquad S(\omega) = |H(\omega)|^2 (i\omega I - J)^{-1}(i\omega I - J)^{-H}

For symmetric :math:`J = U\,\mathrm{diag}(-a)\,U^T`, every :math:`S(\omega)` is diagonal in U, so functional connectivity in a band has a
closed form, and a recording at any repetition time is one inverse Fourier transform.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Complex, Float
from scipy import fft

from pnet_jax.dynamics.haemodynamics import PEAK_SECONDS, PEAK_SHAPE, UNDERSHOOT_RATIO, UNDERSHOOT_SHAPE
from pnet_jax.dynamics.spectra import BAND_HZ  # band of the analysis, and hence of the true connectivity

HRF_DELAY_SD_SECONDS = 0.5  # standard deviation between subjects
STEP_SECONDS = 0.25  # sufficient, since the response is negligible above 2 Hz
PAD_SECONDS = 120.0  # discarded, so that start and end of the periodic transform are independent
_BAND_POINTS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModel:
    """Linear dynamics in the eigenbasis of the Jacobian.

    Attributes:
      modes: Orthonormal modes as columns, `[K, K]`.
      rates: Positive decay rate of each mode in 1/s, `[K]`.
      delay: Delay of the haemodynamic peak relative to 5 s, in seconds.
    """

    modes: Float[np.ndarray, "K K"]
    rates: Float[np.ndarray, " K"]
    delay: float = 0.0


def linear_model(jacobian: Float[np.ndarray, "K K"], *, delay: float = 0.0) -> LinearModel:
    """Build the model of a symmetric Jacobian.

    Args:
      jacobian: Jacobian in 1/s, `[K, K]`.
      delay: Delay of the haemodynamic peak in seconds; the whole response is stretched, since a mere shift would not change any spectrum.

    Raises:
      ValueError: If the Jacobian is not symmetric or not stable, or the delay is at most −5 s.
    """
    if not np.allclose(jacobian, jacobian.T, atol=1e-10):
        raise ValueError(f"expected a symmetric Jacobian, got an asymmetry of {np.abs(jacobian - jacobian.T).max():.3g} 1/s")
    values, modes = np.linalg.eigh(jacobian)
    if values[-1] >= 0:
        raise ValueError(f"expected a stable Jacobian, all eigenvalues below 0, got {values[-1]:.3g} 1/s")
    if delay <= -PEAK_SECONDS:
        raise ValueError(f"expected a delay above {-PEAK_SECONDS:g} s, got {delay}")
    return LinearModel(modes, -values, float(delay))


def haemodynamic_response(frequency: Float[np.ndarray, " F"], delay: float = 0.0) -> Complex[np.ndarray, " F"]:
    r"""Fourier transform of the double-gamma response, `[F]`: :math:`(1 + i\omega s)^{-6} - (1 + i\omega s)^{-16}/6`, 1 − 1/6 at 0 Hz.

    Args:
      frequency: Frequencies in Hz, `[F]`.
      delay: Delay of the peak in seconds, implemented by the time scale s = 1 + delay / 5.
    """
    base = 1 + 2j * np.pi * frequency * (1 + delay / PEAK_SECONDS)
    return base**-PEAK_SHAPE - base**-UNDERSHOOT_SHAPE / UNDERSHOOT_RATIO


def true_fc(model: LinearModel, band: tuple[float, float] = BAND_HZ) -> Float[np.ndarray, "K K"]:
    """Compute the correlation of the parcels' haemodynamic signals within a band in closed form, `[K, K]`, with diagonal 1."""
    frequency = np.linspace(*band, _BAND_POINTS)
    power = np.abs(_mode_response(model, frequency)) ** 2  # [K, F]
    covariance = (model.modes * np.trapezoid(power, frequency, axis=1)) @ model.modes.T
    sd = np.sqrt(np.diag(covariance))
    fc = covariance / np.outer(sd, sd)
    np.fill_diagonal(fc, 1.0)
    return fc


def sample(model: LinearModel, rng: np.random.Generator, *, tr: float, frames: int) -> Float[np.ndarray, "K T"]:
    """Simulate one recording of the parcels' haemodynamic signals, `[K, T]`, float32, each with expected variance 1.

    Args:
      model: Model with K parcels.
      rng: Random generator of the recording.
      tr: Repetition time in seconds.
      frames: Number of frames T.
    """
    steps = max(1, int(np.ceil(tr / STEP_SECONDS)))  # an integer number of fine steps per frame for any repetition time
    length = fft.next_fast_len(frames + int(np.ceil(PAD_SECONDS / tr)), real=True) * steps
    frequency = fft.rfftfreq(length, tr / steps)
    response = _mode_response(model, frequency)
    response[:, 0] = 0  # no constant: the baseline is added with the scanner effects
    # White noise is isotropic, so it can be drawn directly in the eigenbasis.
    drive = rng.standard_normal((2, *response.shape))
    signal = fft.irfft(model.modes @ (response * (drive[0] + 1j * drive[1])), length, axis=1)[:, : frames * steps : steps]
    variance = 4 / length**2 * (model.modes**2 @ (np.abs(response) ** 2).sum(1))
    return (signal / np.sqrt(variance)[:, None]).astype(np.float32)


def _mode_response(model, frequency):
    """Transfer function from white noise to the signal of each mode, `[K, F]`."""
    return haemodynamic_response(frequency, model.delay) / (2j * np.pi * frequency + model.rates[:, None])
