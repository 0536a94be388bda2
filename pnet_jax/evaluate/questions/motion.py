"""Motion: association of edges with head motion, for each edge layer of a cohort (`evaluate.qc_fc`).

The scans of each participant are averaged first, so that each participant counts once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.answer import Answer, Figure, Row, with_interval, with_p
from pnet_jax.evaluate.columns import covariate_matrix, numbers, shared_parcels, upper
from pnet_jax.evaluate.label_maps import centroids
from pnet_jax.evaluate.layers import chosen_layers, edge_vectors, is_directed, shrunk_warnings
from pnet_jax.evaluate.qc_fc import (
    CHANCE,
    DISTANCE,
    LEAST,
    LEVEL,
    R2,
    SHARE,
    SIZE,
    Coupled,
    check_motion,
    couple,
    layer_difference,
    motion_rows,
)


def motion(
    cohort: Cohort,
    layers: Sequence[str] | None = None,
    *,
    fd: str = "mean_fd",
    covariates: Sequence[str] = (),
    folds: int = 5,
    permutations: int = 1000,
    draws: int = 200,
    seed: int = 0,
) -> Answer:
    """Measure the association of edges with head motion.

    Args:
      cohort: Scans; those without a value of FD are left out.
      layers: Edge layers; all layers of the cohort by default. The others are compared with the first.
      fd: Column of the table with mean framewise displacement in mm.
      covariates: Columns used as covariates, such as age or site.
      folds: Number of folds of held-out participants for the prediction of FD.
      permutations: Number of permutations of FD among participants.
      draws: Number of bootstrap samples for the difference between layers.
      seed: Random seed.

    Returns:
      The Answer. Tables of rows: `motion`, a row for each layer and measure; `layers`, differences from the first layer.

    Raises:
      InputError: Fewer than ten participants have a value, FD does not vary, or a covariate is missing or constant.
      SettingsError: A layer or column is unknown.
    """
    layers = chosen_layers(cohort, layers)
    rows_of, y, q, names = _participants(cohort, fd, covariates)
    where = centroids(cohort)
    rows: list[Row] = []
    figures: list[Figure] = []
    coupled: dict[str, Coupled] = {}
    for layer in layers:
        every = np.concatenate(rows_of)
        shared = shared_parcels(cohort, layer, every)
        edges = np.stack([edge_vectors(cohort, layer, own, shared).mean(0) for own in rows_of])
        apart = None if where is None else _distances(where, shared, is_directed(cohort, layer))
        rows += motion_rows(edges, y, q, name=layer, distance=apart, folds=folds, permutations=permutations, seed=seed)
        coupled[layer] = couple(edges, y, q)
        figures.append(Figure("QC-FC", "correlation with FD", "edges", values={layer: coupled[layer].y @ coupled[layer].x}))
    rows += [layer_difference(coupled, layers[0], other, draws, seed) for other in layers[1:]]
    settings = {"layers": list(layers), "fd": fd, "covariates": names, "folds": folds, "permutations": permutations, "draws": draws}
    settings |= {
        "seed": seed,
        "participants": len(y),
        "distance": "centroids of the cohort's labels" if where is not None else "not available",
    }
    alarms = shrunk_warnings(layers)
    if left := len(cohort) - sum(map(len, rows_of)):
        alarms.append(f"{left} scans have no {fd} and were left out.")
    if where is None:
        alarms.append("Distance dependence was not computed: the cohort has no labels and therefore no parcel positions.")
    answer = Answer("motion", (), tuple(rows), settings)
    return Answer("motion", _sentences(answer, layers), tuple(rows), settings, figures=tuple(figures), warnings=tuple(alarms))


def _participants(
    cohort: Cohort, fd: str, covariates: Sequence[str]
) -> tuple[list[Int[np.ndarray, " m"]], Float[np.ndarray, " n"], Float[np.ndarray, "n Q"], list[str]]:
    """Return the rows of each participant, and their mean FD and covariates."""
    values = numbers(cohort, fd)
    order = np.argsort(cohort.table["scan"].astype(str), kind="stable")
    kept = order[np.isfinite(values[order])]
    if len(kept) == 0:
        raise InputError(f"motion: expected values of {fd}, found none in {len(cohort)} scans: provide motion parameters to pnet construct")
    q, names = covariate_matrix(cohort, covariates, kept)
    subjects, member = np.unique(cohort.table["subject"].astype(str)[kept], return_inverse=True)
    rows = [kept[member == number] for number in range(len(subjects))]
    y = np.array([values[own].mean() for own in rows])
    if len(rows) < LEAST or np.ptp(y) == 0:
        check_motion(np.zeros((len(y), 1)), y)
    return rows, y, np.stack([q[member == number].mean(0) for number in range(len(subjects))]), names


def _distances(where: Float[np.ndarray, "K 3"], shared: np.ndarray, directed: bool) -> Float[np.ndarray, " E"] | None:
    """Return the distance between the parcels of each edge in mm, or None if a shared parcel has no position."""
    own = np.linalg.norm(where[:, None] - where[None], axis=-1)
    found = upper(own[None], shared)[0]
    found = np.concatenate([found, found]) if directed else found
    return found if np.isfinite(found).all() else None


def _sentences(found: Answer, layers: Sequence[str]) -> tuple[str, ...]:
    row = {(one.name, one.measure): one for one in found.rows}
    said = []
    for layer in layers:
        size, chance, share, r2 = (row[layer, measure] for measure in (SIZE, CHANCE, SHARE, R2))
        said.append(
            f"The mean absolute correlation of {layer} edges with head motion is |r| = {size.value:.3f} ({chance.value:.3f} expected by "
            f"chance, {with_p(size.p)}, n = {size.n}); {100 * share.value:.1f} % of the edges are associated with motion at a false "
            f"discovery rate of 0.05, and all edges together predict the motion of held-out participants with R² = {with_interval(r2)}."
        )
        apart = row.get((layer, DISTANCE))
        if apart is not None and math.isfinite(apart.value):
            how = "depends" if apart.p < LEVEL else "does not detectably depend"
            of = f"Spearman's ρ = {apart.value:.3f}, {with_p(apart.p)}"
            said.append(f"The correlation of {layer} edges with motion {how} on the distance between their parcels: {of}.")
    return tuple(said)
