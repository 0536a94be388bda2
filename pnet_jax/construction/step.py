"""The step: one pure compiled function from the signals of a scan to its parcels, their calibration and their edges.

All shapes are fixed: missing frames and locations are masked, and no decision returns to the host. `wave` maps the step over scans and
places it on devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pnet_jax.edges import measure
from pnet_jax.encoder.adapter import Adapter, adapt
from pnet_jax.encoder.linear import own_metric, whiten
from pnet_jax.encoder.model import Encoder, components
from pnet_jax.encoder.tokens import Observed
from pnet_jax.parcellation import calibrate, decide, score
from pnet_jax.parcellation.choose import Choice, choose
from pnet_jax.parcellation.harden import harden, most_probable
from pnet_jax.parcellation.held_out import held_out
from pnet_jax.parcellation.mixture import Problem, group_prototypes, initial_mixture, mixture, normalise
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.parcellation.spatial import SpatialPrior

FINAL_STEPS = 6
CALIBRATED_ON = 6144  # largest number of locations used to fit the exponents
BLOCK_SECONDS = 20.0
MIN_BLOCKS = 3  # 20 s blocks per half; with fewer, no interval can be estimated
LEAST_DCBC_GAIN = 0.01  # smooth noise without parcels gains up to 0.008 in DCBC; real scans gain 0.03 and more
LEAST_DEGREES = 10.0  # degrees of freedom required per half to measure a gain


if TYPE_CHECKING:
    Values: TypeAlias = Any  # JAX arrays inside the step, NumPy arrays before and after it
else:
    Values = Array


class Settings(NamedTuple):
    """Static settings that are compiled into the step; hashable.

    Attributes:
      n_parcels: Number of parcels K.
      labels: `"auto"`, or `"personalised"` or `"atlas"` to override the decision.
      edges: Names of the edge measures computed by the step.
    """

    n_parcels: int
    labels: str = "auto"
    edges: tuple[str, ...] = ("pearson",)


class Shared(NamedTuple):
    """Arrays shared by all scans on a Space.

    Attributes:
      encoder: Encoder with its weights.
      prior: Spatial prior.
      region: Reference region of each location (`tokens.nearest_reference`), `[W]`.
      free: `choose.data_free` of the spatial prior, for β = 0 and each β of the grid, `[b, W, C]`.
      kappas, betas: Grids of κ and β; a single value fixes the parameter. They are traced, so all fixed values share one compiled step.
    """

    encoder: Encoder
    prior: SpatialPrior
    region: Int[Array, " W"]
    free: Float[Array, "b W C"]
    kappas: Float[Array, " n"]
    betas: Float[Array, " m"]


class Subject(NamedTuple):
    """One scan as input of the step; in a wave, every array has a leading scan axis S.

    Attributes:
      y: Signals of the whole scan, z-scored, 0 in padding, `[W, T]`.
      kept: Whether each frame is retained, `[T]`.
      frames: Position of each frame in the recording, `[T]`.
      halves: Signals of both halves, each cleaned separately, `[2, W, H]`.
      halves_kept: Whether each frame of the halves is retained, `[2, H]`.
      halves_frames: Position of each frame of the halves in the recording, `[2, H]`.
      blocks: Index of the 20 s block of each frame, counted across both halves, −1 in padding, `[2, H]`.
      valid: Whether each location has a signal, `[W]`.
      present: Whether the scan covers each parcel, `[K]`.
      log_tsnr: Logarithm of the temporal signal-to-noise ratio (`tokens.log_tsnr`), `[W]`.
      tr: Repetition time in seconds.
      n_blocks: Number of blocks in the shorter half.
      degrees: Degrees of freedom of the halves, `[2]`.
      seed: Bootstrap seed, which depends on the identity of the scan alone.
      adapter: Parameters learned by fine-tuning, or None.
    """

    y: Float[Values, "W T"]
    kept: Bool[Values, " T"]
    frames: Int[Values, " T"]
    halves: Float[Values, "2 W H"]
    halves_kept: Bool[Values, "2 H"]
    halves_frames: Int[Values, "2 H"]
    blocks: Int[Values, "2 H"]
    valid: Bool[Values, " W"]
    present: Bool[Values, " K"]
    log_tsnr: Float[Values, " W"]
    tr: Float[Values, ""]
    n_blocks: Int[Values, ""]
    degrees: Float[Values, " 2"]
    seed: UInt32[Values, ""]
    adapter: Adapter | None = None


class Quality(NamedTuple):
    """Scores across halves of three maps: the personalised, the data-free (κ = 0) and the atlas parcels.

    Attributes:
      dcbc, homogeneity: Score of each map, `[3]`.
      gain: Gain in held-out log density of the individual over the data-free parcels, nats per location: 2.5, 50 and 97.5 %, `[3]`.
      dcbc_gain: Gain in DCBC of the personalised parcels over the better of the other two maps: 2.5, 50 and 97.5 %, `[3]`.
      agreement: Fraction of locations with the same label in both halves.
      cosine: Mean cosine similarity between the embeddings of the halves.
    """

    dcbc: Float[Values, " 3"]
    homogeneity: Float[Values, " 3"]
    gain: Float[Values, " 3"]
    dcbc_gain: Float[Values, " 3"]
    agreement: Float[Values, ""]
    cosine: Float[Values, ""]


class Outputs(NamedTuple):
    """Results of one scan.

    Attributes:
      labels: Parcel of each location, −1 for none, `[W]`.
      candidates: Candidate parcels of each location, −1 where missing or excluded, `[W, C]`.
      probabilities: Replication probability of each candidate, or the spatial prior if the atlas is returned, `[W, C]`.
      signals: Mean signal of each parcel, NaN for absent parcels, 0 in padded frames, `[K, T]`.
      edges: Edges by name of the measure, `[K, K]`.
      halves: Pearson edges of both halves with these labels, `[2, K, K]`.
      personalised: Whether personalised parcels are returned instead of the atlas parcels.
      choice: Selected κ and β and their trials, without the mixtures of the halves.
      quality: Scores across halves.
      exponents: Exponents of the calibration (`calibrate.calibrated`), `[3]`.
      reliability: Calibration curve across halves: sums of probabilities and of hits, and counts of locations, in ten bins, `[3, 10]`.
      restored: Whether each parcel was restored, `[K]`.
      moved_fragments: Number of locations in fragments that were reassigned.
    """

    labels: Int[Values, " W"]
    candidates: Int[Values, "W C"]
    probabilities: Float[Values, "W C"]
    signals: Float[Values, "K T"]
    edges: dict[str, Float[Values, "K K"]]
    halves: Float[Values, "2 K K"]
    personalised: Bool[Values, ""]
    choice: Choice
    quality: Quality
    exponents: Float[Values, " 3"]
    reliability: Float[Values, "3 10"]
    restored: Bool[Values, " K"]
    moved_fragments: Int[Values, ""]


def step(shared: Shared, subject: Subject, settings: Settings) -> Outputs:
    """Compute the parcels, calibration and edges of one scan.

    Args:
      shared: Model and atlas on the Space.
      subject: The scan.
      settings: Edge measures, and which parcels to return.
    """
    _check(shared, subject)
    prior, k = shared.prior, settings.n_parcels
    candidates = jnp.where(subject.valid[:, None] & present_candidates(prior.candidates, subject.present), prior.candidates, -1)
    atlas = jnp.where(subject.valid & (candidates >= 0).any(1), prior.labels, -1)
    counts = (candidates >= 0).any(1)
    x = [_components(shared, subject, part, atlas) for part in zip(subject.halves, subject.halves_kept, subject.halves_frames, strict=True)]
    x.append(_components(shared, subject, (subject.y, subject.kept, subject.frames), atlas))
    problems = [_problem(shared, subject, one, candidates, atlas, k) for one in x]
    halves = problems[0], problems[1]
    free = _only(shared.free, candidates)
    choice = choose(halves, free, k, kappas=shared.kappas, betas=shared.betas)
    own = most_probable(choice.halves[0].q, candidates), most_probable(choice.halves[1].q, candidates)
    quality = _quality(shared, subject, halves, choice, free[choice.free_beta], own, atlas, candidates, k)
    enough = (quality.gain[0] > 0) & (quality.dcbc_gain[0] > 0)
    enough &= quality.dcbc_gain[1] >= LEAST_DCBC_GAIN
    enough &= (subject.n_blocks >= MIN_BLOCKS) & (subject.degrees.min() >= LEAST_DEGREES)
    personalised = {"auto": enough, "personalised": jnp.array(True), "atlas": jnp.array(False)}[settings.labels]
    whole = problems[2]
    begun = initial_mixture(whole, jnp.log((choice.halves[0].q + choice.halves[1].q) / 2 + 1e-6))
    q = mixture(whole, choice.kappa, choice.beta, steps=FINAL_STEPS, start=begun).q
    p, exponents, reliability = _calibrate(prior, choice, own, q, candidates, counts, quality.cosine)
    hardened = harden(q, candidates, prior.table, prior.neighbours, atlas, k)
    labels = jnp.where(personalised, hardened.labels, atlas)
    spatial = jnp.where(candidates >= 0, jnp.exp(prior.log_prior), 0.0)
    spatial = spatial / jnp.maximum(spatial.sum(1, keepdims=True), 1e-30)
    signals = parcel_signals(subject.y, labels, k)
    # Kept separate from the sums above: fused, their rounding would depend on the compiler.
    within, signals = jax.lax.optimization_barrier((labels, signals))
    return Outputs(
        labels=labels,
        candidates=candidates,
        probabilities=jnp.where(personalised, p, spatial),
        signals=signals,
        edges={name: _edges(name, signals, subject.kept) for name in settings.edges},
        halves=jnp.stack(
            [_edges("pearson", parcel_signals(y, within, k), kept) for y, kept in zip(subject.halves, subject.halves_kept, strict=True)]
        ),
        personalised=personalised,
        choice=choice._replace(halves=()),  # type: ignore[arg-type]
        quality=quality,
        exponents=exponents,
        reliability=reliability,
        restored=hardened.restored & personalised,
        moved_fragments=jnp.where(personalised, hardened.moved_fragments, 0),
    )


def _check(shared: Shared, subject: Subject) -> None:
    """Assert that the scan has the locations of the tables and that all arrays over frames have the same length."""
    size = chex.Dimensions()
    size["WC"] = shared.prior.candidates.shape
    size["T"], size["H"] = subject.y.shape[1:], subject.halves.shape[2:]
    chex.assert_shape([shared.region, subject.valid, subject.log_tsnr], size["W"])
    chex.assert_shape([shared.prior.log_prior, shared.free], [size["WC"], (None, *size["WC"])])
    chex.assert_shape([subject.y, subject.halves], [size["WT"], (2, *size["WH"])])
    chex.assert_shape([subject.kept, subject.frames], size["T"])
    chex.assert_shape([subject.halves_kept, subject.halves_frames, subject.blocks], (2, *size["H"]))
    chex.assert_type([subject.y, subject.halves, subject.frames, subject.kept], [float, float, int, bool])


def present_candidates(candidates: Int[Array, "W C"], present: Bool[Array, " K"]) -> Bool[Array, "W C"]:
    """Return the candidates that the scan covers: parcels outside the field of view must not take locations from their neighbours."""
    return (candidates >= 0) & present[jnp.maximum(candidates, 0)]


def _components(shared: Shared, subject: Subject, part: tuple[Array, Array, Array], atlas: Array) -> Array:
    """Compute components from some of the scan's frames, on axes shared by all of its parts, `[W, D]`."""
    counted = atlas >= 0
    region = jnp.where(counted, shared.region, -1)
    x = components(shared.encoder, Observed(*part, counted, region, shared.prior.xyz, subject.log_tsnr, subject.tr))
    return x if subject.adapter is None else adapt(subject.adapter, x)


def _problem(shared: Shared, subject: Subject, x: Array, candidates: Array, atlas: Array, n_parcels: int) -> Problem:
    """Build the mixture problem from the components of one part of the scan, in its own metric."""
    z = whiten(x, own_metric(x))
    prototypes = group_prototypes(z, atlas, n_parcels)
    if subject.adapter is not None:
        prototypes = normalise(prototypes + subject.adapter.offsets)
    return Problem(z, candidates, shared.prior.log_prior, shared.prior.table, prototypes, shared.prior.blocks)


def _only(q: Float[Array, "b W C"], candidates: Int[Array, "W C"]) -> Float[Array, "b W C"]:
    """Renormalise probabilities over the remaining candidates."""
    q = jnp.where((candidates >= 0)[None], q, 0.0)
    return q / jnp.maximum(q.sum(2, keepdims=True), 1e-30)


def _quality(
    shared: Shared,
    subject: Subject,
    halves: tuple[Problem, Problem],
    choice: Choice,
    free: Array,
    own: tuple[Array, Array],
    atlas: Array,
    candidates: Array,
    n_parcels: int,
) -> Quality:
    """Score the parcels of each half on the other half, against the data-free and the atlas parcels."""
    prior, counts = shared.prior, atlas >= 0
    keys = jax.random.split(jax.random.key(subject.seed), 2)
    mine = [held_out(choice.halves[i].q, candidates, halves[1 - i].z, n_parcels, blocks=prior.blocks).each for i in (0, 1)]
    none = [held_out(free, candidates, halves[1 - i].z, n_parcels, blocks=prior.blocks).each for i in (0, 1)]
    gain = decide.over_cubes(keys[0], (mine[0] + mine[1] - none[0] - none[1]) / 2, counts, prior.cube, len(prior.cubes))
    flat = most_probable(free, candidates)
    each_dcbc, homogeneity, frames = [], [], []
    for i in (0, 1):
        kept = subject.halves_kept[1 - i].astype(jnp.float32)
        count = jnp.maximum(kept.sum(), 1.0)
        y = score.standardised(subject.halves[1 - i], kept)
        r = score.pair_correlations(y, prior.pairs, count)
        weights = [score.pair_weights(prior.pairs, labels) for labels in (own[i], flat, atlas)]
        each_dcbc.append(jnp.stack([(r * weight).sum() for weight in weights]))
        homogeneity.append(jnp.stack([score.homogeneity(y, labels, n_parcels, count) for labels in (own[i], flat, atlas)]))
        frames.append((y, weights, count))
    dcbc = (each_dcbc[0] + each_dcbc[1]) / 2
    # Compared with the better of the two maps that do not depend on this scan's data.
    than = jnp.where(dcbc[2] > dcbc[1], 1.0, 0.0)
    each = [score.by_frame(y, prior.pairs, w[0] - than * w[2] - (1 - than) * w[1], count) for y, w, count in frames]
    over = decide.over_time(keys[1], jnp.stack(each), subject.blocks[::-1], subject.blocks.size)
    size = jnp.maximum(counts.sum(), 1).astype(jnp.float32)
    return Quality(
        dcbc=dcbc,
        homogeneity=(homogeneity[0] + homogeneity[1]) / 2,
        gain=gain,
        dcbc_gain=over,
        agreement=((own[0] == own[1]) & counts).sum().astype(jnp.float32) / size,
        cosine=(halves[0].z * halves[1].z).sum() / size,
    )


def _calibrate(
    prior: SpatialPrior, choice: Choice, own: tuple[Array, Array], q: Array, candidates: Array, counts: Array, cosine: Array
) -> tuple[Array, Array, Array]:
    """Calibrate the parcels of the whole scan: replication probabilities, exponents, and reliability curve across halves.

    The exponents are fitted between the halves. The whole scan is twice as long, so a half's embedding reliability c (mean cosine) becomes
    2c / (1 + c) (Spearman–Brown), and differences of log probabilities scale with its signal-to-noise ratio.
    """
    degree = (jnp.append(counts, False)[prior.neighbours] & (prior.neighbours >= 0)).sum(1).astype(jnp.float32)
    each = [calibrate.features(half.q, prior.log_prior, prior.table, degree) for half in choice.halves]
    rows = jnp.linspace(0, len(counts) - 1, min(CALIBRATED_ON, len(counts))).astype(jnp.int32)
    exponents = calibrate.fit_exponents(jnp.stack([x[rows] for x in each]), jnp.stack([own[1][rows], own[0][rows]]), candidates[rows])
    weight = counts.astype(jnp.float32)

    def apply(x: Array, q: Array, w: Array) -> Array:
        return calibrate.never_sharper(calibrate.calibrated(x, w, candidates), q, weight)

    longer = exponents * jnp.sqrt(2 / (1 + jnp.maximum(cosine, 0.0)))
    p = apply(calibrate.features(q, prior.log_prior, prior.table, degree), q, longer)
    pairs = zip(each, choice.halves, own[::-1], strict=True)
    curves = [reliability_curve(apply(x, half.q, exponents), candidates, other, counts) for x, half, other in pairs]
    return p, longer, curves[0] + curves[1]


def reliability_curve(
    p: Float[Array, "W C"], candidates: Int[Array, "W C"], other: Int[Array, " W"], counts: Bool[Array, " W"]
) -> Float[Array, "3 10"]:
    """Compute, in ten bins of the most probable label's probability: sum of probabilities, agreement with a repeat, and locations."""
    best = p.max(1)
    hit = most_probable(p, candidates) == other
    at = jnp.where(counts, jnp.minimum((best * 10).astype(jnp.int32), 9), 10)
    return jax.ops.segment_sum(jnp.stack([best, hit.astype(best.dtype), jnp.ones_like(best)], 1), at, 11)[:10].T


def _edges(name: str, signals: Array, kept: Array) -> Array:
    """Compute the edges between parcels that have a signal, NaN for the others, with a pairwise measure."""
    function = measure(name).masked
    assert function is not None
    filled = jnp.isfinite(signals).all(1)
    found = function(jnp.where(filled[:, None], signals, 0.0), kept)
    return jnp.where(filled[:, None] & filled[None, :], found, jnp.nan)
