"""The ops for many subjects and on many devices: vmapped is looped, and eight devices give what one gives."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.bench.inputs import Inputs, candidates, neighbours
from pnet_jax.config import ParallelConfig
from pnet_jax.encoder.linear import LinearEncoder, embed
from pnet_jax.ops.correlation import correlation
from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.ops.potts.chunked import match_table, sum_neighbours
from pnet_jax.ops.shapes import SHAPES
from pnet_jax.ops.soft_assign import soft_assign
from pnet_jax.parcellation.mixture import Problem, group_prototypes, mixture

SHAPE = SHAPES["tiny"]
SUBJECTS = 3
WHERE, BESIDE = candidates(SHAPE), neighbours(SHAPE)


def _fingerprint(y, references, kept):
    return fingerprint(y, references, kept=kept)


def _soft_assign(z, prototypes, candidates, bias):
    return soft_assign(z, prototypes, candidates, bias, 10.0)


def _correlation(signals, kept):
    return correlation(signals[None], kept[None])[0]


def arguments(op: str, dtype: str):
    """Of several subjects, with masks that differ: frames of one, rows of candidates of another."""
    make = Inputs(dtype)
    kept = np.ones((SUBJECTS, SHAPE.T), bool)
    kept[1, 5:20] = False
    where = np.stack([WHERE] * SUBJECTS)
    where[2, -100:] = -1
    if op == "fingerprint":
        return _fingerprint, (make.signals(SUBJECTS, SHAPE.V, SHAPE.T), make.signals(SUBJECTS, SHAPE.R, SHAPE.T), kept)
    if op == "soft_assign":
        return _soft_assign, (
            make.unit(SUBJECTS, SHAPE.V, SHAPE.D),
            make.unit(SUBJECTS, SHAPE.K, SHAPE.D),
            where,
            make.normal(*where.shape),
        )
    if op == "potts":
        tables = np.stack([match_table(one, BESIDE, n_parcels=SHAPE.K) for one in where])
        return sum_neighbours, (make.shares(np.maximum(where, 0)) * (where >= 0), tables)
    return _correlation, (make.signals(SUBJECTS, SHAPE.K, SHAPE.T), kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["fingerprint", "soft_assign", "potts", "correlation"])
def test_many_subjects_at_once_are_each_alone(op, dtype):
    run, given = arguments(op, dtype)
    together, one = jax.jit(jax.vmap(run))(*given), jax.jit(run)
    for index in range(SUBJECTS):
        single = one(*(x[index] for x in given))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(single), strict=True):
            assert a.dtype == b.dtype
            a_one, b = np.asarray(a[index], np.float32), np.asarray(b, np.float32)
            # One step of the results' own type, and sums over locations in another order.
            atol = rounding(SHAPE.V + SHAPE.D, scale=max(1, np.abs(b).max()), condition=10 / 4)
            assert_allclose(a_one, b, rtol=2 * float(jnp.finfo(a.dtype).eps), atol=atol)


def test_correlation_of_bfloat16_is_summed_in_float32():
    run, given = arguments("correlation", "bfloat16")
    found = jax.jit(jax.vmap(run))(*given)
    assert found.dtype == jnp.float32
    for signals, kept, r in zip(given[0].astype(np.float64), given[1], found, strict=True):
        assert_allclose(r, np.corrcoef(signals[:, kept]), atol=1e-5)


@functools.cache
def location_mesh():
    return parallel.make_mesh(ParallelConfig(location=8))


def over_locations(local, inputs, outputs):
    return jax.jit(jax.shard_map(local, mesh=location_mesh(), in_specs=inputs, out_specs=outputs, check_vma=False))


def collectives(step, *given):
    return hlo.read(step.lower(*given).compile()).collectives


def test_fingerprint_over_locations_needs_no_exchange():
    make, each = Inputs(), P("location")
    given = make.signals(SHAPE.V, SHAPE.T), make.signals(SHAPE.R, SHAPE.T)
    step = over_locations(fingerprint, (each, P()), each)
    assert collectives(step, *given) == {}
    expected = fingerprint(*given)
    slope = np.square(np.cosh(np.abs(expected).max()))  # of Fisher's transform
    assert_allclose(step(*given), expected, rtol=0, atol=rounding(SHAPE.T, condition=slope))


def test_soft_assign_over_locations_needs_one_sum():
    make, each = Inputs(), P("location")
    given = make.unit(SHAPE.V, SHAPE.D), make.unit(SHAPE.K, SHAPE.D), WHERE, make.normal(*WHERE.shape)

    def local(*given):
        q, sums, masses = _soft_assign(*given)
        return q, *jax.lax.psum((sums, masses), "location")

    step = over_locations(local, (each, P(), each, each), (each, P(), P()))
    assert collectives(step, *given) == {"all-reduce": 1}
    for a, b in zip(step(*given), _soft_assign(*given), strict=True):
        scale = max(1, np.abs(b).max())
        assert_allclose(a, b, rtol=0, atol=rounding(SHAPE.V + SHAPE.D, scale=scale, condition=10 / 4))


def test_correlation_over_subjects_needs_no_exchange():
    make, mesh = Inputs(), parallel.make_mesh()
    signals = make.signals(16, SHAPE.K, SHAPE.T)
    step = parallel.over_subjects(lambda x: correlation(x[None])[0], mesh)
    assert collectives(step, signals) == {}
    assert_allclose(step(signals), correlation(signals), rtol=0, atol=rounding(SHAPE.T))


@functools.cache
def wave(count: int = 8):
    """Signals, masks and regions of subjects, and what they share: an encoder and an atlas."""
    make = Inputs()
    encoder = LinearEncoder(
        *(make.normal(*size) for size in ((SHAPE.R, 3), (SHAPE.R,), (SHAPE.R, SHAPE.D), (SHAPE.D,), (SHAPE.D, SHAPE.R)))
    )
    region = np.random.default_rng(0).integers(0, SHAPE.R, (count, SHAPE.V)).astype(np.int32)
    kept = np.arange(SHAPE.T)[None] < np.array([SHAPE.T, SHAPE.T - 8])[np.arange(count) % 2, None]
    counted = np.ones((count, SHAPE.V), bool)
    counted[1::2, -50:] = False
    table = match_table(WHERE, BESIDE, n_parcels=SHAPE.K)
    log_prior = np.where(WHERE < 0, 0, np.log(make.shares(np.maximum(WHERE, 0)) + np.float32(1e-3)))
    return (encoder, WHERE, log_prior, table), (make.signals(count, SHAPE.V, SHAPE.T), region, kept, counted)


def construction_step(shared, y, region, kept, counted):
    """Embedding and mixture of one subject."""
    encoder, where, log_prior, table = shared
    z = embed(encoder, y, region, kept, counted)
    where = jnp.where(counted[:, None], where, -1)
    prototypes = group_prototypes(z, where[:, 0], SHAPE.K)
    return mixture(Problem(z, where, log_prior, table, prototypes), jnp.float32(10), jnp.float32(0.3), steps=6)


def test_the_construction_step_under_pmap_is_the_one_under_jit_with_shardings():
    shared, own = wave()
    mesh = parallel.make_mesh()
    placed = parallel.place(own, mesh, "subject")
    step = parallel.over_subjects(construction_step, mesh, shared=1)
    found = step(shared, *placed)
    assert collectives(step, shared, *placed) == {}
    assert found.q.sharding.spec[0] == "subject"
    plain = jax.jit(jax.vmap(construction_step, in_axes=(None, 0, 0, 0, 0)), out_shardings=parallel.sharding(mesh, "subject"))
    assert collectives(plain, shared, *placed) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pmap is only maintained
        by_pmap = jax.pmap(construction_step, in_axes=(None, 0, 0, 0, 0))(shared, *own)
    for a, b, c in zip(found, by_pmap, plain(shared, *placed), strict=True):
        # Three programs round in three ways, and embeddings of noise make the most of it.
        assert_allclose(a, b, rtol=0, atol=2e-4)
        assert_allclose(c, b, rtol=0, atol=2e-4)
    assert_array_equal(np.asarray(found.q)[1::2, -50:], 0)


def test_scans_of_one_bucket_share_one_trace():
    shared, own = wave()
    traces = []

    def counting(*given):
        traces.append(1)
        return construction_step(*given)

    step = jax.jit(counting)
    for index in (0, 1):  # with other masks
        step(shared, *(x[index] for x in own))
    assert len(traces) == 1
    by_wave = parallel.over_subjects(counting, parallel.make_mesh(), shared=1)
    by_wave(shared, *own)
    by_wave(shared, *(x[::-1] for x in own))
    assert len(traces) == 2


def test_a_subject_does_not_depend_on_its_wave():
    shared, own = wave()
    step = parallel.over_subjects(construction_step, parallel.make_mesh(ParallelConfig(subject=2), jax.devices()[:2]), shared=1)
    plain = step(shared, *own)
    order = np.array([5, 0, 7, 3, 2, 6, 1, 4])
    turned = step(shared, *(x[order] for x in own))
    spoiled = step(shared, np.where(np.arange(8)[:, None, None] == 3, own[0], np.nan), *own[1:])
    for a, b, c in zip(plain, turned, spoiled, strict=True):
        assert_array_equal(b, np.asarray(a)[order])
        assert_array_equal(c[3], a[3])


def test_a_wave_that_does_not_divide_is_refused():
    step = parallel.over_subjects(lambda x: x, parallel.make_mesh())
    with pytest.raises(ValueError, match="split along 'subject' into 8 parts: expected a multiple of 8, got 9"):
        step(np.ones((9, 2), np.float32))


def test_padding_has_no_nan_gradient_in_a_wave():
    shared, own = wave()
    own = tuple(x[:2] for x in own)
    own = (np.where(own[3][..., None], own[0], 0), *own[1:])

    def loss(y):
        found = jax.vmap(construction_step, in_axes=(None, 0, 0, 0, 0))(shared, y, *own[1:])
        return jnp.square(found.q).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(own[0]))
    assert np.isfinite(gradient).all()
    assert_array_equal(gradient[1, -50:], 0)
    assert np.abs(gradient).max() > 0
