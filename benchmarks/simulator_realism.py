"""Difficulty of simulated scans compared with a real one, by two measures that need neither ground truth nor parameter choices.

Two recordings of about 3 min each are cleaned separately in the same way (linear trend, 0.009–0.1 Hz, global signal):

- label agreement: share of locations with the same label in both parcellations, at fixed settings (κ, β) of the mixture, 12 steps from
  the prior;
- fingerprint reliability: correlation over locations and references of the connectivity fingerprints of the two recordings in Fisher z,
  after removal of the mean over locations.

Real: the halves (frames 0–124 and 135–259) of a 4-mm scan with the Schaefer-200 and Tian parcels as prior (K = 216), and with k-means
parcels, the kind of prior used for simulated scans. Simulated: two sessions of a subject, K = 200, group parcels as prior, without frames
with a displacement above 0.5 mm; mean over subjects of different cohorts.

    python benchmarks/simulator_realism.py --data FOLDER --out benchmarks/results/simulator_realism.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from common import BOLD, MASK, ROOT, atlas, average, need, parser, table, write

import pnet_jax
from pnet_jax.config import CleaningConfig, SimulateConfig
from pnet_jax.encoder.linear import LinearEncoder, embed
from pnet_jax.encoder.tokens import nearest_reference, reference_signals
from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.parcellation.atlas import Atlas, make_atlas
from pnet_jax.parcellation.harden import most_probable
from pnet_jax.parcellation.mixture import Problem, group_prototypes, mixture
from pnet_jax.parcellation.spatial import locate, place
from pnet_jax.scan import Scan
from pnet_jax.simulate import cleaned_scan, simulate_subject
from pnet_jax.simulate.observe import TIERS
from pnet_jax.simulate.space import group_parcels
from pnet_jax.space import take

SETTINGS = ((20.0, 0.4), (5.0, 0.1), (10.0, 0.1), (20.0, 0.2), (40.0, 0.4))  # κ, β; amplitudes were tuned with the first
HALVES = ((0, 125), (135, 260))  # first frame, and one past the last
REAL_TR = 1.5
PARCELS = 200
FD_THRESHOLD_MM = 0.5
_fit = jax.jit(mixture)


def main() -> None:
    args = _arguments()
    encoder = pnet_jax.load_model("pnet-linear").encoder
    bold, mask, labels = need(args.data, BOLD, MASK, atlas(200))
    atlas_prior = pnet_jax.load_atlas(labels, space="MNI152NLin6Asym")
    halves = [real_half(bold, mask, *frames) for frames in HALVES]
    figures = {"real scan": measure(encoder, halves, atlas_prior)}
    figures["real scan, k-means prior"] = measure(encoder, halves, geometric(halves[0], atlas_prior))
    plain = [real_half(bold, mask, *frames, global_signal=False) for frames in HALVES]
    figures["real scan, global signal kept"] = measure(encoder, plain, atlas_prior)
    for tier in args.tiers:
        rows = [simulated(encoder, tier, seed, args) for seed in range(args.first_seed, args.first_seed + args.seeds)]
        figures[f"tier {tier}"] = average(rows) | {f"sd of {key}": sd for key, sd in average(rows, np.std).items() if key in HEAD[:2]}
    table(("scan", *HEAD), [(name, *(row[key] for key in HEAD)) for name, row in figures.items()])
    write(args, figures)


def setting(kappa: float, beta: float) -> str:
    return f"agreement {kappa:g}/{beta:g}"


HEAD = ("reliability", *(setting(*pair) for pair in SETTINGS))


def measure(encoder: LinearEncoder, scans: Sequence[Scan], prior: Atlas) -> dict[str, float]:
    """Compute both measures for two scans on one Space."""
    placed = place(prior, scans[0].space)
    tables, rows = placed.prior, [locate(placed, scan) for scan in scans]
    valid = rows[0].valid & rows[1].valid
    candidates = jnp.where(valid[:, None], tables.candidates, -1)
    atlas = jnp.where(valid, tables.labels, -1)
    figures = {"reliability": reliability(encoder, scans, rows[0].at[valid])}
    region = np.where(valid, nearest_reference(np.asarray(tables.xyz), encoder.references), -1)
    problems = []
    for scan, row in zip(scans, rows, strict=True):
        z = embed(encoder, row.take(scan.y), region, np.ones(scan.y.shape[1], bool), valid)
        prototypes = group_prototypes(z, atlas, prior.n_parcels)
        problems.append(Problem(z, candidates, tables.log_prior, tables.table, prototypes, tables.blocks))
    for kappa, beta in SETTINGS:
        a, b = (np.asarray(most_probable(_fit(one, jnp.float32(kappa), jnp.float32(beta)).q, candidates))[valid] for one in problems)
        figures[setting(kappa, beta)] = float(np.mean(a == b))
    return figures


def reliability(encoder: LinearEncoder, scans: Sequence[Scan], here: np.ndarray) -> float:
    """Correlation over locations and references of the centred Fisher-z fingerprints of two scans."""
    references = len(encoder.references)
    parts = []
    for scan in scans:
        region = np.where(scan.valid, nearest_reference(scan.space.xyz, encoder.references), -1)
        y = np.asarray(scan.y, np.float32)
        f = np.asarray(fingerprint(jnp.asarray(y[here]), reference_signals(jnp.asarray(y), jnp.asarray(region), references)))
        present = np.bincount(region[region >= 0], minlength=references) > 0
        parts.append((f - f.mean(0))[:, present].ravel())
    return float(np.corrcoef(*parts)[0, 1])


def real_half(bold: Path, mask: Path, first: int, last: int, *, global_signal: bool = True) -> Scan:
    """Return frames of the real scan as a separate recording."""
    image = nib.load(bold).slicer[..., first:last]
    inside = np.asanyarray(nib.load(mask).dataobj) > 0
    mean = np.asarray(image.dataobj)[inside].mean(0)[:, None]
    cleaning = CleaningConfig(strategy=("global_signal",) if global_signal else ())
    given = dict(confounds=mean) if global_signal else {}
    return pnet_jax.load_scan(image, mask=mask, tr=REAL_TR, space="MNI152NLin6Asym", cleaning=cleaning, **given)


def geometric(scan: Scan, prior: Atlas) -> Atlas:
    """Return k-means parcels of the locations covered by a prior, computed like the group parcels of the simulator."""
    placed = place(prior, scan.space)
    rows = locate(placed, scan)
    space = take(scan.space, np.sort(rows.at[rows.valid]))
    labels = group_parcels(space, PARCELS, np.random.default_rng(0)) + 1
    return make_atlas(space.xyz, labels, resolution=space.resolution, hemisphere=space.hemisphere, source="k-means")


def simulated(encoder: LinearEncoder, tier: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Compute both measures for the first subject of a cohort."""
    config = SimulateConfig(subjects=1, sessions=2, tier=tier, parcels=PARCELS, minutes=args.minutes, tr=args.tr, seed=seed)
    subject = simulate_subject(config, 0)
    space = subject.space
    prior = make_atlas(
        space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group parcels"
    )
    row = measure(encoder, [cleaned_scan(session, fd_threshold=FD_THRESHOLD_MM) for session in subject.sessions], prior)
    print(f"{tier}, seed {seed}: " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    return row


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.set_defaults(out=ROOT / "benchmarks" / "results" / "simulator_realism.json")
    arguments.add_argument("--tiers", nargs="+", default=list(TIERS), choices=list(TIERS), help="tiers to simulate (default: all)")
    arguments.add_argument("--seeds", type=int, default=4, help="cohorts of a tier, one subject each (default: 4)")
    arguments.add_argument("--first-seed", type=int, default=0, help="seed of the first cohort (default: 0)")
    arguments.add_argument("--minutes", type=float, default=3.1, help="length of a simulated session (default: 3.1)")
    arguments.add_argument("--tr", type=float, default=1.5, help="repetition time of the simulated scans in seconds (default: 1.5)")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
