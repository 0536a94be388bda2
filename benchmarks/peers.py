"""Kernels compared with equivalent programs: same inputs, same run, from NumPy arrays in memory to NumPy arrays.

Each task prints the time in seconds, the speed-up of pnet_jax, and the largest difference between results that should be equal. Programs
that are not installed, or fail, have a row with the reason. Programs with incompatible requirements run in separate environments:

    python benchmarks/peers.py --out benchmarks/results/peers.json \\
        --brainiak-python PYTHON --fmripnet-python PYTHON --netrd-python PYTHON --bctpy-python PYTHON

To add a program, add an entry to the dictionary returned by its task.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import parser, table, write

from pnet_jax.bench.inputs import Inputs

HELPERS = Path(__file__).parent / "peers"
T_THRESHOLD = 3.0
COLUMNS = {"median": ".4g", "times_ours": ".1f", "difference": ".1e", "score": ".3f"}
TASKS: dict[str, Callable[[Any], Task]] = {}


@dataclasses.dataclass(frozen=True)
class Task:
    """Programs for one task.

    Attributes:
      what: Description, with sizes.
      programs: Function for each program, pnet_jax first. A function returns its result, or raises; `Elsewhere` measures its own time.
      same: Programs whose results must equal those of pnet_jax.
      repeats: Number of timed calls of each program.
      score: Quality of a result, if programs differ in definition; None if it cannot be measured.
    """

    what: str
    programs: Mapping[str, Callable[[], Any]]
    same: tuple[str, ...] = ()
    repeats: int = 5
    score: Callable[[Any], float] | None = None


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Output of a program in another environment: seconds of each call, and its result."""

    seconds: list[float]
    found: Any = None


def main() -> None:
    args = _arguments()
    figures = {}
    for name in args.tasks:
        try:
            task = TASKS[name](args)
            figures[name] = {"what": task.what, "rows": compete(task)}
        except Exception as error:  # noqa: BLE001  a task that cannot be set up does not stop the others
            figures[name] = {"what": name, "rows": {"all of it": _not_measured(error)}}
        show(figures[name])
    write(args, figures)


def compete(task: Task) -> dict[str, dict[str, Any]]:
    """Time all programs of a task; the first is the reference."""
    rows: dict[str, dict[str, Any]] = {}
    reference: Any = None
    for place, (name, call) in enumerate(task.programs.items()):
        try:
            seconds, found = _time(call, task.repeats)
        except Exception as error:  # noqa: BLE001  programs that fail are reported
            rows[name] = _not_measured(error)
            continue
        rows[name] = {"measured": True, "seconds": seconds, "median": statistics.median(seconds)}
        if task.score is not None and found is not None:
            rows[name]["score"] = task.score(found)
        if place == 0:
            reference = found
        elif (ours := next(iter(rows.values())))["measured"]:
            rows[name]["times_ours"] = rows[name]["median"] / ours["median"]
            if name in task.same:
                rows[name]["difference"] = _difference(reference, found)
    return rows


def _difference(ours: Any, theirs: Any) -> float:
    """Return the largest absolute difference, infinite if shapes differ. A program may have computed only the first part."""
    theirs = np.float64(theirs)
    ours = np.float64(ours)[: len(theirs)]
    return float(np.abs(ours - theirs).max(initial=0)) if ours.shape == theirs.shape else float("inf")


def _time(call: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Time calls in seconds, after an uncounted one (compilation, caches); with one repeat, only the first call is made."""
    found = None
    seconds = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
        if isinstance(found, Elsewhere):
            return found.seconds, found.found
    return seconds[-repeats:], found


def task(function: Callable[[Any], Task]) -> Callable[[Any], Task]:
    """Decorator that registers a task under the name of its function."""
    TASKS[function.__name__] = function
    return function


@task
def correlation(args) -> Task:
    from pnet_jax.ops.correlation import correlation as ours

    x, step = _signals(args), jax.jit(ours)
    frames_first = [np.ascontiguousarray(one.T) for one in x]

    def nilearn(estimator=None):
        from nilearn.connectome import ConnectivityMeasure

        return ConnectivityMeasure(estimator, kind="correlation", standardize=False).fit_transform(frames_first)

    def nilearn_sample():
        from sklearn.covariance import EmpiricalCovariance

        return nilearn(EmpiricalCovariance(store_precision=False))  # otherwise it also computes an unneeded inverse

    def brainiak():
        said = _helper(args.brainiak_python, "brainiak", "brainiak_correlation.py", {"repeats": args.repeats}, signals=x)
        return Elsewhere(said["seconds"], [said["first"]])

    programs = {
        "pnet_jax": lambda: np.asarray(step(x)),
        "numpy corrcoef": lambda: np.stack([np.corrcoef(one) for one in x]),
        "nilearn ConnectivityMeasure": nilearn,  # its default estimator uses shrinkage, so results differ
        "nilearn ConnectivityMeasure, sample covariance": nilearn_sample,
        "BrainIAK FCMA": brainiak,
    }
    same = ("numpy corrcoef", "nilearn ConnectivityMeasure, sample covariance", "BrainIAK FCMA")
    return Task(f"correlation matrices, {_sizes(x)}", programs, same, args.repeats)


@task
def covariance(args) -> Task:
    from pnet_jax.ops.partial import ledoit_wolf

    x, step = _signals(args), jax.jit(ledoit_wolf)

    def sklearn():
        from sklearn.covariance import LedoitWolf

        return np.stack([LedoitWolf().fit(one.T).covariance_ for one in x])

    programs = {"pnet_jax": lambda: np.asarray(step(x)), "scikit-learn LedoitWolf": sklearn}
    return Task(f"shrunk covariances, {_sizes(x)}", programs, ("scikit-learn LedoitWolf",), args.repeats)


@task
def partial(args) -> Task:
    from pnet_jax.ops.partial import partial as ours

    x, step = _signals(args), jax.jit(ours)

    def nilearn():
        return _nilearn(x, "partial correlation").fit_transform(_turned(x))

    name = "nilearn ConnectivityMeasure"
    programs = {"pnet_jax": lambda: np.asarray(step(x)), name: nilearn, f"{name}, 1 BLAS thread": _on_one_thread(nilearn)}
    return Task(f"partial correlations, {_sizes(x)}", programs, (name, f"{name}, 1 BLAS thread"), args.repeats)


@task
def tangent(args) -> Task:
    from pnet_jax.ops.partial import ledoit_wolf
    from pnet_jax.ops.tangent import tangent as ours

    x = _signals(args)

    @jax.jit
    def step(x):
        return ours(ledoit_wolf(x))

    def mean_and_tangents():
        vectors, mean = step(x)
        return np.concatenate([np.asarray(mean)[None], np.asarray(vectors)])

    def nilearn():
        measure = _nilearn(x, "tangent")
        vectors = measure.fit_transform(_turned(x))
        return np.concatenate([measure.mean_[None], vectors])

    name = "nilearn ConnectivityMeasure"
    programs = {"pnet_jax": mean_and_tangents, name: nilearn, f"{name}, 1 BLAS thread": _on_one_thread(nilearn)}
    same = (name, f"{name}, 1 BLAS thread")
    return Task(f"tangent space at the cohort's mean, {_sizes(x)}", programs, same, args.slow_repeats)


@task
def parcels(args) -> Task:
    import nibabel as nib
    from sklearn.metrics import adjusted_rand_score

    import pnet_jax
    from pnet_jax.config import ConstructConfig, SimulateConfig
    from pnet_jax.parcellation.atlas import make_atlas
    from pnet_jax.parcellation.signals import parcel_signals
    from pnet_jax.simulate import cleaned_scan, simulate_subject

    settings = SimulateConfig(resolution=4, parcels=args.parcels, minutes=args.frames * 1.5 / 60, tr=1.5, sessions=1)
    subject = simulate_subject(settings, 0)
    scan, space = cleaned_scan(subject.sessions[0]), subject.space
    prior = make_atlas(space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere)
    y = np.asarray(scan.y, np.float32)
    inside = tuple(space.grid.ijk.T)
    volume, mask = np.zeros((*space.grid.shape, y.shape[1]), np.float32), np.zeros(space.grid.shape, np.uint8)
    volume[inside], mask[inside] = y, 1
    image, mask_image = nib.Nifti1Image(volume, space.grid.affine), nib.Nifti1Image(mask, space.grid.affine)

    def ours(**fixed):
        return pnet_jax.construct(scan, atlas=prior, edges=("pearson",), config=ConstructConfig(**fixed)).labels

    def nilearn(method):
        from nilearn.regions import Parcellations

        made = Parcellations(method, n_parcels=args.parcels, mask=mask_image, standardize=False).fit(image)
        labels = np.asarray(made.labels_img_.dataobj)[inside]
        np.corrcoef(np.asarray(parcel_signals(y, (labels - 1).astype(np.int32), args.parcels)))
        return labels

    def sklearn():
        from sklearn.cluster import KMeans

        return KMeans(args.parcels, n_init=1, random_state=0).fit_predict(y)

    def srnmf():
        here = {"y": y, "ijk": space.grid.ijk, "shape": space.grid.shape, "labels": subject.group_labels}
        said = _helper(args.fmripnet_python, "fmripnet", "fmripnet_srnmf.py", {"repeats": args.slow_repeats}, **here)
        return Elsewhere(said["seconds"])

    programs = {
        "pnet_jax, all measured on the scan": ours,
        "pnet_jax, κ and β given": lambda: ours(kappa=20.0, beta=0.3),
        "nilearn Parcellations, ward": lambda: nilearn("ward"),
        "nilearn Parcellations, kmeans": lambda: nilearn("kmeans"),
        "scikit-learn KMeans": sklearn,
        "pNet SR-NMF (fmripnet)": srnmf,
    }
    what = f"parcels and their correlations, V = {len(y)}, T = {y.shape[1]}, K = {args.parcels}; score: adjusted Rand index to the truth"
    return Task(what, programs, (), args.slow_repeats, lambda labels: float(adjusted_rand_score(subject.labels, labels)))


@task
def portrait(args) -> Task:
    """Use netrd's convention: weights are lengths, bins are percentiles. Times are per pair."""
    from pnet_jax.ops.portrait import PortraitSettings, portrait_divergence

    lengths = _networks(args)
    pairs = np.stack(np.triu_indices(len(lengths), 1), 1).astype(np.int32)
    few = pairs[: 2 * args.slow_repeats]
    settings = PortraitSettings(convention="netrd", lengths="w", density=None, rounding=None)

    def ours():
        start = time.perf_counter()
        found = np.asarray(portrait_divergence(lengths, settings, pairs=pairs).divergence)
        return Elsewhere([(time.perf_counter() - start) / len(pairs)], found[: len(few)])

    def warm():
        ours()
        return ours()

    def netrd():
        said = _helper(args.netrd_python, "netrd", "netrd_portrait.py", {}, lengths=lengths, pairs=few)
        return Elsewhere(said["seconds"], said["divergence"])

    what = f"portrait divergence, seconds a pair, {len(lengths)} networks of {args.parcels} nodes"
    return Task(what, {f"pnet_jax, all {len(pairs)} pairs": warm, f"netrd, {len(few)} pairs": netrd}, (f"netrd, {len(few)} pairs",), 1)


@task
def nbs(args) -> Task:
    """Two groups with permuted labels. Times are per permutation: FDR, max-T and NBS for pnet_jax, NBS alone for bctpy."""
    from pnet_jax.ops.permutation import permutation_test

    rng, ends = np.random.default_rng(0), np.stack(np.triu_indices(args.parcels, 1), 1).astype(np.int32)
    group = np.arange(args.subjects) % 2
    planted = (ends < args.parcels // 4).all(1) & (rng.random(len(ends)) < 0.3)
    edges = (rng.standard_normal((args.subjects, len(ends))) + planted * group[:, None]).astype(np.float32)

    def ours():
        start = time.perf_counter()
        options = {"key": jax.random.key(0), "permutations": args.permutations, "threshold": T_THRESHOLD, "ends": ends}
        found = jax.block_until_ready(permutation_test(edges, group.astype(np.float32), **options))
        extent = np.sort(np.asarray(found.components.extent))[::-1]
        return Elsewhere([(time.perf_counter() - start) / args.permutations], extent[extent > 0])

    def warm():
        ours()
        return ours()

    def bctpy():
        said = _helper(args.bctpy_python, "bctpy", "bctpy_nbs.py", {}, edges=edges, group=group, threshold=T_THRESHOLD)
        return Elsewhere([said["seconds_per_permutation"]], said["sizes"])

    what = f"network-based statistic, seconds a permutation, {len(ends)} edges, {args.subjects} subjects"
    name = f"pnet_jax, {args.permutations} permutations"
    return Task(what, {name: warm, "bctpy": bctpy}, ("bctpy",), 1)


def _signals(args) -> np.ndarray:
    """Signals for all tasks, `[S, K, T]`."""
    return Inputs().signals(args.subjects, args.parcels, args.frames)


def _networks(args) -> np.ndarray:
    """Sparse symmetric networks, `[S, K, K]`; 0 without an edge. Lengths are multiples of 1/64, whose sums are exact in float32."""
    rng, sizes = np.random.default_rng(0), (args.subjects, args.parcels, args.parcels)
    upper = np.triu(rng.integers(1, 64, sizes) * (rng.random(sizes) < 0.15), 1).astype(np.float32) / 64
    return upper + upper.swapaxes(1, 2)


def _nilearn(x: np.ndarray, kind: str) -> Any:
    from nilearn.connectome import ConnectivityMeasure

    return ConnectivityMeasure(kind=kind, standardize=False)


def _on_one_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Measure with and without BLAS threads, which speed up products but slow down decompositions of small matrices."""

    def limited():
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            return call()

    return limited


def _turned(x: np.ndarray) -> list[np.ndarray]:
    """Signals with frames first in double precision, as used by nilearn."""
    return [np.float64(one.T) for one in x]


def _sizes(x: np.ndarray) -> str:
    return "S = {}, K = {}, T = {}".format(*x.shape)


def _helper(python: str | None, option: str, program: str, options: Mapping[str, int], **arrays: Any) -> dict[str, Any]:
    """Run a program of `peers/` with another interpreter, and read the JSON in the last line of its output."""
    if python is None:
        raise FileNotFoundError(f"no --{option}-python given")
    if not (HELPERS / program).is_file():
        raise FileNotFoundError(f"there is no {program} among the peers")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, **arrays)
        command = [python, str(HELPERS / program), str(file)]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def _not_measured(error: Exception) -> dict[str, Any]:
    line = (str(error).strip().splitlines() or ["no message"])[0]
    line = re.sub(r"(?<!\w)(/[^/\s:'\"]+)+/", "", line)  # paths are machine-specific
    return {"measured": False, "reason": f"{type(error).__name__}: {line}"}


def show(figures: Mapping[str, Any]) -> None:
    """Print the rows of a task."""
    rows = []
    for name, row in figures["rows"].items():
        cells = [f"{row[key]:{form}}" if key in row else "-" for key, form in COLUMNS.items()]
        rows.append((name, *cells, "" if row["measured"] else f"not measured: {row['reason']}"))
    print(figures["what"])
    table(("", "seconds", "times ours", "largest difference", "score", ""), rows)
    print(flush=True)


def _arguments():
    arguments = parser(__doc__, data=False)
    add = arguments.add_argument
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    add("--subjects", type=int, default=100)
    add("--frames", type=int, default=300)
    add("--parcels", type=int, default=200)
    add("--permutations", type=int, default=5000)
    add("--repeats", type=int, default=5, help="timed calls, after one that is not counted")
    add("--slow-repeats", type=int, default=2, help="the same of tangent, parcels and NBS, where some take long")
    for name in ("brainiak", "fmripnet", "netrd", "bctpy"):
        add(f"--{name}-python", metavar="PYTHON", help=f"interpreter of an environment with {name}; not measured without it")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
