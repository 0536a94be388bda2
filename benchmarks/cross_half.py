"""Parcels estimated from one half of a real scan and scored on the other half, in both directions.

The scan (resting state, 4 mm, TR 1.5 s, 6.5 min) is split with a gap of 10 frames; each half is cleaned and constructed as a separate scan,
so that all choices are made within the half from which the parcels are estimated. For each atlas and encoder:

- DCBC and homogeneity on the other half of the personalised parcels, of the atlas, and of a data-free map (nearest centroid);
- agreement: share of voxels with the same label in both halves; share that left the atlas parcel, and among these the share with the
  same new label in the other half; the same for moves with a replication probability of at least one half;
- ECE: expected calibration error of the label probability for the event "the other half has the same label".

    python benchmarks/cross_half.py --encoders pnet-linear pnet-small raw --out benchmarks/results/cross_half.json

`--frontier`: agreement and DCBC over a grid of κ and β, with the selected point, also as a figure (`--figure FILE`).

    python benchmarks/cross_half.py --frontier --out benchmarks/results/frontier.json --figure docs/frontier.svg
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from common import BOLD, MASK, atlas, average, need, parser, table, write

import pnet_jax
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.pretraining import reference_points
from pnet_jax.simulate.space import grey_matter_space

GAP_FRAMES = 10
REGIONS = (100, 200, 400)  # plus 16 subcortical regions: K = 116, 216, 416
REFERENCES = 400
KAPPAS, BETAS = (2.0, 5.0, 10.0, 15.0, 20.0, 40.0, 80.0), (0.1, 0.2, 0.4, 0.8)
KINDS = ("personalised", "fixed", "centroids")


def main() -> None:
    args = _arguments()
    bold, mask, *files = need(args.data, BOLD, MASK, *(atlas(n) for n in args.regions))
    scans = halves(bold, mask)
    atlases = [pnet_jax.load_atlas(file, space="MNI152NLin6Asym") for file in files]
    if args.frontier:
        figures = frontier(scans, atlases)
        if args.figure is not None:
            draw(figures, args.figure)
    else:
        models = {name: raw_fingerprints() if name == "raw" else pnet_jax.load_model(name) for name in args.encoders}
        figures = compare(scans, atlases, models)
    write(args, figures)


def compare(scans, atlases, models) -> dict[str, object]:
    """Compute one row per atlas and encoder."""
    rows, figures = [], {}
    for prior in atlases:
        for name, model in models.items():
            result = cross_half(scans, prior, model)
            short = name.rstrip("/").split("/")[-1]
            figures.setdefault(f"K={prior.n_parcels}", {})[short] = result
            scores = [result[which][measure] for measure in ("dcbc", "homogeneity") for which in KINDS]
            replication = [result[key] for key in ("agreement", "moved", "moved_alike", "confident_moves", "confident_alike", "ece")]
            chosen = " ".join(f"{r['decision'][:4]} κ={r['kappa']:.3g} β={r['beta']:.2g}" for r in result["selection"])
            rows.append((f"K={prior.n_parcels} {short}", *scores, *replication, chosen))
    heads = [f"{measure} {kind}" for measure in ("DCBC", "hom.") for kind in KINDS]
    table(("atlas, encoder", *heads, "agreement", "moved", "alike", "moves p>=.5", "alike", "ECE", "selection, halves 1 2"), rows)
    return figures


def cross_half(scans, prior, model, config=None) -> dict[str, object]:
    """Average the scores of both directions."""
    networks = [pnet_jax.construct(scan, atlas=prior, model=model, config=config, edges=()) for scan in scans]
    space, fixed = scans[0].space, networks[0].atlas_labels
    inside = (fixed >= 0) & (networks[0].labels >= 0) & (networks[1].labels >= 0)
    maps = {
        "personalised": [network.labels for network in networks],
        "fixed": [fixed] * 2,
        "centroids": [nearest_centroid(np.where(inside, fixed, -1), space)] * 2,
    }
    judges = [Judge(scan.y, space, inside, prior.n_parcels) for scan in scans]
    out: dict[str, object] = {name: average([judges[1](first), judges[0](second)]) for name, (first, second) in maps.items()}
    out |= replication(networks, fixed, inside)
    out["selection"] = [
        {key: getattr(network.qc.selection, key) for key in ("decision", "kappa", "beta", "temperature", "agreement")}
        for network in networks
    ]
    return out | {"voxels": int(inside.sum())}


def replication(networks, fixed, inside) -> dict[str, float]:
    """Compute the agreement of two networks of one participant, and the calibration of their probabilities."""
    same = (networks[0].labels == networks[1].labels)[inside]
    each = []
    for network in networks:
        moved, p = (network.labels != fixed)[inside], network.confidence[inside]
        sure = moved & (p >= 0.5)
        each.append(
            {
                "moved": moved.mean(),
                "moved_alike": same[moved].mean() if moved.any() else np.nan,
                "confident_moves": sure.mean(),
                "confident_alike": same[sure].mean() if sure.any() else np.nan,
                "ece": calibration_error(p, same),
            }
        )
    return {"agreement": float(same.mean())} | average(each)


def calibration_error(p, right, bins: int = 10) -> float:
    """Mean difference between probability and accuracy over bins of equal width, weighted by size."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[at == b].mean() - right[at == b].mean()) * np.mean(at == b) for b in np.unique(at)))


def config(kappa: float, beta: float):
    """Return a configuration with fixed κ and β that always personalises."""
    return pnet_jax.ConstructConfig(kappa=kappa, beta=beta, labels="personalised")


def frontier(scans, atlases) -> dict[str, object]:
    """Compute agreement and DCBC over the grid, and for the selected point."""
    figures = {}
    for prior in atlases:
        points = []
        for beta in BETAS:
            for kappa in KAPPAS:
                found = cross_half(scans, prior, "pnet-linear", config(kappa, beta))
                points.append({"kappa": kappa, "beta": beta, "agreement": found["agreement"], "dcbc": found["personalised"]["dcbc"]})
        chosen = cross_half(scans, prior, "pnet-linear")
        figures[f"K={prior.n_parcels}"] = {
            "grid": points,
            "chosen": {"agreement": chosen["agreement"], "dcbc": chosen["personalised"]["dcbc"], "selection": chosen["selection"]},
            "fixed": chosen["fixed"]["dcbc"],
        }
        table(("κ/β", "agreement", "DCBC"), [(f"{p['kappa']:g}/{p['beta']:g}", p["agreement"], p["dcbc"]) for p in points])
        print(f"K={prior.n_parcels}: chosen {chosen['agreement']:.3f} {chosen['personalised']['dcbc']:.4f}", flush=True)
    return figures


def draw(figures, file: Path) -> None:
    """Plot agreement against DCBC, one line per β."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(figures), figsize=(4.2 * len(figures), 3.6), squeeze=False, layout="constrained")
    for axes, (name, found) in zip(panels[0], figures.items(), strict=True):
        for beta in BETAS:
            line = [p for p in found["grid"] if p["beta"] == beta]
            axes.plot([p["agreement"] for p in line], [p["dcbc"] for p in line], "o-", ms=3, lw=1, label=f"β = {beta:g}")
        axes.plot(found["chosen"]["agreement"], found["chosen"]["dcbc"], "k*", ms=13, label="chosen")
        axes.axhline(found["fixed"], color="grey", ls="--", lw=1, label="atlas")
        axes.set(xlabel="label agreement of the halves", ylabel="DCBC on the other half", title=name)
    panels[0][-1].legend(fontsize=8)
    figure.savefig(file)


def halves(bold, mask):
    """Return the two halves of a recording, each cleaned separately."""
    image = nib.load(bold)
    middle = image.shape[3] // 2
    parts = (slice(None, middle - GAP_FRAMES // 2), slice(middle + GAP_FRAMES // 2, None))
    tr = float(image.header.get_zooms()[3])
    return [
        pnet_jax.load_scan(image.slicer[..., part], mask=mask, tr=tr, space="MNI152NLin6Asym", entities={"sub": "1", "run": str(run)})
        for run, part in enumerate(parts, 1)
    ]


def raw_fingerprints():
    """Return a model without pre-training, whose embeddings are the fingerprints."""
    points = reference_points(grey_matter_space(4), REFERENCES)
    one = np.eye(REFERENCES, dtype=np.float32)
    nothing = np.zeros(REFERENCES, np.float32)
    return pnet_jax.Model("raw", LinearEncoder(points, nothing, one, nothing + 1, one), {}, {})


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--encoders", nargs="+", default=["pnet-linear"], help="model names or checkpoint folders, 'raw' for no projection"
    )
    arguments.add_argument("--regions", nargs="+", type=int, default=list(REGIONS), help="cortical regions of the atlases")
    arguments.add_argument("--frontier", action="store_true", help="agreement and DCBC over a grid of κ and β")
    arguments.add_argument("--figure", type=Path, help="draw the frontier into this file")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
