"""The comparison with other programs: equal where it must be, and what did not run is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the program says and writes at a tiny size, with an interpreter that cannot run its peer."""
    file = tmp_path_factory.mktemp("peers") / "peers.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--tasks", "correlation", "portrait", "--out", str(file)]
    command += ["--subjects", "3", "--frames", "20", "--parcels", "5", "--repeats", "2", "--netrd-python", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())["figures"]


def test_every_program_has_a_row_and_equal_ones_are_compared(made):
    told, figures = made
    rows = figures["correlation"]["rows"]
    assert set(rows) >= {"pnet_jax", "numpy corrcoef", "nilearn ConnectivityMeasure", "BrainIAK FCMA"}
    for name in ("numpy corrcoef", "nilearn ConnectivityMeasure, sample covariance"):
        assert rows[name]["difference"] < 1e-5
        assert rows[name]["times_ours"] > 0
        assert len(rows[name]["seconds"]) == 2
    assert "difference" not in rows["nilearn ConnectivityMeasure"]  # another quantity
    assert "correlation matrices, S = 3, K = 5, T = 20" in told


def test_a_program_that_is_not_there_is_told_with_its_reason(made):
    told, figures = made
    row = figures["correlation"]["rows"]["BrainIAK FCMA"]
    assert row == {"measured": False, "reason": "FileNotFoundError: no --brainiak-python given"}
    assert "not measured: FileNotFoundError: no --brainiak-python given" in told
    assert any(not row["measured"] for row in figures["portrait"]["rows"].values())
