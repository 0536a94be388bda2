"""From scans to a checkpoint: references, projection, learned atlases, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.config import PretrainConfig
from pnet_jax.construction import construct
from pnet_jax.pretraining import geometric_atlas, pretrain, reference_points, scan_statistics
from pnet_jax.scan import make_scan
from pnet_jax.space import RIGHT, point_space, take

K, R, D = 12, 24, 10
CONFIG = PretrainConfig(name="tiny", references=R, dimensions=D, reference_space="scans", parcels=(), learn_atlas=(K,))


@pytest.fixture(scope="module")
def scans(toy):
    return [toy.scan(seed, subject=f"0{seed}") for seed in range(3)]


@pytest.fixture(scope="module")
def model(scans):
    return pretrain(scans, CONFIG)


def test_weights_have_shapes_that_know_nothing_of_the_scans(model):
    assert model.name == "tiny"
    shapes = {name: array.shape for name, array in model.encoder._asdict().items()}
    assert shapes == {"references": (R, 3), "mean": (R,), "projection": (R, D), "reliability": (D,), "decoder": (D, R)}
    assert all(array.dtype == np.float32 for array in model.encoder)


def test_the_first_component_is_the_most_reliable_one_and_repeats(model):
    assert model.encoder.reliability[0] > 0.8
    assert (np.diff(model.encoder.reliability) <= 1e-6).all()


def test_a_learned_prior_has_k_parcels_with_ids_from_1(model):
    prior = model.atlases[K]
    assert list(model.atlases) == [K]
    assert prior.n_parcels == K
    assert prior.ids.tolist() == list(range(1, K + 1))
    assert prior.names == tuple(f"parcel-{k}" for k in range(1, K + 1))
    assert set(prior.hemispheres) == {"L", "R"}
    assert "learned" in prior.source


def test_a_learned_prior_follows_the_scans_and_not_the_geometry(model, toy):
    """The scans' own parcels; their order is nobody's."""
    from sklearn.metrics import adjusted_rand_score

    labels = model.atlases[K].labels
    assert len(labels) == len(toy.space)
    assert adjusted_rand_score(toy.truth, labels) > 0.8
    assert adjusted_rand_score(toy.truth, labels) > adjusted_rand_score(toy.expected, labels) + 0.2


def test_a_new_subject_can_be_constructed_with_the_model_alone(model, toy):
    found = construct(toy.scan(9), model=model)
    assert found.n_parcels == K
    assert np.isfinite(found.edges["pearson"]).all()


def test_a_second_pass_is_started_afresh(scans, model):
    passes = []

    def one_pass():
        passes.append(len(passes))
        return iter(scans)

    again = pretrain(one_pass, CONFIG)
    assert passes == [0, 1]
    assert again.digest == model.digest


def test_the_order_of_scans_does_not_matter(scans):
    config = dataclasses.replace(CONFIG, learn_atlas=())
    a, b = (pretrain(some, config).encoder for some in (scans, scans[::-1]))
    for x, y in zip(a, b, strict=True):
        assert_allclose(x, y, atol=2e-4)


def test_the_card_says_what_it_was_made_from(model):
    card = model.card
    assert (card["scans"], card["subjects"], card["minutes"]) == (3, 3, 16.0)
    assert card["spaces"] == ["MNI152NLin6Asym"]
    assert card["config"] == dataclasses.asdict(CONFIG)
    assert card["participants"] == [{"dataset": "", "store": "", "subjects": ["00", "01", "02"]}]
    assert model.trained_on == {("", "00"), ("", "01"), ("", "02")}
    assert_allclose(card["reliability"], model.encoder.reliability[:8], atol=1e-3)


def test_one_label_of_two_data_sets_counts_as_two_subjects(scans):
    two = [dataclasses.replace(scans[i], subject="01", source=f"{name}/sub-01/func/bold.nii.gz") for i, name in enumerate("ab")]
    assert pretrain(two, dataclasses.replace(CONFIG, learn_atlas=())).card["subjects"] == 2


def test_references_are_mirrored_between_hemispheres_and_lie_in_the_brain(toy):
    points = reference_points(toy.space, R)
    assert points.shape == (R, 3)
    assert_array_equal(points[: R // 2] * [-1, 1, 1], points[R // 2 :])
    assert (points[R // 2 :, 0] > 0).all()
    distance = np.linalg.norm(points[R // 2 :, None] - toy.space.xyz[None], axis=-1).min(1)
    assert distance.max() < 8
    assert_array_equal(reference_points(toy.space, R), points)


def test_one_hemisphere_alone_has_all_references(toy):
    right = take(toy.space, np.flatnonzero(toy.space.hemisphere == RIGHT))
    points = reference_points(right, 7)
    assert points.shape == (7, 3)
    assert (points[:, 0] > 0).all()


def test_statistics_count_the_valid_locations(toy):
    y = toy.signals(0)
    y[:10] = 3
    found = scan_statistics(make_scan(y, toy.space, tr=2.0), reference_points(toy.space, R))
    assert found.pairs.max() == len(y) - 10


def test_a_geometric_prior_is_even_between_hemispheres_and_the_same_for_the_same_seed():
    prior = geometric_atlas(10)
    assert prior.n_parcels == 10
    assert prior.hemispheres == ("L",) * 5 + ("R",) * 5
    assert prior.names[0] == "LH_001"
    assert prior.names[-1] == "RH_005"
    assert geometric_atlas(10).digest == prior.digest


@pytest.mark.parametrize("scans", [[], lambda: iter([])], ids=["list", "function"])
def test_no_scan_at_all_is_refused(scans):
    with pytest.raises(ValueError, match="pre-training needs at least one scan, got none"):
        pretrain(scans, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "neural"}, r"encoder: expected one of .*'perceiver'.*, got 'neural'"),
        ({"reference_space": "mars"}, "reference_space: expected one of 'mni', 'scans', got 'mars'"),
        ({"references": 7}, r"references must be even \(half in each hemisphere\), got 7"),
        ({"references": 100_000}, "expected at most .* clusters"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(scans, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain(scans[:1], dataclasses.replace(CONFIG, **change))


def test_learned_priors_need_scans_on_one_space(scans, toy):
    half = np.arange(0, len(toy.space), 2)
    part = {name: getattr(scans[1], name)[half] for name in ("y", "valid", "mean", "std")}
    other = dataclasses.replace(scans[1], space=take(toy.space, half), **part)
    with pytest.raises(
        ValueError, match=r"sub-01_task-rest: a learned atlas requires scans on one Space: expected \d+ locations.*found \d+"
    ):
        pretrain([scans[0], other], CONFIG)


def test_scans_far_from_every_reference_are_refused(scans, toy):
    away = dataclasses.replace(scans[0], space=point_space(toy.space.xyz + np.float32(500)))
    with pytest.raises(ValueError, match="at least one scan with signals near a reference point"):
        pretrain([away], dataclasses.replace(CONFIG, reference_space="mni", learn_atlas=()))
