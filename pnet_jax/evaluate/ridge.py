"""Ridge regression of one number on many edges, predicted for held-out participants. Pure functions on arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.evaluate.split import Split

PENALTIES = 10.0 ** np.arange(-3.0, 4.5, 0.5)  # times the mean eigenvalue


@dataclasses.dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions for held-out participants.

    Attributes:
      y: values less the mean of the participants who were trained on, `[n]`.
      guess: predictions less the same mean, `[n]`.
      fold: fold in which each was held out, `[n]`.
      null: predictions after values were permuted, as many as were asked for.
    """

    y: Float[np.ndarray, " n"]
    guess: Float[np.ndarray, " n"]
    fold: Int[np.ndarray, " n"]
    null: tuple[Predicted, ...] = ()

    def take(self, rows: Int[np.ndarray, " m"]) -> Predicted:
        """Return some of the predictions."""
        return Predicted(self.y[rows], self.guess[rows], self.fold[rows])

    def r2(self) -> float:
        """Share of the variance around the training mean that is predicted; below 0 where predictions are worse than that mean."""
        return float(1 - np.square(self.y - self.guess).sum() / np.square(self.y).sum())

    def r(self) -> float:
        """Correlation within folds, so that different training means do not count. By chance it is below 0: compare it with `null`."""
        count = np.bincount(self.fold)
        y, guess = (values - (np.bincount(self.fold, weights=values) / np.maximum(count, 1))[self.fold] for values in (self.y, self.guess))
        scale = np.sqrt(np.square(y).sum() * np.square(guess).sum())
        return float((y * guess).sum() / scale) if scale > 0 else 0.0


def predict_held_out(
    x: Float[np.ndarray, "n E"], y: Float[np.ndarray, " n"], split: Split, *, permutations: int = 0, seed: int = 0
) -> Predicted:
    """Predict values of held-out participants by ridge regression.

    The penalty is the one with the smallest leave-one-out error among the participants who are trained on.

    Args:
      x: edges.
      y: values.
      split: folds over the n participants, each held out once.
      permutations: how often all is repeated with y permuted.
      seed: seed of the permutations.

    Source: Hoerl and Kennard 1970; leave-one-out errors in closed form, Allen 1974.
    """
    rng = np.random.default_rng(seed)
    targets = np.stack([y, *(rng.permutation(y) for _ in range(permutations))], 1).astype(np.float64)
    x = np.asarray(x, np.float64) - np.mean(x, axis=0)
    gram = x @ x.T
    rest, guess, fold = np.zeros_like(targets), np.zeros_like(targets), np.zeros(len(y), int)
    for number, (train, test) in enumerate(split):
        mean = targets[train].mean(0)
        rest[test], guess[test], fold[test] = targets[test] - mean, _predict(gram, targets[train] - mean, train, test), number
    first, *null = (Predicted(rest[:, i], guess[:, i], fold) for i in range(targets.shape[1]))
    return dataclasses.replace(first, null=tuple(null))


def _predict(
    gram: Float[np.ndarray, "n n"], y: Float[np.ndarray, "m B"], train: Int[np.ndarray, " m"], test: Int[np.ndarray, " t"]
) -> Float[np.ndarray, "t B"]:
    """Predictions of B targets, each with its own penalty; centred on the training part."""
    k, across = gram[np.ix_(train, train)], gram[np.ix_(test, train)]
    column = k.mean(0)
    across = across - across.mean(1, keepdims=True) - column + column.mean()
    k = k - column - column[:, None] + column.mean()
    values, vectors = np.linalg.eigh(k)
    values, turned = np.maximum(values, 0), vectors.T @ y
    best, error = np.zeros_like(y), np.full(y.shape[1], np.inf)
    for penalty in PENALTIES * values.mean():
        inverse = 1 / (values + penalty)
        dual = vectors @ (inverse[:, None] * turned)
        # The mean is fitted too: it takes 1 / m of each participant's leverage.
        slack = np.square(vectors) @ inverse - 1 / (len(y) * penalty)
        left_out = np.square(dual / slack[:, None]).mean(0)
        better = left_out < error
        best, error = np.where(better, dual, best), np.where(better, left_out, error)
    return across @ best
