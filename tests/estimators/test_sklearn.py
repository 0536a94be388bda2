"""scikit-learn's own checks of estimators, with the reason for each that does not apply."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from pnet_jax import PersonalizedConnectome, PersonalizedParcellation

TABLE = "fits a table with a row for each sample; these recordings are images, or arrays [frames, regions]"
ON_A_TABLE = (
    *("check_fit_score_takes_y", "check_estimators_overwrite_params", "check_dont_overwrite_parameters"),
    *("check_estimators_fit_returns_self", "check_readonly_memmap_input", "check_n_features_in_after_fitting"),
    *("check_positive_only_tag_during_fit", "check_estimators_dtypes", "check_pipeline_consistency"),
    *("check_estimator_sparse_tag", "check_estimators_pickle", "check_f_contiguous_array_estimator"),
    *("check_transformer_data_not_an_array", "check_transformer_general", "check_methods_sample_order_invariance"),
    *("check_fit2d_1sample", "check_methods_subset_invariance", "check_fit2d_1feature"),
    *("check_dict_unchanged", "check_fit_idempotent", "check_n_features_in"),
    *("check_fit_check_is_fitted", "check_fit2d_predict1d", "check_complex_data"),
    *("check_dtype_object", "check_estimators_empty_data_messages", "check_estimator_sparse_array"),
    *("check_estimator_sparse_matrix",),
)


class OnTables(PersonalizedConnectome):
    """Rows of a table as region series: a number is the phase of the series of one region, so that every check runs the estimator."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.allow_nan = False
        return tags

    def fit(self, X, y=None):
        return super().fit(_series(validate_data(self, X)))

    def transform(self, X):
        check_is_fitted(self)
        return super().transform(_series(validate_data(self, X, reset=False)))

    def fit_transform(self, X, y=None):
        return self.fit(X, y).transform(X)


def _series(table: np.ndarray) -> list[np.ndarray]:
    columns, t = np.arange(table.shape[1]), np.arange(40)[:, None]
    return [np.sin(0.2 * t * (1 + columns) + row) + 0.1 * np.cos(t * row) for row in table.astype(float)]


class ParcellationOfTables(PersonalizedParcellation):
    """The estimator with the tag without which scikit-learn checks nothing."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@parametrize_with_checks([OnTables()], expected_failed_checks=lambda _: {})
def test_connectome_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@parametrize_with_checks([ParcellationOfTables()], expected_failed_checks=lambda _: dict.fromkeys(ON_A_TABLE, TABLE), xfail_strict=True)
def test_parcellation_passes_the_checks_that_need_no_table(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", [PersonalizedConnectome(), PersonalizedParcellation()], ids=lambda one: type(one).__name__)
def test_scikit_learn_is_told_that_these_estimators_read_no_tables(estimator):
    with pytest.warns(SkipTestWarning, match="Can't test estimator Personalized"):
        check_estimator(estimator)


@pytest.mark.parametrize("estimator", [PersonalizedConnectome("tangent", t_r=2.0), PersonalizedParcellation(n_parcels=100)], ids=repr)
def test_parameters_are_stored_and_cloned_as_they_are(estimator):
    own = clone(estimator).set_params(labels="atlas", clean_args={"min_frames": 50})
    assert own.get_params() == estimator.get_params() | {"labels": "atlas", "clean_args": {"min_frames": 50}}
    assert type(own)(**own.get_params()).get_params() == own.get_params()
