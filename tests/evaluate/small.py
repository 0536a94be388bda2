"""A small cohort without any effect, and tables of files."""

from __future__ import annotations

import numpy as np

from pnet_jax.cohort import make_cohort

N, K = 24, 6
FEW = {"features": ["pearson"], "models": ["ridge"], "permutations": 0, "repeats": 1, "folds": 3, "learning": []}


def matrices(n=N, k=K, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.corrcoef(rng.normal(size=(k, 30))) for _ in range(n)])


def cohort(edges=None, subjects=None, sessions=None, **columns):
    subjects = [f"{at:02d}" for at in range(N)] if subjects is None else subjects
    columns = {"dx": np.array(["case", "control"] * (N // 2)), "age": 20.0 + np.arange(N)} | columns
    return make_cohort(subjects, edges={"pearson": matrices() if edges is None else edges}, sessions=sessions, covariates=columns)


def table(folder, rows, columns="participant_id\tfile", name="t.tsv"):
    path = folder / name
    path.write_text("\n".join([columns, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return path
