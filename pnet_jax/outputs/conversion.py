"""Networks and Cohorts as objects of other libraries: networkx, pandas, xarray, and nilearn's plots."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort, view_of
from pnet_jax.config import nearest
from pnet_jax.errors import SettingsError
from pnet_jax.network import Network
from pnet_jax.outputs.bids import parcel_centroids
from pnet_jax.outputs.images import parcel_colors
from pnet_jax.outputs.tables import column_names
from pnet_jax.parcellation.modules import modules_of

if TYPE_CHECKING:
    import networkx
    import pandas
    import xarray

STRONGEST = "98%"  # edges drawn in a glass brain by default: the others are below this percentile


class InteropExtraMissingError(ImportError, ValueError):
    """A library of the extra `interop` or `report` is not installed. Also a ValueError, so that the command line reports it in one line."""


def edges_graph(network: Network, layer: str = "pearson") -> networkx.Graph:
    """Edges of a measure or layer as a graph, without loops; edges of absent parcels are missing.

    Args:
      network: a subject's result.
      layer: name of a measure or layer among `network.edges`.

    Returns:
      A `networkx.Graph`, or a `DiGraph` for a directed measure, with edges from source to target. Nodes are the atlas's ids with the
      attributes `name`, `hemisphere`, `network` (empty if unknown), `coverage`, `x`, `y` and `z` (MNI mm); edges have a `weight`.

    Raises:
      SettingsError: the network has no such layer.
      InteropExtraMissingError: networkx is not installed.

    Example:
      >>> network.to_networkx("pearson").degree(weight="weight")  # doctest: +SKIP
    """
    networkx, found = _networkx(), _listed(network, layer)
    graph = networkx.DiGraph() if found.directed else networkx.Graph()
    rows = zip(
        network.ids.tolist(),
        network.names,
        network.hemispheres,
        modules_of(network.names),
        network.coverage.tolist(),
        parcel_centroids(network).tolist(),
        strict=True,
    )
    for index, name, side, module, share, place in rows:
        about = dict(zip("xyz", place, strict=True))
        graph.add_node(index, name=name, hemisphere=side, network=module, coverage=share, **about)
    source, target = network.ids[found.source].tolist(), network.ids[found.target].tolist()
    graph.add_weighted_edges_from(zip(source, target, found.values.tolist(), strict=True))
    return graph


def edges_frame(network: Network, layer: str = "pearson") -> pandas.DataFrame:
    """Edges of a measure or layer as a table, a row for each pair of parcels, or for both directions of a directed measure.

    Args:
      network: a subject's result.
      layer: name of a measure or layer among `network.edges`.

    Returns:
      Columns `source` and `target` (the atlas's ids), `source_name`, `target_name`, `source_network`, `target_network` (by the names of
      Schaefer's and Tian's parcels, else empty), `value`, and `sd` where the layer has an uncertainty. Edges of absent parcels are missing.

    Raises:
      SettingsError: the network has no such layer.

    Example:
      >>> network.to_dataframe("pearson").nlargest(3, "value")  # doctest: +SKIP
    """
    import pandas

    found, names, modules = _listed(network, layer), np.array(column_names(network)), np.array(modules_of(network.names))
    columns: dict[str, Any] = {"source": network.ids[found.source], "target": network.ids[found.target]}
    columns |= {f"{end}_name": names[at] for end, at in (("source", found.source), ("target", found.target))}
    columns |= {f"{end}_network": modules[at] for end, at in (("source", found.source), ("target", found.target))}
    columns["value"] = found.values
    if layer in network.uncertainty:
        columns["sd"] = network.uncertainty[layer][found.target, found.source]
    return pandas.DataFrame(columns)


def network_dataset(network: Network) -> xarray.Dataset:
    """Edges, their uncertainties, signals and coverage of a network with named axes, as in the cohort store.

    Args:
      network: a subject's result.

    Returns:
      `edges_<layer>` (parcel, parcel_to), `sd_<layer>` where it is known, `signals` (parcel, frame) and `coverage` (parcel). Coordinates:
      names of the parcels, `parcel_id`, `hemisphere`, `network`, and of the frames their position in the recording. Of a directed measure
      the entry at (parcel, parcel_to) is the effect of the second on the first.

    Raises:
      InteropExtraMissingError: xarray is not installed.

    Example:
      >>> network.to_xarray().edges_pearson.sel(parcel="area-1")  # doctest: +SKIP
    """
    matrix = ("parcel", "parcel_to")
    content: dict[str, Any] = {f"edges_{name}": (matrix, values, view_of(name)) for name, values in network.edges.items()}
    content |= {f"sd_{name}": (matrix, values) for name, values in network.uncertainty.items()}
    content |= {"signals": (("parcel", "frame"), network.signals), "coverage": (("parcel",), network.coverage)}
    about = {"subject": network.subject, "tr": network.tr, **network.entities}
    return _xarray().Dataset(content, _parcels(network) | {"frame": network.frames}, about)


def cohort_frame(cohort: Cohort) -> pandas.DataFrame:
    """The table of a Cohort, a row for each scan: labels, quality control, covariates.

    Args:
      cohort: results of many scans.

    Example:
      >>> from pnet_jax.cohort import make_cohort
      >>> cohort = make_cohort(["01", "02"], edges={"pearson": np.stack([np.eye(3)] * 2)}, covariates={"age": [30.0, 40.0]})
      >>> cohort.to_dataframe()[["scan", "age"]]
           scan   age
      0  sub-01  30.0
      1  sub-02  40.0
    """
    import pandas

    return pandas.DataFrame({name: column.tolist() for name, column in cohort.table.items()})


def cohort_dataset(cohort: Cohort) -> xarray.Dataset:
    """All arrays of a Cohort with named axes, as in the cohort store.

    Args:
      cohort: results of many scans.

    Returns:
      `edges_<layer>` (scan, parcel, parcel_to), `coverage` (scan, parcel) and where they are known `signals` (scan, parcel, frame),
      `frames` (scan, frame), `labels` and `confidence` (scan, location). Coordinates: the columns of the table along `scan`, names of the
      parcels, `parcel_id`, `hemisphere`, `network`.

    Raises:
      InteropExtraMissingError: xarray is not installed.
    """
    dims = ("scan", "parcel", "parcel_to")
    content: dict[str, Any] = {f"edges_{name}": (dims, values, cohort.views[name]) for name, values in cohort.edges.items()}
    content["coverage"] = (dims[:2], cohort.coverage)
    axes = {
        "signals": (*dims[:2], "frame"),
        "frames": ("scan", "frame"),
        "labels": ("scan", "location"),
        "confidence": ("scan", "location"),
    }
    content |= {name: (axis, getattr(cohort, name)) for name, axis in axes.items() if getattr(cohort, name) is not None}
    rows = {name: ("scan", column) for name, column in cohort.table.items()}
    return _xarray().Dataset(content, _parcels(cohort) | rows, {"atlas": cohort.atlas.get("source", "")})


def plot_network(
    network: Network, layer: str = "pearson", kind: Literal["connectome", "matrix"] | str = "connectome", **options: Any
) -> Any:
    """Draw the edges of a measure or layer by nilearn.

    Args:
      network: a subject's result.
      layer: name of a measure or layer among `network.edges`.
      kind: `"connectome"`, the strongest 2 % of the edges between the parcels' centroids in a glass brain
        (`nilearn.plotting.plot_connectome`), or `"matrix"` (`nilearn.plotting.plot_matrix`).
      **options: further arguments of the nilearn function, which win over the defaults.

    Returns:
      nilearn's display: an `OrthoProjector`, or for a matrix an `AxesImage`.

    Raises:
      SettingsError: the network has no such layer, there is no such kind, or the parcels have no positions.
      InteropExtraMissingError: matplotlib is not installed.
    """
    edges = _layer(network, layer)
    if kind not in ("connectome", "matrix"):
        raise SettingsError(f"kind: expected one of 'connectome', 'matrix', got {kind!r}")
    _library("matplotlib", "report")
    from nilearn import plotting

    if kind == "matrix":
        most = float(np.nanmax(np.abs(edges[~np.eye(len(edges), dtype=bool)]), initial=0.0)) or 1.0
        given: dict[str, Any] = {"labels": column_names(network), "vmin": -most, "vmax": most, "title": layer}
        return plotting.plot_matrix(edges, **(given | options))
    centre = parcel_centroids(network)
    present = np.isfinite(centre).all(1) & np.isfinite(np.diag(edges))
    if present.sum() < 2:
        raise SettingsError(f"a connectome is drawn between parcels with positions, found {int(present.sum())}: use kind='matrix'")
    matrix = edges[np.ix_(present, present)].astype(float)
    matrix = matrix.T if view_of(layer)["directed"] else matrix  # nilearn's rows are where an arrow begins, ours where it ends
    np.fill_diagonal(matrix, 0)
    colors = [tuple(color) for color in parcel_colors(network.ids)[present]]
    given = {"edge_threshold": STRONGEST, "node_size": 20, "node_color": colors, "title": layer, "colorbar": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*adjacency_matrix.* is not symmetric")  # it need not be
        return plotting.plot_connectome(matrix, centre[present], **(given | options))


class _Edges(NamedTuple):
    source: Int[np.ndarray, " E"]
    target: Int[np.ndarray, " E"]
    values: Float[np.ndarray, " E"]
    directed: bool


def _listed(network: Network, layer: str) -> _Edges:
    """Edges that have a value, each pair once, or in both directions where they differ."""
    matrix, directed = _layer(network, layer), bool(view_of(layer)["directed"])
    wanted = ~np.eye(len(matrix), dtype=bool) if directed else np.triu(np.ones(matrix.shape, bool), 1)
    row, column = np.nonzero(wanted & np.isfinite(matrix))
    # Row k, column l of a directed measure is the effect of l on k; of the others the first parcel is the source.
    source, target = (column, row) if directed else (row, column)
    return _Edges(source, target, matrix[row, column].astype(float), directed)


def _layer(network: Network, layer: str) -> Float[np.ndarray, "K K"]:
    if layer not in network.edges:
        raise SettingsError(f"layer: expected one of {', '.join(network.edges)}, got {layer!r}{nearest(layer, network.edges)}")
    return network.edges[layer]


def _parcels(of: Network | Cohort) -> dict[str, Any]:
    """Coordinates of the parcels."""
    names = column_names(of)
    along = {"parcel_id": of.ids, "hemisphere": list(of.hemispheres), "network": list(modules_of(of.names))}
    return {"parcel": names, "parcel_to": names} | {name: ("parcel", values) for name, values in along.items()}


def _networkx() -> Any:
    return _library("networkx", "interop")


def _xarray() -> Any:
    return _library("xarray", "interop")


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InteropExtraMissingError(f"{name} is needed and not installed: pip install 'pnet_jax[{extra}]'") from error
