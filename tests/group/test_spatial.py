"""The group spatial model: properties of its sums, equality with plain numpy, and what it finds in planted cohorts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.group import spatial
from pnet_jax.group.spatial import expectation, fit_participant, fit_spatial, maximisation, start_model
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.mixture import Mixture
from pnet_jax.space import grid_neighbours

K, D, S = 4, 12, 6
NEIGHBOURS = grid_neighbours(np.argwhere(np.ones((12, 12, 1), bool)))
V = len(NEIGHBOURS)


def unit(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(length > 0, x / np.where(length > 0, length, 1), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """Participants whose borders vary around the group's.

    Attributes:
      z, valid: embeddings with their own axes rotated where `shared` is False.
      group: most frequent parcel of each location.
      truth: each participant's own, `[S, V]`.
      prior: probability of each parcel over many such participants, `[V, K]`.
    """

    z: np.ndarray
    valid: np.ndarray
    group: np.ndarray
    truth: np.ndarray
    prior: np.ndarray


@functools.cache
def planted(shared=True, participants=S, noise=0.25, seed=0):
    rng = np.random.default_rng(seed)
    i, j = np.divmod(np.arange(V), 12)
    across, down = (rng.integers(4, 9, 4000) for _ in range(2))
    labels = 2 * (i >= across[:, None]) + (j >= down[:, None])
    prior = np.stack([(labels == k).mean(0) for k in range(K)], 1)
    truth, directions = labels[:participants], np.linalg.qr(rng.normal(size=(D, K)))[0].T
    z = directions[truth] + noise * rng.normal(size=(participants, V, D))
    if not shared:
        z = np.stack([x @ np.linalg.qr(rng.normal(size=(D, D)))[0] for x in z])
    valid = rng.random((participants, V)) > 0.05
    return Cohort(np.where(valid[..., None], unit(z), 0).astype(np.float32), valid, prior.argmax(1), truth, prior)


def sparse_candidates(labels):
    """The label of a location and two more in an order of their own; −1 at a few."""
    rng = np.random.default_rng(3)
    rank = np.argsort(rng.random((V, K)) - 2 * (np.arange(K) == labels[:, None]), 1)[:, :3].astype(np.int32)
    rank[rng.random(V) < 0.1, 2] = -1
    return rank


def models(shared=True):
    """A start with every parcel everywhere, and one with some candidates."""
    labels, dimensions = planted().group, D if shared else None
    return (
        start_model(labels, K, dimensions=dimensions),
        start_model(labels, K, dimensions=dimensions, candidates=sparse_candidates(labels)),
    )


def table_of(model, neighbours=NEIGHBOURS):
    return match_table(model.candidates, jnp.asarray(neighbours), n_parcels=K)


def advanced(model, cohort, rounds=2, neighbours=NEIGHBOURS):
    return fit_spatial(model, [(cohort.z, cohort.valid)], table_of(model, neighbours), rounds=rounds, tolerance=-np.inf).model


CASES = pytest.mark.parametrize(("shared", "width"), [(True, 0), (True, 1), (False, 0), (False, 1)], ids=["a", "a-sparse", "b", "b-sparse"])


@CASES
def test_every_valid_location_is_counted_once(shared, width):
    cohort, model = planted(shared), models(shared)[width]
    sums = expectation(advanced(model, cohort), cohort.z, cohort.valid)
    assert_allclose(sums.counts.sum(1), cohort.valid.sum(0), rtol=1e-5)
    assert_array_equal(np.asarray(sums.counts)[np.asarray(model.candidates) < 0], 0)
    assert float(sums.locations) == cohort.valid.sum()


@CASES
def test_the_prior_sums_to_1(shared, width):
    found = advanced(models(shared)[width], planted(shared))
    there = np.asarray(found.candidates) >= 0
    assert_allclose(np.where(there, np.exp(found.log_prior), 0).sum(1), 1, atol=1e-5)
    if shared:
        assert_allclose(np.linalg.norm(found.prototypes, axis=1), 1, atol=1e-5)
    else:
        assert found.prototypes is None


@CASES
def test_sums_of_batches_add_up_to_those_of_the_cohort(shared, width):
    cohort, model = planted(shared), models(shared)[width]
    model = advanced(model, cohort)
    parts = [expectation(model, cohort.z[part], cohort.valid[part]) for part in (slice(0, 1), slice(1, 4), slice(4, S))]
    whole = expectation(model, cohort.z, cohort.valid)
    jax.tree.map(lambda total, *part: assert_allclose(sum(part), total, rtol=1e-4, atol=1e-4), whole, *parts)


@CASES
def test_devices_need_exchange_nothing_but_sums(shared, width):
    cohort, model = planted(shared), models(shared)[width]
    model = advanced(model, cohort)
    mesh = jax.make_mesh((2,), ("subject",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))

    def one_device(model, z, valid):
        return jax.tree.map(lambda x: jax.lax.psum(x, "subject"), expectation(model, z, valid))

    layout = (P(), P("subject"), P("subject"))
    split = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=layout, out_specs=P(), check_vma=False))
    expected = expectation(model, cohort.z, cohort.valid)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), split(model, cohort.z, cohort.valid), expected)


@CASES
def test_the_order_of_participants_changes_nothing(shared, width):
    cohort, model = planted(shared), models(shared)[width]
    model = advanced(model, cohort)
    turned = expectation(model, cohort.z[::-1], cohort.valid[::-1])
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), turned, expectation(model, cohort.z, cohort.valid))


@CASES
@pytest.mark.parametrize("junk", [5.0, np.nan])
def test_what_invalid_locations_hold_changes_nothing(shared, width, junk):
    cohort, model = planted(shared), models(shared)[width]
    model = advanced(model, cohort)
    other = np.where(cohort.valid[..., None], cohort.z, np.float32(junk))
    jax.tree.map(assert_array_equal, expectation(model, other, cohort.valid), expectation(model, cohort.z, cohort.valid))
    found, expected = (fit_participant(model, z[0], cohort.valid[0], kappa=10.0, k0=5.0) for z in (other, cohort.z))
    jax.tree.map(assert_array_equal, found, expected)
    assert_array_equal(np.asarray(found.q)[~cohort.valid[0]], 0)


def test_axes_of_their_own_may_be_turned_in_each_participant():
    cohort, model = planted(False), models(False)[0]
    model = advanced(model, cohort)
    turns = np.linalg.qr(np.random.default_rng(1).normal(size=(S, D, D)))[0].astype(np.float32)
    turned = expectation(model, cohort.z @ turns, cohort.valid)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-3, atol=1e-3), turned, expectation(model, cohort.z, cohort.valid))


def plain_round(prior, mu, z, valid, kappa):
    """One round with every parcel everywhere, by numpy in float64."""
    logits = kappa * z @ mu.T + np.log(prior)
    u = np.exp(logits - logits.max(-1, keepdims=True))
    density = np.log(u.sum(-1)) + logits.max(-1)
    u = u / u.sum(-1, keepdims=True) * valid[..., None]
    counts = u.sum(0) + spatial.PSEUDO_COUNT / K
    near = np.where((NEIGHBOURS >= 0)[..., None], counts[NEIGHBOURS], 0).sum(1) + spatial.OWN_WEIGHT * counts
    return near / near.sum(1, keepdims=True), unit(np.einsum("svk,svd->kd", u, z)), (density * valid).sum() / valid.sum()


def test_it_is_what_plain_numpy_finds():
    cohort, model = planted(), models()[0]
    prior, mu = np.exp(np.asarray(model.log_prior, np.float64)), np.zeros((K, D))
    densities = []
    for _ in range(4):
        prior, mu, density = plain_round(prior, mu, cohort.z.astype(np.float64), cohort.valid, spatial.KAPPA)
        densities.append(density)
    found = fit_spatial(model, [(cohort.z, cohort.valid)], table_of(model), rounds=4, tolerance=-np.inf)
    assert_allclose(np.exp(found.model.log_prior), prior, atol=1e-4)
    assert_allclose(found.model.prototypes, mu, atol=1e-4)
    assert_allclose(np.diff(found.log_density), np.diff(densities), atol=1e-3)


def test_every_candidate_in_another_order_is_the_same_model():
    cohort, dense = planted(), models()[0]
    order = np.argsort(np.random.default_rng(0).random((V, K)), 1).astype(np.int32)
    mixed = start_model(cohort.group, K, dimensions=D, candidates=order)
    found = advanced(mixed, cohort)
    back = np.take_along_axis(np.asarray(found.log_prior), np.argsort(order, 1), 1)
    assert_allclose(back, advanced(dense, cohort).log_prior, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_where_the_cohort_has_its_parcels_is_recovered(shared):
    cohort = planted(shared, participants=40)
    i, j = np.divmod(np.arange(V), 12)
    wrong = 2 * (i >= 4) + (j >= 9)  # an atlas whose borders lie two locations off
    model = start_model(wrong, K, dimensions=D if shared else None)
    found = fit_spatial(model, [(cohort.z[:15], cohort.valid[:15]), (cohort.z[15:], cohort.valid[15:])], table_of(model))
    prior = np.exp(found.model.log_prior)
    assert (wrong == cohort.group).mean() < 0.75
    assert np.abs(prior - cohort.prior).mean() < 0.05
    assert (prior.argmax(1) == cohort.group).mean() > 0.85
    assert found.converged


@pytest.mark.parametrize("shared", [True, False])
def test_a_new_participant_is_found_better_than_by_the_group(shared):
    cohort = planted(shared, participants=20)
    start = start_model(cohort.group, K, dimensions=D if shared else None)
    model = fit_spatial(start, [(cohort.z[1:], cohort.valid[1:])], table_of(start)).model
    inside = cohort.valid[0]
    own = np.asarray(fit_participant(model, cohort.z[0], inside, kappa=10.0, k0=20.0).q).argmax(1)
    assert (own == cohort.truth[0])[inside].mean() > 0.97
    assert (own == cohort.truth[0])[inside].mean() > (np.asarray(model.log_prior).argmax(1) == cohort.truth[0])[inside].mean() + 0.1


def test_without_smoothing_the_penalised_density_never_falls():
    """Then a round is exact expectation–maximisation with Dirichlet pseudo-counts."""
    cohort, model = planted(noise=0.5), models()[0]
    nobody = table_of(model, np.full((V, 0), -1, np.int32))
    objective = []
    for _ in range(12):
        sums = expectation(model, cohort.z, cohort.valid)
        objective.append(float(sums.log_density + spatial.PSEUDO_COUNT / K * model.log_prior.sum()))
        model = maximisation(model, sums, nobody)
    assert (np.diff(objective) > -1e-3 * cohort.valid.sum() * 1e-3).all()
    assert objective[-1] > objective[1] + 1


@CASES
def test_the_density_rises_over_the_rounds(shared, width):
    cohort, model = planted(shared, noise=0.5), models(shared)[width]
    densities = fit_spatial(model, [(cohort.z, cohort.valid)], table_of(model), rounds=8, tolerance=-np.inf).log_density
    assert (np.diff(densities) > -1e-4).all()


def test_a_larger_weight_holds_prototypes_to_the_group():
    cohort, start = planted(), models()[0]
    model = advanced(start, cohort)
    own, tied, free = (fit_participant(model, cohort.z[0], cohort.valid[0], kappa=10.0, k0=k0).prototypes for k0 in (100.0, 1e7, 0.0))
    assert_allclose(tied, model.prototypes, atol=1e-4)
    assert (own * model.prototypes).sum(1).mean() > (free * model.prototypes).sum(1).mean()


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_finite(shared):
    cohort, model = planted(shared), models(shared)[1]
    model = advanced(model, cohort)
    table = table_of(model)

    def loss(z, log_prior):
        moved = dataclasses.replace(model, log_prior=log_prior)
        sums = expectation(moved, z, cohort.valid)
        found = maximisation(moved, sums, table)
        own: Mixture = fit_participant(found, z[0], cohort.valid[0], kappa=10.0, k0=5.0)
        return sums.log_density / sums.locations + jnp.square(own.q).mean()

    for slope in jax.grad(loss, (0, 1))(jnp.asarray(cohort.z), model.log_prior):
        assert np.isfinite(slope).all()
        assert (slope != 0).any()


def test_the_density_has_the_slope_of_finite_differences():
    cohort, model = planted(), models()[0]
    model = advanced(model, cohort)

    def density(kappa):
        sums = expectation(dataclasses.replace(model, kappa=kappa), cohort.z, cohort.valid)
        return sums.log_density / sums.locations

    step = 0.5
    numeric = (density(jnp.float32(20 + step)) - density(jnp.float32(20 - step))) / (2 * step)
    assert_allclose(jax.grad(density)(jnp.float32(20)), numeric, atol=1e-3)


def test_an_iterator_that_ends_is_refused_and_so_are_numbers_that_are_none():
    cohort, model = planted(), models()[0]
    with pytest.raises(ValueError, match="the cohort yielded no batch in round 2"):
        fit_spatial(model, iter([(cohort.z, cohort.valid)]), table_of(model))
    with pytest.raises(FloatingPointError, match="embeddings must be finite"):
        fit_spatial(model, [(np.full_like(cohort.z, np.nan), cohort.valid)], table_of(model))
