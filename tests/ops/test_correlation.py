"""Properties first, then foreign programs, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops._signals import subjects_a_block
from pnet_jax.ops.correlation import correlation

IMPLEMENTATIONS = ("reference", "chunked")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@functools.cache
def compiled(implementation):
    return jax.jit(functools.partial(correlation, implementation=implementation))


def run(signals, kept=None, implementation="chunked"):
    return np.asarray(compiled(implementation)(signals, kept))


def signals(shape=(5, 7, 40), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_unit_and_level_of_the_signals_do_not_matter(implementation):
    x = signals()
    assert_allclose(run(3 * x + 10, None, implementation), run(x, None, implementation), atol=2e-5)


def test_result_is_symmetric_with_diagonal_1_and_within_bounds(implementation):
    r = run(signals((20, 10, 6)), None, implementation)
    assert_allclose(r, r.swapaxes(1, 2), rtol=0, atol=rounding(6))
    assert_allclose(np.diagonal(r, axis1=1, axis2=2), 1, rtol=0, atol=rounding(6))
    assert np.abs(r).max() <= 1 + rounding(6)


def test_permuting_parcels_permutes_the_result(implementation):
    x, order = signals(), np.random.default_rng(0).permutation(7)
    assert_allclose(run(x[:, order], None, implementation), run(x, None, implementation)[:, order][:, :, order], rtol=0, atol=rounding(40))


@pytest.mark.parametrize("spoil", [1e3, 1e8])
def test_scrubbed_frames_have_no_say(implementation, spoil):
    x, kept = signals(), np.ones((5, 40), bool)
    kept[:, 10:15] = False
    expected = np.stack([np.corrcoef(s[:, kept[0]]) for s in np.float64(x)])
    x[:, :, 10:15] = spoil
    assert_allclose(run(x, kept, implementation), expected, rtol=0, atol=rounding(40))


def test_each_subject_has_frames_of_its_own(implementation):
    x, kept = signals(), np.random.default_rng(1).random((5, 40)) < 0.6
    expected = np.stack([np.corrcoef(s[:, k]) for s, k in zip(np.float64(x), kept, strict=True)])
    assert_allclose(run(x, kept, implementation), expected, rtol=0, atol=rounding(40))


def test_a_constant_signal_gives_nan_in_its_own_row_and_column_only(implementation):
    x, expected = signals(), np.zeros((5, 7, 7), bool)
    x[0, 2] = 2
    expected[0, 2, :] = expected[0, :, 2] = True
    assert_array_equal(np.isnan(run(x, None, implementation)), expected)


@pytest.mark.parametrize("level", [0.1, 123.456, -7e5])
def test_a_signal_that_is_constant_up_to_rounding_gives_nan(level):
    x = signals()
    x[1, 0] = level
    assert np.isnan(run(x)[1, 0]).all()


def test_a_constant_signal_has_gradients_of_0_and_spoils_no_other():
    x, weights = signals(), signals((5, 7, 7), 1)
    gradient = jax.jit(jax.grad(lambda x: jnp.nansum(weights * correlation(x))))
    flat = x.copy()
    flat[0, 2] = 2
    plain, found = np.asarray(gradient(x)), np.asarray(gradient(flat))
    assert_array_equal(found[0, 2], 0)
    assert np.isfinite(found).all()
    assert_array_equal(found[1:], plain[1:])
    assert (found[0, :2] != 0).all()


def test_equals_numpy(implementation):
    x = signals((9, 4, 17))
    assert_allclose(run(x, None, implementation), np.stack([np.corrcoef(s) for s in np.float64(x)]), rtol=0, atol=rounding(17))


def test_equals_nilearn():
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    x = signals()
    measure = ConnectivityMeasure(kind="correlation", cov_estimator=EmpiricalCovariance(), standardize=False)
    assert_allclose(run(x), measure.fit_transform(list(np.float64(x).swapaxes(1, 2))), rtol=0, atol=rounding(40))


@pytest.mark.parametrize(
    ("shape", "masked"),
    [((1, 1, 3), False), ((1, 6, 20), True), ((17, 4, 17), False)],  # seventeen fill two blocks and begin another
    ids=str,
)
def test_implementations_agree_in_values_and_gradients(shape, masked):
    x, weights = signals(shape), signals((shape[0], shape[1], shape[1]), 1)
    kept = np.ones((shape[0], shape[2]), bool)
    kept[:, 5:8] = not masked

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(x, implementation):
        r = correlation(x, kept, implementation=implementation)
        return (weights * r).sum(), r

    (_, ra), ga = step(x, "reference")
    (_, rb), gb = step(x, "chunked")
    assert_allclose(rb, ra, rtol=0, atol=rounding(shape[2]))
    assert_allclose(gb, ga, atol=2e-5)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        x, kept = np.random.default_rng(0).normal(size=(2, 3, 8)), np.ones((2, 8), bool)
        kept[0, 3] = False
        check_grads(jax.jit(lambda x: correlation(x, kept)), (x,), order=1, modes=["rev"], eps=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32(implementation, dtype, request):
    if dtype == "float16":
        request.getfixturevalue("float16")
    x = jnp.asarray(30 + signals((3, 6, 50)), dtype)
    r = run(x, None, implementation)
    assert r.dtype == np.float32
    assert_allclose(r, np.stack([np.corrcoef(s) for s in np.asarray(x, np.float64)]), rtol=0, atol=rounding(50))


def test_the_gradient_has_the_type_of_the_signals():
    x = jnp.asarray(signals((3, 6, 50)), "bfloat16")
    weights = signals((3, 6, 6), 1)
    found = jax.jit(jax.grad(lambda x: (weights * correlation(x)).sum()))(x)
    exact = jax.jit(jax.grad(lambda x: (weights * correlation(x)).sum()))(x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    assert_allclose(found.astype(jnp.float32), exact, atol=2e-2 * np.abs(exact).max())


def test_a_frame_that_does_not_count_may_hold_anything():
    x, kept = signals(), np.ones((5, 40), bool)
    kept[:, 7] = False
    plain = run(x, kept)
    x[:, :, 7] = np.nan
    assert_array_equal(run(x, kept), plain)


def test_a_subject_without_frames_is_nan_and_spoils_no_other():
    x, kept = signals(), np.ones((5, 40), bool)
    kept[2] = False
    assert_array_equal(np.isnan(run(x, kept)).all((1, 2)), np.arange(5) == 2)
    gradient = jax.jit(jax.grad(lambda x: jnp.nansum(correlation(x, kept)[:, 0, 1])))(x)
    assert np.isfinite(gradient).all() and (gradient[0, 0] != 0).any()


def temporary(subjects, parcels=48, frames=128):
    """Of the values and of their pull-back, in bytes."""
    x = jax.ShapeDtypeStruct((subjects, parcels, frames), jnp.float32)
    r = jax.ShapeDtypeStruct((subjects, parcels, parcels), jnp.float32)
    steps = jax.jit(correlation).lower(x), jax.jit(lambda x, r: jax.vjp(correlation, x)[1](r)).lower(x, r)
    return [step.compile().memory_analysis().temp_size_in_bytes for step in steps]


def test_temporary_memory_does_not_grow_with_subjects():
    for few, many in zip(temporary(32), temporary(512), strict=True):
        assert 0 < many < 1.2 * few
        assert few < 4 * 16 * 48 * 128 * 4  # a few arrays of one block


@pytest.mark.parametrize(("subjects", "block"), [(1, 1), (3, 3), (100, 10), (64, 16), (17, 8), (101, 8), (26, 13)])
def test_a_block_divides_the_subjects_if_that_does_not_make_it_tiny(subjects, block):
    assert subjects_a_block(subjects) == block


def test_one_trace_serves_values_of_every_kind():
    step = jax.jit(correlation)
    for seed in range(3):
        step(signals(seed=seed), np.ones((5, 40), bool))
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 40), r"\[subjects, parcels, frames\].*got shape \(7, 40\)"),
        ((5, 7, 2), r"at least 3 frames, got shape \(5, 7, 2\)"),
    ],
)
def test_signals_that_cannot_be_used_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        correlation(signals(shape))


def test_frames_that_fit_no_signal_are_refused():
    with pytest.raises(ValueError, match=r"kept must have shape \(5, 40\) \(subjects, frames\), got \(40,\)"):
        correlation(signals(), np.ones(40, bool))


def test_signals_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="signals must be floating point, got int32"):
        correlation(np.ones((2, 3, 5), np.int32))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'fast'"):
        correlation(signals(), implementation="fast")
