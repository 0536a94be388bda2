"""Linear dynamics of the embedding's signals, stable by construction whatever the weights and the TR."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from pnet_jax.encoder.perceiver import Heads
from pnet_jax.encoder.views import share

SQUARINGS = 4
SLOWEST = 1e-3  # 1/s: what the dynamics forget at least


def generator(heads: Heads) -> Float[Array, "D D"]:
    r"""A = S − Sᵀ − B Bᵀ − ε I, in 1/s: :math:`|e^{A t}| \le e^{-\varepsilon t} < 1` for every t, whatever S and B."""
    turn, damp = heads.turn[...], heads.damp[...]
    return turn - turn.T - damp @ damp.T - SLOWEST * jnp.eye(len(turn), dtype=turn.dtype)


def transition(rate: Float[Array, "D D"], seconds: Float[ArrayLike, ""]) -> Float[Array, "D D"]:
    r"""exp(A t) by its [2/2] Padé approximant at t / 16, squared four times.

    For an A whose symmetric part is negative that approximant is of norm below 1 itself, however large A t (von Neumann): a forecast
    cannot grow where the approximation is poor either (in float32 up to rates some 10⁴ times 1 / t).
    """
    a = rate * (seconds / 2**SQUARINGS)
    even, odd = jnp.eye(len(a), dtype=a.dtype) + a @ a / 12, a / 2
    step = jnp.linalg.solve(even - odd, even + odd)
    for _ in range(SQUARINGS):
        step = step @ step
    return step


def dyn_loss(
    rate: Float[Array, "D D"],
    z: Float[Array, "V D"],
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
    counted: Bool[Array, " V"],
    tr: Float[ArrayLike, ""],
    horizon: int,
) -> Float[Array, ""]:
    """Error of the latent signals zᵀy forecast 1 to `horizon` frames ahead by exp(A TR), relative to their variance."""
    kept = kept.astype(y.dtype)
    signals = jnp.where(counted[:, None], z, 0.0).T @ (y * kept[None, :])  # [D, T]
    power = jnp.square(signals).sum(1, keepdims=True) / jnp.maximum(kept.sum(), 1.0)
    signals = signals / jnp.sqrt(power + 1e-6 * power.mean() + 1e-12)
    step = transition(rate, tr)
    error, variance, ahead = jnp.zeros(()), jnp.zeros(()), signals
    for k in range(1, min(horizon, y.shape[1] - 1) + 1):
        ahead = step @ ahead
        both = (kept[k:] * kept[:-k])[None, :]
        error += (jnp.square(signals[:, k:] - ahead[:, :-k]) * both).sum()
        variance += (jnp.square(signals[:, k:]) * both).sum()
    return share(error, variance)
