"""Properties first, then scipy and nilearn, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pnet_jax.ops.tangent import chunked, geometric_mean, tangent

IMPLEMENTATIONS = ("reference", "chunked")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@functools.cache
def compiled(implementation):
    return jax.jit(functools.partial(tangent, implementation=implementation))


def run(covariances, mean=None, implementation="chunked"):
    return tuple(np.asarray(x) for x in compiled(implementation)(covariances, mean))


def covariances(subjects=6, parcels=5, spread=0.7, seed=0):
    """Around one matrix, with as much spread as asked for; a spread of 1 makes ratios of variances of about 10."""
    rng = np.random.default_rng(seed)
    half = scipy.linalg.sqrtm(np.cov(rng.normal(size=(parcels, 3 * parcels))) + 0.1 * np.eye(parcels)).real
    steps = rng.normal(size=(subjects, parcels, parcels)) * spread / np.sqrt(2 * parcels)
    out = [half @ scipy.linalg.expm(s + s.T) @ half for s in steps]
    return np.stack(out).astype(np.float32)


def gradient(x, mean):
    """Mean of the logarithms at a mean, in double precision."""
    inverse = np.linalg.inv(scipy.linalg.sqrtm(np.float64(mean)).real)
    return np.mean([scipy.linalg.logm(inverse @ s @ inverse).real for s in np.float64(x)], axis=0)


@pytest.mark.parametrize("spread", [0.05, 0.7, 1.5])
@pytest.mark.parametrize("parcels", [5, 24])
def test_the_logarithms_at_the_mean_average_to_0(parcels, spread):
    x = covariances(6, parcels, spread)
    found, mean = run(x)
    assert_allclose(found.mean(0), 0, atol=5e-5)
    assert_allclose(gradient(x, mean), 0, atol=5e-5)


def test_tangent_vectors_lead_back_to_the_covariances(implementation):
    x = covariances()
    found, mean = (np.float64(a) for a in run(x, None, implementation))
    half = scipy.linalg.sqrtm(mean).real
    assert_allclose([half @ scipy.linalg.expm(t) @ half for t in found], x, atol=2e-5 * np.abs(x).max())


def test_the_mean_of_commuting_matrices_is_that_of_their_eigenvalues(implementation):
    values = np.random.default_rng(0).uniform(0.5, 9, (6, 5)).astype(np.float32)
    found = run(np.stack([np.diag(v) for v in values]), None, implementation)[1]
    assert_allclose(found, np.diag(values.prod(0) ** (1 / 6)), atol=1e-4)


def test_the_mean_of_two_is_half_way_between_them(implementation):
    a, b = np.float64(covariances(2))  # each three times
    half = scipy.linalg.sqrtm(a).real
    inverse = np.linalg.inv(half)
    expected = half @ scipy.linalg.sqrtm(inverse @ b @ inverse).real @ half
    found = run(np.tile(covariances(2), (3, 1, 1)), None, implementation)[1]
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_another_basis_changes_the_mean_and_nothing_else(implementation):
    x, basis = covariances(), np.random.default_rng(3).normal(size=(5, 5)).astype(np.float32)
    expected = basis @ run(x, None, implementation)[1] @ basis.T
    found = run(basis @ x @ basis.T, None, implementation)[1]
    assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_the_unit_of_the_signals_does_not_matter(implementation):
    x = covariances()
    (small, mean), (large, times) = run(x, None, implementation), run(1e4 * x, None, implementation)
    assert_allclose(large, small, atol=2e-5)
    assert_allclose(times, 1e4 * mean, rtol=1e-4)


def test_the_order_of_the_subjects_does_not_matter():
    x = covariances()
    assert_allclose(run(x[::-1].copy())[0], run(x)[0][::-1], atol=2e-5)


def test_subjects_that_are_all_alike_are_their_own_mean(implementation):
    x = np.tile(covariances(1), (6, 1, 1))
    found, mean = run(x, None, implementation)
    assert_allclose(found, 0, atol=1e-5)
    assert_allclose(mean, x[0], atol=1e-5)


def test_others_are_seen_from_the_mean_that_is_given(implementation):
    x, mean = covariances(), covariances(1, seed=5)[0]
    found, same = run(x, mean, implementation)
    inverse = np.linalg.inv(scipy.linalg.sqrtm(np.float64(mean)).real)
    assert_allclose(found, [scipy.linalg.logm(inverse @ s @ inverse).real for s in np.float64(x)], atol=5e-5)
    assert_allclose(same, mean)


@pytest.mark.parametrize("frames", [120, 20])
def test_equals_nilearn(frames, implementation):
    connectome, covariance = pytest.importorskip("nilearn.connectome"), pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(24, 24))
    signals = [(shared + 0.3 * rng.normal(size=shared.shape)) @ rng.normal(size=(24, frames)) for _ in range(6)]
    measure = connectome.ConnectivityMeasure(kind="tangent", cov_estimator=covariance.LedoitWolf(store_precision=False), standardize=False)
    expected = measure.fit_transform([x.T for x in signals])
    estimates = np.stack([covariance.ledoit_wolf(x.T)[0] for x in signals]).astype(np.float32)
    found, mean = run(estimates, None, implementation)
    assert_allclose(mean, measure.mean_, atol=1e-4 * np.abs(measure.mean_).max())
    assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (6, 24)], ids=str)
def test_implementations_agree(shape):
    x = covariances(*shape)
    (a, mean_a), (b, mean_b) = run(x, None, "reference"), run(x, None, "chunked")
    assert_allclose(mean_b, mean_a, atol=5e-5 * np.abs(mean_a).max())
    assert_allclose(b, a, atol=1e-4)


def test_gradients_at_a_given_mean_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        x, mean = np.float64(covariances(2, 3)), np.float64(covariances(1, 3, seed=5)[0])

        def face(x):
            return tangent((x + x.swapaxes(1, 2)) / 2, mean, implementation=implementation)[0]

        check_grads(jax.jit(face), (x,), order=1, modes=["rev"], eps=1e-5)


def test_half_precision_is_computed_in_float32():
    x = jnp.asarray(np.stack([np.diag(v) for v in ([1.0, 4.0], [4.0, 1.0])]), jnp.bfloat16)
    found, mean = run(x)
    assert found.dtype == mean.dtype == np.float32
    assert_allclose(mean, 2 * np.eye(2), atol=1e-5)


def steps(x):
    """How many Newton steps are taken."""
    start = chunked._at(chunked._start(x), x, jnp.full((), jnp.inf), jnp.zeros((), jnp.int32))
    return chunked._solve(start, x).steps


compiled_steps = jax.jit(steps)


@pytest.mark.parametrize(("spread", "most"), [(0.05, 1), (0.7, 2), (1.5, 4)])
def test_few_decompositions_are_enough(spread, most):
    assert compiled_steps(covariances(6, 24, spread)) <= most


def test_rounding_ends_the_steps(monkeypatch):
    """A tolerance that float32 cannot reach does not use up the steps that are allowed."""
    monkeypatch.setattr(chunked, "TOLERANCE", 0.0)
    assert int(jax.jit(lambda x: steps(x))(covariances())) < chunked.STEPS / 2


def test_covariances_that_are_nan_end_the_steps_at_once():
    x = covariances()
    x[2, 1, 1] = np.nan
    found, mean = run(x)
    assert np.isnan(mean).all() and np.isnan(found[2]).all()


def test_the_mean_alone_is_that_of_the_tangent_space():
    x = covariances()
    assert_allclose(jax.jit(geometric_mean)(x), run(x)[1], rtol=1e-6)


def test_temporary_memory_is_a_few_times_the_covariances():
    subjects, parcels = 40, 48
    shape = jax.ShapeDtypeStruct((subjects, parcels, parcels), jnp.float32)
    found = jax.jit(tangent).lower(shape).compile().memory_analysis().temp_size_in_bytes
    assert 0 < found < 8 * subjects * parcels * parcels * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"covariances": np.eye(3, dtype=np.float32)}, r"\[subjects, parcels, parcels\].*got shape \(3, 3\)"),
        ({"covariances": np.ones((2, 3, 4), np.float32)}, r"got shape \(2, 3, 4\)"),
        ({"covariances": np.ones((0, 3, 3), np.float32)}, r"at least one subject, got shape \(0, 3, 3\)"),
        ({"covariances": np.ones((2, 3, 3), int)}, "covariances must be floating point, got int"),
        ({"mean": np.eye(4, dtype=np.float32)}, r"mean must have shape \(3, 3\) \(parcels, parcels\), got \(4, 4\)"),
        ({"implementation": "dense"}, r"one of \['chunked', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tangent(**({"covariances": np.stack([np.eye(3, dtype=np.float32)] * 2)} | arguments))
