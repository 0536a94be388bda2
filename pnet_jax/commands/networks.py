"""Commands that construct networks from scans and write their pages."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pnet_jax.commands.options import EXECUTION, Bar, Done, Execution, Flat, Selection, Settings, sources_of
from pnet_jax.config import ConstructConfig
from pnet_jax.errors import SettingsError

MOST_LISTED = 20  # errors and kinds of warnings that are printed; status.tsv lists all


def construct(
    input: str,
    out: str,
    /,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    selection: Annotated[Selection, Flat] = Selection(),
    config: Annotated[ConstructConfig, Settings] = ConstructConfig(),
    execution: Annotated[Execution, Parameter(name="*", group=EXECUTION)] = Execution(),
) -> Done:
    """Construct networks of the scans in INPUT, and write them to OUT as BIDS derivatives.

    Args:
      input: NIfTI, CIFTI, GIFTI or ROI table file, list of files, BIDS-derivatives folder (fMRIPrep), or store written by `pnet prepare`.
      out: Derivatives folder to write to.
      resume: Skip scans whose results are up to date.
      retry_failed: Construct only the scans of OUT that failed before with the same options.
      dry_run: Print what would be done, with memory and time, and write nothing.
      selection: Scans and files.
      config: Settings.
      execution: Cluster.
    """
    from pnet_jax.batch.run import construct_cohort, own_shard

    if Path(input).is_dir() and Path(input).resolve() == Path(out).resolve():
        raise SettingsError(f"OUT and INPUT are the same folder ({out}), so that results would be read as input: choose another OUT")
    shard = own_shard(config) if execution.shard == "auto" or config.parallel.coordinator else execution.part
    sources, load = sources_of(selection, input)
    if dry_run:
        from pnet_jax.batch.dry_run import dry_run as described

        found = described(sources, out, config, load=load, resume=resume, retry_failed=retry_failed, shard=shard)
        return Done("\n".join(found.lines), found.data)
    with execution.executor() as executor, Bar(len(sources), "construct") as bar:
        rows = construct_cohort(
            sources,
            out,
            config,
            load=load,
            resume=resume,
            retry_failed=retry_failed,
            shard=shard,
            executor=executor,
            progress=bar.of_scans,
            say=bar.say,
        )
    return _close(rows, out, retried=retry_failed, pages=config.report)


def _close(rows: Sequence[dict[str, Any]], out: str, *, retried: bool, pages: bool) -> Done:
    """Summarise a finished run."""
    from pnet_jax.commands.app import given
    from pnet_jax.outputs.overview import overview, summary

    states = overview(out)
    if not rows:
        return Done(f"No {'failed scan to construct again' if retried else 'scan to construct'}. In {out}: {summary(states)[0]}.")
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed[:MOST_LISTED]:
        print(f"failed: {row['error']}", file=sys.stderr)
    if len(failed) > MOST_LISTED:
        print(f"{len(failed) - MOST_LISTED} more scans failed; see pnet status {out}", file=sys.stderr)
    for line in _warned(rows, out):
        print(line, file=sys.stderr)
    kept, done = sum(row.get("parcels") == "atlas" for row in rows), len(rows) - len(failed)
    skipped = sum(bool(row.get("skipped")) for row in rows)
    of = f" ({skipped} up to date and skipped, {done - skipped} constructed)" if skipped else ""
    lines = [
        f"{done} of {len(rows)} scans done{of}, {len(failed)} failed, {kept} returned the atlas's parcels. "
        f"{Path(out) / 'status.tsv'} has a row for each."
    ]
    if len(states) != len(rows) or any(one.state in ("stale", "waiting", "running") for one in states):
        lines.append(f"In {out}: {summary(states)[0]}.")
    if failed:  # failures of other runs may have different options
        again = [word for word in given() if word not in ("--resume", "--retry-failed")]
        lines.append(f"Correct the causes, then run: pnet {shlex.join(again)} --retry-failed")
    if pages and len(failed) < len(rows):
        lines.append(f"Report: {Path(out) / 'index.html'}")
    counts = {"scans": len(rows), "done": done, "skipped": skipped, "failed": len(failed), "atlas": kept}
    errors = {row["scan"]: row["error"] for row in failed}
    return Done("\n".join(lines), counts | {"errors": errors, "out": out}, 1 if failed else 0)


def _warned(rows: Sequence[Mapping[str, Any]], out: str) -> list[str]:
    """Return a line for each kind of warning: the first of those that differ only in names and numbers, with the number of scans."""
    from pnet_jax.report.reasons import kinds

    given = [(row["scan"], text) for row in rows if row["status"] == "ok" for text in row.get("said", ())]
    lines = []
    for kind in kinds(text for _, text in given):
        (scan, text), scans = given[kind.members[0]], len({given[at][0] for at in kind.members})
        lines.append(f"warning: {scan if scans == 1 else f'{scans} of {len(rows)} scans, e.g. {scan}'}: {text}")
    if len(lines) > MOST_LISTED:
        lines[MOST_LISTED:] = [f"{len(lines) - MOST_LISTED} more kinds of warnings; see column qc_warnings of {Path(out) / 'status.tsv'}"]
    return lines


def status(out: str, /, *, verify: bool = False) -> Done:
    """Show the state of every scan in OUT, from what is on disk: done, failed, unavailable, running, waiting or stale.

    The exit code is 0 if all scans are done, otherwise 1.

    Args:
      out: Output folder of `pnet construct`.
      verify: Also read inputs and results, and name those that have changed.
    """
    from pnet_jax.outputs.overview import STATES, overview, summary

    if not Path(out).is_dir():
        raise SettingsError(f"{out} does not exist: give the output folder of pnet construct")
    states = overview(out, verify=verify)
    if not states:
        raise SettingsError(f"{out} contains no results: give the output folder of pnet construct")
    counts = {state: sum(one.state == state for one in states) for state in STATES}
    code = 0 if all(one.state == "done" for one in states) else 1
    return Done("\n".join(summary(states)), {"counts": counts, "scans": [one._asdict() for one in states]}, code)


def report(folder: str, /) -> Done:
    """Write the HTML pages and the index of a folder that `pnet construct` wrote.

    Args:
      folder: Derivatives folder.
    """
    from pnet_jax.report import report_folder

    with Bar(0, "report", unit="page") as bar:
        index = report_folder(folder, bar)
    return Done(f"Report: {index}", {"report": str(index)})


def demo(*, out: str = "demo", simulated: bool = False) -> Done:
    """Construct one participant's network from a public scan (100 MB, downloaded once), with its report.

    Args:
      out: Folder to write to.
      simulated: Use a simulated scan, and download nothing.
    """
    from pnet_jax.demo import run

    for line in run(Path(out), simulated=simulated):
        if not Bar.quiet:
            print(line, flush=True)
    return Done("", {"out": out})
