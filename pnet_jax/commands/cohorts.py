"""Commands for cohorts: collecting results in a store, and exporting them to the formats of other programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pnet_jax.commands.options import Bar, make_parser, parse
from pnet_jax.config import nearest


def collect(arguments: Sequence[str]) -> int:
    """Collect the results of a folder in a cohort store."""
    parser = make_parser(
        "collect",
        "Writes the results of pnet construct in OUT to a cohort store (zarr), or updates an existing store: only new or changed results "
        "and damaged blocks are written.",
    )
    add = parser.add_argument
    add("out", type=str, metavar="OUT", help="derivatives folder that pnet construct wrote")
    add(
        "cohort",
        nargs="?",
        type=str | None,
        metavar="COHORT",
        help="store: a folder, or an address such as s3://…; default: OUT/cohort.zarr",
    )
    _atlas_options(add)
    add("--workers", type=int, default=1, help="processes that read results and write blocks")
    add("--block", type=int, default=32, help="scans per block, the unit in which a new store is written")
    _, args = parse(parser, None, arguments)
    for name in ("workers", "block"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    from pnet_jax.outputs import collect as run

    chosen = {"atlas": args.atlas, "participants": args.participants, "workers": args.workers, "block": args.block}
    with Bar(0, "collect", unit="block") as bar:
        done = run(args.out, args.cohort, **chosen, progress=bar)
    print(f"{done['done']} scans collected, {done['failed']} failed; {_written(done)}. Cohort: {done['path']}")
    return 0


def _written(done: Mapping[str, Any]) -> str:
    """Say what `collect` wrote."""
    blocks = f"{done['written']} of {done['blocks']} blocks written"
    if not done["written"]:
        blocks = f"all {done['blocks']} blocks are up to date" if done["blocks"] != 1 else "its block is up to date"
    return f"covariates updated; {blocks}" if done["covariates"] else blocks


def export(arguments: Sequence[str]) -> int:
    """Export a cohort to the formats of other programs."""
    from pnet_jax.outputs.cohort_export import FORMATS

    parser = make_parser("export", "Exports the edges and signals of COHORT to the formats of other programs.")
    add = parser.add_argument
    add("cohort", type=str, metavar="COHORT", help="store that pnet collect wrote, or derivatives folder that pnet construct wrote")
    add("out", type=str, metavar="OUT", help="folder to write to")
    add("--to", type=str, required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    _atlas_options(add)
    _, args = parse(parser, None, arguments)
    if args.to not in FORMATS:
        parser.error(f"--to: expected one of {', '.join(FORMATS)}, got {args.to!r}{nearest(args.to, FORMATS)}")
    from pnet_jax.outputs import export as run
    from pnet_jax.outputs import load_cohort

    # Maps are large, and only two formats store where parcels lie.
    cohort = load_cohort(args.cohort, atlas=args.atlas, participants=args.participants, labels=args.to in ("cifti", "npz", "bids"))
    with Bar(len(cohort), "export") as bar:
        files = run(cohort, args.out, args.to, bar)
    left_out = cohort.provenance["left_out"]
    for scan, reason in list(left_out.items())[:20]:
        print(f"left out: {scan}: {reason}", file=sys.stderr)
    print(f"{len(cohort)} scans exported, {len(left_out)} left out; {files} files in {args.out}")
    return 0


def import_(arguments: Sequence[str]) -> int:
    """Make a cohort store from connectomes or ROI series of other programs."""
    from pnet_jax.ingest.imported import KINDS

    parser = make_parser(
        "import", "Writes connectomes or ROI series of any atlas, one file for each scan, to a cohort store that pnet evaluate reads."
    )
    add = parser.add_argument
    add(
        "table",
        type=str,
        metavar="TABLE",
        help="TSV or CSV with participant_id, file and optionally session_id, tr and covariates; or a BIDS-derivatives folder with "
        "sub-*_relmat.tsv or sub-*_timeseries.tsv",
    )
    add("cohort", type=str, metavar="COHORT", help="new store: a folder, or an address such as s3://…")
    add("--kind", type=str, default="auto", metavar="KIND", help=f"content of the files: {', '.join(KINDS)}")
    add("--measure", type=str, default="pearson", metavar="NAME", help="name of the matrices, e.g. pearson or partial")
    add("--tr", type=float | None, metavar="SECONDS", help="repetition time of the series, if the table has no column tr")
    add("--variable", type=str | None, metavar="NAME", help="array to read from .mat and .npz files that hold several")
    _, args = parse(parser, None, arguments)
    from pnet_jax.ingest.imported import import_cohort
    from pnet_jax.outputs import write_cohort

    with Bar(0, "import", "file") as bar:
        cohort = import_cohort(args.table, kind=args.kind, measure=args.measure, tr=args.tr, variable=args.variable, progress=bar)
    write_cohort(args.cohort, cohort)
    what = "ROI series and correlations" if cohort.signals is not None else f"{args.measure} matrices"
    print(f"{what} of {len(cohort)} scans, {len(cohort.subjects)} participants, {cohort.n_parcels} regions. Cohort: {args.cohort}")
    return 0


def _atlas_options(add) -> None:
    add(
        "--atlas",
        type=str | None,
        metavar="LABEL",
        help="atlas label (seg- in the file names), if the folder holds results for several atlases",
    )
    add(
        "--participants",
        type=str | None,
        metavar="FILE",
        help="table with participant_id and covariates; default: participants.tsv of the dataset",
    )
