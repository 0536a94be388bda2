"""Edges of one session scored on another session of the same participant, months later: first-episode psychosis (STAGES).

Recordings of 234 frames (TR 2 s), 419 regions, band-passed and without global signal, so guided edges use only the raw view. Group and
guide are fitted on the participants of four folds and applied to the fifth. `individual` is the correlation over edges with the raw edges
of the other session after removal of the training mean, `mse` is in Fisher z; both directions. `ICC` is the median over edges of ICC(1,1)
of the estimates of the two sessions. `identification`: a participant's first session is more similar to their second session than to that
of any other participant, after removal of the mean.

ICC and identification compare participants with each other, so one group must be applied to all: for these two, group and guide are fitted
on all participants. With one group per fold, estimates differ between folds by the contribution of the held-out participants: an edge in
which a participant is extreme has a mean without this participant and a smaller variance among the others, so that exactly this difference
is shrunk most. With one group, shrinkage is the same linear function for all and does not change the ICC. The guide mixes edges, and is
most reliable in participants on whom it was fitted: `ICC within folds` is that of the held-out participants of one fold, who share a group,
averaged over folds; with four participants per fold, it should be compared only with that of the raw edges.

With `--halves`, group and guide are fitted on the halves of first sessions instead of pairs of sessions.

    python benchmarks/sessions.py --out benchmarks/results/sessions.json
    python benchmarks/sessions.py --halves --out benchmarks/results/sessions_halves.json
"""

from __future__ import annotations

import itertools

import numpy as np
from common import need, parser, table, write

from pnet_jax import edges
from pnet_jax.edges.shrinkage import fisher
from pnet_jax.evaluate.reliability import correlations, hits, icc, variances_of

TABLE = "stages_fep/stages_fep_419_int8.npz"
TR, BAND_HZ, FOLDS, GAP_FRAMES = 2.0, (0.009, 0.1), 5, 10
LAYERS = ("raw", "shrunk", "guided")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--halves", action="store_true", help="fit on halves of first sessions, not on pairs of sessions")
    args = arguments.parse_args()
    pairs, n_eff = participants(need(args.data, TABLE)[0])
    fitted, n_fitted = participants(need(args.data, TABLE)[0], halves=True) if args.halves else (pairs, n_eff)
    upper = np.triu_indices(pairs.shape[-1], 1)
    held_out, one_group = ({layer: np.zeros((*pairs.shape[:2], len(upper[0])), np.float32) for layer in LAYERS} for _ in range(2))
    centred = np.zeros_like(held_out["raw"])
    for fold in range(FOLDS):
        test = np.arange(len(pairs)) % FOLDS == fold
        group, taught = fit(fitted[~test], n_fitted)
        centred[test] = np.asarray(group.mean)[upper]
        for place in itertools.product(np.flatnonzero(test), (0, 1)):
            apply(held_out, place, pairs, n_eff, group, taught)
    group, taught = fit(fitted, n_fitted)
    for place in itertools.product(range(len(pairs)), (0, 1)):
        apply(one_group, place, pairs, n_eff, group, taught)
    mean = np.asarray(group.mean)[upper]
    figures = {
        layer: score(held_out[layer], held_out["raw"], centred)
        | reliability(one_group[layer] - mean)
        | {"ICC within folds": within_folds(held_out[layer])}
        for layer in LAYERS
    }
    print(f"{len(pairs)} participants with two sessions")
    table(("edges", *figures["raw"]), [(layer, *figures[layer].values()) for layer in LAYERS])
    write(args, figures)


def fit(pairs: np.ndarray, n_eff: float):
    """Fit group and guide to participants, `[S, 2, K, K]`."""
    sizes = np.full(len(pairs), n_eff, np.float32)
    first, second = pairs.swapaxes(0, 1)
    return edges.fit_shrinkage(first, second, sizes), edges.fit_guided(first[:, None], second[:, None], sizes)


def apply(estimates: dict[str, np.ndarray], place: tuple[int, int], pairs: np.ndarray, n_eff: float, group, taught) -> None:
    """Add all kinds of edges for one session of a participant."""
    upper = np.triu_indices(pairs.shape[-1], 1)
    for layer, made in edges.layers(pairs[place], n_eff, group, taught).items():
        estimates[layer][place] = np.asarray(fisher(made.edges))[upper]


def participants(file, *, halves: bool = False) -> tuple[np.ndarray, float]:
    """Correlations of both sessions of each participant who has two, or of the halves of the first, `[S, 2, K, K]`, and independent frames
    of one.
    """
    with np.load(file) as stored:
        data = {name: stored[name] for name in stored.files}
    both: dict[str, dict[int, np.ndarray]] = {}
    frames = 0
    for subject, session, start, stop in zip(data["subject"], data["session"], data["offset"], data["offset"][1:], strict=False):
        x = data["z"][start:stop].astype(np.float32)
        parts = [x[: len(x) // 2 - GAP_FRAMES // 2], x[len(x) // 2 + GAP_FRAMES // 2 :]] if halves else [x]
        both.setdefault(str(subject), {})[int(session)] = np.stack([np.corrcoef(part.T) for part in parts])
        frames = len(parts[0])
    own = [sessions for sessions in both.values() if len(sessions) == 2]
    found = [sessions[1] if halves else np.concatenate([sessions[1], sessions[2]]) for sessions in own]
    return np.stack(found).astype(np.float32), 2 * (BAND_HZ[1] - BAND_HZ[0]) * frames * TR


def score(found: np.ndarray, raw: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Score estimates `[S, 2, E]` against the raw edges of the other session."""
    other = raw[:, ::-1]
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(_flat(found - mean), _flat(other - mean), strict=True)]
    return {"individual": float(np.mean(own)), "mse": float(np.square(found - other).mean())}


def reliability(found: np.ndarray) -> dict[str, float]:
    """Median ICC over edges and identification, of estimates `[S, 2, E]` minus one mean of all participants."""
    each = icc(variances_of(_flat(found), np.repeat(np.arange(len(found)), 2)))
    alike = correlations(found[:, 0], found[:, 1])
    return {"ICC": float(np.median(each)), "identification": float(np.diag(hits(alike)[0]).mean())}


def within_folds(found: np.ndarray) -> float:
    """Median over edges of the mean over folds of the ICC of a fold's participants."""
    folds = [found[np.arange(len(found)) % FOLDS == fold] for fold in range(FOLDS)]
    each = [icc(variances_of(_flat(own), np.repeat(np.arange(len(own)), 2))) for own in folds]
    return float(np.median(np.mean(each, axis=0)))


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


if __name__ == "__main__":
    main()
