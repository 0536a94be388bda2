"""Labels and names that are safe as parts of a path, whatever their source contains."""

from __future__ import annotations

import hashlib
import re

LONGEST_LABEL, LONGEST_NAME = 40, 180  # a file name has 255 bytes for all entities and the extension


def safe_label(value: object) -> str:
    """Convert a BIDS entity value to letters, digits and + only; a changed value ends with a digest of the original.

    Labels that differ only in characters that BIDS does not allow therefore have different files.

    >>> safe_label("01"), safe_label("../../evil")
    ('01', 'evilx0fbfd372')
    """
    return _kept(str(value), "[^a-zA-Z0-9+]", LONGEST_LABEL)


def safe_name(text: str) -> str:
    """Convert a text to a file name without extension, with letters, digits and `+_-` only; otherwise as `safe_label`.

    >>> safe_name("sub-01_task-rest_seg-geometric200")
    'sub-01_task-rest_seg-geometric200'
    """
    return _kept(text, "[^a-zA-Z0-9+_-]", LONGEST_NAME)


def _kept(text: str, forbidden: str, longest: int) -> str:
    kept = re.sub(forbidden, "", text)[:longest]
    return kept if kept == text else f"{kept}x{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
