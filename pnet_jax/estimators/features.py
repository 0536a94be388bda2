"""Edges of networks as features; the tangent reference is fitted to the training networks only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pnet_jax import edges as measures
from pnet_jax.config import nearest
from pnet_jax.construction.wave import bucket
from pnet_jax.errors import SettingsError
from pnet_jax.network import Network
from pnet_jax.ops import partial as op

OF_GROUP, TANGENT = ("shrunk", "guided"), "tangent"


def edges_of_kind(kind: str) -> tuple[str, ...]:
    """Return the edge measures that a kind of features requires.

    Raises:
      SettingsError: If the kind does not exist, or its matrices are not symmetric.

    >>> edges_of_kind("guided")
    ('pearson',)
    """
    if kind in (*OF_GROUP, TANGENT):
        return ("pearson",)
    known = [name for name in measures.names() if measures.measure(name).function is not None and not measures.measure(name).directed]
    if kind not in known:
        kinds = sorted([*known, *OF_GROUP, TANGENT])
        raise SettingsError(f"kind: expected one of {', '.join(kinds)}, got {kind!r}{nearest(str(kind), kinds)}")
    return (kind,)


def matrices_of(networks: Iterable[Network], kind: str, mean: Float[np.ndarray, "K K"] | None) -> Float[np.ndarray, "S K K"]:
    """Return the edges of each network, `[S, K, K]`; NaN for absent parcels.

    Args:
      networks: S networks of the same parcels; each is read once and not kept.
      kind: Kind of features.
      mean: Tangent reference for the kind `tangent`, otherwise None.
    """
    if kind != TANGENT:
        return np.stack([network.edges[kind] for network in networks]).astype(np.float32)
    assert mean is not None
    return np.stack([_tangent(network, mean) for network in networks])


def tangent_reference(networks: Sequence[Network]) -> Float[np.ndarray, "K K"]:
    """Compute the geometric mean of the Ledoit-Wolf covariances, `[K, K]`; NaN for parcels that are absent in any network.

    Raises:
      SettingsError: If there are fewer than two networks, or fewer than two parcels present in all of them.
    """
    shared = np.all([_present(network) for network in networks], 0)
    if len(networks) < 2 or shared.sum() < 2:
        raise SettingsError(
            f"kind tangent: expected 2 training recordings or more with 2 parcels or more in common, found {len(networks)} with "
            f"{int(shared.sum())}"
        )
    _, mean = measures.tangent(jnp.stack([_covariance_of(network, shared) for network in networks]))
    return _spread(mean, shared)


def _tangent(network: Network, mean: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Return the tangent vector at the reference, for parcels present in both."""
    there = _present(network) & np.isfinite(np.diag(mean))
    if not there.any():
        return np.full(mean.shape, np.nan, np.float32)
    found, _ = measures.tangent(_covariance_of(network, there)[None], jnp.asarray(mean[np.ix_(there, there)]))
    return _spread(found[0], there)


def _present(network: Network) -> Bool[np.ndarray, " K"]:
    return np.isfinite(network.signals).all(1)


def _covariance_of(network: Network, parcels: Bool[np.ndarray, " K"]) -> Float[Array, "k k"]:
    """Compute a covariance; frames are padded as in construction, so that scans of different lengths share a compiled program."""
    signals = network.signals[parcels]
    frames = signals.shape[1]
    size = bucket(frames)
    return _covariance(np.pad(signals, ((0, 0), (0, size - frames))), np.arange(size) < frames)


@jax.jit
def _covariance(signals: Float[Array, "k T"], kept: Bool[Array, " T"]) -> Float[Array, "k k"]:
    return op.ledoit_wolf(signals[None], kept[None])[0]


def _spread(values: Float[Array, "k k"], parcels: Bool[np.ndarray, " K"]) -> Float[np.ndarray, "K K"]:
    out = np.full((len(parcels),) * 2, np.nan, np.float32)
    out[np.ix_(parcels, parcels)] = values
    return out
