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
from pnet_jax.report.brains import share_levels
from pnet_jax.report.chart import Panel
from pnet_jax.report.group import LEAST, MOST, MapSums, Moments, add_edges, add_maps, sample
from pnet_jax.report.linked import SIDES, colour_limit
from pnet_jax.report.matrices import matrix_panel
from pnet_jax.report.plates import slices_plate, template, views_plate
from pnet_jax.report.png import ramp

CACHE = "group-figures.cache"  # file in the folder of the records
FORM = 2  # version of the cache format
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
      `n`, `participants`, `atlas`, `stale` (number of results that have changed since), and `maps` and `edges`, each of which is None if
      there is nothing to draw, and has an `error` if drawing failed.
    """
    chosen, participants = sample(rows)
    if len(chosen) < LEAST:
        return None
    made = [(row.get("files") or {}).get(row["dseg"]) for row in chosen]
    names = [f"{pnet_jax.__version__}/{FORM} {row['scan']} {row['dseg']} {digest}" for row, digest in zip(chosen, made, strict=True)]
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
        except Exception as error:  # noqa: BLE001  a failed figure must not prevent the page
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
        "changed": share_map(sums, changed, "share"),
        "confidence": share_map(sums, sums.mean(sums.confidence), "probability"),
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
        "panels": {"found": [panel._asdict() for panel in matrix_panels(moments, sides)]},
    }


def share_map(sums: MapSums, shares: np.ndarray, colours: str) -> dict[str, Any]:
    """Draw a map of shares in 0…1: slices for a grid, otherwise views of the surface points.

    Args:
      sums: Sums that define the locations.
      shares: Share for each location, NaN if unknown.
      colours: Name of a colour ramp.

    Returns:
      `image` and `backdrop` (`data:` addresses), `captions` and `shape`, as required by the template of a plate.
    """
    first = sums.first
    if first.affine is None:
        assert first.space is not None
        views, values = views_plate(first.space), shares
    else:
        known = np.isfinite(shares)
        volume = np.full(shares.shape, -1, np.int32)
        volume[known] = np.arange(int(known.sum()))
        views, values = slices_plate(volume, first.affine, template() if first.name.startswith("MNI") else None), shares[known]
    image = views.draw(ramp(colours), share_levels(values))
    return {"image": image, "backdrop": views.backdrop, "captions": views.captions, "shape": views.shape}


def matrix_panels(moments: Moments, sides: Sequence[str]) -> list[Panel]:
    """Draw the mean and standard deviation of every edge, parcels ordered by hemisphere."""
    order = np.concatenate([np.flatnonzero(np.array(sides) == side) for side in "LBR"])
    ordered = np.array(sides)[order]
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    middle = (start + np.r_[start[1:], len(ordered)]) / 2
    names = [(float(at), SIDES[side].removesuffix(" sides")) for at, side in zip(middle, ordered[start], strict=True)]
    panels = []
    for title, matrix, signed in (("Mean", moments.average, True), ("Standard deviation", moments.sd, False)):
        shown = matrix[np.ix_(order, order)]
        options = {"limit": colour_limit(shown), "signed": signed, "names": names, "edges": start[1:].tolist()}
        panels.append(matrix_panel(f"{title} of Pearson's r", shown, **options))
    return panels
