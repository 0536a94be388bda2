"""One self-contained HTML page for a scan."""

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
from pnet_jax.report import words
from pnet_jax.report.extra import check_installed

MAIN_MEASURE = "pearson"


def write_report(network: Network, file: str | os.PathLike) -> Path:
    """Write one scan's report: parcels and confidence on anatomy, what moved, evidence across halves, connectome, motion, provenance.

    The page is a single file without scripts or external resources, about 2 MB. Where a piece of the result is missing (no motion
    series, a ROI scan, halves that were not compared), the page says so in its place.

    Args:
      network: a subject's result; fields of `qc` and `provenance` that are not known may be missing.
      file: where to write, `….html`.

    Returns:
      The path of the file.

    Raises:
      OSError: the file cannot be written; the error names it.
      ReportExtraMissingError: matplotlib or jinja2 is not installed.
    """
    return write_text(file, render(network))


def render(network: Network) -> str:
    """The page as text.

    Raises:
      ReportExtraMissingError: matplotlib or jinja2 is not installed.
    """
    check_installed()
    return template("report.html").render(
        start=network.start,
        label=scan_label(network),
        version=pnet_jax.__version__,
        header=_header(network),
        sentences=words.sentences(network),
        verdict=words.verdict(network),
        cards=words.key_numbers(network),
        figures=_figures(network),
        selection=network.qc.selection,
        calibration=network.qc.calibration,
        choice=words.choice_numbers(network),
        percent=words.percent,
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
    )


@functools.cache
def template(name: str) -> Any:
    """A page's template; everything put into it is escaped."""
    import jinja2

    loader = jinja2.PackageLoader("pnet_jax.report", "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters["sentence"] = words.sentence
    return pages.get_template(name)


def _figures(network: Network) -> dict[str, dict[str, str | None]]:
    """Every figure's image, or None where the result holds nothing to draw, or what went wrong."""
    from pnet_jax.report import brains, figures
    from pnet_jax.report.style import drawing

    selection = network.qc.selection
    measure = MAIN_MEASURE if MAIN_MEASURE in network.edges else next(iter(network.edges), None)
    draw: dict[str, Callable[[], str | None]] = {
        "parcellation": lambda: brains.parcellation_figure(network),
        "confidence": lambda: brains.confidence_figure(network),
        "change": lambda: brains.change_figure(network),
        "connectome": lambda: figures.connectome_figure(network) if measure else None,
        "glass": lambda: brains.glass_figure(network, measure) if measure else None,
        "fit": lambda: figures.fit_figure(selection),
        "choice": lambda: figures.choice_figure(selection),
        "reliability": lambda: figures.reliability_figure(network),
        "motion": lambda: figures.motion_figure(network),
        "coverage": lambda: figures.coverage_figure(network),
    }
    with drawing():
        return {name: _attempt(name, function, network) for name, function in draw.items()}


def _attempt(name: str, function: Callable[[], str | None], network: Network) -> dict[str, str | None]:
    try:
        return {"image": function(), "error": None}
    except Exception as error:  # noqa: BLE001  a figure that cannot be drawn must not cost the rest of the page
        warnings.warn(f"{scan_label(network)}: the figure `{name}` could not be drawn: {error!r}", stacklevel=2)
        return {"image": None, "error": f"{type(error).__name__}: {error}"}


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
    """Rows of the parcel table with what a reader should notice; parcels to notice come with a flag."""
    restored, low = set(network.qc.restored), set(network.qc.low_coverage)
    rows, least = parcel_rows(network), words.min_coverage(network)
    for row, name in zip(rows, network.names, strict=True):
        notes = ["absent"] * row["absent"] + ["low coverage"] * (name in low or row["coverage"] < least)
        row["notes"] = notes + ["restored from the atlas"] * (name in restored)
    return rows


def _layers(network: Network) -> list[dict[str, str]]:
    """Edges whose uncertainty is known: what each is meant for, and how sure it is."""
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
    """What parcels are drawn on: `template`, `mean`, `nothing`, or no slices at all: `points`, `cifti`."""
    if network.space.grid is None:
        return "points"
    if network.space.grid.brain_models is not None:
        return "cifti"
    if network.space.name.startswith("MNI"):
        return "template"
    return "nothing" if network.mean is None else "mean"
