"""Cohorts whose reliability is known: group edges + what a participant keeps + noise."""

from __future__ import annotations

import numpy as np

from pnet_jax.cohort import COLUMNS, NUMBERS, Cohort
from pnet_jax.space import Space


def symmetric(upper: np.ndarray, k: int) -> np.ndarray:
    """Matrices with a diagonal of 1 of edges above the diagonal, `[S, E]` to `[S, K, K]`."""
    out = np.zeros((len(upper), k, k), np.float32)
    i, j = np.triu_indices(k, 1)
    out[:, i, j] = out[:, j, i] = upper
    out[:, np.arange(k), np.arange(k)] = 1
    return out


def make_cohort(
    subjects, sessions, layers: dict[str, np.ndarray], *, labels=None, space: Space | None = None, directed=(), **table
) -> Cohort:
    """A Cohort of matrices `[S, K, K]`; further columns by name."""
    subjects, sessions = (np.asarray(x).astype(str) for x in (subjects, sessions))
    k, s = next(iter(layers.values())).shape[-1], len(subjects)
    columns = {name: np.full(s, np.nan) if name in NUMBERS else np.full(s, "", dtype="<U32") for name in COLUMNS}
    columns |= {"subject": subjects, "session": sessions, "task": np.full(s, "rest")}
    columns["scan"] = np.array([f"sub-{a}_ses-{b}_task-rest" for a, b in zip(subjects, sessions, strict=True)])
    columns |= {name: np.asarray(values) for name, values in table.items()}
    views = {name: {"units": "", "meant_for": "", "directed": name in directed} for name in layers}
    return Cohort(
        table=columns,
        edges={name: np.asarray(x, np.float32) for name, x in layers.items()},
        views=views,
        coverage=np.ones((s, k), np.float32),
        ids=np.arange(1, k + 1),
        names=tuple(f"area {i}" for i in range(k)),
        hemispheres=tuple("LR"[i % 2] for i in range(k)),
        atlas={"source": "planted", "digest": "00"},
        labels=labels,
        confidence=None if labels is None else np.ones(labels.shape, np.float32),
        space=space,
    )


def planted(n=12, scans=2, k=20, own=0.15, noise=0.15, group=0.3, seed=0, **table) -> Cohort:
    """Participants with `scans` scans; the ICC of every edge is own² / (own² + noise²)."""
    rng = np.random.default_rng(seed)
    e = k * (k - 1) // 2
    mean, lasting = group * rng.normal(size=e), own * rng.normal(size=(n, e))
    edges = mean + np.repeat(lasting, scans, 0) + noise * rng.normal(size=(n * scans, e))
    subjects = np.repeat([f"{i:03d}" for i in range(n)], scans)
    return make_cohort(subjects, np.tile(np.arange(1, scans + 1), n), {"pearson": symmetric(edges, k)}, **table)


def geometric(n=12, scans=2, k=24, noise=0.05, seed=0, **table) -> Cohort:
    """Participants whose networks differ in topology: nodes in 1 to 6 dimensions. Portraits cannot tell random graphs apart."""
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(k, 1)
    own = []
    for s in range(n):
        x = rng.normal(size=(k, 1 + s % 6))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        own.append((x @ x.T)[i, j] * 0.7)
    edges = np.repeat(own, scans, 0) + noise * rng.normal(size=(n * scans, len(i)))
    return make_cohort(
        np.repeat([f"{s:03d}" for s in range(n)], scans), np.tile(np.arange(1, scans + 1), n), {"pearson": symmetric(edges, k)}, **table
    )
