"""Fine-tuning: what its errors are, that it changes nothing where nothing is gained, and that nobody's neighbours matter."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax import parallel
from pnet_jax.config import PersonalizeConfig
from pnet_jax.construction import build
from pnet_jax.construction.informed import tunable
from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.effective import fit_effective
from pnet_jax.dynamics.spectra import TooShortError, scale_of, spectra, standardise
from pnet_jax.encoder.adapter import adapt
from pnet_jax.finetune import fine_tune, initial_parameters, stacked
from pnet_jax.finetune.objective import (
    both_halves,
    dynamics_loss,
    held_out,
    parcel_spectra,
    parcels,
    predicted,
    roughness,
    split_loss,
)
from pnet_jax.finetune.person import dynamics_of, dynamics_prior, effective_of, judge
from pnet_jax.finetune.subject import bins_of, parts_of
from pnet_jax.group.fit import fit_group
from pnet_jax.parcellation.mixture import soft_sums
from pnet_jax.parcellation.spatial import locate

CONFIG = PersonalizeConfig(rounds=3, steps=3)
K = 12


@pytest.fixture(scope="module")
def scans(toy):
    return [toy.scan(seed, subject=f"{seed:02d}") for seed in range(4)]


@pytest.fixture(scope="module")
def ready(scans, toy_builder):
    return [toy_builder.ready(scan) for scan in scans]


@pytest.fixture(scope="module")
def group(ready, toy_builder):
    return fit_group([build([one], toy_builder)[0] for one in ready], toy_builder.plan.atlas, dynamics=True)


@pytest.fixture(scope="module")
def prior(group, toy_model):
    return dynamics_prior(group.hierarchy, toy_model.atlases[K], CONFIG)


@pytest.fixture(scope="module")
def subjects(ready, toy_builder):
    return [tunable(one, toy_builder, CONFIG)[1] for one in ready]


@pytest.fixture(scope="module")
def wave(prior, subjects):
    return jax.tree.map(np.asarray, step_over(1)(prior, stacked(subjects)))


def step_over(devices: int):
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    return parallel.over_subjects(lambda prior, subject: fine_tune(prior, subject, CONFIG), mesh, shared=1)


# the errors


def test_split_loss_is_the_error_of_the_fingerprints_themselves(subjects, prior):
    subject, rng = subjects[0], np.random.default_rng(0)
    own = initial_parameters(subject.x.shape[1], prior, CONFIG).adapter
    own = own._replace(up=jnp.asarray(rng.normal(0, 0.05, own.up.shape), jnp.float32))
    x, other = np.asarray(subject.x), rng.normal(size=(len(subject.x), subject.decoder.shape[1])).astype(np.float32)
    halves = subject.later._replace(own=jnp.asarray(x.T @ x), across=jnp.asarray(x.T @ other), energy=jnp.asarray((other**2).sum(0)))
    told = np.asarray(adapt(own, subject.x)) @ np.asarray(subject.decoder)
    weight = np.asarray(subject.weight)
    expected = (((told - other) ** 2).sum(0) @ weight) / ((other**2).sum(0) @ weight)
    assert_allclose(split_loss(own, subject, halves), expected, rtol=1e-4)


def test_soft_sums_are_those_of_the_dense_table():
    rng = np.random.default_rng(1)
    candidates = np.stack([rng.permutation(7)[:4] for _ in range(30)]).astype(np.int32)
    candidates[3, 2:] = -1
    q, rows = rng.random((30, 4)).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
    dense = np.zeros((30, 7), np.float32)
    for v, c in zip(*np.nonzero(candidates >= 0), strict=True):
        dense[v, candidates[v, c]] = q[v, c]
    sums, masses = soft_sums(jnp.asarray(q), jnp.asarray(candidates), jnp.asarray(rows), 7)
    assert_allclose(sums, dense.T @ rows, atol=1e-5)
    assert_allclose(masses, dense.sum(0), atol=1e-5)


def test_spectra_of_soft_parcels_are_those_of_their_mean_signals(subjects, scans, ready):
    subject, rows, best = subjects[0], locate(ready[0].placed, scans[0]), np.asarray(subjects[0].q.argmax(1))
    seen, _ = parcel_spectra(subject, jax.nn.one_hot(best, subject.q.shape[1]), K)
    labels = np.asarray(subject.candidates)[np.arange(len(best)), best][rows.valid]
    y = scans[0].y[rows.at[rows.valid]]
    signals = np.stack([y[labels == k].mean(0) for k in range(K)])
    parts = parts_of(scans[0], CONFIG)
    expected = standardise(spectra(jnp.asarray(signals), bins_of(scans[0], parts.fitted, parts.picking)[0]))
    assert_allclose(seen.dft, expected.dft, atol=2e-4)
    assert_allclose(scale_of(seen._replace(dft=seen.dft[:, :2])), 1, atol=1e-4)


def test_without_a_change_the_dynamics_tell_as_much_as_the_groups(subjects, prior):
    own = initial_parameters(subjects[0].x.shape[1], prior, CONFIG)
    seen, later = parcel_spectra(subjects[0], subjects[0].q, K)
    assert float(predicted(own, prior, seen)) == 0 == float(dynamics_loss(own, prior, seen))
    representation, dynamics = held_out(own, subjects[0], prior, later, CONFIG)
    assert dynamics == 0 and 0 < representation < 1.5


def test_gradients_of_the_likelihood_reach_adapter_and_offsets(subjects, prior):
    soft = subjects[0]._replace(kappa=jnp.float32(3))  # parcels that give way
    own = initial_parameters(soft.x.shape[1], prior, CONFIG)
    rng = np.random.default_rng(2)
    other = own.dynamics._replace(coupling=own.dynamics.coupling + jnp.asarray(0.5 * np.eye(K), jnp.float32))
    own = own._replace(dynamics=other, adapter=own.adapter._replace(up=jnp.asarray(rng.normal(0, 0.05, own.adapter.up.shape), jnp.float32)))

    @jax.jit
    def loss(adapter):
        found, z = parcels(adapter, soft, soft.q, 2)
        return predicted(own._replace(adapter=adapter), prior, parcel_spectra(soft, found.q, K)[0]) + roughness(z, soft.pairs)

    gradient = jax.jit(jax.grad(loss))(own.adapter)
    for name in ("up", "offsets"):
        slope = np.asarray(getattr(gradient, name))
        at = np.unravel_index(np.abs(slope).argmax(), slope.shape)
        ends = []
        for step in (5e-2, -5e-2):
            moved = np.array(getattr(own.adapter, name))
            moved[at] += step
            ends.append(float(loss(own.adapter._replace(**{name: jnp.asarray(moved)}))))
        assert slope[at] != 0
        assert (ends[0] - ends[1]) / 1e-1 == pytest.approx(slope[at], rel=0.1)


def test_borders_cost_the_same_however_sharp():
    z = jnp.asarray([[1.0, 0], [1, 0], [0, 1], [-1, 0]], jnp.float32)
    near, far = (float(roughness(z, jnp.asarray([pair, [-1, -1]], jnp.int32))) for pair in ([1, 2], [1, 3]))
    assert float(roughness(z, jnp.asarray([[0, 1], [-1, -1]], jnp.int32))) == 0
    assert near < far < 1.2 * near


# a person


def test_the_best_round_is_kept_and_the_error_of_the_halves_falls(wave, subjects, prior):
    assert wave.ok.all()
    assert_array_equal(wave.round, wave.curve.sum(2).argmin(1))
    plain = initial_parameters(subjects[0].x.shape[1], prior, CONFIG).adapter
    improved = wave.round > 0
    assert improved.any()
    for at in np.flatnonzero(improved):
        own = jax.tree.map(lambda leaf, at=at: jnp.asarray(leaf[at]), wave.own.adapter)
        assert both_halves(own, subjects[at]) < both_halves(plain, subjects[at])


def test_no_dynamics_leave_the_group_its_own(subjects, prior):
    alone = jax.jit(lambda prior, subject: fine_tune(prior, subject, dataclasses.replace(CONFIG, dynamics_weight=0.0)))
    found = alone(prior, subjects[0])
    assert_array_equal(found.own.dynamics.coupling, prior.mean.coupling)
    assert_array_equal(found.curve[:, 1], 0)


def one_of(wave, at: int):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[at]), wave)


def test_parcels_are_kept_only_where_the_judging_part_gains(wave, subjects, ready, prior, toy_model):
    for at, one in enumerate(ready):
        found = judge(one.scan, one.placed, toy_model, subjects[at], prior, one_of(wave, at), CONFIG)
        assert not found.kept or found.score > found.without
        assert wave.round[at] == 0 or "95 % interval" in found.reason
        assert np.isfinite([found.score, found.without]).all() == (wave.round[at] > 0)
    nothing, broken = (one_of(wave, 0)._replace(**changed) for changed in ({"round": jnp.int32(0)}, {"ok": jnp.array(False)}))
    for tuned, said in ((nothing, "no round predicted"), (broken, "not finite")):
        found = judge(ready[0].scan, ready[0].placed, toy_model, subjects[0], prior, tuned, CONFIG)
        assert not found.kept and said in found.reason


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("frames", [60, 161, 900])
def test_parts_have_gaps_between_them(toy, share, frames):
    scan, config = toy.scan(0, frames=frames), dataclasses.replace(CONFIG, held_out=share)
    parts = parts_of(scan, config)
    assert (np.stack(parts).sum(0) <= 1).all()
    ends = [(np.flatnonzero(part).min(), np.flatnonzero(part).max()) for part in parts]
    gap = min(15, frames // 20)  # 30 s of frames of 2 s, or a twentieth
    assert [later[0] - earlier[1] - 1 for earlier, later in itertools.pairwise(ends)] == [gap, gap]
    assert ends[0][0] == 0 and ends[2][1] == frames - 1
    assert parts.judging.sum() == pytest.approx(share * frames, abs=1)


def test_the_judging_part_has_no_say_in_fit_and_round(wave, subjects, ready, prior, toy_builder, toy_model):
    one = ready[0]
    judging = parts_of(one.scan, CONFIG).judging
    y = one.scan.y.copy()
    y[:, judging] = np.random.default_rng(7).normal(size=(len(y), judging.sum()))
    changed = toy_builder.ready(dataclasses.replace(one.scan, y=y))
    other = tunable(changed, toy_builder, CONFIG)[1]
    for name, new, old in zip(other._fields, other, subjects[0], strict=True):
        jax.tree.map(lambda a, b, name=name: assert_array_equal(a, b, err_msg=name), new, old)
    again = step_over(1)(prior, stacked([other, *subjects[1:]]))
    assert_array_equal(again.round, wave.round)
    tuned = one_of(wave, 0)._replace(round=jnp.int32(1))  # judged, whatever the best round was
    verdicts = [judge(each.scan, each.placed, toy_model, subjects[0], prior, tuned, CONFIG) for each in (one, changed)]
    assert verdicts[0].score != verdicts[1].score and verdicts[0].without > verdicts[1].without


def test_absent_parcels_have_no_dynamics(scans, prior):
    signals = np.random.default_rng(0).normal(size=(K, scans[0].y.shape[1])).astype(np.float32)
    signals[3] = np.nan
    found = dynamics_of(scans[0], signals, prior, CONFIG)
    assert found.coupling.shape == (K - 1, K - 1) == found.error.shape
    assert np.linalg.eigvalsh(found.coupling).max() < 0


def test_what_one_parcel_does_to_another_stands_in_its_column(toy, prior):
    scan, rng, here = toy.scan(0, frames=600), np.random.default_rng(0), [1, 4, 6, 9]
    j = -0.8 * np.eye(4)
    j[1, 0] = 0.7  # of those that are present, the first drives the second
    hz = np.fft.rfftfreq(660, scan.tr)
    response = haemodynamics.response(hz)[:, None, None] * np.linalg.inv(2j * np.pi * hz[:, None, None] * np.eye(4) - j)
    drive = rng.normal(size=(2, len(hz), 4, 1))
    y = np.fft.irfft((response @ (drive[0] + 1j * drive[1]))[..., 0], axis=0)[: scan.y.shape[1]].T
    signals = np.full((K, scan.y.shape[1]), np.nan, np.float32)
    signals[here] = y / y.std(1, keepdims=True) + 0.2 * rng.normal(size=y.shape)
    symmetric = dynamics_of(scan, signals, prior, CONFIG)
    found = effective_of(scan, signals, prior, symmetric, CONFIG)
    assert found.ok and found.coupling.shape == found.error.shape == (4, 4)
    forth, back = found.coupling[1, 0], found.coupling[0, 1]
    assert forth > 0.25 and forth - back > 2 * np.hypot(found.error[1, 0], found.error[0, 1])
    assert np.argmax(found.coupling - 9 * np.eye(4)) == 4  # row 1, column 0


def test_a_directed_fit_that_fails_gives_the_symmetric_coupling(scans, prior, monkeypatch):
    signals = np.random.default_rng(0).normal(size=(K, scans[0].y.shape[1])).astype(np.float32)
    symmetric = dynamics_of(scans[0], signals, prior, CONFIG)

    def unstable(seen, prior, **_):
        return fit_effective(seen, prior, steps=1)._replace(params=prior._replace(jacobian=-prior.jacobian))

    def refused(*_, **__):
        raise ValueError("expected a stable start")

    for broken in (unstable, refused):
        monkeypatch.setattr("pnet_jax.finetune.person.fit_effective", broken)
        found = effective_of(scans[0], signals, prior, symmetric, CONFIG)
        assert not found.ok
        assert_array_equal(found.coupling, symmetric.coupling)
        assert_array_equal(found.error, symmetric.error)


def test_a_scan_too_short_for_the_band_is_named(toy, toy_builder):
    ready = toy_builder.ready(toy.scan(0, frames=45, subject="07"))
    with pytest.raises(TooShortError, match=r"sub-07.*part of the recording.*too few frames"):
        tunable(ready, toy_builder, CONFIG)


# isolation


def test_neighbours_and_position_change_no_bit(wave, subjects, prior):
    order = [2, 0, 3, 1]
    bad = subjects[3]._replace(x=jnp.full_like(subjects[3].x, jnp.nan), rows=jnp.full_like(subjects[3].rows, jnp.nan))
    turned = step_over(1)(prior, stacked([*(subjects[i] for i in order[:2]), bad, subjects[1]]))
    for place, at in ((0, 2), (1, 0), (3, 1)):
        for new, old in zip(jax.tree.leaves(turned), jax.tree.leaves(wave), strict=True):
            assert_array_equal(np.asarray(new)[place], old[at])
    assert not turned.ok[2]


@pytest.mark.parametrize(("size", "devices"), [(2, 1), (4, 4)])
def test_wave_size_and_devices_change_nothing_that_matters(wave, subjects, prior, size, devices):
    found = step_over(devices)(prior, stacked(subjects[:size]))
    assert_array_equal(found.round, wave.round[:size])
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(wave), strict=True):
        assert_allclose(np.asarray(new, np.float64), np.asarray(old[:size], np.float64), atol=1e-5, rtol=1e-5)


def test_steps_between_the_rounds_do_not_go_through_the_locations(subjects, prior):
    def flops(steps: int) -> float:
        config = dataclasses.replace(CONFIG, rounds=1, steps=steps)
        lowered = jax.jit(lambda prior, subject: fine_tune(prior, subject, config)).lower(prior, subjects[0])
        return lowered.compile().cost_analysis()["flops"]

    whole, more = flops(1), flops(3) - flops(2)  # a loop's body counts once, however often it runs
    assert more == 0 or more < 0.1 * whole
