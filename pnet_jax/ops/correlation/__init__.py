"""The op `correlation`; its public function is in `api.py`."""

from pnet_jax.ops.correlation.api import correlation

__all__ = ["correlation"]
