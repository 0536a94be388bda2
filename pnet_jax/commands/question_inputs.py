"""Files named by the options of `pnet evaluate`: cohorts, the output folder, folds, and networks of parcels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pnet_jax.errors import InputError, SettingsError

NETWORKS = "network"  # default column of an atlas table


def load(path: str, *, atlas: str | None = None, participants: str | None = None) -> Any:
    """Return the cohort at a path, and print the excluded scans with reasons.

    Raises:
      SettingsError: If `atlas` or `participants` is given for a store, or the folder holds no results or results for several atlases.
    """
    from pnet_jax.outputs import load_cohort

    if is_store(path) and (given := [name for name, value in (("atlas", atlas), ("participants", participants)) if value is not None]):
        raise SettingsError(f"--{given[0]}: {path} is a store, which has one atlas and its own table: use --{given[0]} with pnet collect")
    try:
        cohort = load_cohort(path, atlas=atlas, participants=participants)
    except SettingsError as error:
        stores = sorted(file.parent.name for file in Path(path).glob("*/zarr.json")) if Path(path).is_dir() else []
        raise SettingsError(f"{error}; the folder contains the stores {', '.join(stores[:3])}" if stores else str(error)) from error
    left_out = cohort.provenance.get("left_out", {})
    for scan, reason in list(left_out.items())[:20]:
        print(f"left out: {scan}: {reason}", file=sys.stderr)
    if len(left_out) > 20:
        print(f"left out: {len(left_out) - 20} further scans", file=sys.stderr)
    return cohort


def is_store(path: str) -> bool:
    """Return whether a cohort is a store rather than a folder of results."""
    return "://" in path or (Path(path) / "zarr.json").is_file()


def check_output(folder: str) -> None:
    """Check that results can be written to a folder, before computation starts.

    Raises:
      SettingsError: If the folder is a cohort store or is inside one.
      ValueError: If the path is a file.
      OSError: If the folder cannot be created or written to.
    """
    from pnet_jax.outputs import check_writable

    path = Path(folder).absolute()
    for place in (path, *path.parents):
        if (place / "zarr.json").is_file():
            raise SettingsError(f"OUT: {folder} is in the cohort store {place}, which must not hold other files: choose another folder")
    check_writable(folder)


def beside(given: Sequence[str]) -> dict[str, Any]:
    """Load the cohorts of `--beside NAME=COHORT`, by name.

    Raises:
      SettingsError: If a name or a cohort is missing, two cohorts have the same name, or a folder holds results for several atlases.
    """
    paths: dict[str, str] = {}
    for one in given:
        name, _, path = one.partition("=")
        if not name or not path:
            raise SettingsError(f"--beside: expected NAME=COHORT, got {one!r}")
        if paths.setdefault(name, path) != path:
            raise SettingsError(f"--beside: expected different names, got {name!r} for {paths[name]} and {path}")
    return {name: load(path) for name, path in paths.items()}


def fold_list(file: str) -> list[list[str]]:
    """Read the subjects held out in each fold, with folds sorted by name.

    Raises:
      InputError: If the table lacks a column or a value, or a subject is in two folds.
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
    """Return a number of clusters, or the network of each parcel from a table.

    Raises:
      SettingsError: If a number is not a whole number, or a column is named without a table.
      InputError: If the table cannot be used; see `read_networks`.
    """
    is_number = given is not None and _is_number(given)
    if (given is None or is_number) and column != NETWORKS:
        raise SettingsError(f"--modules-column: expected the table of an atlas with it (--modules FILE), got {column!r} without a table")
    if given is None or given.isdecimal():
        return None if given is None else int(given)
    if is_number:
        raise SettingsError(f"--modules: expected a table or a whole number of clusters, got {given}")
    from pnet_jax.ingest.lut import read_networks

    return read_networks(Path(given), cohort.names, cohort.ids.tolist(), column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
