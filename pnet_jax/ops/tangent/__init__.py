"""The op `tangent`; its public functions are in `api.py`."""

from pnet_jax.ops.tangent.api import geometric_mean, tangent

__all__ = ["geometric_mean", "tangent"]
