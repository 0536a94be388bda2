"""Prediction of a number, e.g. age, cognition or severity, from networks in held-out participants and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.evaluate import scores
from pnet_jax.evaluate.answer import Answer, Figure, Line, Row, with_interval, with_p
from pnet_jax.evaluate.beside import beside_sentences, same_scans
from pnet_jax.evaluate.checks import motion_part
from pnet_jax.evaluate.columns import number_target
from pnet_jax.evaluate.compare import (
    Scored,
    compared,
    conclusion,
    learning_rows,
    permutation_rows,
    predictions_table,
    score_rows,
)
from pnet_jax.evaluate.pipeline import Predictions, Progress
from pnet_jax.evaluate.plan import DEFAULT
from pnet_jax.evaluate.split import Split

R = Scored("r", scores.weighted_r)
R2 = Scored("R²", scores.weighted_r2)
ERROR = Scored("mean absolute error", scores.weighted_mae)


def prediction(
    cohort: Cohort,
    target: str,
    *,
    beside: Mapping[str, Cohort] | None = None,
    features: Sequence[str] = DEFAULT,
    covariates: Sequence[str] | None = None,
    site: str = "site",
    leave_out: str = "auto",
    folds: int = 5,
    repeats: int = 5,
    held_out: Sequence[Sequence[str]] | None = None,
    permutations: int = 1000,
    learning: Sequence[float] = (0.25, 0.5, 0.75),
    seed: int = 0,
    progress: Progress | None = None,
) -> Answer:
    """Predict a numeric column of the cohort's table from networks of held-out participants by kernel ridge regression.

    Everything is fitted in the training part of each fold; penalties are chosen by squared error in inner folds. Sites differ in the target
    and in their scanners, so r within sites is the primary score if there are several sites.

    Args:
      cohort: Scans; a participant may have several.
      target: Column with numbers.
      beside, features, covariates, site, leave_out, folds, repeats, held_out, permutations, learning, seed, progress: As in `diagnosis`.

    Returns:
      Rows "features" (r within sites, r, R², mean absolute error, and the error of the training mean), "differences" to the plain
      connectome, "permutation" and "learning curve"; a table with all predictions.

    Raises:
      SettingsError: A column or feature is unknown.
      InputError: The target does not vary or is not numeric, there are fewer than 10 participants or one per fold, or there is only one
        site with `leave_out="site"`. Fewer than 40 participants give a warning, as in `diagnosis`.
    """
    same = same_scans(cohort, beside, target)
    goal = number_target(same.cohort, target)
    run = compared(
        same.cohort,
        goal,
        models=("ridge",),
        beside=same.others,
        features=features,
        covariates=covariates,
        site=site,
        leave_out=leave_out,
        folds=folds,
        repeats=repeats,
        held_out=held_out,
        permutations=permutations,
        learning=learning,
        seed=seed,
        progress=progress,
    )
    scans, sites, split, chosen, found = run[:5]
    measures = [R, R2, ERROR] if sites is None else [Scored("r within sites", scores.within(scores.weighted_r, sites)), R, R2, ERROR]
    rows = score_rows(found, goal.y, split, measures, sites, chosen.partners, seed)
    rows += _mean_rows(found[0], goal.y, split) + permutation_rows(found, goal.y, run.permuted, measures[0])
    curves = learning_rows(found[0], run.fewer, goal.y, split, sites, measures[0], seed)
    moved, unknown = motion_part(scans, goal.y, seed)
    settings = {**run.settings, "features": [one.name for one in found], "beside": same.about}
    first = next(row for row in rows if row.measure == measures[0].measure)
    error = next(row for row in rows if row.measure == ERROR.measure)
    plain = next(row for row in rows if row.name == "training mean")
    tested = [row.p for row in rows if (row.table, row.name) == ("permutation", first.name)]
    p = f", permutation {with_p(tested[0])}" if tested else ""
    verdict = "predicts" if first.low > 0 else "does not detectably predict"
    sentences = (
        f"The plain connectome ({first.name}) {verdict} {target} in held-out participants with {first.measure} = {with_interval(first)}, "
        f"n = {first.n} ({split.name}{p}).",
        conclusion(rows, found[0].name, measures[0].measure),
        f"Its mean absolute error is {error.value:.3g}, 95 % CI [{error.low:.3g}, {error.high:.3g}], in units of {target}; predicting the "
        f"mean of the training participants has an error of {plain.value:.3g}.",
        *beside_sentences(rows, same.about, measures[0].measure),
    )
    return Answer(
        "prediction",
        sentences,
        tuple(rows + moved + curves),
        settings,
        tables={"predictions": predictions_table(scans, goal, found)},
        figures=_figures(found, goal.y, target),
        warnings=(*same.warnings, *run.warnings, *unknown),
    )


def _mean_rows(one: Predictions, y: np.ndarray, split: Split) -> list[Row]:
    """Return the error of predicting the training mean for every held-out row."""
    total, count = 0.0, 0
    for train, test in split:
        total += float(np.abs(y[test] - y[train].mean()).sum())
        count += len(test)
    return [Row("features", "training mean", ERROR.measure, total / count, n=int(np.isfinite(one.decision).any(0).sum()))]


def _figures(found: Sequence[Predictions], y: np.ndarray, target: str) -> tuple[Figure, ...]:
    lines = []
    for one in found[:3]:
        known = np.isfinite(one.decision[0])
        order = np.argsort(one.decision[0, known], kind="stable")
        parts = np.array_split(order, 10)
        x, v = (np.array([values[part].mean() for part in parts if len(part)]) for values in (one.decision[0, known], y[known]))
        lines.append(Line(one.name, x, v))
    return (Figure("Predicted and observed values, means of deciles", f"predicted {target}", f"observed {target}", tuple(lines)),)
