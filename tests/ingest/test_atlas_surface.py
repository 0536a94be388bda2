"""Atlases on surfaces: dlabel files and pairs of GIFTI labels, whose ids may repeat in both hemispheres."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes as axes
from numpy.testing import assert_array_equal

from pnet_jax.ingest import load_atlas
from pnet_jax.ingest.atlas import cortex_of, separate_sides
from pnet_jax.ingest.cifti import cifti_space
from pnet_jax.ingest.gifti import brain_models
from pnet_jax.parcellation.atlas import make_atlas, on_space

from .helpers import AFFINE, DATA, SHAPE
from .meshes import hemispheres, save_gifti, save_surfaces, surface

REAL = DATA / "parcellations_fslr32k" / "dcbc_parcellations_fslr32k.npz"
NAMES = ("tpl-toy_hemi-L_dseg.label.gii", "tpl-toy_hemi-R_dseg.label.gii")
GREY = (0.5, 0.5, 0.5, 1.0)


@pytest.fixture
def surfaces(tmp_path):
    return save_surfaces(tmp_path / "meshes")


def save_dlabel(path, values, models, table):
    labels = axes.LabelAxis(["toy"], [{key: (name, GREY) for key, name in table.items()}])
    nib.save(nib.Cifti2Image(np.asarray(values, np.float32)[None], (labels, models)), path)
    return path


def whole(n=162):
    return brain_models({"L": np.arange(n), "R": np.arange(n)}, {"L": n, "R": n})


def halves(left, right, n=162):
    """Ids of both hemispheres, each in equal stretches of vertices."""
    return [np.repeat(ids, -(-n // len(ids)))[:n] for ids in (left, right)]


def test_an_id_of_both_hemispheres_is_two_parcels(tmp_path, surfaces):
    values = np.concatenate(halves([0, 1, 2, 5], [1, 5, 7]))
    path = save_dlabel(tmp_path / "toy.dlabel.nii", values, whole(), {0: "???", 1: "V1", 2: "V2", 5: "A1", 7: "M1"})
    said = r"toy\.dlabel\.nii: 2 ids occur in both hemispheres; each is two parcels, the right one with an id raised by 7: 1 \(L_V1, R_V1\)"
    with pytest.warns(UserWarning, match=said):
        atlas = load_atlas(path, surfaces=surfaces)
    assert dict(zip(atlas.ids.tolist(), atlas.names, strict=True)) == {1: "L_V1", 2: "V2", 5: "L_A1", 7: "M1", 8: "R_V1", 12: "R_A1"}
    assert atlas.hemispheres == ("L", "L", "L", "R", "R", "R")
    left, right = (xyz for xyz, _ in hemispheres().values())
    np.testing.assert_allclose(atlas.xyz[atlas.labels == 4], right[:54], atol=1e-3)
    np.testing.assert_allclose(atlas.xyz[atlas.labels == 0], left[41:82], atol=1e-3)


def test_ids_of_one_hemisphere_stay(tmp_path, surfaces, recwarn):
    values = np.concatenate(halves([1, 2], [3, 4]))
    path = save_dlabel(tmp_path / "toy.dlabel.nii", values, whole(), {0: "???", 1: "a", 2: "b", 3: "c", 4: "d"})
    atlas = load_atlas(path, surfaces=surfaces)
    assert atlas.ids.tolist() == [1, 2, 3, 4] and atlas.names == ("a", "b", "c", "d") and not recwarn.list


def test_voxels_do_not_make_an_id_two_parcels(tmp_path, surfaces, recwarn):
    thalamus = np.zeros(SHAPE, bool)
    thalamus[4, 5:7, 4] = True
    models = whole() + axes.BrainModelAxis.from_mask(thalamus, "CIFTI_STRUCTURE_THALAMUS_RIGHT", AFFINE)
    path = save_dlabel(tmp_path / "toy.dlabel.nii", [*np.concatenate(halves([1], [2])), 1, 1], models, {1: "a", 2: "b"})
    assert load_atlas(path, surfaces=surfaces).ids.tolist() == [1, 2] and not recwarn.list


@pytest.mark.parametrize("name", ["???", "unknown", "Medial_wall", "Background+FreeSurfer_Defined_Medial_Wall", "L_Medial_Wall"])
def test_what_names_no_region_is_no_parcel(tmp_path, surfaces, name, recwarn):
    values = np.concatenate(halves([1, 9], [2, 9]))
    path = save_dlabel(tmp_path / "toy.dlabel.nii", values, whole(), {1: "a", 2: "unknown nucleus", 9: name})
    atlas = load_atlas(path, surfaces=surfaces)
    assert atlas.names == ("a", "unknown nucleus") and not recwarn.list


def test_names_that_are_given(tmp_path, surfaces):
    values = np.concatenate(halves([1, 2], [2, 3]))
    path = save_dlabel(tmp_path / "toy.dlabel.nii", values, whole(), {1: "a", 2: "b", 3: "c"})
    for given in (["x", "y", "z"], {1: "x", 2: "y", 3: "z"}):
        with pytest.warns(UserWarning, match="1 ids occur in both"):
            atlas = load_atlas(path, surfaces=surfaces, names=given)
        assert atlas.names == ("x", "L_y", "z", "R_y")
    with pytest.raises(ValueError, match="3 ids in use but 4 names"):
        load_atlas(path, surfaces=surfaces, names=["x", "y", "z", "w"])


def test_gifti_labels(tmp_path, surfaces):
    tables = {0: "???", 1: "LH_a", 2: "LH_b"}, {0: "???", 1: "RH_a", 2: "LH_b"}
    for name, values, table in zip(NAMES, halves([0, 1, 2], [1, 2]), tables, strict=True):
        save_gifti(tmp_path / name, values.astype(np.int32), "NIFTI_INTENT_LABEL", table)
    for name in NAMES:
        with pytest.warns(UserWarning, match=r"2 ids occur in both hemispheres.*1 \(LH_a, RH_a\)"):
            atlas = load_atlas(tmp_path / name, surfaces=surfaces)
        # Each hemisphere has a table of its own; a name that both have is told apart.
        assert dict(zip(atlas.ids.tolist(), atlas.names, strict=True)) == {1: "LH_a", 2: "L_LH_b", 3: "RH_a", 4: "R_LH_b"}
        assert atlas.space == "toy" and len(atlas.labels) == 108 + 162
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(ValueError, match=f"atlas .*the right hemisphere is missing: expected {NAMES[1]}"):
        load_atlas(tmp_path / NAMES[0], surfaces=surfaces)


def test_a_series_is_no_atlas(tmp_path, surfaces):
    for name in NAMES:
        save_gifti(tmp_path / name, np.ones((162, 3), np.int32), "NIFTI_INTENT_LABEL")
    with pytest.raises(ValueError, match="expected one map of labels, found 3"):
        load_atlas(tmp_path / NAMES[0], surfaces=surfaces)


def real_names(*chosen):
    if not REAL.is_file():
        return [pytest.param("", marks=pytest.mark.skip(reason=f"the real parcellations are absent: {REAL}"))]
    with np.load(REAL) as file:
        return list(chosen) or [name for name in file.files if not name.startswith(("cortex_mask", "faces", "midthickness"))]


@pytest.fixture(scope="module")
def cortex():
    """Meshes, the vertices of the cortex of fsLR 32k, and their Space."""
    with np.load(REAL) as file:
        meshes = [surface(file["midthickness_mm"][at], file[f"faces_{side}"], side) for at, side in enumerate("LR")]
        kept = [np.flatnonzero(mask) for mask in file["cortex_mask"]]
    models = brain_models({"L": kept[0], "R": kept[1]}, {"L": 32492, "R": 32492})
    return meshes, kept, models, cifti_space(models, meshes, "fsLR", "fsLR")


@pytest.mark.parametrize("name", real_names())
def test_real_parcellations(cortex, name):
    _, kept, _, space = cortex
    with np.load(REAL) as file:
        left, right = (ids[own].astype(int) for ids, own in zip(file[name], kept, strict=True))
    table = {key: f"area {key}" for key in np.union1d(left, right).tolist() if key}
    with pytest.warns(UserWarning, match="ids occur in both hemispheres"):
        values, names = separate_sides(np.r_[left, right], cortex_of(space), (table, table), name)
    each = [set(np.unique(ids[ids > 0]).tolist()) for ids in (left, right)]
    both, top = each[0] & each[1], max(table)
    assert set(names) == each[0] | {key + top if key in both else key for key in each[1]} == set(np.unique(values[values > 0]).tolist())
    assert all(names[key] == f"L_area {key}" and names[key + top] == f"R_area {key}" for key in both)
    assert_array_equal(values, np.r_[left, np.where(np.isin(right, list(both)), right + top, right)])
    atlas = make_atlas(space.xyz, values, resolution=space.resolution, names=names, hemisphere=space.hemisphere)
    assert atlas.n_parcels == len(each[0]) + len(each[1]) and "B" not in atlas.hemispheres


@pytest.mark.parametrize("name", real_names("Glasser_2016"))
def test_a_real_parcellation_from_a_file(tmp_path, cortex, name):
    meshes, kept, models, space = cortex
    with np.load(REAL) as file:
        left, right = (ids[own].astype(int) for ids, own in zip(file[name], kept, strict=True))
    table = {0: "???"} | {key: f"area {key}" for key in range(1, 181)}
    path = save_dlabel(tmp_path / f"{name}.dlabel.nii", np.r_[left, right], models, table)
    with pytest.warns(UserWarning, match="180 ids occur in both hemispheres"):
        atlas = load_atlas(path, surfaces=meshes)
    assert atlas.n_parcels == 360 and atlas.hemispheres == ("L",) * 180 + ("R",) * 180 and atlas.space == "fsLR"
    local = on_space(atlas, space)
    # Every vertex of a parcel has its own label, and candidates are those of its hemisphere.
    labelled = np.r_[left, right] > 0
    assert_array_equal(atlas.ids[local.labels[labelled]], np.r_[left, np.where(right > 0, right + 180, 0)][labelled])
    there = local.candidates >= 0
    assert_array_equal((local.candidates >= 180)[there], np.broadcast_to(space.hemisphere[:, None] == 1, there.shape)[there])
    straight = on_space(atlas, dataclasses.replace(space, mesh=None))
    assert_array_equal(local.labels[labelled], straight.labels[labelled])
    assert there.sum() < (straight.candidates >= 0).sum()  # through a sulcus there are more
