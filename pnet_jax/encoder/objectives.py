r"""The five terms of pre-training, each 0 cost at weight 0: split + .5 nce + .5 mae + .1 vic + .1 dyn.

Terms are relative to what is to be explained, so that each begins near 1 or below whatever the scan: a table of 200 regions, a TR
of .7 or 3 s, half of the references empty, 30 frames.
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
WINDOWS = 20  # of a segment at most; what comes later is not reconstructed
COSINES = 8
BALLS = 128  # drawn, of which as many are used as hide the share that was asked
NOISE_FLOOR = 0.05  # of the mean noise variance, so that no reference has all the weight


def total(
    encoder: PerceiverEncoder, segments: Segments, key: PRNGKeyArray, config: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of the terms of a batch.

    Args:
      encoder: weights; differentiate by `encoder.params`.
      segments: a batch.
      key: of the balls that are hidden and the negatives that are drawn; a scan's own are those of its record number.
      config: weights of the terms. Those of weight 0 are not computed.

    Returns:
      The loss, and every term before its weight, with `split_r2` beside `split`.
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


# split: the other segment's fingerprint


def _split_term(heads: Heads, views: View, s: Any) -> tuple[Array, Array]:
    predicted = jax.vmap(jax.vmap(heads.fingerprint))(views.x)
    present = (jnp.abs(s.references).max(-1) > 0).all(1)  # [B, R]
    return split_loss(predicted, views.fingerprint, s.counted, present)


def split_loss(
    predicted: Float[Array, "B 2 V R"], found: Float[Array, "B 2 V R"], counted: Bool[Array, "B V"], present: Bool[Array, "B R"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""How far a segment's prediction is from the fingerprint of the *other* one, whose noise it cannot know (Noise2Noise).

    .. math::
      L = \frac{\sum w_r (\hat f^A_{vr} - f^B_{vr})^2 + w_r (\hat f^B_{vr} - f^A_{vr})^2}{\sum w_r (f_{vr}^A)^2 + w_r (f_{vr}^B)^2},
      \qquad 1 / w_r = \tfrac12 \operatorname{E}_v (f^A_{vr} - f^B_{vr})^2 + \text{floor}

    Returns:
      The loss (1 for a prediction of 0), and the share of variance explained with all references weighing the same.
    """
    valid = (counted[:, :, None] & present[:, None, :]).astype(found.dtype)  # [B, V, R]
    apart = jnp.square(found[:, 0] - found[:, 1]) * valid
    noise = apart.sum((0, 1)) / 2 / jnp.maximum(valid.sum((0, 1)), 1.0)
    mean = apart.sum() / 2 / jnp.maximum(valid.sum(), 1.0)
    weight = jax.lax.stop_gradient(1 / (noise + NOISE_FLOOR * mean + 1e-6))
    error = (jnp.square(predicted - found[:, ::-1]).sum(1) * valid).sum((0, 1))  # [R]
    variance = (jnp.square(found).sum(1) * valid).sum((0, 1))
    return share(error @ weight, variance @ weight), 1 - share(error.sum(), variance.sum())


# nce: a location against others of its scan and hemisphere


def nce_loss(
    z: Float[Array, "2 V D"],
    xyz: Float[Array, "V 3"],
    hemisphere: Int[Array, " V"],
    counted: Bool[Array, " V"],
    key: PRNGKeyArray,
    config: ObjectiveConfig,
) -> Float[Array, ""]:
    """InfoNCE of one scan: to find a location of one segment in the other, among the others' `negatives`, in nats."""
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
    """Which locations each anchor is told from: half of them near, the rest anywhere in the hemisphere but nearer than that."""
    nearest, farthest = config.near_mm
    square = jnp.square(xyz[anchors][:, None] - xyz[None]).sum(-1)
    able = counted[None, :] & (hemisphere[anchors][:, None] == hemisphere[None, :]) & (square >= nearest**2)
    near = able & (square <= farthest**2)
    draw = jax.random.uniform(key, able.shape)
    count = min(config.negatives, able.shape[1])
    near = _largest(draw, near, max(count // 2, 1))
    return _largest(jnp.where(near, draw + 1, draw), able, count)


def _largest(score: Float[Array, "n V"], able: Bool[Array, "n V"], count: int) -> Bool[Array, "n V"]:
    """The `count` highest scores of those able; all of these where they are fewer."""
    score = jnp.where(able, score, -1.0)
    return able & (score >= jnp.sort(score, axis=1)[:, -count][:, None])


def _first(order: Float[Array, " V"], count: int) -> Int[Array, " n"]:
    """Where the highest values are, the highest first. `jax.lax.top_k` would bring the scans of all devices to each of them."""
    return jnp.argsort(-order)[:count]


# mae: hidden balls


def _mae_term(encoder: PerceiverEncoder, config: ObjectiveConfig, s: Any, key: PRNGKeyArray) -> Float[Array, ""]:
    """Of one of the two segments of one scan, drawn by lot."""
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
    """Locations and reference points inside random balls: as many balls as hide `share` of the locations at most, at least one."""
    order = jnp.where(counted, jax.random.uniform(key, counted.shape), -1.0)
    centres = _first(order, BALLS)
    count = len(centres)

    def first(places: Array) -> Array:
        square = jnp.square(places[:, None] - xyz[centres][None]).sum(-1)
        inside = (square <= radius**2) & counted[centres][None, :]
        return jnp.where(inside, jnp.arange(count)[None, :], count).min(1)  # the first ball around each, or `count`

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
    r"""Error of hidden locations' window coefficients, reconstructed from those of the reference signals that can be seen.

    .. math:: L = \frac{\sum_{v,w,j} (c_{vwj} - \sum_r a_{vr} c_{rwj})^2}{\sum_{v,w,j} c_{vwj}^2}

    The network says the weights a, one vector a location for all windows; the references, of variance 1 and 0 where hidden, say what
    happened when. So neither V, T nor the number of windows is in a parameter, and a says what a location is a mixture of.
    """
    basis = window_basis(kept, frames, tr)  # [T, W · 8]
    weight, hidden = kept.astype(y.dtype), hidden.astype(y.dtype)
    own = y @ basis
    others = unit(references, weight) * jnp.sqrt(weight.sum()) @ basis
    error = jnp.square(own - weights @ others).sum(1)
    return share((error * hidden).sum(), (jnp.square(own).sum(1) * hidden).sum())


def window_basis(kept: Bool[Array, " T"], frames: Int[Array, " T"], tr: Float[ArrayLike, ""]) -> Float[Array, "T b"]:
    """The first 8 cosines of every 32 s of the recording, as means over the kept frames of a window; 0 where these fill less than 90 %."""
    seconds = (since_first(kept, frames) + 0.5) * tr
    window = jnp.floor(seconds / WINDOW_SECONDS)
    inside = (window[:, None] == jnp.arange(WINDOWS, dtype=jnp.float32)[None, :]) & kept[:, None]  # [T, W]
    size = inside.sum(0).astype(jnp.float32)
    full = size * tr >= (0.9 - 1e-6) * WINDOW_SECONDS  # 40 frames of .72 s are nine tenths of a window: rounding must not decide
    mean = jnp.where(inside & full[None, :], 1 / jnp.maximum(size, 1.0)[None, :], 0.0)
    phase = jnp.pi * (seconds / WINDOW_SECONDS - window)
    cosines = jnp.cos(phase[:, None] * jnp.arange(COSINES, dtype=jnp.float32)[None, :])  # [T, 8]
    scale = jnp.where(jnp.arange(COSINES) > 0, jnp.sqrt(2.0), 1.0)
    return (mean[:, :, None] * (cosines * scale[None, :])[:, None, :]).reshape(len(kept), -1)


# vic: no dimension empty, no two alike


def vic_loss(z: Float[Array, "V D"], counted: Bool[Array, " V"]) -> Float[Array, ""]:
    """VICReg: the lack of variance of every dimension, and the covariance of every two, of z scaled to a variance of 1 in all."""
    weight = counted.astype(z.dtype)
    size, dimensions = jnp.maximum(weight.sum(), 1.0), z.shape[1]
    centred = centre(z, weight) * jnp.sqrt(dimensions)
    covariance = centred.T @ centred / size
    variance = jnp.diagonal(covariance)
    lack = jax.nn.relu(1 - jnp.sqrt(variance + 1e-4)).mean()
    return lack + (jnp.square(covariance).sum() - jnp.square(variance).sum()) / dimensions
