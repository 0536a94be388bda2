"""Linear multi-step forecasts that are stable by construction: learned with an encoder, or fitted to a group in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

SQUARINGS = 4
SLOWEST = 1e-3  # minimum decay rate in 1/s
LARGEST = 0.999  # largest singular value of a fitted step, in the metric of the covariance of the signals


def generator(turn: Float[Array, "D D"], damp: Float[Array, "D D"]) -> Float[Array, "D D"]:
    r"""Return A = S − Sᵀ − B Bᵀ − ε I in 1/s, so that :math:`|e^{A t}| \le e^{-\varepsilon t} < 1` for all t, S and B."""
    return turn - turn.T - damp @ damp.T - SLOWEST * jnp.eye(len(turn), dtype=turn.dtype)


def transition(rate: Float[Array, "D D"], seconds: Float[ArrayLike, ""]) -> Float[Array, "D D"]:
    r"""Approximate exp(A t) by its [2/2] Padé approximant at t / 16, squared four times.

    If the symmetric part of A is negative definite, the norm of the approximant is below 1 for any A t (von Neumann), so a forecast cannot
    grow even if the approximation is poor (in float32, up to rates of about 10⁴ / t).
    """
    a = rate * (seconds / 2**SQUARINGS)
    even, odd = jnp.eye(len(a), dtype=a.dtype) + a @ a / 12, a / 2
    step = jnp.linalg.solve(even - odd, even + odd)
    for _ in range(SQUARINGS):
        step = step @ step
    return step


def fit_transition(
    recordings: Sequence[Float[np.ndarray, "D T"]], kept: Sequence[Bool[np.ndarray, " T"]] | None = None, *, ridge: float = 1e-2
) -> Float[np.ndarray, "D D"]:
    r"""Fit a stable one-frame transition matrix to a group in closed form (dynamic mode decomposition).

    .. math:: A = C_1 (C_0 + \rho\,\mathrm{tr}(C_0)/D\, I)^{-1}, \quad C_0 = \sum y_t y_t^T, \quad C_1 = \sum y_{t+1} y_t^T

    The singular values of :math:`C_0^{-1/2} A C_0^{1/2}` are then clipped to 0.999, so that no step can grow in the metric of the
    covariance of the signals; for stationary signals, the clipping has no effect.

    Args:
      recordings: centred signals of equal TR, `[D, T]` each; further rows can hold features of the signals.
      kept: masks of the included frames, `[T]` each; default: all. Pairs with an excluded frame are left out.
      ridge: regularisation ρ.

    Returns:
      The transition matrix A, `[D, D]`.

    Raises:
      ValueError: If there is no pair of frames, or D differs between recordings.
    """
    if len({len(y) for y in recordings}) != 1:
        raise ValueError(f"expected recordings with the same D, got D = {sorted({len(y) for y in recordings})}")
    size = len(recordings[0])
    now, ahead, pairs = np.zeros((size, size)), np.zeros((size, size)), 0
    for y, mask in zip(recordings, kept or [np.ones(y.shape[1], bool) for y in recordings], strict=True):
        both, x = np.flatnonzero(mask[1:] & mask[:-1]), np.asarray(y, np.float64)
        now += x[:, both] @ x[:, both].T
        ahead += x[:, both + 1] @ x[:, both].T
        pairs += len(both)
    if pairs == 0:
        raise ValueError("expected at least one pair of consecutive kept frames, got none")
    loaded = now + ridge * np.trace(now) / size * np.eye(size)
    values, vectors = np.linalg.eigh(loaded)
    root, inverse = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    left, singular, right = np.linalg.svd(inverse @ ahead @ inverse)  # of C₀^-½ A C₀^½
    return root @ (left * np.minimum(singular, LARGEST)) @ right @ inverse


def forecast_r2(
    step: Float[ArrayLike, "D D"], signals: Float[ArrayLike, "D T"], kept: Bool[ArrayLike, " T"] | None = None, *, horizon: int = 5
) -> Float[Array, " H"]:
    r"""Compute the share of the variance of :math:`y_{t+k}` that is predicted by :math:`A^k y_t`, for k = 1…`horizon`.

    Args:
      step: transition matrix A of one frame, `[D, D]`.
      signals: held-out, centred signals, `[D, T]`.
      kept: mask of the included frames, `[T]`; default: all.
      horizon: largest number of frames ahead, below T.

    Returns:
      R² of each k, `[H]`: 1 is perfect, 0 is as good as the mean, and negative values are worse; NaN without a pair of frames k apart.

    Raises:
      ValueError: If the horizon is not between 1 and T − 1.

    >>> y = 0.9 ** jnp.arange(20.0)[None, :]
    >>> forecast_r2(jnp.array([[0.9]]), y, horizon=2).round(3).tolist()
    [1.0, 1.0]
    """
    y, step = jnp.asarray(signals), jnp.asarray(step)
    if not 1 <= horizon < y.shape[1]:
        raise ValueError(f"expected a horizon of 1…T − 1 frames with T = {y.shape[1]}, got {horizon}")
    counts = jnp.ones(y.shape[1], y.dtype) if kept is None else jnp.asarray(kept).astype(y.dtype)
    out, ahead = [], y * counts[None, :]
    for k in range(1, horizon + 1):
        ahead = jnp.matmul(step, ahead, precision=jax.lax.Precision.HIGHEST)
        both = (counts[k:] * counts[:-k])[None, :]
        error = (jnp.square(y[:, k:] - ahead[:, :-k]) * both).sum()
        out.append(1 - error / (jnp.square(y[:, k:]) * both).sum())
    return jnp.stack(out)
