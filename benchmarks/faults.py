"""Attacks of `reliability.py` on the processes of a run, on its disk and on the files it reads during the run."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from attack import EDGES, OPTIONS, Attack, Place, Started, as_anyone, differences, finish, one_line, results, rows_of, run, start, wait_for
from spoilt import BAD, write_large, write_participant

from pnet_jax.batch.run import Shard
from pnet_jax.execution import all_memory
from pnet_jax.ingest import find_scans
from pnet_jax.outputs.overview import overview


def begun(place: Place, out: Path, *more: object) -> Started:
    """Start a run and wait until it has created its folder."""
    started = start("construct", place.cohort, out, *OPTIONS, *EDGES, *more)
    wait_for(started, out.exists)
    return started


def _working(started: Started, out: Path, after: int) -> bool:
    """Whether there are worker processes and at least this number of results."""
    return results(out) >= after and bool(started.workers())


def _claimed(out: Path, after: int) -> bool:
    """Whether a scan is in progress after this number of results; −1 omits the condition."""
    return after < 0 or (results(out) >= after and any((out / ".pnet").glob("*.claim")))


def _holders(out: Path) -> set[int]:
    """Processes that are working on a scan."""
    found = set()
    for file in (out / ".pnet").glob("*.claim"):
        with contextlib.suppress(OSError):  # released in the meantime
            found |= {int(number) for number in re.findall(r"process (\d+)", file.read_text())}
    return found


def _held(out: Path, after: int) -> bool:
    """Whether a scan is claimed by a running process after this number of results."""
    return results(out) >= after and bool(_holders(out))


def killed(attack: Attack, place: Place, kills: int) -> None:
    """Kill at random moments: the process alone, whose orphans exist when the next run begins, or all processes at once."""
    for tree in (False, True):
        for number in range(kills):
            out = place.work / f"killed{number}"
            started = begun(place, out)
            after, pause = random.randrange(7), random.uniform(0, place.seconds / 6)
            wait_for(started, lambda out=out, after=after: results(out) >= after)
            time.sleep(pause)
            over = started.process.poll() is not None
            started.kill(tree)
            again = start("construct", place.cohort, out, *OPTIONS, *EDGES, "--resume")
            left = started.left()
            code, said = finish(again)
            differ = differences(place.clean, out)
            what = f"{'all' if tree else 'main'}, {after} results and {pause:.1f} s{', over' if over else ''}"
            attack(
                what,
                code == 0 and not differ and not left and one_line(said),
                said=(code, differ[:3], left) if code or differ or left else "",
            )
            shutil.rmtree(out)


def worker_killed(attack: Attack, place: Place) -> None:
    for number, after in enumerate((0, 0, 1, 2, 3, 4)):
        out = place.work / f"worker{number}"
        started = begun(place, out)
        wait_for(started, functools.partial(_working, started, out, after))
        time.sleep(random.uniform(0, 1))
        victims = started.workers()
        for one in victims[: 1 + number % 2]:
            one.kill()
        _lost(attack, f"after {after} results, {1 + number % 2} of {len(victims)}", started, out)
        attack.same("  and --resume", place, out)
    out = place.work / "worker-often"
    started = begun(place, out)
    while started.process.poll() is None and place.seconds:
        time.sleep(1.5)
        for one in started.workers()[:1]:
            one.kill()
        if results(out) > 2 or len(rows_of(out)) == 6:
            break
    _lost(attack, "one every 1.5 s", started, out)
    attack.same("  and --resume", place, out)


def _lost(attack: Attack, case: str, started: Started, out: Path) -> None:
    """A run whose workers are killed must end with a row for each participant and name the failed scans."""
    code, said = finish(started)
    rows = rows_of(out)
    named = all(status == "ok" or f"sub-{who}" in error for who, (status, error) in rows.items())
    failed = sum(status != "ok" for status, _ in rows.values())
    right = one_line(said) and named and len(rows) == 6 and code == int(failed > 0)
    attack(case, right, refused=failed > 0, said=f"{failed} failed" if right else said)


def stopped(attack: Attack, place: Place) -> None:
    for sent, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        for group in (False, True):
            for after in (0, 2):
                out = place.work / f"{sent.name}{group}{after}"
                started = begun(place, out)
                wait_for(started, functools.partial(_working, started, out, after))
                time.sleep(random.uniform(0, 0.5))
                (os.killpg if group else os.kill)(started.process.pid, sent)
                code, said = finish(started)
                left = started.left()
                right = code == expected and one_line(said) and any("stopped by" in line for line in said) and not left
                whom = "the process group" if group else "the process"
                attack(f"{sent.name} to {whom} after {after} results", right, said=(code, left, said[-2:]))
                attack.same("  and --resume", place, out)
                shutil.rmtree(out)


def shard_killed(attack: Attack, place: Place) -> None:
    """Kill one of four parts and repeat it; a last call computes the cohort measures."""
    out, sources = place.work / "parts", find_scans(place.cohort)
    counts = [sum(Shard(number, 4).has(one) for one in sources) for number in range(1, 5)]
    most = 1 + counts.index(max(counts))
    parts = {number: start("construct", place.cohort, out, *OPTIONS, *EDGES, "--shard", f"{number}/4") for number in range(1, 5)}
    wait_for(parts[most], functools.partial(_claimed, out, 0))
    time.sleep(random.uniform(0, 1))
    parts[most].kill(tree=True)
    codes = {number: finish(started)[0] for number, started in parts.items()}
    attack(f"part {most} of 4", all(code == 0 for number, code in codes.items() if number != most), said=codes)
    code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, "--shard", f"{most}/4", "--resume")
    attack("  that part again", code == 0 and one_line(said), said=said[-1:])
    attack.same("  and --resume without a part", place, out)


def dask_killed(attack: Attack, place: Place) -> None:
    try:
        import distributed  # noqa: F401
    except ImportError:
        attack.skip("a Dask worker", "Dask is not installed")
        return
    for after in (0, 2):
        out = place.work / f"dask{after}"
        started = begun(place, out, "--cluster", "local", "--jobs", "2")
        wait_for(started, functools.partial(_held, out, after))
        holders = _holders(out)
        for pid in holders - {started.process.pid}:
            os.kill(pid, signal.SIGKILL)
        code, said = finish(started)
        differ = differences(place.clean, out)
        attack(f"a Dask worker after {after} results", code == 0 and not differ and bool(holders), said=(code, differ[:3], said[-1:]))


def full_disk(attack: Attack, place: Place) -> None:
    for limit in (2_000, 30_000):
        out = place.work / f"full{limit}"
        code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, limit=limit)
        half = [file.name for file in out.rglob(".????????-*")]
        right = code == 1 and not half and one_line(said) and any("File too large" in line for line in said)
        attack(f"no file above {limit} bytes", right, refused=True, said=said[-1:])
        attack.same("  and --resume without the limit", place, out)
    out = place.work / "small"
    out.mkdir()
    for size in ("300k", "1500k"):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)], capture_output=True).returncode:
            attack.skip("a file system that is full", "no file system can be mounted here")
            return
        try:
            code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES)
            right = code == 1 and one_line(said) and any("No space left on device" in line and "--resume" in line for line in said)
            attack(f"a file system of {size}B", right, refused=True, said=said[-1:])
            subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
            attack.same("  and --resume with more room", place, out)
        finally:
            subprocess.run(["umount", str(out)], check=True)


def input_changed(attack: Attack, place: Place) -> None:
    """Delete or replace a recording at three moments of a run."""
    for what in ("deleted", "replaced"):
        for after in (-1, 0, 2):
            source, out = place.work / "moving", place.work / "moved"
            for folder in (source, out):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(place.cohort, source)
            bold, other = (next((source / f"sub-0{number}" / "func").glob("*bold.nii.gz")) for number in (6, 1))
            aside = bold.with_name("aside")
            started = begun(Place(source, out, place.work, place.seconds), out, "--wave", "1")
            wait_for(started, functools.partial(_claimed, out, after))
            bold.rename(aside)
            if what == "replaced":
                shutil.copy(other, bold)
            code, said = finish(started)
            rows, states = rows_of(out), {one.subject: one for one in overview(out, verify=True)}
            others = all(rows[f"0{n}"][0] == "ok" and states[f"0{n}"].state == "done" for n in range(1, 6))
            status, error = rows["06"]
            if status == "ok":  # result of the original or of the new file
                right = code == 0 and states["06"].state == ("stale" if what == "deleted" else states["06"].state)
            else:
                right = code == 1 and "sub-06" in error
            attack(
                f"{what}, after {after} results",
                others and right and one_line(said),
                refused=status != "ok",
                said=f"{status} {error} {states['06'].state}",
            )
            aside.replace(bold)  # with its original modification time
            code, _ = run("construct", source, out, *OPTIONS, *EDGES, "--resume")
            differ = [name for name in differences(place.clean, out) if not name.endswith(".json") and name != "status.tsv"]
            attack("  and --resume with the first one", code == 0 and not differ, said=differ[:3])


def read_only(attack: Attack, place: Place) -> None:
    """Make OUT, or a participant's folder in it, read-only."""
    probe = place.work / "probe"
    probe.mkdir(mode=0o555)
    tried = [sys.executable, "-c", f"open({str(probe / 'file')!r}, 'w')"]
    if subprocess.run(tried, preexec_fn=as_anyone, capture_output=True).returncode == 0:
        attack.skip("OUT that is read-only", "permissions do not hold for this user")
        return
    out = shutil.copytree(place.clean, place.work / "locked")
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, "--resume", plain=True)
    attack("OUT", code == 1 and one_line(said) and str(out) in said[-1], refused=True, said=said[-1:])
    code, said = run("status", out, plain=True)
    attack("  whose status is read", code == 0 and said == ["6 scans: 6 done"], said=said[-1:])
    code, said = run("construct", place.cohort, place.work / "locked" / "deeper", *OPTIONS, plain=True)
    attack("the folder of OUT", code == 1 and one_line(said) and "deeper" in said[-1], refused=True, said=said[-1:])
    out = place.work / "partly"
    (out / "sub-02").mkdir(parents=True)
    (out / "sub-02").chmod(0o555)
    code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, plain=True)
    rows = rows_of(out)
    right = [rows[f"0{n}"][0] for n in range(1, 7)] == ["ok", "failed", "ok", "ok", "ok", "ok"] and "sub-02" in rows["02"][1]
    attack("a participant's folder", code == 1 and right and one_line(said), refused=True, said=rows.get("02"))
    (out / "sub-02").chmod(0o755)
    attack.same("  and --resume once it may be written", place, out)


def clock(attack: Attack, place: Place) -> None:
    """Set the dates of all files to 2040, as after a clock was set back."""
    out, late = shutil.copytree(place.clean, place.work / "late"), 2_208_988_800
    files = [path for path in out.rglob("*") if path.is_file()]
    for file in files:
        os.utime(file, (late, late))
    code, _ = run("construct", place.cohort, out, *OPTIONS, *EDGES, "--resume")
    again = [file.name for file in files if file.name.endswith("_dseg.tsv") and file.stat().st_mtime != late]
    attack("results of the future are up to date", code == 0 and not again and not differences(place.clean, out), said=again)
    code, _ = run("construct", place.cohort, out, *OPTIONS, *EDGES, "--seed", "1")
    states = [one.state for one in overview(out)]
    attack("other settings come after those of the future", code == 0 and states == ["done"] * 6, said=states)
    attack.same("  and the first ones again", place, out)
    out = place.work / "put-back"
    started = begun(place, out)
    wait_for(started, functools.partial(_claimed, out, 2))
    for file in [path for path in out.rglob("*") if path.is_file()]:
        with contextlib.suppress(FileNotFoundError):  # written or released in the meantime
            os.utime(file, (late, late))
    code, _ = finish(started)
    differ = differences(place.clean, out)
    attack("put back in the middle of a run", code == 0 and not differ, said=(code, differ[:3]))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*_dseg.tsv")}
    attack.same("  and --resume", place, out)
    again = [file.name for file, when in before.items() if file.stat().st_mtime_ns != when]
    attack("  which makes nothing again", not again, said=again)


def too_large(attack: Attack, place: Place) -> None:
    """Use a recording that needs ten times the memory of this machine, then the original one."""
    folder, aside, out = place.cohort / "sub-02", place.work / "aside", place.work / "large"
    folder.rename(aside)
    try:
        try:
            estimate = write_large(place.cohort, "02", 10 * all_memory())
        except OSError as error:
            attack.skip("a recording of ten times the memory", f"no such file can be made here ({error.strerror})")
            return
        for how, more in (("two workers", []), ("no worker", ["--workers", "0"])):
            code, said = run("construct", place.cohort, out, *OPTIONS, *EDGES, *more)
            rows = rows_of(out)
            status, error = rows.get("02", ("", ""))
            others = all(rows.get(f"0{n}", ("",))[0] == "ok" for n in (1, 3, 4, 5, 6))
            named = "sub-02" in error and f"reading it takes about {estimate / 2**30:.1f} GiB" in error
            right = code == 1 and status == "failed" and others and named and one_line(said)
            attack(f"ten times the memory, {how}", right, refused=True, said=f"{status} {error}")
            told = [line for line in said if "read and write" in line]
            held_up = not more and not any("; 2 worker processes" in line for line in told)
            attack("  which holds up no other", not held_up, said=told if held_up else "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    attack.same("  and --resume with the first one", place, out)


def many(attack: Attack, place: Place) -> None:
    """Fifty participants, of which five are broken in different ways; these are repaired and retried with the printed command."""
    source, out, clean = place.work / "fifty", place.work / "fifty-out", place.work / "fifty-clean"
    for number in range(1, 51):
        write_participant(source, f"{number:02d}", number)
    code, said = run("construct", source, clean, *OPTIONS, *EDGES)
    assert code == 0, said
    ways = dict(
        zip(
            ("07", "19", "23", "38", "50"),
            ("half a file", "a word in the confounds", "no affine", "an empty file", "one signal everywhere"),
            strict=True,
        )
    )
    kept = place.work / "kept"
    for who, way in ways.items():
        shutil.copytree(source / f"sub-{who}", kept / f"sub-{who}")
        BAD[way][1](next((source / f"sub-{who}" / "func").glob("*bold.nii.gz")))
    code, said = run("construct", source, out, *OPTIONS, *EDGES)
    rows = rows_of(out)
    bad = {who for who, (status, error) in rows.items() if status == "failed" and f"sub-{who}" in error}
    right = code == 1 and bad == set(ways) and sum(status == "ok" for status, _ in rows.values()) == 45 and results(out) == 45
    attack("50 scans, 5 broken", right and one_line(said), refused=True, said=sorted(bad))
    line = next((line for line in said if "--retry-failed" in line), "")
    command = shlex.split(line.partition("pnet construct ")[2])
    attack("  the closing line says what to do", command == [str(source), str(out), *OPTIONS, *EDGES, "--retry-failed"], said=line)
    for who in ways:
        shutil.rmtree(source / f"sub-{who}")
        shutil.move(kept / f"sub-{who}", source / f"sub-{who}")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*_dseg.tsv")}
    code, said = run("construct", *command)
    made = sum(before.get(file) != file.stat().st_mtime_ns for file in out.rglob("*_dseg.tsv"))
    differ = differences(clean, out)
    attack("  and it does that", code == 0 and made == 5 and not differ, said=(code, made, differ[:3]))
