"""Random inputs of a given shape: signals, embeddings, and parcels with a realistic spatial layout."""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from pnet_jax.ops.shapes import Shape

_HEXAGON = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))


class Inputs:
    """Generator of random arrays of one floating-point type, reproducible by seed.

    Args:
      dtype: `"float32"` or `"bfloat16"`.
      seed: Seed of all random numbers.
    """

    def __init__(self, dtype: str = "float32", seed: int = 0):
        self.dtype = jnp.dtype(dtype)
        self._rng = np.random.default_rng(seed)

    def normal(self, *sizes: int) -> np.ndarray:
        """Draw standard normal values."""
        return self._rng.standard_normal(sizes, dtype=np.float32).astype(self.dtype)

    def unit(self, *sizes: int) -> np.ndarray:
        """Draw rows of unit length."""
        rows = self._rng.standard_normal(sizes, dtype=np.float32)
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(self.dtype)

    def shares(self, candidates: np.ndarray) -> np.ndarray:
        """Draw probabilities that sum to 1 over the candidates of each row, 0 in the padding."""
        rows = self._rng.random(candidates.shape, dtype=np.float32) * (candidates >= 0)
        return (rows / rows.sum(-1, keepdims=True)).astype(self.dtype)

    def signals(self, *sizes: int) -> np.ndarray:
        """Draw normal values over the last dimension with a signal common to all rows, so that correlations are about 0.3."""
        own = self._rng.standard_normal(sizes, dtype=np.float32)
        return (own + 0.65 * self._rng.standard_normal((*sizes[:-2], 1, sizes[-1]), dtype=np.float32)).astype(self.dtype)

    def covariances(self, subjects: int, parcels: int) -> np.ndarray:
        """Draw positive definite matrices with a uniform spread of variances around one common matrix, `[S, K, K]`."""
        shared = self._rng.standard_normal((parcels, 2 * parcels), dtype=np.float32)
        own = 0.5 * self._rng.standard_normal((subjects, parcels, 2 * parcels), dtype=np.float32)
        factors = shared[None] + own
        return (factors @ factors.swapaxes(1, 2) / (2 * parcels)).astype(self.dtype)

    def networks(self, subjects: int, parcels: int) -> np.ndarray:
        """Draw correlation matrices of signals with a few common sources, symmetric, `[S, K, K]`."""
        mixing = self._rng.standard_normal((1, parcels, 4), dtype=np.float32)
        signals = mixing @ self._rng.standard_normal((subjects, 4, 64), dtype=np.float32)
        signals += 1.5 * self._rng.standard_normal(signals.shape, dtype=np.float32)
        signals -= signals.mean(-1, keepdims=True)
        signals /= np.linalg.norm(signals, axis=-1, keepdims=True)
        r = signals @ signals.swapaxes(1, 2)
        return ((r + r.swapaxes(1, 2)) / 2).astype(self.dtype)


@functools.lru_cache(maxsize=4)
def positions(shape: Shape) -> np.ndarray:
    """Return the coordinates of V locations: a full box of voxels, or a planar sheet of vertices, `[V, 3]`."""
    sides = _sides(shape.V, 2 if shape.N == 6 else 3)
    at = np.stack(np.meshgrid(*(np.arange(n, dtype=np.int32) for n in sides), indexing="ij"), -1).reshape(shape.V, -1)
    return np.pad(at, ((0, 0), (0, 3 - at.shape[1])))


@functools.lru_cache(maxsize=4)
def neighbours(shape: Shape) -> np.ndarray:
    """Return adjacent locations, −1 padded, symmetric, `[V, N]`: 26 in a box, 6 on a sheet."""
    at = positions(shape)
    offsets = np.array(_HEXAGON if shape.N == 6 else [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])
    offsets = np.pad(offsets, ((0, 0), (0, 3 - offsets.shape[1])))
    if len(offsets) != shape.N:
        raise ValueError(f"shape {shape.name}: expected N = 26 (box) or 6 (sheet), got {shape.N}")
    sides = at.max(0) + 1
    table = np.empty((shape.V, shape.N), np.int32)
    for column, offset in enumerate(offsets):
        there = at + offset
        inside = ((there >= 0) & (there < sides)).all(1)
        table[:, column] = np.where(inside, (there[:, 0] * sides[1] + there[:, 1]) * sides[2] + there[:, 2], -1)
    return table


@functools.lru_cache(maxsize=4)
def candidates(shape: Shape, seed: int = 0) -> np.ndarray:
    """Return the C parcels with the nearest centres, ascending, `[V, C]`; a fifth of the rows have half as many, −1 padded."""
    rng, at = np.random.default_rng(seed), positions(shape).astype(np.float32)
    centres = at[rng.choice(shape.V, shape.K, replace=False)]
    out = np.empty((shape.V, shape.C), np.int32)
    for start in range(0, shape.V, 8192):
        rows = slice(start, start + 8192)
        distance = np.square(at[rows, None] - centres[None]).sum(-1)
        out[rows] = np.sort(np.argpartition(distance, shape.C - 1, axis=1)[:, : shape.C], axis=1)
    out[rng.random(shape.V) < 0.2, shape.C // 2 :] = -1
    return out


def _sides(size: int, dimensions: int) -> tuple[int, ...]:
    """Return the sides of a box of `size` cells, as equal as its divisors allow."""
    if dimensions == 1:
        return (size,)
    side = next(n for n in range(int(size ** (1 / dimensions) + 1e-9), 0, -1) if size % n == 0)
    return (side, *_sides(size // side, dimensions - 1))
