"""Threshold-free scores, sets of edges and sign flips with covariates: properties, brute force, equality of implementations, cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.permutation import Enhancement, chunked, permutation_test, reference, sign_flip_test
from pnet_jax.ops.permutation.asked import make_asked
from pnet_jax.ops.permutation.model import PermutationModel, rearranged

KEY = jax.random.key(0)
NODES, SUBJECTS = 12, 20
ENDS = np.stack(np.triu_indices(NODES, 1), 1)
GROUP = np.repeat(np.float32([0, 1]), [11, 9])
PLANTED = np.flatnonzero(np.isin(ENDS, range(4)).all(1))
COARSE = Enhancement(extent=0.5, height=2.0, step=0.5, top=3.0)
OF_NODES = np.stack([(node == ENDS).any(1) for node in range(NODES)], 1)


def edges(seed=0, planted=(), size=3.0):
    y = np.random.default_rng(seed).normal(size=(SUBJECTS, len(ENDS))).astype(np.float32)
    y[:, list(planted)] += size * GROUP[:, None]
    return y


def brute_force(t: np.ndarray, extent: float, height: float, levels: np.ndarray) -> np.ndarray:
    """Components of networkx at every level, and the integral over the height between two levels."""
    total = np.zeros(len(t))
    for low, high in zip(levels, [*levels[1:], np.inf], strict=True):
        graph = nx.Graph(ENDS[t > low].tolist())
        for nodes in nx.connected_components(graph):
            inside = np.flatnonzero((t > low) & np.isin(ENDS, list(nodes)).all(1))
            for edge in inside:
                top = min(t[edge], high)
                total[edge] += len(inside) ** extent * (top ** (height + 1) - low ** (height + 1)) / (height + 1)
    return total


# Threshold-free network-based statistic


@pytest.mark.parametrize("enhanced", [reference.enhanced, chunked.enhanced], ids=["reference", "chunked"])
def test_scores_equal_brute_force(enhanced):
    asked = make_asked(len(ENDS), np.float32, None, COARSE, None, None)
    t = np.abs(np.random.default_rng(1).standard_t(18, size=(5, len(ENDS)))).astype(np.float32)
    t[0] = 0
    t[1, PLANTED] += 4  # above the highest level
    found = np.asarray(jax.jit(enhanced)(t, asked))
    for row, scores in zip(t, found, strict=True):
        assert_allclose(scores, brute_force(row, 0.5, 2.0, np.arange(1, 7) / 2), rtol=1e-4, atol=1e-5)


def test_fine_levels_come_near_the_integral():
    t = np.abs(np.asarray(permutation_test(edges(planted=PLANTED), GROUP, key=KEY, permutations=9).t))
    asked = make_asked(len(ENDS), np.float32, None, Enhancement(), None, None)
    exact = brute_force(t, 0.4, 3.0, np.arange(0.02, 12, 0.02))
    found = np.asarray(chunked.enhanced(t[None], asked))[0]
    strong = t > 2
    assert_allclose(
        found[strong], exact[strong], rtol=0.2
    )  # components between two levels, and above the last, are those of the level below


def test_a_connected_difference_is_found():
    found = permutation_test(edges(planted=PLANTED, size=2.0), GROUP, key=KEY, permutations=199, enhancement=Enhancement())
    p = np.asarray(found.enhanced.p)
    assert (p[PLANTED] < 0.05).sum() >= 4 and (np.delete(p, PLANTED) > 0.05).mean() > 0.9
    assert (p[PLANTED] < 0.05).sum() >= (np.asarray(found.p_fwe)[PLANTED] < 0.05).sum()
    assert found.enhanced.p.min() >= 1 / 200 and len(found.enhanced.max_score) == 199


def test_edges_that_cannot_be_tested_take_no_part_in_scores_and_sets():
    y = edges(planted=PLANTED)
    hurt = y.copy()
    hurt[4, 0], hurt[:, 20] = np.nan, 0.1
    run = functools.partial(permutation_test, effect=GROUP, key=KEY, permutations=99, enhancement=COARSE, sets={"nodes": OF_NODES})
    found, apart = run(hurt), run(np.where(np.isin(np.arange(66), [0, 20]), np.float32(0), y))
    assert_array_equal(np.flatnonzero(np.isnan(found.enhanced.score)), [0, 20])
    assert_array_equal(np.flatnonzero(np.isnan(found.enhanced.p)), [0, 20])
    assert_array_equal(found.enhanced.max_score, apart.enhanced.max_score)
    assert found.sets["nodes"].size[0] == 10 and found.sets["nodes"].size[5] == 11
    t = np.asarray(found.t)
    assert_allclose(found.sets["nodes"].mean[0], np.nanmean(t[OF_NODES[:, 0]]), rtol=1e-5)


# Sets


def test_set_means_equal_numpy_and_their_p_values_counts():
    y, permutations = edges(planted=PLANTED[:2]), 199
    blocks = np.stack([np.isin(ENDS, range(6)).all(1), np.isin(ENDS, range(6, 12)).all(1), np.zeros(66, bool)], 1)
    found = permutation_test(y, GROUP, key=KEY, permutations=permutations, sets={"blocks": blocks}).sets["blocks"]
    anywhere, label = np.zeros(SUBJECTS, np.int32), np.arange(SUBJECTS, dtype=np.float32)[None]
    model = PermutationModel(
        np.zeros((SUBJECTS, 1), np.float32), jnp.asarray(label), jnp.asarray(anywhere), np.float32(18), np.ones(1, bool)
    )
    orders = jax.jit(jax.vmap(lambda number: rearranged(model, KEY, number)))(np.arange(permutations))[:, 0].astype(int)

    def means(group):
        a, b = np.float64(y[group == 1]), np.float64(y[group == 0])
        pooled = (10 * b.var(0, ddof=1) + 8 * a.var(0, ddof=1)) / 18
        t = (a.mean(0) - b.mean(0)) / np.sqrt(pooled * (1 / 9 + 1 / 11))
        return np.array([[t[blocks[:, one]].mean(), np.square(t[blocks[:, one]]).mean()] for one in (0, 1)])

    null = np.array([means(GROUP[order]) for order in np.asarray(orders)])
    own = means(GROUP)
    assert_allclose(np.stack([found.mean[:2], found.square[:2]], 1), own, rtol=1e-3, atol=1e-4)
    every = np.concatenate([own[None], null])
    z = (every - every.mean(0)) / every.std(0)
    z[..., 0] = np.abs(z[..., 0])
    p = (1 + (z[1:] >= z[0] - 1e-6).sum(0)) / 200
    p_fwe = (1 + (z[1:].max(1, keepdims=True) >= z[0] - 1e-6).sum(0)) / 200
    assert_allclose(np.stack([found.p[:2], found.p_square[:2]], 1), p, atol=0.0051)
    assert_allclose(np.stack([found.p_fwe[:2], found.p_square_fwe[:2]], 1), p_fwe, atol=0.0051)
    assert found.size[2] == 0 and np.isnan([found.mean[2], found.p[2], found.p_fwe[2], found.p_square_fwe[2]]).all()


def test_a_shift_of_one_direction_shows_in_the_mean_and_one_of_two_in_the_square():
    signs = np.where(np.arange(len(PLANTED)) % 2, 1, -1).astype(np.float32)
    y = edges()
    for one in (0, 1):
        y[one == GROUP] -= y[one == GROUP].mean(0, keepdims=True)
    y[:, PLANTED] += 2 * signs * GROUP[:, None]
    inside = np.isin(np.arange(66), PLANTED)
    sets = {"two": np.stack([inside, ~inside], 1)}
    found = permutation_test(y, GROUP, key=KEY, permutations=199, sets=sets).sets["two"]
    assert found.p_square_fwe[0] == 1 / 200 and found.p_fwe[0] > 0.05
    y[:, PLANTED] += 2 * (1 - signs) * GROUP[:, None]
    same = permutation_test(y, GROUP, key=KEY, permutations=199, sets=sets).sets["two"]
    assert same.p_fwe[0] == 1 / 200 and same.p_fwe[1] > 0.05
    less = permutation_test(-y, GROUP, key=KEY, permutations=199, sets=sets, tail="less").sets["two"]
    assert less.p_fwe[0] == 1 / 200


def test_errors_of_the_first_kind_are_as_many_as_promised():
    sets = {"nodes": OF_NODES}

    def p_values(seed):
        found = permutation_test(edges(seed), GROUP, key=jax.random.key(3), permutations=199, enhancement=COARSE, sets=sets)
        nodes = found.sets["nodes"]
        return [np.min(found.enhanced.p), np.min(nodes.p_fwe), np.min(nodes.p_square_fwe), nodes.p[0]]

    p = np.array([p_values(seed) for seed in range(120)])
    # 6 of 120 are expected at .05; 13 or more happen once in 100 times.
    assert ((p <= 0.05).sum(0) <= 13).all()
    assert 0.4 < p[:, 3].mean() < 0.6


# Sign flips with covariates


def test_the_intercept_beside_covariates_equals_least_squares():
    rng = np.random.default_rng(0)
    z, y = rng.normal(loc=(0.5, 0), size=(20, 2)), np.float64(edges())
    found = sign_flip_test(np.float32(y), np.float32(z), key=KEY, permutations=199)
    x = np.column_stack([np.ones(20), z])
    beta, rss, *_ = np.linalg.lstsq(x, y)
    assert_allclose(found.t, beta[0] / np.sqrt(rss / 17 * np.linalg.inv(x.T @ x)[0, 0]), rtol=1e-4, atol=1e-5)
    assert found.df == 17


def test_a_covariate_that_moves_with_the_condition_takes_the_difference_away():
    rng = np.random.default_rng(0)
    moved = (1 + 0.5 * rng.normal(size=(20, 1))).astype(np.float32)
    y = edges() + 2 * moved
    assert (np.asarray(sign_flip_test(y, key=KEY, permutations=199).p) < 0.05).mean() > 0.9
    assert (np.asarray(sign_flip_test(y, moved, key=KEY, permutations=199).p) < 0.05).mean() < 0.2


# Means of strata


def test_means_of_strata_equal_indicators_of_strata():
    sites = np.random.default_rng(0).integers(3, size=SUBJECTS).astype(np.int32)
    y = edges(planted=PLANTED) + 2 * sites[:, None].astype(np.float32)
    age = np.random.default_rng(1).normal(size=(SUBJECTS, 1)).astype(np.float32)
    indicators = np.concatenate([age, np.eye(3, dtype=np.float32)[sites][:, 1:]], 1)
    run = functools.partial(permutation_test, y, GROUP, key=KEY, permutations=199, threshold=2.0)
    within, named = run(age, strata=7 - 2 * sites, within_strata=True), run(indicators, strata=sites)
    assert within.df == named.df == 15
    assert_allclose(within.t, named.t, rtol=1e-3, atol=1e-4)
    assert_allclose(within.max_t.mean(), named.max_t.mean(), rtol=0.05)
    with pytest.raises(ValueError, match="beyond what the covariates explain"):
        permutation_test(y, GROUP, key=KEY, strata=GROUP.astype(np.int32), within_strata=True)
    with pytest.raises(ValueError, match="0 covariates and 20 strata need at least 22 subjects, got 20"):
        permutation_test(y, GROUP, key=KEY, strata=np.arange(20), within_strata=True)


# Implementations


@pytest.mark.parametrize("tail", ["both", "less"])
def test_implementations_agree(tail, monkeypatch):
    monkeypatch.setattr(chunked, "NUMBERS", 3000)
    options = {"key": KEY, "permutations": 101, "tail": tail, "threshold": 2.0, "enhancement": COARSE, "sets": {"nodes": OF_NODES}}
    y, z = edges(planted=PLANTED), np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    for test, given in ((permutation_test, (y, GROUP, z)), (sign_flip_test, (y, z))):
        a, b = (test(*given, **options, implementation=i) for i in ("reference", "chunked"))
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_rearrangements_over_devices_give_what_one_device_gives():
    mesh = jax.make_mesh((8,), ("subject",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:8])
    run = functools.partial(permutation_test, edges(), GROUP, key=KEY, permutations=77, enhancement=COARSE, sets={"nodes": OF_NODES})
    for a, b in zip(jax.tree.leaves(run(mesh=mesh)), jax.tree.leaves(run()), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_memory_grows_by_two_numbers_for_each_rearrangement_and_set(monkeypatch):
    monkeypatch.setattr(chunked, "NUMBERS", 1 << 14)

    def temporary(permutations):
        run = functools.partial(permutation_test, effect=GROUP, key=KEY, enhancement=COARSE, sets={"nodes": OF_NODES[:, :2]})
        shape = jax.ShapeDtypeStruct((20, 66), np.float32)
        return jax.jit(functools.partial(run, permutations=permutations)).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert temporary(50_000) - temporary(5_000) < 45_000 * 4 * 24  # a few copies of four numbers and the score


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enhancement": Enhancement(step=0)}, "must be above 0, got step 0"),
        ({"enhancement": Enhancement(step=2, top=1)}, "step must not be above top, got 2 and 1"),
        ({"sets": {"nodes": OF_NODES[:5]}}, r"set 'nodes' must have shape \(66, sets\), got \(5, 12\)"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        permutation_test(edges(), GROUP, key=KEY, permutations=9, **change)


def test_bad_covariates_of_pairs_are_refused():
    with pytest.raises(ValueError, match=r"covariates must have shape \(20, 1\), got \(3, 1\)"):
        sign_flip_test(edges(), np.ones((3, 1), np.float32), key=KEY)
    with pytest.raises(ValueError, match="beyond what the covariates explain"):
        sign_flip_test(edges(), np.ones((20, 1), np.float32), key=KEY)
    with pytest.raises(ValueError, match="differences need at least 21 subjects, got 20"):
        sign_flip_test(edges(), np.ones((20, 19), np.float32), key=KEY)
