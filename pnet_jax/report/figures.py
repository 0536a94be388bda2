"""Charts for the page of a scan: reliability, evidence across halves, choice of settings, motion, coverage."""

from __future__ import annotations

import numpy as np

from pnet_jax.network import Interval, Network, Selection
from pnet_jax.report.chart import ALARM, ATLAS, DATA_FREE, INK, NULL, PERSONAL, SERIES, Chart, Panel, number
from pnet_jax.report.png import png
from pnet_jax.report.words import has_confidence, known, min_coverage, recorded_frames

CARPET_ROWS, CARPET_GREYS = 200, 24  # size of the carpet plot: further parcels are averaged, and few greys keep the file small
SCRUBBED = (217, 72, 15, 90)  # RGBA of excluded frames
MAPS = {"personalised": ("personalised", PERSONAL), "data_free": ("data-free", DATA_FREE), "atlas": ("atlas", ATLAS)}
_SCORES = {"dcbc": "DCBC", "homogeneity": "Homogeneity"}
_GAINS = {"gain": ("Gain, nats per location", "+.3f"), "dcbc_gain": ("Gain in DCBC", "+.4f")}


def reliability(network: Network) -> list[Panel]:
    """Draw the share of replicated labels against their probability, and all probabilities; empty without a calibration."""
    calibration = network.qc.calibration
    if calibration is None or not calibration.curve:
        return []
    title = f"Reliability (ECE = {calibration.expected_error:.3f})"
    chart = Chart(f"{title}: share of replicated labels against replication probability", (0, 1), (0, 1), height=300)
    chart.x_axis("Replication probability")
    chart.y_axis("Share replicated by the other half")
    chart.line((0, 1), (0, 1), NULL, "dashed")
    chart.line([one.probability for one in calibration.curve], [one.replicated for one in calibration.curve], PERSONAL)
    most = max(one.locations for one in calibration.curve)
    for one in calibration.curve:
        said = f"probability {one.probability:.2f}, replicated {one.replicated:.2f}, n = {one.locations:,} locations"
        chart.dot(one.probability, one.replicated, PERSONAL, radius=3 + 7 * np.sqrt(one.locations / most), said=said)
    panels = [Panel(title, chart.svg(), (("measured", PERSONAL), ("perfect calibration", NULL)))]
    inside = (network.labels >= 0) & (network.atlas_labels >= 0)
    return [*panels, _probabilities(network, inside)] if has_confidence(network) and inside.any() else panels


def _probabilities(network: Network, inside: np.ndarray) -> Panel:
    own, moved = network.confidence[inside], (network.labels != network.atlas_labels)[inside]
    edges = np.linspace(0, 1, 26)
    kept, gone = (np.histogram(own[which], edges)[0] for which in (~moved, moved))
    chart = Chart(f"Histogram of the replication probabilities, n = {len(own):,} locations", (0, 1), (0, _top(kept + gone)), height=300)
    chart.x_axis("Replication probability of the location's label")
    chart.y_axis("Locations")
    for k, (one, other) in enumerate(zip(kept.tolist(), gone.tolist(), strict=True)):
        said = f"{edges[k]:.2f} to {edges[k + 1]:.2f}: {one:,} as in {network.start}, {other:,} moved"
        chart.bar(edges[k] + 0.002, edges[k + 1] - 0.002, 0, one, NULL, said)
        if other:
            chart.bar(edges[k] + 0.002, edges[k + 1] - 0.002, one, one + other, PERSONAL, said)
    chart.rule(x=0.5)
    keys = ((f"as in {network.start}", NULL), ("moved", PERSONAL))
    return Panel(f"All locations (mean = {own.mean():.2f})", chart.svg(), keys)


def fit(selection: Selection) -> list[Panel]:
    """Draw the scores of three maps across halves and both gains over the data-free map; empty if nothing was measured."""
    maps = {name: getattr(selection, name) for name in MAPS}
    scores = {score: {name: getattr(found, score) for name, found in maps.items()} for score in _SCORES}
    panels = [_scores(_SCORES[score], given) for score, given in scores.items() if np.isfinite(list(given.values())).any()]
    return panels + [_interval(getattr(selection, gain), *_GAINS[gain]) for gain in _GAINS if known(getattr(selection, gain))]


def _scores(title: str, given: dict[str, float]) -> Panel:
    values = [value for value in given.values() if np.isfinite(value)]
    low, high = min(values), max(values)
    margin = (high - low or abs(high) or 1) * 0.35
    chart = Chart(f"{title} of three maps", (low - margin, high + 2 * margin), (2.5, -0.5), height=170, left=96)
    chart.x_axis("Made from one half, scored on the other")
    chart.y_axis("", [(row, name) for row, (name, _) in enumerate(MAPS.values())])
    for row, (name, (_, kind)) in enumerate(MAPS.items()):
        if np.isfinite(value := given[name]):
            chart.dot(value, row, kind, radius=6)
            chart.text(value, row, f"{value:.4f}".replace("-", "−"), anchor="start", dx=10, dy=4)
    return Panel(title, chart.svg())


def _interval(interval: Interval, title: str, form: str) -> Panel:
    low, middle, high = interval
    kind = PERSONAL if low > 0 else ALARM if high < 0 else ATLAS
    reach = max(abs(low), abs(high), 1e-6) * 1.35
    ends = (min(low - 0.3 * reach, -0.3 * reach), max(high + 0.3 * reach, 0.3 * reach))
    said = f"{middle:{form}} [{low:{form}}, {high:{form}}]".replace("-", "−")
    chart = Chart(f"{title}: {said}", ends, (-1, 1), height=170, left=20)
    chart.x_axis("95 % interval of a block bootstrap")
    chart.rule(x=0)
    chart.bar(low, high, -0.04, 0.04, kind)
    chart.dot(middle, 0, kind, radius=6)
    chart.text(middle, 0, said, dy=-16)
    return Panel(title, chart.svg())


def choice(selection: Selection) -> list[Panel]:
    """Draw the held-out score against κ for each β, with the chosen pair and the data-free score; empty without trials."""
    trials = [trial for trial in selection.trials if np.isfinite(trial.score)]
    if not trials:
        return []
    kappas = sorted({trial.kappa for trial in trials})
    scores = [trial.score for trial in trials] + [selection.data_free_score] * bool(np.isfinite(selection.data_free_score))
    margin = 0.06 * (max(scores) - min(scores) or 1)
    ends = (kappas[0] / 1.15, kappas[-1] * 1.15)
    chart = Chart("Held-out log predictive density against κ", ends, (min(scores) - margin, max(scores) + margin), left=62, x_scale=np.log)
    chosen = selection.kappa
    # Labels of the trials next to the chosen κ would overlap its label.
    named = [kappa for kappa in kappas if kappa == chosen or not abs(np.log(kappa / chosen)) < 0.2]
    chart.x_axis("κ (weight of the scan's own signals)", [(kappa, f"{kappa:.3g}") for kappa in named])
    chart.y_axis("S, nats per location")
    keys = []
    for at, beta in enumerate(sorted({trial.beta for trial in trials})):
        best = {trial.kappa: trial.score for trial in sorted(trials, key=lambda trial: trial.score) if trial.beta == beta}
        kind = SERIES[at % len(SERIES)]
        chart.line(sorted(best), [best[kappa] for kappa in sorted(best)], kind)
        for kappa, score in best.items():
            chart.dot(kappa, score, kind, said=f"κ = {kappa:.3g}, β = {beta:g}: S = {score:.3f}")
        keys.append((f"β = {beta:g}", kind))
    if np.isfinite(selection.data_free_score):
        chart.rule(y=selection.data_free_score, kind=DATA_FREE)
        keys.append(("data-free (κ = 0)", DATA_FREE))
    if np.isfinite([selection.kappa, selection.score]).all():
        chart.dot(selection.kappa, selection.score, INK, radius=9, open=True)
        keys.append((f"chosen: κ = {selection.kappa:.3g}, β = {selection.beta:.3g}", INK))
    return [Panel("Held-out log predictive density", chart.svg(), tuple(keys))]


def motion(network: Network) -> list[Panel]:
    """Draw framewise displacement with the excluded frames, and the parcel signals; empty if there is neither."""
    signals = network.signals[np.isfinite(network.signals).all(1)]
    recorded = recorded_frames(network) or int(network.frames[-1]) + 1
    panels = [] if network.displacement is None else [_displacement(network, recorded)]
    return [*panels, _carpet(network, signals, recorded)] if len(signals) else panels


def _displacement(network: Network, recorded: int) -> Panel:
    fd, minutes = np.asarray(network.displacement, float), np.arange(recorded) * network.tr / 60
    gone = np.setdiff1d(np.arange(recorded), network.frames)
    most = max(float(np.nanmax(fd)) if np.isfinite(fd).any() else 0, 0.1) * 1.05
    chart = Chart("Framewise displacement in mm over time", (0, recorded * network.tr / 60), (0, most))
    chart.x_axis("Time, min")
    chart.y_axis("Framewise displacement, mm")
    for frame in gone:
        chart.bar(minutes[frame] - network.tr / 120, minutes[frame] + network.tr / 120, 0, most, "c-scrubbed")
    chart.line(minutes, fd, INK, "thin")
    for frame in gone:
        chart.dot(minutes[frame], fd[frame] if np.isfinite(fd[frame]) else 0, ALARM, radius=2.5)
    note = f"{len(gone)} of {recorded} frames were scrubbed." if len(gone) else "No frame was scrubbed."
    return Panel("Head motion", chart.svg(), ((f"scrubbed, n = {len(gone)}", ALARM),) * bool(len(gone)), note)


def _carpet(network: Network, signals: np.ndarray, recorded: int) -> Panel:
    spread = signals.std(1, keepdims=True)
    signals = (signals - signals.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    rows = min(len(signals), CARPET_ROWS)
    edges = np.linspace(0, len(signals), rows + 1).astype(int)[:-1]
    binned = np.add.reduceat(signals, edges) / np.diff(np.r_[edges, len(signals)])[:, None]
    grey = np.rint(np.clip((binned + 2) / 4, 0, 1) * CARPET_GREYS) * (255 // CARPET_GREYS)
    image = np.empty((rows, recorded, 4), np.uint8)
    image[:] = SCRUBBED
    image[:, network.frames, :3], image[:, network.frames, 3] = grey[..., None], 255
    minutes = recorded * network.tr / 60
    chart = Chart("Standardised signals of the parcels over time", (0, minutes), (len(signals), 0))
    chart.image(png(image), (0, minutes), (0, len(signals)))
    chart.x_axis("Time, min")
    chart.y_axis("Parcel", grid=False)
    return Panel("Parcel signals (each standardised)", chart.svg(), note="Black: 2 SD below the mean; white: 2 SD above it.")


def coverage(network: Network) -> list[Panel]:
    """Draw the coverage of each atlas parcel, and the initial and final sizes of the parcels."""
    least, edges = min_coverage(network), np.linspace(0, 1, 21)
    counts = np.histogram(network.coverage, edges)[0]
    chart = Chart(f"Histogram of the coverage of {len(counts)} parcels", (0, 1), (0, _top(counts)), y_scale=_root)
    chart.x_axis("Share of the atlas parcel that the scan covers")
    chart.y_axis("Parcels", _few(int(counts.max())))
    for k, count in enumerate(counts.tolist()):
        if count:
            said = f"{edges[k]:.0%} to {edges[k + 1]:.0%}: {count} parcels".replace("%", " %")
            chart.bar(edges[k] + 0.003, edges[k + 1] - 0.003, 0, count, ALARM if edges[k + 1] <= least + 1e-9 else PERSONAL, said)
    chart.rule(x=least)
    keys = ((f"below {100 * least:.0f} %", ALARM),) * bool((network.coverage < least).any())
    return [Panel("Coverage", chart.svg(), keys), _sizes(network)]


def _sizes(network: Network) -> Panel:
    before, after = (np.bincount(labels[labels >= 0], minlength=network.n_parcels) for labels in (network.atlas_labels, network.labels))
    top = max(int(before.max(initial=0)), int(after.max(initial=0)), 1) * 1.3
    chart = Chart("Size of each parcel before and after", (0, top), (0, top), x_scale=_root, y_scale=_root)
    chart.x_axis(f"Locations in {network.start}", _few(int(top)))
    chart.y_axis("Locations in the result", _few(int(top)))
    chart.line((0, top), (0, top), NULL, "dashed")
    for k, (one, other) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        chart.dot(one, other, PERSONAL if other else ALARM, radius=2.6, said=f"{network.names[k]}: {one} before, {other} after")
    return Panel("Parcel size", chart.svg(), (("absent", ALARM),) * bool((after == 0).any()))


def _root(value: float) -> float:
    """Scale counts that span orders of magnitude and include 0."""
    return float(np.sqrt(max(value, 0)))


def _few(most: int) -> list[tuple[float, str]]:
    """Choose marks for a square-root axis of counts."""
    marks = [0, *(factor * 10**power for power in range(7) for factor in (1, 2, 5) if factor * 10**power <= most)]
    return [(value, number(value)) for value in marks if value == 0 or value > most / 50]


def _top(counts: np.ndarray) -> float:
    return max(int(counts.max(initial=1)), 1) * 1.05
