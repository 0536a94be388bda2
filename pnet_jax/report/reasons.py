"""Reasons why scans failed or atlas parcels were returned, grouped into a few kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

LONGEST = 240  # longest title of a kind, in characters
FILE = "…: "  # replaces a file name in front of a message
# Short forms of the reasons in `construction.qc` for returning the atlas, by a phrase that identifies each.
DECISIONS = (
    ("was requested: ", "The parcels of the atlas were requested"),
    ("degrees of freedom in the halves of the scan", "Too few degrees of freedom are left in the halves after cleaning"),
    ("to measure a gain", "The scan is too short to measure a gain"),
    ("the DCBC could not be measured", "The DCBC could not be measured across halves (too few neighbouring locations)"),
    ("is also found in noise", "The gain in DCBC is so small that it is also found in noise"),
    ("which does not exclude zero", "The gain over data-free parcels is not distinguishable from zero"),
)
_SCAN = re.compile(r"^sub-[\w+-]+(?: \([^)]*\))?: ")  # "sub-01_task-rest (path): " in front of a message
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*[/\\]\S*[^\s:;,.)]|\bsub-[\w+-]+|(?<![\w.])[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?")


class Kind(NamedTuple):
    """Scans whose texts differ only in files and numbers.

    Attributes:
      title: Common text, with `…` in place of the parts that differ.
      members: Index of each scan among the grouped texts.
    """

    title: str
    members: list[int]


def kinds(texts: Iterable[str]) -> list[Kind]:
    """Group texts that differ only in names, paths and numbers, the most frequent kind first.

    Example:
      >>> [(kind.title, kind.members) for kind in kinds(["sub-01 (a.nii): too short: 9 s", "sub-02 (b.nii): too short: 8 s", ""])]
      [('too short: … s', [0, 1]), ('no reason was recorded', [2])]
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for number, text in enumerate(texts):
        said = bare(text)
        found.setdefault(_VARIES.sub("…", said)[:LONGEST], []).append((number, said))
    groups = []
    for shared, members in found.items():
        same = {said for _, said in members}
        title = same.pop()[:LONGEST] if len(same) == 1 and not shared.startswith(FILE) else shared.removeprefix(FILE)
        groups.append(Kind(title, [number for number, _ in members]))
    return sorted(groups, key=lambda kind: -len(kind.members))


def bare(text: str) -> str:
    """Return a message without the scan label at its start."""
    return _SCAN.sub("", " ".join(text.split()), count=1) or "no reason was recorded"


def decision(reason: str) -> str:
    """Return the short form of a reason for returning the atlas; the reason itself if it is not in `DECISIONS`."""
    return next((short for phrase, short in DECISIONS if phrase in reason), reason)
