"""Warnings of how an atlas lies on a scan."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pnet_jax.construction.misfits import misfits
from pnet_jax.parcellation.spatial import locate, place


@pytest.fixture(scope="module")
def said(toy):
    scan, placed = toy.scan(0, frames=30), place(toy.atlas, toy.space)

    def of(space=None, valid=None, **atlas) -> list[str]:
        changed = scan if space is None else dataclasses.replace(scan, space=dataclasses.replace(scan.space, name=space))
        changed = changed if valid is None else dataclasses.replace(changed, valid=valid)
        other = dataclasses.replace(placed, atlas=dataclasses.replace(placed.atlas, **atlas))
        here = locate(placed, changed).valid[: len(placed.here)]
        return misfits(changed, other, here, np.where(here, 0, -1))

    return of


def test_an_atlas_that_fits_has_nothing_to_be_warned_of(said):
    assert said() == []


def test_another_generation_of_the_template_is_said_with_its_shift(said):
    (text,) = said(space="MNI152NLin2009cAsym")
    assert text.startswith(
        "the scan is in MNI152NLin2009cAsym, the atlas in MNI152NLin6Asym; corresponding points are about 2 mm apart (up to 5 mm)"
    )


@pytest.mark.parametrize(
    ("scan", "atlas", "source"),
    [
        ("MNI152NLin6Sym", "MNI152NLin6Asym", "drawn"),
        ("MNI152NLin2009aAsym", "MNI152NLin2009cAsym", "drawn"),
        ("MNI152NLin2009cAsym", "unknown", "drawn"),
        ("fsLR", "MNI152NLin6Asym", "drawn"),
        ("MNI152NLin6Asym", "MNI152NLin2009cAsym", "geometric, k-means on mm"),
    ],
)
def test_templates_that_agree_or_are_unknown_are_not_warned_of(toy, scan, atlas, source):
    placed = place(toy.atlas, toy.space)
    placed = dataclasses.replace(placed, atlas=dataclasses.replace(placed.atlas, space=atlas, source=source))
    recording = toy.scan(0, frames=30)
    recording = dataclasses.replace(recording, space=dataclasses.replace(recording.space, name=scan))
    assert misfits(recording, placed, np.ones(len(placed.here), bool), np.zeros(len(placed.here), int)) == []


@pytest.mark.parametrize("template", ["MNIInfant", "MNIPediatricAsym", "UNCInfant", "MNIInfant+2"])
def test_templates_of_children_with_an_atlas_of_adults(said, template):
    (text,) = said(space=template)
    assert text.startswith(f"the scan is in {template}, a pediatric template, and the atlas is in MNI152NLin6Asym")


def test_names_of_the_other_side(said):
    names = [f"{side}_{k}" for side in ("LH", "RH") for k in range(6)]
    assert said(names=tuple(names)) == []
    (text,) = said(names=tuple(names[::-1]))
    assert text.startswith("12 of 12 parcels with left or right in their names lie in the other hemisphere")


def test_an_atlas_that_lies_mostly_outside_the_scan(said, toy):
    above = toy.space.xyz[:, 2] > 10
    (text,) = said(valid=above)
    assert text.startswith("the scan has a signal at only ") and "of the atlas, expected at least 50%" in text
    assert said(valid=~above) == []
