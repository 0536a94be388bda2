"""Group figures: shares on brain slices, and matrices of means and standard deviations; cached until a result changes."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pnet_jax
from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.status import RECORDS
from pnet_jax.outputs.tables import read_rows
from pnet_jax.report.brains import points_figure, share_levels, slices_figure, template
from pnet_jax.report.figures import colour_limit, mark_hemispheres
from pnet_jax.report.group import LEAST, MOST, MapSums, Moments, add_edges, add_maps, sample
from pnet_jax.report.style import ABSENT, as_png, drawing, new_figure

CACHE = "group-figures.cache"  # in the folder of the records
STALE = 0.1  # share of a full sample that may change before its figures are regenerated


def group_figures(folder: Path, rows: Sequence[Mapping[str, Any]], *, exact: bool = False) -> dict[str, Any] | None:
    """Make the group figures of a folder, or read them from the cache; None for fewer than 3 participants.

    Figures are cached in `.pnet/` and regenerated if the sample or one of its results has changed. A full sample of 200 takes about 12 s;
    its figures are regenerated only when more than a tenth of it has changed, so that many short runs in one folder stay fast.

    Args:
      folder: Root of the results.
      rows: Records of scans.
      exact: Regenerate the figures if anything has changed.

    Returns:
      `n`, `participants`, `atlas`, `stale` (results that have changed since), and `maps` and `edges`, each None if there is nothing to
      draw, or with an `error`.
    """
    chosen, participants = sample(rows)
    if len(chosen) < LEAST:
        return None
    made = [(row.get("files") or {}).get(row["dseg"]) for row in chosen]
    names = [f"{pnet_jax.__version__} {row['scan']} {row['dseg']} {digest}" for row, digest in zip(chosen, made, strict=True)]
    cache = folder / RECORDS / CACHE
    if not all(made):  # without a record, changes of a result cannot be detected
        return _drawn(folder, chosen) | {"participants": participants, "stale": 0}
    allowed = int(STALE * len(names)) if len(names) == MOST and not exact else 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(cache.read_text("utf-8"))
        stale = len(set(names) - set(kept["names"]))
        if stale <= allowed and len(kept["names"]) == len(names):
            return kept["figures"] | {"participants": participants, "stale": stale}
    found = _drawn(folder, chosen)
    write_text(cache, json.dumps({"names": names, "figures": found}))
    return found | {"participants": participants, "stale": 0}


def _drawn(folder: Path, chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(chosen), "atlas": chosen[0].get("atlas") or ""}
    for name, make in (("maps", _maps), ("edges", _edges)):
        try:
            found[name] = make(folder, chosen)
        except Exception as error:  # noqa: BLE001  the rest of the page must not depend on one figure
            warnings.warn(f"{folder}: the group {name} could not be drawn: {error!r}", stacklevel=2)
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return found


def _maps(folder: Path, chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    own = [row for row in chosen if row.get("parcels") != "atlas"]
    sums, left_out = add_maps(folder / row["dseg"] for row in own)
    if sums is None or sums.scans < LEAST:
        return None
    changed = sums.mean(sums.changed)
    known = changed[np.isfinite(changed)]
    return {
        "n": sums.scans,
        "returned": len(chosen) - len(own),
        "left_out": left_out,
        "space": sums.first.name,
        "share": float(known.mean()) if len(known) else 0.0,
        "changed": share_figure(sums, changed, "YlOrRd", "share"),
        "confidence": share_figure(sums, sums.mean(sums.confidence), "viridis", "probability"),
    }


def _edges(folder: Path, chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    moments = add_edges(folder / row["dseg"] for row in chosen)
    if moments is None or moments.scans < LEAST or len(moments.mean) < 2:
        return None
    sides = ["B"] * len(moments.mean)
    for row in chosen:
        with contextlib.suppress(OSError, ValueError, KeyError):
            given = [parcel["hemisphere"] for parcel in read_rows(folder / row["dseg"])]
            if len(given) == len(sides):
                sides = given
                break
    known = ~np.eye(len(sides), dtype=bool) & np.isfinite(moments.sd)
    return {
        "n": moments.scans,
        "parcels": len(sides),
        "mean": float(moments.average[known].mean()) if known.any() else 0.0,
        "sd": float(np.median(moments.sd[known])) if known.any() else 0.0,
        "image": matrices_figure(moments, sides),
    }


def share_figure(sums: MapSums, shares: np.ndarray, cmap: str, title: str) -> str:
    """Draw a map of shares 0…1 and return it as a `data:` URL: slices for a grid, otherwise views of the surface points.

    Args:
      sums: defines the locations.
      shares: one for each location, NaN if unknown.
      cmap: name of a colour map.
      title: title of the colour scale.
    """
    import nibabel

    first = sums.first
    with drawing():
        if first.affine is None:
            assert first.space is not None
            return points_figure(first.space, shares, cmap, title)
        image = nibabel.Nifti1Image(share_levels(shares), first.affine)
        mm = np.argwhere(np.isfinite(shares)) @ first.affine[:3, :3].T + first.affine[:3, 3]
        return slices_figure(image, template() if first.name.startswith("MNI") else None, mm, cmap, title)


def matrices_figure(moments: Moments, sides: Sequence[str]) -> str:
    """Draw the mean and standard deviation of every edge side by side, parcels ordered by hemisphere; return a `data:` URL."""
    import matplotlib

    order = np.concatenate([np.flatnonzero(np.array(sides) == side) for side in "LBR"])
    with drawing():
        figure = new_figure(4.7, layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, title, matrix in zip(panels, ("Mean", "Standard deviation"), (moments.average, moments.sd), strict=True):
            shown = matrix[np.ix_(order, order)]
            limit = colour_limit(shown)
            signed = title == "Mean"
            cmap = matplotlib.colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad=ABSENT)
            low = -limit if signed else 0
            drawn = axes.imshow(np.ma.masked_invalid(shown), cmap=cmap, vmin=low, vmax=limit, interpolation="nearest")
            axes.set_title(f"{title} of Pearson's r")
            mark_hemispheres(axes, np.array(sides)[order])
            bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.02, extend="both" if signed else "max")
            bar.outline.set_visible(False)
        return as_png(figure)
