"""Values that no stage could use are refused where they are given."""

from __future__ import annotations

import pytest

from pnet_jax.config import CleaningConfig, ConstructConfig, InputConfig, PrepareConfig, PretrainConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstructConfig(parcels=0), "ConstructConfig.parcels: expected 1 or more, got 0"),
        (lambda: ConstructConfig(kappa=-1), "ConstructConfig.kappa: expected a number above 0"),
        (lambda: ConstructConfig(beta=float("nan")), "ConstructConfig.beta: expected 0 or more, got nan"),
        (lambda: CleaningConfig(low_pass=-0.1), "CleaningConfig.low_pass: expected 0 or more, got -0.1"),
        (lambda: CleaningConfig(low_pass=0.001), "expected high_pass below low_pass, got high_pass = 0.009 Hz and low_pass = 0.001 Hz"),
        (lambda: CleaningConfig(warn_seconds=-1), "CleaningConfig.warn_seconds: expected 0 or more, got -1"),
        (lambda: PretrainConfig(dimensions=0), "PretrainConfig.dimensions: expected 1 or more, got 0"),
        (lambda: PretrainConfig(parcels=(100, 7)), "PretrainConfig.parcels: expected even numbers of at least 2"),
        (lambda: PretrainConfig(learn_atlas=(0,)), "PretrainConfig.learn_atlas: expected 1 or more"),
        (lambda: PrepareConfig(window=5), "PrepareConfig.window: expected 10 or more, got 5"),
        (lambda: PrepareConfig(workers=0), "PrepareConfig.workers: expected 1 or more, got 0"),
        (lambda: PrepareConfig(dataset="a/b"), "PrepareConfig.dataset: expected letters, digits, - and _, got 'a/b'"),
        (lambda: InputConfig(min_seconds=100, max_seconds=50), "max_seconds: expected 100 s .min_seconds. or more, got 50 s"),
        (lambda: InputConfig(balls=1.5), "InputConfig.balls: expected a share 0…1, got 1.5"),
        (lambda: PretrainConfig(validation=1), "PretrainConfig.validation: expected a share of 0 or more and below 1, got 1"),
        (lambda: InputConfig(held_out=1), "InputConfig.held_out: expected a share of 0 or more and below 1, got 1"),
    ],
)
def test_nonsense_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_none_and_zero_are_allowed_where_they_mean_something():
    ConstructConfig(kappa=None, beta=0)
    CleaningConfig(low_pass=None, high_pass=0, min_seconds=0)
    CleaningConfig(low_pass=0, high_pass=0.2)
