r"""Comparison of neural and linear encoders on unseen participants.

Parcels estimated from one recording of a participant are scored on another, in both directions, by the distance-controlled boundary
coefficient (DCBC, the primary measure) and homogeneity, and against the true parcels if they are known (ARI). Personalised parcels are
used even if the scan does not support them over its atlas, since the encoders are compared rather than that decision.

Independently of parcels, an encoder is scored by the share of variance it explains in the fingerprints of the *other* recording:

.. math:: R^2 = 1 - \frac{\sum_{v,r} (\hat f^A_{vr} - f^B_{vr})^2}{\sum_{v,r} (f^B_{vr})^2}

with f the fingerprints (Fisher z to R references) minus their mean over locations, and :math:`\hat f` the prediction of the model's
decoder from the components of the first recording.

Models are compared with three baselines. `atlas`: the atlas parcels. `centroids`: each location is assigned to the nearest centroid of the
atlas parcels, which measures the effect of compact shapes. `weighted`: the linear decoder with components weighted by their reliability Λ,
the best linear predictor of *another* recording without training, which a neural head trained for this prediction should outperform.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.config import ConstructConfig
from pnet_jax.construction import construct
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Encoder, Model, components, decoder, fingerprints
from pnet_jax.encoder.tokens import Observed, bucketed, observe
from pnet_jax.evaluate.cases import Case
from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.scan import Scan

MEASURES = ("dcbc", "homogeneity", "ari", "r2")
BASELINES = ("atlas", "centroids", "weighted")
LEAST_SUBJECTS = 3  # fewest subjects for an interval
RESAMPLES = 2000

Row = dict[str, Any]


class _Recording(Protocol):
    @property
    def subject(self) -> str: ...


T = TypeVar("T", bound=_Recording)


def gate(models: Sequence[Model], cases: Iterable[Case]) -> list[Row]:
    """Score every model, and the baselines, on every case.

    Args:
      models: Models with unique names; the first is the reference of comparisons.
      cases: Cases from `simulated_cases` or `scan_cases`, or built by hand, of participants that no model was trained on (`unseen`).

    Returns:
      Rows with `condition`, `dataset`, `subject`, `pair` (kind of recordings), `model` and the `MEASURES`, each the mean of both
      directions, NaN if it cannot be measured (for ROIs all but `r2`).

    Raises:
      ValueError: If there are no models or cases, model names are not unique or equal a baseline's, or an atlas does not overlap a scan.
    """
    names = [model.name for model in models]
    if not models:
        raise ValueError("expected at least one model, got none")
    if len(set(names) | set(BASELINES)) < len(names) + len(BASELINES):
        raise ValueError(f"expected models with unique names other than {', '.join(BASELINES)}; got {', '.join(names)}")
    rows: list[Row] = []
    for case in cases:
        try:
            scores = _scores(models, case)
        except ValueError as error:
            raise ValueError(f"condition {case.name}, subject {case.subject}: {error}") from error
        shared = {"condition": case.name, "dataset": case.dataset, "subject": case.subject, "pair": case.kind}
        rows += [{**shared, "model": name, **dict.fromkeys(MEASURES, math.nan), **found} for name, found in scores.items()]
    if not rows:
        raise ValueError("expected at least one pair of recordings, found neither two sessions nor a scan that is long enough to split")
    return rows


class Unseen(NamedTuple, Generic[T]):
    """Recordings of participants that none of the models was trained on.

    Attributes:
      kept: The recordings.
      excluded: Subject label of each excluded participant, and the models trained on it.
      unlisted: Models that do not list their training participants.
      alike: Labels that are kept although a model was trained on a participant with the same label in a data set of another name, and these
          names.
    """

    kept: list[T]
    excluded: dict[str, list[str]]
    unlisted: list[str]
    alike: dict[str, list[str]]


def unseen(recordings: Sequence[T], models: Sequence[Model], dataset: str = "") -> Unseen[T]:
    """Exclude participants that a model was trained on, according to the model cards: data set and subject label.

    Args:
      recordings: Objects with a `subject`: `ScanSource` or `Scan`.
      models: Models to compare.
      dataset: Name of the data set of the recordings, as passed to `pnet prepare --dataset`.

    Raises:
      ValueError: If no participant is left.
    """
    subjects = list(dict.fromkeys(recording.subject for recording in recordings))
    excluded: dict[str, list[str]] = {}
    alike: dict[str, set[str]] = {}
    for model in models:
        for name, subject in model.trained_on or ():
            if subject in subjects and name == dataset:
                excluded.setdefault(subject, []).append(model.name)
            elif subject in subjects:
                alike.setdefault(subject, set()).add(name or "unnamed")
    kept = [recording for recording in recordings if recording.subject not in excluded]
    if recordings and not kept:
        names = ", ".join(dict.fromkeys(name for found in excluded.values() for name in found))
        raise ValueError(
            f"no participant is left to evaluate on: all {len(subjects)} were used to train {names}; use scans of other participants, "
            "or train with input.held_out above 0 and evaluate on the held-out participants"
        )
    unlisted = [model.name for model in models if model.trained_on is None]
    return Unseen(kept, excluded, unlisted, {subject: sorted(alike[subject]) for subject in subjects if subject in alike})


def _scores(models: Sequence[Model], case: Case) -> dict[str, dict[str, float]]:
    first = models[0].encoder
    plain = first if isinstance(first, LinearEncoder) else first.linear
    weighted = plain._replace(decoder=plain.reliability[:, None] * plain.decoder)
    fixed, maps = (None, {}) if case.is_points else _maps(models, case)
    scores = {name: _parcel_scores(labels, fixed, case) for name, labels in maps.items()}
    for name, encoder in [(model.name, model.encoder) for model in models] + [("weighted", weighted)]:
        scores.setdefault(name, {})["r2"] = split_half_r2(encoder, *case.scans)
    return {name: scores[name] for name in [model.name for model in models] + list(BASELINES) if name in scores}


# parcels


def _maps(models: Sequence[Model], case: Case) -> tuple[Any, dict[str, list[Int[np.ndarray, " V"]]]]:
    """Return the judge of all maps, and the labels of every map from either recording."""
    config = ConstructConfig(labels="personalised", edges=())
    networks = {model.name: [construct(scan, atlas=case.atlas, model=model, config=config) for scan in case.scans] for model in models}
    atlas = [network.atlas_labels for network in next(iter(networks.values()))]
    inside = (atlas[0] >= 0) & (atlas[1] >= 0)
    maps = {name: [network.labels for network in both] for name, both in networks.items()}
    maps["atlas"] = atlas
    maps["centroids"] = [nearest_centroid(np.where(inside, labels, -1), case.scans[0].space) for labels in atlas]
    judges = [Judge(scan.y, scan.space, inside, case.atlas.n_parcels) for scan in case.scans]
    return (inside, judges), maps


def _parcel_scores(maps: list[Int[np.ndarray, " V"]], fixed: Any, case: Case) -> dict[str, float]:
    inside, judges = fixed
    both = [judges[1](maps[0]), judges[0](maps[1])]
    scores = {name: float(np.mean([found[name] for found in both])) for name in both[0]}
    if case.truth is not None:
        counted = inside & (case.truth >= 0)
        scores["ari"] = float(np.mean([_rand_index(case.truth[counted], labels[counted]) for labels in maps]))
    return scores


def _rand_index(truth: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(truth, labels))


# fingerprints


def split_half_r2(encoder: Encoder, first: Scan, second: Scan) -> float:
    """Share of variance in one recording's fingerprints that an encoder explains from the other; mean of both directions.

    All locations with a signal in both recordings and all references present in both have equal weight. Predictions worse than 0 give
    negative values.

    Args:
      encoder: Linear encoder, which predicts by its decoder, or Perceiver, which predicts by its head.
      first, second: Recordings on one Space, with V locations.
    """
    counted = first.valid & second.valid

    def observed(scan: Scan) -> Observed:
        return bucketed(observe(scan, encoder.references, counted=counted))

    (here, guess), (there, other) = (_seen_and_predicted(encoder, observed(scan)) for scan in (first, second))
    return float(_explained(jnp.stack([guess, other]), jnp.stack([there, here])))


def same_references(a: Model, b: Model) -> bool:
    """Return whether two models use the same fingerprints; otherwise their R² are not comparable."""
    return np.array_equal(np.asarray(a.encoder.references), np.asarray(b.encoder.references))


@jax.jit
def _explained(predicted: Float[Array, "2 V R"], found: Float[Array, "2 V R"]) -> Float[Array, ""]:
    # Fingerprints to a reference without locations are 0 everywhere.
    present = (jnp.abs(found) > 0).any(1).all(0).astype(found.dtype)[None, None, :]
    error = (jnp.square(predicted - found) * present).sum((1, 2))
    variance = (jnp.square(found) * present).sum((1, 2))
    return (1 - error / jnp.where(variance > 0, variance, jnp.nan)).mean()


def _seen_and_predicted(encoder: Encoder, observed: Observed) -> tuple[Float[Array, "V R"], Float[Array, "V R"]]:
    """Return a recording's fingerprints without their mean, and the encoder's prediction of those of another recording."""
    return fingerprints(encoder, observed), jnp.matmul(components(encoder, observed), decoder(encoder), precision="highest")


# over subjects


def summary(rows: Sequence[Row], *, seed: int = 0) -> list[Row]:
    """Compute means over subjects, and paired differences from the first model.

    Participants (data set and subject label) with several pairs of recordings count once, with their mean.

    Args:
      rows: Rows from `gate`.
      seed: Seed of the bootstrap.

    Returns:
      One row per condition and model, in the order of `rows`: `condition`, `model`, `subjects`, the `MEASURES`, and `difference`: for each
      measure `{"mean", "low", "high"}` of the subjects' differences from the first model, with a 95 % bootstrap interval over subjects;
      `low` and `high` are NaN for fewer than 3 subjects.
    """
    reference = rows[0]["model"]
    out = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        here = [row for row in rows if row["condition"] == condition]
        by_subject = {name: _by_subject(here, name) for name in dict.fromkeys(row["model"] for row in here)}
        for name, values in by_subject.items():
            means = {measure: _mean(values[:, i]) for i, measure in enumerate(MEASURES)}
            apart = values - by_subject[reference]
            difference = {measure: _interval(apart[:, i], seed) for i, measure in enumerate(MEASURES)}
            out.append({"condition": condition, "model": name, "subjects": len(values), **means, "difference": difference})
    return out


def better(summed: Sequence[Row]) -> list[Row]:
    """Select the best model of each condition, by DCBC, or by R² if there are no parcels (ROIs).

    Args:
      summed: Rows from `summary`.

    Returns:
      One row per condition: `condition`, `measure`, `model`; `certain`: whether 95 % intervals separate it from the first model or, if it
      is the first, from every other model, None if there are too few subjects; and `behind`: the baselines that are as good or better, in
      which case being the best model has little meaning.
    """
    out = []
    for condition in dict.fromkeys(row["condition"] for row in summed):
        everyone = [row for row in summed if row["condition"] == condition]
        here = [row for row in everyone if row["model"] not in BASELINES]
        measure = deciding(here)
        best = max(here, key=lambda row: -math.inf if math.isnan(row[measure]) else row[measure])
        # The differences of the first model are 0; if it is best, those of the others must be below 0.
        apart = [row["difference"][measure] for row in (here[1:] if best is here[0] else [best])]
        known = bool(apart) and not any(math.isnan(one["low"]) for one in apart)
        certain = all(one["high"] < 0 if best is here[0] else one["low"] > 0 for one in apart) if known else None
        behind = [row["model"] for row in everyone if row["model"] in BASELINES and row[measure] >= best[measure]]
        out.append({"condition": condition, "measure": measure, "model": best["model"], "certain": certain, "behind": behind})
    return out


def deciding(rows: Sequence[Row]) -> str:
    """Return the measure that decides between models: DCBC if any model has one, otherwise R²."""
    return "r2" if all(math.isnan(row["dcbc"]) for row in rows) else "dcbc"


def _by_subject(rows: Sequence[Row], model: str) -> Float[np.ndarray, "S 4"]:
    """Return the measures of every participant, in order of appearance."""
    own: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        pairs = own.setdefault((row["dataset"], row["subject"]), [])
        if row["model"] == model:
            pairs.append([row[m] for m in MEASURES])
    columns = [zip(*pairs, strict=True) for pairs in own.values()]
    return np.array([[_mean(np.array(column)) for column in some] or [math.nan] * len(MEASURES) for some in columns])


def _mean(values: Float[np.ndarray, " n"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _interval(apart: Float[np.ndarray, " S"], seed: int) -> dict[str, float]:
    known = apart[np.isfinite(apart)]
    low = high = math.nan
    if len(known) >= LEAST_SUBJECTS:
        drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
        low, high = (float(x) for x in np.percentile(known[drawn].mean(1), (2.5, 97.5)))
    return {"mean": _mean(apart), "low": low, "high": high}


def table(summed: Sequence[Row]) -> list[str]:
    """Format a summary as lines: means, and the difference from the first model in the deciding measure."""
    reference = summed[0]["model"]
    head = ["condition", "model", "subjects", "DCBC", "homogeneity", "ARI", "R²", f"minus {reference} [95 %]"]
    cells, last = [head], ""
    for row in summed:
        here = [one for one in summed if one["condition"] == row["condition"]]
        shown = [row["condition"] if row["condition"] != last else "", row["model"], str(row["subjects"])]
        apart = "" if row["model"] == reference else _difference(row["difference"][deciding(here)])
        cells.append([*shown, *(_number(row[measure]) for measure in MEASURES), apart])
        last = row["condition"]
    width = [max(len(row[i]) for row in cells) for i in range(len(head))]
    left = (0, 1, len(head) - 1)
    padded = [[c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, width, strict=True))] for row in cells]
    return ["  ".join(row).rstrip() for row in padded]


def verdicts(summed: Sequence[Row]) -> list[str]:
    """Return one line per condition: which model is better, and whether there are enough subjects to be certain."""
    sure = {True: "", False: ", but the 95 % interval includes 0", None: f", not certain with fewer than {LEAST_SUBJECTS} subjects"}
    names = {"dcbc": "DCBC", "r2": "R²"}

    def line(one: Row) -> str:
        behind = f"; the baseline {' and '.join(one['behind'])} is as good or better" if one["behind"] else ""
        return f"{one['condition']}: {one['model']} by {names[one['measure']]}{sure[one['certain']]}{behind}"

    return [line(one) for one in better(summed)]


def without_nan(value: Any) -> Any:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float, form: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _difference(one: dict[str, float]) -> str:
    interval = "" if math.isnan(one["low"]) else f" [{one['low']:+.4f} {one['high']:+.4f}]"
    return f"{_number(one['mean'], '+.4f')}{interval}"
