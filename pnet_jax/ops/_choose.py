"""Selection of the implementation of an op."""

from collections.abc import Callable, Mapping
from typing import Any


def choose(implementations: Mapping[str, Callable[..., Any]], name: str | None) -> Callable[..., Any]:
    """Return the implementation called `name`, or the default, `"chunked"`.

    Raises:
      ValueError: If there is no implementation of that name.
    """
    name = name or "chunked"
    if name not in implementations:
        raise ValueError(f"implementation must be one of {sorted(implementations)}, got {name!r}")
    return implementations[name]
