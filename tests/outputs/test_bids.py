from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pnet_jax.network import Network
from pnet_jax.outputs import (
    labels_image,
    output_stem,
    parcel_colors,
    parcel_rows,
    probabilities_image,
    save,
    save_edges,
)
from pnet_jax.outputs.sidecars import stat_label
from pnet_jax.outputs.tables import read_rows
from pnet_jax.space import grid_space

from .helpers import ABSENT, AFFINE, DROPPED, IDS, SHAPE, K, T, cifti_network, flip_x, make_network, phantom_mask, points_network

STEM = "sub-01_ses-a_task-rest_run-1_space-MNI152NLin6Asym_atlas-pnet_seg-Schaefer12_scale-12_res-8"


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("derivatives")
    files = save(network, folder)
    assert all(file.is_file() for file in files) and files[-1].name == f"{STEM}_dseg.tsv"
    return folder


def table(folder: Path, ending: str, **options) -> pd.DataFrame:
    return pd.read_csv(folder / "sub-01/ses-a/func" / f"{STEM}_{ending}.tsv", sep="\t", na_values="n/a", **options)


def sidecar(folder: Path, ending: str) -> dict:
    text = (folder / "sub-01/ses-a/func" / f"{STEM}_{ending}.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    return json.loads(text)


def test_names_follow_bids(saved):
    found = sorted(str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file())
    endings = [
        *("desc-locations_mask.json", "desc-locations_mask.nii.gz", "desc-atlas_labels.json", "desc-atlas_labels.nii.gz"),
        *("desc-confidence_boldmap.json", "desc-confidence_boldmap.nii.gz"),
        *("desc-motion_timeseries.json", "desc-motion_timeseries.tsv", "desc-pnet_qc.json"),
        *("dseg.json", "dseg.nii.gz", "dseg.tsv", "probseg.json", "probseg.nii.gz"),
        *("stat-coverage_bold.json", "stat-coverage_bold.tsv", "stat-mean_timeseries.json", "stat-mean_timeseries.tsv"),
        *("stat-partialcorrelation_relmat.json", "stat-partialcorrelation_relmat.tsv"),
        *("stat-pearsoncorrelation_relmat.json", "stat-pearsoncorrelation_relmat.tsv"),
        *(f"stat-pearsoncorrelation_desc-half{half}_relmat.{kind}" for half in (1, 2) for kind in ("json", "tsv")),
    ]
    top = [".bidsignore", "atlas-pnet_description.json", "atlas-pnet_seg-Schaefer12_source.json", "dataset_description.json"]
    assert found == sorted(top + [f"sub-01/ses-a/func/{STEM}_{ending}" for ending in endings])
    about = json.loads((saved / "dataset_description.json").read_text())
    assert [file.name for file in saved.rglob("sub-*_dseg.nii*")] == [f"{STEM}_dseg.nii.gz"], "a search finds one parcellation"
    assert about["BIDSVersion"] == "1.11.1" and about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "pnet_jax"
    assert {"*_relmat.*", "*_timeseries.*", "*_boldmap.*"} <= set((saved / ".bidsignore").read_text().splitlines())


def test_a_validator_finds_nothing_that_bids_does_not_know(saved):
    """It refuses `atlas` in the name of a mask, and two descriptions of one atlas; what is ignored it does not look at."""
    ignored = (saved / ".bidsignore").read_text().splitlines()
    names = [file.name for file in saved.rglob("*") if file.is_file() and file.name != ".bidsignore"]
    seen = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]
    assert {name.split("_")[-1].split(".")[0] for name in seen} == {"description", "dseg", "probseg"}
    assert [name for name in names if name.startswith("atlas-") and name.endswith("_description.json")] == ["atlas-pnet_description.json"]


def test_every_table_has_k_parcels_in_one_order(saved, network):
    lut = table(saved, "dseg")
    names = list(network.names)
    assert lut["index"].tolist() == IDS.tolist() and lut["name"].tolist() == names
    assert lut["absent"].tolist() == [k == ABSENT for k in range(K)] and lut["n_locations"][ABSENT] == 0
    assert lut.loc[ABSENT, ["x", "y", "z"]].isna().all() and lut["n_locations"].sum() == (network.labels >= 0).sum()
    coverage = table(saved, "stat-coverage_bold")
    assert coverage.columns.tolist() == names
    np.testing.assert_allclose(coverage.to_numpy(), network.coverage[None], rtol=1e-5)
    signals = table(saved, "stat-mean_timeseries")
    assert signals.shape == (T, K) and signals.columns.tolist() == names
    np.testing.assert_allclose(signals.to_numpy(), network.signals.T, rtol=1e-5)
    edges = table(saved, "stat-pearsoncorrelation_relmat", index_col="Node")
    assert edges.index.tolist() == edges.columns.tolist() == names
    np.testing.assert_allclose(edges.to_numpy(), network.edges["pearson"], atol=1e-6)


def test_missing_is_written_as_na(saved):
    text = (saved / "sub-01/ses-a/func" / f"{STEM}_stat-pearsoncorrelation_relmat.tsv").read_text()
    assert "nan" not in text.lower()
    row = text.splitlines()[1 + ABSENT].split("\t")
    assert row == [f"area {ABSENT}"] + ["n/a"] * K


def test_sidecars(saved, network):
    pearson, partial = sidecar(saved, "stat-pearsoncorrelation_relmat"), sidecar(saved, "stat-partialcorrelation_relmat")
    assert (pearson["Weighted"], pearson["Directed"], pearson["ValidDiagonal"], pearson["StorageFormat"]) == (True, False, False, "Full")
    assert pearson["NonNegative"] is False and "Pearson" in pearson["RelationshipMeasure"] and partial["Measure"] == "partial"
    signals = sidecar(saved, "stat-mean_timeseries")
    assert signals["SamplingFrequency"] == 0.5 and signals["RepetitionTime"] == 2.0
    assert signals["KeptFrames"] == network.frames.tolist() and signals["RecordedFrames"] == T + len(DROPPED)
    assert "sum to 1" in " ".join(sidecar(saved, "probseg")["Description"].split())
    qc = sidecar(saved, "desc-pnet_qc")
    assert qc["scan"] == "sub-01_ses-a_task-rest_run-1" and qc["tsnr"] is None and qc["n_eff"] == 14.5
    assert qc["selection"]["decision"] == "personalised" and qc["calibration"]["curve"][0]["locations"] == 120
    for ending in ("dseg", "probseg", "stat-coverage_bold", "stat-mean_timeseries", "stat-pearsoncorrelation_relmat", "desc-pnet_qc"):
        assert sidecar(saved, ending)["Provenance"] == network.provenance
    assert set(table(saved, "dseg").columns) <= set(sidecar(saved, "dseg"))
    asymmetric = network.edges["pearson"].copy()
    asymmetric[0, 1] += 0.3
    np.fill_diagonal(asymmetric, np.linspace(1, 2, K))
    from pnet_jax.outputs.sidecars import edges_sidecar

    said = edges_sidecar(dataclasses.replace(network, edges={"granger-x": asymmetric}), "granger-x")
    assert said["Directed"] and said["ValidDiagonal"] and stat_label("granger-x") == "grangerx"


@pytest.mark.parametrize("orientation", ["RAS", "LAS"])
def test_ids_round_trip_through_the_image(orientation, tmp_path):
    mask, affine = phantom_mask(), AFFINE
    if orientation == "LAS":
        mask, affine = flip_x(mask, affine)
    network = make_network(grid_space(mask, affine, name="MNI152NLin6Asym"))
    save(network, tmp_path)
    image = nib.load(next(tmp_path.rglob("*_dseg.nii.gz")))
    assert "".join(nib.aff2axcodes(image.affine)) == orientation and image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.affine, affine)
    values = np.asarray(image.dataobj)
    own = values[tuple(network.space.grid.ijk.T)]
    np.testing.assert_array_equal(own, np.where(network.labels >= 0, network.ids[network.labels], 0))
    assert (values[~mask] == 0).all() and set(np.unique(values)) == set(IDS.tolist()) - {IDS[ABSENT]} | {0}
    # The same brain in either orientation has the same parcel at the same place in mm.
    canonical = nib.as_closest_canonical(labels_image(network))
    reference = labels_image(make_network())
    np.testing.assert_allclose(canonical.affine, reference.affine)
    np.testing.assert_array_equal(np.asarray(canonical.dataobj), np.asarray(reference.dataobj))


def test_large_ids_take_int32(network):
    image = labels_image(dataclasses.replace(network, ids=IDS * 1000))
    assert image.get_data_dtype() == np.int32 and np.asarray(image.dataobj).max() == 377000


def test_probabilities_sum_to_one_inside(saved, network):
    stored = nib.load(next(saved.rglob("*_probseg.nii.gz")))
    assert stored.shape == (*SHAPE, K) and stored.get_data_dtype() == np.uint16
    values = stored.get_fdata(dtype=np.float32)
    total = np.zeros(SHAPE)
    total[tuple(network.space.grid.ijk.T)] = network.labels >= 0
    np.testing.assert_allclose(values.sum(-1), total, atol=1e-6)
    location, slot = np.nonzero(network.candidates >= 0)
    x, y, z = network.space.grid.ijk[location].T
    got = values[x, y, z, network.candidates[location, slot]]
    np.testing.assert_allclose(got, network.probabilities[location, slot], atol=1e-4)
    assert values[..., ABSENT].max() == 0


def test_confidence_is_the_probability_of_the_own_parcel(saved, network):
    image = nib.load(next(saved.rglob("*_desc-confidence_boldmap.nii.gz")))
    assert image.shape == SHAPE and image.get_data_dtype() == np.float32
    values = np.asarray(image.dataobj)
    np.testing.assert_array_equal(values[tuple(network.space.grid.ijk.T)], network.confidence)
    assert (values[~phantom_mask()] == 0).all() and network.confidence.max() > 0.5


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ("personalised", "replication probability: the probability that an independent repeat of the scan, of equal length, gives"),
        ("atlas", "the probability is the spatial prior"),
        ("fixed", "was not calibrated against a repeat of the scan"),
    ],
)
def test_confidence_says_what_it_is(decision, said, network, tmp_path):
    selection = dataclasses.replace(network.qc.selection, decision=decision)
    save(dataclasses.replace(network, qc=dataclasses.replace(network.qc, selection=selection)), tmp_path)
    for ending in ("desc-confidence_boldmap", "probseg"):
        assert said in sidecar(tmp_path, ending)["Description"]


def test_probabilities_come_a_volume_at_a_time(network):
    image = probabilities_image(network)
    whole = image.get_fdata(dtype=np.float32)
    assert image.get_data_dtype() == np.float32 and image.shape == whole.shape
    np.testing.assert_array_equal(image.dataobj[..., 3], whole[..., 3])
    np.testing.assert_array_equal(image.dataobj[4:9, :, 7, 2:5], whole[4:9, :, 7, 2:5])
    np.testing.assert_array_equal(np.asarray(image.slicer[..., 1:3].dataobj), whole[..., 1:3])


def test_bytes_depend_on_the_result_alone(saved, network, tmp_path):
    for file in save(network, tmp_path):
        assert file.read_bytes() == (saved / file.relative_to(tmp_path)).read_bytes(), file.name


def test_rois_have_a_table_and_no_image(tmp_path):
    network = points_network()
    for make in (labels_image, probabilities_image):
        with pytest.raises(ValueError, match=r"30 ROIs cannot be drawn as an image.*dseg\.tsv"):
            make(network)
    files = save(network, tmp_path)
    assert not [file for file in files if ".nii" in file.name]
    rows = read_rows(next(tmp_path.rglob("*_desc-locations_dseg.tsv")))
    assert [row["name"] for row in rows] == [f"roi-{v}" for v in range(30)]
    assert [int(row["index"]) for row in rows] == np.where(network.labels >= 0, IDS[network.labels], 0).tolist()
    np.testing.assert_allclose([float(row["confidence"] or 0) for row in rows], network.confidence, atol=1e-6)
    about = json.loads(next(tmp_path.rglob("*_desc-locations_dseg.json")).read_text())
    assert set(rows[0]) <= set(about)
    assert about["confidence"]["Description"].endswith("was not calibrated against a repeat of the scan.")
    assert len(read_rows(files[-1])) == K


def test_cifti_labels(tmp_path):
    network = cifti_network()
    files = save(network, tmp_path)
    assert next(file.name for file in files if "dlabel" in file.name).endswith(
        "_space-fsLR_atlas-pnet_seg-Schaefer12_scale-12_den-91k_dseg.dlabel.nii"
    )
    image = nib.load(next(tmp_path.rglob("*.dlabel.nii")))
    assert image.nifti_header.get_intent()[0] == "ConnDenseLabel"
    np.testing.assert_array_equal(image.get_fdata()[0], np.where(network.labels >= 0, IDS[network.labels], 0))
    labels, models = (image.header.get_axis(axis) for axis in (0, 1))
    assert models == network.space.grid.brain_models and labels.label[0][int(IDS[4])][0] == "area 4"
    soft = nib.load(next(tmp_path.rglob("*_probseg.dscalar.nii"))).get_fdata()
    np.testing.assert_allclose(soft.sum(0), network.labels >= 0, atol=1e-5)
    confidence = nib.load(next(tmp_path.rglob("*_desc-confidence_boldmap.dscalar.nii")))
    assert confidence.header.get_axis(0).name.tolist() == ["confidence"]
    np.testing.assert_allclose(confidence.get_fdata()[0], network.confidence, atol=1e-6)
    assert not list(save(network, tmp_path / "hard", probabilities=False)[0].parent.glob("*probseg*"))


def test_edges_alone(network, tmp_path):
    files = save_edges(dataclasses.replace(network, edges={"tangent": network.edges["pearson"]}), tmp_path)
    assert [file.name for file in files] == [f"{STEM}_stat-tangent_relmat.{kind}" for kind in ("tsv", "json")]
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(files)


def test_stem_orders_entities_and_keeps_labels_apart():
    given = {
        "res": 2,
        "run": 1,
        "space": "MNI152NLin6Asym",
        "dir": "AP",
        "task": "rest",
        "ses": "b",
        "desc": "x",
        "acq": "mb",
        "echo": None,
    }
    stem = output_stem("out", "01", given, 100, "A")
    assert stem.name == "sub-01_ses-b_task-rest_acq-mb_dir-AP_run-1_space-MNI152NLin6Asym_atlas-pnet_seg-A_scale-100_res-2"
    assert stem.parent.as_posix() == "out/sub-01/ses-b/func"
    assert "space-T1w" in output_stem("out", "01", {}, 100, "A", space="T1w").name
    odd = {output_stem("out", name, {}, 100, "A").name for name in ("a-1", "a_1", "a1", "../a1")}
    assert len(odd) == 4 and not any("/" in name or ".." in name for name in odd)


def test_names_shared_by_parcels_stay_distinct(network):
    twins = dataclasses.replace(network, names=("twin",) * 2 + network.names[2:])
    assert [row["name"] for row in parcel_rows(twins)][:3] == ["twin_2", "twin_3", "area 2"]


def test_shapes_that_disagree_are_named(network, tmp_path):
    with pytest.raises(ValueError, match=r"sub-01: `signals` should have shape \(12, 40\), got \(12, 39\)"):
        save(dataclasses.replace(network, signals=network.signals[:, 1:]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_programs_description_stays(network, tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    (tmp_path / ".bidsignore").write_text("*.figures")
    save(network, tmp_path)
    assert "fMRIPrep" in (tmp_path / "dataset_description.json").read_text()
    assert (tmp_path / ".bidsignore").read_text().splitlines()[:2] == ["*.figures", "*_relmat.*"]


def test_colors_are_stable_and_apart():
    colors = parcel_colors(np.arange(1, 401))
    assert ((colors >= 0) & (colors <= 1)).all()
    np.testing.assert_array_equal(parcel_colors(IDS), colors[IDS - 1])
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 0.2
