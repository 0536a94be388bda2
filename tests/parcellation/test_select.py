"""Parcels move where both halves of a scan agree that they should, and stay with the prior where there is nothing to see."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation import score
from pnet_jax.parcellation.mixture import Problem
from pnet_jax.parcellation.prior import make_prior, on_space
from pnet_jax.parcellation.select import BETAS, KAPPAS, select
from pnet_jax.space import RIGHT, grid_space

K, T, TR = 8, 150, 2.0
SIZE = (16, 14, 3)
TIMES = {"first": slice(0, 68), "second": slice(82, T)}


@functools.cache
def brain():
    """Two hemispheres of four box-shaped parcels, and where a subject's borders are in truth: 8 mm from there."""
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -4 * (np.array(SIZE) - 1) / 2
    space = grid_space(np.ones(SIZE, bool), affine)
    i, j = space.grid.ijk[:, 0] % 8, space.grid.ijk[:, 1]
    side = 4 * (space.hemisphere == RIGHT)
    expected, truth = 2 * (i >= 4) + (j >= 7) + side, 2 * (i >= 2) + (j >= 9) + side
    local = on_space(make_prior(space.xyz, expected + 1, resolution=4), space, np.ones(len(space), bool))
    return space, local, truth


def signals(seed, kind):
    """Parcels on noise, smooth noise without any parcel, or white noise."""
    rng = np.random.default_rng(seed)
    space, _, truth = brain()
    noise = rng.normal(size=(*SIZE, T))
    if kind != "white":
        for axis in range(3):  # about 10 mm wide
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
        noise /= noise.std()
    y = noise[tuple(space.grid.ijk.T)]
    if kind == "parcels":
        y = y + rng.normal(size=(K, T))[truth] + 0.5 * rng.normal(size=y.shape)
    return ((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)).astype(np.float32)


def embedding(y):
    """Fingerprints with the means of 28 small blocks as references."""
    space, *_ = brain()
    i, j, _ = space.grid.ijk.T
    block = i // 4 + 4 * (j // 2)
    references = np.stack([y[block == b].mean(0) for b in range(28)])
    f = np.arctanh(np.clip(np.corrcoef(y, references)[: len(y), len(y) :], -0.99, 0.99))
    f -= f.mean(0)
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


def problem(y, local):
    space, *_ = brain()
    z = embedding(y)
    means = np.stack([z[local.labels == k].mean(0) for k in range(K)])
    prototypes = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    return Problem(z, local.candidates, local.log_prior, match_table(local.candidates, space.neighbours, n_parcels=K), prototypes)


def arguments(seed, kind):
    space, local, _ = brain()
    y = signals(seed, kind)
    pair = tuple(problem(y[:, part], local) for part in TIMES.values())
    return {
        "problems": pair,
        "signals": tuple(y[:, part] for part in TIMES.values()),
        "space": space,
        "prior_labels": local.labels,
        "n_parcels": K,
        "tr": TR,
    }


@pytest.fixture(scope="module")
def displaced():
    given = arguments(0, "parcels")
    return given, chosen(**given)


def chosen(**given):
    return select(**given)[0]


def same(a, b):
    assert dataclasses.asdict(a) == dataclasses.asdict(b)


def test_displaced_parcels_are_personalised(displaced):
    _, found = displaced
    assert found.decision == "personalised"
    assert 0 < found.difference[0] < found.difference[1] < found.difference[2]
    assert found.personalised["dcbc"] > found.prior["dcbc"] + 0.02
    assert found.personalised["homogeneity"] > max(found.prior["homogeneity"], found.null["homogeneity"])
    assert "beat the prior" in found.reason


@pytest.mark.parametrize("kind", ["white", "smooth"])
def test_pure_noise_keeps_the_prior(kind):
    decisions = [chosen(**arguments(seed, kind)).decision for seed in range(6)]
    assert decisions.count("prior") >= 5


def test_the_search_climbs_and_ends_where_no_step_pays(displaced):
    """Every neighbour on the grid of the chosen pair was tried and is worth less."""
    _, found = displaced
    tried = [(row["kappa"], row["beta"]) for row in found.grid]
    assert len(set(tried)) == len(tried) < len(KAPPAS) * len(BETAS)
    assert tried[0] == (KAPPAS[len(KAPPAS) // 2], BETAS[len(BETAS) // 2])
    worth = {pair: row["homogeneity"] + row["dcbc"] for pair, row in zip(tried, found.grid, strict=True)}
    chosen = (found.kappa, found.beta)
    assert worth[chosen] == max(worth.values())
    at = BETAS.index(found.beta)
    assert {(found.kappa, beta) for beta in BETAS[max(at - 1, 0) : at + 2]} <= set(tried)


def test_scores_are_those_of_the_labels_on_the_other_half(displaced):
    given, found = displaced
    space, local, _ = brain()
    pairs = score.sample_pairs(space, np.arange(len(space)))
    other = [(y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True) for y in given["signals"]]
    expected = {
        "homogeneity": np.mean([score.homogeneity(y, local.labels, K) for y in other]),
        "dcbc": np.mean([score.dcbc(score.pair_correlations(y, pairs), pairs, local.labels) for y in other]),
    }
    assert_allclose([found.prior[name] for name in expected], list(expected.values()), atol=1e-5)


def test_the_same_scan_and_seed_give_the_same_answer(displaced):
    given, found = displaced
    same(chosen(**given), found)


def test_nothing_outside_the_parcels_matters(displaced):
    given, _ = displaced
    outside = np.random.default_rng(1).random(len(given["prior_labels"])) < 0.1
    labels = np.where(outside, -1, given["prior_labels"])
    rng = np.random.default_rng(2)

    def without(one, z):
        candidates = np.where(outside[:, None], -1, one.candidates)
        table = match_table(candidates, given["space"].neighbours, n_parcels=K)
        return one._replace(z=np.where(outside[:, None], z, one.z), candidates=candidates, table=table)

    def run(scramble):
        z = np.float32(rng.normal(size=given["problems"][0].z.shape) * scramble)
        spoiled = tuple(np.where(outside[:, None], np.float32(rng.normal(size=y.shape) * scramble), y) for y in given["signals"])
        pair = tuple(without(one, z) for one in given["problems"])
        return chosen(**(given | {"problems": pair, "signals": spoiled, "prior_labels": labels}))

    same(run(0), run(7))


def test_padding_rows_of_the_problems_do_not_matter(displaced):
    given, found = displaced
    extra = 11

    def padded(one):
        rows = ((0, extra), (0, 0))
        candidates = np.pad(one.candidates, rows, constant_values=-1)
        table = match_table(candidates, np.pad(given["space"].neighbours, rows, constant_values=-1), n_parcels=K)
        return Problem(np.pad(one.z, rows, constant_values=3), candidates, np.pad(one.log_prior, rows), table, one.prototypes)

    again = chosen(**(given | {"problems": tuple(padded(one) for one in given["problems"])}))
    assert (again.decision, again.kappa, again.beta) == (found.decision, found.kappa, found.beta)
    assert_allclose(again.difference, found.difference, atol=1e-3)


def test_given_kappa_and_beta_are_used_as_they_are(displaced):
    given, _ = displaced
    found = chosen(**given, kappas=(7.0,), betas=(0.3,))
    assert (found.kappa, found.beta) == (7.0, 0.3)
    assert len(found.grid) == 1


def test_kappa_of_the_whole_scan_follows_from_how_well_its_halves_agree(displaced):
    given, found = displaced
    a, b = (one.z for one in given["problems"])
    assert found.kappa_scan == pytest.approx(found.kappa * 2 / (1 + (a * b).sum(1).mean()), rel=1e-4)
    assert found.kappa < found.kappa_scan < 2 * found.kappa
    assert chosen(**given, kappas=(7.0,), betas=(0.3,)).kappa_scan == 7.0


def test_halves_under_a_minute_keep_the_prior_and_say_so(displaced):
    given, _ = displaced
    found = chosen(**(given | {"signals": tuple(y[:, :29] for y in given["signals"])}), kappas=(10.0,), betas=(0.4,))
    assert found.decision == "prior"
    assert "fewer than 3 blocks of 20 s" in found.reason


def test_locations_without_near_pairs_keep_the_prior_and_say_so(displaced):
    given, _ = displaced
    apart = dataclasses.replace(given["space"], xyz=20 * given["space"].xyz)
    found = chosen(**(given | {"space": apart}), kappas=(10.0,), betas=(0.4,))
    assert found.decision == "prior"
    assert "could not be measured" in found.reason
    assert np.isnan(found.difference).all()


def test_the_prior_itself_gains_nothing(displaced):
    given, _ = displaced
    found = chosen(**given, kappas=(0.0,), betas=(0.0,))
    assert_array_equal(found.difference, 0)
    assert found.decision == "prior"
