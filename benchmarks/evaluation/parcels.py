"""Parcels scored on signals that they were not made from, beside maps that any good one must beat.

- cerebellum: 12 participants, 29 task conditions in each of two halves. Parcels (K = 10, 20) are Ward's clusters of half 1,
  scored on half 2; beside them those of other participants, random parcels of their sizes, nearest centroids, and k-means of half 1.
- bold4d: one resting scan of 6.5 min at 4 mm, cut in two with a gap. Personalised parcels of each half, scored on the other half, beside
  the atlas (Schaefer 200 + 16), the data-free map of nearest centroids, Ward's clusters of the same half and random parcels.

    python benchmarks/evaluation/parcels.py --out benchmarks/results/evaluation_parcels.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cerebellum import load
from cohorts import words
from common import BOLD, CEREBELLUM, MASK, atlas, need, parser, table, write
from cross_half import halves
from sklearn.cluster import KMeans

import pnet_jax
from pnet_jax.evaluate.answer import Answer
from pnet_jax.evaluate.null_parcels import ward
from pnet_jax.evaluate.parcel_scores import parcellation_scores
from pnet_jax.parcellation.score import standardised

PARCELS = (10, 20)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data-sets", nargs="+", default=["cerebellum", "bold4d"], choices=("cerebellum", "bold4d"))
    arguments.add_argument("--nulls", type=int, default=20, help="random maps for each participant")
    args = arguments.parse_args()
    figures: dict[str, object] = {}
    if "cerebellum" in args.data_sets:
        _, betas, valid, space = load(need(args.data, CEREBELLUM)[0])
        for k in PARCELS:
            figures[f"cerebellum, K = {k}"] = show(f"cerebellum, K = {k}", tasks(betas, valid, space, k, args.nulls))
    if "bold4d" in args.data_sets:
        bold, mask, file = need(args.data, BOLD, MASK, atlas(200))
        for name, answer in rest(bold, mask, file, args.nulls).items():
            figures[f"bold4d, K = 216, {name}"] = show(f"bold4d, K = 216, {name}", answer)
    write(args, figures)


def tasks(betas: np.ndarray, valid: np.ndarray, space, k: int, nulls: int) -> Answer:
    """Clusters of one half of each participant's task data, scored on the other half."""
    made = [np.asarray(standardised(one[0].copy(), np.ones(one.shape[-1], np.float32))) for one in betas]
    clustered, contiguous = [], []
    for y, inside in zip(made, valid, strict=True):
        labels = np.full(len(inside), -1)
        labels[inside] = KMeans(k, n_init=5, random_state=0).fit_predict(y[inside])
        clustered.append(labels)
        counted = np.where(inside, np.arange(len(inside)) % (k // 2) + space.hemisphere * (k // 2), -1)  # k / 2 clusters a hemisphere
        contiguous.append(ward(y, counted, space))
    own = np.stack(contiguous)
    return parcellation_scores(own, [one[1] for one in betas], space, int(own.max()) + 1, maps={"k-means": clustered}, nulls=nulls)


def rest(bold, mask, file, nulls: int) -> dict[str, Answer]:
    """Parcels of each half of one scan, scored on the other half."""
    scans = halves(bold, mask)
    prior = pnet_jax.load_atlas(file, space="MNI152NLin6Asym")
    networks = [pnet_jax.construct(scan, atlas=prior, edges=()) for scan in scans]
    fixed = networks[0].atlas_labels
    inside = (fixed >= 0) & (networks[0].labels >= 0) & (networks[1].labels >= 0)
    answers = {}
    for made, scored in ((0, 1), (1, 0)):
        labels, atlas_labels = (np.where(inside, own, -1) for own in (networks[made].labels, fixed))
        answers[f"half {made + 1} on half {scored + 1}"] = parcellation_scores(
            labels[None], [scans[scored].y], scans[0].space, prior.n_parcels, atlas=atlas_labels, made_from=[scans[made].y], nulls=nulls
        )
    return answers


def show(name: str, answer: Answer) -> dict[str, object]:
    rows = [row for row in answer.rows if row.table == "maps"]
    measures = list(dict.fromkeys(row.measure for row in rows))
    found = {(row.name, row.measure): row.value for row in rows}
    table((name, *measures), [(one, *(found[one, measure] for measure in measures)) for one in dict.fromkeys(row.name for row in rows)])
    print("\n".join(answer.sentences), flush=True)
    return words(answer)


if __name__ == "__main__":
    main()
