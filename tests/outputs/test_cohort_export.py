"""Exports are read again by the programs that they are for, and hold the numbers of the Cohort."""

from __future__ import annotations

import dataclasses
import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from pnet_jax.cohort import cohort_of
from pnet_jax.errors import SettingsError
from pnet_jax.outputs.cohort_export import export
from tests.outputs.cohorts import make_networks
from tests.outputs.helpers import ABSENT, IDS, TR, K, cifti_network, points_network

FIRST = "sub-00_ses-a_task-rest"


@pytest.fixture(scope="module")
def cohort():
    networks = make_networks(3)
    rng = np.random.default_rng(0)
    directed = rng.normal(size=(K, K)).astype(np.float32)
    directed[ABSENT] = directed[:, ABSENT] = np.nan
    networks = [dataclasses.replace(network, edges=network.edges | {"effective": directed}) for network in networks]
    return cohort_of(networks, {"age": [20.0, np.nan, 31.5]})


def test_npz(cohort, tmp_path):
    assert export(cohort, tmp_path, "npz") == 1
    with np.load(tmp_path / "cohort.npz") as file:
        assert file["table_scan"].tolist() == cohort.table["scan"].tolist()
        for name in ("pearson", "partial", "effective"):
            np.testing.assert_array_equal(file[f"edges_{name}"], cohort.edges[name])
        for name in ("signals", "frames", "labels", "confidence", "coverage", "ids"):
            np.testing.assert_array_equal(file[name], getattr(cohort, name))


def test_mat(cohort, tmp_path):
    assert export(cohort, tmp_path, "mat") == 4
    found = loadmat(tmp_path / f"{FIRST}.mat", simplify_cells=True)
    np.testing.assert_array_equal(found["edges"]["pearson"], cohort.edges["pearson"][0])
    np.testing.assert_array_equal(found["signals"], cohort.signals[0][:, cohort.kept[0]])
    assert found["names"].tolist() == list(cohort.names) and found["ids"].tolist() == IDS.tolist() and found["scan"] == FIRST
    assert loadmat(tmp_path / "sub-01_ses-a_task-rest.mat")["frames"].size == 38


def test_csv(cohort, tmp_path):
    assert export(cohort, tmp_path, "csv") == 3 * 5 + 1
    square = pd.read_csv(tmp_path / f"{FIRST}_pearson.csv", index_col=0)
    assert square.columns.tolist() == square.index.tolist() == list(cohort.names)
    np.testing.assert_allclose(square.to_numpy(), cohort.edges["pearson"][0], rtol=1e-6)
    tidy = pd.read_csv(tmp_path / f"{FIRST}_edges.csv")
    assert len(tidy) == K * (K - 1) and tidy.columns.tolist() == ["parcel", "parcel_to", "pearson", "partial", "effective"]
    row = tidy[(tidy["parcel"] == "area 3") & (tidy["parcel_to"] == "area 1")]
    np.testing.assert_allclose(row["effective"], cohort.edges["effective"][0, 3, 1], rtol=1e-6)
    signals = pd.read_csv(tmp_path / f"{FIRST}_signals.csv")
    np.testing.assert_allclose(signals["area 0"], cohort.signals[0, 0], rtol=1e-6)
    assert signals["frame"].tolist() == list(range(40)) and signals[f"area {ABSENT}"].isna().all()
    table = pd.read_csv(tmp_path / "cohort.csv")
    assert table["age"].tolist()[::2] == [20, 31.5] and table["age"].isna()[1] and table["minutes"].tolist() == [1, 2, 3]


def test_tidy_edges_of_undirected_measures_stand_once(cohort, tmp_path):
    views = {name: view for name, view in cohort.views.items() if name != "effective"}
    undirected = dataclasses.replace(cohort, edges={name: cohort.edges[name] for name in views}, views=views)
    export(undirected, tmp_path, "csv")
    assert len(pd.read_csv(tmp_path / f"{FIRST}_edges.csv")) == K * (K - 1) // 2


def test_graphml(cohort, tmp_path):
    networkx = pytest.importorskip("networkx")
    assert export(cohort, tmp_path, "graphml") == 3 * 3 + 1
    graph = networkx.read_graphml(tmp_path / f"{FIRST}_pearson.graphml", node_type=int)
    assert not graph.is_directed() and list(graph) == IDS.tolist() and graph.degree(int(IDS[ABSENT])) == 0
    assert graph.nodes[2] == {"name": "area 0", "hemisphere": "L", "coverage": pytest.approx(0.2)}
    np.testing.assert_allclose(graph.edges[3, 8]["weight"], cohort.edges["pearson"][0, 1, 3], rtol=1e-6)
    assert graph.number_of_edges() == (K - 1) * (K - 2) // 2
    graph = networkx.read_graphml(tmp_path / f"{FIRST}_effective.graphml", node_type=int)
    # Row 3, column 1 is what parcel 1 does to parcel 3.
    np.testing.assert_allclose(graph.edges[int(IDS[1]), int(IDS[3])]["weight"], cohort.edges["effective"][0, 3, 1], rtol=1e-6)
    assert graph.is_directed() and graph.number_of_edges() == (K - 1) * (K - 2)


def test_cifti_of_voxels(cohort, tmp_path):
    assert export(cohort, tmp_path, "cifti") == 3 * 4 + 1
    image = nibabel.load(tmp_path / f"{FIRST}_pearson.pconn.nii")
    axes = [image.header.get_axis(at) for at in (0, 1)]
    assert axes[0] == axes[1] and axes[0].name.tolist() == list(cohort.names)
    np.testing.assert_array_equal(np.asarray(image.dataobj), cohort.edges["pearson"][0])
    voxels = {tuple(at) for at in axes[0].voxels[2]}
    assert voxels == set(map(tuple, cohort.space.grid.ijk[cohort.labels[0] == 2])) and len(axes[0].voxels[ABSENT]) == 0
    np.testing.assert_array_equal(axes[0].affine, cohort.space.grid.affine)
    series = nibabel.load(tmp_path / "sub-00_ses-b_task-rest.ptseries.nii")
    np.testing.assert_array_equal(np.asarray(series.dataobj), cohort.signals[1][:, cohort.kept[1]].T)
    assert series.header.get_axis(0).step == TR


def test_cifti_of_vertices_and_of_no_shared_space(tmp_path):
    network = cifti_network()
    export(cohort_of([network]), tmp_path, "cifti")
    axis = nibabel.load(tmp_path / "sub-01_task-rest_pearson.pconn.nii").header.get_axis(0)
    models = network.space.grid.brain_models
    k = int(np.bincount(network.labels[:200][network.labels[:200] >= 0]).argmax())
    left = np.flatnonzero((network.labels == k) & (models.name == "CIFTI_STRUCTURE_CORTEX_LEFT"))
    assert axis.vertices[k]["CIFTI_STRUCTURE_CORTEX_LEFT"].tolist() == models.vertex[left].tolist() and axis.nvertices == models.nvertices
    assert sum(map(len, axis.voxels)) == (network.labels[400:] >= 0).sum()
    points = dataclasses.replace(points_network(), subject="02", names=network.names, edges=network.edges)
    export(cohort_of([network, points]), tmp_path / "two", "cifti")
    image = nibabel.load(tmp_path / "two" / "sub-02_pearson.pconn.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj), network.edges["pearson"])
    assert not any(map(len, image.header.get_axis(0).voxels))


def test_bids(cohort, tmp_path):
    assert export(cohort, tmp_path, "bids") == 3 * 8 + 1
    stem = tmp_path / "sub-00" / "ses-a" / "func" / f"{FIRST}_space-MNI152NLin6Asym_atlas-pnet_seg-Schaefer12_scale-12"
    table = pd.read_csv(f"{stem}_stat-pearsoncorrelation_relmat.tsv", sep="\t", index_col=0, na_values="n/a")
    np.testing.assert_allclose(table.to_numpy(), cohort.edges["pearson"][0], rtol=1e-6)
    with open(f"{stem}_stat-effective_relmat.json") as file:
        said = json.load(file)
    assert said["Directed"] and said["MeantFor"].startswith("mechanism") and said["Atlas"]["digest"] == "00ff"
    assert (tmp_path / "dataset_description.json").exists() and "cohort.tsv" in (tmp_path / ".bidsignore").read_text()
    assert pd.read_csv(tmp_path / "cohort.tsv", sep="\t")["scan"][0] == FIRST


def test_what_cannot_be_exported_is_refused(cohort, tmp_path):
    with pytest.raises(SettingsError, match="unknown format 'graphm': expected one of bids, .*did you mean 'graphml'"):
        export(cohort, tmp_path, "graphm")
    (tmp_path / ".pnet").mkdir()
    with pytest.raises(SettingsError, match="contains results of another command"):
        export(cohort, tmp_path, "csv")
