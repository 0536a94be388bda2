"""Virtual modulation: a planted lesion is found, a sham is not, and nothing of a patient reaches its own axis."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.covariance import ledoit_wolf

from pnet_jax.dynamics.hopf import lyapunov
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import modulation
from pnet_jax.evaluate.axis import fit_axis, parts_of
from pnet_jax.evaluate.modulation_fold import GROUP, OWN, RANDOM, adjust, axes_of
from pnet_jax.evaluate.modulation_model import control_cost
from pnet_jax.evaluate.modulation_report import SHIFT, SHIFT_SD
from pnet_jax.evaluate.questions.modulation import prepare
from pnet_jax.evaluate.resampling import sign_flip
from tests.evaluate.lesioned import LESION, cohort_of_planted

FEW = {"folds": 3, "draws": 2, "sham": 0}


@pytest.fixture(scope="module")
def cohort():
    return cohort_of_planted(18)


@pytest.fixture(scope="module")
def answer(cohort):
    return modulation(cohort, "group", **FEW | {"sham": 6, "sham_patients": 4})


def test_a_planted_lesion_is_the_first_target(answer):
    table = answer.tables["targets"]
    assert table["target"][0] == f"node{LESION}"
    assert table["direction"][0] == "increase"
    assert (answer.tables["patients"]["best_target"] == f"node{LESION}").mean() >= 0.8


def test_recovery_at_the_planted_target_is_far_above_random(answer):
    assert answer.value(OWN, SHIFT) > 3 * abs(answer.value(RANDOM, SHIFT))
    assert 0.2 < answer.value(OWN, "recovery rate") < 1.2
    assert answer.value(GROUP, SHIFT) == pytest.approx(answer.value(OWN, SHIFT), abs=0.1)


def test_the_energy_keeps_to_the_cap(answer):
    assert all(row.value <= 0.2 + 1e-4 for row in answer.rows if row.measure == "energy")


def test_shuffled_diagnoses_recover_far_less(answer):
    sham = next(row for row in answer.rows if row.table == "sham" and row.name == OWN)
    assert abs(sham.value) < answer.value(OWN, SHIFT_SD) / 3


def test_it_says_that_it_is_a_prediction(answer):
    assert "not evidence of a clinical effect" in answer.sentences[-1]


def test_signals_give_the_same_target_with_a_posterior():
    found = modulation(cohort_of_planted(18, signals=True), "group", **FEW)
    assert found.tables["targets"]["target"][0] == f"node{LESION}"
    assert found.tables["targets"]["direction"][0] == "increase"
    assert np.isfinite(found.tables["patients"]["first_in_draws"]).all()


def test_a_patients_own_data_do_not_change_its_axis(cohort):
    setting = _setting(cohort)
    patient = int(np.flatnonzero(setting.patient)[2])
    train = np.setdiff1d(np.arange(len(cohort)), [patient])
    other = dataclasses.replace(cohort, edges={"pearson": cohort.edges["pearson"].copy()})
    other.edges["pearson"][patient] = cohort.edges["pearson"][0][::-1, ::-1]
    changed = _setting(other)
    assert not np.array_equal(setting.z[patient], changed.z[patient])
    for before, after in zip(axes_of(setting, setting.z, train, 3), axes_of(changed, changed.z, train, 3), strict=True):
        assert_array_equal(before.weights, after.weights)
    mean = setting.dynamics.learn(setting.patient, train).mean
    assert_array_equal(mean, changed.dynamics.learn(changed.patient, train).mean)


def _setting(cohort, **more):
    return prepare(cohort, "group", **more)[0]


def test_the_order_of_the_scans_does_not_matter_beyond_the_folds(cohort):
    order = np.random.default_rng(0).permutation(len(cohort))
    a, b = _setting(cohort), _setting(cohort.take(order))
    first, second = fit_axis(a.z, a.patient, np.arange(18)), fit_axis(b.z, b.patient, np.arange(18))
    assert_allclose(first.weights, second.weights, rtol=1e-6, atol=1e-9)
    names = [[set(one.subjects[part]) for part in parts_of(one.patient, one.subjects, np.arange(18), 7)] for one in (a, b)]
    assert names[0] == names[1]
    assert len(names[0]) == 3 and not set.intersection(*names[0])


def test_the_axis_is_the_regularised_discriminant():
    rng = np.random.default_rng(0)
    z, patient = rng.normal(size=(400, 8)), np.arange(400) % 2 == 1
    z[patient, 3] += 2
    axis = fit_axis(z, patient, np.arange(400))
    assert axis.weights @ axis.direction == pytest.approx(1)
    assert_allclose(axis.position(z[patient]).mean(), 1, atol=1e-9)
    assert_allclose(axis.position(z[~patient]).mean(), 0, atol=1e-9)
    apart = z - np.where(patient[:, None], axis.patients, axis.healthy)
    expected = np.linalg.solve(ledoit_wolf(apart, assume_centered=True)[0], axis.direction)
    assert_allclose(axis.weights, expected / (expected @ axis.direction), rtol=0.01, atol=2e-3)


def test_covariates_are_removed_by_training_slopes():
    rng = np.random.default_rng(0)
    patient = np.arange(20) % 2 == 1
    age = rng.normal(size=(20, 1))
    z = patient[:, None] * [1.0, 0.0] + age * [0.0, 2.0]
    out = adjust(z, age, patient, np.arange(12))
    assert_allclose(out, patient[:, None] * [1.0, 0.0] + age[:12].mean() * np.array([0.0, 2.0]), atol=1e-9)


def test_control_cost_is_that_of_the_gramian():
    rng = np.random.default_rng(0)
    draw = rng.normal(size=(6, 6))
    own = (-np.eye(6) + 0.08 * (draw + draw.T)).astype(np.float32)
    wanted, targets = rng.normal(size=(2, 6)), np.array([[2, 4, -1]])
    gramian = np.asarray(lyapunov(own, np.diag([0, 0, 1, 0, 1, 0]).astype(np.float32)))
    ridge = np.trace(np.linalg.inv(-2 * own)) / 36
    expected = [x @ np.linalg.solve(gramian + ridge * np.eye(6), x) for x in wanted]
    assert_allclose(control_cost(own, wanted, targets)[:, 0], expected, rtol=1e-3)


def test_targets_may_be_named_or_sets(cohort):
    setting = _setting(cohort, targets={"both": ["node1", f"node{LESION}"], "one": ["node3"]})
    assert_array_equal(setting.targets, [[1, LESION], [3, -1]])
    assert setting.members.sum() == 3
    found = modulation(cohort, "group", targets={"both": ["node1", f"node{LESION}"], "one": ["node3"]}, **FEW)
    assert found.tables["targets"]["target"][0] == "both"


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"kind": "magnet"}, SettingsError, "kind"),
        ({"cap": 0}, SettingsError, "cap"),
        ({"targets": ["nowhere"]}, SettingsError, "nowhere"),
        ({"positive": "martian"}, SettingsError, "martian"),
        ({"covariates": ["height"]}, SettingsError, "height"),
    ],
)
def test_wrong_settings_are_refused(cohort, settings, error, said):
    with pytest.raises(error, match=said):
        modulation(cohort, "group", **FEW | settings)


def test_too_few_and_mixed_subjects_are_refused(cohort):
    with pytest.raises(InputError, match="6 subjects or more of each class, found 4"):
        modulation(cohort.take(np.arange(9)), "group", **FEW)
    table = cohort.table | {"subject": np.array(["same", "same", *cohort.table["subject"][2:]])}
    with pytest.raises(InputError, match="subject same has scans of both classes"):
        modulation(dataclasses.replace(cohort, table=table), "group", **FEW)


def test_edges_that_are_no_correlations_are_refused(cohort):
    with pytest.raises(InputError, match="between −1 and 1"):
        modulation(dataclasses.replace(cohort, edges={"pearson": 2 * cohort.edges["pearson"]}), "group", **FEW)


def test_sign_flips():
    assert sign_flip(np.full(12, 0.3)) < 0.01
    assert sign_flip(np.array([1.0, -1.0] * 6)) > 0.4
    assert np.isnan(sign_flip(np.array([1.0, np.nan])))
