"""False-positive rate of personalised parcels on noise, and statistical power for planted parcels.

Surrogates have the mask and spectrum of a real scan, but no parcels: Gaussian maps of 6, 8 or 10 mm FWHM, each with an independent time
course, plus regressors that resemble head motion and are part of the signals, and frames to scrub. They pass through cleaning, with
separate halves, and the construction step with its full grid. In "atlas" surrogates, the atlas parcels are the truth: each has an
independent signal in addition to the noise. Every cell is the share that was personalised, with its 95 % interval (Wilson).

    python benchmarks/surrogates.py --count 200 --workers 2 --power 20 --out benchmarks/results/surrogates.json

`--joint`: cleaned as a whole before reading, which cannot be detected afterwards. `--power N`: simulated participants of each tier.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from common import BOLD, MASK, atlas, need, parser, table, write
from scipy.ndimage import gaussian_filter

import pnet_jax
from pnet_jax.config import CleaningConfig, ConstructConfig, SimulateConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.ingest.cleaning import Recording, clean_recording
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.spatial import locate
from pnet_jax.scan import Scan
from pnet_jax.simulate import cleaned_scan, simulate_cohort

FWHM_MM = (6.0, 8.0, 10.0)
SCRUBBED = 0.08  # share of the frames
MOTION_SHARE = 0.3  # standard deviation of the regressors in the signals, relative to the noise
COMPONENTS_PER_SECOND = 0.3  # independent maps per second, approximately the degrees of freedom of the band
CLEANING = CleaningConfig(min_seconds=30)


class Cell(NamedTuple):
    """One kind of surrogate."""

    kind: str
    minutes: float
    regressors: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.minutes:g} min, {self.regressors} regressors"


class Found(NamedTuple):
    """Decision on one surrogate: lower bounds and medians of both gains."""

    seed: int
    personalised: bool
    score: float
    score_low: float
    dcbc: float
    dcbc_low: float


def main() -> None:
    args = _arguments()
    need(args.data, BOLD, MASK, atlas(args.regions))
    cells = [Cell(*cell) for cell in itertools.product(args.kinds, args.minutes, args.regressors)]
    found: dict[Cell, list[Found]] = {cell: [] for cell in cells}
    for file in args.go_on:
        earlier = json.loads(file.read_text())["figures"]["each"]
        for cell in cells:
            found[cell] += [Found(int(row[0]), bool(row[1]), *row[2:]) for row in earlier.get(str(cell), [])]
    powers: dict[tuple[str, float], list[bool]] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, pool(args, cache) as workers:
        # Each length has a compiled step: one process compiles it, and the others load it from disk.
        first = args.minutes if args.count else ()
        for future in [workers.submit(one, args, Cell(args.kinds[0], minutes, 0), args.first_seed) for minutes in first]:
            future.result()
        # All cells of a seed precede the next seed, so that they have equal numbers whenever the time ends.
        tasks = ((cell, args.first_seed + number) for number in range(args.count) for cell in cells)
        for cell, result in run(workers, tasks, args, start):
            found[cell].append(result)
            if sum(map(len, found.values())) % 50 == 0:
                done = sum(map(len, found.values()))
                print(f"{done} of {args.count * len(cells)} surrogates, {time.perf_counter() - start:.0f} s", flush=True)
        for key, chosen in workers.map(simulated, power_tasks(args.power)):
            powers.setdefault(key, []).append(chosen)
    figures: dict[str, Any] = {str(cell): summary(results) for cell, results in found.items() if results}
    table(("surrogates", *next(iter(figures.values()))), [(name, *row.values()) for name, row in figures.items()])
    if powers:
        shares = {f"{tier}, {minutes:g} min": {"n": len(x), "personalised": float(np.mean(x))} for (tier, minutes), x in powers.items()}
        table(("simulated", "n", "personalised"), [(name, *row.values()) for name, row in shares.items()])
        figures["power"] = shares
    figures["each"] = {str(cell): [[round(float(x), 5) for x in row] for row in sorted(results)] for cell, results in found.items()}
    write(args, figures)


def pool(args, cache: str) -> ProcessPoolExecutor:
    """Start processes of one thread each; results do not depend on their number."""
    os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    if args.workers > 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_PLATFORMS"] = "cpu"
    return ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"), initializer=begin, initargs=(args, cache))


def run(workers: ProcessPoolExecutor, tasks: Iterator[tuple[Cell, int]], args, start: float) -> Iterator[tuple[Cell, Found]]:
    """Yield results as they finish, until the tasks or the time are used up; tasks in progress are completed."""
    waiting: dict[Any, Cell] = {}
    while True:
        late = args.seconds is not None and time.perf_counter() - start > args.seconds
        for cell, seed in itertools.islice(tasks, 0 if late else 2 * args.workers - len(waiting)):
            waiting[workers.submit(one, args, cell, seed)] = cell
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future.result()


_HERE: tuple[Scan, Any, Builder]  # state of a worker: real scan, its spectrum, and builder


def begin(args, cache: str) -> None:
    """Data that a worker needs for every surrogate."""
    import jax

    global _HERE
    jax.config.update("jax_compilation_cache_dir", cache)
    bold, mask, dseg = need(args.data, BOLD, MASK, atlas(args.regions))
    template = pnet_jax.load_scan(bold, mask=mask, space="MNI152NLin6Asym")
    prior = pnet_jax.load_atlas(dseg, space="MNI152NLin6Asym")
    _HERE = template, amplitude(bold, mask), Builder(resolve(ConstructConfig(edges=()), atlas=prior))


def one(args, cell: Cell, seed: int) -> Found:
    """Compute the decision on one surrogate."""
    template, spectrum, builder = _HERE
    scan = surrogate(template, spectrum, builder, *cell, seed, args.joint)
    found = builder.run([builder.ready(scan)])[0]
    gain, dcbc = found.quality.gain, found.quality.dcbc_gain
    return Found(seed, bool(found.personalised), float(gain[1]), float(gain[0]), float(dcbc[1]), float(dcbc[0]))


def surrogate(template: Scan, spectrum, builder: Builder, kind: str, minutes: float, regressors: int, seed: int, joint: bool) -> Scan:
    """Make a scan without parcels, or with those of the atlas."""
    rng = np.random.default_rng([seed, round(minutes * 10), regressors, kind == "atlas"])
    frames = round(minutes * 60 / template.tr)
    y = smooth_noise(template, spectrum, frames, FWHM_MM[seed % len(FWHM_MM)], rng)
    if kind == "atlas":
        placed = builder.placed(template)[0]
        rows = locate(placed, template)
        labels = np.full(len(y), -1)
        labels[rows.at[rows.valid]] = np.asarray(placed.prior.labels)[rows.valid]
        signals = temporal(spectrum, template.tr, frames, placed.n_parcels, rng)
        y += 0.5 * np.where((labels >= 0)[:, None], signals[labels], 0)
    motion = gaussian_filter(rng.standard_normal((frames, max(regressors, 1))).cumsum(0), (1.5, 0))
    motion = (motion - motion.mean(0)) / motion.std(0)
    y += MOTION_SHARE / np.sqrt(motion.shape[1]) * rng.standard_normal((len(y), motion.shape[1])).astype(np.float32) @ motion.T
    kept = np.sort(rng.permutation(frames)[: round((1 - SCRUBBED) * frames)])
    recording = Recording(np.ascontiguousarray(1000 + 10 * y, np.float32), template.space, template.tr, f"surrogate {seed}", [])
    confounds = motion if regressors else None
    scan = clean_recording(recording, kept=kept, confounds=confounds, cleaning=CLEANING, subject=f"s{seed}")
    return dataclasses.replace(scan, halves=None) if joint else scan


def smooth_noise(template: Scan, spectrum, frames: int, fwhm: float, rng) -> np.ndarray:
    """Draw spatially smooth maps with independent time courses with the spectrum of the scan and unit variance, `[V, T]`."""
    grid = template.space.grid
    size, sigma = grid.shape, fwhm / 2.355 / template.space.resolution
    ijk = tuple(grid.ijk.T)
    # One map per cosine: as many independent maps as frames, each at one frequency, so that time courses are exact.
    waves = cosines(spectrum, template.tr, frames)
    maps = np.stack([gaussian_filter(rng.standard_normal(size).astype(np.float32), sigma)[ijk] for _ in waves], 1)
    y = (maps / maps.std()) @ waves
    return y / y.std()


def temporal(spectrum, tr: float, frames: int, count: int, rng) -> np.ndarray:
    """Draw independent time courses with the spectrum of the scan and unit variance, `[count, T]`."""
    waves = cosines(spectrum, tr, frames)
    y = rng.standard_normal((count, len(waves))).astype(np.float32) @ waves
    return y / y.std()


def cosines(spectrum, tr: float, frames: int) -> np.ndarray:
    """Cosine basis of the frames, each scaled by the spectrum, `[n, T]`; components removed by cleaning are omitted."""
    hz = np.arange(1, frames) / (2 * frames * tr)
    hz = hz[(hz > 0.004) & (hz < 0.14)]
    at = np.arange(frames) + 0.5
    basis = np.sqrt(2 / frames) * np.cos(np.pi * at[None] * (hz * 2 * frames * tr)[:, None] / frames)
    return (basis * np.interp(hz, *spectrum)[:, None]).astype(np.float32)


def amplitude(bold, mask):
    """Root of the mean power spectrum over the locations of the real scan: frequencies in Hz, and amplitudes."""
    image, inside = nib.load(bold), np.asarray(nib.load(mask).dataobj) > 0
    y = np.asarray(image.dataobj, np.float32)[inside]
    y = y - y.mean(1, keepdims=True)
    tr = float(image.header.get_zooms()[3])
    power = np.square(np.abs(np.fft.rfft(y * np.hanning(y.shape[1])[None], axis=1))).mean(0)
    hz = np.fft.rfftfreq(y.shape[1], tr)
    return hz[1:], np.sqrt(np.convolve(power, np.ones(5) / 5, "same"))[1:]


def summary(found: list[Found]) -> dict[str, float]:
    """Share of personalised surrogates with its Wilson interval, and the shares for either statistic alone."""
    chosen, score, dcbc = (
        np.array(x) for x in zip(*((one.personalised, one.score_low > 0, one.dcbc_low > 0) for one in found), strict=True)
    )
    low, high = wilson(chosen.sum(), len(chosen))
    shares = {"n": len(chosen), "personalised": float(chosen.mean()), "from": low, "to": high, "S alone": float(score.mean())}
    return shares | {"DCBC alone": float(dcbc.mean()), "largest DCBC gain": max(one.dcbc for one in found)}


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    p, centre = hits / n, (hits / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def power_tasks(count: int) -> list[tuple[str, float, int]]:
    """Tier, length and seed of simulated participants."""
    return list(itertools.product(("easy", "medium", "hard", "real"), (3.0, 6.0, 12.0), range(1000, 1000 + count)))


def simulated(task: tuple[str, float, int]) -> tuple[tuple[str, float], bool]:
    """Whether the planted parcels of a simulated participant are recovered."""

    tier, minutes, seed = task
    subject = next(iter(simulate_cohort(SimulateConfig(subjects=1, sessions=1, tier=tier, minutes=minutes, seed=seed))))
    space = subject.space
    prior = make_atlas(space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
    network = pnet_jax.construct(cleaned_scan(subject.sessions[0], fd_threshold=0.5), atlas=prior, edges=())
    return (tier, minutes), network.qc.selection.decision == "personalised"


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=200, help="surrogates in each cell")
    arguments.add_argument("--kinds", nargs="+", default=["noise", "atlas"], choices=("noise", "atlas"))
    arguments.add_argument("--minutes", nargs="+", type=float, default=[3.0, 6.0, 12.0])
    arguments.add_argument("--regressors", nargs="+", type=int, default=[0, 9, 26])
    arguments.add_argument("--first-seed", type=int, default=1000)
    arguments.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    arguments.add_argument("--go-on", type=Path, nargs="+", default=[], help="results of other seeds that count too")
    arguments.add_argument("--seconds", type=float, help="time after which no further surrogate is started")
    arguments.add_argument("--regions", type=int, default=200, help="cortical regions of the atlas")
    arguments.add_argument("--joint", action="store_true", help="cleaned as a whole before they are read")
    arguments.add_argument("--power", type=int, default=0, metavar="N", help="simulated participants of each tier and length")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
