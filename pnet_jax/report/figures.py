"""Figures without a brain: connectome, evidence across halves, choice of the settings, reliability, motion, coverage."""

from __future__ import annotations

import numpy as np

from pnet_jax.network import Network, Selection
from pnet_jax.report.style import ABSENT, ALARM, ATLAS, BETAS, DATA_FREE, GRID, INK, NULL, PERSONAL, SOFT, as_png, new_figure
from pnet_jax.report.words import has_confidence, known, min_coverage, recorded_frames

MAX_MATRICES = 6
LEFT_OUT = "#fde2d3"
_MAPS = {"personalised": ("personalised", PERSONAL), "data_free": ("data-free", DATA_FREE), "atlas": ("atlas", ATLAS)}
_SCORES = {"dcbc": "DCBC", "homogeneity": "Homogeneity"}
_GAINS = {"gain": ("Gain, nats per location", "+.3f"), "dcbc_gain": ("Gain, DCBC", "+.4f")}


def connectome_figure(network: Network) -> str:
    """Every measure's K × K matrix, parcels ordered by hemisphere, colours symmetric about 0, absent parcels grey.

    The distribution of the last measure fills the empty place beside an odd one.
    """
    import matplotlib

    order = np.concatenate([np.flatnonzero(np.array(network.hemispheres) == side) for side in "LBR"])
    measures = list(network.edges)[:MAX_MATRICES]
    rows = -(-len(measures) // 2)
    figure = new_figure(4.7 * rows, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for measure, axes in zip(measures, panels, strict=False):
        matrix = network.edges[measure][np.ix_(order, order)].astype(float)
        limit = colour_limit(matrix)
        cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad=ABSENT)
        shown = axes.imshow(np.ma.masked_invalid(matrix), cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(measure_title(measure))
        if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True):
            axes.set(xlabel="from", ylabel="to")
        mark_hemispheres(axes, np.array(network.hemispheres)[order])
        bar = figure.colorbar(shown, ax=axes, shrink=0.6, pad=0.02, extend="both")
        bar.outline.set_visible(False)
    if len(measures) % 2:
        _distribution(panels[len(measures)], network.edges[measures[-1]], measures[-1])
    return as_png(figure)


def fit_figure(selection: Selection) -> str | None:
    """Scores of three maps across halves, and both gains over the data-free map; None where nothing was measured."""
    maps = {name: getattr(selection, name) for name in _MAPS}
    scores = {score: {name: getattr(found, score) for name, found in maps.items()} for score in _SCORES}
    scores = {score: given for score, given in scores.items() if np.isfinite(list(given.values())).any()}
    gains = [gain for gain in _GAINS if known(getattr(selection, gain))]
    if not scores and not gains:
        return None
    figure = new_figure(2.2, layout="constrained")
    axes = figure.subplots(1, len(scores) + len(gains), squeeze=False)[0]
    for number, (panel, (score, given)) in enumerate(zip(axes, scores.items(), strict=False)):
        _dots(panel, given, named=number == 0)
        panel.set_title(_SCORES[score])
        panel.set_xlabel("made from one half, scored on the other", fontsize=8)
    for panel, gain in zip(axes[len(scores) :], gains, strict=True):
        title, form = _GAINS[gain]
        _interval(panel, getattr(selection, gain), title, form)
    return as_png(figure)


def choice_figure(selection: Selection) -> str | None:
    """Held-out score against κ, a line for each β, the chosen pair marked, the data-free score as a line; None without trials."""
    trials = [trial for trial in selection.trials if np.isfinite(trial.score)]
    if not trials:
        return None
    figure = new_figure(3.1, layout="constrained")
    axes = figure.subplots()
    for number, beta in enumerate(sorted({trial.beta for trial in trials})):
        best = {trial.kappa: trial.score for trial in sorted(trials, key=lambda trial: trial.score) if trial.beta == beta}
        line = sorted(best.items())
        # On the chosen κ, points of several β lie close together: those of one trial alone get a shape of their own.
        mark = "o-" if len(line) > 1 else "sD^v"[number % 4]
        axes.plot(*np.array(line).T, mark, ms=5, lw=1.5, color=BETAS[number % len(BETAS)], label=f"β = {beta:g}")
    if np.isfinite(selection.data_free_score):
        axes.axhline(selection.data_free_score, color=DATA_FREE, ls="--", lw=1.3, label="data-free (κ = 0)")
    if np.isfinite([selection.kappa, selection.score]).all():
        label = f"chosen: κ = {selection.kappa:.3g}, β = {selection.beta:.3g}"
        axes.plot(selection.kappa, selection.score, "o", ms=12, mfc="none", mec=ALARM, mew=1.8, ls="none", label=label)
    axes.set_xscale("log")
    kappas, chosen = sorted({trial.kappa for trial in trials}), selection.kappa
    # What was tried next to the chosen κ would be written over it.
    kappas = [kappa for kappa in kappas if kappa == chosen or not abs(np.log(kappa / chosen)) < 0.15]
    axes.set_xticks(kappas, [f"{kappa:.3g}" for kappa in kappas])
    axes.minorticks_off()
    axes.locator_params(axis="y", nbins=6)
    axes.set(xlabel="κ (weight of the scan's own signals)", ylabel="S, nats per location", title="Held-out log predictive density")
    axes.grid(axis="y", lw=0.7)
    figure.legend(loc="outside right upper")
    return as_png(figure)


def reliability_figure(network: Network) -> str | None:
    """How often the other half repeats a label against its probability, and how probable the labels of the whole scan are.

    None where the probabilities were not calibrated.
    """
    calibration = network.qc.calibration
    if calibration is None or not calibration.curve:
        return None
    figure = new_figure(3.6, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    p, replicated, count = np.array([(bin.probability, bin.replicated, bin.locations) for bin in calibration.curve]).T
    left.plot([0, 1], [0, 1], color=NULL, lw=1.2, ls="--", zorder=0, label="perfect calibration")
    left.plot(p, replicated, color=PERSONAL, lw=1.2, zorder=1)
    left.scatter(p, replicated, s=12 + 170 * count / count.max(), color=PERSONAL, alpha=0.8, linewidths=0, zorder=2)
    left.set(xlabel="replication probability", ylabel="share replicated by the other half", xlim=(0, 1), ylim=(0, 1))
    left.set_title(f"Reliability (ECE = {calibration.expected_error:.3f})")
    left.set_box_aspect(1)
    left.legend(loc="upper left")
    inside = (network.labels >= 0) & (network.atlas_labels >= 0)
    if has_confidence(network) and inside.any():
        moved = (network.labels != network.atlas_labels)[inside]
        own = network.confidence[inside]
        colors, names = [NULL, PERSONAL], [f"as in {network.start}", "moved"]
        right.hist([own[~moved], own[moved]], bins=np.linspace(0, 1, 26), stacked=True, color=colors, label=names, rwidth=0.9)
        right.axvline(0.5, color=SOFT, lw=0.9, ls="--")
        right.set(xlabel="replication probability of the location's own label", ylabel="locations", xlim=(0, 1))
        right.set_title(f"All locations (mean = {own.mean():.2f}, the expected agreement with a repeat)")
        right.legend(loc="upper left")
    else:
        right.set_axis_off()
    return as_png(figure)


def motion_figure(network: Network) -> str | None:
    """Framewise displacement with the frames that were left out, above the parcel signals; None where there is neither."""
    fd = None if network.displacement is None else np.asarray(network.displacement, float)
    signals = network.signals[np.isfinite(network.signals).all(1)]
    if fd is None and not len(signals):
        return None
    recorded = recorded_frames(network) or int(network.frames[-1]) + 1
    figure = new_figure(3.9 if fd is not None else 2.6, layout="constrained")
    panels = figure.subplots(1 + (fd is not None), 1, sharex=True, height_ratios=[1, 1.6] if fd is not None else None, squeeze=False)[:, 0]
    minutes = np.arange(recorded) * network.tr / 60
    if fd is not None:
        _displacement(panels[0], minutes, fd, np.isin(np.arange(recorded), network.frames), network.tr)
    carpet = np.full((len(signals), recorded), np.nan)
    spread = signals.std(1, keepdims=True)
    carpet[:, network.frames] = (signals - signals.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    import matplotlib

    cmap = matplotlib.colormaps["gray"].with_extremes(bad=LEFT_OUT)
    extent = (0, recorded * network.tr / 60, len(signals), 0)
    panels[-1].imshow(np.ma.masked_invalid(carpet), aspect="auto", cmap=cmap, vmin=-2, vmax=2, extent=extent, interpolation="nearest")
    panels[-1].set(xlabel="minutes", ylabel="parcel", title="Parcel signals (each standardised)")
    return as_png(figure)


def coverage_figure(network: Network) -> str:
    """How much of each atlas parcel the scan covers, and parcel sizes before the scan is seen and in the result."""
    figure = new_figure(2.9, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    bins = np.linspace(0, 1, 21)
    least = min_coverage(network)
    low = network.coverage < least
    left.hist([network.coverage[low], network.coverage[~low]], bins=bins, stacked=True, color=[ALARM, PERSONAL], rwidth=0.9)
    left.set_yscale("symlog", linthresh=5)
    left.set_yticks([0, 1, 5, 10, 50, 100, 500][: 3 + int(np.searchsorted([10, 50, 100, 500], len(network.ids)))])
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.minorticks_off()
    left.axvline(least, color=SOFT, lw=0.9, ls="--")
    left.set(xlabel="share of the atlas parcel that the scan covers", ylabel="parcels", title="Coverage", xlim=(0, 1))
    sizes = [np.bincount(labels[labels >= 0], minlength=network.n_parcels) for labels in (network.atlas_labels, network.labels)]
    top = max(int(np.max(sizes)), 1) * 1.3
    right.plot([0, top], [0, top], color=NULL, lw=1, zorder=0)
    right.scatter(*sizes, s=14, color=np.where(sizes[1] == 0, ALARM, PERSONAL), alpha=0.75, linewidths=0)
    for axis in (right.set_xscale, right.set_yscale):
        axis("symlog", linthresh=10)
    right.set(
        xlabel=f"locations in {network.start}", ylabel="locations in the result", title="Parcel size", xlim=(0, top), ylim=(-0.6, top)
    )
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    return as_png(figure)


def measure_title(measure: str) -> str:
    """A measure's name with what it is in, e.g. `pearson: correlation (r)`."""
    from pnet_jax import edges

    known = "pearson" if measure in ("shrunk", "guided") else measure
    return f"{measure}: {edges.measure(known).units}" if known in edges.names() else measure


def _distribution(axes, matrix, measure):
    directed = not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True)
    values = matrix[~np.eye(len(matrix), dtype=bool) if directed else np.triu_indices(len(matrix), 1)]
    values = values[np.isfinite(values)]
    axes.set(xlabel=measure_title(measure), ylabel="pairs of parcels", title=f"{measure}: distribution")
    axes.set_box_aspect(0.8)
    if len(values):
        axes.hist(values, bins=60, color=PERSONAL)
        axes.axvline(0, color=SOFT, lw=0.9, ls="--")
        middle = float(np.median(values))
        axes.axvline(middle, color=ALARM, lw=1.3, label=f"median {middle:.3g}")
        axes.legend(loc="upper right")


def colour_limit(matrix):
    """98th percentile of the off-diagonal sizes, so that a few extreme edges do not wash out the rest."""
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    off = off[np.isfinite(off)]
    return float(np.percentile(off, 98)) or 1.0 if len(off) else 1.0


def mark_hemispheres(axes, sides):
    """Label the hemispheres along both axes of a matrix and draw lines between them; `sides` are those of the rows, in order."""
    start = np.flatnonzero(np.r_[True, sides[1:] != sides[:-1]])
    middle = (start + np.r_[start[1:], len(sides)] - 1) / 2
    names = [{"L": "left", "R": "right", "B": "both"}[side] for side in sides[start]]
    axes.set_xticks(middle, names)
    axes.set_yticks(middle, names, rotation=90, va="center")
    axes.tick_params(length=0)
    for edge in start[1:]:
        axes.axhline(edge - 0.5, color=INK, lw=0.7)
        axes.axvline(edge - 0.5, color=INK, lw=0.7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _dots(axes, given, named):
    values = [given[name] for name in _MAPS if np.isfinite(given[name])]
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1) * 0.35
    for row, (name, (_, color)) in enumerate(_MAPS.items()):
        if np.isfinite(value := given[name]):
            axes.plot([low - room, value], [row, row], color=GRID, lw=1.5, zorder=0)
            axes.plot(value, row, "o", ms=9, color=color)
            axes.annotate(f"{value:.4f}", (value, row), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(_MAPS)), [label if named else "" for label, _ in _MAPS.values()])
    axes.set_ylim(len(_MAPS) - 0.5, -0.5)
    axes.set_xlim(low - room, high + 2.6 * room)
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def _interval(axes, interval, title, form):
    low, middle, high = interval
    color = PERSONAL if low > 0 else ALARM if high < 0 else ATLAS
    axes.axvline(0, color=SOFT, lw=0.9, ls="--")
    axes.plot([low, high], [0, 0], color=color, lw=3, solid_capstyle="round")
    axes.plot(middle, 0, "o", ms=9, color=color)
    text, box = f"{middle:{form}}\n[{low:{form}}, {high:{form}}]", {"fc": "white", "ec": "none", "pad": 1}
    axes.annotate(text, (middle, 0), (0, 11), textcoords="offset points", ha="center", fontsize=8.5, bbox=box)
    reach = max(abs(low), abs(high), 1e-6) * 1.35
    axes.set(xlim=(min(low - 0.3 * reach, -0.3 * reach), max(high + 0.3 * reach, 0.3 * reach)), ylim=(-0.8, 1.3))
    axes.set_title(title)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("95 % block-bootstrap interval", fontsize=8)
    axes.spines["left"].set_visible(False)


def _displacement(axes, minutes, fd, kept, tr):
    axes.plot(minutes, fd, color=INK, lw=0.9)
    axes.fill_between(minutes, fd, color=GRID, lw=0)
    for frame in np.flatnonzero(~kept):
        axes.axvspan(minutes[frame] - tr / 120, minutes[frame] + tr / 120, color=LEFT_OUT, lw=0, zorder=0)
    if (~kept).any():
        axes.plot(minutes[~kept], fd[~kept], "o", ms=3.5, color=ALARM, label=f"scrubbed: {int((~kept).sum())} frames")
        axes.legend(loc="upper right")
    said = "" if (~kept).any() else " (no frame was scrubbed)"
    axes.set(ylabel="mm", title=f"Head motion: framewise displacement{said}", ylim=(0, None))
