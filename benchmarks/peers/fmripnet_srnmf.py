"""One scan through pNet's SR-NMF, run by the interpreter of fmripnet's own environment (`construct.py --fmripnet-python`).

Reads an .npz with cleaned signals `y` [V, T], `ijk` [V, 3], image `shape` and the prior's `labels` [V] (0…K−1); prints one line of JSON.
The group loadings are the prior's labels as zeros and ones, [V, K]; every setting is fmripnet's default.

    PYTHON benchmarks/peers/fmripnet_srnmf.py SCAN.npz [--repeats 3]
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import time

import numpy as np

with contextlib.redirect_stdout(None):
    from pnet.Module.SR_NMF import compute_gNb, pFN_SR_NMF_torch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    data = np.load(args.scan)
    mask = np.zeros(data["shape"], np.int64)
    mask[tuple(data["ijk"].T)] = 1
    # fmripnet counts voxels with the first axis running fastest.
    order = np.lexsort((data["ijk"][:, 0], data["ijk"][:, 1], data["ijk"][:, 2]))
    y, labels = data["y"][order], data["labels"][order]
    loadings = np.eye(labels.max() + 1)[labels]
    start = time.perf_counter()
    neighbours = compute_gNb({"Data_Type": "Volume", "Template_Format": "3D Matrix", "Brain_Mask": mask})
    setup = time.perf_counter() - start
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            signals, maps = pFN_SR_NMF_torch(y.T, loadings, neighbours, logFile=None)
            np.corrcoef(signals.numpy().T)
        seconds.append(time.perf_counter() - start)
    moved = float((maps.numpy().argmax(1) != labels).mean())
    versions = {name: importlib.metadata.version(name) for name in ("fmripnet", "torch")}
    print(
        json.dumps(
            {"neighbours_seconds": setup, "seconds": seconds, "median": statistics.median(seconds), "moved": moved, "versions": versions}
        )
    )


if __name__ == "__main__":
    main()
