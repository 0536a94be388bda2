"""Scores of the program that looks for a planted disease."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score

EDGES, PLANTED = 400, 40


@pytest.fixture
def disease(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import disease

    yield disease
    for name in ("disease", "common", "personalization", "sessions"):
        sys.modules.pop(name)


@pytest.fixture
def scored(disease):
    return disease.scored


def cohort(effect: float) -> tuple[np.ndarray, ...]:
    """Fisher z, who is ill, planted edges, the strengthened of them, and what changed with them."""
    ill, planted, changed = np.arange(50) % 2 == 1, np.arange(EDGES) < PLANTED, np.arange(EDGES) < 2 * PLANTED
    z = np.random.default_rng(0).normal(size=(50, EDGES)) * 0.2
    z[np.ix_(ill, changed)] -= effect
    return z, ill, planted, np.arange(EDGES) < PLANTED // 4, changed


def test_what_was_planted_is_counted_apart_from_what_changed_with_it_and_from_the_rest(scored):
    found, weak, strong, real, false, family, auc, precision, size, difference = scored(*cohort(effect=0.4), 0)
    assert (found, weak, strong, real, family) == (PLANTED, 30, 10, PLANTED, PLANTED)
    assert false <= 0.1 * 2 * PLANTED and auc == precision == 1 and size > 5
    assert difference == pytest.approx(0.4, abs=0.03)


def test_nothing_is_found_of_nothing(scored):
    assert scored(*cohort(effect=0.0), 0)[:6] == (0,) * 6


def test_the_auc_is_that_of_scikit_learn_and_absent_edges_have_no_say(scored):
    z, ill, planted, strong, changed = cohort(effect=0.1)
    z[3, :5] = np.nan
    size = np.abs(ttest_ind(z[ill][:, 5:], z[~ill][:, 5:]).statistic)
    compared = (planted | ~changed)[5:]
    assert scored(z, ill, planted, strong, changed, 0)[6] == pytest.approx(roc_auc_score(planted[5:][compared], size[compared]), abs=1e-9)


def test_a_disease_in_all_edges_is_diagnosed_and_none_in_noise_is_not(disease):
    z, ill, *_ = cohort(effect=0.4)
    z[3, :5] = np.nan
    assert disease.diagnosed(z, ill, 0) > 0.95
    assert 0.2 < disease.diagnosed(cohort(effect=0.0)[0], ill, 0) < 0.8


def test_differences_to_the_fixed_atlas_have_the_interval_of_student(disease):
    seeds = [{"raw": {"AUC": value}, "fixed atlas": {"AUC": 0.5}} for value in (0.6, 0.7, 0.8)]
    mean, low, high = disease._gains(seeds, "raw")["AUC"]
    assert mean == pytest.approx(0.2) and low < 0 < high and high - mean == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
