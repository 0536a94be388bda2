"""Network: the result for one scan. Data only; it is read and written by functions of other modules."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.space import Space

if TYPE_CHECKING:
    import networkx
    import pandas
    import xarray

Interval = tuple[float, float, float]
"""2.5th, 50th and 97.5th percentile."""


@dataclasses.dataclass(frozen=True)
class MapScores:
    """Scores, in one half of a scan, of a parcellation estimated from the other half."""

    dcbc: float = float("nan")
    homogeneity: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One pair of settings evaluated across the halves: its held-out score in nats per location and the temperature that maximises it."""

    kappa: float
    beta: float
    score: float
    temperature: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selection of the parcels: the settings tried, their held-out scores, and whether personalised or atlas parcels are returned.

    Attributes:
      decision: `"personalised"`, `"atlas"`, or `"fixed"` if no selection was made.
      reason: reason for the decision, one sentence.
      requested: whether the configuration fixed the parcels to those of the atlas.
      kappa: concentration κ.
      beta: weight β of the neighbours.
      temperature: temperature with the best held-out score; above 1, the probabilities of the mixture are over-confident.
      score: held-out log predictive density at the selected settings, in nats per location.
      data_free_score: score of the best model that uses no data of the scan (κ = 0), in nats per location.
      at_edge: whether the best κ is the smallest or the largest one tried.
      trials: all pairs of settings tried.
      personalised, data_free, atlas: cross-half scores of the three parcellations.
      gain: gain of `score` over `data_free_score`, with its interval from a bootstrap over 32-mm cubes.
      dcbc_gain: gain of the personalised over the data-free DCBC, with its interval from a bootstrap over 20-s blocks.
      agreement: share of locations with the same label in both halves, 0…1.
      degrees: degrees of freedom left after cleaning in each half.
    """

    decision: str = "fixed"
    reason: str = ""
    requested: bool = False
    kappa: float = float("nan")
    beta: float = float("nan")
    temperature: float = float("nan")
    score: float = float("nan")
    data_free_score: float = float("nan")
    at_edge: bool = False
    trials: tuple[Trial, ...] = ()
    personalised: MapScores = MapScores()
    data_free: MapScores = MapScores()
    atlas: MapScores = MapScores()
    gain: Interval = (float("nan"),) * 3
    dcbc_gain: Interval = (float("nan"),) * 3
    agreement: float = float("nan")
    degrees: tuple[float, float] = (float("nan"),) * 2


@dataclasses.dataclass(frozen=True)
class Bin:
    """Locations with similar label probability: their number, mean probability, and share with the same label in the other half."""

    locations: int
    probability: float
    replicated: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of the label probabilities, measured across the halves of the scan.

    Attributes:
      exponents: a, b and c of p ∝ q^a (mean q of the neighbours)^b π^c.
      expected_error: expected calibration error (ECE): mean absolute difference between probability and replication rate over the bins,
        weighted by bin size.
      expected_agreement: share of locations expected to have the same label in an independent scan of equal length, 0…1.
      confident_moves: share of locations outside their atlas parcel with a probability of at least 0.5.
      doubtful_moves: share of locations outside their atlas parcel with a probability below 0.5.
      curve: replication rate against probability, in ten bins.
    """

    exponents: tuple[float, float, float]
    expected_error: float
    expected_agreement: float
    confident_moves: float
    doubtful_moves: float
    curve: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class QC:
    """Quality control of a network; `qc.json`, status rows and report pages derive from it.

    Attributes:
      selection: selection of the parcels.
      calibration: calibration of the probabilities; None if the atlas parcels are returned.
      warnings: warnings, the most important first.
      absent: names of parcels without any location.
      restored: names of parcels that nearly vanished and were given locations of their atlas parcel back.
      low_coverage: names of parcels with a coverage below the configured minimum.
      fragments_joined: number of locations in disconnected fragments that were assigned to an adjacent parcel.
      components: number of connected components, by name of the parcel; only parcels with several.
      sizes: number of locations in each parcel, `[K]`.
      moved: share of locations outside their atlas parcel, 0…1.
      n_locations: number of locations inside the atlas.
      n_outside: number of locations outside the atlas.
      n_frames: number of kept frames.
      recorded_frames: number of frames before scrubbing.
      minutes: duration of the kept frames in minutes.
      n_eff: degrees of freedom left after cleaning.
      mean_displacement: mean framewise displacement in mm.
      tsnr: median over locations of the mean divided by the standard deviation after cleaning.
      dynamics: results of fitting the dynamics.
      seconds: duration of each part of the construction in seconds.
    """

    selection: Selection = Selection()
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    low_coverage: tuple[str, ...] = ()
    fragments_joined: int = 0
    components: dict[str, int] = dataclasses.field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    moved: float | None = None
    n_locations: int | None = None
    n_outside: int | None = None
    n_frames: int | None = None
    recorded_frames: int | None = None
    minutes: float | None = None
    n_eff: float | None = None
    mean_displacement: float | None = None
    tsnr: float | None = None
    dynamics: dict[str, Any] | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def warn(self, *said: str) -> QC:
        """Return a copy with further warnings."""
        return dataclasses.replace(self, warnings=(*self.warnings, *said))


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """Parcellation, parcel signals and edges of one scan.

    K is the same for every scan: a parcel without any location has NaN signals and edges and is listed in `qc.absent`.

    Attributes:
      space: the V locations of the scan.
      labels: parcel of each location, 0…K−1; −1 outside, `[V]`, int32.
      candidates: parcels to which each location may belong, padded with −1, `[V, C]`, int32.
      probabilities: probability of each candidate, `[V, C]`, float32; sums to 1 inside, to 0 outside. For personalised parcels it is the
        probability that an independent scan of the same participant gives the location this label; for atlas parcels, the spatial prior.
      signals: mean signal of each parcel over its locations (hard labels), `[K, T]`, float32.
      edges: matrix of each measure or layer by name, `[K, K]`; correlations are r with diagonal 1. `"shrunk"` and `"guided"` are layers of
        the raw correlations, `"pearson"`; see `pnet_jax.edges.layers` for their purposes. In `"effective"`, row k, column l is the effect
        of l on k.
      ids: id of each parcel in the atlas, `[K]`; used in images.
      names: name of each of the K parcels in the atlas.
      hemispheres: `"L"`, `"R"` or `"B"` for each parcel.
      atlas_labels: parcel of each location before the data are used, from the atlas or the group map (`start`); −1 outside, `[V]`.
      coverage: share of each atlas parcel's extent covered by valid locations of the scan, `[K]`, 0…1.
      frames: indices of the T kept frames in the recording, `[T]`.
      tr: repetition time in seconds.
      subject: subject label without `sub-`.
      entities: BIDS entities of the source.
      qc: quality control.
      provenance: versions, digests of the checkpoint and atlas, configuration, seed and source.
      mean: mean image before cleaning, `[V]`.
      displacement: framewise displacement in mm of every recorded frame.
      halves: edges of both halves of the scan, each cleaned separately, with the parcels of the whole scan: measure name to `[2, K, K]`.
        The group model uses them to estimate the reliability of edges.
      uncertainty: standard deviation of the edges of a measure or layer, if available, `[K, K]`: in Fisher z for correlations, in 1/s for
        symmetric and directed coupling.
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
    atlas_labels: Int[np.ndarray, " V"]
    coverage: Float[np.ndarray, " K"]
    frames: Int[np.ndarray, " T"]
    tr: float
    subject: str
    entities: dict[str, str]
    qc: QC
    provenance: dict[str, Any]
    mean: Float[np.ndarray, " V"] | None = None
    displacement: Float[np.ndarray, " recorded"] | None = None
    halves: dict[str, Float[np.ndarray, "2 K K"]] = dataclasses.field(default_factory=dict)
    uncertainty: dict[str, Float[np.ndarray, "K K"]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a one-line summary without arrays."""
        parcels = {"personalised": "personalised parcels", "atlas": f"parcels of {self.start}"}.get(self.qc.selection.decision, "parcels")
        label = "_".join(
            [f"sub-{self.subject}", *(f"{key}-{self.entities[key]}" for key in ("ses", "task", "run") if key in self.entities)]
        )
        return (
            f"Network({label}: {self.n_parcels} {parcels}, {len(self.space)} locations in "
            f"{self.space.name}, {len(self.frames)} frames; edges {', '.join(self.edges)})"
        )

    @property
    def n_parcels(self) -> int:
        return len(self.ids)

    @property
    def start(self) -> str:
        """Name of the parcellation before personalisation, also the fallback: "the atlas", or "the group's map" with a group model."""
        return start_name(bool((self.provenance.get("group") or {}).get("spatial_prior")))

    @property
    def confidence(self) -> Float[np.ndarray, " V"]:
        """Probability of each location's label, 0 outside, `[V]`; see `probabilities`."""
        return confidence_of(self.labels, self.probabilities, self.candidates)

    # Other libraries are known to `outputs.conversion` alone, which the package finds by name when it is needed.

    def to_networkx(self, layer: str = "pearson") -> networkx.Graph:
        """Edges of a measure or layer as a graph; see `pnet_jax.outputs.edges_graph`."""
        import pnet_jax

        return pnet_jax.outputs.edges_graph(self, layer)

    def to_dataframe(self, layer: str = "pearson") -> pandas.DataFrame:
        """Edges of a measure or layer as a table, a row each; see `pnet_jax.outputs.edges_frame`."""
        import pnet_jax

        return pnet_jax.outputs.edges_frame(self, layer)

    def to_xarray(self) -> xarray.Dataset:
        """All edges and signals as arrays with named axes; see `pnet_jax.outputs.network_dataset`."""
        import pnet_jax

        return pnet_jax.outputs.network_dataset(self)

    def plot(self, layer: str = "pearson", kind: str = "connectome", **options: Any) -> Any:
        """Draw the edges of a measure or layer by nilearn; see `pnet_jax.outputs.plot_network`."""
        import pnet_jax

        return pnet_jax.outputs.plot_network(self, layer, kind, **options)


def start_name(learned: bool) -> str:
    """Return the name of the starting parcellation, given whether the spatial prior was learned from a group."""
    return "the group's map" if learned else "the atlas"


def confidence_of(
    labels: Int[np.ndarray, " V"], probabilities: Float[np.ndarray, "V C"], candidates: Int[np.ndarray, "V C"]
) -> Float[np.ndarray, " V"]:
    """Return the probability of each location's label, 0 for locations without one, `[V]`."""
    return np.where((candidates == labels[:, None]) & (candidates >= 0), probabilities, 0).sum(1).astype(np.float32)
