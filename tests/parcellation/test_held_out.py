"""The held-out score: a density on the sphere, the same in plain float64, and higher for the truth than for what fits noise."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import gammaln, ive, logsumexp

from pnet_jax.parcellation.choose import data_free
from pnet_jax.parcellation.held_out import CONCENTRATIONS, FLOOR, TEMPERATURES, held_out, log_normaliser, tempered
from tests.parcellation.helpers import check_wave, halves, unit

K, D = 5, 24
NATS = 2e-3  # the expansion of log C_D is right to 1e-3, and float32 sums of |log density| < 100 to less than that


@functools.partial(jax.jit, static_argnames="n_parcels")
def scored(q, candidates, z, rows=None, *, n_parcels=K):
    return held_out(q, candidates, z, n_parcels, rows)


def score_k(q, candidates, z):
    return held_out(q, candidates, z, K)


def problem(seed=0, count=120, spread=0.25):
    """Probabilities over up to four candidates, and embeddings around the direction of one of them; some have none."""
    rng = np.random.default_rng(seed)
    candidates = np.argsort(rng.random((count, K)), 1)[:, :4].astype(np.int32)
    candidates[np.arange(4)[None] >= rng.integers(1, 5, (count, 1))] = -1
    candidates[::11] = -1
    q = np.where(candidates >= 0, rng.gamma(0.5, size=candidates.shape), 0)
    q /= np.maximum(q.sum(1, keepdims=True), 1e-9)
    label = candidates[np.arange(count), q.argmax(1)]
    z = unit(unit(rng.normal(size=(K, D)))[label] + spread * rng.normal(size=(count, D)))
    return q.astype(np.float32), candidates, z.astype(np.float32)


def plain(q, candidates, z, rows=None):
    """The definition, in float64 with the Bessel function of scipy: the best mean, and the densities there."""
    q, z = np.where(candidates >= 0, q, 0).astype(float), z.astype(float)
    sums = np.zeros((K, D))
    for k in range(K):
        sums[k] = ((q * (candidates == k)).sum(1)[:, None] * z).sum(0)
    rows = np.arange(len(q)) if rows is None else rows
    rows = rows[(candidates[rows] >= 0).any(1)]
    q, candidates, z = q[rows], candidates[rows], z[rows]
    there = candidates >= 0
    others = sums[candidates] - q[..., None] * z[:, None]
    length = np.linalg.norm(others, axis=2, keepdims=True)
    cosine = np.einsum("nd,ncd->nc", z, np.divide(others, length, out=np.zeros_like(others), where=length > 1e-2))
    found = []
    for temperature in TEMPERATURES.astype(float):
        p = np.where(there, np.maximum(q, 1e-6) ** (1 / temperature), 0)
        p = np.where(there, np.maximum(p / p.sum(1, keepdims=True), FLOOR), 0)
        found += [logsumexp(kappa * cosine, b=p, axis=1) + normaliser(kappa, D) for kappa in CONCENTRATIONS.astype(float)]
    return max(found, key=np.mean)


def normaliser(kappa, dimensions):
    order = dimensions / 2 - 1
    return order * np.log(kappa) - dimensions / 2 * np.log(2 * np.pi) - np.log(ive(order, kappa)) - kappa


@pytest.mark.parametrize("dimensions", [16, 64, 201])
def test_the_normaliser_equals_that_with_scipys_bessel_function(dimensions):
    kappa = np.geomspace(0.5, 400, 40)
    found = jax.jit(functools.partial(log_normaliser, dimensions=dimensions))(kappa.astype(np.float32))
    assert_allclose(found, normaliser(kappa, dimensions), atol=1e-3)
    alone = [log_normaliser(np.float32(one), dimensions) for one in kappa]
    assert_allclose(alone, found, rtol=1e-6)


@pytest.mark.parametrize("dimensions", [16, 64])
def test_without_concentration_the_density_is_one_over_the_area_of_the_sphere(dimensions):
    area = np.log(2) + dimensions / 2 * np.log(np.pi) - gammaln(dimensions / 2)
    assert_allclose(log_normaliser(np.float32(0), dimensions), -area, atol=1e-3)


def test_tempered_probabilities_sum_to_1_and_keep_a_floor():
    q, candidates, _ = problem()
    for temperature in TEMPERATURES:
        p = np.exp(tempered(q, candidates, temperature))
        sums = p.sum(1)
        some = (candidates >= 0).any(1)
        assert ((sums[some] > 1 - 1e-5) & (sums[some] < 1 + 4 * FLOOR)).all()  # what the floor adds at most
        assert_array_equal(sums[~some], 0)
        assert p[candidates >= 0].min() > FLOOR * (1 - 1e-5)
        assert_array_equal(p[candidates < 0], 0)
    assert_allclose(np.exp(tempered(q, candidates, np.float32(1))), np.where(candidates >= 0, np.maximum(q, FLOOR), 0), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.08, 0.25, 1.0])
def test_the_score_equals_a_plain_one(seed, spread):
    given = problem(seed, spread=spread)
    each, expected = scored(*given), plain(*given)
    assert_allclose(each.mean, expected.mean(), atol=NATS)
    assert_allclose(each.each[(given[1] >= 0).any(1)].mean(), each.mean, rtol=1e-5)


def test_a_location_far_from_all_its_candidates_pays_all_of_it():
    """Where the others are concentrated, its density is far below what float32 holds."""
    q, candidates, z = problem(spread=0.02)
    z[[3, 50]] = -z[[3, 50]]
    assert plain(q, candidates, z).min() < -60
    assert_allclose(scored(q, candidates, z).mean, plain(q, candidates, z).mean(), atol=NATS)


@pytest.mark.parametrize("parcels", [2, 5, 40])
def test_embeddings_without_any_structure_are_worth_no_more_than_the_area_of_the_sphere(parcels):
    """However sharp the probabilities and small the parcels: no location is in the prototypes that it is scored under."""
    rng = np.random.default_rng(parcels)
    z = unit(rng.normal(size=(2000, D))).astype(np.float32)
    candidates = np.argsort(rng.random((2000, parcels)), 1)[:, :2].astype(np.int32)
    q = np.tile(np.float32([1, 0]), (2000, 1))
    area = np.log(2) + D / 2 * np.log(np.pi) - gammaln(D / 2)
    # A cosine has a spread of 1 / sqrt(D), and the smallest κ' is 4: four standard errors of the mean over 2000.
    assert scored(q, candidates, z, n_parcels=parcels).mean < -area + 4 * CONCENTRATIONS[0] / np.sqrt(D * 2000)


def test_a_parcel_of_one_location_says_nothing_of_it():
    q, candidates, z = problem(6)
    alone = np.where(np.arange(120)[:, None] == 7, np.int32([[K, -1, -1, -1]]), candidates)
    q[7] = [1, 0, 0, 0]
    other = z.copy()
    other[7] = -z[7]
    one, two = (scored(q, alone, x, n_parcels=K + 1) for x in (z, other))
    assert_allclose(one.each[7], two.each[7], rtol=1e-5)


def test_some_rows_are_scored_under_prototypes_of_all():
    given, rows = problem(1), np.arange(0, 120, 4, dtype=np.int32)
    found = scored(*given, rows)
    assert found.each.shape == (30,)
    assert_allclose(found.mean, plain(*given, rows).mean(), atol=NATS)


def test_the_order_of_locations_and_the_names_of_parcels_do_not_matter():
    q, candidates, z = problem(2)
    found = scored(q, candidates, z)
    order = np.random.default_rng(0).permutation(len(q))
    moved = scored(q[order], candidates[order], z[order])
    assert_allclose(moved.each, found.each[order], rtol=1e-5, atol=1e-4)
    names = np.append(np.random.default_rng(1).permutation(K), -1).astype(np.int32)
    assert_allclose(scored(q, names[candidates], z).mean, found.mean, rtol=1e-5)


def test_a_turn_of_all_embeddings_does_not_matter():
    q, candidates, z = problem(3)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype(np.float32)
    assert_allclose(scored(q, candidates, z @ turn).mean, scored(q, candidates, z).mean, rtol=1e-5)


def test_padding_changes_nothing():
    q, candidates, z = problem(4)
    found = scored(q, candidates, z)
    tall = scored(*(np.pad(x, ((0, 9), (0, 0)), constant_values=fill) for x, fill in ((q, 1), (candidates, -1), (z, 7))))
    assert_allclose(tall.each[:120], found.each, rtol=1e-5, atol=1e-4)
    assert_array_equal(tall.each[120:], 0)
    assert_allclose(tall.mean, found.mean, rtol=1e-5)
    wide = scored(*(np.pad(x, ((0, 0), (0, 4)), constant_values=fill) for x, fill in ((q, 1), (candidates, -1))), z)
    assert_allclose(wide.each, found.each, rtol=1e-5, atol=1e-4)


def test_locations_that_do_not_count_are_0_and_change_nothing_else():
    q, candidates, z = problem(5)
    lost = np.random.default_rng(0).random(len(q)) < 0.3
    candidates = np.where(lost[:, None], -1, candidates)
    found = scored(q, candidates, z)
    spoiled = scored(np.where(lost[:, None], 0.5, q).astype(np.float32), candidates, np.where(lost[:, None], -9, z).astype(np.float32))
    assert_array_equal(found.each[lost], 0)
    assert_array_equal(spoiled.each, found.each)
    without = scored(q[~lost], candidates[~lost], z[~lost])
    assert_allclose(without.mean, found.mean, rtol=1e-5)


def test_in_a_wave_and_alone_it_is_the_same():
    check_wave(score_k, [problem(seed) for seed in range(3)])


def test_overconfident_probabilities_are_found_out_by_their_temperature():
    """Labels follow q; the third power of q is as good at T = 3, and no better. Certain locations hold the prototypes."""
    rng = np.random.default_rng(0)
    candidates = np.tile(np.arange(K, dtype=np.int32), (21_000, 1))
    q = rng.dirichlet(np.ones(K), 21_000)
    q[1000:] = np.eye(K)[rng.integers(0, K, 20_000)]
    label = (q.cumsum(1) > rng.random((21_000, 1))).argmax(1)
    z = unit(np.eye(K, D)[label] + 0.2 * rng.normal(size=(21_000, D))).astype(np.float32)
    sharp, flat = (q**power / (q**power).sum(1, keepdims=True) for power in (3, 0.5))
    honest, proud, humble = (scored(x.astype(np.float32), candidates, z, np.arange(1000, dtype=np.int32)) for x in (q, sharp, flat))
    assert (honest.temperature, proud.temperature, humble.temperature) == (1, 3, 1)
    assert abs(proud.mean - honest.mean) < 0.01
    assert humble.mean < honest.mean - 0.01


def test_the_truth_scores_above_fragments_and_above_the_map_without_data(toy):
    first, second = halves(toy, toy.signals(0))
    candidates, k = first.candidates, toy.atlas.n_parcels
    rng = np.random.default_rng(0)

    def soft(labels):
        share = np.where(candidates == labels[:, None], 0.9, 0.1) * (candidates >= 0)
        return (share / share.sum(1, keepdims=True)).astype(np.float32)

    among = np.where((candidates == toy.truth[:, None]).any(1), toy.truth, candidates[:, 0])
    other = candidates[np.arange(len(candidates)), rng.integers(0, (candidates >= 0).sum(1))]
    fragments = np.where(rng.random(len(among)) < 0.2, other, among)
    free = data_free(first, np.float32([0.1, 0.2, 0.4]))
    truth, broken, *rest = (scored(q, candidates, second.z, n_parcels=k).mean for q in (soft(among), soft(fragments), *free))
    assert truth > broken
    assert truth > max(rest) + 1
