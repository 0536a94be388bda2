"""Public function of the op."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import wide
from pnet_jax.ops.fingerprint import chunked, reference

_IMPLEMENTATIONS = {"reference": reference.fingerprint, "chunked": chunked.fingerprint}


def fingerprint(
    y: Float[Array, "V T"],
    references: Float[Array, "R T"],
    *,
    kept: Bool[Array, " T"] | None = None,
    mean: Float[Array, " R"] | None = None,
    projection: Float[Array, "R D"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "V D"]:
    r"""Compute the connectivity fingerprint of each location: its correlations with the reference signals of the same scan.

    .. math:: f_{vj} = \operatorname{artanh}(\operatorname{clip}(r(y_v, r_j), \pm .99)), \qquad z_v = P^\top (f_v - \bar f)

    Args:
      y: signals, any unit, float32 or bfloat16 (sums are float32 for both), `[V, T]`.
      references: reference signals, any unit, `[R, T]`; the correlation with a constant reference is 0.
      kept: mask of the included frames, `[T]`; default: all.
      mean: mean fingerprint f̄, subtracted before the projection, `[R]`; default: 0.
      projection: projection matrix P, `[R, D]`; default: the identity, so that D = R.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Centred and projected Fisher z (no unit), `[V, D]`. The correlations of a constant location are 0.

    Raises:
      ValueError: If shapes do not agree or the implementation is unknown.

    Memory: the result plus the fingerprints of 2048 locations (`chunked`), or `[V, R]` (`reference`).

    >>> y = jnp.array([[1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 1.0, -1.0]])
    >>> [f"{z:.2f}" for z in fingerprint(y, jnp.array([[2.0, 1.0, 2.0, 1.0]]))[:, 0]]
    ['-0.48', '2.65']

    Source: connectivity fingerprints as location features, e.g. Passingham et al. 2002; Fisher 1915 for z.
    """
    if y.ndim != 2 or references.ndim != 2 or y.shape[1] != references.shape[1]:
        raise ValueError(f"y must be [V, T] and references [R, T] with the same T, got {y.shape} and {references.shape}")
    frames, count = y.shape[1], references.shape[0]
    if kept is not None and kept.shape != (frames,):
        raise ValueError(f"kept must have shape ({frames},), got {kept.shape}")
    if mean is not None and mean.shape != (count,):
        raise ValueError(f"mean must have shape ({count},), got {mean.shape}")
    if projection is not None and (projection.ndim != 2 or projection.shape[0] != count):
        raise ValueError(f"projection must have shape ({count}, D), got {projection.shape}")
    chex.assert_type([y, references], float, exception_type=ValueError, custom_message="y and references must be floating point")
    sums = wide(y)
    weight = jnp.ones(frames, sums) if kept is None else kept.astype(sums)
    centre = jnp.zeros(count, sums) if mean is None else mean.astype(sums)
    return choose(_IMPLEMENTATIONS, implementation)(y, references, weight, centre, projection)
