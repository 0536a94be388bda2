"""Parcels as sets of locations against direct formulas in numpy and the one-dimensional op."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from tolerance import rounding

from pnet_jax.edges.multivariate import TILE, _alike, cka, distance_correlation
from pnet_jax.ops import distance_correlation as op

SIZES = (20, 1, 12, 2, 20, 7)
K, V = len(SIZES), sum(SIZES)
LABELS = np.repeat(np.arange(K), SIZES)


def locations(frames=75, seed=0):
    """Parcels that share sources, in a shuffled order with locations outside."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(V, 3)) @ rng.normal(size=(3, frames)) + rng.normal(size=(V, frames)) + rng.normal(size=(V, 1))
    order = rng.permutation(V + 3)
    return np.concatenate([y, rng.normal(size=(3, frames))])[order].astype(np.float32), np.append(LABELS, [-1, -1, -1])[order]


def by_numpy(y, labels, kernel, unbiased):
    """The formulas on whole matrices in float64."""
    y = np.float64(y) - np.float64(y).mean(1, keepdims=True)
    n, centred = y.shape[1], []
    for k in range(labels.max() + 1):
        own = y[labels == k].T
        a = own @ own.T if kernel == "linear" else cdist(own, own)
        if unbiased:
            np.fill_diagonal(a, 0)
            a = a - a.sum(0) / (n - 2) - a.sum(1)[:, None] / (n - 2) + a.sum() / ((n - 1) * (n - 2))
            np.fill_diagonal(a, 0)
        else:
            a = a - a.mean(0) - a.mean(1)[:, None] + a.mean()
        centred.append(a.ravel())
    products = np.array(centred) @ np.array(centred).T
    found = products / np.sqrt(np.outer(np.diag(products), np.diag(products)))
    return np.sqrt(found) if kernel == "distance" and not unbiased else found


@pytest.mark.parametrize("frames", [2 * TILE, 75])
@pytest.mark.parametrize("unbiased", [False, True])
def test_both_equal_the_formulas_in_numpy(frames, unbiased):
    y, labels = locations(frames)
    assert_allclose(cka(y, labels, K, debiased=unbiased), by_numpy(y, labels, "linear", unbiased), rtol=0, atol=rounding(frames * frames))
    found = distance_correlation(y, labels, K, bias_corrected=unbiased)
    assert_allclose(found, by_numpy(y, labels, "distance", unbiased), atol=2e-5)


@pytest.mark.parametrize("corrected", [False, True])
def test_parcels_of_one_location_have_the_distance_correlation_of_the_op(corrected):
    x = locations(60)[0][:6]
    found = distance_correlation(x, np.arange(6), 6, bias_corrected=corrected)
    assert_allclose(found, op.distance_correlation(x[None], bias_corrected=corrected)[0], atol=1e-4)


def test_the_rv_coefficient_of_single_locations_is_the_squared_correlation():
    x = locations(60)[0][:6]
    assert_allclose(cka(x, np.arange(6), 6, debiased=False), np.square(np.corrcoef(x)), rtol=0, atol=rounding(60 * 60))


@pytest.mark.parametrize("measure", [cka, distance_correlation])
def test_rotating_and_scaling_a_parcel_alters_nothing_and_order_neither(measure):
    y, labels = locations()
    turned = y.copy()
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    turned[labels == 2] = 3 * q @ y[labels == 2] + 7
    plain = measure(y, labels, K)
    assert_allclose(measure(turned, labels, K), plain, atol=3e-5)
    order = np.random.default_rng(2).permutation(len(y))
    tolerance = rounding(75 * 75)  # sums over pairs of frames
    assert_allclose(measure(y[order], labels[order], K), plain, rtol=0, atol=tolerance)
    assert_allclose(plain, np.asarray(plain).T, rtol=0, atol=tolerance)
    assert_allclose(np.diag(plain), 1, rtol=0, atol=tolerance)


def test_independent_parcels_are_at_0_only_when_debiased():
    y, labels = np.random.default_rng(3).normal(size=(V + 3, 75)).astype(np.float32), locations()[1]
    large = np.ix_([0, 2, 4, 5], [0, 2, 4, 5])
    found = {
        "rv": cka(y, labels, K, debiased=False),
        "cka": cka(y, labels, K),
        "dcor": distance_correlation(y, labels, K, bias_corrected=False),
        "corrected": distance_correlation(y, labels, K),
    }
    mean = {name: np.asarray(matrix)[large][np.triu_indices(4, 1)].mean() for name, matrix in found.items()}
    assert max(abs(mean["cka"]), abs(mean["corrected"])) < 0.02
    assert mean["rv"] > 0.1
    assert mean["dcor"] > 0.5


def test_what_means_cancel_is_seen():
    rng = np.random.default_rng(4)
    source = rng.normal(size=100)
    y = np.stack([source, -source, source, -source]) + 0.1 * rng.normal(size=(4, 100))
    labels = np.array([0, 0, 1, 1])
    means = np.stack([y[labels == k].mean(0) for k in (0, 1)])
    assert abs(np.corrcoef(means)[0, 1]) < 0.3
    assert cka(np.float32(y), labels, 2)[0, 1] > 0.9


@pytest.mark.parametrize("measure", [cka, distance_correlation])
def test_parcels_without_locations_or_with_constant_ones_are_nan(measure):
    y, labels = locations()
    y[labels == 1] = 5.3
    labels[labels == 5] = -1
    found = np.asarray(measure(y, labels, K))
    gone = np.isin(np.arange(K), [1, 5])
    assert_array_equal(np.isnan(found), gone[:, None] | gone[None])


@pytest.mark.parametrize(
    ("y", "labels", "message"),
    [
        (np.zeros((3, 9)), np.zeros(4, int), r"got shapes \(3, 9\) and \(4,\)"),
        (np.zeros((3, 3)), np.zeros(3, int), "need at least 4 frames, got 3"),
        (np.zeros((3, 9)), np.array([0, 1, 2]), "labels must be −1 or 0…1, got 0…2"),
    ],
)
def test_wrong_input_is_refused(y, labels, message):
    with pytest.raises(ValueError, match=message):
        cka(y, labels, 2)


def test_no_matrix_of_all_frames_is_held():
    parcels, n, frames = 40, 20, 512
    shapes = jax.ShapeDtypeStruct((parcels * n, frames), np.float32), jax.ShapeDtypeStruct((parcels, n), np.int32)
    held = _alike.lower(*shapes, distances=True, unbiased=True).compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * parcels * frames**2 / 4  # all matrices are 42 MB
