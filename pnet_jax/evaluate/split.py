"""Splits of participants into training and held-out parts, shared by all compared methods."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from pnet_jax.errors import InputError, SettingsError

Fold = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]
Labels = Sequence[Any] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Folds over the rows of a cohort. No subject is in both parts of a fold.

    Attributes:
      subjects: Subject of each of the S rows; all rows of a subject are in the same part.
      folds: Indices of the training rows and of the held-out rows of each fold.
      name: Description of how the folds were made.
      blocks: Groups, such as sites, that folds and inner folds hold out as a whole; None if only subjects are kept together.
      seed: Seed of the inner folds.

    Raises:
      InputError: If a fold has an empty part, an index is out of range, or a subject is in both parts; the message names the first.
    """

    subjects: np.ndarray
    folds: tuple[Fold, ...]
    name: str
    blocks: np.ndarray | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.folds:
            raise InputError(f"{self.name}: expected at least one fold, found none")
        for number, (train, test) in enumerate(self.folds, 1):
            if not len(train) or not len(test):
                raise InputError(f"{self.name}: fold {number} has {len(train)} training rows and {len(test)} held-out rows: expected both")
            if min(train.min(), test.min()) < 0 or max(train.max(), test.max()) >= len(self.subjects):
                raise InputError(f"{self.name}: fold {number} has rows outside the {len(self.subjects)} rows of the cohort")
            if both := sorted(set(map(str, self.subjects[train])) & set(map(str, self.subjects[test]))):
                raise InputError(f"{self.name}: fold {number} has subject {both[0]} in both parts: expected every subject in one of them")

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    def __len__(self) -> int:
        return len(self.folds)

    @property
    def digest(self) -> str:
        """Short digest of the folds; equal for evaluations on the same folds."""
        sha = hashlib.sha256()
        for train, test in self.folds:
            sha.update(np.asarray(train, "<i8").tobytes() + b"|" + np.asarray(test, "<i8").tobytes() + b";")
        return sha.hexdigest()[:12]

    def inner(self, train: Int[np.ndarray, " n"], y: np.ndarray, folds: int = 5) -> list[Fold]:
        """Return folds within the training rows, for model selection inside the training part.

        Whole blocks are held out if the split has blocks (at most `folds` groups of them) and the other blocks have both classes;
        otherwise, subjects are held out.

        Args:
          train: Rows of the training part.
          y: Target of every row of the cohort; classes are kept balanced.
          folds: Number of inner folds; fewer if there are fewer subjects per class or fewer blocks.

        Returns:
          Folds of *positions in `train`*, as scikit-learn expects for data restricted to `train`.

        Raises:
          InputError: If the training part cannot be split in two.
        """
        said, own = f"{self.name}, inner folds", y[train]
        if self.blocks is not None and len(np.unique(self.blocks[train])) > 1:
            found = list(_grouped(self.blocks[train], own, folds, self.seed, said))
            if all(np.ptp(own[fit]) > 0 for fit, _ in found):
                return found
        return list(_grouped(self.subjects[train], own, folds, self.seed, said))


def by_subject(subjects: Labels, y: np.ndarray, *, folds: int = 5, repeats: int = 1, seed: int = 0) -> Split:
    """Return stratified folds that keep the rows of a subject together, repeated with different random orders.

    Args:
      subjects: Subject of each row, `[S]`.
      y: Classes, which the folds keep balanced, or any numbers (then balanced by quintile), `[S]`.

    Raises:
      SettingsError: If there are fewer than two folds, or no repeat.
      InputError: If a class has fewer subjects than there are folds; the message names the class.
    """
    if folds < 2 or repeats < 1:
        raise SettingsError(f"expected 2 folds or more and 1 repeat or more, got {folds} folds and {repeats} repeats")
    labels = np.asarray(subjects, str)
    _check_classes(labels, y, folds, f"{folds}-fold by subject")
    found = [fold for repeat in range(repeats) for fold in _grouped(labels, y, folds, seed + repeat, f"{folds}-fold by subject")]
    # Numbers are balanced by quintile, so that there are at most as many folds as subjects in a quintile.
    said = f"{len(found) // repeats}-fold by subject" + (f", {repeats} repeats" if repeats > 1 else "")
    return Split(labels, tuple(found), said, seed=seed)


def leave_site_out(subjects: Labels, sites: Labels, *, groups: int | None = None, seed: int = 0) -> Split:
    """Return one fold per site, in which the whole site is held out.

    Args:
      subjects: Subject of each row, `[S]`.
      sites: Site of each row, `[S]`.
      groups: Number of groups of sites that are held out together, balanced by size; one group per site by default.

    Raises:
      InputError: If there is only one site, or a subject was scanned at two sites.
    """
    labels, places = np.asarray(subjects, str), np.asarray(sites, str)
    names, sizes = np.unique(places, return_counts=True)
    if len(names) < 2:
        raise InputError(f"leave-site-out: expected two or more sites, found only {names[0] if len(names) else 'none'}")
    members = np.arange(len(names))
    if groups is not None and groups < len(names):
        filled = np.zeros(groups)
        for at in np.argsort(-sizes, kind="stable"):
            members[at] = filled.argmin()
            filled[members[at]] += sizes[at]
    of_row = members[np.searchsorted(names, places)]
    folds = tuple((np.flatnonzero(of_row != one), np.flatnonzero(of_row == one)) for one in np.unique(of_row))
    said = "leave one site out" if groups is None else f"leave one of {groups} groups of sites out"
    return Split(labels, folds, said, blocks=places, seed=seed)


def fixed(subjects: Labels, held_out: Sequence[Sequence[str]], *, blocks: Labels | None = None, seed: int = 0) -> Split:
    """Return folds from lists of subjects, so that results of different programs can be compared.

    Args:
      subjects: Subject of each row, `[S]`.
      held_out: Subjects held out in each fold; all others are used for training.
      blocks: Sites or other groups that inner folds hold out as a whole, `[S]`.

    Raises:
      InputError: If a listed subject is not in the cohort; the message names the first.
    """
    labels = np.asarray(subjects, str)
    known = set(labels.tolist())
    folds = []
    for number, names in enumerate(held_out, 1):
        if unknown := [name for name in names if name not in known]:
            said = f"{len(unknown)} subjects that the cohort does not have, first {unknown[0]}"
            raise InputError(f"list of folds: fold {number} names {said}")
        test = np.isin(labels, list(names))
        folds.append((np.flatnonzero(~test), np.flatnonzero(test)))
    return Split(labels, tuple(folds), "folds from a list", None if blocks is None else np.asarray(blocks, str), seed)


def _grouped(groups: np.ndarray, y: np.ndarray, folds: int, seed: int, said: str) -> Iterator[Fold]:
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = classes_of(y)
    if np.bincount(kinds).max() < 2:  # too few distinct numbers to balance
        kinds = np.zeros_like(kinds)
    each = [len(np.unique(groups[kinds == kind])) for kind in np.unique(kinds)]
    if len(np.unique(groups)) < 2:
        raise InputError(f"{said}: expected two or more groups, found only {groups[0] if len(groups) else 'none'}")
    count = max(2, min(folds, *each, len(np.unique(groups))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer members than folds: refused above if it matters
        yield from StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(groups, kinds, groups)


def classes_of(y: np.ndarray) -> Int[np.ndarray, " S"]:
    """Return the classes used to balance folds: those of y if it has at most five values, otherwise its quintiles, or fewer quantiles of
    at least five rows each."""
    values, at = np.unique(y, return_inverse=True)
    if len(values) <= 5:
        return at
    count = int(np.clip(len(y) // 5, 1, 5))
    return np.searchsorted(np.quantile(np.asarray(y, float), np.arange(1, count) / count), np.asarray(y, float))


def joined_values(y: np.ndarray, subjects: np.ndarray, folds: int) -> np.ndarray:
    """Return numbers by which folds are balanced: y, or, if it has at most five values, codes of neighbouring values that are joined until
    each has a subject for every fold. A scale with a rare value can then be split as any other number."""
    values, at = np.unique(y, return_inverse=True)
    if len(values) > 5:
        return y
    codes, first = np.zeros(len(values), int), 0
    for value in range(len(values)):
        codes[value] = codes[first]
        if len(np.unique(subjects[(first <= at) & (at <= value)])) >= folds:
            codes[value + 1 :], first = codes[value] + 1, value + 1
    last = codes[first - 1] if first else 0  # too few subjects remain beyond it
    return np.minimum(codes, last)[at]


def _check_classes(subjects: np.ndarray, y: np.ndarray, folds: int, said: str) -> None:
    y = np.asarray(y)
    values = np.unique(y)
    if len(values) > 5:
        values, y = np.array(["all"]), np.full(len(y), "all")
    for value in values:
        count = len(np.unique(subjects[y == value]))
        if count < folds:
            raise InputError(f"{said}: expected {folds} subjects or more of each class, found {count} of class {value}: use fewer folds")
