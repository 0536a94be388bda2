"""Default implementation: a few subjects at a time; a constant signal gives NaN values but gradients of 0.

Signals are scaled to unit length before the product, so that the [K, K] matrix is written once and never read again. The gradient
is explicit: it keeps only the signals from the forward pass and is computed in the same blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pnet_jax.ops._signals import centre, subjects_a_block

_Pair = tuple[Array, Array]


@jax.custom_vjp
def correlation(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> Float[Array, "S K K"]:
    return jax.lax.map(_one, (signals, kept), batch_size=subjects_a_block(len(signals)))


def _one(subject: _Pair) -> Float[Array, "K K"]:
    centred, energy, varies = centre(*subject)
    unit = centred * jnp.where(varies, jax.lax.rsqrt(energy), jnp.nan)[:, None]
    return jnp.matmul(unit, unit.T, precision="highest")


def _forward(signals: Float[Array, "S K T"], kept: Float[Array, "S T"]) -> tuple[Float[Array, "S K K"], _Pair]:
    return correlation(signals, kept), (signals, kept)


def _backward(saved: _Pair, cotangent: Float[Array, "S K K"]) -> _Pair:
    signals, kept = saved
    return jax.lax.map(_pull, (signals, kept, cotangent), batch_size=subjects_a_block(len(signals))), jnp.zeros_like(kept)


def _pull(subject: tuple[Array, Array, Float[Array, "K K"]]) -> Float[Array, "K T"]:
    signals, kept, cotangent = subject
    centred, energy, varies = centre(signals, kept)
    scale = jnp.where(varies, jax.lax.rsqrt(energy), 0.0)[:, None]
    unit = centred * scale
    cotangent = jnp.where(varies[:, None] & varies[None, :], cotangent, 0.0)
    along = jnp.matmul(cotangent + cotangent.T, unit, precision="highest")  # [K, T]
    # Both terms have mean 0 over the included frames and are 0 in the others, so the gradient of centring is the identity.
    return (scale * (along - unit * (along * unit).sum(1, keepdims=True))).astype(signals.dtype)


correlation.defvjp(_forward, _backward)
