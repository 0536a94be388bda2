"""Atlas files -> Atlas."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pnet_jax.errors import InputError
from pnet_jax.ingest import load_atlas
from pnet_jax.ingest.lut import read_lut

from .helpers import AFFINE, SHAPE, SHARED, flip_x

ATLAS = "atlas-toy_space-MNI152NLin6Asym_res-8_dseg"


def labels():
    """Ids 3, 7 and 40: not contiguous."""
    values = np.zeros(SHAPE, np.int16)
    values[1:4, 2:6, 2:5], values[7:9, 3:7, 2:5], values[4:6, 8:10, 5:7] = 3, 7, 40
    return values


def save(folder, values=None, name=f"{ATLAS}.nii.gz", affine=AFFINE):
    nib.save(nib.Nifti1Image(labels() if values is None else values, affine), folder / name)
    return folder / name


def save_lut(path, rows):
    pd.DataFrame(rows, columns=["index", "name"]).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)


def test_ids_need_not_be_contiguous(tmp_path):
    save_lut(tmp_path / f"{ATLAS}.tsv", [(0, "out"), (3, "left"), (7, "right"), (40, "top")])
    prior = load_atlas(save(tmp_path))
    assert prior.ids.tolist() == [3, 7, 40] and prior.names == ("left", "right", "top")
    assert prior.hemispheres[:2] == ("L", "R") and prior.resolution == 8 and prior.space == "MNI152NLin6Asym"
    point = prior.xyz[prior.labels == 0].min(0)
    np.testing.assert_allclose(point, [-44 + 8, -60 + 16, -36 + 16])


def test_labels_without_voxels_are_left_out_and_named(tmp_path):
    save_lut(tmp_path / f"{ATLAS}.tsv", [(3, "left"), (7, "right"), (9, "ghost"), (40, "top")])
    with pytest.warns(UserWarning, match=r"toy.*1 labels have no voxel.*9 ghost"):
        prior = load_atlas(save(tmp_path))
    assert prior.n_parcels == 3 and "ghost" not in prior.names


def test_ids_without_a_name(tmp_path):
    save_lut(tmp_path / "names.csv", [(3, "left"), (7, "right")])
    with pytest.warns(UserWarning, match="1 ids have no name.*40"):
        prior = load_atlas(save(tmp_path), names=tmp_path / "names.csv")
    assert prior.names == ("left", "right", "parcel-40")


@pytest.mark.parametrize(
    "name", ["atlas-toy_dseg.tsv", f"{ATLAS}.csv", "atlas-toy_space-MNI152NLin6Asym_labels.txt", "atlas-toy_labels.txt"]
)
def test_label_files_are_found(tmp_path, name):
    rows = [(3, "left a"), (7, "right"), (40, "top")]
    if name.endswith(".txt"):
        (tmp_path / name).write_text("".join(f"{n}\n{i} 1 2 3 255\n" for i, n in rows))
    else:
        save_lut(tmp_path / name, rows)
    assert load_atlas(save(tmp_path)).names == ("left a", "right", "top")


def test_names_by_argument(tmp_path):
    assert load_atlas(save(tmp_path), names=["a", "b", "c"]).names == ("a", "b", "c")
    assert load_atlas(save(tmp_path), names={3: "x", 7: "y", 40: "z"}).names == ("x", "y", "z")
    with pytest.raises(ValueError, match="found 3 ids and 2 names"):
        load_atlas(save(tmp_path), names=["a", "b"])


def test_orientation_and_type_change_nothing(tmp_path):
    one = load_atlas(save(tmp_path))
    values, affine = flip_x(labels().astype(np.float64))
    other = load_atlas(save(tmp_path, values, f"las_{ATLAS}.nii.gz", affine))
    np.testing.assert_array_equal(one.xyz, other.xyz)
    assert one.digest == other.digest


def test_what_is_no_label_image(tmp_path):
    with pytest.raises(ValueError, match=r"toy.*whole numbers.*1\.5"):
        load_atlas(save(tmp_path, labels() * np.float32(0.5)))
    with pytest.raises(ValueError, match=r"4-D probseg is not supported"):
        load_atlas(save(tmp_path, np.zeros((*SHAPE, 3), np.float32)))
    with pytest.raises(ValueError, match=r"toy.*no label above 0"):
        load_atlas(save(tmp_path, np.zeros(SHAPE, np.int16)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_atlas(tmp_path / "nowhere.nii.gz")
    with pytest.raises(ValueError, match=r"x\.mat.*expected a \.nii"):
        load_atlas(tmp_path / "x.mat")


def test_an_atlas_without_an_affine(tmp_path):
    path = save(tmp_path, name="atlas-toy_dseg.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"atlas .*toy.*sform_code and qform_code are both 0"):
        load_atlas(path)


def test_gaps_in_the_ids_keep_the_ids_of_the_file(tmp_path):
    values = np.zeros(SHAPE, np.int16)
    used = np.setdiff1d(np.arange(1, 201), np.arange(20, 201, 20))
    values.ravel()[: len(used)] = used
    save_lut(tmp_path / f"{ATLAS}.tsv", [(i, f"area {i}") for i in range(1, 201)])
    with pytest.warns(UserWarning, match=r"10 labels have no voxel .*20 area 20, 40 area 40"):
        prior = load_atlas(save(tmp_path, values))
    assert prior.n_parcels == 190 and prior.ids.tolist() == used.tolist()
    assert prior.names == tuple(f"area {i}" for i in used)


def test_a_template_that_is_not_mni(tmp_path):
    path = save(tmp_path, name="atlas-toy_space-T1w_dseg.nii.gz")
    with pytest.raises(ValueError, match=r"wrong space.*'T1w'"):
        load_atlas(path)
    assert load_atlas(path, space="MNI152NLin6Asym").space == "MNI152NLin6Asym"


def test_truncated_atlas(tmp_path):
    path = save(tmp_path, np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"toy.*truncated or corrupt"):
        load_atlas(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,x\n", "'index' and 'name'"),
        ('"index,name\n1,x"\n2\n', "'index' and 'name'"),
        ("index,name\n1,x\n1,y\n", "more than once: 1"),
        ("index,name\n1.5,x\n", "whole numbers"),
    ],
)
def test_bad_label_tables(tmp_path, content, said):
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"l\.csv.*{said}") as refused:
        read_lut(tmp_path / "l.csv")
    assert "\n" not in str(refused.value)


def test_bad_two_line_label_file(tmp_path):
    (tmp_path / "l.txt").write_text("name\nnot numbers\n")
    with pytest.raises(ValueError, match=r"l\.txt.*two lines a label"):
        read_lut(tmp_path / "l.txt")


@pytest.mark.skipif(not (SHARED / "data" / "atlases").is_dir(), reason="real atlases are absent")
def test_real_atlas():
    prior = load_atlas(SHARED / "data" / "atlases" / "Schaefer100TianS1_res-2_dseg.nii.gz", space="MNI152NLin6Asym")
    assert prior.n_parcels == 116 and prior.names[0] == "HIP-rh" and prior.hemispheres[0] == "R" and prior.resolution == 2


def test_an_atlas_whose_checksum_is_wrong(tmp_path):
    file = tmp_path / "atlas_dseg.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 9, (16, 16, 16), np.int16), np.eye(4)), file)
    stored = bytearray(file.read_bytes())
    stored[-6] ^= 1
    file.write_bytes(bytes(stored))
    with pytest.raises(ValueError, match=r"atlas_dseg.*truncated or corrupt.*CRC check failed"):
        load_atlas(file)


def test_label_files_of_freesurfer(tmp_path):
    lut = tmp_path / "lut.txt"
    lut.write_text(
        "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n1  L_area  10 20 30 0\n2 7Networks_2 5 5 5 0\n1001 ctx-lh-bankssts 1 2 3 0\n"
    )
    assert read_lut(lut) == {0: "Unknown", 1: "L_area", 2: "7Networks_2", 1001: "ctx-lh-bankssts"}
    lut.write_text("L area\n1 10 20 30 255\n7Networks_2\n2 5 5 5 255\n")
    assert read_lut(lut) == {1: "L area", 2: "7Networks_2"}
    lut.write_text('0 0 0 0 0 0 0 "Clear Label"\n1 255 0 0 1 1 1 "left"\n')  # of ITK-SNAP
    with pytest.raises(ValueError, match="lut.txt: expected Workbench's two lines .* or FreeSurfer's one"):
        read_lut(lut)
