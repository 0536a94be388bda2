"""ABIDE I data for the benchmarks: 200 regions (Craddock), 19 sites, some of which are held out for testing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfiltfilt

from pnet_jax.scan import Scan, make_scan
from pnet_jax.space import Space, point_space

TABLE, ATLAS = "abide_cc200/abide1_cc200_int8.npz", "atlases/CC200_res-4_dseg.nii.gz"
TEST_SITES = ("KKI", "Caltech", "CMU_a", "MaxMun_d", "Leuven_1")
TR = {"CMU_b": 1.5, "KKI": 2.5, "Leuven_1": 1.667, "MaxMun_a": 3.0, "MaxMun_b": 3.0, "MaxMun_c": 3.0, "MaxMun_d": 3.0, "OHSU": 2.5}
TR |= {"Olin": 1.5, "Pitt": 1.5, "SBL": 2.2, "UCLA_2": 3.0}
OTHER_TR = 2.0
BAND_HZ = (0.009, 0.1)
LEAST_FRAMES = 140


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """Signals of 200 regions, `[T, K]`, with their participant and site."""

    signals: np.ndarray
    site: str
    tr: float
    subject: str

    @property
    def test(self) -> bool:
        """Whether the scan belongs to a held-out site."""
        return self.site in TEST_SITES


def recordings(table: Path, *, without_mean: bool = True) -> list[Recording]:
    """Read all scans that are long enough and in which every region varies, optionally with the mean over regions removed."""
    with np.load(table) as file:
        data = {name: file[name] for name in ("z", "clip", "offset", "site", "sub_id")}
    out = []
    for start, stop, site, subject in zip(data["offset"], data["offset"][1:], data["site"], data["sub_id"], strict=False):
        x = data["z"][start:stop].astype(np.float32) / 127 * float(data["clip"])
        if len(x) >= LEAST_FRAMES and (x.std(0) >= 1e-3).all():
            label = f"{site}{subject}".replace("_", "")
            x = x - x.mean(1, keepdims=True) if without_mean else x
            out.append(Recording(x, str(site), TR.get(str(site), OTHER_TR), label))
    return out


def participants(table: Path, atlas: Path, *, test: bool) -> Iterator[Scan]:
    """Return band-passed scans from the training or the test sites."""
    with np.load(table) as file:
        space = regions(atlas, file["roi_id"])
    for one in recordings(table):
        if one.test == test:
            yield make_scan(band_passed(one.signals, one.tr).T, space, tr=one.tr, subject=one.subject)


def regions(atlas: Path, ids: np.ndarray) -> Space:
    """Return the centroids of the regions of a table, in its order."""
    import pnet_jax
    from pnet_jax.ingest.atlas import centroids

    prior = pnet_jax.load_atlas(atlas, space="MNI152NLin6Asym")
    place = {int(one): at for one, at in zip(prior.ids, centroids(prior), strict=True)}
    return point_space(np.array([place[int(one)] for one in ids]), names=[str(one) for one in ids], name="MNI152NLin6Asym")


def band_of(tr: float) -> tuple[float, float]:
    """Return the band in Hz, as far as the repetition time allows."""
    return BAND_HZ[0], min(BAND_HZ[1], 0.45 / tr)


def band_passed(x: np.ndarray, tr: float) -> np.ndarray:
    """Band-pass signals, `[T, K]`."""
    return sosfiltfilt(butter(2, band_of(tr), "band", fs=1 / tr, output="sos"), x, axis=0).astype(np.float32)
