"""Cases for comparing encoders: two recordings of one participant under one condition."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from pnet_jax.config import SimulateConfig, nearest
from pnet_jax.ingest import naming
from pnet_jax.parcellation.atlas import Atlas, make_atlas, on_space
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.scan import Scan, halves_of, make_scan, some_frames, split
from pnet_jax.simulate import check, cleaned_scan, simulate_subject
from pnet_jax.simulate.space import centroids
from pnet_jax.space import Space, point_space, take

MINUTES = {"6min": 6.0, "3min": 3.0, "1min": 1.0}
CONDITIONS = ("full", *MINUTES, "tr", "roi", "resolution")
RECORDED = ("full", *MINUTES, "roi")  # conditions that also apply to recordings
UNSEEN_TR = (0.72, 3.5)  # seconds; the simulated sites have 1.5 to 3
UNSEEN_RESOLUTION, FINEST = 3, 2  # mm
HELD_OUT_SEED = 1_000_000  # seed of the first simulated subject; no model is trained on this or higher seeds
LEAST_SHARED = 0.5  # least share of locations that two sessions of a pair have in common


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Two recordings of one participant that differ only by noise.

    Attributes:
      name: Name of the condition, e.g. `"full"`, `"3min"`, `"tr 0.72 s"`.
      subject: Label without `sub-`.
      scans: Two recordings on one Space: two sessions, or two halves of one scan with a gap between them.
      atlas: Starting parcels of all models.
      truth: True parcel of each location, −1 outside, `[V]`; None if unknown.
      kind: `"sessions"` or `"halves"`.
      dataset: Name of the data set, or its folder if it has no name; equal labels in two data sets are different participants.
    """

    name: str
    subject: str
    scans: tuple[Scan, Scan]
    atlas: Atlas
    truth: Int[np.ndarray, " V"] | None = None
    kind: str = "sessions"
    dataset: str = ""

    @property
    def is_points(self) -> bool:
        """Whether the locations are ROIs, which have no neighbours and cannot be parcellated."""
        return self.scans[0].space.kind == "points"


def check_conditions(conditions: Sequence[str], known: Sequence[str] = CONDITIONS) -> tuple[str, ...]:
    """Return the conditions without duplicates.

    Raises:
      ValueError: If there is none, or one is unknown (the nearest is named).
    """
    if not conditions:
        raise ValueError(f"expected at least one condition of {', '.join(known)}, got none")
    for condition in conditions:
        if condition not in known:
            raise ValueError(f"unknown condition {condition!r}: expected one of {', '.join(known)}{nearest(condition, known)}")
    return tuple(dict.fromkeys(conditions))


# simulated participants, with known parcels


def simulated_cases(
    conditions: Sequence[str] = CONDITIONS,
    config: SimulateConfig | None = None,
    *,
    atlas: Atlas | None = None,
    full: bool = False,
) -> Iterator[Case]:
    """Generate cases from simulated participants with held-out seeds.

    Subject i is the first subject of a separate cohort with seed `config.seed + i`, with different group parcels and modules, so that
    intervals over subjects also apply to populations.

    Args:
      conditions: Conditions from `CONDITIONS`.
      config: Settings; by default the medium tier, 4 mm, two sessions of 10 min and seed `HELD_OUT_SEED`. Two sessions are always
          simulated.
      atlas: Starting parcels; by default the group parcels of the cohort.
      full: Whether to use 2 mm (204,000 voxels) for the unseen resolution instead of 3 mm (64,000).

    Returns:
      One case per condition (two for `"tr"`) and subject, generated on demand; conditions longer than the recordings are omitted.

    Raises:
      ValueError: If a condition is unknown, or the settings are invalid.
    """
    chosen = check_conditions(conditions)
    config = config or SimulateConfig(subjects=3, seed=HELD_OUT_SEED)
    chosen = _not_too_long(chosen, config.minutes)
    finer = FINEST if full else UNSEEN_RESOLUTION
    variants = [(f"tr {tr:g} s", dataclasses.replace(config, tr=tr)) for tr in UNSEEN_TR] if "tr" in chosen else []
    if "resolution" in chosen:
        variants.append((f"{finer} mm", dataclasses.replace(config, resolution=finer)))
    for one in (config, *(other for _, other in variants)):
        check(one)
    plain = [condition for condition in chosen if condition not in ("tr", "resolution")]

    def cases() -> Iterator[Case]:
        for number in range(config.subjects):
            if plain:
                whole = _simulated("full", config, number, atlas)
                yield from (_under(condition, whole) for condition in plain)
            for name, other in variants:
                yield _simulated(name, other, number, atlas)

    return cases()


def count_simulated(conditions: Sequence[str], config: SimulateConfig) -> int:
    """Return the number of cases that `simulated_cases` generates."""
    names = [name for name in check_conditions(conditions) if MINUTES.get(name, 0) <= config.minutes]
    return config.subjects * (len(names) + (len(UNSEEN_TR) - 1) * ("tr" in names))


def _not_too_long(conditions: Sequence[str], minutes: float) -> tuple[str, ...]:
    short = tuple(name for name in conditions if MINUTES.get(name, 0) <= minutes)
    if not short:
        raise ValueError(f"expected a condition no longer than the {minutes:g} min of the recordings, got {', '.join(conditions)}")
    return short


def _simulated(name: str, config: SimulateConfig, number: int, atlas: Atlas | None) -> Case:
    one = dataclasses.replace(config, subjects=1, sessions=2, seed=config.seed + number)
    participant = simulate_subject(one, 0)
    first, second = (dataclasses.replace(cleaned_scan(session), subject=f"{number + 1:03d}") for session in participant.sessions)
    space = participant.space
    group = atlas or make_atlas(
        space.xyz, participant.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group", space=space.name
    )
    return Case(name, first.subject, (first, second), group, participant.labels)


# recorded participants


def scan_cases(scans: Iterable[Scan], atlas: Atlas, conditions: Sequence[str] = RECORDED, dataset: str = "") -> Iterator[Case]:
    """Generate cases from recordings.

    Sessions of a participant on one Space, or on Spaces that share at least half of their locations, are paired for each task: the first
    with the second, the third with the fourth. If a participant has no such pair, every recording is split into halves with a gap of 30 s.

    Args:
      scans: Scans grouped by subject label, as sorted by `find_scans`; those of one label are held in memory at a time.
      atlas: Starting parcels of all models.
      conditions: `"full"`, `"6min"`, `"3min"`, `"1min"` (the first minutes of both recordings) and `"roi"` (mean signals of the atlas
          parcels). Pairs shorter than a condition are skipped with a warning.
      dataset: Name of the data set of all scans. Without a name, scans in different data set folders (`naming.dataset_folder`) belong to
          different participants, whatever their labels.

    Raises:
      ValueError: If a condition is unknown, or applies only to simulated scans.
    """
    for condition in conditions:
        if condition in ("tr", "resolution"):
            raise ValueError(f"condition {condition!r} applies only to simulated scans; expected {', '.join(RECORDED)}")
    chosen = check_conditions(conditions, RECORDED)

    def cases() -> Iterator[Case]:
        for name, subject, own in _by_participant(scans, dataset):
            for first, second, kind in pairs(own):
                whole = Case("full", subject, (first, second), atlas, kind=kind, dataset=name)
                for condition in chosen:
                    if MINUTES.get(condition, 0) * 60 > 1.02 * min(map(_seconds, whole.scans)):
                        _warn_short(whole, condition)
                    else:
                        yield _under(condition, whole)

    return cases()


def _by_participant(scans: Iterable[Scan], dataset: str) -> Iterator[tuple[str, str, list[Scan]]]:
    """Yield data set, label and recordings of each participant."""
    for subject, alike in itertools.groupby(scans, key=lambda scan: scan.subject):
        own: dict[str, list[Scan]] = {}
        for scan in alike:
            own.setdefault(dataset or naming.dataset_folder(scan.source, subject), []).append(scan)
        yield from ((name, subject, found) for name, found in own.items())


def pairs(scans: Sequence[Scan]) -> list[tuple[Scan, Scan, str]]:
    """Pair one participant's recordings; each pair comes with its kind, `"sessions"` or `"halves"`."""
    found, left = [], list(scans)
    while left:
        first = left.pop(0)
        for place, other in enumerate(left):
            if _are_sessions(first, other) and (both := on_common_locations(first, other)) is not None:
                found.append((*both, "sessions"))
                left.pop(place)
                break
    return found or [(*halves(scan), "halves") for scan in scans]


def _are_sessions(a: Scan, b: Scan) -> bool:
    return a.entities.get("ses") != b.entities.get("ses") and a.entities.get("task") == b.entities.get("task")


def on_common_locations(a: Scan, b: Scan) -> tuple[Scan, Scan] | None:
    """Restrict both to their common locations, since brain masks can differ between sessions; None if there are too few."""
    if a.space is b.space or np.array_equal(a.space.xyz, b.space.xyz):
        return a, dataclasses.replace(b, space=a.space)
    if a.space.kind != b.space.kind:
        return None
    _, in_a, in_b = np.intersect1d(_keys(a.space), _keys(b.space), return_indices=True)
    if len(in_a) < LEAST_SHARED * max(len(a.space), len(b.space)):
        return None
    order = np.argsort(in_a)
    space = take(a.space, in_a[order])
    first, second = _locations(a, in_a[order]), _locations(b, in_b[order])
    return dataclasses.replace(first, space=space), dataclasses.replace(second, space=space)


def _keys(space: Space) -> np.ndarray:
    """Convert the coordinates of each location to one sortable value."""
    return np.ascontiguousarray(space.xyz + np.float32(0)).view([("", np.float32)] * 3).ravel()  # + 0 makes −0 equal 0


def halves(scan: Scan) -> tuple[Scan, Scan]:
    """Split a recording into halves with a gap between them, each cleaned separately if the cleaning is known."""
    first, second = (
        dataclasses.replace(some_frames(scan, columns), y=half.y, degrees=half.degrees)
        for columns, half in zip(split(scan), halves_of(scan), strict=True)
    )
    return first, second


# one pair under a condition


def _under(condition: str, case: Case) -> Case:
    if condition == "full":
        return case
    if condition == "roi":
        return rois(case)
    first, second = (first_minutes(scan, MINUTES[condition]) for scan in case.scans)
    return dataclasses.replace(case, name=condition, scans=(first, second))


def first_minutes(scan: Scan, minutes: float) -> Scan:
    """Truncate a recording after some minutes; it was cleaned as a whole."""
    return some_frames(scan, np.flatnonzero((scan.frames - scan.frames[0]) * scan.tr < minutes * 60 - 1e-6))


def rois(case: Case) -> Case:
    """Average signals within parcels and place them at the centroids: true parcels if known, otherwise those of the atlas."""
    first, second = case.scans
    labels, count = case.truth, case.atlas.n_parcels
    if labels is None:
        labels = np.where(first.valid & second.valid, on_space(case.atlas, first.space).labels, -1)
    else:
        count = int(labels.max()) + 1
    there = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=count) > 0)
    inside = labels >= 0
    xyz = centroids(labels[inside], first.space.xyz[inside], count)[there]
    space = point_space(xyz, name=first.space.name)

    def one(scan: Scan) -> Scan:
        return make_scan(
            np.asarray(parcel_signals(scan.y, labels, count))[there],
            space,
            tr=scan.tr,
            frames=scan.frames,
            recorded=scan.recorded,
            subject=scan.subject,
            entities=dict(scan.entities),
            source=scan.source,
            cleaning=scan.cleaning,
        )

    return dataclasses.replace(case, name="roi", scans=(one(first), one(second)), truth=None)


def _locations(scan: Scan, keep: Int[np.ndarray, " n"]) -> Scan:
    wide = None if scan.wide is None else scan.wide[keep]
    halves = None if scan.halves is None else tuple(half._replace(y=half.y[keep]) for half in scan.halves)
    own = {name: getattr(scan, name)[keep] for name in ("y", "valid", "mean", "std")}
    return dataclasses.replace(scan, **own, wide=wide, halves=halves)  # type: ignore[arg-type]


def _seconds(scan: Scan) -> float:
    return float(scan.frames[-1] - scan.frames[0] + 1) * scan.tr


def _warn_short(case: Case, condition: str) -> None:
    length = min(map(_seconds, case.scans)) / 60
    warnings.warn(f"{case.scans[0].label}: {length:.1f} min per recording are too short for condition {condition}", stacklevel=3)
