"""Modules: which functional network each parcel belongs to, and the sets of edges within and between them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from pnet_jax.errors import SettingsError

SCHAEFER = re.compile(r"(?:\d+Networks_)?[LR]H_((?:Vis|SomMot|DorsAttn|SalVentAttn|Limbic|Cont|Default|TempPar)[A-Za-z]*)(?:_.*)?$")
TIAN = re.compile(r"(?:HIP|AMY|[ap]?THA|NAc|GP|PUT|CAU)-[lr]h$")


def modules_of(names: Sequence[str], given: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the module of each parcel, empty for parcels without one.

    Args:
      names: names of the K parcels.
      given: module of each parcel by name; by default the 7 or 17 networks in the names of Schaefer's parcels, and `Subcortex` for those
        of Tian's scale I.

    Raises:
      SettingsError: a parcel of `given` does not exist; names the first.

    >>> modules_of(["7Networks_LH_Vis_1", "17Networks_RH_DefaultA_IPL_2", "HIP-rh", "region 4"])
    ('Vis', 'DefaultA', 'Subcortex', '')
    """
    if given is None:
        return tuple(_by_name(name) for name in names)
    if unknown := [name for name in given if name not in names]:
        raise SettingsError(f"modules: {len(unknown)} names are not among the {len(names)} parcels, first {unknown[0]!r}")
    return tuple(given.get(name, "") for name in names)


def _by_name(name: str) -> str:
    if found := SCHAEFER.match(name):
        return found.group(1)
    return "Subcortex" if TIAN.match(name) else ""


def node_sets(nodes: int) -> Bool[np.ndarray, "E K"]:
    """Return which edges, row by row above the diagonal, each of K nodes has."""
    ends = np.stack(np.triu_indices(nodes, 1), 1)
    return (ends[:, :, None] == np.arange(nodes)).any(1)


def block_sets(modules: Sequence[str]) -> tuple[list[tuple[str, str]], Bool[np.ndarray, "E G"]]:
    """Return the pairs of modules that have edges, each with itself and with later ones, and which edges are of each pair."""
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
