"""Kept frames at their original times in the recording, so that frames on both sides of a gap are not treated as adjacent."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class TimedSignals(NamedTuple):
    """Signals on the time axis of the recording, from the first to the last kept frame.

    Attributes:
      x: signals; 0 in frames that were not kept, `[K, R]`.
      kept: 1 for kept frames, else 0, `[R]`.
    """

    x: Float[Array, "K R"]
    kept: Float[Array, " R"]


def on_clock(signals: Float[Array, "K T"], tr: float, frames: Int[np.ndarray, " T"] | None) -> TimedSignals:
    """Place the kept frames on the time axis of the recording; by default, frames are consecutive.

    Raises:
      ValueError: If `tr` is not above 0, or `frames` are not T ascending indices.
    """
    signals = jnp.asarray(signals, jnp.float32)
    if not tr > 0:
        raise ValueError(f"tr must be above 0 s, got {tr}")
    frames = np.arange(signals.shape[1]) if frames is None else np.asarray(frames)
    if frames.shape != signals.shape[1:] or not (np.diff(frames) > 0).all():
        raise ValueError(f"frames must be {signals.shape[1]} ascending indices, one per column of the signals, got {frames!r}")
    at, length = frames - frames[0], int(frames[-1] - frames[0]) + 1
    return TimedSignals(jnp.zeros((len(signals), length)).at[:, at].set(signals), jnp.zeros(length).at[at].set(1.0))
