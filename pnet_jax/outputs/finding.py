"""Which results a folder holds."""

from __future__ import annotations

import os
from pathlib import Path


def find_networks(folder: str | os.PathLike[str], atlas: str) -> dict[str, Path]:
    """The first complete result of each participant by name, for one atlas.

    Args:
      folder: root of the derivatives.
      atlas: label of the input atlas, from `atlas_label`.

    Returns:
      Subject label to its `…_dseg.tsv`.

    Raises:
      ValueError: there is none; names the atlases that there are.
    """
    found: dict[str, Path] = {}
    for file in find_results(folder, atlas):
        found.setdefault(file.name.partition("_")[0].removeprefix("sub-"), file)
    return found


def find_results(folder: str | os.PathLike[str], atlas: str | None = None) -> list[Path]:
    """Every complete result for one atlas, sorted by name: its `…_dseg.tsv`.

    Args:
      folder: root of the derivatives.
      atlas: label of the input atlas, from `atlas_label`; None where the folder holds results of one alone.

    Raises:
      ValueError: there is none, or none of the atlas, or results of several atlases and none was given; names those that there are.
    """
    files = [file for file in sorted(Path(folder).glob("sub-*/**/*_atlas-pnet_seg-*_dseg.tsv")) if "_desc-" not in file.name]
    labels = sorted({_seg(file) for file in files})
    if atlas is None and len(labels) > 1:
        raise ValueError(f"{folder}: holds networks of {len(labels)} atlases ({', '.join(labels)}): say which one, by its label")
    found = [file for file in files if atlas in (None, _seg(file))]
    if not found:
        expected = "networks" if atlas is None else f"networks of atlas {atlas}"
        said = f"networks of {', '.join(labels)} alone: give the atlas that they were constructed with" if labels else "none"
        raise ValueError(f"{folder}: expected {expected} that `pnet construct` wrote, found {said}")
    return found


def _seg(file: Path) -> str:
    return file.name.partition("_seg-")[2].partition("_")[0]
