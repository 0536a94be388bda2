"""What the ops on signals share: the type that sums are kept in, and centred signals with a word on which of them vary."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Centred(NamedTuple):
    """Signals without their mean over the frames that count; 0 in the other frames.

    Attributes:
      values: centred signals; 0 where one does not vary, `[K, T]`.
      energy: their sum of squares; 1 where a signal does not vary, `[K]`.
      varies: whether a signal is more than a constant with rounding, `[K]`.
    """

    values: Float[Array, "K T"]
    energy: Float[Array, " K"]
    varies: Bool[Array, " K"]


def widen(x: Array) -> Array:
    """In float32, or in float64 if it is so already."""
    return x.astype(wide(x))


def wide(x: Array) -> type:
    """The type that sums over x are kept in: float32, or float64 for float64."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def centre(signals: Float[Array, "K T"], kept: Float[Array, " T"]) -> Centred:
    """Centred signals of one subject."""
    there, signals = kept[None, :] > 0, widen(signals)
    varies = vary(signals, there)
    signals = jnp.where(there & varies[:, None], signals, 0.0)
    values = jnp.where(there, signals - (signals.sum(1) / jnp.maximum(kept.sum(), 1))[:, None], 0.0)
    return Centred(values, jnp.where(varies, jnp.square(values).sum(1), 1.0), varies)


def vary(signals: Float[Array, "K T"], there: Bool[Array, "#K T"]) -> Bool[Array, " K"]:
    """Whether each signal is more than a constant with rounding in the frames that are there.

    By its range, which is exact. What a constant leaves of itself when its mean is taken off is the rounding of a sum: it grows with the
    number of frames and depends on the order of additions, which is the machine's.
    """
    highest, lowest = jnp.where(there, signals, -jnp.inf).max(1), jnp.where(there, signals, jnp.inf).min(1)
    return highest - lowest > 2 * jnp.finfo(signals.dtype).eps * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))


def subjects_a_block(subjects: int, most: int = 16) -> int:
    """How many subjects to take at a time: a divisor if there is one, as a remainder costs a copy of the result."""
    divisor = max(n for n in range(1, most + 1) if subjects % n == 0) if subjects else 1
    return divisor if divisor >= min(4, subjects) else most // 2


def frames_that_count(signals: Array, kept: Array | None, name: str = "signals") -> Float[Array, "S T"]:
    """`kept` as weights 0 and 1 in the type of the sums.

    Raises:
      ValueError: signals are not `[S, K, T]` floats with 3 frames or more, or `kept` does not fit them.
    """
    if signals.ndim != 3 or signals.shape[-1] < 3:
        raise ValueError(f"{name} must be [subjects, parcels, frames] with 3 frames or more, got shape {signals.shape}")
    if not jnp.issubdtype(signals.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {signals.dtype}")
    expected = (signals.shape[0], signals.shape[2])
    if kept is not None and kept.shape != expected:
        raise ValueError(f"kept must have shape {expected} (subjects, frames), got {kept.shape}")
    return jnp.ones(expected, wide(signals)) if kept is None else kept.astype(bool).astype(wide(signals))
