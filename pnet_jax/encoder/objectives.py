r"""The five terms of the pre-training objective: split + 0.5 nce + 0.5 mae + 0.1 vic + 0.1 dyn. Terms of weight 0 are not computed.

Terms are normalised by the variance to be explained, so that each starts near or below 1 for any scan, e.g. with 200 ROIs, a TR
of 0.7 or 3 s, half of the references empty, or 30 frames.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pnet_jax.config import ObjectiveConfig
from pnet_jax.dynamics.forecast import generator
from pnet_jax.encoder.dynamics import dyn_loss
from pnet_jax.encoder.linear import centre
from pnet_jax.encoder.perceiver import Heads, PerceiverEncoder, network
from pnet_jax.encoder.tokens import Segments, since_first
from pnet_jax.encoder.views import View, arrays, look, look_once, share, shared
from pnet_jax.ops.fingerprint.reference import unit

TERMS = ("split", "nce", "mae", "vic", "dyn")
WINDOW_SECONDS = 32.0
WINDOWS = 20  # maximum number of windows per segment; later frames are not reconstructed
COSINES = 8
BALLS = 128  # number of balls drawn, of which only as many are used as needed to hide the configured share
NOISE_FLOOR = 0.05  # floor relative to the mean noise variance, so that no reference dominates


def total(
    encoder: PerceiverEncoder, segments: Segments, key: PRNGKeyArray, config: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Compute the weighted sum of the terms of a batch.

    Args:
      encoder: weights of the encoder; differentiate with respect to `encoder.params`.
      segments: the batch.
      key: random key of the hidden balls and the negatives, combined with the record number of each scan.
      config: weights of the terms; terms of weight 0 are not computed.

    Returns:
      The loss, and the unweighted terms by name, including `split_r2`.
    """
    terms: dict[str, Array] = {}
    s = arrays(segments)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, s.record)
    if config.split or config.nce or config.vic or config.dyn:
        views, heads = look(encoder, segments), network(encoder).heads
    if config.split:
        terms["split"], terms["split_r2"] = _split_term(heads, views, s)
    if config.nce or config.vic or config.dyn:
        z = jax.vmap(shared)(views.x)  # [B, 2, V, D]
    if config.nce:
        one = functools.partial(nce_loss, config=config)
        terms["nce"] = jax.vmap(one)(z, s.xyz, s.hemisphere, s.counted, keys).mean()
    if config.mae:
        terms["mae"] = jax.vmap(functools.partial(_mae_term, encoder, config))(s, keys).mean()
    if config.vic:
        terms["vic"] = jax.vmap(jax.vmap(vic_loss, (0, None)))(z, s.counted).mean()
    if config.dyn:
        one = functools.partial(dyn_loss, generator(heads.turn[...], heads.damp[...]), horizon=config.horizon)
        terms["dyn"] = jax.vmap(jax.vmap(one, (0, 0, 0, 0, None, 0)))(z, views.y, s.kept, s.frames, s.counted, s.tr).mean()
    parts = [getattr(config, name) * terms[name] for name in TERMS if name in terms]
    return functools.reduce(jnp.add, parts, jnp.zeros(())), terms


# split: prediction of the other segment's fingerprint


def _split_term(heads: Heads, views: View, s: Any) -> tuple[Array, Array]:
    predicted = jax.vmap(jax.vmap(heads.fingerprint))(views.x)
    present = (jnp.abs(s.references).max(-1) > 0).all(1)  # [B, R]
    return split_loss(predicted, views.fingerprint, s.counted, present)


def split_loss(
    predicted: Float[Array, "B 2 V R"], found: Float[Array, "B 2 V R"], counted: Bool[Array, "B V"], present: Bool[Array, "B R"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Compute the error of predicting the fingerprint of the *other* segment, whose noise is independent (Noise2Noise).

    .. math::
      L = \frac{\sum w_r (\hat f^A_{vr} - f^B_{vr})^2 + w_r (\hat f^B_{vr} - f^A_{vr})^2}{\sum w_r (f_{vr}^A)^2 + w_r (f_{vr}^B)^2},
      \qquad 1 / w_r = \tfrac12 \operatorname{E}_v (f^A_{vr} - f^B_{vr})^2 + \text{floor}

    Returns:
      The loss, which is 1 for a prediction of 0, and the share of variance explained with equal weights of all references.
    """
    valid = (counted[:, :, None] & present[:, None, :]).astype(found.dtype)  # [B, V, R]
    apart = jnp.square(found[:, 0] - found[:, 1]) * valid
    noise = apart.sum((0, 1)) / 2 / jnp.maximum(valid.sum((0, 1)), 1.0)
    mean = apart.sum() / 2 / jnp.maximum(valid.sum(), 1.0)
    weight = jax.lax.stop_gradient(1 / (noise + NOISE_FLOOR * mean + 1e-6))
    error = (jnp.square(predicted - found[:, ::-1]).sum(1) * valid).sum((0, 1))  # [R]
    variance = (jnp.square(found).sum(1) * valid).sum((0, 1))
    return share(error @ weight, variance @ weight), 1 - share(error.sum(), variance.sum())


# nce: contrast of a location with others of its scan and hemisphere


def nce_loss(
    z: Float[Array, "2 V D"],
    xyz: Float[Array, "V 3"],
    hemisphere: Int[Array, " V"],
    counted: Bool[Array, " V"],
    key: PRNGKeyArray,
    config: ObjectiveConfig,
) -> Float[Array, ""]:
    """Compute the InfoNCE loss of one scan in nats: identification of a location of one segment in the other, among its `negatives`."""
    first, second = jax.random.split(key)
    order = jnp.where(counted, jax.random.uniform(first, counted.shape), -1.0)
    anchors = _first(order, config.anchors)  # [n]
    against = negatives(anchors, xyz, hemisphere, counted, second, config)  # [n, V]
    some = counted[anchors] & against.any(1)

    def one_way(a: Array, b: Array) -> Array:
        logits = (a[anchors] @ b.T) / config.temperature
        own = (a[anchors] * b[anchors]).sum(1) / config.temperature
        everyone = jnp.logaddexp(own, jax.nn.logsumexp(jnp.where(against, logits, -1e9), axis=1))
        return jnp.where(some, everyone - own, 0.0).sum() / jnp.maximum(some.sum().astype(z.dtype), 1.0)

    return (one_way(z[0], z[1]) + one_way(z[1], z[0])) / 2


def negatives(
    anchors: Int[Array, " n"],
    xyz: Float[Array, "V 3"],
    hemisphere: Int[Array, " V"],
    counted: Bool[Array, " V"],
    key: PRNGKeyArray,
    config: ObjectiveConfig,
) -> Bool[Array, "n V"]:
    """Draw the negatives of each anchor: half of them near, the rest anywhere in the hemisphere beyond the minimum distance."""
    nearest, farthest = config.near_mm
    square = jnp.square(xyz[anchors][:, None] - xyz[None]).sum(-1)
    able = counted[None, :] & (hemisphere[anchors][:, None] == hemisphere[None, :]) & (square >= nearest**2)
    near = able & (square <= farthest**2)
    draw = jax.random.uniform(key, able.shape)
    count = min(config.negatives, able.shape[1])
    near = _largest(draw, near, max(count // 2, 1))
    return _largest(jnp.where(near, draw + 1, draw), able, count)


def _largest(score: Float[Array, "n V"], able: Bool[Array, "n V"], count: int) -> Bool[Array, "n V"]:
    """Return the mask of the `count` highest scores among those in `able`; all of them if there are fewer."""
    score = jnp.where(able, score, -1.0)
    return able & (score >= jnp.sort(score, axis=1)[:, -count][:, None])


def _first(order: Float[Array, " V"], count: int) -> Int[Array, " n"]:
    """Return the indices of the highest values, in descending order. `jax.lax.top_k` would gather the scans of all devices on each."""
    return jnp.argsort(-order)[:count]


# mae: reconstruction of hidden balls


def _mae_term(encoder: PerceiverEncoder, config: ObjectiveConfig, s: Any, key: PRNGKeyArray) -> Float[Array, ""]:
    """Compute the reconstruction loss of one randomly drawn segment of a scan."""
    lot, balls = jax.random.split(key)
    side = jax.random.bernoulli(lot).astype(jnp.int32)
    y, kept, frames, references, log_tsnr, tr = (a[side] for a in (s.y, s.kept, s.frames, s.references, s.log_tsnr, s.tr))
    points = jnp.asarray(encoder.linear.references)
    hidden, dark = hide_balls(s.xyz, points, s.counted, balls, config.masked, config.ball_mm)
    view = look_once(encoder, y, kept, frames, references, s.xyz, s.counted, log_tsnr, tr, hidden)
    weights = network(encoder).heads.weights(view.state)
    return mae_loss(weights, view.y, jnp.where(dark[:, None], 0.0, references), kept, frames, tr, hidden)


def hide_balls(
    xyz: Float[Array, "V 3"],
    points: Float[Array, "R 3"],
    counted: Bool[Array, " V"],
    key: PRNGKeyArray,
    share: float,
    radius: float,
) -> tuple[Bool[Array, " V"], Bool[Array, " R"]]:
    """Return the masks of locations and reference points inside random balls: as many as hide at most `share` of the locations, but one
    at least."""
    order = jnp.where(counted, jax.random.uniform(key, counted.shape), -1.0)
    centres = _first(order, BALLS)
    count = len(centres)

    def first(places: Array) -> Array:
        square = jnp.square(places[:, None] - xyz[centres][None]).sum(-1)
        inside = (square <= radius**2) & counted[centres][None, :]
        return jnp.where(inside, jnp.arange(count)[None, :], count).min(1)  # the first ball that contains each, or `count`

    covered = jnp.where(counted, first(xyz), count)
    size = jnp.cumsum(jnp.zeros(count + 1).at[covered].add(counted.astype(jnp.float32))[:count])
    balls = jnp.maximum((size <= share * counted.astype(jnp.float32).sum()).sum(), 1)
    return counted & (covered < balls), first(points) < balls


def mae_loss(
    weights: Float[Array, "V R"],
    y: Float[Array, "V T"],
    references: Float[Array, "R T"],
    kept: Bool[Array, " T"],
    frames: Int[Array, " T"],
    tr: Float[ArrayLike, ""],
    hidden: Bool[Array, " V"],
) -> Float[Array, ""]:
    r"""Compute the error of the hidden locations' window coefficients, reconstructed from those of the visible reference signals.

    .. math:: L = \frac{\sum_{v,w,j} (c_{vwj} - \sum_r a_{vr} c_{rwj})^2}{\sum_{v,w,j} c_{vwj}^2}

    The network predicts the weights a, one vector per location for all windows; the time courses are those of the references, with
    variance 1, or 0 if hidden. No parameter shape therefore depends on V, T or the number of windows, and a describes each location as
    a mixture of references.
    """
    basis = window_basis(kept, frames, tr)  # [T, W · 8]
    weight, hidden = kept.astype(y.dtype), hidden.astype(y.dtype)
    own = y @ basis
    others = unit(references, weight) * jnp.sqrt(weight.sum()) @ basis
    error = jnp.square(own - weights @ others).sum(1)
    return share((error * hidden).sum(), (jnp.square(own).sum(1) * hidden).sum())


def window_basis(kept: Bool[Array, " T"], frames: Int[Array, " T"], tr: Float[ArrayLike, ""]) -> Float[Array, "T b"]:
    """Return the first 8 cosines in windows of 32 s, normalised by the number of kept frames; 0 for windows that are filled below 90 %."""
    seconds = (since_first(kept, frames) + 0.5) * tr
    window = jnp.floor(seconds / WINDOW_SECONDS)
    inside = (window[:, None] == jnp.arange(WINDOWS, dtype=jnp.float32)[None, :]) & kept[:, None]  # [T, W]
    size = inside.sum(0).astype(jnp.float32)
    full = size * tr >= (0.9 - 1e-6) * WINDOW_SECONDS  # 40 frames of 0.72 s fill exactly 90 % of a window, so a tolerance is needed
    mean = jnp.where(inside & full[None, :], 1 / jnp.maximum(size, 1.0)[None, :], 0.0)
    phase = jnp.pi * (seconds / WINDOW_SECONDS - window)
    cosines = jnp.cos(phase[:, None] * jnp.arange(COSINES, dtype=jnp.float32)[None, :])  # [T, 8]
    scale = jnp.where(jnp.arange(COSINES) > 0, jnp.sqrt(2.0), 1.0)
    return (mean[:, :, None] * (cosines * scale[None, :])[:, None, :]).reshape(len(kept), -1)


# vic: variance and covariance of the dimensions


def vic_loss(z: Float[Array, "V D"], counted: Bool[Array, " V"]) -> Float[Array, ""]:
    """Compute the VICReg loss of z scaled to mean variance 1: the variance deficit of each dimension plus squared covariances."""
    weight = counted.astype(z.dtype)
    size, dimensions = jnp.maximum(weight.sum(), 1.0), z.shape[1]
    centred = centre(z, weight) * jnp.sqrt(dimensions)
    covariance = centred.T @ centred / size
    variance = jnp.diagonal(covariance)
    lack = jax.nn.relu(1 - jnp.sqrt(variance + 1e-4)).mean()
    return lack + (jnp.square(covariance).sum() - jnp.square(variance).sum()) / dimensions
