"""The questions are functions of `pnet_jax.evaluate`, whatever was imported before, and `import pnet_jax` loads none of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

from pnet_jax import evaluate

QUESTIONS = ("consistency", "parcellation", "identifiability", "motion", "diagnosis", "prediction", "circuits", "modulation")


def test_every_question_is_a_function_after_all_modules_were_imported():
    for found in pkgutil.walk_packages(evaluate.__path__, "pnet_jax.evaluate."):
        importlib.import_module(found.name)
    for name in QUESTIONS:
        module = importlib.import_module(f"pnet_jax.evaluate.questions.{name}")
        assert inspect.isfunction(getattr(evaluate, name)) and getattr(evaluate, name) is getattr(module, name)
    modules = {found.name for found in pkgutil.iter_modules(evaluate.__path__)}
    assert not modules & set(evaluate.__all__), "a module hides the function of its name once it was imported"


def test_the_first_import_of_a_process_can_be_any():
    code = """
import sys
import pnet_jax
heavy = [name for name in ("jax", "scipy", "sklearn", "nibabel", "pandas", "pnet_jax.evaluate") if name in sys.modules]
assert not heavy, heavy
import pnet_jax.evaluate.questions.diagnosis as module
assert pnet_jax.evaluate.diagnosis is module.diagnosis
from pnet_jax.evaluate import motion, scores
assert callable(motion) and scores.auc
assert "sklearn" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
