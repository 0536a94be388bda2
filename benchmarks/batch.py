"""`pnet construct` for many scans: scans per hour, memory as the cohort grows, and waiting times.

A cohort of `--subjects` scans (4 mm, 10 minutes, K = 200, simulated; `--distinct` recordings that are repeated under other labels) and
one of `--roi` tables of 200 regions are constructed by `pnet construct` in a separate process, with and without reports. The memory of the
process and its workers is sampled during the run. `--before FOLDER` names a checkout whose `pnet construct` is measured in the same way on
`--few` scans, so that both are compared within one run.

    python benchmarks/batch.py --subjects 1000 --roi 5000 --out benchmarks/results/batch.json
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from common import ROOT, parser, table, write

PNET = [sys.executable, "-c", "import sys; from pnet_jax.cli import main; sys.exit(main())"]
SAMPLE_SECONDS = 0.5
REGIONS, FRAMES = 200, 240
VARIANTS = {"derivatives": ("--no-report",), "with pages": ("--report",)}


def main() -> None:
    args = _arguments()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        voxels = simulated(Path(work), args.subjects, args.distinct)
        few = linked(Path(work) / "few", voxels, args.few)
        some = linked(Path(work) / "some", voxels, args.pages)
        for name, options in VARIANTS.items():
            folder, scans = (voxels, args.subjects) if name == "derivatives" else (some, args.pages)
            figures[name] = measured(ROOT, folder, Path(work) / "out", scans, *options)
            if args.before is not None:
                figures[f"{name}, before"] = measured(args.before, few, Path(work) / "out", args.few, *options)
        if args.roi:
            tables, centroids = roi_tables(Path(work) / "roi", args.roi)
            options = ("--roi-atlas", centroids, "--tr", "2.0", "--parcels", "100", "--no-report")
            figures["200 regions"] = measured(ROOT, tables, Path(work) / "out", args.roi, *options)
    rows = [
        (name, f["scans"], f["per_hour"], f["seconds_each"], f["peak_gib_early"], f["peak_gib"], f["waited"]) for name, f in figures.items()
    ]
    table(("run", "scans", "per hour", "s per scan", "peak GiB, first 100", "peak GiB", "waited for"), rows)
    write(args, figures)


def simulated(work: Path, subjects: int, distinct: int) -> Path:
    """Make a derivatives folder of simulated scans; the same recordings are repeated under other labels."""
    source = work / "simulated"
    command = [*PNET, "simulate", source, "--subjects", min(distinct, subjects), "--sessions", 1, "--minutes", 10, "--seed", 3]
    subprocess.run([*map(str, command)], check=True, capture_output=True, env=environment(ROOT))
    return linked(work / "cohort", source, subjects)


def linked(folder: Path, source: Path, subjects: int) -> Path:
    """Make a folder with this many subjects, whose files are links to those of another folder."""
    own = sorted(path for path in source.glob("sub-*") if path.is_dir())
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_bytes((source / "dataset_description.json").read_bytes())
    for number in range(subjects):
        old = own[number % len(own)]
        label = f"sub-{number:05d}"
        for file in (one for one in old.rglob("*") if one.is_file()):
            new = folder / label / Path(str(file.relative_to(old)).replace(old.name, label))
            new.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, new)
    return folder


def roi_tables(folder: Path, subjects: int) -> tuple[Path, Path]:
    """Make a folder of ROI tables (signals of ten networks plus noise) and a table of the region centroids."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-60, -90, -40], [60, 60, 70], (REGIONS, 3))
    member = np.abs(xyz[:, None] - xyz[rng.choice(REGIONS, 10)]).sum(-1).argmin(1)
    centroids = folder.parent / "centroids.tsv"
    pd.DataFrame(xyz, columns=list("xyz")).assign(name=[f"r{k}" for k in range(REGIONS)]).to_csv(centroids, sep="\t", index=False)
    for number in range(subjects):
        walk = rng.normal(size=(FRAMES + 20, 10))
        smooth = np.stack([np.convolve(column, np.hanning(9), "same") for column in walk.T], 1)[10:-10]
        y = smooth[:, member] + rng.normal(size=(FRAMES, REGIONS))
        np.savetxt(
            folder / f"sub-{number:05d}_task-rest_timeseries.tsv",
            y,
            "%.4f",
            "\t",
            header="\t".join(f"r{k}" for k in range(REGIONS)),
            comments="",
        )
    return folder, centroids


def measured(code: Path, folder: Path, out: Path, scans: int, *options: object) -> dict[str, object]:
    """Run `pnet construct` of a checkout, and return its speed, memory and what it waited for."""
    subprocess.run(["rm", "-rf", str(out)], check=True)
    command = [*PNET, "construct", folder, out, *options]
    begun = time.perf_counter()
    log = out.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen([*map(str, command)], stderr=said, stdout=said, env=environment(code), cwd=out.parent)
        memory = []
        while process.poll() is None:
            memory.append((time.perf_counter() - begun, finished(out), resident(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    seconds, lines = time.perf_counter() - begun, log.read_text("utf-8", errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{lines[-3000:]}")
    first = next((at for at, done, _ in memory if done >= 1), 0.0)
    waited = re.search(r"waited for (.*) of the time", lines)
    found = {
        "scans": scans,
        "seconds": round(seconds, 1),
        "first_after": round(first, 1),
        "seconds_each": round((seconds - first) / max(scans - 1, 1), 3),  # without start-up, which is negligible for large cohorts
        "per_hour": round(3600 * scans / seconds),
        "peak_gib_early": round(max((used for _, done, used in memory if done <= 100), default=0) / 2**30, 2),
        "peak_gib": round(max(used for *_, used in memory) / 2**30, 2),
        "waited": waited[1] if waited else "",
        "load_average": os.getloadavg()[0],
    }
    print(options, found, flush=True)
    return found


def finished(out: Path) -> int:
    """Count the scans that a run has finished: records, or rows of the table that earlier versions wrote."""
    rows = (out / "status.tsv").read_bytes().count(b"\n") - 1 if (out / "status.tsv").is_file() else 0
    return max(len(list((out / ".pnet").glob("*.json"))), rows)


def resident(pid: int) -> int:
    """Return the memory of a process and its children in bytes; shared memory is counted once for each."""
    total = 0
    try:
        for one in (process := psutil.Process(pid), *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def environment(code: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(code)}


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--subjects", type=int, default=1000)
    arguments.add_argument("--distinct", type=int, default=20, help="number of simulated recordings")
    arguments.add_argument("--roi", type=int, default=5000, help="number of ROI tables; 0 leaves them out")
    arguments.add_argument("--pages", type=int, default=40, help="scans of the run with pages")
    arguments.add_argument("--before", type=Path, help="checkout of another version, measured for comparison")
    arguments.add_argument("--few", type=int, default=12, help="number of scans for the other version")
    arguments.add_argument("--work", type=Path, help="folder for the cohort and the results (100 GiB for 1,000 subjects)")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
