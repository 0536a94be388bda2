"""Model: what a checkpoint holds, and the embedding it gives."""

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
    """An encoder with the atlases it was stored with.

    Attributes:
      name: of the checkpoint.
      encoder: weights, of a linear or a neural encoder.
      atlases: group atlases by number of parcels.
      card: what it was made from, by which command and configuration, and its known limits.
    """

    name: str
    encoder: Encoder
    atlases: dict[int, Atlas]
    card: dict[str, Any]

    def embed(self, scan: Scan) -> Float[np.ndarray, "V D"]:
        """Embedding of every location of a scan, rows of length 1, 0 where a location has no signal, `[V, D]`.

        Angles inside a scan mean something, angles between scans do not: the axes are the scan's own.
        """
        return np.asarray(embed(self.encoder, observe(scan, self.encoder.references)))

    @property
    def trained_on(self) -> frozenset[tuple[str, str]] | None:
        """Data set and subject label of every participant whose scans the weights were fitted to; None where the card has no list."""
        listed = self.card.get("participants")
        return None if listed is None else frozenset((row["dataset"], subject) for row in listed for subject in row["subjects"])

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights and atlases."""
        whole = hashlib.sha256()
        for array in jax.tree.leaves(self.encoder):  # dictionaries by name
            whole.update(np.ascontiguousarray(array, "<f4").tobytes())
        for key in sorted(self.atlases):
            whole.update(self.atlases[key].digest.encode())
        return whole.hexdigest()

    @property
    def digest(self) -> str:
        """The first 16 digits of `sha256`."""
        return self.sha256[:16]


def embed(encoder: Encoder, observed: Observed, adapter: Adapter | None = None) -> Float[Array, "V D"]:
    """Embedding of every location of one recording by either kind of encoder; see `linear.embed` and `perceiver.embed_scan`.

    Args:
      encoder: weights.
      observed: the recording.
      adapter: individual change of the components; none if not given.
    """
    if adapter is not None:
        return _adapted(adapter, components(encoder, observed))
    observed = Observed(*(jnp.asarray(x) for x in observed))
    if isinstance(encoder, LinearEncoder):
        return linear.embed(encoder, observed.y, observed.region, observed.kept, observed.counted)
    from pnet_jax.encoder.perceiver import embed_scan  # with flax, a quarter of a second that only it needs

    return embed_scan(encoder, observed)


@jax.jit
def _adapted(adapter: Adapter, x: Float[Array, "V D"]) -> Float[Array, "V D"]:
    x = adapt(adapter, x)
    return linear.whiten(x, linear.own_metric(x))


def components(encoder: Encoder, observed: Observed) -> Float[Array, "V D"]:
    """The components of a recording's locations, on axes that all scans share, `[V, D]`."""
    observed = Observed(*(jnp.asarray(x) for x in observed))
    if isinstance(encoder, LinearEncoder):
        return linear.project(encoder, observed.y, observed.region, observed.kept, observed.counted)
    from pnet_jax.encoder import perceiver

    return perceiver.components(encoder, observed)


def fingerprints(encoder: Encoder, observed: Observed) -> Float[Array, "V R"]:
    """A recording's fingerprints without their mean, `[V, R]`."""
    y, kept, counted, region = (jnp.asarray(x) for x in (observed.y, observed.kept, observed.counted, observed.region))
    return _centred_fingerprints(y, kept, counted, region, jnp.asarray(encoder.references))


def decoder(encoder: Encoder) -> Float[Array, "D R"]:
    """From components to the fingerprint, without its mean, that another recording is expected to have."""
    return jnp.asarray(encoder.decoder if isinstance(encoder, LinearEncoder) else encoder.params["heads"]["fingerprint"]["kernel"])


@jax.jit
def _centred_fingerprints(
    y: Float[Array, "V T"], kept: Bool[Array, " T"], counted: Bool[Array, " V"], region: Int[Array, " V"], references: Float[Array, "R 3"]
) -> Float[Array, "V R"]:
    y = jnp.where(counted[:, None], y, 0.0)
    seen = fingerprint(y, reference_signals(y, region, len(references)), kept=kept)
    return linear.centre(seen, counted.astype(y.dtype))
