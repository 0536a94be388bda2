"""The op `permutation`; its public functions are in `api.py`."""

from pnet_jax.ops.permutation.api import permutation_test, sign_flip_test
from pnet_jax.ops.permutation.asked import Enhancement
from pnet_jax.ops.permutation.correct import false_discovery_rate
from pnet_jax.ops.permutation.results import Components, EdgeSets, Enhanced, PermutationResult

__all__ = ["Components", "EdgeSets", "Enhanced", "Enhancement", "PermutationResult"]
__all__ += ["false_discovery_rate", "permutation_test", "sign_flip_test"]
