"""Scores of predictions for held-out participants, with bootstrap intervals over participants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

Score = Callable[[Float[np.ndarray, "S"], Float[np.ndarray, "S"], Float[np.ndarray, "B S"]], Float[np.ndarray, "B"]]
BINS = 10  # bins of the calibration curve


def auc(scores: Float[np.ndarray, "*B n"], y: Float[np.ndarray, "*B n"]) -> Float[np.ndarray, "*B"]:
    """Return the area under the ROC curve along the last axis; ties count one half; NaN if there is only one class."""
    order = np.argsort(scores, axis=-1)
    ordered = np.take_along_axis(scores, order, -1)
    if (ordered[..., 1:] > ordered[..., :-1]).all():
        ranks, one = np.arange(1.0, y.shape[-1] + 1), np.take_along_axis(y > 0, order, -1)
    else:  # ties or NaN, several times slower
        ranks, one = rankdata(scores, axis=-1), y > 0
    ones = one.sum(-1)
    zeros = y.shape[-1] - ones
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * one).sum(-1) - ones * (ones + 1) / 2) / (ones * zeros)


def weighted_auc(scores: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return the AUC for each set of weights of the rows, such as the counts of a bootstrap draw."""
    one, zero = scores[y > 0], scores[y == 0]
    above = (one[:, None] > zero) + (one[:, None] == zero) / 2
    a, b = weights[:, y > 0], weights[:, y == 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((a @ above) * b).sum(1) / (a.sum(1) * b.sum(1))


def weighted_accuracy(predicted: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return the balanced accuracy of probabilities above one half for each set of weights."""
    right = (predicted >= 0.5) == (y > 0)
    return (_mean(right, weights * (y > 0)) + _mean(right, weights * (y == 0))) / 2


def weighted_brier(predicted: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return the Brier score for each set of weights."""
    return _mean(np.square(predicted - y), weights)


def weighted_mae(predicted: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return the mean absolute error for each set of weights."""
    return _mean(np.abs(predicted - y), weights)


def weighted_r(predicted: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return Pearson's r for each set of weights."""
    a = predicted - _mean(predicted, weights)[:, None]
    b = y - _mean(y, weights)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * a * b).sum(1) / np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))


def weighted_r2(predicted: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> Float[np.ndarray, " B"]:
    """Return 1 − error variance / variance for each set of weights; negative if predictions are worse than the mean."""
    deviation = y - _mean(y, weights)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - _mean(np.square(predicted - y), weights) / _mean(np.square(deviation), weights)


def within(score: Score, sites: np.ndarray) -> Score:
    """Return the mean of a score over sites, weighted by their sizes; sites for which it is undefined are omitted."""

    def mean(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        parts = [(score(predicted[here], y[here], weights[:, here]), weights[:, here].sum(1)) for here in members(sites)]
        values, sizes = (np.stack(one) for one in zip(*parts, strict=True))
        known = np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(known, values * sizes, 0).sum(0) / (sizes * known).sum(0)

    return mean


def members(labels: np.ndarray) -> list[Int[np.ndarray, " n"]]:
    """Return the rows of each label."""
    return [np.flatnonzero(labels == one) for one in np.unique(labels)]


def bootstrap_weights(subjects: np.ndarray, sites: np.ndarray | None, draws: int, seed: int) -> Float[np.ndarray, "1+B S"]:
    """Return how often each row is drawn: first once each (the original data), then in bootstrap draws of subjects within sites."""
    rng = np.random.default_rng(seed)
    names, at = np.unique(subjects, return_inverse=True)
    site = np.zeros(len(names), int)
    if sites is not None:
        site[at] = np.unique(sites, return_inverse=True)[1]
    weights = np.zeros((draws, len(names)))
    for here in members(site):
        weights[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), draws)
    return np.concatenate([np.ones((1, len(subjects))), weights[:, at]])


def over_repeats(score: Score, predicted: Float[np.ndarray, "R S"], y: np.ndarray, weights: Float[np.ndarray, "B S"]) -> np.ndarray:
    """Return a score for each set of weights, averaged over repeats; each repeat includes the rows that it predicts."""
    known = np.isfinite(predicted)
    return np.mean([score(np.where(there, one, 0), y, weights * there) for one, there in zip(predicted, known, strict=True)], 0)


def calibration_curve(probability: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean probability and share of class 1 in tenths of the predictions, and the expected calibration error."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    said, found = (np.array([v[part].mean() for part in parts]) for v in (probability, y))
    sizes = np.array([len(part) for part in parts])
    return said, found, float((np.abs(said - found) * sizes).sum() / sizes.sum())


def corrected_t(differences: np.ndarray, n_train: float, n_test: float) -> float:
    """Return the two-sided p of paired differences of fold scores, with the variance corrected for overlapping training parts.

    NaN for fewer than two folds, or if all differences are equal.

    Source: Nadeau and Bengio 2003, Machine Learning 52.
    """
    from scipy.stats import t as student

    known = differences[np.isfinite(differences)]
    if len(known) < 2 or np.ptp(known) == 0:
        return math.nan
    variance = (1 / len(known) + n_test / n_train) * known.var(ddof=1)
    return float(2 * student.sf(abs(known.mean()) / math.sqrt(variance), len(known) - 1))


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * values).sum(1) / weights.sum(1)
