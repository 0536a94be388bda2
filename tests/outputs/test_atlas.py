"""Two atlases in one folder: neither overwrites the other, and one label stands for one atlas."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pnet_jax.outputs import atlas_label, load_network, save

from .helpers import K, make_network


def with_atlas(source: str, digest: str, **fields):
    """A network of another atlas of as many parcels."""
    network = make_network(**fields)
    return dataclasses.replace(network, provenance=network.provenance | {"atlas": {"source": source, "digest": digest}})


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("/data/Schaefer200TianS1_res-2_dseg.nii.gz", "Schaefer200TianS1"),
        ("tpl-MNI152NLin6Asym_atlas-Schaefer2018_res-02_desc-200Parcels17Networks_dseg.nii.gz", "Schaefer2018200Parcels17Networks"),
        ("atlas-4S156Parcels_space-fsLR_den-91k_dseg.dlabel.nii", "4S156Parcels"),
        ("space-MNI152NLin6Asym_seg-aparc_dseg.nii", "aparc"),
        ("Gordon 333 (parcels).nii.gz", "Gordon333parcels"),
        ("dseg.nii.gz", "atlas200"),
        ("geometric, k-means on mm, K = 200, seed 0", "geometric200"),
        ("learned from the scans of the checkpoint, K = 200, seed 0", "learned200"),
        ("memory", "memory200"),
        ("", "atlas200"),
    ],
)
def test_labels_are_of_letters_and_digits(source, label):
    assert atlas_label(source, 200) == label


def test_two_atlases_of_as_many_parcels_stand_beside_each_other(tmp_path):
    one, two = with_atlas("Schaefer12_dseg.nii.gz", "aa"), with_atlas("Glasser12_dseg.nii.gz", "bb", names=tuple("ABCDEFGHIJKL"))
    tables = [save(network, tmp_path, probabilities=False)[-1] for network in (one, two)]
    assert len(set(tables)) == 2
    for table, network in zip(tables, (one, two), strict=True):
        found = load_network(table)
        assert found.names == network.names and found.provenance["atlas"]["source"] == network.provenance["atlas"]["source"]
        np.testing.assert_array_equal(found.labels, network.labels)
    about = json.loads((tmp_path / "atlas-pnet_seg-Glasser12_source.json").read_text("utf-8"))
    assert (about["Source"], about["Digest"], about["Parcels"]) == ("Glasser12_dseg.nii.gz", "bb", K)


def test_another_atlas_of_the_same_label_is_refused(tmp_path):
    first = save(with_atlas("a/Schaefer12_dseg.nii.gz", "aa"), tmp_path, probabilities=False)[-1]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    said = r"two atlases have the label seg-Schaefer12: .* a/Schaefer12\S+ \(digest aa\), .* b/Schaefer12\S+ \(digest bb\)"
    with pytest.raises(ValueError, match=said):
        save(with_atlas("b/Schaefer12_dseg.nii.gz", "bb"), tmp_path)
    with pytest.raises(ValueError, match=said):  # another participant's results would not be comparable either
        save(with_atlas("b/Schaefer12_dseg.nii.gz", "bb", subject="02"), tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert save(with_atlas("moved/Schaefer12_dseg.nii.gz", "aa"), tmp_path, probabilities=False)[-1] == first
