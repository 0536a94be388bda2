"""Shrunk and guided edges: closed forms, limits, what they may not know, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax import edges
from pnet_jax.network import Network

K, S, N_EFF = 10, 60, 60.0
UPPER = np.triu_indices(K, 1)


def symmetric(rng, *shape):
    half = np.triu(rng.normal(size=(*shape, K, K)), 1)
    return half + half.swapaxes(-1, -2)


def network(z):
    r = np.tanh(z).astype(np.float32)
    r[..., range(K), range(K)] = 1
    return r


def cohort(seed=0, people=S, tau=0.2, noise=0.2, correlated=0.9):
    """Truth in Fisher z `[S, K, K]` and both recordings' two views `[S, 2, K, K]`; the second view has a quarter of the noise variance."""
    rng = np.random.default_rng(seed)
    mean = 0.3 * symmetric(np.random.default_rng(99))
    truth = tau * symmetric(rng, people)
    other = correlated * truth + np.sqrt(1 - correlated**2) * tau * symmetric(rng, people)
    both = mean + np.stack([truth, other], 1)
    size = noise * np.array([1, 0.5])[:, None, None]
    return mean + truth, *(network(both + size * symmetric(rng, people, 2)) for _ in range(2))


@pytest.fixture(scope="module")
def people():
    return cohort()


@pytest.fixture(scope="module")
def group(people):
    return edges.fit_shrinkage(people[1][:, 0], people[2][:, 0], np.full(S, N_EFF), pooling=0)


@pytest.fixture(scope="module")
def taught(people):
    return edges.fit_guided(people[1], people[2], np.full(S, N_EFF))


def z_of(r):
    return np.arctanh(np.clip(r, -0.99, 0.99))[..., *UPPER]


# Shrunk


def test_the_fit_is_the_method_of_moments_by_numpy(people, group):
    a, b = z_of(people[1][:, 0]), z_of(people[2][:, 0])
    mean = (a + b).mean(0) / 2
    assert_allclose(group.mean[UPPER], mean, atol=1e-5)
    assert_allclose(group.signal[UPPER], np.maximum(((a - mean) * (b - mean)).sum(0) / (S - 1), 1e-5), atol=1e-6)
    assert_allclose(group.noise[UPPER], ((a - b) ** 2).mean(0) / (2 / N_EFF), rtol=1e-4)


def test_few_people_share_what_they_know_of_variances(people):
    few = [x[:5, 0] for x in people[1:]]
    own, shared = (edges.fit_shrinkage(*few, np.full(5, N_EFF), pooling=pooling) for pooling in (0, 10))
    for one, both in zip(own[1:], shared[1:], strict=True):
        assert np.std(both[UPPER]) < 0.5 * np.std(one[UPPER])
        assert_allclose(np.mean(both[UPPER]), np.mean(one[UPPER]), rtol=0.3)
    assert_array_equal(own.mean, shared.mean)


def test_the_fit_finds_the_variances_that_made_the_cohort():
    _, first, second = cohort(1, people=400)
    found = edges.fit_shrinkage(first[:, 0], second[:, 0], np.full(400, N_EFF))
    assert_allclose(np.mean(found.signal[UPPER]), 0.2**2, rtol=0.06)
    assert_allclose(np.mean(found.noise[UPPER]) / N_EFF, 0.2**2, rtol=0.06)


def test_noise_of_one_frame_does_not_depend_on_how_long_the_pairs_are():
    rng = np.random.default_rng(0)
    n = rng.uniform(20, 200, (2, 500)).astype(np.float32)
    truth = 0.2 * symmetric(rng, 500)
    pair = [network(truth + 1.5 / np.sqrt(frames)[:, None, None] * symmetric(rng, 500)) for frames in n]
    found = edges.fit_shrinkage(*pair, *n)
    assert_allclose(np.mean(found.noise[UPPER]), 1.5**2, rtol=0.05)


def test_shrinking_is_the_posterior_of_one_gaussian_edge(people, group):
    r = people[1][0, 0]
    edges_, sd = edges.shrink(r, group, N_EFF)
    mean, tau2, s2 = (np.asarray(x)[UPPER] for x in (group.mean, group.signal, group.noise / N_EFF))
    assert_allclose(z_of(np.asarray(edges_)), (mean / tau2 + z_of(r) / s2) / (1 / tau2 + 1 / s2), atol=1e-5)
    assert_allclose(np.asarray(sd)[UPPER], np.sqrt(1 / (1 / tau2 + 1 / s2)), rtol=1e-4)


@pytest.mark.parametrize("layer", ["shrunk", "guided"])
def test_an_endless_recording_keeps_its_edges_and_an_empty_one_has_the_groups(people, group, taught, layer):
    views = people[1][0]
    long, sd_long = _estimate(layer, views, group, taught, 1e9)
    short, sd_short = _estimate(layer, views, group, taught, 1e-4)
    assert_allclose(z_of(long), z_of(views[0]), atol=2e-3)
    assert sd_long[UPPER].max() < 1e-3
    assert_allclose(z_of(short), np.asarray(group.mean)[UPPER], atol=2e-3)
    assert sd_short[UPPER].min() > 0.05


@pytest.mark.parametrize("layer", ["shrunk", "guided"])
def test_more_frames_move_edges_towards_the_raw_ones_and_narrow_them(people, group, taught, layer):
    views = people[1][0]
    made = [_estimate(layer, views, group, taught, n) for n in (5.0, 50.0, 500.0, 5000.0)]
    distance = [np.abs(z_of(r) - z_of(views[0])).mean() for r, _ in made]
    assert distance == sorted(distance, reverse=True)
    assert [sd[UPPER].mean() for _, sd in made] == sorted((sd[UPPER].mean() for _, sd in made), reverse=True)


@pytest.mark.parametrize("layer", ["shrunk", "guided"])
def test_edges_are_correlations_with_diagonal_1_and_symmetric(people, group, taught, layer):
    r, sd = _estimate(layer, people[1][0], group, taught, N_EFF)
    assert_array_equal(np.diag(r), 1)
    assert_array_equal(np.diag(sd), 0)
    assert_allclose(r, r.T, atol=1e-6)
    assert_allclose(sd, sd.T, atol=1e-6)
    assert np.abs(r).max() <= 1
    assert sd[UPPER].min() > 0


def test_an_absent_parcel_is_nan_and_shrinks_no_other_edge(people, group):
    r = people[1][0, 0].copy()
    whole, _ = edges.shrink(r, group, N_EFF)
    r[[3]], r[:, [3]] = np.nan, np.nan
    found, sd = edges.shrink(r, group, N_EFF)
    gone = np.arange(K) == 3
    assert_array_equal(np.isnan(found), gone[:, None] | gone[None])
    assert np.isnan(np.asarray(sd)[3, 4])
    assert_array_equal(np.asarray(found)[~gone][:, ~gone], np.asarray(whole)[~gone][:, ~gone])


def test_people_without_a_parcel_do_not_count_in_its_edges(people):
    first, second = people[1][:, 0].copy(), people[2][:, 0]
    first[:20, 3], first[:20, :, 3] = np.nan, np.nan
    found = edges.fit_shrinkage(first, second, np.full(S, N_EFF), pooling=0)
    others = edges.fit_shrinkage(first[20:], second[20:], np.full(S - 20, N_EFF), pooling=0)
    everyone = edges.fit_shrinkage(people[1][:, 0], second, np.full(S, N_EFF), pooling=0)
    for got, few, all_ in zip(found, others, everyone, strict=True):
        assert_allclose(got[3], few[3], atol=1e-6, rtol=1e-4)
        assert_allclose(got[4, 5:], all_[4, 5:], atol=1e-6, rtol=1e-4)


def test_an_edge_that_no_two_people_have_is_nan(people):
    first = people[1][:, 0].copy()
    first[1:, 3], first[1:, :, 3] = np.nan, np.nan
    found = edges.fit_shrinkage(first, people[2][:, 0], np.full(S, N_EFF))
    r, _ = edges.shrink(people[1][0, 0], found, N_EFF)
    assert np.isnan(r[3]).all()
    assert np.isfinite(np.delete(np.delete(r, 3, 0), 3, 1)).all()


# Guided


def test_guided_edges_are_nearer_to_the_truth_than_shrunk_ones_which_beat_the_raw(people, group, taught):
    truth, seen, _ = cohort(5, people=80)
    run = jax.jit(edges.guide)
    error = {
        "raw": np.square(z_of(seen[:, 0]) - truth[:, *UPPER]).mean(),
        "shrunk": np.mean(
            [np.square(z_of(np.asarray(edges.shrink(v[0], group, N_EFF)[0])) - t[UPPER]) for v, t in zip(seen, truth, strict=True)]
        ),
        "guided": np.mean([np.square(z_of(np.asarray(run(v, taught, N_EFF)[0])) - t[UPPER]) for v, t in zip(seen, truth, strict=True)]),
    }
    assert error["guided"] < 0.85 * error["shrunk"] < 0.6 * error["raw"]


@pytest.mark.parametrize("known", [1, 2])
def test_the_uncertainty_covers_the_truth_of_people_left_out(taught, known):
    truth, seen, _ = cohort(5, people=80)
    run = jax.jit(edges.guide)
    inside = []
    for views, true in zip(seen, truth, strict=True):
        r, sd = run(views[:known], taught, N_EFF)
        inside.append(np.abs(z_of(np.asarray(r)) - true[UPPER]) < 1.96 * np.asarray(sd)[UPPER])
    assert 0.92 < np.mean(inside) < 0.98


def test_weights_are_shares_and_a_view_without_a_word_counts_for_nothing(people, taught):
    assert_allclose(np.asarray(taught.weights).sum(1), 1, rtol=1e-5)
    assert np.asarray(taught.weights).min() >= 0 and np.asarray(taught.weights)[1, 2:].sum() > 0.8  # the second view is the better one
    first, second = (views[:24].copy() for views in people[1:])
    for views, seed in ((first, 10), (second, 11)):
        views[:, 1] = network(0.3 * symmetric(np.random.default_rng(seed), 24))
    alone, both = (edges.fit_guided(first[:, :known], second[:, :known], np.full(24, N_EFF)) for known in (1, 2))
    assert_allclose(both.weights[0, :2], alone.weights[0], atol=0.05)
    assert both.weights[1, 2:].sum() < 0.5
    truth, seen, _ = cohort(5, people=80)
    seen[:, 1] = network(0.3 * symmetric(np.random.default_rng(12), 80))
    error = [
        np.mean([np.square(z_of(np.asarray(edges.guide(v[:known], g, N_EFF)[0])) - t[UPPER]) for v, t in zip(seen, truth, strict=True)])
        for known, g in ((1, alone), (2, both))
    ]
    assert error[1] < 1.01 * error[0]


def test_with_one_view_and_no_modes_guided_is_shrunk(people, group):
    one = edges.fit_guided(people[1][:, :1], people[2][:, :1], np.full(S, N_EFF), pooling=0.0)
    one = one._replace(weights=np.float32([[1, 0]]), scale=np.ones(1, np.float32))
    r, sd = edges.guide(people[1][0, :1], one, N_EFF)
    expected, spread = edges.shrink(people[1][0, 0], group, N_EFF)
    clear = np.asarray(group.signal)[UPPER] > 1e-3
    assert clear.mean() > 0.9
    assert_allclose(z_of(np.asarray(r))[clear], z_of(np.asarray(expected))[clear], atol=1e-4)
    assert_allclose(np.asarray(sd)[UPPER][clear], np.asarray(spread)[UPPER][clear], rtol=1e-3)


def test_an_edge_by_itself_is_the_gaussian_posterior_of_its_views_by_numpy(people, taught):
    alone = taught._replace(weights=np.float32([[1, 0, 0, 0], [0, 0, 1, 0]]), scale=np.ones(2, np.float32))
    r, sd = edges.guide(people[1][0], alone, N_EFF)
    signal, noise = (np.float64(x[2, 7]) for x in taught.edges)
    d = np.float64([np.arctanh(people[1][0, view, 2, 7]) - taught.mean[view, 2, 7] for view in (0, 1)])
    weight = np.linalg.solve(signal + noise / N_EFF, signal[:, 0])
    assert_allclose(np.arctanh(r[2, 7]), taught.mean[0, 2, 7] + weight @ d, atol=1e-5)
    assert_allclose(sd[2, 7], np.sqrt(signal[0, 0] - weight @ signal[:, 0]), rtol=1e-3)


def test_the_variance_in_the_modes_is_that_of_drawn_networks():
    """Q V Qᵀ leaves out products of different loadings; on the mean over edges they must not matter."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(K, K)))[0]
    spread = np.square(rng.normal(size=(K, K)))
    spread = (spread + spread.T) / 2
    drawn = u @ (np.sqrt(spread) * symmetric(rng, 4000)) @ u.T
    off = spread * (1 - np.eye(K))  # `symmetric` has an empty diagonal
    assert_allclose(drawn.var(0)[UPPER].mean(), (u**2 @ off @ (u**2).T)[UPPER].mean(), rtol=0.2)


def test_permuting_parcels_permutes_the_guided_edges(people, taught):
    order = np.random.default_rng(0).permutation(K)
    moved = [x[:, :, order][..., order] for x in people[1:]]
    again = edges.fit_guided(*moved, np.full(S, N_EFF))
    r, sd = edges.guide(people[1][0], taught, N_EFF)
    r_moved, sd_moved = edges.guide(moved[0][0], again, N_EFF)
    assert_allclose(r_moved, np.asarray(r)[order][:, order], atol=1e-4)
    assert_allclose(sd_moved, np.asarray(sd)[order][:, order], atol=1e-4)


def test_the_order_of_people_and_of_recordings_changes_nothing_that_is_learnt_of_an_edge(people, taught):
    again = edges.fit_guided(people[2][::-1], people[1][::-1], np.full(S, N_EFF))
    for got, expected in zip(jax.tree.leaves(again.edges), jax.tree.leaves(taught.edges), strict=True):
        assert_allclose(got, expected, atol=1e-5, rtol=1e-3)


def test_a_person_of_noise_teaches_no_confidence():
    """Nothing repeats: a fit that saw the second recording it predicts would still find something."""
    rng = np.random.default_rng(3)
    noise = [network(0.3 * symmetric(rng, S, 2)) for _ in range(2)]
    nothing = edges.fit_guided(*noise, np.full(S, N_EFF))
    new = network(0.3 * symmetric(rng, 2))
    r, _ = edges.guide(new, nothing, N_EFF)
    left = z_of(np.asarray(r)) - np.asarray(nothing.mean[0])[UPPER]
    assert np.square(left).mean() < 0.05 * np.square(z_of(new[0])).mean()


def test_fewer_views_than_were_taught_are_enough(people, taught):
    r, sd = edges.guide(people[1][0, :1], taught, N_EFF)
    _, sharper = edges.guide(people[1][0], taught, N_EFF)
    assert np.isfinite(r).all()
    assert np.asarray(sharper)[UPPER].mean() < np.asarray(sd)[UPPER].mean()


def test_a_guided_absent_parcel_is_nan_and_the_others_stay_near(people, taught):
    views = people[1][0].copy()
    whole, _ = edges.guide(views, taught, N_EFF)
    views[:, 3], views[:, :, 3] = np.nan, np.nan
    r, sd = (np.asarray(x) for x in edges.guide(views, taught, N_EFF))
    gone = np.arange(K) == 3
    assert_array_equal(np.isnan(r), gone[:, None] | gone[None])
    assert np.isnan(sd[3, 4])
    assert np.abs(r - np.asarray(whole))[~gone][:, ~gone].max() < 0.1


def test_a_guide_is_fitted_where_people_lack_parcels(people):
    first, second = people[1].copy(), people[2].copy()
    first[::3, :, 3], first[::3, :, :, 3] = np.nan, np.nan
    found = edges.fit_guided(first, second, np.full(S, N_EFF))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_gradient_of_a_guided_edge_is_finite(people, taught):
    slope = jax.grad(lambda v: edges.guide(v, taught, N_EFF)[0].sum())(people[1][0])
    assert np.isfinite(slope).all()
    assert np.abs(slope[:, *UPPER]).max() > 0


def test_guiding_is_compiled_once_for_all_people(people, taught):
    edges.guide(people[1][0], taught, N_EFF)
    before = edges.guide._cache_size()
    for views, n in zip(people[1][:4], (30.0, 40.0, 50.0, 60.0), strict=True):
        edges.guide(views, taught, n)
    assert edges.guide._cache_size() == before


# The whitened view


def test_whitened_signals_of_a_flat_spectrum_give_pearsons_r():
    x = np.random.default_rng(0).normal(size=(4, 4)) @ np.random.default_rng(1).normal(size=(4, 4000))
    assert_allclose(edges.compute("whitened", x.astype(np.float32)), np.corrcoef(x), atol=0.02)


def test_whitening_lowers_the_error_where_the_spectrum_falls_steeply():
    rng = np.random.default_rng(0)
    mixing = np.linalg.cholesky(np.full((2, 2), 0.4) + 0.6 * np.eye(2))
    found = []
    for _ in range(60):
        white = mixing @ rng.normal(size=(2, 200))
        slow = np.fft.irfft(np.fft.rfft(white) / (1 + np.arange(101)), 200).astype(np.float32)
        found.append([edges.compute(name, slow)[0, 1] for name in ("pearson", "whitened")])
    plain, flattened = np.square(np.array(found) - 0.4).mean(0)
    assert flattened < 0.5 * plain


def test_a_constant_signal_is_nan_in_the_whitened_view_and_spoils_no_other():
    x = np.random.default_rng(0).normal(size=(5, 80)).astype(np.float32)
    x[2] = 7
    found = edges.compute("whitened", x)
    flat = np.arange(5) == 2
    assert_array_equal(np.isnan(found), flat[:, None] | flat[None])


# Layers


def test_layers_are_made_of_what_is_known(people, group, taught):
    raw, white = people[1][0]
    assert list(edges.layers(raw, N_EFF)) == ["raw"]
    made = edges.layers(raw, N_EFF, group, taught, [white])
    assert list(made) == ["raw", "shrunk", "guided"] and set(made) < set(edges.MEANT_FOR)
    assert_array_equal(made["raw"].edges, raw)
    assert_allclose(made["raw"].uncertainty[UPPER], np.sqrt(np.asarray(group.noise)[UPPER] / N_EFF), rtol=1e-5)
    for layer in made.values():
        assert isinstance(layer.edges, np.ndarray)
        assert layer.edges.dtype == layer.uncertainty.dtype == np.float32
    assert made["guided"].uncertainty[UPPER].mean() < made["shrunk"].uncertainty[UPPER].mean() < made["raw"].uncertainty[UPPER].mean()


def test_layers_stand_among_a_networks_edges_with_their_uncertainty(people, group):
    raw = people[1][0, 0]
    fields = {field.name: None for field in dataclasses.fields(Network)} | {"edges": {"pearson": raw, "partial": -raw}, "uncertainty": {}}
    found = edges.add_layers(Network(**fields), edges.layers(raw, N_EFF, group))
    assert list(found.edges) == ["pearson", "partial", "shrunk"]
    assert list(found.uncertainty) == ["pearson", "shrunk"]
    assert_array_equal(found.edges["pearson"], raw)


def test_only_raw_edges_pass_into_a_test_of_patients_against_controls():
    assert edges.case_control_layer("raw") == "raw"
    for name in ("shrunk", "guided"):
        with pytest.raises(ValueError, match=f'"raw", got "{name}"'):
            edges.case_control_layer(name)
        with pytest.warns(UserWarning, match="erases effects of disease"):
            assert edges.case_control_layer(name, force=True) == name


def test_an_unknown_layer_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown layer 'guidd'.*did you mean 'guided'\?"):
        edges.meant_for("guidd")


# Bad input


def test_bad_cohorts_are_refused_with_what_was_expected(people):
    first, second = people[1], people[2]
    frames = np.full(S, N_EFF)
    with pytest.raises(ValueError, match=r"\[S, K, K\], got"):
        edges.fit_shrinkage(first, second, frames)
    with pytest.raises(ValueError, match=r"\[S, views, K, K\], got"):
        edges.fit_guided(first[:, 0], second[:, 0], frames)
    with pytest.raises(ValueError, match="at least 2 participants, got 1"):
        edges.fit_shrinkage(first[:1, 0], second[:1, 0], frames[:1])
    with pytest.raises(ValueError, match="at least 4 participants, got 3"):
        edges.fit_guided(first[:3], second[:3], frames[:3])
    with pytest.raises(ValueError, match=f"n_eff_second: expected {S} numbers above 0"):
        edges.fit_shrinkage(first[:, 0], second[:, 0], frames, 0 * frames)


def test_bad_scans_are_refused_with_what_was_expected(people, group, taught):
    raw = people[1][0, 0]
    with pytest.raises(ValueError, match="expected 1 to 2 views"):
        edges.guide(np.stack([raw] * 3), taught, N_EFF)
    with pytest.raises(ValueError, match="n_eff: expected a number above 0, got 0"):
        edges.layers(raw, 0)
    with pytest.raises(ValueError, match=f"the group was fitted with {K} parcels, the scan has {K - 1}"):
        edges.layers(raw[1:, 1:], N_EFF, group)


def _estimate(layer, views, group, taught, n_eff):
    made = edges.shrink(views[0], group, n_eff) if layer == "shrunk" else edges.guide(views, taught, n_eff)
    return tuple(map(np.asarray, made))
