"""Mixtures of the toy brain without an encoder, and what a function of one scan must do in a wave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.atlas import on_space
from pnet_jax.parcellation.mixture import Problem


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embedding(y: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Fingerprints: correlations with the sums of cubes of 32 mm, each without the location itself, `[V, D]`."""
    cube = np.unique(np.floor(xyz / 32), axis=0, return_inverse=True)[1].ravel()
    own = (cube[:, None] == np.flatnonzero(np.bincount(cube) > 4)).astype(float)  # [V, D]
    y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    frames, sums = y.shape[1], own.T @ y
    products = y @ sums.T
    energy = np.square(sums).sum(1) - 2 * own * products + own * frames
    f = np.arctanh(np.clip((products - own * frames) / np.sqrt(energy * frames), -0.99, 0.99))
    return unit(f - f.mean(0)).astype(np.float32)


def halves(toy: Any, y: np.ndarray) -> tuple[Problem, Problem]:
    """The mixture's input from both halves of the toy's signals, `[V, T]`."""
    local, k = on_space(toy.atlas, toy.space), toy.atlas.n_parcels
    table = np.asarray(match_table(local.candidates, toy.space.neighbours, n_parcels=k))

    def one(y: np.ndarray) -> Problem:
        z = embedding(y, toy.space.xyz)
        prototypes = unit(np.stack([z[local.labels == at].sum(0) for at in range(k)]))
        return Problem(z, local.candidates, local.log_prior, table, prototypes)

    middle = y.shape[1] // 2
    return one(y[:, :middle]), one(y[:, middle:])


def stack(parts: list) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *parts)


def check_wave(function: Callable, parts: list[tuple], tolerance: float = 1e-5) -> None:
    """In a wave, every one's result has the same bits at any place; alone it is the same up to rounding.

    Args:
      function: of one scan's arrays.
      parts: the arguments of three scans or more.
      tolerance: relative to the largest value; batched products are summed in another order than single ones.
    """
    wave = jax.jit(jax.vmap(function))
    order = np.roll(np.arange(len(parts)), 1)
    first = wave(*stack(parts))
    moved = wave(*stack([parts[at] for at in order]))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(moved), strict=True):
        assert_array_equal(np.asarray(a)[order], b)
    for at, arguments in enumerate(parts):
        for a, b in zip(jax.tree.leaves(jax.jit(function)(*arguments)), jax.tree.leaves(first), strict=True):
            if np.issubdtype(b.dtype, np.floating):
                assert_allclose(b[at], a, rtol=tolerance, atol=tolerance * max(1, np.nanmax(np.abs(a), initial=0)))
            else:
                assert_array_equal(b[at], a)
