"""Evaluation of a cohort: a function for each question, which takes a `Cohort` and returns an `Answer`.

>>> import pnet_jax
>>> from pnet_jax import evaluate
>>> cohort = pnet_jax.load_cohort("OUT/cohort.zarr")  # doctest: +SKIP
>>> answer = evaluate.diagnosis(cohort, "dx", positive="patient")  # doctest: +SKIP
>>> answer.value("tangent + ridge", "AUC")  # doctest: +SKIP
0.71

The functions are defined in modules of the same names in `evaluate.questions`. No module of this package may have the name of a question:
once it was imported, it would hide the function.
"""

from __future__ import annotations

from pnet_jax.evaluate.answer import Answer, Figure, Line, Row
from pnet_jax.evaluate.parcel_scores import parcellation_scores
from pnet_jax.evaluate.qc_fc import motion_rows
from pnet_jax.evaluate.questions.circuits import circuits
from pnet_jax.evaluate.questions.consistency import consistency
from pnet_jax.evaluate.questions.diagnosis import diagnosis
from pnet_jax.evaluate.questions.identifiability import identifiability
from pnet_jax.evaluate.questions.modulation import modulation
from pnet_jax.evaluate.questions.modulation_measured import Runs, measured_modulation, runs_of
from pnet_jax.evaluate.questions.motion import motion
from pnet_jax.evaluate.questions.parcellation import parcellation
from pnet_jax.evaluate.questions.prediction import prediction
from pnet_jax.evaluate.split import Split, by_subject, fixed, leave_site_out

__all__ = [
    "Answer",
    "Figure",
    "Line",
    "Row",
    "Runs",
    "Split",
    "by_subject",
    "circuits",
    "consistency",
    "diagnosis",
    "fixed",
    "identifiability",
    "leave_site_out",
    "measured_modulation",
    "modulation",
    "motion",
    "motion_rows",
    "parcellation",
    "parcellation_scores",
    "prediction",
    "runs_of",
]
