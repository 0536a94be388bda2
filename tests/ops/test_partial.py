"""Properties first, then scikit-learn and nilearn, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops import partial as op

IMPLEMENTATIONS = ("reference", "chunked")
FUNCTIONS = ("ledoit_wolf", "precision", "partial")
KINDS = {"ledoit_wolf": "covariance", "precision": "precision", "partial": "partial correlation"}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@functools.cache
def compiled(name, implementation):
    return jax.jit(functools.partial(getattr(op, name), implementation=implementation))


def run(name, x, kept=None, implementation="chunked"):
    kept = np.ones((x.shape[0], x.shape[2]), bool) if kept is None else kept
    return np.asarray(compiled(name, implementation)(x, kept))


@jax.jit
@jax.grad
def pull(x, weights):
    return jnp.nansum(weights * op.partial(x))


def signals(shape=(5, 7, 40), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(shape[0], shape[1], shape[1])) @ rng.normal(size=shape) + rng.normal(size=shape)
    return (x * rng.uniform(0.5, 2, (shape[1], 1)) + rng.normal(size=(shape[1], 1))).astype(np.float32)


def by_nilearn(name, x):
    connectome, covariance = pytest.importorskip("nilearn.connectome"), pytest.importorskip("sklearn.covariance")
    estimator = covariance.LedoitWolf(store_precision=False)
    measure = connectome.ConnectivityMeasure(kind=KINDS[name], cov_estimator=estimator, standardize=False)
    return measure.fit_transform([np.float64(s).T for s in x])


def close(found, expected, tolerance=1e-4):
    assert_allclose(found, expected, atol=tolerance * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_result_is_symmetric_and_permutes_with_the_parcels(name, implementation):
    x, order = signals(), np.random.default_rng(0).permutation(7)
    found = run(name, x, None, implementation)
    close(found, found.swapaxes(1, 2), 1e-5)
    close(run(name, x[:, order], None, implementation), found[:, order][:, :, order])


def test_partial_correlations_lie_within_bounds_with_diagonal_1(implementation):
    found = run("partial", signals((2, 30, 25)), None, implementation)
    assert_array_equal(np.diagonal(found, axis1=1, axis2=2), 1)
    assert np.abs(found).max() <= 1 + 1e-6


def test_the_precision_undoes_the_covariance():
    x = signals((2, 30, 25))
    close(run("ledoit_wolf", x) @ run("precision", x), np.broadcast_to(np.eye(30), (2, 30, 30)))


def test_two_parcels_driven_by_a_third_have_no_partial_correlation():
    rng = np.random.default_rng(0)
    driver = rng.normal(size=20000)
    x = np.stack([driver, driver + rng.normal(size=20000), driver + rng.normal(size=20000)])[None].astype(np.float32)
    assert np.corrcoef(x[0])[1, 2] > 0.4
    assert abs(run("partial", x)[0, 1, 2]) < 0.03


@pytest.mark.parametrize("shape", [(5, 7, 40), (2, 30, 25), (1, 1, 20), (1, 2, 3)], ids=str)
def test_ledoit_wolf_equals_scikit_learn(shape, implementation):
    ledoit_wolf = pytest.importorskip("sklearn.covariance").ledoit_wolf
    expected = [ledoit_wolf(np.float64(s).T)[0] for s in signals(shape)]
    assert_allclose(run("ledoit_wolf", signals(shape), None, implementation), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(5, 7, 40), (2, 30, 25)], ids=str)
def test_equals_nilearn(name, shape, implementation):
    close(run(name, signals(shape), None, implementation), by_nilearn(name, signals(shape)))


@pytest.mark.parametrize("name", ["partial"])
def test_frames_that_do_not_count_have_no_say(name, implementation):
    x, kept = signals(), np.random.default_rng(1).permuted(np.tile(np.arange(40) < 28, (5, 1)), axis=1)
    expected = run(name, np.stack([s[:, k] for s, k in zip(x, kept, strict=True)]))
    x[~np.broadcast_to(kept[:, None], x.shape)] = np.nan
    close(run(name, x, kept, implementation), expected)


@pytest.mark.parametrize("level", [2.0, 123.456])
def test_a_constant_signal_gives_nan_in_its_own_row_and_column_and_gradients_of_0(level):
    x, absent = signals(), np.zeros((5, 7, 7), bool)
    x[0, 2] = level
    absent[0, 2, :] = absent[0, :, 2] = True
    assert_array_equal(np.isnan(run("partial", x)), absent)
    gradient = np.asarray(pull(x, np.float32(np.arange(7) == 0)[None, :, None] * np.ones((5, 7, 7), np.float32)))
    assert np.isfinite(gradient).all()
    assert_array_equal(gradient[0, 2], 0)
    assert (gradient[1:] != 0).any((1, 2)).all()


def test_a_subject_in_whom_nothing_varies_is_nan_and_spoils_no_other():
    x = signals()
    x[1] = 3
    assert_array_equal(np.isnan(run("partial", x)).all((1, 2)), np.arange(5) == 1)
    assert np.isfinite(pull(x, np.ones((5, 7, 7), np.float32))).all()


@pytest.mark.parametrize("name", ["partial"])
def test_half_precision_is_summed_in_float32(name):
    x = jnp.asarray(signals(), jnp.bfloat16)
    found = run(name, x)
    assert found.dtype == np.float32
    assert_array_equal(found, run(name, x.astype(jnp.float32)))


@pytest.mark.parametrize(
    ("name", "shape", "masked"),
    [
        ("precision", (2, 6, 20), True),
        ("partial", (1, 1, 5), False),
        ("partial", (17, 4, 17), False),  # two blocks and a part of one
    ],
    ids=str,
)
def test_implementations_agree_in_values_and_gradients(name, shape, masked):
    x, weights = signals(shape), np.random.default_rng(1).normal(size=(shape[0], shape[1], shape[1])).astype(np.float32)
    kept = np.ones((shape[0], shape[2]), bool)
    kept[:, 5:8] = not masked

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(x, implementation):
        found = getattr(op, name)(x, kept, implementation=implementation)
        return (weights * found).sum(), found

    (_, a), ga = step(x, "reference")
    (_, b), gb = step(x, "chunked")
    close(b, a)
    assert_allclose(gb, ga, atol=2e-3 * (np.abs(ga).max() + 1e-3))


@pytest.mark.parametrize("name", ["partial"])
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 3, 8))
        check_grads(jax.jit(getattr(op, name)), (x,), order=1, modes=["rev"], eps=1e-5)


@pytest.mark.parametrize("name", ["partial"])
def test_temporary_memory_does_not_grow_with_subjects(name):
    def temporary(subjects):
        shape = jax.ShapeDtypeStruct((subjects, 48, 128), jnp.float32)
        return jax.jit(getattr(op, name)).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert 0 < temporary(512) < 1.2 * temporary(32)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": np.ones((5, 40), np.float32)}, r"\[subjects, parcels, frames\].*got shape \(5, 40\)"),
        ({"signals": np.ones((2, 3, 6), int)}, "signals must be floating point, got int"),
        ({"kept": np.ones(6, bool)}, r"kept must have shape \(2, 6\) \(subjects, frames\), got \(6,\)"),
        ({"implementation": "dense"}, r"one of \['chunked', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(op, name)(**({"signals": np.ones((2, 3, 6), np.float32)} | arguments))
