"""Guided edges: posterior estimates from several views of one scan, in edge space and in the eigenmodes of the group."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import nnls

from pnet_jax.edges.shrinkage import POOLING, checked_pairs, correlations, fisher

SMALLEST = 1e-3  # smallest variance in any direction of the views, relative to the mean variance of a view
SUM_COUNTS = 1e3  # weight of the constraint that weights sum to 1
BLOCK = 16  # number of participants whose matrices are rotated at once


class ViewMoments(NamedTuple):
    """Covariances of the P views of each edge, or of each pair of modes.

    Attributes:
      signal: between-participant covariance of what is stable across recordings, `[K, K, P, P]`.
      noise: covariance of the noise of one independent frame, `[K, K, P, P]`.
    """

    signal: Float[Array, "K K P P"]
    noise: Float[Array, "K K P P"]


class Guide(NamedTuple):
    """Moments learned from a cohort that guide the edges of other participants; a pytree.

    Attributes:
      mean: group mean Fisher z of each of the P views, `[P, K, K]`; NaN for edges that no participant has.
      modes: eigenvectors of the group mean correlations, `[K, K]`.
      edges: moments of the edges.
      pairs: moments of the pairs of modes.
      weights: weights of the estimates, which sum to 1: in edges and in modes from view 0, then from views 0 and 1, …; one row for each
        number of views that a participant may have, `[P, 2 P]`.
      scale: factor that calibrates the posterior variance to the errors in held-out participants, for each number of views, `[P]`.
    """

    mean: Float[Array, "P K K"]
    modes: Float[Array, "K K"]
    edges: ViewMoments
    pairs: ViewMoments
    weights: Float[Array, "P 2P"]
    scale: Float[Array, " P"]


def fit_guided(
    first: Float[Array, "S P K K"],
    second: Float[Array, "S P K K"],
    n_eff_first: Float[Array, " S"],
    n_eff_second: Float[Array, " S"] | None = None,
    *,
    pooling: float = POOLING,
) -> Guide:
    r"""Learn the guide from two recordings (or two halves of one) of each participant.

    Every edge has P views: view 0 is the raw edge to be estimated, and others are further estimates from the same frames
    (`whitened`). Deviations :math:`d` from the group mean are Gaussian, with a covariance T that is stable across recordings and a noise
    covariance N / n_eff:

    .. math:: T = \tfrac{S}{S-1} \langle d^A {d^B}^\top \rangle_\mathrm{sym}, \qquad
      N = \Big\langle \frac{(d^A - d^B)(d^A - d^B)^\top}{1/n^A + 1/n^B} \Big\rangle

    These moments are estimated for each edge, and for each pair of the group's modes U from :math:`U^\top d\, U`, because deviations are
    smooth over the network and the noise of correlations is nearly uncorrelated between modes. The weights of the estimates from different
    numbers of views, in edges and in modes, are those that best predict the other recordings of held-out participants, in two folds; the
    moments of few participants would not reveal that a view is uninformative about the raw edges. Nothing else is learned, so a few dozen
    participants are enough. The method makes no assumption about the locations, order or number of parcels.

    Args:
      first: correlations of the first recordings, with the raw ones as view 0, `[S, P, K, K]`; NaN for absent parcels.
      second: correlations of the second recordings, with participants in the same order, `[S, P, K, K]`.
      n_eff_first: effective number of independent frames in the raw band, about 2 · bandwidth · duration, `[S]`.
      n_eff_second: the same for the second recordings, `[S]`; default: as for the first.
      pooling: weight, in participants, of the mean of T and N over all edges relative to the estimate of an edge.

    Returns:
      The guide for `guide`. It must not be applied to participants to whom it was fitted.

    Raises:
      ValueError: If there are fewer than four participants, shapes do not agree, n_eff is not above 0, or fewer than two participants in a
        fold have a parcel.

    Memory: about six times one of the inputs.

    >>> import numpy as np
    >>> lasting, passing = np.random.default_rng(0).normal(size=(40, 1, 1)), np.random.default_rng(1).normal(size=(2, 40, 2, 1, 1))
    >>> z = 0.2 * lasting[None, :, None] + np.array([0.2, 0.1]).reshape(2, 1, 1) * passing  # the second view has less noise
    >>> first, second = np.tanh(z * (1 - np.eye(3))).astype(np.float32)
    >>> taught = fit_guided(first, second, np.full(40, 50.0))
    >>> edges, sd = guide(first[0], taught, 50.0)
    >>> edges.shape, bool(sd[0, 1] < 0.2)
    ((3, 3), True)

    Source: Efron & Morris 1973, multivariate; noise of correlations: Wishart theory.
    """
    n_first, n_second = checked_pairs(first, second, n_eff_first, n_eff_second, ndim=4)
    if len(n_first) < 4:
        raise ValueError(f"a guide needs at least 4 participants, got {len(n_first)}")
    z = fisher(first), fisher(second)
    order = np.arange(len(n_first))
    views = z[0].shape[1]
    gram, right = np.zeros((2 * views,) * 2), np.zeros(2 * views)
    wanted, expected = np.zeros(views), np.zeros(views)
    folds = []
    for fold in (0, 1):
        fit, here = np.flatnonzero(order % 2 != fold), np.flatnonzero(order % 2 == fold)
        folds.append((here, _fit(z[0][fit], z[1][fit], n_first[fit], n_second[fit], jnp.float32(pooling))))
    for here, taught in folds:
        sums = _score(z[0][here], z[1][here], n_first[here], n_second[here], taught)
        gram, right = gram + np.asarray(sums[0]), right + np.asarray(sums[1])
    weights = jnp.asarray(np.stack([_weights(gram, right, 2 * known) for known in range(1, views + 1)]), jnp.float32)
    for here, taught in folds:
        for known in range(1, views + 1):
            error, variance = _spread(
                z[0][here][:, :known], z[1][here][:, :known], n_first[here], n_second[here], taught._replace(weights=weights)
            )
            wanted[known - 1] += error
            expected[known - 1] += variance
    scale = jnp.asarray(np.clip(wanted / np.maximum(expected, 1e-12), 0.1, 10.0), jnp.float32)
    return _fit(*z, n_first, n_second, jnp.float32(pooling))._replace(weights=weights, scale=scale)


def _weights(gram: Float[np.ndarray, "n n"], right: Float[np.ndarray, " n"], first: int) -> Float[np.ndarray, " n"]:
    """Return the non-negative weights of the first estimates that predict best; they sum to 1, so that the raw edges are the limit."""
    level = max(float(np.trace(gram)), 1e-12)
    root = np.linalg.cholesky(gram[:first, :first] / level + 1e-6 * np.eye(first))
    rows = np.concatenate([root.T, np.full((1, first), SUM_COUNTS)])
    wanted = np.append(np.linalg.solve(root, right[:first] / level), SUM_COUNTS)
    found = np.zeros(len(right))
    found[:first] = nnls(rows, wanted)[0]
    return found / found.sum()


@jax.jit
def guide(views: Float[Array, "P K K"], taught: Guide, n_eff: float | Float[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    r"""Compute the posterior mean and standard deviation of one participant's raw edges, given every view of them.

    .. math:: \hat z = m + \sum_{p = 1}^P w_p\, E_p(d) + w'_p\, U\, M_p(U^\top d\, U)\, U^\top, \qquad
      E_p, M_p:\; d_{kl} \mapsto \big[T_{kl} (T_{kl} + N_{kl} / n_\mathrm{eff})^{-1}\big]_{0 \cdot}\, d_{kl}
      \text{ of the first } p \text{ views}

    The estimate tends to the raw edge as n_eff grows, whatever the other views, and to the group mean as n_eff tends to 0. Use it for
    description and identification only: patients are shrunk towards the participants to whom the guide was fitted, see
    `case_control_layer`.

    Args:
      views: correlations, the raw ones first, `[P, K, K]`; the first views of the guide, in its order, are enough.
      taught: guide learned by `fit_guided` from other participants.
      n_eff: effective number of independent frames of this recording.

    Returns:
      Correlations with diagonal 1, and their standard deviation *in Fisher z* with diagonal 0, `[K, K]` each; NaN if the raw edge or the
      group mean is NaN.

    Raises:
      ValueError: If there are more views than in the guide.

    Memory: a few `[K, K, P, P]`. For an example, see `fit_guided`.
    """
    known = taught.mean.shape[0]
    if views.ndim != 3 or not 1 <= len(views) <= known:
        raise ValueError(f"expected 1 to {known} views of shape [P, K, K], the raw one first, got an array of shape {views.shape}")
    z = fisher(views)
    d = z - taught.mean[: len(views)]
    mean, variance = _posterior(d, taught, jnp.asarray(n_eff, jnp.float32))
    own = jnp.eye(d.shape[-1], dtype=bool)
    edges = jnp.where(jnp.isnan(d[0]), jnp.nan, taught.mean[0] + mean)
    sd = jnp.where(jnp.isnan(d[0]), jnp.nan, jnp.sqrt(taught.scale[len(views) - 1] * variance))
    return correlations(edges), jnp.where(own, 0.0, sd)


def _posterior(d: Float[Array, "P K K"], taught: Guide, n_eff: Float[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    """Return the posterior mean and variance of the raw deviation; missing values count as zero deviation."""
    weights = taught.weights[len(d) - 1, : 2 * len(d)]
    return tuple(jnp.tensordot(weights, values, axes=1, precision="highest") for values in _estimates(d, taught, n_eff))  # type: ignore[return-value]


def _estimates(d: Float[Array, "P K K"], taught: Guide, n_eff: Float[Array, ""]) -> tuple[Float[Array, "2P K K"], Float[Array, "2P K K"]]:
    """Return posterior means and variances, in edges and in modes, from the first view, from the first two, and so on."""
    d, u = jnp.nan_to_num(d), taught.modes
    turned = _rotate(d, u)
    means, variances = [], []
    for views in range(1, len(d) + 1):
        by_edge, own = _linear(d[:views], taught.edges, n_eff)
        by_mode, spread = _linear(turned[:views], taught.pairs, n_eff)
        means += [by_edge, _rotate(by_mode, u.T)]
        # Modes are treated as independent; products of the loadings of different eigenvectors nearly cancel.
        variances += [own, _rotate(spread, jnp.square(u).T)]
    return jnp.stack(means), jnp.stack(variances)


def _linear(d: Float[Array, "P K K"], moments: ViewMoments, n_eff: Float[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    """Return the posterior mean and variance of view 0, independently for each element."""
    views = d.shape[0]
    signal, noise = moments.signal[..., :views, :views], moments.noise[..., :views, :views]
    target = signal[..., 0]  # [K, K, P]
    weight = _solve(signal + noise / n_eff, target)
    mean = jnp.sum(weight * jnp.moveaxis(d, 0, -1), axis=-1)
    return mean, jnp.maximum(target[..., 0] - jnp.sum(weight * target, axis=-1), 0.0)


def _solve(matrix: Float[Array, "K K P P"], right: Float[Array, "K K P"]) -> Float[Array, "K K P"]:
    """Solve for all elements at once by Gaussian elimination; P is small and matrices are positive definite, so no pivoting is needed."""
    size = right.shape[-1]
    rows = [[matrix[..., i, j] for j in range(size)] + [right[..., i]] for i in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [below - factor * above for below, above in zip(rows[j], rows[i], strict=True)]
    found: list[Float[Array, "K K"]] = [right[..., 0]] * size
    for i in reversed(range(size)):
        known = sum((rows[i][j] * found[j] for j in range(i + 1, size)), jnp.zeros_like(right[..., 0]))
        found[i] = (rows[i][size] - known) / rows[i][i]
    return jnp.stack(found, axis=-1)


def _rotate(d: Float[Array, "*B K K"], u: Float[Array, "K K"]) -> Float[Array, "*B K K"]:
    return jnp.einsum("ki,...kl,lj->...ij", u, d, u, precision="highest", optimize="optimal")


def _fit(
    a: Float[Array, "S P K K"], b: Float[Array, "S P K K"], n_a: Float[Array, " S"], n_b: Float[Array, " S"], pooling: Float[Array, ""]
) -> Guide:
    mean = _mean(a, b)
    # Decompositions run on the host: many of them in one compiled program with large products hung on two cores (K = 419).
    modes = np.linalg.eigh(np.nan_to_num(np.asarray(correlations(mean[0]))))[1]
    guide = _fit_in_modes(a, b, n_a, n_b, pooling, mean, jnp.asarray(modes))
    edges, pairs = (ViewMoments(*(jnp.asarray(_positive(np.asarray(part))) for part in moments)) for moments in (guide.edges, guide.pairs))
    return guide._replace(edges=edges, pairs=pairs)


@jax.jit
def _mean(a: Float[Array, "S P K K"], b: Float[Array, "S P K K"]) -> Float[Array, "P K K"]:
    there = jnp.isfinite(a) & jnp.isfinite(b)
    count = jnp.sum(there, axis=0, dtype=jnp.float32)
    total = jnp.sum(jnp.where(there, (a + b) / 2, 0.0), axis=0)
    return jnp.where(count > 1, total / jnp.maximum(count, 1), jnp.nan)


@jax.jit
def _fit_in_modes(
    a: Float[Array, "S P K K"],
    b: Float[Array, "S P K K"],
    n_a: Float[Array, " S"],
    n_b: Float[Array, " S"],
    pooling: Float[Array, ""],
    mean: Float[Array, "P K K"],
    modes: Float[Array, "K K"],
) -> Guide:
    there = jnp.isfinite(a) & jnp.isfinite(b)
    count = jnp.sum(there, axis=0, dtype=jnp.float32)
    da, db = jnp.nan_to_num(a - mean[None]), jnp.nan_to_num(b - mean[None])
    turned_a, turned_b = (jax.lax.map(lambda one: _rotate(one, modes), x, batch_size=BLOCK) for x in (da, db))
    views = a.shape[1]
    per_edge = jnp.maximum(count[0], 2)
    return Guide(
        mean,
        modes,
        _moments(da, db, n_a, n_b, per_edge, pooling),
        _moments(turned_a, turned_b, n_a, n_b, jnp.full_like(per_edge, len(n_a)), pooling),
        jnp.full((views, 2 * views), 1 / (2 * views)),
        jnp.ones(views),
    )


def _moments(
    a: Float[Array, "S P K K"],
    b: Float[Array, "S P K K"],
    n_a: Float[Array, " S"],
    n_b: Float[Array, " S"],
    count: Float[Array, "K K"],
    pooling: Float[Array, ""],
) -> ViewMoments:
    """Estimate the moments, shrunk towards the mean over all elements if there are few participants."""

    def product(x: Float[Array, "S P K K"], y: Float[Array, "S P K K"]) -> Float[Array, "K K P P"]:
        return jnp.einsum("spkl,sqkl->klpq", x, y, precision="highest") / count[..., None, None]

    def pooled(values: Float[Array, "K K P P"]) -> Float[Array, "K K P P"]:
        everywhere = jnp.mean(values, axis=(0, 1), keepdims=True)
        participants = count[..., None, None]
        return (participants * values + pooling * everywhere) / (participants + pooling)

    cross = product(a, b) * (count / (count - 1))[..., None, None]
    difference = (a - b) * jax.lax.rsqrt(1 / n_a + 1 / n_b)[:, None, None, None]
    return ViewMoments(pooled((cross + jnp.swapaxes(cross, 2, 3)) / 2), pooled(product(difference, difference)))


def _positive(values: Float[np.ndarray, "K K P P"]) -> Float[np.ndarray, "K K P P"]:
    """Clip the eigenvalues to a small share of the mean variance, because moment estimates need not be positive definite."""
    level = np.trace(values, axis1=2, axis2=3).mean() / values.shape[-1]
    size, direction = np.linalg.eigh(values)
    size = np.maximum(size, SMALLEST * max(float(level), 1e-12)).astype(values.dtype)
    return np.asarray((direction * size[..., None, :]) @ direction.swapaxes(2, 3), values.dtype)


@jax.jit
def _score(
    a: Float[Array, "S P K K"], b: Float[Array, "S P K K"], n_a: Float[Array, " S"], n_b: Float[Array, " S"], taught: Guide
) -> tuple[Float[Array, "2P 2P"], Float[Array, " 2P"]]:
    """Return the Gram matrix of the estimates and their products with the raw edges of the other recording, summed over all."""

    def one(carry, participant):  # type: ignore[no-untyped-def]
        da, db, n_one, n_two = participant
        gram, right = carry
        for d, other, n_eff in ((da, db, n_one), (db, da, n_two)):
            counted = jnp.isfinite(d[0]) & jnp.isfinite(other[0])
            each = jnp.where(counted[None], _estimates(d, taught, n_eff)[0], 0.0)
            gram += jnp.einsum("ikl,jkl->ij", each, each, precision="highest")
            right += jnp.einsum("ikl,kl->i", each, jnp.where(counted, other[0], 0.0), precision="highest")
        return (gram, right), None

    count = 2 * a.shape[1]
    start = (jnp.zeros((count, count)), jnp.zeros(count))
    return jax.lax.scan(one, start, (a - taught.mean[None], b - taught.mean[None], n_a, n_b))[0]


@jax.jit
def _spread(
    a: Float[Array, "S P K K"], b: Float[Array, "S P K K"], n_a: Float[Array, " S"], n_b: Float[Array, " S"], taught: Guide
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of squared errors minus the noise of the predicted recording, and the sum of the predicted variances."""
    noise = taught.edges.noise[..., 0, 0]

    def one(carry, participant):  # type: ignore[no-untyped-def]
        da, db, n_one, n_two = participant
        error, predicted = carry
        for d, other, n_eff, n_other in ((da, db, n_one, n_two), (db, da, n_two, n_one)):
            mean, variance = _posterior(d, taught, n_eff)
            counted = jnp.isfinite(d[0]) & jnp.isfinite(other[0]) & ~jnp.eye(d.shape[-1], dtype=bool)
            error += jnp.sum(jnp.where(counted, jnp.square(other[0] - mean) - noise / n_other, 0.0))
            predicted += jnp.sum(jnp.where(counted, variance, 0.0))
        return (error, predicted), None

    mean = taught.mean[None, : a.shape[1]]
    return jax.lax.scan(one, (jnp.zeros(()), jnp.zeros(())), (a - mean, b - mean, n_a, n_b))[0]
