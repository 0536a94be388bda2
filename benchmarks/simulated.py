"""Parcels and edges of simulated subjects compared with the ground truth (medium tier: K = 100, 10 min, 4 mm).

The prior is the group parcellation of the cohort. Parcels are estimated from session 1 and compared with the true ones: adjusted Rand index
and Dice (mean over parcels); expected calibration error of the label probability with respect to the truth and to session 2; DCBC and
homogeneity on session 2; Pearson edges of session 1 are correlated with the closed-form truth (upper triangle, Fisher z). Reference maps
are the group parcels, a data-free map (nearest centroid of the group parcels) and the true parcels. Session 2 is also parcellated, for Dice
within minus between subjects. Values are medians over seeds of means over subjects. `--grid` adds the best adjusted Rand index over a grid
of fixed κ and β, an upper bound for their selection. The checkpoint must not have been trained on seeds 0, 1, ….

    python benchmarks/simulated.py --seeds 5 --subjects 2 --out benchmarks/results/simulated.json
"""

from __future__ import annotations

import time

import numpy as np
from common import average, parser, table, write
from cross_half import calibration_error
from sklearn.metrics import adjusted_rand_score

import pnet_jax
from pnet_jax.config import SimulateConfig
from pnet_jax.edges import compute
from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.simulate import cleaned_scan, simulate_cohort

FD_MM = 0.5  # frames with more displacement are scrubbed with --scrub
KAPPAS, BETAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0), (0.1, 0.2, 0.4, 0.8)
MAPS = ("personalised", "group", "centroids", "true")


def main() -> None:
    args = _arguments()
    model = pnet_jax.load_model(args.checkpoint)
    config = pnet_jax.ConstructConfig(kappa=args.kappa, beta=args.beta, labels=args.labels)
    seeds = []
    for seed in range(args.seeds):
        start = time.perf_counter()
        cohort = SimulateConfig(subjects=args.subjects, sessions=2, tier=args.tier, parcels=args.parcels, minutes=args.minutes, seed=seed)
        seeds.append(one_cohort(cohort, model, config, scrub=args.scrub, grid=args.grid))
        last = seeds[-1]
        extra = "  ".join(f"{key} {last[key]:.3f}" for key in ("ece_truth", "ece_repeat", "agreement", "best_ari") if last[key] is not None)
        shown = "  ".join(f"{name} {last[name]['ari']:.3f}" for name in MAPS[:3])
        print(f"seed {seed}: ARI {shown}  {extra}  {' '.join(last['selected'])}  {time.perf_counter() - start:.0f} s", flush=True)
    median = {name: average([seed[name] for seed in seeds], np.median) for name in MAPS}
    median["ari_gain_over_group"] = float(np.median([seed["personalised"]["ari"] - seed["group"]["ari"] for seed in seeds]))
    for key in ("ece_truth", "ece_repeat", "agreement", *(["best_ari"] if args.grid else [])):
        median[key] = float(np.median([seed[key] for seed in seeds]))
        print(f"{key} {median[key]:.3f}")
    median["dice_within_minus_between"] = float(np.median([seed["dice_within_minus_between"] for seed in seeds]))
    measures = tuple(median["true"])
    table((f"median of {args.seeds} seeds", *measures), [(name, *(median[name][m] for m in measures)) for name in MAPS])
    print(f"ARI over group {median['ari_gain_over_group']:+.3f}; Dice within - between subjects {median['dice_within_minus_between']:+.3f}")
    write(args, {"median": median, "seeds": seeds})


def one_cohort(cohort: SimulateConfig, model, config, *, scrub: bool, grid: bool) -> dict[str, object]:
    """Average over the subjects of a cohort for each map; also return the selections."""
    rows, labels, selected, extra = [], [], [], []
    for subject in simulate_cohort(cohort):
        scans = [cleaned_scan(session, fd_threshold=FD_MM if scrub else None) for session in subject.sessions]
        space = subject.space
        prior = make_atlas(space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
        networks = [pnet_jax.construct(scan, atlas=prior, model=model, config=config) for scan in scans]
        maps = {
            "personalised": networks[0].labels,
            "group": subject.group_labels,
            "centroids": nearest_centroid(subject.group_labels, space),
            "true": subject.labels,
        }
        rows.append(score_maps(maps, subject, scans))
        labels.append([network.labels for network in networks])
        chosen = networks[0].qc.selection
        selected.append(f"{chosen.decision} κ={chosen.kappa:.3g} β={chosen.beta:.2g}")
        inside = (networks[0].labels >= 0) & (networks[1].labels >= 0) & (subject.labels >= 0)
        same, p = (networks[0].labels == networks[1].labels)[inside], networks[0].confidence[inside]
        own = {
            "ece_truth": calibration_error(p, (networks[0].labels == subject.labels)[inside]),
            "ece_repeat": calibration_error(p, same),
            "agreement": float(same.mean()),
            "best_ari": best_of_grid(scans[0], prior, model, subject) if grid else np.nan,
        }
        extra.append(own)
    out: dict[str, object] = {name: average([row[name] for row in rows]) for name in MAPS}
    means = {key: None if np.isnan(value) else value for key, value in average(extra).items()}
    return out | means | {"dice_within_minus_between": within_minus_between(labels, cohort.parcels), "selected": selected}


def best_of_grid(scan, prior, model, subject) -> float:
    """Highest adjusted Rand index with the truth over fixed κ and β."""
    found = []
    for kappa in KAPPAS:
        for beta in BETAS:
            config = pnet_jax.ConstructConfig(kappa=kappa, beta=beta, labels="personalised")
            network = pnet_jax.construct(scan, atlas=prior, model=model, config=config, edges=())
            found.append(adjusted_rand_score(subject.labels, network.labels))
    return float(max(found))


def score_maps(maps, subject, scans) -> dict[str, dict[str, float]]:
    """Compute all measures of all maps of one subject."""
    parcels = len(subject.true_fc)
    upper = np.triu_indices(parcels, 1)
    truth = np.arctanh(subject.true_fc[upper])
    judge = Judge(scans[1].y, subject.space, scans[1].valid, parcels)
    out = {}
    for name, labels in maps.items():
        edges = np.arctanh(np.clip(compute("pearson", parcel_signals(scans[0].y, labels, parcels))[upper], -0.999, 0.999))
        known = np.isfinite(edges)
        out[name] = {
            "ari": float(adjusted_rand_score(subject.labels, labels)),
            "dice": dice(subject.labels, labels, parcels),
            **judge(labels),
            "edges_r": float(np.corrcoef(edges[known], truth[known])[0, 1]),
        }
    return out


def dice(a, b, parcels: int) -> float:
    """Mean over parcels of the overlap of two maps with corresponding labels."""
    both = np.bincount(a[a == b], minlength=parcels + 1)[:parcels]
    size = np.bincount(a[a >= 0], minlength=parcels) + np.bincount(b[b >= 0], minlength=parcels)
    return float(np.mean(2 * both[size > 0] / size[size > 0]))


def within_minus_between(labels, parcels: int) -> float | None:
    """Dice of a subject's two sessions minus Dice of session 1 and another subject's session 2."""
    if len(labels) < 2:
        return None
    pairs = np.array([[dice(mine[0], other[1], parcels) for other in labels] for mine in labels])
    same = np.eye(len(labels), dtype=bool)
    return float(pairs[same].mean() - pairs[~same].mean())


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--checkpoint", default="pnet-linear", help="model name or checkpoint folder")
    arguments.add_argument("--seeds", type=int, default=5, help="cohorts, seeds 0, 1, …")
    arguments.add_argument("--subjects", type=int, default=2, help="subjects of each cohort")
    arguments.add_argument("--tier", default="medium", choices=("easy", "medium", "hard", "real"))
    arguments.add_argument("--parcels", type=int, default=100)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--scrub", action="store_true", help=f"drop frames with a displacement above {FD_MM} mm")
    arguments.add_argument("--labels", default="auto", help="parcels that are scored: auto, personalised or atlas")
    arguments.add_argument("--grid", action="store_true", help="the best adjusted Rand index over a grid of κ and β as well (slow)")
    arguments.add_argument("--kappa", type=float, help="fix κ instead of measuring it")
    arguments.add_argument("--beta", type=float, help="fix β instead of measuring it")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
