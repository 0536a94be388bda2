"""Neural encoder: the linear encoder plus a correction computed by a Perceiver from the whole scan."""

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

SIGNALS = 2 * len(FREQUENCIES) + 1  # number of features that `signal_features` adds to the components

jax.tree_util.register_static(PerceiverConfig)  # part of a tree's structure, not of its leaves


class PerceiverEncoder(NamedTuple):
    """Weights and sizes of the neural encoder; a pytree whose leaves are arrays.

    Attributes:
      linear: linear encoder that is corrected; not trained.
      params: `{"perceiver": …, "heads": …}`, nested dicts of float32 arrays; the heads are used only by the objectives.
      config: sizes of the layers.
    """

    linear: LinearEncoder
    params: dict[str, Any]
    config: PerceiverConfig

    @property
    def references(self) -> Float[np.ndarray, "R 3"]:
        """MNI coordinates of the reference points in mm."""
        return self.linear.references


class Perceiver(nnx.Module):
    """Perceiver: latents attend to locations, latents attend to each other, and locations attend to latents."""

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
        """Embed the signal of each location, with its position if configured; for hidden locations, only the position."""
        said = self.signal(signals)
        if hidden is None and not self.tells_place:
            return self.token(said)
        place = self.place(position_features(xyz))
        said = said + place if self.tells_place else said
        return self.token(said if hidden is None else jnp.where(hidden[:, None], self.hidden[...][None, :] + place, said))

    def thoughts(self, seen: Pooled, remat: bool) -> Float[Array, "M w"]:
        """Return the latents after attending to all locations and to each other."""
        latents = self.write.finish(self.latents[...], seen)
        for name in sorted(self.think):
            latents = _stored(self.think[name], remat)(latents)
        return latents

    def listen(self, state: Float[Array, "V w"], thoughts: Float[Array, "M w"]) -> Float[Array, "V w"]:
        """Return the final states of locations after attending to the latents."""
        return self.norm(self.read(state, thoughts))


class Heads(nnx.Module):
    """Output heads used only by the objectives.

    Attributes:
      fingerprint: map from components to a centred fingerprint, `[D] → [R]`.
      weights: map from a location's state to the weights with which reference signals reconstruct its signal, `[width] → [R]`.
      turn, damp: parameters of the generator of the latent dynamics in 1/s, `[D, D]`.
    """

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        size = config.dimensions
        self.fingerprint = Dense(size, config.references, "float32", rngs=rngs, bias=False)
        self.weights = Dense(config.width, config.references, config.dtype, rngs=rngs, zero=True)
        self.turn = nnx.Param(jnp.zeros((size, size), jnp.float32))
        self.damp = nnx.Param(0.3 * jnp.eye(size, dtype=jnp.float32))  # decay time of 11 s


class PerceiverWithHeads(nnx.Module):
    """The Perceiver and its output heads."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.perceiver = Perceiver(config, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)


def init(linear: LinearEncoder, config: PerceiverConfig, key: PRNGKeyArray) -> PerceiverEncoder:
    """Initialise an encoder whose embedding is exactly that of the linear encoder.

    Args:
      linear: linear encoder to be corrected.
      config: sizes of the layers.
      key: random key of the weights.

    Returns:
      The encoder.

    Raises:
      ValueError: If the dimensions or references of the linear encoder differ from the configuration.
    """
    expected = (config.references, config.dimensions)
    if linear.projection.shape != expected:
        raise ValueError(
            f"expected a linear encoder with {expected} references and dimensions as configured, got {linear.projection.shape}"
        )
    params = nnx.to_pure_dict(nnx.state(PerceiverWithHeads(config, rngs=nnx.Rngs(key))))
    params["heads"]["fingerprint"]["kernel"] = jnp.asarray(linear.decoder)
    return PerceiverEncoder(linear, params, config)


def network(encoder: PerceiverEncoder) -> PerceiverWithHeads:
    """Return the layers with the weights of the encoder."""
    return nnx.merge(_graph(encoder.config), encoder.params)


@functools.lru_cache
def _graph(config: PerceiverConfig) -> nnx.GraphDef[PerceiverWithHeads]:
    return nnx.split(nnx.eval_shape(lambda: PerceiverWithHeads(config, rngs=nnx.Rngs(0))))[0]


def encode(
    encoder: PerceiverEncoder,
    x: Float[Array, "V D"],
    signals: Float[Array, "V F"],
    xyz: Float[Array, "V 3"],
    counted: Bool[Array, " V"],
    hidden: Bool[Array, " V"] | None = None,
) -> tuple[Float[Array, "V D"], Float[Array, "V w"]]:
    """Compute the corrected components of one segment, on axes shared by all scans; use `jax.vmap` for several segments.

    Args:
      encoder: weights of the encoder.
      x: linear components, `[V, D]`.
      signals: features from `tokens.signal_features`, `[V, D + 33]`.
      xyz: MNI coordinates in mm, `[V, 3]`.
      counted: mask of the included locations, `[V]`.
      hidden: mask of the locations for which only the position is used, `[V]`; latents do not attend to them.

    Returns:
      x plus the centred correction W h, 0 if not counted, `[V, D]`, and the state h of every location, `[V, width]`.

    Memory: `[V, width · mlp]` and `[heads, M, V]`; for less memory, use `embed_scan`.
    """
    layers, remat = network(encoder).perceiver, encoder.config.remat
    state = _stored(layers.tokens, remat)(signals, jnp.where(counted[:, None], xyz, 0.0), hidden)
    latents = layers.latents[...]
    heard = counted if hidden is None else counted & ~hidden
    seen = _stored(layers.write.pool, remat)(latents, layers.write.start(latents), state, heard)
    state = _stored(layers.listen, remat)(state, layers.thoughts(seen, remat))
    return x + centre(layers.correction(state), counted.astype(x.dtype)), state


def _stored(function: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """Return the function, rematerialised in the backward pass if `remat`."""
    return jax.checkpoint(lambda *arguments: function(*arguments)) if remat else function


@jax.jit
def embed_scan(encoder: PerceiverEncoder, observed: Observed) -> Float[Array, "V D"]:
    r"""Compute the embedding of every location of a whole scan.

    .. math:: z_v = \operatorname{normalise}(M^{-1/2} (x_v + W (h_v - \bar h)))

    with x and M as in `linear.embed`; here, M is the shrunk covariance of the corrected components of the scan. The mean of the
    correction over locations is uninformative and removed, like the mean fingerprint.

    Args:
      encoder: weights of the encoder.
      observed: one recording.

    Returns:
      Embeddings z with rows of unit length, 0 if not counted, `[V, D]`.

    Memory: y, a few `[V, D]`, and the states of `config.block` locations: locations pass through the network in blocks, once for
    the latents to attend to them, once for them to attend to the latents.
    """
    x = components(encoder, observed)
    return whiten(x, own_metric(x))


@jax.jit
def components(encoder: PerceiverEncoder, observed: Observed) -> Float[Array, "V D"]:
    """Compute the corrected components of `embed_scan` in blocks, on axes shared by all scans, `[V, D]`."""
    y, kept, frames, counted, region, xyz, log_tsnr, tr = (jnp.asarray(x) for x in observed)
    x = project(encoder.linear, y, region, kept, counted)
    locations, recording = (x, y, counted, xyz, log_tsnr), (kept, frames, tr)
    seen = merged(over_parts(_write, locations, (encoder, recording)))
    thoughts = network(encoder).perceiver.thoughts(seen, False)
    return x + centre(over_parts(_read, locations, (encoder, recording, thoughts)), counted.astype(x.dtype))


def _write(x: Array, y: Array, counted: Array, xyz: Array, log_tsnr: Array, encoder: PerceiverEncoder, recording: Any) -> Pooled:
    """Return the running averages of the latents over the locations, with a leading axis for the shards of the locations."""
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
    """Return the corrections of the locations after attending to the latents."""
    layers, (size, _, starts) = network(encoder).perceiver, _blocks(encoder, len(x))

    def read(out: Array, start: Array) -> tuple[Array, None]:
        state, _ = _tokens(layers, start, size, (x, y, counted, xyz, log_tsnr), recording)
        return jax.lax.dynamic_update_slice_in_dim(out, layers.correction(layers.listen(state, thoughts)), start, 0), None

    return jax.lax.scan(read, jnp.zeros_like(x), starts)[0]


def _blocks(encoder: PerceiverEncoder, count: int) -> tuple[int, Array, Array]:
    """Return the block size, the nominal start of each block, and its actual start.

    The last block starts earlier than its nominal start, so that it is as long as the others without padding y.
    """
    size = min(encoder.config.block, count)
    due = jnp.arange(0, count, size)
    return size, due, jnp.minimum(due, count - size)


def _tokens(layers: Perceiver, start: Array, size: int, locations: Any, recording: Any) -> tuple[Array, Array]:
    """Return the tokens of a block of locations, and the mask of the included ones."""
    x, y, there, xyz, log_tsnr = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in locations)
    kept, frames, tr = recording
    place, signal = (jnp.where(there[:, None], rows, 0.0) for rows in (xyz, y))
    return layers.tokens(signal_features(x, signal, kept, frames, tr, jnp.where(there, log_tsnr, 0.0)), place, None), there
