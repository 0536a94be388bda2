"""Reference definition: one Fisher z per location and reference, then the projection."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._signals import vary, wide, widen

LIMIT = 0.99


def fingerprint(
    y: Float[Array, "V T"],
    references: Float[Array, "R T"],
    kept: Float[Array, " T"],
    mean: Float[Array, " R"],
    projection: Float[Array, "R D"] | None,
) -> Float[Array, "V D"]:
    z = fisher(unit(y, kept), unit(references, kept)) - mean[None, :]  # [V, R]
    return z if projection is None else jnp.matmul(z, projection.astype(z.dtype), precision="highest")


def unit(x: Float[Array, "n T"], kept: Float[Array, " T"]) -> Float[Array, "n T"]:
    """Centre the rows over the included frames and scale them to unit length; constant rows become 0, with a gradient of 0."""
    dtype, x = x.dtype, widen(x)
    centred = (x - ((x @ kept) / jnp.maximum(kept.sum(), 1.0))[:, None]) * kept[None, :]
    energy = jnp.square(centred).sum(-1, keepdims=True)
    varies = vary(x, kept[None, :] > 0)[:, None] & (energy > 0)  # squares of tiny numbers may underflow to 0
    # `where` twice: the gradient of the branch not taken must not be NaN either.
    return jnp.where(varies, centred / jnp.sqrt(jnp.where(varies, energy, 1.0)), 0.0).astype(dtype)


def fisher(y: Float[Array, "V T"], references: Float[Array, "R T"]) -> Float[Array, "V R"]:
    r = jnp.matmul(y, references.T, precision="highest", preferred_element_type=wide(y))
    return jnp.arctanh(jnp.clip(r, -LIMIT, LIMIT))
