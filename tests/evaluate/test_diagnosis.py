"""Diagnosis and prediction: planted effects are found, nothing is found in noise, and nothing of a held-out participant is read before."""

import dataclasses

import numpy as np
import pytest

from pnet_jax.cohort import make_cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import adjusted, diagnosis, features, models, prediction, scores
from pnet_jax.evaluate.pipeline import Pipeline, predict
from pnet_jax.evaluate.split import Split, by_subject, fixed, leave_site_out

FEW = {"permutations": 0, "learning": (), "repeats": 1, "models": ("ridge",)}


def cohort(n=60, k=12, frames=80, effect=0.0, seed=0, sites=3):
    """Participants with noise connectomes; in cases, the first three parcels share a further signal of the given size."""
    rng = np.random.default_rng(seed)
    case = np.arange(n) % 2 == 0
    signals = []
    for at in range(n):
        y = rng.normal(size=(k, frames)) + rng.normal(size=frames)
        y[:3] += effect * case[at] * rng.normal(size=frames)
        signals.append(y)
    age = rng.uniform(20, 60, n)
    edges = {"pearson": np.stack([np.corrcoef(y) for y in signals])}
    site = np.array([f"s{at % sites}" for at in rng.permutation(n)])
    about = {"dx": np.where(case, "patient", "control"), "age": age, "site": site, "mean_fd": rng.uniform(0.1, 0.5, n)}
    return make_cohort([f"{at:03d}" for at in range(n)], signals=signals, edges=edges, tr=2.0, covariates=about)


def test_a_planted_difference_is_found_and_noise_is_at_chance():
    found = diagnosis(cohort(effect=1.5), "dx", positive="patient", **FEW)
    assert found.value("tangent + ridge", "AUC") > 0.9
    assert found.value("pearson, parcels permuted + ridge", "AUC") < found.value("tangent + ridge", "AUC") - 0.15
    null = [diagnosis(cohort(seed=seed), "dx", features=("tangent",), **FEW).value("tangent + ridge", "AUC") for seed in range(4)]
    assert abs(np.mean(null) - 0.5) < 0.12


def test_permutation_p_is_small_only_with_an_effect():
    several = FEW | {"permutations": 99, "features": ("tangent",)}
    rows = {effect: diagnosis(cohort(effect=effect, seed=1), "dx", **several).rows for effect in (0.0, 1.5)}
    p = {effect: next(row.p for row in found if row.table == "permutation") for effect, found in rows.items()}
    assert p[1.5] == 0.01
    assert p[0.0] > 0.05


def test_selection_before_splitting_leaks_and_selection_in_folds_does_not():
    data = cohort(n=40, k=30, seed=2)
    subjects, y = data.table["subject"], (data.table["dx"] == "patient").astype(float)
    split = by_subject(subjects, y)
    whole = features.Edges(data)
    leaked = adjusted.Selected(whole, y, 10)(np.arange(len(y)))

    class Leaked:
        name = "leaked"

        def __call__(self, train):
            return leaked

    honest = adjusted.Selected(whole, y, 10)
    found = predict([Pipeline((Leaked(),)), Pipeline((honest,))], split, y, classes=True)
    values = [float(scores.auc(one.decision[0], y)) for one in found]
    assert values[0] > 0.75
    assert values[1] < 0.68


@pytest.mark.parametrize("make", (features.Tangent, features.Embeddings, lambda c: features.Tangent(c, 0.3, regions=6), features.Edges))
def test_held_out_rows_change_nothing_that_is_fitted(make):
    data = cohort(n=12)
    train = np.arange(9)
    changed = dataclasses.replace(
        data,
        signals=np.concatenate([data.signals[:9], data.signals[9:][:, ::-1]]),
        edges={"pearson": np.concatenate([data.edges["pearson"][:9], data.edges["pearson"][9:][:, ::-1, ::-1]])},
    )
    one, other = (make(which)(train) for which in (data, changed))
    np.testing.assert_array_equal(one[train], other[train])
    assert np.abs(one[9:] - other[9:]).max() > 0.01


def test_confounds_are_regressed_out_with_training_coefficients():
    data = cohort(n=30)
    train, held = np.arange(20), np.arange(20, 30)
    x = features.Edges(data)(train)
    design = np.column_stack([np.ones(30), data.table["age"]])
    expected = x - design @ np.linalg.lstsq(design[train], x[train], rcond=None)[0]
    np.testing.assert_allclose(adjusted.Net(features.Edges(data), data, ("age",))(train), expected, atol=1e-5)
    assert abs(np.corrcoef(expected[train].T, data.table["age"][train])[-1, :-1]).max() < 1e-5
    assert abs(np.corrcoef(expected[held].T, data.table["age"][held])[-1, :-1]).max() > 0.05


def test_combat_removes_site_effects_that_training_rows_show():
    pytest.importorskip("combatlearn")
    data = cohort(n=60)
    site = data.table["site"]
    z = np.arctanh(np.clip(data.edges["pearson"], -0.99, 0.99)) + np.where(site == "s1", 0.4, 0.0)[:, None, None]
    data = dataclasses.replace(data, edges={"pearson": np.tanh(z).astype(np.float32)})
    train = np.arange(40)
    before, after = features.Edges(data)(train), adjusted.Harmonised(features.Edges(data), data, columns=("age",))(train)
    held = np.arange(40, 60)

    def apart(x):
        return abs(x[held][site[held] == "s1"].mean() - x[held][site[held] != "s1"].mean())

    assert apart(after) < apart(before) / 4
    with pytest.raises(InputError, match="ComBat: site s1 has no training scans"):
        adjusted.Harmonised(features.Edges(data), data)(np.flatnonzero(site != "s1"))


def test_models_equal_scikit_learn_on_the_features():
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    x, train = rng.normal(size=(30, 50)), np.arange(20)
    y = (rng.normal(size=20) + x[:20, 0] > 0).astype(float)
    centred = x - x[train].mean(0)
    scale = np.mean(np.square(centred[train]).sum(1))
    k = models.kernel_of(x, train)
    unit = centred / np.sqrt(scale)
    for name, other in (
        ("ridge", Ridge(alpha=0.1).fit(unit[train], y).predict(unit)),
        ("logistic", LogisticRegression(C=10, tol=1e-8, max_iter=5000).fit(unit[train], y).decision_function(unit)),
        ("svm", SVC(C=10, kernel="linear", tol=1e-6).fit(unit[train], y).decision_function(unit)),
    ):
        found = models.decisions(name, k, y[:, None], train, np.arange(30), np.array([0.1]))
        np.testing.assert_allclose(found[0, :, 0], other, atol=1e-2, err_msg=name)


def test_weighted_scores_equal_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

    rng = np.random.default_rng(0)
    y, p = (rng.uniform(size=50) > 0.5).astype(float), np.round(rng.uniform(size=50), 1)
    counts = rng.integers(0, 3, (1, 50))
    again = np.repeat(np.arange(50), counts[0])
    assert scores.weighted_auc(p, y, counts)[0] == pytest.approx(roc_auc_score(y[again], p[again]))
    assert scores.auc(p[again], y[again]) == pytest.approx(roc_auc_score(y[again], p[again]))
    assert scores.weighted_accuracy(p, y, counts)[0] == pytest.approx(balanced_accuracy_score(y[again], p[again] >= 0.5))
    v = rng.normal(size=50)
    assert scores.weighted_r2(p, v, counts)[0] == pytest.approx(r2_score(v[again], p[again]))
    assert scores.weighted_r(p, v, counts)[0] == pytest.approx(np.corrcoef(v[again], p[again])[0, 1])


def test_a_number_is_predicted_and_sites_are_left_out():
    data = cohort(n=60, seed=3)
    rng = np.random.default_rng(0)
    age = 40 + 15 * (data.edges["pearson"][:, 0, 1] - data.edges["pearson"][:, 0, 1].mean()) / data.edges["pearson"][:, 0, 1].std()
    table = data.table | {"age": age + rng.normal(size=60)}
    found = prediction(dataclasses.replace(data, table=table), "age", permutations=20, learning=())
    assert found.settings["folds"] == "leave one site out"
    tested = next(row for row in found.rows if (row.table, row.name) == ("permutation", "pearson + ridge"))
    assert (tested.measure, tested.value) == ("r within sites", pytest.approx(found.value("pearson + ridge", "r within sites")))
    assert tested.p == pytest.approx(1 / 21)
    assert found.value("pearson + ridge", "r within sites") > 0.3
    assert found.value("pearson + ridge", "mean absolute error") < found.value("training mean", "mean absolute error")
    assert not any(row.name.startswith("covariates") and "age" in row.name for row in found.rows)


def test_the_target_is_no_covariate_of_its_own_prediction():
    data = cohort(n=30)
    data = dataclasses.replace(data, table=data.table | {"sex": data.table["dx"]})
    found = diagnosis(data, "sex", features=("covariates",), **FEW)
    assert list(found.settings["covariates"]) == ["mean_fd", "age"]


def test_splits_keep_subjects_apart():
    subjects = np.repeat([f"{at}" for at in range(20)], 2)
    y = np.repeat(np.arange(20) % 2, 2).astype(float)
    for train, test in by_subject(subjects, y, folds=4, repeats=2):
        assert not set(subjects[train]) & set(subjects[test])
        assert {0, 1} == set(y[test])
    with pytest.raises(InputError, match="subject 3 in both parts"):
        Split(subjects, ((np.arange(7), np.arange(7, 40)),), "own")
    with pytest.raises(InputError, match="fold 1 names 1 subjects that the cohort does not have, first 99"):
        fixed(subjects, [["99"]])
    with pytest.raises(InputError, match="only s0"):
        leave_site_out(subjects, ["s0"] * 40)
    inner = by_subject(subjects, y).inner(np.arange(30), y)
    assert all(not set(subjects[:30][fit]) & set(subjects[:30][val]) for fit, val in inner)


def test_what_cannot_be_evaluated_is_refused_with_names():
    data = cohort(n=20)
    one_class = dataclasses.replace(data, table=data.table | {"dx": np.array(["patient"] * 20)})
    with pytest.raises(InputError, match="dx: expected two classes, found 1: patient"):
        diagnosis(one_class, "dx")
    with pytest.raises(SettingsError, match="no column 'diagnosis'"):
        diagnosis(data, "diagnosis")
    with pytest.raises(InputError, match="expected 15 subjects or more of each class, found 10 of class control"):
        diagnosis(data, "dx", leave_out="subject", folds=15)
    gap = dataclasses.replace(data, table=data.table | {"mean_fd": np.where(np.arange(20) == 3, np.nan, 1.0 * np.arange(20))})
    with pytest.raises(InputError, match="covariate mean_fd: 1 of 20 scans have no value, first sub-003"):
        diagnosis(gap, "dx", covariates=("mean_fd",), **FEW)
    flat = dataclasses.replace(data, table=data.table | {"sex": np.full(20, "F")})
    with pytest.raises(InputError, match="covariate sex: expected values that differ between scans, found only 'F'"):
        diagnosis(flat, "dx", covariates=("sex",), **FEW)
    with pytest.raises(SettingsError, match="unknown features 'pearsn'"):
        diagnosis(data, "dx", features=("pearsn",))
    with pytest.raises(InputError, match="not symmetric"):
        make_cohort(["1"], edges={"pearson": np.array([[[1, 0.5], [0.2, 1]]])})
    with pytest.raises(InputError, match="every scan once"):
        make_cohort(["1", "1"], edges={"pearson": np.stack([np.eye(3)] * 2)})


def test_scans_of_a_subject_change_places_together():
    from pnet_jax.evaluate.compare import permuted_targets

    subjects = np.repeat(np.arange(10), 2)
    between = permuted_targets(np.repeat(np.arange(10) % 2, 2).astype(float), subjects, None, 50, 0)
    assert (between[::2] == between[1::2]).all()
    within = permuted_targets(np.tile([0.0, 1], 10), subjects, None, 50, 0)
    assert (within[::2] + within[1::2] == 1).all()
    assert 0.3 < within[::2].mean() < 0.7


def test_graph_network_learns_a_strong_effect():
    found = diagnosis(cohort(effect=2.5, sites=1), "dx", positive="patient", features=("graph",), folds=3, **FEW)
    assert found.value("graph network", "AUC") > 0.7


def test_the_same_seed_gives_the_same_answer():
    data = cohort(n=24)
    one, other = (diagnosis(data, "dx", features=("pearson",), **FEW) for _ in range(2))
    assert one.rows == other.rows or all(a[:4] == b[:4] for a, b in zip(one.rows, other.rows, strict=True))
    assert one.settings["folds_digest"] == other.settings["folds_digest"]
