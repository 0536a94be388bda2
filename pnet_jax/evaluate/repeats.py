"""Repeated scans of the participants of a cohort, and the pairs of scans to compare."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.columns import column

SAME = ("task",)  # columns with equal values in both scans of a pair


class Repeats(NamedTuple):
    """Scans of participants with at least two of a kind, sorted by label, so that the order of the table has no effect.

    Attributes:
      rows: Rows of the cohort, `[n]`.
      subject: Index of the participant of each scan, `[n]`.
      names: Label of each participant.
      kind: Common property of the scans of a pair, e.g. the task, `[n]`.
      occasion: Index of the scan among those of its participant and kind, `[n]`.
      single: Number of scans excluded because their participant has no other scan of the kind.
    """

    rows: Int[np.ndarray, " n"]
    subject: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    kind: np.ndarray
    occasion: Int[np.ndarray, " n"]
    single: int

    @property
    def within(self) -> Int[np.ndarray, "P 2"]:
        """All pairs of scans of the same participant and kind, as indices into `rows`, first occasion first, `[P, 2]`."""
        groups: dict[tuple[int, str], list[int]] = {}
        for place in range(len(self.rows)):
            groups.setdefault((int(self.subject[place]), str(self.kind[place])), []).append(place)
        return np.array([pair for own in groups.values() for pair in itertools.combinations(own, 2)], int).reshape(-1, 2)

    @property
    def warnings(self) -> list[str]:
        """Warnings about excluded scans."""
        return (
            [f"{self.single} scans were left out because their participants have no second scan of the same kind."] if self.single else []
        )

    def between(self, most: int, seed: int) -> Int[np.ndarray, "Q 2"]:
        """Return pairs of different participants, matched to the pairs within participants: the first scan of each pair with scans of other
        participants of the kind and occasion of the second.

        Args:
          most: Number of other participants per pair; neighbours in a random order.
          seed: Seed of the order.
        """
        order = np.random.default_rng(seed).permutation(len(self.names))
        at = {(int(s), str(k), int(o)): place for place, (s, k, o) in enumerate(zip(self.subject, self.kind, self.occasion, strict=True))}
        position = np.argsort(order)
        pairs = []
        for one, other in self.within:
            kind, occasion = str(self.kind[other]), int(self.occasion[other])
            following = np.roll(order, -int(position[self.subject[one]]))[1:]
            found = (at.get((int(s), kind, occasion)) for s in following)
            pairs += [(int(one), place) for place in itertools.islice((place for place in found if place is not None), most)]
        return np.array(pairs, int).reshape(-1, 2)

    def occasions(self) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
        """Yield, for every two occasions of a kind, the scans of participants who have both; at least two participants."""
        for kind in sorted(set(self.kind.tolist())):
            count = int(self.occasion[self.kind == kind].max()) + 1
            places = np.full((len(self.names), count), -1)
            here = np.flatnonzero(self.kind == kind)
            places[self.subject[here], self.occasion[here]] = here
            for first, second in itertools.combinations(range(count), 2):
                both = (places[:, first] >= 0) & (places[:, second] >= 0)
                if both.sum() > 1:
                    yield places[both, first], places[both, second]


def repeats_of(cohort: Cohort, question: str, same: Sequence[str] = SAME) -> Repeats:
    """Find the repeated scans of a cohort.

    Args:
      cohort: Cohort with S scans.
      question: Name of the evaluation, for the error message.
      same: Columns of the table in which two scans must agree to count as repeats.

    Raises:
      SettingsError: If a column does not exist.
      InputError: If fewer than two participants have two scans.
    """
    order = np.argsort(cohort.table["scan"].astype(str), kind="stable")
    subjects = cohort.table["subject"].astype(str)
    kinds = np.array([" ".join(parts) for parts in zip(*(column(cohort, name).astype(str) for name in same), strict=True)] or [""])
    kinds = np.broadcast_to(kinds, len(cohort)) if not same else kinds
    seen: dict[tuple[str, str], list[int]] = {}
    for row in order:
        seen.setdefault((subjects[row], kinds[row]), []).append(int(row))
    kept = sorted((row, number) for own in seen.values() if len(own) > 1 for number, row in enumerate(own))
    rank = np.argsort(order)
    kept.sort(key=lambda one: rank[one[0]])
    rows, occasion = np.array([row for row, _ in kept], int), np.array([number for _, number in kept], int)
    names, subject = np.unique(subjects[rows], return_inverse=True) if len(rows) else (np.array([]), np.array([], int))
    if len(names) < 2:
        of = f" of one {' and '.join(same)}" if same else ""
        raise InputError(
            f"{question}: expected at least two participants with two scans{of}, found {len(names)} among {len(cohort.subjects)} "
            f"participants with {len(cohort)} scans: add repeated sessions or runs"
        )
    return Repeats(rows, subject, tuple(names.tolist()), kinds[rows], occasion, len(cohort) - len(rows))


def per_subject(values: Float[np.ndarray, " P"], owner: Int[np.ndarray, " P"], n: int) -> Float[np.ndarray, " n"]:
    """Return the mean of each participant's values, NaN if there are none.

    Args:
      values: Values of pairs, NaN if unknown, `[P]`.
      owner: Participant to which each pair is attributed, `[P]`.
      n: Number of participants.
    """
    known = np.isfinite(values)
    count = np.bincount(owner[known], minlength=n).astype(float)
    return np.bincount(owner[known], weights=values[known], minlength=n) / np.where(count > 0, count, np.nan)
