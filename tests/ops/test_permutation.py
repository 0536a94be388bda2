"""Properties first, then foreign programs, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse.csgraph import connected_components

from pnet_jax.bench import hlo
from pnet_jax.ops.permutation import chunked, false_discovery_rate, permutation_test, reference, sign_flip_test
from pnet_jax.ops.permutation.asked import edge_table
from pnet_jax.ops.permutation.model import PermutationModel, rearranged

IMPLEMENTATIONS = ("reference", "chunked")
KEY = jax.random.key(0)
GROUP = np.repeat(np.float32([0, 1]), [11, 9])


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks, the last one not full, of a number of permutations that no other test has compiled."""
    monkeypatch.setattr(chunked, "NUMBERS", 3000)


def edges(subjects=20, n=66, seed=0, planted=()):
    y = np.random.default_rng(seed).normal(size=(subjects, n)).astype(np.float32)
    y[:, list(planted)] += 3 * GROUP[:subjects, None]
    return y


def clique(nodes, members):
    """Numbers of the edges among some nodes."""
    rows, columns = np.triu_indices(nodes, 1)
    return np.flatnonzero(np.isin(rows, members) & np.isin(columns, members))


def test_unit_and_level_of_an_edge_do_not_matter():
    y = edges(planted=range(5))
    a, b = (permutation_test(x, GROUP, key=KEY, permutations=199) for x in (y, 5 * y + 7))
    assert_allclose(b.t, a.t, rtol=1e-3, atol=1e-4)
    assert_allclose(b.p, a.p, atol=0.011)


def test_the_order_of_edges_does_not_matter():
    y, order = edges(planted=range(5)), np.random.default_rng(0).permutation(66)
    a, b = (permutation_test(x, GROUP, key=KEY, permutations=199) for x in (y, y[:, order]))
    assert_allclose(b.t, a.t[order], atol=1e-5)
    assert_array_equal(b.p_fwe, a.p_fwe[order])


def test_p_values_are_ordered_and_never_0():
    found = permutation_test(edges(planted=range(3)), GROUP, key=KEY, permutations=199)
    assert (found.p <= found.p_fwe).all() and (found.p <= found.q).all()
    assert found.p.min() >= 1 / 200
    assert_allclose(found.p_fwe[:3], 1 / 200)


def test_a_key_gives_the_same_again_and_more_permutations_begin_with_the_same():
    y = edges()
    run = functools.partial(permutation_test, y, GROUP, threshold=2.0)
    a, b, c = run(key=KEY, permutations=199), run(key=KEY, permutations=230), run(key=jax.random.key(1), permutations=199)
    assert_allclose(b.max_t[:199], a.max_t, rtol=1e-5)
    assert_array_equal(b.components.max_extent[:199], a.components.max_extent)
    assert (np.abs(np.asarray(c.max_t - a.max_t)) > 1e-3).mean() > 0.9


def test_tails_mirror_each_other():
    y = edges(planted=range(3))
    run = functools.partial(permutation_test, effect=GROUP, key=KEY, permutations=199, threshold=2.0)
    greater, less = run(y, tail="greater"), run(-y, tail="less")
    assert_allclose(less.t, -greater.t, rtol=1e-6)
    assert_array_equal(less.p, greater.p)
    assert_array_equal(less.components.extent, greater.components.extent)
    assert (np.asarray(run(y, tail="less").p_fwe)[:3] == 1).all()


def test_edges_that_cannot_be_tested_are_nan_and_change_no_other(implementation):
    y = edges(planted=clique(12, range(4)))
    run = functools.partial(permutation_test, effect=GROUP, key=KEY, permutations=199, threshold=3.0, implementation=implementation)
    hurt = y.copy()
    hurt[4, 0], hurt[:, 20], hurt[2, 30] = np.nan, 0.1, np.inf  # 0 is in the planted component
    found, apart = run(hurt), run(np.where(np.isin(np.arange(66), [0, 20, 30]), np.float32(0), y))
    for name in ("t", "p", "p_fwe", "q"):
        x = np.asarray(getattr(found, name))
        assert_array_equal(np.flatnonzero(np.isnan(x)), [0, 20, 30])
        assert_array_equal(x, getattr(apart, name))
    assert np.isfinite(found.max_t).all()
    assert found.components.extent[0] == 5
    assert found.components.label[0] == -1


def test_flips_of_pairs_find_what_differs_and_equal_scipys_t():
    y = edges(n=10)
    y[:, 0] += 2
    found = sign_flip_test(y, key=KEY, permutations=199)
    assert_allclose(found.t, stats.ttest_1samp(np.float64(y), 0).statistic, rtol=1e-4)
    assert found.p_fwe[0] == 1 / 200
    assert found.df == 19


def test_subjects_change_places_within_a_stratum_only():
    """Where group and site are one, no permutation can undo what is seen."""
    y = edges(planted=range(5))
    found = permutation_test(y, GROUP, key=KEY, permutations=199, strata=np.int32(GROUP))
    assert_allclose(found.p, 1)
    mixed = permutation_test(y, GROUP, key=KEY, permutations=199, strata=np.arange(20, dtype=np.int32) % 2)
    assert_allclose(mixed.p_fwe[:5], 1 / 200)


def test_a_covariate_that_explains_the_difference_takes_it_away():
    rng = np.random.default_rng(0)
    age = (GROUP * 3 + rng.normal(size=20)).astype(np.float32)
    y = (edges() + 2 * age[:, None]).astype(np.float32)
    assert (np.asarray(permutation_test(y, GROUP, key=KEY, permutations=199).p) < 0.05).mean() > 0.9
    assert (np.asarray(permutation_test(y, GROUP, age[:, None], key=KEY, permutations=199).p) < 0.05).mean() < 0.2


def test_a_covariate_said_twice_counts_once():
    y, age = edges(), np.linspace(0, 1, 20, dtype=np.float32)[:, None]
    once, twice = (permutation_test(y, GROUP, x, key=KEY, permutations=199) for x in (age, np.concatenate([age, 2 * age + 1], 1)))
    assert once.df == twice.df == 17
    assert_allclose(twice.t, once.t, rtol=1e-3, atol=1e-4)


def test_a_planted_component_is_found_and_numbered_first():
    members = clique(12, [2, 5, 7, 8])
    found = permutation_test(edges(planted=members), GROUP, key=KEY, permutations=199, threshold=4.0).components
    assert_array_equal(np.flatnonzero(np.asarray(found.label) == 0), members)
    assert found.extent[0] == 6
    assert found.p_extent[0] == found.p_intensity[0] == 1 / 200
    assert np.isnan(found.p_extent[found.extent == 0]).all()


def test_errors_of_the_first_kind_are_as_many_as_promised():
    def p_values(y):
        found = permutation_test(y, GROUP, key=jax.random.key(3), permutations=199, threshold=2.5)
        return np.min(found.p_fwe), np.nanmin(np.append(found.components.p_extent, 1)), found.p[0]

    p = np.array([p_values(edges(seed=seed)) for seed in range(120)])
    # 6 of 120 are expected at .05; 13 or more happen once in 100 times.
    assert ((p <= 0.05).sum(0) <= 13).all()
    assert 0.4 < p[:, 2].mean() < 0.6


# Foreign programs


def test_t_equals_scipy(implementation):
    y = edges(planted=range(4))
    found = permutation_test(y, GROUP, key=KEY, permutations=199, threshold=2.0, implementation=implementation)
    a, b = np.float64(y[GROUP == 1]), np.float64(y[GROUP == 0])
    assert_allclose(found.t, stats.ttest_ind(a, b).statistic, rtol=1e-4, atol=1e-5)
    assert found.df == 18


def test_t_with_covariates_equals_least_squares(implementation):
    rng = np.random.default_rng(0)
    effect, z, y = rng.normal(size=20), rng.normal(size=(20, 2)), np.float64(edges())
    found = permutation_test(np.float32(y), np.float32(effect), np.float32(z), key=KEY, permutations=199, implementation=implementation)
    x = np.column_stack([effect, np.ones(20), z])
    beta, rss, *_ = np.linalg.lstsq(x, y)
    assert_allclose(found.t, beta[0] / np.sqrt(rss / 16 * np.linalg.inv(x.T @ x)[0, 0]), rtol=1e-4, atol=1e-5)


def test_statistics_of_permuted_residuals_equal_least_squares():
    """The maximum under Freedman and Lane's scheme, step by step, for one rearrangement."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(20, 2)), np.float64(edges())
    found = permutation_test(np.float32(y), GROUP, np.float32(z), key=KEY, permutations=199)
    label, anywhere = np.arange(20, dtype=np.float32)[None], np.zeros(20, np.int32)
    model = PermutationModel(np.zeros((20, 1), np.float32), label, anywhere, np.float32(16), np.ones(1, bool))
    order = np.asarray(jax.jit(rearranged)(model, KEY, np.int32(1)))[0].astype(int)
    null = np.column_stack([np.ones(20), z])
    fitted = null @ np.linalg.lstsq(null, y)[0]
    shuffled = np.empty_like(y)
    shuffled[:] = fitted + (y - fitted)[np.argsort(order)]  # a row goes where its regressor's value went
    x = np.column_stack([GROUP, null])
    beta, rss, *_ = np.linalg.lstsq(x, shuffled)
    t = beta[0] / np.sqrt(rss / 16 * np.linalg.inv(x.T @ x)[0, 0])
    assert_allclose(found.max_t[1], np.abs(t).max(), rtol=1e-4)


@pytest.mark.parametrize("tail", ["both", "greater"])
def test_p_equals_scipys_exact_test(tail):
    y = edges(8, 5)
    group = np.float32([1, 0, 1, 0, 0, 1, 0, 1])
    y[:, 0] += 1.5 * group
    found = permutation_test(y, group, key=KEY, permutations=4000, tail=tail)

    def difference(a, b, axis):
        return stats.ttest_ind(a, b, axis=axis).statistic

    alternative = {"both": "two-sided"}.get(tail, tail)
    a, b = np.float64(y[group == 1]), np.float64(y[group == 0])
    exact = stats.permutation_test((a, b), difference, alternative=alternative, n_resamples=np.inf, vectorized=True).pvalue
    assert_allclose(found.p, exact, atol=4 * np.sqrt(0.25 / 4000))


def test_flips_equal_scipys_exact_test():
    y = edges(7, 4) + np.float32([1, 0.5, 0, -0.3])
    found = sign_flip_test(y, key=KEY, permutations=4000)
    exact = stats.permutation_test(
        (np.float64(y),), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert_allclose(found.p, exact, atol=4 * np.sqrt(0.25 / 4000))


def test_false_discovery_rate_equals_scipy():
    p = np.random.default_rng(0).random(200).astype(np.float32) ** 2
    p[7] = p[9]
    correct = jax.jit(false_discovery_rate)
    assert_allclose(correct(p), stats.false_discovery_control(np.float64(p)), rtol=1e-5)
    p[[3, 50]] = np.nan
    q, there = np.asarray(correct(p)), ~np.isnan(p)
    assert_array_equal(np.isnan(q), ~there)
    assert_allclose(q[there], stats.false_discovery_control(np.float64(p[there])), rtol=1e-5)


def graphs(nodes, shares, seed=0):
    rng = np.random.default_rng(seed)
    n = nodes * (nodes - 1) // 2
    return np.stack([(rng.random(n) < share) * rng.random(n) for share in shares]).astype(np.float32)


@pytest.mark.parametrize("components", [reference.components, chunked.components], ids=IMPLEMENTATIONS)
def test_components_equal_scipy(components):
    nodes = 30
    weight = graphs(nodes, [0, 0.01, 0.03, 0.05, 0.3, 1])
    chain = np.zeros_like(weight[:1])  # as long as can be, in no order of its nodes
    table, order = edge_table(weight.shape[1], None), np.random.default_rng(1).permutation(nodes)
    chain[0, table[order[:-1], order[1:]]] = 1
    weight = np.concatenate([weight, chain])
    label, extent, intensity = (np.asarray(x) for x in jax.jit(components)(weight, table))
    for w, found, edges_in, excess in zip(weight, label, extent, intensity, strict=True):
        square = np.append(w, 0)[table]
        count, expected = connected_components(square, directed=False)
        lowest = np.array([np.flatnonzero(expected == c)[0] for c in range(count)])
        assert_array_equal(found, lowest[expected])
        for c in range(count):
            inside = square[np.ix_(expected == c, expected == c)]
            assert edges_in[lowest[c]] == (inside > 0).sum() / 2
            assert_allclose(excess[lowest[c]], inside.sum() / 2, rtol=1e-5)


def test_components_of_a_result_equal_networkx():
    y = edges(planted=[*clique(12, range(3)), *clique(12, [8, 9])])
    found = permutation_test(y, GROUP, key=KEY, permutations=199, threshold=2.0)
    t, ends = np.asarray(found.t), np.stack(np.triu_indices(12, 1), 1)
    graph = nx.Graph(ends[np.abs(t) > 2].tolist())
    expected = sorted((graph.subgraph(c).number_of_edges() for c in nx.connected_components(graph)), reverse=True)
    assert_array_equal(np.asarray(found.components.extent)[: len(expected)], expected)
    assert not np.asarray(found.components.extent)[len(expected) :].any()


def test_ends_may_be_given_in_any_order():
    y, ends = edges(planted=clique(12, range(4))), np.stack(np.triu_indices(12, 1), 1)
    order = np.random.default_rng(0).permutation(66)
    run = functools.partial(permutation_test, effect=GROUP, key=KEY, permutations=199, threshold=2.0)
    plain, other = run(y).components, run(y[:, order], ends=ends[order, ::-1]).components
    assert_array_equal(other.extent, plain.extent)
    assert_array_equal(other.max_extent, plain.max_extent)
    assert_array_equal(np.asarray(other.label) == 0, np.asarray(plain.label)[order] == 0)


# Implementations


@pytest.mark.parametrize(("tail", "covariates", "dtype"), [("both", 0, np.float32), ("less", 2, jnp.bfloat16)], ids=["float32", "bfloat16"])
def test_implementations_agree(tail, covariates, dtype, small_blocks):
    y = jnp.asarray(edges(planted=clique(12, range(4))), dtype)
    z = np.random.default_rng(1).normal(size=(20, covariates)).astype(np.float32)
    a, b = (permutation_test(y, GROUP, z, key=KEY, permutations=101, tail=tail, threshold=2.0, implementation=i) for i in IMPLEMENTATIONS)
    assert a.t.dtype == jnp.float32
    for name in ("t", "p", "p_fwe", "q", "max_t"):
        assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-5, err_msg=name)
    for name in ("label", "extent", "intensity", "p_extent", "p_intensity", "max_extent", "max_intensity"):
        assert_allclose(getattr(b.components, name), getattr(a.components, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_memory_does_not_grow_with_permutations(monkeypatch):
    monkeypatch.setattr(chunked, "NUMBERS", 1 << 14)

    def temporary(permutations):
        run = functools.partial(permutation_test, effect=GROUP, key=KEY, permutations=permutations, threshold=2.0)
        shape = jax.ShapeDtypeStruct((20, 66), jnp.float32)
        return jax.jit(run).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert 0 < temporary(50_000) < 8 * 50_000 * 4  # a few numbers a permutation


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": np.ones(20, np.float32)}, r"\[subjects, edges\], got float32 of shape \(20,\)"),
        ({"edges": np.ones((20, 3), np.int32)}, "floating point .* got int32"),
        ({"effect": GROUP[:5]}, r"effect must have shape \(20,\), got \(5,\)"),
        ({"effect": np.ones(20, np.float32)}, "effect must vary among subjects"),
        ({"covariates": GROUP[:, None]}, "beyond what the covariates explain"),
        ({"covariates": np.ones((4, 2), np.float32)}, r"covariates must have shape \(20, 2\), got \(4, 2\)"),
        ({"covariates": np.ones((20, 18), np.float32)}, "18 covariates need at least 21 subjects, got 20"),
        ({"strata": np.zeros(3, np.int32)}, r"strata must have shape \(20,\), got \(3,\)"),
        ({"permutations": 0}, "permutations must be at least 1, got 0"),
        ({"tail": "left"}, r"tail must be one of \('both', 'greater', 'less'\), got 'left'"),
        ({"threshold": -1.0}, "threshold must be above 0, got -1.0"),
        ({"edges": edges(n=65), "threshold": 2.0}, "without ends.*got 65 edges"),
        ({"threshold": 2.0, "ends": np.zeros((66, 2), int)}, "ends must be two different nodes"),
        ({"threshold": 2.0, "ends": np.tile([[0, 1]], (66, 1))}, "found an edge twice"),
        ({"implementation": "fast"}, r"one of \['chunked', 'reference'\], got 'fast'"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"edges": edges(), "effect": GROUP, "key": KEY, "permutations": 9} | change
    with pytest.raises(ValueError, match=message):
        permutation_test(given.pop("edges"), given.pop("effect"), given.pop("covariates", None), **given)


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="differences need at least 2 subjects, got 1"):
        sign_flip_test(np.ones((1, 3), np.float32), key=KEY)


# Over devices


@functools.cache
def mesh_of(parts):
    return jax.make_mesh((parts,), ("subject",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:parts])


@pytest.mark.parametrize("parts", [1, 8])
def test_rearrangements_over_devices_give_what_one_device_gives(parts):
    edges = np.random.default_rng(0).normal(size=(20, 28)).astype(np.float32)
    edges[:, 3] = 1.0  # cannot be tested
    for test, given in ((permutation_test, (edges, GROUP)), (sign_flip_test, (edges,))):
        options = {"key": KEY, "permutations": 77, "threshold": 1.0}  # no multiple of the devices
        found, expected = (test(*given, **options, mesh=mesh) for mesh in (mesh_of(parts), None))
        assert len(found.max_t) == 77
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_counts_and_maxima_are_all_that_travels():
    edges = np.random.default_rng(0).normal(size=(20, 28)).astype(np.float32)
    step = jax.jit(lambda edges, mesh: permutation_test(edges, GROUP, key=KEY, permutations=4096, mesh=mesh), static_argnums=1)
    one, eight = (hlo.read(step.lower(edges, mesh).compile()) for mesh in (None, mesh_of(8)))
    assert eight.collectives == {"all-reduce": 1, "all-gather": 1}  # the largest t of each rearrangement are sorted
    assert eight.matmul < 1.1 / 8 * one.matmul


def test_meshes_that_do_not_fit_are_refused():
    edges = np.zeros((20, 28), np.float32)
    with pytest.raises(ValueError, match=r"expected a mesh with an axis subject, got \('x',\)"):
        sign_flip_test(edges, key=KEY, mesh=jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]))
    with pytest.raises(ValueError, match="a mesh needs the implementation 'chunked', got 'reference'"):
        sign_flip_test(edges, key=KEY, implementation="reference", mesh=mesh_of(1))
