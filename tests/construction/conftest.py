"""Scans of the toy brain that differ in everything a cohort differs in, and a construction that is compiled once for all of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pnet_jax import parallel
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.scan import Scan, make_scan
from pnet_jax.space import grid_space


def varied(toy, seed: int) -> Scan:
    """A recording of 130 to 192 frames, which share a bucket, some of them scrubbed, in a brain mask of its own."""
    rng = np.random.default_rng(seed)
    recorded = int(rng.integers(130, 193))
    kept = np.sort(rng.permutation(recorded)[: int(rng.integers(int(0.8 * recorded), recorded))])
    mask = toy.mask & (rng.random(toy.mask.shape) > rng.uniform(0, 0.2))
    space = grid_space(mask, toy.affine, name=toy.space.name)
    y = toy.volume(seed, recorded)[mask][:, kept]
    return make_scan(y, space, tr=2.0, frames=kept, recorded=recorded, subject=f"{seed:02d}")


@pytest.fixture(scope="session")
def one_device():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def short_grid(toy_model) -> Builder:
    """Construction that chooses among few settings, on one device."""
    plan = resolve(ConstructConfig(), model=toy_model)
    plan = dataclasses.replace(plan, kappas=(5.0, 10.0, 20.0), betas=(0.1, 0.2))
    return Builder(plan, parallel.make_mesh(devices=jax.devices()[:1]))
