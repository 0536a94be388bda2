"""Left-out people's cerebellar parcels from one half of their task data, scored on the other half.

12 subjects, 29 task conditions in each of two halves (betas, the mean over conditions removed from every voxel): conditions play the
frames. For each subject in turn, encoder and prior (K = 10, 20) are made from the other 11 only; the subject's parcels are made from
half 1 and their DCBC is taken on half 2, and the other way round. Beside them, on the same voxels: the group prior, the other
subjects' personalised parcels of the same half (mean over `--others` of them), Ward on the subject's own half with as many parcels, and a
data-free map (nearest centroid of the prior). Nothing is chosen on a left-out subject's scores.

There is no time axis. `--condition-seconds 20` makes every condition one block of the bootstrap that decides between personalised
parcels and prior; both the outcome of that rule and the personalised parcels themselves are reported.

    python benchmarks/cerebellum.py --out benchmarks/results/cerebellum.json
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from common import CEREBELLUM, average, need, parser, table, write

import pnet_jax
from pnet_jax.evaluate.parcellation import Judge
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.scan import make_scan
from pnet_jax.space import grid_space

MAPS = ("personalised", "as decided", "group", "others", "Ward", "centroids")


def main() -> None:
    args = _arguments()
    subjects, betas, space = load(need(args.data, CEREBELLUM)[0])
    options = dict(
        reference_space="scans", references=args.references, dimensions=args.dimensions, parcels=(), learn_prior=tuple(args.parcels)
    )
    config = pnet_jax.PretrainConfig(**options)
    scores: dict[int, list[dict[str, float]]] = {k: [] for k in args.parcels}
    for left_out in range(len(subjects)):
        others = [s for s in range(len(subjects)) if s != left_out]
        model = pnet_jax.pretrain([whole_scan(betas[s], space, subjects[s], args) for s in others], config)
        for k in args.parcels:
            scores[k].append(one_subject(left_out, others, betas, space, model, k, args))
            shown = "  ".join(f"{name} {scores[k][-1][name]:.4f}" for name in MAPS)
            print(f"{subjects[left_out]} K={k}: DCBC {shown}", flush=True)
    figures = {f"K={k}": summary(rows) | {"subjects": dict(zip(subjects, rows, strict=True))} for k, rows in scores.items()}
    rows = [(name, *(figures[f"K={k}"]["mean"][name] for k in args.parcels)) for name in MAPS]
    table(("DCBC on the other half, mean of subjects", *(f"K={k}" for k in args.parcels)), rows)
    for k, name in ((k, name) for k in args.parcels for name in MAPS[1:4]):
        test = figures[f"K={k}"]["personalised over"][name]
        better = f"{test['gain']:+.4f}, better in {test['better']} of {len(subjects)}"
        better += f", t p = {test['t_p']:.2g}, Wilcoxon p = {test['wilcoxon_p']:.2g}"
        print(f"K={k} personalised - {name}: {better}")
    write(args, figures)


def one_subject(left_out, others, betas, space, model, k, args) -> dict[str, float]:
    """DCBC of every map on the half it was not made from, mean of both directions, and what was selected."""
    half_scans = {s: [half_scan(betas[s], half, space, s, args) for half in (0, 1)] for s in (left_out, *others[: args.others])}
    mine = half_scans[left_out]
    prior = model.priors[k]
    free, forced = (pnet_jax.ConstructConfig(force_personalised=force) for force in (False, True))
    rows = []
    for made, scored in ((0, 1), (1, 0)):
        own = pnet_jax.construct(mine[made], prior=prior, model=model, config=forced)
        decided = pnet_jax.construct(mine[made], prior=prior, model=model, config=free)
        inside = (own.prior_labels >= 0) & mine[scored].valid
        judge = Judge(mine[scored].y, space, inside, k)
        neighbours = [
            pnet_jax.construct(half_scans[s][made], prior=prior, model=model, config=forced).labels for s in others[: args.others]
        ]
        rows.append(
            {
                "personalised": judge(own.labels)["dcbc"],
                "as decided": judge(decided.labels)["dcbc"],
                "group": judge(own.prior_labels)["dcbc"],
                "others": float(np.mean([judge(labels)["dcbc"] for labels in neighbours])),
                "Ward": judge(ward(mine[made], inside, k))["dcbc"],
                "centroids": judge(nearest_centroid(own.prior_labels, space))["dcbc"],
                "moved": own.qc["moved"],
                "kappa": own.qc["selection"]["kappa"],
                "beta": own.qc["selection"]["beta"],
                "decided_personalised": float(decided.qc["selection"]["decision"] == "personalised"),
            }
        )
    return average(rows)


def ward(scan, inside, k):
    """Ward on the scan alone, neighbouring voxels only, `[V]`."""
    from scipy.sparse import coo_matrix
    from sklearn.cluster import AgglomerativeClustering

    row, column = np.nonzero(scan.space.neighbours >= 0)
    graph = coo_matrix((np.ones(len(row)), (row, scan.space.neighbours[row, column])), shape=(len(scan.space),) * 2).tocsr()
    here = np.flatnonzero(inside)
    labels = np.full(len(inside), -1)
    labels[here] = AgglomerativeClustering(k, linkage="ward", connectivity=graph[here][:, here]).fit_predict(scan.y[here])
    return labels


def summary(rows) -> dict[str, object]:
    """Means over subjects, and paired tests of the personalised parcels against each of the others."""
    tests = {}
    for name in MAPS[1:]:
        gain = np.array([row["personalised"] - row[name] for row in rows])
        moved = np.any(gain != 0)
        tests[name] = {
            "gain": float(gain.mean()),
            "t_p": float(scipy.stats.ttest_1samp(gain, 0).pvalue) if moved else 1.0,
            "wilcoxon_p": float(scipy.stats.wilcoxon(gain).pvalue) if moved else 1.0,
            "better": int((gain > 0).sum()),
        }
    return {"mean": average(rows), "personalised over": tests}


def load(file):
    """Subjects, betas `[S, 2, 29, V]` with the mean over a half's conditions removed, and the Space."""
    data = np.load(file)
    mask = np.zeros(data["volume_shape"], bool)
    mask[tuple(data["voxel_ijk"].T)] = True
    space = grid_space(mask, data["affine"], name="SUIT")
    column = np.full(mask.shape, -1)
    column[tuple(data["voxel_ijk"].T)] = np.arange(len(space))
    order = column[tuple(space.grid.ijk.T)]
    halves = [data["betas"][:, data["half"] == half][..., order].astype(np.float32) for half in (1, 2)]
    betas = np.stack(halves, 1)
    return data["subject"].tolist(), betas - betas.mean(2, keepdims=True), space


def whole_scan(betas, space, subject, args):
    """Both halves of a training subject, one after the other."""
    return make_scan(betas.reshape(-1, betas.shape[-1]).T, space, tr=args.condition_seconds, subject=subject)


def half_scan(betas, half, space, subject, args):
    return make_scan(betas[half].T, space, tr=args.condition_seconds, subject=str(subject), entities={"run": str(half + 1)})


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--parcels", nargs="+", type=int, default=[10, 20])
    arguments.add_argument("--references", type=int, default=100, help="reference regions, even")
    arguments.add_argument("--dimensions", type=int, default=64)
    arguments.add_argument("--others", type=int, default=11, help="how many of the other subjects' own parcels are scored")
    arguments.add_argument(
        "--condition-seconds", type=float, default=20.0, help="seconds that a condition counts for in the block bootstrap"
    )
    return arguments.parse_args()


if __name__ == "__main__":
    main()
