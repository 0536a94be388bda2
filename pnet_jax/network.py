"""Network: the result for one subject. Data only; what reads or writes it is a function elsewhere."""

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
"""2.5 %, 50 % and 97.5 %."""


@dataclasses.dataclass(frozen=True)
class MapScores:
    """Scores of a map made from one half of a scan, on the other half."""

    dcbc: float = float("nan")
    homogeneity: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One pair of settings that was tried on the halves: S in nats per location, and the temperature of its best score."""

    kappa: float
    beta: float
    score: float
    temperature: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the parcels were chosen, and why they or the atlas are returned.

    Attributes:
      decision: `"personalised"`, `"atlas"`, or `"fixed"` where no choice was made.
      reason: one sentence.
      requested: the configuration fixed the parcels to those of the atlas.
      kappa: concentration.
      beta: weight of the neighbours.
      temperature: T of the best held-out score; above 1 the mixture's own probabilities are over-confident.
      score: held-out log predictive density at the chosen settings, nats per location.
      data_free_score: that of the best member of the family that sees no data (κ = 0).
      at_edge: the best κ is the smallest or the largest that was tried.
      trials: all pairs that were tried.
      personalised, data_free, atlas: cross-half scores of three maps.
      gain: of `score` over `data_free_score`, by a bootstrap over 32-mm cubes.
      dcbc_gain: of the personalised DCBC over the data-free one, by a bootstrap over stretches of 20 s.
      agreement: share of locations that both halves give the same label.
      degrees: of freedom that cleaning leaves in each half.
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
    """Locations whose label has about the same probability: their number, mean probability, and share to which a repeat gives the same."""

    locations: int
    probability: float
    replicated: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far the probabilities can be believed, measured across the halves of the scan.

    Attributes:
      exponents: a, b and c of p ∝ q^a (mean q of the neighbours)^b π^c.
      expected_error: mean difference of probability and replication over the bins, weighted by their sizes (ECE).
      expected_agreement: share of locations to which an independent repeat of equal length is expected to give the same label.
      confident_moves: share of locations that left the atlas's parcel with a probability of at least one half.
      doubtful_moves: and with less.
      curve: replication against probability, in ten bins.
    """

    exponents: tuple[float, float, float]
    expected_error: float
    expected_agreement: float
    confident_moves: float
    doubtful_moves: float
    curve: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class QC:
    """What a reader judges a network by; `qc.json`, status rows and pages derive from it.

    Attributes:
      selection: how the parcels were chosen.
      calibration: of the probabilities; None where the atlas is returned.
      warnings: what the reader should know, the most important first.
      absent: parcels without any location.
      restored: parcels that nearly vanished and got locations of the atlas back.
      low_coverage: parcels of which the scan covers less than the configured share.
      fragments_joined: locations that hung apart from their parcel and joined a neighbour.
      components: connected pieces of the parcels that have several, by name.
      sizes: locations of each parcel, `[K]`.
      moved: share of locations whose parcel is not the atlas's.
      n_locations: inside the atlas.
      n_outside: others.
      n_frames: kept.
      recorded_frames: before scrubbing.
      minutes: of signal that was kept.
      n_eff: degrees of freedom that cleaning left.
      mean_displacement: framewise displacement, mm.
      tsnr: median of mean over standard deviation after cleaning.
      dynamics: what fitting the dynamics came to.
      seconds: of each part of the construction.
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
        """The same with further warnings."""
        return dataclasses.replace(self, warnings=(*self.warnings, *said))


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A subject's parcellation, signals and edges.

    K is always what was asked for: a parcel without any location has NaN signals and edges and stands in `qc.absent`.

    Attributes:
      space: the V locations of the scan.
      labels: parcel of each location, 0…K−1; −1 outside, `[V]`, int32.
      candidates: parcels that a location may belong to, −1 padded, `[V, C]`, int32.
      probabilities: probability of each candidate, `[V, C]`, float32; sums to 1 inside, to 0 outside. Of personalised parcels it is the
        probability that an independent repeat of the scan gives the location this label; of the atlas's its spatial prior.
      signals: mean signal of each parcel over its locations (hard labels), `[K, T]`, float32.
      edges: measure name to `[K, K]`; correlations as r with diagonal 1. `"shrunk"` and `"guided"` are layers of `"pearson"`, which is the
        raw one: see `pnet_jax.edges.layers` for what each is meant for. Of `"effective"`, row k, column l is what l does to k.
      ids: the atlas's id of each parcel, `[K]`; images carry these.
      names: the atlas's name of each parcel, K of them.
      hemispheres: `"L"`, `"R"` or `"B"` for each parcel.
      atlas_labels: the parcel that each location has before the scan is seen, by the atlas or by a group's map (`start`), −1 outside,
        `[V]`.
      coverage: share of an atlas parcel's extent that the scan's valid locations cover, `[K]`, 0…1.
      frames: the T kept frames, `[T]`.
      tr: seconds.
      subject: label without `sub-`.
      entities: BIDS entities of the source.
      qc: what a reader judges the result by.
      provenance: versions, checkpoint and prior digests, config, seed, source.
      mean: mean image before cleaning, `[V]`.
      displacement: framewise displacement in mm of every recorded frame.
      halves: edges of both halves of the scan, each cleaned on its own, under the labels of the whole: measure name to `[2, K, K]`. A group
        learns from them how far edges can be trusted.
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
        """Return a line without any array: what there is, and how much of it."""
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
        """What the parcels start from and fall back to, in words: "the atlas", or "the group's map" with a group model."""
        return start_name(bool((self.provenance.get("group") or {}).get("spatial_prior")))

    @property
    def confidence(self) -> Float[np.ndarray, " V"]:
        """Probability of each location's own label, 0 outside, `[V]`: of personalised parcels that a repeat gives it the same."""
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
    """What parcels start from, in words, by whether a group taught the spatial prior."""
    return "the group's map" if learned else "the atlas"


def confidence_of(
    labels: Int[np.ndarray, " V"], probabilities: Float[np.ndarray, "V C"], candidates: Int[np.ndarray, "V C"]
) -> Float[np.ndarray, " V"]:
    """Probability of each location's label, 0 where it has none, `[V]`."""
    return np.where((candidates == labels[:, None]) & (candidates >= 0), probabilities, 0).sum(1).astype(np.float32)
