"""Commands from scans to networks and their pages."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pnet_jax.commands.options import (
    Bar,
    execution_options,
    executor_of,
    make_parser,
    parse,
    selection_options,
    shard_of,
    sources_of,
)
from pnet_jax.config import ConstructConfig
from pnet_jax.errors import SettingsError

MOST_LISTED = 20  # errors and kinds of warnings that are printed; status.tsv lists all


def construct(arguments: Sequence[str]) -> int:
    """Networks of a scan, a list of scans or a folder."""
    parser = make_parser("construct", "Networks of the scans in INPUT, written to OUT as BIDS derivatives.")
    parser.add_argument(
        "input", type=str, metavar="INPUT", help="a NIfTI, CIFTI or ROI table file, a list of files, or a BIDS-derivatives folder"
    )
    parser.add_argument("out", type=str, metavar="OUT", help="derivatives folder to write to")
    selection_options(parser)
    parser.add_argument("--resume", action="store_true", help="skip scans that are up to date")
    parser.add_argument(
        "--retry-failed", action="store_true", help="construct only the scans of OUT that failed before, with the same options"
    )
    execution_options(parser)
    config, args = parse(parser, ConstructConfig, arguments)
    from pnet_jax.batch.run import construct_cohort, own_shard

    if Path(args.input).is_dir() and Path(args.input).resolve() == Path(args.out).resolve():
        raise SettingsError(f"OUT is the same folder as INPUT ({args.out}): results would be taken for input; give another folder")
    shard = own_shard(config) if args.shard == "auto" or config.parallel.coordinator else shard_of(args.shard)
    sources, load = sources_of(args, args.input)
    with executor_of(args) as executor, Bar(len(sources), "construct") as bar:
        rows = construct_cohort(
            sources,
            args.out,
            config,
            load=load,
            resume=args.resume,
            retry_failed=args.retry_failed,
            shard=shard,
            executor=executor,
            progress=bar.of_scans,
            say=bar.say,
        )
    return _close(rows, args, arguments, pages=config.report)


def _close(rows: Sequence[dict[str, Any]], args: Namespace, arguments: Sequence[str], *, pages: bool) -> int:
    """Print a summary at the end of a run, and return its exit code."""
    from pnet_jax.outputs.overview import overview, summary

    states = overview(args.out)
    if not rows:
        print(f"No {'failed scan to construct again' if args.retry_failed else 'scan to construct'}. In {args.out}: {summary(states)[0]}.")
        return 0
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed[:MOST_LISTED]:
        print(f"failed: {row['error']}", file=sys.stderr)
    if len(failed) > MOST_LISTED:
        print(f"{len(failed) - MOST_LISTED} more scans failed; see pnet status {args.out}", file=sys.stderr)
    for line in _warned(rows, args.out):
        print(line, file=sys.stderr)
    kept, done = sum(row.get("parcels") == "atlas" for row in rows), len(rows) - len(failed)
    skipped = sum(bool(row.get("skipped")) for row in rows)
    of = f" ({skipped} up to date and skipped, {done - skipped} constructed)" if skipped else ""
    print(
        f"{done} of {len(rows)} scans done{of}, {len(failed)} failed, {kept} returned the atlas's parcels. "
        f"{Path(args.out) / 'status.tsv'} has a row for each."
    )
    if len(states) != len(rows) or any(one.state in ("stale", "waiting", "running") for one in states):
        print(f"In {args.out}: {summary(states)[0]}.")
    if failed:  # those of other runs may have other options
        again = [word for word in arguments if word not in ("--resume", "--retry-failed")]
        print(f"Correct the causes, then run: pnet construct {shlex.join(again)} --retry-failed")
    if pages and len(failed) < len(rows):
        print(f"Report: {Path(args.out) / 'index.html'}")
    return 1 if failed else 0


def _warned(rows: Sequence[dict[str, Any]], out: str) -> list[str]:
    """Return a line for each warning; of those that differ in names and numbers only, the first, with the number of scans."""
    from pnet_jax.report.reasons import kinds

    given = [(row["scan"], text) for row in rows if row["status"] == "ok" for text in row.get("said", ())]
    lines = []
    for kind in kinds(text for _, text in given):
        (scan, text), scans = given[kind.members[0]], len({given[at][0] for at in kind.members})
        lines.append(f"warning: {scan if scans == 1 else f'{scans} of {len(rows)} scans, e.g. {scan}'}: {text}")
    if len(lines) > MOST_LISTED:
        lines[MOST_LISTED:] = [f"{len(lines) - MOST_LISTED} more kinds of warnings; see column qc_warnings of {Path(out) / 'status.tsv'}"]
    return lines


def status(arguments: Sequence[str]) -> int:
    """Print the progress of the scans in a folder."""
    parser = make_parser("status", "Progress of all scans that `pnet construct` was started on in OUT, as found on disk.")
    parser.add_argument("out", type=str, metavar="OUT", help="derivatives folder")
    parser.add_argument("--json", action="store_true", help="print a JSON object with the counts and the state of every scan")
    parser.add_argument("--verify", action="store_true", help="also read inputs and results, and name those that have changed")
    _, args = parse(parser, None, arguments)
    from pnet_jax.outputs.overview import STATES, overview, summary

    if not Path(args.out).is_dir():
        raise SettingsError(f"{args.out}: expected a folder that `pnet construct` wrote, found no folder")
    states = overview(args.out, verify=args.verify)
    if args.json:
        counts = {state: sum(one.state == state for one in states) for state in STATES}
        print(json.dumps({"counts": counts, "scans": [one._asdict() for one in states]}, indent=1))
    else:
        print("\n".join(summary(states)))
    return 0 if all(one.state == "done" for one in states) else 1


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
