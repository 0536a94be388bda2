"""Correlation with the spectrum half flattened."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register

SMOOTHING = 5  # bins of the spectrum that are averaged


@register(
    "whitened",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description="Pearson correlation after the scan's mean spectrum is half flattened, so that more frames count as independent",
)
@jax.jit
def whitened(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Pearson's r of signals whose every frequency is divided by the fourth root of the scan's mean power there.

    .. math:: r_{kl} \propto \mathrm{Re} \sum_\omega \hat x_k(\omega)\, \overline{\hat x_l(\omega)} \,/\, \sqrt{P(\omega)},
      \qquad P = \text{mean power over parcels}

    A resting spectrum falls steeply, so that a plain correlation rests on few slow cycles. Here fast ones count as well: the standard
    error is smaller. What it estimates is not quite the same, so it is a *second view* for `fit_guided`, and no replacement of Pearson's
    r. Give it signals without a low-pass filter (`CleaningConfig(low_pass=None)`), or there is little to win. Frames are taken to be
    evenly spaced.

    Args:
      signals: of the parcels, without slow drift, `[K, T]`.

    Returns:
      Correlations with diagonal 1, `[K, K]`; NaN for a constant signal.
    """
    centred = jnp.asarray(signals, jnp.float32) - jnp.mean(signals, axis=1, keepdims=True)
    size = jnp.linalg.norm(centred, axis=1, keepdims=True)
    flat = size <= 1e-6 * (jnp.abs(jnp.mean(signals, axis=1, keepdims=True)) + 1e-30)
    spectrum = jnp.fft.rfft(centred / jnp.where(flat, 1.0, size), axis=1)[:, 1:]  # [K, F]; the mean is gone already
    power = jnp.mean(jnp.square(jnp.abs(spectrum)), axis=0)  # [F]
    power = jnp.convolve(jnp.pad(power, SMOOTHING // 2, mode="edge"), jnp.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
    gain = jnp.power(jnp.maximum(power, 1e-6 * jnp.max(power) + 1e-30), -0.25)[None]
    parts = jnp.concatenate([spectrum.real * gain, spectrum.imag * gain], axis=1)  # [K, 2F]
    length = jnp.linalg.norm(parts, axis=1, keepdims=True)
    unit = jnp.where(flat, jnp.nan, parts / jnp.where(flat, 1.0, length))
    r = jnp.clip(jnp.matmul(unit, unit.T, precision="highest"), -1, 1)
    return jnp.where(jnp.eye(len(r), dtype=bool) & ~flat, 1.0, r)
