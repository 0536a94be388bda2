"""The op `distance_correlation`; its public function is in `api.py`."""

from pnet_jax.ops.distance_correlation.api import distance_correlation

__all__ = ["distance_correlation"]
