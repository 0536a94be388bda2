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
# Two answers to the same question, and the scan says which of them fits it (`parcellation.select`).
PROJECTIONS = ("reliable", "whitened")


class LinearEncoder(NamedTuple):
    """Weights; their shapes know nothing of V, T or TR.

    Attributes:
      references: reference points in MNI mm, `[R, 3]`.
      mean: cohort mean fingerprint f̄, `[R]`, Fisher z.
      projections: one P for each name in `PROJECTIONS`, `[G, R, D]`; columns of 0 where a cohort has fewer components.
      reliability: split-half reliability of the components in the cohort, `[G, D]`.
      decoder: least-squares map from the first projection's Pᵀ(f − f̄) back to f − f̄, `[D, R]`.
    """

    references: Float[np.ndarray, "R 3"]
    mean: Float[np.ndarray, " R"]
    projections: Float[np.ndarray, "G R D"]
    reliability: Float[np.ndarray, "G D"]
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
) -> Float[Array, "G V D"]:
    r"""Embedding of every location, under each projection.

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
      z, rows of length 1, 0 where not counted, `[G, V, D]`.
    """
    y = jnp.where(counted[:, None], y, 0.0)
    region = jnp.where(counted, region, -1)
    count = len(encoder.references)
    signals = reference_signals(y, region, count)
    # An empty reference has a constant signal, whose fingerprint is 0 for every location: it drops out after centring.
    both = jnp.concatenate(list(encoder.projections), axis=1)  # [R, G D]: one pass over the fingerprints
    projected = fingerprint(y, signals, kept=kept, projection=both)
    weight = counted.astype(y.dtype)
    centred = projected - ((weight @ projected) / jnp.maximum(weight.sum(), 1.0))[None, :]
    centred = (centred * weight[:, None]).reshape(len(y), len(encoder.projections), -1)
    return normalise(jnp.swapaxes(centred, 0, 1))


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


def solve(statistics: Statistics, references: Float[np.ndarray, "R 3"], dimensions: int = DIMENSIONS) -> LinearEncoder:
    r"""The encoder of a cohort: the subspace of fingerprints that repeats, in two metrics.

    `"reliable"` keeps the metric of fingerprints,

    .. math:: C_{AB} U = U \Lambda, \quad U^\top U = I, \qquad P = U_D

    with :math:`C_{AB}` the symmetric covariance of fingerprints *across* halves, to which noise contributes nothing. `"whitened"`
    scales each component by how well it repeats in the cohort,

    .. math::
      C_{AB} U = (C + \varepsilon\, \mathrm{tr}(C) / R\, I)\, U \Lambda, \quad U^\top C U = I, \qquad P = U_D \max(\Lambda, 0)^{1/2}

    with C the covariance within halves. The second describes scans like the cohort's better and others worse.

    Args:
      statistics: summed over scans.
      references: reference points in MNI mm, `[R, 3]`.
      dimensions: D, at most R.

    Raises:
      ValueError: statistics without any location.
    """
    pairs = np.asarray(statistics.pairs, np.float64)
    if not pairs.max() > 0:
        raise ValueError("the linear encoder needs at least one scan with signals near a reference point")
    pairs = np.maximum(pairs, 1.0)
    across = np.asarray(statistics.across, np.float64) / pairs
    across = (across + across.T) / 2
    within = np.asarray(statistics.within, np.float64) / pairs
    ridge = within + RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    found = [_leading(across, metric, dimensions) for metric in (None, ridge)]
    projections = np.stack([found[0][1], found[1][1] * np.sqrt(found[1][0])])
    energy = np.einsum("grd,rs,gsd->gd", projections, ridge, projections)
    reliability = np.einsum("grd,rs,gsd->gd", projections, across, projections) / np.where(energy > 0, energy, 1)
    first = projections[0]
    decoder = np.linalg.solve(first.T @ within @ first + 1e-9 * np.eye(first.shape[1]), first.T @ within)
    mean = np.asarray(statistics.total, np.float64).sum(0) / (2 * np.maximum(np.diag(pairs), 1.0))
    return LinearEncoder(*(np.asarray(x, np.float32) for x in (references, mean, projections, reliability, decoder)))


def _leading(
    matrix: Float[np.ndarray, "R R"], metric: Float[np.ndarray, "R R"] | None, dimensions: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "R D"]]:
    """The largest D eigenvalues and their vectors, 0 in place of negative ones."""
    values, vectors = scipy.linalg.eigh(matrix, metric)
    best = np.argsort(values)[::-1][:dimensions]
    values, vectors = np.maximum(values[best], 0), vectors[:, best] * (values[best] > 0)
    # Eigenvectors have no sign of their own: the largest entry is made positive, so that equal cohorts give equal weights.
    sign = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return values, vectors * np.where(sign == 0, 1, sign)
