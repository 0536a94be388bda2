"""What a reader should know of a network before believing it: figures, and warnings in words."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.construction.resolve import Plan
from pnet_jax.construction.step import BLOCK_SECONDS, LEAST_DCBC_GAIN, LEAST_DEGREES, MIN_BLOCKS, Outputs, Subject
from pnet_jax.network import QC, Bin, Calibration, MapScores, Selection, Trial, confidence_of, start_name
from pnet_jax.parcellation.harden import count_components
from pnet_jax.parcellation.prior import Prior
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan, n_eff
from pnet_jax.space import LEFT, RIGHT

MUCH_MOTION_MM = 0.25  # mean framewise displacement beyond which connectivity is commonly taken to be affected
RESOLUTION_TOLERANCE = 0.1  # voxel sizes of atlas and scan that differ by less are the same
WHOLE_SIDE = 0.1  # share of the locations from which on a hemisphere is one that was scanned
ALIKE = 0.9  # mean correlation of parcels beyond which one signal is everywhere


def quality(scan: Scan, placed: AtlasOnSpace, plan: Plan, subject: Subject, found: Outputs, coverage: Float[np.ndarray, " K"]) -> QC:
    """Figures and warnings of a network."""
    atlas, name, n = placed.atlas, np.array(placed.atlas.names, object), len(placed.here)
    labels, before = found.labels[:n], np.where(subject.valid[:n], np.asarray(placed.prior.labels)[:n], -1)
    size = np.bincount(labels[labels >= 0], minlength=atlas.n_parcels)
    inside = (labels >= 0) & (before >= 0)
    moved = inside & (labels != before)
    components = count_components(labels, placed.space.neighbours, atlas.n_parcels)
    selection = _selection(subject, found, start_of(plan))
    displacement = None if scan.displacement is None else float(np.nanmean(scan.displacement))
    qc = QC(
        selection=selection,
        calibration=_calibration(found, moved, inside, n) if found.personalised else None,
        absent=tuple(name[size == 0].tolist()),
        restored=tuple(name[found.restored].tolist()),
        low_coverage=tuple(name[coverage < plan.config.min_coverage].tolist()),
        fragments_joined=int(found.moved_fragments),
        components={str(name[k]): int(c) for k, c in enumerate(components) if c > 1},
        sizes=tuple(size.tolist()),
        moved=float(moved.sum() / max(inside.sum(), 1)),
        n_locations=int((labels >= 0).sum()),
        n_outside=int(len(scan.space) - (labels >= 0).sum()),
        n_frames=int(scan.y.shape[1]),
        recorded_frames=int(scan.recorded),
        minutes=scan.duration / 60,
        n_eff=n_eff(scan),
        mean_displacement=displacement,
        tsnr=float(np.median((scan.mean / np.maximum(scan.std, 1e-12))[scan.valid])),
    )
    return qc.warn(*_warnings(scan, placed, plan, found, selection, size, labels))


def _selection(subject: Subject, found: Outputs, start: str) -> Selection:
    choice, q = found.choice, found.quality
    maps = [MapScores(*(float(x) for x in pair)) for pair in zip(q.dcbc, q.homogeneity, strict=True)]
    rows = zip(choice.kappas, choice.betas, choice.scores, choice.temperatures, strict=True)
    return Selection(
        decision="personalised" if found.personalised else "atlas",
        reason=_reason(subject, found, start),
        kappa=float(choice.kappa),
        beta=float(choice.beta),
        temperature=float(choice.temperature),
        score=float(choice.score),
        data_free_score=float(choice.free),
        at_edge=bool(choice.edge),
        trials=tuple(Trial(*(float(x) for x in row)) for row in rows),
        personalised=maps[0],
        data_free=maps[1],
        atlas=maps[2],
        gain=_interval(q.gain),
        dcbc_gain=_interval(q.dcbc_gain),
        agreement=float(q.agreement),
        degrees=(float(subject.degrees[0]), float(subject.degrees[1])),
    )


def _interval(values: Float[np.ndarray, " 3"]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def start_of(plan: Plan) -> str:
    """What parcels a construction starts from, and returns where the scan cannot decide."""
    return start_name(plan.group is not None and plan.group.spatial is not None)


def _reason(subject: Subject, found: Outputs, start: str) -> str:
    """Why personalised parcels or those of the start are returned, and what would help."""
    gain, dcbc = _interval(found.quality.gain), _interval(found.quality.dcbc_gain)
    degrees = float(np.min(subject.degrees))
    said = (
        f"across halves the personalised parcels gain {gain[1]:+.3f} nats per location (95 % interval {gain[0]:+.3f} to {gain[2]:+.3f}) "
        f"and {dcbc[1]:+.4f} in DCBC ({dcbc[0]:+.4f} to {dcbc[2]:+.4f}) over parcels that see no data"
    )
    enough = gain[0] > 0 and dcbc[0] > 0 and dcbc[1] >= LEAST_DCBC_GAIN and degrees >= LEAST_DEGREES and subject.n_blocks >= MIN_BLOCKS
    if found.personalised:
        return said if enough else f"forced by the configuration, although not supported: {said}"
    if degrees < LEAST_DEGREES:
        return (
            f"filter and regressors leave {degrees:.0f} degrees of freedom in a half of the scan, expected at least {LEAST_DEGREES:.0f}: a "
            f"longer scan or fewer regressors would help, so {start} is kept"
        )
    if subject.n_blocks < MIN_BLOCKS:
        return (
            f"a half of the scan has {int(subject.n_blocks)} stretches of {BLOCK_SECONDS:g} s, expected at least {MIN_BLOCKS} to measure a "
            f"gain: a longer scan would help, so {start} is kept"
        )
    if not np.isfinite(dcbc[0]):
        return f"the DCBC could not be measured across halves (too few neighbouring locations), so {start} is kept"
    if gain[0] > 0 and dcbc[0] > 0:
        return f"{said}; a DCBC gain below {LEAST_DCBC_GAIN:g} is also found in noise: a longer scan would help, so {start} is kept"
    return f"{said}, which does not exclude zero: a longer scan would help, so {start} is kept"


def _calibration(found: Outputs, moved: np.ndarray, inside: np.ndarray, n: int) -> Calibration:
    p, hits, count = found.reliability
    bins = tuple(Bin(int(c), float(a / c), float(b / c)) for a, b, c in zip(p, hits, count, strict=True) if c > 0)
    confidence = confidence_of(found.labels, found.probabilities, found.candidates)[:n]
    total = max(int(inside.sum()), 1)
    return Calibration(
        exponents=_interval(found.exponents),
        expected_error=float(np.abs(p - hits).sum() / max(count.sum(), 1)),
        expected_agreement=float(confidence[inside].mean()),
        confident_moves=float((moved & (confidence >= 0.5)).sum() / total),
        doubtful_moves=float((moved & (confidence < 0.5)).sum() / total),
        curve=bins,
    )


def _warnings(
    scan: Scan,
    placed: AtlasOnSpace,
    plan: Plan,
    found: Outputs,
    selection: Selection,
    size: Int[np.ndarray, " K"],
    labels: Int[np.ndarray, " n"],
) -> list[str]:
    atlas, independent = placed.atlas, n_eff(scan)
    said = []
    if (alike := _alike(found)) > ALIKE:
        said.append(
            f"parcels correlate by {alike:.2f} on average: one signal is nearly everywhere, so the network says nothing; check the "
            "recording and its cleaning"
        )
    said += [*scan.warnings, *_misfits(scan, placed, labels)]
    if scan.halves is None:
        said.append(
            "the signals were cleaned before they were read: regressors of the whole recording tie its halves together, and the choice "
            "between personalised parcels and the atlas can take noise for a gain"
        )
    if {"partial", "precision"} & set(plan.edges) and independent <= 5 * atlas.n_parcels:
        said.append(
            f"partial correlation and precision are ill-posed here: about {independent:.0f} effective frames for "
            f"{atlas.n_parcels} parcels, expected more than {5 * atlas.n_parcels}"
        )
    if selection.decision == "atlas":
        said.append(f"the parcels of {start_of(plan)} are returned: {selection.reason}")
    elif selection.at_edge:
        said.append(f"the best κ ({selection.kappa:.3g}) lies at the edge of the values that are tried")
    moved = None if scan.displacement is None else np.nanmean(scan.displacement[scan.frames])
    if moved is not None and moved > MUCH_MOTION_MM:
        said.append(
            f"the head moved {moved:.2f} mm a frame on average in the frames that were kept, "
            f'more than {MUCH_MOTION_MM} mm: add "scrub" to cleaning.strategy, or treat this network with care'
        )
    if (size == 0).any():
        said.append(f"{int((size == 0).sum())} of {atlas.n_parcels} parcels have no location; their rows are NaN")
    return said


def _alike(found: Outputs) -> float:
    """Mean Pearson correlation of different parcels."""
    some = found.signals[np.isfinite(found.signals).all(1)]
    some = some[some.std(1) > 0] if len(some) else some
    if len(some) < 3:
        return 0.0
    r = np.corrcoef(some)
    return float((r.sum() - len(r)) / (len(r) * (len(r) - 1)))


def _misfits(scan: Scan, placed: AtlasOnSpace, labels: Int[np.ndarray, " n"]) -> list[str]:
    """What a reader should know of how the atlas lies on the scan."""
    warnings, here = [], scan.space.resolution
    atlas: Prior = placed.atlas
    # The shipped atlases are geometric: they have no borders that a voxel size could blur.
    drawn = not atlas.source.startswith("geometric")
    if drawn and scan.space.kind == "grid" and abs(here - atlas.resolution) > RESOLUTION_TOLERANCE * atlas.resolution:
        warnings.append(
            f"the atlas's {atlas.resolution:.3g} mm were taken to the scan's {here:.3g} mm by nearest point: an atlas at the scan's own "
            "resolution has sharper borders"
        )
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        own = scan.valid & (scan.space.hemisphere == side)
        if own.sum() > WHOLE_SIDE * scan.valid.sum() and not (labels[placed.space.hemisphere == side] >= 0).any():
            warnings.append(
                f"the atlas has no parcel in the {name} hemisphere, where {int(own.sum())} of the scan's {int(scan.valid.sum())} "
                "locations lie: check that atlas and scan belong together"
            )
    return warnings
