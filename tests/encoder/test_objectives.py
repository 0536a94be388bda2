"""Each term: what it is made of, what it must not read, and that it can be learned."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft
import scipy.linalg
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.config import ObjectiveConfig
from pnet_jax.dynamics.forecast import generator, transition
from pnet_jax.encoder.dynamics import dyn_loss
from pnet_jax.encoder.objectives import TERMS, hide_balls, mae_loss, nce_loss, negatives, split_loss, total, vic_loss, window_basis
from pnet_jax.encoder.perceiver import network

ALL = ObjectiveConfig(anchors=32, negatives=16)
value = jax.jit(total, static_argnames="config")


@jax.jit
def measured(params, encoder, segments, key):
    """((loss, terms), gradient); compiled once for all tests."""
    return jax.value_and_grad(lambda p: total(encoder._replace(params=p), segments, key, ALL), has_aux=True)(params)


def only(*names):
    return ObjectiveConfig(anchors=32, negatives=16, **{name: float(name in names) for name in TERMS})


def terms(encoder, segments, seed=0):
    found = measured(encoder.params, encoder, segments, jax.random.key(seed))[0][1]
    return {name: float(x) for name, x in found.items()}


# The whole


@pytest.mark.parametrize(
    "given",
    [
        {"tr": 0.7, "empty": 7},
        {"tr": 3.0, "frames": 30},
        {"tr": 0.7, "frames": 30},
        {"empty": 14},
        {"spread": 5.0, "empty": 10},
        {"tr": 20.0},
    ],
    ids=str,
)
def test_terms_and_gradients_are_finite_for_all_kinds_of_input(make_encoder, make_segments, given):
    frames = given.pop("frames", 80)
    segments = make_segments(**given)
    segments.kept[..., frames:] = False
    segments.counted[1] = False  # a batch is padded with empty scans
    encoder = make_encoder(trained=False)
    found = measured(encoder.params, encoder, segments, jax.random.key(0))
    assert set(found[0][1]) == {*TERMS, "split_r2"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert found[0][0] < 6


def test_the_loss_is_the_weighted_sum_and_a_term_of_weight_0_is_not_computed(make_encoder, make_segments):
    encoder, segments, key = make_encoder(), make_segments(), jax.random.key(0)
    (whole, found), _ = measured(encoder.params, encoder, segments, key)
    assert_allclose(whole, sum(getattr(ALL, name) * found[name] for name in TERMS), rtol=1e-6)
    work = {name: value.lower(encoder, segments, key, config=only(name)).cost_analysis()["flops"] for name in TERMS}
    everything = value.lower(encoder, segments, key, config=ALL).cost_analysis()["flops"]
    assert all(each < 0.6 * everything for each in work.values())
    alone, parts = value(encoder, segments, key, config=only("split"))
    assert set(parts) == {"split", "split_r2"}
    assert_allclose(alone, found["split"], rtol=1e-5)
    nothing, none = value(encoder, segments, key, config=only())
    assert nothing == 0 and not none


def test_what_is_not_counted_is_not_read(make_encoder, make_segments):
    given = make_segments()
    counted, kept = given.counted.copy(), given.kept.copy()
    counted[:, 50:], kept[:, :, 70:] = False, False
    given = given._replace(counted=counted, kept=kept)
    other = given._replace(**{name: getattr(given, name).copy() for name in ("y", "xyz", "log_tsnr", "references", "hemisphere")})
    other.y[:, :, 50:], other.y[..., 70:], other.references[..., 70:] = 9, -9, 5
    other.xyz[:, 50:], other.log_tsnr[:, :, 50:], other.hemisphere[:, 50:] = 0, 4, 1
    plain, found = terms(make_encoder(), given), terms(make_encoder(), other)
    for name in plain:
        assert_allclose(found[name], plain[name], rtol=1e-6, err_msg=name)


def test_the_order_of_scans_changes_nothing_and_draws_are_a_scans_own(make_encoder, make_segments):
    given = make_segments()
    plain, found = terms(make_encoder(), given), terms(make_encoder(), jax.tree.map(lambda x: x[::-1], given))
    for name in plain:
        assert_allclose(found[name], plain[name], rtol=1e-5, err_msg=name)
    assert terms(make_encoder(), given, seed=1)["mae"] != plain["mae"]


def test_every_term_falls_in_a_few_steps(make_encoder, make_segments):
    segments, encoder = make_segments(), make_encoder(trained=False)
    start, params = terms(encoder, segments), encoder.params
    optimiser = optax.adam(5e-3)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        update, state = jax.jit(optimiser.update), optimiser.init(params)
        for _ in range(60):
            change, state = update(measured(params, encoder, segments, jax.random.key(0))[1], state)
            params = optax.apply_updates(params, change)
    end = terms(encoder._replace(params=params), segments)
    for name in ("split", "nce", "mae", "dyn"):
        assert end[name] < 0.97 * start[name], name
    assert end["split_r2"] > start["split_r2"]


def test_gradients_equal_finite_differences(make_encoder, make_segments):
    segments, encoder = make_segments(), make_encoder()

    def find(params):
        return measured(params, encoder, segments, jax.random.key(0))

    slope = find(encoder.params)[1]
    leaves, tree = jax.tree.flatten(encoder.params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        step = jax.tree.unflatten(tree, [rng.normal(size=x.shape).astype(np.float32) for x in leaves])
        up, down = (find(jax.tree.map(lambda p, s, h=h: p + h * s, encoder.params, step))[0][0] for h in (1e-3, -1e-3))
        expected = sum(jax.tree.leaves(jax.tree.map(lambda g, s: (g * s).sum(), slope, step)))
        assert_allclose((up - down) / 2e-3, expected, rtol=3e-2, atol=2e-2)


# split


def fingerprints(seed=0, noise=(0.5, 0.5, 2.0)):
    """Two noisy views of one truth, [B, 2, V, R]."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(4, 1, 500, 3))
    return truth, (truth + rng.normal(size=(4, 2, 500, 3)) * np.array(noise)).astype(np.float32)


def test_split_equals_its_definition():
    truth, found = fingerprints()
    counted, present = np.random.default_rng(1).random((4, 500)) < 0.8, np.array([[True, True, False]] * 2 + [[True] * 3] * 2)
    predicted = np.broadcast_to(0.7 * truth, found.shape).astype(np.float32)
    valid = (counted[:, :, None] & present[:, None])[:, None]
    noise = (np.square(found[:, :1] - found[:, 1:]) * valid).sum((0, 1, 2)) / valid.sum((0, 1, 2)) / 2
    floor = 0.05 * (np.square(found[:, :1] - found[:, 1:]) * valid).sum() / valid.sum() / 2
    weight = valid / (noise + floor)
    error, variance = np.square(predicted - found[:, ::-1]), np.square(found)
    loss, r2 = split_loss(predicted, found, counted, present)
    assert_allclose(loss, (weight * error).sum() / (weight * variance).sum(), rtol=1e-4)
    assert_allclose(r2, 1 - (valid * error).sum() / (valid * variance).sum(), rtol=1e-4)


def test_the_truth_is_the_best_prediction_although_it_is_never_seen():
    truth, found = fingerprints()
    everything = np.ones((4, 500), bool), np.ones((4, 3), bool)
    loss = [float(split_loss(np.float32(scale * truth) + 0 * found, found, *everything)[0]) for scale in (0.0, 0.8, 1.0, 1.2)]
    own = float(split_loss(found, found, *everything)[0])  # a segment as its own prediction has its own noise too
    assert_allclose(loss[0], 1, rtol=1e-6)
    assert loss[2] < min(loss[1], loss[3], own)


# nce


def brain(count=300, seed=0):
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-50, 50, (count, 3)).astype(np.float32)
    return xyz, (xyz[:, 0] > 0).astype(np.int32), rng.random(count) < 0.9


def test_negatives_are_of_the_hemisphere_half_near_and_none_too_near():
    xyz, hemisphere, counted = brain()
    anchors = np.arange(40)
    chosen = np.asarray(negatives(anchors, xyz, hemisphere, counted, jax.random.key(0), ObjectiveConfig(negatives=16)))
    away = np.linalg.norm(xyz[:40, None] - xyz[None], axis=-1)
    able = counted[None] & (hemisphere[:40, None] == hemisphere[None]) & (away >= 8)
    near = (able & (away <= 30)).sum(1)
    assert_array_equal(chosen.sum(1), 16)
    assert not (chosen & ~able).any()
    assert ((chosen & (away <= 30)).sum(1) >= np.minimum(near, 8)).all()
    assert (chosen & (away > 30)).any()
    few = np.asarray(negatives(anchors, xyz, hemisphere, counted, jax.random.key(0), ObjectiveConfig(negatives=256)))
    assert_array_equal(few, able)  # all there are


def test_nce_equals_its_definition():
    xyz, hemisphere, counted = brain(60)
    z = np.random.default_rng(2).normal(size=(2, 60, 4)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    config = ObjectiveConfig(anchors=60, negatives=60, temperature=0.2)
    away = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    able = counted[None] & (hemisphere[:, None] == hemisphere[None]) & (away >= 8) | np.eye(60, dtype=bool)
    terms = []
    for logits in (z[0] @ z[1].T / 0.2, z[1] @ z[0].T / 0.2):
        terms.append(np.log((np.exp(logits) * able).sum(1)) - np.diag(logits))
    expected = np.mean(terms, 0)[counted].mean()
    assert_allclose(nce_loss(z, xyz, hemisphere, counted, jax.random.key(0), config), expected, rtol=1e-4)


# mae


def test_whole_balls_are_hidden_up_to_the_share_that_was_asked():
    xyz, _, counted = brain(2000)
    points = xyz[::20] + np.float32(0.01)
    hidden, dark = (np.asarray(x) for x in hide_balls(xyz, points, counted, jax.random.key(0), 0.75, 24.0))
    assert 0.65 < hidden.sum() / counted.sum() <= 0.75
    assert not hidden[~counted].any()
    assert_array_equal((dark & counted[::20]), hidden[::20])  # a reference point is hidden with the locations around it
    # Balls: what is hidden lies within 24 mm of a location all of whose surroundings are hidden.
    away = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1) <= 24
    full = hidden & ~(away & counted[None] & ~hidden[None]).any(1)
    assert (away[hidden][:, full].any(1)).all()


@pytest.mark.parametrize("tr", [0.5, 0.8, 2.0])
def test_windows_are_the_cosine_transform_of_32_seconds(tr):
    size = round(32 / tr)
    y = np.random.default_rng(0).normal(size=(5, 2 * size + 7)).astype(np.float32)
    found = (y @ np.asarray(window_basis(np.ones(y.shape[1], bool), np.arange(y.shape[1]), tr))).reshape(5, -1, 8)
    expected = scipy.fft.dct(y[:, : 2 * size].reshape(5, 2, size), norm="ortho")[..., :8] / np.sqrt(size)
    assert_allclose(found[:, :2], expected, atol=1e-4)
    assert_array_equal(found[:, 2:], 0)  # a window begun is none


@pytest.mark.parametrize("tr", [0.36, 0.48, 0.64, 0.72, 0.8, 1.2, 1.44, 1.6, 2.4, 3.2])
def test_a_window_filled_to_nine_tenths_exactly_is_full(tr):
    enough = round(28.8 / tr)
    for frames, expected in ((enough, True), (enough - 1, False)):
        assert (np.asarray(window_basis(np.ones(frames, bool), np.arange(frames), np.float32(tr))) != 0).any() == expected


def test_windows_are_of_the_recording_where_frames_were_scrubbed():
    left = np.delete(np.arange(80), [3, 20, 21, 22])  # windows of 16 frames: one frame less in the first, three in the second
    found = np.asarray(window_basis(np.ones(len(left), bool), left, 2.0))
    assert_array_equal(found, np.asarray(window_basis(np.isin(np.arange(80), left), np.arange(80), 2.0))[left])
    full = np.abs(found).sum(0).reshape(-1, 8)[:5].max(1) > 0
    assert_array_equal(full, [True, False, True, True, True])
    assert_array_equal(np.flatnonzero(found[:, 16]), np.flatnonzero((left >= 32) & (left < 48)))


def test_mae_is_0_for_the_mixture_that_made_the_signals_and_1_for_none():
    rng = np.random.default_rng(0)
    references = rng.normal(size=(6, 100))
    references = ((references - references.mean(1, keepdims=True)) / references.std(1, keepdims=True)).astype(np.float32)
    weights = rng.normal(size=(20, 6)).astype(np.float32)
    given = weights @ references, references, np.ones(100, bool), np.arange(100), np.float32(2), np.arange(20) < 9
    assert_allclose(mae_loss(weights, *given), 0, atol=1e-6)
    assert_allclose(mae_loss(0 * weights, *given), 1, rtol=1e-6)
    wrong = np.where(given[-1][:, None], weights, 100)  # of visible locations nothing is asked
    assert_allclose(mae_loss(wrong, *given), 0, atol=1e-6)


# vic and dyn


def test_vic_is_0_for_independent_dimensions_and_grows_with_collapse():
    z = np.linalg.qr(np.random.default_rng(0).normal(size=(400, 4)) - 0.0)[0].astype(np.float32)
    z = (z - z.mean(0)) / z.std(0) / 2
    counted = np.ones(400, bool)
    fine, line = float(vic_loss(z, counted)), float(vic_loss(np.repeat(z[:, :1], 4, 1), counted))
    flat = float(vic_loss(np.repeat(z[:1], 400, 0), counted))
    assert fine < 0.02
    assert_allclose(line, 3, rtol=0.01)  # four equal dimensions of variance 1: 12 covariances of 1, over 4
    assert_allclose(flat, 0.99, rtol=0.01)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("tr", [0.5, 2.0, 50.0])
def test_no_weights_and_no_tr_make_the_dynamics_grow(make_encoder, size, tr):
    encoder = make_encoder()
    rng = np.random.default_rng(0)
    for name in ("turn", "damp"):
        encoder.params["heads"][name] = jnp.asarray(size * rng.normal(size=(5, 5)), jnp.float32)
    heads = network(encoder).heads
    rate = generator(heads.turn[...], heads.damp[...])
    assert np.linalg.eigvalsh(np.float64(rate) + np.float64(rate).T).max() < 0
    assert np.linalg.norm(np.asarray(transition(rate, tr)), 2) < 1 + 1e-4


def test_transitions_equal_the_matrix_exponential(make_encoder):
    heads = network(make_encoder()).heads
    rate = generator(heads.turn[...], heads.damp[...])
    for tr in (0.7, 2.0, 3.0):
        assert_allclose(transition(rate, tr), scipy.linalg.expm(np.float64(rate) * tr), atol=1e-5)


def test_dynamics_that_made_the_signals_forecast_them_at_any_tr():
    angle = 2 * np.pi * 0.03
    rate = np.array([[-0.001, angle], [-angle, -0.001]], np.float32)
    z = np.eye(2, dtype=np.float32)
    for tr in (0.7, 2.0, 3.0):
        seconds = tr * np.arange(60)
        y = np.float32(np.exp(-0.001 * seconds) * np.stack([np.sin(angle * seconds + 0.4), np.cos(angle * seconds + 0.4)]))
        loss = functools.partial(
            dyn_loss, z=z, y=y, kept=np.ones(60, bool), frames=np.arange(60), counted=np.ones(2, bool), tr=np.float32(tr), horizon=4
        )
        assert float(loss(jnp.asarray(rate))) < 2e-2
        assert float(loss(jnp.zeros((2, 2)))) > 5 * float(loss(jnp.asarray(rate)))


def test_forecasts_do_not_cross_scrubbed_frames():
    angle = 2 * np.pi * 0.03
    rate = jnp.asarray([[-0.001, angle], [-angle, -0.001]], jnp.float32)
    left = np.flatnonzero(np.random.default_rng(0).random(90) > 0.3)
    seconds = 2.0 * left
    y = np.float32(np.exp(-0.001 * seconds) * np.stack([np.sin(angle * seconds + 0.4), np.cos(angle * seconds + 0.4)]))
    given = {"y": y, "kept": np.ones(len(left), bool), "counted": np.ones(2, bool), "tr": np.float32(2), "horizon": 4}
    known, glued = (float(dyn_loss(rate, np.eye(2, dtype=np.float32), frames=at, **given)) for at in (left, np.arange(len(left))))
    assert known < 2e-2 < 0.1 < glued
