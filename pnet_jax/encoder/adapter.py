"""Individual changes of an encoder and of a prior: few parameters, none of them specific to a location."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Adapter(NamedTuple):
    r"""A change of low rank of the projection, and of the prototypes that parcels begin from.

    .. math:: x_v \to x_v + x_v\, A B, \qquad \mu_k^{grp} \to \operatorname{normalise}(\mu_k^{grp} + \delta_k)

    which is :math:`P \to P (I + A B)` of the linear encoder, and of the neural one a change of what its last layer says.

    Attributes:
      down: A, `[D, r]`.
      up: B, `[r, D]`; 0 in an adapter that changes nothing.
      offsets: δ, `[K, D]`.
    """

    down: Float[Array, "D r"]
    up: Float[Array, "r D"]
    offsets: Float[Array, "K D"]


def init(dimensions: int, n_parcels: int, rank: int, key: PRNGKeyArray) -> Adapter:
    """An adapter that changes nothing.

    Args:
      dimensions: D.
      n_parcels: K.
      rank: r.
      key: of the directions that it reads first.
    """
    down = jax.random.normal(key, (dimensions, rank)) * dimensions**-0.5
    return Adapter(down, jnp.zeros((rank, dimensions)), jnp.zeros((n_parcels, dimensions)))


def adapt(adapter: Adapter, x: Float[Array, "n D"]) -> Float[Array, "n D"]:
    """Apply an adapter to components, `[n, D]`."""
    return x + jnp.matmul(jnp.matmul(x, adapter.down, precision="highest"), adapter.up, precision="highest")


def size(adapter: Adapter) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean square of the entries of A B and of the offsets."""
    low = jnp.matmul(adapter.down, adapter.up, precision="highest")
    return jnp.square(low).mean(), jnp.square(adapter.offsets).mean()
