"""Small cohorts with a planted lesion, from closed-form connectivity or from signals."""

from __future__ import annotations

import numpy as np

from pnet_jax.cohort import Cohort, view_of
from pnet_jax.simulate.dynamics import linear_model, sample, true_fc

K, LESION, FRAMES, TR = 14, 5, 240, 2.0


def jacobian(rng: np.random.Generator, base: np.ndarray, loss: float, spread: float = 0.2) -> np.ndarray:
    """A participant's J: the group's couplings, each × LogN(spread), those of the lesioned node × (1 − loss)."""
    factor = np.exp(spread * rng.normal(size=base.shape))
    own = base * np.sqrt(factor * factor.T)
    hit = np.arange(len(base)) == LESION
    own = np.where(hit[:, None] != hit, own * (1 - loss), own)
    return -(np.eye(len(base)) - own)


def group(seed: int = 0) -> np.ndarray:
    """Couplings of two modules, largest eigenvalue .8."""
    rng = np.random.default_rng(seed)
    weights = np.exp(0.3 * rng.normal(size=(K, K))) * np.where(np.arange(K)[:, None] % 2 == np.arange(K) % 2, 1.0, 0.2)
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    return 0.8 * weights / np.linalg.eigvalsh(weights)[-1]


def cohort_of_planted(n: int = 24, *, loss: float = 0.8, signals: bool = False, noise: float = 0.02, seed: int = 0) -> Cohort:
    """Half patients; connectivity is the closed form with a little noise in Fisher z, or Pearson's of simulated signals."""
    rng, base = np.random.default_rng([seed, 1]), group(seed)
    patient = np.arange(n) % 2
    edges, series = np.empty((n, K, K)), np.empty((n, K, FRAMES), np.float32)
    for s in range(n):
        model = linear_model(jacobian(rng, base, loss * patient[s]))
        if signals:
            series[s] = sample(model, rng, tr=TR, frames=FRAMES) + 0.3 * rng.normal(size=(K, FRAMES))
            edges[s] = np.corrcoef(series[s])
        else:
            z = np.arctanh(np.clip(true_fc(model), -0.999, 0.999) * (1 - np.eye(K))) + noise * rng.normal(size=(K, K))
            edges[s] = np.tanh((z + z.T) / 2) * (1 - np.eye(K)) + np.eye(K)
    label = np.array([f"sub-{s:02d}" for s in range(n)])
    table = {"scan": label, "subject": label, "group": np.where(patient == 1, "patient", "control"), "tr": np.full(n, TR)}
    return Cohort(
        table=table | {"age": rng.normal(40, 9, n)},
        edges={"pearson": edges.astype(np.float32)},
        views={"pearson": view_of("pearson")},
        coverage=np.ones((n, K), np.float32),
        ids=np.arange(1, K + 1),
        names=tuple(f"node{k}" for k in range(K)),
        hemispheres=("L", "R") * (K // 2),
        atlas={"source": "planted", "digest": ""},
        signals=series if signals else None,
        frames=np.tile(np.arange(FRAMES, dtype=np.int32), (n, 1)) if signals else None,
        provenance={"cleaning": {"high_pass": None, "low_pass": None}},
    )
