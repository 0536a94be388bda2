"""Head motion in the edges of ABIDE I: QC-FC beside chance, distance dependence, and FD predicted from edges of held-out participants.

Whole scans of 200 regions, band-passed, FD from the table of the Preprocessed Connectomes Project
(`Phenotypic_V1_0b_preprocessed1.csv`, column `func_mean_fd`). Layers: pearson without the mean signal of the regions, pearson with it
(`with mean`), partial correlations. Once as they are, once with the site held constant: sites differ in motion and in everything else.

    python benchmarks/evaluation/motion.py --phenotypes FILE --out benchmarks/results/evaluation_motion.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import abide
from arrays import cohort_of_edges, displacement_of, words
from common import need, parser, table, write

from pnet_jax.cohort import Cohort
from pnet_jax.edges import compute
from pnet_jax.evaluate import motion


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--phenotypes", type=Path, required=True, help="ABIDE's table of phenotypes")
    args = arguments.parse_args()
    cohort = networks(args.data, args.phenotypes)
    figures = {}
    for name, covariates in (("as they are", ()), ("site held constant", ("site",))):
        answer = motion(cohort, covariates=covariates)
        figures[name] = words(answer)
        rows = [row for row in answer.rows if row.table == "motion"]
        measures = list(dict.fromkeys(row.measure for row in rows))
        found = {(row.name, row.measure): row.value for row in rows}
        table((name, *measures), [(layer, *(found.get((layer, measure)) for measure in measures)) for layer in cohort.edges])
        print("\n".join([*answer.sentences, *(f"! {said}" for said in answer.warnings)]))
    write(args, figures)


def networks(folder: Path, phenotypes: Path) -> Cohort:
    """Networks of the participants with a value of FD, with the regions as locations."""
    table_file, atlas = need(folder, abide.TABLE, abide.ATLAS)
    displacement = displacement_of(phenotypes)
    with np.load(table_file) as file:
        space = abide.regions(atlas, file["roi_id"])
    without, plain = (abide.recordings(table_file, without_mean=flag) for flag in (True, False))
    kept = [at for at, one in enumerate(without) if np.isfinite(displacement.get(one.subject[-5:], np.nan))]
    layers = {
        "pearson": [compute("pearson", abide.band_passed(without[at].signals, without[at].tr).T) for at in kept],
        "with mean": [compute("pearson", abide.band_passed(plain[at].signals, plain[at].tr).T) for at in kept],
        "partial": [compute("partial", abide.band_passed(without[at].signals, without[at].tr).T) for at in kept],
    }
    subjects = [without[at].subject for at in kept]
    about = {"mean_fd": np.array([displacement[name[-5:]] for name in subjects]), "site": np.array([without[at].site for at in kept])}
    cohort = cohort_of_edges(subjects, ["1"] * len(kept), {name: np.stack(found) for name, found in layers.items()}, **about)
    labels = np.broadcast_to(np.arange(len(space), dtype=np.int16), (len(kept), len(space)))
    return dataclasses.replace(cohort, labels=labels, confidence=np.ones(labels.shape, np.float32), space=space)


if __name__ == "__main__":
    main()
