r"""Association of edges with head motion (QC-FC). Pure functions on arrays.

- QC-FC: correlation over participants of each edge with mean framewise displacement (FD). Its mean absolute value is never 0: with n
  participants, chance alone gives about 0.8 / :math:`\sqrt{n}`, so it is compared with the values of permuted FD (Satterthwaite et
  al. 2012; Ciric et al. 2017).
- Distance dependence: Spearman correlation over edges of QC-FC with the distance of the two parcels; motion increases
  short-range edges (Power et al. 2012).
- FD predicted from all edges of held-out participants by ridge regression, which detects patterns that no single edge shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control, rankdata, t

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate import reliability, scores
from pnet_jax.evaluate.answer import Row, interval_of
from pnet_jax.evaluate.features import Given
from pnet_jax.evaluate.pipeline import Pipeline, predict
from pnet_jax.evaluate.reliability import p_value
from pnet_jax.evaluate.split import by_subject

LEAST = 10  # fewest participants
LEVEL = 0.05
BLOCK = 64  # permutations per block
DRAWS, MOST_REFITS = 1000, 200  # number of bootstrap draws, and largest number of permuted targets that are predicted
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
      SettingsError: If there is no permutation, or there are fewer than two folds.
      InputError: If there are fewer than ten participants, values are not finite, no edge varies, or FD is negative, does not vary or
          is fully explained by covariates.
    """
    check_motion(edges, fd)
    if permutations < 1 or folds < 2:
        raise SettingsError(f"motion: expected 1 permutation or more and 2 folds or more, got {permutations} and {folds}")
    found, n = couple(edges, fd, covariates), len(fd)
    if found.freedom < 1 or not found.y.any():
        raise InputError(f"motion: expected covariates that leave some of the differences in framewise displacement of {n} participants")
    if not found.x.any():
        raise InputError(f"motion: expected edges that differ between participants, found none in {name!r}")
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


def check_motion(edges: Float[np.ndarray, "n E"], fd: Float[np.ndarray, " n"]) -> None:
    """Refuse values that cannot be evaluated.

    Raises:
      InputError: If there are fewer than ten participants, values are not finite, or FD is negative or does not vary.
    """
    if len(fd) < LEAST:
        raise InputError(f"motion: expected {LEAST} participants or more with a value of framewise displacement, found {len(fd)}")
    if not np.isfinite(fd).all() or not np.isfinite(edges).all():
        raise InputError("motion: expected finite edges and displacements, found NaN or infinite values: exclude such scans or parcels")
    if fd.min() < 0:
        raise InputError(f"motion: expected framewise displacement of 0 mm or more, found {fd.min():g} mm")
    if np.ptp(fd) == 0:
        raise InputError(f"motion: expected framewise displacement that differs between participants, found only {fd[0]:g} mm")


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


def _prediction_rows(
    edges: Float[np.ndarray, "n E"], fd: Float[np.ndarray, " n"], name: str, folds: int, permutations: int, seed: int
) -> list[Row]:
    """Return R² and r of FD predicted in held-out participants; r is computed within folds, to exclude differences in training means."""
    n, rng = len(fd), np.random.default_rng(seed)
    subjects = np.arange(n).astype(str)
    split = by_subject(subjects, fd, folds=max(2, min(folds, n // 5)), seed=seed)
    permuted = np.stack([rng.permutation(fd) for _ in range(min(permutations, MOST_REFITS))], 1)
    found = predict([Pipeline((Given(name, edges),))], split, fd, classes=False, permuted=permuted)[0]
    assert found.null is not None
    weights, once = scores.bootstrap_weights(subjects, None, DRAWS, seed), np.ones((1, n))
    rows = []
    for measure, score in ((R2, scores.weighted_r2), (R, scores.within(scores.weighted_r, found.fold[0]))):
        value, *boot = score(found.decision[0], fd, weights)
        null = np.array([score(guess, truth, once)[0] for guess, truth in zip(found.null, permuted.T, strict=True)])
        note = f"{np.mean(null):.3f} by chance"
        rows.append(Row("motion", name, measure, float(value), *interval_of(boot), p=p_value(null, value), n=n, note=note))
    return rows


def layer_difference(coupled: Mapping[str, Coupled], first: str, other: str, draws: int, seed: int) -> Row:
    """Return mean |r| of a layer minus that of the first, with a paired bootstrap interval over participants."""
    sizes = []
    weights = reliability.bootstrap_weights(len(coupled[first].y), draws, seed).astype(np.float32)
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
