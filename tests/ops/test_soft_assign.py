"""Properties first, then numpy, then equality of implementations, then compiled cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.soft_assign import chunked, soft_assign

IMPLEMENTATIONS = ("reference", "chunked")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 8)


def problem(size=21, parcels=6, width=3, dimensions=5, seed=0, full=False):
    """Embeddings, prototypes, candidates and bias; some rows have fewer candidates, one has none."""
    rng = np.random.default_rng(seed)
    z, prototypes = (rng.normal(size=(n, dimensions)) for n in (size, parcels))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    candidates = np.argsort(rng.random((size, parcels)), 1)[:, :width].astype(np.int32)
    if not full:
        candidates[np.arange(width)[None] >= rng.integers(1, width + 1, (size, 1))] = -1
        candidates[size // 2] = -1 if size > 1 else candidates[size // 2]
    bias = np.where(candidates < 0, -1e9, rng.normal(size=candidates.shape))
    return jnp.asarray(z, jnp.float32), jnp.asarray(prototypes, jnp.float32), jnp.asarray(candidates), jnp.asarray(bias, jnp.float32)


def by_numpy(z, prototypes, candidates, bias, kappa):
    z, prototypes, candidates, bias = (np.asarray(x, np.float64) for x in (z, prototypes, candidates, bias))
    q, there = np.zeros(candidates.shape), candidates >= 0
    kappa = np.broadcast_to(kappa, len(z))
    sums, masses = np.zeros(prototypes.shape), np.zeros(len(prototypes))
    for v in np.flatnonzero(there.any(1)):
        ks = candidates[v, there[v]].astype(int)
        logits = kappa[v] * prototypes[ks] @ z[v] + bias[v, there[v]]
        q[v, there[v]] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        sums[ks] += q[v, there[v], None] * z[v]
        masses[ks] += q[v, there[v]]
    return q, sums, masses


@pytest.mark.parametrize("kappa", [0.0, 3.0, 500.0])
def test_responsibilities_sum_to_1_where_there_is_a_candidate_and_to_0_elsewhere(implementation, small_blocks, kappa):
    z, prototypes, candidates, bias = problem()
    q = soft_assign(z, prototypes, candidates, bias, kappa, implementation=implementation).q
    assert_allclose(q.sum(1), (candidates >= 0).any(1), atol=1e-6)
    assert_array_equal(np.asarray(q)[np.asarray(candidates) < 0], 0)
    assert (q >= 0).all()


def test_bias_at_the_padding_is_never_read(implementation, small_blocks):
    z, prototypes, candidates, bias = problem()
    plain = soft_assign(z, prototypes, candidates, bias, 2.0, implementation=implementation)
    for anything in (0.0, 1e6, -np.inf, np.nan):
        other = soft_assign(z, prototypes, candidates, jnp.where(candidates < 0, anything, bias), 2.0, implementation=implementation)
        for a, b in zip(plain, other, strict=True):
            assert_array_equal(a, b)


def test_permuting_locations_permutes_q_and_leaves_the_sums(implementation, small_blocks):
    z, prototypes, candidates, bias = problem()
    order = np.random.default_rng(1).permutation(len(z))
    plain = soft_assign(z, prototypes, candidates, bias, 2.0, implementation=implementation)
    moved = soft_assign(z[order], prototypes, candidates[order], bias[order], 2.0, implementation=implementation)
    assert_allclose(moved.q, plain.q[order], atol=1e-6)
    assert_allclose(moved.sums, plain.sums, atol=1e-5)
    assert_allclose(moved.masses, plain.masses, atol=1e-5)


def test_a_constant_added_to_a_row_of_the_bias_changes_nothing(implementation):
    z, prototypes, candidates, bias = problem()
    plain = soft_assign(z, prototypes, candidates, bias, 2.0, implementation=implementation).q
    shift = jnp.linspace(-5, 5, len(z))[:, None]
    assert_allclose(soft_assign(z, prototypes, candidates, bias + shift, 2.0, implementation=implementation).q, plain, atol=1e-5)


def test_kappa_0_gives_the_prior_alone_and_a_large_kappa_the_nearest_prototype(implementation):
    z, prototypes, candidates, bias = problem(full=True)
    prior = soft_assign(z, prototypes, candidates, bias, 0.0, implementation=implementation).q
    assert_allclose(prior, jax.nn.softmax(bias, axis=1), atol=1e-6)
    sure = soft_assign(z, prototypes, candidates, 0 * bias, 1e4, implementation=implementation).q
    nearest = np.take_along_axis(np.asarray(z @ prototypes.T), np.asarray(candidates), 1).argmax(1)
    assert_array_equal(sure.argmax(1), nearest)


@pytest.mark.parametrize("kappa", [4.0, "each"])
def test_equals_numpy(implementation, small_blocks, kappa):
    given = problem()
    kappa = np.linspace(0, 9, len(given[0])).astype(np.float32) if kappa == "each" else kappa
    for found, expected in zip(soft_assign(*given, jnp.asarray(kappa), implementation=implementation), by_numpy(*given, kappa), strict=True):
        assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 5, 3, 2), (8, 2, 2, 4), (21, 6, 3, 5), (33, 40, 1, 3)], ids=lambda s: "V{}-K{}-C{}-D{}".format(*s)
)
def test_implementations_agree_in_values_and_gradients(shape, small_blocks):
    z, prototypes, candidates, bias = problem(*shape)
    kappa = jnp.linspace(1, 4, len(z))
    keys = jax.random.split(jax.random.key(0), 3)
    weights = [jax.random.normal(k, s) for k, s in zip(keys, (bias.shape, prototypes.shape, prototypes.shape[:1]), strict=True)]

    def loss(z, prototypes, bias, kappa, implementation):
        found = soft_assign(z, prototypes, candidates, bias, kappa, implementation=implementation)
        return sum((w * x).sum() for w, x in zip(weights, found, strict=True)), found

    gradient = jax.grad(loss, (0, 1, 2, 3), has_aux=True)
    (ga, fa), (gb, fb) = (gradient(z, prototypes, bias, kappa, i) for i in IMPLEMENTATIONS)
    for a, b in zip((*fa, *ga), (*fb, *gb), strict=True):
        assert jnp.isfinite(a).all()
        assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize("block", [1, 4, 21, 100])
def test_block_size_changes_nothing(monkeypatch, block):
    given = problem()
    whole = soft_assign(*given, 3.0)
    monkeypatch.setattr(chunked, "BLOCK", block)
    for a, b in zip(soft_assign(*given, 3.0), whole, strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_gradients_equal_finite_differences(implementation, small_blocks):
    with jax.enable_x64(True):
        z, prototypes, candidates, bias = (jnp.asarray(np.asarray(x, np.float64 if x.dtype == jnp.float32 else np.int32)) for x in problem(9, 4, 2, 3))
        bias, kappa = jnp.where(candidates < 0, 0.0, bias), jnp.linspace(1.0, 3.0, 9)
        face = lambda z, p, b, k: tuple(soft_assign(z, p, candidates, b, k, implementation=implementation))  # noqa: E731
        check_grads(face, (z, prototypes, bias, kappa), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_never_holds_every_parcel_of_every_location():
    parcels, width, dimensions = 400, 4, 8

    def temporary(locations):
        shapes = [((locations, dimensions), "f4"), ((parcels, dimensions), "f4"), ((locations, width), "i4"), ((locations, width), "f4")]
        z, prototypes, candidates, bias = (jax.ShapeDtypeStruct(s, d) for s, d in shapes)

        def loss(z, prototypes, bias, candidates):
            found = soft_assign(z, prototypes, candidates, bias, 5.0)
            return jnp.square(found.q).sum() + jnp.square(found.sums).sum() + found.masses.max()

        steps = (loss, jax.grad(loss, (0, 1, 2)))
        return [jax.jit(f).lower(z, prototypes, bias, candidates).compile().memory_analysis().temp_size_in_bytes for f in steps]

    for few, many in zip(temporary(2 * chunked.BLOCK), temporary(8 * chunked.BLOCK), strict=True):
        assert many - few < 0.25 * 6 * chunked.BLOCK * parcels * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prototypes": jnp.zeros((3, 4))}, r"prototypes \[K, D\] with one D, got \(5, 2\) and \(3, 4\)"),
        ({"z": jnp.zeros(5)}, r"z must be \[V, D\]"),
        ({"bias": jnp.zeros((5, 3))}, r"one shape \(5, C\), got \(5, 2\) and \(5, 3\)"),
        ({"candidates": jnp.zeros((4, 2), int), "bias": jnp.zeros((4, 2))}, r"one shape \(5, C\), got \(4, 2\)"),
        ({"kappa": jnp.ones(2)}, r"kappa must be a number or have shape \(5,\), got \(2,\)"),
        ({"implementation": "dense"}, r"one of \['chunked', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    given = {"z": jnp.zeros((5, 2)), "prototypes": jnp.zeros((3, 2)), "candidates": jnp.zeros((5, 2), int), "bias": jnp.zeros((5, 2)), "kappa": 1.0}
    with pytest.raises(ValueError, match=message):
        soft_assign(**(given | arguments))
