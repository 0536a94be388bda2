"""Meshes of templates: those that a package brings along, those that TemplateFlow has, and what is said where neither does."""

import sys
import types

import nibabel as nib
import numpy as np
import pytest

from pnet_jax.ingest import load_scan
from pnet_jax.ingest.surfaces import CORTICES, mesh_of, needed, read_surfaces

from .helpers import PLAIN, T
from .meshes import save_pair, surface

LEFT, RIGHT = CORTICES.values()


def mesh(shift=0.0, n=32492):
    xyz = np.random.default_rng(0).normal(size=(n, 3)) + shift
    return surface(xyz, np.array([[0, 1, 2], [n - 1, 0, 1]]))


@pytest.fixture
def flow(monkeypatch, tmp_path):
    """A TemplateFlow that holds what is put into `files` and notes what it was asked for."""
    api = types.ModuleType("templateflow.api")
    api.files, api.asked = {}, []

    def get(template, **entities):
        api.asked.append({"template": template} | entities)
        return api.files.get((template, entities["density"], entities["hemi"], entities["suffix"]), [])

    api.get = get
    monkeypatch.setitem(sys.modules, "templateflow", types.ModuleType("templateflow"))
    monkeypatch.setitem(sys.modules, "templateflow.api", api)
    return api


def put(flow, folder, key, image):
    file = folder / ("_".join(key) + ".surf.gii")
    nib.save(image, file)
    flow.files[key] = file


def test_fsaverage5_needs_no_files(tmp_path):
    scan = load_scan(save_pair(tmp_path, n=10242), cleaning=PLAIN)
    assert scan.y.shape == (2 * 10239, T) and len(scan.space.mesh.xyz) == 20484 and len(scan.space.mesh.faces) == 2 * 20480
    left = scan.space.hemisphere == 0
    # Cortex of MNI152: between the poles, and on its own side but for a few vertices of the medial wall.
    low, high = scan.space.xyz.min(0), scan.space.xyz.max(0)
    assert (low > [-75, -112, -55]).all() and (high < [75, 75, 85]).all() and (high - low > [125, 165, 115]).all()
    assert (scan.space.xyz[left, 0] < 5).all() and (scan.space.xyz[~left, 0] > -5).all()
    assert scan.space.resolution == pytest.approx(3, abs=0.3)


def test_fslr_of_templateflow(flow, tmp_path):
    for hemi, shift in (("L", 0.0), ("R", 5.0)):
        put(flow, tmp_path, ("fsLR", "32k", hemi, "midthickness"), mesh(shift))
    left, right = (mesh_of(name, {}, 32492, "fsLR", "x") for name in (LEFT, RIGHT))
    np.testing.assert_allclose(right.xyz - left.xyz, 5, atol=1e-5)
    assert flow.asked[0] == {
        **{"template": "fsLR", "density": "32k", "hemi": "L", "suffix": "midthickness"},
        **{"desc": None, "space": None, "extension": ".surf.gii"},
    }


def test_fsaverage6_is_between_white_and_pial_in_mni152(flow, tmp_path):
    for kind, shift in (("white", 0.0), ("pial", 2.0)):
        put(flow, tmp_path, ("fsaverage", "41k", "L", kind), mesh(shift, 40962))
    found = mesh_of(LEFT, {}, 40962, "fsaverage6", "x")
    # (1, 1, 1) mm of MNI305 on average, in MNI152.
    np.testing.assert_allclose(found.xyz.mean(0), [0.965, 2.563, 2.159], atol=0.05)


def test_given_files_win(flow):
    given = {LEFT: read_surfaces([mesh(1.0)], "x")[LEFT]}
    assert mesh_of(LEFT, given, 32492, "fsLR", "x") is given[LEFT] and not flow.asked
    with pytest.raises(ValueError, match=r"x: the file has vertices of CIFTI_STRUCTURE_CORTEX_RIGHT without"):
        mesh_of(RIGHT, given, 32492, "fsLR", "x")


def test_without_templateflow_the_files_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "templateflow.api", None)
    expected = (
        r"scan: .*CORTEX_LEFT.*--surfaces LEFT RIGHT.*fsLR 32k midthickness \(tpl-fsLR_den-32k_hemi-L_midthickness\.surf\.gii.*surfaces\]"
    )
    with pytest.raises(ValueError, match=expected):
        mesh_of(LEFT, {}, 32492, "fsLR", "scan")
    with pytest.raises(ValueError, match=r"fsaverage 41k white.*tpl-fsaverage_den-41k_hemi-L_white\.surf\.gii"):
        mesh_of(LEFT, {}, 40962, "fsaverage6", "scan")
    assert "templateflow" not in needed("MyTemplate", 32000) and "32000 vertices" in needed("MyTemplate", 32000)


def test_templateflow_without_a_connection(flow, monkeypatch):
    def get(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(flow, "get", get)
    with pytest.raises(
        ValueError, match=r"scan: TemplateFlow could not provide tpl-fsLR_den-32k_hemi-L_midthickness.*ConnectionError.*give the two"
    ):
        mesh_of(LEFT, {}, 32492, "fsLR", "scan")


def test_an_empty_file_of_templateflow(flow, tmp_path):
    file = tmp_path / "empty.surf.gii"
    file.touch()
    flow.files["fsLR", "32k", "L", "midthickness"] = file
    with pytest.raises(ValueError, match=r"in its cache, expected one with content"):
        mesh_of(LEFT, {}, 32492, "fsLR", "scan")


def test_triangles_of_vertices_that_are_not_there():
    with pytest.raises(ValueError, match=r"surface 1 has triangles of vertices up to 9, expected 0 to 4"):
        read_surfaces([surface(np.zeros((5, 3)), np.array([[0, 1, 9]]))], "x")
