"""Which devices exchange with which, read off a compiled program."""

from __future__ import annotations

import re

import numpy as np

_LISTED = re.compile(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}")
_BY_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")  # from XLA of jax 0.11 on


def replica_groups(text: str) -> set[tuple[tuple[int, ...], ...]]:
    """The different groupings of devices, each as its groups in order.

    >>> listed = "all-reduce(%x), replica_groups={{0,1},{2,3}}, use_global_device_ids=true"
    >>> by_axes = "all-reduce(%x), replica_groups=mesh['subject'=2,'location'=2] {'location'}, to_apply=%f"
    >>> replica_groups(listed) == replica_groups(by_axes) == {((0, 1), (2, 3))}
    True
    """
    found = {tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", groups)) for groups in _LISTED.findall(text)}
    for axes, over in _BY_AXES.findall(text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
        names = re.findall(r"'(\w+)'", over)
        devices = np.arange(np.prod(list(sizes.values()))).reshape(*sizes.values())
        first = [list(sizes).index(name) for name in sizes if name not in names]
        last = [list(sizes).index(name) for name in names]
        groups = devices.transpose(first + last).reshape(-1, int(np.prod([sizes[name] for name in names])))
        found.add(tuple(map(tuple, groups.tolist())))
    return found
