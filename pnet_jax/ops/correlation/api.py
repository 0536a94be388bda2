"""The face of the op."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops.correlation import chunked, reference

_IMPLEMENTATIONS = {"reference": reference.correlation, "chunked": chunked.correlation}


def correlation(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Pearson correlation between the parcel signals of each subject.

    .. math::
      r_{kl} = \frac{\sum_t \tilde x_{kt} \tilde x_{lt}}{\sqrt{\sum_t \tilde x_{kt}^2 \sum_t \tilde x_{lt}^2}}, \quad \tilde x = x - \bar x

    Args:
      signals: any unit, `[S, K, T]`.
      kept: frames that count, `[S, T]`; all if not given.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.

    Returns:
      r in [−1, 1], diagonal 1, `[S, K, K]`; rows and columns of a constant signal are NaN, with gradients of 0.

    Raises:
      ValueError: fewer than 3 frames, shapes that do not agree, or an unknown implementation.

    Memory: the result plus the centred signals of 8 subjects (`chunked`) or of all (`reference`).

    >>> correlation(jnp.array([[[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]]])).round(2).tolist()
    [[[1.0, -1.0], [-1.0, 1.0]]]

    Source: Pearson 1895.
    """
    if signals.ndim != 3 or signals.shape[-1] < 3:
        raise ValueError(f"signals must be [subjects, parcels, frames] with 3 frames or more, got shape {signals.shape}")
    expected = (signals.shape[0], signals.shape[2])
    if kept is not None and kept.shape != expected:
        raise ValueError(f"kept must have shape {expected} (subjects, frames), got {kept.shape}")
    weight = jnp.ones(expected, signals.dtype) if kept is None else kept.astype(signals.dtype)
    return choose(_IMPLEMENTATIONS, implementation)(signals, weight)
