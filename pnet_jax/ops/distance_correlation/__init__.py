"""The op `distance_correlation`; its face is in `api.py`."""

from pnet_jax.ops.distance_correlation.api import distance_correlation

__all__ = ["distance_correlation"]
