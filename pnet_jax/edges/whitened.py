"""Correlation of signals with a partially whitened spectrum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register

SMOOTHING = 5  # number of bins in the moving average of the spectrum


@register(
    "whitened",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description="Pearson correlation after partial whitening by the mean spectrum of the scan, which increases the effective sample size",
)
@jax.jit
def whitened(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Compute Pearson's r after dividing each frequency by the fourth root of the mean power of the scan.

    .. math:: r_{kl} \propto \mathrm{Re} \sum_\omega \hat x_k(\omega)\, \overline{\hat x_l(\omega)} \,/\, \sqrt{P(\omega)},
      \qquad P = \text{mean power over parcels}

    Resting-state spectra fall steeply, so that a plain correlation is dominated by few slow cycles. Partial whitening gives more weight to
    fast cycles, which reduces the standard error. The estimand differs slightly, so it serves as a *second view* for `fit_guided`, not as a
    replacement for Pearson's r. It needs signals without a low-pass filter (`CleaningConfig(low_pass=None)`) to be of benefit. Frames are
    treated as evenly spaced.

    Args:
      signals: parcel signals without slow drift, `[K, T]`.

    Returns:
      Correlations with diagonal 1, `[K, K]`; NaN for a constant signal.
    """
    centred = jnp.asarray(signals, jnp.float32) - jnp.mean(signals, axis=1, keepdims=True)
    size = jnp.linalg.norm(centred, axis=1, keepdims=True)
    flat = size <= 1e-6 * (jnp.abs(jnp.mean(signals, axis=1, keepdims=True)) + 1e-30)
    spectrum = jnp.fft.rfft(centred / jnp.where(flat, 1.0, size), axis=1)[:, 1:]  # [K, F]; without the mean
    power = jnp.mean(jnp.square(jnp.abs(spectrum)), axis=0)  # [F]
    power = jnp.convolve(jnp.pad(power, SMOOTHING // 2, mode="edge"), jnp.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
    gain = jnp.power(jnp.maximum(power, 1e-6 * jnp.max(power) + 1e-30), -0.25)[None]
    parts = jnp.concatenate([spectrum.real * gain, spectrum.imag * gain], axis=1)  # [K, 2F]
    length = jnp.linalg.norm(parts, axis=1, keepdims=True)
    unit = jnp.where(flat, jnp.nan, parts / jnp.where(flat, 1.0, length))
    r = jnp.clip(jnp.matmul(unit, unit.T, precision="highest"), -1, 1)
    return jnp.where(jnp.eye(len(r), dtype=bool) & ~flat, 1.0, r)
