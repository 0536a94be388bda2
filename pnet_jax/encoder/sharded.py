"""The embedding of many subjects on many devices: subjects side by side, each subject's locations in parts.

Along the mesh axis "subject" nothing is exchanged. Along "location" a scan costs two all-reduces: of the reference signals with
their sizes, `[R, T + 1]`, and of the moments of the components, `[D + parts, D + 1]`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.encoder.linear import LinearEncoder, components, shrunk, whiten
from pnet_jax.parcellation.mixture import normalise
from pnet_jax.parcellation.sharded import LOCATION, SUBJECT, over


def sharded_embed(
    mesh: Mesh,
    encoder: LinearEncoder,
    y: Float[Array, "S V T"],
    region: Int[Array, "S V"] | Int[Array, " V"],
    kept: Bool[Array, "S T"],
    counted: Bool[Array, "S V"],
) -> Float[Array, "S V D"]:
    """`linear.embed` of S subjects over a mesh.

    Args:
      mesh: with axes "subject" and "location".
      encoder: weights, the same for all.
      y: signals, `[S, V, T]`.
      region: reference region of each location, one for all subjects, `[V]`, or each subject's, `[S, V]`.
      kept: frames that count, `[S, T]`.
      counted: locations that make up each scan, `[S, V]`.

    Returns:
      z, `[S, V, D]`, split as the mesh says; `sharded_mixture` takes it as it lies.

    Raises:
      ValueError: a mesh without these axes, sizes that its parts do not divide, or shapes that do not agree.

    Memory: on each device that of `embed` for its locations of all its subjects.
    """
    if y.ndim != 3:
        raise ValueError(f"expected y [S, V, T], got {y.shape}")
    each: Any = P(SUBJECT, LOCATION)
    own = P(LOCATION) if jnp.ndim(region) == 1 else each
    layouts = (jax.tree.map(lambda _: P(), encoder), each, own, P(SUBJECT), each)
    return over(mesh, embed_part, (encoder, y, region, kept, counted), layouts, each, (y.shape[0], y.shape[1]), "y")


def sharded_group_prototypes(
    mesh: Mesh, z: Float[Array, "S V D"], labels: Int[Array, "S V"] | Int[Array, " V"], n_parcels: int
) -> Float[Array, "S K D"]:
    """`mixture.group_prototypes` of S subjects over a mesh, by one all-reduce; errors as of `sharded_embed`."""

    def one(z: Float[Array, "V D"], labels: Int[Array, " V"]) -> Float[Array, "K D"]:
        sums = jax.ops.segment_sum(z, jnp.where(labels < 0, n_parcels, labels), n_parcels + 1)[:n_parcels]
        return normalise(_total(sums))

    each: Any = P(SUBJECT, LOCATION)
    own = P(LOCATION) if jnp.ndim(labels) == 1 else each
    return over(mesh, one, (z, labels), (each, own), P(SUBJECT), (z.shape[0], z.shape[1]), "z")


def embed_part(
    encoder: LinearEncoder, y: Float[Array, "V T"], region: Int[Array, " V"], kept: Bool[Array, " T"], counted: Bool[Array, " V"]
) -> Float[Array, "V D"]:
    """`linear.embed` of one scan inside a `shard_map` that splits its locations; V is the number of those here."""
    weight = counted.astype(y.dtype)[:, None]
    x = components(encoder, y, region, kept, counted, _total)
    mean, scatter = _moments(x, weight)
    return whiten((x - mean[None, :]) * weight, shrunk(scatter))


def _moments(x: Float[Array, "V D"], weight: Float[Array, "V 1"]) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Mean over all locations, and the sum of products about it.

    Each part sums about its own mean; the parts' means and sizes travel side by side with that sum. So nothing is taken from a sum of
    squares, which would cost digits, and one all-reduce is enough. Source: Chan, Golub & LeVeque 1983.
    """
    size = weight.sum()
    mean = (weight * x).sum(0) / jnp.maximum(size, 1.0)
    centred = (x - mean[None, :]) * weight
    scatter = jnp.matmul(centred.T, centred, precision="highest")
    own = jnp.concatenate([mean, size[None]])
    here = jnp.arange(jax.lax.axis_size(LOCATION), dtype=jnp.int32) == jax.lax.axis_index(LOCATION)
    rows = jnp.where(here[:, None], own[None, :], 0.0)  # [parts, D + 1]
    both = _total(jnp.concatenate([jnp.pad(scatter, ((0, 0), (0, 1))), rows]))  # [D + parts, D + 1]
    scatter, means, sizes = both[: len(scatter), :-1], both[len(scatter) :, :-1], both[len(scatter) :, -1:]
    mean = (sizes * means).sum(0) / jnp.maximum(sizes.sum(), 1.0)
    apart = (means - mean[None, :]) * jnp.sqrt(sizes)
    return mean, scatter + jnp.matmul(apart.T, apart, precision="highest")


def _total(here: Array) -> Array:
    return jax.lax.psum(here, LOCATION) if jax.lax.axis_size(LOCATION) > 1 else here
