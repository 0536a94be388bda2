"""The protocol for measured stimulation: refuses noise, recovers an effect, and cannot be given a shared run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import Runs, measured_modulation
from pnet_jax.evaluate.questions.modulation_measured import with_injected

K, N = 12, 14
SITES = {f"site{k}": [k, k + K // 2] for k in range(K // 2)}


def noise_runs(seed: int = 0, sd: float = 0.1) -> Runs:
    """Patients with a pattern of their own, four runs of which differ by independent noise alone."""
    rng = np.random.default_rng(seed)
    r = np.eye(K) + 0.25 * (np.arange(K)[:, None] % 3 == np.arange(K) % 3)
    group = np.arctanh(np.clip((r / r.max())[np.triu_indices(K, 1)], -0.9, 0.9))
    own = group + 0.08 * rng.normal(size=(N, 1, len(group)))
    z = own + sd * rng.normal(size=(N, 4, len(group)))
    return Runs(z[:, :2], z[:, 2:], SITES, ["site1" if q % 2 else "site4" for q in range(N)], [f"p{q}" for q in range(N)])


def test_noise_is_not_testable():
    answer = measured_modulation(noise_runs(), kinds=("noise",))
    assert answer.settings["verdict"] == "not testable"
    assert answer.sentences[0].startswith("Not testable")


def test_an_injected_effect_is_recovered():
    runs, share = with_injected(noise_runs(sd=0.03), "local", 3.0)
    assert 0 < share < 1
    answer = measured_modulation(runs, kinds=("local",))
    assert answer.settings["verdict"] == "yes", answer.sentences
    assert answer.value("local", "share of site choices that are as good") <= 0.05


def test_a_change_that_no_model_makes_is_answered_no():
    runs = noise_runs(sd=0.03)
    pattern = np.random.default_rng(5).normal(size=(N, 1, runs.off.shape[2]))
    answer = measured_modulation(dataclasses.replace(runs, on=runs.on + 0.1 * pattern), kinds=("local",))
    assert answer.settings["verdict"] == "no", answer.sentences


def test_regression_to_the_group_is_a_baseline_and_no_effect():
    """ON runs that lie nearer to the mean OFF pattern than the individual OFF runs do: a change, but none of a model's."""
    runs = noise_runs(sd=0.03)
    mean = runs.off.mean((0, 1))
    answer = measured_modulation(dataclasses.replace(runs, on=mean + 0.3 * (runs.on - mean)), kinds=("local",))
    assert answer.value("−(individual OFF − mean OFF)", "correlation with the measured change") > 0.3
    assert answer.settings["verdict"] == "no", answer.sentences


def test_a_shared_run_is_refused():
    runs = noise_runs()
    off = runs.off.copy()
    off[2, 1] = off[2, 0]
    with pytest.raises(InputError, match="p2: runs OFF 1 and OFF 2 are the same"):
        dataclasses.replace(runs, off=off)


def test_the_order_of_the_patients_does_not_matter():
    runs = noise_runs()
    order = np.random.default_rng(1).permutation(N)
    moved = Runs(runs.off[order], runs.on[order], SITES, [runs.targets[q] for q in order], [runs.patients[q] for q in order])
    for a, b in zip(measured_modulation(runs, kinds=("noise",)).rows, measured_modulation(moved, kinds=("noise",)).rows, strict=True):
        assert (a.name, a.measure) == (b.name, b.measure)
        np.testing.assert_allclose(a.value, b.value, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": ["nowhere"] * N}, "p0: target 'nowhere'"),
        ({"on": np.zeros((N, 2, 3))}, "expected off and on of shape"),
        ({"patients": ["p"] * 3}, "expected off and on of shape"),
        ({"sites": {"site1": [0], "site4": [99]}}, "each 0…11"),
    ],
)
def test_bad_input_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(noise_runs(), **change)


def test_nan_and_unknown_kinds_are_refused():
    runs = noise_runs()
    on = runs.on.copy()
    on[3, 0, 2] = np.nan
    with pytest.raises(InputError, match="p3: expected finite"):
        dataclasses.replace(runs, on=on)
    with pytest.raises(SettingsError, match="magnet"):
        measured_modulation(runs, kinds=("magnet",))


def test_runs_of_a_cohort_are_refused_by_name_unless_each_patient_has_two_of_each():
    from pnet_jax.cohort import make_cohort
    from pnet_jax.evaluate import runs_of

    rng = np.random.default_rng(0)
    n, names = 7, ["LH_a", "RH_a", "LH_b", "RH_b"]
    subjects = np.repeat([f"{at}" for at in range(n)], 4)
    state = np.tile(["OFF", "OFF", "ON", "ON"], n)
    edges = np.stack([np.corrcoef(rng.normal(size=(4, 30))) for _ in subjects])
    about = {"state": state, "site": np.repeat(["a", "b", "a", "a", "b", "b", "a"], 4)}
    cohort = make_cohort(subjects, edges={"pearson": edges}, covariates=about, names=names, sessions=np.tile(list("1234"), n))
    runs = runs_of(cohort, "state", "site", on="ON")
    assert {name: list(nodes) for name, nodes in runs.sites.items()} == {"a": [0, 1], "b": [2, 3]}
    assert list(runs.targets) == ["a", "b", "a", "a", "b", "b", "a"]
    np.testing.assert_allclose(np.tanh(runs.on[1, 0]), edges[6][np.triu_indices(4, 1)], atol=1e-5)
    with pytest.raises(InputError, match=r"6: expected two scans of each condition and one target, found 1 ON and 2 OFF"):
        runs_of(cohort.take(np.arange(27)), "state", "site", on="ON")
