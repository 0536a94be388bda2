"""CIFTI: dense series and labels, parcel series."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.cifti2 import cifti2_axes as axes

from pnet_jax.ingest import load_atlas, load_scan

from .helpers import AFFINE, FILTERED, PLAIN, SHAPE, SHARED, TR, T

LEFT, RIGHT, THALAMUS, STEM = (f"CIFTI_STRUCTURE_{n}" for n in ("CORTEX_LEFT", "CORTEX_RIGHT", "THALAMUS_LEFT", "BRAIN_STEM"))
DENSE = "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii"
OCTAHEDRON = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
POINTS = 20.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def surface(x, side=None):
    meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": side}) if side else None
    points = nib.gifti.GiftiDataArray((POINTS + np.array([x, 0, 0])).astype(np.float32), "NIFTI_INTENT_POINTSET", meta=meta)
    faces = nib.gifti.GiftiDataArray(OCTAHEDRON.astype(np.int32), "NIFTI_INTENT_TRIANGLE")
    return nib.gifti.GiftiImage(darrays=[points, faces])


@pytest.fixture
def surfaces(tmp_path):
    paths = tmp_path / "hemi-L_midthickness.surf.gii", tmp_path / "hemi-R_midthickness.surf.gii"
    nib.save(surface(-40), paths[0])
    nib.save(surface(40), paths[1])
    return paths


def brain_models():
    """Five of six left vertices (one is medial wall), all right ones, and two structures of voxels that touch."""
    left = axes.BrainModelAxis.from_surface(np.array([0, 2, 3, 4, 5]), 6, LEFT)
    right = axes.BrainModelAxis.from_surface(np.arange(6), 6, RIGHT)
    thalamus, stem = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    thalamus[4, 5:7, 4], stem[5, 5:7, 4] = True, True
    return left + right + axes.BrainModelAxis.from_mask(thalamus, THALAMUS, AFFINE) + axes.BrainModelAxis.from_mask(stem, STEM, AFFINE)


def data(n, seed=0):
    return (100 + np.cumsum(np.random.default_rng(seed).normal(size=(T, n)), axis=0)).astype(np.float32)


def save_series(path, columns, unit="SECOND"):
    nib.save(nib.Cifti2Image(data(len(columns)), (axes.SeriesAxis(0, TR, T, unit), columns)), path)
    return path


def test_dense_series(tmp_path, surfaces):
    path = save_series(tmp_path / DENSE, brain_models())
    scan = load_scan(path, surfaces=surfaces, cleaning=FILTERED)
    space = scan.space
    assert space.kind == "cifti" and space.name == "fsLR" and scan.y.shape == (15, T) and scan.tr == TR and scan.label == "sub-01_task-rest"
    assert [space.structures[s] for s in space.structure[[0, 5, 11, 13]]] == [LEFT, RIGHT, THALAMUS, STEM]
    assert space.hemisphere.tolist() == [0] * 5 + [1] * 6 + [0] * 2 + [0 if x < 0 else 1 for x in space.xyz[13:, 0]]
    np.testing.assert_allclose(space.xyz[0], [-20, 0, 0])
    np.testing.assert_allclose(space.xyz[11], [-44 + 32, -60 + 40, -36 + 32])
    assert space.grid.ijk[:11].max() == -1 and space.grid.ijk[11].tolist() == [4, 5, 4] and space.grid.brain_models == brain_models()
    plain = load_scan(path, surfaces=surfaces, cleaning=PLAIN)
    np.testing.assert_allclose(plain.mean, data(15).mean(0), rtol=1e-5)


def test_neighbours_on_meshes_and_in_the_volume(tmp_path, surfaces):
    space = load_scan(save_series(tmp_path / DENSE, brain_models()), surfaces=surfaces, cleaning=PLAIN).space

    def near(v):
        return sorted(n for n in space.neighbours[v].tolist() if n >= 0)

    assert near(0) == [1, 2, 3, 4]  # vertex 0 touches all but the missing vertex 1
    assert near(1) == [0, 3, 4]
    assert near(5) == [7, 8, 9, 10]
    assert near(11) == [12, 13, 14]
    assert all(v in near(n) for v in range(15) for n in near(v))


def test_series_without_surfaces_says_which_files_to_give(tmp_path):
    with pytest.raises(
        ValueError, match=r"sub-01_task-rest.*dtseries\.nii.*CORTEX_LEFT.*surfaces=.*two GIFTI midthickness surfaces of 6 vertices"
    ):
        load_scan(save_series(tmp_path / DENSE, brain_models()))


def test_surfaces_that_do_not_fit(tmp_path, surfaces):
    path = save_series(tmp_path / DENSE, axes.BrainModelAxis.from_surface(np.arange(7), 9, LEFT))
    with pytest.raises(ValueError, match=r"expected 9 vertices for CIFTI_STRUCTURE_CORTEX_LEFT, found 6 in .*hemi-L_midthickness.surf.gii"):
        load_scan(path, surfaces=surfaces)
    with pytest.raises(ValueError, match=r"both CIFTI_STRUCTURE_CORTEX_LEFT"):
        load_scan(path, surfaces=(surfaces[0], surfaces[0]))
    with pytest.raises(ValueError, match="not a GIFTI surface"):
        load_scan(path, surfaces=(path, path))


def test_sides_come_from_the_files_not_the_order(tmp_path, surfaces):
    path = save_series(tmp_path / DENSE, brain_models())
    straight = load_scan(path, surfaces=surfaces, cleaning=PLAIN).space.xyz
    for swapped in (surfaces[::-1], (surface(40, "CortexRight"), surface(-40, "CortexLeft"))):
        np.testing.assert_array_equal(load_scan(path, surfaces=swapped, cleaning=PLAIN).space.xyz, straight)


def test_voxels_alone_need_no_surfaces(tmp_path):
    columns = axes.BrainModelAxis.from_mask(np.ones((3, 3, 3), bool), THALAMUS, AFFINE)
    scan = load_scan(save_series(tmp_path / DENSE, columns), cleaning=PLAIN)
    assert len(scan.space) == 27 and scan.space.resolution == pytest.approx(8) and (scan.space.hemisphere == 0).all()


def test_units_of_the_series(tmp_path, surfaces):
    path = save_series(tmp_path / DENSE, brain_models(), unit="HERTZ")
    with pytest.raises(ValueError, match=r"HERTZ, expected SECOND.*tr="):
        load_scan(path, surfaces=surfaces)
    assert load_scan(path, surfaces=surfaces, tr=1.5, cleaning=PLAIN).tr == 1.5


def test_maps_are_no_series(tmp_path, surfaces):
    path = tmp_path / "x.dtseries.nii"
    nib.save(nib.Cifti2Image(data(15)[:2], (axes.ScalarAxis(["a", "b"]), brain_models())), path)
    with pytest.raises(ValueError, match=r"expected a series over time.*ScalarAxis"):
        load_scan(path, surfaces=surfaces)


def test_truncated_series(tmp_path, surfaces):
    path = save_series(tmp_path / DENSE, brain_models())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"dtseries\.nii.*truncated or corrupt"):
        load_scan(path, surfaces=surfaces)


def test_masks_are_for_volumes(tmp_path, surfaces):
    with pytest.raises(ValueError, match="mask= is for NIfTI"):
        load_scan(save_series(tmp_path / DENSE, brain_models()), surfaces=surfaces, mask="m.nii.gz")


def parcels():
    cortex, voxels = np.array([0, 2]), np.array([[4, 5, 4], [4, 6, 4]])
    return axes.ParcelsAxis(
        ["A", "B"],
        [np.zeros((0, 3), int), voxels],
        [{LEFT: cortex}, {}],
        AFFINE,
        SHAPE,
        {LEFT: 6},
    )


def test_parcel_series(tmp_path, surfaces):
    path = save_series(tmp_path / "sub-01_x.ptseries.nii", parcels())
    scan = load_scan(path, surfaces=surfaces, cleaning=FILTERED)
    assert scan.space.names == ("A", "B") and scan.y.shape == (2, T) and scan.space.kind == "points"
    np.testing.assert_allclose(scan.space.xyz, [[-30, 10, 0], [-12, -16, -4]])
    with pytest.raises(ValueError, match=r"surfaces=.*or atlas="):
        load_scan(path)
    places = pd.DataFrame([["B", 1, 2, 3], ["A", 4, 5, 6]], columns=["name", "x", "y", "z"])
    places.to_csv(tmp_path / "places.tsv", sep="\t", index=False)
    np.testing.assert_allclose(load_scan(path, atlas=tmp_path / "places.tsv", cleaning=PLAIN).space.xyz, [[4, 5, 6], [1, 2, 3]])


def test_dense_labels(tmp_path, surfaces):
    values = np.array([[5] * 5 + [9] * 6 + [0] * 2 + [9] * 2], np.float32)
    table = {0: ("???", (0, 0, 0, 0)), 5: ("five", (1, 0, 0, 1)), 9: ("nine", (0, 1, 0, 1)), 11: ("ghost", (0, 1, 1, 1))}
    path = tmp_path / "toy.dlabel.nii"
    nib.save(nib.Cifti2Image(values, (axes.LabelAxis(["toy"], [table]), brain_models())), path)
    with pytest.warns(UserWarning, match="11 ghost"):
        prior = load_atlas(path, surfaces=surfaces)
    assert prior.ids.tolist() == [5, 9] and prior.names == ("five", "nine") and prior.hemispheres[0] == "L" and prior.space == "fsLR"
    with pytest.raises(ValueError, match=r"toy\.dlabel\.nii.*surfaces="):
        load_atlas(path)


@pytest.mark.skipif(not (SHARED / "data" / "cifti").is_dir(), reason="the real recording is absent")
def test_real_parcel_series():
    (path,) = (SHARED / "data" / "cifti").glob("*.ptseries.nii")
    with pytest.raises(ValueError, match="surfaces="):
        load_scan(path)
    scan = load_scan(path, atlas=np.random.default_rng(0).normal(size=(419, 3)) * 40, cleaning=FILTERED)
    assert scan.y.shape == (419, 1200) and scan.tr == 0.72 and scan.space.names[400] == "CEREBELLUM_LEFT"
