"""The op `correlation`; its face is in `api.py`."""

from pnet_jax.ops.correlation.api import correlation

__all__ = ["correlation"]
