"""Simulated cohorts with known ground truth: parcels, coupling, closed-form connectivity and planted disease."""

from pnet_jax.simulate.cohort import (
    SimulatedSession,
    SimulatedSubject,
    check,
    cleaned_scan,
    group_truth,
    simulate_cohort,
    simulate_subject,
)
from pnet_jax.simulate.disease import DiseaseTruth

__all__ = [
    "DiseaseTruth",
    "SimulatedSession",
    "SimulatedSubject",
    "check",
    "cleaned_scan",
    "group_truth",
    "simulate_cohort",
    "simulate_subject",
]
