"""How often noise is taken for a participant's own parcels, and how often planted parcels are found.

Surrogates have the mask and the spectrum of a real scan, no parcels at all: Gaussian maps of 6, 8 or 10 mm FWHM, each with its own time
course, plus regressors that look like head motion and are in the signals too, and frames to scrub. They go through cleaning, both
halves apart, and the construction step with its full grid. In "atlas" surrogates the atlas's parcels are the truth: each has a signal of
its own on top of the noise. Every cell is the share that was personalised, with its 95 % interval (Wilson).

    python benchmarks/surrogates.py --count 200 --out benchmarks/results/surrogates.json

`--joint`: cleaned as a whole before they are read, which nothing can see afterwards. `--power N`: simulated participants of each tier.
"""

from __future__ import annotations

import dataclasses
import time

import nibabel as nib
import numpy as np
from common import BOLD, MASK, atlas, need, parser, table, write
from scipy.ndimage import gaussian_filter

import pnet_jax
from pnet_jax.config import CleaningConfig, ConstructConfig, SimulateConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.ingest.cleaning import Recording, clean_recording
from pnet_jax.parcellation.prior import make_prior
from pnet_jax.parcellation.spatial import locate
from pnet_jax.scan import Scan
from pnet_jax.simulate import cleaned_scan, simulate_cohort

FWHM_MM = (6.0, 8.0, 10.0)
SCRUBBED = 0.08  # share of the frames
MOTION_SHARE = 0.3  # of the noise's standard deviation that the regressors add to the signals
COMPONENTS_PER_SECOND = 0.3  # independent maps a second: about the bandwidth's degrees of freedom
CLEANING = CleaningConfig(min_seconds=30)


def main() -> None:
    args = _arguments()
    bold, mask, dseg = need(args.data, BOLD, MASK, atlas(args.regions))
    template = pnet_jax.load_scan(bold, mask=mask, space="MNI152NLin6Asym")
    spectrum = amplitude(bold, mask)
    prior = pnet_jax.load_prior(dseg, space="MNI152NLin6Asym")
    builder = Builder(resolve(ConstructConfig(edges=()), prior=prior))
    figures: dict[str, object] = {}
    rows = []
    for kind in args.kinds:
        for minutes in args.minutes:
            for regressors in args.regressors:
                start = time.perf_counter()
                found = [one(template, spectrum, builder, kind, minutes, regressors, seed, args.joint) for seed in range(args.count)]
                cell = summary(found)
                figures[f"{kind}, {minutes:g} min, {regressors} regressors"] = cell
                rows.append((f"{kind} {minutes:g} min, {regressors} regressors", *cell.values(), time.perf_counter() - start))
                print(rows[-1], flush=True)
    table(("surrogates", "n", "personalised", "from", "to", "S alone", "DCBC alone", "largest gain", "seconds"), rows)
    if args.power:
        figures["power"] = power(args.power)
    write(args, figures)


def one(template: Scan, spectrum, builder: Builder, kind: str, minutes: float, regressors: int, seed: int, joint: bool):
    """Decision on one surrogate: personalised, the score's gain alone, the DCBC's alone."""
    scan = surrogate(template, spectrum, builder, kind, minutes, regressors, seed, joint)
    found = builder.run([builder.ready(scan)])[0]
    gain, dcbc = found.quality.gain, found.quality.dcbc_gain
    return bool(found.personalised), bool(gain[0] > 0), bool(dcbc[0] > 0), float(dcbc[0]), float(dcbc[1])


def surrogate(template: Scan, spectrum, builder: Builder, kind: str, minutes: float, regressors: int, seed: int, joint: bool) -> Scan:
    """A scan without parcels, or with the atlas's."""
    rng = np.random.default_rng([seed, round(minutes * 10), regressors, kind == "atlas"])
    frames = round(minutes * 60 / template.tr)
    y = smooth_noise(template, spectrum, frames, FWHM_MM[seed % len(FWHM_MM)], rng)
    if kind == "atlas":
        placed = builder.placed(template)[0]
        rows = locate(placed, template)
        labels = np.full(len(y), -1)
        labels[rows.at[rows.valid]] = np.asarray(placed.prior.labels)[rows.valid]
        signals = temporal(spectrum, template.tr, frames, placed.n_parcels, rng)
        y += 0.5 * np.where((labels >= 0)[:, None], signals[labels], 0)
    motion = gaussian_filter(rng.standard_normal((frames, max(regressors, 1))).cumsum(0), (1.5, 0))
    motion = (motion - motion.mean(0)) / motion.std(0)
    y += MOTION_SHARE / np.sqrt(motion.shape[1]) * rng.standard_normal((len(y), motion.shape[1])).astype(np.float32) @ motion.T
    kept = np.sort(rng.permutation(frames)[: round((1 - SCRUBBED) * frames)])
    recording = Recording(np.ascontiguousarray(1000 + 10 * y, np.float32), template.space, template.tr, f"surrogate {seed}", [])
    confounds = motion if regressors else None
    scan = clean_recording(recording, kept=kept, confounds=confounds, cleaning=CLEANING, subject=f"s{seed}")
    return dataclasses.replace(scan, halves=None) if joint else scan


def smooth_noise(template: Scan, spectrum, frames: int, fwhm: float, rng) -> np.ndarray:
    """Spatially smooth maps with independent time courses of the scan's own spectrum, standard deviation 1, `[V, T]`."""
    grid = template.space.grid
    size, sigma = grid.shape, fwhm / 2.355 / template.space.resolution
    ijk = tuple(grid.ijk.T)
    # One map a cosine: as many independent maps as there are frames, each at one frequency, so that time courses are exact.
    waves = cosines(spectrum, template.tr, frames)
    maps = np.stack([gaussian_filter(rng.standard_normal(size).astype(np.float32), sigma)[ijk] for _ in waves], 1)
    y = (maps / maps.std()) @ waves
    return y / y.std()


def temporal(spectrum, tr: float, frames: int, count: int, rng) -> np.ndarray:
    """Independent time courses of the scan's spectrum, standard deviation 1, `[count, T]`."""
    waves = cosines(spectrum, tr, frames)
    y = rng.standard_normal((count, len(waves))).astype(np.float32) @ waves
    return y / y.std()


def cosines(spectrum, tr: float, frames: int) -> np.ndarray:
    """Cosine basis of the frames, each with the amplitude of the spectrum there, `[n, T]`; what cleaning removes anyway is left out."""
    hz = np.arange(1, frames) / (2 * frames * tr)
    hz = hz[(hz > 0.004) & (hz < 0.14)]
    at = np.arange(frames) + 0.5
    basis = np.sqrt(2 / frames) * np.cos(np.pi * at[None] * (hz * 2 * frames * tr)[:, None] / frames)
    return (basis * np.interp(hz, *spectrum)[:, None]).astype(np.float32)


def amplitude(bold, mask):
    """Root of the mean power spectrum of the real scan's locations: frequencies in Hz, and amplitudes."""
    image, inside = nib.load(bold), np.asarray(nib.load(mask).dataobj) > 0
    y = np.asarray(image.dataobj, np.float32)[inside]
    y = y - y.mean(1, keepdims=True)
    tr = float(image.header.get_zooms()[3])
    power = np.square(np.abs(np.fft.rfft(y * np.hanning(y.shape[1])[None], axis=1))).mean(0)
    hz = np.fft.rfftfreq(y.shape[1], tr)
    return hz[1:], np.sqrt(np.convolve(power, np.ones(5) / 5, "same"))[1:]


def summary(found) -> dict[str, float]:
    """Share that was personalised with its Wilson interval, and the shares by either statistic alone."""
    chosen, score, dcbc, _, gain = np.array(found, float).T
    low, high = wilson(chosen.sum(), len(chosen))
    shares = {"n": len(chosen), "personalised": chosen.mean(), "from": low, "to": high, "score alone": score.mean()}
    return shares | {"dcbc alone": dcbc.mean(), "largest DCBC gain": gain.max()}


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    p, centre = hits / n, (hits / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def power(count: int) -> dict[str, object]:
    """Share of simulated participants whose planted parcels are found."""
    out: dict[str, object] = {}
    for tier in ("easy", "medium", "hard", "real"):
        for minutes in (3.0, 6.0, 12.0):
            chosen = []
            for seed in range(count):
                subject = next(iter(simulate_cohort(SimulateConfig(subjects=1, sessions=1, tier=tier, minutes=minutes, seed=1000 + seed))))
                space = subject.space
                prior = make_prior(
                    space.xyz, subject.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group"
                )
                network = pnet_jax.construct(cleaned_scan(subject.sessions[0], fd_threshold=0.5), prior=prior, edges=())
                chosen.append(network.qc.selection.decision == "personalised")
            out[f"{tier}, {minutes:g} min"] = {"n": count, "personalised": float(np.mean(chosen))}
            print(tier, minutes, out[f"{tier}, {minutes:g} min"], flush=True)
    return out


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=200, help="surrogates in each cell")
    arguments.add_argument("--kinds", nargs="+", default=["noise", "atlas"], choices=("noise", "atlas"))
    arguments.add_argument("--minutes", nargs="+", type=float, default=[3.0, 6.0, 12.0])
    arguments.add_argument("--regressors", nargs="+", type=int, default=[0, 9, 26])
    arguments.add_argument("--regions", type=int, default=200, help="cortical regions of the atlas")
    arguments.add_argument("--joint", action="store_true", help="cleaned as a whole before they are read")
    arguments.add_argument("--power", type=int, default=0, metavar="N", help="simulated participants of each tier and length")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
