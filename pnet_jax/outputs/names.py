"""Labels and names that are safe as parts of a path, whatever a table of participants holds."""

from __future__ import annotations

import hashlib
import re

LONGEST_LABEL, LONGEST_NAME = 40, 180  # a file name has 255 bytes for all of its entities and its ending


def safe_label(value: object) -> str:
    """Value of a BIDS entity, letters, digits and + only; what had to be changed carries a digest of the original.

    Two labels that differ only in what BIDS does not allow do not share a file.

    >>> safe_label("01"), safe_label("../../evil")
    ('01', 'evilx0fbfd372')
    """
    return _kept(str(value), "[^a-zA-Z0-9+]", LONGEST_LABEL)


def safe_name(text: str) -> str:
    """Name of a file without its ending, letters, digits and `+_-` only, else as `safe_label`.

    >>> safe_name("sub-01_task-rest_seg-geometric200")
    'sub-01_task-rest_seg-geometric200'
    """
    return _kept(text, "[^a-zA-Z0-9+_-]", LONGEST_NAME)


def _kept(text: str, forbidden: str, longest: int) -> str:
    kept = re.sub(forbidden, "", text)[:longest]
    return kept if kept == text else f"{kept}x{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
