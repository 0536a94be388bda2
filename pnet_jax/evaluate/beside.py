"""Matching of a cohort's scans with other networks of the same scans, e.g. in a fixed atlas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Row, with_interval, with_p
from pnet_jax.evaluate.columns import missing

KEYS = (("scan",), ("subject", "session"), ("subject",))  # columns by which scans are matched; the first with scans in common is used
ALIKE = 1e-3  # relative difference up to which two numbers are the same


class Beside(NamedTuple):
    """A cohort and other cohorts with the same scans in the same order.

    Attributes:
      cohort: Scans that all cohorts have.
      others: The same scans in each other cohort, by its name.
      about: Number of parcels, atlas and columns by which the scans were matched, by name.
      warnings: Excluded scans, with counts.
    """

    cohort: Cohort
    others: dict[str, Cohort]
    about: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]


def same_scans(cohort: Cohort, beside: Mapping[str, Cohort] | None, target: str) -> Beside:
    """Return the scans that a cohort and all other cohorts share.

    Scans are matched by label; if no labels agree, by subject and session; and if either cohort has no sessions, by subject.

    Args:
      cohort: Cohort whose table is used.
      beside: Other cohorts by name.
      target: Column that must agree in all cohorts that have it.

    Raises:
      InputError: If the cohort is empty, or another cohort has no scan in common, several scans that match one scan, or another value of
          the target for a scan; the message names it.
      SettingsError: If a name is empty.
    """
    if not len(cohort):
        raise InputError("expected at least one scan, found an empty cohort")
    places: dict[str, dict[int, int]] = {}
    about: dict[str, dict[str, Any]] = {}
    said: list[str] = []
    for name, other in (beside or {}).items():
        if not name.strip():
            raise SettingsError("beside: expected a name for every cohort, got an empty one")
        columns, places[name] = _matched(cohort, other, name)
        _check_target(cohort, other, places[name], name, target)
        about[name] = {"parcels": other.n_parcels, "atlas": other.atlas.get("source", ""), "matched by": " and ".join(columns)}
        said += _left_out(cohort, other, places[name], name)
    rows = np.array([row for row in range(len(cohort)) if all(row in own for own in places.values())], int)
    if not len(rows):
        raise InputError(f"beside: expected scans that all cohorts have, found none in {', '.join(['the cohort', *places])} together")
    others = {name: other.take(np.array([places[name][row] for row in rows])) for name, other in (beside or {}).items()}
    return Beside(cohort if len(rows) == len(cohort) else cohort.take(rows), others, about, tuple(said))


def _matched(cohort: Cohort, other: Cohort, name: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the columns by which scans were matched, and the matching row of the other cohort for each matched row of the cohort."""
    for columns in KEYS:
        if columns == ("subject",) and _has_sessions(cohort) and _has_sessions(other):
            continue  # other sessions of the same participants are not the same scans
        ours, theirs = _keys(cohort, columns), _keys(other, columns)
        common = set(ours) & set(theirs)
        if not common:
            continue
        for which, keys in (("the cohort", ours), (name, theirs)):
            counts = Counter(keys)
            if several := [key for key in keys if key in common and counts[key] > 1]:
                found = f"found {counts[several[0]]} scans of {' '.join(filter(None, several[0]))} in {which}"
                raise InputError(f"{name}: expected one scan for each {' and '.join(columns)}, or equal scan labels, {found}")
        at = {key: row for row, key in enumerate(theirs)}
        return columns, {row: at[key] for row, key in enumerate(ours) if key in at}
    first, second = (str(one.table["scan"][0]) for one in (cohort, other))
    raise InputError(f"{name}: expected networks of the same scans, found no scan in common: {first} … in the cohort, {second} … in {name}")


def _keys(cohort: Cohort, columns: Sequence[str]) -> list[tuple[str, ...]]:
    blank = np.full(len(cohort), "")
    return list(zip(*(cohort.table.get(column, blank).astype(str).tolist() for column in columns), strict=True))


def _has_sessions(cohort: Cohort) -> bool:
    return any(session for (session,) in _keys(cohort, ("session",)))


def _check_target(cohort: Cohort, other: Cohort, places: Mapping[int, int], name: str, target: str) -> None:
    if target not in cohort.table or target not in other.table:
        return
    rows, at = np.array(list(places)), np.array(list(places.values()))
    ours, theirs = np.asarray(cohort.table[target])[rows], np.asarray(other.table[target])[at]
    known = ~missing(ours) & ~missing(theirs)
    if ours.dtype.kind in "biuf" and theirs.dtype.kind in "biuf":
        wrong = known & ~np.isclose(ours.astype(float), theirs.astype(float), rtol=ALIKE)
    else:
        wrong = known & (ours.astype(str) != theirs.astype(str))
    if wrong.any():
        first = int(wrong.argmax())
        found = f"found {theirs[first]} in {name} and {ours[first]} in the cohort for {cohort.table['scan'][rows[first]]}"
        raise InputError(f"{name}: expected the same participants, with the same {target}, {found}")


def _left_out(cohort: Cohort, other: Cohort, places: Mapping[int, int], name: str) -> list[str]:
    said = []
    for lacking, one, rows in ((name, cohort, set(places)), ("The cohort", other, set(places.values()))):
        absent = [row for row in range(len(one)) if row not in rows]
        if absent:
            kept = {str(one.table["subject"][row]) for row in rows}
            gone = {str(one.table["subject"][row]) for row in absent} - kept
            counts = f"{len(absent)} scans ({len(gone)} participants)"
            of = "of the cohort" if one is cohort else f"of {name}"
            said.append(f"{lacking} lacks {counts} {of}, first {one.table['scan'][absent[0]]}: they were left out of all comparisons.")
    return said


def beside_sentences(rows: Sequence[Row], about: Mapping[str, Mapping[str, Any]], measure: str) -> list[str]:
    """Describe each difference between another cohort and the cohort in one sentence.

    Args:
      rows: Rows "features" and "differences" of the answer; those of another cohort are named `"NAME: …"`.
      about: From `same_scans`.
      measure: The first score.
    """
    said = []
    for name, facts in about.items():
        own = next(row for row in rows if row.table == "features" and row.measure == measure and row.name.startswith(f"{name}: "))
        for row in rows:
            if row.table == "differences" and row.name == own.name:
                reference = row.measure.removeprefix(f"{measure} minus ")
                p = "" if np.isnan(row.p) else f", {with_p(row.p)} paired over folds"
                said.append(
                    f"{own.name} ({facts['parcels']} parcels): {measure} = {with_interval(own)}; difference to {reference} on the same "
                    f"scans {row.value:+.3f}, 95 % CI [{row.low:+.3f}, {row.high:+.3f}]{p}, n = {row.n}."
                )
    return said
