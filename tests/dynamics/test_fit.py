"""Fits: better than the group on held-out time, safe where a scan is broken, the same wherever in a wave."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.dynamics import fit as fits
from pnet_jax.dynamics.linear_stochastic import from_jacobian, jacobian, negative_log_likelihood, standard_errors
from pnet_jax.dynamics.spectra import frequency_bins, last_held_out, pool, scale_of, spectra, standardise
from pnet_jax.simulate import coupling, dynamics

K, T, TR = 12, 300, 2.0
UPPER = np.triu_indices(K, 1)
FIRST, LAST = (frequency_bins(mask, TR) for mask in last_held_out(np.ones(T, bool)))


@functools.cache
def cohort():
    """J `[S, K, K]` and signals `[S, K, T]` of 16 subjects whose weights are LogN(.7) about the group's."""
    rng = np.random.default_rng(0)
    log = lambda sd: np.exp(sd * (lambda x: np.triu(x, 1) + np.triu(x, 1).T)(rng.normal(size=(K, K))))  # noqa: E731
    group, out = log(1.0), []
    for _ in range(16):
        weights = group * log(0.7)
        np.fill_diagonal(weights, 0)
        model = dynamics.linear_model(coupling.jacobian(coupling.normalise(weights)), delay=0.3 * rng.normal())
        signals = dynamics.sample(model, rng, tr=TR, frames=T) + 0.4 * rng.normal(size=(K, T)).astype(np.float32)
        out.append((-(model.modes * model.rates) @ model.modes.T, signals.astype(np.float32)))
    return tuple(map(np.stack, zip(*out, strict=True)))


@functools.cache
def hierarchy():
    _, signals = cohort()
    train = [standardise(spectra(y, frequency_bins(np.ones(T, bool), TR))) for y in signals[:10]]
    group = fits.fit_group(pool(train))
    return fits.empirical_bayes(group, train)


def wave(subjects=range(10, 16)):
    """First 80 % and last 20 % of some subjects, stacked."""
    parts = []
    for y in cohort()[1][list(subjects)]:
        seen = spectra(y, FIRST)
        parts.append((standardise(seen), standardise(spectra(y, LAST), scale_of(seen))))
    return jax.tree.map(lambda *x: jnp.stack(x), *parts)


fit_wave = jax.jit(jax.vmap(fits.fit, (0, None, 0)))


def test_moments_are_the_periodograms_own():
    _, signals = cohort()
    pooled = pool([standardise(spectra(y, frequency_bins(np.ones(T, bool), TR))) for y in signals])
    start = fits.moments(pooled)
    apart = start._replace(coupling=jnp.diag(jnp.diagonal(start.coupling)))
    assert negative_log_likelihood(start, pooled) < negative_log_likelihood(apart, pooled) - 0.03


def test_the_group_fit_recovers_the_mean_coupling():
    truth, signals = cohort()
    pooled = pool([standardise(spectra(y, frequency_bins(np.ones(T, bool), TR))) for y in signals])
    start, group = fits.moments(pooled), fits.fit_group(pooled)
    assert negative_log_likelihood(group, pooled) < negative_log_likelihood(start, pooled)
    assert np.corrcoef(np.asarray(jacobian(group))[UPPER], truth.mean(0)[UPPER])[0, 1] > 0.9


def test_a_group_of_one_short_recording_is_held_by_a_narrow_prior_about_a_connectome():
    truth, signals = cohort()
    short = standardise(spectra(signals[0], frequency_bins(np.arange(T) < 60, TR)))
    others = pool([standardise(spectra(y, frequency_bins(np.ones(T, bool), TR))) for y in signals[1:]])
    mean = fits.structural(fits.moments(short), np.maximum(truth.mean(0) - np.diag(np.diag(truth.mean(0))), 0))
    wide, narrow, told = (fits.fit_group(short, **given) for given in ({}, {"sd": 0.1}, {"sd": 0.1, "mean": mean}))
    scores = [float(negative_log_likelihood(group, others)) for group in (told, narrow, wide)]
    assert scores == sorted(scores) and scores[0] < scores[2] - 0.1


def test_personalised_dynamics_foresee_held_out_time_better_than_the_group():
    seen, held_out = wave()
    free = jax.jit(jax.vmap(fits.fit, (0, None)))(seen, fits.subject_prior(hierarchy()))  # nothing held out decides here
    score = jax.vmap(negative_log_likelihood)(free.params, held_out)
    group = jax.vmap(negative_log_likelihood, (None, 0))(hierarchy().group, held_out)
    assert score.mean() < group.mean() and (score < group).mean() > 0.6
    own = np.array([np.asarray(jacobian(jax.tree.map(lambda x, i=i: x[i], free.params)))[UPPER] for i in range(6)])
    truth, mean = cohort()[0][10:][:, UPPER[0], UPPER[1]], np.asarray(jacobian(hierarchy().group))[UPPER]
    assert np.mean([np.corrcoef(a - mean, b - cohort()[0][:10].mean(0)[UPPER])[0, 1] for a, b in zip(own, truth, strict=True)]) > 0.25


def test_stopping_early_is_never_worse_than_the_prior_on_what_was_held_out():
    seen, held_out = wave()
    found = fit_wave(seen, fits.subject_prior(hierarchy()), held_out)
    assert (found.held_out <= found.prior_held_out).all()
    assert (found.step % 5 == 0).all() and not found.regularised.any()
    assert_allclose(found.held_out, jax.vmap(negative_log_likelihood)(found.params, held_out), rtol=1e-5)


def test_a_broken_scan_is_flagged_gets_the_prior_and_spoils_no_other():
    seen, held_out = wave()
    prior = fits.subject_prior(hierarchy())
    plain = fit_wave(seen, prior, held_out)
    for bad in (np.nan, np.inf, 1e30):
        found = fit_wave(seen._replace(dft=seen.dft.at[2].set(bad)), prior, held_out)
        if not np.isfinite(bad):
            assert not found.ok[2]
            jax.tree.map(lambda a, b: assert_array_equal(a[2], b), found.params, prior.mean)
        assert all(np.isfinite(leaf).all() for leaf in found.params)
        jax.tree.map(lambda a, b: assert_array_equal(np.delete(a, 2, 0), np.delete(b, 2, 0)), found, plain)


def test_a_fit_does_not_depend_on_its_place_or_the_size_of_its_wave():
    prior = fits.subject_prior(hierarchy())
    a, b, alone = (fit_wave(w[0], prior, w[1]) for w in (wave([10, 11, 12]), wave([12, 11, 10]), wave([10])))
    jax.tree.map(lambda x, y: assert_array_equal(x[0], y[2]), a, b)
    jax.tree.map(lambda x, y: assert_allclose(x[0], y[0], rtol=1e-4, atol=1e-5), a.params, alone.params)


def test_few_bins_are_regularised_and_said():
    short = frequency_bins(np.arange(T) < 40, TR, min_bins=4)
    seen = standardise(spectra(cohort()[1][10], short))._replace(weight=jnp.where(jnp.arange(8) < 4, 1.0, 0.0))
    found = jax.jit(fits.fit)(seen, fits.subject_prior(hierarchy()))
    assert found.regularised and np.isfinite(np.asarray(found.params.coupling)).all()
    assert np.isnan(found.held_out)


def test_empirical_bayes_finds_how_much_subjects_differ():
    truth, _ = cohort()
    sd = np.sqrt(np.asarray(hierarchy().variance)[UPPER])
    assert 0.4 < sd.mean() / truth.std(0, ddof=1)[UPPER].mean() < 2.0


def test_the_posterior_of_a_persons_coupling_covers_the_truth_and_is_narrower_than_prior_or_scan():
    truth, signals = cohort()
    people = hierarchy()
    prior, bins = fits.subject_prior(people), frequency_bins(np.ones(T, bool), TR)
    inside = []
    for j, y in zip(truth[10:], signals[10:], strict=True):
        seen = standardise(spectra(y, bins))
        found = fits.fit(seen, prior).params
        sd = fits.posterior_sd(found, seen, prior, people.error)
        assert (np.asarray(fits.posterior_sd(found, seen, prior)) < np.minimum(standard_errors(found, seen), people.variance**0.5)).all()
        inside.append(np.abs(np.asarray(jacobian(found)) - j)[UPPER] < 1.96 * np.asarray(sd)[UPPER])
    assert 0.75 < np.mean(inside) < 0.99  # what people differ by is log-normal here, with far outliers


def test_subgroups_are_found_where_there_are_any_and_melt_where_there_are_none():
    _, signals = cohort()
    train = [standardise(spectra(y, frequency_bins(np.ones(T, bool), TR))) for y in signals[:10]]
    group = hierarchy().group
    none = fits.empirical_bayes(group, train, [0, 1] * 5)
    drawn = float(jnp.abs(none.subgroups - group.coupling[None]).mean())
    other = [
        s._replace(dft=s.dft @ jnp.asarray(np.linalg.qr(np.eye(K) + 0.3)[0], jnp.float32)) if i % 2 else s for i, s in enumerate(train)
    ]
    some = fits.empirical_bayes(group, other, [0, 1] * 5)
    assert drawn < 0.3 * float(jnp.abs(some.subgroups - group.coupling[None]).mean())
    assert_array_equal(fits.subject_prior(some, 1).mean.coupling, some.subgroups[1])


def test_distance_makes_new_coupling_expensive():
    near_and_far = np.array([[0, 5, 80], [5, 0, 80], [80, 80, 0]], np.float32)
    precision = np.asarray(fits.distance_precision(near_and_far, 3.0))
    prior = fits.DynamicsPrior(from_jacobian(-np.eye(3)), fits.Params(precision, *np.zeros(3, np.float32)))
    moved = np.array([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]], np.float32)
    found = fits.penalty(prior.mean._replace(coupling=prior.mean.coupling + moved), prior)
    assert_allclose(found, 3 * ((1 - np.exp(-near_and_far / 20)) * moved**2).sum(), rtol=1e-4)


def test_a_structural_connectome_becomes_the_mean_of_the_prior():
    weights = np.abs(np.random.default_rng(0).normal(size=(K, K)))
    weights = weights + weights.T
    mean = fits.structural(hierarchy().group, weights)
    found = np.asarray(jacobian(mean))
    normal = weights - np.diag(np.diag(weights))
    normal = normal / np.sqrt(np.outer(normal.sum(1), normal.sum(1)))
    assert np.corrcoef(found[UPPER], normal[UPPER])[0, 1] > 0.999 or np.allclose(found[UPPER], 0, atol=1e-5)
    assert np.linalg.eigvalsh(found).max() < 0


def test_what_cannot_be_used_is_refused():
    prior = fits.subject_prior(hierarchy())
    with pytest.raises(ValueError, match=r"expected 12 x 12 weights, one per pair of parcels, found 5 x 5"):
        fits.structural(hierarchy().group, np.ones((5, 5)))
    with pytest.raises(ValueError, match="expected finite, non-negative and symmetric weights, found 144 of 144 negative; the first"):
        fits.structural(hierarchy().group, -np.ones((K, K)))
    with pytest.raises(ValueError, match="prior of K = 5 parcels"):
        fits.fit(spectra(np.ones((5, T), np.float32), FIRST), prior)
    with pytest.raises(ValueError, match="at least 3 training recordings"):
        fits.empirical_bayes(hierarchy().group, [])
    with pytest.raises(ValueError, match=r"\[K, K\], got \(3,\)"):
        fits.distance_precision(np.ones(3))
