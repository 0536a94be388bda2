"""Commands from scans to networks and their pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pnet_jax.commands.options import Bar, make_parser, parse, selection_options, sources_of
from pnet_jax.config import ConstructConfig
from pnet_jax.errors import SettingsError

MOST_WARNED = 20  # scans whose warnings are printed; status.tsv has all


def construct(arguments: Sequence[str]) -> int:
    """Networks of a scan, a list of scans or a folder."""
    parser = make_parser("construct", "Networks of the scans in INPUT, written to OUT as BIDS derivatives.")
    parser.add_argument(
        "input", type=str, metavar="INPUT", help="a NIfTI, CIFTI or ROI table file, a list of files, or a BIDS-derivatives folder"
    )
    parser.add_argument("out", type=str, metavar="OUT", help="derivatives folder to write to")
    selection_options(parser)
    parser.add_argument("--resume", action="store_true", help="leave out scans that are complete and made by the same settings")
    config, args = parse(parser, ConstructConfig, arguments)
    from pnet_jax.batch import construct_cohort

    if Path(args.input).is_dir() and Path(args.input).resolve() == Path(args.out).resolve():
        raise SettingsError(f"OUT is the same folder as INPUT ({args.out}): results would be taken for input; give another folder")
    sources, load = sources_of(args, args.input)
    with Bar(len(sources), "construct") as bar:
        rows = construct_cohort(sources, args.out, config, load=load, resume=args.resume, progress=bar)
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed:
        print(f"failed: {row['error']}", file=sys.stderr)
    warned = [row for row in rows if row["status"] == "ok" and row.get("qc_warnings")]
    for row in warned[:MOST_WARNED]:
        print(f"warning: {row['scan']}: {row['qc_warnings']}", file=sys.stderr)
    if len(warned) > MOST_WARNED:
        print(f"warnings of {len(warned) - MOST_WARNED} more scans: column qc_warnings of {Path(args.out) / 'status.tsv'}", file=sys.stderr)
    kept = sum(row.get("parcels") == "atlas" for row in rows)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} scans done, {len(failed)} failed, {kept} returned the atlas's parcels. "
        f"{Path(args.out) / 'status.tsv'} has a row for each."
    )
    if config.report and len(failed) < len(rows):
        print(f"Report: {Path(args.out) / 'index.html'}")
    return 1 if failed else 0


def report(arguments: Sequence[str]) -> int:
    """HTML pages of existing results."""
    parser = make_parser("report", "Makes the HTML pages and the index of a folder that `pnet construct` wrote.")
    parser.add_argument("folder", type=str, metavar="FOLDER", help="derivatives folder")
    _, args = parse(parser, None, arguments)
    from pnet_jax.report import report_folder

    with Bar(0, "report", unit="page") as bar:
        index = report_folder(args.folder, bar)
    print(f"Report: {index}")
    return 0


def demo(arguments: Sequence[str]) -> int:
    """One public scan from download to report."""
    parser = make_parser("demo", "Construct one participant's network from a public scan (100 MB, downloaded once), with its report.")
    parser.add_argument("--out", type=str, default="demo", help="folder to write to")
    parser.add_argument("--simulated", action="store_true", help="use a simulated scan and fetch nothing")
    _, args = parse(parser, None, arguments)
    from pnet_jax.demo import run

    for line in run(Path(args.out), simulated=args.simulated):
        print(line, flush=True)
    return 0
