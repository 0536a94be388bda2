"""The simulator's promises: what is exact, what a subject may depend on, what the written folder can be read by."""

import dataclasses
import json
import re

import nibabel as nib
import numpy as np
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.config import SimulateConfig
from pnet_jax.outputs.simulated import write_cohort
from pnet_jax.simulate import cleaned_scan, coupling, disease, dynamics, group_truth, observe, simulate_cohort, simulate_subject, space

SMALL = SimulateConfig(subjects=2, sessions=1, parcels=20, minutes=1.0)


@pytest.fixture(scope="module")
def brain():
    return space.grey_matter_space(4)


@pytest.fixture(scope="module")
def subject():
    return simulate_subject(dataclasses.replace(SMALL, minutes=3.0), 0)


@pytest.fixture(scope="module")
def small_model():
    group = group_truth(4, 20, 0)
    weights, _ = coupling.subject_coupling(group.coupling, np.random.default_rng(0))
    return dynamics.linear_model(coupling.jacobian(coupling.normalise(weights)), delay=0.4)


# Space and parcels


def test_grey_matter_has_the_documented_number_of_voxels(brain):
    assert len(brain) == 28144 and brain.resolution == pytest.approx(4)
    assert len(space.grey_matter_space(3)) == 64292


def test_parcels_stay_in_their_hemisphere_and_none_is_empty(brain):
    group = space.group_parcels(brain, 50, np.random.default_rng(0))
    own = space.subject_parcels(group, brain, np.random.default_rng(1))
    for labels in (group, own):
        assert_array_equal(labels >= 25, brain.hemisphere == 1)
        assert_array_equal(np.unique(labels), np.arange(50))


def test_subject_parcels_overlap_with_the_group_as_real_areas_do():
    group = group_truth(4, 100, 0)
    overlap = [np.mean(space.subject_parcels(group.labels, group.space, np.random.default_rng(s)) == group.labels) for s in range(8)]
    assert 0.68 <= np.mean(overlap) <= 0.76
    unmoved = space.subject_parcels(group.labels, group.space, np.random.default_rng(0), amplitude=0.0)
    assert_array_equal(unmoved, group.labels)


def test_smooth_field_has_unit_variance_and_the_stated_covariance(brain):
    rng = np.random.default_rng(0)
    fields = np.concatenate([space.smooth_field(brain.xyz[:5000:50], rng, length=20.0, channels=20) for _ in range(100)], 1)
    distance = np.linalg.norm(brain.xyz[:5000:50, None] - brain.xyz[None, :5000:50], axis=-1)
    assert_allclose(np.cov(fields), np.exp(-(distance**2) / 800), atol=0.15)  # 2,000 fields, 100 draws of the waves


# Coupling and dynamics


def test_normalised_coupling_keeps_a_tenth_of_its_first_mode():
    weights = coupling.weights(group_truth(4, 20, 0).coupling)
    assert_array_equal(weights, weights.T)
    assert (weights >= 0).all() and (np.diag(weights) == 0).all()
    first = np.sqrt(weights.sum(1) / weights.sum())  # D^-½ W D^-½ has eigenvalue 1 there
    assert_allclose(coupling.normalise(weights) @ first, 0.1 * first, atol=1e-12)
    slowest = np.linalg.eigvalsh(coupling.jacobian(coupling.normalise(weights)))[-1]
    assert_allclose(slowest, -(1 - 0.93) / 1.0, rtol=1e-9)


def test_haemodynamic_response_is_the_transform_of_the_double_gamma():
    from scipy.stats import gamma

    time = np.arange(0, 80, 0.01)
    response = gamma.pdf(time, 6) - gamma.pdf(time, 16) / 6
    frequency = np.array([0.0, 0.01, 0.05, 0.1, 0.3])
    direct = np.trapezoid(response * np.exp(-2j * np.pi * np.outer(frequency, time)), time, axis=1)
    assert_allclose(dynamics.haemodynamic_response(frequency), direct, atol=1e-5)
    late = gamma.pdf(time / 1.2, 6) / 1.2 - gamma.pdf(time / 1.2, 16) / 7.2  # peak at 6 s
    direct = np.trapezoid(late * np.exp(-2j * np.pi * np.outer(frequency, time)), time, axis=1)
    assert_allclose(dynamics.haemodynamic_response(frequency, 1.0), direct, atol=1e-5)


@pytest.mark.parametrize("tr", [0.72, 2.0, 3.3])
def test_closed_form_connectivity_is_that_of_a_very_long_recording_at_any_repetition_time(small_model, tr):
    frames = int(60_000 / tr)
    signal = dynamics.sample(small_model, np.random.default_rng(3), tr=tr, frames=frames)
    assert_allclose(signal.std(1), 1, atol=0.1)
    spectrum = np.fft.rfft(signal, axis=1)
    frequency = np.fft.rfftfreq(frames, tr)
    low, high = dynamics.BAND_HZ
    inside = spectrum[:, (frequency >= low) & (frequency <= high)]
    covariance = (inside @ inside.conj().T).real
    sd = np.sqrt(np.diag(covariance))
    # 11,000 degrees of freedom, fewer for slow modes: standard error below .015, largest of 190 edges below 4 of them.
    assert_allclose(covariance / np.outer(sd, sd), dynamics.true_fc(small_model), atol=0.05)


def test_a_model_must_be_symmetric_and_stable():
    with pytest.raises(ValueError, match="symmetric"):
        dynamics.linear_model(np.array([[-1.0, 0.5], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="below 0, got 0.1"):
        dynamics.linear_model(0.1 * np.eye(2))


# Disease and age


def test_disease_changes_planted_couplings_only_and_nothing_at_severity_0():
    group = group_truth(4, 100, 0)
    healthy = coupling.normalise(coupling.weights(group.coupling))
    for kind, count in (("circuits", 28 + 15), ("lesion", 99)):
        assert_array_equal(disease.with_disease(healthy, group.plan, 0.0, kind), healthy)
        sick = disease.with_disease(healthy, group.plan, 1.0, kind)
        truth = disease.disease_truth(group.plan, 1.0, kind, healthy_fc=healthy, fc=sick)
        assert_array_equal(sick != healthy, truth.planted)
        assert np.triu(truth.planted, 1).sum() == count and not np.diag(truth.planted).any()
    sick = disease.with_disease(healthy, group.plan, 0.5)
    weak, strong = group.plan.weak[:2], group.plan.strong[:2]
    assert_allclose(sick[weak[0], weak[1]], 0.55 * healthy[weak[0], weak[1]])
    assert_allclose(sick[strong[0], strong[1]], healthy[strong[0], strong[1]] + 0.03)
    with pytest.raises(ValueError, match="lesion.*'stroke'"):
        disease.with_disease(healthy, group.plan, 1.0, "stroke")


def test_age_changes_a_twentieth_of_the_edges():
    group = group_truth(4, 100, 0)
    healthy = coupling.normalise(coupling.weights(group.coupling))
    old = disease.with_age(healthy, group.plan, 65.0)
    changed = np.triu(old != healthy, 1)
    assert changed.sum() == round(0.05 * 4950)
    assert_allclose(old[changed], 0.8 * healthy[changed])
    assert_array_equal(disease.with_age(healthy, group.plan, 45.0), healthy)


def test_a_patient_without_severity_is_a_healthy_subject():
    sick = dataclasses.replace(SMALL, patients=1.0)
    healthy, mild, severe = (simulate_subject(c, 1) for c in (SMALL, dataclasses.replace(sick, severity=0.0), sick))
    assert mild.patient and severe.patient and not healthy.patient
    assert_array_equal(mild.sessions[0].y, healthy.sessions[0].y)
    assert_array_equal(mild.true_fc, healthy.true_fc)
    assert not mild.disease.affected.any()
    assert_allclose(severe.true_fc, healthy.true_fc + severe.disease.fc_change)
    assert severe.disease.affected[severe.disease.planted].mean() > severe.disease.affected[~severe.disease.planted].mean()


# Observation


def test_smoothing_leaves_a_constant_field_constant_up_to_the_edge(brain):
    for fwhm in (2.0, 6.0, 10.0):
        assert_allclose(observe.MaskedGaussian(brain, fwhm)(np.full((len(brain), 2), 7.0, np.float32)), 7, rtol=1e-5)


def test_smoothing_agrees_with_scipy_and_knows_the_spread_of_white_noise(brain):
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).standard_normal((len(brain), 100), np.float32)
    smooth = observe.MaskedGaussian(brain, 6.0)
    found = smooth(noise)
    sigma, at = 6.0 / np.sqrt(8 * np.log(2)) / 4.0, tuple(brain.grid.ijk.T)
    image, mask = np.zeros(brain.grid.shape), np.zeros(brain.grid.shape)
    image[at], mask[at] = noise[:, 0], 1
    total, share = (gaussian_filter(volume, sigma, mode="constant", truncate=5)[at] for volume in (image, mask))
    assert_allclose(found[:, 0], total / share, atol=1e-4)
    assert_allclose(np.mean((found / smooth.spread[:, None]) ** 2), 1, rtol=0.01)


def test_local_noise_has_the_stated_amplitude(brain):
    noise = observe._local_noise(brain, 100, np.random.default_rng(0))
    assert_allclose(noise.std(), 1, rtol=0.02)
    lag = [np.mean(noise[:, :-k] * noise[:, k:]) for k in (1, 2, 3)]
    assert_allclose(lag, [2 / 3, 1 / 3, 0], atol=0.03)


def test_a_recording_looks_like_a_raw_image(subject):
    session = subject.sessions[0]
    assert session.y.shape == (28144, 90) and session.y.dtype == np.float32
    mean = session.y.mean(1)
    assert 800 < np.median(mean) < 1250
    assert 40 < np.median(mean / session.y.std(1)) < 150
    assert_allclose(session.confounds["global_signal"], session.y.mean(0), rtol=1e-5)
    assert_array_equal(session.displacement, session.confounds["framewise_displacement"])
    assert session.displacement[0] == 0 and np.median(session.displacement) < 0.2


def test_a_second_latent_makes_parcels_less_homogeneous(brain):
    labels = group_truth(4, 20, 0).labels
    latent, second = np.random.default_rng(1).standard_normal((2, 20, 60)).astype(np.float32)
    found = []
    for extra in (None, second):
        given = dict(tr=2.0, tier=observe.Tier(0.0, 1e3), site=observe.SITES[0], gain=np.ones(len(brain), np.float32))
        y = observe.observe(latent, labels, brain, np.random.default_rng(2), second=extra, **given).y
        found.append(np.mean([np.mean(np.corrcoef(y[labels == k][::20])) for k in range(20)]))
    assert found[1] < found[0] - 0.05


def test_spikes_show_in_displacement_and_dvars():
    rng = np.random.default_rng(0)
    motion = observe._head_motion(rng, 60, np.array([20, 40]))
    displacement = observe.framewise_displacement(motion)
    assert_array_equal(np.flatnonzero(displacement > 0.35), [20, 21, 40, 41])


# Cohort


def test_a_subject_does_not_depend_on_the_cohort():
    small = SMALL
    large = dataclasses.replace(SMALL, subjects=50, sessions=2)
    alone = simulate_subject(large, 1)
    second = list(simulate_cohort(small))[1]
    assert_array_equal(alone.sessions[0].y, second.sessions[0].y)
    for name, values in second.sessions[0].confounds.items():
        assert_array_equal(alone.sessions[0].confounds[name], values)
    for name in ("labels", "group_labels", "coupling", "true_fc", "modules", "age", "site", "hrf_delay", "subject"):
        assert_array_equal(getattr(alone, name), getattr(second, name))
    assert not np.array_equal(alone.sessions[0].y, alone.sessions[1].y)
    other = simulate_subject(small, 0)
    assert not np.array_equal(other.labels, second.labels)
    assert not np.array_equal(other.true_fc, second.true_fc)


def test_patients_and_controls_are_spread_over_the_sites():
    from pnet_jax.simulate.cohort import _assign

    config = dataclasses.replace(SMALL, patients=0.5, sites=4)
    drawn = [_assign(config, index) for index in range(80)]
    count = np.zeros((2, 4), int)
    for patient, site in drawn:
        count[int(patient), site] += 1
    assert_array_equal(count, 10)


def test_sites_differ(subject):
    sites = dataclasses.replace(SMALL, sites=4, tr=None, minutes=2.5)
    other = simulate_subject(sites, 3)
    assert other.site == "D" and other.sessions[0].tr == 3.0
    assert other.sessions[0].y.shape[1] == round(2.5 * 60 * 0.7 / 3.0)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(tier="extreme"), r"tier: expected one of \['easy', 'hard', 'medium', 'real'\], got 'extreme'"),
        (dict(parcels=21), "parcels: expected an even number.*got 21"),
        (dict(resolution=1), "resolution: expected 4, 3 or 2 mm, got 1"),
        (dict(sites=5), "sites: expected 1…4, got 5"),
        (dict(severity=1.5), "severity: expected 0…1, got 1.5"),
        (dict(minutes=0.5), "minutes: expected at least 30 frames at every site, got 15 at site A"),
    ],
)
def test_a_bad_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=f"SimulateConfig.{message}"):
        simulate_subject(dataclasses.replace(SMALL, **change), 0)


def test_cleaned_scan_is_what_nilearn_makes_of_the_recording(subject):
    session = subject.sessions[0]
    scan = cleaned_scan(session, wide=True)
    assert scan.wide.dtype == np.float16 and scan.wide.shape == scan.y.shape
    fast = [np.square(np.abs(np.fft.rfft(np.float32(y[:50]), axis=1))[:, -20:]).mean() for y in (scan.y, scan.wide)]  # near .25 Hz
    assert fast[1] > 50 * fast[0]
    assert scan.valid.all() and scan.label == "sub-001_ses-1_task-rest" and scan.tr == 2.0
    assert_allclose(scan.mean, session.y.mean(1), rtol=1e-6)
    rows = slice(0, 28144, 300)
    expected = clean(
        session.y[rows].T.astype(np.float64),
        confounds=session.confounds["global_signal"],
        standardize=None,
        high_pass=0.009,
        low_pass=0.1,
        t_r=2.0,
    ).T
    expected -= expected.mean(1, keepdims=True)
    assert_allclose(scan.y[rows], expected / expected.std(1, keepdims=True), atol=1e-3)


def test_scrubbing_drops_the_frames_of_spikes(subject):
    session = subject.sessions[0]
    scan = cleaned_scan(session, fd_threshold=0.5)
    good = np.flatnonzero(session.displacement <= 0.5)
    assert len(good) < 90
    assert_array_equal(scan.frames, good)
    assert scan.y.shape[1] == len(good) and scan.recorded == 90
    with pytest.raises(ValueError, match="fd_threshold"):
        cleaned_scan(session, fd_threshold=0.001)


def test_true_parcels_explain_the_true_network_better_than_the_group(subject):
    easy = simulate_subject(SimulateConfig(sessions=1, tier="easy"), 0)
    scan = cleaned_scan(easy.sessions[0])
    upper = np.triu_indices(100, 1)

    def score(labels):
        mean = np.stack([scan.y[labels == k].mean(0) for k in range(100)])
        return np.corrcoef(np.corrcoef(mean)[upper], easy.true_fc[upper])[0, 1]

    assert score(easy.labels) > score(easy.group_labels) > 0.3


# Folder


def test_a_written_cohort_is_readable_as_fmriprep_output(tmp_path):
    seen = []
    config = dataclasses.replace(SMALL, minutes=3.0, patients=0.5)
    images = write_cohort(tmp_path / "new" / "cohort", config, lambda done, total: seen.append((done, total)))
    root = tmp_path / "new" / "cohort"
    assert seen == [(1, 2), (2, 2)] and [file.name for file in root.rglob(".*")] == [".bidsignore"]
    names = "sub-002/ses-1/func/sub-002_ses-1_task-rest_space-MNI152NLin2009cAsym_res-4_desc-preproc_bold.nii.gz"
    assert images[1] == root / names
    people = (root / "participants.tsv").read_text().splitlines()
    assert people[0] == "participant_id\tage\tsite\tgroup" and re.fullmatch(r"sub-002\t[\d.]+\tA\tpatient", people[2])
    assert json.loads((root / "dataset_description.json").read_text())["DatasetType"] == "derivative"

    strategy = ("motion", "high_pass", "wm_csf", "global_signal", "scrub")
    confounds, mask = load_confounds(str(images[1]), strategy=strategy, motion="full", wm_csf="full", global_signal="full")
    assert confounds.shape == (90, 24 + 8 + 4 + 2) and np.isfinite(confounds.to_numpy()).all()
    assert mask is None or len(mask) < 90

    subject = simulate_subject(config, 1)
    image = nib.load(images[1])
    assert image.header.get_zooms()[3] == 2.0 and image.get_data_dtype() == np.int16
    inside = nib.load(str(images[1]).replace("preproc_bold", "brain_mask")).get_fdata() > 0
    assert_allclose(image.get_fdata()[inside], subject.sessions[0].y, atol=0.05)
    assert json.loads(images[1].with_name(images[1].name.replace(".nii.gz", ".json")).read_text())["RepetitionTime"] == 2.0

    truth = np.load(root / "sub-002" / "truth.npz")
    assert_array_equal(truth["true_fc"], subject.true_fc)
    assert_array_equal(truth["labels"], subject.labels)
    assert_array_equal(truth["affected"], subject.disease.affected)
    assert truth["disease"] == "circuits" and truth["patient"]
    group = nib.load(root / "group_dseg.nii.gz").get_fdata()
    assert_array_equal(group[inside], subject.group_labels + 1)
    table = (root / "group_dseg.tsv").read_text().splitlines()
    assert table[:2] == ["index\tname", "1\tL_001"] and table[-1] == "20\tR_020"
