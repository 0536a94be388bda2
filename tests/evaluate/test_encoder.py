"""The gate: what it says of encoders whose order is known, of ROIs, and of bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.checkpoint import save_model
from pnet_jax.cli import main
from pnet_jax.config import PerceiverConfig, SimulateConfig
from pnet_jax.encoder.linear import project
from pnet_jax.encoder.perceiver import init
from pnet_jax.encoder.tokens import nearest_reference
from pnet_jax.evaluate.cases import Case, count_simulated, first_minutes, pairs, rois, scan_cases, simulated_cases
from pnet_jax.evaluate.encoder import MEASURES, better, gate, same_references, split_half_r2, summary, table, verdicts
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.scan import make_scan
from pnet_jax.space import take

SIZES = PerceiverConfig(16, 4, 1, 2, 2, 10, 24, dtype="float32")


@pytest.fixture(scope="module")
def case(toy) -> Case:
    return Case("full", "01", (toy.scan(0, frames=80), toy.scan(1, frames=80)), toy.atlas, toy.truth)


@pytest.fixture(scope="module")
def untrained(toy_model):
    return dataclasses.replace(toy_model, name="untrained", encoder=init(toy_model.encoder, SIZES, jax.random.key(0)))


@pytest.fixture(scope="module")
def shuffled(toy_model):
    """Of its components only two are left as well: of this easy brain, ten random ones say as much as the ten best."""
    encoder = toy_model.encoder
    order = np.random.default_rng(0).permutation(len(encoder.projection))
    projection = encoder.projection[order] * (np.arange(10) < 2)
    return dataclasses.replace(toy_model, name="shuffled", encoder=encoder._replace(projection=projection.astype(np.float32)))


@pytest.fixture(scope="module")
def rows(toy_model, untrained, shuffled, case):
    found = gate([toy_model, untrained, shuffled], [case])
    return {row["model"]: row for row in found}


def test_an_untrained_perceiver_gets_the_linear_encoders_numbers(rows):
    for measure in MEASURES:
        assert_allclose(rows["untrained"][measure], rows["toy"][measure], rtol=1e-5, err_msg=measure)


def test_a_shuffled_projection_is_worse(rows):
    assert rows["shuffled"]["r2"] < rows["toy"]["r2"] - 0.1
    assert rows["shuffled"]["dcbc"] < rows["toy"]["dcbc"] - 0.01
    assert rows["shuffled"]["ari"] < rows["toy"]["ari"]


def test_baselines_stand_beside_the_models_and_lose(rows):
    assert list(rows) == ["toy", "untrained", "shuffled", "atlas", "centroids", "weighted"]
    for name in ("atlas", "centroids"):
        assert rows[name]["ari"] < rows["toy"]["ari"] - 0.1
        assert rows[name]["dcbc"] < rows["toy"]["dcbc"]
        assert np.isnan(rows[name]["r2"])
    assert np.isnan(rows["weighted"]["dcbc"]) and np.isfinite(rows["weighted"]["r2"])


def test_r2_is_the_formula(toy_model, case):
    """In numpy, from correlations with the means of the reference regions."""
    encoder = toy_model.encoder
    region = nearest_reference(case.scans[0].space.xyz, encoder.references)
    found, guess = [], []
    for scan in case.scans:
        means = [scan.y[region == r].mean(0) if (region == r).any() else None for r in range(24)]
        f = [np.arctanh([np.clip(np.corrcoef(y, m)[0, 1], -0.99, 0.99) for y in scan.y]) if m is not None else 0 * region for m in means]
        f = np.stack(f, 1)
        found.append(f - f.mean(0))
        guess.append((found[-1] @ encoder.projection) @ encoder.decoder)
        counted = np.ones(len(scan.y), bool)
        assert_allclose(project(encoder, scan.y, region, np.ones(80, bool), counted), found[-1] @ encoder.projection, atol=1e-4)
    there = np.isin(np.arange(24), region)
    ways = [1 - np.square(guess[a] - found[1 - a])[:, there].sum() / np.square(found[1 - a]).sum() for a in (0, 1)]
    assert_allclose(split_half_r2(encoder, *case.scans), np.mean(ways), atol=1e-4)


def test_rois_have_r2_only(toy_model, untrained, case):
    small = rois(case)
    assert small.is_points and len(small.scans[0].space) == 12
    assert_allclose(small.scans[0].y[3], _zscored(case.scans[0].y[case.truth == 3].mean(0)), atol=1e-4)
    found = gate([toy_model, untrained], [small])
    assert [row["model"] for row in found] == ["toy", "untrained", "weighted"]
    for row in found:
        assert np.isfinite(row["r2"]) and all(np.isnan(row[m]) for m in MEASURES if m != "r2")
    summed = summary(found)
    assert better(summed)[0]["measure"] == "r2"
    assert " - " in table(summed)[1]


def _zscored(x):
    return (x - x.mean()) / x.std()


def test_the_summary_pairs_subjects():
    rng = np.random.default_rng(0)
    level, apart = rng.normal(size=40), 0.1 + 0.05 * rng.normal(size=40)
    found = []
    for subject, (own, gain) in enumerate(zip(level, apart, strict=True)):
        for pair in (-1, 1):  # a subject with two pairs counts once
            for name, value in (("first", own + pair), ("second", own + gain + pair)):
                row = {
                    "condition": "full",
                    "dataset": "",
                    "subject": str(subject),
                    "model": name,
                    "homogeneity": 0.0,
                    "ari": np.nan,
                    "r2": np.nan,
                }
                found.append(row | {"dcbc": value})
    first, second = summary(found)
    assert (first["subjects"], np.isnan(first["ari"])) == (40, True)
    assert_allclose([first["dcbc"], second["dcbc"]], [level.mean(), (level + apart).mean()])
    one = second["difference"]["dcbc"]
    half = 1.96 * apart.std() / np.sqrt(40)
    assert_allclose([one["mean"], one["low"], one["high"]], apart.mean() + np.array([0, -half, half]), atol=0.2 * half)
    assert first["difference"]["dcbc"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert better([first, second]) == [{"condition": "full", "measure": "dcbc", "model": "second", "certain": True, "behind": []}]
    few = summary(found[:8])
    assert few[1]["subjects"] == 2 and np.isnan(few[1]["difference"]["dcbc"]["low"])
    assert better(few)[0]["certain"] is None
    assert "not certain" in verdicts(few)[0]
    reverse = [row | {"dcbc": -row["dcbc"]} for row in found]
    assert better(summary(reverse)) == [{"condition": "full", "measure": "dcbc", "model": "first", "certain": True, "behind": []}]


def test_a_winner_that_a_baseline_beats_is_told_so():
    """A head that only learnt to be careful has a better R² than a decoder, and no better one than careful components."""
    values = {"plain": -0.02, "trained": 0.03, "atlas": np.nan, "weighted": 0.05}
    found = [
        {
            "condition": "roi",
            "dataset": "",
            "subject": str(s),
            "model": name,
            "dcbc": np.nan,
            "homogeneity": np.nan,
            "ari": np.nan,
            "r2": value,
        }
        for s in range(3)
        for name, value in values.items()
    ]
    summed = summary(found)
    assert better(summed) == [{"condition": "roi", "measure": "r2", "model": "trained", "certain": True, "behind": ["weighted"]}]
    assert verdicts(summed) == ["roi: trained by R²; the baseline weighted is as good or better"]


def test_simulated_people_come_from_held_out_populations_of_their_own():
    config = SimulateConfig(subjects=2, minutes=2.0, parcels=16, seed=5)
    conditions = ("full", "1min", "roi", "tr")
    assert count_simulated(conditions, config) == 10
    found = list(itertools.islice(simulated_cases(conditions, config), 6))
    assert [(one.name, one.subject) for one in found[:5]] == [(n, "001") for n in ("full", "1min", "roi", "tr 0.72 s", "tr 3.5 s")]
    assert [one.scans[0].y.shape[1] for one in found[:5]] == [60, 30, 60, 167, 34]
    assert not np.array_equal(found[0].truth, found[5].truth)
    assert not np.array_equal(found[0].atlas.labels, found[5].atlas.labels)
    (other,) = simulated_cases(("full",), dataclasses.replace(config, subjects=1, seed=6))
    assert_array_equal(other.scans[1].y, found[5].scans[1].y)  # the second person is the first of the next seed
    assert_array_equal(found[1].truth, found[0].truth)
    assert not np.array_equal(found[0].scans[0].y, found[0].scans[1].y)


def test_minutes_are_of_the_recording(toy):
    scan = make_scan(toy.signals(0)[:, :100], toy.space, tr=2.0, frames=np.arange(100) * 2, recorded=200)  # every other was scrubbed
    short = first_minutes(scan, 1.0)
    assert short.y.shape[1] == 15 and short.frames[-1] == 28
    assert_allclose(short.y.std(1), 1, atol=1e-4)
    raw = toy.signals(0)[:, :15]
    assert_allclose(short.std, raw.std(1), rtol=1e-3)  # in the file's unit


def test_sessions_are_paired_and_else_halves(toy):
    one, two, three = (_session(toy, str(n)) for n in (1, 2, 3))
    found = pairs([one, two, three])
    assert [(a.entities["ses"], b.entities["ses"], kind) for a, b, kind in found] == [("1", "2", "sessions")]
    ((a, b, kind),) = pairs([one])
    assert kind == "halves" and b.frames[0] - a.frames[-1] > 8  # a tenth of a short scan
    other_task = dataclasses.replace(two, entities={"ses": "2", "task": "movie"})
    assert [kind for *_, kind in pairs([one, other_task])] == ["halves", "halves"]


def test_one_label_of_two_data_sets_is_two_participants(toy, toy_model):
    """Two sessions each, all four of sub-01: within a data set they are pairs, across data sets never."""
    scans = [
        dataclasses.replace(_session(toy, ses, seed), source=f"{name}/sub-01/func/sub-01_ses-{ses}_bold.nii.gz")
        for name, seed, sessions in (("one", 0, "13"), ("two", 50, "24"))
        for ses in sessions
    ]
    scans = [scans[i] for i in (0, 2, 1, 3)]  # as `find_scans` sorts them
    found = list(scan_cases(scans, toy.atlas, ("full",)))
    assert [(one.dataset, one.subject, one.kind) for one in found] == [("one", "01", "sessions"), ("two", "01", "sessions")]
    assert [[scan.source.split("/")[0] for scan in one.scans] for one in found] == [["one"] * 2, ["two"] * 2]
    assert summary(gate([toy_model], [rois(one) for one in found]))[0]["subjects"] == 2
    (first, second) = scan_cases(scans, toy.atlas, ("full",), dataset="both")  # by the name that was given, they are one
    assert first.dataset == second.dataset == "both" and {scan.entities["ses"] for scan in first.scans} == {"1", "2"}


def test_sessions_with_masks_of_their_own_meet_where_both_are(toy):
    one, two = _session(toy, "1"), _session(toy, "2")
    count = len(toy.space)
    a, b = _part(one, np.arange(20, count)), _part(two, np.arange(count - 30))
    ((a, b, kind),) = pairs([a, b])
    assert kind == "sessions" and len(a.space) == count - 50 and a.space is b.space
    assert_array_equal(a.y, one.y[20 : count - 30])
    assert_array_equal(b.y, two.y[20 : count - 30])
    assert_array_equal(a.space.xyz, toy.space.xyz[20 : count - 30])
    assert [kind for *_, kind in pairs([one, _part(two, np.arange(count // 3))])] == ["halves", "halves"]


def _session(toy, name, seed=0):
    return dataclasses.replace(toy.scan(seed + int(name), frames=80), entities={"ses": name, "task": "rest"})


def _part(scan, keep):
    part = {name: getattr(scan, name)[keep] for name in ("y", "valid", "mean", "std")}
    return dataclasses.replace(scan, space=take(scan.space, keep), **part)


def test_scans_too_short_for_a_condition_are_told(toy):
    with pytest.warns(UserWarning, match="too short for condition 3min"):
        found = list(scan_cases([_session(toy, "1"), _session(toy, "2")], toy.atlas, ("full", "3min", "1min", "roi")))
    assert [one.name for one in found] == ["full", "1min", "roi"]
    assert len(found[2].scans[0].space) == 12


def test_bad_input_is_refused(toy, toy_model, case, shuffled):
    with pytest.raises(ValueError, match="at least one model, got none"):
        gate([], [case])
    with pytest.raises(ValueError, match="at least one pair of recordings, found neither"):
        gate([toy_model], scan_cases([], toy.atlas))
    with pytest.raises(ValueError, match="unique names other than atlas, centroids, weighted; got toy, toy"):
        gate([toy_model, toy_model], [case])
    with pytest.raises(ValueError, match="unique names"):
        gate([dataclasses.replace(toy_model, name="atlas")], [case])
    far = make_atlas(toy.space.xyz + 500, toy.expected + 1, resolution=8, source="far")
    with pytest.raises(ValueError, match="condition full, subject 01: atlas far does not overlap the scan"):
        gate([toy_model], [dataclasses.replace(case, atlas=far)])
    with pytest.raises(ValueError, match="unknown condition '3mins': expected one of full, .*; did you mean '3min'"):
        simulated_cases(("full", "3mins"))
    with pytest.raises(ValueError, match="no longer than the 2 min of the recordings, got 6min"):
        simulated_cases(("6min",), SimulateConfig(minutes=2.0))
    with pytest.raises(ValueError, match="condition 'tr' applies only to simulated scans"):
        scan_cases([], toy.atlas, ("tr",))
    moved = toy_model.encoder._replace(references=toy_model.encoder.references + 1)
    assert same_references(toy_model, shuffled)
    assert not same_references(toy_model, dataclasses.replace(toy_model, encoder=moved))


@pytest.fixture(scope="module")
def folder(toy, toy_model, shuffled, tmp_path_factory):
    """Two sessions of two participants, an atlas and two models."""
    root = tmp_path_factory.mktemp("evaluate")
    for subject in ("01", "02"):
        for session in ("1", "2"):
            name = f"sub-{subject}_ses-{session}_task-rest_space-MNI152NLin6Asym"
            image = nib.Nifti1Image(toy.volume(10 * int(subject) + int(session), 60), toy.affine)
            image.header.set_zooms((8, 8, 8, 2.0))
            nib.save(image, _made(root / "scans") / f"{name}_desc-preproc_bold.nii.gz")
            nib.save(nib.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), root / "scans" / f"{name}_desc-brain_mask.nii.gz")
    nib.save(nib.Nifti1Image(toy.labels_volume(), toy.affine), root / "prior_space-MNI152NLin6Asym_dseg.nii.gz")
    save_model(dataclasses.replace(toy_model, card=card("01", dataset="other")), root / "plain")
    save_model(dataclasses.replace(shuffled, card=card()), root / "mixed")
    for name, subjects in (("trained", ("01",)), ("on all", ("01", "02"))):
        save_model(dataclasses.replace(toy_model, card=card(*subjects)), root / name)
    save_model(dataclasses.replace(toy_model, card={}), root / "unsaid")
    return root


def card(*subjects, dataset=""):
    return {"participants": [{"dataset": dataset, "store": "", "subjects": list(subjects)}]}


def _made(path):
    path.mkdir(exist_ok=True)
    return path


def test_the_command_line_compares_models_on_a_folder_of_scans(folder, capsys):
    out = folder / "out.json"
    prior = folder / "prior_space-MNI152NLin6Asym_dseg.nii.gz"
    models = ["--models", str(folder / "plain"), str(folder / "mixed")]
    code = main(
        ["evaluate", "encoder", str(folder / "scans"), *models, "--atlas", str(prior), "--conditions", "full", "roi", "--out", str(out)]
    )
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "minus plain [95 %]" in told.out
    assert "not certain with fewer than 3 subjects" in told.out
    assert "roi: " in told.out and " by R²" in told.out
    result = json.loads(out.read_text("utf-8"))
    assert [model["name"] for model in result["models"]] == ["plain", "mixed"]
    assert {(row["subject"], row["pair"]) for row in result["rows"]} == {("01", "sessions"), ("02", "sessions")}
    assert result["rows"][-1]["dcbc"] is None and result["versions"]["jax"]
    assert result["excluded"] == {} and "labels as training participants of other data sets (other)" in told.err


def evaluated(folder, capsys, *arguments):
    out = folder / "trained.json"
    prior = folder / "prior_space-MNI152NLin6Asym_dseg.nii.gz"
    code = main(["evaluate", "encoder", str(folder / "scans"), "--atlas", str(prior), "--conditions", "roi", "--out", str(out), *arguments])
    return code, capsys.readouterr().err, {row["subject"] for row in json.loads(out.read_text("utf-8"))["rows"]} if not code else None


def test_participants_that_a_model_was_trained_on_are_left_out(folder, capsys):
    code, told, subjects = evaluated(folder, capsys, "--models", str(folder / "mixed"), str(folder / "trained"), str(folder / "unsaid"))
    assert (code, subjects) == (0, {"02"})
    assert "excluded: 1 of 2 participants, because trained was trained on them" in told
    assert "unsaid does not list its training participants" in told
    code, told, subjects = evaluated(folder, capsys, "--models", str(folder / "plain"), "--dataset", "other")
    assert (code, subjects) == (0, {"02"})
    code, told, _ = evaluated(folder, capsys, "--models", str(folder / "on all"))
    assert code == 1 and "no participant is left to evaluate on: all 2 were used to train on all" in told


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encodr"], 2, 'Did you mean "encoder"?'),
        (["encoder", "--models", "pnet-linaer"], 1, "did you mean 'pnet-linear'"),
        (["encoder", "--conditions", "ful"], 1, "unknown condition 'ful'"),
        (["encoder", "--task", "rest"], 1, "--task is for scans"),
        (["encoder", "--subjects", "0"], 2, "--subjects: expected 1 or more, got 0"),
        (["encoder", "nowhere"], 1, "no such file or folder"),
        (["encoder", "{folder}/scans", "--parcels", "7"], 1, "7 were requested"),
        (["encoder", "{folder}/scans", "--conditions", "resolution"], 1, "applies only to simulated scans"),
    ],
)
def test_mistakes_on_the_command_line(arguments, code, message, folder, capsys):
    found = main(["evaluate", *(one.replace("{folder}", str(folder)) for one in arguments)])
    assert (found, message in capsys.readouterr().err) == (code, True)
