"""Columns of a finished scan in its record, and therefore in `status.tsv` and the cohort report."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from pnet_jax.network import Network
from pnet_jax.outputs.tables import plain

DIGITS = 5  # decimal places of a column


def result_columns(network: Network, known: Container[str] = ()) -> dict[str, Any]:
    """Compute the record columns of a result; unmeasured values are None.

    Args:
      network: Result of a subject.
      known: Warnings that apply to every result of the run and are therefore omitted from `qc_warnings`.

    Returns:
      `n_frames`, `minutes`, `n_absent` (parcels without any location), `parcels` (the decision) with its `reason`, `moved` (share of
      locations), `mean_fd` (framewise displacement, mm), `agreement` (of the two halves, share of locations), `expected_agreement` (with a
      repeat of equal length) and `ece` (expected calibration error), `gain` (nats per location), `dcbc_gain`, `coverage` (mean over the
      parcels, 0…1), `n_warnings` and `qc_warnings`.

    Example:
      >>> result_columns(network)["parcels"]  # doctest: +SKIP
      'personalised'
    """
    qc, selection, calibration = network.qc, network.qc.selection, network.qc.calibration
    minutes = len(network.frames) * network.tr / 60 if qc.minutes is None else qc.minutes
    covered = network.coverage[np.isfinite(network.coverage)]
    said = [text for text in qc.warnings if text not in known]
    figures = {
        "n_frames": len(network.frames),
        "minutes": round(minutes, 2),
        "n_absent": network.n_parcels - len(np.unique(network.labels[network.labels >= 0])),
        "parcels": selection.decision,
        "reason": selection.reason,
        "moved": qc.moved,
        "mean_fd": qc.mean_displacement,
        "agreement": selection.agreement,
        "expected_agreement": None if calibration is None else calibration.expected_agreement,
        "ece": None if calibration is None else calibration.expected_error,
        "gain": selection.gain[1],
        "dcbc_gain": selection.dcbc_gain[1],
        "coverage": covered.mean() if len(covered) else None,
        "n_warnings": len(said),
        "qc_warnings": "; ".join(said),
    }
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in plain(figures).items()}
