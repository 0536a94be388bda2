"""Selection of κ, β and T on the halves of a scan, by the held-out log predictive density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.parcellation.held_out import held_out
from pnet_jax.parcellation.mixture import Mixture, Problem, initial_mixture, mixture

KAPPAS = (2.0, 5.0, 10.0, 20.0, 40.0)
BETAS = (0.1, 0.2, 0.4)
MIDDLE = 1  # index in BETAS at which κ is searched
STEPS = 2  # steps of a fit that starts from the fit at the previous κ
FREE_SHARPNESS = 4.0  # exponent of the data-free prior; of 1, 2 and 4, it has the highest held-out density on noise and on a real scan
FREE_STEPS = 30  # steps to convergence, because smoothing alone makes parcels compact, which must not count as a gain from data
SCORED = 4  # every fourth location is scored during the search


class Choice(NamedTuple):
    """Settings selected on the halves, and the parcels of the halves with these settings.

    Attributes:
      kappa: concentration κ, from a parabola in log κ.
      beta: weight β of the neighbours.
      temperature: temperature T of the best score; above 1, q is over-confident.
      score: score S of the best pair, in nats per location.
      free: score S of the best data-free model (κ = 0), in nats per location.
      free_beta: index of its β.
      edge: whether the best κ is the smallest or the largest of the grid.
      kappas, betas: settings of the trials, `[n]`.
      scores, temperatures: score and temperature of each trial, `[n]`.
      halves: mixtures of both halves at the selected settings.
    """

    kappa: Float[Array, ""]
    beta: Float[Array, ""]
    temperature: Float[Array, ""]
    score: Float[Array, ""]
    free: Float[Array, ""]
    free_beta: Int[Array, ""]
    edge: Bool[Array, ""]
    kappas: Float[Array, " n"]
    betas: Float[Array, " n"]
    scores: Float[Array, " n"]
    temperatures: Float[Array, " n"]
    halves: tuple[Mixture, Mixture]


def data_free(problem: Problem, betas: Float[Array, " b"]) -> Float[Array, "b V C"]:
    """Compute data-free parcels (κ = 0) for each β, from smoothing and a sharpened spatial prior only, as the baseline."""
    sharp = problem._replace(log_prior=FREE_SHARPNESS * problem.log_prior)

    def one(beta: Array) -> Array:
        return mixture(sharp, jnp.float32(0), beta, steps=FREE_STEPS).q

    return jax.lax.map(one, betas)


def choose(
    problems: tuple[Problem, Problem],
    free: Float[Array, "b V C"],
    n_parcels: int,
    *,
    kappas: Sequence[float] | Float[Array, " n"] = KAPPAS,
    betas: Sequence[float] | Float[Array, " m"] = BETAS,
) -> Choice:
    """Select the κ, β and T with the highest held-out score.

    κ is increased through its grid at the middle β, with each fit starting from the previous one, and the best κ is refined by a parabola
    in log κ. All β are then evaluated at this κ. All shapes are fixed, so that the search is compiled.

    Args:
      problems: input of the mixture from each half, with the same candidates.
      free: probabilities from `data_free` for the same candidates, `[b, V, C]`.
      n_parcels: number of parcels K.
      kappas, betas: grids of κ and β; a single value fixes the setting.

    Returns:
      The selected settings.
    """
    chex.assert_equal_shape([one.candidates for one in problems])
    chex.assert_shape(free, (None, *problems[0].candidates.shape))
    grid, across = jnp.asarray(kappas, jnp.float32), jnp.asarray(betas, jnp.float32)
    middle = across[min(MIDDLE, len(betas) - 1)]
    upwards = _upwards(problems, grid, middle, n_parcels)
    best = upwards.score.argmax()
    kappa = _parabola(jnp.log(grid), upwards.score, best) if len(kappas) > 2 else grid[best]
    chosen, tried = jax.tree.map(lambda leaf: leaf[best], upwards), [upwards]
    if len(betas) > 1:
        sideways = _across(problems, kappa, across, _from(problems, chosen.q), n_parcels)
        at = sideways.score.argmax()
        chosen, tried = jax.tree.map(lambda leaf: leaf[at], sideways), [upwards, sideways]
    frees = jax.lax.map(lambda q: _scored(problems, (q, q), n_parcels)[0], free)
    return Choice(
        kappa=kappa,
        beta=chosen.beta,
        temperature=chosen.temperature,
        score=chosen.score,
        free=frees.max(),
        free_beta=frees.argmax().astype(jnp.int32),
        edge=((best == 0) | (best == len(kappas) - 1)) & (len(kappas) > 1),
        kappas=jnp.concatenate([one.kappa for one in tried]),
        betas=jnp.concatenate([one.beta for one in tried]),
        scores=jnp.concatenate([one.score for one in tried]),
        temperatures=jnp.concatenate([one.temperature for one in tried]),
        halves=_fit(problems, kappa, chosen.beta, _from(problems, chosen.q)),
    )


class _Tried(NamedTuple):
    """Trial settings κ and β, with S, T and the probabilities of both halves; several trials have a leading axis."""

    kappa: Float[Array, ""]
    beta: Float[Array, ""]
    score: Float[Array, ""]
    temperature: Float[Array, ""]
    q: Float[Array, "2 V C"]


def _upwards(problems: tuple[Problem, Problem], kappas: Float[Array, " n"], beta: Array, n_parcels: int) -> _Tried:
    """Evaluate every κ at one β, with each fit starting from the previous one."""

    def step(start: tuple[Mixture, Mixture], kappa: Array) -> tuple[tuple[Mixture, Mixture], _Tried]:
        found = _fit(problems, kappa, beta, start)
        return found, _tried(problems, kappa, beta, found, n_parcels)

    begun = initial_mixture(problems[0], log_prior(problems[0])), initial_mixture(problems[1], log_prior(problems[1]))
    return jax.lax.scan(step, begun, kappas)[1]


def _across(
    problems: tuple[Problem, Problem], kappa: Array, betas: Float[Array, " n"], start: tuple[Mixture, Mixture], n_parcels: int
) -> _Tried:
    """Evaluate every β at one κ, from the same start."""
    return jax.lax.map(lambda beta: _tried(problems, kappa, beta, _fit(problems, kappa, beta, start), n_parcels), betas)


def _fit(problems: tuple[Problem, Problem], kappa: Array, beta: Array, start: tuple[Mixture, Mixture]) -> tuple[Mixture, Mixture]:
    first, second = (mixture(p, kappa, beta, steps=STEPS, start=s) for p, s in zip(problems, start, strict=True))
    return first, second


def _tried(problems: tuple[Problem, Problem], kappa: Array, beta: Array, found: tuple[Mixture, Mixture], n_parcels: int) -> _Tried:
    q = found[0].q, found[1].q
    return _Tried(kappa, beta, *_scored(problems, q, n_parcels), jnp.stack(q))


def _scored(problems: tuple[Problem, Problem], q: tuple[Array, Array], n_parcels: int) -> tuple[Array, Array]:
    """Return S and T of each half's probabilities on the other half, averaged over both directions."""
    candidates = problems[0].candidates
    rows = jnp.arange(0, len(candidates), SCORED, dtype=jnp.int32)
    found = [held_out(q[i], candidates, problems[1 - i].z, n_parcels, rows, problems[0].blocks) for i in (0, 1)]
    return (found[0].mean + found[1].mean) / 2, (found[0].temperature + found[1].temperature) / 2


def log_prior(problem: Problem) -> Float[Array, "V C"]:
    """Return log π, 0 in the padding."""
    return jnp.where(problem.candidates >= 0, problem.log_prior, 0.0)


def _from(problems: tuple[Problem, Problem], q: Float[Array, "2 V C"]) -> tuple[Mixture, Mixture]:
    """Return initial mixtures from stored probabilities."""
    first, second = (initial_mixture(problem, jnp.log(jnp.maximum(one, 1e-9))) for problem, one in zip(problems, q, strict=True))
    return first, second


def _parabola(x: Float[Array, " n"], y: Float[Array, " n"], best: Int[Array, ""]) -> Float[Array, ""]:
    """Return exp of the vertex of the parabola through the best point and its neighbours, clipped to the range of these."""
    at = jnp.clip(best, 1, len(x) - 2)
    (a, b, c), (p, q, r) = (v[at + jnp.arange(-1, 2)] for v in (x, y))
    left, right = (q - p) / (b - a), (r - q) / (c - b)
    bend = (right - left) / (c - a)
    peak = (a + b) / 2 - left / (2 * jnp.where(bend < 0, bend, -1.0))
    inside = jnp.where((bend < 0) & (best == at), jnp.clip(peak, a, c), x[best])
    return jnp.exp(inside)
