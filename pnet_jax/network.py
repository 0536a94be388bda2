"""Network: the result for one subject. Data only; what reads or writes it is a function elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.space import Space


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A subject's parcellation, signals and edges.

    K is always what was asked for: a parcel without any location has NaN signals and edges and stands in `qc["absent"]`.

    Attributes:
      space: the V locations of the scan.
      labels: parcel of each location, 0…K−1; −1 outside, `[V]`, int32.
      candidates: parcels that a location may belong to, −1 padded, `[V, C]`, int32.
      probabilities: probability of each candidate, `[V, C]`, float32; sums to 1 inside, to 0 outside.
      signals: mean signal of each parcel over its locations (hard labels), `[K, T]`, float32.
      edges: measure name to `[K, K]`; correlations as r with diagonal 1. `"shrunk"` and `"guided"` are layers of `"pearson"`, which is the
        raw one: see `pnet_jax.edges.layers` for what each is meant for. Of `"effective"`, row k, column l is what l does to k.
      ids: the prior's own id of each parcel, `[K]`; images carry these.
      names: the prior's name of each parcel, K of them.
      hemispheres: `"L"`, `"R"` or `"B"` for each parcel.
      prior_labels: the parcel the prior gives each location, −1 outside, `[V]`.
      coverage: share of a prior parcel's extent that the scan's valid locations cover, `[K]`, 0…1.
      frames: the T kept frames, `[T]`.
      tr: seconds.
      subject: label without `sub-`.
      entities: BIDS entities of the source.
      qc: numbers and tables a reader judges the result by.
      provenance: versions, checkpoint and prior digests, config, seed, source.
      mean: mean image before cleaning, `[V]`.
      displacement: framewise displacement in mm of every recorded frame.
      uncertainty: standard deviation of the edges of a measure or layer, `[K, K]`, not of every one: of correlations in Fisher z, of the
        coupling, symmetric and directed, in 1/s.
    """

    space: Space
    labels: Int[np.ndarray, " V"]
    candidates: Int[np.ndarray, "V C"]
    probabilities: Float[np.ndarray, "V C"]
    signals: Float[np.ndarray, "K T"]
    edges: dict[str, Float[np.ndarray, "K K"]]
    ids: Int[np.ndarray, " K"]
    names: tuple[str, ...]
    hemispheres: tuple[str, ...]
    prior_labels: Int[np.ndarray, " V"]
    coverage: Float[np.ndarray, " K"]
    frames: Int[np.ndarray, " T"]
    tr: float
    subject: str
    entities: dict[str, str]
    qc: dict[str, Any]
    provenance: dict[str, Any]
    mean: Float[np.ndarray, " V"] | None = None
    displacement: Float[np.ndarray, " recorded"] | None = None
    uncertainty: dict[str, Float[np.ndarray, "K K"]] = dataclasses.field(default_factory=dict)

    @property
    def n_parcels(self) -> int:
        return len(self.ids)
