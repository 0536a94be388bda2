"""The op `portrait`; its public functions are in `api.py`."""

from pnet_jax.ops.portrait.api import PortraitDivergence, portrait_divergence, portraits, shortest_paths
from pnet_jax.ops.portrait.graph import keep_strongest, spanning_tree
from pnet_jax.ops.portrait.settings import PortraitSettings

__all__ = [
    "PortraitDivergence",
    "PortraitSettings",
    "keep_strongest",
    "portrait_divergence",
    "portraits",
    "shortest_paths",
    "spanning_tree",
]
