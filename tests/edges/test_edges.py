"""Measures against numpy, scikit-learn and nilearn; K never changes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.linalg
from nilearn.connectome import ConnectivityMeasure
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from tolerance import rounding

from pnet_jax import edges
from pnet_jax.edges import registry
from pnet_jax.edges.inverse import ledoit_wolf
from pnet_jax.ops.tangent import geometric_mean

K, T = 8, 90
ALONE = [name for name in edges.names() if edges.measure(name).function is not None]


def signals(seed=0, parcels=K, frames=T):
    """Correlated signals of different levels and units."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(parcels, parcels)) @ rng.normal(size=(parcels, frames)) + rng.normal(size=(parcels, frames))
    return (x * rng.uniform(0.5, 2, (parcels, 1)) + rng.normal(size=(parcels, 1))).astype(np.float32)


def compute(name, x):
    """Edges by a registered measure, where each parcel has one location and no frame was left out."""
    return edges.compute(name, x, tr=2.0, frames=np.arange(x.shape[1]), y=np.nan_to_num(x), labels=np.arange(len(x)))


def by_nilearn(kind, subjects):
    measure = ConnectivityMeasure(kind=kind, cov_estimator=LedoitWolf(store_precision=False), standardize=False)
    return measure.fit_transform([np.float64(x).T for x in subjects]), measure


def test_pearson_equals_numpy():
    found = edges.compute("pearson", signals())
    assert found.dtype == np.float32
    assert_allclose(found, np.corrcoef(np.float64(signals())), rtol=0, atol=rounding(signals().shape[1]))


def test_covariance_equals_numpy():
    assert_allclose(edges.compute("covariance", signals()), np.cov(np.float64(signals())), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 90), (30, 12), (1, 20), (2, 3)])
def test_ledoit_wolf_equals_scikit_learn(shape):
    x = signals(1, *shape)
    assert_allclose(jax.jit(ledoit_wolf)(x), sklearn_ledoit_wolf(np.float64(x).T)[0], rtol=2e-4, atol=2e-4)


def test_ledoit_wolf_is_invertible_with_fewer_frames_than_parcels():
    values = np.linalg.eigvalsh(np.asarray(jax.jit(ledoit_wolf)(signals(1, 30, 12))))
    assert values.min() > 1e-3 * values.max()


@pytest.mark.parametrize(("name", "kind"), [("partial", "partial correlation"), ("precision", "precision")])
@pytest.mark.parametrize("shape", [(8, 90), (30, 25)])
def test_partial_and_precision_equal_nilearn(name, kind, shape):
    x = signals(2, *shape)
    expected = by_nilearn(kind, [x])[0][0]
    assert_allclose(edges.compute(name, x), expected, atol=1e-4 * np.abs(expected).max())


def test_partial_correlations_lie_within_bounds_with_diagonal_1():
    found = edges.compute("partial", signals(2, 30, 25))
    assert_array_equal(np.diag(found), 1)
    assert np.abs(found).max() <= 1 + 1e-6


def test_tangent_equals_nilearn():
    subjects = [signals(seed, 5, 120) for seed in range(6)]
    covariances = np.stack([np.asarray(jax.jit(ledoit_wolf)(x)) for x in subjects])
    found, mean = edges.tangent(covariances)
    expected, measure = by_nilearn("tangent", subjects)
    scale = np.abs(measure.mean_).max()
    assert_allclose(mean / scale, measure.mean_ / scale, atol=1e-4)
    assert_allclose(found, expected, atol=2e-3)


def test_tangent_vectors_average_to_0_and_lead_back_to_the_covariances():
    covariances = np.stack([np.cov(np.float64(signals(seed, 4, 200))) for seed in range(5)]).astype(np.float32)
    found, mean = (np.float64(x) for x in edges.tangent(covariances))
    assert_allclose(found.mean(0), 0, atol=1e-3)
    half = scipy.linalg.sqrtm(mean).real
    back = np.stack([half @ scipy.linalg.expm(t) @ half for t in found])
    assert_allclose(back, covariances, atol=1e-3 * np.abs(covariances).max())


def test_the_geometric_mean_of_commuting_matrices_is_that_of_their_eigenvalues():
    values = np.array([[1.0, 4, 9], [4, 1, 9], [2, 2, 9]], np.float32)
    found = geometric_mean(np.stack([np.diag(v) for v in values]))
    assert_allclose(found, np.diag(values.prod(0) ** (1 / 3)), atol=1e-3)


@pytest.mark.parametrize("name", ALONE)
def test_every_measure_is_symmetric_and_float32(name):
    found = compute(name, signals())
    assert found.shape == (K, K)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert_allclose(found, found.T, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("name", ALONE)
def test_permuting_parcels_permutes_the_edges(name):
    order, plain = np.random.default_rng(0).permutation(K), compute(name, signals())
    assert_allclose(compute(name, signals()[order]), plain[np.ix_(order, order)], atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("name", ALONE)
def test_absent_parcels_are_nan_and_the_others_as_if_they_were_not_there(name):
    x, present = signals(), np.ones(K, bool)
    present[[2, 7]] = False
    alone = compute(name, x[present])
    x[~present] = np.nan
    found = compute(name, x)
    assert found.shape == (K, K)
    assert_array_equal(np.isnan(found), ~(present[:, None] & present[None]))
    assert_array_equal(found[np.ix_(present, present)], alone)


def test_a_constant_signal_has_no_correlation_and_spoils_no_other():
    x = signals()
    x[3] = 5
    found = edges.compute("pearson", x)
    assert np.isnan(found[3]).all()
    others = np.delete(np.arange(K), 3)
    assert_allclose(found[np.ix_(others, others)], np.corrcoef(np.float64(x[others])), rtol=0, atol=rounding(x.shape[1]))


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("covariance", "precision")])
def test_a_constant_signal_is_nan_in_its_own_row_and_column_only(name):
    x = signals()
    x[3] = 5
    flat = np.arange(K) == 3
    assert_array_equal(np.isnan(compute(name, x)), flat[:, None] | flat[None])


def test_distance_correlation_sees_a_relation_that_is_no_line():
    x = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    x[1] = np.square(x[0])
    found = edges.compute("distance_correlation", x)
    assert found[0, 1] > 0.4 > 0.2 > found[0, 2]
    assert abs(edges.compute("pearson", x)[0, 1]) < 0.2


@pytest.mark.parametrize("name", edges.names())
def test_every_measure_says_what_it_is(name):
    measure = edges.measure(name)
    assert measure.name == name
    assert min(len(measure.units), len(measure.diagonal), len(measure.description)) > 0
    assert isinstance(measure.signed, bool)


@pytest.mark.parametrize(("wrong", "near"), [("pearsn", "pearson"), ("partiel", "partial"), ("tangents", "tangent")])
def test_an_unknown_measure_is_refused_with_the_nearest_name(wrong, near):
    with pytest.raises(ValueError, match=rf"unknown edge measure '{wrong}'.*did you mean '{near}'\?"):
        edges.compute(wrong, signals())


def test_a_measure_that_is_like_no_other_gets_no_guess():
    with pytest.raises(ValueError, match="expected one of") as caught:
        edges.measure("zzzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in edges.names())


def test_a_measure_of_a_cohort_is_refused_for_one_subject():
    with pytest.raises(ValueError, match="'tangent' is not computed from one subject's signals: it needs a cohort"):
        edges.compute("tangent", signals())


@pytest.mark.parametrize("name", ALONE)
def test_a_scan_without_any_parcel_has_no_edges(name):
    assert np.isnan(compute(name, np.full((3, 90), np.nan, np.float32))).all()


@pytest.mark.parametrize(("name", "missing"), [("lagged", "tr, frames"), ("cka", "y, labels")])
def test_a_measure_says_what_it_was_not_given(name, missing):
    with pytest.raises(ValueError, match=f"edge measure '{name}' needs {missing}: not given {missing}"):
        edges.compute(name, signals())
    assert edges.measure(name).of_locations == (name == "cka")


def test_a_measure_can_only_need_what_there_is():
    with pytest.raises(ValueError, match=r"edge measure 'x' may need some of .*, got \['sex'\]"):
        registry.register("x", units="", diagonal="", signed=True, description="", needs=("tr", "sex"))
    assert "x" not in edges.names()
