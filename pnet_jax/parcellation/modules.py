"""Modules: which functional network each parcel belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pnet_jax.errors import SettingsError

SCHAEFER = re.compile(r"(?:\d+Networks_)?[LR]H_((?:Vis|SomMot|DorsAttn|SalVentAttn|Limbic|Cont|Default|TempPar)[A-Za-z]*)(?:_.*)?$")
TIAN = re.compile(r"(?:HIP|AMY|[ap]?THA|NAc|GP|PUT|CAU)-[lr]h$")


def modules_of(names: Sequence[str], given: Mapping[str, str] | Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the module of each parcel, empty for parcels without one.

    Args:
      names: names of the K parcels.
      given: module of each parcel, by name or in the order of `names`; by default the 7 or 17 networks in the names of Schaefer's parcels,
        and `Subcortex` for those of Tian's scale I.

    Raises:
      SettingsError: a parcel of `given` does not exist (names the first), or there is not one module for each of the K parcels.

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


def _by_name(name: str) -> str:
    if found := SCHAEFER.match(name):
        return found.group(1)
    return "Subcortex" if TIAN.match(name) else ""
