"""Estimators in the style of scikit-learn and nilearn: personalised parcels and connectomes."""

from pnet_jax.estimators.connectome import PersonalizedConnectome
from pnet_jax.estimators.parcellation import PersonalizedParcellation

__all__ = ["PersonalizedConnectome", "PersonalizedParcellation"]
