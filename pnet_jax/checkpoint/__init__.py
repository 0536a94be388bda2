"""Models, group models and training states on disk; the only package that uses orbax.

A model, group model or set of individual parameters is a folder with the arrays (orbax), their metadata, and `SHA256SUMS`, the SHA-256
of every file in it, which is verified before anything is read.
"""

from pnet_jax.checkpoint.arrays import FORMAT, load_arrays, load_metadata, save_arrays
from pnet_jax.checkpoint.groups import load_group, save_group
from pnet_jax.checkpoint.models import RUN_MODEL, list_models, load_model, save_model
from pnet_jax.checkpoint.states import Saves

__all__ = [
    "FORMAT",
    "RUN_MODEL",
    "Saves",
    "list_models",
    "load_arrays",
    "load_group",
    "load_metadata",
    "load_model",
    "save_arrays",
    "save_group",
    "save_model",
]
