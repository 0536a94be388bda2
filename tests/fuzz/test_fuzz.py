"""Spoilt files: each is read, or refused by one line that names it; nothing hangs, takes all memory or ends in a traceback."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pnet_jax.commands.app import UsageError
from pnet_jax.errors import InputError, SettingsError

from .corpus import TARGETS, bytewise, spoilt, tokenwise

CASES = int(os.environ.get("PNET_FUZZ", "320"))  # of all targets together; `make fuzz` takes 10,000 and more
SECONDS, PATIENCE, MEMORY = 5, 120, 2 << 30  # of processor time, for on a busy machine the clock measures the others; of the clock
REFUSED = (InputError, SettingsError, UsageError, FileNotFoundError)
EACH = settings(
    max_examples=max(1, CASES // len(TARGETS)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders with the whole files."""
    folders = {}
    for name, target in TARGETS.items():
        folders[name] = tmp_path_factory.mktemp("whole")
        target.write(folders[name])
        with warnings.catch_warnings(), contextlib.suppress(*REFUSED):  # the configuration's input is not there
            warnings.simplefilter("ignore")
            target.read(folders[name])
    return folders


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_files_are_read_or_refused_by_name(name, whole, capfd):
    target = TARGETS[name]
    counts = collections.Counter()
    changes = st.lists(st.one_of(bytewise, tokenwise) if target.text else bytewise, min_size=1, max_size=3)

    @EACH
    @given(changes)
    def spoil(changes):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "in"
            shutil.copytree(whole[name], folder)
            file = folder / target.file
            file.write_bytes(spoilt(file.read_bytes(), changes))
            refusal = _read(target.read, folder)
            told = capfd.readouterr().err
        counts["refused" if refusal else "held"] += 1
        if refusal:
            assert "\n" not in refusal.strip(), refusal
            assert len(refusal) < 2000, refusal[:2000]
            assert Path(target.file).name in refusal or "sub-01" in refusal, refusal
        assert "Traceback" not in told, told

    spoil()
    if "PNET_FUZZ_OUT" in os.environ:
        folder = Path(os.environ["PNET_FUZZ_OUT"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.replace(' ', '_')}.json").write_text(json.dumps(counts))


def _read(read, folder: Path) -> str:
    """What the reader said in refusing the file; empty where it was read."""
    with _limits(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            read(folder)
        except REFUSED as error:
            return str(error)
    return ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """No more than a few seconds of processor time, no waiting, and no more than 2 GiB beyond what the process has."""

    def late(number, _):
        raise AssertionError(f"not done after {SECONDS} s of work" if number == signal.SIGPROF else f"still waiting after {PATIENCE} s")

    pages = int(re.split(r"\s", Path("/proc/self/statm").read_text())[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
