"""Subjects and cohorts with known truth.

What a subject is depends on nothing but (seed, subject index), what a recording holds on nothing but (seed, subject index, session):
each has a random stream of its own, keyed the way `jax.random.fold_in` keys them. Cohort size, order and the other subjects
change no bit.
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

MIN_PARCELS = 16  # below this there is no room for modules and two circuits
MIN_FRAMES = 30
_GROUP, _SITE, _SUBJECT, _SESSION, _TRAITS = range(5)  # random streams


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedSession:
    """One raw recording of a subject.

    Attributes:
      y: raw signals, `[V, T]`, float32, around 1000.
      tr: seconds.
      displacement: framewise displacement in mm, `[T]`.
      confounds: fMRIPrep's basic columns, `[T]` each.
      space: V locations.
      subject: label, `"001"`.
      session: label, `"1"`.
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
    """One subject: the truth and the recordings.

    Attributes:
      index: position in the cohort, from 0.
      subject: label, `"001"` for index 0.
      site: `"A"`…`"D"`.
      patient: whether the disease was planted.
      age: years.
      group_labels: the group's parcel of each location, 0…K−1, `[V]`.
      labels: the subject's own, `[V]`.
      modules: the subject's module of each parcel, `[K]`.
      coupling: normalised coupling N with age and disease, `[K, K]`; `coupling.jacobian` makes J of it.
      hrf_delay: seconds by which the haemodynamic peak comes after 5 s.
      true_fc: closed-form correlation of the parcel signals within .009–.1 Hz, `[K, K]`.
      disease: what the disease did.
      sessions: the recordings.
      space: V locations.
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
    """What all subjects of a cohort share: V locations, parcels `[V]`, coupling, and where disease and ageing act."""

    space: Space
    labels: Int[np.ndarray, " V"]
    coupling: couplings.GroupCoupling
    plan: diseases.Plan


def simulate_cohort(config: SimulateConfig, *, disease: diseases.Kind = "circuits") -> Iterator[SimulatedSubject]:
    """The subjects of a cohort, one after another; only one is held in memory.

    Raises:
      ValueError: see `check`.
    """
    check(config)
    return (simulate_subject(config, index, disease=disease) for index in range(config.subjects))


def simulate_subject(config: SimulateConfig, index: int, *, disease: diseases.Kind = "circuits") -> SimulatedSubject:
    """One subject of a cohort.

    Depends on the seed and `index` only: `config.subjects` may be anything, and more sessions leave the first ones as they were.
    Memory: a session takes 4VT bytes (4 mm, 10 min, 2 s: 34 MB) and about four times that while it is made.

    Args:
      config: the cohort.
      index: 0, 1, …; may lie beyond `config.subjects`.
      disease: what patients have: `"circuits"` (one circuit weakened, one strengthened) or `"lesion"` (of one node).

    Raises:
      ValueError: see `check`; an index below 0 or an unknown disease.

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
    """A cleaned Scan of a simulated recording, in memory: linear trend, .009–.1 Hz, global-signal regression, z-scores.

    Args:
      session: V locations, T frames.
      fd_threshold: framewise displacement in mm above which frames are bridged for the filter and then dropped; None keeps all.
      wide: keep the signals before the low-pass too.

    Raises:
      ValueError: a repetition time too long for the band, or a threshold that leaves fewer than 30 frames.
    """
    from nilearn.signal import clean

    if session.tr >= 0.5 / BAND_HZ[1]:
        raise ValueError(f"a band up to {BAND_HZ[1]} Hz needs a repetition time below {0.5 / BAND_HZ[1]:g} s, got {session.tr}")
    recorded = len(session.displacement)
    kept = np.arange(recorded) if fd_threshold is None else np.flatnonzero(session.displacement <= fd_threshold)
    if len(kept) < MIN_FRAMES:
        raise SettingsError(f"expected an fd_threshold that keeps {MIN_FRAMES} frames or more; {fd_threshold} mm keeps {len(kept)}")

    mean = session.y.mean(1)
    centred = session.y - mean[:, None]  # the baseline is removed anyway; without it float32 suffices

    # Given the confounds, cleaning is linear in the signals: what it does to T unit impulses says what it does to all.
    def operator(low_pass: float | None, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n span"]:
        first, span = int(frames[0]), int(frames[-1] - frames[0]) + 1
        padding = {"butterworth__padlen": span - 1} if span <= 34 else {}  # as for recordings: the filter's own does not fit a short half
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
    """Raises ValueError, naming the field, what it may be and what it is, where a configuration makes no sense."""
    expected = {
        "subjects": ("1 or more", config.subjects >= 1),
        "sessions": ("1 or more", config.sessions >= 1),
        "tier": (f"one of {sorted(TIERS)}", config.tier in TIERS),
        "resolution": ("4, 3 or 2 mm", config.resolution in RESOLUTIONS),
        "parcels": (f"an even number from {MIN_PARCELS}, half a hemisphere", config.parcels >= MIN_PARCELS and config.parcels % 2 == 0),
        "tr": ("seconds above 0, or None for the site's", config.tr is None or config.tr > 0),
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
                f"SimulateConfig.minutes: expected {MIN_FRAMES} frames or more at every site, got {frames} "
                f"at site {site.name} in {config.minutes!r} min × {site.length:g} at a TR of {config.tr or site.tr:g} s"
            )


@functools.lru_cache(maxsize=4)
def group_truth(resolution: int, parcels: int, seed: int) -> SimulatedGroup:
    """What all subjects of a cohort share. Cached: treat the arrays as read-only."""
    rng = _stream(seed, _GROUP)
    space = grey_matter_space(resolution)
    labels = group_parcels(space, parcels, rng)
    coupling = couplings.group_coupling(centroids(labels, space.xyz, parcels), rng)
    plan = diseases.plan(coupling.modules, couplings.weights(coupling).sum(1), rng)
    return SimulatedGroup(space, labels, coupling, plan)


def _with_disease(
    healthy: Float[np.ndarray, "K K"], plan: diseases.Plan, delay: float, severity: float, kind: diseases.Kind
) -> tuple[Float[np.ndarray, "K K"], LinearModel, diseases.DiseaseTruth]:
    """Coupling, dynamics and disease truth of a subject; severity 0 is health."""
    coupling = diseases.with_disease(healthy, plan, severity, kind)
    model = linear_model(couplings.jacobian(coupling), delay=delay)
    healthy_fc = true_fc(linear_model(couplings.jacobian(healthy), delay=delay))
    return coupling, model, diseases.disease_truth(plan, severity, kind, healthy_fc=healthy_fc, fc=true_fc(model))


def _traits(config: SimulateConfig, space: Space, labels: Int[np.ndarray, " V"], index: int) -> Traits | None:
    """A subject's maps, from a stream of their own; None in a tier without realism."""
    realism = TIERS[config.tier].realism
    if realism is None:
        return None
    with threadpool_limits(1, "blas"):  # the same bits on any number of cores
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
    if tier.realism is not None and traits is not None:  # further realisations of the same dynamics, independent of the first latents
        second, third = (sample(model, rng, tr=tr, frames=frames)[traits.order] for _ in range(2))
        parts = RealismInputs(tier.realism, traits, second, third[: traits.gradients.shape[1]])
    gain = site_gain(space, _stream(config.seed, _SITE, site_index))
    with threadpool_limits(1, "blas"):  # thousands of small products: several threads wait for each other on a busy machine
        recording = observe(latent, labels, space, rng, tr=tr, tier=tier, site=site, gain=gain, parts=parts)
    return SimulatedSession(recording.y, tr, recording.displacement, recording.confounds, space, f"{index + 1:03d}", str(number + 1))


def _frames(config: SimulateConfig, site: Site) -> int:
    return round(config.minutes * 60 * site.length / (config.tr or site.tr))


def _assign(config: SimulateConfig, index: int) -> tuple[bool, int]:
    """Whether a subject is a patient, and the site: both spread evenly, patients and controls each over all sites."""

    def before(count):  # patients among the first `count` subjects
        return int(np.floor(config.patients * count + 1e-9))

    patient = before(index + 1) > before(index)
    rank = before(index) if patient else index - before(index)
    return patient, rank % config.sites


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
