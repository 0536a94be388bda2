"""Properties first, then numpy, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.bench import hlo
from pnet_jax.ops.location_correlation import chunked, location_correlation, top_correlations

IMPLEMENTATIONS = ("reference", "chunked")
STATISTICS = ("mean", "mean_z", "degree", "strength")
BLOCK = chunked.BLOCK


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """29 locations are three full blocks and a part of one."""
    monkeypatch.setattr(chunked, "BLOCK", 8)


def signals(locations=29, frames=40, seed=0):
    """Correlated in four groups, of different levels and units."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(4, frames))[np.arange(locations) % 4] + rng.normal(size=(locations, frames))
    return (y * rng.uniform(0.5, 3, (locations, 1)) + rng.normal(size=(locations, 1))).astype(np.float32)


@functools.cache
def compiled(statistic, implementation, **options):
    return jax.jit(lambda y, kept, mask: location_correlation(y, statistic, kept=kept, mask=mask, implementation=implementation, **options))


@functools.cache
def compiled_top(k, implementation):
    return jax.jit(lambda y, mask: top_correlations(y, k, mask=mask, implementation=implementation))


def run(y, statistic="mean_z", implementation="chunked", kept=None, mask=None, **options):
    kept = np.ones(y.shape[1], bool) if kept is None else kept
    return np.asarray(compiled(statistic, implementation, **options)(y, kept, _all(y) if mask is None else mask))


def run_top(y, k, implementation="chunked", mask=None):
    return compiled_top(k, implementation)(y, _all(y) if mask is None else mask)


def _all(y):
    return np.ones(y.shape[0], bool)


@functools.partial(jax.jit, static_argnames=("statistic", "implementation"))
@functools.partial(jax.value_and_grad, has_aux=True)
def step(y, mask, weights, statistic, implementation):
    found = location_correlation(y, statistic, mask=mask, implementation=implementation)
    return jnp.nansum(weights * found), found


def tolerance(y, expected=1.0):
    """Of a statistic: r is a sum over frames, the statistic one over locations, and Fisher's transform doubles errors at r = .7."""
    return rounding(sum(np.shape(y)), scale=max(1, np.abs(expected).max()), condition=2)


def by_numpy(y, statistic, threshold=0.25):
    r = np.corrcoef(np.float64(y))
    others = ~np.eye(len(r), dtype=bool)
    function = {
        "mean": lambda r: r / (len(r) - 1),
        "mean_z": lambda r: np.arctanh(np.where(others, r, 0)) / (len(r) - 1),
        "degree": lambda r: r > threshold,
        "strength": lambda r: r * (r > threshold),
    }[statistic]
    return np.where(others, function(r), 0).sum(1)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_equals_numpy(implementation, statistic):
    expected = by_numpy(signals(), statistic)
    assert_allclose(run(signals(), statistic, implementation), expected, rtol=0, atol=tolerance(signals(), expected))


@pytest.mark.parametrize("statistic", ["mean_z", "degree"])
def test_unit_and_level_of_a_location_do_not_matter(implementation, statistic):
    y = signals()
    scaled = 4 * y + np.arange(29, dtype=np.float32)[:, None]
    assert_allclose(run(scaled, statistic, implementation), run(y, statistic, implementation), atol=1e-5)


def test_permuting_locations_permutes_the_result(implementation):
    y, order = signals(), np.random.default_rng(1).permutation(29)
    assert_allclose(run(y[order], "mean_z", implementation), run(y, "mean_z", implementation)[order], rtol=0, atol=tolerance(y))


def test_a_function_of_r_is_summed_over_the_others(implementation):
    r = np.corrcoef(np.float64(signals())) - np.eye(29)
    assert_allclose(run(signals(), jnp.square, implementation), np.square(r).sum(1), rtol=1e-5)


def test_the_threshold_is_the_one_given(implementation):
    found = run(signals(), "degree", implementation, threshold=0.5)
    assert_array_equal(found, by_numpy(signals(), "degree", 0.5))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_masked_and_constant_locations_are_nan_and_the_others_as_without_them(statistic):
    y, mask = signals(), np.ones(29, bool)
    y[3], mask[[7, 28]], y[7] = 123.456, False, np.nan
    out = np.isin(np.arange(29), [3, 7, 28])
    found = run(y, statistic, mask=mask)
    assert_array_equal(np.isnan(found), out)
    expected = by_numpy(y[~out], statistic)
    assert_allclose(found[~out], expected, rtol=0, atol=tolerance(y, expected))


def test_frames_that_do_not_count_have_no_say(implementation):
    y, kept = signals(), np.ones(40, bool)
    kept[10:15] = False
    expected = by_numpy(y[:, kept], "mean")
    y[:, 10:15] = 1e8
    assert_allclose(run(y, "mean", implementation, kept), expected, rtol=0, atol=tolerance(y))


def test_half_precision_is_summed_in_float32(implementation):
    y = jnp.asarray(signals(), jnp.bfloat16)
    found = run(y, "mean", implementation)
    assert found.dtype == np.float32
    assert_allclose(found, by_numpy(np.asarray(y, np.float64), "mean"), rtol=0, atol=tolerance(y))


@pytest.mark.parametrize(
    ("shape", "statistic"), [((2, 3), "mean_z"), ((29, 40), "mean_z"), ((16, 20), jnp.square)], ids=["small", "blocks", "own statistic"]
)
def test_implementations_agree_in_values_and_gradients(shape, statistic):
    y, weights = signals(*shape), np.random.default_rng(1).normal(size=shape[0]).astype(np.float32)
    (_, a), ga = step(y, _all(y), weights, statistic, "reference")
    (_, b), gb = step(y, _all(y), weights, statistic, "chunked")
    assert np.isfinite(a).all()
    assert_allclose(b, a, atol=1e-5)
    assert_allclose(gb, ga, atol=2e-5)


def test_masked_and_constant_locations_have_gradients_of_0():
    y, mask = signals(), np.arange(29) != 7
    y[3] = 5
    found = np.asarray(step(y, mask, np.ones(29, np.float32), "mean_z", "chunked")[1])
    assert np.isfinite(found).all()
    assert_array_equal((found == 0).all(1), np.isin(np.arange(29), [3, 7]))


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        y = np.random.default_rng(0).normal(size=(11, 9))
        check_grads(jax.jit(lambda y: location_correlation(y, "mean_z")), (y,), order=1, modes=["rev"], eps=1e-5)


@pytest.mark.parametrize("block", [1, 100])
def test_block_size_changes_nothing(monkeypatch, block):
    monkeypatch.setattr(chunked, "BLOCK", block)
    sums, top = jax.jit(lambda y: (location_correlation(y, "strength"), top_correlations(y, 3).indices))(signals())
    assert_allclose(sums, by_numpy(signals(), "strength"), rtol=1e-5)
    assert_array_equal(top, top_by_numpy(signals(), 3)[1])


def top_by_numpy(y, k):
    r = np.corrcoef(np.float64(y))
    np.fill_diagonal(r, -np.inf)
    order = np.argsort(-r, axis=1)[:, :k]
    return np.take_along_axis(r, order, 1), order


@pytest.mark.parametrize("k", [1, 28])
def test_top_equals_numpy(implementation, k):
    values, indices = top_by_numpy(signals(), k)
    found = run_top(signals(), k, implementation)
    assert found.indices.dtype == jnp.int32
    assert_array_equal(found.indices, indices)
    assert_allclose(found.values, values, rtol=0, atol=rounding(40))


def test_masked_and_constant_locations_are_in_no_list_and_have_none(implementation):
    y, mask = signals(6), np.ones(6, bool)
    y[1], mask[4] = 7, False
    values, indices = (np.asarray(x) for x in run_top(y, 4, implementation, mask))
    assert_array_equal(indices[[1, 4]], -1)
    assert not np.isin(indices, [1, 4]).any()
    assert_array_equal(np.sort(indices[0]), [-1, 2, 3, 5])  # the three others that count
    assert_array_equal(np.isnan(values), indices < 0)


def test_gradients_of_the_top_values_agree():
    step = {i: jax.jit(jax.grad(lambda y, i=i: jnp.square(top_correlations(y, 3, implementation=i).values).sum())) for i in IMPLEMENTATIONS}
    assert_allclose(step["chunked"](signals()), step["reference"](signals()), atol=2e-5)


def test_temporary_memory_never_holds_a_table_of_all_pairs(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", BLOCK)

    def temporary(function, locations, frames=64):
        shape = jax.ShapeDtypeStruct((locations, frames), jnp.float32)
        return jax.jit(function).lower(shape).compile().memory_analysis().temp_size_in_bytes

    for function in (location_correlation, lambda y: top_correlations(y, 10)):
        few, many = temporary(function, 4 * BLOCK), temporary(function, 64 * BLOCK)
        assert few < 6 * BLOCK * BLOCK * 4
        assert many - few < 60 * BLOCK * 64 * 4  # less than one more copy of the signals
    pull = temporary(jax.grad(lambda y: location_correlation(y).sum()), 64 * BLOCK)
    assert pull < 3 * 64 * BLOCK * 64 * 4 + 8 * BLOCK * BLOCK * 4


def test_one_program_serves_every_pair_of_blocks():
    step = jax.jit(location_correlation)
    text = [step.lower(jax.ShapeDtypeStruct((n, 16), jnp.float32)).as_text() for n in (64, 640)]
    assert text[0].count("dot_general") == text[1].count("dot_general") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.ones((2, 3, 4), np.float32)}, r"y must be \[locations, frames\], got shape \(2, 3, 4\)"),
        ({"y": np.ones((5, 2), np.float32)}, r"at least 3 frames, got shape \(1, 5, 2\)"),
        ({"y": np.ones((5, 4), int)}, "y must be floating point, got int"),
        ({"kept": np.ones(5, bool)}, r"kept must have shape \(4,\) \(frames\), got \(5,\)"),
        ({"mask": np.ones(4, bool)}, r"mask must have shape \(5,\) \(locations\), got \(4,\)"),
        ({"statistic": "median"}, r"one of \['degree', 'mean', 'mean_z', 'strength'\] or a function of r, got 'median'"),
        ({"implementation": "dense"}, r"one of \['chunked', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        location_correlation(**({"y": np.ones((5, 4), np.float32)} | arguments))


@pytest.mark.parametrize("k", [0, 5])
def test_a_list_longer_than_the_others_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be 1 to 4 for 5 locations, got {k}"):
        top_correlations(np.ones((5, 4), np.float32), k)


# Over devices


PARTS = [1, 2, 3, 8]


@functools.cache
def mesh_of(parts):
    return jax.make_mesh((parts,), ("location",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:parts])


def spread(locations=72):
    """Signals with an absent and a constant location, and frames that do not count; 9 locations a part on 8 devices: no full blocks."""
    y, mask, kept = signals(locations), np.arange(locations) != 5, np.arange(40) < 33
    y[31] = 2.0
    return y, mask, kept


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("statistic", ["mean_z", "degree"])
def test_locations_over_devices_give_what_one_device_gives(parts, statistic):
    y, mask, kept = spread()
    found = jax.jit(lambda y: location_correlation(y, statistic, kept=kept, mask=mask, mesh=mesh_of(parts)))(y)
    assert_allclose(found, location_correlation(y, statistic, kept=kept, mask=mask), rtol=0, atol=tolerance(y))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("k", [3, 20])
def test_the_largest_over_devices_are_those_of_one_device_equal_ones_too(parts, k):
    y, mask, kept = spread()
    y[40:60] = y[:1]  # many equal correlations, in several parts: the lower index stays
    found = jax.jit(lambda y: top_correlations(y, k, kept=kept, mask=mask, mesh=mesh_of(parts)))(y)
    expected = top_correlations(y, k, kept=kept, mask=mask)
    assert_allclose(found.values, expected.values, rtol=0, atol=rounding(40))
    assert_array_equal(found.indices, expected.indices)


def test_gradients_over_devices_are_those_of_one_device():
    y, mask, _ = spread()
    weights = np.linspace(-1, 1, len(y), dtype=np.float32)

    def loss(y, mesh):
        return (jnp.nan_to_num(location_correlation(y, mask=mask, mesh=mesh)) * weights).sum()

    found, expected = (jax.jit(jax.grad(functools.partial(loss, mesh=mesh)))(y) for mesh in (mesh_of(8), None))
    assert np.abs(expected).max() > 0
    assert_allclose(found, expected, rtol=1e-4, atol=tolerance(y) * np.abs(expected).max())


def test_only_parts_travel_and_each_device_does_its_share():
    y = signals(256)
    step = jax.jit(lambda y, mesh: location_correlation(y, mesh=mesh), static_argnums=1)
    one, eight = (hlo.read(step.lower(y, mesh).compile()) for mesh in (None, mesh_of(8)))
    # Three steps with signals and sums, one with the signals of the part opposite, one home; then how many locations there are.
    assert eight.collectives == {"collective-permute": 2 * 3 + 2, "all-reduce": 1}
    assert (
        eight.matmul < 1.3 / 8 * one.matmul
    )  # blocks of 8: one on the diagonal of each part is computed whole, and so is the part opposite
    top = jax.jit(lambda y: top_correlations(y, 3, mesh=mesh_of(8)))
    assert hlo.read(top.lower(y).compile()).collectives == {"collective-permute": 7}
    sizes = re.findall(r"f32\[([\d,]+)\]\S* collective-permute\(", top.lower(y).compile().as_text())
    assert {np.prod([int(n) for n in size.split(",")]) for size in sizes} == {256 // 8 * 40}


def test_no_table_of_all_pairs_on_any_device():
    y = signals(1024)
    memory = jax.jit(lambda y: location_correlation(y, mesh=mesh_of(8))).lower(y).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 6 * y.nbytes  # of all eight together at most; the table would be 25 times y


@pytest.mark.parametrize(
    ("mesh", "more", "message"),
    [
        (lambda: mesh_of(3), {}, "the mesh splits locations over 3 devices: expected a multiple of 3 locations, got 29"),
        (lambda: jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]), {}, r"expected a mesh with an axis location, got \('x',\)"),
        (lambda: mesh_of(1), {"implementation": "reference"}, "a mesh needs the implementation 'chunked', got 'reference'"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(mesh, more, message):
    with pytest.raises(ValueError, match=message):
        location_correlation(signals(), mesh=mesh(), **more)
