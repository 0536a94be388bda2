"""Registry of edge measures by name."""

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
"""Optional inputs of a measure: repetition time in seconds, indices of the kept frames in the recording `[T]`, signals of the locations
`[V, T]`, and their parcels `[V]`."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """An edge measure: a function from parcel signals to edges, with its properties.

    Attributes:
      name: name of the measure.
      function: function from the signals of the present parcels `[K, T]`, and the inputs it `needs` by keyword, to edges `[K, K]`; None
        for measures that are `made_by` something else.
      units: units of the values.
      diagonal: description of the diagonal.
      signed: whether values can be negative.
      description: one sentence for sidecars.
      directed: whether row k, column l can differ from row l, column k.
      needs: further inputs of the function, from `NEEDS`.
      made_by: origin of the edges, if not this function.
      masked: function from signals `[K, T]` and a frame mask `[T]` to edges `[K, K]`, for measures whose edges depend on two parcels only;
        the construction step computes these for many scans at once. None for other measures.
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
        """Whether the measure needs the signals of locations, not only parcel means."""
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
    """Return a decorator that registers a function of signals `[K, T]`, and of the inputs it `needs`, as an edge measure.

    Raises:
      ValueError: If `needs` has entries that are not in `NEEDS`.
    """
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"edge measure {name!r} may need some of {NEEDS}, got {sorted(unknown)}")

    def add(function: _Function) -> _Function:
        _MEASURES[name] = Measure(name, function, units, diagonal, signed, description, directed, needs, masked=masked)
        return function

    return add


def names() -> list[str]:
    """Return the names of all registered measures."""
    return sorted(_MEASURES)


def measure(name: str) -> Measure:
    """Return the measure called `name`.

    Raises:
      ValueError: If there is no such measure; the message suggests the nearest name.
    """
    if name not in _MEASURES:
        raise ValueError(f"unknown edge measure {name!r}: expected one of {names()}{nearest(name, _MEASURES)}")
    return _MEASURES[name]


def compute(name: str, signals: Float[np.ndarray, "K T"], **given: Any) -> Float[np.ndarray, "K K"]:
    """Compute the edges of one subject; rows and columns of absent parcels (NaN signals) are NaN.

    Args:
      name: name of a registered measure.
      signals: parcel signals, `[K, T]`.
      **given: any of `NEEDS`; only those that the measure needs are used.

    Returns:
      Edges, `[K, K]`, float32.

    Raises:
      ValueError: If the measure is unknown, is not computed from the signals of one subject, or a required input is missing.
    """
    found = measure(name)
    if found.function is None:
        raise ValueError(f"edge measure {name!r} is not computed from one subject's signals: it needs {found.made_by}")
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
    """Return the labels as indices into the present parcels; −1 in absent parcels and outside."""
    place = np.full(len(present) + 1, -1, np.int32)  # the last entry is for label −1
    place[:-1][present] = np.arange(present.sum(), dtype=np.int32)
    return place[labels]
