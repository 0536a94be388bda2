"""Features that adjust another feature: regression of covariates, selection, harmonisation. All are fitted to the training rows."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.columns import column, covariate_matrix
from pnet_jax.evaluate.features import Feature, Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A feature after regression on covariates, with coefficients estimated in the training rows.

    Raises:
      SettingsError: If the cohort has no such column.
      InputError: If a value is missing, or a column is constant.
    """

    feature: Feature
    cohort: Cohort
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.feature.name}, net of {', '.join(self.columns)}"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        values, _ = covariate_matrix(self.cohort, self.columns, np.arange(len(self.cohort)))
        design = np.column_stack([np.ones(len(values)), values])
        x = self.feature(train)
        return x - (design @ np.linalg.lstsq(design[train], x[train], rcond=None)[0]).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Selected:
    """The values of a feature most strongly associated with the target by univariate F, selected in the training rows.

    Attributes:
      y: Target of every row; only training rows are used.
      count: Number of values to keep.
      classes: Whether the target has two classes.
    """

    feature: Feature
    y: Float[np.ndarray, " S"]
    count: int
    classes: bool = True
    supervised = True

    @property
    def name(self) -> str:
        return f"{self.feature.name}, best {self.count}"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        from sklearn.feature_selection import f_classif, f_regression

        x = self.feature(train)
        score = np.nan_to_num((f_classif if self.classes else f_regression)(x[train], self.y[train])[0])
        return x[:, np.argsort(-score, kind="stable")[: self.count]]


@dataclasses.dataclass(frozen=True, eq=False)
class Harmonised:
    """A feature after ComBat (combatlearn), with site effects estimated in the training rows.

    Attributes:
      site: Column of the sites; every site must be in the training rows, so folds must not hold out sites.
      columns: Covariates whose effects are kept.

    Raises:
      InputError: If a held-out scan is from a site without training rows; the message names the site.
      SettingsError: If the package combatlearn is not installed.

    Source: Johnson, Li and Rabinovic 2007, Biostatistics 8; for connectomes Fortin et al. 2018, NeuroImage 167.
    """

    feature: Feature
    cohort: Cohort
    site: str = "site"
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.feature.name}, ComBat"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        try:
            from combatlearn.sklearn_api import ComBat
        except ImportError:
            raise SettingsError("ComBat needs combatlearn, which is not installed: pip install 'pnet_jax[harmonize]'") from None
        import pandas as pd

        sites = column(self.cohort, self.site).astype(str)
        if unknown := sorted(set(sites) - set(sites[train])):
            raise InputError(f"ComBat: site {unknown[0]} has no training scans; use folds by subject, or centre sites instead")
        values, names = covariate_matrix(self.cohort, self.columns, np.arange(len(self.cohort)))
        x = pd.DataFrame(self.feature(train).astype(np.float64))
        kept = pd.DataFrame(values, columns=names) if names else None
        combat = ComBat(pd.Series(sites), continuous_covariates=kept, method="fortin").fit(x.iloc[train])
        return np.asarray(combat.transform(x), np.float32)
