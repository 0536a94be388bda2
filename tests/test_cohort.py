"""Cohort: arrays over scans that belong together, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.cohort import COLUMNS, check_cohort, cohort_of
from pnet_jax.errors import InputError
from pnet_jax.provenance import shared_provenance
from pnet_jax.scan import make_scan
from pnet_jax.space import places_in, point_space
from tests.outputs.cohorts import make_networks
from tests.outputs.helpers import ABSENT, IDS, K, cifti_network, native_network, points_network


@pytest.fixture(scope="module")
def networks():
    return make_networks(5)


def test_arrays_lead_with_scans_and_are_those_of_the_networks(networks):
    cohort = cohort_of(networks, {"age": np.arange(5.0)})
    assert len(cohort) == 5 and cohort.n_parcels == K and cohort.subjects == ("00", "01", "02")
    assert cohort.table["scan"].tolist()[1] == "sub-00_ses-b_task-rest"
    assert list(cohort.table) == [*COLUMNS, "age"]
    assert cohort.table["minutes"].tolist() == [1, 2, 3, 4, 5] and cohort.table["decision"][0] == "personalised"
    assert np.isnan(cohort.table["tsnr"]).all() and cohort.table["mean_fd"][0] == 0.11
    assert cohort.signals.shape == (5, K, 40) and cohort.kept.sum(1).tolist() == [40, 39, 38, 37, 36]
    assert cohort.atlas == {"source": "Schaefer12_res-8_dseg.nii.gz", "digest": "00ff"}
    for s, network in enumerate(networks):
        np.testing.assert_array_equal(cohort.edges["partial"][s], network.edges["partial"])
        np.testing.assert_array_equal(cohort.signals[s][:, cohort.kept[s]], network.signals)
        at = places_in(cohort.space, network.space)
        np.testing.assert_array_equal(cohort.space.xyz[at], network.space.xyz)
        np.testing.assert_array_equal(cohort.labels[s, at], network.labels)
        np.testing.assert_array_equal(cohort.confidence[s, at], network.confidence)
        outside = np.setdiff1d(np.arange(len(cohort.space)), at)
        assert (cohort.labels[s, outside] == -1).all() and (cohort.confidence[s, outside] == 0).all()
    assert np.isnan(cohort.signals[4][:, 36:]).all() and np.isnan(cohort.edges["pearson"][:, ABSENT]).all()


def test_masks_of_one_grid_share_a_space_whatever_the_order(networks):
    one, other = cohort_of(networks), cohort_of(networks[::-1])
    assert len(one.space) == len(other.space) > len(networks[1].space)
    assert set(map(tuple, one.space.grid.ijk)) == set(map(tuple, other.space.grid.ijk))
    assert (one.space.neighbours >= 0).sum() == (other.space.neighbours >= 0).sum()


@pytest.mark.parametrize("other", [points_network, cifti_network, native_network])
def test_of_two_spaces_there_are_no_labels(networks, other):
    network = dataclasses.replace(other(), subject="99", names=networks[0].names)
    cohort = cohort_of([networks[0], network])
    assert cohort.labels is None and cohort.confidence is None and cohort.space is None
    assert cohort.signals.shape == (2, K, 40)


def test_a_measure_that_one_scan_lacks_is_nan(networks):
    less = dataclasses.replace(networks[1], edges={"pearson": networks[1].edges["pearson"]})
    cohort = cohort_of([networks[0], less])
    assert np.isnan(cohort.edges["partial"][1]).all() and list(cohort.edges) == ["pearson", "partial"]


def test_scans_are_taken_by_mask_index_and_slice(networks):
    cohort = cohort_of(networks, {"site": np.array(list("AABBB"))})
    for rows in (cohort.table["site"] == "B", np.array([2, 3, 4]), slice(2, None)):
        part = cohort.take(rows)
        assert len(part) == 3 and set(part.table["site"]) == {"B"} and part.subjects == ("01", "02")
        np.testing.assert_array_equal(part.edges["pearson"], cohort.edges["pearson"][2:])
        np.testing.assert_array_equal(part.labels, cohort.labels[2:])
    assert cohort.take(np.array([4, 0])).table["scan"].tolist() == [cohort.table["scan"][4], cohort.table["scan"][0]]
    with pytest.raises(InputError, match="expected every scan once, found sub-00_ses-a_task-rest 2 times"):
        cohort.take(np.array([0, 0]))
    with pytest.raises(IndexError):
        cohort.take(np.ones(4, bool))


def test_views_say_what_edges_are(networks):
    both = dataclasses.replace(networks[0], edges={"guided": networks[0].edges["pearson"], "effective": np.ones((K, K)).cumsum(1)})
    views = cohort_of([both]).views
    assert views["guided"] == {"units": "correlation (r)", "meant_for": "description, identification", "directed": False}
    assert views["effective"]["directed"] and views["effective"]["units"] == "1/s"


def test_provenance_says_which_fields_of_the_cleaning_differ_and_for_how_many_scans():
    """Figures of one recording, such as its degrees of freedom, do not count, and do not hide the filter that all scans share."""
    done = [{"low_pass": 0.1, "degrees_of_freedom": 30.0 + n, "confounds": ["csf"] if n else ["csf", "rot_x"]} for n in range(4)]
    found = shared_provenance([{"cleaning": one} for one in done])
    assert found == {"cleaning": {"low_pass": 0.1}, "differ": {"cleaning.confounds": {'["csf"]': 3, '["csf", "rot_x"]': 1}}}
    many = shared_provenance([{"cleaning": {"strategy": str(n // 2)}} for n in range(20)])["differ"]["cleaning.strategy"]
    assert list(many.values()) == [2, 2, 2, 2, 2, 10] and list(many)[-1] == "5 other values"
    assert shared_provenance([{"cleaning": {"low_pass": 0.1}}, {"cleaning": {}}])["differ"] == {
        "cleaning.low_pass": {"0.1": 1, "not recorded": 1}
    }


def test_a_cohort_a_network_and_a_scan_are_printed_in_one_line_without_arrays(networks):
    cohort = cohort_of(networks, {"site": ["A", "B"] + ["B"] * (len(networks) - 2)})
    said = repr(cohort)
    assert said.startswith(f"Cohort({len(networks)} scans, {len(cohort.subjects)} subjects, ") and "2 sites; 12 parcels" in said
    assert "edges pearson, partial" in said and "2462 locations" in said
    one = make_scan(np.random.default_rng(0).normal(size=(3, 40)), point_space(np.eye(3) * 50), tr=2.0, subject="07", entities={"ses": "b"})
    assert repr(networks[0]).startswith(
        "Network(sub-00_ses-a_task-rest: 12 personalised parcels, 2462 locations in MNI152NLin6Asym, 40 frames"
    )
    assert repr(one) == "Scan(sub-07_ses-b: 3 locations in unknown, 40 of 40 frames, TR 2 s)"
    for text in (said, repr(networks[0]), repr(one), repr(cohort.space)):
        assert len(text) < 250 and "array" not in text and "\n" not in text


def test_provenance_is_what_all_have_in_common(networks):
    other = dataclasses.replace(networks[1], provenance=networks[1].provenance | {"pnet_jax": "0.2", "seed": 4})
    found = cohort_of([networks[0], other]).provenance
    assert (
        found["differ"] == {"pnet_jax": {networks[0].provenance["pnet_jax"]: 1, "0.2": 1}}
        and found["config"] == networks[0].provenance["config"]
        and "seed" not in found
    )


def _matrix(change):
    def changed(network):
        matrix = network.edges["pearson"].copy()
        change(matrix)
        return dataclasses.replace(network, edges={"pearson": matrix})

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: dataclasses.replace(n, ids=IDS[::-1]), "sub-00_ses-b_task-rest: expected the 12 parcels of sub-00_ses-a_task-rest"),
        (lambda n: dataclasses.replace(n, ids=IDS[:11]), "found 11 with ids"),
        (lambda n: dataclasses.replace(n, provenance={"atlas": {"digest": "11"}}), r"other networks \(digest 00ff\), found digest 11"),
        (
            lambda n: dataclasses.replace(n, entities={"task": "rest", "ses": "a"}),
            "expected every scan once, found sub-00_ses-a_task-rest 2",
        ),
        (_matrix(lambda m: m.__setitem__((0, 1), 9)), "sub-00_ses-b_task-rest: edges 'pearson' are not symmetric"),
        (_matrix(lambda m: m.__setitem__((0, 1), np.nan)), "are NaN between parcels 0 and 1, which have other edges"),
        (_matrix(lambda m: m.__setitem__((0, 0), np.inf)), "contain an infinite value"),
    ],
)
def test_what_does_not_belong_together_is_refused(networks, change, said):
    with pytest.raises(InputError, match=said):
        cohort_of([networks[0], change(networks[1])])


def test_arrays_of_other_shapes_and_labels_out_of_range_are_refused(networks):
    cohort = cohort_of(networks)
    with pytest.raises(InputError, match=r"expected edges\['pearson'\] of shape \(5, 12, 12\), found \(4, 12, 12\)"):
        dataclasses.replace(cohort, edges={"pearson": cohort.edges["pearson"][:4]})
    with pytest.raises(InputError, match=r"expected table\['age'\] of shape \(5,\), found \(2,\)"):
        cohort_of(networks, {"age": [1, 2]})
    with pytest.raises(InputError, match="sub-00_ses-a_task-rest: expected labels −1…11, found 0…12"):
        check_cohort(dataclasses.replace(cohort, labels=np.where(cohort.labels == 11, 12, cohort.labels)))
    with pytest.raises(InputError, match="at least one network, got none"):
        cohort_of([])
