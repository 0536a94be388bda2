"""Summary of the provenance of many results: shared entries and differing fields. Data only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

OF_ONE_SCAN = ("source", "seed", "device")  # entries that differ between scans
# Fields of `cleaning` that are measurements of one recording rather than settings.
MEASURED = ("cleaning.degrees_of_freedom", "cleaning.scrubbed")
MOST_VALUES = 5  # number of values listed per field, the most frequent first
LONGEST = 80  # maximum number of characters of a listed value
ABSENT = "not recorded"


def shared_provenance(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that are equal in all results and, under `differ`, each field that differs, with its values.

    For an entry with fields, such as `cleaning`, the equal fields are kept. Differing fields within an entry have dotted names. Their
    values are strings, each with the number of scans that have it, the most frequent first; values beyond the fifth are counted together.
    Scans that lack a field are counted as `"not recorded"`. Measurements of one recording, such as the degrees of freedom, are omitted.

    Args:
      each: provenance of every result.

    Returns:
      The shared entries, with the differing fields under `differ`.

    Example:
      >>> found = shared_provenance([{"cleaning": {"detrend": True, "low_pass": f}} for f in (0.1, 0.1, 0.08)])
      >>> found["cleaning"], found["differ"]
      ({'detrend': True}, {'cleaning.low_pass': {'0.1': 2, '0.08': 1}})
    """
    plain = [{key: value for key, value in one.items() if key not in OF_ONE_SCAN} for one in each]
    fields = [_fields(one) for one in plain]
    names = [name for name in dict.fromkeys(name for one in fields for name in one) if name not in MEASURED]
    values = {name: Counter(one.get(name, ABSENT) for one in fields) for name in names}
    return {**_alike(plain), "differ": {name: _listed(counts) for name, counts in values.items() if len(counts) > 1}}


def _alike(each: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, Any]:
    """Return the entries that are equal in all mappings, recursively."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in each for key in one if f"{prefix}{key}" not in MEASURED):
        values = [one.get(key) for one in each]
        if all(isinstance(value, Mapping) for value in values):
            found |= {key: inner} if (inner := _alike(values, f"{prefix}{key}.")) or not any(values) else {}  # type: ignore[arg-type]
        elif all(value == values[0] for value in values):
            found[key] = values[0]
    return found


def _fields(entry: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the values of nested mappings as strings, by dotted names."""
    found: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            found |= _fields(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _listed(counts: Counter[str]) -> dict[str, int]:
    common = counts.most_common()
    # Long values with the same first characters are counted together; the field is still correctly listed as differing.
    listed: Counter[str] = Counter()
    for value, n in common[:MOST_VALUES]:
        listed[value if len(value) <= LONGEST else f"{value[:LONGEST]}…"] += n
    if rest := common[MOST_VALUES:]:
        listed[f"{len(rest)} other values"] += sum(n for _, n in rest)
    return dict(listed)
