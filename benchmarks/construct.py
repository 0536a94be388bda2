"""Time from one recording to parcels and Pearson edges, compared with nilearn's Ward and pNet's SR-NMF.

Real scan: 4 mm, TR 1.5 s; the mask contains the voxels within 4 mm of the prior (Schaefer-200 + Tian, K = 216) for all programs. pnet_jax
and Ward read, clean and parcellate the file; SR-NMF receives cleaned signals of the first half of the scan only, on which pnet_jax is also
timed. Synthetic scan: 64k voxels (3 mm), 300 frames, K = 200, cleaned signals in memory.

    python benchmarks/construct.py --fmripnet-python PYTHON --out benchmarks/results/construct.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from common import BOLD, MASK, atlas, need, parser, table, write

import pnet_jax
from pnet_jax.config import SimulateConfig
from pnet_jax.parcellation.atlas import make_atlas, on_space
from pnet_jax.simulate import cleaned_scan, simulate_subject
from pnet_jax.space import grid_space

BAND = {"low_pass": 0.1, "high_pass": 0.009}
HELPER = Path(__file__).parent / "peers" / "fmripnet_srnmf.py"


def main() -> None:
    args = _arguments()
    files = need(args.data, BOLD, MASK, atlas(200))
    figures: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bold, mask, prior = _prepare(files, Path(folder))
        half = Path(folder) / "half_bold.nii.gz"
        image = nib.load(bold)
        nib.save(image.slicer[..., : image.shape[3] // 2], half)
        figures["pnet_jax"] = time_file(bold, mask, prior, args)
        figures["nilearn Ward"] = time_ward(bold, mask, prior, args)
        figures["pnet_jax, first half"] = time_file(half, mask, prior, args)
        figures["pNet SR-NMF, first half"] = time_srnmf(half, mask, prior, args)
    figures["pnet_jax, 64k voxels"] = time_synthetic(args)
    _print(figures)
    write(args, figures)


def time_file(bold, mask, prior_file, args) -> dict[str, object]:
    """Time from file to labels and edges. Cold: first call, with model, atlas and compilation; warm: both loaded and compiled."""
    jax.clear_caches()
    start = time.perf_counter()
    model, prior = pnet_jax.load_model(args.checkpoint), pnet_jax.load_atlas(prior_file, space="MNI152NLin6Asym")

    def once():
        scan = pnet_jax.load_scan(bold, mask=mask)
        return pnet_jax.construct(scan, atlas=prior, model=model, edges=("pearson",))

    network = once()
    return _report(time.perf_counter() - start, _repeat(once, args.repeats), network)


def time_synthetic(args) -> dict[str, object]:
    """Time from a cleaned Scan in memory to labels and edges: V = 64k, T = 300, K = 200."""
    subject = simulate_subject(SimulateConfig(resolution=3, parcels=200, minutes=10.0, tr=2.0, sessions=1), 0)
    scan, space = cleaned_scan(subject.sessions[0]), subject.space
    prior = make_atlas(space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere)
    model = pnet_jax.load_model(args.checkpoint)

    def once():
        return pnet_jax.construct(scan, atlas=prior, model=model, edges=("pearson",))

    jax.clear_caches()
    start = time.perf_counter()
    network = once()
    return _report(time.perf_counter() - start, _repeat(once, args.repeats), network)


def time_ward(bold, mask, prior_file, args) -> dict[str, object]:
    """Time nilearn's Ward with equal number of parcels, file, voxels and filter; signals from its `transform`."""
    from nilearn.regions import Parcellations

    image = nib.load(bold)
    count = pnet_jax.load_atlas(prior_file, space="MNI152NLin6Asym").n_parcels
    options = dict(mask=str(mask), standardize="zscore_sample", detrend=True, t_r=float(image.header.get_zooms()[3]), **BAND)
    labels, whole = [], []
    for _ in range(args.peer_repeats):
        start = time.perf_counter()
        ward = Parcellations("ward", n_parcels=count, **options).fit(str(bold))
        labels.append(time.perf_counter() - start)
        np.corrcoef(ward.transform([str(bold)])[0].T)
        whole.append(time.perf_counter() - start)
    voxels = int((np.asarray(nib.load(mask).dataobj) > 0).sum())
    return {
        "voxels": voxels,
        "frames": image.shape[3],
        "parcels": count,
        "seconds": whole,
        "median": statistics.median(whole),
        "labels_median": statistics.median(labels),
    }


def time_srnmf(bold, mask, prior_file, args) -> dict[str, object]:
    """Time pNet's SR-NMF in its own environment, without reading, cleaning and its table of neighbours."""
    if args.fmripnet_python is None:
        return {"measured": False, "reason": "no --fmripnet-python"}
    scan = pnet_jax.load_scan(bold, mask=mask)
    local = on_space(pnet_jax.load_atlas(prior_file, space="MNI152NLin6Asym"), scan.space)
    here = (local.labels >= 0) & scan.valid
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scan.npz"
        np.savez(file, y=scan.y[here], ijk=scan.space.grid.ijk[here], shape=scan.space.grid.shape, labels=local.labels[here])
        done = subprocess.run([args.fmripnet_python, HELPER, file, "--repeats", str(args.peer_repeats)], capture_output=True, text=True)
    if done.returncode:
        return {"measured": False, "reason": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result = json.loads(done.stdout.splitlines()[-1])
    return {"voxels": int(here.sum()), "frames": scan.y.shape[1], "parcels": int(local.labels.max()) + 1, **result}


def _prepare(files, folder):
    """Return the recording, the atlas, and a mask of the voxels close to the atlas."""
    bold, mask, prior = files
    image = nib.load(mask)
    space = grid_space(np.asarray(image.dataobj) > 0, image.affine)
    near = on_space(pnet_jax.load_atlas(prior, space="MNI152NLin6Asym"), space).labels >= 0
    inside = np.zeros(image.shape, np.uint8)
    inside[tuple(space.grid.ijk[near].T)] = 1
    out = folder / "mask.nii.gz"
    nib.save(nib.Nifti1Image(inside, image.affine), out)
    return bold, out, prior


def _repeat(once, repeats):
    """Return the total and stage times of warm calls in seconds."""
    rows = []
    for _ in range(repeats):
        start = time.perf_counter()
        network = once()
        rows.append((time.perf_counter() - start, network.qc.seconds))
    return rows


def _report(cold, warm, network) -> dict[str, object]:
    seconds = [row[0] for row in warm]
    stages = {name: statistics.median(row[1][name] for row in warm) for name in warm[0][1]}
    return {
        "voxels": network.qc.n_locations,
        "frames": network.qc.n_frames,
        "parcels": network.signals.shape[0],
        "cold": cold,
        "seconds": seconds,
        "median": statistics.median(seconds),
        "stages": stages,
        "decision": network.qc.selection.decision,
        "moved": network.qc.moved,
    }


def _print(figures):
    rows = []
    for name, row in figures.items():
        if row.get("measured") is False:
            rows.append((name, *("-",) * 6, f"not measured: {row['reason']}"))
            continue
        note = " ".join(f"{stage} {s:.2f}" for stage, s in row.get("stages", {}).items())
        if "labels_median" in row:
            note = f"labels alone {row['labels_median']:.2f}"
        cells = [f"{row[key]:.2f}" if key in row else "-" for key in ("cold", "median", "moved")]
        rows.append((name, *(row[key] for key in ("voxels", "frames", "parcels")), *cells, note))
    table(("scan to labels and edges", "V", "T", "K", "cold s", "warm s", "moved", "of which, s"), rows)


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--checkpoint", default="pnet-linear", help="model name or checkpoint folder")
    arguments.add_argument("--fmripnet-python", help="interpreter of an environment with fmripnet; SR-NMF is not measured without it")
    arguments.add_argument("--repeats", type=int, default=7, help="warm calls of pnet_jax")
    arguments.add_argument("--peer-repeats", type=int, default=3, help="calls of each peer")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
