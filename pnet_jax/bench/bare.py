"""Support for machines that have JAX but not jaxtyping, the only other import of the ops.

Its annotations inform readers and type checkers and are not used at run time, so placeholders suffice.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import jax


class Anything:
    """Placeholder for `Float`, `Int`, …; subscripting, as in `Float[Array, "V T"]`, returns the class itself."""

    def __class_getitem__(cls, _: Any) -> type[Anything]:
        return cls


def stand_in() -> bool:
    """Make `import jaxtyping` work if it is not installed, and return whether that was necessary."""
    if "jaxtyping" in sys.modules and sys.modules["jaxtyping"] is not None:
        return False
    if "jaxtyping" not in sys.modules and importlib.util.find_spec("jaxtyping") is not None:
        return False
    module = types.ModuleType("jaxtyping", "Stand-in of pnet_jax.bench: annotations have no effect.")
    module.__dict__.update(Array=jax.Array, __getattr__=lambda name: Anything)
    sys.modules["jaxtyping"] = module
    return True
