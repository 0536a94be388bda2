"""Cohorts of the data sets that come as signals of regions."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import abide
from common import need

from pnet_jax.cohort import COLUMNS, NUMBERS, Cohort
from pnet_jax.evaluate.answer import Answer

STAGES, ECEO = "stages_fep/stages_fep_419_int8.npz", "eceo_beijing_aal/eceo_aal_int8.npz"
GAP_FRAMES = 10  # between the halves of a scan


def cohort_of_signals(subjects: Sequence[str], sessions: Sequence[str], signals: Sequence[np.ndarray], **table) -> Cohort:
    """Pearson networks of signals `[T, K]`, one for each scan, and a table of further columns."""
    edges = np.stack([np.corrcoef(x.T) for x in signals]).astype(np.float32)
    return cohort_of_edges(subjects, sessions, {"pearson": edges}, n_frames=np.array([len(x) for x in signals], float), **table)


def cohort_of_edges(subjects: Sequence[str], sessions: Sequence[str], edges: dict[str, np.ndarray], **table) -> Cohort:
    """Networks of scans, `[S, K, K]` by name of the layer."""
    s, k = next(iter(edges.values())).shape[:2]
    columns = {name: np.full(s, np.nan) if name in NUMBERS else np.full(s, "", "<U64") for name in COLUMNS}
    columns |= {"subject": np.asarray(subjects, str), "session": np.asarray(sessions, str), "task": np.full(s, "rest")}
    columns["scan"] = np.array([f"sub-{one}_ses-{other}" for one, other in zip(subjects, sessions, strict=True)])
    return Cohort(
        table=columns | {name: np.asarray(values) for name, values in table.items()},
        edges={name: np.asarray(matrices, np.float32) for name, matrices in edges.items()},
        views={name: {"units": "", "meant_for": "", "directed": False} for name in edges},
        coverage=np.ones((s, k), np.float32),
        ids=np.arange(1, k + 1),
        names=tuple(f"region {i}" for i in range(k)),
        hemispheres=("B",) * k,
        atlas={"source": "", "digest": ""},
    )


def stages(folder: Path) -> Cohort:
    """First-episode psychosis: sessions 3 months apart, 419 regions."""
    data = _load(need(folder, STAGES)[0])
    return cohort_of_signals(data["subject"].astype(str), data["session"].astype(str), _scans(data))


def eceo(folder: Path) -> Cohort:
    """Eyes closed and eyes open on one day, 116 regions; the state stands for the session."""
    data = _load(need(folder, ECEO)[0])
    return cohort_of_signals(data["subject"].astype(str), data["state"].astype(str), _scans(data))


def abide_halves(folder: Path, phenotypes: Path | None = None) -> Cohort:
    """Halves of 2 to 5 minutes of the scans of ABIDE I, 200 regions, band-passed, without the mean signal; FD where phenotypes have it."""
    displacement = displacement_of(phenotypes)
    subjects, halves, fd, sites = [], [], [], []
    for one in abide.recordings(need(folder, abide.TABLE)[0]):
        x, middle = abide.band_passed(one.signals, one.tr), len(one.signals) // 2
        halves += [x[: middle - GAP_FRAMES // 2], x[middle + GAP_FRAMES // 2 :]]
        subjects += [one.subject] * 2
        sites += [one.site] * 2
        fd += [displacement.get(one.subject[-5:], np.nan)] * 2
    return cohort_of_signals(subjects, ["1", "2"] * (len(subjects) // 2), halves, mean_fd=np.array(fd), site=np.array(sites))


def displacement_of(phenotypes: Path | None) -> dict[str, float]:
    """Mean FD by number of the participant, from ABIDE's table `Phenotypic_V1_0b_preprocessed1.csv`."""
    if phenotypes is None:
        return {}
    with phenotypes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["SUB_ID"].zfill(5)[-5:]: float(row["func_mean_fd"]) for row in rows if row["func_mean_fd"] not in ("", "-9999")}


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _scans(data: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [data["z"][start:stop].astype(np.float32) for start, stop in zip(data["offset"], data["offset"][1:], strict=False)]


def words(answer: Answer) -> dict[str, object]:
    """An answer as JSON has it."""
    rows = [{key: value for key, value in row._asdict().items() if value == value and value != ""} for row in answer.rows]
    return {"sentences": list(answer.sentences), "warnings": list(answer.warnings), "rows": rows}
