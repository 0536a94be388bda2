"""Design of a test over subjects: exchangeable values, given sites and repeated scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.columns import Target, class_target, column, covariate_matrix, missing, number_target

LEAST = 3  # fewest participants per class, or pairs
EXPLAINED = 0.999  # largest share of the effect's variance explained by covariates
SHOWN = 5  # largest number of names in a message


class Design(NamedTuple):
    """One value per participant, and the exchangeable units.

    Attributes:
      kind: `"between"`: the effect differs between participants, who are permuted; `"within"`: every participant has scans of both classes,
          and the signs of the differences are flipped.
      effect: Name of the column.
      classes: The two classes, of which the second is coded as 1; empty for numbers.
      counts: Number of participants per class, number of pairs, or number of all participants for numbers.
      subjects: Subject labels, `[n]`.
      x: Effect of each participant, `[n]`; 1 for pairs.
      weights: Weights of the `rows` in each participant's value (means, or differences of means), `[n, m]`.
      covariates: Covariates of each participant, or their differences for pairs, `[n, Q]`.
      names: Names of the covariate columns.
      strata: Site of each participant, 0…, `[n]`; zeros for pairs and without sites.
      sites: Names of the sites.
      rows: Rows of the cohort that are used, `[m]`.
      notes: Limitations to report.
    """

    kind: str
    effect: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    subjects: np.ndarray
    x: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, "n m"]
    covariates: Float[np.ndarray, "n Q"]
    names: tuple[str, ...]
    strata: Int[np.ndarray, " n"]
    sites: tuple[str, ...]
    rows: Int[np.ndarray, " m"]
    notes: tuple[str, ...]

    @property
    def df(self) -> int:
        """Degrees of freedom of the t value of each edge."""
        if self.kind == "within":
            return len(self.x) - 1 - _rank(self.covariates)
        return len(self.x) - 1 - max(len(self.sites), 1) - _rank(_centred(self.covariates, self.strata))


def make_design(
    cohort: Cohort, effect: str, *, covariates: Sequence[str] = (), site: str | None = None, positive: str | None = None
) -> Design:
    """Build the design of a test of one effect.

    Participants with several scans count once: an effect that differs between participants is tested on the means of their scans, and one
    that differs within participants on their differences. Whole blocks of scans would be exchangeable only among participants with equal
    numbers of scans.

    Args:
      effect: Column with two classes or numbers.
      covariates: Columns to control for.
      site: Column within whose levels participants are compared and permuted.
      positive: Class coded as 1; the last in sorted order by default.

    Raises:
      SettingsError: If a column or class does not exist.
      InputError: If only some participants have both classes, numbers differ within participants, a participant was scanned at two sites,
          there are too few participants, or covariates explain the effect; names the cause.
    """
    target = _target(cohort, effect, positive)
    subjects = column(cohort, "subject").astype(str)[target.rows]
    matrix, names = covariate_matrix(cohort, covariates, target.rows)
    own = {subject: np.flatnonzero(subjects == subject) for subject in dict.fromkeys(subjects.tolist())}
    notes = [f"{target.left_out} scans have no value of {effect} and were left out."] if target.left_out else []
    if _is_within(target, own):
        return _within(target, own, matrix, names, notes)
    return _between(cohort, target, own, matrix, names, site, notes)


def _target(cohort: Cohort, effect: str, positive: str | None) -> Target:
    values = column(cohort, effect)
    known = values[~missing(values)]
    numeric = values.dtype.kind in "biuf" or all(_is_number(one) for one in known.tolist())
    return number_target(cohort, effect) if numeric and len(np.unique(known)) > 2 else class_target(cohort, effect, positive)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _is_within(target: Target, own: dict[str, np.ndarray]) -> bool:
    """Return whether the effect varies within every participant.

    Raises:
      InputError: If it varies within some participants only.
    """
    varies = [subject for subject, rows in own.items() if np.ptp(target.y[rows]) > 0]
    if not varies:
        return False
    if not target.classes:
        raise InputError(f"{target.name}: expected one number for each participant, found several for {_listed(varies)}")
    if len(varies) < len(own):
        one = [subject for subject in own if subject not in set(varies)]
        raise InputError(
            f"{target.name}: {len(varies)} participants have scans of both classes ({_listed(varies)}) and {len(one)} of one class only "
            f"({_listed(one)}): expected all participants of one kind; leave the others out"
        )
    return True


def _within(target: Target, own: dict[str, np.ndarray], matrix: np.ndarray, names: list[str], notes: list[str]) -> Design:
    if len(own) < LEAST:
        raise InputError(f"{target.name}: expected {LEAST} participants or more with scans of both classes, found {len(own)}")
    weights = np.zeros((len(own), len(target.rows)))
    for row, rows in enumerate(own.values()):
        for at in (0, 1):
            of_class = rows[target.y[rows] == at]
            weights[row, of_class] = (2 * at - 1) / len(of_class)
    covariates = weights @ matrix
    varies = np.abs(covariates).max(0, initial=0) > 1e-9
    if (~varies).any():
        constant = ", ".join(name for name, one in zip(names, varies, strict=True) if not one)
        notes.append(f"Covariates that do not change within participants cancel out in differences: {constant}.")
    x, subjects = np.ones(len(own)), np.array(list(own))
    covariates, kept = covariates[:, varies], tuple(name for name, one in zip(names, varies, strict=True) if one)
    _check(target.name, x, covariates, 1)
    few = np.log10(2) * len(own)
    return Design(
        "within", target.name, target.classes, (len(own),), subjects, x, weights, covariates, kept,
        np.zeros(len(own), np.int32), (), target.rows, (*notes, *_rearrangements(few)),
    )  # fmt: skip


def _between(
    cohort: Cohort,
    target: Target,
    own: dict[str, np.ndarray],
    matrix: np.ndarray,
    names: list[str],
    site: str | None,
    notes: list[str],
) -> Design:
    weights = np.zeros((len(own), len(target.rows)))
    for row, rows in enumerate(own.values()):
        weights[row, rows] = 1 / len(rows)
    x, covariates = weights @ target.y, weights @ matrix
    strata, sites = _strata(cohort, target, own, site)
    counts = tuple(int((x == one).sum()) for one in (0, 1)) if target.classes else (len(x),)
    if min(counts) < LEAST:
        expected = f"{LEAST} participants or more" + (" of each class" if target.classes else "")
        said = " and ".join(f"{count} of class {name}" for count, name in zip(counts, target.classes or ("all",), strict=True))
        raise InputError(f"{target.name}: expected {expected}, found {said}")
    if sites and all(np.ptp(x[strata == one]) == 0 for one in range(len(sites))):
        raise InputError(f"{target.name}: does not vary within any {site}, so effect and {site} are confounded")
    _check(target.name, _centred(x[:, None], strata)[:, 0], _centred(covariates, strata), max(len(sites), 1))
    if alone := [name for at, name in enumerate(sites) if np.ptp(x[strata == at]) == 0]:
        notes.append(
            f"The effect does not vary at {len(alone)} of {len(sites)} sites ({_listed(alone)}), which do not contribute to the test."
        )
    scans = np.array([len(rows) for rows in own.values()])
    if scans.max() > 1:
        many = f"{scans.min()} to {scans.max()}" if np.ptp(scans) else str(scans[0])
        notes.append(f"Participants have {many} scans; the scans of each participant were averaged.")
    return Design(
        "between", target.name, target.classes, counts, np.array(list(own)), x, weights, covariates, tuple(names),
        strata, sites, target.rows, (*notes, *_rearrangements(_log_count(x, strata))),
    )  # fmt: skip


def _strata(cohort: Cohort, target: Target, own: dict[str, np.ndarray], site: str | None) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    if site is None:
        return np.zeros(len(own), np.int32), ()
    values = column(cohort, site)[target.rows]
    if (gap := missing(values)).any():
        raise InputError(f"{site}: {int(gap.sum())} scans have no value, first {cohort.table['scan'][target.rows][gap][0]}")
    of = values.astype(str)
    for subject, rows in own.items():
        if len(found := np.unique(of[rows])) > 1:
            raise InputError(f"{site}: expected one for each participant, found {', '.join(found)} for {subject}")
    names, strata = np.unique(np.array([of[rows[0]] for rows in own.values()]), return_inverse=True)
    return strata.astype(np.int32), tuple(names.tolist())


def _check(name: str, x: np.ndarray, covariates: np.ndarray, means: int) -> None:
    if len(x) < (least := covariates.shape[1] + means + 2):
        raise InputError(f"{name}: {covariates.shape[1]} covariates and {means} means need {least} participants or more, found {len(x)}")
    if not covariates.shape[1]:
        return
    scaled = covariates / np.maximum(np.linalg.norm(covariates, axis=0), 1e-12)
    left = x - scaled @ np.linalg.lstsq(scaled, x, rcond=1e-6)[0]
    if np.square(left).sum() < (1 - EXPLAINED) * np.square(x).sum():
        raise InputError(f"{name}: the covariates fully explain the effect: remove one of them")


def _centred(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    out = np.array(values, float)
    for one in np.unique(strata):
        out[strata == one] -= out[strata == one].mean(0)
    return out


def _rank(values: np.ndarray) -> int:
    """Return the rank of the covariates, computed as in the permutation op."""
    if not values.shape[1]:
        return 0
    length = np.linalg.norm(values, axis=0)
    return int((np.linalg.svd(values / np.where(length > 0, length, 1), compute_uv=False) > 1e-5).sum())


def _log_count(x: np.ndarray, strata: np.ndarray) -> float:
    """Return log10 of the number of distinct orders of x within strata."""
    total = 0.0
    for one in np.unique(strata):
        _, counts = np.unique(x[strata == one], return_counts=True)
        total += math.lgamma(counts.sum() + 1) - sum(math.lgamma(count + 1) for count in counts)
    return total / math.log(10)


def _rearrangements(log_count: float) -> list[str]:
    if log_count > 3:
        return []
    return [f"Only {round(10**log_count)} distinct permutations exist, which limits the smallest possible p value."]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
