"""Waves: one trace for a cohort, and results that depend on nothing but the scan itself."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from conftest import Toy
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax import parallel
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, build, construct, resolve, wave
from pnet_jax.construction.wave import bucket, compiled, land, put, seed_of, subject_of
from pnet_jax.scan import make_scan
from pnet_jax.space import grid_space

from .conftest import varied


def assert_same(a, b):
    paths = jax.tree_util.tree_leaves_with_path(a)
    for (path, one), other in zip(paths, jax.tree.leaves(b), strict=True):
        assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


# One trace


def traced_once(monkeypatch):
    """Make the step that the program compiles refuse a second trace, for the rest of a test."""
    compiled.cache_clear()  # of steps that other tests made
    chex.clear_trace_counter()
    monkeypatch.setattr(wave, "step", chex.assert_max_traces(wave.step, n=1))
    monkeypatch.setattr(wave, "compiled", functools.lru_cache(compiled.__wrapped__))  # keeps no such step for other tests


def test_a_cohort_of_fifty_different_scans_traces_the_step_once(toy, toy_model, one_device, monkeypatch):
    builder = Builder(resolve(ConstructConfig(kappa=20.0, beta=0.2), model=toy_model), one_device)
    scans = [varied(toy, seed) for seed in range(50)]
    assert len({scan.recorded for scan in scans}) > 20 and len({len(scan.frames) for scan in scans}) > 20
    assert len({len(scan.space) for scan in scans}) > 20
    waiting = [builder.ready(scan) for scan in scans]
    assert len({one.shape for one in waiting}) == 1
    assert len({id(one.shared.free) for one in waiting}) == 1  # tables of the Space are made once
    traced_once(monkeypatch)
    for one in waiting:
        (found,) = builder.run([one])
        assert_array_equal(found.labels >= 0, one.subject.valid)
        assert np.isfinite(found.edges["pearson"]).all()
    longer = builder.ready(toy.scan(frames=400))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        builder.run([longer])


def test_fixed_settings_of_any_value_share_a_trace(toy, toy_model, one_device):
    step = before = None
    labels = []
    for kappa, beta in ((5.0, 0.1), (40.0, 0.1), (5.0, 0.4)):
        builder = Builder(resolve(ConstructConfig(kappa=kappa, beta=beta, labels="personalised"), model=toy_model), one_device)
        (found,) = builder.run([builder.ready(varied(toy, 3))])
        assert (found.choice.kappa, found.choice.beta) == (np.float32(kappa), np.float32(beta))
        labels.append(found.labels)
        step = compiled(builder.plan.settings, one_device)
        before = step._cache_size() if before is None else before
    assert step._cache_size() == before
    assert (labels[0] != labels[1]).any() and (labels[0] != labels[2]).any()


def test_the_last_scans_fill_up_a_wave_of_the_same_size(toy, short_grid):
    waiting = [short_grid.ready(varied(toy, seed)) for seed in range(5)]
    short_grid.run(waiting[:2])
    step = compiled(short_grid.plan.settings, short_grid.mesh)
    before = step._cache_size()
    (found,) = short_grid.run(waiting[4:], size=2)
    assert step._cache_size() == before
    assert_same(found, short_grid.run([waiting[4], waiting[0]])[0])


@pytest.mark.parametrize(("frames", "size"), [(1, 64), (64, 64), (65, 128), (300, 320)])
def test_frames_are_padded_by_what_was_recorded(frames, size):
    assert bucket(frames) == size


# Neighbours, places, sizes, devices


@pytest.fixture(scope="module")
def waiting(toy, short_grid):
    return [short_grid.ready(varied(toy, seed)) for seed in range(8)]


@pytest.fixture(scope="module")
def four(waiting, short_grid):
    return short_grid.run(waiting[:4])


def test_place_and_neighbours_change_no_bit(waiting, four, short_grid):
    order = [2, 0, 3, 1]
    for at, found in zip(order, short_grid.run([waiting[at] for at in order]), strict=True):
        assert_same(found, four[at])
    subject = waiting[5].subject
    nothing = subject._replace(
        y=0 * subject.y, halves=0 * subject.halves, valid=np.zeros_like(subject.valid), present=np.zeros_like(subject.present)
    )
    degenerate = [nothing, waiting[2].subject, nothing._replace(kept=np.zeros_like(subject.kept), tr=np.float32(0.5)), waiting[0].subject]
    given = put(waiting[0].shared, degenerate, short_grid.mesh)
    found = land(compiled(short_grid.plan.settings, short_grid.mesh)(*given), len(degenerate))
    for one, expected in ((found[1], four[2]), (found[3], four[0])):
        assert_array_equal(one.labels, expected.labels)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(expected), strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not found[0].personalised and (found[0].labels == -1).all()


@pytest.mark.parametrize(("size", "devices"), [(1, 1), (2, 1), (8, 8)])
def test_size_of_the_wave_and_devices_change_rounding_alone(waiting, four, short_grid, size, devices):
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    given = put(waiting[0].shared, [one.subject for one in waiting[:size]], mesh)
    found = land(compiled(short_grid.plan.settings, mesh)(*given), size)
    for one, expected in zip(found, four, strict=False):
        fitted = max(1e-5, error_of_log_kappa(expected))
        paths = jax.tree_util.tree_leaves_with_path(one)
        for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
            name = jax.tree_util.keystr(path)
            if np.issubdtype(a.dtype, np.floating):
                near = 1e-5 if name.startswith((".signals", ".edges", ".halves")) else fitted  # of hard labels, which are equal
                assert_allclose(a, b, rtol=near, atol=near, err_msg=name)
            else:
                assert_array_equal(a, b, err_msg=name)


def error_of_log_kappa(found) -> float:
    """What rounding of the scores, means over all locations, makes of the peak of a parabola through the best κ and those beside it."""
    scores = np.asarray(found.choice.scores, np.float64)[np.asarray(found.choice.betas) == found.choice.betas[0]]
    best = int(np.clip(scores.argmax(), 1, len(scores) - 2))
    bend = abs(scores[best - 1] - 2 * scores[best] + scores[best + 1])
    return rounding(len(found.labels), scale=np.abs(scores).max(), condition=1 / bend)


def test_construct_is_a_wave_of_one(toy, toy_model, toy_builder):
    scan = varied(toy, 3)
    one, (other,) = construct(scan, model=toy_model), build([toy_builder.ready(scan)], toy_builder)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert_array_equal(a, b, err_msg=field.name)
    assert_array_equal(one.edges["pearson"], other.edges["pearson"])
    assert dataclasses.replace(one.qc, seconds={}) == dataclasses.replace(other.qc, seconds={})


def test_the_bootstrap_depends_on_who_the_scan_is_alone(toy):
    scan = toy.scan(0, subject="01")
    assert seed_of(scan, 0) == seed_of(toy.scan(5, frames=80, subject="01"), 0)
    assert len({seed_of(scan, 0), seed_of(scan, 1), seed_of(toy.scan(0, subject="02"), 0)}) == 3


# Locations that do not count


def on_mask(toy: Toy, mask: np.ndarray, volume: np.ndarray):
    return make_scan(volume[mask], grid_space(mask, toy.affine, name=toy.space.name), tr=2.0, subject="01")


@pytest.fixture(scope="module")
def holes(toy):
    return toy.mask & (np.random.default_rng(3).random(toy.mask.shape) < 0.1)


def test_holes_have_no_parcel_and_what_stands_in_them_does_not_matter(toy, holes, short_grid):
    here = toy.mask & ~holes
    cut = on_mask(toy, here, toy.volume(0))
    whole = on_mask(toy, toy.mask, toy.volume(0))
    inside = ~holes[toy.mask]
    y = np.where(inside[:, None], whole.y, 1e3 * np.random.default_rng(0).normal(size=whole.y.shape)).astype(np.float32)
    mean, std = (np.where(inside, x, 7e4).astype(np.float32) for x in (whole.mean, whole.std))
    marked = dataclasses.replace(whole, y=y, mean=mean, std=std, valid=inside)
    a, b = (short_grid.ready(scan) for scan in (cut, marked))
    assert_same(a.subject, b.subject)
    (network,) = build([b], short_grid)
    assert_array_equal(network.labels >= 0, inside)
    assert_array_equal(network.probabilities[~inside], 0)
    assert_array_equal(network.candidates[~inside], -1)
    assert_array_equal(network.labels[inside], build([a], short_grid)[0].labels)


def test_a_mask_with_more_than_the_brain_changes_nothing(toy, toy_builder):
    wider = toy.mask.copy()
    wider[:, :3] = True
    volume = np.where(toy.mask[..., None], toy.volume(0), np.random.default_rng(1).normal(500, 9, (*toy.mask.shape, 160)))
    volume = volume.astype(np.float32)
    scans = [on_mask(toy, mask, volume) for mask in (toy.mask, wider)]
    ready = [toy_builder.ready(scan) for scan in scans]
    assert len(scans[1].space) > len(scans[0].space) and ready[0].shared.free is ready[1].shared.free
    assert_same(ready[0].subject, ready[1].subject)


def test_padded_frames_and_locations_hold_nothing(toy, short_grid):
    scan = varied(toy, 0)
    subject = subject_of(scan, short_grid.placed(scan)[0], 0)
    assert subject.y.shape == (4096, 192) and subject.halves.shape == (2, 4096, 96)
    assert subject.kept.sum() == len(scan.frames) and subject.halves_kept.sum() < len(scan.frames)
    assert not subject.y[:, ~subject.kept].any() and not subject.y[~subject.valid].any()
    for half, kept, block in zip(subject.halves, subject.halves_kept, subject.blocks, strict=True):
        assert not half[:, ~kept].any()
        assert_array_equal(block >= 0, kept)
    assert set(np.unique(subject.blocks[0][subject.halves_kept[0]])).isdisjoint(subject.blocks[1][subject.halves_kept[1]])
