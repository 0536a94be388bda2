"""Properties first, then plain loops, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.potts import potts
from pnet_jax.ops.potts.chunked import match_table, sum_neighbours
from pnet_jax.space import grid_neighbours

IMPLEMENTATIONS = ("reference", "chunked")


VOTES = rounding(26, scale=26)  # of 26 neighbours with a share of at most 1 each


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def run(q, candidates, neighbours, parcels, implementation):
    return np.asarray(jax.jit(lambda q: potts(q, candidates, neighbours, n_parcels=parcels, implementation=implementation))(q))


def problem(size=(4, 5, 3), parcels=6, width=3, seed=0):
    """Probabilities, candidates and neighbours of a grid with holes; some rows have fewer candidates, some none."""
    rng = np.random.default_rng(seed)
    inside = rng.random(size) < 0.9
    inside[0, 0, 0] = True
    neighbours = grid_neighbours(np.argwhere(inside))
    count = len(neighbours)
    candidates = np.argsort(rng.random((count, parcels)), 1)[:, :width].astype(np.int32)
    candidates[np.arange(width)[None] >= rng.integers(0, width + 1, (count, 1))] = -1
    q = np.where(candidates >= 0, rng.random((count, width)), 0)
    q = q / np.maximum(q.sum(1, keepdims=True), 1e-9)
    return q.astype(np.float32), candidates, neighbours, parcels


def by_loops(q, candidates, neighbours):
    out = np.zeros(q.shape)
    for v, row in enumerate(candidates):
        for c, parcel in enumerate(row):
            for u in neighbours[v]:
                if parcel >= 0 and u >= 0:
                    out[v, c] += sum(float(q[u, d]) for d in range(q.shape[1]) if candidates[u, d] == parcel)
    return out


@pytest.mark.parametrize("seed", range(2))
def test_equals_plain_loops(implementation, seed):
    q, candidates, neighbours, parcels = problem(seed=seed)
    expected = by_loops(q, candidates, neighbours)
    assert expected.any()
    assert_allclose(run(q, candidates, neighbours, parcels, implementation), expected, rtol=0, atol=VOTES)


def test_padded_candidates_get_0_and_give_nothing(implementation):
    q, candidates, neighbours, parcels = problem()
    plain = run(q, candidates, neighbours, parcels, implementation)
    assert_array_equal(plain[candidates < 0], 0)
    spoiled = np.where(candidates < 0, np.float32(1e3), q)
    assert_array_equal(run(spoiled, candidates, neighbours, parcels, implementation), plain)


def test_votes_never_exceed_the_number_of_neighbours(implementation):
    q, candidates, neighbours, parcels = problem()
    votes = run(q, candidates, neighbours, parcels, implementation)
    assert (votes >= 0).all()
    assert (votes.sum(1) <= (neighbours >= 0).sum(1) + 1e-5).all()


def test_permuting_locations_permutes_the_result(implementation):
    q, candidates, neighbours, parcels = problem()
    order = np.random.default_rng(1).permutation(len(q))
    back = np.append(np.argsort(order), -1).astype(np.int32)  # the last entry answers for the padding
    moved = run(q[order], candidates[order], back[neighbours[order]], parcels, implementation)
    assert_allclose(moved, run(q, candidates, neighbours, parcels, implementation)[order], rtol=0, atol=VOTES)


def test_order_of_candidates_in_a_row_does_not_matter(implementation):
    q, candidates, neighbours, parcels = problem()
    turned = run(q[:, ::-1], candidates[:, ::-1], neighbours, parcels, implementation)
    assert_allclose(turned[:, ::-1], run(q, candidates, neighbours, parcels, implementation), rtol=0, atol=VOTES)


@pytest.mark.parametrize("columns", [0, 2])
def test_locations_without_neighbours_get_no_votes(implementation, columns):
    q, candidates, _, parcels = problem()
    alone = np.full((len(q), columns), -1, np.int32)

    def loss(q):
        votes = potts(q, candidates, alone, n_parcels=parcels, implementation=implementation)
        return jnp.square(votes).sum(), votes

    gradient, votes = jax.jit(jax.grad(loss, has_aux=True))(q)
    assert_array_equal(votes, np.zeros_like(q))
    assert_array_equal(gradient, np.zeros_like(q))


@pytest.mark.parametrize("shape", [((1, 1, 1), 1, 1), ((3, 1, 1), 2, 1), ((4, 5, 3), 6, 3), ((2, 3, 7), 20, 9)])
def test_implementations_agree_in_values_and_gradients(shape):
    q, candidates, neighbours, parcels = problem(*shape)
    weights = np.where(candidates < 0, 0, np.random.default_rng(1).normal(size=q.shape)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(q, implementation):
        votes = potts(q, candidates, neighbours, n_parcels=parcels, implementation=implementation)
        return (weights * votes * votes).sum(), votes

    (_, va), ga = step(q, "reference")
    (_, vb), gb = step(q, "chunked")
    assert_allclose(vb, va, rtol=0, atol=VOTES)
    assert_allclose(gb, ga, atol=1e-5)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        q, candidates, neighbours, parcels = problem((3, 2, 2), 4, 2)
        there = candidates >= 0

        def face(q):
            votes = potts(jnp.where(there, q, 0.0), candidates, neighbours, n_parcels=parcels)
            return votes * votes

        check_grads(jax.jit(face), (q.astype(np.float64),), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_never_holds_every_parcel_of_every_location():
    locations, width, degree, parcels = 20_000, 4, 6, 400
    arrays = [jax.ShapeDtypeStruct((locations, width), jnp.float32), jax.ShapeDtypeStruct((degree, locations, width), jnp.int32)]
    step = jax.value_and_grad(lambda q, table: jnp.square(sum_neighbours(q, table)).sum())
    assert jax.jit(step).lower(*arrays).compile().memory_analysis().temp_size_in_bytes < 0.1 * locations * parcels * 4


def test_the_table_says_where_a_neighbour_holds_the_same_parcel():
    candidates = np.array([[0, 1], [1, 2], [2, -1]], np.int32)
    neighbours = np.array([[1, -1], [0, 2], [1, -1]], np.int32)
    none = 6  # one past the end of the flattened [V, C]
    found = match_table(candidates, neighbours, n_parcels=int(candidates.max()) + 1)
    assert found.tolist() == [
        [[none, 2], [1, none], [3, none]],
        [[none, none], [none, 4], [none, none]],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": np.zeros((2, 3), np.int32)}, r"the same shape \[V, C\], got \(2, 2\) and \(2, 3\)"),
        ({"q": np.zeros(2), "candidates": np.zeros(2, np.int32)}, r"the same shape \[V, C\]"),
        ({"neighbours": np.zeros((3, 1), np.int32)}, r"neighbours must have shape \(2, N\), got \(3, 1\)"),
        ({"implementation": "quick"}, r"one of \['chunked', 'reference'\], got 'quick'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    given = {"q": np.zeros((2, 2)), "candidates": np.zeros((2, 2), np.int32), "neighbours": np.zeros((2, 1), np.int32)}
    with pytest.raises(ValueError, match=message):
        potts(**(given | arguments), n_parcels=2)
