"""Sets of edges within and between modules, and modules by clustering; `parcellation.modules` names those of parcels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.cluster.hierarchy import fcluster, linkage

from pnet_jax.errors import SettingsError

Modules: TypeAlias = Mapping[str, str] | Sequence[str] | int | None


def clustered_modules(edges: Float[np.ndarray, " E"], count: int) -> tuple[str, ...]:
    """Cluster parcels into modules by Ward's method on the rows of a mean network, largest module first.

    If the mean includes all scans, regardless of class, the modules are the same for every permutation of the classes, so that tests of
    modules remain valid.

    Args:
      edges: Mean edges above the diagonal, row by row, `[E]`.
      count: Number of modules, at least 2 and below the number of parcels.

    Raises:
      SettingsError: If the number is out of range.
    """
    parcels = round((1 + np.sqrt(1 + 8 * len(edges))) / 2)
    if not 2 <= count < parcels:
        raise SettingsError(f"modules: expected a number from 2 to {parcels - 1} for {parcels} parcels, got {count}")
    mean = np.zeros((parcels, parcels))
    i, j = np.triu_indices(parcels, 1)
    mean[i, j] = mean[j, i] = edges
    np.fill_diagonal(mean, mean.max(1))  # the similarity of a parcel to itself is that to its most similar parcel
    member = fcluster(linkage(mean, "ward"), count, "maxclust") - 1
    order = np.argsort(-np.bincount(member), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return tuple(f"module {place[one] + 1}" for one in member)


def node_sets(nodes: int) -> Bool[np.ndarray, "E K"]:
    """Return the edges of each of K nodes, with edges row by row above the diagonal."""
    ends = np.stack(np.triu_indices(nodes, 1), 1)
    return (ends[:, :, None] == np.arange(nodes)).any(1)


def block_sets(modules: Sequence[str]) -> tuple[list[tuple[str, str]], Bool[np.ndarray, "E G"]]:
    """Return the pairs of modules that have edges, each with itself and with later ones, and the edges of each pair."""
    at = np.asarray(modules, str)
    first, second = (at[one] for one in np.triu_indices(len(at), 1))
    names = list(dict.fromkeys(name for name in modules if name))
    pairs, members = [], []
    for a, b in itertools.combinations_with_replacement(names, 2):
        inside = ((first == a) & (second == b)) | ((first == b) & (second == a))
        if inside.any():
            pairs.append((a, b))
            members.append(inside)
    return pairs, np.stack(members, 1) if members else np.zeros((len(first), 0), bool)
