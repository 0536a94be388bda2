"""Public function of the op."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import frames_that_count
from pnet_jax.ops.correlation import chunked, reference

_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"reference": reference.correlation, "chunked": chunked.correlation}


def correlation(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Compute the Pearson correlations between the parcel signals of each subject.

    .. math::
      r_{kl} = \frac{\sum_t \tilde x_{kt} \tilde x_{lt}}{\sqrt{\sum_t \tilde x_{kt}^2 \sum_t \tilde x_{lt}^2}}, \quad \tilde x = x - \bar x

    Args:
      signals: parcel signals, any unit, `[S, K, T]`; bfloat16 and float16 are converted to float32.
      kept: mask of the included frames, `[S, T]`; default: all. Values in excluded frames are ignored.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Correlations in [−1, 1] with diagonal 1, `[S, K, K]`, float32; rows and columns of a constant signal are NaN, with gradients of 0.

    Raises:
      ValueError: If there are fewer than 3 frames, shapes do not agree, `signals` is not floating point, or the implementation is unknown.

    Memory: the result plus the centred signals of at most 16 subjects, also for the gradient (`chunked`); or of all subjects (`reference`).

    >>> import jax.numpy as jnp
    >>> correlation(jnp.array([[[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]]])).round(2).tolist()
    [[[1.0, -1.0], [-1.0, 1.0]]]

    Source: Pearson 1895.
    """
    weight = frames_that_count(signals, kept)
    return choose(_IMPLEMENTATIONS, implementation)(signals, weight)
