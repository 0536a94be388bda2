"""Networks and Cohorts in other libraries: the same numbers, names and directions."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.cohort import cohort_of
from pnet_jax.errors import SettingsError
from pnet_jax.outputs import edges_frame, edges_graph, plot_network
from pnet_jax.outputs.conversion import InteropExtraMissingError
from pnet_jax.outputs.images import signals_image
from tests.outputs.cohorts import make_networks
from tests.outputs.helpers import ABSENT, IDS, K, cifti_network, make_network, points_network

SCHAEFER = tuple(f"7Networks_{side}H_{name}_{at}" for side in "LR" for name in ("Vis", "Default") for at in (1, 2, 3))


@pytest.fixture(scope="module")
def network():
    return make_network(names=SCHAEFER)


def directed(network):
    """The same with a directed measure, whose entry at row k, column l is 100 k + l."""
    effect = (100 * np.arange(K)[:, None] + np.arange(K)).astype(np.float32)
    return dataclasses.replace(network, edges=network.edges | {"effective": effect})


def test_a_graph_has_the_ids_as_nodes_and_no_edge_of_an_absent_parcel(network):
    graph = network.to_networkx()
    assert sorted(graph) == IDS.tolist() and not graph.is_directed()
    assert graph.number_of_edges() == (K - 1) * (K - 2) // 2 and graph.degree[int(IDS[ABSENT])] == 0
    assert graph[int(IDS[0])][int(IDS[1])]["weight"] == pytest.approx(network.edges["pearson"][0, 1])
    about = graph.nodes[int(IDS[3])]
    assert (about["name"], about["network"], about["hemisphere"]) == ("7Networks_LH_Default_1", "Default", "R")
    where = network.space.xyz[network.labels == 3].astype(float).mean(0)
    assert_allclose([about[axis] for axis in "xyz"], where, rtol=1e-4)


def test_edges_of_a_directed_measure_lead_from_the_column_to_the_row(network):
    graph = edges_graph(directed(network), "effective")
    assert graph.is_directed() and graph.number_of_edges() == K * (K - 1)
    assert graph[int(IDS[2])][int(IDS[5])]["weight"] == 502
    table = edges_frame(directed(network), "effective")
    assert table.set_index(["source", "target"]).value[IDS[2], IDS[5]] == 502


def test_a_table_has_each_pair_once_with_names_networks_and_uncertainty(network):
    sd = np.full((K, K), 0.1, np.float32)
    table = dataclasses.replace(network, uncertainty={"pearson": sd}).to_dataframe("pearson")
    assert list(table) == ["source", "target", "source_name", "target_name", "source_network", "target_network", "value", "sd"]
    assert len(table) == (K - 1) * (K - 2) // 2 and (table.source < table.target).all() and (table.sd == np.float32(0.1)).all()
    row = table[(table.source == IDS[1]) & (table.target == IDS[8])].iloc[0]
    assert (row.source_name, row.target_name) == (SCHAEFER[1], SCHAEFER[8])
    assert (row.source_network, row.target_network) == ("Vis", "Vis")
    assert row.value == pytest.approx(network.edges["pearson"][1, 8])
    assert set(make_network().to_dataframe().source_network) == {""}


def test_a_dataset_names_its_axes_and_finds_parcels_by_name(network):
    data = network.to_xarray()
    assert data.edges_pearson.dims == ("parcel", "parcel_to") and data.signals.dims == ("parcel", "frame")
    one = data.edges_pearson.sel(parcel=SCHAEFER[2], parcel_to=SCHAEFER[4])
    assert float(one) == pytest.approx(network.edges["pearson"][2, 4])
    assert_array_equal(data.frame, network.frames)
    assert_array_equal(data.parcel_id, IDS)
    assert data.edges_pearson.attrs["units"] == "correlation (r)" and data.attrs["subject"] == "01"


def test_a_cohort_as_a_table_and_a_dataset():
    cohort = cohort_of(make_networks(3), {"age": [30.0, 40.0, 50.0]})
    table = cohort.to_dataframe()
    assert isinstance(table, pd.DataFrame) and table.age.tolist() == [30, 40, 50] and list(table) == list(cohort.table)
    data = cohort.to_xarray()
    assert_array_equal(data.edges_pearson.transpose("scan", "parcel", "parcel_to"), cohort.edges["pearson"])
    assert data.sizes == {"scan": 3, "parcel": K, "parcel_to": K, "frame": 40, "location": len(cohort.space)}
    assert float(data.age.sel(scan=cohort.table["scan"][1])) == 40
    assert_array_equal(data.coverage.isel(scan=2), cohort.coverage[2])


def test_rows_of_a_cohort_are_cohorts():
    cohort = cohort_of(make_networks(4))
    assert [one.table["scan"].tolist() for one in cohort] == [[scan] for scan in cohort.table["scan"]]
    assert cohort[1:3].table["scan"].tolist() == cohort.table["scan"][1:3].tolist() and len(cohort[-1]) == 1
    with pytest.raises(IndexError):
        cohort[4]


def test_plots_are_nilearn_displays_of_what_is_asked_for(network):
    import matplotlib.pyplot as plt

    try:
        display = network.plot()
        assert type(display).__name__.endswith("Projector")
        display.close()
        drawn = network.plot("partial", "matrix", title="own").get_array()
        assert_allclose(np.asarray(drawn), network.edges["partial"], rtol=1e-6)
        effect = plot_network(directed(network), "effective", display_mode="x")
        effect.close()
    finally:
        plt.close("all")


def test_what_cannot_be_converted_is_refused_in_one_line(network, monkeypatch):
    with pytest.raises(SettingsError, match="layer: expected one of pearson, partial, got 'pearsn'; did you mean 'pearson'"):
        network.to_dataframe("pearsn")
    with pytest.raises(SettingsError, match="kind: expected one of 'connectome', 'matrix', got 'brain'"):
        network.plot(kind="brain")
    nowhere = dataclasses.replace(network, labels=np.full_like(network.labels, -1))
    with pytest.raises(SettingsError, match="between parcels with positions, found 0"):
        nowhere.plot()
    for name, extra, call in (("networkx", "interop", network.to_networkx), ("xarray", "interop", network.to_xarray)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InteropExtraMissingError, match=rf"{name} is needed .* pip install 'pnet_jax\[{extra}\]'"):
            call()


def test_methods_need_no_library_before_they_are_called():
    code = "import sys; import pnet_jax.network; assert not {'pandas', 'networkx', 'xarray', 'nilearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_signals_on_the_grid_of_the_scan(network):
    signals = np.arange(K * 5, dtype=np.float32).reshape(K, 5)
    image = signals_image(network, signals)
    assert image.shape == (*network.space.grid.shape, 5) and image.header.get_zooms()[3] == network.tr
    values = np.asarray(image.dataobj)[tuple(network.space.grid.ijk.T)]
    assert_array_equal(values[network.labels == 3], np.broadcast_to(signals[3], values[network.labels == 3].shape))
    assert not values[network.labels < 0].any()
    dense = cifti_network()
    series = signals_image(dense, np.ones((dense.n_parcels, 4)))
    assert series.shape == (4, len(dense.space)) and series.header.get_axis(0).step == dense.tr
    with pytest.raises(ValueError, match="ROIs cannot be drawn as an image"):
        signals_image(points_network(), np.ones((K, 4)))
