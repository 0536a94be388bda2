"""Effect of shrunk and guided edges on the detection of a planted difference between patients and controls.

Healthy and autistic participants of the five test sites of `half_to_half.py`, ROIs merged to 60, guide and group from the other sites. Of
50 randomly drawn participants, 25 are called patients: the 28 edges among 8 randomly drawn ROIs are reduced by 0.3 in Fisher z, in both
views. Edges are tested by permutation (max-T, 2,000 permutations), once with scans of equal length and once with 1.5 minutes per patient.

    python benchmarks/planted_difference.py --out benchmarks/results/planted_difference.json
"""

from __future__ import annotations

import jax
import numpy as np
from abide import TABLE, recordings
from common import average, need, parser, table, write
from half_to_half import fisher, halves, merged

from pnet_jax import edges
from pnet_jax.ops.permutation import permutation_test

PARCELS, NODES, PEOPLE, LOWERED, SHORT_MINUTES, PERMUTATIONS = 60, 8, 50, 0.3, 1.5, 2000


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=6)
    args = arguments.parse_args()
    scans = recordings(need(args.data, TABLE)[0])
    train, test = ([scan for scan in scans if scan.test == held] for held in (False, True))
    merge = merged(train, PARCELS)
    fit = halves(train, merge)
    cohorts = {"one length": halves(test, merge), "patients short": halves(test, merge, SHORT_MINUTES)}
    group = edges.fit_shrinkage(fit.views[0][:, 0], fit.views[1][:, 0], *fit.n_eff)
    taught = edges.fit_guided(*fit.views, *fit.n_eff)
    figures = {}
    for name, patients in cohorts.items():
        seeds = [hits(patients, cohorts["one length"], group, taught, seed) for seed in range(args.seeds)]
        figures[name] = {layer: average([seed[layer] for seed in seeds]) for layer in seeds[0]}
    rows = [(f"{name}, {layer}", *values.values()) for name, found in figures.items() for layer, values in found.items()]
    table(("scans, layer", "found of 28", "found elsewhere", "mean difference"), rows)
    write(args, figures)


def hits(patients, controls, group, taught, seed: int) -> dict[str, dict[str, float]]:
    """Compute the detections of one draw of participants and ROIs for each kind of edges."""
    rng = np.random.default_rng(seed)
    who, nodes = rng.permutation(len(controls.sites))[:PEOPLE], rng.permutation(PARCELS)[:NODES]
    upper = np.triu_indices(PARCELS, 1)
    true = np.isin(upper[0], nodes) & np.isin(upper[1], nodes)
    ill = np.arange(PEOPLE) < PEOPLE // 2
    made: dict[str, list[np.ndarray]] = {}
    for participant, sick in zip(who, ill, strict=True):
        source = patients if sick else controls
        raw, white = lowered(source.views[0][participant], nodes) if sick else source.views[0][participant]
        for name, layer in edges.layers(raw, float(source.n_eff[0][participant]), group, taught, [white]).items():
            made.setdefault(name, []).append(fisher(layer.edges)[upper])
    out = {}
    for name, participants in made.items():
        values = np.array(participants, np.float32)
        p = permutation_test(values, ill.astype(np.float32), key=jax.random.key(seed), permutations=PERMUTATIONS).p_fwe
        found = np.asarray(p) < 0.05
        difference = values[ill].mean(0) - values[~ill].mean(0)
        out[name] = {"found": found[true].sum(), "elsewhere": found[~true].sum(), "difference": difference[true].mean()}
    return out


def lowered(views: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    z = fisher(views)
    z[np.ix_(range(len(z)), nodes, nodes)] -= LOWERED
    r = np.tanh(z).astype(np.float32)
    r[:, range(PARCELS), range(PARCELS)] = 1
    return r


if __name__ == "__main__":
    main()
