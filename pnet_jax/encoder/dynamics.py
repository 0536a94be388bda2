"""Pre-training term: forecasts of the latent signals by linear dynamics."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.dynamics.forecast import transition
from pnet_jax.encoder.views import share


def dyn_loss(
    rate: Float[Array, "D D"],
    z: Float[Array, "V D"],
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
    frames: Int[Array, " T"],
    counted: Bool[Array, " V"],
    tr: Float[ArrayLike, ""],
    horizon: int,
) -> Float[Array, ""]:
    """Compute the error of forecasts of the latent signals zᵀy, 1 to `horizon` frames ahead by exp(A TR), relative to their variance.

    Pairs of frames with scrubbed frames between them are excluded, because they are further apart in time than in `y`.
    """
    frames, kept = jnp.asarray(frames), kept.astype(y.dtype)
    signals = jnp.where(counted[:, None], z, 0.0).T @ (y * kept[None, :])  # [D, T]
    power = jnp.square(signals).sum(1, keepdims=True) / jnp.maximum(kept.sum(), 1.0)
    signals = signals / jnp.sqrt(power + 1e-6 * power.mean() + 1e-12)
    step = transition(rate, tr)
    error, variance, ahead = jnp.zeros(()), jnp.zeros(()), signals
    for k in range(1, min(horizon, y.shape[1] - 1) + 1):
        ahead = step @ ahead
        both = (kept[k:] * kept[:-k] * (frames[k:] - frames[:-k] == k).astype(y.dtype))[None, :]
        error += (jnp.square(signals[:, k:] - ahead[:, :-k]) * both).sum()
        variance += (jnp.square(signals[:, k:]) * both).sum()
    return share(error, variance)
