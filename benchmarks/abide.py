"""Real people for the benchmarks: ABIDE I as 200 regions (Craddock), 19 sites, and which of these are kept for testing."""

from __future__ import annotations

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


def people(table: Path, atlas: Path, *, test: bool) -> Iterator[Scan]:
    """Scans of the people of the training or of the test sites, band-passed and without their mean signal; short ones left out."""
    with np.load(table) as file:
        data = {name: file[name] for name in file.files}
    space = regions(atlas, data["roi_id"])
    for i, site in enumerate(map(str, data["site"])):
        y = data["z"][data["offset"][i] : data["offset"][i + 1]].astype(np.float32) / 127 * float(data["clip"])
        if (site in TEST_SITES) == test and len(y) >= LEAST_FRAMES and (y.std(0) > 1e-3).all():
            yield make_scan(cleaned(y, tr := TR.get(site, OTHER_TR)).T, space, tr=tr, subject=f"{site}{data['sub_id'][i]}".replace("_", ""))


def regions(atlas: Path, ids: np.ndarray) -> Space:
    """Centroids of the regions of a table, in its order."""
    import pnet_jax
    from pnet_jax.ingest.atlas import centroids

    prior = pnet_jax.load_prior(atlas, space="MNI152NLin6Asym")
    place = {int(one): at for one, at in zip(prior.ids, centroids(prior), strict=True)}
    return point_space(np.array([place[int(one)] for one in ids]), names=[str(one) for one in ids], name="MNI152NLin6Asym")


def cleaned(y: np.ndarray, tr: float) -> np.ndarray:
    """`[T, V]` without the mean signal, within the band."""
    high = min(BAND_HZ[1], 0.45 / tr)
    return sosfiltfilt(butter(2, (BAND_HZ[0], high), "band", fs=1 / tr, output="sos"), y - y.mean(1, keepdims=True), axis=0)
