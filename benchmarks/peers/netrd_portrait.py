"""Portrait divergence by netrd, run by the interpreter of an environment of its own: netrd pins versions that ours cannot share.

Reads an .npz with `lengths` [S, N, N]: the length of each edge, 0 where there is none; and, if wanted, `pairs` [P, 2] and `bins`, the width
of a bin in percentiles. Without pairs the first --pairs of all are taken. Prints one line of JSON: seconds and divergence of each pair.
Only netrd's own module is loaded; the rest of the package asks for libraries that nothing here needs.

    pip install --no-deps netrd && pip install numpy scipy networkx
    PYTHON benchmarks/peers/netrd_portrait.py NETWORKS.npz [--pairs 5]
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import statistics
import sys
import time
import types

import networkx
import numpy as np


def load_portrait_divergence():
    """netrd.distance.portrait_divergence, without what netrd's packages import beside it."""
    root = pathlib.Path(importlib.util.find_spec("netrd").origin).parent
    for name in ("netrd", "netrd.distance", "netrd.utilities"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    sys.modules["netrd.utilities"].entropy = importlib.import_module("netrd.utilities.entropy")
    return importlib.import_module("netrd.distance.portrait_divergence").PortraitDivergence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    divergence = load_portrait_divergence()
    data = np.load(args.networks)
    graphs = [networkx.from_numpy_array(lengths) for lengths in data["lengths"]]
    first = itertools.islice(itertools.combinations(range(len(graphs)), 2), args.pairs)
    pairs = data["pairs"].tolist() if "pairs" in data else list(first)
    bins = int(data["bins"]) if "bins" in data else None
    seconds, found = [], []
    for i, j in pairs:
        start = time.perf_counter()
        found.append(float(divergence().dist(graphs[i], graphs[j], bins=bins)))
        seconds.append(time.perf_counter() - start)
    versions = {name: importlib.metadata.version(name) for name in ("netrd", "networkx", "numpy")}
    print(json.dumps({"pairs": pairs, "seconds": seconds, "median": statistics.median(seconds), "divergence": found, "versions": versions}))


if __name__ == "__main__":
    main()
