"""The choice of κ, β and T on the halves of a scan, by the held-out log predictive density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.parcellation.held_out import held_out
from pnet_jax.parcellation.mixture import Mixture, Problem, begin, mixture

KAPPAS = (2.0, 5.0, 10.0, 20.0, 40.0)
BETAS = (0.1, 0.2, 0.4)
MIDDLE = 1  # place in BETAS that κ is searched at
STEPS = 2  # of a fit that begins where the one at the κ before ended
FREE_SHARPNESS = 4.0  # of the spatial prior without data; of 1, 2 and 4 it has the highest held-out density on noise and on the real scan
FREE_STEPS = 30  # to convergence: votes alone make parcels compact, which is to be no gain of the data
SCORED = 4  # while searching, every fourth location is scored


class Choice(NamedTuple):
    """Settings chosen on the halves, and the halves' parcels under them.

    Attributes:
      kappa: concentration, from a parabola through log κ.
      beta: weight of the neighbours.
      temperature: T of the best score; above 1 q is over-confident.
      score: S of the best pair, nats per location.
      free: S of the best data-free member (κ = 0).
      free_beta: its place in `free`.
      edge: the best κ is the smallest or the largest of the grid.
      kappas, betas: the trials, `[n]`.
      scores, temperatures: of each trial, `[n]`.
      halves: the mixtures of both halves at the chosen settings.
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
    """Parcels without data, κ = 0: votes and a sharp spatial prior alone, for each β; what parcels with data have to surpass."""
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
    """κ, β and T of the highest held-out score.

    κ goes upwards through its grid at the middle β, each fit from the one before; a parabola through log κ refines the best; the
    other β are tried there. Everything has a fixed shape: no trial depends on the host.

    Args:
      problems: the mixture's input from each half, on the same candidates.
      free: `data_free` of the same candidates.
      n_parcels: K.
      kappas, betas: the grids; one value each fixes it.
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
    """Settings that were tried: κ, β, S, T, and the probabilities of both halves; with one axis more in front, several."""

    kappa: Float[Array, ""]
    beta: Float[Array, ""]
    score: Float[Array, ""]
    temperature: Float[Array, ""]
    q: Float[Array, "2 V C"]


def _upwards(problems: tuple[Problem, Problem], kappas: Float[Array, " n"], beta: Array, n_parcels: int) -> _Tried:
    """Every κ at one β, each fit from the one before."""

    def step(start: tuple[Mixture, Mixture], kappa: Array) -> tuple[tuple[Mixture, Mixture], _Tried]:
        found = _fit(problems, kappa, beta, start)
        return found, _tried(problems, kappa, beta, found, n_parcels)

    begun = begin(problems[0], log_prior(problems[0])), begin(problems[1], log_prior(problems[1]))
    return jax.lax.scan(step, begun, kappas)[1]


def _across(
    problems: tuple[Problem, Problem], kappa: Array, betas: Float[Array, " n"], start: tuple[Mixture, Mixture], n_parcels: int
) -> _Tried:
    """Every β at one κ, from the same start."""
    return jax.lax.map(lambda beta: _tried(problems, kappa, beta, _fit(problems, kappa, beta, start), n_parcels), betas)


def _fit(problems: tuple[Problem, Problem], kappa: Array, beta: Array, start: tuple[Mixture, Mixture]) -> tuple[Mixture, Mixture]:
    first, second = (mixture(p, kappa, beta, steps=STEPS, start=s) for p, s in zip(problems, start, strict=True))
    return first, second


def _tried(problems: tuple[Problem, Problem], kappa: Array, beta: Array, found: tuple[Mixture, Mixture], n_parcels: int) -> _Tried:
    q = found[0].q, found[1].q
    return _Tried(kappa, beta, *_scored(problems, q, n_parcels), jnp.stack(q))


def _scored(problems: tuple[Problem, Problem], q: tuple[Array, Array], n_parcels: int) -> tuple[Array, Array]:
    """S and T of each half's probabilities on the other half, averaged."""
    candidates = problems[0].candidates
    rows = jnp.arange(0, len(candidates), SCORED, dtype=jnp.int32)
    found = [held_out(q[i], candidates, problems[1 - i].z, n_parcels, rows, problems[0].blocks) for i in (0, 1)]
    return (found[0].mean + found[1].mean) / 2, (found[0].temperature + found[1].temperature) / 2


def log_prior(problem: Problem) -> Float[Array, "V C"]:
    """log π, 0 in padding."""
    return jnp.where(problem.candidates >= 0, problem.log_prior, 0.0)


def _from(problems: tuple[Problem, Problem], q: Float[Array, "2 V C"]) -> tuple[Mixture, Mixture]:
    """Mixtures to go on from, of stored probabilities."""
    first, second = (begin(problem, jnp.log(jnp.maximum(one, 1e-9))) for problem, one in zip(problems, q, strict=True))
    return first, second


def _parabola(x: Float[Array, " n"], y: Float[Array, " n"], best: Int[Array, ""]) -> Float[Array, ""]:
    """exp of the peak of the parabola through the best point and those beside it, at most as far as these."""
    at = jnp.clip(best, 1, len(x) - 2)
    (a, b, c), (p, q, r) = (v[at + jnp.arange(-1, 2)] for v in (x, y))
    left, right = (q - p) / (b - a), (r - q) / (c - b)
    bend = (right - left) / (c - a)
    peak = (a + b) / 2 - left / (2 * jnp.where(bend < 0, bend, -1.0))
    inside = jnp.where((bend < 0) & (best == at), jnp.clip(peak, a, c), x[best])
    return jnp.exp(inside)
