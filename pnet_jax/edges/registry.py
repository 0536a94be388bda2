"""Measures by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from pnet_jax.config import nearest

_Function = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A way to turn parcel signals into edges.

    Attributes:
      name: what users call it.
      function: signals of the present parcels `[K, T]` to `[K, K]`; None for measures that need a cohort.
      units: of the values.
      diagonal: what stands on it.
      signed: whether values below 0 occur.
      description: one sentence for sidecars.
    """

    name: str
    function: _Function | None
    units: str
    diagonal: str
    signed: bool
    description: str


_MEASURES: dict[str, Measure] = {}


def register(name: str, *, units: str, diagonal: str, signed: bool, description: str) -> Callable[[_Function], _Function]:
    """Decorator: makes a function of signals `[K, T]` known by name."""

    def add(function: _Function) -> _Function:
        _MEASURES[name] = Measure(name, function, units, diagonal, signed, description)
        return function

    return add


def names() -> list[str]:
    """Every registered measure."""
    return sorted(_MEASURES)


def measure(name: str) -> Measure:
    """The measure called `name`.

    Raises:
      ValueError: there is none; the nearest name is given.
    """
    if name not in _MEASURES:
        raise ValueError(f"unknown edge measure {name!r}: expected one of {names()}{nearest(name, _MEASURES)}")
    return _MEASURES[name]


def compute(name: str, signals: Float[np.ndarray, "K T"]) -> Float[np.ndarray, "K K"]:
    """Edges of one subject; rows and columns of absent parcels (NaN signals) are NaN, so that K never changes.

    Args:
      name: a registered measure of one subject.
      signals: `[K, T]`.

    Raises:
      ValueError: the measure is unknown, or needs a cohort.
    """
    found = measure(name)
    if found.function is None:
        raise ValueError(f"edge measure {name!r} is defined over a cohort: expected several subjects, got one")
    present = np.isfinite(signals).all(1)
    edges = np.full((len(signals),) * 2, np.nan, np.float32)
    edges[np.ix_(present, present)] = np.asarray(found.function(signals[present]))
    return edges
