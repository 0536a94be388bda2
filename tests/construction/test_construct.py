"""From a scan to a network: what comes out, what it may depend on, what is refused before any work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import construct
from pnet_jax.errors import SettingsError
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.report.words import explain
from pnet_jax.scan import Scan, make_scan
from pnet_jax.space import RIGHT, grid_space, point_space

K = 12
MEASURES = ("pearson", "partial", "covariance", "precision", "lagged", "cka")


@pytest.fixture(scope="module")
def scan(toy) -> Scan:
    return toy.scan(0)


@pytest.fixture(scope="module")
def network(scan, toy_model) -> Network:
    return construct(scan, model=toy_model, edges=MEASURES)


def on_volume(toy, volume, affine, **fields) -> Scan:
    """A scan of the brain in an image, in any orientation."""
    space = grid_space(volume[..., 0] > 0, affine, name="MNI152NLin6Asym")
    return make_scan(volume[tuple(space.grid.ijk.T)], space, tr=2.0, subject="01", entities={"task": "rest"}, **fields)


def assert_same(a: Network, b: Network):
    for name in ("labels", "candidates", "probabilities", "signals", "atlas_labels", "coverage", "ids"):
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name, matrix in a.edges.items():
        assert_array_equal(matrix, b.edges[name], err_msg=name)
    assert a.qc.selection == b.qc.selection


# What comes out


def test_shapes_and_types_are_those_of_the_network(network, scan):
    locations, frames = scan.y.shape
    width = network.candidates.shape[1]
    expected = {
        "labels": ((locations,), np.int32),
        "atlas_labels": ((locations,), np.int32),
        "candidates": ((locations, width), np.int32),
        "probabilities": ((locations, width), np.float32),
        "signals": ((K, frames), np.float32),
        "ids": ((K,), np.int32),
        "coverage": ((K,), np.float32),
    }
    assert {name: (getattr(network, name).shape, getattr(network, name).dtype) for name in expected} == expected
    assert {name: (m.shape, m.dtype) for name, m in network.edges.items()} == dict.fromkeys(MEASURES, ((K, K), np.float32))
    assert network.n_parcels == len(network.names) == len(network.hemispheres) == K
    assert (network.subject, network.tr, network.entities) == ("01", 2.0, {"task": "rest"})
    assert_array_equal(network.frames, np.arange(frames))


def test_the_subjects_own_parcels_are_found(network, toy):
    assert network.qc.selection.decision == "personalised"
    assert (toy.expected == toy.truth).mean() < 0.75
    assert (network.labels == toy.truth).mean() > 0.9
    assert network.qc.moved == pytest.approx((network.labels != network.atlas_labels).mean())
    assert_array_equal(network.atlas_labels, toy.expected)


def test_probabilities_sum_to_1_inside(network):
    assert_allclose(network.probabilities.sum(1), 1, atol=1e-5)
    assert (network.probabilities >= 0).all()
    assert_array_equal(network.probabilities[network.candidates < 0], 0)


def test_labels_are_candidates_of_the_same_hemisphere(network, scan):
    assert (network.labels[:, None] == network.candidates).any(1).all()
    assert_array_equal(network.labels >= 6, scan.space.hemisphere == RIGHT)
    assert network.hemispheres == ("L",) * 6 + ("R",) * 6


def test_signals_are_means_over_the_hard_labels_and_edges_follow_from_them(network, scan):
    expected = np.stack([scan.y[network.labels == k].mean(0) for k in range(K)])
    assert_allclose(network.signals, expected, atol=1e-5)
    assert_allclose(network.edges["pearson"], np.corrcoef(np.float64(expected)), atol=1e-5)
    known = {"tr": scan.tr, "frames": scan.frames, "y": scan.y, "labels": network.labels}
    for name in MEASURES:
        assert_allclose(network.edges[name], measures.compute(name, network.signals, **known), rtol=1e-3, atol=1e-4)


def test_quality_and_provenance_say_what_was_done(network, toy, toy_model):
    qc, provenance = network.qc, network.provenance
    assert qc.sizes == tuple(np.bincount(network.labels, minlength=K).tolist())
    assert qc.absent == ()
    assert (qc.n_frames, qc.recorded_frames) == (160, 160)
    assert qc.minutes == pytest.approx(160 * 2 / 60)
    assert (qc.n_locations, qc.n_outside) == (len(toy.space), 0)
    assert qc.tsnr == pytest.approx(1000 / 15.9, rel=0.1)
    assert qc.n_eff == pytest.approx(2 * 0.25 * 320)
    assert provenance["checkpoint"] == {"name": "toy", "digest": toy_model.digest}
    assert provenance["atlas"]["digest"] == toy.atlas.digest
    low, middle, high = qc.selection.gain
    assert 0 < low < middle < high
    assert len(qc.selection.trials) == 8 and max(trial.score for trial in qc.selection.trials) == qc.selection.score
    assert set(qc.seconds) == {"step", "assemble"}


def test_pieces_of_parcels_are_counted(network):
    assert all(count > 1 for count in network.qc.components.values())
    assert sum(network.qc.components.values()) < len(network.labels) / 10


# What it may depend on


def test_the_same_scan_gives_the_same_bits_also_after_another_one(network, scan, toy, toy_model):
    other = construct(toy.scan(1, frames=150, subject="02"), model=toy_model, edges=MEASURES)
    assert (other.labels != network.labels).any()
    assert_same(construct(scan, model=toy_model, edges=MEASURES), network)


def test_an_image_stored_from_right_to_left_gives_the_same_network(network, toy, toy_model):
    volume = toy.volume(0)
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = volume.shape[0] - 1
    ras, las = on_volume(toy, volume, toy.affine), on_volume(toy, volume[::-1], toy.affine @ turn)
    found = construct(las, model=toy_model, edges=MEASURES)
    assert_same(construct(ras, model=toy_model, edges=MEASURES), network)
    assert_same(found, network)
    assert (found.space.grid.ijk[:, 0] != network.space.grid.ijk[:, 0]).any()


def test_signals_outside_the_prior_do_not_matter(network, toy, toy_model):
    """Voxels further than 4 mm from every parcel: -1, probability 0, and no say in the rest."""
    rng = np.random.default_rng(5)
    margin = np.zeros_like(toy.mask)
    margin[:, :3] = True
    volume = toy.volume(0)
    everything = toy.mask | margin
    outside = everything & ~toy.mask

    def with_noise(scale):
        filled = volume.copy()
        filled[outside] = 500 + scale * rng.normal(size=(outside.sum(), volume.shape[3]))
        return construct(on_volume(toy, filled, toy.affine), model=toy_model, edges=MEASURES)

    found = with_noise(3)
    inside = toy.mask[tuple(found.space.grid.ijk.T)]
    assert not inside.all()
    assert_array_equal(found.labels[~inside], -1)
    assert_array_equal(found.atlas_labels[~inside], -1)
    assert_array_equal(found.candidates[~inside], -1)
    assert_array_equal(found.probabilities[~inside], 0)
    assert found.qc.n_outside == (~inside).sum()
    assert_array_equal(found.labels[inside], network.labels)
    assert_same(with_noise(40), found)


def test_locations_without_signal_are_outside(toy, toy_model):
    y = toy.signals(0)
    y[::50] = 7
    found = construct(make_scan(y, toy.space, tr=2.0), model=toy_model, edges=MEASURES)
    assert_array_equal(found.labels < 0, np.arange(len(y)) % 50 == 0)
    assert np.isfinite(found.signals).all()


# Fixed K


@pytest.fixture(scope="module")
def cut(toy, toy_model) -> Network:
    """A scan whose field of view lacks parcel 4, to its borders and one voxel beyond."""
    parcel = toy.space.xyz[toy.expected == 4]
    distance = np.linalg.norm(toy.space.xyz[:, None] - parcel[None], axis=-1).min(1)
    keep = np.flatnonzero((distance > 12) | (toy.space.hemisphere == RIGHT))
    mask = np.zeros_like(toy.mask)
    mask[tuple(toy.space.grid.ijk[keep].T)] = True
    volume = toy.volume(0) * mask[..., None]
    return construct(on_volume(toy, volume, toy.affine), model=toy_model, edges=MEASURES)


def test_an_absent_parcel_is_nan_and_named_and_k_stays(cut):
    assert cut.n_parcels == K
    assert not (cut.labels == 4).any()
    assert cut.qc.absent == ("area-4",)
    assert "area-4" in cut.qc.low_coverage
    assert cut.coverage[4] == 0
    assert any("1 of 12 parcels contain no location" in warning for warning in cut.qc.warnings)
    assert np.isnan(cut.signals[4]).all()
    others = np.delete(np.arange(K), 4)
    for name in MEASURES:
        assert np.isnan(cut.edges[name][4]).all()
        assert np.isnan(cut.edges[name][:, 4]).all()
        assert np.isfinite(cut.edges[name][np.ix_(others, others)]).all()


# The decision


@pytest.fixture(scope="module")
def short(toy) -> Scan:
    return toy.scan(0, frames=40)


@pytest.fixture(scope="module")
def unsure(short, toy, toy_model) -> Network:
    """Of a short scan, by arguments that differ from the configuration."""
    ids = dataclasses.replace(toy.atlas, ids=toy.atlas.ids + 100, source="given")
    return construct(short, model=toy_model, atlas=ids, edges=("partial",), config=ConstructConfig(edges=("covariance",)))


def test_a_scan_too_short_to_tell_keeps_the_atlas_and_says_so(unsure, toy):
    assert unsure.qc.selection.decision == "atlas" and unsure.qc.calibration is None
    assert_array_equal(unsure.labels, toy.expected)
    assert_allclose(unsure.probabilities.sum(1), 1, atol=1e-5)
    assert any("the parcels of the atlas are returned" in warning for warning in unsure.qc.warnings)
    assert unsure.qc.moved == 0 and unsure.qc.components == {}


def test_personalised_parcels_can_be_forced(short, toy, toy_model):
    found = construct(short, model=toy_model, config=ConstructConfig(labels="personalised"))
    assert found.qc.selection.decision == "personalised"
    assert found.qc.selection.reason.startswith("forced by the configuration, although")
    assert (found.labels != toy.expected).any()


def test_the_parcels_of_the_atlas_can_be_requested(scan, network, toy, toy_model):
    found = construct(scan, model=toy_model, config=ConstructConfig(labels="atlas"))
    selection = found.qc.selection
    assert network.qc.selection.decision == "personalised" and not network.qc.selection.requested
    assert (selection.decision, selection.requested) == ("atlas", True)
    assert_array_equal(found.labels, np.where(scan.valid, toy.expected, -1))
    assert selection.reason.startswith("the atlas was requested: across halves the personalised parcels gain +")
    assert not any("are returned" in warning for warning in found.qc.warnings)
    said = explain(found)
    assert "The parcels shown are those of the atlas, as requested: across halves" in said and "should move" not in said


def test_an_unknown_choice_of_labels_names_the_nearest():
    with pytest.raises(SettingsError, match=r"labels: expected one of 'auto', 'personalised', 'atlas', got 'atlass'; did you mean 'atlas'"):
        ConstructConfig(labels="atlass")


def test_given_kappa_and_beta_are_used(scan, toy_model):
    found = construct(scan, model=toy_model, config=ConstructConfig(kappa=6.0, beta=0.3))
    assert (found.qc.selection.kappa, found.qc.selection.beta) == (6.0, pytest.approx(0.3))


def test_partial_correlation_of_a_short_scan_is_warned_of(network, unsure):
    assert not any("ill-posed" in warning for warning in network.qc.warnings)
    said = "ill-posed: about 40 effective frames for 12 parcels, but more than 60"
    assert any(said in warning for warning in unsure.qc.warnings)


# Atlas and scan


def test_a_prior_of_another_resolution_is_said(scan, network, toy, toy_model):
    said = "the atlas was resampled from 4 mm to the scan's 8 mm by nearest neighbour"
    assert not any("nearest neighbour" in warning for warning in network.qc.warnings)
    given = ConstructConfig(kappa=6.0, beta=0.3)
    found = construct(scan, model=toy_model, atlas=dataclasses.replace(toy.atlas, resolution=4.0), config=given)
    assert any(said in warning for warning in found.qc.warnings)
    geometric = dataclasses.replace(toy.atlas, resolution=4.0, source="geometric, k-means on mm")
    found = construct(scan, model=toy_model, atlas=geometric, config=given)
    assert not any("nearest neighbour" in warning for warning in found.qc.warnings)


def test_a_hemisphere_without_any_parcel_is_said(scan, network, toy, toy_model):
    assert not any("hemisphere" in warning for warning in network.qc.warnings)
    left = toy.space.hemisphere != RIGHT
    half = make_atlas(toy.space.xyz[left], toy.expected[left] + 1, resolution=8, source="left half")
    found = construct(scan, model=toy_model, atlas=half, config=ConstructConfig(kappa=6.0, beta=0.3))
    said = f"the atlas has no parcel in the right hemisphere, which contains {int((~left).sum())} of the scan's {len(left)} locations"
    assert any(said in warning for warning in found.qc.warnings)


# ROIs


def test_a_scan_of_rois_goes_through_and_keeps_the_atlas(toy, toy_model):
    rng = np.random.default_rng(0)
    here = np.sort(rng.permutation(len(toy.space))[:60])
    space = point_space(toy.space.xyz[here], names=[f"roi-{v}" for v in here], name="MNI152NLin6Asym")
    scan = make_scan(toy.signals(0)[here], space, tr=2.0)
    found = construct(scan, model=toy_model, edges=("pearson", "partial"))
    assert found.qc.selection.decision == "atlas"
    assert "could not be measured" in found.qc.selection.reason
    assert_array_equal(found.labels, toy.expected[here])
    assert found.space.names == space.names
    assert found.edges["pearson"].shape == (K, K)
    present = np.bincount(found.labels, minlength=K) > 0
    assert_array_equal(np.isfinite(found.edges["pearson"]).any(1), present)


# What is refused


def test_an_unknown_measure_is_refused_before_any_work(toy_model, monkeypatch):
    monkeypatch.setattr("pnet_jax.construction.wave.place", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=r"unknown edge measure 'pearsn'.*did you mean 'pearson'"):
        construct(None, model=toy_model, edges=("pearson", "pearsn"))


def test_a_k_that_the_checkpoint_lacks_is_refused(toy_model):
    with pytest.raises(ValueError, match=r"checkpoint 'toy' has atlases with \[12\] parcels, but 100 were requested; choose one of these"):
        construct(None, model=toy_model, parcels=100)


@pytest.mark.parametrize(("asked", "how"), [(100, "more than it has"), (4, "fewer than it has")])
def test_a_k_that_the_given_prior_lacks_is_refused(toy, toy_model, asked, how):
    with pytest.raises(ValueError, match=rf"atlas toy has 12 parcels but {asked} were requested, {how}; omit --parcels"):
        construct(None, model=toy_model, atlas=toy.atlas, parcels=asked)


def test_arguments_win_over_the_configuration(unsure, toy):
    assert list(unsure.edges) == ["partial"]
    assert_array_equal(unsure.ids, toy.atlas.ids + 100)
    assert unsure.provenance["atlas"]["source"] == "given"


def test_measures_of_a_cohort_are_refused_for_one_scan(toy_model):
    with pytest.raises(ValueError, match=r'edge measure "tangent" requires several scans; use `construct_cohort`'):
        construct(None, model=toy_model, edges=("pearson", "tangent"))


def test_a_prior_elsewhere_is_refused(short, toy, toy_model):
    away = dataclasses.replace(toy.atlas, xyz=toy.atlas.xyz + np.float32(400))
    with pytest.raises(ValueError, match="atlas toy does not overlap the scan"):
        construct(short, model=toy_model, atlas=away)


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint pnet-linar is missing.*did you mean 'pnet-linear'"):
        construct(None, model="pnet-linar")
