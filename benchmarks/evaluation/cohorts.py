"""The public data sets of `../shared/data` as Cohorts, and answers as JSON."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfiltfilt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from abide import ATLAS, BAND_HZ, OTHER_TR, TABLE, TR, Recording, band_of, recordings, regions
from common import need

from pnet_jax.cohort import Cohort, make_cohort
from pnet_jax.edges import compute
from pnet_jax.evaluate import Answer

LEAST_FRAMES = 70  # of a whole scan, if it is not cut in halves
GAP_FRAMES = 10  # between the halves of a scan


def abide(data: Path, *, wide: bool = True) -> Cohort:
    """ABIDE I, CC200: band-passed signals, Pearson edges, and with `wide` correlations of the signals without a low-pass."""
    stored = _read(data, TABLE)
    scans = _scans(stored)
    good = [at for at, x in enumerate(scans) if len(x) >= LEAST_FRAMES and (x.std(0) >= 1e-3).all()]
    sites = stored["site"][good].astype(str)
    times = np.array([TR.get(site, OTHER_TR) for site in sites])
    narrow = [filtered(scans[at], tr) for at, tr in zip(good, times, strict=True)]
    edges = {"pearson": correlations(narrow)}
    if wide:
        edges["wide"] = correlations([filtered(scans[at], tr, low_pass=False) for at, tr in zip(good, times, strict=True)])
    covariates = {
        "dx": np.where(stored["dx_group"][good] == 1, "ASD", "control"),
        "site": sites,
        "age": stored["age"][good].astype(float),
        "sex": stored["sex"][good].astype(str),
        "fiq": np.where(stored["fiq"][good] > 0, stored["fiq"][good], np.nan).astype(float),
    }
    return make_cohort(stored["sub_id"][good].astype(str), signals=narrow, edges=edges, tr=times, covariates=covariates, source="CC200")


def abide_halves(data: Path, phenotypes: Path | None = None) -> Cohort:
    """Halves of 2 to 5 minutes of the scans of ABIDE I, without the mean signal of the regions; FD where phenotypes have it."""
    found = recordings(need(data, TABLE)[0])
    halves = []
    for one in found:
        x, middle = filtered(one.signals, one.tr), len(one.signals) // 2
        halves += [x[:, : middle - GAP_FRAMES // 2], x[:, middle + GAP_FRAMES // 2 :]]
    twice = [one for one in found for _ in range(2)]
    return make_cohort(
        [one.subject for one in twice],
        signals=halves,
        edges={"pearson": correlations(halves)},
        tr=[one.tr for one in twice],
        sessions=["1", "2"] * len(found),
        covariates=_about(twice, displacement_of(phenotypes)),
        source="CC200",
    )


def abide_motion(data: Path, phenotypes: Path) -> Cohort:
    """ABIDE I, participants with a value of FD, regions as locations: Pearson edges without and with the mean signal, and partial ones."""
    file, atlas = need(data, TABLE, ATLAS)
    displacement = displacement_of(phenotypes)
    without, plain = (recordings(file, without_mean=flag) for flag in (True, False))
    kept = [at for at, one in enumerate(without) if np.isfinite(displacement.get(one.subject[-5:], np.nan))]
    own, whole = ([filtered(some[at].signals, some[at].tr) for at in kept] for some in (without, plain))
    partial = np.stack([compute("partial", y) for y in own])
    cohort = make_cohort(
        [without[at].subject for at in kept],
        edges={"pearson": correlations(own), "with mean": correlations(whole), "partial": partial},
        covariates=_about([without[at] for at in kept], displacement),
        source="CC200",
    )
    space = regions(atlas, _read(data, TABLE)["roi_id"])
    labels = np.broadcast_to(np.arange(len(space), dtype=np.int16), (len(kept), len(space)))
    return dataclasses.replace(cohort, labels=labels, confidence=np.ones(labels.shape, np.float32), space=space)


def eyes(data: Path) -> Cohort:
    """Eyes open and closed on the same day, AAL, 32 participants with two scans each; the state is also the session."""
    stored = _read(data, "eceo_beijing_aal/eceo_aal_int8.npz")
    tr = float(stored["tr"])
    signals = [filtered(x, tr) for x in _scans(stored)]
    state = stored["state"].astype(str)
    return make_cohort(
        stored["subject"].astype(str),
        signals=signals,
        edges={"pearson": correlations(signals)},
        tr=tr,
        sessions=state,
        covariates={"state": state},
        source="AAL",
    )


def stages(data: Path) -> Cohort:
    """First-episode psychosis, sessions 3 months apart, 419 regions; the signals are band-passed already."""
    stored = _read(data, "stages_fep/stages_fep_419_int8.npz")
    signals = [x.T for x in _scans(stored)]
    return make_cohort(
        stored["subject"].astype(str),
        signals=signals,
        edges={"pearson": correlations(signals)},
        tr=2.0,
        sessions=stored["session"].astype(str),
        source="Schaefer 400 and subcortex",
    )


def depression(data: Path) -> Cohort:
    """Major depression, Destrieux and subcortex: a plain connectome tells next to nothing here."""
    stored = _read(data, "mdd_mnmi_destrieux164/mdd_destrieux164_int8.npz")
    signals = [((x - x.mean(0)) / x.std(0)).T for x in _scans(stored)]
    return make_cohort(
        stored["subject"].astype(str),
        signals=signals,
        edges={"pearson": correlations(signals)},
        tr=float(stored["tr"]),
        covariates={"dx": np.where(stored["mdd"] == 1, "MDD", "control")},
        source="Destrieux and subcortex",
    )


def filtered(x: np.ndarray, tr: float, *, low_pass: bool = True) -> np.ndarray:
    """Return standardised signals `[K, T]` of `[T, K]` in the band of `abide.band_of`, or only above its lower limit."""
    band, kind = (band_of(tr), "band") if low_pass else (BAND_HZ[0], "high")
    y = sosfiltfilt(butter(2, band, kind, fs=1 / tr, output="sos"), x, axis=0).T
    return ((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)).astype(np.float32)


def correlations(signals: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.corrcoef(y) for y in signals]).astype(np.float32)


def displacement_of(phenotypes: Path | None) -> dict[str, float]:
    """Mean FD by number of the participant, from ABIDE's table `Phenotypic_V1_0b_preprocessed1.csv`."""
    if phenotypes is None:
        return {}
    with phenotypes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["SUB_ID"].zfill(5)[-5:]: float(row["func_mean_fd"]) for row in rows if row["func_mean_fd"] not in ("", "-9999")}


def words(answer: Answer) -> dict[str, object]:
    """An answer as JSON has it."""
    rows = [{key: value for key, value in row._asdict().items() if value == value and value != ""} for row in answer.rows]
    return {"sentences": list(answer.sentences), "warnings": list(answer.warnings), "rows": rows}


def _about(found: list[Recording], displacement: dict[str, float]) -> dict[str, np.ndarray]:
    fd = np.array([displacement.get(one.subject[-5:], np.nan) for one in found])
    return {"mean_fd": fd, "site": np.array([one.site for one in found])}


def _read(data: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(need(data, name)[0]) as file:
        return {key: file[key] for key in file.files}


def _scans(stored: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the int8 signals of each scan in units of their standard deviation, `[T, K]`."""
    scale = float(stored["clip"]) / 127
    return [stored["z"][a:b].astype(np.float32) * scale for a, b in zip(stored["offset"], stored["offset"][1:], strict=False)]
