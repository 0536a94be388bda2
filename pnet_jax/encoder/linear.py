"""The linear encoder: the most reliable directions of connectivity fingerprints, in closed form from two R x R statistics."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.encoder.tokens import reference_signals
from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.parcellation.mixture import normalise

RIDGE = 1e-3
DIMENSIONS = 64


class LinearEncoder(NamedTuple):
    """Weights; their shapes know nothing of V, T or TR.

    Attributes:
      references: reference points in MNI mm, `[R, 3]`.
      mean: cohort mean fingerprint f̄, `[R]`, Fisher z.
      projection: P, `[R, D]`.
      reliability: split-half reliability of each component in the cohort, `[D]`.
      decoder: least-squares map from Pᵀ(f − f̄) back to f − f̄, `[D, R]`.
    """

    references: Float[np.ndarray, "R 3"]
    mean: Float[np.ndarray, " R"]
    projection: Float[np.ndarray, "R D"]
    reliability: Float[np.ndarray, " D"]
    decoder: Float[np.ndarray, "D R"]


class Statistics(NamedTuple):
    """Sufficient statistics of pairs of fingerprints; adding two cohorts' statistics gives the statistics of both.

    Attributes:
      pairs: locations in which both references were present, `[R, R]`.
      total: Σ f^A and Σ f^B over locations, `[2, R]`.
      across: Σ f^A f^Bᵀ, `[R, R]`.
      within: Σ (f^A f^Aᵀ + f^B f^Bᵀ) / 2, `[R, R]`.
    """

    pairs: Float[ArrayLike, "R R"]
    total: Float[ArrayLike, "2 R"]
    across: Float[ArrayLike, "R R"]
    within: Float[ArrayLike, "R R"]


@jax.jit
def embed(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    r"""Embedding of every location.

    .. math:: z_v = \operatorname{normalise}\big(P^\top (f_v - \bar f_s)\big)

    with :math:`\bar f_s` the *scan's own* mean fingerprint: a scan's global signal moves every fingerprint by about the same
    vector, which a cohort mean does not know.

    Args:
      encoder: weights.
      y: signals, `[V, T]`.
      region: reference region of each location (`tokens.nearest_reference`), `[V]`.
      kept: frames that count, `[T]`.
      counted: locations that make up the scan (padding and dead locations do not), `[V]`.

    Returns:
      z, rows of length 1, 0 where not counted, `[V, D]`.
    """
    y = jnp.where(counted[:, None], y, 0.0)
    region = jnp.where(counted, region, -1)
    count = len(encoder.references)
    signals = reference_signals(y, region, count)
    # An empty reference has a constant signal, whose fingerprint is 0 for every location: it drops out after centring.
    projected = fingerprint(y, signals, kept=kept, projection=jnp.asarray(encoder.projection))
    weight = counted.astype(y.dtype)
    centred = projected - ((weight @ projected) / jnp.maximum(weight.sum(), 1.0))[None, :]
    return normalise(centred * weight[:, None])


@jax.jit
def halves_statistics(
    y: Float[Array, "V T"],
    region: Int[Array, " V"],
    halves: Bool[Array, "2 T"],
    counted: Bool[Array, " V"],
    references: Float[Array, "R 3"],
) -> Statistics:
    """`Statistics` of one scan, from its two halves, each centred by the scan's own mean fingerprint.

    `total` keeps the mean fingerprint itself, for the model card and the decoder; it plays no part in the projection.
    """
    y = jnp.where(counted[:, None], y, 0.0)
    region = jnp.where(counted, region, -1)
    signals = reference_signals(y, region, len(references))
    present = (jnp.square(signals).sum(1) > 0).astype(y.dtype)
    weight = counted.astype(y.dtype)[:, None]
    size = jnp.maximum(weight.sum(), 1.0)
    a, b = (fingerprint(y, signals, kept=kept, implementation="reference") * weight * present[None, :] for kept in halves)
    total = jnp.stack([a.sum(0), b.sum(0)])
    a, b = a - weight * total[:1] / size, b - weight * total[1:] / size
    return Statistics(
        pairs=size * present[:, None] * present[None, :],
        total=total,
        across=jnp.matmul(a.T, b, precision="highest"),
        within=(jnp.matmul(a.T, a, precision="highest") + jnp.matmul(b.T, b, precision="highest")) / 2,
    )


def add(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of two cohorts together, in float64 on the host."""
    return Statistics(*(np.asarray(x, np.float64) + np.asarray(y, np.float64) for x, y in zip(a, b, strict=True)))


def solve(
    statistics: Statistics, references: Float[np.ndarray, "R 3"], dimensions: int = DIMENSIONS, *, whiten: bool = False
) -> LinearEncoder:
    r"""The encoder of a cohort: the subspace of fingerprints that repeats.

    .. math:: C_{AB} U = U \Lambda, \quad U^\top U = I, \qquad P = U_D

    with :math:`C_{AB}` the symmetric covariance of fingerprints *across* halves, to which noise contributes nothing. P is
    orthonormal, so that embeddings keep the metric of fingerprints. `whiten` gives instead

    .. math::
      C_{AB} U = (C + \varepsilon\, \mathrm{tr}(C) / R\, I)\, U \Lambda, \quad U^\top C U = I, \qquad P = U_D \max(\Lambda, 0)^{1/2}

    where C is the covariance within halves: each component is scaled by how well it repeats *in the cohort*. It wins on cohorts
    like the one it was made from and loses on others (docs/method.md has the table), so it is not the default.

    Args:
      statistics: summed over scans.
      references: reference points in MNI mm, `[R, 3]`.
      dimensions: D; fewer come back where fewer components have a positive reliability.
      whiten: see above.

    Raises:
      ValueError: statistics without any location.
    """
    count = np.asarray(statistics.pairs, np.float64)
    if not count.max() > 0:
        raise ValueError("the linear encoder needs at least one scan with signals near a reference point")
    count = np.maximum(count, 1.0)
    across = np.asarray(statistics.across, np.float64) / count
    across = (across + across.T) / 2
    within = np.asarray(statistics.within, np.float64) / count
    ridge = within + RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    values, directions = scipy.linalg.eigh(across, ridge if whiten else None)
    best = np.argsort(values)[::-1][: min(dimensions, int((values > 0).sum()))]
    directions = directions[:, best]
    reliability = np.einsum("rd,rs,sd->d", directions, across, directions) / np.einsum("rd,rs,sd->d", directions, ridge, directions)
    projection = directions * np.sqrt(values[best]) if whiten else directions
    # Eigenvectors have no sign of their own: the largest entry is made positive, so that equal cohorts give equal weights.
    projection = projection * np.sign(projection[np.abs(projection).argmax(0), np.arange(projection.shape[1])])
    covariance = projection.T @ within @ projection
    decoder = np.linalg.solve(covariance + 1e-9 * np.eye(len(covariance)), projection.T @ within)
    mean = np.asarray(statistics.total, np.float64).sum(0) / (2 * np.maximum(np.diag(count), 1.0))
    return LinearEncoder(*(np.asarray(x, np.float32) for x in (references, mean, projection, reliability, decoder)))
