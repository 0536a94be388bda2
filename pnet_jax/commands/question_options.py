"""Options common to several evaluations."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from pnet_jax.commands import question_inputs as inputs
from pnet_jax.commands.options import Flat
from pnet_jax.errors import SettingsError

COHORT = Group("Cohort and output", sort_key=3)
FOLDS = Group("Folds and features", sort_key=2)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What all evaluations have in common.

    Attributes:
      atlas: Atlas label, if a folder contains results for several atlases.
      participants: Table with the column participant_id and covariates, for a folder of results.
      seed: Random seed of folds, bootstrap draws and permutations.
      report: Write the HTML page.
    """

    atlas: str | None = None
    participants: str | None = None
    seed: int = 0
    report: bool = True

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 32:
            raise SettingsError(f"EvaluationConfig.seed: expected a whole number from 0 to {(1 << 32) - 1}, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of features in the same folds.

    Attributes:
      beside: Other networks of the same scans (NAME=COHORT …), e.g. from a fixed atlas, evaluated on the same folds.
      site: Column with the site of each scan.
      covariates: Columns of the covariates-only baseline of diagnosis and prediction, and covariates of other evaluations.
      permutations: Number of permutations; 0 for no permutation tests.
    """

    beside: tuple[str, ...] = ()
    site: str = "site"
    covariates: tuple[str, ...] = ()
    permutations: int = 1000


@dataclasses.dataclass(frozen=True)
class Folds:
    """Folds, features and learning curve.

    Attributes:
      features: Features to compare: tangent, shrunk-tangent, pearson, partial, tangent+pearson, views, encoder, graph, site-centred,
        combat, net, covariates, permuted, or edge layers; a standard choice by default.
      leave_out: Held-out unit; `auto` holds out sites if there are three or more.
      folds: Number of folds if participants are held out.
      repeats: Number of repeats with different random folds.
      fold_list: TSV with the columns participant_id and fold, for fixed folds.
      learning: Fractions of the training participants in the learning curve.
    """

    features: tuple[str, ...] = ()
    leave_out: Literal["auto", "site", "subject"] = "auto"
    folds: int = 5
    repeats: int = 5
    fold_list: str | None = None
    learning: tuple[float, ...] = (0.25, 0.5, 0.75)


EvaluationOptions = Annotated[EvaluationConfig, Parameter(name="*", group=COHORT)]
ComparisonOptions = Annotated[Comparison, Flat]
FoldOptions = Annotated[Folds, Parameter(name="*", group=FOLDS)]


def fold_arguments(comparison: Comparison, folds: Folds, common: EvaluationConfig) -> dict[str, Any]:
    """Return the arguments of an evaluation in folds."""
    given = {
        "beside": inputs.beside(comparison.beside),
        "covariates": list(comparison.covariates) or None,
        "site": comparison.site,
        "leave_out": folds.leave_out,
        "folds": folds.folds,
        "repeats": folds.repeats,
        "held_out": inputs.fold_list(folds.fold_list) if folds.fold_list else None,
        "permutations": comparison.permutations,
        "learning": folds.learning,
        "seed": common.seed,
    }
    return given | ({"features": folds.features} if folds.features else {})
