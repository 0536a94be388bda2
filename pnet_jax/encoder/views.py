"""What the encoder makes of a batch, for the objectives to compare."""

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
    """One segment as the encoder sees it.

    Attributes:
      y: signals, 0 where they do not count, `[V, T]`.
      fingerprint: without its mean over locations, `[V, R]`.
      x: corrected components, `[V, D]`.
      state: of every location, `[V, width]`.
    """

    y: Float[Array, "V T"]
    fingerprint: Float[Array, "V R"]
    x: Float[Array, "V D"]
    state: Float[Array, "V w"]


def look(encoder: PerceiverEncoder, segments: Segments) -> View:
    """Both segments of every scan, each on its own: `View` with leading axes `[B, 2]`."""
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
    """One segment, of which the `hidden` locations show only where they are."""
    y = jnp.where(counted[:, None] & kept[None, :], y.astype(jnp.float32), 0.0)
    references = jnp.where(kept[None, :], references, 0.0)
    f = centre(fingerprint(y, references, kept=kept, implementation="reference"), counted.astype(jnp.float32))
    x = jnp.matmul(f, jnp.asarray(encoder.linear.projection), precision="highest")
    signals = signal_features(x, y, kept, frames, tr, jnp.where(counted, log_tsnr, 0.0))
    return View(y, f, *encode(encoder, x, signals, xyz, counted, hidden))


def shared(x: Float[Array, "2 V D"]) -> Float[Array, "2 V D"]:
    """Embeddings of a scan's two segments on the same axes: both are whitened by the mean of their metrics."""
    return jax.vmap(whiten, (0, None))(x, jax.vmap(own_metric)(x).mean(0))


def arrays(segments: Segments) -> Any:
    """The batch on the device."""
    return jax.tree.map(jnp.asarray, segments)


def share(part: Float[Array, ""], whole: Float[Array, ""]) -> Float[Array, ""]:
    """part / whole, 0 where there is nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
