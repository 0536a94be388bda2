"""Figures that are no brains: connectome, fit, choice of smoothness, motion, coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pnet_jax.network import Network
from pnet_jax.report.style import ABSENT, ALARM, BETAS, GRID, INK, NULL, PERSONAL, PRIOR, SOFT, as_png, new_figure
from pnet_jax.report.words import gain_interval, min_coverage, recorded_frames

MAX_MATRICES = 6
LEFT_OUT = "#fde2d3"
_MAPS = {"personalised": ("personalised", PERSONAL), "prior": ("group prior", PRIOR), "null": ("nearest centroid", NULL)}
_SCORES = {"dcbc": "DCBC", "homogeneity": "Homogeneity"}


def connectome_figure(network: Network) -> str:
    """Every measure's K × K matrix, parcels ordered by hemisphere, colours symmetric about 0, absent parcels grey.

    Beside an odd one out, how its values are distributed.
    """
    import matplotlib

    order = np.concatenate([np.flatnonzero(np.array(network.hemispheres) == side) for side in "LBR"])
    measures = list(network.edges)[:MAX_MATRICES]
    rows = -(-len(measures) // 2)
    figure = new_figure(4.7 * rows, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for measure, axes in zip(measures, panels, strict=False):
        matrix = network.edges[measure][np.ix_(order, order)].astype(float)
        limit = _limit(matrix)
        cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad=ABSENT)
        shown = axes.imshow(np.ma.masked_invalid(matrix), cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(measure_title(measure))
        if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True):
            axes.set(xlabel="from", ylabel="to")
        _mark_hemispheres(axes, np.array(network.hemispheres)[order])
        bar = figure.colorbar(shown, ax=axes, shrink=0.6, pad=0.02, extend="both")
        bar.outline.set_visible(False)
    if len(measures) % 2:
        _distribution(panels[len(measures)], network.edges[measures[-1]], measures[-1])
    return as_png(figure)


def fit_figure(selection: Mapping[str, Any]) -> str | None:
    """DCBC and homogeneity across halves of the personalised map, the prior and the data-free map; None without any score."""
    scores = {score: {name: _number(selection.get(name), score) for name in _MAPS} for score in _SCORES}
    scores = {score: given for score, given in scores.items() if any(value is not None for value in given.values())}
    interval = gain_interval(selection)
    panels = len(scores) + (interval is not None)
    if not panels:
        return None
    figure = new_figure(2.1, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, (score, given) in zip(axes, scores.items(), strict=False):
        _dots(panel, given)
        panel.set_title(f"{_SCORES[score]} on the other half")
    if interval is not None:
        _interval(axes[-1], interval)
    return as_png(figure)


def choice_figure(selection: Mapping[str, Any]) -> str | None:
    """Score against κ, a line for each β, the chosen pair marked; None without a grid."""
    grid = [point for point in selection.get("grid") or [] if _number(point, "kappa") is not None]
    scores = [score for score in _SCORES if any(_number(point, score) is not None for point in grid)]
    if not scores:
        return None
    figure = new_figure(2.9, layout="constrained")
    betas = sorted({float(point.get("beta") or 0) for point in grid})
    kappas = sorted({float(point["kappa"]) for point in grid})
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for number, beta in enumerate(betas):
            line = [p for p in grid if float(p.get("beta") or 0) == beta and _number(p, score) is not None]
            points = sorted((float(p["kappa"]), _number(p, score)) for p in line)
            axes.plot(*np.array(points).reshape(-1, 2).T, "o-", ms=4, lw=1.5, color=BETAS[number % len(BETAS)], label=f"β = {beta:g}")
        _reference_lines(axes, selection, score)
        chosen = [p for p in grid if all(_number(p, key) == _number(selection, key) for key in ("kappa", "beta"))]
        for value in [value for p in chosen if (value := _number(p, score)) is not None][:1]:  # a score of ROIs may be NaN
            axes.plot(chosen[0]["kappa"], value, "o", ms=12, mfc="none", mec=ALARM, mew=1.8, ls="none", label="chosen")
        axes.set_xscale("log")
        axes.set_xticks(kappas, [f"{kappa:g}" for kappa in kappas])
        axes.minorticks_off()
        axes.locator_params(axis="y", nbins=6)
        axes.set(xlabel="κ (how closely the map follows this scan)", ylabel=_SCORES[score])
        axes.grid(axis="y", lw=0.7)
    figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
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
    """How much of each prior parcel the scan covers, and parcel sizes before and after personalisation."""
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
    left.set(xlabel="share of the prior parcel that the scan covers", ylabel="parcels", title="Coverage", xlim=(0, 1))
    sizes = [np.bincount(labels[labels >= 0], minlength=network.n_parcels) for labels in (network.prior_labels, network.labels)]
    top = max(int(np.max(sizes)), 1) * 1.3
    right.plot([0, top], [0, top], color=NULL, lw=1, zorder=0)
    right.scatter(*sizes, s=14, color=np.where(sizes[1] == 0, ALARM, PERSONAL), alpha=0.75, linewidths=0)
    for axis in (right.set_xscale, right.set_yscale):
        axis("symlog", linthresh=10)
    right.set(xlabel="locations in the prior", ylabel="personalised", title="Parcel size", xlim=(0, top), ylim=(-0.6, top))
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
    axes.set(xlabel=measure_title(measure), ylabel="pairs of parcels", title=f"{measure}: how its values are distributed")
    axes.set_box_aspect(0.8)
    if len(values):
        axes.hist(values, bins=60, color=PERSONAL)
        axes.axvline(0, color=SOFT, lw=0.9, ls="--")
        middle = float(np.median(values))
        axes.axvline(middle, color=ALARM, lw=1.3, label=f"median {middle:.3g}")
        axes.legend(loc="upper right")


def _limit(matrix):
    """98th percentile of the off-diagonal sizes, so that a few extreme edges do not wash out the rest."""
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    off = off[np.isfinite(off)]
    return float(np.percentile(off, 98)) or 1.0 if len(off) else 1.0


def _mark_hemispheres(axes, sides):
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


def _dots(axes, given):
    names = [name for name in _MAPS if given[name] is not None]
    values = [given[name] for name in names]
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1) * 0.35
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        axes.plot([low - room, value], [row, row], color=GRID, lw=1.5, zorder=0)
        axes.plot(value, row, "o", ms=9, color=_MAPS[name][1])
        axes.annotate(f"{value:.4g}", (value, row), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(names)), [_MAPS[name][0] for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(low - room, high + 2.2 * room)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def _interval(axes, interval):
    low, middle, high = interval
    color = PERSONAL if low > 0 else ALARM if high < 0 else PRIOR
    axes.axvline(0, color=SOFT, lw=0.9, ls="--")
    axes.plot([low, high], [0, 0], color=color, lw=3, solid_capstyle="round")
    axes.plot(middle, 0, "o", ms=9, color=color)
    text, box = f"{middle:+.4f}\n[{low:+.4f}, {high:+.4f}]", {"fc": "white", "ec": "none", "pad": 1}
    axes.annotate(text, (middle, 0), (0, 11), textcoords="offset points", ha="center", fontsize=8.5, bbox=box)
    reach = max(abs(low), abs(high), 1e-6) * 1.35
    axes.set(xlim=(min(low - 0.3 * reach, -0.3 * reach), max(high + 0.3 * reach, 0.3 * reach)), ylim=(-0.8, 1.3))
    axes.set_title("DCBC, personalised − prior")
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("95 % block-bootstrap interval", fontsize=8)
    axes.spines["left"].set_visible(False)


def _reference_lines(axes, selection, score):
    for name, style in {"prior": "--", "null": ":"}.items():
        value = _number(selection.get(name), score)
        if value is not None:
            axes.axhline(value, color=_MAPS[name][1], ls=style, lw=1.3, label=_MAPS[name][0])


def _displacement(axes, minutes, fd, kept, tr):
    axes.plot(minutes, fd, color=INK, lw=0.9)
    axes.fill_between(minutes, fd, color=GRID, lw=0)
    for frame in np.flatnonzero(~kept):
        axes.axvspan(minutes[frame] - tr / 120, minutes[frame] + tr / 120, color=LEFT_OUT, lw=0, zorder=0)
    if (~kept).any():
        axes.plot(minutes[~kept], fd[~kept], "o", ms=3.5, color=ALARM, label=f"left out: {int((~kept).sum())} frames")
        axes.legend(loc="upper right")
    said = "" if (~kept).any() else " (no frame was left out)"
    axes.set(ylabel="mm", title=f"Head motion: framewise displacement{said}", ylim=(0, None))


def _number(holder, key):
    value = (holder or {}).get(key)
    return None if value is None or not np.isfinite(value) else float(value)
