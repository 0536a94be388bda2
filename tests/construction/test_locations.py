"""Locations over devices: the step gives what it gives on one, each device holds and does its share, no signals are gathered."""

from __future__ import annotations

import functools
import math
import re

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from replicas import replica_groups

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.config import ConstructConfig, ParallelConfig, PerceiverConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.construction.wave import LAYOUT, compiled, land, on_mesh, put, stacked
from pnet_jax.encoder.model import components
from pnet_jax.encoder.perceiver import init
from pnet_jax.encoder.tokens import Observed

from .conftest import varied
from .test_wave import error_of_log_kappa

FRAMES = 1216  # as recorded in 40 minutes: signals are most of what a device holds


def mesh_of(subjects: int, locations: int):
    return parallel.make_mesh(ParallelConfig(subject=subjects, location=locations), jax.devices()[: subjects * locations])


@pytest.fixture(scope="module")
def waiting(toy, short_grid):
    return [short_grid.ready(varied(toy, seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def alone(waiting, short_grid):
    return short_grid.run(waiting)


@pytest.fixture(scope="module")
def programs(waiting, short_grid):
    """The step of one long scan, compiled for so many parts and not run."""

    def long(x, axis):
        return jax.ShapeDtypeStruct(tuple(FRAMES * n // 192 if at == axis else n for at, n in enumerate(x.shape)), x.dtype)

    @functools.cache
    def program(parts: int):
        mesh = mesh_of(1, parts)
        subject = stacked([waiting[0].subject], mesh)
        axes = {"y": 2, "kept": 1, "frames": 1, "halves": 3, "halves_kept": 2, "halves_frames": 2, "blocks": 2}
        given = waiting[0].shared, subject._replace(**{name: long(getattr(subject, name), axis) for name, axis in axes.items()})
        if parts > 1:
            layout = parallel.layout(given, LAYOUT, mesh)
            given = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), given, layout)
        return compiled(short_grid.plan.settings, mesh).lower(*given).compile()

    return program


def moved(text: str) -> dict[str, set[tuple[int, ...]]]:
    """Shapes that each kind of collective gives."""
    out: dict[str, set[tuple[int, ...]]] = {}
    for shapes, kind in re.findall(rf"= (.*?) ({'|'.join(hlo.COLLECTIVES)})(?:-start)?\(", text):
        out.setdefault(kind, set()).update(tuple(int(n) for n in shape.split(",") if n) for shape in re.findall(r"\w\[([\d,]*)\]", shapes))
    return out


@pytest.mark.parametrize("mesh", [(2, 2), (1, 8)])
def test_locations_over_devices_change_rounding_alone(waiting, alone, short_grid, mesh):
    given = put(waiting[0].shared, [one.subject for one in waiting], mesh_of(*mesh))
    found = land(compiled(short_grid.plan.settings, mesh_of(*mesh))(*given), len(waiting))
    for one, expected in zip(found, alone, strict=True):
        fitted = max(1e-5, error_of_log_kappa(expected))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(expected), strict=True):
            name = jax.tree_util.keystr(path)
            if np.issubdtype(a.dtype, np.floating):
                assert_allclose(a, b, rtol=fitted, atol=fitted, err_msg=name)
            else:
                assert_array_equal(a, b, err_msg=name)


def test_arrays_of_locations_are_split_and_parts_that_do_not_divide_leave_them_whole(waiting):
    for parts, share in ((4, 4), (3, 1)):
        mesh = mesh_of(1, parts)
        placed = on_mesh(waiting[0].shared, mesh), stacked([waiting[0].subject], mesh)
        for path, x in jax.tree_util.tree_leaves_with_path(placed):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            split = 4096 in x.shape or name.endswith("lists")
            assert math.prod(x.addressable_shards[0].data.shape) * (share if split else 1) == x.size, name
    assert on_mesh(waiting[0].shared, mesh_of(4, 1)) is waiting[0].shared


def test_each_device_holds_and_does_its_share(programs):
    one, four = programs(1), programs(4)
    held, shares = ([getattr(x.memory_analysis(), f"{kind}_size_in_bytes") for kind in ("argument", "temp")] for x in (one, four))
    assert shares[0] < 0.3 * held[0] and shares[1] < 0.45 * held[1]
    assert hlo.read(four).matmul < 0.26 * hlo.read(one).matmul
    assert hlo.read(one).collectives == {}


def test_no_device_gathers_signals(programs, waiting):
    text = programs(4).as_text()
    by_kind = moved(text)
    assert set(by_kind) == {"all-reduce", "all-gather", "all-to-all", "collective-permute"}
    # Frames in place of locations, for pairs of locations that lie anywhere: a fourth of a device's fourth goes to each of the others.
    assert {math.prod(shape) for shape in by_kind.pop("all-to-all")} <= {n * 1024 * FRAMES // 8 for n in (1, 2)}
    # Nothing else is larger than the correlations of the pairs; both halves together have 2 x 4096 x 608 values.
    pairs = waiting[0].shared.prior.pairs.ring.size
    assert max(math.prod(shape) for shapes in by_kind.values() for shape in shapes) == pairs < 4096 * FRAMES / 16


def test_nothing_crosses_the_subject_axis(waiting, short_grid):
    mesh = mesh_of(2, 2)
    given = put(waiting[0].shared, [one.subject for one in waiting], mesh)
    text = compiled(short_grid.plan.settings, mesh).lower(*given).compile().as_text()
    assert replica_groups(text) == {((0, 1), (2, 3))}
    pairs = re.findall(r"\{(\d),(\d)\}", " ".join(re.findall(r"source_target_pairs=(\{.*?\}\})", text)))
    assert pairs and all(int(a) // 2 == int(b) // 2 for a, b in pairs)


@pytest.mark.parametrize("block", [96, 4096])
def test_the_neural_encoder_too(toy_model, waiting, block):
    linear = toy_model.encoder
    config = PerceiverConfig(references=24, dimensions=10, width=16, latents=4, depth=1, heads=2, block=block, dtype="float32")
    encoder = init(linear, config, jax.random.key(0))
    encoder.params["perceiver"]["correction"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 10))
    shared, subject = waiting[0].shared, waiting[0].subject

    def one(shared, subject):
        seen = Observed(
            subject.y, subject.kept, subject.frames, subject.valid, shared.region, shared.prior.xyz, subject.log_tsnr, subject.tr
        )
        return components(shared.encoder, seen)

    shared = shared._replace(encoder=encoder)
    expected, found = (
        parallel.over_subjects(one, mesh, shared=1)(on_mesh(shared, mesh), stacked([subject], mesh))
        for mesh in (mesh_of(1, 1), mesh_of(1, 4))
    )
    assert np.abs(expected).max() > 0.1
    assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_configuration_reaches_the_step(toy, toy_model):
    plan = resolve(ConstructConfig(kappa=20.0, beta=0.2, parallel=ParallelConfig(location=2)), model=toy_model)
    builder = Builder(plan)
    assert dict(builder.mesh.shape) == {"subject": 4, "location": 2}
    assert dict(builder.alone.shape) == {"subject": 1, "location": 2}
    ready = builder.ready(toy.scan(0))
    (found,) = builder.run([ready])
    (expected,) = Builder(plan, mesh_of(1, 1)).run([ready])
    assert_array_equal(found.labels, expected.labels)
    assert_allclose(found.edges["pearson"], expected.edges["pearson"], rtol=0, atol=1e-5)
