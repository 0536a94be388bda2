"""Files named by the options of `pnet evaluate`: other cohorts, folds, and networks of parcels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pnet_jax.errors import InputError, SettingsError


def beside(given: Sequence[str]) -> dict[str, Any]:
    """Return the cohorts of `--beside NAME=COHORT` by name.

    Raises:
      SettingsError: A name or a cohort is missing, or two have one name.
    """
    from pnet_jax.outputs import load_cohort

    paths: dict[str, str] = {}
    for one in given:
        name, _, path = one.partition("=")
        if not name or not path:
            raise SettingsError(f"--beside: expected NAME=COHORT, got {one!r}")
        if paths.setdefault(name, path) != path:
            raise SettingsError(f"--beside: expected different names, got {name!r} for {paths[name]} and {path}")
    return {name: load_cohort(path) for name, path in paths.items()}


def fold_list(file: str) -> list[list[str]]:
    """Return the subjects held out in each fold, in the order of the folds' names.

    Raises:
      InputError: The table lacks a column or a value, or a subject is in two folds.
    """
    from pnet_jax.outputs.tables import read_rows

    rows = read_rows(file)
    if not rows or not {"participant_id", "fold"} <= set(rows[0]):
        raise InputError(f"{file}: expected columns participant_id and fold, found {', '.join(rows[0]) if rows else 'no rows'}")
    folds: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for row in rows:
        subject, fold = row["participant_id"].removeprefix("sub-"), row["fold"]
        if not subject or not fold:
            raise InputError(f"{file}: expected a participant and a fold in every row, found {subject or 'none'} and {fold or 'none'}")
        if seen.setdefault(subject, fold) != fold:
            raise InputError(f"{file}: expected every subject in one fold, found sub-{subject} in folds {seen[subject]} and {fold}")
        folds.setdefault(fold, []).append(subject)
    return [folds[name] for name in sorted(folds)]


def modules(given: str | None, column: str, cohort: Any) -> Any:
    """Return a number of clusters, or the network of each parcel from a table."""
    if given is None or given.isdecimal():
        return None if given is None else int(given)
    from pnet_jax.ingest.lut import read_networks

    return read_networks(Path(given), cohort.names, cohort.ids.tolist(), column)
