"""Modules: the functional network of each parcel, and the sets of edges within and between them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.cluster.hierarchy import fcluster, linkage

from pnet_jax.errors import SettingsError

SCHAEFER = re.compile(r"(?:\d+Networks_)?[LR]H_((?:Vis|SomMot|DorsAttn|SalVentAttn|Limbic|Cont|Default|TempPar)[A-Za-z]*)(?:_.*)?$")
TIAN = re.compile(r"(?:HIP|AMY|[ap]?THA|NAc|GP|PUT|CAU)-[lr]h$")


Modules: TypeAlias = Mapping[str, str] | Sequence[str] | int | None


def modules_of(names: Sequence[str], given: Mapping[str, str] | Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the module of each parcel, or an empty string for parcels without one.

    Args:
      names: Names of the K parcels.
      given: Module of each parcel, by name or in the order of `names`; by default the 7 or 17 networks in the names of Schaefer parcels,
          and `Subcortex` for those of Tian's scale I.

    Raises:
      SettingsError: If a parcel of `given` does not exist (names the first), or there is not one module for each of the K parcels.

    >>> modules_of(["7Networks_LH_Vis_1", "17Networks_RH_DefaultA_IPL_2", "HIP-rh", "region 4"])
    ('Vis', 'DefaultA', 'Subcortex', '')
    """
    if given is None:
        return tuple(_by_name(name) for name in names)
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            raise SettingsError(f"modules: expected one for each of the {len(names)} parcels, found {len(given)}")
        return tuple(given)
    if unknown := [name for name in given if name not in names]:
        raise SettingsError(f"modules: {len(unknown)} names are not among the {len(names)} parcels, first {unknown[0]!r}")
    return tuple(given.get(name, "") for name in names)


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


def _by_name(name: str) -> str:
    if found := SCHAEFER.match(name):
        return found.group(1)
    return "Subcortex" if TIAN.match(name) else ""


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
