"""Linear forecasts some steps ahead that are stable by construction: learned with an encoder, or fitted to a group in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

SQUARINGS = 4
SLOWEST = 1e-3  # 1/s: what the dynamics forget at least
LARGEST = 0.999  # singular value of one fitted step, in the metric of the signals' own covariance


def generator(turn: Float[Array, "D D"], damp: Float[Array, "D D"]) -> Float[Array, "D D"]:
    r"""A = S − Sᵀ − B Bᵀ − ε I, in 1/s: :math:`|e^{A t}| \le e^{-\varepsilon t} < 1` for every t, whatever S and B."""
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


def fit_transition(
    recordings: Sequence[Float[np.ndarray, "D T"]], kept: Sequence[Bool[np.ndarray, " T"]] | None = None, *, ridge: float = 1e-2
) -> Float[np.ndarray, "D D"]:
    r"""One frame's step of a group, in closed form, stable (extended dynamic mode decomposition on the signals themselves).

    .. math:: A = C_1 (C_0 + \rho\,\mathrm{tr}(C_0)/D\, I)^{-1}, \quad C_0 = \sum y_t y_t^T, \quad C_1 = \sum y_{t+1} y_t^T

    Then the singular values of :math:`C_0^{-1/2} A C_0^{1/2}` are cut at .999: in the metric of the signals' own covariance no step can
    grow, and stationary signals need no cut.

    Args:
      recordings: signals of one TR, centred, `[D, T]` each; any features of them may stand in further rows.
      kept: frames that count, `[T]` each; all if not given. Pairs with a frame that does not count are left out.
      ridge: ρ.

    Raises:
      ValueError: no pair of frames, or recordings of different D.
    """
    if len({len(y) for y in recordings}) != 1:
        raise ValueError(f"expected recordings of one D, got D = {sorted({len(y) for y in recordings})}")
    size = len(recordings[0])
    now, ahead, pairs = np.zeros((size, size)), np.zeros((size, size)), 0
    for y, mask in zip(recordings, kept or [np.ones(y.shape[1], bool) for y in recordings], strict=True):
        both, x = np.flatnonzero(mask[1:] & mask[:-1]), np.asarray(y, np.float64)
        now += x[:, both] @ x[:, both].T
        ahead += x[:, both + 1] @ x[:, both].T
        pairs += len(both)
    if pairs == 0:
        raise ValueError("expected two kept frames that follow each other, got none")
    loaded = now + ridge * np.trace(now) / size * np.eye(size)
    values, vectors = np.linalg.eigh(loaded)
    root, inverse = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    left, singular, right = np.linalg.svd(inverse @ ahead @ inverse)  # of C₀^-½ A C₀^½
    return root @ (left * np.minimum(singular, LARGEST)) @ right @ inverse


def forecast_r2(
    step: Float[ArrayLike, "D D"], signals: Float[ArrayLike, "D T"], kept: Bool[ArrayLike, " T"] | None = None, *, horizon: int = 5
) -> Float[Array, " H"]:
    r"""Share of the variance that :math:`A^k y_t` foresees of :math:`y_{t+k}`, k = 1…`horizon`, `[H]`.

    Args:
      step: A of one frame.
      signals: held out, centred, `[D, T]`.
      kept: frames that count, `[T]`; all if not given.
      horizon: frames ahead at most, below T.

    Returns:
      1 is perfect, 0 as good as the mean, below 0 worse; NaN where no pair of kept frames lies so far apart.

    Raises:
      ValueError: the horizon is not below T.

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
