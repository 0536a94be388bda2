"""GIFTI recordings: two files, one scan."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from nilearn.surface import PolyMesh, SurfaceImage

from pnet_jax.ingest import find_scans, load_scan
from pnet_jax.ingest.gifti import pair_of
from pnet_jax.ingest.memory import peak_bytes
from pnet_jax.ingest.source import source_of

from .helpers import FILTERED, PLAIN, TR, T, fmriprep_table, save_bold, save_table
from .meshes import SERIES, hemispheres, save_gifti, save_pair, save_surfaces, vertex_series

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"


@pytest.fixture
def surfaces(tmp_path):
    return save_surfaces(tmp_path / "meshes")


def test_one_scan_of_both_hemispheres(tmp_path, surfaces):
    path = save_pair(tmp_path)
    scan = load_scan(path, surfaces=surfaces, cleaning=PLAIN)
    space, models = scan.space, scan.space.grid.brain_models
    assert (scan.label, scan.tr, scan.entities) == ("sub-01_task-rest", TR, {"task": "rest", "space": "fsaverage5"})
    assert scan.y.shape == (2 * 159, T) and scan.valid.all()  # the medial wall is left out
    assert space.kind == "cifti" and space.name == "fsaverage5" and space.structures == (LEFT, RIGHT)
    assert space.hemisphere.tolist() == [0] * 159 + [1] * 159
    assert models.vertex.tolist() == 2 * list(range(3, 162)) and models.nvertices == {LEFT: 162, RIGHT: 162}
    for at, (side, (xyz, _)) in enumerate(hemispheres().items()):
        own = slice(159 * at, 159 * (at + 1))
        np.testing.assert_allclose(space.xyz[own], xyz[3:], atol=1e-3)
        np.testing.assert_allclose(scan.mean[own], vertex_series(162, "LR".index(side))[3:].mean(1), rtol=1e-5)
    assert (space.mesh.vertex == np.r_[np.arange(3, 162), 162 + np.arange(3, 162)]).all()
    np.testing.assert_allclose(space.mesh.xyz[space.mesh.vertex], space.xyz)
    assert not any("no signal" in said for said in scan.warnings)


def test_either_file_stands_for_the_pair(tmp_path, surfaces):
    left = save_pair(tmp_path)
    right = tmp_path / SERIES.format("R")
    one, other = (load_scan(path, surfaces=surfaces, cleaning=FILTERED) for path in (left, right))
    np.testing.assert_array_equal(one.y, other.y)
    assert source_of(right) == source_of(left) and right in source_of(left).files


@pytest.mark.parametrize(("name", "other"), [("lh.bold.func.gii", "rh.bold.func.gii"), ("a.L.x.func.gii", "a.R.x.func.gii")])
def test_names_of_pairs(tmp_path, name, other):
    assert pair_of(tmp_path / name) == {"L": tmp_path / name, "R": tmp_path / other} == pair_of(tmp_path / other)


def test_a_name_without_a_side(tmp_path, surfaces):
    path = save_gifti(tmp_path / "sub-01_bold.func.gii", vertex_series(162))
    with pytest.raises(ValueError, match=r"expected hemi-L or hemi-R .* found sub-01_bold\.func\.gii"):
        load_scan(path, tr=TR, surfaces=surfaces)


@pytest.mark.parametrize(("gone", "said"), [("R", "right"), ("L", "left")])
def test_a_missing_hemisphere(tmp_path, surfaces, gone, said):
    save_pair(tmp_path)
    (tmp_path / SERIES.format(gone)).unlink()
    (source,) = find_scans(tmp_path)
    expected = rf"sub-01_task-rest.*the {said} hemisphere is missing: expected {SERIES.format(gone)} beside"
    with pytest.raises(ValueError, match=expected):
        source.load(PLAIN, surfaces=surfaces)


def test_hemispheres_of_different_length(tmp_path, surfaces):
    with pytest.raises(ValueError, match=rf"equal numbers of frames in both hemispheres, found {T} in the left and {T - 1} in the right"):
        load_scan(save_pair(tmp_path, frames=(T, T - 1)), surfaces=surfaces)


def test_frames_as_one_array(tmp_path, surfaces):
    path = save_pair(tmp_path)
    for at, side in enumerate("LR"):
        array = nib.gifti.GiftiDataArray(vertex_series(162, at), "NIFTI_INTENT_TIME_SERIES")
        nib.save(nib.GiftiImage(darrays=[array]), tmp_path / SERIES.format(side))
    np.testing.assert_allclose(load_scan(path, surfaces=surfaces, cleaning=PLAIN).mean[:162], vertex_series(162).mean(1), rtol=1e-5)


def test_repetition_time_has_to_be_known(tmp_path, surfaces):
    path = save_pair(tmp_path)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no repetition time: a surface recording does not state it.*--tr"):
        load_scan(path, surfaces=surfaces)
    assert load_scan(path, surfaces=surfaces, tr=1.5, cleaning=PLAIN).tr == 1.5


def test_damaged_files(tmp_path, surfaces):
    path = save_pair(tmp_path)
    right = tmp_path / SERIES.format("R")
    whole = right.read_bytes()
    right.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"hemi-R.*(truncated|corrupt)"):
        load_scan(path, surfaces=surfaces)
    shutil.copy(surfaces[1], right)
    with pytest.raises(ValueError, match=r"hemi-R.*expected one array"):
        load_scan(path, surfaces=surfaces)
    with pytest.raises(ValueError, match=r"mask= is for NIfTI"):
        load_scan(path, surfaces=surfaces, mask="mask.nii.gz")


def test_much_without_signal_is_said(tmp_path, surfaces):
    scan = load_scan(save_pair(tmp_path, wall=tuple(range(40))), surfaces=surfaces, cleaning=PLAIN)
    assert any("80 of 324 vertices have no signal" in said for said in scan.warnings)
    with pytest.raises(ValueError, match="none of 324 vertices has a varying, finite signal"):
        load_scan(save_pair(tmp_path, wall=tuple(range(162))), surfaces=surfaces)


def test_wrong_mesh(tmp_path):
    with pytest.raises(ValueError, match=r"expected 162 vertices for .*CORTEX_LEFT, found 42 in .*; pass surfaces=\(left, right\)"):
        load_scan(save_pair(tmp_path), surfaces=save_surfaces(tmp_path / "coarse", level=1))


def test_a_folder_lists_pairs(tmp_path):
    func = tmp_path / "sub-01" / "func"
    for space in ("fsnative", "fsaverage", "fsaverage5"):
        save_pair(func, SERIES.replace("fsaverage5", space))
        save_pair(func, SERIES.replace("fsaverage5", space).replace("rest", "nback"))
    save_table(fmriprep_table(), func / "sub-01_task-rest_desc-confounds_timeseries.tsv")
    with pytest.warns(UserWarning):
        found = find_scans(tmp_path)
    assert [(s.label, s.entities["space"], s.bold.name) for s in found] == [
        ("sub-01_task-nback", "fsaverage5", SERIES.format("L").replace("rest", "nback")),
        ("sub-01_task-rest", "fsaverage5", SERIES.format("L")),
    ]
    assert found[1].confounds.name == "sub-01_task-rest_desc-confounds_timeseries.tsv" and not any(s.problem for s in found)
    (other,) = find_scans(tmp_path, space="fsaverage", task="rest")
    assert other.entities["space"] == "fsaverage"


def test_volumes_come_first_and_keep_their_confounds(tmp_path):
    func = tmp_path / "sub-01" / "func"
    save_pair(func)
    table = save_table(fmriprep_table(), func / "sub-01_task-rest_desc-confounds_timeseries.tsv")
    bold = save_bold(func)
    (source,) = find_scans(tmp_path)
    assert source.bold == bold and source.confounds == table
    (surface,) = find_scans(tmp_path, space="fsaverage5")
    assert surface.bold == func / SERIES.format("L") and surface.confounds == table


def test_a_list_may_name_both_files(tmp_path):
    save_pair(tmp_path)
    (tmp_path / "scans.txt").write_text("\n".join(SERIES.format(side) for side in "LR"))
    with pytest.warns(UserWarning, match="listed 2 times; it is read once"):
        (source,) = find_scans(tmp_path / "scans.txt")
    assert source.bold.name == SERIES.format("L")


def test_memory(tmp_path):
    n, t = 2562, 400
    for side in "LR":
        save_gifti(tmp_path / SERIES.format(side), vertex_series(n, frames=t))
    assert 4 * 2 * n * t < peak_bytes(source_of(tmp_path / SERIES.format("L"))) < 10 * 4 * 2 * n * t


def test_surface_image(tmp_path, surfaces):
    path = save_pair(tmp_path)
    meshes, data = tmp_path / "meshes", {"left": tmp_path / SERIES.format("L"), "right": tmp_path / SERIES.format("R")}
    image = SurfaceImage(PolyMesh(left=str(surfaces[0]), right=str(surfaces[1])), {k: nib.load(v).agg_data() for k, v in data.items()})
    from_file = load_scan(path, surfaces=surfaces, cleaning=FILTERED)
    scan = load_scan(image, tr=TR, space="fsaverage5", entities={"sub": "01", "task": "rest"}, cleaning=FILTERED)
    np.testing.assert_array_equal(scan.y, from_file.y)
    np.testing.assert_array_equal(scan.space.xyz, from_file.space.xyz)
    assert scan.label == from_file.label and scan.space.name == "fsaverage5" and meshes.is_dir()
    with pytest.raises(ValueError, match="the right one is missing"):
        load_scan(SurfaceImage(PolyMesh(left=str(surfaces[0])), {"left": nib.load(data["left"]).agg_data()}), tr=TR)
    with pytest.raises(ValueError, match="expected a SurfaceImage of many frames"):
        load_scan(SurfaceImage(image.mesh, {k: v[:, 0] for k, v in image.data.parts.items()}), tr=TR)


def test_compressed_copies_are_named(tmp_path):
    path = save_pair(tmp_path)
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read \.gz; expected .*\.func\.gii"):
        load_scan(packed)
