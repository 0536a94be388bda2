"""The op `soft_assign`; its public function is in `api.py`."""

from pnet_jax.ops.soft_assign.api import Assignment, soft_assign

__all__ = ["Assignment", "soft_assign"]
