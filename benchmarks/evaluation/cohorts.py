"""The public data sets of `../shared/data` as Cohorts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfiltfilt

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import need

from pnet_jax.cohort import Cohort, make_cohort

LOW_HZ, HIGH_HZ = 0.009, 0.1
ABIDE_TR = {"CMU_b": 1.5, "KKI": 2.5, "Leuven_1": 1.667, "MaxMun_a": 3.0, "MaxMun_b": 3.0, "MaxMun_c": 3.0, "MaxMun_d": 3.0, "OHSU": 2.5}
ABIDE_TR |= {"Olin": 1.5, "Pitt": 1.5, "SBL": 2.2, "UCLA_2": 3.0}  # s; 2 s at all other sites
LEAST_FRAMES = 70


def abide(data: Path, *, wide: bool = True) -> Cohort:
    """ABIDE I, CC200: band-passed signals, Pearson edges, and with `wide` correlations of the signals without a low-pass."""
    stored = _read(data, "abide_cc200/abide1_cc200_int8.npz")
    scans = _scans(stored)
    good = [at for at, x in enumerate(scans) if len(x) >= LEAST_FRAMES and (x.std(0) >= 1e-3).all()]
    sites = stored["site"][good].astype(str)
    times = np.array([ABIDE_TR.get(site, 2.0) for site in sites])
    narrow = [filtered(scans[at], tr, HIGH_HZ) for at, tr in zip(good, times, strict=True)]
    edges = {"pearson": correlations(narrow)}
    if wide:
        edges["wide"] = correlations([filtered(scans[at], tr, None) for at, tr in zip(good, times, strict=True)])
    covariates = {
        "dx": np.where(stored["dx_group"][good] == 1, "ASD", "control"),
        "site": sites,
        "age": stored["age"][good].astype(float),
        "sex": stored["sex"][good].astype(str),
        "fiq": np.where(stored["fiq"][good] > 0, stored["fiq"][good], np.nan).astype(float),
    }
    return make_cohort(stored["sub_id"][good].astype(str), signals=narrow, edges=edges, tr=times, covariates=covariates, source="CC200")


def eyes(data: Path) -> Cohort:
    """Eyes open and closed on the same day, AAL, 32 participants with two scans each."""
    stored = _read(data, "eceo_beijing_aal/eceo_aal_int8.npz")
    tr = float(stored["tr"])
    signals = [filtered(x, tr, HIGH_HZ) for x in _scans(stored)]
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


def filtered(x: np.ndarray, tr: float, high: float | None) -> np.ndarray:
    """Return standardised signals `[K, T]` above .009 Hz, and below `high` where the sampling allows it."""
    kind = (LOW_HZ, "high") if high is None or high >= 0.475 / tr else ((LOW_HZ, high), "band")
    y = sosfiltfilt(butter(2, *kind, fs=1 / tr, output="sos"), x, axis=0).T
    return ((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)).astype(np.float32)


def correlations(signals: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.corrcoef(y) for y in signals]).astype(np.float32)


def _read(data: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(need(data, name)[0]) as file:
        return {key: file[key] for key in file.files}


def _scans(stored: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the int8 signals of each scan in units of their standard deviation, `[T, K]`."""
    scale = float(stored["clip"]) / 127
    return [stored["z"][a:b].astype(np.float32) * scale for a, b in zip(stored["offset"], stored["offset"][1:], strict=False)]
