"""Held-out predictive log density: a proper score of soft parcels, by embeddings that they were not made from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FLOOR = 1e-4  # least probability of a candidate, so that one location cannot decide the score
BLOCK = 4096  # locations whose cosines with all prototypes are held at once


def log_density(
    q: Float[Array, "V C"],
    candidates: Int[Array, "V C"],
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    kappa: Float[Array, ""] | float,
) -> Float[Array, " V"]:
    r"""Compute the log density of embeddings under soft parcels.

    .. math:: \log \sum_{k \in C(v)} \max(q_{vk}, 10^{-4})\, C_D(\kappa) \exp(\kappa\, z_v^\top \mu_k)

    The score is proper where `z` comes from other data of the participant than `q`.

    Args:
      q: Probability of each candidate, `[V, C]`.
      candidates: Parcels a location may belong to, −1 padded, `[V, C]`.
      z: Embeddings of length 1, `[V, D]`.
      prototypes: Mean directions of the parcels, `[K, D]`.
      kappa: Concentration κ ≥ 0.

    Returns:
      Nats for each location, `[V]`; 0 where a location has no candidate.

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

    return jax.lax.map(one, (q, candidates, z), batch_size=BLOCK)


def log_normaliser(kappa: Float[Array, "*n"] | float, d: int) -> Float[Array, "*n"]:
    r"""Compute the log normaliser of the von Mises–Fisher density on the unit sphere in d dimensions.

    .. math:: \log C_d(\kappa) = \nu \log \kappa - (\nu + 1) \log 2\pi - \log I_\nu(\kappa), \qquad \nu = d/2 - 1

    The Bessel function is its uniform expansion to the first order in 1/ν. Its factor κ^ν cancels the first term, so that κ = 0 gives the
    density of the uniform distribution. The error is below 1e-3 from d = 16 on, for every κ.

    Args:
      kappa: Concentration κ ≥ 0.
      d: Dimension D of the embeddings, at least 3.

    Returns:
      Nats, of the shape of `kappa`.

    >>> f"{log_normaliser(0.0, 16):.3f} {log_normaliser(20.0, 16):.3f}"
    '-1.326 -10.079'

    Source: NIST Digital Library of Mathematical Functions, 10.41.3.
    """
    kappa = jnp.asarray(kappa, jnp.result_type(float))
    order = d / 2 - 1
    r = jnp.sqrt(order**2 + jnp.square(kappa))
    correction = jnp.log1p((3 - 5 * jnp.square(order / r)) / (24 * r))
    return order * jnp.log(order + r) - r + 0.5 * jnp.log(2 * jnp.pi * r) - correction - d / 2 * jnp.log(2 * jnp.pi)
