"""PersonalizedParcellation: the parcels of `construct`, what the list of images teaches, and nilearn's manners."""

from __future__ import annotations

import functools
import pickle

import chex
import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiLabelsMasker
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

from pnet_jax import PersonalizedParcellation, construct, find_scans, load_scan
from pnet_jax.config import CleaningConfig, ConstructConfig
from pnet_jax.construction import wave
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs import labels_image
from pnet_jax.outputs.images import write_image


@pytest.fixture(scope="module")
def alone(fast, scans):
    return PersonalizedParcellation(**fast).fit(scans[0])


@pytest.fixture(scope="module")
def together(fast, scans):
    return PersonalizedParcellation(**fast).fit(scans[:4])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, image_of, brain):
    """Two recordings of two participants as fMRIPrep would name them, and confounds of the first."""
    folder = tmp_path_factory.mktemp("bids")
    for subject in ("01", "02"):
        stem = folder / f"sub-{subject}" / "func" / f"sub-{subject}_task-rest"
        stem.parent.mkdir(parents=True)
        write_image(image_of(int(subject)), stem.with_name(f"{stem.name}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"))
        write_image(brain, stem.with_name(f"{stem.name}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz"))
    return folder


def first_image(folder):
    return folder / "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


def noise(seed: int = 0, frames: int = 160) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(frames, 2)), columns=["a", "b"])


# One image


def test_one_image_has_the_parcels_and_signals_that_construct_gives_it(alone, scans, fast):
    config = ConstructConfig(labels="personalised", kappa=20.0, beta=0.2)
    network = construct(scans[0], model=fast["model"], config=config)
    assert network.qc.selection.decision == "personalised" and alone.group_ is None
    assert_array_equal(alone.labels_img_.get_fdata(), labels_image(network).get_fdata())
    signals = alone.transform(scans[0])
    assert_array_equal(signals, network.signals.T)
    assert signals.shape == (160, 12) and alone.n_features_in_ == 12
    assert alone.get_feature_names_out().tolist() == list(network.names)
    assert_array_equal(alone.coverage_, network.coverage)
    assert alone.probs_img_.shape == (*alone.labels_img_.shape, 12)
    inside = alone.labels_img_.get_fdata() > 0
    assert_allclose(np.asarray(alone.probs_img_.dataobj).sum(-1)[inside], 1, atol=1e-3)
    confidence = alone.confidence_img_.get_fdata()
    assert (confidence[inside] > 0).all() and not confidence[~inside].any()
    assert alone.lut_["name"].tolist() == list(network.names) and alone.lut_.n_locations.sum() == inside.sum()


def test_signals_are_those_of_nilearn_in_the_same_parcels(alone, scans):
    y = np.zeros((*scans[0].space.grid.shape, scans[0].y.shape[1]), np.float32)
    y[tuple(scans[0].space.grid.ijk.T)] = scans[0].y
    masker = NiftiLabelsMasker(alone.labels_img_, standardize=None, resampling_target=None)
    expected = masker.fit_transform(nibabel.Nifti1Image(y, alone.labels_img_.affine))
    assert_allclose(alone.transform(scans[0]), expected, atol=1e-5)


def test_signals_go_back_to_the_locations_of_their_parcels(alone):
    signals = np.arange(24, dtype=np.float32).reshape(2, 12)
    image = alone.inverse_transform(signals)
    labels = alone.labels_img_.get_fdata()
    assert image.shape == (*labels.shape, 2) and image.header.get_zooms()[3] == 2.0
    values = image.get_fdata()
    for k, index in enumerate(alone.lut_["index"]):
        assert_array_equal(values[labels == index], np.broadcast_to(signals[:, k], values[labels == index].shape))
    with pytest.raises(ValueError, match="X has 5 features, but PersonalizedParcellation is expecting 12 features as input"):
        alone.inverse_transform(np.zeros((2, 5)))
    with pytest.raises(InputError, match="found an array of 1 dimensions"):
        alone.inverse_transform(np.zeros(12))


def test_a_file_an_image_and_a_source_are_the_same_recording(dataset, image_of, brain, fast):
    parcellation = PersonalizedParcellation(**fast)
    by_file = parcellation.fit(first_image(dataset)).transform(str(first_image(dataset)))
    by_source = parcellation.transform(find_scans(dataset)[0])
    assert_array_equal(by_file, by_source)
    in_memory = PersonalizedParcellation(**fast, mask_img=brain).fit(image_of(1))
    cleaned = load_scan(image_of(1), mask=brain, cleaning=CleaningConfig())
    assert_allclose(in_memory.networks_[0].signals.mean(0), by_file.mean(1), atol=1e-2)
    assert len(in_memory.networks_[0].frames) == len(cleaned.frames)
    assert in_memory.networks_[0].subject != "unknown"


def test_confounds_frames_and_cleaning_reach_the_recording(image_of, brain, fast):
    kept = np.arange(10, 150)
    parcellation = PersonalizedParcellation(**fast, mask_img=brain, strategy=["motion"], low_pass=0.12, clean_args={"min_frames": 100})
    signals = parcellation.fit_transform(image_of(1), confounds=noise(), sample_mask=kept)
    assert signals.shape == (140, 12)
    assert_array_equal(parcellation.networks_[0].frames, kept)
    about = parcellation.networks_[0].provenance
    assert about["cleaning"]["confounds"] == ["a", "b"] and about["config"]["cleaning"]["low_pass"] == 0.12
    with pytest.raises(InputError, match="confounds array has 100 rows|has 100 rows, expected one per frame"):
        parcellation.transform(image_of(1), confounds=noise(frames=100))


# Many images


def test_a_list_teaches_a_group_and_every_attribute_is_a_list(together, scans, fast):
    assert together.group_.subjects == ("00", "01", "02", "03") and together.group_.spatial is not None
    assert len(together.labels_img_) == len(together.lut_) == len(together.networks_) == 4 and together.coverage_.shape == (4, 12)
    config = ConstructConfig(labels="personalised", kappa=20.0, beta=0.2)
    expected = construct(scans[1], model=fast["model"], config=config, group=together.group_)
    assert_array_equal(together.networks_[1].labels, expected.labels)
    plain = PersonalizedParcellation(**fast, learn_group=False).fit(scans[:4])
    assert plain.group_ is None
    assert any((one.labels != other.labels).any() for one, other in zip(plain.networks_, together.networks_, strict=True))


def test_signals_of_an_image_do_not_depend_on_those_beside_it(together, scans):
    several = together.transform([scans[6], scans[1], scans[7]])
    assert_array_equal(several[0], together.transform(scans[6]))
    assert_array_equal(several[1], together.networks_[1].signals.T)
    assert [image.shape[3] for image in together.inverse_transform([*several, several[0]])] == [160] * 4
    with pytest.raises(InputError, match="each of the 4 images of fit, found 3"):
        together.inverse_transform(several)


def test_fit_transform_is_fit_and_transform(fast, scans, together):
    found = PersonalizedParcellation(**fast).fit_transform(scans[:4])
    for one, other in zip(found, together.transform(scans[:4]), strict=True):
        assert_array_equal(one, other)


def test_two_sessions_of_a_participant_count_once(fast, toy, scans):
    again = toy.scan(50, subject="00")
    again.entities["ses"] = "2"
    found = PersonalizedParcellation(**fast).fit([*scans[:3], again, toy.scan(51, subject="00")])
    assert found.group_.subjects == ("00", "01", "02") and len(found.networks_) == 5
    assert PersonalizedParcellation(**fast).fit([*scans[:2], again]).group_ is None


def test_a_folder_is_the_list_of_its_scans(dataset, fast):
    parcellation = PersonalizedParcellation(**fast).fit(dataset)
    assert [network.subject for network in parcellation.networks_] == ["01", "02"]
    signals = parcellation.transform(dataset, confounds=[noise(1), noise(2)])
    assert len(signals) == 2
    with pytest.raises(InputError, match="confounds: expected a list with one for each of the 2 recordings, found 1"):
        parcellation.transform(dataset, confounds=[noise(1)])
    with pytest.raises(InputError, match="sample_mask: .* found one ndarray"):
        parcellation.transform(dataset, sample_mask=np.arange(100))


def test_where_nothing_can_be_learned_the_images_are_still_parcelled(fast, scans):
    with pytest.warns(UserWarning, match="no group model was learned: nothing can be learned from 3 networks"):
        parcellation = PersonalizedParcellation(**(fast | {"labels": "atlas"})).fit(scans[:3])
    assert parcellation.group_ is None and len(parcellation.networks_) == 3


# Speed, storage, pages


def test_the_step_is_compiled_once_for_all_calls(fast, toy, scans, monkeypatch):
    wave.compiled.cache_clear()
    chex.clear_trace_counter()
    monkeypatch.setattr(wave, "step", chex.assert_max_traces(wave.step, n=1))
    monkeypatch.setattr(wave, "compiled", functools.lru_cache(wave.compiled.__wrapped__))
    parcellation = PersonalizedParcellation(**fast).fit(scans[:3])
    builder = parcellation.builder_
    parcellation.transform(scans[5])
    parcellation.transform([toy.scan(9, frames=150), toy.scan(10, frames=130)])
    assert parcellation.builder_ is builder
    PersonalizedParcellation(**fast).fit(scans[4])
    with pytest.raises(AssertionError, match="traced > 1 times"):
        parcellation.transform(toy.scan(11, frames=300))


def test_a_pickled_estimator_transforms_as_before(together, scans):
    again = pickle.loads(pickle.dumps(together))
    assert_array_equal(again.transform(scans[5]), together.transform(scans[5]))
    assert again.group_.digest == together.group_.digest


def test_the_report_is_the_page_of_the_network(alone, tmp_path):
    report = alone.generate_report()
    report.save_as_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.lstrip().startswith("<!") and "sub-00" in text and report._repr_html_().startswith("<iframe")
    with pytest.raises(IndexError):
        alone.generate_report(3)


def test_progress_is_printed_where_it_is_asked_for(fast, scans, capsys):
    PersonalizedParcellation(**fast, verbose=1).fit(scans[:2])
    assert "[PersonalizedParcellation] sub-01_task-rest, 2 of 2" in capsys.readouterr().out


# What is refused


def test_nothing_works_before_fit(scans):
    parcellation = PersonalizedParcellation()
    for call in (lambda: parcellation.transform(scans[0]), lambda: parcellation.inverse_transform(np.zeros((2, 3)))):
        with pytest.raises(NotFittedError):
            call()
    assert not hasattr(parcellation, "labels_img_")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clean_args": {"low_pass": 0.2}}, "clean_args: low_pass is a parameter of PersonalizedParcellation: set it there"),
        ({"clean_args": {"lowpass": 0.2}}, "clean_args: expected fields of CleaningConfig .*lowpass"),
        ({"labels": "own"}, "labels: expected one of 'auto', 'personalised', 'atlas', got 'own'"),
        ({"n_parcels": 77}, "atlases with .* parcels, but 77 were requested"),
    ],
)
def test_wrong_settings_are_refused_in_fit(fast, scans, given, said):
    with pytest.raises(SettingsError, match=said):
        PersonalizedParcellation(**(fast | given)).fit(scans[0])


def test_wrong_recordings_are_refused(fast, scans, tmp_path):
    parcellation = PersonalizedParcellation(**fast)
    with pytest.raises(InputError, match="expected images, found region series"):
        parcellation.fit([np.zeros((50, 4))])
    with pytest.raises(InputError, match="expected images alone or region series alone"):
        parcellation.fit([scans[0], np.zeros((50, 4))])
    with pytest.raises(InputError, match="expected at least one recording, found none"):
        parcellation.fit([])
    with pytest.raises(InputError, match="sub-00_task-rest: confounds and sample_mask are for recordings to clean"):
        parcellation.fit(scans[0], confounds=noise())
    with pytest.raises(FileNotFoundError):
        parcellation.fit(tmp_path / "none")
