"""The neural encoder: the linear one plus a correction that a Perceiver reads from the whole scan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pnet_jax.config import PerceiverConfig
from pnet_jax.encoder.layers import Attention, Dense, Mlp, Norm, Pooled, merged
from pnet_jax.encoder.linear import LinearEncoder, centre, own_metric, project, whiten
from pnet_jax.encoder.tokens import FREQUENCIES, POSITIONS, Observed, position_features, signal_features
from pnet_jax.ops.parts import over_parts

SIGNALS = 2 * len(FREQUENCIES) + 1  # what `signal_features` adds to the components

jax.tree_util.register_static(PerceiverConfig)  # part of a tree's structure, not of its leaves


class PerceiverEncoder(NamedTuple):
    """Weights and sizes; a pytree whose leaves are arrays.

    Attributes:
      linear: the encoder that it starts from; not trained.
      params: `{"perceiver": …, "heads": …}`, nested dicts of float32 arrays; only the objectives use the heads.
      config: sizes.
    """

    linear: LinearEncoder
    params: dict[str, Any]
    config: PerceiverConfig

    @property
    def references(self) -> Float[np.ndarray, "R 3"]:
        """Reference points in MNI mm."""
        return self.linear.references


class Perceiver(nnx.Module):
    """Locations write to latents, latents think, locations read."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, config.dtype
        self.signal = Dense(config.dimensions + SIGNALS, width, dtype, rngs=rngs)
        self.place = Dense(POSITIONS, width, dtype, rngs=rngs)
        self.hidden = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.token = Mlp(width, config.mlp, dtype, rngs=rngs)
        self.tells_place = config.place
        self.latents = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.latents, width)))
        block = functools.partial(Attention, width, config.heads, config.mlp, dtype, rngs=rngs)
        self.write = block()
        self.think = nnx.Dict({f"block_{i:02d}": block() for i in range(config.depth)})
        self.read = block()
        self.norm = Norm(width, rngs=rngs)
        self.correction = Dense(width, config.dimensions, dtype, rngs=rngs, zero=True, bias=False)

    def tokens(self, signals: Float[Array, "V F"], xyz: Float[Array, "V 3"], hidden: Bool[Array, " V"] | None) -> Float[Array, "V w"]:
        """What a location's signal says, and where it is if the configuration says so; of a hidden one only where it is."""
        said = self.signal(signals)
        if hidden is None and not self.tells_place:
            return self.token(said)
        place = self.place(position_features(xyz))
        said = said + place if self.tells_place else said
        return self.token(said if hidden is None else jnp.where(hidden[:, None], self.hidden[...][None, :] + place, said))

    def thoughts(self, seen: Pooled, remat: bool) -> Float[Array, "M w"]:
        """Latents after all locations have written to them."""
        latents = self.write.finish(self.latents[...], seen)
        for name in sorted(self.think):
            latents = _stored(self.think[name], remat)(latents)
        return latents

    def listen(self, state: Float[Array, "V w"], thoughts: Float[Array, "M w"]) -> Float[Array, "V w"]:
        """The final state of locations that read from the latents."""
        return self.norm(self.read(state, thoughts))


class Heads(nnx.Module):
    """What only the objectives use.

    Attributes:
      fingerprint: from components to a fingerprint without its mean, `[D] → [R]`.
      weights: from a location's state to the weights of reference signals that reconstruct its own, `[width] → [R]`.
      turn, damp: of the generator of the latent dynamics, 1/s, `[D, D]`.
    """

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        size = config.dimensions
        self.fingerprint = Dense(size, config.references, "float32", rngs=rngs, bias=False)
        self.weights = Dense(config.width, config.references, config.dtype, rngs=rngs, zero=True)
        self.turn = nnx.Param(jnp.zeros((size, size), jnp.float32))
        self.damp = nnx.Param(0.3 * jnp.eye(size, dtype=jnp.float32))  # forgets in 11 s


class Network(nnx.Module):
    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.perceiver = Perceiver(config, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)


def init(linear: LinearEncoder, config: PerceiverConfig, key: PRNGKeyArray) -> PerceiverEncoder:
    """An untrained encoder, whose embedding is exactly the linear encoder's.

    Args:
      linear: where it starts from.
      config: sizes.
      key: of the weights.

    Raises:
      ValueError: the linear encoder has other dimensions or references than the configuration.
    """
    expected = (config.references, config.dimensions)
    if linear.projection.shape != expected:
        raise ValueError(f"PerceiverConfig says {expected} references and dimensions, the linear encoder has {linear.projection.shape}")
    params = nnx.to_pure_dict(nnx.state(Network(config, rngs=nnx.Rngs(key))))
    params["heads"]["fingerprint"]["kernel"] = jnp.asarray(linear.decoder)
    return PerceiverEncoder(linear, params, config)


def network(encoder: PerceiverEncoder) -> Network:
    """The layers with the encoder's weights in them."""
    return nnx.merge(_graph(encoder.config), encoder.params)


@functools.lru_cache
def _graph(config: PerceiverConfig) -> nnx.GraphDef[Network]:
    return nnx.split(nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0))))[0]


def encode(
    encoder: PerceiverEncoder,
    x: Float[Array, "V D"],
    signals: Float[Array, "V F"],
    xyz: Float[Array, "V 3"],
    counted: Bool[Array, " V"],
    hidden: Bool[Array, " V"] | None = None,
) -> tuple[Float[Array, "V D"], Float[Array, "V w"]]:
    """Corrected components of one segment, on axes that all scans share; `jax.vmap` for many.

    Args:
      encoder: weights.
      x: linear components, `[V, D]`.
      signals: `tokens.signal_features`, `[V, D + 33]`.
      xyz: MNI mm.
      counted: locations that take part.
      hidden: locations of which only the place is known; nothing attends to them.

    Returns:
      x + W h without its mean, 0 where not counted, `[V, D]`, and the state h of every location, `[V, width]`.

    Memory: `[V, width · mlp]` and `[heads, M, V]`; `embed_scan` where that is too much.
    """
    layers, remat = network(encoder).perceiver, encoder.config.remat
    state = _stored(layers.tokens, remat)(signals, jnp.where(counted[:, None], xyz, 0.0), hidden)
    latents = layers.latents[...]
    heard = counted if hidden is None else counted & ~hidden
    seen = _stored(layers.write.pool, remat)(latents, layers.write.start(latents), state, heard)
    state = _stored(layers.listen, remat)(state, layers.thoughts(seen, remat))
    return x + centre(layers.correction(state), counted.astype(x.dtype)), state


def _stored(function: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """The function; under remat nothing inside it is stored for the backward pass."""
    return jax.checkpoint(lambda *arguments: function(*arguments)) if remat else function


@jax.jit
def embed_scan(encoder: PerceiverEncoder, observed: Observed) -> Float[Array, "V D"]:
    r"""Embedding of every location of one whole scan.

    .. math:: z_v = \operatorname{normalise}(M^{-1/2} (x_v + W (h_v - \bar h)))

    with x and M as in `linear.embed`: M is the scan's own shrunk covariance, here of the corrected components. What the correction
    adds to all locations alike says nothing of any, and is taken out as the mean fingerprint is.

    Args:
      encoder: weights.
      observed: one recording.

    Returns:
      z, rows of length 1, 0 where not counted, `[V, D]`.

    Memory: y and a few `[V, D]`, and `config.block` locations' states: the locations go through the network in blocks, once to
    write to the latents, once to read from them.
    """
    x = components(encoder, observed)
    return whiten(x, own_metric(x))


@jax.jit
def components(encoder: PerceiverEncoder, observed: Observed) -> Float[Array, "V D"]:
    """Corrected components on axes that all scans share, in blocks; arguments are those of `embed_scan`."""
    y, kept, frames, counted, region, xyz, log_tsnr, tr = (jnp.asarray(x) for x in observed)
    x = project(encoder.linear, y, region, kept, counted)
    locations, recording = (x, y, counted, xyz, log_tsnr), (kept, frames, tr)
    seen = merged(over_parts(_write, locations, (encoder, recording)))
    thoughts = network(encoder).perceiver.thoughts(seen, False)
    return x + centre(over_parts(_read, locations, (encoder, recording, thoughts)), counted.astype(x.dtype))


def _write(x: Array, y: Array, counted: Array, xyz: Array, log_tsnr: Array, encoder: PerceiverEncoder, recording: Any) -> Pooled:
    """What the latents see of the locations, with an axis for the parts of the locations in front."""
    layers, (size, due, starts) = network(encoder).perceiver, _blocks(encoder, len(x))
    latents = layers.latents[...]

    def write(seen: Pooled, block: tuple[Array, Array]) -> tuple[Pooled, None]:
        due, start = block
        state, there = _tokens(layers, start, size, (x, y, counted, xyz, log_tsnr), recording)
        return layers.write.pool(latents, seen, state, there & (start + jnp.arange(size) >= due)), None

    return jax.tree.map(lambda one: one[None], jax.lax.scan(write, layers.write.start(latents), (due, starts))[0])


def _read(
    x: Array, y: Array, counted: Array, xyz: Array, log_tsnr: Array, encoder: PerceiverEncoder, recording: Any, thoughts: Array
) -> Float[Array, "V D"]:
    """What the locations read from the latents."""
    layers, (size, _, starts) = network(encoder).perceiver, _blocks(encoder, len(x))

    def read(out: Array, start: Array) -> tuple[Array, None]:
        state, _ = _tokens(layers, start, size, (x, y, counted, xyz, log_tsnr), recording)
        return jax.lax.dynamic_update_slice_in_dim(out, layers.correction(layers.listen(state, thoughts)), start, 0), None

    return jax.lax.scan(read, jnp.zeros_like(x), starts)[0]


def _blocks(encoder: PerceiverEncoder, count: int) -> tuple[int, Array, Array]:
    """How many locations a block has, where each is due, and where it begins.

    The last one begins earlier than it should, to be as long as the others: no copy of y to pad it.
    """
    size = min(encoder.config.block, count)
    due = jnp.arange(0, count, size)
    return size, due, jnp.minimum(due, count - size)


def _tokens(layers: Perceiver, start: Array, size: int, locations: Any, recording: Any) -> tuple[Array, Array]:
    """States of a block of locations, and which of them count."""
    x, y, there, xyz, log_tsnr = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in locations)
    kept, frames, tr = recording
    place, signal = (jnp.where(there[:, None], rows, 0.0) for rows in (xyz, y))
    return layers.tokens(signal_features(x, signal, kept, frames, tr, jnp.where(there, log_tsnr, 0.0)), place, None), there
