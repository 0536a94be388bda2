"""Default implementation: blocks of locations, so that the [V, R] fingerprints before projection are never stored."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops.fingerprint import reference
from pnet_jax.ops.parts import over_parts

BLOCK = 2048


def fingerprint(
    y: Float[Array, "V T"],
    references: Float[Array, "R T"],
    kept: Float[Array, " T"],
    mean: Float[Array, " R"],
    projection: Float[Array, "R D"] | None,
) -> Float[Array, "V D"]:
    return over_parts(_in_blocks, (y,), (reference.unit(references, kept), kept, mean, projection))


def _in_blocks(
    y: Float[Array, "V T"],
    references: Float[Array, "R T"],
    kept: Float[Array, " T"],
    mean: Float[Array, " R"],
    projection: Float[Array, "R D"] | None,
) -> Float[Array, "V D"]:
    @jax.checkpoint
    def block(rows: Float[Array, " T"]) -> Float[Array, " D"]:
        z = reference.fisher(reference.unit(rows[None], kept), references)[0] - mean
        return z if projection is None else jnp.matmul(z, projection.astype(z.dtype), precision="highest")

    return jax.lax.map(block, y, batch_size=BLOCK)
