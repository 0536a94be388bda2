"""Common parts of commands: groups of options, selection of scans, summary of a command, and progress."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Group, Parameter

from pnet_jax.errors import SettingsError

LINE_SECONDS = 30.0  # seconds between lines of progress without a terminal
FILES = Group("Input files", sort_key=3)
EXECUTION = Group("Clusters", sort_key=4)
SETTINGS = Group("Settings", sort_key=2)
# Options of a dataclass are on the same level as those of its command: `--task`, not `--selection.task`.
Flat = Parameter(name="*")
Settings = Parameter(name="*", group=SETTINGS)


class Done(NamedTuple):
    """Summary of a command.

    Attributes:
      text: Lines for the terminal.
      data: Content of the summary, for `--json`.
      code: Exit code: 0 on success, 1 if something failed.
    """

    text: str
    data: Mapping[str, Any] = {}
    code: int = 0


@dataclasses.dataclass(frozen=True)
class Selection:
    """Scans and files to use.

    Attributes:
      participant_label: Participants to use, e.g. `01 02` or `sub-01 sub-02`; all by default.
      session_label: Sessions to use, e.g. `1 2` or `ses-1 ses-2`; all by default.
      task: Task to use; resting state by default.
      space: Space of the files to use; for files without the entity `space`, the space they are in
        (e.g. fsaverage5 for GIFTI files).
      mask: Brain mask; by default the one beside each scan.
      confounds: Confounds table; by default the one beside each scan.
      tr: Repetition time in seconds, if the files do not contain it.
      native_to_mni: Text file with a 4 × 4 matrix from native mm to MNI mm; nothing is resampled.
      roi_atlas: Locations of the ROIs of a table: dseg image, or table with the columns x, y, z.
      surfaces: Left and right GIFTI surface (midthickness) in MNI mm, for recordings or atlases with vertices; those of the template by
        default.
    """

    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task: str | None = None
    space: str | None = None
    mask: Annotated[str | None, Parameter(group=FILES)] = None
    confounds: Annotated[str | None, Parameter(group=FILES)] = None
    tr: Annotated[float | None, Parameter(group=FILES)] = None
    native_to_mni: Annotated[str | None, Parameter(group=FILES)] = None
    roi_atlas: Annotated[str | None, Parameter(group=FILES)] = None
    surfaces: Annotated[tuple[str, str] | None, Parameter(group=FILES)] = None

    @property
    def about_files(self) -> dict[str, Any]:
        """Return the arguments of `load_scan` that were given."""
        given = {name: getattr(self, name) for name in ("tr", "native_to_mni", "surfaces", "space")} | {"atlas": self.roi_atlas}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where scans are constructed.

    Attributes:
      shard: Part I of N of the participants (I = 1 to N, e.g. 3/20 in an array job), or `auto` for one part per process of this job.
        A participant's part depends only on the label, so that adding participants does not move others; part sizes can differ.
      cluster: Type of cluster: slurm, pbs, sge, lsf, mpi, or local for Dask workers on this machine.
      jobs: Largest number of cluster jobs at a time.
      scheduler: Address of a running Dask scheduler, e.g. tcp://node1:8786.
    """

    shard: str | None = None
    cluster: str | None = None
    jobs: int | None = None
    scheduler: str | None = None

    @property
    def part(self) -> tuple[int, int] | None:
        """Return the value of `--shard` as numbers; None if it was not given."""
        if self.shard is None:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found:
            raise SettingsError(f"--shard: expected I/N, e.g. 3/20, or auto, got {self.shard!r}")
        return int(found[1]), int(found[2])

    @contextlib.contextmanager
    def executor(self) -> Iterator[Executor | None]:
        """Open the workers of the cluster, if one was requested."""
        if self.cluster is None and self.scheduler is None:
            yield None
            return
        if self.shard is not None:
            raise SettingsError("--shard cannot be combined with --cluster or --scheduler: the cluster's scheduler distributes the scans")
        from pnet_jax.execution import cluster

        with cluster(self.cluster, scheduler=self.scheduler, jobs=self.jobs) as executor:
            yield executor


def sources_of(selection: Selection, files: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the scans of an input, and further arguments of `load_scan`."""
    from pnet_jax.ingest import find_scans

    chosen: dict[str, Any] = {
        "participant_labels": selection.participant_label or None,
        "session_labels": selection.session_label or None,
        "task": selection.task,
    }
    load = selection.about_files
    if (Path(files) / "manifest.json").is_file():
        from pnet_jax.records.source import is_store, stored_scans  # lazy, because it imports ArrayRecord

        if is_store(files):
            beside = {name: getattr(selection, name) for name in ("mask", "confounds")}
            if given := [*load, *(name for name, value in beside.items() if value is not None)]:
                name = {"atlas": "roi_atlas"}.get(given[0], given[0])
                raise SettingsError(f"{files} is a store of cleaned scans: --{name.replace('_', '-')} does not apply")
            return stored_scans(files, **chosen), {}
    space = selection.space if Path(files).is_dir() else None
    return find_scans(files, **chosen, space=space, mask=selection.mask, confounds=selection.confounds), load


class Bar:
    """Progress on standard error: a bar on a terminal, otherwise a line at regular intervals; nothing with `--quiet`."""

    quiet = False  # set by the command line

    def __init__(self, total: int, what: str, unit: str = "scan"):
        from tqdm import tqdm

        self.what, self.unit, self.terminal = what, unit, sys.stderr.isatty() and not self.quiet
        self.bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=not self.terminal)
        self.begun = self.told = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        self.of_scans(label, done, 0, total)

    def of_scans(self, label: str, done: int, failed: int, total: int) -> None:
        """Report progress of a loop in which scans may fail: the numbers done, failed among these, and in total."""
        said = ", ".join(filter(None, (f"{failed} failed" if failed else "", label)))
        if self.terminal:
            self.bar.total = total
            self.bar.set_postfix_str(said)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            rate = done / (self.told - self.begun)
            from pnet_jax.execution import duration

            left = f", about {duration((total - done) / rate)} left" if done and total else ""
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            counted = f"{done} of {total or '?'} {self.unit}s" + (f", {said}" if said else "")
            self.say(f"{counted}; {3600 * rate:.0f} per hour{left}; peak memory {memory:.1f} GiB")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.bar.clear()
            print(f"{self.what}: {text}", file=sys.stderr, flush=True)
