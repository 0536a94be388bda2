"""Parcels from one half of a real scan, scored on the other half, in both directions.

The scan (resting, 4 mm, TR 1.5 s, 6.5 min) is cut in two with 10 frames left out between. For each prior and each encoder: DCBC
(the one to judge by) and homogeneity of the personalised parcels, beside the prior itself and beside a data-free map, every voxel
to the nearest of the prior's centroids.

    python benchmarks/cross_half.py --encoders pnet-linear raw --out benchmarks/results/cross_half.json

`--dynamics PEOPLE`: the same with the prior of 200 regions (Craddock), with and without fine-tuning with dynamics, which so many people of
ABIDE, recorded as these regions, are learned from. The gain in DCBC with its bootstrap interval over stretches of the other half, and how
well each half's own dynamics foretell the other half, in the parcels of the first, beside those of the people.

    python benchmarks/cross_half.py --dynamics 60 --out benchmarks/results/dynamics_bold4d.json
"""

from __future__ import annotations

import jax.numpy as jnp
import nibabel as nib
import numpy as np
from abide import ATLAS, BAND_HZ, TABLE, band_passed, recordings
from common import BOLD, MASK, atlas, average, need, parser, table, write
from personalization import next_session

import pnet_jax
from pnet_jax import edges
from pnet_jax.dynamics import frequency_bins, spectra, standardise
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.evaluate.parcellation import Judge
from pnet_jax.parcellation import score
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.parcellation.select import BLOCK_SECONDS
from pnet_jax.people import Member, fit_people
from pnet_jax.pretraining import reference_points
from pnet_jax.simulate.space import grey_matter_space

GAP_FRAMES = 10
REGIONS = (100, 200, 400)  # and 16 subcortical ones: K = 116, 216, 416
REFERENCES = 400


def main() -> None:
    args = _arguments()
    if args.dynamics:
        write(args, with_dynamics(args))
        return
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


def with_dynamics(args) -> dict[str, object]:
    """Scores of both directions without and with dynamics, and what they foretell of the other half."""
    bold, mask, dseg, signals = need(args.data, BOLD, MASK, ATLAS, TABLE)
    scans, prior, model = halves(bold, mask), pnet_jax.load_prior(dseg, space="MNI152NLin6Asym"), pnet_jax.load_model(args.encoders[0])
    with np.load(signals) as stored:
        if not np.array_equal(stored["roi_id"], prior.ids):
            raise SystemExit(f"{signals.name} and {dseg.name} have other regions, or the same in another order")
    training = [one for one in recordings(signals, without_mean=False) if not one.test]
    chosen = np.random.default_rng(0).permutation(len(training))[: args.dynamics]
    people = fit_people([_member(training[i]) for i in chosen], prior.digest)
    configs = {
        name: pnet_jax.ConstructConfig(dynamics=name == "with", force_personalised=args.force_personalised) for name in ("without", "with")
    }
    rows, figures = [], {}
    for direction, (scan, other) in {"1 on 2": scans, "2 on 1": scans[::-1]}.items():
        networks = {
            name: pnet_jax.construct(scan, prior=prior, model=model, config=config, people=people if config.dynamics else None)
            for name, config in configs.items()
        }
        maps = {"prior": networks["with"].prior_labels} | {name: network.labels for name, network in networks.items()}
        inside = np.all([labels >= 0 for labels in maps.values()], 0)
        judge = Judge(other.y, other.space, inside, prior.n_parcels)
        found = {name: judge(labels) for name, labels in maps.items()}
        report = networks["with"].qc["dynamics"]
        own = next_session(scan, other, networks["with"], people, prior)
        figures[direction] = found | {
            "gain over the prior": {name: _gain(other, inside, maps[name], maps["prior"]) for name in configs},
            "decision": networks["with"].qc["selection"]["decision"],
            "fine-tuned parcels": report["parcels"],
            "dynamics": own,
        }
        interval = figures[direction]["gain over the prior"]["with"]
        rows.append((direction, *(found[name]["dcbc"] for name in maps), *interval.values(), str(report["parcels"]["kept"]), *own.values()))
        print(f"{direction}: {report['parcels']['reason']}", flush=True)
    table(("half", *(f"DCBC {name}" for name in maps), "gain", "from", "to", "fine-tuned", *own), rows)
    return {"people": len(chosen), "parcels": prior.n_parcels} | figures


def _member(one) -> Member:
    """A person of whom there are signals of the regions alone."""
    bins = frequency_bins(np.ones(len(one.signals), bool), one.tr)
    passed, middle, gap = band_passed(one.signals, one.tr).T, len(one.signals) // 2, GAP_FRAMES // 2
    parts = (passed[:, : middle - gap], passed[:, middle + gap :])
    n_eff = [2 * (BAND_HZ[1] - BAND_HZ[0]) * part.shape[1] * one.tr for part in parts]
    pearson = np.stack([edges.compute("pearson", part) for part in parts])[:, None]
    return Member(standardise(spectra(jnp.asarray(one.signals.T), bins)), pearson, np.array(n_eff), one.subject)


def _gain(scan, inside, labels, than) -> dict[str, float]:
    """Gain in DCBC of a map over another, and its 95 % interval over stretches of the scan's time."""
    y = score.standardised(np.array(scan.y))
    pairs = score.sample_pairs(scan.space, np.flatnonzero(inside))
    blocks = max(1, int(y.shape[1] * scan.tr / BLOCK_SECONDS))
    each = score.gain_by_block(y, pairs, np.where(inside, labels, -1), np.where(inside, than, -1), blocks)
    low, _, high = score.bootstrap_interval(each, 0)
    return {"gain": float(each.mean()), "from": low, "to": high}


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
    arguments.add_argument("--dynamics", type=int, metavar="PEOPLE", help="with and without dynamics, learned from so many people of ABIDE")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
