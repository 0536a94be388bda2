"""Diagnosis and prediction in held-out participants on public data: benchmarks across sites, and positive, null-like and leak controls.

`abide`: autism, 19 sites, each left out in turn; several views and site centring beside the plain connectome. `eyes`: eyes open
against closed, with learning curves over participants and minutes. `depression`: a data set on which a plain connectome tells next
to nothing. `leak`: edges that were selected on all participants before the folds were made, beside as many edges that were selected
inside the folds.

`abide-age`, `abide-fiq`: age and full-scale IQ of the same participants, each site held out; the file has no head motion, so the covariates
are scan length, sex, diagnosis and age. Beside it, random folds of participants, in which site can be learned: networks and covariates.

    python benchmarks/evaluation/diagnosis.py --out benchmarks/results/evaluation_diagnosis.json
    python benchmarks/evaluation/diagnosis.py abide-age --permutations 500 --out benchmarks/results/evaluation_prediction.json
"""

from __future__ import annotations

import sys
import time

import cohorts
import numpy as np
from common import need, parser, table, write

from pnet_jax.evaluate import diagnosis, prediction
from pnet_jax.evaluate.adjusted import Selected
from pnet_jax.evaluate.features import Edges, Given
from pnet_jax.evaluate.pipeline import Pipeline, predict
from pnet_jax.evaluate.scores import bootstrap_weights, over_repeats, weighted_auc
from pnet_jax.evaluate.split import by_subject, leave_site_out

LEAK = "malini_selected_edges/malini_selected_edges_float16.npz"
SELECTED = 1000


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("sets", nargs="*", default=["eyes", "depression", "leak", "abide"], help=", ".join(RUNS))
    arguments.add_argument("--permutations", type=int, default=1000)
    arguments.add_argument("--add", nargs="+", default=[], help="further features for age and IQ, such as views, which is slow")
    args = arguments.parse_args()
    figures = {}
    for name in args.sets:
        begun = time.perf_counter()
        figures[name] = RUNS[name](args)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        write(args, figures)


def abide(args) -> dict[str, object]:
    cohort = cohorts.abide(args.data)
    features = (
        "tangent",
        "shrunk-tangent",
        "pearson",
        "partial",
        "tangent+pearson",
        "views",
        "site-centred",
        "encoder",
        "covariates",
        "permuted",
    )
    return shown(diagnosis(cohort, "dx", positive="ASD", features=features, permutations=args.permutations, progress=said))


def abide_age(args) -> dict[str, object]:
    return predicted(args, "age", ("n_frames", "sex", "dx"))


def abide_fiq(args) -> dict[str, object]:
    return predicted(args, "fiq", ("n_frames", "sex", "dx", "age"))


def predicted(args, target: str, covariates: tuple[str, ...]) -> dict[str, object]:
    """A number with each site held out, and in random folds of participants, where site is one of the covariates."""
    cohort = cohorts.abide(args.data, wide="views" in args.add)
    features = ("tangent", "pearson", "partial", "tangent+pearson", "site-centred", *args.add, "covariates", "permuted")
    options = {"covariates": covariates, "permutations": args.permutations, "progress": said}
    figures = {"sites": shown(prediction(cohort, target, features=features, **options))}
    options |= {"covariates": (*covariates, "site"), "permutations": 0, "leave_out": "subject", "repeats": 1, "learning": ()}
    figures["participants"] = shown(prediction(cohort, target, features=("tangent", "pearson", "covariates"), **options))
    return figures


def eyes(args) -> dict[str, object]:
    cohort = cohorts.eyes(args.data)
    features = ("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "encoder", "graph", "permuted")
    options = {"features": features, "folds": 8, "repeats": 5, "permutations": args.permutations, "progress": said}
    return shown(diagnosis(cohort, "state", minutes=(1, 2, 4, 6), **options))


def depression(args) -> dict[str, object]:
    cohort = cohorts.depression(args.data)
    features = ("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "encoder", "permuted")
    return shown(diagnosis(cohort, "dx", positive="MDD", features=features, permutations=args.permutations, progress=said))


def leak(args) -> dict[str, object]:
    """Edges selected on everybody: published sets of them, and the same done to ABIDE here."""
    rows: list[tuple[object, ...]] = []
    with np.load(need(args.data, LEAK)[0]) as stored:
        for name in sorted(key.removesuffix("_fc") for key in stored.files if key.endswith("_fc")):
            x, labels = stored[f"{name}_fc"].astype(np.float32), stored[f"{name}_label"].astype(str)
            control = max(set(labels), key=lambda one, labels=labels: (labels == one).sum())
            y = (labels != control).astype(float)
            split = by_subject(np.arange(len(y)), y, repeats=5)
            rows.append((f"{name}: {x.shape[1]} edges as published", *scored([Pipeline((Given("published", x),))], split, y)[0], len(y)))
    cohort = cohorts.abide(args.data, wide=False)
    y = (cohort.table["dx"] == "ASD").astype(float)
    split = leave_site_out(cohort.table["subject"], cohort.table["site"])
    edges = Edges(cohort)
    leaked = Given("before", Selected(edges, y, SELECTED)(np.arange(len(y))))
    pipelines = [Pipeline((one,)) for one in (leaked, Selected(edges, y, SELECTED), edges)]
    names = (
        f"abide: {SELECTED} edges selected on all participants",
        f"abide: {SELECTED} edges selected inside the folds",
        "abide: all edges",
    )
    rows += [(name, *found, len(y)) for name, found in zip(names, scored(pipelines, split, y), strict=True)]
    table(("edges", "AUC", "low", "high", "n"), rows)
    return {str(row[0]): dict(zip(("AUC", "low", "high", "n"), row[1:], strict=True)) for row in rows}


def said(name: str, done: int, total: int) -> None:
    """Print the progress of long runs."""
    if name and done % max(total // 20, 1) == 0:
        print(f"  {done} of {total} fits, {name}", file=sys.stderr, flush=True)


def scored(pipelines, split, y) -> list[tuple[float, float, float]]:
    weights = bootstrap_weights(split.subjects, split.blocks, 2000, 0)
    out = []
    for one in predict(pipelines, split, y, classes=True):
        each = over_repeats(weighted_auc, one.decision, y, weights)
        out.append((float(each[0]), *map(float, np.percentile(each[1:], (2.5, 97.5)))))
    return out


def shown(answer) -> dict[str, object]:
    """Print the scores and differences, and return all rows."""
    for sentence in (*answer.sentences, *answer.warnings):
        print(sentence)
    rows = [row for row in answer.rows if row.measure.startswith(("AUC", "balanced", "Brier", "expected", "r", "R²", "mean absolute"))]
    table(("table", "name", "measure", "value", "low", "high", "p", "n"), [tuple(row)[:8] for row in rows])
    return {"sentences": list(answer.sentences), "settings": dict(answer.settings), "rows": [row._asdict() for row in answer.rows]}


RUNS = {"abide": abide, "abide-age": abide_age, "abide-fiq": abide_fiq, "eyes": eyes, "depression": depression, "leak": leak}

if __name__ == "__main__":
    main()
