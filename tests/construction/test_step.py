"""The step: halves that are cleaned apart, the decision, and what its compiled program may contain and cost."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax import parallel
from pnet_jax.config import CleaningConfig, ConstructConfig
from pnet_jax.construction import Builder, build, resolve
from pnet_jax.construction.step import LEAST_DEGREES
from pnet_jax.construction.wave import compiled, stacked
from pnet_jax.ingest.cleaning import Recording, clean_recording, degrees_of, time_operator
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.scan import Half, halves_of, make_scan, n_eff, split_frames
from pnet_jax.space import RIGHT, grid_space, point_space

from .conftest import varied

# Halves


BAND = CleaningConfig(strategy=(), low_pass=0.1, high_pass=0.009)
KEPT = np.setdiff1d(np.arange(300), [*range(40, 52), 130, 131, *range(220, 240)])


def raw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A recording of a few locations, and six regressors."""
    rng = np.random.default_rng(seed)
    return (900 + 5 * rng.normal(size=(12, 300))).astype(np.float32), rng.normal(size=(300, 6))


def cleaned(y, confounds, kept=KEPT, cleaning=BAND):
    space = point_space(np.random.default_rng(0).uniform(-60, 60, (len(y), 3)))
    return clean_recording(Recording(y.copy(), space, 2.0, "sub-01", []), kept=kept, confounds=confounds, cleaning=cleaning)


def test_what_the_second_half_holds_changes_nothing_in_the_first():
    (y, confounds), (other, moved) = raw(), raw(1)
    second = KEPT[split_frames(KEPT, 2.0)[1][0]]
    changed = np.where(np.arange(300) >= second, 900 + 40 * (other - 900), y).astype(np.float32)
    noise = np.where(np.arange(300)[:, None] >= second, 9 * moved, confounds)
    before, after = cleaned(y, confounds), cleaned(changed, noise)
    assert_array_equal(after.halves[0].y, before.halves[0].y)
    assert_array_equal(after.halves[0].frames, before.halves[0].frames)
    assert after.halves[0].degrees == before.halves[0].degrees
    assert np.abs(after.halves[1].y - before.halves[1].y).max() > 0.1
    columns = np.searchsorted(KEPT, before.halves[0].frames)
    assert np.abs(after.y[:, columns] - before.y[:, columns]).max() > 1e-3  # cleaned as a whole it leaks


def test_degrees_of_freedom_are_the_trace_of_the_operator():
    y, confounds = raw()
    scan = cleaned(y, confounds)
    same = dict(tr=2.0, detrend=True, high_pass=0.009, low_pass=0.1, confounds=confounds)
    operator = time_operator(KEPT, **same).astype(np.float64)
    assert n_eff(scan) == scan.degrees == pytest.approx(np.trace(operator.T @ operator), rel=1e-5)
    for half, part in zip(scan.halves, split_frames(KEPT, 2.0), strict=True):
        operator = time_operator(KEPT[part], **same).astype(np.float64)
        assert half.degrees == pytest.approx(np.trace(operator.T @ operator), rel=1e-5)
    unfiltered = CleaningConfig(strategy=(), low_pass=None, high_pass=None, detrend=True)
    few = cleaned(y, confounds, cleaning=unfiltered)
    assert few.degrees == pytest.approx(len(KEPT) - 2 - 6, abs=0.1)  # level, trend, regressors
    assert degrees_of(np.eye(5)) == 5


def test_halves_of_a_scan_that_was_cleaned_before_share_its_degrees(toy):
    scan = dataclasses.replace(toy.scan(0), degrees=40.0)
    each = halves_of(scan)
    assert sum(half.degrees for half in each) == pytest.approx(40 * sum(len(half.frames) for half in each) / 160)


def with_degrees(scan, *degrees: float):
    halves = [half._replace(degrees=each) for half, each in zip(halves_of(scan), degrees, strict=True)]
    return dataclasses.replace(scan, halves=tuple(halves))


@pytest.mark.parametrize(("degrees", "decision"), [((LEAST_DEGREES, 50), "personalised"), ((60, 9.9), "atlas"), ((9.9, 60), "atlas")])
def test_a_half_with_fewer_than_ten_degrees_of_freedom_keeps_the_atlas(toy, toy_builder, degrees, decision):
    (network,) = build([toy_builder.ready(with_degrees(toy.scan(0), *degrees))], toy_builder)
    selection = network.qc.selection
    assert selection.decision == decision
    assert selection.degrees == pytest.approx(degrees)
    if decision == "atlas":
        assert f"leave {degrees[0]:.1f} and {degrees[1]:.1f} degrees of freedom in the halves" in selection.reason
        assert "minutes of scan instead of 5.3" in selection.reason
        assert_array_equal(network.labels, toy.expected)


def test_the_halves_decide_and_not_the_whole_recording(toy, toy_builder):
    """Signals of the whole scan with parcels in them, and halves that hold noise: nothing replicates."""
    scan, rng = toy.scan(0), np.random.default_rng(0)
    noise = [Half(rng.normal(size=half.y.shape).astype(np.float32), half.frames, half.degrees) for half in halves_of(scan)]
    (found,) = toy_builder.run([toy_builder.ready(dataclasses.replace(scan, halves=tuple(noise)))])
    assert not found.personalised


# The decision


def noise_scan(toy, seed: int):
    y = np.random.default_rng(seed).normal(size=(len(toy.space), 160))
    return make_scan(1000 + 10 * y, toy.space, tr=2.0, subject=f"noise{seed}")


def test_noise_keeps_the_atlas(toy, toy_builder):
    for seed in range(5):
        (found,) = toy_builder.run([toy_builder.ready(noise_scan(toy, seed))])
        assert not found.personalised
        assert_array_equal(found.labels[found.labels >= 0], np.sort(toy.expected))


def test_planted_parcels_are_personalised(toy, toy_builder):
    for seed in range(3):
        (network,) = build([toy_builder.ready(toy.scan(seed))], toy_builder)
        selection = network.qc.selection
        assert selection.decision == "personalised"
        assert selection.gain[0] > 0 and selection.dcbc_gain[0] > 0
        assert selection.personalised.dcbc > max(selection.atlas.dcbc, selection.data_free.dcbc)
        assert (network.labels == toy.truth).mean() > 0.9


def test_an_atlas_that_is_true_is_kept(toy, toy_builder):
    true = dataclasses.replace(toy, truth=toy.expected)
    for seed in range(3):
        (network,) = build([toy_builder.ready(true.scan(seed))], toy_builder)
        assert network.qc.selection.decision == "atlas"
        assert network.qc.selection.reason.endswith("so the atlas is kept")
        assert_array_equal(network.labels, toy.expected)


# The compiled program


@pytest.fixture(scope="module")
def wave(toy, short_grid):
    return [short_grid.ready(varied(toy, 0))]


def test_nothing_goes_to_the_host_or_comes_from_it_inside_the_step(wave, short_grid):
    step = compiled(short_grid.plan.settings, short_grid.mesh)
    wave_here = stacked([one.subject for one in wave], short_grid.mesh)
    given = jax.device_put(wave[0].shared, jax.devices()[0]), wave_here
    step(*given)  # constants of the program go to the device when it is compiled
    with jax.transfer_guard("disallow"):
        found = jax.block_until_ready(step(*given))
    assert_array_equal(found.labels[0], short_grid.run(wave)[0].labels)
    program = step.lower(*given).as_text()
    assert not re.search(r"callback|infeed|outfeed|host_compute", program)


COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast")


def test_devices_exchange_nothing(wave, short_grid):
    mesh = parallel.make_mesh()
    subjects = stacked([wave[0].subject] * 8, mesh)
    text = compiled(short_grid.plan.settings, mesh).lower(wave[0].shared, subjects).compile().as_text()
    assert "num_partitions=8" in text
    assert not COLLECTIVE.search(text)


PARCELS = 211


@pytest.fixture(scope="module")
def programs(toy_model):
    """The compiled step of a small and of a large brain of many parcels, by their padded number of locations."""
    out = {}
    for size, voxels in ((4096, 14), (12288, 21)):
        mask = np.ones((voxels, voxels + 2, voxels), bool)
        affine = np.diag([112.0 / voxels] * 3 + [1])
        affine[:3, 3] = [-56 + 56 / voxels, -70, -40]
        space = grid_space(mask, affine)
        rng, side = np.random.default_rng(0), space.hemisphere == RIGHT
        centres = space.xyz[rng.permutation(len(space))[:PARCELS]]
        nearest = np.linalg.norm(space.xyz[:, None] - centres[None], axis=-1) + 1e4 * (side[:, None] != (centres[None, :, 0] > 0))
        prior = make_atlas(space.xyz, nearest.argmin(1) + 1, resolution=space.resolution)
        builder = Builder(resolve(ConstructConfig(), model=toy_model, atlas=prior), parallel.make_mesh(devices=jax.devices()[:1]))
        ready = builder.ready(make_scan(rng.normal(size=(len(space), 64)), space, tr=2.0))
        assert ready.subject.y.shape == (size, 64)
        step = compiled(builder.plan.settings, builder.mesh)
        out[size] = step.lower(ready.shared, stacked([ready.subject], builder.mesh)).compile()
    return out


def test_cost_grows_with_the_number_of_locations_and_no_faster(programs):
    small, large = programs.values()
    flops = [program.cost_analysis()["flops"] for program in (small, large)]
    memory = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
    assert flops[1] < 3.3 * flops[0] and memory[1] < 3.3 * memory[0]


def test_no_table_of_all_locations_and_parcels_is_held(programs):
    for size, program in programs.items():
        held = re.findall(rf"\[(?:\d+,)*(?:{size},(?:\d+,)*{PARCELS}|{PARCELS},(?:\d+,)*{size})\b", program.as_text())
        assert not held
        assert f"{size}," in program.as_text() and re.search(rf"\b{PARCELS}\b", program.as_text())


# What comes out


def test_outputs_hold_together(toy, toy_builder):
    ready = toy_builder.ready(toy.scan(0))
    (found,) = toy_builder.run([ready])
    valid = ready.subject.valid
    assert_allclose(found.probabilities[valid].sum(1), 1, atol=1e-5)
    assert not found.probabilities[~valid].any() and (found.candidates[~valid] == -1).all()
    assert (found.labels[valid, None] == found.candidates[valid]).any(1).all()
    assert not found.signals[:, ~ready.subject.kept].any()
    assert found.reliability[2].sum() == 2 * valid.sum()
    assert (found.reliability[1] <= found.reliability[2]).all()
    assert found.choice.halves == ()
    assert 0 < found.quality.agreement <= 1 and found.quality.cosine > 0
