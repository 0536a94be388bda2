"""Export of a Cohort to formats of other programs: one or a few files per scan, and a table of all scans."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import Bool

from pnet_jax.cohort import Cohort
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs.atlas import atlas_label
from pnet_jax.outputs.atomic import atomic_path, check_writable, write_text
from pnet_jax.outputs.bids import output_stem, write_dataset_files
from pnet_jax.outputs.cohort_arrays import plain_name
from pnet_jax.outputs.images import write_image
from pnet_jax.outputs.names import safe_name
from pnet_jax.outputs.sidecars import relmat_description, stat_label
from pnet_jax.outputs.status import RECORDS
from pnet_jax.outputs.tables import beside, column_names, write_json, write_matrix, write_rows
from pnet_jax.scan import label_entities

Progress = Callable[[str, int, int], None]


def export(cohort: Cohort, folder: str | Path, to: str, progress: Progress | None = None) -> int:
    """Export a Cohort to the format of another program.

    - `bids`: a `_relmat.tsv` for each measure and `_timeseries.tsv`, with sidecars, in the folders of BIDS derivatives
    - `cifti`: a `.pconn.nii` for each measure and `.ptseries.nii`; with the scan's parcels, if the scans share a Space
    - `mat`: one MATLAB file per scan: `edges` (struct of K × K), `signals` (K × T), `frames` (from 0), `names`, `ids`, `coverage`
    - `csv`: `_edges.csv` with one row per pair of parcels (both directions for directed measures) and one column per measure, a square
      table for each measure, and `_signals.csv`
    - `graphml`: one graph for each measure, with an edge for each pair of parcels that has a value
    - `npz`: one NumPy file with all arrays

    The table is written to `cohort.tsv` (`csv`: `cohort.csv`; `npz`: in the same file).

    Args:
      cohort: Cohort to export.
      folder: Output folder, created if needed.
      to: One of `FORMATS`.
      progress: Called with the label of a scan, the number of completed scans, and the total.

    Returns:
      Number of files written.

    Raises:
      SettingsError: If the format is unknown, or the folder has results of another command, which would be overwritten.
      OSError: If the folder cannot be written.
    """
    if to not in FORMATS:
        raise SettingsError(f"unknown format {to!r}: expected one of {', '.join(FORMATS)}{nearest(to, FORMATS)}")
    if (Path(folder) / RECORDS).exists():
        raise SettingsError(f"{folder}: contains results of another command; export to a different folder")
    folder, written = check_writable(folder), 0
    if to == "npz":
        _write_npz(cohort, folder / "cohort.npz")
        return 1
    for s, scan in enumerate(cohort.table["scan"]):
        if progress is not None:
            progress(str(scan), s, len(cohort))
        written += sum(1 for _ in FORMATS[to](cohort, s, folder))
    if to == "bids":
        write_dataset_files(folder)
    table = [{name: column[s].item() for name, column in cohort.table.items()} for s in range(len(cohort))]
    if to == "csv":
        write_text(folder / "cohort.csv", _csv([list(cohort.table), *([row[name] for name in row] for row in table)]))
    else:
        write_rows(folder / "cohort.tsv", list(cohort.table), table)
    return written + 1


def _bids(cohort: Cohort, s: int, folder: Path) -> Iterator[Path]:
    scan, names = str(cohort.table["scan"][s]), column_names(cohort)
    entities = label_entities(scan)
    label = atlas_label(cohort.atlas["source"], cohort.n_parcels)
    space = cohort.space.name if cohort.space is not None else "unknown"
    stem = output_stem(folder, entities.pop("sub"), entities, cohort.n_parcels, label, space=space)
    about = {"Scan": scan, "Atlas": cohort.atlas, "Provenance": cohort.provenance}
    for measure, matrices in cohort.edges.items():
        file = f"stat-{stat_label(measure)}_relmat"
        yield write_matrix(beside(stem, f"{file}.tsv"), names, matrices[s], index=names)
        yield write_json(beside(stem, f"{file}.json"), relmat_description(matrices[s], measure) | about)
    if cohort.signals is not None:
        signals, frames = _signals(cohort, s)
        yield write_matrix(beside(stem, "stat-mean_timeseries.tsv"), names, signals.T)
        said = {"Description": "Mean signal of each parcel; one row per retained frame.", "KeptFrames": frames}
        yield write_json(beside(stem, "stat-mean_timeseries.json"), said | {"RepetitionTime": float(cohort.table["tr"][s])} | about)


def _cifti(cohort: Cohort, s: int, folder: Path) -> Iterator[Path]:
    import nibabel
    from nibabel.cifti2 import SeriesAxis

    scan, parcels = safe_name(str(cohort.table["scan"][s])), _parcels_axis(cohort, s)
    for measure, matrices in cohort.edges.items():
        image = nibabel.Cifti2Image(matrices[s], (parcels, parcels))
        image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_PARCELLATED")
        yield write_image(image, folder / f"{scan}_{plain_name(measure)}.pconn.nii")
    if cohort.signals is not None:
        signals, _ = _signals(cohort, s)
        # Scrubbed frames are omitted, so rows may be unevenly spaced in time, which the format cannot express.
        image = nibabel.Cifti2Image(signals.T, (SeriesAxis(0, float(cohort.table["tr"][s]), signals.shape[1]), parcels))
        image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_PARCELLATED_SERIES")
        yield write_image(image, folder / f"{scan}.ptseries.nii")


def _parcels_axis(cohort: Cohort, s: int) -> Any:
    """Return the scan's parcels with their voxels and vertices, or without them if the scans do not share a Space."""
    from nibabel.cifti2 import ParcelsAxis

    k, grid = cohort.n_parcels, cohort.space.grid if cohort.space is not None else None
    voxels, vertices = np.empty(k, object), np.empty(k, object)
    voxels[:], vertices[:] = [np.zeros((0, 3), int)] * k, [{} for _ in range(k)]
    if grid is None or cohort.labels is None:
        return ParcelsAxis(column_names(cohort), voxels, vertices)
    models: Any = grid.brain_models
    for at in range(k):
        places = np.flatnonzero(cohort.labels[s] == at)
        volume = places[(grid.ijk[places] >= 0).all(1)]
        voxels[at] = grid.ijk[volume]
        for name in np.unique(models.name[np.setdiff1d(places, volume)]) if models is not None else ():
            vertices[at][str(name)] = models.vertex[places[models.name[places] == name]]
    surfaces = {} if models is None else dict(models.nvertices)
    where = {"affine": grid.affine, "volume_shape": grid.shape} if any(map(len, voxels)) else {}
    return ParcelsAxis(column_names(cohort), voxels, vertices, nvertices=surfaces, **where)


def _mat(cohort: Cohort, s: int, folder: Path) -> Iterator[Path]:
    from scipy.io import savemat

    content: dict[str, Any] = {"edges": {plain_name(name)[:63]: matrices[s] for name, matrices in cohort.edges.items()}}
    content |= {
        "names": np.array(cohort.names, object),
        "ids": cohort.ids,
        "coverage": cohort.coverage[s],
        "scan": str(cohort.table["scan"][s]),
    }
    if cohort.signals is not None:
        content["signals"], content["frames"] = _signals(cohort, s)
    path = folder / f"{safe_name(str(cohort.table['scan'][s]))}.mat"
    with atomic_path(path) as part:
        savemat(part, content, do_compression=True, long_field_names=True)
    yield path


def _csv_files(cohort: Cohort, s: int, folder: Path) -> Iterator[Path]:
    scan, names = safe_name(str(cohort.table["scan"][s])), column_names(cohort)
    if cohort.edges:
        rows, columns = np.nonzero(_pairs(cohort))
        values = zip(*(matrices[s][rows, columns] for matrices in cohort.edges.values()), strict=True)
        tidy = ([names[k], names[to], *map(_number, each)] for k, to, each in zip(rows, columns, values, strict=True))
        yield write_text(folder / f"{scan}_edges.csv", _csv([["parcel", "parcel_to", *cohort.edges], *tidy]))
    for measure, matrices in cohort.edges.items():
        square = ([name, *map(_number, row)] for name, row in zip(names, matrices[s], strict=True))
        yield write_text(folder / f"{scan}_{plain_name(measure)}.csv", _csv([["", *names], *square]))
    if cohort.signals is not None:
        signals, frames = _signals(cohort, s)
        series = ([int(frame), *map(_number, row)] for frame, row in zip(frames, signals.T, strict=True))
        yield write_text(folder / f"{scan}_signals.csv", _csv([["frame", *names], *series]))


def _graphml(cohort: Cohort, s: int, folder: Path) -> Iterator[Path]:
    scan = safe_name(str(cohort.table["scan"][s]))
    nodes = zip(cohort.ids, cohort.names, cohort.hemispheres, cohort.coverage[s], strict=True)
    about = [
        f"<node id={quoteattr(str(index))}>{_data('name', name)}{_data('hemisphere', side)}{_data('coverage', f'{share:.7g}')}</node>"
        for index, name, side, share in nodes
    ]
    for measure, matrices in cohort.edges.items():
        directed = bool(cohort.views[measure]["directed"])
        known = np.isfinite(matrices[s]) & (
            ~np.eye(cohort.n_parcels, dtype=bool) if directed else np.triu(np.ones_like(matrices[s], bool), 1)
        )
        # Row k, column l of a directed measure is the effect of l on k: the edge points from l to k.
        ends = ((k, to) if not directed else (to, k) for k, to in np.argwhere(known))
        values = matrices[s][known]
        edges = (
            f'<edge source="{cohort.ids[k]}" target="{cohort.ids[to]}">{_data("weight", f"{value:.7g}")}</edge>'
            for (k, to), value in zip(ends, values, strict=True)
        )
        kind = "directed" if directed else "undirected"
        text = "\n".join([_GRAPHML, f'<graph id={quoteattr(scan)} edgedefault="{kind}">', *about, *edges, "</graph>\n</graphml>\n"])
        yield write_text(folder / f"{scan}_{plain_name(measure)}.graphml", text)


_GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="name" for="node" attr.name="name" attr.type="string"/>
<key id="hemisphere" for="node" attr.name="hemisphere" attr.type="string"/>
<key id="coverage" for="node" attr.name="coverage" attr.type="double"/>
<key id="weight" for="edge" attr.name="weight" attr.type="double"/>"""


def _data(key: str, value: str) -> str:
    return f'<data key="{key}">{escape(value)}</data>'


def _write_npz(cohort: Cohort, path: Path) -> None:
    content: dict[str, Any] = {f"table_{name}": column for name, column in cohort.table.items()}
    content |= {f"edges_{plain_name(name)}": matrices for name, matrices in cohort.edges.items()}
    content |= {
        "coverage": cohort.coverage,
        "ids": cohort.ids,
        "names": np.array(cohort.names),
        "hemispheres": np.array(cohort.hemispheres),
    }
    content |= {name: getattr(cohort, name) for name in ("signals", "frames", "labels", "confidence") if getattr(cohort, name) is not None}
    if cohort.space is not None:
        content["location_xyz"] = cohort.space.xyz
    with atomic_path(path) as part:
        np.savez_compressed(part, allow_pickle=False, **content)


def _signals(cohort: Cohort, s: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the signals `[K, t]` and frames `[t]` of one scan, without padding."""
    if cohort.signals is None or cohort.frames is None:
        raise InputError("the cohort was read without signals")
    kept = cohort.frames[s] >= 0
    return cohort.signals[s][:, kept], cohort.frames[s][kept]


def _pairs(cohort: Cohort) -> Bool[np.ndarray, "K K"]:
    """Return the pairs of parcels in a tidy table: each pair once, or in both directions if a measure is directed."""
    square = np.ones((cohort.n_parcels,) * 2, bool)
    return square & ~np.eye(cohort.n_parcels, dtype=bool) if any(view["directed"] for view in cohort.views.values()) else np.triu(square, 1)


def _number(value: float) -> str:
    """Format a number with seven digits; missing values are empty, as spreadsheets and R expect."""
    return f"{value:.7g}" if np.isfinite(value) else ""


def _csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["" if cell != cell else cell for cell in row] for row in rows])
    return out.getvalue()


FORMATS: dict[str, Any] = {
    "bids": _bids,
    "cifti": _cifti,
    "mat": _mat,
    "csv": _csv_files,
    "graphml": _graphml,
    "npz": _write_npz,
}
