"""Helpers shared by the ops on signals: accumulation dtype, centring, and detection of constant signals."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Centred(NamedTuple):
    """Signals centred over the included frames; 0 in the excluded frames.

    Attributes:
      values: centred signals; 0 for a constant signal, `[K, T]`.
      energy: sums of squares of the centred signals; 1 for a constant signal, `[K]`.
      varies: whether each signal differs from a constant by more than rounding, `[K]`.
    """

    values: Float[Array, "K T"]
    energy: Float[Array, " K"]
    varies: Bool[Array, " K"]


def widen(x: Array) -> Array:
    """Convert to the accumulation dtype: float32, or float64 if `x` is float64."""
    return x.astype(wide(x))


def wide(x: Array) -> type:
    """Return the accumulation dtype for `x`: float32, or float64 if `x` is float64."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def centre(signals: Float[Array, "K T"], kept: Float[Array, " T"]) -> Centred:
    """Centre the signals of one subject over the included frames."""
    there, signals = kept[None, :] > 0, widen(signals)
    varies = vary(signals, there)
    signals = jnp.where(there & varies[:, None], signals, 0.0)
    values = jnp.where(there, signals - (signals.sum(1) / jnp.maximum(kept.sum(), 1))[:, None], 0.0)
    return Centred(values, jnp.where(varies, jnp.square(values).sum(1), 1.0), varies)


def vary(signals: Float[Array, "K T"], there: Bool[Array, "#K T"]) -> Bool[Array, " K"]:
    """Return whether each signal differs from a constant by more than rounding, over the frames in `there`.

    The range is used because it is exact. Subtracting the mean of a constant signal leaves the rounding error of a sum, which grows with
    the number of frames and depends on the order of additions, and so on the hardware.
    """
    highest, lowest = jnp.where(there, signals, -jnp.inf).max(1), jnp.where(there, signals, jnp.inf).min(1)
    return highest - lowest > 2 * jnp.finfo(signals.dtype).eps * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))


def subjects_a_block(subjects: int, most: int = 16) -> int:
    """Return the number of subjects per block: a divisor of `subjects` if possible, because a remainder costs a copy of the result."""
    divisor = max(n for n in range(1, most + 1) if subjects % n == 0) if subjects else 1
    return divisor if divisor >= min(4, subjects) else most // 2


def frames_that_count(signals: Array, kept: Array | None, name: str = "signals") -> Float[Array, "S T"]:
    """Return `kept` as weights 0 and 1 in the accumulation dtype, `[S, T]`.

    Raises:
      ValueError: If `signals` is not a floating-point array `[S, K, T]` with at least 3 frames, or the shape of `kept` does not match.
    """
    if signals.ndim != 3 or signals.shape[-1] < 3:
        raise ValueError(f"{name} must be [subjects, parcels, frames] with at least 3 frames, got shape {signals.shape}")
    if not jnp.issubdtype(signals.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {signals.dtype}")
    expected = (signals.shape[0], signals.shape[2])
    if kept is not None and kept.shape != expected:
        raise ValueError(f"kept must have shape {expected} (subjects, frames), got {kept.shape}")
    return jnp.ones(expected, wide(signals)) if kept is None else kept.astype(bool).astype(wide(signals))
