r"""Test whether a model of a patient's OFF runs predicts the measured change of connectivity under stimulation.

Two runs without and two with stimulation make two folds: the model and every baseline read one OFF run, and the change is the mean of
the ON runs minus the *other* OFF run. A predictor and a change that share a run are correlated through its noise.

1. **Gate.** Is the change reliable? The correlation of the two independent differences ON − OFF, over edges, must exceed that of other
   pairings of the same runs (p < 0.01), also without the two patients in whom it is largest. Otherwise, the verdict is "not testable".
2. **Baselines.** No change; the mean change of the other patients; −(individual OFF − mean OFF), regression of a noisy pattern to the mean;
   the connectivity of the target; the target's variance alone (an artefact).
3. **Models.** Interventions at the patient's target. The amplitude minimises the squared error in the *other* patients. Success
   requires a correlation beyond the baselines of at least 0.2 of its ceiling, larger than the artefact's, a target among the best 5 % of
   pairs of sites, and a held-out error below that of no change.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer, Row, mean_row, with_interval, with_p
from pnet_jax.evaluate.columns import class_target, column, fisher_z, layer_of, shared_parcels, upper
from pnet_jax.evaluate.modulation_sites import ARTEFACT, KINDS, predicted_changes
from pnet_jax.evaluate.resampling import sign_flip

GATE_P = 0.01
BEST_LEFT_OUT = 2
LEAST_R = 0.2  # of the ceiling
SITE_TAIL = 0.05
MODEL_P = 0.05  # over the number of models
LEAST_PATIENTS = 6
NULL = 20_000
PAIRINGS = ("ON and OFF", "run order", "interaction")


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Connectivity of n patients in two runs without and two with stimulation.

    Attributes:
      off, on: Fisher z of the edges above the diagonal, row by row, first and second run, `[n, 2, E]`.
      sites: Nodes of each site that can be stimulated, e.g. both sides of a nucleus.
      targets: Site of each patient's electrodes, `[n]`.
      patients: Labels, `[n]`.

    Raises:
      InputError: Shapes disagree, values are not finite, a run is given twice, a target has no nodes, or there are too few patients; the
        message names the patient.
    """

    off: Float[np.ndarray, "n 2 E"]
    on: Float[np.ndarray, "n 2 E"]
    sites: Mapping[str, Sequence[int]]
    targets: Sequence[str]
    patients: Sequence[str]

    def __post_init__(self) -> None:
        n = len(self.patients)
        if np.shape(self.off) != np.shape(self.on) or np.ndim(self.off) != 3 or np.shape(self.off)[:2] != (n, 2) or len(self.targets) != n:
            shapes = f"{np.shape(self.off)}, {np.shape(self.on)} and {len(self.targets)} targets"
            raise InputError(f"measured modulation: expected off and on of shape ({n}, 2, E) and {n} targets, found {shapes}")
        if n < LEAST_PATIENTS:
            raise InputError(f"measured modulation: expected {LEAST_PATIENTS} patients or more, found {n}")
        if self.k * (self.k - 1) // 2 != np.shape(self.off)[2]:
            raise InputError(f"measured modulation: expected E = K (K − 1) / 2 edges, found {np.shape(self.off)[2]}")
        nodes = [node for each in self.sites.values() for node in each]
        if not nodes or min(nodes) < 0 or max(nodes) >= self.k or not all(len(each) for each in self.sites.values()):
            raise InputError(f"measured modulation: expected sites with one or more nodes, each 0…{self.k - 1}")
        for patient, target, runs in zip(self.patients, self.targets, self.z, strict=True):
            if target not in self.sites:
                raise InputError(f"{patient}: target {target!r} is not among the sites {', '.join(list(self.sites)[:5])}…")
            if not np.isfinite(runs).all():
                raise InputError(f"{patient}: expected finite Fisher z, found {int((~np.isfinite(runs)).sum())} non-finite values")
            for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
                if np.array_equal(runs[a], runs[b]):
                    names = ("OFF 1", "OFF 2", "ON 1", "ON 2")
                    raise InputError(
                        f"{patient}: runs {names[a]} and {names[b]} are the same: model and change would share the noise of a run"
                    )

    @property
    def k(self) -> int:
        """Number of nodes."""
        return round((1 + np.sqrt(1 + 8 * np.shape(self.off)[2])) / 2)

    @property
    def z(self) -> Float[np.ndarray, "n 4 E"]:
        """OFF 1, OFF 2, ON 1, ON 2."""
        return np.concatenate([self.off, self.on], 1, dtype=np.float64)


def runs_of(cohort: Cohort, condition: str, target: str, *, on: str | None = None, layer: str = "pearson") -> Runs:
    """Return the runs of a cohort in which every patient has two scans without and two with stimulation.

    A site consists of the parcels with the same name after the hemisphere (`L`, `R`, `LH`, `RH`, `left`, `right` as a word of the name) is
    removed.

    Args:
      cohort: Scans with correlations.
      condition: Column with two classes, without and with stimulation.
      target: Column with the site of each patient's electrodes.
      on: Class with stimulation; the last in sorted order by default.
      layer: Edge layer of correlations.

    Raises:
      SettingsError: A column, class or layer is unknown.
      InputError: A patient does not have two scans of each condition, or has scans with different targets; the message names the patient.
    """
    goal = class_target(cohort, condition, on)
    shared = shared_parcels(cohort, layer, goal.rows)
    z = fisher_z(upper(layer_of(cohort, layer), shared))
    subjects, places = cohort.table["subject"].astype(str), column(cohort, target).astype(str)
    names = [name for name, there in zip(cohort.names, shared, strict=True) if there]
    sites: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        sites.setdefault(_without_side(name), []).append(at)
    runs: dict[str, list[np.ndarray]] = {"off": [], "on": []}
    targets, patients = [], list(dict.fromkeys(subjects[goal.rows].tolist()))
    for patient in patients:
        own = goal.rows[subjects[goal.rows] == patient]
        is_on = goal.y[subjects[goal.rows] == patient] > 0
        if (is_on.sum(), (~is_on).sum()) != (2, 2) or len(set(places[own].tolist())) != 1:
            found = f"{int(is_on.sum())} {goal.classes[1]} and {int((~is_on).sum())} {goal.classes[0]}, targets {set(places[own].tolist())}"
            raise InputError(f"{patient}: expected two scans of each condition and one target, found {found}")
        runs["off"].append(z[own[~is_on]])
        runs["on"].append(z[own[is_on]])
        targets.append(_without_side(places[own[0]]))
    return Runs(np.stack(runs["off"]), np.stack(runs["on"]), sites, targets, patients)


def _without_side(name: str) -> str:
    words = [word for word in re.split(r"[ _.-]+", name) if word.lower() not in ("l", "r", "lh", "rh", "left", "right")]
    return " ".join(words)


class _Scores(NamedTuple):
    """Correlation with the change, the same beyond the baselines, and relative change of squared error, by site, amplitude and patient."""

    raw: Float[np.ndarray, "N A n"]
    partial: Float[np.ndarray, "N A n"]
    error: Float[np.ndarray, "N A n"]


def measured_modulation(runs: Runs, *, kinds: Sequence[str] = KINDS, seed: int = 0) -> Answer:
    """Run the protocol for measured stimulation.

    Args:
      runs: Runs of all patients.
      kinds: Models to test, from `KINDS`; the artefact is always tested.
      seed: Seed of permutations and bootstrap samples.

    Returns:
      Answer with rows `"gate"`, `"baselines"` and `"models"`; `settings["verdict"]` is `"yes"`, `"no"` or `"not testable"`.

    Raises:
      SettingsError: A kind is unknown.

    Cost: about 40 predictions for each site, patient and fold.
    """
    if unknown := set(kinds) - set(KINDS):
        raise SettingsError(f"kinds: expected some of {', '.join(KINDS)}, got {sorted(unknown)[0]!r}")
    z, n = runs.z, len(runs.patients)
    change = _centre(np.stack([z[:, 2:].mean(1) - z[:, 1], z[:, 2:].mean(1) - z[:, 0]], 1))  # fold f: against the other OFF run
    gate, passed, ceiling = _gate(z, change, seed)
    basis, baselines = _baselines(runs, z, change, seed)
    names = list(runs.sites)
    own = np.array([names.index(target) for target in runs.targets])
    rows, kept = [*gate, *baselines], {}
    kinds = [kind for kind in KINDS if kind in kinds or kind == ARTEFACT]
    for kind in kinds:
        scores = _scores(runs, z, change, basis, kind)
        kept[kind] = _model_rows(kind, scores, own, ceiling, seed)
        rows += kept[kind]
    artefact = kept[ARTEFACT][1].value
    good = [kind for kind in kinds if kind != ARTEFACT and _success(kept[kind], artefact, ceiling)]
    verdict = "not testable" if not passed else "yes" if good else "no"
    settings = {
        "verdict": verdict,
        "models_that_pass": good,
        "patients": n,
        "nodes": runs.k,
        "sites": len(names),
        "ceiling": ceiling,
        "seed": seed,
    }
    settings |= {"gate_p": GATE_P, "least_r_of_ceiling": LEAST_R, "site_tail": SITE_TAIL, "model_p": MODEL_P / (len(KINDS) - 1)}
    return Answer("measured modulation", _sentences(verdict, rows, kept, ceiling, good), tuple(rows), settings)


def with_injected(runs: Runs, kind: str, amplitude: float, *, seed: int = 0) -> tuple[Runs, float]:
    """Return a positive control: runs paired without a contrast of stimulation, plus the change predicted by a model at the target.

    Args:
      runs: Runs that provide the noise and the differences between runs.
      kind, amplitude: Kind and amplitude of the change, predicted from the mean of the four runs.
      seed: Seed of the pairing of each patient's runs; the first and second runs of both conditions are exchanged at random.

    Returns:
      The runs, and the mean share of the variance of the change that is injected.
    """
    rng, z = np.random.default_rng(seed), runs.z
    out, share = np.empty_like(z), []
    for q, target in enumerate(runs.targets):
        out[q] = z[q, [(0, 2, 1, 3), (1, 3, 0, 2), (0, 3, 1, 2), (1, 2, 0, 3)][rng.integers(4)]]
        added = predicted_changes(z[q].mean(0), runs.k, [runs.sites[target]], kind, (amplitude,))[0, 0]
        out[q, 2:] += added
        share.append(added.var() / (out[q, 2:].mean(0) - out[q, :2].mean(0)).var())
    return dataclasses.replace(runs, off=out[:, :2], on=out[:, 2:]), float(np.mean(share))


def reliability(z: Float[np.ndarray, "n 4 E"]) -> Float[np.ndarray, "n 3"]:
    """Return the correlation over edges of two differences that share no run, for each patient and each pairing of the runs, `[n, 3]`."""

    def pair(a: int, b: int, c: int, d: int) -> np.ndarray:
        return (_corr(z[:, c] - z[:, a], z[:, d] - z[:, b]) + _corr(z[:, d] - z[:, a], z[:, c] - z[:, b])) / 2

    return np.stack([pair(0, 1, 2, 3), pair(0, 2, 1, 3), pair(0, 3, 1, 2)], 1)


def _gate(z: np.ndarray, change: np.ndarray, seed: int) -> tuple[list[Row], bool, float]:
    found = reliability(z)
    without = found[np.argsort(-found[:, 0])[BEST_LEFT_OUT:]]
    signal = np.mean([np.mean(_centre(z[:, 2] - z[:, k]) * _centre(z[:, 3] - z[:, 1 - k])) for k in (0, 1)])
    ceiling = float(np.sqrt(max(signal, 0.0) / change.var()))
    rows = [
        mean_row("gate", f"pairing by {name}", "correlation of independent differences", found[:, k], seed)
        for k, name in enumerate(PAIRINGS)
    ]
    ps = [_pairing_p(some, seed) for some in (found, without)]
    rows[0] = rows[0]._replace(p=ps[0])
    last = mean_row(
        "gate", f"pairing by {PAIRINGS[0]}, without the {BEST_LEFT_OUT} best", "correlation of independent differences", without[:, 0], seed
    )
    rows += [last._replace(p=ps[1]), Row("gate", "ceiling", "correlation with the measured change", ceiling, n=len(z))]
    return rows, max(ps) < GATE_P, ceiling


def _pairing_p(found: Float[np.ndarray, "n 3"], seed: int) -> float:
    """Return how often a random pairing of each patient's runs gives a mean at least as large."""
    at = np.random.default_rng(seed).integers(0, 3, (NULL, len(found)))
    null = found[np.arange(len(found)), at].mean(1)
    return float((1 + (null >= found[:, 0].mean() - 1e-12).sum()) / (NULL + 1))


def _baselines(runs: Runs, z: np.ndarray, change: np.ndarray, seed: int) -> tuple[Float[np.ndarray, "n 2 E B"], list[Row]]:
    """Return an orthonormal basis of the baselines of each patient and fold, and how well each predicts the change."""
    n = len(z)
    others = lambda x: (x.sum(0) - x) / (n - 1)  # noqa: E731
    mean_change, group = others(change.mean(1)), others(z[:, :2].mean(1))
    each = {
        "mean change of the other patients": np.repeat(mean_change[:, None], 2, 1),
        "−(individual OFF − mean OFF)": group[:, None] - z[:, :2],
        "−mean OFF": np.repeat(-group[:, None], 2, 1),
    }
    stack = _centre(np.stack(list(each.values()), 2))  # [n, 2, 3, E]
    basis = np.linalg.qr(np.swapaxes(stack, -1, -2))[0]
    i, j = np.triu_indices(runs.k, 1)
    row = np.zeros_like(change)
    for q, target in enumerate(runs.targets):
        hit = np.isin(i, list(runs.sites[target])) | np.isin(j, list(runs.sites[target]))
        row[q][:, hit] = -z[q, :2][:, hit]
    rows = [Row("baselines", "no change", "held-out error gain", 0.0, n=n, note="by definition")]
    for name, predictor in (each | {"−connectivity of the target": row}).items():
        r = _corr(predictor, change).mean(1)
        rows.append(mean_row("baselines", name, "correlation with the measured change", r, seed)._replace(p=sign_flip(r, seed)))
    return basis, rows


def _scores(runs: Runs, z: np.ndarray, change: np.ndarray, basis: np.ndarray, kind: str) -> _Scores:
    per_patient = []
    for q in range(len(z)):
        predicted = np.stack([predicted_changes(z[q, f], runs.k, list(runs.sites.values()), kind) for f in (0, 1)])  # [2, N, A, E]
        y = change[q][:, None, None]
        total = np.square(y).sum()
        p = _centre(predicted)
        error = (np.square(p - y).sum((0, -1)) - total) / total
        part = [_corr(_without(p[f], basis[q, f]), _without(y[f], basis[q, f])) for f in (0, 1)]
        bad = ~np.isfinite(error)
        scores = [_corr(p, y).mean(0), np.mean(part, 0), error]
        per_patient.append([np.where(bad, worst, one) for one, worst in zip(scores, (0.0, 0.0, np.inf), strict=True)])
    return _Scores(*np.moveaxis(np.array(per_patient), 0, -1))


def _chosen(scores: _Scores, site: Int[np.ndarray, "... n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores at the amplitude that is best for the other patients, `[…, n]`, for a site of each patient."""
    who = np.arange(site.shape[-1])
    error = scores.error[site, :, who]  # [..., n, A]
    possible = np.isfinite(error).all(-2, keepdims=True)
    known = np.where(possible, error, 0.0)
    at = np.where(possible, known.sum(-2, keepdims=True) - known, np.inf).argmin(-1)
    return scores.raw[site, at, who], scores.partial[site, at, who], -scores.error[site, at, who]


def _model_rows(kind: str, scores: _Scores, own: Int[np.ndarray, " n"], ceiling: float, seed: int) -> list[Row]:
    raw, partial, gain = _chosen(scores, own)
    rows = [
        mean_row("models", kind, "correlation with the measured change", raw, seed)._replace(p=sign_flip(raw, seed)),
        mean_row("models", kind, "correlation beyond the baselines", partial, seed)._replace(p=sign_flip(partial, seed)),
        mean_row("models", kind, "held-out error gain", gain, seed)._replace(p=sign_flip(gain, seed)),
    ]
    upper = partial.mean() + 1.645 * partial.std(ddof=1) / np.sqrt(len(partial))
    rows.append(
        Row("models", kind, "upper limit (95 %, one-sided) over the ceiling", upper / ceiling if ceiling > 0 else np.nan, n=len(own))
    )
    rows.append(Row("models", kind, "share of site choices that are as good", _site_tail(scores, own, partial.mean(), seed), n=len(own)))
    return rows


def _site_tail(scores: _Scores, own: Int[np.ndarray, " n"], real: float, seed: int) -> float:
    """Return the share of choices of one site per target group of patients that do at least as well."""
    groups = np.unique(own, return_inverse=True)[1]
    count, sites = groups.max() + 1, len(scores.error)
    if sites**count <= 10_000:
        choice = np.stack(np.meshgrid(*[np.arange(sites)] * count, indexing="ij"), -1).reshape(-1, count)
    else:
        choice = np.random.default_rng(seed).integers(0, sites, (10_000, count))
    found = np.concatenate([_chosen(scores, part[:, groups])[1].mean(-1) for part in np.array_split(choice, 20)])
    return float((found >= real - 1e-12).mean())


def _success(rows: list[Row], artefact: float, ceiling: float) -> bool:
    _, partial, gain, _, tail = rows
    enough = ceiling > 0 and partial.value >= LEAST_R * ceiling and partial.p < MODEL_P / (len(KINDS) - 1) and partial.value > artefact
    return bool(enough and tail.value <= SITE_TAIL and gain.value > 0)


def _sentences(verdict: str, rows: list[Row], kept: Mapping[str, list[Row]], ceiling: float, good: list[str]) -> tuple[str, ...]:
    gate, without = rows[0], rows[3]
    first = {
        "not testable": "Not testable: the measured change is not reliable enough to test in these data whether a model predicts it.",
        "no": "No: the change is reliable, but no model of the OFF runs predicts it beyond the baselines.",
        "yes": f"Yes: {', '.join(good)} at the patients' targets predicts part of the measured change beyond all baselines.",
    }[verdict]
    best = max((one for kind, one in kept.items() if kind != ARTEFACT), key=lambda one: one[1].value)
    return (
        first,
        f"The correlation of independent differences ON − OFF is {with_interval(gate)}, n = {gate.n} ({with_p(gate.p)}; "
        f"{with_p(without.p)} without the {BEST_LEFT_OUT} patients with the largest correlation); the largest possible correlation of a "
        f"predictor with the change is {ceiling:.2f}.",
        f"The best model ({best[1].name}) correlates with the change beyond the baselines by {with_interval(best[1])} "
        f"({with_p(best[1].p)}); {100 * best[4].value:.0f} % of all choices of sites do at "
        "least as well.",
        "A positive result would mean that the model describes a change of connectivity, not that stimulation is beneficial.",
    )


def _without(x: np.ndarray, basis: Float[np.ndarray, "E B"]) -> np.ndarray:
    return x - (x @ basis) @ basis.T


def _centre(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def _corr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = _centre(a), _centre(b)
    return (a * b).sum(-1) / np.maximum(np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1)), 1e-12)
