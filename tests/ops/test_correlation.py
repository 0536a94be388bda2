"""Properties first, then foreign programs, then equality of implementations, then compiled cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pnet_jax.ops.correlation import chunked, correlation

IMPLEMENTATIONS = ("reference", "chunked")
SHAPES = [(1, 1, 3), (1, 6, 20), (5, 3, 11), (9, 4, 17)]  # the last one fills a chunk and begins another


def signals(shape=(5, 7, 40), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_unit_and_level_of_the_signals_do_not_matter(implementation):
    x = signals()
    assert_allclose(correlation(3 * x + 10, implementation=implementation), correlation(x, implementation=implementation), atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_result_is_symmetric_with_diagonal_1_and_within_bounds(implementation):
    r = np.asarray(correlation(signals((20, 10, 6)), implementation=implementation))
    assert_allclose(r, r.swapaxes(1, 2), atol=1e-7)
    assert_allclose(np.diagonal(r, axis1=1, axis2=2), 1, atol=1e-6)
    assert np.abs(r).max() < 1 + 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_permuting_parcels_permutes_the_result(implementation):
    x, order = signals(), np.random.default_rng(0).permutation(7)
    expected = correlation(x, implementation=implementation)[:, order][:, :, order]
    assert_allclose(correlation(x[:, order], implementation=implementation), expected, atol=1e-6)


@pytest.mark.parametrize("spoil", [1e3, 1e8])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scrubbed_frames_have_no_say(implementation, spoil):
    x, kept = signals(), jnp.ones((5, 40), bool).at[:, 10:15].set(False)
    spoiled = x.at[:, :, 10:15].set(spoil)
    left = correlation(jnp.delete(x, jnp.arange(10, 15), axis=2), implementation=implementation)
    assert_allclose(correlation(spoiled, kept, implementation=implementation), left, atol=1e-6)


def test_each_subject_has_frames_of_its_own():
    x, kept = signals(), jax.random.bernoulli(jax.random.key(1), 0.6, (5, 40))
    for s, r in enumerate(correlation(x, kept)):
        assert_allclose(r, np.corrcoef(np.float64(x[s])[:, np.asarray(kept[s])]), atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_constant_signal_gives_nan_in_its_own_row_and_column_only(implementation):
    r = np.asarray(correlation(signals().at[0, 2].set(2.0), implementation=implementation))
    expected = np.zeros((5, 7, 7), bool)
    expected[0, 2, :] = expected[0, :, 2] = True
    assert (np.isnan(r) == expected).all()


@pytest.mark.parametrize("level", [0.1, 123.456, -7e5])
def test_a_signal_that_is_constant_up_to_rounding_gives_nan(level):
    assert jnp.isnan(correlation(signals().at[1, 0].set(level))[1, 0]).all()


def test_a_constant_signal_has_gradients_of_0_and_spoils_no_other():
    x, weights = signals(), signals((5, 7, 7), 1)
    loss = lambda x: jnp.nansum(weights * correlation(x))  # noqa: E731
    gradient = jax.grad(loss)(x.at[0, 2].set(2.0))
    assert (gradient[0, 2] == 0).all()
    assert jnp.isfinite(gradient).all()
    assert (gradient[1:] == jax.grad(loss)(x)[1:]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1])
def test_equals_numpy(shape, implementation):
    x = signals(shape)
    assert_allclose(correlation(x, implementation=implementation), np.stack([np.corrcoef(s) for s in np.float64(x)]), atol=2e-6)


def test_equals_nilearn():
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    x = signals()
    measure = ConnectivityMeasure(kind="correlation", cov_estimator=EmpiricalCovariance(), standardize=False)
    assert_allclose(correlation(x), measure.fit_transform(list(np.float64(x).swapaxes(1, 2))), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_implementations_agree_in_values_and_gradients(shape, masked):
    x, weights = signals(shape), signals((shape[0], shape[1], shape[1]), 1)
    kept = (jnp.arange(shape[2]) != 1)[None].repeat(shape[0], 0) if masked and shape[2] > 3 else None
    values = [correlation(x, kept, implementation=i) for i in IMPLEMENTATIONS]
    assert_allclose(*values, atol=1e-6)
    gradients = [jax.grad(lambda x, i=i: (weights * correlation(x, kept, implementation=i)).sum())(x) for i in IMPLEMENTATIONS]
    assert_allclose(*gradients, atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)))
        kept = jnp.ones((2, 8), bool).at[0, 3].set(False)
        check_grads(lambda x: correlation(x, kept, implementation=implementation), (x,), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_does_not_grow_with_subjects():
    def temporary(subjects):
        shape = jax.ShapeDtypeStruct((subjects, 48, 128), jnp.float32)
        return jax.jit(correlation).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16 * chunked.SUBJECTS) < 1.2 * temporary(4 * chunked.SUBJECTS)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 40), r"\[subjects, parcels, frames\].*got shape \(7, 40\)"),
        ((5, 7, 2), r"3 frames or more, got shape \(5, 7, 2\)"),
    ],
)
def test_signals_that_cannot_be_used_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        correlation(jnp.zeros(shape))


def test_frames_that_fit_no_signal_are_refused():
    with pytest.raises(ValueError, match=r"kept must have shape \(5, 40\) \(subjects, frames\), got \(40,\)"):
        correlation(signals(), jnp.ones(40, bool))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'fast'"):
        correlation(signals(), implementation="fast")
