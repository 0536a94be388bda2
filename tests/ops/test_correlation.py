"""Properties first, then foreign programs, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.correlation import chunked, correlation

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
    assert_allclose(r, r.swapaxes(1, 2), atol=1e-7)
    assert_allclose(np.diagonal(r, axis1=1, axis2=2), 1, atol=1e-6)
    assert np.abs(r).max() <= 1 + 1e-6


def test_permuting_parcels_permutes_the_result(implementation):
    x, order = signals(), np.random.default_rng(0).permutation(7)
    assert_allclose(run(x[:, order], None, implementation), run(x, None, implementation)[:, order][:, :, order], atol=1e-6)


@pytest.mark.parametrize("spoil", [1e3, 1e8])
def test_scrubbed_frames_have_no_say(implementation, spoil):
    x, kept = signals(), np.ones((5, 40), bool)
    kept[:, 10:15] = False
    expected = np.stack([np.corrcoef(s[:, kept[0]]) for s in np.float64(x)])
    x[:, :, 10:15] = spoil
    assert_allclose(run(x, kept, implementation), expected, atol=1e-6)


def test_each_subject_has_frames_of_its_own(implementation):
    x, kept = signals(), np.random.default_rng(1).random((5, 40)) < 0.6
    expected = np.stack([np.corrcoef(s[:, k]) for s, k in zip(np.float64(x), kept, strict=True)])
    assert_allclose(run(x, kept, implementation), expected, atol=1e-6)


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
    assert_allclose(run(x, None, implementation), np.stack([np.corrcoef(s) for s in np.float64(x)]), atol=1e-6)


def test_equals_nilearn():
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    x = signals()
    measure = ConnectivityMeasure(kind="correlation", cov_estimator=EmpiricalCovariance(), standardize=False)
    assert_allclose(run(x), measure.fit_transform(list(np.float64(x).swapaxes(1, 2))), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "masked"),
    [((1, 1, 3), False), ((1, 6, 20), True), ((9, 4, 17), False)],  # nine fill a chunk and begin another
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
    assert_allclose(rb, ra, atol=1e-6)
    assert_allclose(gb, ga, atol=2e-5)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        x, kept = np.random.default_rng(0).normal(size=(2, 3, 8)), np.ones((2, 8), bool)
        kept[0, 3] = False
        check_grads(jax.jit(lambda x: correlation(x, kept)), (x,), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_does_not_grow_with_subjects():
    def temporary(subjects):
        shape = jax.ShapeDtypeStruct((subjects, 48, 128), jnp.float32)
        return jax.jit(correlation).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert 0 < temporary(16 * chunked.SUBJECTS) < 1.2 * temporary(4 * chunked.SUBJECTS)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 40), r"\[subjects, parcels, frames\].*got shape \(7, 40\)"),
        ((5, 7, 2), r"3 frames or more, got shape \(5, 7, 2\)"),
    ],
)
def test_signals_that_cannot_be_used_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        correlation(signals(shape))


def test_frames_that_fit_no_signal_are_refused():
    with pytest.raises(ValueError, match=r"kept must have shape \(5, 40\) \(subjects, frames\), got \(40,\)"):
        correlation(signals(), np.ones(40, bool))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'fast'"):
        correlation(signals(), implementation="fast")
