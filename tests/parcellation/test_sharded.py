"""The mixture over devices: the same as on one, by one all-reduce and two collective-permutes a step and nothing across subjects."""

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
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.ops.potts.halo import halo_width
from pnet_jax.ops.shapes import Shape
from pnet_jax.parcellation.mixture import STEPS, Mixture, Problem, begin, mixture
from pnet_jax.parcellation.prior import PADDING
from pnet_jax.parcellation.sharded import layout, sharded_begin, sharded_mixture

SHAPE = Shape("box", V=1024, D=8, K=12, C=6, N=26)  # slabs of 128 voxels: a halo of them
KAPPA, BETA = np.float32(10), np.float32(0.3)
HALO = halo_width(neighbours(SHAPE), 8)
ROWS = 64  # padding at the end


# Prototypes are sums over the locations, which devices add in parts; a softmax at κ enlarges what is rounded there by κ / 4 at most.
TOLERANCE = rounding(SHAPE.V, condition=KAPPA / 4)


@functools.cache
def table(rows: int = 0) -> np.ndarray:
    beside = neighbours(SHAPE).copy()
    beside[len(beside) - rows :] = -1
    beside[beside >= len(beside) - rows] = -1
    return np.asarray(match_table(held(rows), beside, n_parcels=SHAPE.K))


def held(rows: int = 0) -> np.ndarray:
    where = candidates(SHAPE).copy()
    where[len(where) - rows :] = -1
    return where


@functools.cache
def subject(seed: int, padding: int = 0) -> Problem:
    make, where = Inputs(seed=seed), held(padding)
    shares = make.shares(candidates(SHAPE))
    log_prior = np.where(where < 0, PADDING, np.log(shares + np.float32(1e-3))).astype(np.float32)
    z = make.unit(SHAPE.V, SHAPE.D)
    z[SHAPE.V - padding :] = 0
    return Problem(z, where, log_prior, table(padding), make.unit(SHAPE.K, SHAPE.D))


def many(seeds, padding=0) -> Problem:
    """Subjects in front of all arrays but those that all of them share."""
    whole = jax.tree.map(lambda *x: np.stack(x), *(subject(seed, padding) for seed in seeds))
    return whole._replace(candidates=held(padding), table=table(padding))


def mesh_of(subjects: int, locations: int):
    return parallel.make_mesh(ParallelConfig(subject=subjects, location=locations), jax.devices()[: subjects * locations])


@functools.cache
def step_over(subjects: int, locations: int):
    mesh = mesh_of(subjects, locations)
    return jax.jit(lambda problem, kappa, beta: sharded_mixture(mesh, problem, kappa, beta, halo=HALO))


def fitted(problem: Problem, subjects: int, locations: int, kappa=KAPPA) -> Mixture:
    placed = parallel.place_as(problem, mesh_of(subjects, locations), layout(problem))
    return jax.tree.map(np.asarray, step_over(subjects, locations)(placed, kappa, BETA))


@functools.cache
def compiled(subjects: int, locations: int, count: int):
    problem = many(range(count))
    placed = parallel.place_as(problem, mesh_of(subjects, locations), layout(problem))
    return step_over(subjects, locations).lower(placed, KAPPA, BETA).compile()


@functools.cache
def alone(seed: int, padding: int = 0) -> Mixture:
    return jax.tree.map(np.asarray, one_scan()(subject(seed, padding), KAPPA, BETA))


@functools.cache
def one_scan():
    return jax.jit(mixture)


@pytest.mark.parametrize(("subjects", "locations", "count"), [(1, 8, 1), (2, 4, 4)])
def test_locations_over_devices_give_what_one_device_gives(subjects, locations, count):
    found = fitted(many(range(count)), subjects, locations)
    for index in range(count):
        assert_allclose(found.q[index], alone(index).q, rtol=0, atol=TOLERANCE)
        assert_allclose(found.prototypes[index], alone(index).prototypes, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("block", [SHAPE.V // 8, SHAPE.V])
def test_with_a_block_or_less_of_locations_on_each_device_too(monkeypatch, block):
    """At κ = 20, where q follows the rounding of the sums closely."""
    monkeypatch.setattr("pnet_jax.ops.soft_assign.chunked.BLOCK", block)
    sharded = jax.jit(lambda *given: sharded_mixture(mesh_of(1, 8), *given, halo=HALO))
    single = jax.jit(lambda *given: mixture(*given))
    found, expected = sharded(many([2]), np.float32(20), BETA), single(subject(2), np.float32(20), BETA)
    assert_allclose(found.q[0], expected.q, rtol=0, atol=rounding(SHAPE.V, condition=20 / 4))


@pytest.mark.parametrize("subjects", [1, 4, 8])
def test_subjects_over_devices_are_those_of_each_alone(subjects):
    found = fitted(many(range(8)), subjects, 1)
    for index in range(8):  # by another program, which may round in another way
        assert_allclose(found.q[index], alone(index).q, rtol=0, atol=TOLERANCE)
        assert_allclose(found.prototypes[index], alone(index).prototypes, rtol=0, atol=TOLERANCE)


def test_only_rounding_tells_devices_apart():
    """In float64 the difference goes with the precision, which an error in the halo would not."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, many([0]))
        found = sharded_mixture(mesh_of(1, 8), wide, np.float64(10), np.float64(0.3), halo=HALO, steps=4)
        single = jax.tree.map(lambda x: x[0] if x.ndim == 3 and len(x) == 1 else x, wide)
        expected = jax.jit(functools.partial(mixture, steps=4))(single, np.float64(10), np.float64(0.3))
        assert_allclose(found.q[0], expected.q, rtol=0, atol=rounding(SHAPE.V, condition=10 / 4, dtype=np.float64))


@pytest.mark.parametrize(("subjects", "locations", "count"), [(1, 8, 1), (2, 4, 4)])
def test_a_step_costs_one_all_reduce_and_two_permutes_along_locations(subjects, locations, count):
    counts = hlo.read(compiled(subjects, locations, count))
    # Written once before the loop, for the prototypes to begin with, and once in its body.
    assert counts.written == {"all-reduce": 2, "collective-permute": 2}
    assert counts.collectives == {"all-reduce": STEPS + 1, "collective-permute": 2 * STEPS}
    assert counts.unknown_loops == 0


def test_nothing_crosses_the_subject_axis():
    assert hlo.read(compiled(8, 1, 8)).collectives == {}
    text = compiled(2, 4, 4).as_text()  # devices 0-3 have the first subjects, 4-7 the others
    assert replica_groups(text) == {((0, 1, 2, 3), (4, 5, 6, 7))}
    pairs = re.findall(r"\{(\d),(\d)\}", " ".join(re.findall(r"source_target_pairs=(\{.*?\}\})", text)))
    assert len(pairs) == 12
    assert all(int(a) // 4 == int(b) // 4 and abs(int(a) - int(b)) == 1 for a, b in pairs)


def test_only_the_halo_and_the_sums_travel():
    moved = re.findall(r"= (f32\[[\d,]*\])\S* (all-reduce|collective-permute)\(", compiled(1, 8, 1).as_text())
    sizes = {kind: np.prod([int(n) for n in re.findall(r"\d+", shape[3:])]) for shape, kind in moved}
    assert sizes == {"all-reduce": SHAPE.K * SHAPE.D, "collective-permute": HALO * SHAPE.C}


def test_each_device_does_its_share_of_the_work():
    assert hlo.read(compiled(1, 8, 1)).flop < 1.05 / 8 * hlo.read(one_scan().lower(subject(0), KAPPA, BETA).compile()).flop


def test_a_subject_is_bit_identical_whatever_is_beside_it_and_wherever_it_stands():
    problem = many(range(8))
    spoiled = problem._replace(z=problem.z.copy(), prototypes=problem.prototypes.copy())
    spoiled.z[1:] = 0
    spoiled.prototypes[1:] = np.nan
    turned = many([3, 4, 5, 0, 1, 2, 7, 6])
    plain = fitted(problem, 4, 1).q[0]
    for found, place in ((fitted(spoiled, 4, 1), 0), (fitted(turned, 4, 1), 3)):
        assert_array_equal(found.q[place], plain)


@pytest.mark.parametrize(("subjects", "locations"), [(2, 4), (8, 1)])
def test_masked_locations_give_0_and_change_nothing(subjects, locations):
    found = fitted(many(range(subjects), ROWS), subjects, locations)
    assert_array_equal(found.q[:, -ROWS:], 0)
    spoiled = many(range(subjects), ROWS)
    spoiled.z[:, -ROWS:] = 7
    assert_array_equal(fitted(spoiled, subjects, locations).q, found.q)
    assert_allclose(found.q[0], alone(0, ROWS).q, rtol=0, atol=TOLERANCE)


def test_gradients_over_devices_are_those_of_one_device_and_finite_with_padding():
    mesh, problem, weights = mesh_of(2, 4), many(range(2), ROWS), Inputs(seed=9).normal(SHAPE.V, SHAPE.C)

    def loss(fit, z, log_prior, prototypes, kappa, beta):
        found = fit(problem._replace(z=z, log_prior=log_prior, prototypes=prototypes), kappa, beta)
        return (found.q * weights[None]).sum() + jnp.square(found.prototypes[:, :, 0]).sum()

    def beside(problem, kappa, beta):
        axes = Problem(0, None, 0, None, 0)
        return jax.vmap(lambda problem: mixture(problem, kappa, beta, steps=3), in_axes=(axes,))(problem)

    def over(problem, kappa, beta):
        return sharded_mixture(mesh, problem, kappa, beta, halo=HALO, steps=3)

    given = (problem.z, problem.log_prior, problem.prototypes, KAPPA, BETA)
    expected, found = (jax.jit(jax.grad(functools.partial(loss, fit), (0, 1, 2, 3, 4)))(*given) for fit in (beside, over))
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    for a in found[:2]:
        assert_array_equal(np.asarray(a)[:, -ROWS:], 0)
        assert np.abs(a).max() > 0


def test_settings_of_each_subject_and_location_and_a_start():
    mesh, problem = mesh_of(2, 4), many(range(2))
    kappas, betas = np.array([5, 10], np.float32), np.array([0.0, 0.3], np.float32)
    shared = np.broadcast_to(kappas[:, None], (2, SHAPE.V))
    log_q = np.stack([subject(seed).log_prior for seed in (2, 3)])

    @jax.jit
    def over(problem, kappas, betas, log_q):
        start = sharded_begin(mesh, problem, log_q)
        return sharded_mixture(mesh, problem, kappas, betas, halo=HALO, steps=3, start=start)

    @jax.jit
    def single(problem, kappa, beta, log_q):
        return mixture(problem, kappa, beta, steps=3, start=begin(problem, log_q))

    expected = [single(subject(index), kappas[index], betas[index], log_q[index]) for index in range(2)]
    for given in (kappas, shared):
        found = over(problem, given, betas, log_q)
        for index in range(2):
            assert_allclose(found.q[index], expected[index].q, rtol=0, atol=TOLERANCE)


def test_a_start_saves_the_first_sum():
    mesh, problem = mesh_of(1, 8), many([0])
    step = jax.jit(lambda problem, start: sharded_mixture(mesh, problem, KAPPA, BETA, halo=HALO, start=start))
    start = Mixture(*(x[None] for x in alone(0)))
    assert hlo.read(step.lower(problem, start).compile()).collectives == {"all-reduce": STEPS, "collective-permute": 2 * STEPS}


@pytest.mark.parametrize(
    ("change", "mesh", "halo", "message"),
    [
        ({}, (1, 8), 129, "a halo of at most the 128 locations of a part, got 129: use fewer parts"),
        ({"z": np.zeros((3, 1024, 8), np.float32)}, (2, 1), 0, "the mesh splits subjects into 2: expected a multiple of it, got 3"),
        (
            {"z": np.zeros((2, 1020, 8), np.float32)},
            (1, 2),
            0,
            r"expected 1020 locations along dimension \d, as in z, got an array of shape",
        ),
        ({"z": np.zeros((1024, 8), np.float32)}, (1, 2), 0, r"expected z \[S, V, D\] and prototypes \[S, K, D\], got \(1024, 8\)"),
        (
            {"log_prior": np.zeros((3, 1024, 6), np.float32)},
            (1, 2),
            0,
            r"expected 2 subjects along dimension 0, as in z, got .*\(3, 1024, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, mesh, halo, message):
    problem = many(range(2))._replace(**change)
    if "z" in change and change["z"].shape[0] == 3:
        problem = problem._replace(log_prior=problem.log_prior[:1].repeat(3, 0), prototypes=problem.prototypes[:1].repeat(3, 0))
    with pytest.raises(ValueError, match=message):
        sharded_mixture(mesh_of(*mesh), problem, KAPPA, BETA, halo=halo)


def test_a_mesh_without_the_axes_is_refused():
    mesh = jax.make_mesh((2,), ("location",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"a mesh with axes subject, location; subject is not in \('location',\)"):
        sharded_mixture(mesh, many([0]), KAPPA, BETA, halo=0)
