r"""Disease axis: the direction in Fisher z along which patients differ from controls, fitted on training participants.

.. math:: w \propto (S_w + \lambda I)^{-1} (\mu_P - \mu_H), \qquad w \cdot (\mu_P - \mu_H) = 1

with the shrinkage of Ledoit and Wolf. A participant's position is :math:`w \cdot (z - \mu_H)`: 0 is the mean control, 1 the mean patient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

LEAST = 3  # fewest participants per group
MOST_PARTS = 4


class Axis(NamedTuple):
    """A disease axis.

    weights: Weights w, `[E]`.
    healthy, patients: Means of the two groups, `[E]`.
    separation: Distance between the means in within-group standard deviations, from the shrunk covariance.
    """

    weights: Float[np.ndarray, " E"]
    healthy: Float[np.ndarray, " E"]
    patients: Float[np.ndarray, " E"]
    separation: float

    @property
    def direction(self) -> Float[np.ndarray, " E"]:
        """Direction from the mean control to the mean patient, `[E]`."""
        return self.patients - self.healthy

    def position(self, z: Float[np.ndarray, "S E"]) -> Float[np.ndarray, " S"]:
        """Return the positions of participants, `[S]`: 0 is the mean control, 1 the mean patient."""
        return (z - self.healthy) @ self.weights


def fit_axis(z: Float[np.ndarray, "S E"], patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> Axis:
    """Fit the axis to some participants; S² E operations.

    Args:
      z: Fisher z of all participants, `[S, E]`.
      patient: Whether each participant is a patient, `[S]`.
      rows: Indices of the participants to fit, `[n]`.

    Raises:
      ValueError: If there are fewer than 3 patients or controls among the rows.
    """
    some, ill = np.asarray(z[rows], np.float64), patient[rows]
    if min(ill.sum(), (~ill).sum()) < LEAST:
        raise ValueError(f"a disease axis requires at least {LEAST} patients and {LEAST} controls, got {ill.sum()} and {(~ill).sum()}")
    healthy, patients = some[~ill].mean(0), some[ill].mean(0)
    apart = some - np.where(ill[:, None], patients, healthy)
    direction = patients - healthy
    gram = apart @ apart.T / (len(rows) - 2)
    share = _ledoit_wolf(apart, gram)
    level = share * np.trace(gram) / len(direction)
    inner = (1 - share) * gram + level * np.eye(len(rows))  # Woodbury: S x S, never E x E
    turned = apart.T @ np.linalg.solve(inner, apart @ direction)
    weights = (direction - (1 - share) / (len(rows) - 2) * turned) / level
    squared = float(weights @ direction)
    return Axis(weights / squared, healthy, patients, squared**0.5)


def parts_of(patient: Bool[np.ndarray, " S"], subjects: np.ndarray, rows: Int[np.ndarray, " n"], seed: int) -> list[Int[np.ndarray, " m"]]:
    """Split training rows into two to four parts without a common subject, balanced in patients and controls."""
    rng = np.random.default_rng(seed)
    groups = [np.unique(subjects[rows][patient[rows] == one]) for one in (False, True)]
    count = int(np.clip(min(map(len, groups)) // LEAST, 2, MOST_PARTS))
    place = {name: number % count for names in groups for number, name in enumerate(rng.permutation(names))}
    at = np.array([place[name] for name in subjects[rows]])
    return [rows[at == part] for part in range(count)]


def _ledoit_wolf(apart: Float[np.ndarray, "n E"], gram: Float[np.ndarray, "n n"]) -> float:
    """Return the weight of the identity (Ledoit and Wolf 2004) from inner products of participants alone."""
    n, size = apart.shape
    mean = np.trace(gram) / size
    squared = float(np.square(gram).sum())  # |S|²
    spread = squared - size * mean**2
    norms = np.square(apart).sum(1)
    noise = (float(np.square(norms).sum()) / n - squared) / n
    return float(np.clip(noise / max(spread, 1e-12), 0.01, 0.99))
