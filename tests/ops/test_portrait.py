"""Properties first, then foreign programs, then equality of implementations, then compiled cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path

from pnet_jax.bench import hlo
from pnet_jax.ops.portrait import (
    PortraitSettings,
    api,
    chunked,
    keep_strongest,
    portrait_divergence,
    portraits,
    reference,
    shortest_paths,
    spanning_tree,
)

IMPLEMENTATIONS = ("reference", "chunked")
HOPS = PortraitSettings()
WEIGHTED = PortraitSettings(lengths="1/w")
SETTINGS = {
    "hops": HOPS,
    "hops, sparse, netrd": PortraitSettings(convention="netrd", density=0.02, tree=False),
    "percentiles": WEIGHTED,
    "unrounded": PortraitSettings(lengths="1-w", convention="netrd", rounding=None),
    "coarse, every edge": PortraitSettings(lengths="-log w", density=None, rounding=4, bins=10),
    "shared bins": PortraitSettings(lengths="1/w", edges=(0.0, 1.0, 2.5, 4.0, 8.0), tree=False),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def networks(n=4, nodes=20, seed=0, dtype=np.float32):
    """Correlations of signals with a few common sources, so that graphs are clustered as brains' are."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(1, nodes, 4)) + 0.7 * rng.normal(size=(n, nodes, 4))
    signals = mixing @ rng.normal(size=(n, 4, 60)) + 1.5 * rng.normal(size=(n, nodes, 60))
    r = np.stack([np.corrcoef(x) for x in signals])
    return ((r + r.swapaxes(1, 2)) / 2).astype(dtype)


def edge_lengths(weights, sparse=0.2):
    strongest = np.asarray(keep_strongest(weights, sparse, tree=False))
    return np.where(strongest > 0, 1 / np.where(strongest > 0, strongest, 1), np.inf)


@functools.cache
def compiled(function, **static):
    return jax.jit(functools.partial(function, **static))


def divergence(weights, settings=HOPS, implementation=None, **more):
    return np.asarray(portrait_divergence(weights, settings, implementation=implementation, **more).divergence)


# Graphs


def test_as_many_edges_are_kept_as_the_density_asks_for_and_the_tree_is_among_them():
    w = networks()
    tree = np.asarray(spanning_tree(np.where(w > 0, w, 0) * ~np.eye(20, dtype=bool)))
    for density, asked in ((0.05, 10), (0.2, 38), (0.35, 67), (0.15, 29), (0.45, 86)):  # of 190; .5 of an edge is one
        kept = np.asarray(keep_strongest(w, density))
        expected = max(asked, 19)
        assert_array_equal((kept > 0).sum((1, 2)) // 2, expected)
        assert (kept[tree] > 0).all()
        assert_array_equal(kept, kept.swapaxes(1, 2))


def test_without_the_tree_the_strongest_edges_are_kept():
    w = networks()
    kept, upper = np.asarray(keep_strongest(w, 0.2, tree=False))[0], np.triu_indices(20, 1)
    assert_array_equal(np.sort(kept[upper])[-38:], np.sort(w[0][upper])[-38:])
    assert (kept > 0).sum() == 76


def test_negative_edges_are_never_kept_and_are_reported():
    w = networks()
    found = portrait_divergence(w, PortraitSettings(density=None))
    off = ~np.eye(20, dtype=bool)
    assert_array_equal(np.asarray(keep_strongest(w, 1.0)) > 0, (w > 0) & off)
    assert_allclose(found.density, [(x[off] > 0).mean() for x in w], rtol=1e-6)
    assert_allclose(found.negative, [(x[off] < 0).mean() for x in w], rtol=1e-6)


def test_spanning_tree_equals_scipy_also_in_two_parts():
    w = np.where(networks() > 0, networks(), 0) * ~np.eye(20, dtype=bool)
    w[1, :9, 9:] = w[1, 9:, :9] = 0
    for x, tree in zip(w, np.asarray(spanning_tree(w)), strict=True):
        expected = minimum_spanning_tree(np.where(x > 0, 2 - x, 0)).toarray() > 0
        assert_array_equal(tree, expected | expected.T)


# Paths


def test_paths_equal_scipy(implementation):
    lengths = edge_lengths(networks())
    lengths[2, :4] = lengths[2, :, :4] = np.inf  # four nodes alone
    for hops in (False, True):
        found = np.asarray(compiled(shortest_paths, hops=hops, implementation=implementation)(lengths.astype(np.float32)))
        expected = [shortest_path(np.where(np.isfinite(x), x, 0), directed=False, unweighted=hops) for x in lengths]
        assert_allclose(found, np.stack(expected), rtol=1e-6)
        assert np.isinf(found[2, 0, 1:]).all()


@pytest.mark.parametrize("paths", [functools.partial(shortest_paths, implementation="reference"), chunked.paths_from_source])
def test_lengths_add_up_as_in_dijkstras_algorithm_to_the_last_bit(paths):
    with jax.enable_x64(True):
        lengths = edge_lengths(networks(dtype=np.float64))
        lengths[2, :4] = lengths[2, :, :4] = np.inf
        found = np.asarray(jax.jit(paths)(lengths))
    assert_array_equal(found, [shortest_path(np.where(np.isfinite(x), x, 0), method="D", directed=False) for x in lengths])


# Portraits


def test_rows_of_a_portrait_sum_to_the_nodes_and_count_every_pair_once(implementation):
    hops = np.asarray(compiled(shortest_paths, hops=True, implementation="chunked")(edge_lengths(networks()).astype(np.float32)))
    b = np.asarray(compiled(portraits, implementation=implementation)(hops, np.arange(21, dtype=np.float32)))
    assert_array_equal(b.sum(2), 20)
    assert_array_equal(b[:, 0, 1], 20)
    for level in range(20):
        assert_array_equal(b[:, level] @ np.arange(21), (hops == level).sum((1, 2)))


def test_bins_hold_their_left_edge_and_the_last_one_its_right(implementation):
    d = np.float32([[[0, 1, 2], [1, 0, 3], [2, 3, 0]]])
    b = np.asarray(compiled(portraits, implementation=implementation)(d, np.float32([0, 1, 3])))[0]
    assert_array_equal(b, [[0, 3, 0, 0], [0, 0, 3, 0]])


# Divergences


@pytest.mark.parametrize("settings", [HOPS, WEIGHTED], ids=["hops", "weighted"])
def test_divergence_is_symmetric_within_bounds_and_0_for_a_network_with_itself(settings, implementation):
    w = networks()
    w[3] = w[0]
    d = divergence(w, settings, implementation)
    assert_array_equal(d, d.T)
    assert_allclose(d[[0, 1], [3, 1]], 0, atol=1e-7)
    others = d[np.triu_indices(3, 1)]
    assert (others > 0.01).all() and (others < 1).all()


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 2e-3), (np.float64, 1e-9)], ids=["float32", "float64"])
@pytest.mark.parametrize("settings", [HOPS, WEIGHTED], ids=["hops", "weighted"])
def test_the_order_of_the_nodes_does_not_matter(settings, dtype, atol):
    with jax.enable_x64(dtype == np.float64):
        w, order = networks(2, dtype=dtype)[0], np.random.default_rng(0).permutation(20)
        assert_allclose(divergence(np.stack([w, w[order][:, order], w, w]), settings)[0, 1], 0, atol=atol)


def test_the_two_conventions_differ():
    w = networks()
    author, netrd = (divergence(w, dataclasses.replace(HOPS, convention=c))[0, 1] for c in ("author", "netrd"))
    assert abs(author - netrd) > 0.1 * netrd


def test_graphs_without_an_edge_are_alike_and_unlike_others(implementation):
    w = networks()
    w[:2] = 0
    d = divergence(w, HOPS, implementation)
    assert d[0, 1] == 0
    assert d[0, 2] > 0.5


def test_an_absent_node_is_as_if_it_had_never_been():
    padded = networks()
    padded[:, 15:] = padded[:, :, 15:] = np.nan
    w = padded[:, :15, :15]
    found = portrait_divergence(padded, WEIGHTED)
    assert_allclose(found.divergence, divergence(w, WEIGHTED), atol=1e-6)
    assert_array_equal(found.nodes, 15)


def test_a_network_without_a_node_is_nan_and_spoils_no_other():
    w = networks()
    plain = divergence(w)
    w[3] = np.nan
    d = divergence(w)
    assert np.isnan(d[3]).all() and np.isnan(d[:, 3]).all()
    assert_array_equal(d[:3, :3], plain[:3, :3])


def test_given_pairs_are_those_of_the_table_inside_jit_too_and_the_result_knows_its_settings():
    w, pairs = networks(), np.int32([[3, 1], [0, 2], [1, 1], [0, 3], [0, 1], [2, 3]])
    inside = jax.jit(lambda w, pairs: portrait_divergence(w, HOPS, pairs=pairs))(w, pairs)
    assert_allclose(inside.divergence, divergence(w, HOPS)[tuple(pairs.T)], atol=1e-6)
    assert inside.settings == HOPS
    outside = portrait_divergence(w, WEIGHTED, pairs=pairs)
    assert_allclose(outside.divergence, divergence(w, WEIGHTED)[tuple(pairs.T)], atol=1e-6)


def test_graphs_made_in_another_way_need_no_new_comparison():
    w = networks()
    divergence(w, WEIGHTED)
    before = api._divergences._cache_size()
    divergence(w, dataclasses.replace(WEIGHTED, density=None))
    assert api._divergences._cache_size() == before


# Foreign programs


def by_networkx(a, b, settings):
    """The divergence from its definition in words, on networkx's shortest paths."""
    paths = []
    for x in (a, b):
        graph = nx.from_numpy_array(np.where(x > 0, 1 if settings.lengths == "hops" else 1 / np.where(x > 0, x, 1), 0))
        paths.append([list(to.values()) for _, to in nx.all_pairs_dijkstra_path_length(graph)])
    different = np.unique([length for graph in paths for node in graph for length in node])
    edges = np.append(different, np.inf) if settings.lengths == "hops" else np.percentile(different, np.linspace(0, 100, settings.bins + 1))
    share = []
    for graph in paths:
        seen = np.stack([np.histogram(node, edges)[0] for node in graph], 1)  # bins, nodes
        b = np.stack([np.bincount(row, minlength=max(len(a), 99) + 1) for row in seen])
        pairs = b * np.arange(b.shape[1])
        author = pairs / pairs.sum()
        share.append(author if settings.convention == "author" else b / len(graph) * author.sum(1, keepdims=True))
    p, q = share
    m = (p + q) / 2
    return sum(np.sum(x[x > 0] * np.log2(x[x > 0] / m[x > 0])) for x in (p, q)) / 2


@pytest.mark.parametrize(("convention", "lengths", "bins"), [("author", "hops", 100), ("author", "1/w", 100), ("netrd", "1/w", 100)])
def test_equals_networkx(convention, lengths, bins, implementation):
    """Sparse graphs in several parts, and dense ones."""
    settings = PortraitSettings(convention, lengths, density=None, bins=bins, rounding=None)
    strongest = networks(dtype=np.float64)
    for share in (0.05, 0.15, 1.0):
        w = np.where((strongest > max(0, np.quantile(strongest, 1 - share))) & ~np.eye(20, dtype=bool), strongest, 0)
        with jax.enable_x64(True):
            found = divergence(w, settings, implementation)
        expected = [by_networkx(w[i], w[j], settings) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert_allclose(found[[0, 0, 1], [1, 2, 2]], expected, atol=1e-9)


@pytest.mark.skipif("PNET_NETRD_PYTHON" not in os.environ, reason="PNET_NETRD_PYTHON: an interpreter that has netrd")
@pytest.mark.parametrize("settings", [HOPS, WEIGHTED], ids=["hops", "weighted"])
def test_equals_netrd(settings, tmp_path):
    settings = dataclasses.replace(settings, convention="netrd", density=None, rounding=None)
    with jax.enable_x64(True):
        w = np.asarray(keep_strongest(networks(3, 40, dtype=np.float64), 0.1))
        found = divergence(w, settings)
    there = w > 0
    np.savez(tmp_path / "networks.npz", lengths=there * (1.0 if settings.lengths == "hops" else 1 / np.where(there, w, 1)))
    peer = pathlib.Path(__file__).parents[2] / "benchmarks/peers/netrd_portrait.py"
    command = [os.environ["PNET_NETRD_PYTHON"], peer, tmp_path / "networks.npz", "--pairs", "3"]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert_allclose(found[tuple(np.transpose(done["pairs"]))], done["divergence"], atol=1e-9)


def test_equals_scipy_on_paths_of_two_unlike_sizes():
    with jax.enable_x64(True):
        w = networks(dtype=np.float64)
        w[1, 15:] = w[1, :, 15:] = np.nan
        settings = PortraitSettings(lengths="1-w", density=None, rounding=None)
        found = divergence(w, settings)[0, 1]
    paths = []
    for x in (w[0], w[1, :15, :15]):
        paths.append(shortest_path(np.where((x > 0) & ~np.eye(len(x), dtype=bool), 1 - x, 0), method="D", directed=False))
    edges = np.percentile(np.union1d(*paths), np.linspace(0, 100, 101))
    p, q = (np.zeros((100, 21)) for _ in range(2))
    for d, out in zip(paths, (p, q), strict=True):
        for row in np.stack([np.histogram(x[np.isfinite(x)], edges)[0] for x in d]):
            out[np.arange(100), row] += row
        out /= out.sum()
    m = (p + q) / 2
    assert_allclose(found, sum(np.sum(x[x > 0] * np.log2(x[x > 0] / m[x > 0])) for x in (p, q)) / 2, atol=1e-9)


@pytest.mark.parametrize("exact", [True, False], ids=["in whole numbers", "as numpy rounds"])
@pytest.mark.parametrize("grain", [1000, 7], ids=["few values shared", "most values shared"])
def test_percentiles_of_a_union_equal_numpy(grain, exact):
    rng = np.random.default_rng(0)

    def edges(a, b, bins):
        return chunked._percentiles(chunked._lookup(a), chunked._lookup(b), bins, exact=exact)

    with jax.enable_x64(True):
        percentiles = jax.jit(edges, static_argnums=2)
        for sizes in ((1, 1), (1, 40), (30, 2), (37, 41)):
            a, b = (np.unique(np.append(0, rng.integers(0, grain, size)) / grain) for size in sizes)
            padded = [np.pad(x, (0, 60 - len(x)), constant_values=np.inf) for x in (a, b)]
            for bins in (4, 100):
                expected = np.percentile(np.union1d(a, b), np.linspace(0, 100, bins + 1))
                assert_allclose(percentiles(*padded, bins), expected, rtol=1e-14)


@pytest.mark.parametrize("bins", [7, 100, 2**15])
def test_a_percentile_that_falls_on_a_value_is_that_value(bins):
    """For every number of values, and for more than int32 holds when multiplied by a percentile."""
    found = jax.jit(lambda n: reference.places(n, bins, np.float32, exact=True))
    for n in (1, 2, bins, bins + 1, 3 * bins + 1, 90_001, 2_000_000, 2**31 - 1):
        low, on = map(np.asarray, found(np.int32(n)))
        expected = [divmod((n - 1) * step, bins) for step in range(bins + 1)]
        assert_array_equal(low, [whole for whole, _ in expected])
        assert_array_equal(on == 0, [rest == 0 for _, rest in expected])
        assert_allclose(on, [rest / bins for _, rest in expected], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_search_in_buckets_is_numpys(dtype):
    rng = np.random.default_rng(0)
    spreads = {
        "even": rng.random(300),
        "far from 0": 1000 + rng.random(300),
        "one far from all others": np.append(rng.random(300) * 1e-6, 50),
        "many sizes": 10.0 ** rng.uniform(-6, 6, 300),
        "one": np.array([2.5]),
        "none but 0": np.array([]),
    }
    with jax.enable_x64(dtype == np.float64):
        search = jax.jit(lambda values, x: chunked._lookup(values).smaller(x))
        for name, values in spreads.items():
            held = np.unique(np.append(0, values)).astype(dtype)
            padded = np.pad(held, (0, 320 - len(held)), constant_values=np.inf)
            beside = [np.nextafter(held[1:], end) for end in (-np.inf, np.inf)]  # not of 0, where numbers are flushed to 0
            asked = np.concatenate([padded, *beside, rng.random(99) * 2000]).astype(dtype)
            assert_array_equal(search(padded, asked), np.searchsorted(padded, asked), err_msg=name)


# Implementations


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, np.float32) for name in SETTINGS if name != "unrounded"), ("percentiles", np.float64), ("unrounded", np.float64)],
)
def test_implementations_agree(name, dtype):
    settings = SETTINGS[name]
    with jax.enable_x64(dtype == np.float64):
        w = networks(seed=1, dtype=dtype)
        w[1, 3] = w[1, :, 3] = np.nan
        w[0, 5] = w[0, :, 5] = 0
        assert_allclose(divergence(w, settings), divergence(w, settings, "reference"), atol=1e-12 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize("grain", [16, None], ids=["few different lengths", "many"])
def test_how_many_different_lengths_there_are_changes_nothing(grain):
    nodes = 40  # 1600 path lengths, more than `FEW`
    w = networks(3, nodes, seed=2)
    w = w if grain is None else np.round(w * grain) / grain
    settings = PortraitSettings(lengths="w", density=None, rounding=None, convention="netrd")
    assert nodes**2 > chunked.FEW
    assert_allclose(divergence(w, settings), divergence(w, settings, "reference"), atol=2e-6)


def test_memory_does_not_grow_with_the_pairs():
    pairs, nodes = 65_536, 48
    for edges in (np.arange(9, dtype=np.float32), None):
        shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((6, nodes, nodes), jnp.float32), ((6, nodes), bool), ((pairs, 2), jnp.int32))]
        run = jax.jit(functools.partial(chunked.divergences, edges=edges, settings=WEIGHTED))
        temporary = run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
        assert 0 < temporary < 40 * pairs  # not one row of a portrait for each pair


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convention": "2018"}, r"convention must be one of \('author', 'netrd'\), got '2018'"),
        ({"lengths": "w^2"}, r"lengths must be one of .*, got 'w\^2'"),
        ({"density": 1.5}, r"density must be in \(0, 1\] or None, got 1.5"),
        ({"bins": 0}, "bins must be from 1 to 32768, got 0"),
        ({"lengths": "w", "edges": (1.0, 0.0)}, r"ascending numbers, got \(1.0, 0.0\)"),
        ({"edges": (0.0, 1.0)}, "edges are for lengths other than 'hops'"),
        ({"rounding": 60}, "rounding must be 1 to 23 binary digits or None, got 60"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PortraitSettings(**change)


def spoiled(index, value):
    w = networks()
    w[index] = value
    return w


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        (networks()[0], HOPS, r"weights must be \[networks, nodes, nodes\], got shape \(20, 20\)"),
        (np.ones((2, 3, 3), np.int32), HOPS, "weights must be floating point, got int32"),
        (spoiled((2, 1, 5), 0.9), HOPS, "weights must be symmetric, network 2"),
        (spoiled((1, 4, 4), np.inf), HOPS, "weights must be finite or NaN, network 1"),
        (2 * networks(), PortraitSettings(lengths="1-w"), "weights must be at most 1 for lengths '1-w', network 0 has"),
    ],
    ids=["flat", "integers", "directed", "infinite", "too large"],
)
def test_weights_that_cannot_be_used_are_refused(weights, settings, message):
    with pytest.raises(ValueError, match=message):
        portrait_divergence(weights, settings)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"pairs must have shape \[P, 2\], got \(3,\)"):
        portrait_divergence(networks(), pairs=np.int32([1, 2, 3]))
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'fast'"):
        portrait_divergence(networks(), implementation="fast")
    with pytest.raises(ValueError, match=r"present must have shape \(4, 20\) \(networks, nodes\), got \(20,\)"):
        portraits(networks(), jnp.arange(3.0), np.ones(20, bool))
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 0"):
        keep_strongest(networks(), 0)


# Over devices


@functools.cache
def mesh_of(parts):
    return jax.make_mesh((parts,), ("subject",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:parts])


@pytest.mark.parametrize(("name", "parts"), [("hops", 8), ("percentiles", 8), ("unrounded", 2), ("shared bins", 1)])
def test_networks_over_devices_give_what_one_device_gives(name, parts):
    w = networks(8)
    w[1, 3] = w[1, :, 3] = np.nan
    found = portrait_divergence(w, SETTINGS[name], mesh=mesh_of(parts))
    expected = portrait_divergence(w, SETTINGS[name])
    assert_allclose(found.divergence, expected.divergence, rtol=0, atol=1e-6)
    assert_array_equal(found.nodes, expected.nodes)
    assert_array_equal(found.density, expected.density)
    pairs = np.array([[0, 1], [7, 2], [3, 3]], np.int32)  # no multiple of the devices
    some = divergence(w, SETTINGS[name], pairs=pairs, mesh=mesh_of(parts))
    assert_allclose(some, np.asarray(expected.divergence)[pairs[:, 0], pairs[:, 1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("settings", "gathers"), [(HOPS, 1), (WEIGHTED, 9)], ids=["hops", "percentiles"])
def test_only_what_pairs_read_is_gathered(settings, gathers):
    run = jax.jit(lambda w: portrait_divergence(w, settings, pairs=np.array([[0, 1]] * 8, np.int32), mesh=mesh_of(8)).divergence)
    counts = hlo.read(run.lower(networks(8)).compile())
    assert set(counts.collectives) == {"all-gather"}  # nothing else: paths and graphs stay where they are
    assert counts.collectives["all-gather"] == gathers


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="networks over 8 devices: expected a multiple of 8 networks, got 4; pad with networks of NaN"):
        divergence(networks(4), mesh=mesh_of(8))
    with pytest.raises(ValueError, match="a mesh needs the implementation 'chunked', got 'reference'"):
        divergence(networks(8), implementation="reference", mesh=mesh_of(8))
    with pytest.raises(ValueError, match=r"expected a mesh with an axis subject, got \('x',\)"):
        divergence(networks(8), mesh=jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]))
