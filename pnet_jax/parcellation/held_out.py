"""Held-out predictive density of soft parcels: the proper score for selecting settings."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops.soft_assign import blocked
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks
from pnet_jax.parcellation.mixture import soft_sums

FLOOR = 1e-4  # minimum probability of a candidate, so that no single label dominates the score
TEMPERATURES = np.array([1.0, 1.5, 2.0, 3.0, 5.0], np.float32)
BLOCK = 2048  # number of locations whose cosines to all K prototypes are in memory at a time
CONCENTRATIONS = np.geomspace(4, 110, 10).astype(np.float32)  # grid of the concentration κ' of the held-out embeddings


class Score(NamedTuple):
    """Held-out log density of one half's embeddings under the other half's soft parcels.

    Attributes:
      each: log density of each location at the best T and κ' in nats, 0 for excluded locations, `[V]`.
      mean: mean over the included locations.
      temperature: best temperature T.
    """

    each: Float[Array, " V"]
    mean: Float[Array, ""]
    temperature: Float[Array, ""]


def log_normaliser(kappa: Float[Array, "*n"] | float, dimensions: int) -> Float[Array, "*n"]:
    r"""Compute log C_D(κ), the log normaliser of the von Mises–Fisher density on the unit sphere in D dimensions.

    .. math:: \log C_D(\kappa) = \nu \log \kappa - \tfrac{D}{2} \log 2\pi - \log I_\nu(\kappa), \qquad \nu = D / 2 - 1

    by the uniform asymptotic expansion of the Bessel function for large order; the error is below 1e-3 nats for D ≥ 16 and κ ≥ 0.

    Args:
      kappa: concentrations κ ≥ 0.
      dimensions: number of dimensions D, at least 4.

    Source: Abramowitz & Stegun 9.7.7; Banerjee et al. 2005.

    >>> print(f"{log_normaliser(jnp.float32(20.0), 64):.2f}")
    37.78
    """
    kappa = jnp.asarray(kappa, jnp.result_type(float))
    order = dimensions / 2 - 1
    root = jnp.sqrt(1 + jnp.square(kappa / order))
    t = 1 / root
    first = (3 * t - 5 * t**3) / (24 * order)
    second = (81 * t**2 - 462 * t**4 + 385 * t**6) / (1152 * order**2)
    constant = order * np.log(order) - dimensions / 2 * np.log(2 * np.pi) + 0.5 * np.log(2 * np.pi * order)
    return constant + order * (jnp.log1p(root) - root) + 0.5 * jnp.log(root) - jnp.log1p(first + second)


def tempered(q: Float[Array, "V C"], candidates: Int[Array, "V C"], temperature: Float[Array, ""]) -> Float[Array, "V C"]:
    """Return the log of probabilities p ∝ q^(1/T), at least log 1e-4 for candidates and −∞ in the padding, `[V, C]`."""
    there = candidates >= 0
    logs = jnp.where(there, jnp.log(jnp.maximum(q, 1e-6)) / temperature, -jnp.inf)
    some = there.any(1, keepdims=True)
    logs = jax.nn.log_softmax(jnp.where(some, logs, 0.0), axis=1)
    return jnp.where(there, jnp.maximum(logs, np.float32(np.log(FLOOR))), -jnp.inf)


def held_out(
    q: Float[Array, "V C"],
    candidates: Int[Array, "V C"],
    z: Float[Array, "V D"],
    n_parcels: int,
    rows: Int[Array, " n"] | None = None,
    blocks: ParcelBlocks | None = None,
) -> Score:
    r"""Compute the log density of one half's embeddings z under the other half's soft parcels q.

    .. math::
      S = \max_{T, \kappa'} \operatorname{mean}_v \log \sum_k p_{vk}\, C_D(\kappa')\, e^{\kappa' z_v^\top m_{vk}}, \qquad
      p \propto q^{1/T}, \qquad m_{vk} = \operatorname{normalise}\Big(\sum_{u \ne v} q_{uk} z_u\Big)

    The score penalises over-confident and under-confident probabilities, and fragments that fit noise do not improve it on the other
    half. Each location is excluded from the prototypes under which it is scored; otherwise, sharp q would gain from the noise of the
    location itself. The best T measures the over-confidence of q; it does not affect the labels.

    Args:
      q: probabilities from the other half, `[V, C]`.
      candidates: candidate parcels, −1 in the padding and for excluded locations, `[V, C]`.
      z: embeddings of this half, of unit length, `[V, D]`.
      n_parcels: number of parcels K.
      rows: indices of the locations to score, `[n]`; default: all. Prototypes always use all other locations.
      blocks: tables of `ops.soft_assign.blocked`; products are then limited to the parcels of a block.

    Returns:
      The score.

    Memory: one block of `[2048, K]`, or `[V, L]` with blocks, and `[n, C]` for each T and κ' in turn.
    """
    chex.assert_rank([q, z], 2)
    chex.assert_equal_shape([q, candidates])
    chex.assert_equal_shape_prefix([q, z], 1)
    chex.assert_type([q, z, candidates], [float, float, int])
    q = jnp.where(candidates >= 0, q, 0.0)
    total = soft_sums(q, candidates, z, n_parcels)[0] if blocks is None else blocked.sums(q, z, blocks)[0]
    product = products(z, total, candidates) if blocks is None else blocked.similarities(z, total, blocks)
    cosine = without_own(q, candidates, product, total)
    if rows is not None:
        q, candidates, z, cosine = q[rows], candidates[rows], z[rows], cosine[rows]
    counts = (candidates >= 0).any(1)
    weight = counts.astype(z.dtype)
    size = jnp.maximum(weight.sum(), 1.0)
    kappas = jnp.asarray(CONCENTRATIONS)
    constant = log_normaliser(kappas, z.shape[1])

    def of_temperature(temperature: Array) -> Array:
        logs = tempered(q, candidates, temperature)

        def of_kappa(kappa: Array) -> Array:
            return (jnp.where(counts, _mixed(logs, cosine, kappa), 0.0) * weight).sum() / size

        return jax.lax.map(of_kappa, kappas) + constant

    means = jax.lax.map(of_temperature, jnp.asarray(TEMPERATURES))  # [T, κ']
    best = means.argmax()
    temperature = jnp.asarray(TEMPERATURES)[best // len(kappas)]
    at = best % len(kappas)
    each = jnp.where(counts, _mixed(tempered(q, candidates, temperature), cosine, kappas[at]) + constant[at], 0.0)
    return Score(each, means.max(), temperature)


def products(z: Float[Array, "V D"], sums: Float[Array, "K D"], candidates: Int[Array, "V C"]) -> Float[Array, "V C"]:
    """Return z·s of each location and candidate, computed in blocks of locations, `[V, C]`."""

    def block(row: tuple[Array, Array]) -> Array:
        one, at = row
        return jnp.matmul(one[None], sums.T, precision="highest")[0][at]

    return jax.lax.map(block, (z, jnp.maximum(candidates, 0)), batch_size=min(BLOCK, len(z)))


def without_own(
    q: Float[Array, "V C"], candidates: Int[Array, "V C"], product: Float[Array, "V C"], sums: Float[Array, "K D"]
) -> Float[Array, "V C"]:
    """Return the leave-one-out cosine of each location with the sum Σ q z of each candidate, `[V, C]`.

    It is −1 in the padding, and 0 if nothing is left of a sum without the location.
    """
    energy = jnp.square(sums).sum(1)[jnp.maximum(candidates, 0)]
    left = energy - 2 * q * product + jnp.square(q)
    some = left > 1e-5 * (1 + energy)  # below this, only rounding error is left
    found = jnp.where(some, (product - q) / jnp.sqrt(jnp.where(some, left, 1.0)), 0.0)
    return jnp.where(candidates >= 0, found, -1.0)


def _mixed(logs: Float[Array, "V C"], cosine: Float[Array, "V C"], kappa: Float[Array, ""]) -> Float[Array, " V"]:
    """Return log Σ p exp(κ' cos), scaled by the term of the nearest candidate so that it cannot underflow."""
    nearest = cosine.max(1)
    return kappa * nearest + jnp.log(jnp.maximum((jnp.exp(logs) * jnp.exp(kappa * (cosine - nearest[:, None]))).sum(1), 1e-37))


def log_density(
    q: Float[Array, "V C"],
    candidates: Int[Array, "V C"],
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    kappa: Float[Array, ""] | float,
) -> Float[Array, " V"]:
    r"""Compute the log density of embeddings under soft parcels.

    .. math:: \log \sum_{k \in C(v)} \max(q_{vk}, 10^{-4})\, C_D(\kappa) \exp(\kappa\, z_v^\top \mu_k)

    The score is proper if `z` and `q` come from different data of the participant.

    Args:
      q: Probability of each candidate, `[V, C]`.
      candidates: Candidate parcels, padded with −1, `[V, C]`.
      z: Embeddings of unit length, `[V, D]`.
      prototypes: Mean directions of the parcels, `[K, D]`.
      kappa: Concentration κ ≥ 0.

    Returns:
      Log density of each location in nats, `[V]`; 0 without candidates.

    Memory: the result and one block of `[4096, K]`.

    >>> z = jnp.eye(3)[:2]; candidates = jnp.array([[0, 1], [0, 1]])
    >>> [f"{x:.2f}" for x in log_density(jnp.array([[0.9, 0.1], [0.9, 0.1]]), candidates, z, z, 5.0)]
    ['-0.33', '-2.47']

    Source: von Mises–Fisher density, e.g. Banerjee et al. 2005.
    """
    constant = log_normaliser(kappa, z.shape[1])

    @jax.checkpoint
    def one(row: tuple[Array, Array, Array]) -> Array:
        q, candidates, z = row
        there = candidates >= 0
        cosine = jnp.matmul(prototypes, z, precision="highest")[jnp.where(there, candidates, 0)]
        terms = jnp.where(there, jnp.log(jnp.maximum(q, FLOOR)) + kappa * cosine, -1e30)
        return jnp.where(there.any(), jax.nn.logsumexp(terms) + constant, 0.0)

    return jax.lax.map(one, (q, candidates, z), batch_size=min(BLOCK, len(z)))
