"""Settings are checked before the first scan, and become what is compiled into the step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.checkpoint import save_group
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import resolve
from pnet_jax.group.fit import Group
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.choose import BETAS, KAPPAS
from pnet_jax.parcellation.spatial import LearnedPrior, place


def test_the_plan_holds_what_was_asked_for(toy, toy_model):
    plan = resolve(ConstructConfig(), model=toy_model)
    assert plan.model is toy_model and plan.atlas is toy.atlas and plan.group is None
    assert plan.settings == (12, "auto", ("pearson",)) and (plan.kappas, plan.betas) == (KAPPAS, BETAS)
    assert plan.config.parcels == 12 and plan.config.checkpoint == "toy" and plan.config.atlas == "toy"
    assert hash(plan.settings) == hash(resolve(ConstructConfig(), model=toy_model).settings)


def test_given_settings_are_the_whole_grid(toy_model):
    plan = resolve(ConstructConfig(kappa=7, beta=0.3, labels="personalised"), model=toy_model)
    assert (plan.kappas, plan.betas, plan.settings.labels) == ((7.0,), (0.3,), "personalised")
    assert resolve(ConstructConfig(beta=0.3), model=toy_model).kappas == KAPPAS


def test_measures_that_need_more_than_parcels_are_made_after_the_step(toy_model):
    plan = resolve(ConstructConfig(edges=("distance_correlation", "cka", "pearson")), model=toy_model)
    assert plan.edges == ("distance_correlation", "cka", "pearson") == plan.config.edges
    assert plan.settings.edges == ("distance_correlation", "pearson")
    assert resolve(ConstructConfig(edges=("partial",)), model=toy_model, edges=("covariance",)).edges == ("covariance",)


def test_measures_of_a_cohort_need_one(toy_model):
    with pytest.raises(ValueError, match=r'"tangent" requires several scans; use `construct_cohort` or `pnet construct` on several'):
        resolve(ConstructConfig(edges=("pearson", "tangent")), model=toy_model)
    plan = resolve(ConstructConfig(edges=("pearson", "tangent")), model=toy_model, cohort=True)
    assert plan.edges == ("pearson", "tangent") and plan.settings.edges == ("pearson",)


@pytest.mark.parametrize("name", ["coupling", "effective"])
def test_edges_of_dynamics_need_dynamics(toy_model, name):
    with pytest.raises(ValueError, match=f'"{name}" requires fitted dynamics; add --dynamics'):
        resolve(ConstructConfig(), model=toy_model, edges=(name,))


def test_the_model_s_atlas_is_the_one_with_200_parcels_where_it_has_one(toy, toy_model):
    coarse, fine = (dataclasses.replace(toy.atlas, source=name) for name in ("coarse", "fine"))
    several = dataclasses.replace(toy_model, atlases={50: coarse, 200: fine, 400: coarse})
    assert resolve(ConstructConfig(), model=several).atlas is fine
    assert resolve(ConstructConfig(parcels=50), model=several).atlas is coarse
    assert resolve(ConstructConfig(parcels=50), model=several, parcels=200).atlas is fine
    with pytest.raises(
        ValueError, match=r"has atlases with \[50, 200, 400\] parcels, but 100 were requested; choose one of these, or give an atlas file"
    ):
        resolve(ConstructConfig(parcels=100), model=several)


def test_a_group_of_other_parcels_or_without_the_dynamics_asked_for_is_refused(toy, toy_model):
    other, same = Group("elsewhere", ("01",)), Group(toy.atlas.digest, ("01",))
    with pytest.raises(ValueError, match=r"group was fitted with another atlas: expected .*\(toy\), found elsewhere; give the atlas"):
        resolve(ConstructConfig(), model=toy_model, group=other)
    assert resolve(ConstructConfig(), model=toy_model, group=same).group is same
    with pytest.raises(ValueError, match="group was fitted without dynamics; refit it with `pnet fit-group --dynamics`"):
        resolve(ConstructConfig(dynamics=True), model=toy_model, group=same)


def test_a_folder_with_a_group_is_read_and_named_where_it_does_not_fit(toy, toy_model, tmp_path):
    learned = place(toy.atlas, toy.space)
    n = len(learned.here)
    spatial = LearnedPrior(
        learned.space.xyz, learned.space.hemisphere, learned.prior.candidates[:n], learned.prior.log_prior[:n], resolution=8.0
    )
    save_group(Group(toy.atlas.digest, ("01", "02"), spatial), tmp_path / "same")
    save_group(Group("elsewhere", (), spatial), tmp_path / "other")
    assert resolve(ConstructConfig(group=str(tmp_path / "same")), model=toy_model).group.subjects == ("01", "02")
    with pytest.raises(ValueError, match=f"group {tmp_path / 'other'} was fitted with another atlas"):
        resolve(ConstructConfig(group=str(tmp_path / "same")), model=toy_model, group=tmp_path / "other")


def test_a_brain_mask_is_not_an_atlas(toy, toy_model):
    mask = make_atlas(toy.space.xyz, np.ones(len(toy.space), int), resolution=8, source="mask.nii.gz")
    with pytest.raises(ValueError, match=r"atlas mask\.nii\.gz: expected at least 2 parcels, found 1; the file may be a brain mask"):
        resolve(ConstructConfig(), atlas=mask, model=toy_model)
