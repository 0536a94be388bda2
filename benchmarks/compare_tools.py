"""The same two jobs in nilearn and in pnet_jax, on one simulated 4-mm scan: a connectome of a fixed atlas, and a parcellation of one scan.

Prints the lines of code of each way, seconds of the first and of the second run, and the adjusted Rand index with the simulated truth.

    python benchmarks/compare_tools.py --out benchmarks/results/compare_tools.json
"""

from __future__ import annotations

import inspect
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import parser, table, write

from pnet_jax.config import SimulateConfig
from pnet_jax.outputs.simulated import write_cohort

PARCELS = 100


def main() -> None:
    args = parser(__doc__, data=False)
    args.add_argument("--minutes", type=float, default=6.0, help="duration of the scan (default: 6)")
    args = args.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        write_cohort(root, SimulateConfig(subjects=1, sessions=1, minutes=args.minutes, parcels=PARCELS))
        bold, atlas = str(next(root.rglob("*_bold.nii.gz"))), str(root / "group_dseg.nii.gz")
        truth = np.load(next(root.rglob("truth.npz")))
        for function in (nilearn_connectome, pnet_connectome, nilearn_parcellation, pnet_parcellation):
            rows.append(measured(function, bold, atlas, truth))
    table(("job", "lines", "first run, s", "second run, s", "ARI to the truth"), [list(row.values()) for row in rows])
    write(args, {"rows": rows})


def measured(function: Callable[[str, str], object], bold: str, atlas: str, truth: dict[str, np.ndarray]) -> dict[str, object]:
    """Run one way twice; its lines are those of its function without the head."""
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        found = function(bold, atlas)
        seconds.append(time.perf_counter() - begun)
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()[1:]
    code = [line for line in lines if line.strip() and not line.strip().startswith(('"""', "return"))]
    image = found if hasattr(found, "get_fdata") else None
    return {
        "job": function.__name__,
        "lines": len(code),
        "first": seconds[0],
        "second": seconds[1],
        "ari": None if image is None else rand_index(image, truth),
    }


def rand_index(image: object, truth: dict[str, np.ndarray]) -> float:
    """Adjusted Rand index of a label image with the true parcels of the participant."""
    from sklearn.metrics import adjusted_rand_score

    found = np.asarray(image.dataobj)[tuple(truth["ijk"].T)]
    inside = found > 0
    return float(adjusted_rand_score(truth["labels"][inside], found[inside]))


def nilearn_connectome(bold: str, atlas: str) -> object:
    """Signals and correlations of a fixed atlas."""
    from nilearn.connectome import ConnectivityMeasure
    from nilearn.interfaces.fmriprep import load_confounds
    from nilearn.maskers import NiftiLabelsMasker

    confounds, sample_mask = load_confounds(bold, strategy=("motion", "wm_csf"), motion="basic", demean=False)
    masker = NiftiLabelsMasker(atlas, standardize="zscore_sample", detrend=True, low_pass=0.1, high_pass=0.009, t_r=2.0)
    signals = masker.fit_transform(bold, confounds=confounds, sample_mask=sample_mask)
    edges = ConnectivityMeasure(kind="correlation").fit_transform([signals])[0]
    return edges


def pnet_connectome(bold: str, atlas: str) -> object:
    """Signals and correlations of a fixed atlas."""
    import pnet_jax

    scan = pnet_jax.load_scan(bold, cleaning=pnet_jax.CleaningConfig(motion="basic"))
    network = pnet_jax.construct(scan, atlas=atlas, config=pnet_jax.ConstructConfig(labels="atlas"))
    return network.edges["pearson"]


def nilearn_parcellation(bold: str, atlas: str) -> object:
    """Clusters of one scan by Ward's method, without correspondence to an atlas."""
    from nilearn.interfaces.fmriprep import load_confounds
    from nilearn.maskers import NiftiMasker
    from nilearn.regions import Parcellations

    confounds, _ = load_confounds(bold, strategy=("motion", "wm_csf"), motion="basic", demean=False)
    masker = NiftiMasker(
        bold.replace("preproc_bold", "brain_mask"), standardize="zscore_sample", detrend=True, low_pass=0.1, high_pass=0.009, t_r=2.0
    )
    ward = Parcellations("ward", n_parcels=PARCELS, mask=masker, standardize=False).fit(bold, confounds=[confounds])
    return ward.labels_img_


def pnet_parcellation(bold: str, atlas: str) -> object:
    """Personalised parcels that correspond to those of an atlas, with signals and edges."""
    import pnet_jax

    scan = pnet_jax.load_scan(bold, cleaning=pnet_jax.CleaningConfig(motion="basic"))
    network = pnet_jax.construct(scan, atlas=atlas)
    return pnet_jax.labels_image(network)


if __name__ == "__main__":
    main()
