"""Predicted changes in connectivity for interventions at each site, in a model of one run, over a grid of amplitudes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pnet_jax.dynamics.interventions import DecomposedDynamics, Kind, all_frequencies, decompose, intervene

NOISE, ARTEFACT = "noise", "local variance"
KINDS: tuple[str, ...] = (*get_args(Kind), NOISE, ARTEFACT)
AMPLITUDES = {
    "local": (-0.4, -0.2, -0.1, -0.03, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "coupling": (-1.0, -0.5, -0.2, -0.05, 0.05, 0.1, 0.2),
    "forcing": (0.03, 0.1, 0.2, 0.4, 0.8, 1.6),
    NOISE: (-0.9, -0.4, -0.1, 0.1, 0.4, 1.0, 3.0, 10.0),
    ARTEFACT: (-0.4, -0.1, 0.1, 0.4, 1.0, 4.0),
}
IDENTITY = 0.2  # share of the identity in the covariance
SLOW_HZ = 0.02  # frequency of the periodic input, relative to the slow rates implied by a correlation matrix
CLIP = 0.99


def predicted_changes(
    z: Float[np.ndarray, " E"], k: int, sites: Sequence[Sequence[int]], kind: str, amplitudes: Sequence[float] = ()
) -> Float[np.ndarray, "N A E"]:
    """Return the predicted changes in Fisher z, NaN where the model becomes unstable.

    J = −C⁻¹ / 2 with C = 0.8 R + 0.2 I, in units of the drive, since connectivity alone does not determine the time scale.

    Args:
      z: Fisher z of a run, `[E]`.
      k: Number of nodes.
      sites: Nodes of each of N sites.
      kind: One of `KINDS`; `"local variance"` changes only the variance of the nodes, without any dynamics.
      amplitudes: Grid of amplitudes; `AMPLITUDES` by default.
    """
    nodes = np.full((len(sites), max(map(len, sites))), -1)
    for number, site in enumerate(sites):
        nodes[number, : len(site)] = list(site)
    r = np.eye(k)
    r[np.triu_indices(k, 1)] = np.tanh(z)
    r = np.triu(r) + np.triu(r, 1).T
    values, vectors = np.linalg.eigh((1 - IDENTITY) * r + IDENTITY * np.eye(k))
    own = -(vectors * (0.5 / np.maximum(values, IDENTITY / 2))) @ vectors.T
    grid = jnp.asarray(amplitudes or AMPLITUDES[kind], jnp.float32)
    return np.asarray(_changes(jnp.asarray(own, jnp.float32), jnp.asarray(nodes), grid, kind), np.float64)


@functools.partial(jax.jit, static_argnums=3)
def _changes(own: Array, sites: Array, amplitudes: Array, kind: str) -> Array:
    quadrature = all_frequencies(SLOW_HZ)
    model = decompose(own, quadrature)
    before = _fisher(model.latent)

    def one(nodes: Array) -> Array:
        if kind in (NOISE, ARTEFACT):
            unit = _noise(model, nodes) if kind == NOISE else jnp.diag(_hit(nodes, len(own)))
            after = model.latent[None] + amplitudes[:, None, None] * unit[None]
        else:
            after = jax.vmap(lambda a: intervene(model, quadrature, nodes, kind, a))(amplitudes)  # type: ignore[arg-type]
        return jax.vmap(_fisher)(after) - before[None]

    return jax.lax.map(one, sites)


def _noise(model: DecomposedDynamics, nodes: Array) -> Array:
    """Covariance added by white noise at the nodes, from J X + X J + E Eᵀ = 0."""
    values, modes = jnp.linalg.eigh(model.jacobian)
    part = modes * _hit(nodes, len(values))[:, None]
    inner = jnp.matmul(part.T, part, precision="highest") / -(values[:, None] + values[None, :])
    return jnp.matmul(jnp.matmul(modes, inner, precision="highest"), modes.T, precision="highest")


def _hit(nodes: Array, size: int) -> Array:
    return (jnp.arange(size)[:, None] == nodes[None, :]).any(1).astype(jnp.float32)


def _fisher(covariance: Array) -> Array:
    """Fisher z above the diagonal, `[E]`."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(covariance), 1e-6))
    i, j = np.triu_indices(len(covariance), 1)
    return jnp.arctanh(jnp.clip((covariance * scale[:, None] * scale[None, :])[i, j], -CLIP, CLIP))
