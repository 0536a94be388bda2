"""Two commands do not write into one folder; a command that was killed locks nobody out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from pnet_jax.outputs.lock import LOCK, only_here
from pnet_jax.records import prepare

HOLD = """
import sys, time
from pnet_jax.outputs.lock import only_here
with only_here(sys.argv[1], "pnet prepare"):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process works in."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    other.stdout.readline()
    yield tmp_path, other
    other.kill()
    other.communicate()


def test_the_other_process_is_named_and_its_files_stay(held, toy):
    folder, other = held
    (folder / "scans").mkdir()
    half = folder / "scans" / ".0123-sub-01.array_record"
    half.touch()
    with pytest.raises(
        ValueError, match=f"in use by pnet prepare, process {other.pid} on {socket.gethostname()}; wait until it has finished"
    ):
        prepare([toy.scan(1)], folder)
    assert half.exists() and not (folder / "manifest.json").exists()


def test_a_killed_process_leaves_the_folder_to_the_next(held, toy):
    folder, other = held
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (folder / LOCK).exists()
    assert prepare([toy.scan(1)], folder).written and not (folder / LOCK).exists()


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="this file system does not support locks"), only_here(tmp_path, "a test"):
        pass
