"""Public function of the op."""

from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import frames_that_count
from pnet_jax.ops.distance_correlation import chunked, reference

_IMPLEMENTATIONS = {"reference": reference.distance_correlation, "chunked": chunked.distance_correlation}


def distance_correlation(
    signals: Float[Array, "S K T"],
    kept: Bool[Array, "S T"] | None = None,
    *,
    bias_corrected: bool = False,
    implementation: str | None = None,
) -> Float[Array, "S K K"]:
    r"""Compute the distance correlations between the parcel signals of each subject; they are 0 only for independent signals.

    .. math::
      \mathrm{dCor}^2_{kl} = \frac{\sum_{ij} A^k_{ij} A^l_{ij}}{\sqrt{\sum_{ij} (A^k_{ij})^2 \sum_{ij} (A^l_{ij})^2}}, \quad
      A_{ij} = a_{ij} - \bar a_{i\cdot} - \bar a_{\cdot j} + \bar a_{\cdot\cdot}, \quad a_{ij} = |x_i - x_j|

    With few frames, the distance correlation of independent signals is well above 0. The bias-corrected estimate is centred so that
    its expectation is 0 for independent signals; it estimates the square and can be negative.

    Args:
      signals: parcel signals, any unit, `[S, K, T]`; bfloat16 and float16 are converted to float32.
      kept: mask of the included frames, `[S, T]`; default: all. Values in excluded frames are ignored.
      bias_corrected: return the bias-corrected estimate of dCor² instead of dCor; needs at least 4 frames.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      dCor in [0, 1], or the bias-corrected dCor² in [−1, 1], with diagonal 1, `[S, K, K]`, float32. Rows and columns of a constant signal
      are NaN; with `chunked` the gradients are 0.

    Raises:
      ValueError: If there are too few frames, shapes do not agree, `signals` is not floating point, or the implementation is unknown.

    Memory: the result plus a few times `[K, 1024]` (`chunked`), or `[S, K, T, T]` (`reference`). Time grows with K²T².

    >>> import jax.numpy as jnp
    >>> line = jnp.linspace(-1.0, 1.0, 9)
    >>> [f"{x:.2f}" for x in distance_correlation(jnp.stack([line, -line, line**2])[None])[0, 0]]
    ['1.00', '1.00', '0.50']

    Source: Székely, Rizzo & Bakirov 2007, Annals of Statistics; Székely & Rizzo 2013, Journal of Multivariate Analysis.
    """
    weight = frames_that_count(signals, kept)
    if bias_corrected and signals.shape[-1] < 4:
        raise ValueError(f"the bias-corrected estimate needs at least 4 frames, got {signals.shape[-1]}")
    return choose(_IMPLEMENTATIONS, implementation)(signals, weight, bias_corrected)
