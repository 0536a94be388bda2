"""Head motion in the edges of ABIDE I: QC-FC beside chance, distance dependence, and FD predicted from edges of held-out participants.

Whole scans of 200 regions, band-passed, FD from the table of the Preprocessed Connectomes Project
(`Phenotypic_V1_0b_preprocessed1.csv`, column `func_mean_fd`). Layers: pearson without the mean signal of the regions, pearson with it
(`with mean`), partial correlations. Once as they are, once with the site held constant: sites differ in motion and in everything else.

    python benchmarks/evaluation/motion.py --phenotypes FILE --out benchmarks/results/evaluation_motion.json
"""

from __future__ import annotations

from pathlib import Path

from cohorts import abide_motion, words  # also puts the folder above on the path
from common import parser, table, write

from pnet_jax.evaluate import motion


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--phenotypes", type=Path, required=True, help="ABIDE's table of phenotypes")
    args = arguments.parse_args()
    cohort = abide_motion(args.data, args.phenotypes)
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


if __name__ == "__main__":
    main()
