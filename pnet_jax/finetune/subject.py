"""Preparation of a recording for fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.config import PersonalizeConfig
from pnet_jax.dynamics.spectra import Bins, TooShortError, frequency_bins, last_held_out
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Encoder, Model, components, decoder, embed, fingerprints
from pnet_jax.encoder.tokens import Observed, at_frames, bucketed, log_tsnr, nearest_reference
from pnet_jax.finetune.objective import NOISE_FLOOR, FinetuneSubject, Halves
from pnet_jax.parcellation.spatial import AtlasOnSpace, Rows, locate
from pnet_jax.scan import Scan

GAP_SECONDS = 30.0
PAIRS = 16384  # number of neighbour pairs in the smoothness penalty
BIN_BUCKET = 16
LATER_SECONDS, LATER_BINS = 20.0, 2  # lower limits for the held-out part, which is short and only used for comparisons


def make_subject(
    scan: Scan,
    placed: AtlasOnSpace,
    model: Model,
    q: Float[np.ndarray, "W C"],
    candidates: Int[np.ndarray, "W C"],
    *,
    kappa: float,
    beta: float,
    config: PersonalizeConfig,
) -> FinetuneSubject:
    """Prepare one recording for fine-tuning, in a form that can be stacked with others of similar size.

    Args:
      scan: the recording.
      placed: atlas on the Space of the recording.
      model: model with the encoder.
      q: initial probabilities of the candidates, `[W, C]`.
      candidates: candidate parcels of each location, −1 in the padding and for missing locations, `[W, C]`.
      kappa, beta: concentration and weight of the neighbours in the mixture, selected on the scan.
      config: settings of the fine-tuning.

    Returns:
      The prepared recording.

    Raises:
      TooShortError: If the fitted or the held-out part has too few frames for the frequency band. The message names the scan.
    """
    rows, prior = locate(placed, scan), placed.prior
    seen = _observed(scan, rows, placed, model)
    y = np.asarray(seen.y)
    labels = np.where(rows.valid & (candidates >= 0).any(1), np.asarray(prior.labels), -1)
    parts = parts_of(scan, config)
    first, rest = parts.fitted, parts.picking
    half = np.cumsum(first) <= first.sum() / 2
    views = [_view(model.encoder, seen, columns) for columns in (first & half, first & ~half, rest, first)]
    told, x = [view[0] for view in views], [view[1] for view in views]
    weight = _precision(told[0], told[1])
    both = [_halves(x[a], told[1 - a]) for a in (0, 1)]
    bins = bins_of(scan, first, rest)
    tables = [_rows(y, one) for one in bins]
    return FinetuneSubject(
        x=x[3],
        parts=jax.tree.map(lambda *two: jnp.stack(two), *both),
        later=_halves(x[3], told[2]),
        weight=weight,
        decoder=_expected(model.encoder),
        rows=jnp.asarray(tables[0]),
        later_rows=jnp.asarray(tables[1]),
        frequency=jnp.asarray(bins[0].frequency),
        counted=jnp.asarray(bins[0].weight),
        later_frequency=jnp.asarray(bins[1].frequency),
        later_counted=jnp.asarray(bins[1].weight),
        candidates=jnp.asarray(candidates),
        log_prior=prior.log_prior,
        table=prior.table,
        labels=jnp.asarray(labels),
        pairs=jnp.asarray(_neighbours(np.asarray(prior.neighbours), labels >= 0)),
        q=jnp.asarray(q, jnp.float32),
        kappa=jnp.float32(kappa),
        beta=jnp.float32(beta),
    )


def judged_embedding(scan: Scan, placed: AtlasOnSpace, model: Model, config: PersonalizeConfig) -> Float[Array, "W D"]:
    """Compute the embedding of the test part without an adapter, on which parcels with and without fine-tuning are scored."""
    seen = _observed(scan, locate(placed, scan), placed, model)
    return embed(model.encoder, bucketed(at_frames(seen, parts_of(scan, config).judging)))


def _observed(scan: Scan, rows: Rows, placed: AtlasOnSpace, model: Model) -> Observed:
    """Return the locations of the atlas as input of an encoder."""
    at, valid = rows
    xyz = np.asarray(placed.prior.xyz)
    region = np.where(valid, nearest_reference(xyz, np.asarray(model.encoder.references)), -1).astype(np.int32)
    tsnr = np.where(valid, log_tsnr(scan.mean[at], scan.std[at], valid), 0).astype(np.float32)
    kept, frames = np.ones(scan.y.shape[1], bool), (scan.frames - scan.frames[0]).astype(np.int32)
    return Observed(rows.take(scan.y), kept, frames, valid, region, xyz, tsnr, np.float32(scan.tr))


def _expected(encoder: Encoder) -> Float[Array, "D R"]:
    """Return the map from components to expected fingerprints of *another* part; for the linear encoder, scaled by reliability."""
    return decoder(encoder) * (jnp.asarray(encoder.reliability)[:, None] if isinstance(encoder, LinearEncoder) else 1.0)


def _view(encoder: Encoder, seen: Observed, columns: Bool[np.ndarray, " T"]) -> tuple[Array, Array]:
    """Return the fingerprints and components of selected frames."""
    part = bucketed(at_frames(seen, columns))
    return fingerprints(encoder, part), components(encoder, part)


@jax.jit
def _halves(x: Float[Array, "V D"], other: Float[Array, "V R"]) -> Halves:
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest")  # noqa: E731
    return Halves(product(x, x), product(x, other), jnp.square(other).sum(0))


@jax.jit
def _precision(first: Float[Array, "V R"], second: Float[Array, "V R"]) -> Float[Array, " R"]:
    """Return the inverse noise variance of each reference; 0 for references without locations."""
    noise = jnp.square(first - second).mean(0) / 2
    present = (jnp.abs(first) > 0).any(0) & (jnp.abs(second) > 0).any(0)
    present = present.astype(noise.dtype)
    mean = (noise * present).sum() / jnp.maximum(present.sum(), 1.0)
    return present * mean / (noise + NOISE_FLOOR * mean + 1e-9)


class RecordingParts(NamedTuple):
    """Masks of the frames of a recording by purpose, `[T]` each; frames in the gaps between the parts are not used.

    Attributes:
      fitted: frames to which parameters are fitted.
      picking: frames on which the best round is selected.
      judging: test frames, used only for the decision whether the fine-tuned parcels are kept.
    """

    fitted: Bool[np.ndarray, " T"]
    picking: Bool[np.ndarray, " T"]
    judging: Bool[np.ndarray, " T"]


def parts_of(scan: Scan, config: PersonalizeConfig) -> RecordingParts:
    """Split a recording into a fitted, a selection and a test part, in this order.

    The last two parts have a share of `config.held_out` each; parts are separated by gaps of 30 s or a twentieth of the recording.
    """
    kept = len(scan.frames)
    share, gap = config.held_out, min(round(GAP_SECONDS / scan.tr), kept // 20)
    at = np.arange(kept)
    judged, picked = round((1 - share) * kept), round((1 - 2 * share) * kept)
    return RecordingParts(at < picked - gap, (at >= picked) & (at < judged - gap), at >= judged)


def bins_of(scan: Scan, fitted: Bool[np.ndarray, " T"], later: Bool[np.ndarray, " T"]) -> tuple[Bins, Bins]:
    """Compute the frequency bins of the fitted and the held-out part, each padded to a multiple.

    Raises:
      TooShortError: If one of the parts has too few frames for the frequency band. The message names the scan.
    """
    return _bins(scan, fitted, "fitted"), _bins(scan, later, "held-out", min_seconds=LATER_SECONDS, min_bins=LATER_BINS)


def last_part(scan: Scan, share: float) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Return the masks of all but the last share of the frames, and of these last frames."""
    return last_held_out(np.ones(scan.y.shape[1], bool), share)


def _bins(scan: Scan, columns: Bool[np.ndarray, " T"], where: str, **least: Any) -> Bins:
    plan = functools.partial(frequency_bins, columns, scan.tr, frames=scan.frames, filtered=scan.band, **least)
    try:
        found = len(plan().frequency)
    except TooShortError as error:
        raise TooShortError(f"{scan.label}, {where} part of the recording: {error}") from error
    return plan(size=-(-found // BIN_BUCKET) * BIN_BUCKET)


def _rows(y: Float[np.ndarray, "n T"], bins: Bins) -> Float[np.ndarray, "n m"]:
    operator = np.asarray(bins.operator, np.float32)
    return y @ operator.reshape(-1, operator.shape[-1]).T


def _neighbours(neighbours: Int[np.ndarray, "W N"], counts: Bool[np.ndarray, " W"]) -> Int[np.ndarray, "P 2"]:
    """Return pairs of neighbours spread over the brain, the same number for every scan."""
    at, column = np.nonzero(neighbours > np.arange(len(neighbours))[:, None])  # each pair once
    pairs = np.stack([at, neighbours[at, column]], 1).astype(np.int32)
    pairs = pairs[counts[pairs].all(1)] if len(pairs) else pairs
    chosen = pairs[np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).round().astype(int)] if len(pairs) else pairs.reshape(0, 2)
    return np.pad(chosen, ((0, PAIRS - len(chosen)), (0, 0)), constant_values=-1)


def shape_of(subject: FinetuneSubject) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all arrays; subjects with equal shapes can share a wave and a compiled step."""
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(subject))


def stacked(subjects: Sequence[FinetuneSubject]) -> FinetuneSubject:
    """Stack subjects into a wave, along a new leading axis of every array."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *subjects)
