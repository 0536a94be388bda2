"""Edges from one half of a real scan, scored on the raw edges of the other half, in participants from held-out sites.

ABIDE I, 200 ROIs, 0.009–0.1 Hz, mean signal removed, gap of 10 frames between the halves. Everything is fitted on 390 participants of nine
sites and scored on 127 of five others; with `--leave-site-out N`, all sites are divided into N groups, and each group is scored with
parameters fitted on the others. `individual` is the correlation over edges after removal of the training mean, so that a constant network
scores 0; `mse` is in Fisher z and includes the noise of the predicted half. Differences are relative to edge-wise empirical Bayes.
Intervals are bootstraps over participants. `QC-FC` is the mean over edges of |r| with head motion over participants within sites; since the
data have no displacement, DVARS of the first half is used instead (root mean square over regions of the change between frames, for z-scored
signals before the filter). `--sites` scores folds of training sites, on which choices were made.

    python benchmarks/half_to_half.py --leave-site-out 5 --out benchmarks/results/half_to_half_sites.json
    python benchmarks/half_to_half.py --out benchmarks/results/half_to_half.json
    python benchmarks/half_to_half.py --parcels 60           # ROIs merged, on the fitted sites' group network
    python benchmarks/half_to_half.py --minutes 1.5          # uses only the last minutes of the first half of test scans
    python benchmarks/half_to_half.py --participants 40            # fitted on few participants
    python benchmarks/half_to_half.py --sites                # five folds of training sites; the test sites are not read
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from abide import BAND_HZ, OTHER_TR, TABLE, TR, Recording, band_of, band_passed, recordings
from common import need, parser, table, write
from scipy.cluster.hierarchy import fcluster, linkage

from pnet_jax import edges

GAP_FRAMES = 10
BOOTSTRAPS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """Both halves of all participants: views (raw, whitened) `[S, 2, K, K]`, independent frames `[S]`, DVARS of the first `[S]`."""

    views: tuple[np.ndarray, np.ndarray]
    n_eff: tuple[np.ndarray, np.ndarray]
    sites: np.ndarray
    dvars: np.ndarray

    def take(self, who: np.ndarray) -> Cohort:
        return Cohort(tuple(v[who] for v in self.views), tuple(n[who] for n in self.n_eff), self.sites[who], self.dvars[who])


def main() -> None:
    args = _arguments()
    scans = recordings(need(args.data, TABLE)[0])
    train = [scan for scan in scans if not scan.test or args.leave_site_out]
    merge = merged(train, args.parcels)
    taught = halves(train, merge)
    if args.leave_site_out:
        seen = taught if args.minutes is None else halves(train, merge, args.minutes)
        pairs = [(taught.take(~here), seen.take(here)) for here in folds(taught.sites, args.leave_site_out)]
    elif args.sites:
        pairs = [(taught.take(~here), taught.take(here)) for here in folds(taught.sites)]
    else:
        pairs = [(taught, halves([scan for scan in scans if scan.test], merge, args.minutes))]
    scored = [score(few(fit, args.participants), test) for fit, test in pairs]
    parts = [part for part, _ in scored]
    participants = {name: {key: np.concatenate([p[name][key] for p in parts]) for key in parts[0][name]} for name in parts[0]}
    fitted = " + ".join(str(len(few(fit, args.participants).sites)) for fit, _ in pairs)
    print(f"{fitted} participants fitted, {len(participants['raw']['mse'])} scored")
    where, moved = (np.concatenate([getattr(test, name) for _, test in pairs]) for name in ("sites", "dvars"))
    figures = {name: summary(values, participants["empirical Bayes"]) for name, values in participants.items()}
    for name in figures:
        figures[name]["QC-FC"] = qc_fc(np.concatenate([made[name] for _, made in scored]), moved, where)
    rows = [(name, *(_text(f[key]) for key in f)) for name, f in figures.items()]
    table(("edges", *next(iter(figures.values()))), rows)
    by_site = sites(participants, where)
    table(("site", *next(iter(by_site.values()))), [(name, *row.values()) for name, row in by_site.items()])
    about = {"participants": len(where), "fitted": fitted, "sites": len(by_site)}
    write(args, figures | {"about": about, "sites": by_site})


def merged(train: list[Recording], parcels: int | None) -> np.ndarray | None:
    """Averaging matrix of similar ROIs, `[200, K]`: Ward clustering of the mean network of the training sites."""
    if parcels is None:
        return None
    group = np.mean([np.corrcoef(scan.signals.T) for scan in train], 0)
    labels = fcluster(linkage(group, "ward"), parcels, "maxclust") - 1
    share = np.eye(parcels, dtype=np.float32)[labels]
    return share / share.sum(0)


def halves(scans: list[Recording], merge: np.ndarray | None, minutes: float | None = None) -> Cohort:
    """Views of both halves; `minutes` shortens the first."""
    views, n_eff, sites, dvars = [], [], [], []
    for scan in scans:
        x = scan.signals if merge is None else scan.signals @ merge
        band, filtered = band_of(scan.tr), band_passed(x, scan.tr)
        cuts = slice(None, len(x) // 2 - GAP_FRAMES // 2), slice(len(x) // 2 + GAP_FRAMES // 2, None)
        if minutes is not None:
            cuts = slice(max(0, cuts[0].stop - round(60 * minutes / scan.tr)), cuts[0].stop), cuts[1]
        # The second view uses only frames of this half.
        pair = [(np.corrcoef(filtered[cut].T), edges.compute("whitened", without_drift(x[cut], scan.tr).T)) for cut in cuts]
        if np.isfinite(pair).all():
            views.append(np.array(pair, np.float32))
            n_eff.append([2 * (band[1] - band[0]) * len(x[cut]) * scan.tr for cut in cuts])
            sites.append(scan.site)
            dvars.append(np.sqrt(np.square(np.diff(x[cuts[0]] / x.std(0), axis=0)).mean(1)).mean())
    table_, frames = np.array(views), np.array(n_eff, np.float32)
    return Cohort((table_[:, 0], table_[:, 1]), (frames[:, 0], frames[:, 1]), np.array(sites), np.array(dvars))


def without_drift(x: np.ndarray, tr: float) -> np.ndarray:
    """Regress out the cosines below the band, so that no frame of the other half contributes, as it would with a filter."""
    orders = np.arange(int(2 * len(x) * tr * BAND_HZ[0]) + 1)
    cosines = np.cos(np.pi * (np.arange(len(x))[:, None] + 0.5) * orders / len(x))
    return (x - cosines @ np.linalg.lstsq(cosines, x, rcond=None)[0]).astype(np.float32)


def folds(sites: np.ndarray, number: int = 5) -> list[np.ndarray]:
    """Assign whole sites to the smallest fold, in decreasing order of size."""
    names, sizes = np.unique(sites, return_counts=True)
    dealt: list[list[str]] = [[] for _ in range(number)]
    filled = np.zeros(number)
    for i in np.argsort(-sizes):
        dealt[filled.argmin()].append(names[i])
        filled[filled.argmin()] += sizes[i]
    return [np.isin(sites, group) for group in dealt]


def few(cohort: Cohort, participants: int | None) -> Cohort:
    """Draw this number of participants at random."""
    return cohort if participants is None else cohort.take(np.random.default_rng(0).permutation(len(cohort.sites))[:participants])


def score(fit: Cohort, test: Cohort) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Compute each participant's measures for each estimate of the first half, and the estimates in Fisher z, `[S, E]`."""
    upper = np.triu_indices(fit.views[0].shape[-1], 1)
    a, b = (fisher(views[:, 0])[:, *upper] for views in fit.views)
    seen, truth = (fisher(views[:, 0])[:, *upper] for views in test.views)
    mean, noise = (a.mean(0) + b.mean(0)) / 2, ((a - b) ** 2).mean(0) / 2
    signal = np.maximum(np.concatenate([a, b]).var(0) - noise, 1e-5)
    group = edges.fit_shrinkage(fit.views[0][:, 0], fit.views[1][:, 0], *fit.n_eff)
    spread = np.asarray(group.noise)[upper]
    n_seen, n_truth = test.n_eff

    kept: dict[str, np.ndarray] = {}

    def judged(name: str, predicted: np.ndarray, sd: np.ndarray | None = None) -> dict[str, np.ndarray]:
        kept[name] = predicted.astype(np.float32)
        out = one_by_one(predicted, truth, mean)
        if sd is not None:
            out["coverage"] = (np.abs(predicted - truth) < 1.96 * np.sqrt(sd**2 + spread / n_truth[:, None])).mean(1)
        return out

    def estimated(name: str, function) -> dict[str, np.ndarray]:
        made = [
            [fisher(np.asarray(x))[upper] if i == 0 else np.asarray(x)[upper] for i, x in enumerate(function(s))] for s in range(len(truth))
        ]
        return judged(name, *np.array(made).swapaxes(0, 1))

    rows = {"raw": judged("raw", seen)}
    rows["empirical Bayes"] = judged("empirical Bayes", mean + signal / (signal + noise) * (seen - mean))
    rows["shrunk"] = estimated("shrunk", lambda s: edges.shrink(test.views[0][s, 0], group, n_seen[s]))
    run = jax.jit(edges.guide)
    for name, views in (("guided, raw view only", slice(0, 1)), ("guided", slice(0, 2))):
        taught = edges.fit_guided(fit.views[0][:, views], fit.views[1][:, views], *fit.n_eff)
        rows[name] = estimated(name, lambda s, v=views, t=taught: run(test.views[0][s, v], t, n_seen[s]))
        said = ", ".join(f"{weight:.2f}" for weight in np.asarray(taught.weights)[-1])
        print(f"{name}: weights (in edges, in modes, view by view) {said}; scale of the variance {float(taught.scale[-1]):.3f}", flush=True)
    rows["whitened view alone"] = judged("whitened view alone", _alone(fit, test, upper, mean))
    return rows, kept


def _alone(fit: Cohort, test: Cohort, upper, mean: np.ndarray) -> np.ndarray:
    """Fit each edge's regression of the other half's raw edge on the whitened view."""
    (a, b), (y, x) = ([fisher(views[:, 1])[:, *upper] for views in fit.views], [fisher(v[:, 0])[:, *upper] for v in fit.views])
    centre = (a.mean(0) + b.mean(0)) / 2
    slope = ((a - centre) * (x - mean) + (b - centre) * (y - mean)).mean(0) / ((a - centre) ** 2 + (b - centre) ** 2).mean(0)
    return mean + slope * (fisher(test.views[0][:, 1])[:, *upper] - centre)


def fisher(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -0.99, 0.99))


def one_by_one(predicted: np.ndarray, truth: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
    p, t = (x - mean - (x - mean).mean(1, keepdims=True) for x in (predicted, truth))
    p, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, t))
    table_ = p @ t.T
    return {
        "individual": np.diag(table_).copy(),
        "mse": ((predicted - truth) ** 2).mean(1),
        "identification": (table_.argmax(1) == np.arange(len(p))).astype(float),
    }


def qc_fc(z: np.ndarray, moved: np.ndarray, where: np.ndarray) -> float:
    """Mean over edges of |r| with motion over participants, within sites."""
    y, x = z.astype(float), moved.astype(float)
    for site in np.unique(where):
        y[where == site] -= y[where == site].mean(0)
        x[where == site] -= x[where == site].mean()
    return float(np.abs(x @ y / (np.linalg.norm(x) * np.linalg.norm(y, axis=0))).mean())


def summary(values: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, object]:
    """Compute means, and differences of participants from the reference with bootstrap intervals."""
    out: dict[str, object] = {"individual [95 %]": interval(values["individual"])}
    out |= {key: float(values[key].mean()) for key in ("mse", "identification")}
    for key in ("individual", "mse"):
        out[f"{key} − EB [95 %]"] = interval(values[key] - reference[key])
    out["coverage of 95 %"] = float(values["coverage"].mean()) if "coverage" in values else None
    return out


def sites(participants: dict[str, dict[str, np.ndarray]], where: np.ndarray) -> dict[str, dict[str, float]]:
    """Compute the means of each site, to detect gains that are specific to one scanner."""
    shown = {"EB": "empirical Bayes", "guided": "guided"}
    return {
        str(site): {"participants": int((where == site).sum()), "TR": TR.get(str(site), OTHER_TR)}
        | {
            f"{key} {short}": float(participants[name][key][where == site].mean())
            for key in ("individual", "mse")
            for short, name in shown.items()
        }
        for site in np.unique(where)
    }


def interval(difference: np.ndarray) -> list[float]:
    draws = np.random.default_rng(0).integers(0, len(difference), (BOOTSTRAPS, len(difference)))
    return [float(difference.mean()), *map(float, np.percentile(difference[draws].mean(1), [2.5, 97.5]))]


def _text(value: object) -> object:
    if isinstance(value, list):
        return f"{value[0]:+.4f} [{value[1]:+.4f}, {value[2]:+.4f}]"
    return value


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--parcels", type=int, help="merge the 200 ROIs to that many")
    arguments.add_argument("--minutes", type=float, help="of a test scan's first half that are seen")
    arguments.add_argument("--participants", type=int, help="how many of the training participants are used")
    arguments.add_argument(
        "--leave-site-out", type=int, metavar="N", help="score every site, in N groups, with parameters fitted on the others"
    )
    arguments.add_argument("--sites", action="store_true", help="score folds of training sites, not the test sites")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
