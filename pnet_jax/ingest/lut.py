"""Look-up tables that map the ids of an atlas to names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.reading import check_file, reading
from pnet_jax.ingest.tables import NOT_TEXT, read_table, shortlist

IDS, NAMES = ("index", "id", "value"), ("name", "label", "region")
FREESURFER = re.compile(r"(\d+)\s+([^\s\d]\S*|\d\S*[^\s\d]\S*)(?:\s+-?\d+)*")  # an id, and a word that is not a number

NamesInput: TypeAlias = str | Path | dict[int, str] | Sequence[str] | None


def find_lut(atlas: Path) -> Path | None:
    """Find the look-up table beside an atlas: its stem with .tsv, .csv or _labels.txt, with or without `_dseg`, `_res-…`, `_space-…`."""
    stem = naming.split_name(atlas)[0]
    stems = [stem]
    for pattern in (r"_dseg$", r"_(res|den)-[^_]+", r"_?(space|tpl)-[^_]+"):
        stems += [re.sub(pattern, "", s) for s in stems]
    for s in dict.fromkeys(stems):
        for ending in (".tsv", ".csv", "_labels.txt", "_labels.tsv", "_labels.csv", "_dseg.tsv"):
            candidate = atlas.with_name(s.strip("_") + ending)
            if candidate.is_file():
                return candidate
    return None


def read_lut(path: Path) -> dict[int, str]:
    """Read the names of ids.

    The file is a table with the columns `index` and `name`, a Workbench file with two lines per label (name; id r g b a), or a FreeSurfer
    file with one line per label (id name r g b a).

    Raises:
      InputError: If the file has none of these formats, or an id occurs twice.
      FileNotFoundError: If the file does not exist.
    """
    check_file(path, f"label file {path}")
    pairs = _lines(path) if path.suffix.lower() == ".txt" else _columns(path)
    ids = [i for i, _ in pairs]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise InputError(f"label file {path}: these ids occur more than once: {shortlist([str(i) for i in twice])}")
    return dict(pairs)


def read_networks(path: Path, names: Sequence[str], ids: Sequence[int], column: str = "network") -> tuple[str, ...]:
    """Read the network of each parcel from the table of an atlas.

    Args:
      path: Table with the column `name` or `index` and the column named by `column`. Rows of other parcels are ignored.
      names: Names of the K parcels.
      ids: Ids of the K parcels in the atlas, used for matching if the table has no names.
      column: Name of the column with the network of each parcel.

    Returns:
      Network of each of the K parcels, empty for those without one.

    Raises:
      InputError: If the table lacks a column, describes none of the parcels, or assigns two networks to a parcel.
      FileNotFoundError: If the file does not exist.
    """
    where = f"table of networks {path}"
    check_file(path, where)
    table = read_table(path, where, dtype=str)
    lower = {str(c).lower(): c for c in table.columns}
    found = shortlist(list(map(str, table.columns)))
    if column.lower() not in lower:
        raise InputError(f"{where}: expected a column {column!r} with the network of each parcel, found {found}")
    by = next((lower[c] for c in (*NAMES, *IDS) if c in lower and c != column.lower()), None)
    if by is None:
        raise InputError(f"{where}: expected a column 'name' or 'index' with the parcels beside {column!r}, found {found}")
    keys = list(names) if str(by).lower() in NAMES else [str(one) for one in ids]
    network: dict[str, str] = {}
    for key, value in zip(table[by].astype(str).str.strip(), table[lower[column.lower()]].fillna("").astype(str).str.strip(), strict=True):
        if network.setdefault(key, value) != value:
            raise InputError(f"{where}: parcel {key!r} has two networks, {network[key]!r} and {value!r}: expected one")
    if not any(network.get(key) for key in keys):
        found = f"found {next(iter(network), '')!r} first"
        raise InputError(f"{where}: expected the {len(keys)} parcels of the cohort, such as {keys[0]!r}, in column {str(by)!r}, {found}")
    return tuple(network.get(key, "") for key in keys)


def _columns(path: Path) -> list[tuple[int, str]]:
    table = read_table(path, f"label file {path}")
    lower = {str(c).lower(): c for c in table.columns}
    id_column, name_column = (next((lower[c] for c in options if c in lower), None) for options in (IDS, NAMES))
    if id_column is None or name_column is None:
        raise InputError(f"label file {path}: expected the columns 'index' and 'name', found {shortlist(list(map(str, table.columns)))}")
    ids = pd.to_numeric(table[id_column], errors="coerce").to_numpy(float)
    if not np.isfinite(ids).all() or (ids % 1 != 0).any():
        found = shortlist([str(value) for value in table[id_column]], 5)
        raise InputError(f"label file {path}: column {id_column!r} must hold whole numbers, found {found}")
    return [(int(i), str(name).strip()) for i, name in zip(ids, table[name_column], strict=True)]


def _lines(path: Path) -> list[tuple[int, str]]:
    with reading(f"label file {path}: {NOT_TEXT}"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    one_line = [FREESURFER.fullmatch(line) for line in lines]
    if lines and all(one_line):
        return [(int(found[1]), found[2]) for found in one_line if found]
    expected = "expected Workbench's two lines a label: a name, then 'id red green blue alpha', or FreeSurfer's one: 'id name red green …'"
    if not lines or len(lines) % 2:
        raise InputError(f"label file {path}: {expected}; found {len(lines)} lines")
    pairs = []
    for name, numbers in zip(lines[::2], lines[1::2], strict=True):
        fields = numbers.split()
        if not all(re.fullmatch(r"-?\d+", field) for field in fields):
            raise InputError(f"label file {path}: {expected}; found {numbers!r} after {name!r}")
        pairs.append((int(fields[0]), name))
    return pairs
