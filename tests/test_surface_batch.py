"""GIFTI recordings all the way: a folder of fMRIPrep, an atlas in GIFTI labels, results on surfaces, a cohort in CIFTI."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pnet_jax.batch.run import construct_cohort
from pnet_jax.checkpoint import save_model
from pnet_jax.cohort import cohort_of
from pnet_jax.config import CleaningConfig, ConstructConfig
from pnet_jax.ingest import find_scans, load_atlas
from pnet_jax.outputs import labels_surface, load_network
from pnet_jax.outputs.cohort_export import export
from tests.ingest.meshes import SERIES, icosphere, save_gifti, surface

PLAIN = CleaningConfig(strategy=(), low_pass=None, high_pass=None, detrend=False)
WALL = np.arange(30)  # vertices of the medial wall
FRAMES = 120


@pytest.fixture(scope="module")
def inputs(toy_model, tmp_path_factory):
    """Two recordings on spheres within the toy brain, of six parcels each: the sides of a cube around it."""
    folder = tmp_path_factory.mktemp("surfaces")
    save_model(toy_model, folder / "checkpoint")
    xyz, faces = icosphere(3, 24.0)
    meshes = {side: xyz + np.array([x, 0, 0]) for side, x in (("L", -28), ("R", 28))}
    parcel = np.concatenate([xyz, -xyz], axis=1).argmax(1)
    for side, points in meshes.items():
        nib.save(surface(points, faces, side), folder / f"hemi-{side}_midthickness.surf.gii")
        ids = np.where(np.isin(np.arange(len(points)), WALL), 0, 1 + parcel).astype(np.int32)
        table = {0: "???"} | {k + 1: f"area {k}" for k in range(6)}
        save_gifti(folder / f"tpl-toy_hemi-{side}_atlas-Spheres_dseg.label.gii", ids, "NIFTI_INTENT_LABEL", table)
    for number in (1, 2):
        rng = np.random.default_rng(number)
        for side in "LR":
            y = rng.normal(size=(6, FRAMES))[parcel] + 0.8 * rng.normal(size=(len(xyz), FRAMES))
            values = (1000 + 10 * y).astype(np.float32)
            values[WALL] = np.nan
            name = SERIES.format(side).replace("sub-01", f"sub-0{number}").replace("fsaverage5", "fsaverage")
            file = save_gifti(folder / "prep" / f"sub-0{number}" / "func" / name, values)
            file.with_name(file.name.replace(".func.gii", ".json")).write_text('{"RepetitionTime": 2.0}')
    return folder


@pytest.fixture(scope="module")
def results(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    config = ConstructConfig(
        checkpoint=str(inputs / "checkpoint"),
        atlas=str(inputs / "tpl-toy_hemi-L_atlas-Spheres_dseg.label.gii"),
        **{"kappa": 10.0, "beta": 0.4, "report": False, "cleaning": PLAIN},
    )
    surfaces = [str(inputs / f"hemi-{side}_midthickness.surf.gii") for side in "LR"]
    with pytest.warns(UserWarning, match="6 ids occur in both hemispheres"):
        rows = construct_cohort(find_scans(inputs / "prep"), folder, config, load={"surfaces": surfaces})
    return folder, rows


def test_both_scans_are_done(results):
    folder, rows = results
    assert [(row["scan"], row["status"]) for row in rows] == [("sub-01_task-rest", "ok"), ("sub-02_task-rest", "ok")]
    assert any("6 ids occur in both hemispheres" in said for said in load_network(folder / rows[0]["dseg"]).qc.warnings)
    names = {file.name for file in (folder / "sub-01" / "func").iterdir()}
    stem = "sub-01_task-rest_{}space-fsaverage_atlas-pnet_seg-Spheres_scale-12"
    assert {stem.format(f"hemi-{side}_") + "_dseg.label.gii" for side in "LR"} | {stem.format("") + "_dseg.dlabel.nii"} <= names


def test_parcels_are_those_of_the_signals(inputs, results):
    folder, rows = results
    network = load_network(folder / rows[0]["dseg"])
    assert network.names[:2] == ("L_area 0", "L_area 1") and network.names[6] == "R_area 0" and network.ids.tolist() == list(range(1, 13))
    assert network.hemispheres == ("L",) * 6 + ("R",) * 6 and len(network.space) == 2 * (642 - len(WALL))
    assert (network.labels >= 0).mean() > 0.99 and (network.labels == network.atlas_labels).mean() > 0.9
    assert ((network.labels >= 6) == (network.space.hemisphere == 1)).all()
    with pytest.warns(UserWarning, match="occur in both"):
        surfaces = [inputs / f"hemi-{side}_midthickness.surf.gii" for side in "LR"]
        atlas = load_atlas(inputs / "tpl-toy_hemi-R_atlas-Spheres_dseg.label.gii", surfaces=surfaces)
    assert_array_equal(network.atlas_labels, atlas.labels)
    image = labels_surface(network, surfaces)
    assert not image.data.parts["left"][WALL].any() and set(image.data.parts["right"][len(WALL) :].tolist()) <= {0, *range(7, 13)}


def test_a_cohort_in_cifti(results, tmp_path):
    folder, rows = results
    networks = [load_network(folder / row["dseg"]) for row in rows]
    export(cohort_of(networks), tmp_path, "cifti")
    for network in networks:
        image = nib.load(tmp_path / f"sub-{network.subject}_task-rest_pearson.pconn.nii")
        axis = image.header.get_axis(0)
        vertices = {k: {name: len(own) for name, own in axis.vertices[k].items()} for k in range(12)}
        assert sum(sum(own.values()) for own in vertices.values()) == (network.labels >= 0).sum()
        assert all(set(own) <= {f"CIFTI_STRUCTURE_CORTEX_{'LEFT' if k < 6 else 'RIGHT'}"} for k, own in vertices.items())
        np.testing.assert_allclose(np.asarray(image.dataobj), network.edges["pearson"])


def test_the_files_of_a_scan_are_both_hemispheres(inputs, results):
    folder, _ = results
    before = find_scans(inputs / "prep")[0]
    assert {file.name.split("_hemi-")[1][0] for file in before.files if file is not None and file.suffix == ".gii"} == {"L", "R"}
    assert dataclasses.replace(before).files == before.files and folder.is_dir()
