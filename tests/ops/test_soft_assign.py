"""Properties first, then numpy, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.soft_assign import chunked, soft_assign

IMPLEMENTATIONS = ("reference", "chunked")
BLOCK = chunked.BLOCK


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """21 locations are two full blocks and a part of one."""
    monkeypatch.setattr(chunked, "BLOCK", 8)


@functools.cache
def compiled(implementation):
    return jax.jit(functools.partial(soft_assign, implementation=implementation))


def run(z, prototypes, candidates, bias, kappa, implementation):
    each = np.broadcast_to(np.float32(kappa), len(z))
    return jax.tree.map(np.asarray, compiled(implementation)(z, prototypes, candidates, bias, each))


def problem(size=21, parcels=6, width=3, dimensions=5, seed=0, full=False):
    """Embeddings, prototypes, candidates and bias; some rows have fewer candidates, one has none."""
    rng = np.random.default_rng(seed)
    z, prototypes = (rng.normal(size=(n, dimensions)) for n in (size, parcels))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    candidates = np.argsort(rng.random((size, parcels)), 1)[:, :width].astype(np.int32)
    if not full:
        candidates[np.arange(width)[None] >= rng.integers(1, width + 1, (size, 1))] = -1
        candidates[size // 2 : size // 2 + (size > 1)] = -1
    bias = np.where(candidates < 0, -1e9, rng.normal(size=candidates.shape))
    return z.astype(np.float32), prototypes.astype(np.float32), candidates, bias.astype(np.float32)


def by_numpy(z, prototypes, candidates, bias, kappa):
    z, prototypes, bias = (np.asarray(x, np.float64) for x in (z, prototypes, bias))
    q, there = np.zeros(candidates.shape), candidates >= 0
    kappa = np.broadcast_to(kappa, len(z))
    sums, masses = np.zeros(prototypes.shape), np.zeros(len(prototypes))
    for v in np.flatnonzero(there.any(1)):
        ks = candidates[v, there[v]]
        logits = kappa[v] * prototypes[ks] @ z[v] + bias[v, there[v]]
        q[v, there[v]] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        sums[ks] += q[v, there[v], None] * z[v]
        masses[ks] += q[v, there[v]]
    return q, sums, masses


@pytest.mark.parametrize("kappa", [0.0, 3.0, 500.0])
def test_responsibilities_sum_to_1_where_there_is_a_candidate_and_to_0_elsewhere(implementation, kappa):
    z, prototypes, candidates, bias = problem()
    q = run(z, prototypes, candidates, bias, kappa, implementation).q
    assert_allclose(q.sum(1), (candidates >= 0).any(1), rtol=0, atol=rounding(3))
    assert_array_equal(q[candidates < 0], 0)
    assert (q >= 0).all()


@pytest.mark.parametrize("anything", [0.0, 1e6, -np.inf, np.nan])
def test_bias_at_the_padding_is_never_read(implementation, anything):
    z, prototypes, candidates, bias = problem()
    plain = run(z, prototypes, candidates, bias, 2.0, implementation)
    other = run(z, prototypes, candidates, np.where(candidates < 0, np.float32(anything), bias), 2.0, implementation)
    for a, b in zip(plain, other, strict=True):
        assert_array_equal(a, b)


def test_permuting_locations_permutes_q_and_leaves_the_sums(implementation):
    z, prototypes, candidates, bias = problem()
    order = np.random.default_rng(1).permutation(len(z))
    plain = run(z, prototypes, candidates, bias, 2.0, implementation)
    moved = run(z[order], prototypes, candidates[order], bias[order], 2.0, implementation)
    for found, expected, terms in zip(moved, (plain.q[order], plain.sums, plain.masses), (5, 21, 21), strict=True):
        assert_allclose(found, expected, rtol=0, atol=rounding(terms, scale=max(1, plain.masses.max())))


def test_a_constant_added_to_a_row_of_the_bias_changes_nothing(implementation):
    z, prototypes, candidates, bias = problem()
    shift = np.linspace(-5, 5, len(z), dtype=np.float32)[:, None]
    plain = run(z, prototypes, candidates, bias, 2.0, implementation).q
    assert_allclose(run(z, prototypes, candidates, bias + shift, 2.0, implementation).q, plain, atol=1e-5)


def test_kappa_0_gives_the_prior_alone_and_a_large_kappa_the_nearest_prototype(implementation):
    z, prototypes, candidates, bias = problem(full=True)
    prior = np.exp(bias) / np.exp(bias).sum(1, keepdims=True)
    assert_allclose(run(z, prototypes, candidates, bias, 0.0, implementation).q, prior, rtol=0, atol=rounding(3))
    sure = run(z, prototypes, candidates, 0 * bias, 1e4, implementation).q
    assert_array_equal(sure.argmax(1), np.take_along_axis(z @ prototypes.T, candidates, 1).argmax(1))


@pytest.mark.parametrize("kappa", [4.0, np.linspace(0, 9, 21)], ids=["one", "each"])
def test_equals_numpy(implementation, kappa):
    given = problem()
    for found, expected in zip(run(*given, kappa, implementation), by_numpy(*given, kappa), strict=True):
        assert_allclose(found, expected, atol=1e-5)


def test_one_kappa_for_all_equals_the_same_for_each():
    given = problem()
    assert_allclose(jax.jit(soft_assign)(*given, 3.0).q, run(*given, 3.0, "chunked").q, rtol=0, atol=rounding(5))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (16, 6, 3, 5), (33, 40, 1, 3)], ids=lambda s: "V{}-K{}-C{}-D{}".format(*s))
def test_implementations_agree_in_values_and_gradients(shape):
    z, prototypes, candidates, bias = problem(*shape)
    kappa = np.linspace(1, 4, len(z), dtype=np.float32)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=s).astype(np.float32) for s in (bias.shape, prototypes.shape, prototypes.shape[:1])]

    @functools.partial(jax.jit, static_argnums=4)
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
    def step(z, prototypes, bias, kappa, implementation):
        found = soft_assign(z, prototypes, candidates, bias, kappa, implementation=implementation)
        return sum((w * x).sum() for w, x in zip(weights, found, strict=True)), found

    (_, fa), ga = step(z, prototypes, bias, kappa, "reference")
    (_, fb), gb = step(z, prototypes, bias, kappa, "chunked")
    for a, b in zip((*fa, *ga), (*fb, *gb), strict=True):
        assert np.isfinite(a).all()
        assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize("block", [1, 100])
def test_block_size_changes_nothing(monkeypatch, block):
    given = problem()
    monkeypatch.setattr(chunked, "BLOCK", block)
    for a, b in zip(jax.jit(lambda *given: soft_assign(*given, 3.0))(*given), run(*given, 3.0, "reference"), strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        z, prototypes, candidates, bias = problem(9, 4, 2, 3)
        given = [np.float64(x) for x in (z, prototypes, np.where(candidates < 0, 0, bias), np.linspace(1, 3, 9))]
        face = jax.jit(lambda z, p, b, k: tuple(soft_assign(z, p, candidates, b, k)))
        check_grads(face, given, order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_never_holds_every_parcel_of_every_location(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", BLOCK)
    parcels, width, dimensions = 400, 4, 8

    def temporary(locations):
        shapes = [((locations, dimensions), "f4"), ((parcels, dimensions), "f4"), ((locations, width), "f4"), ((locations, width), "i4")]

        def loss(z, prototypes, bias, candidates):
            found = soft_assign(z, prototypes, candidates, bias, 5.0)
            return jnp.square(found.q).sum() + jnp.square(found.sums).sum() + found.masses.max()

        step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        return step.lower(*(jax.ShapeDtypeStruct(s, d) for s, d in shapes)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8 * BLOCK) - temporary(2 * BLOCK) < 0.25 * 6 * BLOCK * parcels * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prototypes": np.zeros((3, 4))}, r"prototypes \[K, D\] with the same D, got \(5, 2\) and \(3, 4\)"),
        ({"z": np.zeros(5)}, r"z must be \[V, D\]"),
        ({"bias": np.zeros((5, 3))}, r"the same shape \(5, C\), got \(5, 2\) and \(5, 3\)"),
        ({"candidates": np.zeros((4, 2), int), "bias": np.zeros((4, 2))}, r"the same shape \(5, C\), got \(4, 2\)"),
        ({"kappa": np.ones(2, np.float32)}, r"kappa must be a number or have shape \(5,\), got \(2,\)"),
        ({"implementation": "dense"}, r"one of \['chunked', 'pallas', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    given = {name: np.zeros(shape, np.float32) for name, shape in {"z": (5, 2), "prototypes": (3, 2), "bias": (5, 2)}.items()}
    with pytest.raises(ValueError, match=message):
        soft_assign(**(given | {"candidates": np.zeros((5, 2), int), "kappa": 1.0} | arguments))
