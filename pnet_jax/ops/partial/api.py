"""Public functions of the op."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import frames_that_count
from pnet_jax.ops.partial import chunked, reference


def ledoit_wolf(
    signals: Float[Array, "S K T"], kept: Bool[Array, "S T"] | None = None, *, implementation: str | None = None
) -> Float[Array, "S K K"]:
    r"""Compute the Ledoit–Wolf covariance of each subject's parcel signals: shrunk towards its mean variance, always invertible.

    .. math:: \hat\Sigma = (1 - \delta) S + \delta\, \tfrac{\mathrm{tr} S}{K} I

    with the δ that minimises the expected squared error; the denominator of S is the number of frames.

    Args:
      signals: parcel signals, any unit, `[S, K, T]`; bfloat16 and float16 are converted to float32.
      kept: mask of the included frames, `[S, T]`; default: all. Values in excluded frames are ignored.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Covariances in the squared unit of the signals, `[S, K, K]`, float32. The covariances of a constant signal are 0.

    Raises:
      ValueError: If there are fewer than 3 frames, shapes do not agree, `signals` is not floating point, or the implementation is unknown.

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
    r"""Compute the inverse :math:`P = \hat\Sigma^{-1}` of each subject's Ledoit–Wolf covariance.

    Args:
      signals: parcel signals, any unit, `[S, K, T]`; bfloat16 and float16 are converted to float32.
      kept: mask of the included frames, `[S, T]`; default: all. Values in excluded frames are ignored.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Precision matrices in the inverse squared unit of the signals, `[S, K, K]`, float32; NaN for a subject with only constant signals.

    Raises:
      ValueError: As for `ledoit_wolf`.

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
    r"""Compute the partial correlation of each pair of parcels given all others, from each subject's Ledoit–Wolf covariance.

    .. math:: r_{kl \mid \cdot} = -P_{kl} / \sqrt{P_{kk} P_{ll}}, \quad P = \hat\Sigma^{-1}

    Args:
      signals: parcel signals, any unit, `[S, K, T]`; bfloat16 and float16 are converted to float32.
      kept: mask of the included frames, `[S, T]`; default: all. Values in excluded frames are ignored.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Partial correlations in [−1, 1] with diagonal 1, `[S, K, K]`, float32. With `chunked`, rows and columns of a constant signal are
      NaN, with gradients of 0.

    Raises:
      ValueError: As for `ledoit_wolf`.

    Memory: as for `ledoit_wolf`.

    >>> import jax.numpy as jnp
    >>> [f"{x:.2f}" for x in partial(jnp.array([[[1.0, 2, 4, 1], [1, -2, 0, 3]]]))[0].ravel()]
    ['1.00', '-0.03', '-0.03', '1.00']

    Source: Ledoit & Wolf 2004; Marrelec et al. 2006, NeuroImage.
    """
    return _run("partial", implementation)(signals, frames_that_count(signals, kept))


def _run(name: str, implementation: str | None) -> Callable[..., Any]:
    return choose({"reference": getattr(reference, name), "chunked": getattr(chunked, name)}, implementation)
