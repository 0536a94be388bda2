"""What a parser raises, and what is no file at all: one scan is refused with one line that names the file."""

import errno
import gzip
import json
import os
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

from pnet_jax.errors import InputError
from pnet_jax.ingest import load_atlas, load_scan
from pnet_jax.ingest.connectome import read_connectome
from pnet_jax.ingest.fingerprint import inputs_fingerprint
from pnet_jax.ingest.lut import read_lut
from pnet_jax.ingest.reading import check_file, read_json, reading
from pnet_jax.ingest.tables import read_npy, read_table

from .helpers import AFFINE, BOLD, FILTERED, PLAIN, STEM, T, phantom, phantom_mask, save_bold
from .test_cifti import DENSE, brain_models, save_series

PLAIN_NII = BOLD.removesuffix(".gz")
TABLE = "sub-01_task-rest_desc-confounds_timeseries.tsv"
MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter"]


def test_what_a_parser_raises_is_an_input_error():
    for error in (RecursionError("deep"), OverflowError("inf"), KeyError("x"), TypeError("y"), gzip.BadGzipFile("z"), OSError("short")):
        with (
            pytest.raises(InputError, match=rf"^sub-01: a\.nii is damaged \({type(error).__name__}: "),
            reading("sub-01: a.nii is damaged"),
        ):
            raise error
    with pytest.raises(InputError) as caught, reading("a.nii is damaged"):
        raise ValueError("one\ntwo\n" + "x" * 5000)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "disk"), PermissionError(errno.EACCES, "no"), FileNotFoundError(), MemoryError()],
)
def test_trouble_of_the_machine_passes_unchanged(error):
    with pytest.raises(type(error)) as caught, reading("a.nii is damaged"):
        raise error
    assert caught.value is error


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "annexed").symlink_to("../.git/annex/objects/x")
    (tmp_path / "folder").mkdir()
    for name, error, said in [
        ("pipe", InputError, "sub-01: expected a file, found a named pipe"),
        ("folder", InputError, "sub-01: expected a file, found a folder"),
        ("self", FileNotFoundError, "sub-01: no such file: symbolic link that points to itself"),
        ("annexed", FileNotFoundError, "sub-01: no such file: broken link to .*git-annex.*datalad get"),
        ("absent", FileNotFoundError, "sub-01: no such file"),
    ]:
        with pytest.raises(error, match=said):
            check_file(tmp_path / name, "sub-01")


@pytest.mark.parametrize("name", ["x.tsv", "x.txt", "x.npy", "x.json"])
def test_a_named_pipe_does_not_wait_for_its_other_end(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    readers = {".tsv": read_table, ".txt": read_lut, ".npy": lambda p: read_npy(p, "x"), ".json": lambda p: read_json(p, "x")}
    with pytest.raises(InputError, match="found a named pipe"):
        readers[path.suffix](path)
    assert inputs_fingerprint([path])


def test_pipes_among_the_files_of_a_scan(tmp_path):
    for name in (BOLD, f"{STEM}_desc-brain_mask.nii.gz", TABLE, BOLD.replace(".nii.gz", ".json")):
        folder = tmp_path / name.replace(".", "")
        path = save_bold(folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(InputError, match=r"sub-01_task-rest.*found a named pipe"):
            load_scan(path)


def test_json_sidecars(tmp_path):
    path = save_bold(tmp_path, tr=1.0)
    sidecar = tmp_path / BOLD.replace(".nii.gz", ".json")
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0}), encoding="utf-8-sig")
    assert load_scan(path, cleaning=PLAIN).tr == 2.0
    for content, said in [
        ("[" * 100_000, r"\.json is not readable JSON \(RecursionError"),
        ("[1, 2]", r"expected a JSON object in .*\.json, found list"),
        ('{"RepetitionTime": [2]}', r"\.json has no valid RepetitionTime: expected seconds, found \[2\]"),
        ('{"RepetitionTime": true}', "expected seconds, found True"),
        ('{"RepetitionTime": NaN}', "RepetitionTime in the JSON file is nan"),
    ]:
        sidecar.write_text(content)
        with pytest.raises(InputError, match=rf"sub-01_task-rest.*{said}") as caught:
            load_scan(path, cleaning=PLAIN)
        assert "\n" not in str(caught.value)
    sidecar.unlink()
    sidecar.mkdir()
    with pytest.raises(InputError, match=r"\.json: expected a file, found a folder"):
        load_scan(path, cleaning=PLAIN)


def test_a_sidecar_whose_content_is_away_is_warned_of(tmp_path):
    path = save_bold(tmp_path)
    (tmp_path / BOLD.replace(".nii.gz", ".json")).symlink_to(tmp_path / "away")
    scan = load_scan(path, cleaning=PLAIN)
    assert scan.tr == 2 and any("JSON file not read" in w and "away" in w for w in scan.warnings)


def patched(folder, offset, kind, value, name=PLAIN_NII):
    """A recording with one field of its header changed."""
    path = save_bold(folder, name)
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}", content, offset, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("offset", "kind", "value", "said"),
    [
        (123, "B", 64, r"its header is damaged: unknown code of units \(xyzt_units\)"),
        (108, "f", float("inf"), r"truncated, corrupt or not an image \(OverflowError"),
        (108, "f", 1e12, r"the header declares \d+ bytes"),
        (42, "h", 0, r"expected at least one voxel, found shape \(0, "),
        (42, "h", -3, r"expected at least one voxel, found shape \(-3, "),
        (44, "h", 32767, r"truncated or corrupt: the header declares \d+ bytes \(shape \(11, 32767, 9, 130\)\), the file has"),
        (70, "h", 999, "truncated, corrupt or not an image"),
    ],
)
def test_damaged_headers(tmp_path, offset, kind, value, said):
    path = patched(tmp_path, offset, kind, value)
    with pytest.raises(InputError, match=rf"sub-01_task-rest.*{said}") as caught:
        load_scan(path, cleaning=PLAIN)
    assert "\n" not in str(caught.value)


def test_a_compressed_file_that_promises_more_than_it_can_hold(tmp_path):
    plain = patched(tmp_path, 44, "h", 32767)
    packed = tmp_path / BOLD
    packed.write_bytes(gzip.compress(plain.read_bytes()[:2000]))
    with pytest.raises(InputError, match=r"the header declares \d+ bytes .* compressed bytes"):
        load_scan(packed, cleaning=PLAIN)
    zeros = np.zeros((11, 13, 9, T), np.float32)  # shrinks as far as gzip can: not refused for its size
    with pytest.raises(InputError, match="none of 308 locations"):
        load_scan(save_bold(tmp_path / "zeros", data=zeros), cleaning=PLAIN)


def test_what_nibabel_says_of_a_header_is_a_warning_that_names_the_file(tmp_path, capfd):
    path = patched(tmp_path, 80, "f", -8.0)
    scan = load_scan(path, cleaning=PLAIN)
    assert any(f"header of {path}: pixdim[1,2,3] should be positive" in w for w in scan.warnings)
    out, err = capfd.readouterr()
    assert "pixdim" not in out + err
    atlas = tmp_path / "a_dseg.nii"
    nib.save(nib.Nifti1Image(phantom_mask().astype(np.uint8), AFFINE), atlas)
    content = bytearray(atlas.read_bytes())
    struct.pack_into("<f", content, 80, -8.0)
    atlas.write_bytes(content)
    with pytest.warns(UserWarning, match=r"a_dseg\.nii: header: pixdim"):
        load_atlas(atlas, space="MNI152NLin6Asym")
    assert "pixdim" not in "".join(capfd.readouterr())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_scan(save_bold(tmp_path / "good"), cleaning=FILTERED)


def test_a_cifti_file_whose_axes_do_not_fit_its_data(tmp_path):
    path = save_series(tmp_path / DENSE, brain_models())
    content = bytearray(path.read_bytes())
    (n,) = struct.unpack_from("<q", content, 64)  # dim[6] of NIfTI-2: locations
    struct.pack_into("<q", content, 64, n - 1)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"sub-01_task-rest.*axes of 130 by 15, data of shape \(130, 14\)"):
        load_scan(path, cleaning=PLAIN)


def test_npy_files_that_promise_more_or_hold_something_else(tmp_path):
    np.save(tmp_path / "m.npy", np.eye(3))
    content = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(content.replace(b"(3, 3), }        ", b"(300000, 300000),"))
    np.savez(tmp_path / "z.npz", a=np.eye(3))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    np.save(tmp_path / "o.npy", np.array([{}, 1], object), allow_pickle=True)
    for name in ("m", "z", "o"):
        with pytest.raises(InputError, match=rf"structural connectome .*{name}\.npy"):
            read_connectome(tmp_path / f"{name}.npy", 3)


def test_binary_files_with_the_extension_of_text(tmp_path):
    for content in (b"\x80\xff\0" * 50, b"\0" * 500, b"abc\0def\n"):
        for name in ("x.tsv", "x.csv", "x_labels.txt"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=r"x.*\.(tsv|csv|txt)"):
                read_table(tmp_path / name) if name != "x_labels.txt" else read_lut(tmp_path / name)


def test_a_damaged_surface(tmp_path):
    (tmp_path / "hemi-L.surf.gii").write_text('<?xml version="1.0"?><GIFTI Version="1.0" NumberOfDataArrays="1"><DataArray>')
    with pytest.raises(InputError, match=r"sub-01.*hemi-L\.surf\.gii"):
        load_scan(save_series(tmp_path / DENSE, brain_models()), surfaces=(tmp_path / "hemi-L.surf.gii",))


def confounds(folder, cell="0.1", header=MOTION):
    rng = np.random.default_rng(0)
    lines = ["\t".join(header)] + ["\t".join(f"{v:.3f}" for v in rng.standard_normal(len(header))) for _ in range(T)]
    lines[4] = cell + lines[4][lines[4].index("\t") :]
    (folder / TABLE).write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("cell", "said"), [("#REF!", r"text in trans_x \('#REF!' in row 4\)"), ("0,5", r"decimal commas \('0,5'\) in trans_x")]
)
def test_text_in_fmriprep_confounds(tmp_path, cell, said):
    path = save_bold(tmp_path)
    confounds(tmp_path, cell)
    with pytest.raises(InputError, match=rf"sub-01_task-rest.*{TABLE}.*{said}"):
        load_scan(path)


def test_a_field_longer_than_a_parser_takes(tmp_path):
    path = save_bold(tmp_path, data=phantom())
    confounds(tmp_path, header=["t" * 200_000, *MOTION[1:]])
    with pytest.raises(InputError, match=rf"sub-01_task-rest.*{TABLE}.*field larger than field limit") as caught:
        load_scan(path)
    assert len(str(caught.value)) < 1000
    confounds(tmp_path, header=["t" * 100_000, *MOTION[1:]])
    with pytest.raises(InputError, match="lacks trans_x") as caught:
        load_scan(path)
    assert len(str(caught.value)) < 2000
