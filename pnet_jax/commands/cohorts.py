"""Commands for cohorts: collecting results in a store, and exporting them to the formats of other programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal

from pnet_jax.commands.options import Bar, Done
from pnet_jax.errors import SettingsError


def collect(
    out: str,
    cohort: str | None = None,
    /,
    *,
    atlas: str | None = None,
    participants: str | None = None,
    workers: int = 1,
    block: int = 32,
) -> Done:
    """Write the results of `pnet construct` to a cohort store (zarr), or update a store: only new, changed or damaged blocks are written.

    Args:
      out: Derivatives folder that `pnet construct` wrote.
      cohort: Store: a folder, or an address such as s3://…; OUT/cohort.zarr by default.
      atlas: Atlas label (`seg-` in the file names), if the folder holds results for several atlases.
      participants: Table with participant_id and covariates; participants.tsv of the dataset by default.
      workers: Number of processes that read results and write blocks.
      block: Number of scans per block, the unit in which a new store is written.
    """
    for name, value in (("workers", workers), ("block", block)):
        if value < 1:
            raise SettingsError(f"--{name}: expected 1 or more, got {value}")
    from pnet_jax.outputs import collect as run

    with Bar(0, "collect", unit="block") as bar:
        done = run(out, cohort, atlas=atlas, participants=participants, workers=workers, block=block, progress=bar)
    return Done(f"{done['done']} scans collected, {done['failed']} failed; {_written(done)}. Cohort: {done['path']}", done)


def _written(done: Mapping[str, Any]) -> str:
    """Describe what `collect` wrote."""
    blocks = f"{done['written']} of {done['blocks']} blocks written"
    if not done["written"]:
        blocks = f"all {done['blocks']} blocks are up to date" if done["blocks"] != 1 else "its block is up to date"
    return f"covariates updated; {blocks}" if done["covariates"] else blocks


def export(
    cohort: str,
    out: str,
    /,
    *,
    to: Literal["bids", "cifti", "mat", "csv", "graphml", "npz"],
    atlas: str | None = None,
    participants: str | None = None,
) -> Done:
    """Export the edges and signals of COHORT to the formats of other programs.

    Args:
      cohort: Store that `pnet collect` wrote, or derivatives folder that `pnet construct` wrote.
      out: Folder to write to.
      to: Format.
      atlas: Atlas label (`seg-` in the file names), if the folder holds results for several atlases.
      participants: Table with participant_id and covariates; participants.tsv of the dataset by default.
    """
    from pnet_jax.outputs import export as run
    from pnet_jax.outputs import load_cohort

    # Maps are large, and only these formats store the locations of parcels.
    loaded = load_cohort(cohort, atlas=atlas, participants=participants, labels=to in ("cifti", "npz", "bids"))
    with Bar(len(loaded), "export") as bar:
        files = run(loaded, out, to, bar)
    left_out = loaded.provenance["left_out"]
    for scan, reason in list(left_out.items())[:20]:
        print(f"left out: {scan}: {reason}", file=sys.stderr)
    data = {"scans": len(loaded), "left_out": dict(left_out), "files": files, "out": out}
    return Done(f"{len(loaded)} scans exported, {len(left_out)} left out; {files} files in {out}", data)


def import_(
    table: str,
    cohort: str,
    /,
    *,
    kind: Literal["auto", "series", "matrix"] = "auto",
    measure: str = "pearson",
    tr: float | None = None,
    variable: str | None = None,
) -> Done:
    """Write connectomes or ROI series of any atlas, one file per scan, to a cohort store that `pnet evaluate` reads.

    Args:
      table: TSV or CSV with participant_id, file and optionally session_id, tr and covariates; or BIDS-derivatives folder with
        sub-*_relmat.tsv or sub-*_timeseries.tsv.
      cohort: New store: a folder, or an address such as s3://….
      kind: Content of the files.
      measure: Name of the matrices, e.g. pearson or partial.
      tr: Repetition time of the series in seconds, if the table has no column tr.
      variable: Array to read from .mat and .npz files that hold several.
    """
    from pnet_jax.ingest.imported import import_cohort
    from pnet_jax.outputs import write_cohort

    with Bar(0, "import", "file") as bar:
        imported = import_cohort(table, kind=kind, measure=measure, tr=tr, variable=variable, progress=bar)
    write_cohort(cohort, imported)
    what = "ROI series and correlations" if imported.signals is not None else f"{measure} matrices"
    data = {"scans": len(imported), "participants": len(imported.subjects), "regions": imported.n_parcels, "cohort": cohort}
    text = f"{what} of {len(imported)} scans, {len(imported.subjects)} participants, {imported.n_parcels} regions. Cohort: {cohort}"
    return Done(text, data)
