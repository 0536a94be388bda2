"""Conversion of a cohort to the arrays used by evaluations (targets, covariates and edges), with checks of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError

LEAST_SHARED = 3  # fewest parcels that all scans must have
LEAST_VALUES, LARGEST = 3, 1e100  # limits for a numeric target, whose square must be finite
LABELS = ("scan", "subject")  # identifiers, which cannot be targets or covariates


class Target(NamedTuple):
    """Target of a prediction.

    Attributes:
      name: Column of the cohort's table.
      y: 0 or 1 for two classes (1 is the second of `classes`), or numbers, `[n]`.
      rows: Rows of the cohort with a value, `[n]`.
      classes: The two classes; empty for numbers.
      left_out: Number of rows without a value.
    """

    name: str
    y: Float[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    left_out: int


def column(cohort: Cohort, name: str) -> np.ndarray:
    """Return a column of the table.

    Raises:
      SettingsError: If there is no such column; the message names the nearest.
    """
    if name not in cohort.table:
        known = list(cohort.table)
        listed = f"its columns are {', '.join(known)}"
        raise SettingsError(f"the cohort has no column {name!r}{nearest(name, known) or ';'} {listed}")
    return np.asarray(cohort.table[name])


def property_column(cohort: Cohort, name: str) -> np.ndarray:
    """Return a column that can be a target or covariate.

    Raises:
      SettingsError: If there is no such column, or it identifies scans or participants.
    """
    if name in LABELS:
        raise SettingsError(f"{name}: expected a property of the participants, such as age, found the column with their labels")
    return column(cohort, name)


def missing(values: np.ndarray) -> Bool[np.ndarray, " S"]:
    """Return a mask of missing values: NaN, an infinite number, an empty string, `n/a` or `NA`."""
    if values.dtype.kind in "biufc":
        return ~np.isfinite(values.astype(float))
    return np.isin(np.char.lower(np.char.strip(values.astype(str))), ("", "n/a", "na", "nan", "none"))


def class_target(cohort: Cohort, name: str, positive: str | None = None) -> Target:
    """Return a target with two classes.

    Args:
      name: Column of the table.
      positive: Class coded as 1, e.g. the patients; the last in sorted order by default.

    Raises:
      SettingsError: If there is no such column or class.
      InputError: If the column has only one class, or more than two; the message names them.
    """
    values = property_column(cohort, name)
    known = ~missing(values)
    texts = _texts(values)
    classes = sorted(set(texts[known].tolist()))
    if len(classes) != 2:
        shown = ", ".join(classes[:6]) + (", …" if len(classes) > 6 else "")
        raise InputError(f"{name}: expected two classes, found {len(classes)}: {shown or 'no values'}")
    if positive is not None and positive not in classes:
        raise SettingsError(f"{name}: no class {positive!r}: expected one of {', '.join(classes)}")
    if positive is not None:
        classes = sorted(classes, key=lambda one: one == positive)
    rows = np.flatnonzero(known)
    return Target(name, (texts[rows] == classes[1]).astype(float), rows, tuple(classes), int((~known).sum()))


def number_target(cohort: Cohort, name: str) -> Target:
    """Return a target with numbers.

    Raises:
      SettingsError: If there is no such column.
      InputError: If its values are not numbers, or do not vary.
    """
    property_column(cohort, name)
    values = numbers(cohort, name)
    rows = np.flatnonzero(np.isfinite(values))
    if len(rows) < LEAST_VALUES:
        raise InputError(f"{name}: expected {LEAST_VALUES} numbers or more, found {len(rows)}")
    if np.ptp(values[rows]) == 0:
        raise InputError(f"{name}: expected numbers that differ between participants, found {len(rows)} values, which do not vary")
    if np.abs(values[rows]).max() > LARGEST:
        at = int(np.abs(values[rows]).argmax())
        raise InputError(f"{name}: expected numbers up to {LARGEST:g}, found {values[rows][at]:g} for {cohort.table['scan'][rows[at]]}")
    return Target(name, values[rows], rows, (), len(values) - len(rows))


def numbers(cohort: Cohort, name: str) -> Float[np.ndarray, " S"]:
    """Return a column as numbers, NaN where there is no value.

    Raises:
      InputError: If a value is not a number; the message names the scan.
    """
    values = column(cohort, name)
    if values.dtype.kind in "biuf":
        return values.astype(float)
    out = np.full(len(values), np.nan)
    for at in np.flatnonzero(~missing(values)):
        try:
            out[at] = float(values[at])
        except ValueError:
            raise InputError(f"{name}: expected numbers, found {str(values[at])!r} for {cohort.table['scan'][at]}") from None
    return out


def covariate_matrix(cohort: Cohort, names: Sequence[str], rows: Int[np.ndarray, " n"]) -> tuple[Float[np.ndarray, "n Q"], list[str]]:
    """Return covariates as numbers (strings as indicators of their levels, without the first), and the names of the columns.

    Raises:
      SettingsError: If there is no such column, or it identifies participants.
      InputError: If a value is missing or infinite (the message names the scan), or a column is constant.
    """
    columns: list[np.ndarray] = []
    said: list[str] = []
    for name in names:
        values = property_column(cohort, name)[rows]
        if (gap := missing(values)).any():
            first = cohort.table["scan"][rows][gap][0]
            found = f"{int(gap.sum())} of {len(rows)} scans have no value, first {first}"
            raise InputError(f"covariate {name}: {found}: exclude the covariate or the scans")
        try:
            each = {name: values.astype(float)}
        except ValueError:
            texts = values.astype(str)
            each = {f"{name}={level}": (texts == level).astype(float) for level in sorted(set(texts.tolist()))[1:]}
        if (wrong := ~np.all([np.isfinite(one) for one in each.values()], axis=0)).any():
            raise InputError(f"covariate {name}: expected finite numbers, found an infinite one for {cohort.table['scan'][rows][wrong][0]}")
        if not each or any(np.ptp(one) == 0 for one in each.values()):
            raise InputError(f"covariate {name}: expected values that differ between scans, found only {str(values[0])!r}")
        columns += each.values()
        said += each
    return np.stack(columns, 1) if columns else np.zeros((len(rows), 0)), said


def shared_parcels(cohort: Cohort, layer: str, rows: Int[np.ndarray, " n"] | None = None) -> Bool[np.ndarray, " K"]:
    """Return which parcels have edges in every scan.

    Raises:
      SettingsError: If the cohort has no such layer.
      InputError: If fewer than three parcels are shared; the message names the scan with the most missing parcels.
    """
    edges = layer_of(cohort, layer)
    if edges.shape[-1] < LEAST_SHARED:
        raise InputError(f"edges {layer!r}: expected {LEAST_SHARED} parcels or more, found {edges.shape[-1]}")
    edges = edges if rows is None else edges[rows]
    off = ~np.eye(edges.shape[-1], dtype=bool)
    present = np.stack([(np.isfinite(matrix) & off).any(1) for matrix in edges])
    shared = np.asarray(present.all(0))
    if shared.sum() < LEAST_SHARED:
        scans = cohort.table["scan"] if rows is None else cohort.table["scan"][rows]
        worst = int(present.sum(1).argmin())
        raise InputError(
            f"edges {layer!r}: only {int(shared.sum())} of {len(shared)} parcels are in every scan; {scans[worst]} lacks "
            f"{int((~present[worst]).sum())}: exclude scans with a small field of view"
        )
    return shared


def layer_of(cohort: Cohort, layer: str) -> Float[np.ndarray, "S K K"]:
    """Return the matrices of a layer.

    Raises:
      SettingsError: If the cohort has no such layer.
    """
    if layer not in cohort.edges:
        known = list(cohort.edges)
        listed = f"its layers are {', '.join(known)}" if known else "it has no layers"
        raise SettingsError(f"the cohort has no edges {layer!r}{nearest(layer, known) or ';'} {listed}")
    return cohort.edges[layer]


def upper(matrices: Float[np.ndarray, "S K K"], shared: Bool[np.ndarray, " K"]) -> Float[np.ndarray, "S E"]:
    """Return the edges between shared parcels above the diagonal, row by row."""
    places = np.flatnonzero(shared)
    i, j = np.triu_indices(len(places), 1)
    return np.asarray(matrices)[:, places[i], places[j]]


def fisher_z(r: Float[np.ndarray, "*B"], clip: float = 0.999) -> Float[np.ndarray, "*B"]:
    """Return Fisher z of correlations; r is clipped, because z is infinite at |r| = 1."""
    return np.arctanh(np.clip(r, -clip, clip))


def _texts(values: np.ndarray) -> np.ndarray:
    """Return values as strings, with integers written without a decimal point."""
    if values.dtype.kind == "f":
        return np.array([str(int(one)) if np.isfinite(one) and one == int(one) else str(one) for one in values])
    return values.astype(str)
