"""Seconds that each evaluation of `pnet evaluate all` takes on ABIDE I: 200 regions, one scan of each participant.

The cohort has two classes (dx), a number (age), sites and signals. Repeated scans, which consistency and identifiability need, are the
halves of the scans. Motion needs ABIDE's table of phenotypes; parcellation needs maps of parcels, which these data do not contain.

    python benchmarks/evaluation/all_questions.py --phenotypes Phenotypic_V1_0b_preprocessed1.csv \\
        --out benchmarks/results/evaluation_all.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cohorts import abide, abide_halves, abide_motion
from common import parser, table, write

from pnet_jax.cohort import Cohort
from pnet_jax.evaluate import Answer, circuits, consistency, diagnosis, identifiability, modulation, motion, prediction
from pnet_jax.outputs.evaluation import write_answer


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--subjects", type=int, help="evaluate only this many participants, drawn at random")
    arguments.add_argument("--phenotypes", type=Path, help="ABIDE's table of phenotypes, for head motion")
    arguments.add_argument("--keep", type=Path, help="write the answers to this folder")
    args = arguments.parse_args()
    begun = time.perf_counter()
    scans, halves = abide(args.data, wide=False), abide_halves(args.data, args.phenotypes)
    if args.subjects:
        scans, halves = (some(one, args.subjects) for one in (scans, halves))
    figures: dict[str, object] = {"participants": len(scans.subjects), "participants with halves": len(halves.subjects)}
    seconds = {"loading": time.perf_counter() - begun}
    for name, evaluate in questions(args, scans, halves).items():
        begun = time.perf_counter()
        answer = evaluate()
        seconds[name] = time.perf_counter() - begun
        print(f"{name}: {seconds[name]:.0f} s. {answer.sentences[0]}", flush=True)
        if args.keep:
            write_answer(answer, args.keep)
    seconds["all evaluations"] = sum(value for name, value in seconds.items() if name != "loading")
    table(("evaluation", "seconds"), list(seconds.items()))
    write(args, figures | {"seconds": seconds})


def questions(args, scans: Cohort, halves: Cohort) -> dict[str, Callable[[], Answer]]:
    """The evaluations with the settings of `pnet evaluate all`."""
    every = {
        "consistency": lambda: consistency(halves),
        "identifiability": lambda: identifiability(halves),
        "diagnosis": lambda: diagnosis(scans, "dx", positive="ASD"),
        "prediction": lambda: prediction(scans, "age"),
        "circuits": lambda: circuits(scans, "dx", positive="ASD"),
        "modulation": lambda: modulation(scans, "dx", positive="ASD"),
    }
    if args.phenotypes:
        moved = abide_motion(args.data, args.phenotypes)
        every["motion"] = lambda: motion(some(moved, args.subjects) if args.subjects else moved)
    return every


def some(cohort: Cohort, count: int) -> Cohort:
    """Return the scans of some participants, drawn at random."""
    drawn = np.random.default_rng(0).permutation(np.unique(cohort.table["subject"].astype(str)))[:count]
    return cohort.take(np.isin(cohort.table["subject"].astype(str), drawn))


if __name__ == "__main__":
    main()
