"""PersonalizedConnectome: the features of each kind, and a group model that never sees a test recording."""

from __future__ import annotations

import dataclasses
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure, vec_to_sym_matrix
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline

from pnet_jax import PersonalizedConnectome
from pnet_jax.cohort import make_cohort
from pnet_jax.edges import fit_shrinkage, shrink
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.estimators import construction
from pnet_jax.scan import split_frames

K, T = 6, 120


def series(seed: int, frames: int = T) -> np.ndarray:
    """Signals of K regions with something that all recordings have in common and something of their own, `[frames, K]`."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(K) + 0.3 * np.random.default_rng(99).normal(size=(K, K)) + 0.2 * rng.normal(size=(K, K))
    return (rng.normal(size=(frames, K)) @ mixing).astype(np.float32)


@pytest.fixture(scope="module")
def recordings():
    return [series(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def classes():
    return np.arange(12) % 2


@pytest.fixture
def learned_from(monkeypatch):
    """Subjects of every call of `fit_group`."""
    seen, original = [], construction.fit_group

    def recorded(networks, atlas):
        networks = list(networks)
        seen.append({network.subject for network in networks})
        return original(networks, atlas)

    monkeypatch.setattr(construction, "fit_group", recorded)
    return seen


# Features


def test_pearson_is_the_lower_triangle_that_nilearn_makes(recordings):
    connectome = PersonalizedConnectome()
    found = connectome.fit_transform(recordings)
    assert_allclose(found, [np.corrcoef(one.T)[np.tril_indices(K, -1)] for one in recordings], atol=1e-5)
    assert_allclose(vec_to_sym_matrix(found[0], diagonal=np.ones(K) / np.sqrt(2)), np.corrcoef(recordings[0].T), atol=1e-5)
    assert connectome.get_feature_names_out()[:3].tolist() == ["parcel 2--parcel 1", "parcel 3--parcel 1", "parcel 3--parcel 2"]
    assert connectome.n_features_in_ == K and len(connectome.networks_) == len(connectome.cohort_) == 12
    with_diagonal = PersonalizedConnectome(discard_diagonal=False).fit(recordings)
    assert with_diagonal.transform(recordings).shape == (12, K * (K + 1) // 2) == (12, len(with_diagonal.get_feature_names_out()))
    matrices = PersonalizedConnectome(vectorize=False).fit(recordings)
    assert_allclose(matrices.transform(recordings[:2]), [np.corrcoef(one.T) for one in recordings[:2]], atol=1e-5)
    with pytest.raises(ValueError, match="vectorize=True only"):
        matrices.get_feature_names_out()


@pytest.mark.parametrize(("kind", "nilearn"), [("partial", "partial correlation"), ("tangent", "tangent")])
def test_partial_and_tangent_are_those_of_nilearn(recordings, kind, nilearn):
    theirs = ConnectivityMeasure(kind=nilearn, vectorize=True, discard_diagonal=True, standardize=False)
    theirs.fit(recordings[:8])
    ours = PersonalizedConnectome(kind).fit(recordings[:8])
    assert_allclose(ours.transform(recordings[8:]), theirs.transform(recordings[8:]), atol=2e-3)
    if kind == "tangent":
        assert_allclose(ours.mean_, theirs.mean_, rtol=5e-3, atol=5e-3)
        assert_array_equal(ours.transform(recordings[8:9]), ours.transform(recordings[8:])[:1])


def test_shrunk_edges_are_those_of_a_group_of_the_training_recordings(recordings):
    connectome = PersonalizedConnectome("shrunk").fit(recordings[:8])
    assert len(connectome.group_.subjects) == 8
    first, second = split_frames(np.arange(T), 1.0)
    halves = [[np.corrcoef(one[rows].T) for one in recordings[:8]] for rows in (first, second)]
    counts = [jnp.full(8, float(len(rows)), jnp.float32) for rows in (first, second)]
    group = fit_shrinkage(*(jnp.asarray(np.array(half), jnp.float32) for half in halves), *counts)
    test = jnp.asarray(np.corrcoef(recordings[9].T), jnp.float32)
    expected = np.asarray(shrink(test, group, float(T))[0])[np.tril_indices(K, -1)]
    assert_allclose(connectome.transform([recordings[9]])[0], expected, atol=1e-4)
    raw = PersonalizedConnectome().fit(recordings[:8]).transform([recordings[9]])[0]
    assert np.abs(expected - raw).max() > 0.01
    guided = PersonalizedConnectome("guided").fit(recordings[:8])
    assert_allclose(guided.transform(recordings[:8]), guided.fit_transform(recordings[:8]), atol=1e-6)
    assert np.abs(guided.transform([recordings[9]])[0] - raw).max() > 0.01


def test_absent_regions_are_missing_and_the_reference_is_of_those_that_all_have(recordings):
    with_gap = [one.copy() for one in recordings[:5]]
    with_gap[1][:, 2] = np.nan
    pearson = PersonalizedConnectome(vectorize=False).fit(with_gap).transform(with_gap)
    assert np.isnan(pearson[1, 2]).all() and np.isfinite(np.delete(pearson[1], 2, 1)[[0, 1, 3, 4, 5]]).all()
    tangent = PersonalizedConnectome("tangent", vectorize=False).fit(with_gap)
    assert np.isnan(tangent.mean_[2]).all() and np.isfinite(np.delete(tangent.mean_[3], 2)).all()
    found = tangent.transform(recordings[6:8])
    assert np.isnan(found[:, 2]).all()
    plain = PersonalizedConnectome("tangent", vectorize=False).fit([np.delete(one, 2, 1) for one in with_gap])
    assert_allclose(np.delete(np.delete(found, 2, 1), 2, 2), plain.transform([np.delete(one, 2, 1) for one in recordings[6:8]]), atol=1e-4)


# A Cohort in place of series


def test_a_cohort_is_read_row_by_row_and_its_layers_of_several_participants_are_made_again(recordings):
    pearson = np.stack([np.corrcoef(one.T) for one in recordings])
    edges = {"pearson": pearson, "partial": 0.5 * pearson, "shrunk": np.zeros_like(pearson), "tangent": np.zeros_like(pearson)}
    subjects = [f"s{at}" for at in range(12)]
    cohort = make_cohort(subjects, signals=[one.T for one in recordings], edges=edges, tr=2.0, covariates={"age": np.arange(12.0)})
    found = PersonalizedConnectome("partial").fit(cohort).transform(cohort)
    assert_allclose(found, 0.5 * pearson[:, *np.tril_indices(K, -1)], atol=1e-6)
    connectome = PersonalizedConnectome("shrunk").fit(cohort[:8])
    assert connectome.group_.subjects == tuple(subjects[:8])
    expected = PersonalizedConnectome("shrunk", t_r=2.0).fit(recordings[:8]).transform(recordings[8:])
    assert_allclose(connectome.transform(cohort[8:]), expected, atol=1e-4)
    assert PersonalizedConnectome("tangent").fit(cohort[:8]).transform(cohort[8:]).any()
    known = make_cohort(subjects, signals=[one.T for one in recordings], tr=2.0, covariates={"n_eff": np.repeat([120.0, 20.0], [8, 4])})
    assert np.abs(PersonalizedConnectome("shrunk").fit(known[:8]).transform(known[8:]) - expected).max() > 1e-3
    with pytest.raises(InputError, match="expected a Cohort with signals, found none"):
        PersonalizedConnectome().fit(make_cohort(subjects, edges={"pearson": pearson}))


def test_a_cohort_goes_through_cross_validation(recordings, classes, learned_from):
    cohort = make_cohort([f"s{at:02d}" for at in range(12)], signals=[one.T for one in recordings], tr=2.0)
    model = make_pipeline(PersonalizedConnectome("guided"), RidgeClassifier())
    found = cross_validate(model, cohort, classes, cv=KFold(3), error_score="raise")
    assert len(found["test_score"]) == 3
    names = [f"s{at:02d}" for at in range(12)]
    assert learned_from == [{names[at] for at in train} for train, _ in KFold(3).split(names)]


# What the group model sees


def test_no_fold_learns_from_its_test_recordings(recordings, classes, learned_from):
    model = make_pipeline(PersonalizedConnectome("shrunk"), RidgeClassifier())
    search = GridSearchCV(model, {"personalizedconnectome__kind": ["shrunk", "guided"]}, cv=KFold(3), error_score="raise")
    search.fit(recordings, classes)
    digests = [PersonalizedConnectome().fit([one]).networks_[0].subject for one in recordings]
    folds = [{digests[at] for at in train} for train, _ in KFold(3).split(recordings)]
    assert learned_from == [*folds, *folds, set(digests)]  # and once more, with the best kind, from all of them


@pytest.mark.parametrize("kind", ["shrunk", "guided", "tangent"])
def test_what_is_learned_does_not_change_with_the_test_recordings(recordings, kind):
    """A planted leak: test recordings with a signal that would move every edge of a model that had seen them."""
    train, test = recordings[:8], recordings[8:]
    loud = [one + 50 * np.sin(np.arange(T))[:, None] for one in test]
    plain, planted = PersonalizedConnectome(kind).fit(train), PersonalizedConnectome(kind).fit(train)
    before = planted.transform(train)
    planted.transform(loud)
    assert_array_equal(planted.transform(train), before)
    assert_array_equal(plain.transform(test), planted.transform(test))
    leaking = PersonalizedConnectome(kind).fit(train + loud)
    assert np.abs(leaking.transform(test) - plain.transform(test)).max() > 0.05


def test_images_are_constructed_under_the_group_of_the_training_images(scans, fast, learned_from):
    connectome = PersonalizedConnectome("guided", **fast)
    train, test = scans[:6], scans[6:]
    found = connectome.fit_transform(train)
    assert found.shape == (6, 66) and learned_from == [{scan.subject for scan in train}]
    digest = connectome.group_.digest
    features = connectome.transform(test)
    assert connectome.group_.digest == digest and connectome.group_.subjects == tuple(scan.subject for scan in train)
    assert_array_equal(connectome.transform(test[:1]), features[:1])
    assert_array_equal(features, pickle.loads(pickle.dumps(connectome)).transform(test))
    assert connectome.cohort_.edges["guided"].shape == (6, 12, 12)
    moved = [dataclasses.replace(scan, subject=f"x{scan.subject}") for scan in test]
    assert PersonalizedConnectome("guided", **fast).fit([*train, *moved]).group_.digest != digest
    # Series of the same parcels go through the same group.
    other = connectome.transform([np.random.default_rng(0).normal(size=(160, 12))])
    assert other.shape == (1, 66) and np.isfinite(other).all()


# scikit-learn's manners, and what is refused


def test_features_have_names_in_pandas(recordings):
    table = PersonalizedConnectome().set_output(transform="pandas").fit_transform(recordings)
    assert table.shape == (12, 15) and table.columns[0] == "parcel 2--parcel 1"


def test_another_number_of_regions_is_refused_in_the_words_of_scikit_learn(recordings):
    connectome = PersonalizedConnectome().fit(recordings)
    with pytest.raises(ValueError, match="X has 5 features, but PersonalizedConnectome is expecting 6 features as input"):
        connectome.transform([one[:, :5] for one in recordings])
    with pytest.raises(ValueError, match="X has 4 features, but PersonalizedConnectome is expecting 6 features as input"):
        PersonalizedConnectome().fit([*recordings, recordings[0][:, :4]])
    with pytest.raises(NotFittedError):
        PersonalizedConnectome().transform(recordings)


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        ("correlation", 8, "kind: expected one of .*shrunk.*, got 'correlation'"),
        ("effective", 8, "kind: expected one of .*, got 'effective'"),
        ("shrunk", 3, "kind shrunk: expected 4 training participants or more, found 3"),
        ("tangent", 1, "kind tangent: expected 2 training recordings or more"),
    ],
)
def test_kinds_that_cannot_be_made_are_refused(recordings, kind, count, said):
    with pytest.raises(SettingsError, match=said):
        PersonalizedConnectome(kind).fit(recordings[:count])


def test_what_is_not_a_recording_is_refused(recordings, scans):
    with pytest.raises(SettingsError, match="kind guided needs a group model: set learn_group=True"):
        PersonalizedConnectome("guided", learn_group=False).fit(recordings)
    for wrong in (np.zeros((10, 3)), np.zeros(10), 7):
        with pytest.raises(InputError, match="expected recordings, found"):
            PersonalizedConnectome().fit(wrong)
    with pytest.raises(InputError, match="expected region series as in fit, found images"):
        PersonalizedConnectome().fit(recordings).transform(scans[:2])
