"""The closed form against scipy, statistics against one pass in numpy, and what an embedding must not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.encoder.linear import OWN_SHARE, RIDGE, LinearEncoder, Statistics, add, embed, halves_statistics, project, solve
from pnet_jax.encoder.tokens import nearest_reference, reference_signals

R, D, V, T = 6, 3, 40, 60


def references(count=R):
    return np.random.default_rng(7).uniform(-60, 60, (count, 3)).astype(np.float32)


def recording(seed=0, locations=V):
    """Signals that share R sources, the reference region of each location, and two halves with a gap."""
    rng = np.random.default_rng(seed)
    region = rng.integers(0, R, locations).astype(np.int32)
    region[:R] = np.arange(R)
    y = rng.normal(size=(R, T))[region] + 0.5 * rng.normal(size=(1, T)) + rng.normal(size=(locations, T))
    halves = np.zeros((2, T), bool)
    halves[0, : T // 2 - 3] = halves[1, T // 2 + 3 :] = True
    return y.astype(np.float32), region, halves, np.ones(locations, bool)


def encoder(seed=1):
    rng = np.random.default_rng(seed)
    arrays = (references(), rng.normal(size=R), rng.normal(size=(R, D)), np.ones(D), rng.normal(size=(D, R)))
    return LinearEncoder(*(np.asarray(x, np.float32) for x in arrays))


def embedding(y, region, kept=None, counted=None, weights=None):
    kept = np.ones(y.shape[1], bool) if kept is None else kept
    counted = np.ones(len(y), bool) if counted is None else counted
    return np.asarray(embed(weights or encoder(), y, region, kept, counted))


def statistics(y, region, halves, counted):
    return Statistics(*(np.asarray(x, np.float64) for x in halves_statistics(y, region, halves, counted, references())))


def random_statistics(seed=0, size=8, count=500.0):
    """Statistics of fingerprints with a few directions that repeat and noise that does not."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) * np.geomspace(3, 0.05, size)
    across = mixing @ mixing.T
    noise = rng.normal(size=(size, size))
    within = across + noise @ noise.T + 0.1 * np.eye(size)
    skew = rng.normal(size=(size, size))
    across = across + 0.1 * (skew - skew.T)  # the two halves are not exchangeable
    return Statistics(np.full((size, size), count), rng.normal(size=(2, size)) * count, across * count, within * count)


def fingerprints(y, region, kept):
    """One Fisher z per location and reference in float64; what `fingerprint` is tested against too."""
    y = np.float64(y)
    signals = np.stack([y[region == r].mean(0) if (region == r).any() else np.zeros(T) for r in range(R)])
    both = np.corrcoef(np.concatenate([y, signals])[:, kept])
    return np.arctanh(np.clip(both[: len(y), len(y) :], -0.99, 0.99))


# The closed form


@pytest.mark.parametrize("seed", range(3))
def test_components_solve_the_generalised_problem(seed):
    given = random_statistics(seed)
    found = solve(given, references(8), 4)
    across, within = (given.across + given.across.T) / 2 / 500, given.within / 500
    ridge = within + RIDGE * np.trace(within) / 8 * np.eye(8)
    values, vectors = scipy.linalg.eigh(across, ridge)
    values, vectors = values[::-1][:4], vectors[:, ::-1][:, :4]
    assert (values > 0).all()
    u = found.projection / np.sqrt(values)
    assert_allclose(u.T @ ridge @ u, np.eye(4), atol=1e-4)
    assert_allclose(u.T @ within @ u, np.eye(4), atol=0.05)  # U'CU = I up to the ridge
    assert_allclose(across @ u, ridge @ u * values, atol=1e-3)
    assert_allclose(found.reliability, values, rtol=1e-4)
    assert_allclose(np.abs(found.projection), np.abs(vectors * np.sqrt(values)), atol=1e-3)


def test_reliability_is_what_repeats_of_the_variance_within():
    given = random_statistics()
    found = solve(given, references(8), 5)
    within = given.within + RIDGE * np.trace(given.within) / 8 * np.eye(8)
    p = np.float64(found.projection)
    assert_allclose(found.reliability, np.diag(p.T @ given.across @ p) / np.diag(p.T @ within @ p), rtol=1e-4)
    assert (found.reliability > 0).all()


def test_weights_have_a_sign_of_their_own():
    p = solve(random_statistics(), references(8), 5).projection
    assert (p[np.abs(p).argmax(0), np.arange(5)] > 0).all()


def test_components_that_do_not_repeat_are_0_and_harmless():
    across = np.diag([3.0, 1, 0.5, -0.1, -0.2, -0.3, -1, -2]) * 500
    found = solve(random_statistics()._replace(across=across), references(8), 8)
    assert_array_equal((found.projection != 0).any(0), np.arange(8) < 3)
    assert_array_equal(found.reliability[3:], 0)
    assert_array_equal(found.decoder[3:], 0)
    assert np.isfinite(np.concatenate([x.ravel() for x in found])).all()


def test_no_more_components_than_references():
    assert solve(random_statistics(), references(8), 64).projection.shape == (8, 8)


def test_the_decoder_is_the_least_squares_map_back():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8))
    f = f - f.mean(0)
    product = f.T @ f
    found = solve(Statistics(np.full((8, 8), 300.0), np.zeros((2, 8)), product, product), references(8), 4)
    expected = np.linalg.lstsq(f @ np.float64(found.projection), f, rcond=None)[0]
    assert_allclose(found.decoder, expected, atol=1e-4)


def test_the_scale_of_the_cohort_does_not_matter():
    given = random_statistics()
    twice = add(given, given)
    for a, b in zip(solve(given, references(8), 4), solve(twice, references(8), 4), strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_the_mean_is_over_locations_and_halves():
    given = random_statistics()
    assert_allclose(solve(given, references(8)).mean, given.total.sum(0) / 1000, atol=1e-6)


def test_no_location_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one scan with signals near a reference point"):
        solve(Statistics(np.zeros((4, 4)), np.zeros((2, 4)), np.zeros((4, 4)), np.zeros((4, 4))), references(4))


# Statistics


def test_adding_scans_equals_one_pass_over_all_of_them():
    scans = [recording(seed, locations) for seed, locations in ((0, V), (1, 25), (2, 33))]
    total = added([statistics(*scan) for scan in scans])
    halves = [[fingerprints(y, region, kept) for y, region, halves, _ in scans for kept in (halves[h],)] for h in (0, 1)]
    a, b = (np.concatenate([f - f.mean(0) for f in one]) for one in halves)
    assert_array_equal(total.pairs, np.full((R, R), V + 25 + 33))
    assert_allclose(total.across, a.T @ b, atol=2e-3)
    assert_allclose(total.within, (a.T @ a + b.T @ b) / 2, atol=2e-3)
    assert_allclose(total.total, [sum(f.sum(0) for f in one) for one in halves], atol=2e-3)


def added(each):
    total = each[0]
    for one in each[1:]:
        total = add(total, one)
    return total


def test_the_order_of_adding_does_not_matter():
    a, b, c = (statistics(*recording(seed)) for seed in range(3))
    for x, y in zip(add(add(a, b), c), add(a, add(c, b)), strict=True):
        assert_allclose(x, y, rtol=1e-12)


def test_padding_and_dead_locations_add_nothing_to_the_statistics():
    y, region, halves, counted = recording()
    padded = np.concatenate([y, np.full((7, T), np.nan, np.float32), np.full((3, T), 50, np.float32)])
    more = statistics(padded, np.r_[region, np.full(7, -1), np.arange(3)].astype(np.int32), halves, np.r_[counted, np.zeros(10, bool)])
    for a, b in zip(more, statistics(y, region, halves, counted), strict=True):
        assert_allclose(a, b, atol=1e-3)


def test_a_reference_without_locations_adds_nothing_and_counts_nothing():
    y, region, halves, counted = recording()
    region = np.where(region == 2, -1, region)
    found = statistics(y, region, halves, counted)
    for table in (found.pairs, found.across, found.within):
        assert_array_equal(table[2], 0)
        assert_array_equal(table[:, 2], 0)
    assert_array_equal(np.delete(np.delete(found.pairs, 2, 0), 2, 1), V)
    assert_array_equal(found.total[:, 2], 0)
    rest = solve(found, references(), 3)
    assert np.isfinite(np.concatenate([x.ravel() for x in rest])).all()
    assert_allclose(rest.projection[2], 0, atol=1e-6)


# Embedding


def test_components_equal_numpy():
    y, region, halves, counted = recording()
    f = fingerprints(y, region, halves[0])
    found = project(encoder(), y, region, halves[0], counted)
    assert_allclose(found, (f - f.mean(0)) @ np.float64(encoder().projection), atol=1e-3)


def test_the_embedding_is_whitened_by_the_scans_own_shrunk_covariance():
    y, region, _, counted = recording()
    x = np.float64(project(encoder(), y, region, np.ones(T, bool), counted))
    metric = OWN_SHARE * x.T @ x / np.square(x).sum() + (1 - OWN_SHARE) / D * np.eye(D)
    expected = x @ np.real(scipy.linalg.inv(scipy.linalg.sqrtm(metric)))
    assert_allclose(embedding(y, region), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_rows_have_length_1():
    y, region, *_ = recording()
    assert_allclose(np.linalg.norm(embedding(y, region), axis=1), 1, atol=1e-5)


def test_a_direction_stretched_in_the_weights_hardly_turns_the_embedding():
    """What a cohort's scale of a component was matters little once the scan's own is taken out."""
    y, region, *_ = recording()
    weights = encoder()
    stretched = weights._replace(projection=weights.projection * np.array([3, 1, 1], np.float32)[None])
    plain = np.float64(project(weights, y, region, np.ones(T, bool), np.ones(V, bool)))
    far = np.float64(project(stretched, y, region, np.ones(T, bool), np.ones(V, bool)))
    before = cosines_differ(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (plain, far)))
    assert cosines_differ(*(np.float64(embedding(y, region, weights=w)) for w in (weights, stretched))) < before / 2


def cosines_differ(a, b):
    return np.abs(a @ a.T - b @ b.T).mean()


def test_the_gradient_is_finite_where_components_are_missing_and_equals_finite_differences():
    y, region, _, counted = recording()
    weights = encoder()._replace(projection=encoder().projection * np.array([1, 0, 0], np.float32)[None])  # two equal eigenvalues
    direction = np.random.default_rng(5).normal(size=(V, D)).astype(np.float32)

    def loss(scale):
        z = embed(weights._replace(projection=weights.projection + scale * encoder(9).projection), y, region, np.ones(T, bool), counted)
        return (z * direction).sum()

    slope = jax.grad(loss)(jnp.float32(0.3))
    assert_allclose(slope, (loss(jnp.float32(0.32)) - loss(jnp.float32(0.28))) / 0.04, rtol=2e-2)
    assert np.isfinite(jax.grad(loss)(jnp.float32(0.0)))


def test_embedding_does_not_depend_on_the_order_of_locations():
    y, region, *_ = recording()
    order = np.random.default_rng(3).permutation(V)
    assert_allclose(embedding(y[order], region[order]), embedding(y, region)[order], atol=1e-4)


def test_embedding_does_not_depend_on_padding_rows():
    y, region, _, counted = recording()
    padded = np.concatenate([y, np.full((9, T), 1e4, np.float32)])
    padded[V:, ::2] = np.nan
    z = embedding(padded, np.r_[region, np.arange(9) % R].astype(np.int32), counted=np.r_[counted, np.zeros(9, bool)])
    assert_allclose(z[:V], embedding(y, region), atol=1e-4)
    assert_array_equal(z[V:], 0)


def test_embedding_does_not_depend_on_padding_frames():
    y, region, *_ = recording()
    padded = np.concatenate([y, np.full((V, 5), 1e3, np.float32)], 1)
    assert_allclose(embedding(padded, region, kept=np.arange(T + 5) < T), embedding(y, region), atol=1e-4)


def test_embedding_does_not_depend_on_unit_and_level():
    y, region, *_ = recording()
    level = np.random.default_rng(4).normal(size=(V, 1)).astype(np.float32)
    assert_allclose(embedding(20 * y + 5 * level, region), embedding(y, region), atol=5e-4)


def test_an_empty_reference_is_harmless():
    y, region, *_ = recording()
    region = np.where(region == 2, -1, region)
    others = np.delete(np.arange(R), 2)
    points, mean, projection, reliability, decoder = encoder()
    reduced = LinearEncoder(points[others], mean[others], projection[others], reliability, decoder[:, others])
    z = embedding(y, region)
    assert np.isfinite(z).all()
    assert_allclose(z, embedding(y, np.where(region > 2, region - 1, region), weights=reduced), atol=1e-5)


def test_a_scan_without_any_counted_location_gives_zeros():
    y, region, *_ = recording()
    assert_array_equal(embedding(y, region, counted=np.zeros(V, bool)), np.zeros((V, D)))


# Tokens


def test_each_location_belongs_to_the_nearest_reference_within_16_mm():
    points = references()
    xyz = np.concatenate([points + np.array([3, 0, 0]), points[:1] + np.array([0, 15.9, 0]), [[900, 0, 0]]]).astype(np.float32)
    found = nearest_reference(xyz, points)
    distance = np.linalg.norm(xyz[:, None] - points[None], axis=-1)
    assert_array_equal(found, np.where(distance.min(1) <= 16, distance.argmin(1), -1))
    assert found[-1] == -1
    assert (found[:-1] >= 0).all()


def test_reference_signals_are_means_and_0_where_nothing_is_near():
    y, region, *_ = recording()
    region[region == 4] = -1
    found = np.asarray(reference_signals(y, region, R))
    expected = [y[region == r].mean(0) if r != 4 else np.zeros(T) for r in range(R)]
    assert_allclose(found, expected, atol=1e-5)
