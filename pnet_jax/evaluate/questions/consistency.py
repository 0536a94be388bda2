r"""Consistency: similarity of the networks from repeated scans of a participant.

Networks are compared by their portraits, :math:`1 - D` with D the portrait divergence (Bagrow and Bollt 2019): the similarity of
the numbers of nodes at each distance, regardless of which nodes these are. The value alone is not informative: networks without structure
are also similar, and a constant network would score 1. It is therefore always reported with

- the same value between participants, on the same occasions, and the difference of the two, the *individual part*;
- the noise floor: the same pairs of scans after the edges of each network were randomly reassigned to its pairs of nodes;
- a constant network;
- with a reference, e.g. long scans of the same participants or the truth of a simulation, the similarity to the participant's own
  reference, and its individual part; this is the preferred measure.

Edges are evaluated by ICC(1,1) (Shrout and Fleiss 1979), one-way, with one group mean for all participants. Labels are evaluated by their
agreement, the share of locations assigned to the same parcel in both scans, and the agreement expected from the halves of each scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate import portraits
from pnet_jax.evaluate.answer import Answer, Figure, Row, mean_row, with_interval
from pnet_jax.evaluate.columns import shared_parcels, upper
from pnet_jax.evaluate.label_maps import agreement, pair_agreement
from pnet_jax.evaluate.layers import shrunk_warnings, undirected
from pnet_jax.evaluate.reliability import correlations, icc_rows
from pnet_jax.evaluate.repeats import SAME, Repeats, per_subject, repeats_of
from pnet_jax.ops.portrait import PortraitSettings


def consistency(
    cohort: Cohort,
    layers: Sequence[str] | None = None,
    *,
    settings: Sequence[PortraitSettings] | None = None,
    reference: Cohort | None = None,
    same: Sequence[str] = SAME,
    others: int = 5,
    most_participants: int = 200,
    draws: int = 500,
    seed: int = 0,
) -> Answer:
    """Compare the repeated scans of each participant.

    Args:
      cohort: Scans; at least two participants must have two.
      layers: Edge layers to compare; all undirected layers by default.
      settings: Settings of the portraits; both conventions, binary and weighted, at 5, 10, 15 and 20 % by default.
      reference: Different scans of the same participants in the same atlas: longer scans, or the truth of a simulation. The first scan of
        each participant is used.
      same: Columns of the table that must be equal for two scans to count as repeats.
      others: Number of other participants with which each pair is compared.
      most_participants: Largest number of participants, drawn at random, whose portraits are compared.
      draws: Number of bootstrap samples for the interval of the ICC.
      seed: Random seed.

    Returns:
      The Answer. Tables of rows: `portraits`, `edges`, `labels`; intervals are over participants.

    Raises:
      InputError: Fewer than two participants have two scans, a scan is also in the reference, fewer than two participants have a reference,
        or the reference uses another atlas.
      SettingsError: A layer is directed or unknown.
    """
    repeats, settings = repeats_of(cohort, "consistency", same), tuple(settings or portraits.standard_settings())
    layers = undirected(cohort, layers)
    beside = None if reference is None else Reference(reference, reference_rows(cohort, reference, repeats))
    rows: list[Row] = []
    figures: list[Figure] = []
    alarms = [*repeats.warnings, *shrunk_warnings(layers)]
    for layer in layers:
        shared = shared_parcels(cohort, layer, repeats.rows)
        if beside is not None:
            shared = shared & shared_parcels(beside.cohort, layer, beside.rows[beside.there])
        if shared.sum() < len(shared):
            alarms.append(f"Only the {int(shared.sum())} of {len(shared)} parcels that are in every scan are compared ({layer}).")
        truth = None if beside is None else _of(beside.cohort, layer, beside.rows, shared)
        matrices = _of(cohort, layer, repeats.rows, shared)
        rows += portraits.portrait_rows(matrices, repeats, layer, settings, truth, others=others, most=most_participants, seed=seed)
        own, values = edge_rows(cohort, layer, repeats, shared, beside, draws=draws, seed=seed)
        rows += own
        figures.append(Figure(f"Reliability of {layer} edges", "ICC(1,1)", "edges", values={layer: values}))
    figures += portraits.curves(rows, layers[0], settings)
    found, said = label_rows(cohort, repeats, beside, others, seed)
    rows, alarms = rows + found, alarms + said
    about = {
        "layers": list(layers),
        "portraits": [portraits.words(one) for one in settings],
        "noise": f"edges shuffled between pairs of nodes, {portraits.NOISE_PAIRS} pairs of scans",
        "icc": "ICC(1,1), one-way, one mean for all participants, negative values kept",
        "repeats": f"scans of one participant that share {', '.join(same) or 'nothing else'}",
        "reference": None if reference is None else f"{len(reference)} scans",
        **{"others": others, "most_participants": most_participants, "draws": draws, "seed": seed},
    }
    sentences = _sentences(Answer("consistency", (), tuple(rows), {}), layers[0], settings, reference is not None)
    return Answer("consistency", sentences, tuple(rows), about, figures=tuple(figures), warnings=tuple(alarms))


class Reference(NamedTuple):
    """Reference scans of the participants.

    Attributes:
      cohort: The scans.
      rows: Row of each participant of `Repeats`, −1 where there is none, `[n]`.
    """

    cohort: Cohort
    rows: Int[np.ndarray, " n"]

    @property
    def there(self) -> Int[np.ndarray, " m"]:
        """Participants who have a reference."""
        return np.flatnonzero(self.rows >= 0)


def reference_rows(cohort: Cohort, reference: Cohort, repeats: Repeats) -> Int[np.ndarray, " n"]:
    """Return the row of the reference of each participant of `repeats`, −1 where there is none.

    Raises:
      InputError: The atlas differs, a scan is in both cohorts, or fewer than two participants have a reference.
    """
    if not np.array_equal(reference.ids, cohort.ids):
        raise InputError(
            f"reference: expected the atlas of the cohort ({cohort.n_parcels} parcels), found {reference.n_parcels} parcels with other ids"
        )
    if both := sorted(set(cohort.table["scan"].astype(str)) & set(reference.table["scan"].astype(str))):
        raise InputError(f"reference: {both[0]} is also a scan of the cohort: a scan must not be compared with itself")
    subjects = reference.table["subject"].astype(str)
    order = np.argsort(reference.table["scan"].astype(str), kind="stable")
    first: dict[str, int] = {}
    for row in order:
        first.setdefault(subjects[row], int(row))
    found = np.array([first.get(name, -1) for name in repeats.names])
    if (found >= 0).sum() < 2:
        raise InputError(f"reference: expected scans of two participants of the cohort or more, found {int((found >= 0).sum())}")
    return found


def _of(cohort: Cohort, layer: str, rows: Int[np.ndarray, " n"], shared: Bool[np.ndarray, " K"]) -> Float[np.ndarray, "n N N"]:
    at = np.flatnonzero(shared)
    found = cohort.edges[layer][rows][:, at[:, None], at[None, :]]
    return np.where((rows < 0)[:, None, None], np.float32(np.nan), found)


# edges and labels


def edge_rows(
    cohort: Cohort, layer: str, repeats: Repeats, shared: Bool[np.ndarray, " K"], beside: Reference | None, *, draws: int, seed: int
) -> tuple[list[Row], Float[np.ndarray, " E"]]:
    """Return the rows of the table `edges` of one layer, and the ICC of every edge."""
    edges = upper(cohort.edges[layer][repeats.rows], shared)
    rows, values = icc_rows(edges, repeats.subject, layer, draws=draws, seed=seed)
    if beside is not None:
        alike = correlations(edges, upper(beside.cohort.edges[layer][beside.rows[beside.there]], shared))
        rows += to_reference_rows(alike, beside.there, repeats, "edges", layer, "r", seed)
    return rows, values


def to_reference_rows(
    alike: Float[np.ndarray, "n m"], there: Int[np.ndarray, " m"], repeats: Repeats, table: str, name: str, measure: str, seed: int
) -> list[Row]:
    """Return the rows that compare scans with the references of their own and of other participants.

    Args:
      alike: Similarity of each scan and each reference.
      there: Participant of each reference.
    """
    own = repeats.subject[:, None] == there[None]
    known = own.any(1)
    n, others = len(repeats.names), np.where(own, 0, alike).sum(1) / (len(there) - 1)
    each = {f"{measure} with reference": np.where(own, alike, 0).sum(1), f"{measure} with other references": others}
    means = {title: per_subject(np.where(known, values, np.nan), repeats.subject, n) for title, values in each.items()}
    first, second = means.values()
    means["to reference, individual part"] = first - second
    return [mean_row(table, name, title, values, seed) for title, values in means.items()]


def label_rows(cohort: Cohort, repeats: Repeats, beside: Reference | None, others: int, seed: int) -> tuple[list[Row], list[str]]:
    """Return the rows of the table `labels`, and warnings; both are empty if the scans have no labels in one Space."""
    if cohort.labels is None:
        return [], []
    labels, n = cohort.labels[repeats.rows], len(repeats.names)
    pairs = {"within": repeats.within, "between": repeats.between(others, seed)}
    each = {name: per_subject(pair_agreement(labels, own), repeats.subject[own[:, 0]], n) for name, own in pairs.items()}
    each["individual part"] = each["within"] - each["between"]
    for title, column in (("expected", "expected_agreement"), ("halves of one scan", "agreement")):
        each[title] = per_subject(np.asarray(cohort.table[column], float)[repeats.rows], repeats.subject, n)
    rows = [mean_row("labels", "labels", name if "part" in name else f"agreement {name}", own, seed) for name, own in each.items()]
    if beside is not None and beside.cohort.labels is not None and beside.cohort.labels.shape[1] == labels.shape[1]:
        alike = agreement(labels, beside.cohort.labels[beside.rows[beside.there]])
        rows += to_reference_rows(alike, beside.there, repeats, "labels", "labels", "agreement", seed)
    kept = np.asarray(cohort.table["decision"]).astype(str)[repeats.rows] == "atlas"
    said = (
        [f"{int(kept.sum())} of {len(kept)} scans have the labels of the atlas, which are identical by construction."] if kept.any() else []
    )
    return rows, said


def _sentences(found: Answer, layer: str, settings: Sequence[PortraitSettings], reference: bool) -> tuple[str, ...]:
    chosen = next((one for one in settings if (one.convention, one.lengths, one.density) == ("author", "hops", 0.15)), settings[0])
    name = f"{layer}, {portraits.shown(chosen)}"
    row = {one.measure: one for one in found.rows if one.name == name}
    part, within, between, noise = (
        row[key] for key in ("individual part", *(f"1 - PDiv {m}" for m in ("within", "between", "noise floor")))
    )
    verdict = "more similar" if part.low > 0 else "less similar" if part.high < 0 else "not detectably more similar"
    said = [
        f"Networks from two scans of one participant are {verdict} than networks of two participants: the similarity of their portraits, "
        f"1 − portrait divergence (PDiv), is {within.value:.3f} within and {between.value:.3f} between participants, and the difference "
        f"(individual part) is {with_interval(part)}, n = {within.n} ({layer} edges; {portraits.described(chosen)}).",
        f"Networks with randomly reassigned edges reach 1 − PDiv = {noise.value:.3f}, and identical networks reach 1 by definition: a high "
        "value within participants is not evidence of quality by itself.",
    ]
    if reference:
        own, individual = row["1 - PDiv to reference"], row["to reference, individual part"]
        said.append(
            f"The similarity of a scan to the reference of the same participant is 1 − PDiv = {with_interval(own)}; it exceeds the "
            f"similarity to the references of other participants by {with_interval(individual)}."
        )
    edges = next(one for one in found.rows if (one.table, one.name) == ("edges", layer))
    said.append(f"The median reliability of the {layer} edges is ICC(1,1) = {with_interval(edges)}, n = {edges.n}.")
    labels = {one.measure: one for one in found.rows if one.table == "labels"}
    if labels:
        expected = labels["agreement expected"]
        beside = f"; {100 * expected.value:.1f} % are expected from the halves of the scans" if math.isfinite(expected.value) else ""
        said.append(
            f"Two scans assign {100 * labels['agreement within'].value:.1f} % of the locations to the same parcel within participants and "
            f"{100 * labels['agreement between'].value:.1f} % between participants{beside}."
        )
    return tuple(said)
