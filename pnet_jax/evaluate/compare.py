"""Shared parts of diagnosis and prediction: the pipelines compared, their scores with intervals, and learning curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import pearsonr

from pnet_jax.cohort import Cohort
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import scores
from pnet_jax.evaluate.answer import Row, interval_of
from pnet_jax.evaluate.columns import Target, missing
from pnet_jax.evaluate.features import (
    Covariates,
    Edges,
    Embeddings,
    Feature,
    Harmonised,
    Net,
    Permuted,
    Tangent,
    is_correlation,
    with_measure,
)
from pnet_jax.evaluate.motion import motion_rows
from pnet_jax.evaluate.pipeline import Pipeline, Predictions
from pnet_jax.evaluate.split import Split, by_subject, fixed, leave_site_out

DRAWS = 2000
KNOWN_COVARIATES = ("mean_fd", "n_frames", "age", "sex", "site")
VIEWS = ((None, 0.6), (None, 0.7), (110, 0.3), (60, 0.3))  # merged regions and shrinkage of the four views; the second is unfiltered
SHRINKAGE = 0.3  # share of the identity in tangent vectors of correlations: frames of fMRI are not independent, as Ledoit-Wolf assumes
WIDE = "wide"  # layer of correlations without a low-pass filter
FEATURES = (
    *("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "views", "encoder", "graph"),
    *("site-centred", "combat", "net", "covariates", "permuted"),
)
DEFAULT = ("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "encoder", "net", "covariates", "permuted")


class Plan(NamedTuple):
    """Pipelines to compare, and the scans they use.

    Attributes:
      cohort: Scans with a target, in the order of all arrays.
      pipelines: The first is the plain connectome that the others are compared with.
      covariates: Columns of the row "covariates alone".
      left_out: Features that were not built, with the reason.
    """

    cohort: Cohort
    pipelines: list[Pipeline]
    covariates: tuple[str, ...]
    left_out: dict[str, str]


def sites_of(cohort: Cohort, name: str = "site") -> np.ndarray | None:
    """Return the site of each scan, or None if the cohort has no such column or only one site."""
    if name not in cohort.table:
        return None
    values = np.asarray(cohort.table[name])
    if missing(values).any():
        scan = cohort.table["scan"][missing(values)][0]
        raise InputError(f"{name}: expected a site for every scan, found none for {scan}")
    values = values.astype(str)
    return values if len(np.unique(values)) > 1 else None


def plan(
    cohort: Cohort,
    baseline: Cohort | None,
    wanted: Sequence[str],
    models: Sequence[str],
    covariates: Sequence[str] | None,
    sites: np.ndarray | None,
    site_out: bool,
    exclude: str = "",
) -> Plan:
    """Return the pipelines: the plain connectome first, then the requested features for which the cohort has the data.

    Args:
      cohort: Scans with a target.
      baseline: The same scans in a fixed atlas; if given, its plain connectome comes first.
      wanted: Names from `FEATURES`, or names of edge layers.
      models: Models of the plain connectome; all other features use the first.
      covariates: Columns of the row "covariates alone"; by default, those of `KNOWN_COVARIATES` without missing values.
      sites: Site of each scan, or None.
      site_out: Whether folds hold out sites; site is then not a covariate, and ComBat cannot be fitted.
      exclude: Column of the target, which is not used as a covariate.

    Raises:
      SettingsError: A feature is neither known nor an edge layer.
    """
    if unknown := [name for name in wanted if name not in FEATURES and name not in cohort.edges]:
        known = [*FEATURES, *cohort.edges]
        raise SettingsError(f"unknown features {unknown[0]!r}{nearest(unknown[0], known)}: expected some of {', '.join(known)}")
    columns = _covariates(cohort, covariates, site_out, exclude)
    left_out: dict[str, str] = {}
    out: list[Pipeline] = []
    if baseline is not None:
        out += _plain(_same_scans(baseline, cohort), models[:1], "fixed atlas: ")
    out += _plain(cohort, models, "")
    main = out[-len(models)].features[0]
    for name in (one for one in wanted if one != "graph"):  # which has no kernel, and is fitted apart
        try:
            found = _built(name, cohort, main, columns, sites, site_out)
        except SettingsError as error:
            left_out[name] = str(error)
            continue
        out += [one if isinstance(one, Pipeline) else Pipeline((one,), models[0]) for one in found]
    names = [one.name for one in out]
    return Plan(cohort, [one for at, one in enumerate(out) if one.name not in names[:at]], columns, left_out)


def _plain(cohort: Cohort, models: Sequence[str], prefix: str) -> list[Pipeline]:
    """Return the plain connectome with each model: tangent vectors if the cohort has signals, Pearson correlations otherwise."""
    feature: Feature = Tangent(cohort) if cohort.signals is not None else Edges(cohort, _layer(cohort))
    return [Pipeline((feature,), model, title=f"{prefix}{feature.name} + {model}") for model in models]


def _layer(cohort: Cohort) -> str:
    if not cohort.edges:
        raise InputError("the cohort has neither signals nor edges: run pnet collect with edges")
    return "pearson" if "pearson" in cohort.edges else next(iter(cohort.edges))


def _built(
    name: str, cohort: Cohort, main: Feature, columns: tuple[str, ...], sites: np.ndarray | None, site_out: bool
) -> Sequence[Feature | Pipeline]:
    """Return the features of a name in `FEATURES`; raise SettingsError with the reason if the cohort lacks the data."""
    if name == "tangent":
        return [Tangent(cohort)] if cohort.signals is not None else []
    if name == "shrunk-tangent":
        return [_fixed_tangent(with_measure(cohort, "pearson") if cohort.signals is not None else cohort)]
    if name in ("pearson", "partial"):
        return [Edges(with_measure(cohort, name), name)]
    if name == "tangent+pearson":
        tangent = main if isinstance(main, Tangent) else _fixed_tangent(cohort)
        return [Pipeline((tangent, Edges(with_measure(cohort, "pearson"), "pearson")), title="tangent + pearson + ridge")]
    if name == "views":
        return [Pipeline(_views(cohort), title="four views + ridge"), *_views_by_site(cohort, sites)]
    if name == "encoder":
        return [Embeddings(with_measure(cohort, "pearson"))]
    if name == "site-centred":
        if sites is None:
            raise SettingsError("the cohort has no site column with two or more sites")
        return [Pipeline((main,), sites=sites)]
    if name == "combat":
        if sites is None or site_out:
            raise SettingsError("ComBat needs scans of every site in the training part: use folds by subject")
        return [Harmonised(main, cohort)]
    if name == "net":
        moved = tuple(one for one in columns if one == "mean_fd")
        if not moved:
            raise SettingsError("the cohort has no mean_fd, or it is unknown for some scans")
        return [Net(main, cohort, moved)]
    if name == "covariates":
        if not columns:
            raise SettingsError("the cohort has no covariates without missing values")
        return [Covariates(cohort, columns)]
    if name == "permuted":
        return [Permuted(cohort, _layer(cohort))]
    return [Edges(cohort, name)]


def _fixed_tangent(cohort: Cohort) -> Tangent:
    layer = _layer(cohort)
    if not is_correlation(cohort, layer):
        raise SettingsError(f"tangent vectors need signals or correlations; the edges {layer!r} are neither")
    return Tangent(cohort, SHRINKAGE, layer)


def _views(cohort: Cohort) -> tuple[Feature, ...]:
    if WIDE not in cohort.edges:
        raise SettingsError(f"four views need correlations without a low-pass filter as edges {WIDE!r}")
    layers = ("pearson", WIDE, "pearson", "pearson")
    most = cohort.n_parcels
    merges = [regions if regions and regions < most else None for regions, _ in VIEWS]
    return tuple(Tangent(cohort, share, layer, merge) for (_, share), layer, merge in zip(VIEWS, layers, merges, strict=True))


def _views_by_site(cohort: Cohort, sites: np.ndarray | None) -> list[Pipeline]:
    return [] if sites is None else [Pipeline(_views(cohort), sites=sites, title="four views, site-centred + ridge")]


def _covariates(cohort: Cohort, given: Sequence[str] | None, site_out: bool, exclude: str) -> tuple[str, ...]:
    """Return the columns for "covariates alone": those given, or the known ones that vary and have a value for every scan."""
    if given is not None:
        return tuple(given)
    out = []
    for name in KNOWN_COVARIATES:
        if name in cohort.table and name != exclude and not (name == "site" and site_out):
            values = np.asarray(cohort.table[name])
            if not missing(values).any() and len(np.unique(values)) > 1:
                out.append(name)
    return tuple(out)


def _same_scans(baseline: Cohort, cohort: Cohort) -> Cohort:
    """Return the rows of the baseline in the order of the cohort.

    Raises:
      InputError: A scan is not in the baseline; the message names it.
    """
    at = {str(scan): row for row, scan in enumerate(baseline.table["scan"])}
    if absent := [str(scan) for scan in cohort.table["scan"] if str(scan) not in at]:
        raise InputError(f"baseline: {len(absent)} scans of the cohort are not in the baseline, first {absent[0]}")
    return baseline.take(np.array([at[str(scan)] for scan in cohort.table["scan"]]))


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
      InputError: There is only one site, a training part has only one class, or there are fewer participants than folds.
    """
    subjects = cohort.table["subject"].astype(str)
    if held_out is not None:
        return fixed(subjects, held_out, blocks=sites, seed=seed)
    many = sites is not None and len(np.unique(sites)) >= 3
    if leave_out == "site" or (leave_out == "auto" and many):
        if sites is None:
            raise InputError("leave-site-out: expected a site column with two or more sites, found none")
        split = leave_site_out(subjects, sites, seed=seed)
        for train, _ in split:
            if goal.classes and len(np.unique(goal.y[train])) < 2:
                raise InputError(
                    f"leave-site-out: with one of the sites held out, training scans are all of class {goal.classes[int(goal.y[train][0])]}"
                )
        return split
    if leave_out not in ("auto", "subject"):
        raise InputError(f"leave_out: expected site, subject or auto, got {leave_out!r}")
    kinds = np.array(goal.classes)[goal.y.astype(int)] if goal.classes else goal.y
    return by_subject(subjects, kinds, folds=folds, repeats=repeats, seed=seed)


class Scored(NamedTuple):
    """A score: its name, its function, and whether it is computed from probabilities."""

    measure: str
    function: scores.Score
    of_probability: bool = False


def score_rows(
    found: Sequence[Predictions], y: np.ndarray, split: Split, measures: Sequence[Scored], sites: np.ndarray | None, seed: int
) -> list[Row]:
    """Return the scores of every pipeline with intervals, and the difference in the first score from the first pipeline.

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
    for at, one in enumerate(found[1:], 1):
        apart = draws[at] - draws[0]
        p = scores.corrected_t(folds[at] - folds[0], n_train, n_test)
        said = f"{measures[0].measure} minus {found[0].name}"
        rows.append(Row("differences", one.name, said, float(apart[0]), *interval_of(apart[1:]), p=p, n=_subjects(one, split)))
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
        own = float(scored.function(one.decision[0, known], y[known], np.ones((1, known.sum())))[0])
        weights = np.ones((1, known.sum()))
        each = np.array([scored.function(d[known], t[known], weights)[0] for d, t in zip(one.null, permuted.T, strict=True)])
        p = (1 + (each >= own).sum()) / (1 + len(each))
        rows.append(Row("permutation", one.name, scored.measure, own, p=float(p), n=int(known.sum()), note=f"{len(each)} permutations"))
    return rows


def motion_part(cohort: Cohort, y: np.ndarray, seed: int) -> tuple[list[Row], list[str]]:
    """Return the association of plain edges and of the target with head motion, and a warning if motion is unknown."""
    fd = cohort.table["mean_fd"].astype(float) if "mean_fd" in cohort.table else np.full(len(cohort), np.nan)
    if not np.isfinite(fd).all():
        return [], ["Head motion (mean_fd) is unknown for some scans, so its contribution to the result cannot be measured."]
    layer = _layer(cohort) if cohort.edges else "pearson"
    edges = Edges(cohort if cohort.edges else with_measure(cohort, layer), layer)(np.arange(len(cohort)))
    names, at = np.unique(cohort.table["subject"].astype(str), return_inverse=True)
    share = np.zeros((len(names), len(at)), np.float32)
    share[at, np.arange(len(at))] = 1 / np.bincount(at)[at]
    r, p = pearsonr(share @ y, share @ fd)
    rows = [Row("motion", "target and mean FD", "r", float(r), p=float(p), n=len(names))]
    try:
        return rows + motion_rows(share @ edges, share @ fd, name=layer, permutations=200, seed=seed), []
    except InputError as error:
        return rows, [f"{error}."]


def conclusion(rows: Sequence[Row], reference: str, measure: str) -> str:
    """Return one sentence on whether any pipeline predicts better than the plain connectome."""
    apart = [row for row in rows if row.table == "differences" and not row.name.startswith("covariates")]
    ahead = sorted((row for row in apart if row.low > 0), key=lambda row: -row.value)
    if not apart:
        return "No other pipeline was compared with the plain connectome."
    if not ahead:
        return (
            f"No pipeline predicts better than the plain connectome ({reference}): the 95 % confidence interval of every difference in "
            f"{measure} includes 0 or lies below it."
        )
    best = ahead[0]
    many = f" ({len(apart)} comparisons, not corrected for multiple testing)" if len(apart) > 1 else ""
    return (
        f"{best.name} predicts better than the plain connectome ({reference}): difference in {measure} {best.value:+.3f}, "
        f"95 % CI [{best.low:+.3f}, {best.high:+.3f}], paired over folds p = {best.p:.2g}{many}."
    )


def learning_rows(
    whole: Predictions, fewer: Sequence[Predictions], y: np.ndarray, split: Split, sites: np.ndarray | None, scored: Scored, seed: int
) -> list[Row]:
    """Return a score of the plain connectome for fractions of the training participants, and for all of them."""
    weights, size = scores.bootstrap_weights(split.subjects, sites, DRAWS, seed), mean_size(split)
    rows = []
    for one in (*fewer, whole) if fewer else ():
        each = scores.over_repeats(scored.function, one.decision, y, weights)
        share = 1.0 if one is whole else float(one.name.split("%")[0]) / 100
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
    """Return the cohort with signals and Pearson edges of the first minutes of each recording; other layers are left out.

    Raises:
      InputError: The cohort has no signals.
    """
    if cohort.signals is None or cohort.frames is None:
        raise InputError("a learning curve over scan length needs parcel signals, but the cohort has none")
    until = np.round(60 * minutes / cohort.table["tr"]).astype(int)
    kept = (cohort.frames >= 0) & (cohort.frames < until[:, None])
    short = dataclasses.replace(
        cohort, signals=np.where(kept[:, None, :], cohort.signals, np.nan), frames=np.where(kept, cohort.frames, -1), edges={}, views={}
    )
    return with_measure(short, "pearson")


def settings_of(split: Split, target: Target, seed: int, **others: Any) -> Mapping[str, Any]:
    """Return the settings recorded in every answer that has a target."""
    about: dict[str, Any] = {"target": target.name, "classes": list(target.classes), "folds": split.name}
    about |= {"n_folds": len(split), "folds_digest": split.digest}
    return {**about, "bootstrap_draws": DRAWS, "seed": seed, "left_out_without_target": target.left_out, **others}


def mean_size(split: Split) -> int:
    """Return the mean number of training subjects per fold."""
    return round(np.mean([len(np.unique(split.subjects[train])) for train, _ in split]))
