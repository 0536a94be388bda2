"""`soft_assign` by blocks of locations that share a list of parcels: the same as the definition, forward and backward."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.soft_assign import soft_assign
from pnet_jax.ops.soft_assign.blocked import make_blocks, similarities, sums

V, D, K, C, BLOCK = 96, 7, 11, 5, 16


@functools.cache
def problem(seed=0):
    """Candidates of which some are missing, in an order in which neighbours in the table share parcels."""
    rng = np.random.default_rng(seed)
    centre = np.arange(V) * K // V
    candidates = ((centre[:, None] + np.argsort(rng.random((V, C)), 1)) % K).astype(np.int32)
    candidates[rng.random((V, C)) < 0.3] = -1
    candidates[5] = -1
    z, prototypes = (rng.normal(size=(n, D)) for n in (V, K))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    bias = rng.normal(size=(V, C))
    return z.astype(np.float32), prototypes.astype(np.float32), candidates, bias.astype(np.float32)


def both(z, prototypes, candidates, bias, kappa, blocks):
    return (
        soft_assign(z, prototypes, candidates, bias, kappa, blocks=blocks),
        soft_assign(z, prototypes, candidates, bias, kappa, implementation="reference"),
    )


# Sums of V terms of size 1 at most, in another order: sqrt(V) roundings of 6e-8 each, ten times that.
TOLERANCE = 10 * np.sqrt(V) * 6e-8


@pytest.mark.parametrize("kappa", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("block", [16, 32, 96])
def test_blocks_give_what_the_definition_gives(kappa, block):
    z, prototypes, candidates, bias = problem()
    found, expected = both(z, prototypes, candidates, bias, np.float32(kappa), make_blocks(candidates, K, block))
    assert_allclose(found.q, expected.q, atol=max(kappa, 1) * TOLERANCE)
    assert_allclose(found.sums, expected.sums, atol=max(kappa, 1) * TOLERANCE * 10)
    assert_allclose(found.masses, expected.masses, atol=max(kappa, 1) * TOLERANCE * 10)
    assert_array_equal(np.asarray(found.q)[candidates < 0], 0)


def test_fewer_candidates_than_the_blocks_were_made_of_are_the_same():
    """A scan's mask takes candidates away; the tables of its Space stay."""
    z, prototypes, candidates, bias = problem()
    fewer = np.where(np.arange(V)[:, None] % 3 == 0, -1, candidates)
    found, expected = both(z, prototypes, fewer, bias, np.float32(5), make_blocks(candidates, K, BLOCK))
    assert_allclose(found.q, expected.q, atol=5 * TOLERANCE)
    assert_allclose(found.sums, expected.sums, atol=50 * TOLERANCE)


def test_products_and_sums_alone():
    z, prototypes, candidates, _ = problem()
    blocks = make_blocks(candidates, K, BLOCK)
    expected = np.where(candidates >= 0, np.einsum("vd,vcd->vc", z, prototypes[candidates]), 0)
    assert_allclose(similarities(z, prototypes, blocks), expected, atol=TOLERANCE)
    q = np.where(candidates >= 0, np.random.default_rng(1).random((V, C)), 0).astype(np.float32)
    total, mass = np.zeros((K, D)), np.zeros(K)
    for v, c in zip(*np.nonzero(candidates >= 0), strict=True):
        total[candidates[v, c]] += q[v, c] * z[v]
        mass[candidates[v, c]] += q[v, c]
    found = sums(jnp.asarray(q), jnp.asarray(z), blocks)
    assert_allclose(found[0], total, atol=10 * TOLERANCE)
    assert_allclose(found[1], mass, atol=10 * TOLERANCE)


def test_gradients_are_those_of_the_definition():
    z, prototypes, candidates, bias = problem()
    weights = np.random.default_rng(2).normal(size=(V, C)).astype(np.float32)

    def loss(z, prototypes, bias, kappa, **given):
        found = soft_assign(z, prototypes, candidates, bias, kappa, **given)
        return (found.q * weights).sum() + jnp.square(found.sums).sum()

    slope = jax.grad(loss, (0, 1, 2, 3))
    given = z, prototypes, bias, jnp.float32(4)
    found = slope(*given, blocks=make_blocks(candidates, K, BLOCK))
    for a, b in zip(found, slope(*given, implementation="reference"), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_products_cost_what_the_lists_are_long():
    """Operations grow with L, not with K: a thousand more parcels that no location is near cost next to nothing."""
    z, prototypes, candidates, bias = problem()
    many = np.concatenate([prototypes, np.ones((1000, D), np.float32)])

    def flops(prototypes, parcels):
        blocks = make_blocks(candidates, parcels, BLOCK)
        run = jax.jit(lambda z, m, bias, blocks: soft_assign(z, m, candidates, bias, np.float32(5), blocks=blocks))
        return run.lower(z, prototypes, bias, blocks).compile().cost_analysis()["flops"]

    assert flops(many, K + 1000) < flops(prototypes, K) + 200 * 1000 * D


def test_what_does_not_fit_is_refused():
    z, prototypes, candidates, bias = problem()
    with pytest.raises(ValueError, match=r"multiple of the block size 40, got 96"):
        make_blocks(candidates, K, 40)
    with pytest.raises(ValueError, match="needs blocks"):
        soft_assign(z, prototypes, candidates, bias, 1.0, implementation="blocked")
