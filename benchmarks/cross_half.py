"""Parcels from one half of a real scan, scored on the other half, in both directions.

The scan (resting, 4 mm, TR 1.5 s, 6.5 min) is cut in two with 10 frames left out between. For each prior and each encoder: DCBC
(the one to judge by) and homogeneity of the personalised parcels, beside the prior itself and beside a data-free map, every voxel
to the nearest of the prior's centroids.

    python benchmarks/cross_half.py --encoders pnet-linear raw --out benchmarks/results/cross_half.json
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from common import BOLD, MASK, atlas, average, need, parser, table, write

import pnet_jax
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.evaluate.parcellation import Judge
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.pretraining import reference_points
from pnet_jax.simulate.space import grey_matter_space

GAP_FRAMES = 10
REGIONS = (100, 200, 400)  # and 16 subcortical ones: K = 116, 216, 416
REFERENCES = 400


def main() -> None:
    args = _arguments()
    bold, mask, *priors = need(args.data, BOLD, MASK, *(atlas(n) for n in args.regions))
    scans = halves(bold, mask)
    models = {name: raw_fingerprints() if name == "raw" else pnet_jax.load_model(name) for name in args.encoders}
    config = pnet_jax.ConstructConfig(force_personalised=args.force_personalised)
    rows, figures = [], {}
    for file in priors:
        prior = pnet_jax.load_prior(file, space="MNI152NLin6Asym")
        for name, model in models.items():
            result = cross_half(scans, prior, model, config)
            short = name.rstrip("/").split("/")[-1]
            figures.setdefault(f"K={prior.n_parcels}", {})[short] = result
            dcbc, homogeneity = (
                [result[which][measure] for which in ("personalised", "fixed", "centroids")] for measure in ("dcbc", "homogeneity")
            )
            chosen = " ".join(f"{r['decision'][:4]} κ={r['kappa']:g} β={r['beta']:g}" for r in result["selection"])
            rows.append((f"K={prior.n_parcels} {short}", *dcbc, *homogeneity, result["moved"], chosen))
    kinds = ("personalised", "fixed", "centroids")
    table(("prior, encoder", *(f"DCBC {k}" for k in kinds), *(f"hom. {k}" for k in kinds), "moved", "selection, halves 1 2"), rows)
    write(args, figures)


def cross_half(scans, prior, model, config) -> dict[str, object]:
    """Scores of both directions, averaged: personalised, fixed (the prior) and centroids (data-free)."""
    networks = [pnet_jax.construct(scan, prior=prior, model=model, config=config) for scan in scans]
    space, fixed = scans[0].space, networks[0].prior_labels
    inside = (fixed >= 0) & (networks[0].labels >= 0) & (networks[1].labels >= 0)
    maps = {
        "personalised": [network.labels for network in networks],
        "fixed": [fixed] * 2,
        "centroids": [nearest_centroid(np.where(inside, fixed, -1), space)] * 2,
    }
    judges = [Judge(scan.y, space, inside, prior.n_parcels) for scan in scans]
    out: dict[str, object] = {name: average([judges[1](first), judges[0](second)]) for name, (first, second) in maps.items()}
    out["moved"] = float(np.mean([(network.labels[inside] != fixed[inside]).mean() for network in networks]))
    out["voxels"] = int(inside.sum())
    out["selection"] = [{key: network.qc["selection"][key] for key in ("decision", "kappa", "beta")} for network in networks]
    return out


def halves(bold, mask):
    """The two halves of a recording, each cleaned by itself."""
    image = nib.load(bold)
    middle = image.shape[3] // 2
    parts = (slice(None, middle - GAP_FRAMES // 2), slice(middle + GAP_FRAMES // 2, None))
    tr = float(image.header.get_zooms()[3])
    return [
        pnet_jax.load_scan(image.slicer[..., part], mask=mask, tr=tr, space="MNI152NLin6Asym", entities={"sub": "1", "run": str(run)})
        for run, part in enumerate(parts, 1)
    ]


def raw_fingerprints():
    """A model without pre-training: the fingerprints themselves."""
    points = reference_points(grey_matter_space(4), REFERENCES)
    one = np.eye(REFERENCES, dtype=np.float32)
    nothing = np.zeros(REFERENCES, np.float32)
    return pnet_jax.Model("raw", LinearEncoder(points, nothing, one, nothing + 1, one), {}, {})


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--encoders", nargs="+", default=["pnet-linear"], help="model names or checkpoint folders, 'raw' for no projection"
    )
    arguments.add_argument("--regions", nargs="+", type=int, default=list(REGIONS), help="cortical regions of the priors")
    arguments.add_argument(
        "--force-personalised", action="store_true", help="score the personalised parcels even where the prior would be kept"
    )
    return arguments.parse_args()


if __name__ == "__main__":
    main()
