"""Edges of one session scored on another of the same participant, months later: patients with a first episode of psychosis (STAGES).

Recordings of 234 frames (TR 2 s), 419 regions, band-passed and without the global signal: the guided layer has the raw view only.
Group and guide are fitted on the participants of four folds and applied to the fifth's. `individual` is the correlation over edges with the
raw edges of the other session after the training mean is taken away, `mse` in Fisher z; both directions. `ICC` is the median over edges of
ICC(1,1) of the two sessions' estimates. `identification`:
a participant's first session is more like their own second one than like anybody else's.

    python benchmarks/sessions.py --out benchmarks/results/sessions.json
"""

from __future__ import annotations

import numpy as np
from common import need, parser, table, write

from pnet_jax import edges
from pnet_jax.edges.shrinkage import fisher

TABLE = "stages_fep/stages_fep_419_int8.npz"
TR, BAND_HZ, FOLDS = 2.0, (0.009, 0.1), 5
LAYERS = ("raw", "shrunk", "guided")


def main() -> None:
    args = parser(__doc__).parse_args()
    pairs, n_eff = participants(need(args.data, TABLE)[0])
    upper = np.triu_indices(pairs.shape[-1], 1)
    estimates = {layer: np.zeros((*pairs.shape[:2], len(upper[0])), np.float32) for layer in LAYERS}
    centred = np.zeros_like(estimates["raw"])
    for fold in range(FOLDS):
        test = np.arange(len(pairs)) % FOLDS == fold
        sizes = np.full((~test).sum(), n_eff, np.float32)
        first, second = pairs[~test].swapaxes(0, 1)
        group = edges.fit_shrinkage(first, second, sizes)
        taught = edges.fit_guided(first[:, None], second[:, None], sizes)
        centred[test] = np.asarray(group.mean)[upper]
        for participant in np.flatnonzero(test):
            for session in (0, 1):
                made = edges.layers(pairs[participant, session], n_eff, group, taught)
                for layer in LAYERS:
                    estimates[layer][participant, session] = np.asarray(fisher(made[layer].edges))[upper]
    figures = {layer: score(found, estimates["raw"], centred) for layer, found in estimates.items()}
    print(f"{len(pairs)} participants with two sessions")
    table(("edges", *figures["raw"]), [(layer, *figures[layer].values()) for layer in LAYERS])
    write(args, figures)


def participants(file) -> tuple[np.ndarray, float]:
    """Correlations of both sessions of each participant who has two, `[S, 2, K, K]`, and independent frames of one."""
    with np.load(file) as stored:
        data = {name: stored[name] for name in stored.files}
    both: dict[str, dict[int, np.ndarray]] = {}
    frames = 0
    for subject, session, start, stop in zip(data["subject"], data["session"], data["offset"], data["offset"][1:], strict=False):
        both.setdefault(str(subject), {})[int(session)] = np.corrcoef(data["z"][start:stop].T.astype(np.float32))
        frames = int(stop - start)
    found = [np.stack([sessions[1], sessions[2]]) for sessions in both.values() if len(sessions) == 2]
    return np.stack(found).astype(np.float32), 2 * (BAND_HZ[1] - BAND_HZ[0]) * frames * TR


def score(found: np.ndarray, raw: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Figures of estimates `[S, 2, E]` against the raw edges of the other session."""
    other = raw[:, ::-1]
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(_flat(found - mean), _flat(other - mean), strict=True)]
    within = np.square(found[:, 0] - found[:, 1]).mean(0) / 2
    between = 2 * found.mean(1).var(0, ddof=1)
    icc = (between - within) / (between + within)
    alike = np.corrcoef(found[:, 0] - mean[:, 0], (found - mean)[:, 1])[: len(found), len(found) :]
    return {
        "individual": float(np.mean(own)),
        "mse": float(np.square(found - other).mean()),
        "ICC": float(np.median(icc)),
        "identification": float((alike.argmax(1) == np.arange(len(found))).mean()),
    }


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


if __name__ == "__main__":
    main()
