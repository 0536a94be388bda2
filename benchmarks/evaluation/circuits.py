"""Abnormal circuits on null cohorts, on planted differences and on a difference that is known.

*Null cohorts*: controls of ABIDE, 60 groups of ROIs (Ward on the mean network), labels drawn by chance at each site and a covariate like
motion that goes with the edges and with the labels; sites are blocks, the covariate is held constant. A family-wise error is any result
below .05: of max-T, of the extent of a component (NBS), of the threshold-free statistic, of pairs of networks (groups of the same tree) and
of nodes, each by itself. Intervals are binomial (Wilson).

*Planted*: half of the controls are called patients; the edges among 8 regions drawn by chance grow by a difference in Fisher z. Average
precision of |t| and of the threshold-free score, which ranks by circuits, and how many planted edges each test finds.

*Known*: eyes open against eyes closed within 32 participants (116 regions, 5,000 permutations). *Diagnosis*: autism against controls with
site as block, age and sex held constant (200 regions, 5,000 permutations), with the time it took.

    python benchmarks/evaluation/circuits.py --out benchmarks/results/evaluation_circuits.json
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from cohorts import abide, eyes  # also puts the folder above on the path
from common import average, parser, table, write
from scipy import stats
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import average_precision_score

from pnet_jax.cohort import Cohort, make_cohort
from pnet_jax.evaluate import circuits
from pnet_jax.evaluate.answer import Answer

PARCELS, NETWORKS, NODES, LEVEL = 60, 7, 8, 0.05
UPPER = np.triu_indices(PARCELS, 1)
TESTS = ("max-T", "NBS, extent", "TFNBS", "networks", "nodes", "any of the five")


def main() -> None:
    args = _arguments()
    whole = abide(args.data, wide=False)
    controls = coarser(whole.take(whole.table["dx"] == "control"))
    null, about = null_cohorts(controls, args)
    table((f"null cohorts, {args.cohorts}", *null["max-T"]), [(name, *row.values()) for name, row in null.items()])
    found = planted(controls, args)
    table(("planted difference", *next(iter(found.values()))), [(name, *row.values()) for name, row in found.items()])
    figures = {"null": {"tests": null, "about": about}, "planted": found}
    figures["eyes"] = timed(eyes(args.data), "state", positive="EO", permutations=args.permutations)
    options = {"positive": "ASD", "covariates": ["age", "sex"], "permutations": args.permutations}
    figures["diagnosis"] = timed(whole, "dx", **options)
    write(args, figures)


class Controls(NamedTuple):
    """Edges between 60 groups of ROIs in Fisher z, `[S, E]`, the network of each group, and the site of each participant."""

    z: np.ndarray
    modules: dict[str, str]
    sites: np.ndarray


def coarser(cohort: Cohort) -> Controls:
    mean = np.tanh(np.arctanh(np.clip(cohort.edges["pearson"], -0.99, 0.99)).mean(0))
    tree = linkage(mean, "ward")
    parcel, network = (fcluster(tree, count, "maxclust") - 1 for count in (PARCELS, NETWORKS))
    share = np.eye(PARCELS)[parcel] / np.bincount(parcel)
    assert cohort.signals is not None
    r = np.stack([np.corrcoef(share.T @ y[:, np.isfinite(y[0])]) for y in cohort.signals])
    modules = {f"region {at + 1}": f"network {network[parcel == at][0]}" for at in range(PARCELS)}
    sites = cohort.table["site"].astype(str)
    large = np.isin(sites, [site for site in np.unique(sites) if (sites == site).sum() >= 10])
    return Controls(np.arctanh(np.clip(r[:, *UPPER], -0.99, 0.99))[large], modules, sites[large])


def cohort_of(z: np.ndarray, modules: dict[str, str], **columns: np.ndarray) -> Cohort:
    r = np.tile(np.eye(PARCELS, dtype=np.float32), (len(z), 1, 1))
    r[:, *UPPER] = r[:, UPPER[1], UPPER[0]] = np.tanh(z)
    return make_cohort([f"{at:04d}" for at in range(len(z))], edges={"pearson": r}, covariates=columns, names=list(modules))


def drawn(controls: Controls, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels by chance, half of each site give or take, and a covariate that goes with the labels."""
    rng = np.random.default_rng(seed)
    ill = np.zeros(len(controls.z), bool)
    for site in np.unique(controls.sites):
        here = rng.permutation(np.flatnonzero(controls.sites == site))
        ill[here[: round(rng.uniform(0.3, 0.7) * len(here))]] = True
    return ill, np.exp(rng.normal(size=len(ill)) + 0.3 * ill)


def run(controls: Controls, z: np.ndarray, ill: np.ndarray, moved: np.ndarray, permutations: int, seed: int) -> Answer:
    labels = np.where(ill, "patient", "control")
    cohort = cohort_of(z, controls.modules, group=labels, motion=moved, site=controls.sites)
    options = {"covariates": ["motion"], "modules": controls.modules, "permutations": permutations, "seed": seed}
    return circuits(cohort, "group", **options)


def null_cohorts(controls: Controls, args) -> tuple[dict[str, dict[str, float]], dict[str, object]]:
    """How often each test finds something where there is nothing."""
    pattern = np.random.default_rng(0).normal(size=controls.z.shape[1])
    hits = []
    for seed in range(args.cohorts):
        ill, moved = drawn(controls, seed)
        z = controls.z + 0.05 * pattern * stats.zscore(moved)[:, None]  # motion moves edges, and patients move more
        hits.append(list(errors(run(controls, z, ill, moved, args.null_permutations, seed)).values()))
    counts = np.sum(hits, 0)
    out = {}
    for name, count in zip(TESTS, (*counts, np.any(hits, 1).sum()), strict=True):
        low, high = stats.binomtest(int(count), args.cohorts).proportion_ci(method="wilson")
        out[name] = {"errors": int(count), "rate": count / args.cohorts, "low": low, "high": high}
    sizes = {"cohorts": args.cohorts, "participants": len(controls.z), "sites": len(np.unique(controls.sites))}
    return out, sizes | {"permutations": args.null_permutations, "regions": PARCELS, "networks": NETWORKS}


def errors(answer: Answer) -> dict[str, bool]:
    edges, parts = answer.tables["edges"], answer.tables["components"]
    whole = len(parts["edges"]) > 0 and np.min(parts["p_extent"]) <= LEVEL
    out = {"max-T": np.nanmin(edges["p_fwe"]) <= LEVEL, "NBS, extent": whole, "TFNBS": np.nanmin(edges["p_tfnbs"]) <= LEVEL}
    for name in ("blocks", "nodes"):  # two tests each, the mean and the mean square
        one = answer.tables[name]
        out[name] = min(np.nanmin(one["p_fwe"]), np.nanmin(one["p_t2_fwe"])) <= LEVEL / 2
    return {name: bool(value) for name, value in out.items()}


def planted(controls: Controls, args) -> dict[str, dict[str, float]]:
    """What is found of a difference among the edges of 8 regions, mean of draws."""
    out = {}
    for size in args.sizes:
        each = []
        for seed in range(args.draws):
            ill, moved = drawn(controls, 10_000 + seed)
            nodes = np.random.default_rng(seed).permutation(PARCELS)[:NODES]
            true = np.isin(UPPER[0], nodes) & np.isin(UPPER[1], nodes)
            answer = run(controls, controls.z + size * np.outer(ill, true), ill, moved, args.null_permutations, seed)
            edges, node = answer.tables["edges"], answer.tables["nodes"]
            of_component = edges["component"] == 1
            whole = len(answer.tables["components"]["edges"]) > 0 and answer.tables["components"]["p_extent"][0] < LEVEL
            each.append(
                {
                    "AP of |t|": average_precision_score(true, np.abs(edges["t"])),
                    "AP of TFNBS": average_precision_score(true, edges["tfnbs"]),
                    "max-T, of 28": (edges["p_fwe"] < LEVEL)[true].sum(),
                    "FDR": (edges["q"] < LEVEL)[true].sum(),
                    "TFNBS": (edges["p_tfnbs"] < LEVEL)[true].sum(),
                    "NBS": (of_component & whole)[true].sum(),
                    "max-T elsewhere": (edges["p_fwe"] < LEVEL)[~true].sum(),
                    "TFNBS elsewhere": (edges["p_tfnbs"] < LEVEL)[~true].sum(),
                    "NBS elsewhere": (of_component & whole)[~true].sum(),
                    "nodes, of 8": (np.minimum(node["p_fwe"], node["p_t2_fwe"]) < LEVEL / 2)[nodes].sum(),
                }
            )
        out[f"{size:g}"] = average(each)
    return out


def timed(cohort: Cohort, effect: str, **options) -> dict[str, object]:
    """What `circuits` says of a real cohort, and how long it took."""
    start = time.perf_counter()
    answer = circuits(cohort, effect, **options)
    seconds = time.perf_counter() - start
    print(*answer.sentences, f"({seconds:.0f} s)", sep="\n", flush=True)
    kept = [row for row in answer.rows if row.table in ("edges", "components")]
    rows = [{key: value for key, value in row._asdict().items() if value == value and value != ""} for row in kept]
    return {"sentences": list(answer.sentences), "warnings": list(answer.warnings), "rows": rows, "seconds": seconds}


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--cohorts", type=int, default=200, help="null cohorts")
    arguments.add_argument("--null-permutations", type=int, default=999, help="permutations of each null and planted cohort")
    arguments.add_argument("--permutations", type=int, default=5000, help="permutations of the real comparisons")
    arguments.add_argument("--draws", type=int, default=10, help="draws of patients and regions for each planted difference")
    arguments.add_argument("--sizes", type=float, nargs="+", default=[0.05, 0.1, 0.15], help="planted differences in Fisher z")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
