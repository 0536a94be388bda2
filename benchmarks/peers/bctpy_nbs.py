"""Network-based statistic by bctpy, run by the interpreter of an environment of its own: bctpy is GPL and no dependency of ours.

Reads an .npz with `edges` [S, E] in the order of numpy.triu_indices(K, 1), `group` [S] of zeros and ones and the `threshold` of t. Runs few
permutations, as each takes as long as the last, and prints one line of JSON: seconds a permutation (the observed statistic counts as one),
the size of each component (largest first), which edges are beyond the threshold, and the largest size under each permutation.

    pip install bctpy
    PYTHON benchmarks/peers/bctpy_nbs.py EDGES.npz [--permutations 4] [--seed 0]
"""

import argparse
import contextlib
import importlib.metadata
import json
import time

import bct
import numpy as np


def square(edges):
    """[S, E] as bctpy wants it, [K, K, S]."""
    nodes = int((1 + np.sqrt(1 + 8 * edges.shape[1])) / 2)
    rows, columns = np.triu_indices(nodes, 1)
    out = np.zeros((nodes, nodes, len(edges)))
    out[rows, columns] = out[columns, rows] = edges.T
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edges")
    parser.add_argument("--permutations", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = np.load(args.edges)
    edges, group, threshold = data["edges"], data["group"].astype(bool), float(data["threshold"])
    patients, controls = square(edges[group]), square(edges[~group])
    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        _, adjacency, null = bct.nbs.nbs_bct(patients, controls, threshold, k=args.permutations, tail="both", seed=args.seed)
    seconds = time.perf_counter() - start
    found = adjacency[np.triu_indices(len(adjacency), 1)].astype(int)
    sizes = sorted(np.bincount(found)[1:].tolist(), reverse=True)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "seconds_per_permutation": seconds / (args.permutations + 1),
                "sizes": sizes,
                "edges": np.flatnonzero(found).tolist(),
                "null": null.tolist(),
                "versions": {name: importlib.metadata.version(name) for name in ("bctpy", "numpy")},
            }
        )
    )


if __name__ == "__main__":
    main()
