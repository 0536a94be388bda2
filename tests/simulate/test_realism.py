"""The properties of real scans that the tier `real` adds, one by one, and that the truth stays what it was."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kurtosis

from pnet_jax.config import SimulateConfig
from pnet_jax.simulate import group_truth, observe, realism, simulate_subject, space
from pnet_jax.space import LEFT, RIGHT, grid_space

PARCELS = 20
REAL = SimulateConfig(subjects=1, sessions=2, tier="real", parcels=PARCELS, minutes=2.0, tr=2.0)
AMPLITUDES = realism.Realism(heterogeneity=1.0, gradients=1.0, vascular=1.0, motion=1.0, drop_out=0.7, tail=6.0)


@pytest.fixture(scope="module")
def brain():
    return space.grey_matter_space(4)


@pytest.fixture(scope="module")
def labels():
    return group_truth(4, PARCELS, 0).labels


@pytest.fixture(scope="module")
def traits(brain, labels):
    return realism.draw_traits(labels, brain, PARCELS, AMPLITUDES, np.random.default_rng(0))


@pytest.fixture(scope="module")
def subject():
    return simulate_subject(REAL, 0)


def parcel_means(values, labels):
    return np.stack([values[labels == k].mean(0) for k in range(PARCELS)])


def homogeneity(y, labels):
    return np.mean([np.mean(np.corrcoef(y[labels == k][::20])) for k in range(PARCELS)])


# Soft borders


@pytest.mark.parametrize("width", [4.0, 8.0])
def test_a_border_is_as_wide_as_asked(width):
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[0, 3] = 1.0  # one hemisphere
    line = grid_space(np.ones((80, 2, 2), bool), affine, name="line")
    halves = (line.xyz[:, 0] > 21).astype(np.int32)
    adjacent, share = realism.soft_borders(halves, line, np.full(len(line), width))
    second = np.where(halves == 1, 1 - share, share)  # weight of parcel 1, along the line
    at = np.argsort(line.xyz[:, 0], kind="stable")
    low, high = np.interp([0.1, 0.9], second[at], line.xyz[at, 0])
    assert_allclose(high - low, width, atol=0.5)  # a voxel
    assert_array_equal(adjacent[share > 0], 1 - halves[share > 0])


def test_the_label_is_the_parcel_of_largest_weight_and_hemispheres_do_not_blend(brain, labels, traits):
    assert traits.share.min() >= 0 and 0.2 < traits.share.max() < 0.5
    blends = traits.share > 0
    assert 0.2 < blends.mean() < 0.9
    assert (traits.adjacent[blends] != labels[blends]).all()
    assert_array_equal(traits.adjacent < PARCELS // 2, brain.hemisphere == LEFT)
    assert_array_equal(traits.adjacent >= PARCELS // 2, brain.hemisphere == RIGHT)


# Heterogeneity


def test_loadings_have_mean_0_in_each_parcel_and_rms_1(labels, traits):
    for loading in (traits.loading[:, None], traits.gradients):
        assert_allclose(parcel_means(loading, labels), 0, atol=2e-3)
        assert_allclose(np.square(loading).mean(0), 1, rtol=1e-3)


def test_gradients_are_continuous_across_borders(brain, labels, traits):
    here = np.repeat(np.arange(len(brain)), brain.neighbours.shape[1])
    there = brain.neighbours.ravel()
    pairs = there >= 0
    here, there = here[pairs], there[pairs]
    change = np.square(traits.gradients[here] - traits.gradients[there]).mean(1)
    border = labels[here] != labels[there]
    assert change[border].mean() < 1.5 * change[~border].mean()
    assert change.mean() < 0.5  # 2 for independent values


def test_the_neural_signal_has_the_first_latent_as_its_mean_in_each_true_parcel(labels, traits):
    latent, second = np.random.default_rng(1).standard_normal((2, PARCELS, 60)).astype(np.float32)
    gradients = np.random.default_rng(2).standard_normal((realism.GRADIENTS, 60)).astype(np.float32)
    hard = dataclasses.replace(traits, share=np.zeros_like(traits.share))
    assert_allclose(
        parcel_means(realism.neural(latent, labels, realism.RealismInputs(AMPLITUDES, hard, second, gradients)), labels), latent, atol=0.01
    )
    soft = parcel_means(realism.neural(latent, labels, realism.RealismInputs(AMPLITUDES, traits, second, gradients)), labels)
    assert min(np.corrcoef(soft[k], latent[k])[0, 1] for k in range(PARCELS)) > 0.95


@pytest.mark.parametrize("part", ["heterogeneity", "gradients"])
def test_parcels_are_not_homogeneous(labels, traits, part):
    latent, second = np.random.default_rng(1).standard_normal((2, PARCELS, 60)).astype(np.float32)
    gradients = np.random.default_rng(2).standard_normal((realism.GRADIENTS, 60)).astype(np.float32)
    none = dataclasses.replace(AMPLITUDES, heterogeneity=0.0, gradients=0.0)
    without, with_ = (
        homogeneity(realism.neural(latent, labels, realism.RealismInputs(x, traits, second, gradients)), labels)
        for x in (none, dataclasses.replace(none, **{part: 1.0}))
    )
    assert without > 0.8 and with_ < without - 0.2


# Signals that parcels share


def test_vascular_signals_arrive_at_their_time(traits):
    tr, frames = 0.5, 1200
    one = dataclasses.replace(
        traits, vessels=traits.vessels[:, :1] / np.sqrt(np.square(traits.vessels[:, 0]).mean()), transit=traits.transit[:, :1]
    )
    y = realism.vascular(one, np.random.default_rng(3), tr=tr, frames=frames)
    assert_allclose(np.square(y).mean(), 1, rtol=0.35)  # one realisation of a slow signal
    early, late = one.transit[:, 0].argmin(), one.transit[:, 0].argmax()
    lags = np.arange(-16, 17)
    found = lags[np.argmax([np.corrcoef(y[early, 20:-20], np.roll(y[late], -lag)[20:-20])[0, 1] for lag in lags])] * tr
    assert_allclose(found, one.transit[late, 0] - one.transit[early, 0], atol=0.75)


def test_vascular_signals_are_shared_across_parcels(labels, traits):
    y = realism.vascular(traits, np.random.default_rng(4), tr=2.0, frames=150)
    means = parcel_means(y, labels)
    assert np.corrcoef(means)[np.triu_indices(PARCELS, 1)].mean() > 0.5


def test_head_motion_has_unit_signal_per_mm_and_rotates_about_the_centre(brain, traits):
    assert_allclose(np.square(traits.contrast[:, :3]).mean(), 1, rtol=0.35)
    arm = brain.xyz - np.float32(realism.HEAD_CENTRE_MM)
    turned = np.cross([0.0, 0.0, 0.01], arm)  # displacement in mm of .01 rad about z
    assert_allclose(traits.contrast[:, 5] * 0.01, (turned * traits.contrast[:, :3]).sum(1), atol=1e-4)


# Noise


def test_noise_is_heavy_tailed():
    factor = realism.heavy_tails(np.random.default_rng(0), 200_000, 10.0)
    noise = factor * np.random.default_rng(1).standard_normal(200_000)
    assert_allclose(np.square(factor).mean(), 1, rtol=0.02)
    assert_allclose(kurtosis(noise), 6 / (10 - 4), atol=0.3)


def test_a_recording_has_heavier_tails_than_one_of_gaussian_noise(brain, labels, traits):
    zeros = np.zeros((PARCELS, 300), np.float32)
    found = []
    for tail in (5.0, 1e6):
        amplitudes = realism.Realism(heterogeneity=0.0, gradients=0.0, vascular=0.0, motion=0.0, drop_out=0.0, tail=tail)
        given = dict(tier=observe.Tier(1.0, 0.2, amplitudes), site=observe.SITES[0], gain=np.ones(len(brain), np.float32))
        parts = realism.RealismInputs(amplitudes, traits, zeros, zeros[: realism.GRADIENTS])
        y = observe.observe(zeros, labels, brain, np.random.default_rng(5), tr=2.0, parts=parts, **given).y
        found.append(np.median(kurtosis(np.diff(y[::50], axis=1), axis=1)))
    assert found[0] > found[1] + 0.5


def test_tsnr_varies_in_space_and_is_low_where_the_signal_drops_out(brain, subject):
    medium = simulate_subject(dataclasses.replace(REAL, tier="medium", sessions=1), 0)
    tsnr = {tier: s.sessions[0].y.mean(1) / s.sessions[0].y.std(1) for tier, s in (("real", subject), ("medium", medium))}
    assert np.log(tsnr["real"]).std() > 1.5 * np.log(tsnr["medium"]).std()
    lost = np.zeros(len(brain), bool)
    for centre, _ in realism.DROP_OUT:
        lost |= np.linalg.norm(brain.xyz - centre, axis=1) < 10
    mean = subject.sessions[0].y.mean(1)
    assert lost.sum() > 50
    assert np.median(mean[lost]) < 0.6 * np.median(mean[~lost])
    assert np.median(tsnr["real"][lost]) < 0.75 * np.median(tsnr["real"][~lost])


# Subjects


def test_a_subject_of_the_tier_is_decided_by_its_seed(subject):
    again = simulate_subject(dataclasses.replace(REAL, subjects=7), 0)
    for a, b in zip(subject.sessions, again.sessions, strict=True):
        assert_array_equal(a.y, b.y)
    assert not np.array_equal(subject.sessions[0].y, subject.sessions[1].y)
    assert np.isfinite(subject.sessions[0].y).all() and subject.sessions[0].y.dtype == np.float32


def test_maps_belong_to_the_subject_and_not_to_the_session(subject):
    first, second = (session.y.mean(1) for session in subject.sessions)
    other = simulate_subject(dataclasses.replace(REAL, sessions=1), 1).sessions[0].y.mean(1)
    assert np.corrcoef(first, second)[0, 1] > 0.95 > np.corrcoef(first, other)[0, 1]


def test_the_truth_is_that_of_the_other_tiers(subject):
    medium = simulate_subject(dataclasses.replace(REAL, tier="medium", sessions=1), 0)
    for name in ("labels", "group_labels", "coupling", "true_fc", "modules", "age", "hrf_delay"):
        assert_array_equal(getattr(subject, name), getattr(medium, name))


@pytest.mark.parametrize(
    "tier, expected",
    [  # values of before the tier `real` existed
        ("easy", [741.682, 1205.182, 1130.315, 810.218]),
        ("medium", [741.179, 1207.591, 1135.879, 807.577]),
        ("hard", [741.008, 1208.577, 1138.151, 806.539]),
    ],
)
def test_the_other_tiers_are_what_they_were(tier, expected):
    y = simulate_subject(SimulateConfig(subjects=2, sessions=1, parcels=PARCELS, minutes=1.0, tier=tier), 0).sessions[0].y
    assert_allclose(y[::9000, 7], expected, atol=0.01)


def test_a_tier_with_realism_needs_the_maps_of_the_subject(brain, labels):
    with pytest.raises(ValueError, match="needs `parts`: second latent signals, gradients and the subject's traits"):
        observe.observe(
            np.zeros((PARCELS, 40), np.float32),
            labels,
            brain,
            np.random.default_rng(0),
            tr=2.0,
            tier=observe.TIERS["real"],
            site=observe.SITES[0],
            gain=np.ones(len(brain), np.float32),
        )
