"""The linear encoder: the most reliable directions of connectivity fingerprints, in closed form from two R x R statistics."""

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
OWN_SHARE = 0.8  # of a scan's own covariance in the metric of its embedding; the rest is the identity
ROOT_STEPS = 24  # the smallest eigenvalue is (1 − OWN_SHARE) / D of the trace and grows 2.25-fold a step until it is near 1


class LinearEncoder(NamedTuple):
    """Weights; their shapes know nothing of V, T or TR.

    Attributes:
      references: reference points in MNI mm, `[R, 3]`.
      mean: cohort mean fingerprint f̄, `[R]`, Fisher z.
      projection: P, `[R, D]`; columns of 0 where a cohort has fewer components.
      reliability: split-half reliability of the components in the cohort, `[D]`.
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
    r"""Embedding of every location of one scan.

    .. math::
      z_v = \operatorname{normalise}(M^{-1/2} x_v), \quad x_v = P^\top (f_v - \bar f_s), \quad
      M = s\, \frac{\sum_v x_v x_v^\top}{\sum_v |x_v|^2} + (1 - s) \frac{I}{D}

    with :math:`\bar f_s` the *scan's own* mean fingerprint: a scan's global signal moves every fingerprint by about the same
    vector, which a cohort mean does not know. M takes the scan's own strong directions down: a few of them, often of no
    use for telling neighbouring areas apart, would otherwise decide every angle. What s = .8 gained is in `docs/method.md`.

    Args:
      encoder: weights.
      y: signals, `[V, T]`.
      region: reference region of each location (`tokens.nearest_reference`), `[V]`.
      kept: frames that count, `[T]`.
      counted: locations that make up the scan (padding and dead locations do not), `[V]`.

    Returns:
      z, rows of length 1, 0 where not counted, `[V, D]`. Its axes are the scan's own: angles inside a scan mean something,
      angles between scans do not (`project` for those).
    """
    x = project(encoder, y, region, kept, counted)
    return whiten(x, own_metric(x))


def own_metric(x: Float[Array, "V D"]) -> Float[Array, "D D"]:
    """M of a scan from its components."""
    return shrunk(jnp.matmul(x.T, x, precision="highest"))


def shrunk(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """M from the sum of products over *all* locations: trace 1, shrunk to the identity; a scan of zeros has the identity alone."""
    size, total = len(covariance), jnp.trace(covariance)
    return OWN_SHARE * covariance / jnp.where(total > 0, total, 1.0) + (1 - OWN_SHARE) / size * jnp.eye(size, dtype=covariance.dtype)


def whiten(x: Float[Array, "V D"], metric: Float[Array, "D D"]) -> Float[Array, "V D"]:
    r"""Rows :math:`\operatorname{normalise}(M^{-1/2} x_v)`; the root is symmetric, so that the axes do not turn."""
    return normalise(jnp.matmul(x, _inverse_root(metric), precision="highest"))


@jax.jit
def project(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    r"""The encoder's components of every location, :math:`x_v = P^\top (f_v - \bar f_s)`, on axes that all scans share, `[V, D]`.

    Arguments are those of `embed`.
    """
    return centre(components(encoder, y, region, kept, counted), counted.astype(y.dtype))


def centre(f: Float[Array, "V D"], weight: Float[Array, " V"]) -> Float[Array, "V D"]:
    """Rows without the mean over the locations that count (weight 1); 0 where one does not (weight 0)."""
    weight = weight[:, None]
    # Not as a product: on a CPU that adds up V terms one after another, with several times the rounding of this sum.
    mean = (weight * f).sum(0) / jnp.maximum(weight.sum(), 1.0)
    return (f - mean[None, :]) * weight


def components(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    """What `project` is before the scan's mean is taken out."""
    chex.assert_rank(y, 2)
    chex.assert_shape([region, counted, kept], [y.shape[:1], y.shape[:1], y.shape[1:]])
    chex.assert_type([y, region, counted, kept], [float, int, bool, bool])
    y = jnp.where(counted[:, None], y, 0.0)
    region = jnp.where(counted, region, -1)
    signals = reference_signals(y, region, len(encoder.references))
    # An empty reference has a constant signal, whose fingerprint is 0 for every location: it drops out after centring.
    return fingerprint(y, signals, kept=kept, projection=jnp.asarray(encoder.projection))


def _inverse_root(matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Symmetric inverse square root by coupled Newton–Schulz steps.

    Products only, where `eigh` would have no gradient at equal eigenvalues: components that a cohort lacks are all equal.
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
    r"""The encoder of a cohort: the directions of fingerprints that repeat, scaled by how well they do.

    .. math::
      C_{AB} U = (C + \varepsilon\, \mathrm{tr}(C) / R\, I)\, U \Lambda, \quad U^\top C U = I, \qquad P = U_D \max(\Lambda, 0)^{1/2}

    with :math:`C_{AB}` the symmetric covariance of fingerprints *across* halves, to which noise contributes nothing, and C the one
    within halves.

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
    values, vectors = _leading(across, ridge, dimensions)
    projection = vectors * np.sqrt(values)
    decoder = np.linalg.solve(projection.T @ within @ projection + 1e-9 * np.eye(len(values)), projection.T @ within)
    mean = np.asarray(statistics.total, np.float64).sum(0) / (2 * np.maximum(np.diag(pairs), 1.0))
    return LinearEncoder(*(np.asarray(x, np.float32) for x in (references, mean, projection, values, decoder)))


def _leading(
    matrix: Float[np.ndarray, "R R"], metric: Float[np.ndarray, "R R"], dimensions: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "R D"]]:
    """The largest D eigenvalues and their vectors, 0 in place of negative ones."""
    values, vectors = scipy.linalg.eigh(matrix, metric)
    best = np.argsort(values)[::-1][:dimensions]
    values, vectors = np.maximum(values[best], 0), vectors[:, best] * (values[best] > 0)
    # Eigenvectors have no sign of their own: the largest entry is made positive, so that equal cohorts give equal weights.
    sign = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return values, vectors * np.where(sign == 0, 1, sign)
