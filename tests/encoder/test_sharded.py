"""The embedding over devices: the same as on one, by two all-reduces a scan and nothing across subjects."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from replicas import replica_groups
from tolerance import rounding

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.bench.inputs import Inputs, candidates, neighbours
from pnet_jax.config import ParallelConfig
from pnet_jax.encoder.linear import LinearEncoder, embed, project
from pnet_jax.encoder.sharded import sharded_embed, sharded_group_prototypes
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.ops.potts.halo import halo_width
from pnet_jax.ops.shapes import Shape
from pnet_jax.parcellation.mixture import Problem, group_prototypes, mixture
from pnet_jax.parcellation.sharded import sharded_mixture

SHAPE = Shape("box", V=1024, T=48, R=24, D=8, K=12, C=6, N=26)
WHERE, BESIDE = candidates(SHAPE), neighbours(SHAPE)
HALO, STEPS = halo_width(BESIDE, 8), 6
MESHES = [(1, 8), (2, 4), (1, 1), (2, 1)]


def mesh_of(subjects: int, locations: int):
    return parallel.make_mesh(ParallelConfig(subject=subjects, location=locations), jax.devices()[: subjects * locations])


@functools.cache
def scans(count: int = 2):
    """An encoder, and signals with frames and locations that do not count in every other scan."""
    make = Inputs()
    sizes = ((SHAPE.R, 3), (SHAPE.R,), (SHAPE.R, SHAPE.D), (SHAPE.D,), (SHAPE.D, SHAPE.R))
    encoder = LinearEncoder(*(make.normal(*size) for size in sizes))
    region = np.random.default_rng(0).integers(-1, SHAPE.R, (count, SHAPE.V)).astype(np.int32)
    kept, counted = np.ones((count, SHAPE.T), bool), np.ones((count, SHAPE.V), bool)
    kept[1::2, 40:] = counted[1::2, -150:] = False  # the last device's part and some of the one before it
    return encoder, make.signals(count, SHAPE.V, SHAPE.T), region, kept, counted


@functools.cache
def over(subjects: int, locations: int):
    return jax.jit(functools.partial(sharded_embed, mesh_of(subjects, locations)))


@functools.cache
def exact() -> np.ndarray:
    """By `embed` in float64."""
    encoder, y, *rest = scans()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64), encoder)
        return np.stack([embed(wide, y[i].astype(np.float64), *(x[i] for x in rest)) for i in range(len(y))])


@functools.cache
def tolerance() -> float:
    """Moments are sums over locations; their inverse root enlarges what is rounded by the root of their condition number."""
    encoder, y, *rest = scans()
    components = [np.float64(project(encoder, y[i], *(x[i] for x in rest))) for i in range(len(y))]
    return rounding(SHAPE.V, condition=np.sqrt(max(np.linalg.cond(x.T @ x) for x in components)))


@pytest.mark.parametrize("mesh", MESHES)
def test_locations_over_devices_give_what_one_device_gives(mesh):
    encoder, y, *rest = scans()
    found = np.asarray(over(*mesh)(encoder, y, *rest))
    for index in range(len(y)):
        assert_allclose(found[index], embed(encoder, y[index], *(x[index] for x in rest)), rtol=0, atol=tolerance())
    assert_allclose(found, exact(), rtol=0, atol=tolerance())
    assert_array_equal(found[1, -150:], 0)


def test_only_rounding_tells_devices_apart():
    encoder, y, *rest = scans()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64), encoder)
        found = sharded_embed(mesh_of(1, 8), wide, y.astype(np.float64), *rest)
        assert_allclose(found, exact(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mesh", "expected"), [(mesh, {"all-reduce": 2} if mesh[1] > 1 else {}) for mesh in MESHES])
def test_a_scan_costs_two_all_reduces_along_locations_and_none_across_subjects(mesh, expected):
    compiled = over(*mesh).lower(*scans()).compile()
    assert hlo.read(compiled).collectives == expected
    if mesh == (2, 4):  # devices 0-3 have the first subject, 4-7 the other
        assert replica_groups(compiled.as_text()) == {((0, 1, 2, 3), (4, 5, 6, 7))}


def test_only_reference_signals_and_moments_travel():
    encoder, *given = scans()
    text = over(1, 8).lower(encoder, *(x[:1] for x in given)).compile().as_text()
    sizes = [[int(n) for n in shape.split(",")] for shape in re.findall(r"= f32\[([\d,]*)\]\S* all-reduce\(", text)]
    assert sorted(np.prod(size) for size in sizes) == sorted([SHAPE.R * (SHAPE.T + 1), (SHAPE.D + 8) * (SHAPE.D + 1)])


def test_one_region_for_all_subjects_and_what_does_not_count_is_not_read():
    encoder, y, region, kept, counted = scans()
    shared = over(2, 4)(encoder, y, region[0], kept, counted)
    assert_allclose(shared, over(2, 4)(encoder, y, np.stack([region[0]] * 2), kept, counted), rtol=0, atol=tolerance())  # another program
    spoiled = np.where(counted[..., None], y, np.nan)
    assert_array_equal(over(2, 4)(encoder, spoiled, region, kept, counted), over(2, 4)(encoder, y, region, kept, counted))


def test_gradients_over_devices_are_those_of_one_device():
    encoder, y, *rest = scans()
    weights = Inputs(seed=3).normal(2, SHAPE.V, SHAPE.D)

    def loss(embedded, y, projection):
        return (embedded(encoder._replace(projection=projection), y, *rest) * weights).sum() / SHAPE.V

    def beside(encoder, *given):
        return jax.vmap(functools.partial(embed, encoder))(*given)

    fits = beside, functools.partial(sharded_embed, mesh_of(2, 4))
    expected, found = (jax.jit(jax.grad(functools.partial(loss, fit), (0, 1)))(y, encoder.projection) for fit in fits)
    for a, b in zip(found, expected, strict=True):
        assert np.abs(b).max() > 0
        assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    assert_array_equal(np.asarray(found[0])[1, -150:], 0)


def whole_scan(mesh, encoder, y, region, kept, counted, where, log_prior, table):
    """Embedding, group prototypes and mixture, all of it split by locations."""
    z = sharded_embed(mesh, encoder, y, region, kept, counted)
    prototypes = sharded_group_prototypes(mesh, z, where[:, 0], SHAPE.K)
    problem = Problem(z, where, log_prior, table, prototypes)
    return z, sharded_mixture(mesh, problem, jnp.float32(10), jnp.float32(0.3), halo=HALO, steps=STEPS)


def test_a_whole_scan_runs_with_its_locations_on_eight_devices():
    encoder, *given = scans()
    given = [x[:1] for x in given]
    table = match_table(WHERE, BESIDE, n_parcels=SHAPE.K)
    log_prior = np.log(Inputs(seed=5).shares(np.maximum(WHERE, 0)) + np.float32(1e-3))
    step = jax.jit(functools.partial(whole_scan, mesh_of(1, 8)))
    arguments = (encoder, *given, WHERE, log_prior, table)
    z, found = step(*arguments)
    # Two of the embedding, one of the group prototypes, one of the start and one of each step.
    counts = hlo.read(step.lower(*arguments).compile())
    assert counts.collectives == {"all-reduce": 3 + 1 + STEPS, "collective-permute": 2 * STEPS}
    assert z.sharding.spec[1] == found.q.sharding.spec[1] == "location"
    # One device goes on from the embedding that eight gave: its own is compared above.
    single = jax.device_put(np.asarray(z[0]), jax.devices()[0])
    problem = Problem(single, WHERE, log_prior, table, group_prototypes(single, WHERE[:, 0], SHAPE.K))
    expected = jax.jit(functools.partial(mixture, steps=STEPS))(problem, jnp.float32(10), jnp.float32(0.3))
    tolerance = rounding(SHAPE.V, condition=10 / 4)  # of sums over locations, through a softmax at κ = 10
    assert_allclose(found.q[0], expected.q, rtol=0, atol=tolerance)
    assert_allclose(found.prototypes[0], expected.prototypes, rtol=0, atol=tolerance)


def test_each_device_does_its_share_of_the_work():
    encoder, *given = scans()
    one, eight = (hlo.read(over(1, parts).lower(encoder, *(x[:1] for x in given)).compile()).flop for parts in (1, 8))
    fixed = 24 * 4 * 2 * SHAPE.D**3 + 4 * SHAPE.R * SHAPE.T * 10  # the root, and the references' own lengths
    assert eight < 1.05 * one / 8 + fixed


@pytest.mark.parametrize(
    ("change", "mesh", "message"),
    [
        ({"y": np.zeros((1024, 48), np.float32)}, (1, 2), r"expected y \[S, V, T\], got \(1024, 48\)"),
        ({"y": np.zeros((2, 1020, 48), np.float32)}, (1, 2), "expected 1020 locations along dimension 1, as in y, got an array of shape"),
        ({"kept": np.ones((3, 48), bool)}, (1, 2), r"expected 2 subjects along dimension 0, as in y, got .*\(3, 48\)"),
        ({}, (1, 3), "the mesh splits locations into 3: expected a multiple of it, got 1024"),
    ],
)
def test_what_does_not_fit_is_refused(change, mesh, message):
    given = dict(zip(("encoder", "y", "region", "kept", "counted"), scans(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        sharded_embed(mesh_of(*mesh), **given)
