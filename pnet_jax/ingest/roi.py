"""ROI series: tables with one row per frame and one column per region, and the locations of the regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.atlas import centroids, load_atlas
from pnet_jax.ingest.surfaces import SurfaceInput
from pnet_jax.ingest.tables import (
    DECIMAL_COMMA,
    drop_row_numbers,
    layout_of,
    numbers_of,
    read_npy,
    read_table,
    refuse_text,
    shortlist,
    wholly_text,
)
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.space import Space, point_space

AtlasInput: TypeAlias = str | Path | Atlas | np.ndarray | None


def read_roi_table(path: Path, where: str) -> tuple[Float[np.ndarray, "T V"], list[str] | None]:
    """Read ROI series and, if the file has them, the names of the regions.

    Args:
      path: .tsv, .csv, .1D or .txt file with or without a header, or .npy matrix.
      where: Name of the scan in messages.

    Returns:
      Series, `[T, V]`, and the names of the V regions or None.

    Raises:
      InputError: If the file is not a matrix of numbers, or columns hold NaN or infinite values.
      FileNotFoundError: If the file does not exist.
    """
    names = None
    if naming.split_name(path)[1] == ".npy":
        values = read_npy(path, where)
        if values.ndim != 2:
            raise InputError(f"{where}: expected a matrix of numbers, frames by regions, found shape {values.shape} of type {values.dtype}")
        values = values.astype(np.float64)
    else:
        table = drop_row_numbers(read_table(path, where))
        described = [c for c in wholly_text(table) if not DECIMAL_COMMA.fullmatch(str(table[c].dropna().iloc[0]).strip())]
        if described:
            refuse_text(table, described, f"{where}: no table of ROI series; a list of recordings needs a column 'bold'")
        values = numbers_of(table, where)
        if layout_of(path, where).named:
            names = [str(c) for c in table.columns]
    bad = (~np.isfinite(values)).sum(0)
    if bad.any():
        said = [
            f"{names[i] if names else f'column {i + 1}'} ({'all' if bad[i] == len(values) else bad[i]} of {len(values)} frames)"
            for i in np.flatnonzero(bad)
        ]
        raise InputError(
            f"{where}: {len(said)} of {values.shape[1]} columns hold NaN or infinite values: {shortlist(said)}. Leave these "
            "regions out of the table and of the atlas, or fill them"
        )
    return values, names


def locate(
    atlas: AtlasInput, names: list[str] | None, shape: tuple[int, ...], surfaces: SurfaceInput, where: str
) -> tuple[Space, list[str]]:
    """Return the Space of the regions of a table, in the order of its columns, and warnings.

    Regions are matched by name if the table and the atlas have the same set of names, otherwise by position.

    Args:
      atlas: dseg image or dlabel file, of which centroids are computed; table with the columns x, y, z and optionally name; centroids
        `[V, 3]` in MNI mm; or an Atlas.
      names: Names of the columns, or None.
      shape: Numbers of frames and regions of the table.
      surfaces: Left and right GIFTI meshes in MNI mm, for a dlabel atlas.
      where: Name of the scan in messages.

    Raises:
      InputError: If there is no atlas, the atlas has a different number of regions, or the table is transposed.
    """
    if atlas is None:
        raise InputError(
            f"{where}: a table of ROI series does not say where its regions are; pass atlas= (--roi-atlas): the dseg image the series were "
            "taken with, or a table with the columns x, y, z (MNI mm) and name"
        )
    xyz, atlas_names, ids, space, source = _centroids(atlas, surfaces, where)
    n_frames, n_columns = shape
    if len(xyz) != n_columns:
        if len(xyz) == n_frames:
            raise InputError(
                f"{where}: the table looks transposed: it has {n_frames} rows and {n_columns} columns, and the atlas {source} has "
                f"{len(xyz)} regions; expected a row a frame and a column a region"
            )
        one_more = "; check whether one column is a background, a global signal or a row number" if n_columns == len(xyz) + 1 else ""
        raise InputError(f"{where}: the table has {n_columns} columns (regions), the atlas {source} has {len(xyz)} regions{one_more}")
    order, notes = _match(len(xyz), names, atlas_names, ids, source)
    xyz = xyz[order]
    if names is None and atlas_names is not None:
        names = [atlas_names[i] for i in order]
    return point_space(xyz, names=names, name=space), notes


def _centroids(
    atlas: AtlasInput, surfaces: SurfaceInput, where: str
) -> tuple[Float[np.ndarray, "K 3"], list[str] | None, list[int] | None, str, str]:
    if isinstance(atlas, np.ndarray):
        if atlas.ndim != 2 or atlas.shape[1] != 3 or not np.isfinite(atlas).all():
            raise InputError(f"{where}: atlas centroids must be finite and have shape [regions, 3] in MNI mm, got {atlas.shape}")
        return atlas, None, None, "unknown", "(array)"
    if isinstance(atlas, str | Path) and naming.split_name(atlas)[1] in (".tsv", ".csv", ".txt"):
        xyz, names = _read_centroids(Path(atlas), where)
        return xyz, names, None, naming.entities_of(atlas).get("space", "unknown"), str(atlas)
    atlas = atlas if isinstance(atlas, Atlas) else load_atlas(atlas, surfaces=surfaces)  # type: ignore[arg-type]
    return centroids(atlas), list(atlas.names), atlas.ids.tolist(), atlas.space, atlas.source


def _read_centroids(path: Path, where: str) -> tuple[Float[np.ndarray, "K 3"], list[str] | None]:
    table = read_table(path, f"{where}: atlas {path}")
    lower = {str(c).lower(): c for c in table.columns}
    missing = [c for c in "xyz" if c not in lower]
    if missing:
        raise InputError(f"{where}: atlas {path}: expected columns x, y, z (MNI mm) and optionally name, found {shortlist(list(lower))}")
    xyz = table[[lower[c] for c in "xyz"]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(xyz).all(1))
    if len(bad):
        raise InputError(f"{where}: atlas {path}: x, y or z is not a number in rows {shortlist([str(i + 1) for i in bad])}")
    return xyz, [str(n) for n in table[lower["name"]]] if "name" in lower else None


def _match(
    n: int, names: Sequence[str] | None, atlas_names: Sequence[str] | None, ids: Sequence[int] | None, source: str
) -> tuple[list[int], list[str]]:
    """Return the index of the atlas region of each column, and warnings."""
    order = list(range(n))
    if names is None or atlas_names is None:
        return order, []
    for others in (atlas_names, [str(i) for i in ids] if ids is not None else None):
        if others is not None and len(set(names)) == len(names) and set(names) == set(others):
            position = {name: i for i, name in enumerate(others)}
            return [position[name] for name in names], []
    differ = [f"{a} / {b}" for a, b in zip(names, atlas_names, strict=True) if a != b]
    return order, [f"{len(differ)} of {n} column names are not those of the atlas {source} ({shortlist(differ, 3)}): matched by position"]
