"""Correlation matrices by BrainIAK's FCMA, run by the interpreter of an environment of its own (`peers.py --brainiak-python`).

Reads an .npz with `signals` [S, K, T]; prints one line of JSON: seconds for all subjects, and the matrices of the first.

    pip install brainiak
    PYTHON benchmarks/peers/brainiak_correlation.py SIGNALS.npz [--repeats 5]
"""

import argparse
import importlib.metadata
import json
import statistics
import time

import numpy as np
from brainiak.fcma.util import compute_correlation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signals")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    subjects = list(np.load(args.signals)["signals"])
    seconds = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        found = np.stack([compute_correlation(one, one) for one in subjects])
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]  # the first is not counted, as of the others
    versions = {name: importlib.metadata.version(name) for name in ("brainiak", "numpy")}
    first = np.float64(found[0]).round(7).tolist()
    print(json.dumps({"seconds": seconds, "median": statistics.median(seconds), "first": first, "versions": versions}))


if __name__ == "__main__":
    main()
