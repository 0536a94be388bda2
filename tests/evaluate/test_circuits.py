"""Abnormal circuits: what is planted is found, what is not is not, and designs that cannot be tested are refused by name."""

from __future__ import annotations

import dataclasses

import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import circuits
from pnet_jax.evaluate.design import make_design
from pnet_jax.evaluate.modules import block_sets, clustered_modules, node_sets
from pnet_jax.ingest.lut import read_networks
from pnet_jax.parcellation.modules import modules_of

K, FEW = 10, 199
NAMES = (*(f"7Networks_LH_Vis_{one}" for one in range(1, 5)), *(f"7Networks_RH_Default_PFC_{one}" for one in range(1, 5)), "HIP-rh", "x")
ENDS = np.stack(np.triu_indices(K, 1), 1)


def matrices(z: np.ndarray) -> np.ndarray:
    """Correlation matrices from Fisher z above the diagonal, `[S, K, K]`."""
    out = np.tile(np.eye(K, dtype=np.float32), (len(z), 1, 1))
    i, j = np.triu_indices(K, 1)
    out[:, i, j] = out[:, j, i] = np.tanh(z)
    return out


def cohort(z: np.ndarray, **columns) -> Cohort:
    n = len(z)
    table = {"scan": np.array([f"sub-{s:02d}_run-{s}" for s in range(n)]), "subject": np.array([f"{s:02d}" for s in range(n)])}
    return Cohort(
        table=table | {name: np.asarray(column) for name, column in columns.items()},
        edges={"pearson": matrices(z)},
        views={"pearson": {"units": "correlation (r)", "meant_for": "inference", "directed": False}},
        coverage=np.ones((n, K)),
        ids=np.arange(1, K + 1),
        names=NAMES,
        hemispheres=("L",) * K,
        atlas={"source": "test", "digest": "0"},
    )


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).normal(size=(n, len(ENDS)))


GROUP = np.array(["control", "patient"])[np.arange(40) % 2]
PLANTED = np.flatnonzero((ENDS < 4).all(1))  # within Vis


def planted(size: float = 0.4, n: int = 40, seed: int = 0) -> np.ndarray:
    z = noise(n, seed)
    z[:, PLANTED] += size * (np.arange(n) % 2)[:, None]
    return z


# What is found


def test_a_planted_circuit_is_found_by_every_test():
    found = circuits(cohort(planted(), group=GROUP), "group", permutations=FEW)
    edges, blocks, nodes = (found.tables[name] for name in ("edges", "blocks", "nodes"))
    assert_allclose(edges["q"], stats.false_discovery_control(edges["p_t"]))
    assert set(PLANTED) <= set(np.flatnonzero(edges["q"] < 0.05)) and (edges["q"] < 0.05).sum() <= 7
    for column in ("p_fwe", "p_tfnbs"):
        assert_array_equal(np.flatnonzero(edges[column] < 0.05), PLANTED, err_msg=column)
    assert_array_equal(np.flatnonzero(edges["component"] == 1), PLANTED)
    assert found.value("component 1", "extent (edges)") == 6 and found.tables["components"]["p_extent"][0] == 1 / (1 + FEW)
    assert (blocks["module_1"][0], blocks["module_2"][0]) == ("Vis", "Vis")
    assert_array_equal(np.flatnonzero(blocks["p_fwe"] < 0.05), [0])
    assert_array_equal(np.flatnonzero(nodes["p_t2_fwe"] < 0.025), range(4))
    assert_array_equal(nodes["edges_fwe"], [3] * 4 + [0] * 6)
    assert found.sentences[0] == (
        "group patient (n = 20) against control (n = 20): differences survive family-wise correction (p < 0.05): 6 edges (max-T), 1 "
        "connected component (NBS), 6 edges (threshold-free), 1 pair of networks, 4 nodes."
    )
    assert found.figures[0].matrix.shape == (K, K) and found.figures[1].names == ("Vis", "Default", "Subcortex")
    assert_allclose(found.figures[1].matrix[0, 0], blocks["mean_t"][0])


def test_figures_equal_foreign_programs():
    """t by scipy, components by networkx, means by numpy."""
    z = planted(0.3)
    found = circuits(cohort(z, group=GROUP), "group", permutations=FEW, primary_p=0.05)
    edges, ill = found.tables["edges"], GROUP == "patient"
    t = stats.ttest_ind(z[ill], z[~ill])
    assert_allclose(edges["t"], t.statistic, rtol=1e-3, atol=1e-4)
    assert_allclose(edges["p_t"], t.pvalue, rtol=1e-2)
    interval = t.confidence_interval()
    assert_allclose([edges["low"], edges["high"]], [interval.low, interval.high], atol=1e-4)
    assert_allclose(edges["difference"], z[ill].mean(0) - z[~ill].mean(0), atol=1e-5)
    beyond = np.abs(t.statistic) > found.settings["threshold"]
    assert_allclose(found.settings["threshold"], stats.t.isf(0.025, 38))
    graph = nx.Graph(ENDS[beyond].tolist())
    sizes = sorted((graph.subgraph(one).number_of_edges() for one in nx.connected_components(graph)), reverse=True)
    assert_array_equal(found.tables["components"]["edges"], sizes)
    inside = found.tables["blocks"]
    vis, default = np.arange(K) < 4, (np.arange(K) >= 4) & (np.arange(K) < 8)
    between = (vis[ENDS[:, 0]] & default[ENDS[:, 1]]) | (default[ENDS[:, 0]] & vis[ENDS[:, 1]])
    at = np.flatnonzero((inside["module_1"] == "Vis") & (inside["module_2"] == "Default"))[0]
    assert_allclose(
        [inside["mean_t"][at], inside["mean_t2"][at]], [t.statistic[between].mean(), (t.statistic[between] ** 2).mean()], rtol=1e-3
    )
    assert inside["edges"][at] == 16
    of_node = (ENDS == 2).any(1)
    assert_allclose(found.tables["nodes"]["mean_t2"][2], (t.statistic[of_node] ** 2).mean(), rtol=1e-3)


def test_nothing_is_said_to_survive_where_nothing_is_planted():
    found = circuits(cohort(noise(40, seed=5), group=GROUP), "group", permutations=FEW)
    assert "no differences in edges, components, networks or nodes survive family-wise correction (p < 0.05)" in found.sentences[0]
    assert found.settings["permutations"] == FEW and found.settings["df"] == 38
    assert any("choose the test that answers" in text for text in found.warnings)


def test_p_values_are_uniform_without_an_effect():
    p = np.array([circuits(cohort(noise(16, seed), group=GROUP[:16]), "group", permutations=99).tables["edges"]["p"] for seed in range(20)])
    # 900 values, correlated only through 20 cohorts' permutations.
    assert 0.45 < p.mean() < 0.55 and 0.02 < (p <= 0.05).mean() < 0.08


def test_a_number_gives_a_slope_and_a_seed_the_same_again():
    age = np.linspace(20, 60, 30)
    z = noise(30)
    z[:, 7] += 0.02 * age
    runs = [circuits(cohort(z, age=age), "age", permutations=FEW, seed=seed) for seed in (1, 1, 2)]
    edges = runs[0].tables["edges"]
    assert_allclose(edges["difference"][7], stats.linregress(age, z[:, 7]).slope, rtol=1e-3)
    assert_array_equal(np.flatnonzero(edges["p_fwe"] < 0.05), [7])
    assert_array_equal(edges["p"], runs[1].tables["edges"]["p"])
    assert (edges["p"] != runs[2].tables["edges"]["p"]).any()
    assert "slope in Fisher z per unit of age" in {row.measure for row in runs[0].rows}


# Covariates and sites


def test_a_covariate_takes_its_part_away_and_one_that_is_the_effect_is_refused():
    rng = np.random.default_rng(0)
    fd = 0.2 * (np.arange(40) % 2) + 0.1 * rng.random(40)
    z = noise(40) + 2 * fd[:, None]
    one = cohort(z, group=GROUP, mean_fd=fd, twin=(GROUP == "patient").astype(float))
    assert circuits(one, "group", permutations=FEW).value("max-T", "edges below 0.05") > 5
    held = circuits(one, "group", covariates=["mean_fd"], permutations=FEW)
    assert held.value("max-T", "edges below 0.05") == 0 and held.settings["df"] == 37
    assert any("Head motion (mean_fd) is associated with group" in text for text in circuits(one, "group", permutations=9).warnings)
    assert not any("Head motion" in text for text in held.warnings)
    with pytest.raises(InputError, match="group: the covariates fully explain the effect"):
        circuits(one, "group", covariates=["twin"])


def test_sites_are_blocks_with_a_mean_each():
    """Patients come from site B mostly, and B differs: without blocks this is a difference between groups."""
    site = np.where(np.random.default_rng(0).random(40) < np.where(GROUP == "patient", 0.75, 0.25), "B", "A")
    z = noise(40) + 0.8 * (site == "B")[:, None]
    one = cohort(z, group=GROUP, site=site)
    assert circuits(one, "group", site=None, permutations=FEW).value("max-T", "edges below 0.05") > 5
    within = circuits(one, "group", permutations=FEW)
    assert within.value("max-T", "edges below 0.05") == 0
    assert (within.settings["site"], within.settings["sites"], within.settings["df"]) == ("site", 2, 37)
    ill = (GROUP == "patient").astype(float)
    expected = np.linalg.lstsq(np.stack([ill, site == "A", site == "B"], 1).astype(float), z)[0][0]
    assert_allclose(within.tables["edges"]["difference"], expected, atol=1e-5)
    with pytest.raises(InputError, match="group: does not vary within any site"):
        circuits(cohort(z, group=GROUP, site=np.where(GROUP == "patient", "B", "A")), "group")
    lone = np.where(np.arange(40) < 4, "C", site)
    lone[1::2][:2] = "A"
    assert any(
        "does not vary at 1 of 3 sites (C)" in text
        for text in circuits(cohort(z, group=GROUP, site=lone), "group", permutations=9).warnings
    )


def test_participants_change_places_within_their_site_only():
    design = make_design(cohort(noise(40), group=GROUP, site=np.repeat(["A", "B"], 20)), "group", site="site")
    assert_array_equal(design.strata, np.repeat([0, 1], 20))
    assert design.sites == ("A", "B")


# Repeated scans


def test_scans_of_one_participant_count_once():
    z = planted(n=40)
    other = z + 0.1 * np.random.default_rng(3).normal(size=z.shape)
    subject = np.tile([f"p{s}" for s in range(40)], 2)
    twice = cohort(np.concatenate([z, other]), group=np.tile(GROUP, 2))
    twice.table["subject"] = subject
    found = circuits(twice, "group", permutations=FEW)
    assert (found.settings["participants"], found.settings["scans"], found.settings["df"]) == (40, 80, 38)
    ill = GROUP == "patient"
    mean = (np.float64(z) + other) / 2
    assert_allclose(found.tables["edges"]["t"], stats.ttest_ind(mean[ill], mean[~ill]).statistic, rtol=1e-3, atol=1e-4)
    assert any("Participants have 2 scans" in text for text in found.warnings)


def paired(n: int = 20, size: float = 0.3) -> Cohort:
    own = noise(n) + noise(n, seed=1)
    closed, opened = own + 0.5 * noise(n, seed=2), own + 0.5 * noise(n, seed=3)
    opened[:, PLANTED] += size
    out = cohort(np.concatenate([closed, opened]), state=np.repeat(["EC", "EO"], n), mean_fd=np.random.default_rng(0).random(2 * n))
    out.table["subject"] = np.tile([f"p{s:02d}" for s in range(n)], 2)
    out.table["age"] = np.tile(np.arange(n), 2)
    return out


def test_an_effect_within_participants_is_tested_on_their_differences():
    one = paired()
    found = circuits(one, "state", permutations=FEW)
    z = np.arctanh(one.edges["pearson"][:, ENDS[:, 0], ENDS[:, 1]])
    assert_allclose(found.tables["edges"]["t"], stats.ttest_rel(z[20:], z[:20]).statistic, rtol=1e-3, atol=1e-4)
    assert_array_equal(np.flatnonzero(found.tables["edges"]["p_fwe"] < 0.05), PLANTED)
    assert found.settings["design"] == "within" and found.sentences[0].startswith(
        "EO against EC within 20 participants: differences survive"
    )
    reverse = circuits(one, "state", positive="EC", permutations=FEW)
    assert_allclose(reverse.tables["edges"]["t"], -found.tables["edges"]["t"], rtol=1e-4)
    held = circuits(one, "state", covariates=["mean_fd", "age"], permutations=FEW)
    assert held.settings["covariate_columns"] == ["mean_fd"] and held.settings["df"] == 18
    assert any("cancel out in differences: age" in text for text in held.warnings)


def test_a_mixture_of_designs_is_refused_by_name():
    one = paired()
    lacks = one.take(np.arange(40) != 23)
    with pytest.raises(InputError, match=r"state: 19 participants have scans of both classes \(p00, .*\) and 1 of one class only \(p03\)"):
        circuits(lacks, "state")
    one.table["dose"] = np.arange(40.0)
    with pytest.raises(InputError, match="dose: expected one number for each participant, found several for p00"):
        circuits(one, "dose")
    one.table["site"] = np.array(["A"] * 39 + ["B"])
    one.table["sex"] = np.tile(np.array(["f", "m"])[np.arange(20) % 2], 2)
    with pytest.raises(InputError, match="site: expected one for each participant, found A, B for p19"):
        circuits(one, "sex")


# What is refused


@pytest.mark.parametrize("layer", ["guided", "shrunk", "coupling"])
def test_layers_that_erase_differences_are_refused(layer):
    with pytest.raises(SettingsError, match=f'Expected the layer "raw", got "{layer}"'):
        circuits(cohort(noise(40), group=GROUP), "group", layer=layer)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ({}, {}, "the cohort has no column 'group'"),
        ({"group": GROUP}, {"layer": "pearsn"}, "no edges 'pearsn', did you mean 'pearson'|no edges 'pearsn'"),
        ({"group": GROUP}, {"primary_p": 0.7}, "primary_p: expected a number between 0 and 0.5, got 0.7"),
        ({"group": GROUP}, {"tail": "up"}, "tail: expected 'both', 'greater' or 'less', got 'up'"),
        ({"group": GROUP}, {"permutations": 0}, "permutations: expected 1 or more, got 0"),
        ({"group": GROUP}, {"site": "scanner"}, "the cohort has no column 'scanner'"),
        ({"group": GROUP}, {"modules": {"y": "Vis"}}, "modules: 1 names are not among the 10 parcels, first 'y'"),
        ({"group": GROUP}, {"modules": ("Vis",)}, "modules: expected one for each of the 10 parcels, found 1"),
        ({"group": GROUP}, {"modules": 10}, "modules: expected a number from 2 to 9 for 10 parcels, got 10"),
        ({"group": GROUP}, {"primary_p": 0.0}, "primary_p: expected a number between 0 and 0.5, got 0.0"),
        ({"group": np.repeat("patient", 40)}, {}, "group: expected two classes, found 1: patient"),
        (
            {"group": np.array(["p"] * 2 + ["c"] * 38)},
            {},
            "expected 3 participants or more of each class, found 38 of class c and 2 of class p",
        ),
        ({"group": GROUP, "age": np.r_[np.nan, np.arange(39)]}, {"covariates": ["age"]}, "covariate age: 1 of 40 scans have no value"),
    ],
)
def test_bad_input_is_refused(column, options, message):
    with pytest.raises((InputError, SettingsError), match=message):
        circuits(cohort(noise(40), **column), "group", **options)


def test_parcels_that_a_scan_lacks_are_not_tested():
    one = cohort(planted(), group=GROUP)
    edges = one.edges["pearson"].copy()
    edges[3, 9], edges[3, :, 9] = np.nan, np.nan
    found = circuits(dataclasses.replace(one, edges={"pearson": edges}), "group", permutations=FEW)
    assert len(found.tables["edges"]["t"]) == 36 and "x" not in found.figures[0].names
    assert any("1 of 10 parcels are not in every scan: their 9 edges were not tested" in text for text in found.warnings)
    left = dataclasses.replace(one, table=one.table | {"group": np.where(np.arange(40) == 3, "n/a", GROUP)}, edges={"pearson": edges})
    without = circuits(left, "group", permutations=9)  # the scan that lacks it has no group
    assert len(without.tables["edges"]["t"]) == 45 and any("1 scans have no value of group" in text for text in without.warnings)


def test_few_rearrangements_are_said():
    found = circuits(cohort(noise(6), group=GROUP[:6]), "group", permutations=9)
    assert any("Only 20 distinct permutations exist" in text for text in found.warnings)


# Modules


def test_modules_are_read_from_names_or_given():
    assert modules_of(NAMES) == ("Vis",) * 4 + ("Default",) * 4 + ("Subcortex", "")
    assert modules_of(("a", "b"), {"b": "one"}) == ("", "one")
    pairs, members = block_sets(("A", "A", "B", ""))
    assert pairs == [("A", "A"), ("A", "B")]  # B has one parcel, and so no edge within
    assert_array_equal(members.T, [[1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]])
    assert_array_equal(node_sets(3), [[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    plain = dataclasses.replace(cohort(planted(), group=GROUP), names=tuple(f"r{one}" for one in range(K)))
    without = circuits(plain, "group", permutations=9)
    assert "blocks" not in without.tables and any("Networks were not tested" in text for text in without.warnings)
    given = circuits(plain, "group", permutations=9, modules={f"r{one}": "first" if one < 4 else "rest" for one in range(K)})
    assert list(given.tables["blocks"]["module_1"]) == ["first", "first", "rest"]


def test_modules_are_clusters_of_the_mean_network():
    """Three groups of parcels that correlate within, whatever their order; classes have no influence."""
    group = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 3, 2]))
    i, j = np.triu_indices(K, 1)
    z = 0.8 * (group[i] == group[j]) + noise(40)
    found = circuits(cohort(z, group=GROUP), "group", permutations=9, modules=3)
    of_parcel = found.tables["nodes"]["module"]
    assert_array_equal(of_parcel, np.array(["module 1", "module 2", "module 3"])[group])
    assert found.settings["modules"] == "clusters of the mean network" and len(found.tables["blocks"]["edges"]) == 6
    other = circuits(cohort(z, group=np.roll(GROUP, 1)), "group", permutations=9, modules=3)
    assert_array_equal(other.tables["nodes"]["module"], of_parcel)
    assert clustered_modules(z.mean(0), 2).count("module 1") >= 5


def test_a_lower_primary_threshold_gives_larger_components():
    sizes = []
    for p in (0.05, 0.001):
        found = circuits(cohort(planted(0.2), group=GROUP), "group", permutations=9, primary_p=p)
        assert_allclose(found.settings["threshold"], stats.t.isf(p / 2, 38))
        sizes.append(found.tables["components"]["edges"].sum())
    assert sizes[0] > sizes[1]


def test_networks_are_read_from_the_table_of_an_atlas(tmp_path):
    file = tmp_path / "atlas_dseg.tsv"
    file.write_text("index\tname\tnetwork\tlobe\n7\ta\tVis\tO\n8\tb\tn/a\tP\n9\tother\tVis\tO\n")
    assert read_networks(file, ("b", "a"), (8, 7)) == ("", "Vis")
    assert read_networks(file, ("b", "a"), (8, 7), "lobe") == ("P", "O")
    with pytest.raises(InputError, match="expected a column 'yeo' with the network of each parcel, found index, name, network, lobe"):
        read_networks(file, ("a",), (7,), "yeo")
    with pytest.raises(InputError, match="expected the 1 parcels of the cohort, such as 'x', in column 'name', found 'a' first"):
        read_networks(file, ("x",), (7,))
    file.write_text("index\tnetwork\n7\tVis\n8\tDefault\n")
    assert read_networks(file, ("b", "a"), (8, 7)) == ("Default", "Vis")
    file.write_text("index\tnetwork\n7\tVis\n7\tDefault\n")
    with pytest.raises(InputError, match="parcel '7' has two networks, 'Vis' and 'Default'"):
        read_networks(file, ("b", "a"), (8, 7))
