"""Checks for limitations of a comparison: few participants, head motion, absent parcels, equal networks of different participants."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.stats import pearsonr

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.answer import Row
from pnet_jax.evaluate.columns import Target
from pnet_jax.evaluate.features import Edges, with_measure
from pnet_jax.evaluate.plan import main_layer
from pnet_jax.evaluate.qc_fc import motion_rows

LEAST, FEW = 10, 40  # participants; fewer are refused, or cause a warning; half of each number per class


def few_participants(goal: Target, subjects: np.ndarray) -> list[str]:
    """Return a warning if there are few participants for an interval. The rule is the same for classes and numbers.

    At least 10 participants are needed, 5 of each class: with fewer, a bootstrap interval of AUC or r does not have its nominal coverage.
    Below 40, 20 of each class, intervals are so wide (for r, about ±0.3) that pipelines cannot be ranked.

    Args:
      goal: Target of the comparison.
      subjects: Subject of each value of the target, `[n]`.

    Raises:
      InputError: If there are too few participants; the message gives their number.
    """
    groups = [(f"of class {name}", subjects[goal.y == one], 2) for one, name in enumerate(goal.classes)]
    warnings = []
    for name, own, share in [*groups, (f"with a value of {goal.name}", subjects, 1)]:
        if (count := len(np.unique(own))) < LEAST // share:
            expected = f"{LEAST // share} participants or more {name}, found {count}"
            raise InputError(f"{goal.name}: expected {expected}: no meaningful interval exists for fewer")
        if count < FEW // share:
            limit = f"{count} participants {name} (fewer than {FEW // share})"
            warnings.append(f"There are only {limit}: intervals are wide, and pipelines cannot be ranked.")
    return warnings[:1]


def motion_part(cohort: Cohort, y: np.ndarray, seed: int) -> tuple[list[Row], list[str]]:
    """Return the association of plain edges and of the target with head motion, and a warning if motion is unknown."""
    fd = cohort.table["mean_fd"].astype(float) if "mean_fd" in cohort.table else np.full(len(cohort), np.nan)
    if not np.isfinite(fd).all():
        lacking = f"{int((~np.isfinite(fd)).sum())} of {len(fd)} scans"
        return [], [f"Head motion (mean_fd) is unknown for {lacking}, so its contribution to the result was not measured."]
    layer = main_layer(cohort) if cohort.edges else "pearson"
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


def absent_parcels(cohort: Cohort) -> list[str]:
    """Return a warning if parcels are omitted because some scans lack them."""
    if not cohort.edges:
        return []
    present = np.isfinite(cohort.edges[main_layer(cohort)]).any(2)
    shared = int(present.all(0).sum())
    if shared == cohort.n_parcels:
        return []
    worst = int(present.sum(1).argmin())
    lacks = f"{cohort.table['scan'][worst]} lacks {int((~present[worst]).sum())}"
    return [f"Only the {shared} of {cohort.n_parcels} parcels that are in every scan are used; {lacks}."]


def equal_networks(cohort: Cohort) -> list[str]:
    """Return a warning if different participants have identical networks, which suggests that one file was read for several.

    Raises:
      InputError: If all scans have the same network.
    """
    arrays = cohort.edges[main_layer(cohort)] if cohort.edges else cohort.signals
    if arrays is None:
        return []
    first: dict[bytes, int] = {}
    pairs = []
    for row, values in enumerate(arrays):
        other = first.setdefault(hashlib.sha256(values.tobytes()).digest(), row)
        if cohort.table["subject"][other] != cohort.table["subject"][row]:
            pairs.append((other, row))
    if len(first) == 1 and len(cohort) > 1:
        raise InputError(f"expected networks that differ between scans, found {len(cohort)} scans with the same values")
    if not pairs:
        return []
    names = " and ".join(str(cohort.table["scan"][row]) for row in pairs[0])
    return [f"{len(pairs)} scans have the same network as a scan of another participant, first {names}: check the files."]
