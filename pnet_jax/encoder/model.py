"""Model: the contents of a checkpoint, and the embedding computed with it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.encoder import linear
from pnet_jax.encoder.adapter import Adapter, adapt
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.tokens import Observed, observe, reference_signals
from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.scan import Scan

if TYPE_CHECKING:
    from pnet_jax.encoder.perceiver import PerceiverEncoder

Encoder: TypeAlias = "LinearEncoder | PerceiverEncoder"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its atlases and model card.

    Attributes:
      name: name of the checkpoint.
      encoder: weights of a linear or neural encoder.
      atlases: group atlases by number of parcels.
      card: model card: training data, command, configuration and known limitations.
    """

    name: str
    encoder: Encoder
    atlases: dict[int, Atlas]
    card: dict[str, Any]

    def embed(self, scan: Scan) -> Float[np.ndarray, "V D"]:
        """Compute the embedding of every location of a scan, with rows of unit length, 0 for locations without a signal, `[V, D]`.

        The axes are specific to the scan: only angles within a scan are meaningful.
        """
        return np.asarray(embed(self.encoder, observe(scan, self.encoder.references)))

    @property
    def trained_on(self) -> frozenset[tuple[str, str]] | None:
        """Data set and subject label of every participant in the training data; None if the model card does not list them."""
        listed = self.card.get("participants")
        return None if listed is None else frozenset((row["dataset"], subject) for row in listed for subject in row["subjects"])

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights and atlases."""
        whole = hashlib.sha256()
        for array in jax.tree.leaves(self.encoder):  # dictionaries are traversed in order of their keys
            whole.update(np.ascontiguousarray(array, "<f4").tobytes())
        for key in sorted(self.atlases):
            whole.update(self.atlases[key].digest.encode())
        return whole.hexdigest()

    @property
    def digest(self) -> str:
        """The first 16 digits of `sha256`."""
        return self.sha256[:16]


def embed(encoder: Encoder, observed: Observed, adapter: Adapter | None = None) -> Float[Array, "V D"]:
    """Compute the embedding of every location of one recording; see `linear.embed` and `perceiver.embed_scan`.

    Args:
      encoder: weights of a linear or neural encoder.
      observed: the recording.
      adapter: individual adaptation of the components; default: none.

    Returns:
      Embeddings with rows of unit length, `[V, D]`.
    """
    if adapter is not None:
        return _adapted(adapter, components(encoder, observed))
    observed = Observed(*(jnp.asarray(x) for x in observed))
    if isinstance(encoder, LinearEncoder):
        return linear.embed(encoder, observed.y, observed.region, observed.kept, observed.counted)
    from pnet_jax.encoder.perceiver import embed_scan  # imported here because importing flax takes 0.25 s

    return embed_scan(encoder, observed)


@jax.jit
def _adapted(adapter: Adapter, x: Float[Array, "V D"]) -> Float[Array, "V D"]:
    x = adapt(adapter, x)
    return linear.whiten(x, linear.own_metric(x))


def components(encoder: Encoder, observed: Observed) -> Float[Array, "V D"]:
    """Compute the components of a recording's locations, on axes shared by all scans, `[V, D]`."""
    observed = Observed(*(jnp.asarray(x) for x in observed))
    if isinstance(encoder, LinearEncoder):
        return linear.project(encoder, observed.y, observed.region, observed.kept, observed.counted)
    from pnet_jax.encoder import perceiver

    return perceiver.components(encoder, observed)


def fingerprints(encoder: Encoder, observed: Observed) -> Float[Array, "V R"]:
    """Compute the fingerprints of a recording's locations, centred over locations, `[V, R]`."""
    y, kept, counted, region = (jnp.asarray(x) for x in (observed.y, observed.kept, observed.counted, observed.region))
    return _centred_fingerprints(y, kept, counted, region, jnp.asarray(encoder.references))


def decoder(encoder: Encoder) -> Float[Array, "D R"]:
    """Return the map from components to the expected centred fingerprints of another recording, `[D, R]`."""
    return jnp.asarray(encoder.decoder if isinstance(encoder, LinearEncoder) else encoder.params["heads"]["fingerprint"]["kernel"])


@jax.jit
def _centred_fingerprints(
    y: Float[Array, "V T"], kept: Bool[Array, " T"], counted: Bool[Array, " V"], region: Int[Array, " V"], references: Float[Array, "R 3"]
) -> Float[Array, "V R"]:
    y = jnp.where(counted[:, None], y, 0.0)
    seen = fingerprint(y, reference_signals(y, region, len(references)), kept=kept)
    return linear.centre(seen, counted.astype(y.dtype))
