"""Figures, reasons and warnings of a network, from the arrays of the step."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pnet_jax.config import ConstructConfig
from pnet_jax.construction import resolve
from pnet_jax.construction.assemble import assemble
from pnet_jax.group.fit import Group
from pnet_jax.network import QC
from pnet_jax.parcellation.spatial import LearnedPrior
from pnet_jax.scan import halves_of


@pytest.fixture(scope="module")
def ready(toy, toy_builder):
    scan = toy.scan(0)
    return toy_builder.ready(dataclasses.replace(scan, halves=halves_of(scan)))


@pytest.fixture(scope="module")
def found(ready, toy_builder):
    return toy_builder.run([ready])[0]


@pytest.fixture
def qc(ready, found, toy_builder):
    """QC of the same scan, of which something is changed."""

    def made(found=found, plan=toy_builder.plan, subject=None, **changed) -> QC:
        scan = dataclasses.replace(ready.scan, **changed)
        return assemble(scan, ready.placed, plan, ready.subject._replace(**(subject or {})), found).qc

    return made


def returned(found, *, personalised=False, **quality):
    return found._replace(personalised=np.array(personalised), quality=found.quality._replace(**quality))


def test_a_good_scan_has_nothing_to_be_warned_of(qc):
    assert qc().warnings == ()
    assert json.dumps(dataclasses.asdict(qc()))  # plain numbers and words alone


def test_the_selection_is_that_of_the_step(qc, found):
    selection = qc().selection
    assert selection.decision == "personalised" and not selection.at_edge
    assert selection.kappa == found.choice.kappa and selection.score == found.choice.score
    assert [trial.score for trial in selection.trials] == found.choice.scores.tolist()
    assert selection.reason.startswith("across halves the personalised parcels gain +") and "atlas" not in selection.reason
    calibration = qc().calibration
    assert sum(one.locations for one in calibration.curve) == found.reliability[2].sum()
    assert all(0 <= one.replicated <= 1 and 0 < one.probability <= 1 for one in calibration.curve)
    assert calibration.confident_moves + calibration.doubtful_moves == pytest.approx(qc().moved)
    assert calibration.expected_error < 0.1


NOTHING = np.array([-0.01, 0.0, 0.01], np.float32)


@pytest.mark.parametrize(
    ("quality", "subject", "reason"),
    [
        (
            {},
            {"degrees": np.array([4.0, 30.0])},
            "leave 4.0 and 30.0 degrees of freedom in the halves of the scan, "
            "but at least 10 are needed in each; about 13.3 minutes of scan",
        ),
        ({}, {"n_blocks": np.int32(2)}, "has 2 blocks of 20 s, but at least 3 are needed to measure a gain; a longer scan would help"),
        ({"dcbc_gain": np.full(3, np.nan)}, {}, "the DCBC could not be measured across halves"),
        ({"gain": NOTHING}, {}, "does not exclude zero; a longer scan would help, so the atlas is kept"),
        ({"dcbc_gain": NOTHING}, {}, "does not exclude zero"),
        ({"dcbc_gain": np.array([0.001, 0.005, 0.009])}, {}, "below 0.01 is also found in noise; a longer scan would help"),
    ],
)
def test_the_atlas_comes_with_a_reason_that_says_what_would_help(qc, found, quality, subject, reason):
    kept = qc(returned(found, **quality), subject=subject)
    assert kept.selection.decision == "atlas" and reason in kept.selection.reason
    assert kept.selection.reason.endswith("so the atlas is kept")
    assert kept.calibration is None
    assert kept.warnings == (f"the parcels of the atlas are returned: {kept.selection.reason}",)


@pytest.mark.parametrize("changed", [{"degrees": np.array([4.0, 30.0])}, {"n_blocks": np.int32(2)}, {}])
def test_where_a_group_taught_the_spatial_prior_its_map_is_returned(qc, found, toy_builder, changed):
    place = toy_builder.plan.atlas
    learned = LearnedPrior(place.xyz, place.hemisphere, place.labels[:, None], np.zeros((len(place.xyz), 1), np.float32), 8.0)
    plan = dataclasses.replace(toy_builder.plan, group=Group(place.digest, ("11", "12", "13"), learned))
    kept = qc(returned(found, gain=NOTHING), plan=plan, subject=changed)
    assert kept.selection.reason.endswith("so the group's map is kept")
    assert kept.warnings == (f"the parcels of the group's map are returned: {kept.selection.reason}",)
    taught_edges_alone = dataclasses.replace(plan, group=Group(place.digest, ("11", "12", "13")))
    assert "so the atlas is kept" in qc(returned(found, gain=NOTHING), plan=taught_edges_alone, subject=changed).selection.reason


def test_forced_parcels_say_that_the_scan_does_not_support_them(qc, found):
    forced = qc(returned(found, personalised=True, gain=NOTHING)).selection
    assert forced.reason.startswith("forced by the configuration, although not supported: across halves")
    assert forced.decision == "personalised"


def test_signals_that_were_cleaned_as_a_whole_are_warned_of(qc):
    (said,) = qc(halves=None).warnings
    assert "make its halves dependent" in said and "can mistake noise for a gain" in said


def test_one_signal_everywhere_is_said_first(qc, found):
    rng = np.random.default_rng(0)
    alike = (rng.normal(size=found.signals.shape[1]) + 0.1 * rng.normal(size=found.signals.shape)).astype(np.float32)
    said = qc(found._replace(signals=alike), warnings=("something else",)).warnings
    assert (
        said[0].startswith("the mean absolute correlation between parcels is 0.99; one signal dominates all of them")
        and said[1] == "something else"
    )


def test_signals_alike_up_to_their_sign_are_one_signal(qc, found):
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(len(found.signals)) % 2, 1, -1)[:, None]
    alike = sign * (rng.normal(size=found.signals.shape[1]) + 0.1 * rng.normal(size=found.signals.shape))
    said = qc(found._replace(signals=alike.astype(np.float32)), warnings=("something else",)).warnings
    assert said[0].startswith("the mean absolute correlation between parcels is 0.99")


def test_one_signal_in_many_parcels_is_said_first(qc, found):
    rng = np.random.default_rng(0)
    some = rng.normal(size=found.signals.shape)
    some[:6] = some[0] + 0.1 * some[:6]
    said = qc(found._replace(signals=some.astype(np.float32)), warnings=("something else",)).warnings
    assert said[0].startswith("50% of the parcels have nearly the same signal") and said[1] == "something else"
    some[3:6] = rng.normal(size=some[3:6].shape)
    assert qc(found._replace(signals=some.astype(np.float32))).warnings == ()


def test_too_few_degrees_say_in_numbers_what_would_help(qc, found):
    cleaning = {"confounds": [f"c{i}" for i in range(26)], "low_pass": 0.1, "high_pass": 0.009}
    kept = qc(returned(found), subject={"degrees": np.array([3.0, 1.4])}, cleaning=cleaning)
    # 72 frames of 2 s in a half: a band of 0.091 Hz leaves 26.2 degrees before regression, and 36 are needed.
    assert kept.selection.reason == (
        "filter and 26 regressors leave 3.0 and 1.4 degrees of freedom in the halves of the scan, "
        "but at least 10 are needed in each; at most 16 "
        "regressors instead of 26 (--cleaning.strategy; "
        "--cleaning.motion basic has 6 motion regressors), about 7.3 minutes of scan instead of 5.3 "
        "at this TR and band or a group model (pnet fit-group) would help, so the atlas is kept"
    )


def test_a_best_setting_at_the_edge_is_said(qc, found):
    (said,) = qc(found._replace(choice=found.choice._replace(edge=np.array(True)))).warnings
    assert said.startswith("the best κ (") and said.endswith("lies at the edge of the grid")


def test_motion_counts_in_the_frames_that_were_kept(qc):
    moved = np.full(160, 0.1)
    assert qc(displacement=moved).warnings == () and qc(displacement=moved).mean_displacement == pytest.approx(0.1)
    (said,) = qc(displacement=moved + 0.3).warnings
    assert "mean framewise displacement is 0.40 mm in the retained frames" in said and 'add "scrub" to cleaning.strategy' in said


def test_ill_posed_measures_are_warned_of_by_the_degrees_that_cleaning_left(qc, toy_model):
    plan = resolve(ConstructConfig(edges=("pearson", "partial")), model=toy_model)
    assert qc(plan=plan).warnings == ()
    (said,) = qc(plan=plan, degrees=30.0).warnings
    assert "about 30 effective frames for 12 parcels, but more than 60" in said


def test_warnings_are_added_and_never_taken_away():
    assert QC(warnings=("a",)).warn("b", "c").warnings == ("a", "b", "c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        QC().moved = 1.0
