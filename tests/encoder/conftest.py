"""Small neural encoders and batches for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnet_jax.config import PerceiverConfig
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.perceiver import PerceiverEncoder, init
from pnet_jax.encoder.tokens import Segments

R, D = 14, 5


@pytest.fixture(scope="session")
def reference_points() -> np.ndarray:
    return np.random.default_rng(7).uniform(-60, 60, (R, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def linear(reference_points) -> LinearEncoder:
    rng = np.random.default_rng(1)
    projection = np.linalg.qr(rng.normal(size=(R, D)))[0]
    weights = (reference_points, np.zeros(R), projection, np.ones(D), projection.T)
    return LinearEncoder(*(np.asarray(x, np.float32) for x in weights))


@pytest.fixture(scope="session")
def make_encoder(linear):
    """An encoder whose correction is not 0, unless `trained=False`."""

    def make(trained: bool = True, seed: int = 0, **sizes) -> PerceiverEncoder:
        sizes = {"width": 16, "latents": 6, "depth": 1, "heads": 2, "mlp": 2, "dtype": "float32"} | sizes
        encoder = init(linear, PerceiverConfig(dimensions=D, references=R, **sizes), jax.random.key(seed))
        if not trained:
            return encoder
        leaves, tree = jax.tree.flatten(encoder.params)
        rng = np.random.default_rng(seed + 10)
        moved = [x + jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
        return encoder._replace(params=jax.tree.unflatten(tree, moved))

    return make


@pytest.fixture(scope="session")
def make_segments(reference_points, float16):
    """Scans of locations that follow the sources of the nearest reference points."""

    def make(
        scans: int = 2, locations: int = 60, frames: int = 80, tr: float = 2.0, seed: int = 0, empty: int = 0, spread: float = 60.0
    ) -> Segments:
        rng = np.random.default_rng(seed)
        xyz = rng.uniform(-spread, spread, (scans, locations, 3)).astype(np.float32)
        away = np.linalg.norm(xyz[:, :, None] - reference_points[None, None], axis=-1)
        mixing = np.exp(-np.square(away / 30))
        sources = rng.normal(size=(scans, 2, R, frames + 3))
        sources = sum(sources[..., i : i + frames] for i in range(4))  # smooth in time
        y = np.einsum("bvr,bsrt->bsvt", mixing, sources) + 0.3 * rng.normal(size=(scans, 2, locations, frames))
        y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
        references = sources + 0.1 * rng.normal(size=sources.shape)
        references[:, :, :empty] = 0
        return Segments(
            y=y.astype(np.float16),
            kept=np.ones((scans, 2, frames), bool),
            frames=np.tile(np.arange(frames, dtype=np.int32), (scans, 2, 1)),
            references=references.astype(np.float32),
            xyz=xyz,
            hemisphere=(xyz[..., 0] > 0).astype(np.int32),
            counted=np.ones((scans, locations), bool),
            log_tsnr=rng.normal(size=(scans, 2, locations)).astype(np.float32),
            tr=np.full((scans, 2), tr, np.float32),
            record=np.arange(scans, dtype=np.int32),
        )

    return make
