"""Results of `circuits` as rows, tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from pnet_jax.evaluate.answer import Answer, Figure, Row, with_p
from pnet_jax.evaluate.design import Design
from pnet_jax.ops.permutation import PermutationResult

LEVEL = 0.05
SHOWN = 5  # non-significant components and nodes that are listed as rows
NAMED = 3  # blocks and nodes named in a sentence


class Found(NamedTuple):
    """Design and result of a test.

    Attributes:
      design: Design of the test.
      result: Result of the permutation test, as numpy arrays.
      difference, error: Effect on each edge and its standard error, in the unit of the edges, `[E]`.
      parcels: Names of the k parcels that all scans have.
      modules: Networks of these parcels, empty where unknown.
      pairs: Networks of each block.
      shared: Mask of these parcels among the K parcels of the cohort, `[K]`.
      units: Unit of the edges.
      threshold: Threshold of t for components.
    """

    design: Design
    result: PermutationResult
    difference: Float[np.ndarray, " E"]
    error: Float[np.ndarray, " E"]
    parcels: tuple[str, ...]
    modules: tuple[str, ...]
    pairs: list[tuple[str, str]]
    shared: Bool[np.ndarray, " K"]
    units: str
    threshold: float


def describe(found: Found, settings: Mapping[str, Any], warnings: Sequence[str]) -> Answer:
    """Return the answer, without further computation on the data."""
    absent = int((~found.shared).sum())
    untested = int(np.isnan(found.result.t).sum())
    more = [*warnings]
    if absent:
        count = len(found.shared) * (len(found.shared) - 1) // 2 - len(found.result.t)
        more.append(f"{absent} of {len(found.shared)} parcels are not in every scan: their {count:,} edges were not tested.")
    if untested:
        more.append(f"{untested:,} edges do not vary and were not tested.")
    more.append(
        "The family-wise error rate of 5 % holds for edges, components, threshold-free scores, networks and nodes separately: choose the "
        "test that answers the question before inspecting the others."
    )
    if not found.pairs:
        more.append("Networks were not tested, because the parcel names contain no network names: provide the networks (--modules).")
    elif without := sum(not one for one in found.modules):
        more.append(f"{without} of {len(found.modules)} parcels belong to no network: the tests between networks do not include them.")
    tables = {"edges": edge_table(found), "components": component_table(found), "nodes": node_table(found)}
    if found.pairs:
        tables["blocks"] = block_table(found)
    rows = (*edge_rows(found, tables["edges"]), *component_rows(tables["components"]), *set_rows(tables))
    return Answer("circuits", sentences(found, tables), rows, dict(settings), tables, figures(found), tuple(more))


def edge_table(found: Found) -> dict[str, np.ndarray]:
    """Return a line for each edge."""
    i, j = np.triu_indices(len(found.parcels), 1)
    names, modules, result = np.array(found.parcels), np.array(found.modules), found.result
    half = stats.t.ppf(0.975, float(result.df)) * found.error
    p_t, q = p_of_t(found)
    assert result.components is not None and result.enhanced is not None
    known, label = np.where(np.isnan(result.t), np.nan, 1), np.asarray(result.components.label)
    return {
        "parcel_1": names[i], "parcel_2": names[j], "module_1": modules[i], "module_2": modules[j],
        "difference": found.difference * known, "low": (found.difference - half) * known, "high": (found.difference + half) * known,
        "t": np.asarray(result.t), "p": np.asarray(result.p), "p_t": p_t, "q": q, "p_fwe": np.asarray(result.p_fwe),
        "tfnbs": np.asarray(result.enhanced.score), "p_tfnbs": np.asarray(result.enhanced.p), "component": np.maximum(label + 1, 0),
    }  # fmt: skip


def p_of_t(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return p values from the t distribution, and their false discovery rates.

    Permutation p values cannot be below 1 / (1 + permutations), so few of thousands of edges would survive correction.
    """
    t, df = np.asarray(found.result.t, float), float(found.result.df)
    p = {"both": 2 * stats.t.sf(np.abs(t), df), "greater": stats.t.sf(t, df), "less": stats.t.cdf(t, df)}[found.result.tail]
    q = np.full_like(p, np.nan)
    known = np.isfinite(p)
    q[known] = stats.false_discovery_control(p[known])
    return p, q


def component_table(found: Found) -> dict[str, np.ndarray]:
    """Return a line for each component of at least one edge, largest first, numbered from 1."""
    one = found.result.components
    assert one is not None
    count = int((one.extent > 0).sum())
    ends = np.stack(np.triu_indices(len(found.parcels), 1), 1)
    nodes = [len(np.unique(ends[one.label == at])) for at in range(count)]
    return {
        "component": np.arange(1, count + 1), "edges": np.asarray(one.extent)[:count].astype(int), "nodes": np.array(nodes, int),
        "intensity": np.asarray(one.intensity)[:count], "p_extent": np.asarray(one.p_extent)[:count],
        "p_intensity": np.asarray(one.p_intensity)[:count],
    }  # fmt: skip


def block_table(found: Found) -> dict[str, np.ndarray]:
    """Return a line for each pair of modules."""
    one = found.result.sets["blocks"]
    return {"module_1": np.array([a for a, _ in found.pairs]), "module_2": np.array([b for _, b in found.pairs])} | _set_columns(one)


def node_table(found: Found) -> dict[str, np.ndarray]:
    """Return a line for each parcel: the means of its edges, and its number of significant edges."""
    result = found.result
    i, j = np.triu_indices(len(found.parcels), 1)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(i, values, len(found.parcels)) + np.bincount(j, values, len(found.parcels))

    fwe, fdr = np.asarray(result.p_fwe < LEVEL), p_of_t(found)[1] < LEVEL
    size = np.abs(np.nan_to_num(result.t))
    own = {"parcel": np.array(found.parcels), "module": np.array(found.modules)}
    own |= {"edges_fwe": summed(fwe.astype(float)).astype(int), "edges_fdr": summed(fdr.astype(float)).astype(int)}
    return own | {"sum_t_fdr": summed(size * fdr)} | _set_columns(result.sets["nodes"])


def _set_columns(one: Any) -> dict[str, np.ndarray]:
    columns = {"edges": one.size.astype(int), "mean_t": one.mean, "p": one.p, "p_fwe": one.p_fwe}
    return columns | {"mean_t2": one.square, "p_t2": one.p_square, "p_t2_fwe": one.p_square_fwe}


def edge_rows(found: Found, table: Mapping[str, np.ndarray]) -> list[Row]:
    """Return the number of significant edges, and the strongest edge with its interval."""
    tested = int(np.isfinite(table["t"]).sum())
    rows = [Row("edges", "all edges", "edges tested", tested, n=len(found.design.x), note="n is the number of participants")]
    for name, column, said in (
        ("false discovery rate", "q", "p is the smallest q, by the t distribution"),
        ("max-T", "p_fwe", "p is the smallest family-wise p"),
        ("TFNBS", "p_tfnbs", "p is the smallest family-wise p"),
    ):
        count = int((table[column] < LEVEL).sum())
        rows.append(Row("edges", name, "edges below 0.05", count, p=_least(table[column]), n=tested, note=said))
    at = int(np.nanargmax(np.abs(table["t"])))
    name = f"{table['parcel_1'][at]} – {table['parcel_2'][at]}"
    limits = float(table["low"][at]), float(table["high"][at])
    note = "the edge with the largest t; its effect is overestimated because it was selected as the largest"
    measure = f"difference in {found.units}" if found.design.classes else f"slope in {found.units} per unit of {found.design.effect}"
    rows.append(Row("edges", name, measure, float(table["difference"][at]), *limits, float(table["p_fwe"][at]), len(found.design.x), note))
    return rows


def component_rows(table: Mapping[str, np.ndarray]) -> list[Row]:
    """Return significant components and the largest ones."""
    rows = []
    for at in range(len(table["component"])):
        extent, intensity = float(table["p_extent"][at]), float(table["p_intensity"][at])
        if at < SHOWN or min(extent, intensity) < LEVEL:
            name, note, n = f"component {at + 1}", f"{table['nodes'][at]} nodes", int(table["edges"][at])
            rows.append(Row("components", name, "extent (edges)", n, p=extent, n=n, note=note))
            value = float(table["intensity"][at])
            rows.append(Row("components", name, "intensity (t above threshold)", value, p=intensity, n=n, note=note))
    return rows


def set_rows(tables: Mapping[str, Mapping[str, np.ndarray]]) -> list[Row]:
    """Return all pairs of networks, and the significant and strongest nodes."""
    rows = []
    for name in ("blocks", "nodes"):
        table = tables.get(name)
        if table is None:
            continue
        strongest = np.argsort(np.nan_to_num(table["p_t2_fwe"], nan=2), kind="stable")[:SHOWN]
        for at in range(len(table["edges"])):
            shown = name == "blocks" or at in strongest or min(table["p_fwe"][at], table["p_t2_fwe"][at]) < LEVEL
            if shown:
                said = f"{table['module_1'][at]} – {table['module_2'][at]}" if name == "blocks" else str(table["parcel"][at])
                n = int(table["edges"][at])
                for measure, value, p, plain in (("mean t", "mean_t", "p_fwe", "p"), ("mean t²", "mean_t2", "p_t2_fwe", "p_t2")):
                    note = f"uncorrected p = {table[plain][at]:.4f}"
                    rows.append(Row(name, said, measure, float(table[value][at]), p=float(table[p][at]), n=n, note=note))
    return rows


def figures(found: Found) -> tuple[Figure, ...]:
    """Return matrices of t, of edges and of pairs of networks."""
    count = len(found.shared)
    places = np.flatnonzero(found.shared)
    i, j = np.triu_indices(len(places), 1)
    full = np.full((count, count), np.nan)
    full[places[i], places[j]] = full[places[j], places[i]] = found.result.t
    kept = full[np.ix_(places, places)]
    made = [Figure(f"t of {found.design.effect}, each edge", "parcel", "parcel", matrix=kept, names=found.parcels)]
    if found.pairs:
        names = tuple(dict.fromkeys(name for pair in found.pairs for name in pair))
        matrix = np.full((len(names), len(names)), np.nan)
        for (a, b), value in zip(found.pairs, found.result.sets["blocks"].mean, strict=True):
            matrix[names.index(a), names.index(b)] = matrix[names.index(b), names.index(a)] = value
        made.append(Figure(f"mean t of {found.design.effect}, pairs of networks", "network", "network", matrix=matrix, names=names))
    return tuple(made)


def sentences(found: Found, tables: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[str, ...]:
    """Return the conclusion, then one sentence for each kind of test."""
    edges, components, nodes = tables["edges"], tables["components"], tables["nodes"]
    tested, fwe = int(np.isfinite(edges["t"]).sum()), int((edges["p_fwe"] < LEVEL).sum())
    tfnbs, fdr = int((edges["p_tfnbs"] < LEVEL).sum()), int((edges["q"] < LEVEL).sum())
    blocks = tables.get("blocks")
    pairs = 0 if blocks is None else int(_significant(blocks).sum())
    kinds = {
        "edge|s (max-T)": fwe, "connected component|s (NBS)": int((components["p_extent"] < LEVEL).sum()),
        "edge|s (threshold-free)": tfnbs, "pair|s of networks": pairs, "node|s": int(_significant(nodes).sum()),
    }  # fmt: skip
    who = _who(found)
    if any(kinds.values()):
        what = ", ".join(f"{count:,} {kind.replace('|s', 's' * (count > 1))}" for kind, count in kinds.items() if count)
        said = [f"{who}: differences survive family-wise correction (p < 0.05): {what}."]
    else:
        tests = "edges, components or nodes" if blocks is None else "edges, components, networks or nodes"
        said = [f"{who}: no differences in {tests} survive family-wise correction (p < 0.05)."]
    said.append(
        f"{fwe:,} of {tested:,} edges pass max-T (smallest family-wise {with_p(_least(edges['p_fwe']))}), {fdr:,} a false discovery rate "
        f"of 0.05, and {tfnbs:,} the threshold-free statistic (smallest {with_p(_least(edges['p_tfnbs']))})."
    )
    said.append(_of_components(found, components))
    for name, table in (("pairs of networks", blocks), ("nodes", nodes)):
        if table is not None:
            said.append(_of_sets(name, table))
    size = float(np.quantile(found.result.max_t, 1 - LEVEL) * np.nanmedian(np.where(found.error > 0, found.error, np.nan)))
    unit = found.units if found.design.classes else f"{found.units} per unit of {found.design.effect}"
    said.append(
        f"A typical single edge had to differ by {size:.2g} ({unit}) to pass max-T; smaller differences may exist but were not detectable."
    )
    return tuple(said)


def _who(found: Found) -> str:
    design = found.design
    if design.kind == "within":
        return f"{design.classes[1]} against {design.classes[0]} within {design.counts[0]} participants"
    if design.classes:
        return f"{design.effect} {design.classes[1]} (n = {design.counts[1]}) against {design.classes[0]} (n = {design.counts[0]})"
    return f"Association with {design.effect} (n = {design.counts[0]})"


def _of_components(found: Found, table: Mapping[str, np.ndarray]) -> str:
    beyond = f"|t| > {found.threshold:.2f}" if found.result.tail == "both" else f"t > {found.threshold:.2f} in the tested direction"
    if not len(table["edges"]):
        return f"No edge lies beyond the threshold of the network-based statistic ({beyond})."
    return (
        f"The largest component beyond {beyond} has {table['edges'][0]:,} edges and {table['nodes'][0]:,} nodes (extent: family-wise "
        f"{with_p(table['p_extent'][0])}; intensity: {with_p(table['p_intensity'][0])})."
    )


def _of_sets(name: str, table: Mapping[str, np.ndarray]) -> str:
    at = np.flatnonzero(_significant(table))
    least = np.fmin(table["p_fwe"], table["p_t2_fwe"])
    if not len(at):
        return f"None of the {len(least)} {name} differ as a whole (smallest family-wise {with_p(_least(least))})."
    order = at[np.argsort(least[at], kind="stable")][:NAMED]
    if "parcel" in table:
        named = [f"{table['parcel'][one]} ({with_p(least[one])})" for one in order]
    else:
        named = [
            f"{table['module_1'][one]} – {table['module_2'][one]} (mean t {table['mean_t'][one]:.2f}, {with_p(least[one])})"
            for one in order
        ]
    return f"{len(at)} of the {len(least)} {name} differ as a whole: {', '.join(named)}{', …' if len(at) > len(order) else ''}."


def _significant(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask of sets with a significant mean or mean square; each of the two tests is done at half the level."""
    return np.fmin(table["p_fwe"], table["p_t2_fwe"]) < LEVEL / 2


def _least(values: np.ndarray) -> float:
    return float(np.nanmin(values))
