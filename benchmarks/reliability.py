"""Behaviour of a run with killed processes, full disks, damaged files and invalid inputs.

A small synthetic cohort (6 participants, 8 mm, 4 min, fMRIPrep names) is processed by `pnet construct --workers 2` in separate processes;
its undisturbed result is computed without worker processes. Attacks on processes, disk and inputs are in `faults.py`, those on written
files in `damage.py`, and invalid inputs in `spoilt.py`; this program contains those on the inputs and calls of a run:

- together: two runs of the same cohort, and one process per participant, in one folder at the same time;
- changed: inputs, sidecars and results that change after a run: `--resume` must construct exactly these scans again;
- bad input: one invalid participant among three: the other two must be done, and the row must name the file in one line;
- labels: participants named `../../evil` and similar: nothing may be written outside OUT.

`--fuzz FILE` adds the counts of `make fuzz`. The table is written to `--page`. With `--only`, the other results in `--out` are kept.

    python benchmarks/reliability.py --out benchmarks/results/reliability.json --page docs/reliability.md
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import damage
import faults
import pandas as pd
from attack import EDGES, OPTIONS, Attack, Place, differences, finish, one_line, rows_of, run, start, wait_for
from common import parser, write
from spoilt import BAD, flip, other_confounds, write_participant


def together(attack: Attack, place: Place) -> None:
    cohort, clean, work = place.cohort, place.clean, place.work
    out = work / "twice"
    both = [start("construct", cohort, out, *OPTIONS, *EDGES) for _ in range(2)]
    codes = [finish(started)[0] for started in both]
    differ = differences(clean, out)
    attack("two runs of one cohort", codes == [0, 0] and not differ, said=(codes, differ[:3]))
    out, plain = work / "each", work / "plain"
    run("construct", cohort, plain, *OPTIONS)
    each = [start("construct", cohort, out, *OPTIONS, "--participant-label", f"0{n}") for n in range(1, 7)]
    codes = [finish(started)[0] for started in each]
    differ = differences(plain, out)
    attack("a process for each participant", codes == [0] * 6 and not differ, said=(codes, differ[:3]))


def changed(attack: Attack, place: Place) -> None:
    source, out = place.work / "changing", place.work / "changed"
    shutil.copytree(place.cohort, source)
    func = source / "sub-02" / "func"
    bold = next(func.glob("*bold.nii.gz"))

    def first(pattern: str) -> Path:
        return next(path for path in sorted(out.rglob(pattern)) if "sub-02" in path.name)

    changes: dict[str, tuple[int, Callable[[], object], list[str]]] = {
        "nothing": (0, lambda: None, []),
        "the recording": (1, lambda: write_participant(source, "02", 77), []),
        "the mask": (1, lambda: os.utime(next(func.glob("*mask.nii.gz"))), []),
        "the confounds": (1, lambda: other_confounds(func), []),
        "the sidecar": (1, lambda: bold.with_name(bold.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 2.1}'), []),
        "a table that is missing": (1, lambda: first("*pearson*relmat.tsv").unlink(), []),
        "a table that was cut": (1, lambda: os.truncate(first("*pearson*relmat.tsv"), 1000), []),
        "an image with one other byte": (1, lambda: flip(first("*_dseg.nii.gz")), []),
        "another low-pass": (6, lambda: None, ["--cleaning.low-pass", "0.08"]),
        "another atlas size": (6, lambda: None, ["--parcels", "200"]),
    }
    run("construct", source, out, *OPTIONS)
    for name, (expected, change, more) in changes.items():
        before = {file: file.stat().st_mtime_ns for file in out.rglob("*_dseg.tsv")}
        change()
        code, _ = run("construct", source, out, *OPTIONS, *more, "--resume")
        made = sum(before.get(file) != file.stat().st_mtime_ns for file in out.rglob("*_dseg.tsv"))
        attack(name, code == 0 and made == expected, said=f"{made} of {expected} made again")
        if more:
            shutil.rmtree(out)
            run("construct", source, out, *OPTIONS)


def bad_input(attack: Attack, place: Place) -> None:
    for name, (expected, spoil) in BAD.items():
        source, out = place.work / "bad", place.work / "bad-out"
        for folder in (source, out):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        for subject in ("01", "02", "03"):
            shutil.copytree(place.cohort / f"sub-{subject}", source / f"sub-{subject}")
        spoil(next((source / "sub-02" / "func").glob("*bold.nii.gz")))
        _, said = run("construct", source, out, *OPTIONS)
        rows = rows_of(out)
        status, error = rows.get("02", ("", said[-1:]))
        right = status in (("ok", "failed") if expected == "either" else (expected,)) and (status == "ok" or "sub-02" in error)
        others = all(rows.get(who, ("",))[0] == "ok" for who in ("01", "03"))
        attack(name, others and right and one_line(said), refused=status == "failed", said=f"{status} {error}")


LABELS = (
    "../../x",
    "../../../evil",
    "x/../../evil",
    "<script>alert(1)</script>",
    "a b",
    "..",
    "/etc/x",
    "é漢",
    "L" * 300,
    "-rf",
    "$(touch z)",
)


def labels(attack: Attack, place: Place) -> None:
    work = place.work
    bold = next((place.cohort / "sub-01" / "func").glob("*bold.nii.gz"))
    box = work / "box"
    out = box / "deep" / "out"
    for number, label in enumerate(LABELS):
        box.mkdir(exist_ok=True)
        listing = box / f"list{number}.tsv"
        pd.DataFrame({"bold": [bold], "subject": [label], "session": [label]}).to_csv(listing, sep="\t", index=False)
        before = {path for path in work.rglob("*") if not path.is_relative_to(out)}
        code, said = run("construct", listing, out, *OPTIONS)
        outside = {path for path in work.rglob("*") if not path.is_relative_to(out)} - before - {box / "deep"}
        attack(
            repr(label[:24]),
            code in (0, 1) and not outside and one_line(said),
            said=sorted(outside) or said[-1],
        )
    page = out / "index.html"
    run("report", out)
    attack(
        "pages hold no tag of a label", page.exists() and "<script>alert" not in "".join(file.read_text() for file in out.glob("*.html"))
    )


def main() -> int:
    options = parser(__doc__, data=False)
    options.add_argument("--kills", type=int, default=20, help="of the process alone, and as many of the whole process tree")
    options.add_argument("--only", nargs="+", help="these attacks alone")
    options.add_argument("--fuzz", type=Path, help="folder with the counts that `make fuzz` wrote")
    options.add_argument("--page", type=Path, help="write the table into this page")
    args = options.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        attacks = carry_out(Path(folder), args.only, args.kills)
    figures = earlier(args.out) if args.only else {}
    figures |= {
        one.name: {"tried": one.tried, "held": one.held, "refused": one.refused, "defects": one.defects, "skipped": one.skipped}
        for one in attacks
    }
    if args.fuzz:
        counts = [json.loads(file.read_text()) for file in sorted(args.fuzz.glob("*.json"))]
        held, refused = (sum(one.get(key, 0) for one in counts) for key in ("held", "refused"))
        figures["fuzz"] = {"tried": held + refused, "held": held, "refused": refused, "defects": [], "skipped": []}
    figures = {name: figures[name] for name in MEANING if name in figures}
    write(args, figures)
    if args.page:
        args.page.write_text(page_of(figures), "utf-8")
    return int(any(one.defects for one in attacks))


def carry_out(work: Path, only: list[str] | None, kills: int) -> list[Attack]:
    """Run all or some attacks on a new cohort."""
    cohort, clean = work / "cohort", work / "clean"
    for number in range(1, 7):
        write_participant(cohort, f"0{number}", number)
    options = [*OPTIONS, *EDGES]
    options[options.index("--workers") + 1] = "0"
    code, said = run("construct", cohort, clean, *options)
    assert code == 0, said
    started = start("construct", cohort, work / "timed", *OPTIONS, *EDGES)
    wait_for(started, (work / "timed").exists)
    begun = time.perf_counter()
    code, said = finish(started)
    place = Place(cohort, clean, work, time.perf_counter() - begun)
    every: dict[str, Callable[[Attack], None]] = {
        "workers": lambda attack: attack("no byte depends on them", code == 0 and not differences(clean, work / "timed"), said=said),
        "kill": lambda attack: faults.killed(attack, place, kills),
        "worker": lambda attack: faults.worker_killed(attack, place),
        "stop": lambda attack: faults.stopped(attack, place),
        "part": lambda attack: faults.shard_killed(attack, place),
        "dask": lambda attack: faults.dask_killed(attack, place),
        "together": lambda attack: together(attack, place),
        "full disk": lambda attack: faults.full_disk(attack, place),
        "read-only": lambda attack: faults.read_only(attack, place),
        "flipped": lambda attack: damage.flipped(attack, place),
        "memory": lambda attack: faults.too_large(attack, place),
        "clock": lambda attack: faults.clock(attack, place),
        "moving": lambda attack: faults.input_changed(attack, place),
        "changed": lambda attack: changed(attack, place),
        "bad input": lambda attack: bad_input(attack, place),
        "many": lambda attack: faults.many(attack, place),
        "labels": lambda attack: labels(attack, place),
    }
    attacks = []
    for name, attempt in every.items():
        if only is None or name in only:
            attacks.append(Attack(name))
            attempt(attacks[-1])
    return attacks


def earlier(file: Path | None) -> dict:
    """Read the results of an earlier run."""
    return json.loads(file.read_text())["figures"] if file and file.exists() else {}


MEANING = {
    "workers": "`--workers 2` and `--workers 0`: every file compared, times apart",
    "kill": "`kill -9` at a random moment, of the process or its whole tree; then `--resume`: files as of an undisturbed run, times apart",
    "worker": "`kill -9` of one worker process, of two, of one again and again: scans done, or failed by name; then `--resume` as above",
    "stop": "SIGTERM, SIGINT, SIGHUP to the process or its group: message, exit code, no process left after 5 s; then `--resume` as above",
    "part": "`kill -9` of one of four parts (`--shard`), then that part again: as above",
    "dask": "`kill -9` of a Dask worker: the run completes as above",
    "together": "Two runs in one folder at once; one process for each participant",
    "full disk": "Files that cannot be written to their end, a full file system, then `--resume` as above",
    "read-only": "OUT, or a participant's folder in it, that may not be written",
    "flipped": "A flipped bit in a record, list of scans, result, cohort store, model or group model: refused by name, or the same numbers",
    "memory": "A recording that takes ten times the memory: refused with its estimate, the others are done; then `--resume` as above",
    "clock": "A clock put back from 2040, before or in the middle of a run: no result and no state depends on when it was written",
    "moving": "A recording that is deleted or replaced while a run goes on: the others are done; then `--resume` as above",
    "changed": "Inputs, sidecars, settings or results that changed: `--resume` makes these scans again and no others",
    "bad input": "One spoilt participant among three: the others are done, the row names the file",
    "many": "Fifty participants of whom five are broken: 45 networks; mended and tried again as the closing line says, as above",
    "labels": "Participants called `../../evil` and the like: nothing outside OUT, no tag in a page",
    "fuzz": "Spoilt files of every format (`make fuzz`): read, or refused by name, in one line, within 5 s of processor time and 2 GiB",
}


def page_of(figures: dict) -> str:
    lines = [
        "# Reliability",
        "",
        "What was tried to break a run, made by `make fuzz` and",
        "`python benchmarks/reliability.py --fuzz build/fuzz --out benchmarks/results/reliability.json --page docs/reliability.md`.",
        "*Held*: the result is that of an undisturbed run. *Refused*: the scan failed, or the command ended, with one line that",
        "names the file; the other scans were done.",
        "",
        "| attack | cases | held | refused | defects |",
        "|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        lines.append(f"| {MEANING[name]} | {found['tried']} | {found['held']} | {found['refused']} | {len(found['defects'])} |")
    defects = [f"- {name}: {text}" for name, found in figures.items() for text in found["defects"]]
    skipped = [f"- {name}: {text}" for name, found in figures.items() for text in found.get("skipped", ())]
    left_out = ["Left out, because the machine did not allow it:", "", *skipped, ""] if skipped else []
    missing = [f"- {text}" for name, text in MEANING.items() if name not in figures]
    not_tried = ["Not tried on this version yet:", "", *missing, ""] if missing else []
    return "\n".join([*lines, "", *left_out, *not_tried, *(["Open:", "", *defects] if defects else ["No defect is open."]), ""])


if __name__ == "__main__":
    sys.exit(main())
