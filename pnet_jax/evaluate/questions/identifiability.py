r"""Identifiability: recognition of a participant in another scan, and the features that permit it.

With the similarity r of every scan of one occasion to every scan of another:

- identification accuracy: share of participants whose most similar scan on the other occasion is their own, both directions
  (Finn et al. 2015);
- :math:`I_\mathrm{diff} = 100\,(I_\mathrm{self} - I_\mathrm{others})`, the mean similarity within minus between participants (Amico and
  Goñi 2018);
- discriminability: probability that two scans of one participant are nearer to each other than to another participant's (Bridgeford et al.
  2021);
- the median ICC(1,1) of the edges (Shrout and Fleiss 1979).

Edges and label maps are scored separately: where parcels do not follow a participant's own areas, the shape of these areas appears in the
edges and helps identification (Bijsterbosch et al. 2018). Identification from scan length and quality alone is reported as a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer, Figure, Row, interval_of, mean_row, with_p
from pnet_jax.evaluate.columns import shared_parcels
from pnet_jax.evaluate.label_maps import agreement
from pnet_jax.evaluate.layers import chosen_layers, edge_vectors, shrunk_warnings
from pnet_jax.evaluate.reliability import (
    correlations,
    discriminability,
    discriminability_null,
    hits,
    icc_rows,
    others_mean,
    p_value,
    wilson,
)
from pnet_jax.evaluate.repeats import SAME, Repeats, per_subject, repeats_of

QUALITY = ("mean_fd", "tsnr", "n_frames")


class Features(NamedTuple):
    """Features from which scans are recognised.

    Attributes:
      table: `"edges"`, `"labels"` or `"baseline"`.
      name: Layer, or columns.
      similarity: Similarity of all pairs of scans, `[n, n]`; larger values are more similar.
      edges: Edges of the scans, `[n, E]`, if it is a layer.
    """

    table: str
    name: str
    similarity: Float[np.ndarray, "n n"]
    edges: Float[np.ndarray, "n E"] | None = None


def identifiability(
    cohort: Cohort,
    layers: Sequence[str] | None = None,
    *,
    same: Sequence[str] = SAME,
    quality: Sequence[str] = QUALITY,
    permutations: int = 1000,
    draws: int = 500,
    seed: int = 0,
) -> Answer:
    """Identify participants across their scans.

    Args:
      cohort: Scans; at least two participants must have two.
      layers: Edge layers; all layers of the cohort by default.
      same: Columns of the table that must be equal for two scans to count as repeats.
      quality: Columns of the baseline, which uses neither edges nor labels; those without values are left out.
      permutations: Number of permutations of the participants, for chance levels and p values.
      draws: Number of bootstrap samples for the interval of the ICC.
      seed: Random seed.

    Returns:
      The Answer. Tables of rows: `edges`, `labels`, `baseline`. Accuracies have Wilson intervals, other values bootstrap intervals
      over participants. The table `participants` gives the share of comparisons in which each participant was identified.

    Raises:
      InputError: Fewer than two participants have two scans, or no edge differs between scans.
      SettingsError: A layer or column is unknown, or there is no permutation.
    """
    if permutations < 1:
        raise SettingsError(f"identifiability: expected 1 permutation or more, got {permutations}")
    repeats, layers = repeats_of(cohort, "identifiability", same), chosen_layers(cohort, layers)
    rows: list[Row] = []
    figures: list[Figure] = []
    table, used = {"participant": np.array(repeats.names)}, {}
    for features in _features(cohort, repeats, layers, quality):
        own, identified = feature_rows(features, repeats, permutations=permutations, seed=seed)
        rows, table[features.name] = rows + own, identified
        if features.edges is not None:
            found, values = icc_rows(features.edges, repeats.subject, features.name, draws=draws, seed=seed)
            rows += found
            figures.append(Figure(f"Reliability of {features.name} edges", "ICC(1,1)", "edges", values={features.name: values}))
            used[features.name] = features.edges.shape[1]
        figures.append(_figure(features, repeats))
    settings = {
        "layers": list(layers),
        "edges_used": used,
        "similarity": "Pearson correlation over edges as they are, agreement of labels, minus Euclidean distance of standardised columns",
        "distance_of_discriminability": "1 - similarity",
        "repeats": f"scans of one participant that share {', '.join(same) or 'nothing else'}",
        **{"quality": list(quality), "permutations": permutations, "draws": draws, "seed": seed},
    }
    answer = Answer("identifiability", (), tuple(rows), settings, {"participants": table}, tuple(figures))
    alarms = [*repeats.warnings, *shrunk_warnings(layers), *_quality_warnings(cohort, repeats, quality)]
    return Answer(
        "identifiability", _sentences(answer, layers[0]), answer.rows, settings, answer.tables, answer.figures, warnings=tuple(alarms)
    )


def _features(cohort: Cohort, repeats: Repeats, layers: Sequence[str], quality: Sequence[str]) -> Iterator[Features]:
    for layer in layers:
        edges = edge_vectors(cohort, layer, repeats.rows, shared_parcels(cohort, layer, repeats.rows))
        if not np.ptp(edges, axis=0).any():
            raise InputError(f"identifiability: expected edges that differ between scans, found none in {layer!r}")
        yield Features("edges", layer, correlations(edges, edges), edges)
    if cohort.labels is not None:
        labels = cohort.labels[repeats.rows]
        yield Features("labels", "labels", agreement(labels, labels))
    columns = {name: np.asarray(cohort.table[name], float)[repeats.rows] for name in quality if name in cohort.table}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).all() and np.ptp(values) > 0}
    if columns:
        x = np.stack([(values - values.mean()) / values.std() for values in columns.values()], 1)
        yield Features("baseline", " + ".join(columns), -np.linalg.norm(x[:, None] - x[None], axis=-1))


def _quality_warnings(cohort: Cohort, repeats: Repeats, quality: Sequence[str]) -> list[str]:
    """Return a warning that names the columns that are missing for some scans and therefore not in the baseline."""
    missing = {name: ~np.isfinite(np.asarray(cohort.table[name], float)[repeats.rows]) for name in quality if name in cohort.table}
    some = [f"{name} ({int(gap.sum())} scans)" for name, gap in missing.items() if gap.any() and not gap.all()]
    return [f"Left out of the baseline because some scans have no value: {', '.join(some)}."] if some else []


def feature_rows(
    features: Features, repeats: Repeats, *, permutations: int = 1000, seed: int = 0
) -> tuple[list[Row], Float[np.ndarray, " n"]]:
    """Return the rows of one kind of features, and the share of comparisons in which each participant was identified."""
    n, similarity = len(repeats.names), features.similarity
    rng = np.random.default_rng(seed)
    owners, found, null = [], [], np.zeros((permutations, 2))
    compared = 0
    for first, second in repeats.occasions():
        block = similarity[np.ix_(first, second)]
        forward, backward = hits(block)
        m = len(first)
        owners.append(repeats.subject[first])
        found.append(np.stack([np.diag(forward), np.diag(backward), np.diag(block), others_mean(block)]))
        shuffles = np.array([rng.permutation(m) for _ in range(permutations)]).reshape(-1, m)
        null += np.stack([one[np.arange(m), shuffles].sum(1) for one in (forward, backward)], 1)
        compared += m
    owner, values = np.concatenate(owners), np.concatenate(found, 1)
    forward, backward, own, others = (per_subject(one, owner, n) for one in values)
    null /= compared
    rows = _accuracy_rows(features, (forward, backward), null, compared)
    named = {"I_self": own, "I_others": others, "I_diff (x 100)": 100 * (own - others)}
    rows += [mean_row(features.table, features.name, measure, each, seed) for measure, each in named.items()]
    rows.append(_discriminability_row(features, repeats, permutations, seed))
    return rows, (forward + backward) / 2


def _accuracy_rows(
    features: Features, identified: tuple[np.ndarray, np.ndarray], null: Float[np.ndarray, "P 2"], compared: int
) -> list[Row]:
    both = (identified[0] + identified[1]) / 2
    each = {"accuracy": (both, null.mean(1)), "accuracy, first to second": (identified[0], null[:, 0])}
    each["accuracy, second to first"] = (identified[1], null[:, 1])
    rows = []
    for measure, (values, chance) in each.items():
        known = values[np.isfinite(values)]
        share = float(known.mean())
        rows.append(Row(features.table, features.name, measure, share, *wilson(share, len(known)), p_value(chance, share), len(known)))
    note = f"{compared} scans are compared with another occasion"
    return [
        *rows,
        Row(features.table, features.name, "accuracy by chance", float(null.mean()), *interval_of(null.mean(1)), n=len(both), note=note),
    ]


def _discriminability_row(features: Features, repeats: Repeats, permutations: int, seed: int) -> Row:
    """Return the row of discriminability, averaged over kinds of scans with weights by their numbers of participants."""
    values, owners, null, total = [], [], np.zeros(permutations), 0
    for kind in sorted(set(repeats.kind.tolist())):
        here = np.flatnonzero(repeats.kind == kind)
        names, subject = np.unique(repeats.subject[here], return_inverse=True)
        if len(names) < 2:
            continue
        distance = 1 - features.similarity[np.ix_(here, here)]
        values.append(discriminability(distance, subject))
        owners.append(names)
        null += len(names) * discriminability_null(distance, subject, permutations, seed)
        total += len(names)
    each = per_subject(np.concatenate(values), np.concatenate(owners), len(repeats.names))
    row = mean_row(features.table, features.name, "discriminability", each, seed)
    return row._replace(p=p_value(null / total, row.value))


def _figure(features: Features, repeats: Repeats) -> Figure:
    first, second = next(iter(repeats.occasions()))
    block = features.similarity[np.ix_(first, second)]
    off = ~np.eye(len(block), dtype=bool)
    values = {"same participant": np.diag(block).copy(), "different participants": block[off]}
    return Figure(f"Similarity of scans by {features.name}", "similarity", "pairs of scans", values=values)


def _sentences(found: Answer, layer: str) -> tuple[str, ...]:
    row = {(one.table, one.name, one.measure): one for one in found.rows}
    accuracy, chance, apart = (row["edges", layer, measure] for measure in ("accuracy", "accuracy by chance", "discriminability"))
    said = [
        f"From {layer} edges, {100 * accuracy.value:.1f} % of the participants are identified in another scan{_limits(accuracy)}, "
        f"{with_p(accuracy.p)}, n = {accuracy.n}; a random choice among the participants of that scan would identify "
        f"{100 * chance.value:.1f} %.",
        f"In {100 * apart.value:.1f} % of the comparisons{_limits(apart)}, two scans of a participant are more similar to each other than "
        f"to a scan of another participant (discriminability; 50 % by chance).",
    ]
    for table in ("labels", "baseline"):
        for one in found.rows:
            if (one.table, one.measure) == (table, "accuracy"):
                what = "label maps" if table == "labels" else f"scan-quality measures alone ({one.name})"
                said.append(f"From {what}, {100 * one.value:.1f} % of the participants are identified{_limits(one)}.")
    if not any(one.table == "baseline" for one in found.rows):
        said.append("Identification from scan quality alone is unknown: the cohort has no scan-quality values that differ between scans.")
    return tuple(said)


def _limits(row: Row) -> str:
    return f", 95 % CI [{100 * row.low:.1f}, {100 * row.high:.1f}] %" if np.isfinite(row.low) else ""
