"""Implementation with blocks of neighbouring locations, each with a short list of parcels to which products are limited.

An atlas on a Space is fixed for a whole cohort, so the lists and both directions of the map between candidates and
lists are made once. Every product is dense in the L parcels of a block instead of all K, and no scatter is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops._signals import wide

BLOCK = 128
LIST_BUCKET, MEMBER_BUCKET = 16, 8


class ParcelBlocks(NamedTuple):
    """Parcels needed by each block of locations.

    Attributes:
      lists: parcels of each block, padded with K, `[B, L]`.
      place: position of each candidate in the list of its block, L if none, `[V, C]`.
      inverse: candidate of a location that corresponds to each entry of the list, C if none, `[V, L]`.
      members: positions of each parcel in the flattened lists, padded with B · L, `[K, M]`.
    """

    lists: Int[Array, "B L"]
    place: Int[Array, "V C"]
    inverse: Int[Array, "V L"]
    members: Int[Array, "K M"]


def make_blocks(candidates: Int[np.ndarray, "V C"], n_parcels: int, block: int = BLOCK) -> ParcelBlocks:
    """Make the tables of a set of candidates on the host, once per Space.

    Args:
      candidates: candidate parcels, padded with −1, `[V, C]`; V must be a multiple of `block`.
      n_parcels: number of parcels K.
      block: number of locations per block.

    Returns:
      The tables.

    Raises:
      ValueError: If V is not a multiple of the block.
    """
    count, width = candidates.shape
    if count % block:
        raise ValueError(f"the number of locations must be a multiple of the block size {block}, got {count}: pad them")
    each = candidates.reshape(-1, block * width)
    found = [np.unique(row[row >= 0]) for row in each]
    size = max([len(one) for one in found] + [1])
    size += -size % LIST_BUCKET
    lists = np.full((len(found), size), n_parcels, np.int32)
    for number, one in enumerate(found):
        lists[number, : len(one)] = one
    at = np.repeat(np.arange(len(found)), block)
    table = np.full((len(found), n_parcels + 1), size, np.int32)
    rows, columns = np.nonzero(lists < n_parcels)
    table[rows, lists[rows, columns]] = columns
    place = np.where(candidates >= 0, table[at[:, None], candidates], size).astype(np.int32)
    inverse = np.full((count, size + 1), width, np.uint8)
    inverse[np.arange(count)[:, None], place] = np.arange(width, dtype=np.uint8)
    flat = lists.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < n_parcels]
    sizes = np.bincount(flat[order], minlength=n_parcels)
    most = max(int(sizes.max(initial=1)), 1)
    members = np.full((n_parcels, most + -most % MEMBER_BUCKET), flat.size, np.int32)
    members[flat[order], np.arange(len(order)) - (np.cumsum(sizes) - sizes)[flat[order]]] = order
    return ParcelBlocks(*(jnp.asarray(x) for x in (lists, place, inverse[:, :size], members)))


def similarities(z: Float[Array, "V D"], prototypes: Float[Array, "K D"], blocks: ParcelBlocks) -> Float[Array, "V C"]:
    """Return z·μ of each location and candidate, 0 in the padding."""
    count, size = blocks.lists.shape
    own = jnp.pad(prototypes, ((0, 1), (0, 0)))[blocks.lists]  # [B, L, D]
    rows = z.reshape(count, -1, z.shape[1])
    dense = jnp.einsum("bvd,bld->bvl", rows, own, precision="highest", preferred_element_type=wide(z))
    dense = jnp.pad(dense, ((0, 0), (0, 0), (0, 1))).reshape(len(z), size + 1)
    return jnp.take_along_axis(dense, blocks.place, axis=1)


def sums(q: Float[Array, "V C"], rows: Float[Array, "V n"], blocks: ParcelBlocks) -> tuple[Float[Array, "K n"], Float[Array, " K"]]:
    """Return the sums of the rows over locations, weighted by the probabilities of each parcel, and the sums of the weights."""
    count, size = blocks.lists.shape
    inverse = blocks.inverse.astype(jnp.int32)
    dense = jnp.take_along_axis(jnp.pad(q, ((0, 0), (0, 1))), inverse, axis=1).reshape(count, -1, size)  # [B, v, L]
    each = rows.astype(wide(rows)).reshape(count, -1, rows.shape[1])
    part = jnp.einsum("bvl,bvn->bln", dense, each, precision="highest").reshape(count * size, -1)
    total = jnp.pad(part, ((0, 1), (0, 0)))[blocks.members].sum(1)  # [K, n]
    return total, jnp.pad(dense.sum(1).ravel(), (0, 1))[blocks.members].sum(1)


def soft_assign(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"],
    blocks: ParcelBlocks,
) -> tuple[Float[Array, "V C"], Float[Array, "K D"], Float[Array, " K"]]:
    there = candidates >= 0
    logits = jnp.where(there, kappa[:, None] * similarities(z, prototypes, blocks) + bias.astype(wide(z)), -1e30)
    q = jnp.where(there, jax.nn.softmax(logits, axis=1), 0.0)
    return q, *sums(q, z, blocks)
