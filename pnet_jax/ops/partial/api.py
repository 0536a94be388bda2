"""The faces of the op."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import frames_that_count
from pnet_jax.ops.partial import chunked, reference


def ledoit_wolf(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Covariance of each subject's parcel signals, shrunk towards its mean variance: always invertible.

    .. math:: \hat\Sigma = (1 - \delta) S + \delta\, \tfrac{\mathrm{tr} S}{K} I

    with the δ that minimises the expected squared error; S has the number of frames in the denominator.

    Args:
      signals: any unit, `[S, K, T]`; bfloat16 and float16 are read as float32.
      kept: frames that count, `[S, T]`; all if not given. What stands in the other frames is not read.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.

    Returns:
      Covariances in the squared unit of the signals, `[S, K, K]` in float32. A constant signal covaries with none.

    Raises:
      ValueError: fewer than 3 frames, shapes that do not agree, signals that are no floats, or an unknown implementation.

    Memory: the result plus a few `[K, T]` of at most 16 subjects (`chunked`), or `[S, T, K, K]` (`reference`).

    >>> import jax.numpy as jnp
    >>> [f"{x:.2f}" for x in ledoit_wolf(jnp.array([[[1.0, 2, 4, 1], [1, -2, 0, 3]]]))[0].ravel()]
    ['2.31', '-0.08', '-0.08', '2.44']

    Source: Ledoit & Wolf 2004, Journal of Multivariate Analysis.
    """
    return _run("ledoit_wolf", implementation)(signals, frames_that_count(signals, kept))


def precision(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Inverse :math:`P = \hat\Sigma^{-1}` of each subject's Ledoit–Wolf covariance.

    Args:
      signals: any unit, `[S, K, T]`; bfloat16 and float16 are read as float32.
      kept: frames that count, `[S, T]`; all if not given. What stands in the other frames is not read.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.

    Returns:
      Precisions in the inverse squared unit of the signals, `[S, K, K]` in float32; NaN for a subject in whom nothing varies.

    Raises:
      ValueError: as for `ledoit_wolf`.

    Memory: as for `ledoit_wolf`.

    >>> import jax.numpy as jnp
    >>> [f"{x:.2f}" for x in precision(jnp.array([[[1.0, 2, 4, 1], [1, -2, 0, 3]]]))[0].ravel()]
    ['0.43', '0.01', '0.01', '0.41']

    Source: Ledoit & Wolf 2004, Journal of Multivariate Analysis.
    """
    return _run("precision", implementation)(signals, frames_that_count(signals, kept))


def partial(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Correlation of two parcels given all others, for each subject, from the Ledoit–Wolf covariance.

    .. math:: r_{kl \mid \cdot} = -P_{kl} / \sqrt{P_{kk} P_{ll}}, \quad P = \hat\Sigma^{-1}

    Args:
      signals: any unit, `[S, K, T]`; bfloat16 and float16 are read as float32.
      kept: frames that count, `[S, T]`; all if not given. What stands in the other frames is not read.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.

    Returns:
      Partial correlations in [−1, 1], diagonal 1, `[S, K, K]` in float32. With `chunked`, rows and columns of a constant signal are
      NaN, with gradients of 0.

    Raises:
      ValueError: as for `ledoit_wolf`.

    Memory: as for `ledoit_wolf`.

    >>> import jax.numpy as jnp
    >>> [f"{x:.2f}" for x in partial(jnp.array([[[1.0, 2, 4, 1], [1, -2, 0, 3]]]))[0].ravel()]
    ['1.00', '-0.03', '-0.03', '1.00']

    Source: Ledoit & Wolf 2004; Marrelec et al. 2006, NeuroImage.
    """
    return _run("partial", implementation)(signals, frames_that_count(signals, kept))


def _run(name: str, implementation: str | None) -> Callable[..., Any]:
    return choose({"reference": getattr(reference, name), "chunked": getattr(chunked, name)}, implementation)
