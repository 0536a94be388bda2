r"""Motion: association of edges with head motion.

- QC-FC: correlation over participants of each edge with mean framewise displacement (FD). Its mean absolute value is never 0: with n
  participants, chance alone gives about 0.8 / :math:`\sqrt{n}`, so it is compared with the values of permuted FD (Satterthwaite et
  al. 2012; Ciric et al. 2017).
- Distance dependence: Spearman correlation over edges of QC-FC with the distance of the two parcels; motion raises short edges (Power et
  al. 2012).
- FD predicted from all edges of held-out participants by ridge regression, which detects patterns that no single edge shows.

The scans of each participant are averaged first, so that each participant counts once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control, rankdata, t

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.answer import Answer, Figure, Row, interval_of, with_interval
from pnet_jax.evaluate.columns import covariate_matrix, numbers, shared_parcels, upper
from pnet_jax.evaluate.label_maps import centroids
from pnet_jax.evaluate.layers import chosen_layers, edge_vectors, is_directed, shrunk_warnings
from pnet_jax.evaluate.reliability import bootstrap_weights, p_value
from pnet_jax.evaluate.ridge import Predicted, predict_held_out
from pnet_jax.evaluate.split import by_subject

LEAST = 10  # participants
LEVEL = 0.05
BLOCK = 64  # rearrangements at once
SIZE, CHANCE, SHARE = "mean |r| of edges with FD", "mean |r| by chance", "share of edges with FDR below 0.05"
DISTANCE, R2, R = "distance dependence of QC-FC", "FD predicted from edges, R2", "FD predicted from edges, r"


class Coupled(NamedTuple):
    """Residuals of edges and FD after regression on covariates.

    Attributes:
      x: Edges, each of mean 0 and length 1 over participants; 0 where one does not vary, `[n, E]`.
      y: FD, of mean 0 and length 1, `[n]`.
      freedom: Degrees of freedom of their correlation.
    """

    x: Float[np.ndarray, "n E"]
    y: Float[np.ndarray, " n"]
    freedom: int


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
    rows += [_difference(coupled, layers[0], other, draws, seed) for other in layers[1:]]
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
        alarms.append("Distance dependence is not available: the cohort has no labels and therefore no parcel positions.")
    answer = Answer("motion", (), tuple(rows), settings)
    return Answer("motion", _sentences(answer, layers), tuple(rows), settings, figures=tuple(figures), warnings=tuple(alarms))


def motion_rows(
    edges: Float[np.ndarray, "n E"],
    fd: Float[np.ndarray, " n"],
    covariates: Float[np.ndarray, "n Q"] | None = None,
    *,
    name: str = "edges",
    distance: Float[np.ndarray, " E"] | None = None,
    folds: int = 5,
    permutations: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Return the rows of the table `motion`, the association of edges with head motion.

    Args:
      edges: One row per participant, without NaN.
      fd: Mean framewise displacement of each participant, mm.
      covariates: Covariates of the correlations; the prediction of FD does not use them.
      name: Name of the rows.
      distance: Distance between the two parcels of each edge, mm; without it, distance dependence is not computed.
      folds: Number of folds of held-out participants.
      permutations: Number of permutations of FD.
      seed: Random seed.

    Raises:
      InputError: There are fewer than ten participants, values are not finite, or FD does not vary or is fully explained by covariates.
    """
    _check(edges, fd)
    found, n = couple(edges, fd, covariates), len(fd)
    if found.freedom < 1 or not found.y.any():
        raise InputError(f"motion: expected covariates that leave some of the differences in framewise displacement of {n} participants")
    r = found.y @ found.x
    null, apart = _null(found, distance, permutations, seed)
    size = float(np.abs(r).mean())
    rows = [
        Row("motion", name, SIZE, size, p=p_value(null, size), n=n),
        Row("motion", name, CHANCE, float(null.mean()), *interval_of(null), n=n),
    ]
    tested = np.abs(r) > 0
    share = float((false_discovery_control(_p_values(r[tested], found.freedom)) < LEVEL).sum() / len(r)) if tested.any() else 0.0
    rows.append(Row("motion", name, SHARE, share, n=len(r), note="n is the number of edges"))
    if distance is not None:
        rho = _spearman(r[None], distance)[0]
        rows.append(Row("motion", name, DISTANCE, float(rho), p=p_value(np.abs(apart), abs(float(rho))), n=n))
    return rows + _prediction_rows(edges, fd, name, folds, permutations, seed)


def couple(edges: Float[np.ndarray, "n E"], fd: Float[np.ndarray, " n"], covariates: Float[np.ndarray, "n Q"] | None = None) -> Coupled:
    """Regress the mean and covariates out of edges and FD, and scale the residuals to length 1."""
    n = len(fd)
    q = np.zeros((n, 0)) if covariates is None else np.asarray(covariates, float)
    basis = np.linalg.qr(np.column_stack([np.ones(n), q - q.mean(0)]))[0]

    def rest(z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, np.float64)
        left = z - basis @ (basis.T @ z)
        length = np.linalg.norm(left, axis=0)
        flat = length <= 1e-9 * np.maximum(np.linalg.norm(z, axis=0), 1e-300)
        return np.where(flat, 0, left / np.where(flat, 1, length))

    return Coupled(rest(edges).astype(np.float32), rest(fd).astype(np.float32), n - 2 - q.shape[1])


def _check(edges: np.ndarray, fd: np.ndarray) -> None:
    if len(fd) < LEAST:
        raise InputError(f"motion: expected {LEAST} participants or more with a value of framewise displacement, found {len(fd)}")
    if not np.isfinite(fd).all() or not np.isfinite(edges).all():
        raise InputError("motion: expected finite edges and displacements, found NaN or infinite values: exclude such scans or parcels")
    if np.ptp(fd) == 0:
        raise InputError(f"motion: expected framewise displacement that differs between participants, found only {fd[0]:g} mm")


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
        _check(np.zeros((len(y), 1)), y)
    return rows, y, np.stack([q[member == number].mean(0) for number in range(len(subjects))]), names


def _distances(where: Float[np.ndarray, "K 3"], shared: np.ndarray, directed: bool) -> Float[np.ndarray, " E"] | None:
    """Return the distance between the parcels of each edge in mm, or None if a shared parcel has no position."""
    own = np.linalg.norm(where[:, None] - where[None], axis=-1)
    found = upper(own[None], shared)[0]
    found = np.concatenate([found, found]) if directed else found
    return found if np.isfinite(found).all() else None


# chance


def _null(
    found: Coupled, distance: Float[np.ndarray, " E"] | None, permutations: int, seed: int
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Return mean |r| and distance dependence under permutations of the residuals of FD."""
    rng = np.random.default_rng(seed)
    size, apart = np.zeros(permutations), np.full(permutations, np.nan)
    for start in range(0, permutations, BLOCK):
        here = slice(start, min(start + BLOCK, permutations))
        r = np.stack([rng.permutation(found.y) for _ in range(here.stop - start)]) @ found.x
        size[here] = np.abs(r).mean(1)
        if distance is not None:
            apart[here] = _spearman(r, distance)
    return size, apart


def _spearman(r: Float[np.ndarray, "B E"], distance: Float[np.ndarray, " E"]) -> Float[np.ndarray, " B"]:
    a, b = rankdata(r, axis=1), rankdata(distance)
    a, b = a - a.mean(1, keepdims=True), b - b.mean()
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    return (a @ b) / np.where(scale > 0, scale, np.nan)


def _p_values(r: Float[np.ndarray, " E"], freedom: int) -> Float[np.ndarray, " E"]:
    r = np.clip(np.asarray(r, np.float64), -1 + 1e-12, 1 - 1e-12)
    return 2 * t.sf(np.abs(r) * np.sqrt(freedom / (1 - r**2)), freedom)


def _difference(coupled: dict[str, Coupled], first: str, other: str, draws: int, seed: int) -> Row:
    """Return mean |r| of a layer minus that of the first, with a paired bootstrap interval over participants."""
    sizes = []
    weights = bootstrap_weights(len(coupled[first].y), draws, seed).astype(np.float32)
    for layer in (other, first):
        x, y, _ = coupled[layer]
        boot = np.concatenate([_weighted_size(x, y, part) for part in np.array_split(weights, max(draws // 25, 1))])
        sizes.append((float(np.abs(y @ x).mean()), boot))
    (value, boot), (base, base_boot) = sizes
    return Row("layers", f"{other} - {first}", SIZE, value - base, *interval_of(boot - base_boot), n=len(coupled[first].y))


def _weighted_size(x: Float[np.ndarray, "n E"], y: Float[np.ndarray, " n"], w: Float[np.ndarray, "B n"]) -> Float[np.ndarray, " B"]:
    """Return mean |r| of each bootstrap sample."""
    share = w / w.sum(1, keepdims=True)
    mean_x, mean_y = share @ x, share @ y
    covariance = (share * y) @ x - mean_x * mean_y[:, None]
    spread = (share @ np.square(x) - np.square(mean_x)) * (share @ np.square(y) - np.square(mean_y))[:, None]
    return np.abs(covariance / np.sqrt(np.where(spread > 0, spread, np.inf))).mean(1)


# prediction


def _prediction_rows(
    edges: Float[np.ndarray, "n E"], fd: Float[np.ndarray, " n"], name: str, folds: int, permutations: int, seed: int
) -> list[Row]:
    split = by_subject([str(number) for number in range(len(fd))], fd, folds=max(2, min(folds, len(fd) // 5)), seed=seed)
    predicted = predict_held_out(edges, fd, split, permutations=min(permutations, 200), seed=seed)
    drawn = np.random.default_rng(seed).integers(len(fd), size=(1000, len(fd)))
    rows = []
    for measure, score in ((R2, Predicted.r2), (R, Predicted.r)):
        value, null = score(predicted), np.array([score(one) for one in predicted.null])
        boot = [score(predicted.take(rows_)) for rows_ in drawn]
        note = f"{np.mean(null):.3f} by chance"
        rows.append(Row("motion", name, measure, value, *interval_of(boot), p=p_value(null, value), n=len(fd), note=note))
    return rows


def _sentences(found: Answer, layers: Sequence[str]) -> tuple[str, ...]:
    row = {(one.name, one.measure): one for one in found.rows}
    said = []
    for layer in layers:
        size, chance, share, r2 = (row[layer, measure] for measure in (SIZE, CHANCE, SHARE, R2))
        said.append(
            f"Edges of {layer} have a mean |r| of {size.value:.3f} with head motion, {chance.value:.3f} by chance (p = {size.p:.2g}, "
            f"n = {size.n}); {100 * share.value:.1f} % of the edges are significant at a false discovery rate of 0.05, and all edges "
            f"together predict motion of held-out participants with R² = {with_interval(r2)}."
        )
        apart = row.get((layer, DISTANCE))
        if apart is not None and math.isfinite(apart.value):
            said.append(f"The correlation of {layer} edges with motion depends on their length: ρ = {apart.value:.3f}, p = {apart.p:.2g}.")
    return tuple(said)
