"""Kept frames put back where they were in the recording, so that nothing is related across a gap as if it were not there."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Recording(NamedTuple):
    """Signals on the clock of the recording, from the first kept frame to the last.

    Attributes:
      x: signals; 0 where a frame was left out, `[K, R]`.
      kept: 1 where a frame was kept, else 0, `[R]`.
    """

    x: Float[Array, "K R"]
    kept: Float[Array, " R"]


def on_clock(signals: Float[Array, "K T"], tr: float, frames: Int[np.ndarray, " T"] | None) -> Recording:
    """The recording that the kept frames came from; all frames in a row if `frames` is not given.

    Raises:
      ValueError: `tr` is not above 0, or `frames` are not T ascending positions.
    """
    signals = jnp.asarray(signals, jnp.float32)
    if not tr > 0:
        raise ValueError(f"tr must be above 0 s, got {tr}")
    frames = np.arange(signals.shape[1]) if frames is None else np.asarray(frames)
    if frames.shape != signals.shape[1:] or not (np.diff(frames) > 0).all():
        raise ValueError(f"frames must be {signals.shape[1]} ascending positions, one a column of the signals, got {frames!r}")
    at, length = frames - frames[0], int(frames[-1] - frames[0]) + 1
    return Recording(jnp.zeros((len(signals), length)).at[:, at].set(signals), jnp.zeros(length).at[at].set(1.0))
