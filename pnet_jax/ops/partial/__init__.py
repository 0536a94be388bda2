"""The op `partial`, with the covariance and the precision it is made from; their faces are in `api.py`."""

from pnet_jax.ops.partial.api import ledoit_wolf, partial, precision

__all__ = ["ledoit_wolf", "partial", "precision"]
