"""The op `fingerprint`; its public function is in `api.py`."""

from pnet_jax.ops.fingerprint.api import fingerprint

__all__ = ["fingerprint"]
