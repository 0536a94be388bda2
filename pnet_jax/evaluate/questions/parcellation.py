"""Parcellation: fit, replication and individual specificity of parcels.

`parcellation` reads a cohort and reports the quality of parcels across the halves of each scan (gain, DCBC gain, agreement), and the
overlap of parcels in repeated scans and between participants: Dice (1945) of each parcel and adjusted Rand index (Hubert and Arabie 1985).
Scores on the signals of another scan, which a cohort does not contain, are in `evaluate.parcel_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.answer import Answer, Figure, Row, mean_row, with_interval
from pnet_jax.evaluate.label_maps import dice, pair_agreement, rand_index
from pnet_jax.evaluate.reliability import wilson
from pnet_jax.evaluate.repeats import SAME, Repeats, per_subject, repeats_of

QUALITY = ("dcbc_gain", "gain", "agreement", "expected_agreement", "moved")
UNITS = {"gain": "gain (nats per location)", "dcbc_gain": "DCBC gain"}


def parcellation(cohort: Cohort, *, same: Sequence[str] = SAME, others: int = 5, seed: int = 0) -> Answer:
    """Evaluate the parcels of a cohort.

    Args:
      cohort: Scans; repeated scans, if any, are compared.
      same: Columns of the table that must be equal for two scans to count as repeats.
      others: Number of other participants with which each pair is compared.
      seed: Random seed.

    Returns:
      The Answer. Tables of rows: `quality` (means over scans; intervals over participants), `decisions`, `overlap` (participants with two
      scans). The table `parcels` gives the Dice coefficient of each parcel.

    Raises:
      InputError: The cohort has neither values of quality nor labels of repeated scans.
    """
    rows, figures = _quality_rows(cohort, seed)
    rows += _decision_rows(cohort)
    alarms: list[str] = []
    tables: dict[str, Mapping[str, np.ndarray]] = {}
    repeats = _repeats_or_none(cohort, same)
    if cohort.labels is None:
        alarms.append("Overlap was not computed: the cohort has no labels, because its scans do not share a Space.")
    elif repeats is None:
        alarms.append("Overlap within and between participants was not computed: fewer than two participants have two scans.")
    else:
        own, tables["parcels"] = _overlap_rows(cohort, repeats, others, seed)
        rows, alarms = rows + own, alarms + repeats.warnings
        figures.append(Figure("Dice of each parcel", "Dice", "parcels", values={k: tables["parcels"][k] for k in ("within", "between")}))
    if not any(np.isfinite(row.value) for row in rows):
        raise InputError("parcellation: expected values of quality or labels of repeated scans, found neither in the cohort")
    settings = {"same": list(same), "others": others, "seed": seed, "dice": "mean over parcels", "quality": list(QUALITY)}
    return Answer("parcellation", _sentences(rows), tuple(rows), settings, tables, tuple(figures), tuple(alarms))


def _repeats_or_none(cohort: Cohort, same: Sequence[str]) -> Repeats | None:
    try:
        return repeats_of(cohort, "parcellation", same)
    except InputError:
        return None


def _quality_rows(cohort: Cohort, seed: int) -> tuple[list[Row], list[Figure]]:
    names, subject = np.unique(cohort.table["subject"].astype(str), return_inverse=True)
    rows, figures = [], []
    for name in QUALITY:
        values = np.asarray(cohort.table[name], float)
        known = values[np.isfinite(values)]
        rows.append(mean_row("quality", UNITS.get(name, name), "mean", per_subject(values, subject, len(names)), seed))
        if len(known):
            quantiles = zip(("5 %", "median", "95 %"), np.percentile(known, (5, 50, 95)), strict=True)
            rows += [
                Row("quality", UNITS.get(name, name), measure, float(value), n=len(known), note="n is the number of scans")
                for measure, value in quantiles
            ]
            figures.append(Figure(f"Parcels: {name}", UNITS.get(name, name), "scans", values={name: known}))
    return rows, figures


def _decision_rows(cohort: Cohort) -> list[Row]:
    """Return the share of scans with each decision; intervals treat scans as independent."""
    decisions = cohort.table["decision"].astype(str)
    n, rows = len(decisions), []
    for name in sorted(set(decisions.tolist()) - {""}):
        share = float((decisions == name).mean())
        rows.append(Row("decisions", name, "share of scans", share, *wilson(share, n), n=n))
    return rows


def _overlap_rows(cohort: Cohort, repeats: Repeats, others: int, seed: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    assert cohort.labels is not None
    labels, k, n = cohort.labels[repeats.rows], cohort.n_parcels, len(repeats.names)
    measures: dict[str, dict[str, np.ndarray]] = {"Dice": {}, "adjusted Rand index": {}, "agreement": {}}
    table = {"id": np.asarray(cohort.ids), "name": np.array(cohort.names)}
    for which, pairs in (("within", repeats.within), ("between", repeats.between(others, seed))):
        owner = repeats.subject[pairs[:, 0]]
        overlap = np.stack([dice(labels[i], labels[j], k) for i, j in pairs])
        known = np.isfinite(overlap)
        table[which] = np.where(known, overlap, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
        each = {"Dice": np.where(known, overlap, 0).sum(1) / np.maximum(known.sum(1), 1), "agreement": pair_agreement(labels, pairs)}
        each["adjusted Rand index"] = np.array([rand_index(labels[i], labels[j]) for i, j in pairs])
        for measure, values in each.items():
            measures[measure][which] = per_subject(values, owner, n)
    table["difference"] = table["within"] - table["between"]
    rows = []
    for measure, each in measures.items():
        each["within - between"] = each["within"] - each["between"]
        rows += [mean_row("overlap", measure, which, values, seed) for which, values in each.items()]
    return rows, table


def _sentences(rows: Sequence[Row]) -> tuple[str, ...]:
    row = {(one.table, one.name, one.measure): one for one in rows}
    said = []
    if overlap := row.get(("overlap", "Dice", "within - between")):
        within, between = (row["overlap", "Dice", which] for which in ("within", "between"))
        verdict = "overlap more" if overlap.low > 0 else "overlap less" if overlap.high < 0 else "do not detectably overlap more"
        said.append(
            f"Parcels of two scans of one participant {verdict} than parcels of two participants: Dice is {within.value:.3f} within and "
            f"{between.value:.3f} between participants, difference {with_interval(overlap)}, n = {overlap.n}."
        )
    if (gain := row["quality", UNITS["dcbc_gain"], "mean"]).n:
        said.append(
            f"Across the halves of a scan, the DCBC (distance-controlled boundary coefficient) of personalised parcels minus that of "
            f"parcels that do not use the data is {with_interval(gain)}, n = {gain.n}."
        )
    for one in rows:
        if (one.table, one.name) == ("decisions", "personalised"):
            rest = "" if one.value == 1 else "; for the others, no gain over the atlas was detected"
            said.append(f"{100 * one.value:.0f} % of the {one.n} scans have personalised parcels{rest}.")
    return tuple(said)
