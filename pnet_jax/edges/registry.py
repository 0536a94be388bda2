"""Measures by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.config import nearest

_Function = Callable[..., jax.Array]

NEEDS = ("tr", "frames", "y", "labels")
"""What a measure may ask for: seconds between frames, positions of the kept frames in the recording `[T]`, signals of locations
`[V, T]`, and their parcels `[V]`."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A way to turn parcel signals into edges.

    Attributes:
      name: what users call it.
      function: signals of the present parcels `[K, T]` to `[K, K]`, and what it `needs` by keyword; None for measures that are
        `made_by` something else.
      units: of the values.
      diagonal: what stands on it.
      signed: whether values below 0 occur.
      description: one sentence for sidecars.
      directed: whether the entry at row k, column l can differ from that at row l, column k.
      needs: what the function takes beside the signals, of `NEEDS`.
      made_by: where the edges come from, if not from this function.
      masked: signals `[K, T]` and which frames count `[T]` to `[K, K]`, of a measure whose every edge is of two parcels alone: the
        construction step makes these for many scans at once. None for the others.
    """

    name: str
    function: _Function | None
    units: str
    diagonal: str
    signed: bool
    description: str
    directed: bool = False
    needs: tuple[str, ...] = ()
    made_by: str = ""
    masked: _Function | None = None

    @property
    def of_locations(self) -> bool:
        """Whether it reads the signals of locations and not only their means."""
        return "y" in self.needs


_MEASURES: dict[str, Measure] = {}


def register(
    name: str,
    *,
    units: str,
    diagonal: str,
    signed: bool,
    description: str,
    directed: bool = False,
    needs: tuple[str, ...] = (),
    masked: _Function | None = None,
) -> Callable[[_Function], _Function]:
    """Decorator: makes a function of signals `[K, T]`, and of what it `needs`, known by name.

    Raises:
      ValueError: it needs what no measure is given.
    """
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"edge measure {name!r} may need some of {NEEDS}, got {sorted(unknown)}")

    def add(function: _Function) -> _Function:
        _MEASURES[name] = Measure(name, function, units, diagonal, signed, description, directed, needs, masked=masked)
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


def compute(name: str, signals: Float[np.ndarray, "K T"], **given: Any) -> Float[np.ndarray, "K K"]:
    """Edges of one subject; rows and columns of absent parcels (NaN signals) are NaN, so that K never changes.

    Args:
      name: a registered measure of one subject.
      signals: `[K, T]`.
      **given: any of `NEEDS`; a measure takes of them what it needs.

    Raises:
      ValueError: the measure is unknown, needs a cohort, or needs what was not given.
    """
    found = measure(name)
    if found.function is None:
        raise ValueError(f"edge measure {name!r} is not made of one subject's signals: it needs {found.made_by}")
    if missing := [need for need in found.needs if given.get(need) is None]:
        raise ValueError(f"edge measure {name!r} needs {', '.join(found.needs)}: not given {', '.join(missing)}")
    present = np.isfinite(signals).all(1)
    wanted = {need: given[need] for need in found.needs}
    if "labels" in wanted:
        wanted["labels"] = _among(present, wanted["labels"])
    edges = np.full((len(signals),) * 2, np.nan, np.float32)
    if present.any():
        edges[np.ix_(present, present)] = np.asarray(found.function(signals[present], **wanted))
    return edges


def _among(present: Bool[np.ndarray, " K"], labels: Int[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Labels as indices into the present parcels; −1 in absent ones and outside."""
    place = np.full(len(present) + 1, -1, np.int32)  # the last is for label −1
    place[:-1][present] = np.arange(present.sum(), dtype=np.int32)
    return place[labels]
