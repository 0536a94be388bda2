"""Diagnosis: classification of two groups of participants from networks, in held-out participants and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import scores
from pnet_jax.evaluate.answer import Answer, Figure, Line, Row, interval_of, with_interval, with_p
from pnet_jax.evaluate.beside import beside_sentences, same_scans
from pnet_jax.evaluate.checks import motion_part
from pnet_jax.evaluate.columns import Target, class_target
from pnet_jax.evaluate.compare import (
    DRAWS,
    Scored,
    compared,
    conclusion,
    first_minutes,
    learning_rows,
    permutation_rows,
    predictions_table,
    score_rows,
)
from pnet_jax.evaluate.features import Edges, Tangent
from pnet_jax.evaluate.pipeline import Pipeline, Predictions, Progress, predict
from pnet_jax.evaluate.plan import DEFAULT
from pnet_jax.evaluate.split import Split

AUC = Scored("AUC", scores.weighted_auc)
MEASURES = (
    AUC,
    Scored("balanced accuracy", scores.weighted_accuracy, of_probability=True),
    Scored("Brier score", scores.weighted_brier, of_probability=True),
)
CHANCE = 0.5  # AUC
HIGH = 0.8  # AUC across sites above which a leak is more likely than a finding, for disorders without an obvious sign in the connectome


def diagnosis(
    cohort: Cohort,
    target: str,
    *,
    positive: str | None = None,
    beside: Mapping[str, Cohort] | None = None,
    features: Sequence[str] = DEFAULT,
    models: Sequence[str] = ("ridge", "logistic", "svm"),
    covariates: Sequence[str] | None = None,
    site: str = "site",
    leave_out: str = "auto",
    folds: int = 5,
    repeats: int = 5,
    held_out: Sequence[Sequence[str]] | None = None,
    permutations: int = 1000,
    learning: Sequence[float] = (0.25, 0.5, 0.75),
    minutes: Sequence[float] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Answer:
    """Predict a two-class column of the cohort, e.g. the diagnosis, from networks of held-out participants.

    Features, models and penalties are fitted in the training part of each fold; penalties are chosen by AUC in inner folds. The plain
    connectome comes first, and every other pipeline is compared with it on the same folds.

    Args:
      cohort: Scans; a participant may have several.
      target: Column with two classes.
      positive: Class coded as 1; the last in sorted order by default.
      beside: Networks of the same scans made in another way, by name, e.g. `{"atlas": other}`: in a fixed atlas, in clusters, by another
        pipeline; of any number of parcels. Their plain connectomes are compared in the same folds, with the table of `cohort`; scans that
        one of them lacks are left out of all.
      features: Names from `plan.FEATURES`, or names of edge layers.
      models: Names from `models.MODELS`, for the plain connectome; the other features use the first.
      covariates: Columns of the row "covariates alone"; by default, known covariates without missing values.
      site: Column with the site of each scan.
      leave_out: `"site"`, `"subject"` or `"auto"` (sites if there are three or more).
      folds, repeats: Number of folds, and of repeats with different random folds, if subjects are held out.
      held_out: Subjects held out in each fold; replaces `leave_out`.
      permutations: Number of permuted targets for p values of ridge; 0 for no permutation tests.
      learning: Fractions of the training participants in the learning curve.
      minutes: Scan lengths in minutes for a second learning curve, for cohorts with signals.
      seed: Seed of folds, bootstrap and permutations.
      progress: Callback that receives the current step, the number of finished fits and their total.

    Returns:
      Rows "features" (AUC, within-site AUC, balanced accuracy, Brier score, calibration error), "differences" to the plain connectome,
      "permutation" and "learning curve"; tables with all predictions.

    Raises:
      SettingsError: A column, class, feature or model is unknown.
      InputError: There is only one class or one site, there are fewer than 10 participants, 5 of a class or one per fold, a subject is in
        both parts of a fold, or a cohort of `beside` has no scan in common. Fewer than 40 participants, 20 of a class, give a warning.
    """
    same = same_scans(cohort, beside, target)
    goal = class_target(same.cohort, target, positive)
    run = compared(
        same.cohort,
        goal,
        models=models,
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
    not_built = []
    if "graph" in features:
        from pnet_jax.evaluate.graph import graph_predictions

        try:
            found.append(graph_predictions(scans, split, goal.y, seed=seed))
        except (InputError, SettingsError) as error:  # the other pipelines are compared
            not_built = [f"The feature 'graph' was not compared: {error}."]
    measures = [*MEASURES[:1], *_within(sites, goal.y), *MEASURES[1:]]
    rows = score_rows(found, goal.y, split, measures, sites, chosen.partners, seed)
    rows += _calibration_rows(found, goal.y) + permutation_rows(found, goal.y, run.permuted, AUC)
    curves = learning_rows(found[0], run.fewer, goal.y, split, sites, AUC, seed)
    curves += _length_rows(scans, split, goal, sites, minutes, seed)
    moved, unknown = motion_part(scans, goal.y, seed)
    settings = {**run.settings, "models": list(models), "features": [one.name for one in found], "beside": same.about}
    return Answer(
        "diagnosis",
        (*_sentences(rows, found, goal, split), *beside_sentences(rows, same.about, AUC.measure)),
        tuple(rows + moved + curves),
        settings,
        tables={"predictions": predictions_table(scans, goal, found)},
        figures=_figures(found, goal.y, curves),
        warnings=(
            *same.warnings,
            *_warnings(rows, found),
            *run.warnings,
            *not_built,
            *_both_classes(split, goal),
            *unknown,
        ),
    )


def _within(sites: np.ndarray | None, y: np.ndarray) -> list[Scored]:
    if sites is None or not any(np.ptp(y[own]) > 0 for own in scores.members(sites)):
        return []
    return [Scored("AUC within sites", scores.within(scores.weighted_auc, sites))]


def _calibration_rows(found: Sequence[Predictions], y: np.ndarray) -> list[Row]:
    rows = []
    for one in found:
        assert one.probability is not None
        known = np.isfinite(one.probability)
        values, truth = one.probability[known], np.broadcast_to(y, known.shape)[known]
        error = scores.calibration_curve(values, truth)[2]
        rows.append(Row("features", one.name, "expected calibration error", error, n=int(known.any(0).sum())))
    return rows


def _length_rows(cohort: Cohort, split: Split, goal: Target, sites: np.ndarray | None, minutes: Sequence[float], seed: int) -> list[Row]:
    """Return the AUC of plain connectomes computed from the first minutes of each scan."""
    weights, rows = scores.bootstrap_weights(split.subjects, sites, DRAWS, seed), []
    for length in minutes:
        short = first_minutes(cohort, length)
        count = int((cohort.table["recorded_frames"] * cohort.table["tr"] < 60 * length - 1e-6).sum())
        note = f"{count} scans are shorter, and were used whole" if count else ""
        pipelines = [Pipeline((Tangent(short),)), Pipeline((Edges(short),))]
        for one in predict(pipelines, split, goal.y, classes=True):
            each = scores.over_repeats(scores.weighted_auc, one.decision, goal.y, weights)
            measure = f"AUC, first {length:g} min"
            rows.append(Row("scan length", one.name, measure, float(each[0]), *interval_of(each[1:]), n=len(goal.y), note=note))
    return rows


def _sentences(rows: Sequence[Row], found: Sequence[Predictions], goal: Target, split: Split) -> tuple[str, ...]:
    first = next(row for row in rows if row.table == "features" and row.measure == "AUC")
    tested = {row.name: row.p for row in rows if row.table == "permutation"}
    p = f", permutation {with_p(tested[first.name])}" if first.name in tested else ""
    verdict = "separates" if first.low > CHANCE else "does not detectably separate"
    said = [
        f"The plain connectome ({first.name}) {verdict} {goal.classes[1]} from {goal.classes[0]} in held-out participants with AUC = "
        f"{with_interval(first)}, n = {first.n} (chance level 0.5; {split.name}{p}).",
        conclusion(rows, found[0].name, "AUC"),
    ]
    alone = [row for row in rows if row.table == "features" and row.measure == "AUC" and row.name.startswith("covariates alone")]
    if alone:
        columns = alone[0].name.partition(": ")[2].rpartition(" + ")[0]
        said.append(f"Covariates alone ({columns}), without a network, reach AUC = {with_interval(alone[0])}.")
    return tuple(said)


def _warnings(rows: Sequence[Row], found: Sequence[Predictions]) -> list[str]:
    said = []
    best = max((row for row in rows if row.table == "features" and row.measure == "AUC"), key=lambda row: row.value)
    if best.value > HIGH:
        said.append(
            f"AUC = {best.value:.3f} ({best.name}) would be high for a psychiatric diagnosis. Check for leakage and confounds: edges "
            "selected on all participants, a group model fitted to the same participants, or scan length, site or motion that differ "
            "between the classes."
        )
    shrunk = [one.name for one in found if any(word in one.name for word in ("shrunk", "guided"))]
    if shrunk:
        why = "these edges are shrunk towards a group model, whose participants must not be in this cohort"
        said.append(f"{shrunk[0]}: {why}.")
    return said


def _both_classes(split: Split, goal: Target) -> list[str]:
    """Return a warning if some participants have scans of both classes and others of one."""
    names = np.unique(split.subjects)
    both = [name for name in names if np.ptp(goal.y[split.subjects == name]) > 0]
    if not both or len(both) == len(names):
        return []
    return [
        f"{len(both)} of {len(names)} participants have scans of both classes, first {both[0]}: correct the table if {goal.name} cannot "
        "change within a participant. Permutation tests exchange scans within participants only."
    ]


def _figures(found: Sequence[Predictions], y: np.ndarray, curves: Sequence[Row]) -> tuple[Figure, ...]:
    lines, bars = [], []
    for one in found[:4]:
        known = np.isfinite(one.decision[0])
        lines.append(_roc(one.name, one.decision[0, known], y[known]))
        if one.probability is not None:
            said, share, _ = scores.calibration_curve(one.probability[0, known], y[known])
            bars.append(Line(one.name, said, share))
    out = [
        Figure("ROC curve of held-out participants", "false-positive rate", "true-positive rate", tuple(lines)),
        Figure("Calibration", "predicted probability", "observed share", tuple(bars)),
    ]
    if learning := [row for row in curves if row.table == "learning curve"]:
        x, v, low, high = (np.array(one, float) for one in zip(*[(r.n, r.value, r.low, r.high) for r in learning], strict=True))
        out.append(Figure("Learning curve", "training participants", "AUC", (Line(learning[0].note, x, v, low, high),)))
    return tuple(out)


def _roc(name: str, decision: np.ndarray, y: np.ndarray) -> Line:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(y, decision)
    return Line(name, false, true)
