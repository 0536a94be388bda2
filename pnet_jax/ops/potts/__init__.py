"""The op `potts`; its public function is in `api.py`."""

from pnet_jax.ops.potts.api import potts

__all__ = ["potts"]
