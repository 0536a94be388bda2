"""Quality control of a network: measures and warnings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.construction.misfits import misfits
from pnet_jax.construction.resolve import Plan
from pnet_jax.construction.step import BLOCK_SECONDS, LEAST_DCBC_GAIN, LEAST_DEGREES, MIN_BLOCKS, Outputs, Subject
from pnet_jax.network import QC, Bin, Calibration, MapScores, Selection, Trial, confidence_of, start_name
from pnet_jax.parcellation.harden import count_components
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.scan import Scan, band_limit, halves_of, n_eff

MUCH_MOTION_MM = 0.25  # mean framewise displacement above which connectivity is commonly considered affected
ALIKE = 0.9  # mean absolute correlation above which one signal dominates all parcels
SAME, MANY, FEW_PARCELS = 0.95, 1 / 3, 8  # correlation of nearly equal signals; largest share of such parcels; fewest parcels checked


def quality(scan: Scan, placed: AtlasOnSpace, plan: Plan, subject: Subject, found: Outputs, coverage: Float[np.ndarray, " K"]) -> QC:
    """Compute the quality measures and warnings of a network."""
    atlas, name, n = placed.atlas, np.array(placed.atlas.names, object), len(placed.here)
    labels, before = found.labels[:n], np.where(subject.valid[:n], np.asarray(placed.prior.labels)[:n], -1)
    size = np.bincount(labels[labels >= 0], minlength=atlas.n_parcels)
    inside = (labels >= 0) & (before >= 0)
    moved = inside & (labels != before)
    components = count_components(labels, placed.space.neighbours, atlas.n_parcels)
    selection = _selection(scan, subject, found, start_of(plan), plan.settings.labels)
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
    return qc.warn(*_warnings(scan, placed, plan, found, selection, size, labels, subject.valid[:n]))


def _selection(scan: Scan, subject: Subject, found: Outputs, start: str, labels: str) -> Selection:
    choice, q = found.choice, found.quality
    maps = [MapScores(*(float(x) for x in pair)) for pair in zip(q.dcbc, q.homogeneity, strict=True)]
    rows = zip(choice.kappas, choice.betas, choice.scores, choice.temperatures, strict=True)
    return Selection(
        decision="personalised" if found.personalised else "atlas",
        reason=_reason(scan, subject, found, start, labels),
        requested=labels == "atlas",
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
    """Name the parcels that a construction starts from, and returns if the scan does not support personalised ones."""
    return start_name(plan.group is not None and plan.group.spatial is not None)


def _reason(scan: Scan, subject: Subject, found: Outputs, start: str, labels: str) -> str:
    """Explain why personalised or starting parcels are returned, and what would change the decision."""
    gain, dcbc = _interval(found.quality.gain), _interval(found.quality.dcbc_gain)
    degrees = float(np.min(subject.degrees))
    said = (
        f"across halves the personalised parcels gain {gain[1]:+.3f} nats per location (95 % interval {gain[0]:+.3f} to {gain[2]:+.3f}) "
        f"and {dcbc[1]:+.4f} in DCBC ({dcbc[0]:+.4f} to {dcbc[2]:+.4f}) over parcels that ignore the data of the scan"
    )
    enough = gain[0] > 0 and dcbc[0] > 0 and dcbc[1] >= LEAST_DCBC_GAIN and degrees >= LEAST_DEGREES and subject.n_blocks >= MIN_BLOCKS
    if found.personalised:
        return said if enough else f"forced by the configuration, although not supported: {said}"
    if labels == "atlas":
        return f"{start} was requested: {said}"
    if degrees < LEAST_DEGREES:
        return _too_few_degrees(scan, subject, start)
    if subject.n_blocks < MIN_BLOCKS:
        return (
            f"a half of the scan has {int(subject.n_blocks)} blocks of {BLOCK_SECONDS:g} s, but at least {MIN_BLOCKS} are needed to "
            f"measure a gain; a longer scan would help, so {start} is kept"
        )
    if not np.isfinite(dcbc[0]):
        return f"the DCBC could not be measured across halves (too few neighbouring locations), so {start} is kept"
    if gain[0] > 0 and dcbc[0] > 0:
        return f"{said}; a DCBC gain below {LEAST_DCBC_GAIN:g} is also found in noise; a longer scan would help, so {start} is kept"
    return f"{said}, which does not exclude zero; a longer scan would help, so {start} is kept"


def _too_few_degrees(scan: Scan, subject: Subject, start: str) -> str:
    """State the degrees of freedom of the halves, and which settings or scan length would suffice."""
    confounds = scan.cleaning.get("confounds")
    removed = len(confounds) if isinstance(confounds, list | tuple) else 0
    # Each regressor uses one of the degrees of freedom within the band. If none is left, their number follows from the band alone.
    limits = [band_limit(scan, len(half.frames)) for half in halves_of(scan)]
    before = max(min(min(limit, d + removed) for limit, d in zip(limits, subject.degrees.tolist(), strict=True)), 1.0)
    allowed, minutes = int(before - LEAST_DEGREES), scan.duration / 60
    ways = (
        [f"at most {allowed} regressors instead of {removed} (--cleaning.strategy; --cleaning.motion basic has 6 motion regressors)"]
        if 0 < allowed < removed
        else []
    )
    ways.append(f"about {minutes * (LEAST_DEGREES + removed) / before:.1f} minutes of scan instead of {minutes:.1f} at this TR and band")
    if start == start_name(False):
        ways.append("a group model (pnet fit-group)")
    listed = " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
    said = f"filter and {f'{removed} ' if removed else ''}regressors leave {subject.degrees[0]:.1f} and {subject.degrees[1]:.1f}"
    return (
        f"{said} degrees of freedom in the halves of the scan, but at least {LEAST_DEGREES:.0f} are needed in each; {listed} would "
        f"help, so {start} is kept"
    )


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
    valid: Bool[np.ndarray, " n"],
) -> list[str]:
    atlas, independent = placed.atlas, n_eff(scan)
    alike = _alike(found.signals)
    said = [alike] if alike else []
    said += [*scan.warnings, *misfits(scan, placed, valid, labels)]
    if scan.halves is None:
        said.append(
            "the signals were cleaned before they were read; regressors fitted to the whole recording make its halves dependent, so the "
            "choice between personalised parcels and the atlas can mistake noise for a gain"
        )
    if {"partial", "precision"} & set(plan.edges) and independent <= 5 * atlas.n_parcels:
        said.append(
            f"partial correlation and precision are ill-posed: about {independent:.0f} effective frames for "
            f"{atlas.n_parcels} parcels, but more than {5 * atlas.n_parcels} are recommended"
        )
    if selection.decision == "atlas" and not selection.requested:
        said.append(f"the parcels of {start_of(plan)} are returned: {selection.reason}")
    elif selection.at_edge and not selection.requested:
        said.append(f"the best κ ({selection.kappa:.3g}) lies at the edge of the grid")
    moved = None if scan.displacement is None else np.nanmean(scan.displacement[scan.frames])
    if moved is not None and moved > MUCH_MOTION_MM:
        said.append(
            f"mean framewise displacement is {moved:.2f} mm in the retained frames, "
            f'above {MUCH_MOTION_MM} mm; add "scrub" to cleaning.strategy, or interpret this network with caution'
        )
    if (size == 0).any():
        said.append(f"{int((size == 0).sum())} of {atlas.n_parcels} parcels contain no location; their rows are NaN")
    return said


def _alike(signals: Float[np.ndarray, "K T"]) -> str:
    """Return a warning if all or many parcels have nearly the same signal, otherwise an empty string."""
    some = signals[np.isfinite(signals).all(1)]
    some = some[some.std(1) > 0] if len(some) else some
    if len(some) < 3:
        return ""
    r = np.abs(np.corrcoef(some))
    mean = (r.sum() - len(r)) / (len(r) * (len(r) - 1))
    if mean > ALIKE:
        return (
            f"the mean absolute correlation between parcels is {mean:.2f}; one signal dominates all of them, so the network is not "
            "informative; check the recording and its cleaning"
        )
    share = (r > SAME).sum(1).max() / len(r)
    if share > MANY and len(some) >= FEW_PARCELS:
        return (
            f"{share:.0%} of the parcels have nearly the same signal (absolute correlation above {SAME}); edges between them are not "
            "informative; check the recording and its cleaning"
        )
    return ""
