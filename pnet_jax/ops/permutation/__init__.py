"""The op `permutation`; its face is in `api.py`."""

from pnet_jax.ops.permutation.api import Components, PermutationResult, permutation_test, sign_flip_test
from pnet_jax.ops.permutation.correct import false_discovery_rate

__all__ = ["Components", "PermutationResult", "false_discovery_rate", "permutation_test", "sign_flip_test"]
