"""Individual adaptation of an encoder and of the prototypes, with few parameters that do not depend on the location."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Adapter(NamedTuple):
    r"""Low-rank adaptation of the projection, with offsets of the group prototypes.

    .. math:: x_v \to x_v + x_v\, A B, \qquad \mu_k^{grp} \to \operatorname{normalise}(\mu_k^{grp} + \delta_k)

    For the linear encoder, this is :math:`P \to P (I + A B)`; for the neural encoder, it modifies the output of the last layer.

    Attributes:
      down: matrix A, `[D, r]`.
      up: matrix B, `[r, D]`; 0 in an identity adapter.
      offsets: offsets δ, `[K, D]`.
    """

    down: Float[Array, "D r"]
    up: Float[Array, "r D"]
    offsets: Float[Array, "K D"]


def init(dimensions: int, n_parcels: int, rank: int, key: PRNGKeyArray) -> Adapter:
    """Initialise an identity adapter.

    Args:
      dimensions: number of embedding dimensions D.
      n_parcels: number of parcels K.
      rank: rank r.
      key: random key of the initial A.

    Returns:
      An adapter with random A, and B and offsets of 0.
    """
    down = jax.random.normal(key, (dimensions, rank)) * dimensions**-0.5
    return Adapter(down, jnp.zeros((rank, dimensions)), jnp.zeros((n_parcels, dimensions)))


def adapt(adapter: Adapter, x: Float[Array, "n D"]) -> Float[Array, "n D"]:
    """Apply an adapter to components, `[n, D]`."""
    return x + jnp.matmul(jnp.matmul(x, adapter.down, precision="highest"), adapter.up, precision="highest")


def size(adapter: Adapter) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean squares of the entries of A B and of the offsets."""
    low = jnp.matmul(adapter.down, adapter.up, precision="highest")
    return jnp.square(low).mean(), jnp.square(adapter.offsets).mean()
