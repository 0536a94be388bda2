"""Tasks of worker processes for one scan: read it, or write its results. Neither uses a device."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pnet_jax.batch.job import Job
from pnet_jax.errors import InputError
from pnet_jax.execution import all_memory
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.memory import peak_bytes
from pnet_jax.network import Network
from pnet_jax.outputs import page_name, save
from pnet_jax.outputs.lock import waiting_for
from pnet_jax.outputs.status import RECORDS, digests
from pnet_jax.report import write_report
from pnet_jax.scan import Scan

SAVING = ".saving.lock"


class Read(NamedTuple):
    """A scan with the fingerprint of its files, the seconds taken by reading, and warnings."""

    scan: Scan
    inputs: str
    seconds: float
    said: tuple[str, ...]


class Written(NamedTuple):
    """Files of a result with their fingerprints, the name of its parcel table, the seconds for saving and for the report, and warnings."""

    files: dict[str, str]
    dseg: str
    seconds: dict[str, float]
    said: tuple[str, ...]


def read(job: Job, source: ScanSource) -> Read:
    """Read and clean one scan.

    Raises:
      InputError: If the recording is refused.
      MemoryError: If the scan needs more memory than the machine has.
      RuntimeError: If one of its files changed while it was read.
    """
    begun = time.perf_counter()
    if source.problem:
        raise InputError(source.problem)
    needed, there = peak_bytes(source, job.config.cleaning) or 0, all_memory()
    if needed > there:
        raise MemoryError(
            f"{source.label} ({source.bold}): reading it takes about {needed / 2**30:.1f} GiB, but this process can use at most "
            f"{there / 2**30:.1f} GiB; use a machine with more memory or a coarser resolution"
        )
    inputs = job.inputs(source)
    scan, said = _heard(lambda: source.load(job.config.cleaning, **job.options))
    if job.inputs(source) != inputs:
        raise RuntimeError(
            f"{source.label} ({source.bold}): a file of this scan changed while it was being read; run the command again with --resume"
        )
    return Read(scan, inputs, time.perf_counter() - begun, said)


def write(job: Job, network: Network, label: str) -> Written:
    """Write the results of one scan and its report."""
    begun = time.perf_counter()
    with waiting_for(job.folder / RECORDS / SAVING, shared=True):
        files = save(network, job.folder, probabilities=job.config.probabilities)
    seconds = {"save": round(time.perf_counter() - begun, 3)}
    dseg, said = files[-1].relative_to(job.folder).as_posix(), tuple[str, ...]()
    if job.config.report:
        begun = time.perf_counter()
        page: Path
        page, said = _heard(lambda: write_report(network, job.folder / page_name(label, job.atlas)))
        files.append(page)
        seconds["page"] = round(time.perf_counter() - begun, 3)
    return Written(digests(job.folder, files), dseg, seconds, said)


def _heard(function: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the value of a function and the warnings it gave, which a worker process cannot show."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function()
    return value, tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning)))


def with_notes(network: Network, notes: tuple[str, ...], loaded: float) -> Network:
    """Return the network with the warnings of the whole run and the reading time added to its QC."""
    qc = network.qc.warn(*notes)
    return dataclasses.replace(network, qc=dataclasses.replace(qc, seconds={"load": round(loaded, 3)} | qc.seconds))
