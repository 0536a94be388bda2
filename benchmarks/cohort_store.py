"""Size and speed of the cohort store: seconds to write a scan, seconds to read the edges or everything of all scans, files and bytes.

Random results of realistic shapes, one process, local disk, files in the page cache. Blocks of several scans are compared with blocks of
one scan, which give every scan its own files; the time of `pnet collect` on results on disk is measured last.

    python benchmarks/cohort_store.py --scans 1000 --blocks 1 8 32 128 --out benchmarks/results/cohort_store.json
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from common import parser, table, write

import pnet_jax
from pnet_jax.network import QC, Network
from pnet_jax.outputs import collect, save
from pnet_jax.outputs.cohort import Entry, create, layout_of, write_block
from pnet_jax.space import grid_space

DIFFERENT = 16  # distinct results; the others repeat them under other names


def main() -> None:
    args = _arguments()
    networks = [_network(seed, args) for seed in range(DIFFERENT)]
    shape = {"K": args.parcels, "T": args.frames, "V": len(networks[0].space)}
    print(f"{args.scans} scans, {shape}")
    rows = [{"block": block} | _measure(networks, args.scans, block) for block in args.blocks]
    head = list(rows[0])
    table(head, [[row[name] for name in head] for row in rows])
    collected = _collect(networks)
    print(f"pnet collect, from results on disk: {collected:.0f} ms per scan")
    write(args, {"shape": shape, "stores": rows, "collect_ms_a_scan": collected})


def _arguments():
    out = parser(__doc__, data=False)
    out.add_argument("--scans", type=int, default=1000)
    out.add_argument("--blocks", type=int, nargs="+", default=[1, 8, 32, 128], help="scans per block")
    out.add_argument("--parcels", type=int, default=200)
    out.add_argument("--frames", type=int, default=300)
    return out.parse_args()


def _network(seed: int, args) -> Network:
    """Make results with compact parcels, like real ones; signals and confidence are noise, which compresses worst."""
    rng, k, t = np.random.default_rng(seed), args.parcels, args.frames
    ijk = np.stack(np.meshgrid(*map(np.arange, (46, 55, 46)), indexing="ij"), -1)
    inside = (((ijk - [22.5, 27, 22]) / [17.8, 22, 17]) ** 2).sum(-1) < 1
    space = grid_space(inside, np.diag([4.0, 4, 4, 1]), name="MNI152NLin6Asym")
    centres = space.xyz[rng.choice(len(space), k, replace=False)]
    labels = np.concatenate([((part[:, None] - centres) ** 2).sum(-1).argmin(1) for part in np.array_split(space.xyz, 20)]).astype(np.int32)
    signals = rng.normal(size=(k, t)).astype(np.float32)
    return Network(
        space=space,
        labels=labels,
        candidates=labels[:, None],
        probabilities=rng.uniform(size=(len(space), 1)).astype(np.float32),
        signals=signals,
        edges={"pearson": np.corrcoef(signals).astype(np.float32)},
        ids=np.arange(1, k + 1, dtype=np.int32),
        names=tuple(f"parcel {at}" for at in range(k)),
        hemispheres=("B",) * k,
        atlas_labels=labels,
        coverage=np.ones(k, np.float32),
        frames=np.arange(t),
        tr=2.0,
        subject="0",
        entities={"task": "rest"},
        qc=QC(minutes=t / 30, n_frames=t),
        provenance={"pnet_jax": pnet_jax.__version__, "atlas": {"digest": "0", "source": "random"}},
    )


def _measure(networks: list[Network], scans: int, block: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp())
    try:
        path, labels = folder / "cohort.zarr", [f"sub-{s:05d}_task-rest" for s in range(scans)]
        create(path, labels, layout_of(networks[0]), block=block)
        begun = time.perf_counter()
        for number in range(-(-scans // block)):
            own = range(number * block, min((number + 1) * block, scans))
            named = {labels[s]: dataclasses.replace(networks[s % DIFFERENT], subject=f"{s:05d}") for s in own}
            write_block(path, number, {scan: Entry(network) for scan, network in named.items()})
        wrote = time.perf_counter() - begun
        files = [file for file in path.rglob("*") if file.is_file()]
        figures = {"write_ms_a_scan": wrote / scans * 1000, "kB_a_scan": sum(file.stat().st_size for file in files) / scans / 1000}
        figures |= {"files": len(files), "files_of_10000_scans": round(len(files) * 10_000 / scans)}
        for name, less in (("edges", {"signals": False, "labels": False}), ("all", {})):
            begun = time.perf_counter()
            cohort = pnet_jax.load_cohort(path, **less)
            figures[f"read_{name}_s"] = time.perf_counter() - begun
            assert len(cohort) == scans
        return figures
    finally:
        shutil.rmtree(folder)


def _collect(networks: list[Network]) -> float:
    """Return the milliseconds per scan from BIDS derivatives to the store, in one process."""
    folder = Path(tempfile.mkdtemp())
    try:
        for number, network in enumerate(networks):
            save(dataclasses.replace(network, subject=f"{number:05d}"), folder)
        begun = time.perf_counter()
        collect(folder)
        return (time.perf_counter() - begun) / len(networks) * 1000
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
