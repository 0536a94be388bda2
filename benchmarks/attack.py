"""Shared parts of the attacks in `reliability.py`: commands in separate processes, comparison of folders, and counts."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil

from pnet_jax.outputs.overview import overview

PNET = [sys.executable, "-c", "import sys; from pnet_jax.cli import main; sys.exit(main())"]
OPTIONS = ["--parcels", "100", "--no-report", "--cleaning.motion", "basic", "--workers", "2"]
EDGES = ["--edges", "pearson", "tangent"]
MARK = "PNET_ATTACK"  # environment variable that identifies a process and all of its descendants
PATIENCE = 5.0  # seconds within which all processes of a finished run must end


class Place(NamedTuple):
    """The synthetic cohort, its undisturbed result, a working folder, and the seconds from the creation of a run's folder to its end."""

    cohort: Path
    clean: Path
    work: Path
    seconds: float


class Started(NamedTuple):
    """A command in a separate process and session."""

    process: subprocess.Popen
    mark: str

    def family(self) -> list[psutil.Process]:
        """The process and all of its descendants, including orphans."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [one for one in self.family() if any("popen_loky" in word for word in _words(one))]

    def kill(self, tree: bool) -> None:
        """Send `kill -9` to the process alone, or also to its descendants."""
        for one in self.family() if tree else []:
            if one.pid != self.process.pid:
                one.kill()
        self.process.kill()
        self.process.wait()

    def left(self) -> list[str]:
        """Command lines of the processes that remain after a while."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.family():
            time.sleep(0.05)
        return [" ".join(_words(one))[-80:] for one in self.family()]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def start(*arguments: object, limit: int | None = None, plain: bool = False) -> Started:
    """Start a command; `limit` is the largest size of a file in bytes that it can write; with `plain`, permissions also apply to root."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores this signal
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # exceeding the file size limit then raises an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if plain:
            as_anyone()

    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*PNET, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        start_new_session=True,
        env=os.environ | {MARK: mark},
    )
    return Started(process, mark)


def as_anyone() -> None:
    """Drop root's right to bypass file permissions, for programs started from here on."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def finish(started: Started) -> tuple[int, list[str]]:
    """Return the exit code and the lines printed besides the progress bar."""
    out, err = started.process.communicate(timeout=900)
    lines = [line for line in re.split(r"[\r\n]", out + err) if line.strip() and not re.search(r"scan/s|s/scan|\?scan", line)]
    return started.process.returncode, lines


def run(*arguments: object, **options) -> tuple[int, list[str]]:
    return finish(start(*arguments, **options))


def wait_for(started: Started, there: Callable[[], object]) -> None:
    """Wait until a condition holds or the command has ended."""
    while started.process.poll() is None and not there():
        time.sleep(0.02)


def results(folder: Path) -> int:
    """Count the complete results."""
    return len(list(folder.rglob("*_dseg.tsv")))


def content(folder: Path) -> dict[str, bytes]:
    """Read every file of a result, without the run times."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data, name = file.read_bytes(), str(file.relative_to(folder))
        if name.endswith((".lock", ".claim")) or "submissions/" in name:
            continue
        if name == "status.tsv":
            table = pd.read_csv(file, sep="\t", dtype=str)
            data = table.drop(columns=["seconds", "stages"], errors="ignore").to_csv().encode()
        elif name.endswith(".json"):
            about = json.loads(data)
            for key in ("seconds", "stages", "files", "digest"):
                about.pop(key, None)
            data = json.dumps(about, sort_keys=True).encode()
        found[name] = data
    return found


def differences(one: Path, other: Path) -> list[str]:
    """List files that differ or exist in only one folder, and scans of the second that are not done or do not match their files."""
    a, b = content(one), content(other)
    wrong = [f"{state.scan} is {state.state}: {state.reason}" for state in overview(other, verify=True) if state.state != "done"]
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)) + wrong


def rows_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return status and error of each participant."""
    file = folder / "status.tsv"
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False) if file.exists() else pd.DataFrame()
    return {row["subject"]: (row["status"], row["error"]) for row in table.to_dict("records")}


def one_line(said: list[str]) -> bool:
    return not any("Traceback" in line for line in said)


class Attack:
    """Counts of one kind of attack: attempts, passed, refused with a proper error, and failures."""

    def __init__(self, name: str):
        self.name, self.tried, self.held, self.refused, self.defects, self.skipped = name, 0, 0, 0, [], []

    def __call__(self, case: str, ok: bool, *, refused: bool = False, said: object = "") -> None:
        self.tried += 1
        if not ok:
            self.defects.append(f"{case}: {said}")
        elif refused:
            self.refused += 1
        else:
            self.held += 1
        print(f"{self.name:12} {case:48} {'ok' if ok else 'DEFECT'} {str(said)[:200]}", flush=True)

    def skip(self, case: str, why: str) -> None:
        self.skipped.append(f"{case}: {why}")
        print(f"{self.name:12} {case:48} skipped: {why}", flush=True)

    def same(self, case: str, place: Place, out: Path, *more: object) -> None:
        """Check that `--resume` turns the folder into the result of an undisturbed run."""
        code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, "--resume", *more)
        differ = differences(place.clean, out)
        self(case, code == 0 and not differ and one_line(said), said=(code, differ[:3]) if code or differ else "")
