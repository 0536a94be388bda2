"""The implementation in use: a few subjects at a time; a constant signal gives NaN values but finite gradients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SUBJECTS = 8


def correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return jax.lax.map(_one, (signals, kept), batch_size=SUBJECTS)


def _one(subject: tuple[Float[Array, "K T"], Float[Array, " T"]]) -> Float[Array, "K K"]:
    signals, kept = subject
    centred = (signals - ((signals @ kept) / kept.sum())[:, None]) * kept[None, :]
    energy = jnp.square(centred).sum(-1)
    # Below this a signal is constant up to the rounding of its own level.
    varies = energy > signals.shape[-1] * jnp.square(jnp.finfo(signals.dtype).eps * jnp.abs(signals * kept[None, :]).max(-1))
    unit = centred * jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, energy, 1.0)), 0.0)[:, None]
    return jnp.where(varies[:, None] & varies[None, :], jnp.matmul(unit, unit.T, precision="highest"), jnp.nan)
