"""Public function of the op."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import wide
from pnet_jax.ops.soft_assign import blocked, chunked, reference
from pnet_jax.ops.soft_assign.blocked import ParcelBlocks


def _pallas(*arguments: Array) -> tuple[Array, Array, Array]:
    from pnet_jax.ops.soft_assign import pallas_tpu  # imported here because importing Pallas is slow

    return pallas_tpu.soft_assign(*arguments)


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"reference": reference.soft_assign, "chunked": chunked.soft_assign, "pallas": _pallas}


class Assignment(NamedTuple):
    """Result of one pass over the locations.

    Attributes:
      q: probability of each candidate, `[V, C]`.
      sums: weighted sums of the embeddings, Σ_v q_vk z_v, `[K, D]`.
      masses: sums of the probabilities, Σ_v q_vk, `[K]`.
    """

    q: Float[Array, "V C"]
    sums: Float[Array, "K D"]
    masses: Float[Array, " K"]


def soft_assign(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"] | float,
    *,
    blocks: ParcelBlocks | None = None,
    implementation: str | None = None,
) -> Assignment:
    r"""Compute the soft assignment of locations to their candidate parcels, and the sums from which prototypes are re-estimated.

    .. math:: q_{vk} \propto \exp(\kappa_v\, z_v^\top \mu_k + b_{vk}), \quad k \in C(v)

    Args:
      z: embeddings of unit length, float32 or bfloat16 (sums are float32 for both), `[V, D]`.
      prototypes: prototypes μ, `[K, D]`.
      candidates: candidate parcels of each location, padded with −1, each at most once per row, `[V, C]`.
      bias: bias b, the log prior plus the contribution of the neighbours, `[V, C]`; ignored in the padding.
      kappa: concentration κ ≥ 0, one number or `[V]`.
      blocks: tables of `blocked.make_blocks` for these candidates or a superset of them; products are then limited to the parcels of a
        block.
      implementation: `"reference"`, `"chunked"`, `"blocked"` (with `blocks`) or, on a TPU, `"pallas"`. The default is `"blocked"` if
        `blocks` is given, else `"chunked"`.

    Returns:
      `Assignment`; q sums to 1 in each row with a candidate and is 0 elsewhere.

    Raises:
      ValueError: If shapes do not agree, the implementation is unknown, or it is `"blocked"` without `blocks`.
      NotImplementedError: If `"pallas"` is used on a backend other than TPU, or does not support the dtype or K.

    Memory: the result plus one block of `[2048, K]` (`chunked`), `[V, L]` (`blocked`), `[V, K]` (`reference`), or the result alone
    (`pallas`).

    >>> z = jnp.eye(2); candidates = jnp.array([[0, 1], [1, -1]])
    >>> [[f"{p:.2f}" for p in row] for row in soft_assign(z, z, candidates, jnp.zeros((2, 2)), 2.0).q]
    [['0.88', '0.12'], ['1.00', '0.00']]

    Source: expectation step of a von Mises–Fisher mixture, Banerjee et al. 2005.
    """
    if z.ndim != 2 or prototypes.ndim != 2 or z.shape[1] != prototypes.shape[1]:
        raise ValueError(f"z must be [V, D] and prototypes [K, D] with the same D, got {z.shape} and {prototypes.shape}")
    if candidates.shape != bias.shape or candidates.ndim != 2 or len(candidates) != len(z):
        raise ValueError(f"candidates and bias must have the same shape ({len(z)}, C), got {candidates.shape} and {bias.shape}")
    chex.assert_type(
        [z, prototypes, candidates],
        [float, float, int],
        exception_type=ValueError,
        custom_message="z and prototypes must be floating point, candidates integers",
    )
    kappa = jnp.asarray(kappa, wide(z))
    if kappa.ndim and kappa.shape != (len(z),):
        raise ValueError(f"kappa must be a number or have shape ({len(z)},), got {kappa.shape}")
    kappa = jnp.broadcast_to(kappa, (len(z),))
    if implementation == "blocked" and blocks is None:
        raise ValueError('implementation "blocked" needs blocks (`blocked.make_blocks`)')
    if blocks is not None and implementation in (None, "blocked"):
        return Assignment(*blocked.soft_assign(z, prototypes, candidates, bias, kappa, blocks))
    return Assignment(*choose(_IMPLEMENTATIONS, implementation)(z, prototypes, candidates, bias, kappa))
