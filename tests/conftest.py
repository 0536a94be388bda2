"""Strict JAX for every test, eight fake CPU devices, a compile cache that lives with pytest's own, and a toy brain."""

from __future__ import annotations

import dataclasses
import gc
import os
import pathlib
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a run on an accelerator says so by this variable
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of the time goes into compiling programs that run once on small arrays. Less effort on machine code halves it; the
    # program it is made from, which tests of cost read, is the same. Processes that tests start inherit it. A user's own flags win.
    hurry = "--xla_backend_optimization_level=0"
    if version("jax").startswith("0.10."):  # later ones end the process at a flag that is gone
        hurry += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{hurry} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import numpy as np
import pytest

from pnet_jax.parcellation.atlas import Atlas, make_atlas
from pnet_jax.scan import Scan, make_scan
from pnet_jax.space import RIGHT, Space, grid_space

MOST_MAPPINGS = 20_000  # a third of what Linux lets a process have


def pytest_configure(config):
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_num_cpu_devices", 8)
    if hasattr(config, "cache"):  # absent under `-p no:cacheprovider`
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="module", autouse=True)
def executables_fit_in_the_process():
    """Free compiled programs after a module before they fill a process: Linux ends one at 65,530 mappings, and each program has several."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def float16() -> None:
    """Skip where XLA is told to make code for CPUs before AVX, which neither convert float16 nor run jaxlib at all."""
    try:
        jax.block_until_ready(jax.jit(lambda x: x.astype(np.float32))(np.zeros(8, np.float16)))
    except jax.errors.JaxRuntimeError as error:
        if "materialize symbols" not in str(error):
            raise
        pytest.skip("XLA has no conversion of float16 for this instruction set")


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
    """A small asymmetric brain on 8-mm voxels: six parcels a hemisphere where an atlas expects them, and a subject's own.

    Attributes:
      mask, affine: the voxels.
      space: their Space.
      expected: the atlas's parcel of each location, 0…11.
      truth: the subject's parcel; the borders lie up to 12 mm away from the expected ones.
      atlas: `expected` as an Atlas whose ids have gaps.
    """

    mask: np.ndarray
    affine: np.ndarray
    space: Space
    expected: np.ndarray
    truth: np.ndarray
    atlas: Atlas

    def signals(self, seed: int, frames: int = 160) -> np.ndarray:
        """Parcel signals on white noise and a global signal, at a level of 1000, `[V, T]`."""
        rng = np.random.default_rng(seed)
        y = rng.normal(size=(12, frames))[self.truth] + 1.2 * rng.normal(size=(len(self.space), frames)) + 0.3 * rng.normal(size=frames)
        return (1000 + 10 * y).astype(np.float32)

    def scan(self, seed: int = 0, *, frames: int = 160, subject: str = "01", **fields: object) -> Scan:
        return make_scan(self.signals(seed, frames), self.space, tr=2.0, subject=subject, entities={"task": "rest"}, **fields)

    def volume(self, seed: int = 0, frames: int = 160) -> np.ndarray:
        """The same recording as a 4-D image, 0 outside the brain."""
        out = np.zeros((*self.mask.shape, frames), np.float32)
        out[tuple(self.space.grid.ijk.T)] = self.signals(seed, frames)
        return out

    def labels_volume(self) -> np.ndarray:
        """The atlas as a 3-D image of ids."""
        out = np.zeros(self.mask.shape, np.int16)
        out[tuple(self.space.grid.ijk.T)] = self.atlas.ids[self.expected]
        return out


@pytest.fixture(scope="session")
def toy() -> Toy:
    shape = (16, 18, 14)
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = [-60, -68, -52]
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mask = (((ijk - [7.5, 8.5, 6.5]) / [7.2, 8.2, 6]) ** 2).sum(-1) < 1
    mask[11:, 13:, 9:] = False  # one corner is missing
    space = grid_space(mask, affine, name="MNI152NLin6Asym")
    centres = np.array([[26, y, z] for y in (-44, -4, 40) for z in (-20, 18)], float) + np.arange(6)[:, None] * [1, -2, 1]
    side = 6 * (space.hemisphere == RIGHT)
    folded = np.abs(space.xyz) * [1, 0, 0] + space.xyz * [0, 1, 1]

    def nearest(xyz):
        return (np.linalg.norm(xyz[:, None] - centres[None], axis=-1).argmin(1) + side).astype(np.int32)

    shift = np.stack([0 * folded[:, 0], 12 * np.cos(folded[:, 2] / 30), 12 * np.sin(folded[:, 1] / 25)], 1)
    expected = nearest(folded)
    names = [f"area-{k}" for k in range(12)]
    atlas = make_atlas(space.xyz, 3 * expected + 2, resolution=8, names=names, source="toy", space="MNI152NLin6Asym")
    return Toy(mask, affine, space, expected, nearest(folded + shift), atlas)


@pytest.fixture(scope="session")
def toy_model(toy):
    """An encoder from two other subjects' scans, with the toy's atlas."""
    from pnet_jax.config import PretrainConfig
    from pnet_jax.pretraining import pretrain

    config = PretrainConfig(name="toy", references=24, dimensions=10, reference_space="scans", parcels=())
    return dataclasses.replace(pretrain([toy.scan(100), toy.scan(101)], config), atlases={12: toy.atlas})


@pytest.fixture(scope="session")
def toy_builder(toy_model):
    """Construction with the defaults, on one device."""
    from pnet_jax import parallel
    from pnet_jax.config import ConstructConfig
    from pnet_jax.construction import Builder, resolve

    return Builder(resolve(ConstructConfig(), model=toy_model), parallel.make_mesh(devices=jax.devices()[:1]))
