"""From a recording to what fine-tuning reads of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pnet_jax.config import PersonalizeConfig
from pnet_jax.dynamics.spectra import Bins, frequency_bins, last_held_out
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Encoder, Model, components, decoder, fingerprints
from pnet_jax.encoder.tokens import Observed, at_frames, bucketed, observe
from pnet_jax.finetune.objective import NOISE_FLOOR, Halves, Subject
from pnet_jax.parcellation.placed import Placed, pad_rows
from pnet_jax.scan import Scan

PAIRS = 16384  # neighbours that the smoothness looks at
BIN_BUCKET = 16
LATER_SECONDS, LATER_BINS = 20.0, 2  # the held-out part is short, and only compares


def make_subject(
    scan: Scan, placed: Placed, model: Model, q: Float[np.ndarray, "n C"], *, kappa: float, beta: float, config: PersonalizeConfig
) -> Subject:
    """One recording, ready to be stacked with others of like size.

    Args:
      scan: the recording.
      placed: a prior on it.
      model: encoder.
      q: probabilities of the parcels to begin with, of the locations that have a prior.
      kappa, beta: of the mixture, measured on the scan.
      config: see `PersonalizeConfig`.

    Raises:
      ValueError: too few frames for the band in the part that is fitted or in the one that is held out; names the scan.
    """
    seen = observe(scan, model.encoder.references, here=placed.here)
    y = np.asarray(seen.y)
    first, rest = parts_of(scan, config)
    half = np.cumsum(first) <= first.sum() / 2
    views = [_view(model.encoder, seen, columns) for columns in (first & half, first & ~half, rest, first)]
    told, x = [view[0] for view in views], [view[1] for view in views]
    weight = _precision(told[0], told[1])
    parts = [_halves(x[a], told[1 - a]) for a in (0, 1)]
    bins = bins_of(scan, config)
    rows = [pad_rows(_rows(y, one), 0.0) for one in bins]
    return Subject(
        x=x[3],
        parts=jax.tree.map(lambda *two: jnp.stack(two), *parts),
        later=_halves(x[3], told[2]),
        weight=weight,
        decoder=_expected(model.encoder),
        rows=jnp.asarray(rows[0]),
        later_rows=jnp.asarray(rows[1]),
        frequency=jnp.asarray(bins[0].frequency),
        counted=jnp.asarray(bins[0].weight),
        later_frequency=jnp.asarray(bins[1].frequency),
        later_counted=jnp.asarray(bins[1].weight),
        candidates=placed.candidates,
        log_prior=placed.log_prior,
        table=placed.table,
        labels=placed.labels,
        pairs=jnp.asarray(_neighbours(placed)),
        q=jnp.asarray(pad_rows(np.asarray(q, np.float32), 0.0)),
        kappa=jnp.float32(kappa),
        beta=jnp.float32(beta),
    )


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


def parts_of(scan: Scan, config: PersonalizeConfig) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """The frames that are fitted and those that are held out."""
    return last_held_out(np.ones(scan.y.shape[1], bool), config.held_out)


def bins_of(scan: Scan, config: PersonalizeConfig) -> tuple[Bins, Bins]:
    """Bins of the part that is fitted and of the one held out, each filled up to a multiple.

    Raises:
      ValueError: too few frames for the band in one of them; names the scan.
    """
    first, rest = parts_of(scan, config)
    return _bins(scan, first, "fitted"), _bins(scan, rest, "held out", min_seconds=LATER_SECONDS, min_bins=LATER_BINS)


def _bins(scan: Scan, columns: Bool[np.ndarray, " T"], where: str, **least: Any) -> Bins:
    plan = functools.partial(frequency_bins, columns, scan.tr, frames=scan.frames, filtered=scan.band, **least)
    try:
        found = len(plan().frequency)
    except ValueError as error:
        raise ValueError(f"{scan.label}, the part of the recording that is {where}: {error}") from error
    return plan(size=-(-found // BIN_BUCKET) * BIN_BUCKET)


def _rows(y: Float[np.ndarray, "n T"], bins: Bins) -> Float[np.ndarray, "n m"]:
    operator = np.asarray(bins.operator, np.float32)
    return y @ operator.reshape(-1, operator.shape[-1]).T


def _neighbours(placed: Placed) -> np.ndarray:
    """Pairs of neighbours, the same number for every scan, spread over the brain."""
    neighbours = placed.space.neighbours
    at, column = np.nonzero(neighbours > np.arange(len(neighbours))[:, None])  # each pair once
    pairs = np.stack([at, neighbours[at, column]], 1).astype(np.int32)
    chosen = pairs[np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).round().astype(int)] if len(pairs) else pairs.reshape(0, 2)
    return np.pad(chosen, ((0, PAIRS - len(chosen)), (0, 0)), constant_values=-1)


def shape_of(subject: Subject) -> tuple[tuple[int, ...], ...]:
    """Subjects of one shape can share a wave, and a compiled step."""
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(subject))


def stacked(subjects: Sequence[Subject]) -> Subject:
    """A wave: all arrays with one axis more in front."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *subjects)
