r"""The five terms of pre-training, each 0 cost at weight 0: split + .5 nce + .5 mae + .1 vic + .1 dyn.

Terms are relative to what is to be explained, so that each begins near 1 or below whatever the scan: a table of 200 regions, a TR
of .7 or 3 s, half of the references empty, 30 frames.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pnet_jax.config import ObjectiveConfig
from pnet_jax.encoder.linear import centre, own_metric, whiten
from pnet_jax.encoder.perceiver import Heads, PerceiverEncoder, encode, network
from pnet_jax.encoder.tokens import Segments, signal_features
from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.ops.fingerprint.reference import unit

WINDOW_SECONDS = 32.0
WINDOWS = 20  # of a segment at most; what comes later is not reconstructed
COSINES = 8
BALLS = 128  # drawn, of which as many are used as hide the share that was asked
NOISE_FLOOR = 0.05  # of the mean noise variance, so that no reference has all the weight
SLOWEST = 1e-3  # 1/s: the latent dynamics forget at least so fast


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
    segments = segments._replace(counted=jnp.asarray(segments.counted), references=jnp.asarray(segments.references, jnp.float32))
    keys = jax.vmap(lambda record: jax.random.fold_in(key, record))(jnp.asarray(segments.record))
    if config.split or config.nce or config.vic or config.dyn:
        views, counted, heads = look(encoder, segments), segments.counted, network(encoder).heads
    if config.split:
        terms["split"], terms["split_r2"] = _split_term(heads, views, segments)
    if config.nce or config.vic or config.dyn:
        z = jax.vmap(shared)(views.x)  # [B, 2, V, D]
    if config.nce:
        one = functools.partial(nce_loss, config=config)
        terms["nce"] = jax.vmap(one)(z, segments.xyz, segments.hemisphere, counted, keys).mean()
    if config.mae:
        terms["mae"] = jax.vmap(functools.partial(_mae_term, encoder, config))(segments, keys).mean()
    if config.vic:
        terms["vic"] = jax.vmap(jax.vmap(vic_loss, (0, None)))(z, counted).mean()
    if config.dyn:
        one = functools.partial(dyn_loss, generator(heads), horizon=config.horizon)
        terms["dyn"] = jax.vmap(jax.vmap(one, (0, 0, 0, None, 0)))(z, views.y, segments.kept, counted, segments.tr).mean()
    loss = sum((getattr(config, name) * terms[name] for name in ("split", "nce", "mae", "vic", "dyn") if name in terms), jnp.zeros(()))
    return loss, terms


def look(encoder: PerceiverEncoder, segments: Segments) -> View:
    """Both segments of every scan, each on its own: `View` with leading axes `[B, 2]`."""
    both = jax.vmap(functools.partial(look_once, encoder), (0, 0, 0, None, None, 0, 0))
    s = segments
    return jax.vmap(both)(s.y, s.kept, s.references, s.xyz, s.counted, s.log_tsnr, s.tr)


def look_once(
    encoder: PerceiverEncoder,
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
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
    signals = signal_features(x, y, kept, tr, jnp.where(counted, log_tsnr, 0.0))
    return View(y, f, *encode(encoder, x, signals, xyz, counted, hidden))


def shared(x: Float[Array, "2 V D"]) -> Float[Array, "2 V D"]:
    """Embeddings of a scan's two segments on the same axes: both are whitened by the mean of their metrics."""
    return jax.vmap(whiten, (0, None))(x, jax.vmap(own_metric)(x).mean(0))


# split: the other segment's fingerprint


def _split_term(heads: Heads, views: View, segments: Segments) -> tuple[Array, Array]:
    predicted = jax.vmap(jax.vmap(heads.fingerprint))(views.x)
    present = (jnp.abs(jnp.asarray(segments.references)).max(-1) > 0).all(1)  # [B, R]
    return split_loss(predicted, views.fingerprint, segments.counted, present)


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
    return _share(error @ weight, variance @ weight), 1 - _share(error.sum(), variance.sum())


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
    anchors = jax.lax.top_k(order, min(config.anchors, len(order)))[1]  # [n]
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
    return able & (score >= jax.lax.top_k(score, count)[0][:, -1:])


# mae: hidden balls


def _mae_term(encoder: PerceiverEncoder, config: ObjectiveConfig, s: Segments, key: PRNGKeyArray) -> Float[Array, ""]:
    """Of one of the two segments of one scan, drawn by lot."""
    lot, balls = jax.random.split(key)
    side = jax.random.bernoulli(lot).astype(jnp.int32)
    y, kept, references, log_tsnr, tr = (jnp.asarray(a)[side] for a in (s.y, s.kept, s.references, s.log_tsnr, s.tr))
    points = jnp.asarray(encoder.linear.references)
    hidden, dark = hide_balls(s.xyz, points, s.counted, balls, config.masked, config.ball_mm)
    view = look_once(encoder, y, kept, references, s.xyz, s.counted, log_tsnr, tr, hidden)
    weights = network(encoder).heads.weights(view.state)
    return mae_loss(weights, view.y, jnp.where(dark[:, None], 0.0, references), kept, tr, hidden)


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
    centres = jax.lax.top_k(order, min(BALLS, len(order)))[1]
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
    tr: Float[ArrayLike, ""],
    hidden: Bool[Array, " V"],
) -> Float[Array, ""]:
    r"""Error of hidden locations' window coefficients, reconstructed from those of the reference signals that can be seen.

    .. math:: L = \frac{\sum_{v,w,j} (c_{vwj} - \sum_r a_{vr} c_{rwj})^2}{\sum_{v,w,j} c_{vwj}^2}

    The network says the weights a, one vector a location for all windows; the references, of variance 1 and 0 where hidden, say what
    happened when. So neither V, T nor the number of windows is in a parameter, and a says what a location is a mixture of.
    """
    basis = window_basis(kept, tr)  # [T, W · 8]
    weight, hidden = kept.astype(y.dtype), hidden.astype(y.dtype)
    own = y @ basis
    others = unit(references, weight) * jnp.sqrt(weight.sum()) @ basis
    error = jnp.square(own - weights @ others).sum(1)
    return _share((error * hidden).sum(), (jnp.square(own).sum(1) * hidden).sum())


def window_basis(kept: Bool[Array, " T"], tr: Float[ArrayLike, ""]) -> Float[Array, "T b"]:
    """The first 8 cosines of every 32 s, as means over the frames of a window; 0 for windows not filled to nine tenths."""
    seconds = (jnp.cumsum(kept).astype(jnp.float32) - 0.5) * tr
    window = jnp.floor(seconds / WINDOW_SECONDS)
    inside = (window[:, None] == jnp.arange(WINDOWS, dtype=jnp.float32)[None, :]) & kept[:, None]  # [T, W]
    size = inside.sum(0).astype(jnp.float32)
    full = size * tr >= 0.9 * WINDOW_SECONDS
    mean = jnp.where(inside & full[None, :], 1 / jnp.maximum(size, 1.0)[None, :], 0.0)
    phase = jnp.pi * (seconds / WINDOW_SECONDS - window)
    cosines = jnp.cos(phase[:, None] * jnp.arange(COSINES, dtype=jnp.float32)[None, :])  # [T, 8]
    scale = jnp.where(jnp.arange(COSINES) > 0, jnp.sqrt(2.0), 1.0)
    return (mean[:, :, None] * (cosines * scale[None, :])[:, None, :]).reshape(len(kept), -1)


# vic and dyn


def vic_loss(z: Float[Array, "V D"], counted: Bool[Array, " V"]) -> Float[Array, ""]:
    """VICReg: the lack of variance of every dimension, and the covariance of every two, of z scaled to a variance of 1 in all."""
    weight = counted.astype(z.dtype)
    size, dimensions = jnp.maximum(weight.sum(), 1.0), z.shape[1]
    centred = centre(z, weight) * jnp.sqrt(dimensions)
    covariance = centred.T @ centred / size
    variance = jnp.diagonal(covariance)
    lack = jax.nn.relu(1 - jnp.sqrt(variance + 1e-4)).mean()
    return lack + (jnp.square(covariance).sum() - jnp.square(variance).sum()) / dimensions


def generator(heads: Heads) -> Float[Array, "D D"]:
    r"""A = S − Sᵀ − B Bᵀ − ε I, in 1/s: :math:`|e^{A t}| \le e^{-\varepsilon t} < 1` for every t, whatever S and B."""
    turn, damp = heads.turn[...], heads.damp[...]
    return turn - turn.T - damp @ damp.T - SLOWEST * jnp.eye(len(turn), dtype=turn.dtype)


def dyn_loss(
    rate: Float[Array, "D D"],
    z: Float[Array, "V D"],
    y: Float[Array, "V T"],
    kept: Bool[Array, " T"],
    counted: Bool[Array, " V"],
    tr: Float[ArrayLike, ""],
    horizon: int,
) -> Float[Array, ""]:
    """Error of the latent signals zᵀy forecast 1 to `horizon` frames ahead by exp(A TR), relative to their variance."""
    kept = kept.astype(y.dtype)
    signals = jnp.where(counted[:, None], z, 0.0).T @ (y * kept[None, :])  # [D, T]
    power = jnp.square(signals).sum(1, keepdims=True) / jnp.maximum(kept.sum(), 1.0)
    signals = signals / jnp.sqrt(power + 1e-6 * power.mean() + 1e-12)
    step = jax.scipy.linalg.expm(rate * tr)
    error, variance, ahead = jnp.zeros(()), jnp.zeros(()), signals
    for k in range(1, min(horizon, y.shape[1] - 1) + 1):
        ahead = step @ ahead
        both = (kept[k:] * kept[:-k])[None, :]
        error += (jnp.square(signals[:, k:] - ahead[:, :-k]) * both).sum()
        variance += (jnp.square(signals[:, k:]) * both).sum()
    return _share(error, variance)


def _share(part: Float[Array, ""], whole: Float[Array, ""]) -> Float[Array, ""]:
    """part / whole, 0 where there is nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
