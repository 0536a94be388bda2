"""Results of surface scans, by the conventions of Workbench and of nilearn."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from nilearn.surface import SurfaceImage

from pnet_jax.cohort import cohort_of
from pnet_jax.ingest import load_atlas, load_scan
from pnet_jax.outputs import labels_surface, load_network, save
from pnet_jax.outputs.cohort_export import export
from pnet_jax.outputs.surfaces import label_gifti
from tests.ingest.helpers import PLAIN
from tests.ingest.meshes import hemispheres, save_surfaces

from .helpers import ABSENT, IDS, TR, K, cifti_network, make_network, vertex_network

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
STEM = "sub-01_task-rest_{}space-fsaverage4_atlas-pnet_seg-Schaefer12_scale-12"


@pytest.fixture(scope="module")
def network():
    return vertex_network()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    return folder, save(network, folder)


def ids_of(network):
    return np.where(network.labels >= 0, IDS[network.labels], 0)


def test_files_of_a_scan_of_vertices(saved):
    names = {file.name for file in saved[1]}
    plain = STEM.format("")
    assert {f"{plain}_dseg.dlabel.nii", f"{plain}_probseg.dscalar.nii", f"{plain}_desc-confidence_boldmap.dscalar.nii"} < names
    assert {f"{STEM.format(f'hemi-{side}_')}_dseg.label.gii" for side in "LR"} < names
    assert not any(name.endswith((".pconn.nii", ".ptseries.nii")) for name in names)  # `pnet export --to cifti` makes these


def test_dense_labels(network, saved):
    image = nib.load(saved[0] / "sub-01" / "func" / f"{STEM.format('')}_dseg.dlabel.nii")
    maps, models = (image.header.get_axis(at) for at in (0, 1))
    assert [name for name, _, _ in models.iter_structures()] == [LEFT, RIGHT] and models.nvertices == {LEFT: 162, RIGHT: 162}
    assert models.vertex.tolist() == [*range(3, 162), *range(50), *range(60, 162)] and models.surface_mask.all()
    (table,) = maps.label
    assert set(table) == {0, *IDS.tolist()} and table[0] == ("???", (0, 0, 0, 0))
    assert [table[int(key)][0] for key in IDS] == list(network.names)
    assert all(0 <= part <= 1 for _, color in table.values() for part in color) and len({color for _, color in table.values()}) == K + 1
    np.testing.assert_array_equal(image.get_fdata()[0], ids_of(network))


def test_gifti_labels(network, saved):
    ids = ids_of(network)
    expected = {"L": (np.arange(3, 162), ids[:159]), "R": (np.r_[0:50, 60:162], ids[159:])}
    for side, (vertices, values) in expected.items():
        image = nib.load(saved[0] / "sub-01" / "func" / f"{STEM.format(f'hemi-{side}_')}_dseg.label.gii")
        (array,) = image.darrays
        assert array.intent == nib.nifti1.intent_codes["NIFTI_INTENT_LABEL"] and array.data.dtype == np.int32
        assert image.meta["AnatomicalStructurePrimary"] == {"L": "CortexLeft", "R": "CortexRight"}[side]
        assert array.data.shape == (162,) and array.data[vertices].tolist() == values.tolist()
        assert not np.delete(array.data, vertices).any()  # the medial wall
        assert image.labeltable.get_labels_as_dict() == {0: "???", **dict(zip(IDS.tolist(), network.names, strict=True))}


def test_equal_networks_give_equal_files(network, saved, tmp_path):
    again = save(network, tmp_path)
    for one, other in zip(saved[1], again, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes() or one.suffix == ".json", one.name


def test_read_back(network, saved):
    found = load_network(saved[1][-1])
    np.testing.assert_array_equal(found.labels, network.labels)
    np.testing.assert_array_equal(found.atlas_labels, network.atlas_labels)
    np.testing.assert_allclose(found.confidence, network.confidence, atol=1e-4)
    np.testing.assert_allclose(found.space.xyz, network.space.xyz, atol=2e-3)
    assert found.space.grid.brain_models == network.space.grid.brain_models and found.entities == network.entities


def test_what_was_written_is_an_atlas_again(network, saved, tmp_path):
    surfaces = save_surfaces(tmp_path, radius=40.0)
    there = np.isin(IDS, ids_of(network))
    func = saved[0] / "sub-01" / "func"
    for name in (f"{STEM.format('')}_dseg.dlabel.nii", f"{STEM.format('hemi-R_')}_dseg.label.gii"):
        with pytest.warns(UserWarning):  # of the absent parcel, and of parcels in both hemispheres
            atlas = load_atlas(func / name, surfaces=surfaces)
        assert set(atlas.ids.tolist()) >= set(IDS[there & (IDS != 0)][:1].tolist())
        assert len(atlas.labels) == (network.labels >= 0).sum()


def test_parcel_files(network, tmp_path):
    export(cohort_of([network]), tmp_path, "cifti")
    image = nib.load(tmp_path / "sub-01_task-rest_pearson.pconn.nii")
    rows, columns = (image.header.get_axis(at) for at in (0, 1))
    assert image.nifti_header.get_intent()[0] == "ConnParcels" and rows == columns and list(rows.name) == list(network.names)
    models = network.space.grid.brain_models
    for k in range(K):
        for structure in (LEFT, RIGHT):
            own = models.vertex[(network.labels == k) & (models.name == structure)].tolist()
            assert rows.vertices[k].get(structure, np.zeros(0)).tolist() == own, (k, structure)
    assert not rows.vertices[ABSENT] and rows.nvertices == {LEFT: 162, RIGHT: 162} and not any(map(len, rows.voxels))
    np.testing.assert_array_equal(np.asarray(image.dataobj), network.edges["pearson"])
    series = nib.load(tmp_path / "sub-01_task-rest.ptseries.nii")
    time, parcels = (series.header.get_axis(at) for at in (0, 1))
    assert series.nifti_header.get_intent()[0] == "ConnParcelSries" and parcels == rows
    assert (time.start, time.step, time.unit, len(time)) == (0, TR, "SECOND", len(network.frames))
    np.testing.assert_array_equal(np.asarray(series.dataobj), network.signals.T)


def test_parcel_series_are_read_again(network, tmp_path):
    export(cohort_of([dataclasses.replace(network, signals=np.nan_to_num(network.signals) + 1)]), tmp_path, "cifti")
    centroids = np.arange(3.0 * K).reshape(K, 3)
    scan = load_scan(tmp_path / "sub-01_task-rest.ptseries.nii", atlas=centroids, cleaning=dataclasses.replace(PLAIN, min_seconds=1.0))
    assert scan.space.names == network.names and scan.tr == TR


def test_surface_image(network, saved):
    image = labels_surface(network)
    assert isinstance(image, SurfaceImage)
    ids = ids_of(network)
    assert image.data.parts["left"][3:].tolist() == ids[:159].tolist() and not image.data.parts["left"][:3].any()
    assert image.data.parts["right"][np.r_[0:50, 60:162]].tolist() == ids[159:].tolist()
    for side, name in (("L", "left"), ("R", "right")):
        xyz, faces = hemispheres(level=2, radius=40.0)[side]
        np.testing.assert_allclose(image.mesh.parts[name].coordinates, xyz, atol=1e-3)
        np.testing.assert_array_equal(image.mesh.parts[name].faces, faces)
    with pytest.raises(ValueError, match=r"surfaces=\(left, right\)"):
        labels_surface(load_network(saved[1][-1]))  # a toy's template has no mesh


def test_surface_image_of_files_that_are_given(network, saved, tmp_path):
    found = labels_surface(load_network(saved[1][-1]), save_surfaces(tmp_path, radius=40.0))
    expected = labels_surface(network)
    for name in ("left", "right"):
        np.testing.assert_array_equal(found.data.parts[name], expected.data.parts[name])
        np.testing.assert_allclose(found.mesh.parts[name].coordinates, expected.mesh.parts[name].coordinates, atol=1e-3)


def test_a_volume_has_no_surface():
    with pytest.raises(ValueError, match="expected a scan on CIFTI grayordinates"):
        label_gifti(make_network())


def test_grayordinates_with_voxels_have_no_gifti_files_but_a_surface(tmp_path):
    network = cifti_network()
    assert not any(file.suffix == ".gii" for file in save(network, tmp_path))
    assert {side: len(image.darrays[0].data) for side, image in label_gifti(network).items()} == {"L": 400, "R": 400}


def test_a_store_of_records_keeps_the_mesh_and_a_cohort_does_not(network, tmp_path):
    from pnet_jax.outputs.cohort_arrays import space_content
    from pnet_jax.records.spaces import load_space, space_file, write_space

    space = network.space
    found = load_space(tmp_path / space_file(write_space(tmp_path, space)))
    for name in ("xyz", "faces", "hemisphere", "vertex"):
        np.testing.assert_array_equal(getattr(found.mesh, name), getattr(space.mesh, name))
    arrays, _ = space_content(space)
    assert {len(table) for _, table in arrays.values()} == {len(space)} and not any("mesh" in name for name in arrays)
