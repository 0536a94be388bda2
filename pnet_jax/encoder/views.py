"""Encoder outputs of a batch, used by the objectives."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.encoder.linear import centre, own_metric, whiten
from pnet_jax.encoder.perceiver import PerceiverEncoder, encode
from pnet_jax.encoder.tokens import Segments, signal_features
from pnet_jax.ops.fingerprint import fingerprint


class View(NamedTuple):
    """Encoder inputs and outputs of one segment.

    Attributes:
      y: signals, 0 if masked, `[V, T]`.
      fingerprint: fingerprints, centred over locations, `[V, R]`.
      x: corrected components, `[V, D]`.
      state: final state of every location, `[V, width]`.
    """

    y: Float[Array, "V T"]
    fingerprint: Float[Array, "V R"]
    x: Float[Array, "V D"]
    state: Float[Array, "V w"]


def look(encoder: PerceiverEncoder, segments: Segments) -> View:
    """Encode both segments of every scan separately, and return a `View` with leading axes `[B, 2]`."""
    both = jax.vmap(functools.partial(look_once, encoder), (0, 0, 0, 0, None, None, 0, 0))
    s = arrays(segments)
    return jax.vmap(both)(s.y, s.kept, s.frames, s.references, s.xyz, s.counted, s.log_tsnr, s.tr)


def look_once(
    encoder: PerceiverEncoder,
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
    frames: Int[Array, " T"],
    references: Float[Array, "R T"],
    xyz: Float[Array, "V 3"],
    counted: Bool[Array, " V"],
    log_tsnr: Float[Array, " V"],
    tr: Float[Array, ""],
    hidden: Bool[Array, " V"] | None = None,
) -> View:
    """Encode one segment; for `hidden` locations, only the position is used."""
    y = jnp.where(counted[:, None] & kept[None, :], y.astype(jnp.float32), 0.0)
    references = jnp.where(kept[None, :], references, 0.0)
    f = centre(fingerprint(y, references, kept=kept, implementation="reference"), counted.astype(jnp.float32))
    x = jnp.matmul(f, jnp.asarray(encoder.linear.projection), precision="highest")
    signals = signal_features(x, y, kept, frames, tr, jnp.where(counted, log_tsnr, 0.0))
    return View(y, f, *encode(encoder, x, signals, xyz, counted, hidden))


def shared(x: Float[Array, "2 V D"]) -> Float[Array, "2 V D"]:
    """Return the embeddings of a scan's two segments on common axes, whitened by the mean of their metrics."""
    return jax.vmap(whiten, (0, None))(x, jax.vmap(own_metric)(x).mean(0))


def arrays(segments: Segments) -> Any:
    """Convert the arrays of a batch to JAX arrays."""
    return jax.tree.map(jnp.asarray, segments)


def share(part: Float[Array, ""], whole: Float[Array, ""]) -> Float[Array, ""]:
    """Return part / whole, 0 if `whole` is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
