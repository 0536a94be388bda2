"""What happens to a run that is killed, a disk that is full, a file that is damaged, and inputs that are not what they should be.

A small synthetic cohort (8 mm, 4 min, fMRIPrep's names) goes through `pnet construct` in processes of its own:

- kill: `kill -9` at random moments, then `--resume`: every file is compared with that of an undisturbed run, times apart;
- stop: SIGTERM and SIGINT: exit code, message, then `--resume` as above;
- together: two runs of the same cohort, and one process for each participant, in one folder at once;
- full disk: a file-size limit of the process stands in for it, then `--resume`;
- changed: inputs, sidecars and results that changed after a run: does `--resume` make exactly these scans again?
- bad input: one spoilt participant among three: the other two must be done, and the row must name the file in one line;
- labels: participants called `../../evil` and the like: nothing may be written outside OUT.

`--fuzz FILE` adds the counts of `make fuzz`. The table goes to `--page`.

    python benchmarks/reliability.py --out benchmarks/results/reliability.json --page docs/reliability.md
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from common import parser, write
from spoilt import BAD, flip, other_confounds, write_participant

PNET = [sys.executable, "-c", "import sys; from pnet_jax.cli import main; sys.exit(main())"]
OPTIONS = ["--parcels", "100", "--report", "false", "--cleaning.motion", "basic"]


def start(*arguments: object, limit: int | None = None) -> subprocess.Popen:
    """A command in a process of its own."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have ignored
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is then an error and not the end
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [*PNET, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before)


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Exit code, and lines that were said beside the progress bar."""
    out, err = process.communicate(timeout=600)
    lines = [line for line in re.split(r"[\r\n]", out + err) if line.strip() and not re.search(r"scan/s|s/scan|\?scan", line)]
    return process.returncode, lines


def run(*arguments: object, **options) -> tuple[int, list[str]]:
    return finish(start(*arguments, **options))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a result, what a run took in seconds left out."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data, name = file.read_bytes(), str(file.relative_to(folder))
        if name.endswith((".lock", ".claim")):
            continue
        if name == "status.tsv":
            table = pd.read_csv(file, sep="\t", dtype=str)
            data = table.drop(columns=["seconds", "stages"], errors="ignore").to_csv().encode()
        elif name.endswith(".json"):
            about = json.loads(data)
            for key in ("seconds", "stages", "files"):
                about.pop(key, None)
            data = json.dumps(about, sort_keys=True).encode()
        found[name] = data
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Files that only one folder has, or that differ."""
    a, b = content(one), content(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


class Attack:
    """Counts of one kind of attack: tried, held, refused in good order, and what went wrong."""

    def __init__(self, name: str):
        self.name, self.tried, self.held, self.refused, self.defects = name, 0, 0, 0, []

    def __call__(self, case: str, ok: bool, *, refused: bool = False, said: object = "") -> None:
        self.tried += 1
        if not ok:
            self.defects.append(f"{case}: {said}")
        elif refused:
            self.refused += 1
        else:
            self.held += 1
        print(f"{self.name:12} {case:44} {'ok' if ok else 'DEFECT'} {str(said)[:160]}", flush=True)


def killed(attack: Attack, cohort: Path, clean: Path, work: Path, kills: int) -> None:
    for number in range(kills):
        out = work / f"killed{number}"
        process = start("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent")
        while process.poll() is None and not out.exists():
            time.sleep(0.02)
        moment = random.uniform(0, 4)
        time.sleep(moment)
        process.kill()
        process.communicate()
        done = len(list(out.rglob("*_dseg.tsv")))
        code, _ = run("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent", "--resume")
        differ = differences(clean, out)
        attack(f"{moment:.1f} s after the start, {done} results", code == 0 and not differ, said=differ)
        shutil.rmtree(out)


def stopped(attack: Attack, cohort: Path, clean: Path, work: Path) -> None:
    for sent, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        out = work / sent.name
        process = start("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent")
        while process.poll() is None and len(list(out.rglob("*_dseg.tsv"))) < 2:
            time.sleep(0.05)
        process.send_signal(sent)
        code, said = finish(process)
        attack(sent.name, code == expected and any("stopped by" in line for line in said), said=(code, said[-1:]))
        code, said = run("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent", "--resume")
        differ = differences(clean, out)
        attack(f"{sent.name}, then --resume", code == 0 and not differ, said=differ)


def together(attack: Attack, cohort: Path, clean: Path, work: Path) -> None:
    out = work / "twice"
    both = [start("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent") for _ in range(2)]
    codes = [finish(process)[0] for process in both]
    attack("two runs of one cohort", codes == [0, 0] and not differences(clean, out), said=(codes, differences(clean, out)))
    out, plain = work / "each", work / "plain"
    run("construct", cohort, plain, *OPTIONS)
    each = [start("construct", cohort, out, *OPTIONS, "--participant-label", f"0{n}") for n in range(1, 5)]
    codes = [finish(process)[0] for process in each]
    attack("a process for each participant", codes == [0] * 4 and not differences(plain, out), said=(codes, differences(plain, out)))


def full_disk(attack: Attack, cohort: Path, clean: Path, work: Path) -> None:
    for limit in (2_000, 30_000):
        out = work / f"full{limit}"
        code, said = run("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent", limit=limit)
        half = [file.name for file in out.rglob(".????????-*")]
        attack(
            f"no file above {limit} bytes",
            code == 1 and not half and any("File too large" in line for line in said),
            refused=True,
            said=said[-1:],
        )
        code, said = run("construct", cohort, out, *OPTIONS, "--edges", "pearson,tangent", "--resume")
        attack("  and --resume without the limit", code == 0 and not differences(clean, out), said=differences(clean, out))


def changed(attack: Attack, cohort: Path, work: Path) -> None:
    source, out = work / "changing", work / "changed"
    shutil.copytree(cohort, source)
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
        "another low-pass": (4, lambda: None, ["--cleaning.low_pass", "0.08"]),
        "another atlas size": (4, lambda: None, ["--parcels", "200"]),
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


def bad_input(attack: Attack, cohort: Path, work: Path) -> None:
    for name, (expected, spoil) in BAD.items():
        source, out = work / "bad", work / "bad-out"
        for folder in (source, out):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        for subject in ("01", "02", "03"):
            shutil.copytree(cohort / f"sub-{subject}", source / f"sub-{subject}")
        bold = next((source / "sub-02" / "func").glob("*bold.nii.gz"))
        spoil(bold)
        _, said = run("construct", source, out, *OPTIONS)
        table = (
            pd.read_csv(out / "status.tsv", sep="\t", dtype=str).set_index("subject") if (out / "status.tsv").exists() else pd.DataFrame()
        )
        rows = table["status"].to_dict() if len(table) else {}
        named = rows.get("02") == "ok" or ("sub-02" in str(table["error"].get("02", "")) if len(table) else False)
        right = rows.get("02") in (("ok", "failed") if expected == "either" else (expected,))
        others = rows.get("01") == rows.get("03") == "ok"
        traced = any("Traceback" in line for line in said)
        message = str(table["error"].get("02", "")) if len(table) else said[-1:]
        attack(name, others and right and named and not traced, refused=rows.get("02") == "failed", said=f"{rows} {message}")


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


def labels(attack: Attack, cohort: Path, work: Path) -> None:
    bold = next((cohort / "sub-01" / "func").glob("*bold.nii.gz"))
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
            code in (0, 1) and not outside and not any("Traceback" in line for line in said),
            said=sorted(outside) or said[-1],
        )
    page = out / "index.html"
    run("report", out)
    attack(
        "pages hold no tag of a label", page.exists() and "<script>alert" not in "".join(file.read_text() for file in out.glob("*.html"))
    )


def main() -> int:
    options = parser(__doc__, data=False)
    options.add_argument("--kills", type=int, default=12)
    options.add_argument("--only", nargs="+", help="these attacks alone")
    options.add_argument("--fuzz", type=Path, help="folder with the counts that `make fuzz` wrote")
    options.add_argument("--page", type=Path, help="write the table into this page")
    args = options.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        cohort, clean = work / "cohort", work / "clean"
        for number in range(1, 5):
            write_participant(cohort, f"0{number}", number)
        code, said = run("construct", cohort, clean, *OPTIONS, "--edges", "pearson,tangent")
        assert code == 0, said
        every: dict[str, Callable[[Attack], None]] = {
            "kill": lambda attack: killed(attack, cohort, clean, work, args.kills),
            "stop": lambda attack: stopped(attack, cohort, clean, work),
            "together": lambda attack: together(attack, cohort, clean, work),
            "full disk": lambda attack: full_disk(attack, cohort, clean, work),
            "changed": lambda attack: changed(attack, cohort, work),
            "bad input": lambda attack: bad_input(attack, cohort, work),
            "labels": lambda attack: labels(attack, cohort, work),
        }
        attacks = []
        for name, carry_out in every.items():
            if args.only is None or name in args.only:
                attacks.append(Attack(name))
                carry_out(attacks[-1])
    figures = {one.name: {"tried": one.tried, "held": one.held, "refused": one.refused, "defects": one.defects} for one in attacks}
    if args.fuzz:
        counts = [json.loads(file.read_text()) for file in sorted(args.fuzz.glob("*.json"))]
        held, refused = (sum(one.get(key, 0) for one in counts) for key in ("held", "refused"))
        figures["fuzz"] = {"tried": held + refused, "held": held, "refused": refused, "defects": []}
    write(args, figures)
    if args.page:
        args.page.write_text(page_of(figures), "utf-8")
    return int(any(one.defects for one in attacks))


MEANING = {
    "kill": "`kill -9` at a random moment of a run, then `--resume`: every file compared with an undisturbed run, times apart",
    "stop": "SIGTERM, SIGINT and SIGHUP: message and exit code, then `--resume` as above",
    "together": "Two runs in one folder at once; one process for each participant",
    "full disk": "Files that cannot be written to their end, then `--resume`",
    "changed": "Inputs, sidecars, settings or results that changed: `--resume` makes these scans again and no others",
    "bad input": "One spoilt participant among three: the others are done, the row names the file",
    "labels": "Participants called `../../evil` and the like: nothing outside OUT, no tag in a page",
    "fuzz": "Spoilt files of every format (`make fuzz`): read, or refused by name, in one line, within 5 s and 2 GiB",
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
    return "\n".join([*lines, "", *(["Open:", "", *defects] if defects else ["No defect is open."]), ""])


if __name__ == "__main__":
    sys.exit(main())
