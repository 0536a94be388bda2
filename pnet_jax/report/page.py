"""Self-contained HTML page for a scan."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pnet_jax
from pnet_jax.network import Network
from pnet_jax.outputs.atlas import network_atlas
from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.bids import parcel_rows, scan_label
from pnet_jax.outputs.tables import plain
from pnet_jax.report import brains, figures, words
from pnet_jax.report.extra import check_installed
from pnet_jax.report.linked import MAX_MATRICES, SIDES, linked_json, matrix_order, measure_title
from pnet_jax.report.methods import REFERENCE, methods
from pnet_jax.report.plates import Plate
from pnet_jax.report.png import gradient

MAIN_MEASURE = "pearson"


def write_report(network: Network, file: str | os.PathLike) -> Path:
    """Write the report of one scan: reliability, parcels, connectivity, evidence, motion, provenance, and a text for a methods section.

    The page is a single file without external resources, about 1 MB. Table, maps and matrix are linked by a script in the page. If a
    part of the result is missing (no motion series, a ROI scan, halves that were not compared), the page states this instead.

    Args:
      network: Result of a subject; unknown fields of `qc` and `provenance` may be missing.
      file: Path of the page, `….html`.

    Returns:
      The path of the file.

    Raises:
      OSError: If the file cannot be written.
      ReportExtraMissingError: If jinja2 is not installed.
    """
    return write_text(file, render(network))


def render(network: Network) -> str:
    """Return the page as text.

    Raises:
      ReportExtraMissingError: If jinja2 is not installed.
    """
    check_installed()
    views = _attempt("maps", lambda: brains.plate(network), network)
    selection = network.qc.selection
    return template("report.html").render(
        start=network.start,
        label=scan_label(network),
        version=pnet_jax.__version__,
        header=_header(network),
        sentences=words.sentences(network),
        verdict=words.verdict(network),
        cards=words.key_numbers(network),
        views=views["found"],
        maps=_maps(network, views),
        charts_of={
            "reliability": _attempt("reliability", lambda: figures.reliability(network), network),
            "fit": _attempt("fit", lambda: figures.fit(selection), network),
            "choice": _attempt("choice", lambda: figures.choice(selection), network),
            "motion": _attempt("motion", lambda: figures.motion(network), network),
            "coverage": _attempt("coverage", lambda: figures.coverage(network), network),
        },
        glass=_attempt("glass", lambda: brains.edges_drawing(network, _main_measure(network)) if network.edges else None, network),
        measures=[measure_title(name) for name in list(network.edges)[:MAX_MATRICES]],
        bounds=_bounds(network),
        sides=SIDES,
        data=linked_json(network, views["found"]),
        selection=selection,
        calibration=network.qc.calibration,
        choice=words.choice_numbers(network),
        percent=words.percent,
        gradient=gradient,
        space=network.space,
        backdrop=_backdrop(network),
        has_motion=network.displacement is not None,
        parcels=_parcels(network),
        layers=_layers(network),
        explanation=words.explain(network).splitlines(),
        min_coverage=words.min_coverage(network),
        warnings=network.qc.warnings,
        seconds=_seconds(network),
        provenance=words.flatten(plain(network.provenance)),
        methods=methods(network),
        reference=REFERENCE,
    )


@functools.cache
def template(name: str) -> Any:
    """Return the template of a page; all inserted text is escaped."""
    import jinja2

    loader = jinja2.PackageLoader("pnet_jax.report", "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters["sentence"] = words.sentence
    return pages.get_template(name)


def _maps(network: Network, views: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Draw the maps; a map is None if there is nothing to draw, and holds the error if drawing failed."""
    draw: dict[str, Callable[[Plate], Any]] = {
        "parcellation": lambda plate: brains.parcel_map(network, plate, network.labels),
        "confidence": lambda plate: brains.confidence_map(network, plate),
        "start": lambda plate: brains.parcel_map(network, plate, network.atlas_labels),
        "change": lambda plate: brains.change_map(network, plate),
    }
    if views["found"] is None:
        return dict.fromkeys(draw, views)
    return {name: _attempt(name, functools.partial(function, views["found"]), network) for name, function in draw.items()}


def _attempt(name: str, function: Callable[[], Any], network: Network) -> dict[str, Any]:
    try:
        return {"found": function(), "error": None}
    except Exception as error:  # noqa: BLE001  a failed figure must not prevent the page
        warnings.warn(f"{scan_label(network)}: the figure `{name}` could not be drawn: {error!r}", stacklevel=2)
        return {"found": None, "error": f"{type(error).__name__}: {error}"}


def _main_measure(network: Network) -> str:
    return MAIN_MEASURE if MAIN_MEASURE in network.edges else next(iter(network.edges))


def _bounds(network: Network) -> list[dict[str, Any]]:
    """Return the hemispheres along the matrix, with the position of each in per cent."""
    sides = np.array(network.hemispheres)[matrix_order(network)]
    start = np.flatnonzero(np.r_[True, sides[1:] != sides[:-1]])
    ends = np.r_[start[1:], len(sides)]
    places = 100 * np.stack([start, (start + ends) / 2], 1) / max(len(sides), 1)
    return [{"name": SIDES[sides[k]], "start": at, "middle": middle} for k, (at, middle) in zip(start, places.tolist(), strict=True)]


def _header(network: Network) -> list[tuple[str, str]]:
    recorded = words.recorded_frames(network)
    kept = f"{len(network.frames)} of {recorded}" if recorded else str(len(network.frames))
    source = str(network.provenance.get("source") or "")
    rows = [
        ("Subject", network.subject),
        ("Session", network.entities.get("ses")),
        ("Task", network.entities.get("task")),
        ("Run", network.entities.get("run")),
        ("Atlas", network_atlas(network).label),
        ("Space", network.space.name if network.space.name != "unknown" else None),
        ("Repetition time", f"{network.tr:g} s"),
        ("Frames kept", kept),
        ("Minutes kept", f"{words.minutes_kept(network):.1f}"),
        ("File", Path(source).name or None),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _parcels(network: Network) -> list[dict[str, Any]]:
    """Return the rows of the parcel table, with a flag for parcels that need attention."""
    restored, low = set(network.qc.restored), set(network.qc.low_coverage)
    rows, least = parcel_rows(network), words.min_coverage(network)
    for row, name in zip(rows, network.names, strict=True):
        notes = ["absent"] * row["absent"] + ["low coverage"] * (name in low or row["coverage"] < least)
        row["notes"] = notes + ["restored from the atlas"] * (name in restored)
    return rows


def _layers(network: Network) -> list[dict[str, str]]:
    """Describe the edge layers with known uncertainty: purpose and uncertainty of each."""
    from pnet_jax.edges import meant_for, measure, names

    rows = []
    for name, sd in network.uncertainty.items():
        typical = float(np.nanmedian(sd[~np.eye(len(sd), dtype=bool)]))
        units = measure(name).units if name in names() and name != "pearson" else "Fisher z"
        purpose = meant_for("raw" if name == "pearson" else name)
        rows.append({"name": "raw (pearson)" if name == "pearson" else name, "meant_for": purpose, "sd": f"{typical:.3f} {units}"})
    return rows


def _seconds(network: Network) -> list[tuple[str, str]]:
    return [(stage, f"{value:.1f} s") for stage, value in network.qc.seconds.items()]


def _backdrop(network: Network) -> str:
    """Return the background of the parcels: `template`, `mean` or `nothing` for slices, otherwise `points` or `cifti`."""
    if network.space.grid is None:
        return "points"
    if network.space.grid.brain_models is not None:
        return "cifti"
    if network.space.name.startswith("MNI"):
        return "template"
    return "nothing" if network.mean is None else "mean"
