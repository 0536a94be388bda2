"""Time and size of scans' pages: networks of random parcels on MNI152 at 2 mm, one after another in one process.

python benchmarks/reports.py --parcels 400 --pages 10
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from nilearn.datasets import load_mni152_brain_mask

from pnet_jax.network import QC, Bin, Calibration, MapScores, Network, Selection
from pnet_jax.report.page import render
from pnet_jax.space import Space, grid_space

FRAMES, TR = 600, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parcels", type=int, default=400)
    parser.add_argument("--pages", type=int, default=10)
    args = parser.parse_args()
    mask = load_mni152_brain_mask(resolution=2)
    space = grid_space(np.asarray(mask.dataobj) > 0, mask.affine, name="MNI152NLin2009cAsym")
    seconds, used, sizes = [], [], []
    for seed in range(args.pages):
        network = example(space, args.parcels, seed)
        begun, busy = time.perf_counter(), time.process_time()
        page = render(network)
        seconds.append(time.perf_counter() - begun)
        used.append(time.process_time() - busy)
        sizes.append(len(page.encode()))
    print(f"{len(space)} locations, K = {args.parcels}, {FRAMES} frames, 2 measures, n = {args.pages} pages")
    middle, busy = statistics.median(seconds), statistics.median(used)
    print(f"first page {seconds[0]:.2f} s; median {middle:.2f} s ({busy:.2f} s of CPU); largest page {max(sizes) / 1e6:.2f} MB")


def example(space: Space, parcels: int, seed: int) -> Network:
    """Return a network whose parcels are those of random centres, before and after these have moved."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    centres = space.xyz[rng.choice(len(space), parcels, replace=False)]
    before, after = (cKDTree(place).query(space.xyz)[1].astype(np.int32) for place in (centres, centres + rng.normal(0, 2, centres.shape)))
    signals = rng.normal(size=(parcels, FRAMES)).astype(np.float32)
    own = rng.uniform(0.2, 1, len(space)).astype(np.float32)
    calibration = Calibration((0.1, 0.3, 0.4), 0.02, 0.7, 0.2, 0.1, tuple(Bin(1000, p, p) for p in np.linspace(0.1, 0.9, 10)))
    scores = {"personalised": MapScores(0.1, 0.3), "data_free": MapScores(0.08, 0.28), "atlas": MapScores(0.07, 0.27)}
    selection = Selection("personalised", "both gains exclude zero", gain=(0.1, 0.2, 0.3), dcbc_gain=(0.01, 0.02, 0.03), **scores)
    return Network(
        space=space,
        labels=after,
        candidates=np.stack([after, (after + 1) % parcels], 1),
        probabilities=np.stack([own, 1 - own], 1),
        signals=signals,
        edges=dict.fromkeys(("pearson", "partial"), np.corrcoef(signals).astype(np.float32)),
        ids=np.arange(1, parcels + 1, dtype=np.int32),
        names=tuple(f"7Networks_LH_Default_{k}" for k in range(parcels)),
        hemispheres=tuple("LR"[int(x > 0)] for x in centres[:, 0]),
        atlas_labels=before,
        coverage=rng.uniform(0.4, 1, parcels).astype(np.float32),
        frames=np.arange(FRAMES),
        tr=TR,
        subject=f"{seed:02d}",
        entities={"task": "rest", "space": space.name},
        qc=QC(selection=selection, calibration=calibration, moved=0.3),
        provenance={},
        displacement=rng.gamma(1.5, 0.07, FRAMES),
    )


if __name__ == "__main__":
    main()
