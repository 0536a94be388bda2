from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pnet_jax.network import QC, Network
from pnet_jax.outputs import atomic_path, check_writable, save, write_table
from pnet_jax.outputs.tables import plain

from .helpers import make_network


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_half_written(network, tmp_path, monkeypatch):
    save(network, tmp_path)
    target = next(tmp_path.rglob("*_probseg.nii.gz"))
    before, present = target.read_bytes(), sorted(file.name for file in target.parent.iterdir())
    monkeypatch.setattr("gzip.GzipFile.write", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*_dseg\.nii\.gz") as caught:
        save(dataclasses.replace(network, qc=QC()), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == before
    # Without its table, which is written last, the set is known to be incomplete.
    assert sorted(file.name for file in target.parent.iterdir()) == [name for name in present if not name.endswith("_dseg.tsv")]


def test_a_set_that_cannot_be_finished_is_taken_back(network, tmp_path, monkeypatch):
    monkeypatch.setattr("pnet_jax.outputs.bids.write_motion", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        save(network, tmp_path)
    assert not [file for file in tmp_path.rglob("sub-*") if file.is_file()]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_late_failures_are_noticed(step, tmp_path, monkeypatch):
    monkeypatch.setattr(step, full_disk)
    with pytest.raises(OSError, match=r"status\.tsv"):
        write_table(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".pnet"]


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_folders_that_cannot_be_written(network, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output folder .*file is a file"):
        save(network, tmp_path / "file")
    assert check_writable(tmp_path / "new" / "deep").is_dir()

    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(PermissionError, match=r"cannot write into the output folder.*locked"):
        save(network, tmp_path / "locked")


def test_json_is_plain():
    assert plain({"a": np.float32(0.5), 2: np.array([1, np.nan]), "p": Path("x"), "s": {"b", "a"}, "t": (np.bool_(True), None)}) == {
        "a": 0.5,
        "2": [1, None],
        "p": "x",
        "s": ["a", "b"],
        "t": [True, None],
    }
