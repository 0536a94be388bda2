"""Networks of the same scans made in another way: matched by name, compared in the same folds, refused where they are others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.cohort import Cohort, make_cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import diagnosis, prediction
from pnet_jax.evaluate.beside import same_scans
from tests.evaluate.test_diagnosis import cohort

FEW = {"permutations": 0, "learning": (), "repeats": 1, "leave_out": "subject", "folds": 3, "features": ()}


def named(subjects, sessions=None, k=4, **columns) -> Cohort:
    """Scans whose number is the value of their edges."""
    edges = np.tile(np.eye(k), (len(subjects), 1, 1))
    edges[:, 0, 1] = edges[:, 1, 0] = np.arange(len(subjects)) / 100
    return make_cohort(subjects, edges={"pearson": edges}, sessions=sessions, covariates=columns)


def test_what_only_another_cohort_shows_is_found_there():
    plain, other = cohort(n=40, k=8, frames=60), cohort(n=40, k=11, frames=60, effect=2.0, seed=1)
    order = np.random.default_rng(0).permutation(40)
    kept = dataclasses.replace(other, table={name: other.table[name] for name in ("scan", "subject", "session", "tr")}).take(order)
    found = diagnosis(plain, "dx", positive="patient", models=("ridge",), beside={"Ward": kept}, **FEW)
    assert found.value("tangent + ridge", "AUC") < 0.75 and found.value("Ward: tangent + ridge", "AUC") > 0.9
    apart = next(row for row in found.rows if row.table == "differences" and row.name == "Ward: tangent + ridge")
    assert apart.low > 0 and apart.measure == "AUC minus tangent + ridge" and apart.n == 40
    assert apart.value == pytest.approx(found.value("Ward: tangent + ridge", "AUC") - found.value("tangent + ridge", "AUC"))
    assert found.sentences[1].startswith("Ward: tangent + ridge predicts better than the plain connectome (tangent + ridge)")
    assert found.sentences[-1].startswith("Ward: tangent + ridge (11 parcels): AUC = ")
    assert found.settings["beside"] == {"Ward": {"parcels": 11, "atlas": "", "matched by": "scan"}}


def test_another_cohort_of_matrices_is_compared_with_edges_too():
    """Tangent vectors of signals against edges of matrices would compare features, not parcels."""
    plain = cohort(n=30, k=8, frames=60)
    plain.table["score"] = plain.edges["pearson"][:, 0, 1].astype(float)
    matrices = named(plain.table["subject"])
    matrices.edges["pearson"][:, 0, 1] = matrices.edges["pearson"][:, 1, 0] = plain.table["score"]
    found = prediction(plain, "score", beside={"imported": matrices}, **FEW)
    apart = {row.measure: row for row in found.rows if row.table == "differences" and row.name == "imported: pearson + ridge"}
    assert {measure.partition(" minus ")[2] for measure in apart} == {"tangent + ridge", "pearson + ridge"}
    assert all(row.value > 0 for row in apart.values()) and sum("imported" in said for said in found.sentences) >= 2


def test_scans_are_matched_and_those_that_one_lacks_are_left_out():
    first = named(["a", "a", "b", "c"], ["1", "2", "1", "1"], age=[1.0, 2.0, 3.0, 4.0])
    second = named(["d", "c", "b", "a"], ["1"] * 4)
    third = named(["a", "b", "c"], ["1", "1", "1"]).take(np.array([2, 1, 0]))
    found = same_scans(first, {"two": second, "three": third}, "age")
    assert found.cohort.table["age"].tolist() == [1, 3, 4]
    assert [other.table["scan"].tolist() for other in found.others.values()] == [found.cohort.table["scan"].tolist()] * 2
    np.testing.assert_allclose(found.others["two"].edges["pearson"][:, 0, 1], [0.03, 0.02, 0.01])
    assert found.warnings[:2] == (
        "two lacks 1 scans (0 participants) of the cohort, first sub-a_ses-2: they were left out of all comparisons.",
        "The cohort lacks 1 scans (1 participants) of two, first sub-d_ses-1: they were left out of all comparisons.",
    )
    assert same_scans(first, None, "age").cohort is first


@pytest.mark.parametrize(
    ("relabelled", "matched"), [({"session": np.array(["1", "1"])}, "subject and session"), ({"session": np.array(["", ""])}, "subject")]
)
def test_labels_of_other_programs_are_matched_by_subject(relabelled, matched):
    first, second = named(["a", "b"], ["1", "1"]), named(["b", "a"])
    second = dataclasses.replace(second, table=second.table | relabelled | {"scan": np.array(["sub-b_task-rest", "sub-a_task-rest"])})
    found = same_scans(first, {"other": second}, "age")
    assert found.about["other"]["matched by"] == matched
    assert found.others["other"].table["subject"].tolist() == ["a", "b"]


def test_other_participants_are_refused_by_name():
    first = named(["a", "b"], ["1", "1"], dx=np.array(["p", "c"]))
    for other, message in (
        (named(["c", "d"]), "Ward: expected networks of the same scans, found no scan in common: sub-a_ses-1 … in the cohort, sub-c …"),
        (named(["a", "b"], ["2", "2"]), "Ward: expected networks of the same scans, found no scan in common"),
        (
            named(["a", "b"], dx=np.array(["p", "p"])),
            "Ward: expected the same participants, with the same dx, found p in Ward and c in",
        ),
    ):
        with pytest.raises(InputError, match=message):
            same_scans(first, {"Ward": other}, "dx")
    unclear = named(["a", "a", "b"], ["1", "2", "1"])
    unclear.table["session"][:] = ""
    unclear.table["scan"][:] = ["x", "y", "z"]
    with pytest.raises(InputError, match="Ward: expected one scan for each subject, or equal scan labels, found 2 scans of a in Ward"):
        same_scans(first, {"Ward": unclear}, "dx")
    with pytest.raises(InputError, match="found none in the cohort, Ward, NMF together"):
        same_scans(first, {"Ward": named(["a"], ["1"]), "NMF": named(["b"], ["1"])}, "dx")
    with pytest.raises(SettingsError, match="expected a name for every cohort"):
        same_scans(first, {" ": first}, "dx")
