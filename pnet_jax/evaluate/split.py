"""Split: which participants are for training and which are held out, the same for every method that is compared."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from pnet_jax.errors import InputError

Fold = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]
Labels = Sequence[Any] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Folds over the rows of a cohort. No subject is in both parts of a fold.

    Attributes:
      subjects: subject of each of the S rows; all rows of a subject are in the same part.
      folds: indices of the training rows and of the held-out rows of each fold.
      name: how the folds were made.
      blocks: whole groups, such as sites, that folds and inner folds leave out; None if only subjects are kept together.
      seed: seed of the inner folds.

    Raises:
      InputError: a fold has an empty part, an index is out of range, or a subject is in both parts; the first such subject is named.
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
        """Short digest of the folds, by which two evaluations can be seen to share them."""
        sha = hashlib.sha256()
        for train, test in self.folds:
            sha.update(np.asarray(train, "<i8").tobytes() + b"|" + np.asarray(test, "<i8").tobytes() + b";")
        return sha.hexdigest()[:12]

    def inner(self, train: Int[np.ndarray, " n"], y: np.ndarray, folds: int = 5) -> list[Fold]:
        """Return folds within training rows, for choices that are made inside the training part.

        Whole blocks are left out if the split has blocks (at most `folds` groups of them), subjects otherwise.

        Args:
          train: rows of the training part.
          y: target of every row of the cohort; classes are kept balanced.
          folds: number of inner folds; fewer if there are fewer subjects per class or fewer blocks.

        Returns:
          Folds of *positions in `train`*, as scikit-learn expects them for data that was cut to `train`.

        Raises:
          InputError: the training part cannot be split in two.
        """
        groups = self.subjects[train]
        if self.blocks is not None and len(np.unique(self.blocks[train])) > 1:
            groups = self.blocks[train]
        return list(_grouped(groups, y[train], folds, self.seed, f"{self.name}, inner folds"))


def by_subject(subjects: Labels, y: np.ndarray, *, folds: int = 5, repeats: int = 1, seed: int = 0) -> Split:
    """Return stratified folds that keep the rows of a subject together, repeated with other random orders.

    Args:
      subjects: subject of each row, `[S]`.
      y: classes, which the folds keep balanced, or any numbers (then balanced by quintile), `[S]`.

    Raises:
      InputError: a class has fewer subjects than there are folds; names the class.
    """
    labels = np.asarray(subjects, str)
    said = f"{folds}-fold by subject" + (f", {repeats} repeats" if repeats > 1 else "")
    _check_classes(labels, y, folds, said)
    found = [fold for repeat in range(repeats) for fold in _grouped(labels, y, folds, seed + repeat, said)]
    return Split(labels, tuple(found), said, seed=seed)


def leave_site_out(subjects: Labels, sites: Labels, *, groups: int | None = None, seed: int = 0) -> Split:
    """Return one fold for each site, which is held out as a whole.

    Args:
      subjects: subject of each row, `[S]`.
      sites: site of each row, `[S]`.
      groups: number of groups of sites to leave out together, dealt by falling size; one group for each site by default.

    Raises:
      InputError: there is one site only, or a subject was scanned at two sites.
    """
    labels, places = np.asarray(subjects, str), np.asarray(sites, str)
    names, sizes = np.unique(places, return_counts=True)
    if len(names) < 2:
        raise InputError(f"leave-site-out: expected two sites or more, found only {names[0] if len(names) else 'none'}")
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
      subjects: subject of each row, `[S]`.
      held_out: subjects that each fold holds out; all others are for training.
      blocks: sites or other groups that inner folds leave out as a whole, `[S]`.

    Raises:
      InputError: a listed subject is not in the cohort; names the first.
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
    each = [len(np.unique(groups[kinds == kind])) for kind in np.unique(kinds)]
    if len(np.unique(groups)) < 2:
        raise InputError(f"{said}: expected two groups or more, found only {groups[0] if len(groups) else 'none'}")
    count = max(2, min(folds, *each, len(np.unique(groups))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer members than folds: refused above where it matters
        yield from StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(groups, kinds, groups)


def classes_of(y: np.ndarray) -> Int[np.ndarray, " S"]:
    """Return classes by which folds are balanced: those of y if it has at most five values, its quintiles otherwise."""
    values, at = np.unique(y, return_inverse=True)
    if len(values) <= 5:
        return at
    return np.searchsorted(np.quantile(np.asarray(y, float), (0.2, 0.4, 0.6, 0.8)), np.asarray(y, float))


def _check_classes(subjects: np.ndarray, y: np.ndarray, folds: int, said: str) -> None:
    y = np.asarray(y)
    values = np.unique(y)
    if len(values) > 5:
        values, y = np.array(["all"]), np.full(len(y), "all")
    for value in values:
        count = len(np.unique(subjects[y == value]))
        if count < folds:
            raise InputError(f"{said}: expected {folds} subjects or more of each class, found {count} of class {value}: use fewer folds")
