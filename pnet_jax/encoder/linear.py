"""Linear encoder: the most reliable directions of connectivity fingerprints, in closed form from two R × R statistics."""

from __future__ import annotations

from typing import NamedTuple

import chex
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
OWN_SHARE = 0.8  # weight of the scan's covariance in the metric of its embedding; the rest is the identity
ROOT_STEPS = 24  # the smallest eigenvalue is (1 − OWN_SHARE) / D of the trace and grows by 2.25 per step until it is close to 1


class LinearEncoder(NamedTuple):
    """Weights of the linear encoder; their shapes do not depend on V, T or TR.

    Attributes:
      references: MNI coordinates of the reference points in mm, `[R, 3]`.
      mean: mean fingerprint f̄ of the cohort in Fisher z, `[R]`.
      projection: projection P, `[R, D]`; columns are 0 if the cohort has fewer components.
      reliability: split-half reliability of the components in the cohort, `[D]`.
      decoder: least-squares map from Pᵀ(f − f̄) to f − f̄, `[D, R]`.
    """

    references: Float[np.ndarray, "R 3"]
    mean: Float[np.ndarray, " R"]
    projection: Float[np.ndarray, "R D"]
    reliability: Float[np.ndarray, " D"]
    decoder: Float[np.ndarray, "D R"]


class Statistics(NamedTuple):
    """Sufficient statistics of pairs of fingerprints, which are additive over scans and cohorts.

    Attributes:
      pairs: number of locations with both references present, `[R, R]`.
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
    r"""Compute the embedding of every location of one scan.

    .. math::
      z_v = \operatorname{normalise}(M^{-1/2} x_v), \quad x_v = P^\top (f_v - \bar f_s), \quad
      M = s\, \frac{\sum_v x_v x_v^\top}{\sum_v |x_v|^2} + (1 - s) \frac{I}{D}

    where :math:`\bar f_s` is the mean fingerprint *of the scan*: the global signal of a scan shifts all fingerprints by about the same
    vector, which a cohort mean cannot remove. M down-weights the dominant directions of the scan, which often do not distinguish
    neighbouring areas but would otherwise dominate all angles. For the gain with s = 0.8, see `docs/method.md`.

    Args:
      encoder: weights of the encoder.
      y: signals, `[V, T]`.
      region: reference region of each location (`tokens.nearest_reference`), `[V]`.
      kept: mask of the included frames, `[T]`.
      counted: mask of the included locations, without padding and constant signals, `[V]`.

    Returns:
      Embeddings z with rows of unit length, 0 if not counted, `[V, D]`. The axes are specific to the scan: only angles within a scan are
      meaningful; use `project` for comparisons between scans.
    """
    x = project(encoder, y, region, kept, counted)
    return whiten(x, own_metric(x))


def own_metric(x: Float[Array, "V D"]) -> Float[Array, "D D"]:
    """Return the metric M of a scan from its components, `[D, D]`."""
    return shrunk(jnp.matmul(x.T, x, precision="highest"))


def shrunk(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Return M from the sum of products over *all* locations: trace 1, shrunk to the identity, which is the limit for a scan of zeros."""
    size, total = len(covariance), jnp.trace(covariance)
    return OWN_SHARE * covariance / jnp.where(total > 0, total, 1.0) + (1 - OWN_SHARE) / size * jnp.eye(size, dtype=covariance.dtype)


def whiten(x: Float[Array, "V D"], metric: Float[Array, "D D"]) -> Float[Array, "V D"]:
    r"""Return the rows :math:`\operatorname{normalise}(M^{-1/2} x_v)`; the symmetric root does not rotate the axes."""
    return normalise(jnp.matmul(x, _inverse_root(metric), precision="highest"))


@jax.jit
def project(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    r"""Compute the components of every location, :math:`x_v = P^\top (f_v - \bar f_s)`, on axes shared by all scans, `[V, D]`.

    For the arguments, see `embed`.
    """
    return centre(components(encoder, y, region, kept, counted), counted.astype(y.dtype))


def centre(f: Float[Array, "V D"], weight: Float[Array, " V"]) -> Float[Array, "V D"]:
    """Centre the rows over the included locations (weight 1); 0 for excluded locations (weight 0)."""
    weight = weight[:, None]
    # Not a matrix product, which sums V terms sequentially on a CPU, with several times the rounding error of this sum.
    mean = (weight * f).sum(0) / jnp.maximum(weight.sum(), 1.0)
    return (f - mean[None, :]) * weight


def components(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    """Return the components of `project` before centring over the scan."""
    chex.assert_rank(y, 2)
    chex.assert_shape([region, counted, kept], [y.shape[:1], y.shape[:1], y.shape[1:]])
    chex.assert_type([y, region, counted, kept], [float, int, bool, bool])
    y = jnp.where(counted[:, None], y, 0.0)
    region = jnp.where(counted, region, -1)
    signals = reference_signals(y, region, len(encoder.references))
    # An empty reference has a constant signal, whose fingerprint is 0 for every location and drops out after centring.
    return fingerprint(y, signals, kept=kept, projection=jnp.asarray(encoder.projection))


def _inverse_root(matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Compute the symmetric inverse square root by coupled Newton–Schulz steps.

    These need only products; `eigh` has no gradient at equal eigenvalues, which occur if a cohort lacks components.
    """
    one, scale = jnp.eye(len(matrix), dtype=matrix.dtype), jnp.trace(matrix)

    def step(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        root, inverse = pair
        turn = 1.5 * one - 0.5 * jnp.matmul(inverse, root, precision="highest")
        return (jnp.matmul(root, turn, precision="highest"), jnp.matmul(turn, inverse, precision="highest")), None

    return jax.lax.scan(step, (matrix / scale, one), length=ROOT_STEPS)[0][1] / jnp.sqrt(scale)


@jax.jit
def halves_statistics(
    y: Float[Array, "V T"],
    region: Int[Array, " V"],
    halves: Bool[Array, "2 T"],
    counted: Bool[Array, " V"],
    references: Float[Array, "R 3"],
) -> Statistics:
    """Compute the `Statistics` of one scan from its two halves, each centred by its mean fingerprint.

    `total` contains the mean fingerprints for the model card; it does not affect the projection.
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
    """Add the statistics of two cohorts, in float64 on the host."""
    return Statistics(*(np.asarray(x, np.float64) + np.asarray(y, np.float64) for x, y in zip(a, b, strict=True)))


def solve(statistics: Statistics, references: Float[np.ndarray, "R 3"], dimensions: int = DIMENSIONS) -> LinearEncoder:
    r"""Fit the encoder of a cohort: the most reliable directions of fingerprints, scaled by their reliability.

    .. math::
      C_{AB} U = (C + \varepsilon\, \mathrm{tr}(C) / R\, I)\, U \Lambda, \quad U^\top C U = I, \qquad P = U_D \max(\Lambda, 0)^{1/2}

    where :math:`C_{AB}` is the symmetrised covariance of fingerprints *across* halves, to which noise does not contribute, and C is the
    covariance within halves.

    Args:
      statistics: statistics summed over scans.
      references: MNI coordinates of the reference points in mm, `[R, 3]`.
      dimensions: number of dimensions D, at most R.

    Returns:
      The encoder.

    Raises:
      ValueError: If the statistics contain no location.
    """
    pairs = np.asarray(statistics.pairs, np.float64)
    if not pairs.max() > 0:
        raise ValueError("fitting the linear encoder needs at least one scan with signals near a reference point")
    pairs = np.maximum(pairs, 1.0)
    across = np.asarray(statistics.across, np.float64) / pairs
    across = (across + across.T) / 2
    within = np.asarray(statistics.within, np.float64) / pairs
    ridge = within + RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = _leading(across, ridge, dimensions)
    projection = vectors * np.sqrt(values)
    decoder = np.linalg.solve(projection.T @ within @ projection + 1e-9 * np.eye(len(values)), projection.T @ within)
    mean = np.asarray(statistics.total, np.float64).sum(0) / (2 * np.maximum(np.diag(pairs), 1.0))
    return LinearEncoder(*(np.asarray(x, np.float32) for x in (references, mean, projection, values, decoder)))


def _leading(
    matrix: Float[np.ndarray, "R R"], metric: Float[np.ndarray, "R R"], dimensions: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "R D"]]:
    """Return the largest D eigenvalues with their eigenvectors; negative eigenvalues and their eigenvectors are set to 0."""
    values, vectors = scipy.linalg.eigh(matrix, metric)
    best = np.argsort(values)[::-1][:dimensions]
    values, vectors = np.maximum(values[best], 0), vectors[:, best] * (values[best] > 0)
    # The sign of eigenvectors is arbitrary; the largest entry is made positive for reproducibility.
    sign = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return values, vectors * np.where(sign == 0, 1, sign)
