"""A machine with an accelerator may have JAX and nothing beside it. Of what the ops import, jaxtyping alone can then be missing.

Its annotations say shapes to readers and to the type checker; nothing reads them at run time. So names that stand for anything do.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import jax


class Anything:
    """Stands for `Float`, `Int`, …: `Float[Array, "V T"]` is itself again."""

    def __class_getitem__(cls, _: Any) -> type[Anything]:
        return cls


def stand_in() -> bool:
    """Makes `import jaxtyping` work where it is not installed; says whether that was needed."""
    if "jaxtyping" in sys.modules and sys.modules["jaxtyping"] is not None:
        return False
    if "jaxtyping" not in sys.modules and importlib.util.find_spec("jaxtyping") is not None:
        return False
    module = types.ModuleType("jaxtyping", "Stand-in of pnet_jax.bench: annotations mean nothing.")
    module.__dict__.update(Array=jax.Array, __getattr__=lambda name: Anything)
    sys.modules["jaxtyping"] = module
    return True
