"""Shrunk edges: empirical Bayes shrinkage towards a group, edge by edge."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

POOLING = 10.0  # weight, in participants, of the mean variances over all edges relative to those of an edge
CLIP = 0.99  # correlations are clipped to this absolute value before the Fisher transform
SMALLEST_SIGNAL = 1e-5  # smallest between-participant variance of Fisher z


class Shrinkage(NamedTuple):
    """Group statistics of each edge in Fisher z; a pytree.

    Attributes:
      mean: mean over the cohort, with diagonal 0, `[K, K]`; NaN if fewer than two participants have the edge.
      signal: between-participant variance τ² of what is stable across recordings, `[K, K]`.
      noise: noise variance of one independent frame, so that s² = noise / n_eff, `[K, K]`.
    """

    mean: Float[Array, "K K"]
    signal: Float[Array, "K K"]
    noise: Float[Array, "K K"]


def fisher(r: Float[Array, "*B K K"]) -> Float[Array, "*B K K"]:
    """Return the Fisher z of correlations, clipped to ±0.99, with diagonal 0; NaN stays NaN off the diagonal."""
    r = jnp.asarray(r, jnp.float32)
    own = jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=bool), r.shape)
    return jnp.where(own, 0.0, jnp.arctanh(jnp.clip(r, -CLIP, CLIP)))


def fit_shrinkage(
    first: Float[Array, "S K K"],
    second: Float[Array, "S K K"],
    n_eff_first: Float[Array, " S"],
    n_eff_second: Float[Array, " S"] | None = None,
    *,
    pooling: float = POOLING,
) -> Shrinkage:
    r"""Estimate the group mean, signal and noise of each edge from two recordings (or two halves of one) of each participant.

    .. math:: m = \tfrac12 \langle z^A + z^B \rangle, \quad
      \tau^2 = \tfrac{S}{S-1} \langle (z^A - m)(z^B - m) \rangle, \quad
      \text{noise} = \Big\langle \frac{(z^A - z^B)^2}{1/n^A + 1/n^B} \Big\rangle

    The noise variance of a recording is inversely proportional to its number of independent frames, so recordings of other lengths than
    the scans to be shrunk can be used.

    Args:
      first: correlations of each participant's first recording, `[S, K, K]`; NaN for absent parcels.
      second: correlations of the second recording, with participants in the same order, `[S, K, K]`.
      n_eff_first: effective number of independent frames, about 2 · bandwidth · duration, `[S]`.
      n_eff_second: the same for the second recordings, `[S]`; default: as for the first.
      pooling: weight, in participants, of the mean variances over all edges relative to those of an edge, which are poorly estimated from
        few participants.

    Returns:
      Group statistics with which to `shrink` the edges of other participants. They must not be applied to the participants to whom they
      were fitted.

    Raises:
      ValueError: If there are fewer than two participants, shapes do not agree, or n_eff is not above 0.

    Memory: a few `[S, K, K]`.

    >>> import jax.numpy as jnp
    >>> pairs = jnp.tanh(jnp.array([[[[0, .2], [.2, 0]], [[0, .6], [.6, 0]]], [[[0, .4], [.4, 0]], [[0, .8], [.8, 0]]]]))
    >>> group = fit_shrinkage(*pairs, n_eff_first=jnp.array([50.0, 50.0]), pooling=0)
    >>> [f"{x[0, 1]:.2f}" for x in group]
    ['0.50', '0.06', '1.00']

    Source: Efron & Morris 1973; for connectomes Mejia et al. 2018, NeuroImage 172.
    """
    n_first, n_second = checked_pairs(first, second, n_eff_first, n_eff_second, ndim=3)
    return _fit(fisher(first), fisher(second), n_first, n_second, jnp.float32(pooling))


@jax.jit
def shrink(r: Float[Array, "K K"], group: Shrinkage, n_eff: float | Float[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    r"""Compute the posterior mean and standard deviation of one participant's edges.

    .. math:: \hat z = m + B (z - m), \quad B = \frac{\tau^2}{\tau^2 + s^2}, \quad
      \mathrm{sd}^2 = \tau^2 (1 - B), \quad s^2 = \text{noise} / n_\mathrm{eff}

    Edges of long recordings are shrunk little, and those of short ones tend to the group mean. Use the result for description and
    identification, not for tests between groups; see `case_control_layer`.

    Args:
      r: correlations, `[K, K]`.
      group: group statistics fitted by `fit_shrinkage` to other participants.
      n_eff: effective number of independent frames of this recording.

    Returns:
      Correlations with diagonal 1, and their standard deviation *in Fisher z* with diagonal 0, `[K, K]` each; NaN if r or the group mean
      is NaN.
    """
    z = fisher(r)
    spread = group.noise / jnp.asarray(n_eff, jnp.float32)
    weight = group.signal / (group.signal + spread)
    return correlations(group.mean + weight * (z - group.mean)), _blank(jnp.sqrt(group.signal * (1 - weight)), z)


def correlations(z: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Transform Fisher z back to r with diagonal 1; the diagonal of a parcel without edges is NaN."""
    own = jnp.eye(len(z), dtype=bool)
    absent = jnp.all(jnp.isnan(z) | own, axis=1) & (len(z) > 1)
    return jnp.where(own, jnp.where(absent, jnp.nan, 1.0)[:, None], jnp.tanh(z))


def checked_pairs(
    first: Float[Array, "S *V K K"],
    second: Float[Array, "S *V K K"],
    n_eff_first: Float[Array, " S"],
    n_eff_second: Float[Array, " S"] | None,
    *,
    ndim: int,
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Check the shapes of pairs of recordings, and return their n_eff as arrays, `[S]` each."""
    shapes = np.shape(first), np.shape(second)
    if shapes[0] != shapes[1] or len(shapes[0]) != ndim or shapes[0][-1] != shapes[0][-2]:
        raise ValueError(f"expected two arrays of equal shape [S, {'' if ndim == 3 else 'views, '}K, K], got {shapes[0]} and {shapes[1]}")
    if shapes[0][0] < 2:
        raise ValueError(f"a group needs at least 2 participants, got {shapes[0][0]}")
    n_eff_second = n_eff_first if n_eff_second is None else n_eff_second
    for name, n_eff in (("n_eff_first", n_eff_first), ("n_eff_second", n_eff_second)):
        if np.shape(n_eff) != shapes[0][:1] or not (np.asarray(n_eff) > 0).all():
            raise ValueError(f"{name}: expected {shapes[0][0]} numbers above 0, one per participant, got {n_eff}")
    return jnp.asarray(n_eff_first, jnp.float32), jnp.asarray(n_eff_second, jnp.float32)


@jax.jit
def _fit(
    a: Float[Array, "S K K"], b: Float[Array, "S K K"], n_a: Float[Array, " S"], n_b: Float[Array, " S"], pooling: Float[Array, ""]
) -> Shrinkage:
    there = jnp.isfinite(a) & jnp.isfinite(b)
    count = jnp.sum(there, axis=0, dtype=jnp.float32)

    def mean(values: Float[Array, "S K K"]) -> Float[Array, "K K"]:
        total = jnp.sum(jnp.where(there, values, 0.0), axis=0)
        return jnp.where(count > 1, total / jnp.maximum(count, 1), jnp.nan)

    def pooled(variance: Float[Array, "K K"]) -> Float[Array, "K K"]:
        everywhere = jnp.nanmean(jnp.where(jnp.eye(len(variance), dtype=bool), jnp.nan, variance))
        return (count * variance + pooling * everywhere) / (count + pooling)

    centre = mean((a + b) / 2)
    # The mean is estimated from the same participants, which costs one degree of freedom.
    unbiased = count / jnp.maximum(count - 1, 1)
    signal = jnp.maximum(pooled(mean((a - centre[None]) * (b - centre[None])) * unbiased), SMALLEST_SIGNAL)
    noise = pooled(mean(jnp.square(a - b) / (1 / n_a + 1 / n_b)[:, None, None]))
    return Shrinkage(centre, signal, noise)


def _blank(sd: Float[Array, "K K"], z: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return jnp.where(jnp.eye(len(z), dtype=bool), 0.0, jnp.where(jnp.isnan(z), jnp.nan, sd))
