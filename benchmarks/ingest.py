"""Reading and cleaning one scan, compared with nilearn's NiftiMasker: seconds, peak memory, and agreement of the results.

A scan of 91 x 109 x 91 voxels and 300 frames (MNI, 2 mm; int16, gzip) is simulated in a temporary folder: a brain with as many voxels as
that of MNI, noise around it, 14 confounds. Each program detrends, band-passes (0.009 to 0.1 Hz), regresses out the confounds and
standardises the voxels of the same mask, in its own process; programs alternate over several repeats. Seconds are measured from the end of
the imports to the result in memory, as wall time and as CPU time (all threads). Peak memory is the resident peak of the process, imported
libraries included. Results are compared with those of the first program (`largest difference`), and one voxel in a hundred with nilearn's
cleaning in float64 (`largest error`).

`both halves` also cleans each half of the scan separately, which network construction requires and the masker does not do. `filter at
once` is the masker with the option that makes nilearn filter all voxels in one call instead of one by one: faster, but with more
memory.

    python benchmarks/ingest.py --out benchmarks/results/ingest.json
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import parser, table, write

TR, LOW_PASS, HIGH_PASS = 2.0, 0.1, 0.009
STEM = "sub-01_task-rest_space-MNI152NLin6Asym"
BOLD, MASK, CONFOUNDS = f"{STEM}_desc-preproc_bold.nii.gz", f"{STEM}_desc-brain_mask.nii.gz", "confounds.npy"
OURS, MASKER = "pnet_jax", "NiftiMasker"
CHUNK, APART = 4096, 100  # locations compared at a time; one in this many is also cleaned in float64


def main() -> None:
    args = _arguments()
    if args.run:
        RUNS[args.run](args)
        return
    with tempfile.TemporaryDirectory() as folder:
        for run in ("simulate", "exact"):
            _child(run, folder, args)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for repeat in range(args.repeats):
            for name in CONTENDERS:
                measured[name].append(_child(name, folder, args))
                print(repeat, name, measured[name][-1], flush=True)
        figures = {name: _summary(rows) for name, rows in measured.items()}
        for name in CONTENDERS:
            figures[name]["largest difference"] = _difference(Path(folder), OURS, name)
            figures[name]["largest error"] = _error(Path(folder), name)
    for row in figures.values():
        for what in ("seconds", "peak MiB"):
            row[f"{what} / {MASKER}"] = row[what] / figures[MASKER][what]
    columns = [column for column in figures[OURS] if not column.startswith("all ")]
    rows = [
        (name, *(f"{row[column]:.1e}" if column.startswith("largest") else row[column] for column in columns))
        for name, row in figures.items()
    ]
    table(("program", *columns), rows)
    write(args, figures)


def simulate(args) -> None:
    """Simulate a scan with drifts and slow fluctuations, its mask and confounds."""
    import nibabel as nib

    rng, shape = np.random.default_rng(0), tuple(args.grid)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-90, -126, -72]
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij"), -1)
    distance = np.linalg.norm(place / [0.80, 0.86, 0.82], axis=-1)
    brain, head = distance < 0.98, distance < 1.1  # 0.25 of the grid, like the MNI brain
    level = np.where(brain, 8000 + 2000 * np.sin(9 * place[..., 0]) * np.cos(7 * place[..., 1]), np.where(head, 1500, 40))
    noise = np.where(brain, 60, np.where(head, 30, 12))
    shared = np.cumsum(rng.normal(size=(args.frames, 3)), 0) * 4
    weights = [np.sin(3 * place[..., axis]) * brain for axis in range(3)]
    data = np.zeros((*shape, args.frames), np.int16, order="F")
    for t in range(args.frames):
        data[..., t] = level + sum(w * s for w, s in zip(weights, shared[t], strict=True)) + noise * rng.standard_normal(shape, np.float32)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((2, 2, 2, TR))
    nib.save(image, args.folder / BOLD)
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), affine), args.folder / MASK)
    np.save(args.folder / CONFOUNDS, np.hstack([shared, np.cumsum(rng.normal(size=(args.frames, 11)), 0)]))
    print(json.dumps({"voxels": int(brain.sum()), "compressed MB": (args.folder / BOLD).stat().st_size / 1e6}))


def exact(args) -> None:
    """Clean some voxels with nilearn in float64."""
    import nibabel as nib
    from nilearn.signal import clean

    inside = np.argwhere(np.asarray(nib.load(args.folder / MASK).dataobj) > 0)[::APART]
    y = np.asanyarray(nib.load(args.folder / BOLD).dataobj)[tuple(inside.T)].T.astype(np.float64)
    confounds = np.load(args.folder / CONFOUNDS)
    y = clean(y, t_r=TR, detrend=True, low_pass=LOW_PASS, high_pass=HIGH_PASS, confounds=confounds, standardize="zscore_sample").T
    np.save(args.folder / "exact.npy", y / y.std(1).mean())
    print(json.dumps({"voxels": len(y)}))


def ours(halves: bool) -> Callable[..., None]:
    def run(args) -> None:
        import nilearn.signal  # noqa: F401

        from pnet_jax.config import CleaningConfig
        from pnet_jax.ingest import load_scan

        cleaning = CleaningConfig(strategy=("motion",), low_pass=LOW_PASS, high_pass=HIGH_PASS, halves=halves)
        _measure(args, lambda: load_scan(args.folder / BOLD, confounds=np.load(args.folder / CONFOUNDS), cleaning=cleaning).y)

    return run


def masker(**options: object) -> Callable[..., None]:
    def run(args) -> None:
        import nilearn.signal  # noqa: F401
        from nilearn.maskers import NiftiMasker

        one = NiftiMasker(
            args.folder / MASK, standardize="zscore_sample", detrend=True, low_pass=LOW_PASS, high_pass=HIGH_PASS, t_r=TR, reports=False,
            clean_args=options,
        )  # fmt: skip
        _measure(args, lambda: one.fit_transform(args.folder / BOLD, confounds=np.load(args.folder / CONFOUNDS)).T)

    return run


CONTENDERS: dict[str, Callable[..., None]] = {
    OURS: ours(halves=False),
    f"{OURS}, both halves": ours(halves=True),
    MASKER: masker(),
    f"{MASKER}, filter at once": masker(butterworth__copy=True),
}
RUNS = {"simulate": simulate, "exact": exact} | CONTENDERS


def _measure(args, load: Callable[[], np.ndarray]) -> None:
    """Print the time and memory of a call, and save its result, `[V, T]`, for the comparison."""
    imported, start, busy = _peak(), time.perf_counter(), time.process_time()
    y = load()
    seconds, processor, peak = time.perf_counter() - start, time.process_time() - busy, _peak()
    y = y * np.float32(y.std(1, dtype=np.float64).mean() ** -1)  # nilearn divides by the sample standard deviation (n − 1)
    np.save(args.folder / f"{args.run}.npy", y)
    print(
        json.dumps(
            {"seconds": seconds, "processor seconds": processor, "peak MiB": peak, "imports MiB": imported, "load": os.getloadavg()[0]}
        )
    )


def _peak() -> float:
    """Return the resident peak of this process in MiB; on Linux, `ru_maxrss` includes the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _child(run: str, folder: str, args) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", run, "--folder", folder, "--frames", str(args.frames), "--grid", *map(str, args.grid)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Return medians, and the seconds of every repeat."""
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return middle | {"all seconds": [row["seconds"] for row in rows]}


def _difference(folder: Path, one: str, other: str) -> float:
    """Return the largest absolute difference of two results with the same standardisation."""
    a, b = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in (one, other))
    return max(float(np.abs(a[i : i + CHUNK] - b[i : i + CHUNK]).max()) for i in range(0, len(a), CHUNK))


def _error(folder: Path, name: str) -> float:
    """Return the largest absolute difference from the voxels cleaned in float64."""
    return float(np.abs(np.load(folder / f"{name}.npy", mmap_mode="r")[::APART] - np.load(folder / "exact.npy")).max())


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--grid", type=int, nargs=3, default=[91, 109, 91])
    arguments.add_argument("--frames", type=int, default=300)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--run", choices=RUNS, help="run one program once (used for the subprocesses)")
    arguments.add_argument("--folder", type=Path, help="folder of the scan for `--run`")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
