"""The op `location_correlation`; its public functions are in `api.py`."""

from pnet_jax.ops.location_correlation.api import TopCorrelations, location_correlation, top_correlations

__all__ = ["TopCorrelations", "location_correlation", "top_correlations"]
