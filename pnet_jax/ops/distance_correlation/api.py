"""The face of the op."""

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
    r"""Distance correlation between the parcel signals of each subject: 0 only for independent signals, linear relation or not.

    .. math::
      \mathrm{dCor}^2_{kl} = \frac{\sum_{ij} A^k_{ij} A^l_{ij}}{\sqrt{\sum_{ij} (A^k_{ij})^2 \sum_{ij} (A^l_{ij})^2}}, \quad
      A_{ij} = a_{ij} - \bar a_{i\cdot} - \bar a_{\cdot j} + \bar a_{\cdot\cdot}, \quad a_{ij} = |x_i - x_j|

    Two independent signals of few frames have a distance correlation well above 0. The bias-corrected form centres so that
    the expectation is 0; it estimates the square, and may be below 0.

    Args:
      signals: any unit, `[S, K, T]`; bfloat16 and float16 are read as float32.
      kept: frames that count, `[S, T]`; all if not given. What stands in the other frames is not read.
      bias_corrected: give the bias-corrected estimate of dCor² in place of dCor; needs 4 frames or more.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.

    Returns:
      dCor in [0, 1], or the corrected dCor² in [−1, 1]; diagonal 1; `[S, K, K]` in float32. Rows and columns of a constant signal
      are NaN; with `chunked` its gradients are 0.

    Raises:
      ValueError: too few frames, shapes that do not agree, signals that are no floats, or an unknown implementation.

    Memory: the result plus a few times `[K, 1024]` (`chunked`), or `[S, K, T, T]` (`reference`). Time grows with K²T².

    >>> import jax.numpy as jnp
    >>> line = jnp.linspace(-1.0, 1.0, 9)
    >>> [f"{x:.2f}" for x in distance_correlation(jnp.stack([line, -line, line**2])[None])[0, 0]]
    ['1.00', '1.00', '0.50']

    Source: Székely, Rizzo & Bakirov 2007, Annals of Statistics; Székely & Rizzo 2013, Journal of Multivariate Analysis.
    """
    weight = frames_that_count(signals, kept)
    if bias_corrected and signals.shape[-1] < 4:
        raise ValueError(f"the bias-corrected estimate needs 4 frames or more, got {signals.shape[-1]}")
    return choose(_IMPLEMENTATIONS, implementation)(signals, weight, bias_corrected)
