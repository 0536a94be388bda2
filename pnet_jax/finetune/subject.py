"""From a recording to what fine-tuning reads of it."""

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
from pnet_jax.finetune.objective import NOISE_FLOOR, Halves, Subject
from pnet_jax.parcellation.spatial import AtlasOnSpace, Rows, locate
from pnet_jax.scan import Scan

GAP_SECONDS = 30.0
PAIRS = 16384  # neighbours that the smoothness looks at
BIN_BUCKET = 16
LATER_SECONDS, LATER_BINS = 20.0, 2  # the held-out part is short, and only compares


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
) -> Subject:
    """One recording, ready to be stacked with others of like size.

    Args:
      scan: the recording.
      placed: the atlas on its Space.
      model: encoder.
      q: probabilities of the parcels to begin with.
      candidates: parcels that each location may belong to; −1 where the scan has none.
      kappa, beta: of the mixture, measured on the scan.
      config: see `PersonalizeConfig`.

    Raises:
      TooShortError: too few frames for the band in the part that is fitted or in the one that is held out; names the scan.
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
    return Subject(
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
    """Embedding of the judging part by the model without any adapter, in whose terms both kinds of parcels are judged."""
    seen = _observed(scan, locate(placed, scan), placed, model)
    return embed(model.encoder, bucketed(at_frames(seen, parts_of(scan, config).judging)))


def _observed(scan: Scan, rows: Rows, placed: AtlasOnSpace, model: Model) -> Observed:
    """The atlas's locations as an encoder reads them."""
    at, valid = rows
    xyz = np.asarray(placed.prior.xyz)
    region = np.where(valid, nearest_reference(xyz, np.asarray(model.encoder.references)), -1).astype(np.int32)
    tsnr = np.where(valid, log_tsnr(scan.mean[at], scan.std[at], valid), 0).astype(np.float32)
    kept, frames = np.ones(scan.y.shape[1], bool), (scan.frames - scan.frames[0]).astype(np.int32)
    return Observed(rows.take(scan.y), kept, frames, valid, region, xyz, tsnr, np.float32(scan.tr))


def _expected(encoder: Encoder) -> Float[Array, "D R"]:
    """From components to what is expected of *another* part: the linear encoder's weighted by how well each component repeats."""
    return decoder(encoder) * (jnp.asarray(encoder.reliability)[:, None] if isinstance(encoder, LinearEncoder) else 1.0)


def _view(encoder: Encoder, seen: Observed, columns: Bool[np.ndarray, " T"]) -> tuple[Array, Array]:
    """Fingerprints and components of some frames."""
    part = bucketed(at_frames(seen, columns))
    return fingerprints(encoder, part), components(encoder, part)


@jax.jit
def _halves(x: Float[Array, "V D"], other: Float[Array, "V R"]) -> Halves:
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest")  # noqa: E731
    return Halves(product(x, x), product(x, other), jnp.square(other).sum(0))


@jax.jit
def _precision(first: Float[Array, "V R"], second: Float[Array, "V R"]) -> Float[Array, " R"]:
    """Inverse noise variance of each reference; 0 where one has no location."""
    noise = jnp.square(first - second).mean(0) / 2
    present = (jnp.abs(first) > 0).any(0) & (jnp.abs(second) > 0).any(0)
    present = present.astype(noise.dtype)
    mean = (noise * present).sum() / jnp.maximum(present.sum(), 1.0)
    return present * mean / (noise + NOISE_FLOOR * mean + 1e-9)


class Parts(NamedTuple):
    """Frames of a recording by what they are for, `[T]` each; the gaps between them are for nothing.

    Attributes:
      fitted: parameters are fitted to these.
      picking: the best round is the one that does best here.
      judging: nothing has seen these when it is asked whether fine-tuned parcels are kept.
    """

    fitted: Bool[np.ndarray, " T"]
    picking: Bool[np.ndarray, " T"]
    judging: Bool[np.ndarray, " T"]


def parts_of(scan: Scan, config: PersonalizeConfig) -> Parts:
    """The last share of the recording judges, the same share before it picks, the rest is fitted; gaps of 30 s or a twentieth between."""
    kept = len(scan.frames)
    share, gap = config.held_out, min(round(GAP_SECONDS / scan.tr), kept // 20)
    at = np.arange(kept)
    judged, picked = round((1 - share) * kept), round((1 - 2 * share) * kept)
    return Parts(at < picked - gap, (at >= picked) & (at < judged - gap), at >= judged)


def bins_of(scan: Scan, fitted: Bool[np.ndarray, " T"], later: Bool[np.ndarray, " T"]) -> tuple[Bins, Bins]:
    """Bins of the part that is fitted and of the one held out, each filled up to a multiple.

    Raises:
      TooShortError: too few frames for the band in one of them; names the scan.
    """
    return _bins(scan, fitted, "fitted"), _bins(scan, later, "held out", min_seconds=LATER_SECONDS, min_bins=LATER_BINS)


def last_part(scan: Scan, share: float) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """All but the last share of the frames, and those."""
    return last_held_out(np.ones(scan.y.shape[1], bool), share)


def _bins(scan: Scan, columns: Bool[np.ndarray, " T"], where: str, **least: Any) -> Bins:
    plan = functools.partial(frequency_bins, columns, scan.tr, frames=scan.frames, filtered=scan.band, **least)
    try:
        found = len(plan().frequency)
    except TooShortError as error:
        raise TooShortError(f"{scan.label}, the part of the recording that is {where}: {error}") from error
    return plan(size=-(-found // BIN_BUCKET) * BIN_BUCKET)


def _rows(y: Float[np.ndarray, "n T"], bins: Bins) -> Float[np.ndarray, "n m"]:
    operator = np.asarray(bins.operator, np.float32)
    return y @ operator.reshape(-1, operator.shape[-1]).T


def _neighbours(neighbours: Int[np.ndarray, "W N"], counts: Bool[np.ndarray, " W"]) -> Int[np.ndarray, "P 2"]:
    """Pairs of neighbours, the same number for every scan, spread over the brain."""
    at, column = np.nonzero(neighbours > np.arange(len(neighbours))[:, None])  # each pair once
    pairs = np.stack([at, neighbours[at, column]], 1).astype(np.int32)
    pairs = pairs[counts[pairs].all(1)] if len(pairs) else pairs
    chosen = pairs[np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).round().astype(int)] if len(pairs) else pairs.reshape(0, 2)
    return np.pad(chosen, ((0, PAIRS - len(chosen)), (0, 0)), constant_values=-1)


def shape_of(subject: Subject) -> tuple[tuple[int, ...], ...]:
    """Subjects of one shape can share a wave, and a compiled step."""
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(subject))


def stacked(subjects: Sequence[Subject]) -> Subject:
    """A wave: all arrays with one axis more in front."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *subjects)
