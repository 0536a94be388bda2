"""How far this scan may move the parcels: κ and β by inner split-half, and whether the prior should be kept.

All are measured on the scan itself. Parcels are made from one half of it and scored on the other, in both directions; nothing
outside the scan, and nothing it will be judged on, takes part.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.parcellation import score
from pnet_jax.parcellation.harden import harden
from pnet_jax.parcellation.mixture import Mixture, Problem, mixture
from pnet_jax.space import Space

KAPPAS = (5.0, 10.0, 20.0, 40.0, 80.0)
BETAS = (0.2, 0.4, 0.8)
SEARCH_STEPS = 2  # each fit begins where the one before it ended, so that few are enough
BLOCK_SECONDS = 20.0
MIN_BLOCKS = 3  # of time in each half; fewer cannot give an interval
LEAST_LEFT = 10  # independent values of a half beyond the regressors, for a gain to be measured on it


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What was measured and what follows from it.

    Attributes:
      kappa: concentration chosen on the halves.
      kappa_scan: the same for the whole scan, which has twice the frames: κ · 2 / (1 + c), with c the mean cosine between the
        halves' embeddings (Spearman–Brown: what reliability c of a half makes of the whole).
      beta: chosen weight of the neighbours.
      grid: one row a trial: `kappa`, `beta`, cross-half `homogeneity` and `dcbc`.
      personalised: cross-half `homogeneity` and `dcbc` of the chosen pair, hardened as the result is.
      prior: the same of the prior's labels.
      null: the same of the data-free centroid map.
      difference: DCBC of personalised minus prior: 2.5 %, 50 % and 97.5 % of a bootstrap over blocks of time.
      decision: `"personalised"` or `"prior"`.
      reason: one sentence.
    """

    kappa: float
    kappa_scan: float
    beta: float
    grid: list[dict[str, Any]]
    personalised: dict[str, float]
    prior: dict[str, float]
    null: dict[str, float]
    difference: tuple[float, float, float]
    decision: str
    reason: str


@functools.partial(jax.jit, static_argnames="steps")
def _fit(
    problem: Problem, start: Mixture | None, kappa: Float[Array, ""], beta: Float[Array, ""], *, steps: int = SEARCH_STEPS
) -> tuple[Mixture, Int[Array, " V"]]:
    """The mixture a few steps on, and the most probable candidate of every location."""
    fitted = mixture(problem, kappa, beta, steps=steps, start=start)
    return fitted, jnp.take_along_axis(problem.candidates, fitted.q.argmax(1)[:, None], axis=1)[:, 0]


class _Halves:
    """What is measured on one half with the parcels of the other.

    Both at once, one thread a half, but for products of matrices: they have threads of their own.
    """

    def __init__(
        self,
        signals: tuple[Float[np.ndarray, "V A"], Float[np.ndarray, "V B"]],
        space: Space,
        prior_labels: Int[np.ndarray, " V"],
        n_parcels: int,
        tr: float,
        seed: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.n_parcels, self.pool = n_parcels, pool
        self.pairs = score.sample_pairs(space, np.flatnonzero(prior_labels >= 0), seed=seed)
        self.blocks = max(1, int(min(y.shape[1] for y in signals) * tr / BLOCK_SECONDS))
        self.y = list(pool.map(score.standardised, signals))
        self.r = [score.pair_correlations(y, self.pairs) for y in self.y]

    def scores(self, first: Int[np.ndarray, " V"], second: Int[np.ndarray, " V"]) -> dict[str, float]:
        """Parcels of each half on the other half."""

        def one(labels: Int[np.ndarray, " V"], half: int) -> tuple[float, float]:
            return score.homogeneity(self.y[half], labels, self.n_parcels), score.dcbc(self.r[half], self.pairs, labels)

        homogeneity, dcbc = np.mean(list(self.pool.map(one, (first, second), (1, 0))), axis=0)
        return {"homogeneity": float(homogeneity), "dcbc": float(dcbc)}

    def gain_by_block(self, labels: Sequence[Int[np.ndarray, " V"]], than: Int[np.ndarray, " V"]) -> Float[np.ndarray, " B"]:
        """DCBC of each half's parcels over that of others, for each stretch of time of the other half, on the scale of the whole."""
        both = zip(labels, self.y[::-1], strict=True)
        return np.concatenate([score.gain_by_block(y, self.pairs, mine, than, self.blocks) for mine, y in both])


def select(
    problems: tuple[Problem, Problem],
    signals: tuple[Float[np.ndarray, "V A"], Float[np.ndarray, "V B"]],
    space: Space,
    prior_labels: Int[np.ndarray, " V"],
    *,
    n_parcels: int,
    tr: float,
    seed: int = 0,
    kappas: tuple[float, ...] = KAPPAS,
    betas: tuple[float, ...] = BETAS,
    independent: float = np.inf,
    regressors: int = 0,
) -> tuple[Selection, Float[np.ndarray, "V C"]]:
    """Chooses κ and β for a scan and decides between the personalised parcels and the prior.

    The search climbs from the middle of both grids, first κ, then β, a step at a time for as long as it pays. The trial with
    the highest sum of cross-half homogeneity and DCBC wins among those at least as homogeneous as the data-free centroid map:
    both are correlations, homogeneity alone stays near compact shapes, DCBC alone fragments. The decision is by DCBC, which
    compact shapes do not raise: personalised only where the bootstrap interval of its gain over the prior lies above 0.

    Args:
      problems: the mixture's input from each half; their V may be padded beyond `len(space)`.
      signals: of each half.
      space: V locations.
      prior_labels: −1 outside, `[V]`.
      n_parcels: K.
      tr: seconds.
      seed: of the pair sample and the bootstrap.
      kappas: tried concentrations.
      betas: tried weights.
      independent: values of each half, 2 · bandwidth · seconds.
      regressors: that were taken out of the whole scan.

    Returns:
      What was chosen, and the mean of the two halves' probabilities there, `[V, C]`.
    """
    rows: dict[_Trial, dict[str, Any]] = {}
    fits: dict[_Trial, list[Mixture]] = {}

    def attempt(trial: _Trial, start: _Trial | None = None) -> None:
        # Both halves at once: one compiled call keeps about one core busy.
        numbers = jnp.float32(trial.kappa), jnp.float32(trial.beta)
        each = zip(problems, fits[start] if start else (None, None), strict=True)
        found = list(pool.map(lambda half: jax.block_until_ready(_fit(*half, *numbers)), each))
        labels = [np.asarray(half[1])[: len(space)] for half in found]
        rows[trial] = trial._asdict() | scan.scores(*labels)
        fits[trial] = [half[0] for half in found]

    with ThreadPoolExecutor(2) as pool:
        scan = _Halves(signals, space, prior_labels, n_parcels, tr, seed, pool)
        centroids = score.nearest_centroid(prior_labels, space)
        prior, null = scan.scores(prior_labels, prior_labels), scan.scores(centroids, centroids)
        best = _Trial(kappas[len(kappas) // 2], betas[len(betas) // 2])
        attempt(best)
        for name, grid in (("kappa", sorted(kappas)), ("beta", sorted(betas))):
            for way in (1, -1):  # on for as long as it pays, and back only if the first step up did not
                while 0 <= (at := grid.index(getattr(best, name)) + way) < len(grid):
                    trial = best._replace(**{name: grid[at]})
                    if trial in rows:
                        break
                    attempt(trial, best)
                    if _best(rows, null) != trial:
                        break
                    best = trial
        candidates = np.asarray(problems[0].candidates)[: len(space)]
        found = [np.asarray(half.q)[: len(space)] for half in fits[best]]
        hardened = pool.map(lambda q: harden(q, candidates, space.neighbours, prior_labels, n_parcels).labels, found)
        own = list(hardened)
        personalised = scan.scores(*own)
        difference = score.bootstrap_interval(scan.gain_by_block(own, prior_labels), seed)
    decision, reason = _decide(difference, scan.blocks, independent, regressors)
    inside = np.flatnonzero(prior_labels >= 0)
    agreement = float((problems[0].z[inside] * problems[1].z[inside]).sum(1).mean())
    kappa_scan = best.kappa * 2 / (1 + max(agreement, 0.0)) if len(kappas) > 1 else best.kappa  # a given κ is taken as it is
    selection = Selection(best.kappa, kappa_scan, best.beta, list(rows.values()), personalised, prior, null, difference, decision, reason)
    return selection, (found[0] + found[1]) / 2


class _Trial(NamedTuple):
    kappa: float
    beta: float


def _best(rows: Mapping[_Trial, dict[str, Any]], null: dict[str, float]) -> _Trial:
    """Highest sum of both scores among the trials that are no less homogeneous than the data-free map, or else homogeneity."""

    def worth(trial: _Trial) -> tuple[bool, float]:
        row = rows[trial]
        if row["homogeneity"] < null["homogeneity"]:
            return False, row["homogeneity"]
        dcbc = row["dcbc"] if np.isfinite(row["dcbc"]) else 0.0  # ROIs: no neighbouring pairs to tell apart
        return True, row["homogeneity"] + dcbc

    return max(rows, key=worth)


def _decide(difference: tuple[float, float, float], blocks: int, independent: float, regressors: int) -> tuple[str, str]:
    low, middle, high = difference
    if blocks < MIN_BLOCKS:
        return (
            "prior",
            f"each half has fewer than {MIN_BLOCKS} blocks of {BLOCK_SECONDS:g} s, too few to measure a gain, so the prior is kept",
        )
    if not np.isfinite(low):
        return "prior", "the cross-half DCBC could not be measured (too few neighbouring locations), so the prior is kept"
    if low > 0 and (left := independent - regressors) < LEAST_LEFT:
        # What was taken out of the whole recording ties its halves together: noise would repeat, too.
        return (
            "prior",
            f"{regressors} regressors leave a half of the scan {max(left, 0):.0f} independent values, too few to measure a gain, so the "
            "prior is kept",
        )
    span = f"{middle:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    if low > 0:
        return "personalised", f"across halves the personalised parcels beat the prior by {span} in DCBC"
    return "prior", f"across halves the gain over the prior is {span} in DCBC, which does not exclude zero, so the prior is kept"
