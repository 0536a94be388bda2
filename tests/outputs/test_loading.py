from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pnet_jax.network import QC, Network, Selection
from pnet_jax.outputs import find_networks, load_network, save, save_edges
from pnet_jax.outputs.images import dense_probabilities
from pnet_jax.outputs.loading import qc_of
from pnet_jax.outputs.tables import plain, read_matrix, write_matrix
from pnet_jax.space import grid_space

from .helpers import (
    AFFINE,
    DROPPED,
    IDS,
    K,
    T,
    cifti_network,
    example_qc,
    flip_x,
    make_network,
    native_network,
    phantom_mask,
    points_network,
)


def flipped_network() -> Network:
    return make_network(
        grid_space(*flip_x(phantom_mask(), AFFINE), name="MNI152NLin6Asym"), edges={"partial": np.eye(K), "pearson": np.ones((K, K))}
    )


MAKERS = {
    "grid": make_network,
    "flipped": flipped_network,
    "native": native_network,
    "cifti": cifti_network,
    "points": points_network,
}


def check_same(found: Network, network: Network) -> None:
    """Everything that files hold."""
    for name in ("labels", "atlas_labels", "ids", "frames"):
        np.testing.assert_array_equal(getattr(found, name), getattr(network, name), err_msg=name)
        assert getattr(found, name).dtype.kind == "i"
    for name in ("names", "hemispheres", "tr", "subject", "entities"):
        assert getattr(found, name) == getattr(network, name), name
    assert_same_qc(found.qc, network.qc)
    assert found.provenance == plain(network.provenance)
    for name in ("signals", "coverage"):
        np.testing.assert_allclose(getattr(found, name), getattr(network, name), rtol=1e-6, err_msg=name)
    assert list(found.edges) == list(network.edges)
    for measure, matrix in network.edges.items():
        np.testing.assert_allclose(found.edges[measure], matrix, rtol=1e-6, atol=1e-12, err_msg=measure)
    assert list(found.halves) == list(network.halves)
    for measure, both in network.halves.items():
        np.testing.assert_allclose(found.halves[measure], both, rtol=1e-6, atol=1e-12, err_msg=measure)
    check_same_space(found.space, network.space)


def assert_same_qc(found: QC, qc: QC) -> None:
    """Equal, NaN being equal to NaN."""
    assert isinstance(found, QC)
    assert isinstance(found.selection, Selection)
    assert plain(dataclasses.asdict(found)) == plain(dataclasses.asdict(qc))


def check_same_space(found, space) -> None:
    for name in ("kind", "name", "structures"):
        assert getattr(found, name) == getattr(space, name), name
    np.testing.assert_allclose(found.xyz, space.xyz, atol=2e-3)
    np.testing.assert_array_equal(found.structure, space.structure)
    np.testing.assert_array_equal(found.hemisphere, space.hemisphere)
    assert found.resolution == pytest.approx(space.resolution, rel=1e-4)
    assert space.names is None or found.names == space.names
    if space.grid is not None:
        np.testing.assert_array_equal(found.grid.ijk, space.grid.ijk)
        np.testing.assert_allclose(found.grid.affine, space.grid.affine, atol=1e-4)
        assert found.grid.shape == space.grid.shape and found.grid.brain_models == space.grid.brain_models


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_what_is_saved_is_read_back(make, tmp_path):
    network = make()
    table = save(network, tmp_path)[-1]
    found = load_network(table)
    check_same(found, network)
    np.testing.assert_allclose(dense_probabilities(found), dense_probabilities(network), atol=1e-4)
    np.testing.assert_allclose(found.probabilities.sum(1), network.labels >= 0, atol=1e-4)
    assert (np.diff(found.probabilities, axis=1) <= 0).all(), "by falling probability"
    inside = found.labels >= 0
    assert (found.candidates == found.labels[:, None]).any(1)[inside].all()
    if network.displacement is None:
        assert found.displacement is None
    else:
        np.testing.assert_allclose(found.displacement, network.displacement, rtol=1e-6)
    # Once more round, and nothing is lost any more.
    again = save(found, tmp_path / "again")
    assert [file.name for file in again] == [file.name for file in save(network, tmp_path)]
    check_same(load_network(str(again[-1]).removesuffix("_dseg.tsv")), found)


def test_without_a_soft_parcellation_the_hard_one_is_certain(tmp_path):
    for make in (make_network, cifti_network, points_network):
        network = make()
        found = load_network(save(network, tmp_path / make.__name__, probabilities=False)[-1])
        np.testing.assert_array_equal(found.candidates[:, 0], network.labels)
        np.testing.assert_array_equal(found.probabilities[:, 0], network.labels >= 0)
        check_same(found, network)


def test_neighbours_of_a_grid_are_made_again(tmp_path):
    network = make_network()
    np.testing.assert_array_equal(load_network(save(network, tmp_path)[-1]).space.neighbours, network.space.neighbours)


def test_prior_and_mask_are_images_of_their_own(tmp_path):
    network = make_network()
    save(network, tmp_path)
    prior, mask = (nib.load(next(tmp_path.rglob(name))) for name in ("*_desc-atlas_labels.nii.gz", "*_desc-locations_mask.nii.gz"))
    at = tuple(network.space.grid.ijk.T)
    np.testing.assert_array_equal(np.asarray(prior.dataobj)[at], np.where(network.atlas_labels >= 0, IDS[network.atlas_labels], 0))
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, phantom_mask())
    assert mask.get_data_dtype() == np.uint8 and not list(tmp_path.rglob("*boldref*")), "MNI space has a template to draw on"


def test_motion_table(tmp_path):
    network = make_network()
    network.displacement[0] = np.nan
    save(network, tmp_path)
    file = next(tmp_path.rglob("*_desc-motion_timeseries.tsv"))
    table = pd.read_csv(file, sep="\t", na_values="n/a")
    assert table.columns.tolist() == ["framewise_displacement", "kept"] and len(table) == T + len(DROPPED)
    assert np.flatnonzero(~table["kept"]).tolist() == list(DROPPED) and np.isnan(table["framewise_displacement"][0])
    assert json.loads(file.with_suffix(".json").read_text())["framewise_displacement"]["Units"] == "mm"
    assert np.isnan(load_network(next(tmp_path.rglob("*_scale-12_res-8_dseg.tsv"))).displacement[0])


def test_mean_is_kept_where_no_template_fits(tmp_path):
    network = native_network()
    network.mean[:2] = np.nan, 0
    found = load_network(save(network, tmp_path)[-1])
    np.testing.assert_allclose(found.mean[2:], network.mean[2:], atol=900 / 4095)
    assert found.mean[:2].tolist() == [0, 0]
    image = nib.load(next(tmp_path.rglob("*_desc-mean_boldref.nii.gz")))
    assert image.get_data_dtype() == np.int16 and image.dataobj.slope > 0


def test_an_older_result_leaves_nothing_behind(tmp_path):
    network = make_network()
    files = set(save(network, tmp_path))
    bare = dataclasses.replace(network, displacement=None, edges={"pearson": network.edges["pearson"]})
    kept = set(save(bare, tmp_path, probabilities=False))
    there = {file for file in tmp_path.rglob("sub-*") if file.is_file()}
    assert there == kept and kept < files and list(load_network(next(tmp_path.rglob("*8_dseg.tsv"))).edges) == ["pearson"]


def test_layers_and_their_uncertainty_come_back(tmp_path):
    network = make_network(grid_space(*flip_x(phantom_mask(), AFFINE), name="MNI152NLin6Asym"))
    raw = network.edges["pearson"]
    layered = {"pearson": raw, "shrunk": 0.5 * raw, "guided": 0.6 * raw}
    spread = {name: np.abs(matrix) / 10 for name, matrix in layered.items()}
    files = save(dataclasses.replace(network, edges=layered, uncertainty=spread), tmp_path)
    names = {file.name.partition("_stat-")[2] for file in files}
    assert {f"pearsoncorrelation_desc-{of}_relmat.tsv" for of in ("shrunk", "guided", "sd", "shrunksd", "guidedsd")} < names
    found = load_network(files[-1])
    assert list(found.edges) == list(layered)
    assert set(found.uncertainty) == set(spread)
    for name in layered:
        np.testing.assert_allclose(found.edges[name], layered[name], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.uncertainty[name], spread[name], rtol=1e-6, atol=1e-12)
    said = [json.loads(next(tmp_path.rglob(f"*_desc-{of}_relmat.json")).read_text()) for of in ("shrunk", "guidedsd")]
    assert said[0]["MeantFor"] == "description, identification"
    assert said[1]["UncertaintyOf"] == "guided"
    assert "Measure" not in said[1]
    assert (said[1]["Layer"], said[1]["Units"]) == ("guided", "Fisher z")
    assert said[1]["Description"].startswith("Standard deviation of each edge's Fisher z, the guided Pearson correlations. ")
    plain = json.loads(next(tmp_path.rglob("*correlation_desc-sd_relmat.json")).read_text())
    assert (plain["Layer"], plain["UncertaintyOf"]) == ("raw", "pearson")


def test_edges_that_came_later_are_read(tmp_path):
    network = make_network()
    table = save(network, tmp_path)[-1]
    save_edges(dataclasses.replace(network, edges={"tangent": network.edges["pearson"]}), tmp_path)
    assert list(load_network(table).edges) == ["pearson", "partial", "tangent"]


def test_edges_of_the_halves_say_what_they_are(tmp_path):
    network = make_network()
    both = np.stack([network.halves["pearson"][::-1], 0.5 * network.halves["pearson"]])
    network = dataclasses.replace(network, halves={"pearson": both[0], "whitened": both[1]})
    table = save(network, tmp_path)[-1]
    found = load_network(table)
    assert list(found.halves) == ["pearson", "whitened"] and list(found.edges) == ["pearson", "partial"]
    np.testing.assert_allclose(np.stack(list(found.halves.values())), both, rtol=1e-6, atol=1e-12)
    about = json.loads(next(tmp_path.rglob("*correlation_desc-half2_relmat.json")).read_text())
    assert (about["HalfOf"], about["Half"], about["Units"]) == ("pearson", 2, "correlation (r)")
    assert about["Description"].startswith("Edges of half 2 of the scan, cleaned separately") and "Measure" not in about
    files = set(tmp_path.rglob("*_desc-half*_relmat.*"))
    assert len(files) == 8
    save(dataclasses.replace(network, halves={}), tmp_path)
    assert not any(file.exists() for file in files) and load_network(table).halves == {}


def test_a_missing_half_is_named(tmp_path):
    table = save(make_network(), tmp_path)[-1]
    next(table.parent.glob("*_desc-half2_relmat.tsv")).unlink()
    with pytest.raises(FileNotFoundError, match="desc-half2_relmat.tsv: file not found"):
        load_network(table)
    next(table.parent.glob("*_desc-half2_relmat.json")).unlink()
    with pytest.raises(ValueError, match=r"`halves\['pearson'\]` should have shape \(2, 12, 12\), got \(1, 12, 12\)"):
        load_network(table)


def test_the_first_complete_result_of_each_participant_is_found(tmp_path):
    network, dense = make_network(), make_network(provenance={"atlas": {"digest": "11ff", "source": "Dense12_dseg.nii.gz"}})
    for subject in ("02", "01"):
        for run in ("2", "1"):
            save(dataclasses.replace(network, subject=subject, entities=network.entities | {"run": run}), tmp_path)
    save(dataclasses.replace(dense, subject="03"), tmp_path)
    found = find_networks(tmp_path, "Schaefer12")
    assert list(found) == ["01", "02"] and all(len(own) == 1 and "_run-1_" in own[0].name for own in found.values())
    assert {load_network(own[0]).subject for own in found.values()} == {"01", "02"}
    assert list(find_networks(str(tmp_path), "Dense12")) == ["03"]
    with pytest.raises(
        ValueError, match="expected networks of atlas Other12 .* found only networks of Dense12, Schaefer12; give the atlas"
    ):
        find_networks(tmp_path, "Other12")
    with pytest.raises(ValueError, match="expected networks of atlas Dense12 written by `pnet construct`, found none"):
        find_networks(tmp_path / "sub-01", "Dense12")
    found["01"][0].unlink()  # what `save` writes last
    assert "_run-2_" in find_networks(tmp_path, "Schaefer12")["01"][0].name


def test_a_second_session_with_the_same_task_is_found_and_no_third(tmp_path):
    network = make_network()
    for session, task in (("1", "rest"), ("2", "movie"), ("2", "rest"), ("3", "rest")):
        save(dataclasses.replace(network, entities=network.entities | {"ses": session, "task": task}), tmp_path)
    (own,) = find_networks(tmp_path, "Schaefer12").values()
    assert [("_ses-1_" in file.name, "_ses-2_" in file.name, "_task-rest_" in file.name) for file in own] == [
        (True, False, True),
        (False, True, True),
    ]


GRID_FILES = ["dseg.tsv", "dseg.json", "dseg.nii.gz", "desc-atlas_labels.nii.gz", "desc-locations_mask.nii.gz", "stat-mean_timeseries.tsv"]
GRID_FILES += ["stat-mean_timeseries.json", "desc-pnet_qc.json", "stat-pearsoncorrelation_relmat.tsv"]


def test_a_missing_file_is_named(tmp_path):
    table = save(make_network(), tmp_path)[-1]
    for ending in GRID_FILES:
        file = Path(str(table).removesuffix("dseg.tsv") + ending)
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"{ending}: (no such file|file not found)"):
            load_network(table)
        file.write_bytes(content)
    load_network(table)
    for make, ending in ((cifti_network, "desc-locations_dseg.dscalar.nii"), (points_network, "desc-locations_dseg.tsv")):
        table = save(make(), tmp_path / make.__name__)[-1]
        next(table.parent.glob(f"*_{ending}")).unlink()
        with pytest.raises(FileNotFoundError, match=f"{ending}: (no such file|file not found)"):
            load_network(table)
    with pytest.raises(ValueError, match="found a folder"):
        load_network(tmp_path)


def test_quality_control_comes_back_from_json():
    qc = dataclasses.replace(example_qc(), dynamics={"participants": 4, "fit": {"ok": True, "held_out": -1.5}})
    assert qc_of(json.loads(json.dumps(plain(dataclasses.asdict(qc))))) == qc
    found = qc_of(plain(dataclasses.asdict(QC(tsnr=float("nan")))))
    assert found.tsnr is None, "null is unknown where a number may be missing"
    assert np.isnan(found.selection.gain).all(), "and NaN elsewhere"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mood": 1}, "quality control has unknown fields: mood"),
        ({"moved": "much"}, "moved holds 'much', expected float"),
        ({"n_frames": 1.5}, "n_frames holds 1.5, expected int"),
        ({"sizes": 3}, r"sizes holds 3, expected tuple\[int, \.\.\.\]"),
        ({"selection": {"decision": "atlas"}}, "selection lacks agreement, at_edge, .*trials"),
        ({"calibration": []}, "calibration lacks confident_moves"),
    ],
)
def test_quality_control_of_another_form_is_refused(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        qc_of(plain(dataclasses.asdict(QC())) | change)
    table = save(make_network(), tmp_path)[-1]
    file = Path(str(table).replace("_dseg.tsv", "_desc-pnet_qc.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"_desc-pnet_qc\.json: {said}.*construct the scan again"):
        load_network(table)


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        ("dseg.json", "{}", "lacks Scan.*construct the scan again"),
        ("desc-pnet_qc.json", "[", "not readable as JSON"),
        ("stat-mean_timeseries.tsv", "area 0\tarea 1\n1\tx\n", "not a table of numbers"),
        ("stat-mean_timeseries.tsv", "area 0\n1\n", r"`signals` should have shape \(12, 40\)"),
        ("dseg.tsv", "index\tname\n", "lacks the columns"),
        ("dseg.tsv", "index\tname\themisphere\tcoverage\n1\ta\tL\t1\n", r"contains \d+, which is not an id in the table"),
        ("dseg.tsv", "index\tname\themisphere\tcoverage\nx\ta\tL\t1\n", r"sub-01.*damaged.*'x'"),
        ("dseg.nii.gz", "no image", "truncated, corrupt or not an image"),
    ],
)
def test_damage_is_named(ending, content, said, tmp_path):
    table = save(make_network(), tmp_path)[-1]
    Path(str(table).removesuffix("dseg.tsv") + ending).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        load_network(table)
    assert "sub-01" in str(caught.value)


def test_an_image_of_another_shape_is_refused(tmp_path):
    table = save(make_network(), tmp_path)[-1]
    prior = next(tmp_path.rglob("*_desc-atlas_labels.nii.gz"))
    nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_filename(prior)
    with pytest.raises(ValueError, match=r"desc-atlas_labels\.nii\.gz: expected the shape of the parcellation.*\(2, 2, 2\)"):
        load_network(table)
    save(make_network(), tmp_path)
    nib.Nifti1Image(np.zeros((2, 2, 2, 12), np.int16), np.eye(4)).to_filename(next(tmp_path.rglob("*_probseg.nii.gz")))
    with pytest.raises(ValueError, match=r"probseg\.nii\.gz: expected the shape"):
        load_network(table)


def test_matrices_round_trip(tmp_path):
    values = np.array([[1.5, np.nan], [-3e-9, 2]], np.float32)
    names = ["n/a # 1", '"odd"']
    for index in (None, names):
        file = write_matrix(tmp_path / "a.tsv", names, values, index)
        np.testing.assert_array_equal(read_matrix(file, index=index is not None), values)
