"""Pipelines of features and a model, fitted jointly to the training rows of each fold; all compared pipelines use the same folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.evaluate.features import Feature
from pnet_jax.evaluate.models import PENALTIES, decisions, kernel_of, site_centred
from pnet_jax.evaluate.scores import auc
from pnet_jax.evaluate.split import Split, classes_of

Rows = Int[np.ndarray, " n"]
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Features, whose kernels are averaged, and a model.

    Attributes:
      features: One or more features, all fitted to the training rows.
      model: `"ridge"`, `"logistic"` or `"svm"`.
      sites: Site of each row, if features are centred by site, which uses unlabelled scans of held-out sites.
      penalties: Candidate penalties; the best in inner folds is selected.
      title: Name in tables; derived from the features and the model if empty.
    """

    features: tuple[Feature, ...]
    model: str = "ridge"
    sites: np.ndarray | None = None
    penalties: Float[np.ndarray, " P"] = dataclasses.field(default_factory=lambda: PENALTIES)
    title: str = ""

    @property
    def name(self) -> str:
        said = " + ".join(feature.name for feature in self.features)
        return self.title or f"{said}{', site-centred' if self.sites is not None else ''} + {self.model}"

    @property
    def supervised(self) -> bool:
        """Whether a feature depends on the target, so that it must be refitted in inner folds."""
        return any(getattr(feature, "supervised", False) for feature in self.features)

    def kernel(self, train: Rows, cache: Cache) -> Float[np.ndarray, "S S"]:
        """Return the kernel of all rows, with everything fitted to the training rows."""
        each = [cache.kernel(feature, train) for feature in self.features]
        if self.sites is not None:
            each = [site_centred(k, self.sites, train) for k in each]
        return np.mean(each, 0)


class Cache:
    """Kernels of one fold, so that features shared by pipelines are fitted once."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, bytes], np.ndarray] = {}

    def kernel(self, feature: Feature, train: Rows) -> Float[np.ndarray, "S S"]:
        key = (id(feature), np.asarray(train).tobytes())
        if key not in self._of:
            self._of[key] = kernel_of(feature(train), train)
        return self._of[key]


class Predictions(NamedTuple):
    """Predictions of held-out rows.

    Attributes:
      name: Name of the pipeline.
      decision: Values that rank the rows (predictions for numbers), `[R, S]` for R repeats; NaN for rows that were never held out.
      probability: Calibrated probability of class 1, `[R, S]`; None for numbers.
      fold: Fold in which each row was held out, `[R, S]`, −1 for none.
      penalties: Penalty selected in each fold.
      null: Decisions for permuted targets in the first repeat, `[P, S]`; None if not requested.
    """

    name: str
    decision: Float[np.ndarray, "R S"]
    probability: Float[np.ndarray, "R S"] | None
    fold: Int[np.ndarray, "R S"]
    penalties: Float[np.ndarray, " F"]
    null: Float[np.ndarray, "P S"] | None = None


def predict(
    pipelines: Sequence[Pipeline],
    split: Split,
    y: Float[np.ndarray, " S"],
    *,
    classes: bool,
    permuted: Float[np.ndarray, "S P"] | None = None,
    shares: Sequence[float] = (),
    progress: Progress | None = None,
) -> list[Predictions]:
    """Fit every pipeline in every fold and predict the held-out rows.

    Args:
      pipelines: Pipelines to compare.
      split: Folds.
      y: Target; 0 or 1 if `classes`.
      classes: Select penalties by AUC and calibrate probabilities; for numbers, penalties are selected by squared error.
      permuted: Permuted targets, to which ridge pipelines with unsupervised features are also fitted, with penalties selected for each.
      shares: Shares of the training subjects to which the first pipeline's model is additionally fitted; its features are those of the
          whole training part.
      progress: Called with a description, the number of completed fits, and the total.

    Returns:
      Predictions of each pipeline in order, then those of the first pipeline for each share.
    """
    place = repeats_of_folds(split)
    repeats, size = max(place) + 1, len(y)
    blank = [np.full((repeats, size), np.nan) for _ in pipelines]
    probability = [np.full((repeats, size), np.nan) for _ in pipelines]
    null = [None if not _permutes(one, permuted) else np.full((permuted.shape[1], size), np.nan) for one in pipelines]  # type: ignore[union-attr]
    fold_of, chosen = np.full((repeats, size), -1), [np.zeros(len(split)) for _ in pipelines]
    fewer = [np.full((repeats, size), np.nan) for _ in shares]
    for number, (train, test) in enumerate(split):
        cache, repeat = Cache(), place[number]
        inner = split.inner(train, y)
        fold_of[repeat, test] = number
        for at, one in enumerate(pipelines):
            if progress is not None:
                progress(one.name, number * len(pipelines) + at, len(split) * len(pipelines))
            k = one.kernel(train, cache)
            # The target and its permutations share all computations that depend on the features alone.
            also = null[at] is not None and repeat == 0
            targets = np.column_stack([y[train], permuted[train]]) if also else y[train, None]  # type: ignore[index]
            found = _fitted(one, k, targets, train, test, inner, classes)
            blank[at][repeat, test], chosen[at][number] = found.decision[0], found.penalty
            if also:
                null[at][:, test] = found.decision[1:]  # type: ignore[index]
            for share, values in zip(shares if at == 0 else (), fewer, strict=False):
                part = _fewer(split, train, y, share)
                values[repeat, test] = _fitted(one, k, y[part, None], part, test, split.inner(part, y), classes).decision[0]
            if classes:
                probability[at][repeat, test] = calibrated(found.held, y[train], found.decision[0])
    if progress is not None:
        progress("", len(split) * len(pipelines), len(split) * len(pipelines))
    each = zip(pipelines, blank, probability, chosen, null, strict=True)
    out = [Predictions(one.name, d, p if classes else None, fold_of, c, n) for one, d, p, c, n in each]
    return out + [
        Predictions(f"{share:.0%} of the training participants", d, None, fold_of, chosen[0])
        for share, d in zip(shares, fewer, strict=True)
    ]


def _fewer(split: Split, train: Rows, y: np.ndarray, share: float) -> Rows:
    """Return the training rows of a share of the training subjects, drawn at random within classes."""
    rng = np.random.default_rng(split.seed)
    names, first = np.unique(split.subjects[train], return_index=True)
    kind = classes_of(y[train])[first]
    kept = [rng.permutation(names[kind == each]) for each in np.unique(kind)]
    return train[np.isin(split.subjects[train], np.concatenate([each[: max(3, round(share * len(each)))] for each in kept]))]


def repeats_of_folds(split: Split) -> list[int]:
    """Return the repeat of each fold: the number of times its rows were held out before."""
    seen = np.zeros(len(split.subjects), int)
    out = []
    for _, test in split:
        out.append(int(seen[test].max()))
        seen[test] += 1
    return out


def _permutes(one: Pipeline, permuted: np.ndarray | None) -> bool:
    return permuted is not None and one.model == "ridge" and not one.supervised


class _Fitted(NamedTuple):
    """Decisions of held-out rows for B targets `[B, t]`, and of the first target: its penalty, and the decisions `[n]` of the training
    rows while they were held out in an inner fold, under that penalty."""

    decision: Float[np.ndarray, "B t"]
    penalty: float
    held: Float[np.ndarray, " n"]


def _fitted(
    one: Pipeline,
    k: Float[np.ndarray, "S S"],
    y: Float[np.ndarray, "n B"],
    train: Rows,
    test: Rows,
    inner: Sequence[tuple[Rows, Rows]],
    classes: bool,
) -> _Fitted:
    """Predict held-out rows; each target uses the penalty selected in its own inner folds."""
    held = np.full((len(one.penalties), *y.shape), np.nan)
    for fit, val in inner:
        own = one.kernel(train[fit], Cache()) if one.supervised else k
        held[:, val] = decisions(one.model, own, y[fit], train[fit], train[val], one.penalties)
    best = _losses(held, y, inner, classes).argmin(0)
    out = np.empty((y.shape[1], len(test)))
    for penalty in np.unique(best):
        here = np.flatnonzero(best == penalty)
        out[here] = decisions(one.model, k, y[:, here], train, test, one.penalties[[penalty]])[0].T
    return _Fitted(out, float(one.penalties[best[0]]), held[best[0], :, 0])


def _losses(held: Float[np.ndarray, "P n B"], y: Float[np.ndarray, "n B"], inner: Sequence[tuple[Rows, Rows]], classes: bool) -> np.ndarray:
    """Return the loss of each penalty, `[P, B]`: 1 − AUC within inner folds (which may differ in scale), or squared error."""
    if not classes:
        return np.nanmean(np.square(held - y), 1)
    total, count = np.zeros((len(held), y.shape[1])), np.zeros(y.shape[1])
    for _, val in inner:
        values = np.moveaxis(held[:, val], 1, -1)
        value = auc(values, np.broadcast_to(y[val].T, values.shape))
        known = np.isfinite(value[0])
        total += np.where(known, 1 - np.where(known, value, 0), 0) * len(val)
        count += known * len(val)
    return total / np.maximum(count, 1)


def calibrated(held: np.ndarray, y: np.ndarray, decision: np.ndarray) -> np.ndarray:
    """Return probabilities of class 1 from a logistic curve fitted to the decisions of inner held-out rows (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    known = np.isfinite(held)
    scale = held[known].std() or 1.0
    curve = LogisticRegression(C=1e3).fit((held[known] / scale)[:, None], y[known])
    return curve.predict_proba((decision / scale)[:, None])[:, 1]
