"""Cohort: the results of many scans as arrays and a table. Data only; it is read and written by functions of other modules."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax import edges as measures
from pnet_jax.errors import InputError
from pnet_jax.network import Network
from pnet_jax.provenance import shared_provenance
from pnet_jax.scan import label_entities, scan_label
from pnet_jax.space import Space, grid_neighbours, join_spaces, places_in

if TYPE_CHECKING:
    import pandas
    import xarray

Values = Sequence[Any] | np.ndarray

IDENTITY = ("scan", "subject", "session", "task", "run")
NUMBERS = (
    *("tr", "minutes", "n_frames", "recorded_frames", "n_eff", "mean_fd", "tsnr"),
    *("n_absent", "moved", "agreement", "expected_agreement", "gain", "dcbc_gain"),
)
TEXTS = ("decision", "warnings")
COLUMNS: tuple[str, ...] = IDENTITY + NUMBERS + TEXTS
BEYOND_ONE = 1e-3  # by how much rounding may make a correlation exceed 1


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """Results of S scans for one atlas, in the order of the table's rows.

    Attributes:
      table: columns by name, each `[S]`: `scan` (label, unique), `subject`, `session`, `task`, `run`, quality control (`NUMBERS`, NaN if
        unknown, and `TEXTS`), then covariates of the participants, e.g. `site` and `age`. `minutes` is the duration of the kept frames,
        `mean_fd` is in mm, `gain` (nats per location) and `dcbc_gain` are medians, and `agreement` is the share of locations with the same
        label in both halves, 0…1.
      edges: matrices by measure or layer, each `[S, K, K]`, float32; NaN for absent parcels.
      views: properties of each entry of `edges`: `units`, `meant_for` and `directed` (row k, column l is then the effect of l on k).
      coverage: share of each atlas parcel's extent covered by the scan, `[S, K]`, 0…1.
      ids: id of each parcel in the atlas, `[K]`.
      names: name of each of the K parcels in the atlas.
      hemispheres: `"L"`, `"R"` or `"B"` for each parcel.
      atlas: `source` and `digest` of the input atlas.
      signals: parcel signals, `[S, K, T]`, float32; T is the number of frames of the longest scan; padding and absent parcels are NaN. None
        if signals were left out.
      frames: index of each kept frame in its recording, −1 in the padding, `[S, T]`, int32.
      labels: parcel of each location, −1 outside, `[S, V]`, int16. None if the scans do not share a Space.
      confidence: probability of each location's parcel, 0 outside, `[S, V]`, float32; None if `labels` is None.
      space: the V locations; for scans on the same image grid, the union of their masks. None if `labels` is None.
      provenance: entries that are equal in all results; under `differ`, each field that differs, with its values and their number of scans
        (`shared_provenance`); and under `left_out`, the scans that were left out, with the reason.
    """

    table: dict[str, np.ndarray]
    edges: dict[str, Float[np.ndarray, "S K K"]]
    views: dict[str, dict[str, Any]]
    coverage: Float[np.ndarray, "S K"]
    ids: Int[np.ndarray, " K"]
    names: tuple[str, ...]
    hemispheres: tuple[str, ...]
    atlas: dict[str, str]
    signals: Float[np.ndarray, "S K T"] | None = None
    frames: Int[np.ndarray, "S T"] | None = None
    labels: Int[np.ndarray, "S V"] | None = None
    confidence: Float[np.ndarray, "S V"] | None = None
    space: Space | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shapes(self)

    def __repr__(self) -> str:
        """Return a one-line summary without arrays."""

        def counted(name: str, noun: str) -> str:
            count = len({str(one) for one in self.table.get(name, ())} - {""})
            return f", {count} {noun}{'s' * (count != 1)}" if count else ""

        of = counted("subject", "subject") + counted("session", "session") + counted("site", "site")
        atlas = f" of {self.atlas['source']}" if self.atlas.get("source") else ""
        frames = "" if self.signals is None else f"; signals of up to {self.signals.shape[-1]} frames"
        locations = "" if self.labels is None else f"; labels of {self.labels.shape[-1]} locations"
        n = len(self)
        return f"Cohort({n} scan{'s' * (n != 1)}{of}; {self.n_parcels} parcels{atlas}; edges {', '.join(self.edges)}{frames}{locations})"

    def __len__(self) -> int:
        return len(self.table["scan"])

    def __getitem__(self, rows: int | slice) -> Cohort:
        """Return one scan, or a slice of them, as a Cohort: scikit-learn selects the scans of a fold in this way.

        Raises:
          IndexError: the index is out of range.
        """
        return self.take(rows if isinstance(rows, slice) else np.array([operator.index(rows)]))

    @property
    def n_parcels(self) -> int:
        """Number of parcels K."""
        return len(self.ids)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Unique subject labels, in the order of the subjects' first scans."""
        return tuple(dict.fromkeys(map(str, self.table["subject"])))

    @property
    def kept(self) -> Bool[np.ndarray, "S T"] | None:
        """Whether each column of `signals` is a frame of its scan, `[S, T]`; False in the padding."""
        return None if self.frames is None else self.frames >= 0

    def take(self, rows: Bool[np.ndarray, " S"] | Int[np.ndarray, " n"] | slice) -> Cohort:
        """Return the scans selected by a mask, by indices (in the order given) or by a slice.

        Example:
          >>> adults = cohort.take(cohort.table["age"] >= 18)  # doctest: +SKIP

        Raises:
          IndexError: If the mask has the wrong length or an index is out of range.
          InputError: If an index occurs twice.
        """
        own: dict[str, Any] = {"table": {name: column[rows] for name, column in self.table.items()}}
        own["edges"] = {name: matrices[rows] for name, matrices in self.edges.items()}
        for name in ("coverage", "signals", "frames", "labels", "confidence"):
            array = getattr(self, name)
            own[name] = None if array is None else array[rows]
        return dataclasses.replace(self, **own)

    def to_dataframe(self) -> pandas.DataFrame:
        """The table as a DataFrame, a row for each scan; see `pnet_jax.outputs.cohort_frame`."""
        import pnet_jax

        return pnet_jax.outputs.cohort_frame(self)

    def to_xarray(self) -> xarray.Dataset:
        """All arrays with named axes; see `pnet_jax.outputs.cohort_dataset`."""
        import pnet_jax

        return pnet_jax.outputs.cohort_dataset(self)


def cohort_of(networks: Sequence[Network], covariates: Mapping[str, Values] | None = None) -> Cohort:
    """Make a Cohort from networks in memory, in their order.

    Args:
      networks: results of different scans for one atlas.
      covariates: further columns of the table, each with one value per network.

    Returns:
      The Cohort. Measures that are missing in a network are NaN.

    Raises:
      InputError: If there is no network, a scan occurs twice, K or the atlas differs, or a matrix is invalid (`check_cohort`). The message
        names the scan.
    """
    if not networks:
        raise InputError("expected at least one network, got none")
    for network in networks:
        check_same_atlas(networks[0], network)
    n, k = len(networks), networks[0].n_parcels
    layers = list(dict.fromkeys(name for network in networks for name in network.edges))
    longest = max(len(network.frames) for network in networks)
    out: dict[str, Any] = {"coverage": np.full((n, k), np.nan, np.float32), "signals": np.full((n, k, longest), np.nan, np.float32)}
    out |= {"frames": np.full((n, longest), -1, np.int32), "edges": {name: np.full((n, k, k), np.nan, np.float32) for name in layers}}
    space = common_space(network.space for network in networks)
    if space is not None:
        out |= {"labels": np.full((n, len(space)), -1, np.int16), "confidence": np.zeros((n, len(space)), np.float32), "space": space}
    for s, network in enumerate(networks):
        out["coverage"][s], t = network.coverage, len(network.frames)
        out["signals"][s, :, :t], out["frames"][s, :t] = network.signals, network.frames
        for name, matrix in network.edges.items():
            out["edges"][name][s] = matrix
        if space is not None:
            at = places_in(space, network.space)
            out["labels"][s, at], out["confidence"][s, at] = network.labels, network.confidence
    cohort = Cohort(
        table=table_of([row_of(network) for network in networks], covariates),
        views={name: view_of(name) for name in layers},
        ids=networks[0].ids,
        names=networks[0].names,
        hemispheres=networks[0].hemispheres,
        atlas=atlas_of(networks[0]),
        provenance=shared_provenance([network.provenance for network in networks]),
        **out,
    )
    check_cohort(cohort)
    return cohort


def row_of(network: Network) -> dict[str, Any]:
    """Return the values of one network for the columns `COLUMNS`; unknown numbers are NaN."""
    qc, entities = network.qc, network.entities
    chosen, calibration = qc.selection, qc.calibration
    numbers = {
        "tr": network.tr,
        "minutes": qc.minutes,
        "n_frames": len(network.frames),
        "recorded_frames": qc.recorded_frames,
        "n_eff": qc.n_eff,
        "mean_fd": qc.mean_displacement,
        "tsnr": qc.tsnr,
        "n_absent": len(qc.absent),
        "moved": qc.moved,
        "agreement": chosen.agreement,
        "expected_agreement": None if calibration is None else calibration.expected_agreement,
        "gain": chosen.gain[1],
        "dcbc_gain": chosen.dcbc_gain[1],
    }
    said = {"scan": scan_label(network.subject, entities), "subject": network.subject, "session": entities.get("ses", "")}
    said |= {"task": entities.get("task", ""), "run": entities.get("run", "")}
    said |= {"decision": chosen.decision, "warnings": "; ".join(qc.warnings)}
    return said | {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


def table_of(rows: Sequence[Mapping[str, Any]], covariates: Mapping[str, Values] | None = None) -> dict[str, np.ndarray]:
    """Return the columns of the rows made by `row_of`, followed by the covariates; `COLUMNS` take precedence."""
    table = {name: np.array([row[name] for row in rows], np.float64 if name in NUMBERS else np.str_) for name in COLUMNS}
    return table | {name: np.asarray(column) for name, column in (covariates or {}).items() if name not in table}


def view_of(name: str) -> dict[str, Any]:
    """Return the properties of a measure or layer: `units`, `meant_for`, `directed`."""
    known = "pearson" if name in ("shrunk", "guided") else name
    registered = known in measures.names()
    meant_for = measures.meant_for(name if name in measures.MEANT_FOR else "raw")
    about = measures.measure(known) if registered else None
    return {"units": about.units if about else "", "meant_for": meant_for, "directed": about is not None and about.directed}


def atlas_of(network: Network) -> dict[str, str]:
    """Return the source and digest of a network's input atlas; empty if unknown."""
    prior: Any = network.provenance.get("atlas")
    about = prior if isinstance(prior, Mapping) else {}
    return {key: str(about.get(key) or "") for key in ("source", "digest")}


def check_same_atlas(first: Network, network: Network) -> None:
    """Check that a network has the same atlas as the first one.

    Raises:
      InputError: If K, the ids or the digest of the atlas differ. The message names the scan.
    """
    label = scan_label(network.subject, network.entities)
    if network.n_parcels != first.n_parcels or not np.array_equal(network.ids, first.ids):
        expected = f"the {first.n_parcels} parcels of {scan_label(first.subject, first.entities)}"
        raise InputError(f"{label}: expected {expected}, found {network.n_parcels} with ids {network.ids[:3].tolist()}…")
    one, other = atlas_of(first)["digest"], atlas_of(network)["digest"]
    if one and other and one != other:
        raise InputError(f"{label}: expected the atlas of the other networks (digest {one}), found digest {other}")


def common_space(spaces: Iterable[Space]) -> Space | None:
    """Return the union of the locations of all Spaces; None if they cannot be joined (`join_spaces`)."""
    space: Space | None = None
    for number, other in enumerate(spaces):
        space = other if number == 0 else join_spaces(space, other) if space is not None else None
    if space is None or space.grid is None or space.kind != "grid":
        return space
    return dataclasses.replace(space, neighbours=grid_neighbours(space.grid.ijk))


def check_shapes(cohort: Cohort) -> None:
    """Check that the arrays of a Cohort have consistent shapes and that no scan occurs twice.

    Raises:
      InputError: If not. The message names the array or the scan.
    """
    s, k = len(cohort), cohort.n_parcels
    t = "T" if cohort.frames is None else cohort.frames.shape[-1]
    v = "V" if cohort.space is None else len(cohort.space)
    expected: dict[str, tuple[Any, tuple[Any, ...]]] = {f"table[{name!r}]": (column, (s,)) for name, column in cohort.table.items()}
    expected |= {f"edges[{name!r}]": (matrices, (s, k, k)) for name, matrices in cohort.edges.items()}
    expected |= {"coverage": (cohort.coverage, (s, k)), "names": (np.array(cohort.names, object), (k,))}
    expected |= {"hemispheres": (np.array(cohort.hemispheres, object), (k,))}
    expected |= {"signals": (cohort.signals, (s, k, t)), "frames": (cohort.frames, (s, t))}
    expected |= {"labels": (cohort.labels, (s, v)), "confidence": (cohort.confidence, (s, v))}
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise InputError(f"cohort: expected {name} of shape {shape}, found {array.shape}")
    scans, counts = np.unique(cohort.table["scan"], return_counts=True)
    if (counts > 1).any():
        raise InputError(f"cohort: expected every scan once, found {scans[counts > 1][0]} {counts.max()} times")


def check_cohort(cohort: Cohort) -> None:
    """Check the values of a Cohort.

    Raises:
      InputError: If an edge is infinite, or NaN between present parcels; undirected edges are not symmetric; the size of a correlation
        exceeds 1; or a label is out of range. The message names the scan and the array.
    """
    for s, scan in enumerate(cohort.table["scan"]):
        for name, matrices in cohort.edges.items():
            if said := _fault(matrices[s], cohort.views[name]):
                raise InputError(f"{scan}: edges {name!r} {said}")
        if cohort.labels is not None and not -1 <= cohort.labels[s].min() <= cohort.labels[s].max() < cohort.n_parcels:
            raise InputError(f"{scan}: expected labels −1…{cohort.n_parcels - 1}, found {cohort.labels[s].min()}…{cohort.labels[s].max()}")


def check_network(network: Network) -> None:
    """Check the edges of a network as `check_cohort` does.

    Raises:
      InputError: If an edge is invalid. The message names the scan and the measure.
    """
    for name, matrix in network.edges.items():
        if said := _fault(matrix, view_of(name)):
            raise InputError(f"{scan_label(network.subject, network.entities)}: edges {name!r} {said}")


def _fault(matrix: Float[np.ndarray, "K K"], view: Mapping[str, Any]) -> str:
    """Return a description of the first problem found in a matrix, or an empty string."""
    if np.isinf(matrix).any():
        return "contain an infinite value"
    missing = np.isnan(matrix)
    present = ~missing.all(1)
    inside = missing & np.outer(present, present)
    np.fill_diagonal(inside, False)
    if inside.any():
        k, to = np.argwhere(inside)[0]
        return f"are NaN between parcels {k} and {to}, which have other edges: expected NaN only for absent parcels"
    if not view["directed"] and not _symmetric(matrix):
        return "are not symmetric, but the measure is undirected"
    largest = np.abs(matrix[~missing]).max(initial=0)
    if str(view["units"]).startswith("correlation") and largest > 1 + BEYOND_ONE:
        return f"are correlations: expected −1…1, found an absolute value of {largest:.3g}; pass Fisher z or covariances under another name"
    return ""


def _symmetric(matrix: Float[np.ndarray, "K K"]) -> bool:
    return np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True)


def _real(name: str, values: Any) -> np.ndarray:
    """Return an array of real numbers as float32.

    Raises:
      InputError: If the values are complex or not numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected real numbers, found values of type {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _numbers(name: str, values: Values) -> Float[np.ndarray, " S"]:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers ({error})") from error


def _check_labels(subjects: Values, sessions: Sequence[str]) -> None:
    """Check that the subject and session can be recovered from the label of a scan."""
    for subject, session in zip(map(str, subjects), sessions, strict=True):
        entities = {"ses": session} if session else {}
        if not subject.strip():
            raise InputError("subjects: expected a label for every scan, found an empty one")
        if label_entities(scan_label(subject, entities)) != {"sub": subject, **entities}:
            raise InputError(f"expected labels without keys such as _ses- or _run-, found subject {subject!r}, session {session!r}")


def _repetition_times(tr: float | Values | None, subjects: Values) -> Float[np.ndarray, " S"]:
    times = np.asarray(math.nan if tr is None else tr, float)
    if times.shape not in ((), (len(subjects),)):
        raise InputError(f"tr: expected one number or one for each of the {len(subjects)} scans, found {times.size}")
    times = np.broadcast_to(times, (len(subjects),))
    if (wrong := (times <= 0) | np.isinf(times)).any():
        at = int(wrong.argmax())
        raise InputError(f"tr: expected seconds above 0, found {times[at]:g} for subject {subjects[at]}")
    return times


def make_cohort(
    subjects: Values,
    *,
    signals: Sequence[Float[np.ndarray, "K T"]] | None = None,
    edges: Mapping[str, Float[np.ndarray, "S K K"]] | None = None,
    tr: float | Values | None = None,
    covariates: Mapping[str, Values] | None = None,
    names: Sequence[str] | None = None,
    sessions: Values | None = None,
    source: str = "",
) -> Cohort:
    """Make a Cohort from parcel signals or connectivity matrices computed with any software and atlas.

    Args:
      subjects: subject label of each of the S scans.
      signals: parcel signals of each scan, which may differ in length, `[K, T]` each; NaN for absent parcels.
      edges: matrices by name of the measure or layer; NaN for absent parcels.
      tr: repetition time in seconds, one number or one per scan; needed for durations.
      covariates: further columns of the table, each with S values.
      names: names of the K parcels.
      sessions: session label of each scan; needed if a subject has several scans.
      source: description of the parcellation, e.g. its name or file.

    Returns:
      The Cohort.

    Raises:
      InputError: If there are neither signals nor matrices, K or the number of scans differs, a label is empty or not unique, `tr` is not
        above 0, or a matrix is invalid (`check_cohort`). The message names the scan or the argument.

    Example:
      >>> import numpy as np
      >>> one = make_cohort(["01", "02"], edges={"pearson": np.stack([np.eye(3)] * 2)}, covariates={"age": [30.0, 40.0]})
      >>> len(one), one.n_parcels, one.table["age"].tolist()
      (2, 3, [30.0, 40.0])
      >>> one
      Cohort(2 scans, 2 subjects; 3 parcels; edges pearson)
    """
    count = len(subjects)
    own = {name: _real(name, matrices) for name, matrices in (edges or {}).items()}
    signals = None if signals is None else [_real(f"signals of scan {at}", y) for at, y in enumerate(signals, 1)]
    sizes: dict[str, tuple[int, ...]] = {name: matrices.shape[1:] for name, matrices in own.items()}
    sizes |= {f"signals of scan {at}": (len(y), len(y)) for at, y in enumerate(signals or (), 1) if y.ndim == 2}
    counts = {name: len(matrices) for name, matrices in own.items()} | ({} if signals is None else {"signals": len(signals)})
    counts |= {name: len(column) for name, column in (covariates or {}).items()} | ({} if sessions is None else {"sessions": len(sessions)})
    if wrong := [name for name, found in counts.items() if found != count]:
        raise InputError(f"{wrong[0]}: expected one value for each of the {count} scans, found {counts[wrong[0]]}")
    for at, y in enumerate(signals or (), 1):
        if y.ndim != 2:
            raise InputError(f"signals of scan {at}: expected an array [parcels, frames], found shape {y.shape}")
    if not count or not sizes:
        raise InputError("expected signals or edges of at least one scan, found none")
    k = next(iter(sizes.values()))[0]
    if wrong := [name for name, size in sizes.items() if size != (k, k)]:
        raise InputError(f"{wrong[0]}: expected {k} parcels as in {next(iter(sizes))}, found {sizes[wrong[0]]}")
    sessions = [""] * count if sessions is None else [str(one) for one in sessions]
    _check_labels(subjects, sessions)
    blank = dict.fromkeys((*NUMBERS, *TEXTS), math.nan) | dict.fromkeys(TEXTS, "")
    times = _repetition_times(tr, subjects)
    rows = []
    for at, (subject, session) in enumerate(zip(subjects, sessions, strict=True)):
        label = scan_label(str(subject), {"ses": session} if session else {})
        row = blank | {"scan": label, "subject": str(subject), "session": session, "task": "", "run": "", "tr": float(times[at])}
        if signals is not None:
            frames = signals[at].shape[1]
            row |= {"n_frames": frames, "recorded_frames": frames, "minutes": frames * times[at] / 60}
        rows.append(row)
    given = {name: _numbers(name, column) if name in NUMBERS else column for name, column in (covariates or {}).items()}
    table = table_of([row | {name: given[name][at] for name in NUMBERS if name in given} for at, row in enumerate(rows)], given)
    padded = frames_of = None
    if signals is not None:
        longest = max(y.shape[1] for y in signals)
        padded, frames_of = np.full((count, k, longest), np.nan, np.float32), np.full((count, longest), -1, np.int32)
        for at, y in enumerate(signals):
            padded[at, :, : y.shape[1]], frames_of[at, : y.shape[1]] = y, np.arange(y.shape[1])
    there = np.any(np.isfinite(padded if padded is not None else next(iter(own.values()))), axis=2)
    cohort = Cohort(
        table=table,
        edges=own,
        views={name: view_of(name) for name in own},
        coverage=np.asarray(there, np.float32),
        ids=np.arange(1, k + 1),
        names=tuple(names) if names is not None else tuple(f"parcel {one}" for one in range(1, k + 1)),
        hemispheres=("B",) * k,
        atlas={"source": source, "digest": ""},
        signals=padded,
        frames=frames_of,
        provenance={"source": source},
    )
    check_cohort(cohort)
    return cohort
