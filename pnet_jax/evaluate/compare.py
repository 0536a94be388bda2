"""Shared parts of diagnosis and prediction: the pipelines compared, their scores with intervals, and learning curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from pnet_jax.cohort import Cohort
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import scores
from pnet_jax.evaluate.answer import Row, interval_of, with_p
from pnet_jax.evaluate.checks import absent_parcels, equal_networks, few_participants
from pnet_jax.evaluate.columns import Target, column, missing
from pnet_jax.evaluate.features import with_measure
from pnet_jax.evaluate.models import MODELS
from pnet_jax.evaluate.pipeline import Predictions, Progress, predict, repeats_of_folds
from pnet_jax.evaluate.plan import Plan, plan
from pnet_jax.evaluate.split import Split, by_subject, fixed, joined_values, leave_site_out

DRAWS = 2000
SITE = "site"  # column that may be missing
LEAST_HELD = 3  # fewest held-out values of a numeric target for a correlation


def sites_of(cohort: Cohort, name: str = "site") -> np.ndarray | None:
    """Return the site of each scan, or None if the cohort has only one site, or no column `site`.

    Raises:
      SettingsError: If another column was named and does not exist.
      InputError: If a scan has no site; the message names it.
    """
    if name == SITE and name not in cohort.table:
        return None
    column(cohort, name)
    values = np.asarray(cohort.table[name])
    if missing(values).any():
        scan = cohort.table["scan"][missing(values)][0]
        raise InputError(f"{name}: expected a site for every scan, found none for {scan}")
    values = values.astype(str)
    return values if len(np.unique(values)) > 1 else None


def folds_of(
    cohort: Cohort,
    goal: Target,
    sites: np.ndarray | None,
    leave_out: str,
    folds: int,
    repeats: int,
    held_out: Sequence[Sequence[str]] | None,
    seed: int,
) -> Split:
    """Return the folds: folds from a list, one fold per site, or random folds by subject.

    Raises:
      SettingsError: `leave_out` is unknown.
      InputError: If there is only one site, or there are fewer participants than folds.
    """
    subjects = cohort.table["subject"].astype(str)
    if held_out is not None:
        return fixed(subjects, held_out, blocks=sites, seed=seed)
    many = sites is not None and len(np.unique(sites)) >= 3
    if leave_out == "site" or (leave_out == "auto" and many):
        if sites is None:
            raise InputError("leave-site-out: expected a site column with two or more sites, found none")
        return leave_site_out(subjects, sites, seed=seed)
    if leave_out not in ("auto", "subject"):
        raise SettingsError(f"leave_out: expected site, subject or auto, got {leave_out!r}")
    kinds = np.array(goal.classes)[goal.y.astype(int)] if goal.classes else joined_values(goal.y, subjects, folds)
    return by_subject(subjects, kinds, folds=folds, repeats=repeats, seed=seed)


def check_folds(split: Split, goal: Target) -> None:
    """Check that a model can be fitted in every fold, and that held-out scans can be scored.

    Raises:
      InputError: If a training part has fewer than two participants of a class, or all held-out scans have only one class or too few
          values.
    """
    for number, (train, _) in enumerate(split, 1):
        if not goal.classes:
            continue
        if len(np.unique(goal.y[train])) < 2:
            only = goal.classes[int(goal.y[train][0])]
            raise InputError(f"{split.name}: the training scans of fold {number} are all of class {only}: expected both classes")
        for one, name in enumerate(goal.classes):
            if len(np.unique(split.subjects[train][goal.y[train] == one])) < 2:
                raise InputError(
                    f"{split.name}: expected two participants or more of class {name} in the training part of fold {number}, found 1"
                )
    place = np.array(repeats_of_folds(split))
    for repeat in range(place.max() + 1):
        held = np.concatenate([test for (_, test), own in zip(split, place, strict=True) if own == repeat])
        if len(np.unique(goal.y[held])) < 2 or len(held) < (2 if goal.classes else LEAST_HELD):
            expected = "both classes" if goal.classes else f"{LEAST_HELD} values of {goal.name} or more that differ"
            raise InputError(f"{split.name}: expected {expected} among the held-out scans, found {len(held)} scans with too few")


class Comparison(NamedTuple):
    """Predictions of all pipelines on the same folds, and their inputs.

    Attributes:
      cohort: Scans with a target, in the order of all arrays.
      sites: Site of each scan, or None.
      split: Folds.
      plan: Pipelines.
      found: Predictions of each pipeline.
      fewer: Predictions of the first pipeline by fraction of the training participants.
      permuted: Permuted targets, or None.
      settings: Settings that every answer with a target records.
      warnings: Data that are not used, and features that were not built.
    """

    cohort: Cohort
    sites: np.ndarray | None
    split: Split
    plan: Plan
    found: list[Predictions]
    fewer: dict[float, Predictions]
    permuted: np.ndarray | None
    settings: Mapping[str, Any]
    warnings: list[str]


def compared(
    cohort: Cohort,
    goal: Target,
    *,
    models: Sequence[str],
    beside: Mapping[str, Cohort],
    features: Sequence[str],
    covariates: Sequence[str] | None,
    site: str,
    leave_out: str,
    folds: int,
    repeats: int,
    held_out: Sequence[Sequence[str]] | None,
    permutations: int,
    learning: Sequence[float],
    seed: int,
    progress: Progress | None,
) -> Comparison:
    """Build the folds and pipelines, and predict the held-out scans; arguments as in `diagnosis`, `beside` with the rows of the cohort."""
    _check_settings(models, permutations, learning)
    if held_out is not None:
        lacking = set(cohort.subjects) - set(cohort.take(goal.rows).subjects)  # subjects of the cohort without a target
        held_out = [[name for name in names if name not in lacking] for names in held_out]
    scans, others = cohort.take(goal.rows), {name: other.take(goal.rows) for name, other in beside.items()}
    warnings = few_participants(goal, scans.table["subject"].astype(str)) + absent_parcels(scans) + equal_networks(scans)
    sites = sites_of(scans, site)
    split = folds_of(scans, goal, sites, leave_out, folds, repeats, held_out, seed)
    check_folds(split, goal)
    if not goal.classes and "graph" in features:
        warnings.append("The feature 'graph' was not compared: the graph network classifies two groups and does not predict numbers.")
    chosen = plan(scans, others, features, models, covariates, sites, split.blocks is not None, exclude=goal.name)
    permuted = permuted_targets(goal.y, split.subjects, sites, permutations, seed)
    shares, classes = sorted(learning), bool(goal.classes)
    made = predict(chosen.pipelines, split, goal.y, classes=classes, permuted=permuted, shares=shares, progress=progress)
    count = len(chosen.pipelines)
    fewer = dict(zip(shares, made[count:], strict=True))
    settings = {"not_built": chosen.left_out, "covariates": list(chosen.covariates), "permutations": permutations}
    settings = _settings(split, goal, seed) | settings | {"site": site if sites is not None else ""}
    if goal.left_out:
        warnings.append(f"{goal.left_out} scans have no {goal.name} and were left out.")
    warnings += [f"The feature {name!r} was not compared: {why}." for name, why in chosen.left_out.items()]
    return Comparison(scans, sites, split, chosen, made[:count], fewer, permuted, settings, warnings)


def _settings(split: Split, target: Target, seed: int) -> dict[str, Any]:
    about: dict[str, Any] = {"target": target.name, "classes": list(target.classes), "folds": split.name}
    about |= {"n_folds": len(split), "folds_digest": split.digest}
    return about | {"bootstrap_draws": DRAWS, "seed": seed, "left_out_without_target": target.left_out}


def _check_settings(models: Sequence[str], permutations: int, learning: Sequence[float]) -> None:
    """Check settings before anything is fitted.

    Raises:
      SettingsError: If a model is unknown, or a number is out of range; the message names the setting.
    """
    if not models or (unknown := [name for name in models if name not in MODELS]):
        got = repr(unknown[0]) + nearest(unknown[0], MODELS) if models else "none"
        raise SettingsError(f"models: expected some of {', '.join(MODELS)}, got {got}")
    if permutations < 0:
        raise SettingsError(f"permutations: expected 0 or more, got {permutations}")
    if wrong := [share for share in learning if not 0 < share <= 1]:
        raise SettingsError(f"learning: expected fractions above 0, up to 1, got {wrong[0]:g}")


class Scored(NamedTuple):
    """A score: its name, its function, and whether it is computed from probabilities."""

    measure: str
    function: scores.Score
    of_probability: bool = False


def score_rows(
    found: Sequence[Predictions],
    y: np.ndarray,
    split: Split,
    measures: Sequence[Scored],
    sites: np.ndarray | None,
    partners: Mapping[str, str],
    seed: int,
) -> list[Row]:
    """Return the scores of every pipeline with intervals, and the difference in the first score from the first pipeline and from a partner.

    Intervals come from a bootstrap of participants within sites, with the same draws for all pipelines and fixed predictions; they do not
    include the variation between training samples. The p value of a difference comes from paired fold scores, corrected for overlap.
    """
    weights = scores.bootstrap_weights(split.subjects, sites, DRAWS, seed)
    rows, draws, folds = [], [], []
    for one in found:
        for scored in measures:
            values = one.probability if scored.of_probability else one.decision
            assert values is not None
            each = scores.over_repeats(scored.function, values, y, weights)
            rows.append(Row("features", one.name, scored.measure, float(each[0]), *interval_of(each[1:]), n=_subjects(one, split)))
            if scored is measures[0]:
                draws.append(each)
        folds.append(_fold_scores(one, y, measures[0], len(split)))
    sizes = [(len(train), len(test)) for train, test in split]
    n_train, n_test = np.mean(sizes, 0)
    names = [one.name for one in found]
    pairs = [(at, 0) for at in range(1, len(found))]
    pairs += [(names.index(name), names.index(partner)) for name, partner in partners.items()]
    for at, reference in pairs:
        apart = draws[at] - draws[reference]
        p = scores.corrected_t(folds[at] - folds[reference], n_train, n_test)
        said = f"{measures[0].measure} minus {names[reference]}"
        rows.append(Row("differences", names[at], said, float(apart[0]), *interval_of(apart[1:]), p=p, n=_subjects(found[at], split)))
    return rows


def _subjects(one: Predictions, split: Split) -> int:
    return len(np.unique(split.subjects[np.isfinite(one.decision).any(0)]))


def _fold_scores(one: Predictions, y: np.ndarray, scored: Scored, count: int) -> Float[np.ndarray, " F"]:
    out = np.full(count, np.nan)
    values = one.probability if scored.of_probability else one.decision
    assert values is not None
    for number in range(count):
        here = one.fold == number
        repeat = int(here.any(1).argmax())
        out[number] = scores.over_repeats(scored.function, np.where(here, values, np.nan)[[repeat]], y, np.ones((1, len(y))))[0]
    return out


def permuted_targets(
    y: np.ndarray, subjects: np.ndarray, sites: np.ndarray | None, count: int, seed: int
) -> Float[np.ndarray, "S P"] | None:
    """Return permuted targets: subjects are permuted within sites, or rows within subjects if the target varies within subjects.

    Returns None if `count` is 0.
    """
    if not count:
        return None
    rng, out = np.random.default_rng(seed), np.empty((len(y), count))
    rows = scores.members(subjects)
    if any(np.ptp(y[own]) > 0 for own in rows):
        for number in range(count):
            for own in rows:
                out[own, number] = rng.permutation(y[own])
        return out
    value = np.array([y[own[0]] for own in rows])
    site = None if sites is None else np.array([sites[own[0]] for own in rows])
    strata = scores.members(np.zeros(len(rows)) if site is None else site)
    for number in range(count):
        mixed = value.copy()
        for here in strata:
            mixed[here] = rng.permutation(value[here])
        for own, one in zip(rows, mixed, strict=True):
            out[own, number] = one
    return out


def permutation_rows(found: Sequence[Predictions], y: np.ndarray, permuted: np.ndarray | None, scored: Scored) -> list[Row]:
    """Return p values of the first score from fits to permuted targets; the penalty is chosen again for each."""
    rows = []
    for one in found:
        if one.null is None or permuted is None:
            continue
        known = np.isfinite(one.null).all(0)
        weights = known[None].astype(float)
        own = float(scored.function(np.where(known, one.decision[0], 0), y, weights)[0])
        each = np.array([scored.function(np.where(known, d, 0), t, weights)[0] for d, t in zip(one.null, permuted.T, strict=True)])
        p = (1 + (each >= own).sum()) / (1 + len(each))
        rows.append(Row("permutation", one.name, scored.measure, own, p=float(p), n=int(known.sum()), note=f"{len(each)} permutations"))
    return rows


def conclusion(rows: Sequence[Row], reference: str, measure: str) -> str:
    """Return one sentence on whether any pipeline predicts better than the plain connectome."""
    said = f"{measure} minus {reference}"
    apart = [row for row in rows if row.table == "differences" and row.measure == said and not row.name.startswith("covariates")]
    ahead = sorted((row for row in apart if row.low > 0), key=lambda row: -row.value)
    if not apart:
        return "No other pipeline was compared with the plain connectome."
    if not ahead:
        return (
            f"No pipeline predicts better than the plain connectome ({reference}): the 95 % CI of every difference in {measure} includes 0 "
            "or lies below it."
        )
    best = ahead[0]
    paired = "" if math.isnan(best.p) else f", {with_p(best.p)} paired over folds"
    many = f" ({len(apart)} comparisons, not corrected for multiple testing)" if len(apart) > 1 else ""
    return (
        f"{best.name} predicts better than the plain connectome ({reference}): difference in {measure} {best.value:+.3f}, "
        f"95 % CI [{best.low:+.3f}, {best.high:+.3f}]{paired}{many}."
    )


def learning_rows(
    whole: Predictions,
    fewer: Mapping[float, Predictions],
    y: np.ndarray,
    split: Split,
    sites: np.ndarray | None,
    scored: Scored,
    seed: int,
) -> list[Row]:
    """Return a score of the plain connectome for fractions of the training participants, and for all of them."""
    if not fewer:
        return []
    weights = scores.bootstrap_weights(split.subjects, sites, DRAWS, seed)
    size = round(np.mean([len(np.unique(split.subjects[train])) for train, _ in split]))
    rows = []
    for share, one in {**fewer, 1.0: whole}.items():
        each = scores.over_repeats(scored.function, one.decision, y, weights)
        said = "all training participants" if one is whole else one.name
        row = Row("learning curve", said, scored.measure, float(each[0]), *interval_of(each[1:]), n=round(share * size), note=whole.name)
        rows.append(row)
    return rows


def predictions_table(cohort: Cohort, goal: Target, found: Sequence[Predictions]) -> dict[str, np.ndarray]:
    """Return decision values and probabilities of every scan, averaged over repeats."""
    table = {name: cohort.table[name] for name in ("scan", "subject")}
    table[goal.name] = np.array(goal.classes)[goal.y.astype(int)] if goal.classes else goal.y
    for one in found:
        with np.errstate(invalid="ignore"):
            table[f"{one.name}: decision"] = np.nanmean(one.decision, 0) if np.isfinite(one.decision).any(0).all() else one.decision[0]
        if one.probability is not None:
            table[f"{one.name}: probability"] = one.probability.mean(0)
    return table


def first_minutes(cohort: Cohort, minutes: float) -> Cohort:
    """Return the cohort with signals and Pearson edges of the first minutes of each recording; other edges are omitted.

    Raises:
      SettingsError: If the length is not above 0.
      InputError: If the cohort has no signals, or the repetition time of a scan is unknown; the message names the scan.
    """
    if not 0 < minutes < math.inf:
        raise SettingsError(f"minutes: expected lengths above 0, got {minutes:g}")
    if cohort.signals is None or cohort.frames is None:
        raise InputError("a learning curve over scan length needs parcel signals, but the cohort has none")
    if (unknown := missing(cohort.table["tr"])).any():
        raise InputError(
            f"a learning curve over scan length needs repetition times, but that of {cohort.table['scan'][unknown][0]} is unknown"
        )
    until = np.round(60 * minutes / cohort.table["tr"]).astype(int)
    kept = (cohort.frames >= 0) & (cohort.frames < until[:, None])
    short = dataclasses.replace(
        cohort, signals=np.where(kept[:, None, :], cohort.signals, np.nan), frames=np.where(kept, cohort.frames, -1), edges={}, views={}
    )
    return with_measure(short, "pearson")
