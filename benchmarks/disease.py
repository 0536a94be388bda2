"""Detection of a planted group difference with and without personalised parcels.

A simulated cohort consists of 25 patients and 25 controls with a planted disease: couplings among 8 parcels are weakened and couplings
among 6 others strengthened; 43 edges in total, the same in every patient. Every edge between parcels present in all participants is tested
by a two-sample t test of Fisher z; edges are detected at a false discovery rate of 0.05 (Benjamini and Hochberg), or by max-T over 2,000
permutations (family-wise 0.05). Coupling changes propagate: among edges detected elsewhere, "elsewhere, real" are those whose closed-form
correlation changes by at least 0.05 on average over patients, and "false" all others, including smaller true changes. AUC and average
precision measure how well |t| separates planted edges from these others. Further measures are mean |t| and mean difference in Fisher z of
planted edges, and diagnosis: AUC of ridge regression on the edges in held-out participants (5 folds, 5 repeats).

Edges are estimated from one recording each: with group parcels without personalisation (fixed atlas; the group is the cohort's true one,
which no real atlas is), with personalised parcels (raw), with these shrunk and guided by healthy participants of a separate sample, and
two upper bounds: with the participant's true parcels, and closed-form correlations without any recording. Values are means over cohorts
(seeds). For scans of similar length, shrinkage hardly changes t (it is linear for each edge); `planted_difference.py` shows its effect when
patients have shorter scans. Further tables: differences from the fixed atlas with 95 % intervals (t over cohorts), detection with fewer
participants, for which scores are not at ceiling, and similarity of the controls' edges to the closed form (as in `personalization.py`).

    python benchmarks/disease.py --scrub --keep FOLDER --out benchmarks/results/disease.json
    python benchmarks/disease.py --scrub --keep FOLDER --seeds 3 --severities 0.75 0.5 --out benchmarks/results/disease_milder.json
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from common import average, parser, table, write
from personalization import against
from scipy.stats import false_discovery_control, rankdata, ttest_ind
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

import pnet_jax
from pnet_jax import edges
from pnet_jax.config import ConstructConfig, SimulateConfig
from pnet_jax.evaluate.pipeline import Pipeline, predict
from pnet_jax.evaluate.scores import over_repeats, weighted_auc
from pnet_jax.evaluate.split import by_subject
from pnet_jax.ops.permutation import permutation_test
from pnet_jax.parcellation.atlas import Atlas, make_atlas
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.scan import halves_of
from pnet_jax.simulate import cleaned_scan, simulate_subject
from pnet_jax.simulate.cohort import group_truth

FD_MM, LEVEL, PERMUTATIONS, CHANGED = 0.5, 0.05, 2000, 0.05
COUNTED = ("planted, found", "planted, max-T")
PLAIN = "fixed atlas"
LAYERS = (PLAIN, "raw", "shrunk", "guided", "true parcels", "closed form")
SCORES = ("planted, found", "weakened", "strengthened", "elsewhere, real", "false", "planted, max-T", "AUC", "AP", "|t|", "difference")
COMPARED = ("planted, found", "planted, max-T", "AUC", "AP", "diagnosis")  # measures compared with the fixed atlas
FEWER = (10, 15, 20)  # participants of each group, the first of the cohort


def main() -> None:
    args = _arguments()
    model = pnet_jax.load_model(args.checkpoint)
    figures: dict[str, object] = {}
    for tier in args.tiers:
        for severity in args.severities:
            name = f"{tier}, severity {severity:g}"
            figures[name] = over_cohorts([one_cohort(args, model, tier, severity, seed) for seed in range(args.seeds)])
            show(f"{name}, {args.seeds} cohorts", figures[name])
            write(args, figures)


def over_cohorts(seeds: list[dict]) -> dict[str, dict]:
    """Compute means over cohorts, differences from the fixed atlas with intervals, and the values of each cohort."""
    ours, plain = ({score: [seed[layer][score] for seed in seeds] for score in COUNTED} for layer in ("raw", PLAIN))
    return {
        "mean": {layer: average([seed[layer] for seed in seeds]) for layer in LAYERS},
        "minus fixed atlas": {layer: _gains(seeds, layer, COMPARED) for layer in LAYERS[1:]},
        "against the closed form": {layer: average([seed["truth"][layer] for seed in seeds]) for layer in LAYERS[:-1]},
        "the same minus fixed atlas": {layer: _gains([seed["truth"] for seed in seeds], layer) for layer in LAYERS[1:-1]},
        "raw against fixed atlas": {score: _times(ours[score], plain[score]) for score in COUNTED},
        "fewer participants": {layer: average([seed["fewer"][layer] for seed in seeds]) for layer in LAYERS},
        "about": average([seed["about"] for seed in seeds]),
        "seeds": seeds,
    }


def show(name: str, found: dict[str, dict]) -> None:
    heads = {"mean": name, "against the closed form": "controls against the closed form"}
    heads |= {"raw against fixed atlas": "raw against fixed atlas", "fewer participants": "planted, found, of participants in a group"}
    for key, head in heads.items():
        rows = found[key]
        table((head, *next(iter(rows.values()))), [(row, *values.values()) for row, values in rows.items()])
    for key in ("minus fixed atlas", "the same minus fixed atlas"):
        rows = found[key]
        cells = [(row, *(f"{m:+.3f} [{low:+.3f}, {high:+.3f}]" for m, low, high in values.values())) for row, values in rows.items()]
        table((key, *next(iter(rows.values()))), cells)
    print("  ".join(f"{key} {value:.3g}" for key, value in found["about"].items()))


def _gains(seeds: list[dict], layer: str, measures=None) -> dict[str, list[float]]:
    """Mean over cohorts of the difference from the fixed atlas, with its 95 % interval from Student's t."""
    n, out = len(seeds), {}
    for measure in measures or seeds[0][layer]:
        apart = [seed[layer][measure] - seed[PLAIN][measure] for seed in seeds]
        half = student.ppf(0.975, n - 1) * np.std(apart, ddof=1) / np.sqrt(n) if n > 1 else np.nan
        out[measure] = [float(np.mean(apart)), float(np.mean(apart) - half), float(np.mean(apart) + half)]
    return out


def one_cohort(args, model, tier: str, severity: float, seed: int) -> dict[str, dict[str, float]]:
    """Compute the detections in one cohort for each kind of edges, and the planted effects."""
    config = SimulateConfig(
        subjects=args.participants,
        sessions=1,
        tier=tier,
        parcels=args.parcels,
        minutes=args.minutes,
        patients=0.5,
        severity=severity,
        seed=seed,
    )
    healthy = dataclasses.replace(config, patients=0.0)
    others = [_kept(args, healthy, args.participants + number, _halves, model) for number in range(args.others)]
    # Controls are independent of the disease of the patients.
    participants = [_kept(args, config if number % 2 else healthy, number, _edges, model) for number in range(args.participants)]
    ill = np.array([bool(participant["patient"]) for participant in participants])
    first, second = np.stack([other["halves"] for other in others], 1)
    counts = np.stack([other["n_eff"] for other in others], 1).astype(np.float32)
    group, taught = edges.fit_shrinkage(first, second, *counts), edges.fit_guided(first[:, None], second[:, None], *counts)
    made: dict[str, list[np.ndarray]] = {name: [] for name in LAYERS}
    for participant in participants:
        layers = edges.layers(participant["raw"], float(participant["n_eff"]), group, taught)
        for name in LAYERS:
            made[name].append(layers[name].edges if name in layers else participant[name])
    upper = np.triu_indices(args.parcels, 1)
    planted = np.any([participant["planted"] for participant in participants], 0)[upper]
    change = np.mean([participant["change"] for participant in participants if participant["patient"]], 0)[upper]
    strong = np.isin(upper, group_truth(config.resolution, args.parcels, seed).plan.strong).all(0)
    truth, values = (planted, strong, np.abs(change) >= CHANGED), {name: fisher(np.stack(found)[:, *upper]) for name, found in made.items()}
    scores = {name: dict(zip(SCORES, scored(z, ill, *truth, seed), strict=True)) for name, z in values.items()}
    for name, z in values.items():
        scores[name]["diagnosis"] = diagnosed(z, ill, seed)
    controls = {name: np.stack(found)[~ill] for name, found in made.items()}
    closeness = {name: against(controls[name], controls["closed form"]) for name in LAYERS[:-1]}
    fewer = {name: {f"{n}": float(discovered(z[: 2 * n], ill[: 2 * n])[planted].sum()) for n in FEWER} for name, z in values.items()}
    print(
        f"{tier}, severity {severity:g}, seed {seed}: " + "  ".join(f"{n} {s['planted, found']:.0f}" for n, s in scores.items()), flush=True
    )
    about = {
        "patients": ill.sum(),
        "controls": (~ill).sum(),
        "planted": planted.sum(),
        "changed elsewhere": (~planted & (np.abs(change) >= CHANGED)).sum(),
        "mean change of the planted": np.abs(change[planted]).mean(),
        "keep the prior": np.mean([bool(participant["prior"]) for participant in participants]),
        "ARI of the group": np.mean([participant["group_ari"] for participant in participants]),
        "ARI personalised": np.mean([participant["own_ari"] for participant in participants]),
    }
    return {**scores, "truth": closeness, "fewer": fewer, "about": {name: float(value) for name, value in about.items()}}


class Given:
    """Edges as features without fitted parameters."""

    name = "edges"

    def __init__(self, values: np.ndarray):
        self.values = values

    def __call__(self, train: np.ndarray) -> np.ndarray:
        return self.values


def diagnosed(z: np.ndarray, ill: np.ndarray, seed: int) -> float:
    """AUC of ridge regression on the edges `[S, E]` in held-out participants; edges missing in any participant are omitted."""
    y = ill.astype(float)
    split = by_subject(np.arange(len(z)), y, folds=5, repeats=5, seed=seed)
    features = Given(z[:, np.isfinite(z).all(0)].astype(np.float32))
    found = predict([Pipeline((features,))], split, y, classes=True)[0]
    return float(over_repeats(weighted_auc, found.decision, y, np.ones((1, len(y))))[0])


def _times(ours: list[float], plain: list[float]) -> dict[str, float | None]:
    """Ratio of the numbers of detected edges; None if the reference detects none."""
    sums = {"of means": (np.mean(ours), np.mean(plain)), "of medians": (np.median(ours), np.median(plain))}
    return {name: float(a / b) if b else None for name, (a, b) in sums.items()} | {
        "cohorts with more": float(np.sum(np.greater(ours, plain))),
        "with fewer": float(np.sum(np.less(ours, plain))),
    }


def fisher(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -0.999, 0.999).astype(np.float64))


def discovered(z: np.ndarray, ill: np.ndarray) -> np.ndarray:
    """Edges that survive the false discovery rate, `[E]`; edges missing in any participant are not tested."""
    known, out = np.isfinite(z).all(0), np.zeros(z.shape[1], bool)
    out[known] = false_discovery_control(ttest_ind(z[ill][:, known], z[~ill][:, known]).pvalue) < LEVEL
    return out


def scored(z: np.ndarray, ill: np.ndarray, planted: np.ndarray, strong: np.ndarray, changed: np.ndarray, seed: int) -> tuple[float, ...]:
    """Compute the scores of participants' edges in Fisher z, `[S, E]`."""
    found, known = discovered(z, ill), np.isfinite(z).all(0)
    z, hit, still = z[:, known], planted[known], (~planted & ~changed)[known]
    size = np.abs(ttest_ind(z[ill], z[~ill]).statistic)
    test = permutation_test(z.astype(np.float32), ill.astype(np.float32), key=jax.random.key(seed), permutations=PERMUTATIONS)
    ranks = rankdata(np.concatenate([size[hit], size[still]]))[: hit.sum()]
    auc = (ranks.sum() - hit.sum() * (hit.sum() + 1) / 2) / (hit.sum() * still.sum())
    counts = (
        (found & planted).sum(),
        (found & planted & ~strong).sum(),
        (found & planted & strong).sum(),
        (found & changed & ~planted).sum(),
        (found & ~changed & ~planted).sum(),
        (np.asarray(test.p_fwe)[hit] < LEVEL).sum(),
    )
    difference = np.abs(z[ill].mean(0) - z[~ill].mean(0))[hit].mean()
    precision = average_precision_score(hit[hit | still], size[hit | still])
    return tuple(float(x) for x in (*counts, auc, precision, size[hit].mean(), difference))


def _kept(args, config: SimulateConfig, number: int, make, model) -> dict[str, np.ndarray]:
    """Return the result of `make` for a participant, from `--keep` if available."""
    file = None
    if args.keep:
        said = f"{config.tier}-{config.seed}-{config.patients:g}-{config.severity if config.patients else 0:g}-{number}{make.__name__}"
        file = args.keep / f"{said}-{config.parcels}-{config.minutes:g}-{args.scrub:d}-{model.digest[:8]}.npz"
        if file.is_file():
            return dict(np.load(file))
    start = time.perf_counter()
    participant = simulate_subject(config, number)
    space = participant.space
    prior = make_atlas(space.xyz, participant.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
    made = make(participant, cleaned_scan(participant.sessions[0], fd_threshold=FD_MM if args.scrub else None), prior, model)
    print(f"{config.tier}, seed {config.seed}, participant {number}: {time.perf_counter() - start:.0f} s", flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **made)
    return made


def _halves(participant, scan, prior: Atlas, model) -> dict[str, np.ndarray]:
    """Edges of both halves of a scan in group parcels, to learn shrunk and guided edges from."""
    halves = halves_of(scan)
    signals = [np.asarray(parcel_signals(half.y, participant.group_labels, prior.n_parcels)) for half in halves]
    return {
        "halves": np.stack([edges.compute("pearson", one) for one in signals]),
        "n_eff": np.array([half.degrees for half in halves]),
    }


def _edges(participant, scan, prior: Atlas, model) -> dict[str, np.ndarray]:
    """Return one participant's edges and ground truth."""
    from sklearn.metrics import adjusted_rand_score

    network = pnet_jax.construct(scan, atlas=prior, model=model, config=ConstructConfig())

    def of(labels):
        return edges.compute("pearson", np.asarray(parcel_signals(scan.y, labels, prior.n_parcels)))

    return {
        "fixed atlas": of(participant.group_labels),
        "raw": network.edges["pearson"],
        "true parcels": of(participant.labels),
        "closed form": participant.true_fc.astype(np.float32),
        "planted": participant.disease.planted,
        "change": participant.disease.fc_change.astype(np.float32),
        "patient": np.array(participant.patient),
        "n_eff": np.array(network.qc.n_eff),
        "prior": np.array(network.qc.selection.decision == "atlas"),
        "group_ari": np.array(adjusted_rand_score(participant.labels, participant.group_labels)),
        "own_ari": np.array(adjusted_rand_score(participant.labels, network.labels)),
    }


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--tiers", nargs="+", default=["medium"], choices=("easy", "medium", "hard", "real"))
    arguments.add_argument("--severities", nargs="+", type=float, default=[1.0], help="of the disease, 0…1; the simulator's own is 1")
    arguments.add_argument("--seeds", type=int, default=5, help="cohorts, seeds 0, 1, …")
    arguments.add_argument("--participants", type=int, default=50, help="half of them patients")
    arguments.add_argument("--others", type=int, default=24, help="healthy participants that the layers are learned from")
    arguments.add_argument("--parcels", type=int, default=100)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--scrub", action="store_true", help=f"drop frames with a displacement above {FD_MM} mm")
    arguments.add_argument("--checkpoint", default="pnet-linear", help="model name or checkpoint folder")
    arguments.add_argument("--keep", type=Path, help="keep every participant's edges here; an interrupted run resumes from it")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
