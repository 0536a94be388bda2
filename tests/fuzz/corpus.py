"""Whole files of every format that is read, what reads them, and the ways in which they are spoilt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from ingest import helpers
from ingest.test_cifti import DENSE, brain_models, data, save_series, surface

from pnet_jax.commands.app import run
from pnet_jax.config import CleaningConfig
from pnet_jax.ingest import find_scans, load_atlas, load_scan
from pnet_jax.ingest.connectome import read_connectome
from pnet_jax.ingest.lut import read_lut
from pnet_jax.outputs import read_records, write_record, write_table

STRATEGY = CleaningConfig(strategy=("motion", "wm_csf"), motion="basic", min_seconds=20.0)
PLAIN = dataclasses.replace(helpers.FILTERED, min_seconds=20.0)
FRAMES = 40


@dataclasses.dataclass(frozen=True)
class Target:
    """A file that is spoilt, and what reads it.

    Attributes:
      file: Name of the file.
      write: Writes it, and what goes with it, into a folder.
      read: Reads it from that folder.
      text: Whether tokens are spoilt as well as bytes.
    """

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    text: bool = False


def _bold(folder: Path) -> None:
    helpers.save_bold(folder, helpers.BOLD.removesuffix(".gz"), helpers.phantom(FRAMES))
    (folder / helpers.BOLD.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": 2.0, "TaskName": "rest"}))
    helpers.save_table(helpers.fmriprep_table(FRAMES), folder / "sub-01_task-rest_desc-confounds_timeseries.tsv")


def _zipped(folder: Path) -> None:
    helpers.save_bold(folder, helpers.BOLD, helpers.phantom(FRAMES))


def _read_bold(folder: Path) -> object:
    return load_scan(folder / helpers.BOLD.removesuffix(".gz"), cleaning=STRATEGY)


def _surfaces(folder: Path) -> tuple[Path, Path]:
    files = folder / "hemi-L_midthickness.surf.gii", folder / "hemi-R_midthickness.surf.gii"
    for file, x in zip(files, (-40, 40), strict=True):
        nib.save(surface(x), file)
    return files


def _dense(folder: Path) -> None:
    save_series(folder / DENSE, brain_models())
    _surfaces(folder)


def _read_dense(folder: Path) -> object:
    files = folder / "hemi-L_midthickness.surf.gii", folder / "hemi-R_midthickness.surf.gii"
    return load_scan(folder / DENSE, surfaces=files, cleaning=PLAIN)


def _table(folder: Path, separator: str) -> str:
    lines = [separator.join(f"region{i}" for i in range(6))]
    lines += [separator.join(f"{value:.4f}" for value in row) for row in data(6)[:FRAMES]]
    return "\n".join(lines) + "\n"


def _roi(folder: Path) -> None:
    (folder / "sub-01_task-rest_timeseries.tsv").write_text(_table(folder, "\t"))
    (folder / "atlas.tsv").write_text("name\tx\ty\tz\n" + "".join(f"region{i}\t{8 * i - 20}\t{4 * i}\t{i}\n" for i in range(6)))


def _read_roi(folder: Path) -> object:
    return load_scan(folder / "sub-01_task-rest_timeseries.tsv", tr=2.0, atlas=folder / "atlas.tsv", cleaning=PLAIN)


def _npy(folder: Path) -> None:
    np.save(folder / "sub-01_timeseries.npy", data(6)[:FRAMES])
    _roi(folder)


def _atlas(folder: Path) -> None:
    labels = helpers.phantom_mask().astype(np.int16) * (1 + np.arange(helpers.SHAPE[0])[:, None, None] // 3).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, helpers.AFFINE), folder / "toy_space-MNI152NLin6Asym_dseg.nii")
    (folder / "toy_space-MNI152NLin6Asym_dseg.tsv").write_text("index\tname\n" + "".join(f"{i}\tarea{i}\n" for i in np.unique(labels) if i))


def _listing(folder: Path) -> None:
    _bold(folder)
    (folder / "list.tsv").write_text(f"bold\tsubject\tsession\n{helpers.BOLD.removesuffix('.gz')}\t01\t1\n")


def _config(folder: Path) -> None:
    (folder / "config.toml").write_text('parcels = 100\nedges = ["pearson"]\n\n[cleaning]\nlow_pass = 0.1\nstrategy = ["motion"]\n')


def _read_config(folder: Path) -> object:
    with contextlib.suppress(FileNotFoundError):  # there is no INPUT
        run(["construct", str(folder / "nothing"), str(folder / "out"), "--config", str(folder / "config.toml")])
    return None


def _matrix(folder: Path) -> None:
    np.savetxt(folder / "connectome.csv", np.abs(data(6)[:6]), delimiter=",")


def _record(folder: Path) -> None:
    write_record(folder, {"scan": "sub-01", "status": "ok", "dseg": "sub-01_dseg.tsv"}, {"sub-01_dseg.tsv": "0"}, "pnet construct")


TARGETS = {
    "volume": Target(helpers.BOLD.removesuffix(".gz"), _bold, _read_bold),
    "zipped volume": Target(helpers.BOLD, _zipped, lambda folder: load_scan(folder / helpers.BOLD, cleaning=PLAIN)),
    "mask": Target(f"{helpers.STEM}_desc-brain_mask.nii.gz", _bold, _read_bold),
    "sidecar": Target(helpers.BOLD.replace(".nii.gz", ".json"), _bold, _read_bold, text=True),
    "confounds": Target("sub-01_task-rest_desc-confounds_timeseries.tsv", _bold, _read_bold, text=True),
    "dense series": Target(DENSE, _dense, _read_dense),
    "surface": Target("hemi-L_midthickness.surf.gii", _dense, _read_dense, text=True),
    "regions": Target("sub-01_task-rest_timeseries.tsv", _roi, _read_roi, text=True),
    "centroids": Target("atlas.tsv", _roi, _read_roi, text=True),
    "array": Target(
        "sub-01_timeseries.npy", _npy, lambda f: load_scan(f / "sub-01_timeseries.npy", tr=2.0, atlas=f / "atlas.tsv", cleaning=PLAIN)
    ),
    "atlas": Target("toy_space-MNI152NLin6Asym_dseg.nii", _atlas, lambda folder: load_atlas(folder / "toy_space-MNI152NLin6Asym_dseg.nii")),
    "names": Target(
        "toy_space-MNI152NLin6Asym_dseg.tsv", _atlas, lambda folder: read_lut(folder / "toy_space-MNI152NLin6Asym_dseg.tsv"), text=True
    ),
    "list": Target("list.tsv", _listing, lambda folder: find_scans(folder / "list.tsv"), text=True),
    "configuration": Target("config.toml", _config, _read_config, text=True),
    "connectome": Target("connectome.csv", _matrix, lambda folder: read_connectome(folder / "connectome.csv", 6), text=True),
    "record": Target(".pnet/sub-01.json", _record, lambda folder: (read_records(folder), write_table(folder)), text=True),
}

NUMBERS = (0, 1, -1, 2, 6, 7, 64, 127, 255, 32767, -32768, 2**31 - 1, -(2**31), float("inf"), float("-inf"), float("nan"), 1e30, 1e-30)
TOKENS = (
    *(
        "",
        "n/a",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "#REF!",
        "0,5",
        ";",
        ",",
        "\t",
        "\t\t",
        "\n",
        "\r\n",
        "\n\n",
        "\0",
        "\ufeff",
        '"',
        "'",
        "[",
        "]",
    ),
    *(
        "{",
        "}",
        "{}",
        "[" * 3000,
        "null",
        "true",
        "../../evil",
        "/etc/passwd",
        "é漢",
        "\u202e",
        "-",
        "9" * 400,
        "x" * 200_000,
        "#",
        "=",
        "<",
        ">",
        "&x;",
    ),
)

places = st.floats(0, 1, exclude_max=True)
bytewise = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("cut"), places, st.just(0)),
    st.tuples(st.just("zeros"), places, st.integers(1, 400)),
    st.tuples(st.just("twice"), places, st.integers(1, 400)),
    st.tuples(st.just("without"), places, st.integers(1, 400)),
    st.tuples(st.just("header"), st.integers(0, 347), st.tuples(st.sampled_from("bBhHiIqfd"), st.sampled_from(NUMBERS))),
    st.tuples(st.just("other bytes"), places, st.binary(min_size=1, max_size=40)),
)
tokenwise = st.one_of(
    st.tuples(st.just("token"), places, st.sampled_from(TOKENS)),
    st.tuples(st.just("in place of"), places, st.sampled_from(TOKENS)),
    st.tuples(st.just("everywhere"), st.sampled_from(["\t", ".", "\n", '"', ":", ",", " ", "0", "="]), st.sampled_from(TOKENS[:20])),
    st.tuples(st.just("encoding"), st.sampled_from(["utf-16", "utf-8-sig", "latin-1", "utf-32"]), st.just(0)),
)


def spoilt(raw: bytes, changes: list[tuple]) -> bytes:
    """The content of a file after each change in turn."""
    for kind, at, what in changes:
        raw = (
            _byte(raw, kind, at, what)
            if kind in ("flip", "cut", "zeros", "twice", "without", "header", "other bytes")
            else _token(raw, kind, at, what)
        )
    return raw


def _byte(raw: bytes, kind: str, at, what) -> bytes:
    if not raw:
        return raw
    if kind == "header":
        letter, number = what
        size = struct.calcsize(letter)
        if at + size > len(raw):
            return raw
        whole = letter not in "fd"
        bits = 8 * size
        value = int(np.nan_to_num(number, posinf=2.0**62, neginf=-(2.0**62))) if whole else number
        packed = (value % 2**bits).to_bytes(size, "little") if whole else np.dtype(f"<{letter}").type(value).tobytes()
        return raw[:at] + packed + raw[at + size :]
    at = int(at * len(raw))
    if kind == "flip":
        return raw[:at] + bytes([raw[at] ^ 1 << what]) + raw[at + 1 :]
    if kind == "cut":
        return raw[:at]
    if kind == "zeros":
        return raw[:at] + bytes(what) + raw[at + what :]
    if kind == "twice":
        return raw[: at + what] + raw[at:]
    if kind == "without":
        return raw[:at] + raw[at + what :]
    return raw[:at] + what + raw[at:]


def _token(raw: bytes, kind: str, at, what) -> bytes:
    text = raw.decode("utf-8", "replace")
    if kind == "encoding":
        return text.encode(at, "replace")
    if kind == "everywhere":
        return text.replace(at, what)[:4_000_000].encode("utf-8", "replace")
    place = int(at * len(text))
    if kind == "token":
        return (text[:place] + what + text[place:]).encode("utf-8", "replace")
    end = place
    while end < len(text) and text[end] not in '\t\n,":[]<>= ':
        end += 1
    return (text[:place] + what + text[end:]).encode("utf-8", "replace")
