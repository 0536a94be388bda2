"""Simulated subjects and cohorts with known ground truth.

A subject depends on (seed, subject index) alone, and a recording on (seed, subject index, session) alone: each has its own random stream,
keyed as in `jax.random.fold_in`. Results are bit-for-bit independent of cohort size, order and the other subjects.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from pnet_jax.config import SimulateConfig
from pnet_jax.errors import SettingsError
from pnet_jax.scan import Half, Scan, make_scan, split_frames, zscore_in_place
from pnet_jax.simulate import coupling as couplings
from pnet_jax.simulate import disease as diseases
from pnet_jax.simulate.dynamics import BAND_HZ, HRF_DELAY_SD_SECONDS, LinearModel, linear_model, sample, true_fc
from pnet_jax.simulate.observe import SITES, TIERS, Site, observe, site_gain
from pnet_jax.simulate.realism import RealismInputs, Traits, draw_traits
from pnet_jax.simulate.space import RESOLUTIONS, centroids, grey_matter_space, group_parcels, subject_parcels
from pnet_jax.space import Space

MIN_PARCELS = 16  # fewer cannot contain the modules and two circuits
MIN_FRAMES = 30
_GROUP, _SITE, _SUBJECT, _SESSION, _TRAITS = range(5)  # random streams


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedSession:
    """One raw recording of a subject.

    Attributes:
      y: Raw signals, `[V, T]`, float32, around 1000.
      tr: Repetition time in seconds.
      displacement: Framewise displacement in mm, `[T]`.
      confounds: Basic confound columns of fMRIPrep, `[T]` each.
      space: Space with V locations.
      subject: Subject label, `"001"`.
      session: Session label, `"1"`.
    """

    y: Float[np.ndarray, "V T"]
    tr: float
    displacement: Float[np.ndarray, " T"]
    confounds: dict[str, Float[np.ndarray, " T"]]
    space: Space
    subject: str
    session: str


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedSubject:
    """One simulated subject: ground truth and recordings.

    Attributes:
      index: Position in the cohort, from 0.
      subject: Subject label, `"001"` for index 0.
      site: Site, `"A"`…`"D"`.
      patient: Whether the disease was planted.
      age: Age in years.
      group_labels: Group parcel of each location, 0…K−1, `[V]`.
      labels: Individual parcel of each location, `[V]`.
      modules: Individual module of each parcel, `[K]`.
      coupling: Normalised coupling N with effects of age and disease, `[K, K]`; `coupling.jacobian` converts it to J.
      hrf_delay: Delay of the haemodynamic peak relative to 5 s, in seconds.
      true_fc: Closed-form correlation of the parcel signals within 0.009–0.1 Hz, `[K, K]`.
      disease: Effects of the disease.
      sessions: Recordings.
      space: Space with V locations.
    """

    index: int
    subject: str
    site: str
    patient: bool
    age: float
    group_labels: Int[np.ndarray, " V"]
    labels: Int[np.ndarray, " V"]
    modules: Int[np.ndarray, " K"]
    coupling: Float[np.ndarray, "K K"]
    hrf_delay: float
    true_fc: Float[np.ndarray, "K K"]
    disease: diseases.DiseaseTruth
    sessions: tuple[SimulatedSession, ...]
    space: Space


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedGroup:
    """Properties shared by all subjects of a cohort: locations `[V]`, parcels `[V]`, coupling, and sites of disease and ageing effects."""

    space: Space
    labels: Int[np.ndarray, " V"]
    coupling: couplings.GroupCoupling
    plan: diseases.Plan


def simulate_cohort(config: SimulateConfig, *, disease: diseases.Kind = "circuits") -> Iterator[SimulatedSubject]:
    """Yield the subjects of a cohort one by one; only one is held in memory.

    Raises:
      ValueError: See `check`.
    """
    check(config)
    return (simulate_subject(config, index, disease=disease) for index in range(config.subjects))


def simulate_subject(config: SimulateConfig, index: int, *, disease: diseases.Kind = "circuits") -> SimulatedSubject:
    """Simulate one subject of a cohort.

    The result depends on the seed and `index` alone: it is the same for any `config.subjects`, and additional sessions leave earlier ones
    unchanged. A session takes 4VT bytes (34 MB at 4 mm, 10 min and 2 s), and about four times as much while it is simulated.

    Args:
      config: Settings of the cohort.
      index: Index of the subject, 0, 1, …; may exceed `config.subjects`.
      disease: Disease of the patients: `"circuits"` (one circuit weakened, one strengthened) or `"lesion"` (of one node).

    Raises:
      ValueError: See `check`; also for an index below 0 or an unknown disease.

    Example:
      >>> from pnet_jax.config import SimulateConfig
      >>> subject = simulate_subject(SimulateConfig(parcels=20, minutes=1.0, sessions=1), 0)
      >>> subject.sessions[0].y.shape, subject.true_fc.shape
      ((28144, 30), (20, 20))
    """
    check(config)
    if index < 0:
        raise SettingsError(f"expected a subject index of 0 or more, got {index}")
    group = group_truth(config.resolution, config.parcels, config.seed)
    rng = _stream(config.seed, _SUBJECT, index)
    patient, site_index = _assign(config, index)
    age = float(rng.uniform(*diseases.AGE_YEARS))
    delay = float(HRF_DELAY_SD_SECONDS * rng.standard_normal())
    labels = subject_parcels(group.labels, group.space, rng)
    weights, modules = couplings.subject_coupling(group.coupling, rng)
    healthy = diseases.with_age(couplings.normalise(weights), group.plan, age)
    coupling, model, truth = _with_disease(healthy, group.plan, delay, config.severity if patient else 0.0, disease)
    label = f"{index + 1:03d}"
    traits = _traits(config, group.space, labels, index)
    return SimulatedSubject(
        index=index,
        subject=label,
        site=SITES[site_index].name,
        patient=patient,
        age=age,
        group_labels=group.labels,
        labels=labels,
        modules=modules,
        coupling=coupling,
        hrf_delay=delay,
        true_fc=true_fc(model),
        disease=truth,
        sessions=tuple(_session(config, group.space, labels, model, traits, index, site_index, n) for n in range(config.sessions)),
        space=group.space,
    )


def cleaned_scan(session: SimulatedSession, *, fd_threshold: float | None = None, wide: bool = False) -> Scan:
    """Clean a simulated recording in memory: linear detrending, 0.009–0.1 Hz band-pass, global-signal regression and z-scoring.

    Args:
      session: Recording with V locations and T frames.
      fd_threshold: Framewise displacement in mm above which frames are interpolated for the filter and then removed; None keeps all.
      wide: Whether to keep the signals before low-pass filtering, too.

    Raises:
      ValueError: If the repetition time is too long for the band, or the threshold leaves fewer than 30 frames.
    """
    from nilearn.signal import clean

    if session.tr >= 0.5 / BAND_HZ[1]:
        raise ValueError(f"a band up to {BAND_HZ[1]} Hz needs a repetition time below {0.5 / BAND_HZ[1]:g} s, got {session.tr}")
    recorded = len(session.displacement)
    kept = np.arange(recorded) if fd_threshold is None else np.flatnonzero(session.displacement <= fd_threshold)
    if len(kept) < MIN_FRAMES:
        raise SettingsError(
            f"fd_threshold: {fd_threshold} mm keeps {len(kept)} frames, expected at least {MIN_FRAMES}; use a larger threshold"
        )

    mean = session.y.mean(1)
    centred = session.y - mean[:, None]  # the baseline is removed anyway, and without it float32 is precise enough

    # For given confounds, cleaning is linear in the signals, so its effect on T unit impulses determines it completely.
    def operator(low_pass: float | None, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n span"]:
        first, span = int(frames[0]), int(frames[-1] - frames[0]) + 1
        padding = {"butterworth__padlen": span - 1} if span <= 34 else {}  # as for recordings: default padding exceeds short halves
        return clean(
            np.eye(span),
            confounds=session.confounds["global_signal"][first : first + span, None],
            sample_mask=frames - first if len(frames) < span else None,
            detrend=True,
            standardize=None,
            high_pass=BAND_HZ[0],
            low_pass=low_pass,
            t_r=session.tr,
            **padding,
        ).astype(np.float32)

    def through(low_pass: float | None, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "V n"]:
        return centred[:, frames[0] : frames[-1] + 1] @ operator(low_pass, frames).T

    def half(frames: Int[np.ndarray, " n"]) -> Half:
        y = through(BAND_HZ[1], frames)
        zscore_in_place(y)
        return Half(y, frames, float(np.square(operator(BAND_HZ[1], frames)).sum()))

    first, second = split_frames(kept, session.tr)
    unfiltered = None
    if wide:
        unfiltered = through(None, kept)
        zscore_in_place(unfiltered)
        unfiltered = unfiltered.astype(np.float16)
    return make_scan(
        through(BAND_HZ[1], kept),
        session.space,
        tr=session.tr,
        frames=kept,
        recorded=recorded,
        mean=mean,
        subject=session.subject,
        entities={"ses": session.session, "task": "rest"},
        source="simulation",
        displacement=session.displacement,
        wide=unfiltered,
        halves=(half(kept[first]), half(kept[second])),
        degrees=float(np.square(operator(BAND_HZ[1], kept)).sum()),
        cleaning={
            "detrend": True,
            "high_pass": BAND_HZ[0],
            "low_pass": BAND_HZ[1],
            "confounds": ["global_signal"],
            "fd_threshold": fd_threshold,
        },
    )


def check(config: SimulateConfig) -> None:
    """Raise ValueError if a setting is invalid, naming the field, the allowed values and the given value."""
    expected = {
        "subjects": ("1 or more", config.subjects >= 1),
        "sessions": ("1 or more", config.sessions >= 1),
        "tier": (f"one of {sorted(TIERS)}", config.tier in TIERS),
        "resolution": ("4, 3 or 2 mm", config.resolution in RESOLUTIONS),
        "parcels": (f"an even number from {MIN_PARCELS}, half a hemisphere", config.parcels >= MIN_PARCELS and config.parcels % 2 == 0),
        "tr": ("a positive number of seconds, or None for that of the site", config.tr is None or config.tr > 0),
        "sites": (f"1…{len(SITES)}", 1 <= config.sites <= len(SITES)),
        "patients": ("a share 0…1", 0 <= config.patients <= 1),
        "severity": ("0…1", 0 <= config.severity <= 1),
        "seed": ("0 or more", config.seed >= 0),
    }
    for field, (wanted, good) in expected.items():
        if not good:
            raise SettingsError(f"SimulateConfig.{field}: expected {wanted}, got {getattr(config, field)!r}")
    for site in SITES[: config.sites]:
        frames = _frames(config, site)
        if frames < MIN_FRAMES:
            raise SettingsError(
                f"SimulateConfig.minutes: expected at least {MIN_FRAMES} frames at every site, got {frames} "
                f"at site {site.name} in {config.minutes!r} min × {site.length:g} at a TR of {config.tr or site.tr:g} s"
            )


@functools.lru_cache(maxsize=4)
def group_truth(resolution: int, parcels: int, seed: int) -> SimulatedGroup:
    """Draw everything that all subjects of a cohort share. Cached: treat the arrays as read-only."""
    rng = _stream(seed, _GROUP)
    space = grey_matter_space(resolution)
    labels = group_parcels(space, parcels, rng)
    coupling = couplings.group_coupling(centroids(labels, space.xyz, parcels), rng)
    plan = diseases.plan(coupling.modules, couplings.weights(coupling).sum(1), rng)
    return SimulatedGroup(space, labels, coupling, plan)


def _with_disease(
    healthy: Float[np.ndarray, "K K"], plan: diseases.Plan, delay: float, severity: float, kind: diseases.Kind
) -> tuple[Float[np.ndarray, "K K"], LinearModel, diseases.DiseaseTruth]:
    """Compute the coupling, dynamics and disease effects of a subject; severity 0 means healthy."""
    coupling = diseases.with_disease(healthy, plan, severity, kind)
    model = linear_model(couplings.jacobian(coupling), delay=delay)
    healthy_fc = true_fc(linear_model(couplings.jacobian(healthy), delay=delay))
    return coupling, model, diseases.disease_truth(plan, severity, kind, healthy_fc=healthy_fc, fc=true_fc(model))


def _traits(config: SimulateConfig, space: Space, labels: Int[np.ndarray, " V"], index: int) -> Traits | None:
    """Draw the spatial maps of a subject from a separate random stream; None for tiers without realism."""
    realism = TIERS[config.tier].realism
    if realism is None:
        return None
    with threadpool_limits(1, "blas"):  # bit-for-bit identical on any number of cores
        return draw_traits(labels, space, config.parcels, realism, _stream(config.seed, _TRAITS, index))


def _session(
    config: SimulateConfig,
    space: Space,
    labels: Int[np.ndarray, " V"],
    model: LinearModel,
    traits: Traits | None,
    index: int,
    site_index: int,
    number: int,
) -> SimulatedSession:
    site = SITES[site_index]
    tr = float(config.tr or site.tr)
    rng = _stream(config.seed, _SESSION, index, number)
    frames, tier = _frames(config, site), TIERS[config.tier]
    latent, parts = sample(model, rng, tr=tr, frames=frames), None
    if tier.realism is not None and traits is not None:  # more realisations of the same dynamics, independent of the first
        second, third = (sample(model, rng, tr=tr, frames=frames)[traits.order] for _ in range(2))
        parts = RealismInputs(tier.realism, traits, second, third[: traits.gradients.shape[1]])
    gain = site_gain(space, _stream(config.seed, _SITE, site_index))
    with threadpool_limits(1, "blas"):  # thousands of small products, for which several threads are slower on a busy machine
        recording = observe(latent, labels, space, rng, tr=tr, tier=tier, site=site, gain=gain, parts=parts)
    return SimulatedSession(recording.y, tr, recording.displacement, recording.confounds, space, f"{index + 1:03d}", str(number + 1))


def _frames(config: SimulateConfig, site: Site) -> int:
    return round(config.minutes * 60 * site.length / (config.tr or site.tr))


def _assign(config: SimulateConfig, index: int) -> tuple[bool, int]:
    """Return whether a subject is a patient, and its site; patients and controls are each spread evenly over the sites."""

    def before(count):  # patients among the first `count` subjects
        return int(np.floor(config.patients * count + 1e-9))

    patient = before(index + 1) > before(index)
    rank = before(index) if patient else index - before(index)
    return patient, rank % config.sites


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
