"""Multivariate connectivity: similarity of parcels as sets of locations, based on their representational geometry.

The frames × frames matrix of a parcel (inner products or distances of its patterns) describes which frames have similar patterns. The
measures in this module correlate these matrices between parcels. The matrices are never stored: tiles of 32 × 32 frames are computed for
all parcels at a time, and their contribution to every pair of parcels is one matrix product.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.edges.registry import register

TILE = 32  # frames
PARCELS_AT_A_TIME = 16

_Tiles = Float[Array, "N V B"]


def cka(
    y: Float[Array | np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int, *, debiased: bool = True
) -> Float[Array, "K K"]:
    r"""Compute the linear centred kernel alignment (CKA) of parcels as sets of locations; without debiasing, it is the RV coefficient.

    .. math::
      \mathrm{CKA}_{kl} = \frac{\langle G^k, G^l \rangle}{\sqrt{\langle G^k, G^k \rangle \langle G^l, G^l \rangle}}, \quad
      G^k_{ij} = \sum_{v \in k} y_{vi} y_{vj}

    with G centred over rows and columns. The measures are invariant to rotation and isotropic scaling of a parcel's signals. The RV
    coefficient of independent parcels is far above 0 and increases with the ratio of locations to frames. The debiased estimate leaves out
    the diagonal of G and uses unbiased centring, so that its expectation is 0 for independent parcels and independent frames. Because
    fMRI frames are autocorrelated, some bias remains.

    Args:
      y: signals of the locations, finite, `[V, T]`; z-score them to weight locations equally.
      labels: parcel of each location, 0…K−1; −1 outside, `[V]`.
      n_parcels: number of parcels K.
      debiased: whether to use the debiased estimate.

    Returns:
      RV in [0, 1], or debiased CKA in about [−1, 1], with diagonal 1, `[K, K]`; NaN for parcels without locations or with constant
      signals only.

    Raises:
      ValueError: If shapes or labels do not agree, or there are fewer than 4 frames.

    Memory: the signals twice, and 4 · (16 · n · 2 · 32 + 2 · K · 32²) bytes for n locations in the largest parcel. Time is proportional
    to VT² + K²T².

    >>> y = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    >>> y[4:] = [[0.6, 0.8], [-0.8, 0.6]] @ y[:2]  # a rotation of the first parcel's locations
    >>> [f"{x:.2f}" for x in cka(y, np.array([0, 0, 1, 1, 2, 2]), 3)[0, ::2]]
    ['1.00', '1.00']

    Source: Robert & Escoufier 1976, Applied Statistics; Kornblith et al. 2019, ICML; Song et al. 2012, JMLR (unbiased).
    """
    return _alike(*_prepared(y, labels, n_parcels), distances=False, unbiased=debiased)


def distance_correlation(
    y: Float[Array | np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int, *, bias_corrected: bool = True
) -> Float[Array, "K K"]:
    r"""Compute the distance correlation of parcels as sets of locations, which is sensitive to linear and nonlinear dependence.

    .. math::
      \mathrm{dCor}^2_{kl} = \frac{\langle A^k, A^l \rangle}{\sqrt{\langle A^k, A^k \rangle \langle A^l, A^l \rangle}}, \quad
      a^k_{ij} = \Big( \sum_{v \in k} (y_{vi} - y_{vj})^2 \Big)^{1/2}

    where A is the centred a. Without bias correction, dCor tends to 1 with increasing parcel size even for independent parcels. The
    default is therefore the bias-corrected square, which can be negative. Its expectation is 0 for independent parcels and independent
    frames; with autocorrelated frames, some bias remains.

    For the arguments, errors and memory, see `cka`.

    Returns:
      Bias-corrected dCor² in [−1, 1], or dCor in [0, 1], with diagonal 1, `[K, K]`; NaN as in `cka`. Distances of nearly equal frames
      are accurate to about 3e-4 of their norm.

    >>> y = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    >>> y[2:] = y[:2] ** 2
    >>> found = distance_correlation(y, np.array([0, 0, 1, 1]), 2)
    >>> print(bool(found[0, 1] > 0.1))
    True

    Source: Székely & Rizzo 2013, Journal of Multivariate Analysis; Geerligs, Cam-CAN & Henson 2016, NeuroImage (for fMRI).
    """
    found = _alike(*_prepared(y, labels, n_parcels), distances=True, unbiased=bias_corrected)
    return found if bias_corrected else jnp.sqrt(jnp.maximum(found, 0.0))


_LOCATIONS = ("y", "labels")


@register(
    "rv",
    units="RV coefficient",
    diagonal="1",
    signed=False,
    description="RV coefficient (linear CKA without debiasing) of parcels as sets of locations",
    needs=_LOCATIONS,
)
def _rv(signals: Float[np.ndarray, "K T"], *, y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"]) -> Float[Array, "K K"]:
    return cka(y, labels, len(signals), debiased=False)


@register(
    "cka",
    units="debiased linear CKA",
    diagonal="1",
    signed=True,
    description="Debiased linear centred kernel alignment of parcels as sets of locations; can be negative for unrelated parcels",
    needs=_LOCATIONS,
)
def _cka(signals: Float[np.ndarray, "K T"], *, y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"]) -> Float[Array, "K K"]:
    return cka(y, labels, len(signals))


@register(
    "multivariate_distance",
    units="bias-corrected squared distance correlation",
    diagonal="1",
    signed=True,
    description="Bias-corrected squared distance correlation of parcels as sets of locations; can be negative for unrelated parcels",
    needs=_LOCATIONS,
)
def _distance(signals: Float[np.ndarray, "K T"], *, y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"]) -> Float[Array, "K K"]:
    return distance_correlation(y, labels, len(signals))


def _prepared(y: Float[Array | np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int) -> tuple[Array, Array]:
    """Return the checked signals as float32 and the locations of each parcel, padded with V, `[K, n]`."""
    y, labels = jnp.asarray(y, jnp.float32), np.asarray(labels)
    if y.ndim != 2 or labels.shape != y.shape[:1]:
        raise ValueError(f"y must be [locations, frames] and labels [locations], got shapes {y.shape} and {labels.shape}")
    if y.shape[1] < 4:
        raise ValueError(f"multivariate edge measures need at least 4 frames, got {y.shape[1]}")
    if labels.size and not (labels.min() >= -1 and labels.max() < n_parcels):
        raise ValueError(f"labels must be −1 or 0…{n_parcels - 1}, got {labels.min()}…{labels.max()}")
    inside = np.flatnonzero(labels >= 0)
    inside = inside[np.argsort(labels[inside], kind="stable")]
    own = labels[inside]
    size = np.bincount(own, minlength=n_parcels)
    members = np.full((n_parcels, max(int(size.max(initial=0)), 1)), len(labels), np.int32)
    members[own, np.arange(len(own)) - (np.cumsum(size) - size)[own]] = inside
    return y, jnp.asarray(members)


@functools.partial(jax.jit, static_argnames=("distances", "unbiased"))
def _alike(y: Float[Array, "V T"], members: Int[Array, "K n"], *, distances: bool, unbiased: bool) -> Float[Array, "K K"]:
    frames = y.shape[1]
    level = jnp.square(y).sum(1, keepdims=True)
    y = y - y.mean(1, keepdims=True)
    y = jnp.where(jnp.square(y).sum(1, keepdims=True) > 1e-10 * level, y, 0.0)  # below this, the signal is constant up to rounding
    y = jnp.pad(y, ((0, 1), (0, -frames % TILE)))  # index V is an all-zero dummy location
    tiles = jnp.swapaxes(y.reshape(len(y), -1, TILE), 0, 1)  # [N, V + 1, B]
    there = (jnp.arange(y.shape[1]) < frames).astype(y.dtype).reshape(-1, TILE)  # [N, B]
    tile = functools.partial(_tile, tiles, there, members, distances, unbiased)
    count = len(tiles)

    def sums_of_rows(i: Array) -> Float[Array, "K B"]:
        return jax.lax.fori_loop(0, count, lambda j, sums: sums + tile(i, j).sum(2), jnp.zeros((len(members), TILE)))

    sums = jax.lax.map(sums_of_rows, jnp.arange(count))  # [N, K, B]
    at_rows, at_all = (frames - 2, (frames - 1) * (frames - 2)) if unbiased else (frames, frames * frames)
    means, total = sums / at_rows, sums.sum((0, 2)) / at_all  # [N, K, B] and [K]

    def add(products: Array, ij: Array) -> tuple[Array, None]:
        i, j = ij
        pairs = _pairs(there, i, j, unbiased)
        centred = (tile(i, j) - means[i][:, :, None] - means[j][:, None, :] + total[:, None, None]) * pairs[None]
        flat = centred.reshape(len(members), -1)
        # The matrices are symmetric: tiles below the diagonal are skipped, and those above it count twice.
        return products + jnp.where(i == j, 1.0, 2.0) * jnp.matmul(flat, flat.T, precision="highest"), None

    upper = jnp.asarray(np.stack(np.triu_indices(count), 1).astype(np.int32))
    products, _ = jax.lax.scan(add, jnp.zeros((len(members),) * 2), upper)
    spread = jnp.diag(products)
    scale = jnp.where(spread > 0, jax.lax.rsqrt(jnp.where(spread > 0, spread, 1.0)), jnp.nan)
    return products * scale[:, None] * scale[None]


def _pairs(there: Float[Array, "N B"], i: Array, j: Array, unbiased: bool) -> Float[Array, "B B"]:
    """Return the mask of the pairs of frames in a tile: without padding and, if unbiased, without pairs of a frame with itself."""
    pairs = there[i][:, None] * there[j][None]
    return pairs * jnp.where(i == j, 1 - jnp.eye(TILE), 1.0) if unbiased else pairs


def _tile(
    tiles: _Tiles, there: Float[Array, "N B"], members: Int[Array, "K n"], distances: bool, unbiased: bool, i: Array, j: Array
) -> Float[Array, "K B B"]:
    """Return inner products or distances of the patterns between the frames of two tiles, for all parcels; 0 for masked pairs."""

    def of_parcel(locations: Int[Array, " n"]) -> Float[Array, "B B"]:
        rows, columns = tiles[i, locations], tiles[j, locations]  # [n, B]
        products = jnp.matmul(rows.T, columns, precision="highest")
        if not distances:
            return products
        apart = jnp.square(rows).sum(0)[:, None] + jnp.square(columns).sum(0)[None] - 2 * products
        apart = jnp.where((i == j) & jnp.eye(TILE, dtype=bool), 0.0, apart)
        return jnp.sqrt(jnp.maximum(apart, 0.0))

    parcels = len(members)
    block = min(PARCELS_AT_A_TIME, parcels)
    members = jnp.pad(members, ((0, -parcels % block), (0, 0)), constant_values=tiles.shape[1] - 1)
    made = jax.lax.map(jax.vmap(of_parcel), members.reshape(-1, block, members.shape[1]))  # [K / 16, 16, B, B]
    return made.reshape(-1, TILE, TILE)[:parcels] * _pairs(there, i, j, unbiased)[None]
