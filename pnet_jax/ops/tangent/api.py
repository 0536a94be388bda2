"""Public functions of the op."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import widen
from pnet_jax.ops.tangent import chunked, reference

_TANGENT = {"reference": reference.tangent, "chunked": chunked.tangent}
_LOGS = {"reference": reference.logs, "chunked": chunked.logs}


def tangent(
    covariances: Float[Array, "S K K"], mean: Float[Array, "K K"] | None = None, *, implementation: str | None = None
) -> tuple[Float[Array, "S K K"], Float[Array, "K K"]]:
    r"""Compute the tangent vectors of covariances at their geometric mean, as symmetric matrices.

    .. math:: L_s = \log(G^{-1/2} \Sigma_s G^{-1/2}), \quad \sum_s L_s = 0

    In a prediction study, estimate the mean from the training subjects only and pass it as `mean` for the test subjects.

    Args:
      covariances: symmetric positive definite matrices, e.g. from `ops.partial.ledoit_wolf`, `[S, K, K]`.
      mean: reference matrix G, `[K, K]`; default: the geometric mean of the covariances.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      L `[S, K, K]`, without unit, and G `[K, K]` in the unit of the covariances, both float32. The result of a covariance that is NaN or
      not positive definite is undefined and, without `mean`, so are the mean and all results.

    Raises:
      ValueError: If shapes do not agree, `covariances` is not floating point, or the implementation is unknown.

    Memory: four arrays of the size of the covariances. With `chunked`, reverse-mode gradients are available only if `mean` is given.

    >>> found, mean = tangent(jnp.array([[[1.0]], [[4.0]]]))
    >>> mean.round(3).tolist(), [f"{x:.2f}" for x in found.ravel()]
    ([[2.0]], ['-0.69', '0.69'])

    Source: Varoquaux et al. 2010, MICCAI; Fletcher & Joshi 2007, Signal Processing; Newton steps: Rentmeesters & Absil 2011, EUSIPCO.
    """
    if covariances.ndim != 3 or covariances.shape[1] != covariances.shape[2] or not len(covariances):
        raise ValueError(f"covariances must be [subjects, parcels, parcels] with at least one subject, got shape {covariances.shape}")
    if not jnp.issubdtype(covariances.dtype, jnp.floating):
        raise ValueError(f"covariances must be floating point, got {covariances.dtype}")
    if mean is None:
        return choose(_TANGENT, implementation)(widen(covariances))
    if mean.shape != covariances.shape[1:]:
        raise ValueError(f"mean must have shape {covariances.shape[1:]} (parcels, parcels), got {mean.shape}")
    covariances, mean = widen(covariances), jnp.asarray(mean)
    return choose(_LOGS, implementation)(covariances, mean.astype(covariances.dtype)), mean


def geometric_mean(covariances: Float[Array, "S K K"], *, implementation: str | None = None) -> Float[Array, "K K"]:
    r"""Compute the geometric mean of covariances on the manifold of symmetric positive definite matrices.

    .. math:: G = \arg\min_X \sum_s \lVert \log(X^{-1/2} \Sigma_s X^{-1/2}) \rVert^2

    Args:
      covariances: symmetric positive definite matrices, `[S, K, K]`.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      The geometric mean G in the unit of the covariances, `[K, K]`.

    Raises:
      ValueError: As for `tangent`.

    Memory: as for `tangent`.

    >>> geometric_mean(jnp.array([[[1.0]], [[4.0]]])).round(3).tolist()
    [[2.0]]

    Source: as for `tangent`.
    """
    return tangent(covariances, implementation=implementation)[1]
