"""The TPU kernel without a TPU: interpreted against the reference, and lowered for one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.soft_assign import pallas_tpu, reference, soft_assign

BLOCK = pallas_tpu.BLOCK
INPUTS = (0, 1, 3, 4)  # all but the candidates have gradients


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """300 locations are two full blocks and a part of one."""
    monkeypatch.setattr(pallas_tpu, "BLOCK", 128)


@functools.cache
def compiled(block=128, interpret=True):
    """`block` is what `BLOCK` is when the kernel is traced."""
    return jax.jit(functools.partial(pallas_tpu.fused, interpret=interpret))


def problem(size=300, parcels=40, width=3, dimensions=5, seed=0):
    """Embeddings, prototypes, candidates, bias, κ; some rows have fewer candidates, in any column, one has none."""
    rng = np.random.default_rng(seed)
    z, prototypes = (rng.normal(size=(n, dimensions)) for n in (size, parcels))
    z, prototypes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, prototypes))
    candidates = np.argsort(rng.random((size, parcels)), 1)[:, :width].astype(np.int32)
    candidates[rng.random(candidates.shape) < 0.3] = -1
    candidates[size // 2] = -1
    bias, kappa = rng.normal(size=candidates.shape), np.linspace(1, 9, size)
    return tuple(x if x.dtype == np.int32 else x.astype(np.float32) for x in (z, prototypes, candidates, bias, kappa))


def with_gradients(implementation, weights):
    """Value and gradients of a weighted sum of everything that comes out."""

    def loss(*given):
        found = tuple(x.astype(jnp.float32) for x in implementation(*given))
        return sum((w * x).sum() for w, x in zip(weights, found, strict=True)), found

    return jax.jit(jax.value_and_grad(loss, INPUTS, has_aux=True))


def weights_like(given):
    rng = np.random.default_rng(1)
    shapes = (given[2].shape, given[1].shape, given[1].shape[:1])
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


SHAPES = [(1, 1, 1, 1), (128, 16, 4, 64), (300, 40, 3, 5), (257, 130, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "V{}-K{}-C{}-D{}".format(*s))
def test_equals_the_reference_in_values_and_gradients(shape):
    given = problem(*shape)
    weights = weights_like(given)
    (_, expected), slopes = with_gradients(reference.soft_assign, weights)(*given)
    (_, found), found_slopes = with_gradients(functools.partial(pallas_tpu.fused, interpret=True), weights)(*given)
    for a, b in zip((*found, *found_slopes), (*expected, *slopes), strict=True):
        assert np.isfinite(a).all()
        assert a.dtype == b.dtype
        assert_allclose(a, b, atol=3e-5)


def test_equals_the_reference_where_unwritten_memory_is_nan_and_blocks_are_copied_as_on_a_tpu():
    given = problem()
    found = compiled(interpret=pltpu.InterpretParams(uninitialized_memory="nan"))(*given)
    for a, b in zip(found, reference.soft_assign(*map(jnp.asarray, given)), strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_rows_without_a_candidate_give_0_and_no_gradient():
    z, prototypes, candidates, bias, kappa = problem()
    nowhere = (z, prototypes, np.full_like(candidates, -1), bias, kappa)
    (_, found), slopes = with_gradients(functools.partial(pallas_tpu.fused, interpret=True), weights_like(nowhere))(*nowhere)
    for x in (*found, *slopes):
        assert_array_equal(x, 0)


@pytest.mark.parametrize("anything", [1e6, -np.inf, np.nan])
def test_bias_at_the_padding_is_never_read(anything):
    z, prototypes, candidates, bias, kappa = problem()
    plain = compiled()(z, prototypes, candidates, bias, kappa)
    other = compiled()(z, prototypes, candidates, np.where(candidates < 0, np.float32(anything), bias), kappa)
    for a, b in zip(plain, other, strict=True):
        assert_array_equal(a, b)


def test_responsibilities_sum_to_1_where_there_is_a_candidate_even_at_a_huge_kappa():
    z, prototypes, candidates, bias, kappa = problem()
    q, _, masses = compiled()(z, prototypes, candidates, 1e4 * bias, 1e4 * kappa)
    assert_allclose(q.sum(1), (candidates >= 0).any(1), rtol=0, atol=rounding(q.shape[1]))
    assert_array_equal(np.asarray(q)[candidates < 0], 0)
    assert_allclose(masses.sum(), (candidates >= 0).any(1).sum(), rtol=rounding(len(z)))


def test_permuting_locations_permutes_q_and_leaves_the_sums():
    z, prototypes, candidates, bias, kappa = problem()
    order = np.random.default_rng(1).permutation(len(z))
    plain = compiled()(z, prototypes, candidates, bias, kappa)
    moved = compiled()(z[order], prototypes, candidates[order], bias[order], kappa[order])
    assert_allclose(moved[0], plain[0][order], rtol=0, atol=rounding(z.shape[1], condition=kappa.max() / 4))
    for a, b in zip(moved[1:], plain[1:], strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_block_size_changes_nothing(monkeypatch):
    given = problem()
    small = compiled()(*given)
    monkeypatch.setattr(pallas_tpu, "BLOCK", 512)
    for a, b in zip(compiled(512)(*given), small, strict=True):
        assert_allclose(a, b, atol=1e-5)


def test_bfloat16_inputs_are_summed_in_float32_and_get_bfloat16_gradients():
    given = [x if x.dtype == np.int32 else jnp.asarray(x, jnp.bfloat16) for x in problem()]
    weights = weights_like(given)
    (_, found), slopes = with_gradients(functools.partial(pallas_tpu.fused, interpret=True), weights)(*given)
    as_read = [x if x.dtype == np.int32 else x.astype(jnp.float32) for x in given]
    (_, expected), expected_slopes = with_gradients(reference.soft_assign, weights)(*as_read)
    assert all(x.dtype == jnp.float32 for x in pallas_tpu.fused(*given, True))
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, atol=3e-5)
    for a, b in zip(slopes, expected_slopes, strict=True):
        assert a.dtype == jnp.bfloat16
        assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)  # the gradient itself is rounded to 8 bits


def test_subjects_by_vmap_equal_one_at_a_time():
    subjects = [problem(seed=s) for s in range(2)]
    together = jax.jit(jax.vmap(lambda *given: pallas_tpu.fused(*given, True)))(*map(np.stack, zip(*subjects, strict=True)))
    for s, given in enumerate(subjects):
        for a, b in zip(together, compiled()(*given), strict=True):
            scale = max(1, np.abs(b).max())
            assert_allclose(a[s], b, rtol=0, atol=rounding(sum(given[0].shape), scale=scale, condition=given[4].max() / 4))


def test_locations_split_over_devices_need_one_sum():
    given = problem(8 * 40)
    rows, everywhere = PartitionSpec("location"), PartitionSpec()

    def local(*given):
        q, *parts = pallas_tpu.fused(*given, True)
        return q, *jax.lax.psum(parts, "location")

    mesh = jax.make_mesh((8,), ("location",), axis_types=(jax.sharding.AxisType.Auto,))
    inputs, outputs = (rows, everywhere, rows, rows, rows), (rows, everywhere, everywhere)
    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False))(*given)
    for a, b in zip(split, reference.soft_assign(*map(jnp.asarray, given)), strict=True):
        assert_allclose(a, b, atol=1e-5)


def lowered(run, size, dtype, lead=()):
    """The text of what a TPU would be given for K = 400, D = 64, C = 16."""
    shapes = [((size, 64), dtype), ((400, 64), dtype), ((size, 16), "int32"), ((size, 16), dtype), ((size,), dtype)]
    arguments = [jax.ShapeDtypeStruct((*lead, *s), d) for s, d in shapes]
    return jax.export.export(jax.jit(run), platforms=["tpu"])(*arguments).mlir_module()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_a_tpu_as_one_kernel_without_a_table_of_every_parcel_of_every_location(monkeypatch, dtype):
    monkeypatch.setattr(pallas_tpu, "BLOCK", BLOCK)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    text = lowered(functools.partial(soft_assign, implementation="pallas"), 8192, dtype)
    assert text.count("stablehlo.custom_call") == text.count("@tpu_custom_call") == 1
    assert 'kernel_name = "soft_assign"' in text
    assert "400x8192" not in text and "8192x400" not in text


def test_lowers_for_a_tpu_as_one_kernel_for_all_subjects():
    text = lowered(jax.vmap(functools.partial(pallas_tpu.fused, interpret=False)), 300, "float32", lead=(3,))
    assert text.count("stablehlo.custom_call") == text.count("@tpu_custom_call") == 1


def test_what_a_block_takes_on_the_chip_is_bounded(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "BLOCK", BLOCK)
    rows, block = 400, pallas_tpu.block_size(400, 64, 16)
    assert block == BLOCK
    moved = 64 * block + 3 * 16 * block + 8 * block + 2 * rows * 128 + rows * 128  # z; candidates, bias, q; κ; prototypes, sums; masses
    assert pallas_tpu.vmem_bytes(block, 400, 64, 16) == 4 * (2 * moved + 5 * rows * block) < 16e6
    for parcels in (1, 200, 1000, 2000):
        block = pallas_tpu.block_size(parcels, 128, 16)
        assert pallas_tpu.vmem_bytes(block, parcels, 128, 16) <= pallas_tpu.VMEM
        assert block % 128 == 0 and 4096 % block == 0
    assert pallas_tpu.block_size(1000, 128, 16) < BLOCK


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_another_backend_is_refused_by_name_and_nothing_falls_back(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with pytest.raises(NotImplementedError, match=f"soft_assign: the implementation 'pallas' is for tpu only, the backend is '{backend}'"):
        soft_assign(*problem(), implementation="pallas")


@pytest.mark.parametrize(
    ("parcels", "dtype", "message"),
    [
        (40, jnp.float16, "soft_assign: 'pallas' takes float32 or bfloat16, got float16 and float16"),
        (9000, jnp.float32, "soft_assign: 'pallas' holds all parcels .* K = 9000, D = 5, C = 3 need"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_by_name(parcels, dtype, message):
    z, prototypes, *others = problem(parcels=parcels)
    with pytest.raises(NotImplementedError, match=message):
        pallas_tpu.fused(z.astype(dtype), prototypes.astype(dtype), *others, True)
