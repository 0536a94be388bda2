"""Results that a folder holds."""

from __future__ import annotations

import os
from pathlib import Path


def find_networks(folder: str | os.PathLike[str], atlas: str) -> dict[str, Path]:
    """Return the first complete result, by name, of each participant for one atlas.

    Args:
      folder: root of the derivatives.
      atlas: label of the input atlas, from `atlas_label`.

    Returns:
      Subject label to its `…_dseg.tsv`.

    Raises:
      ValueError: there is none; names the atlases that were found.
    """
    found: dict[str, Path] = {}
    for file in find_results(folder, atlas):
        found.setdefault(file.name.partition("_")[0].removeprefix("sub-"), file)
    return found


def find_results(folder: str | os.PathLike[str], atlas: str | None = None) -> list[Path]:
    """List the `…_dseg.tsv` of every complete result for one atlas, sorted by name.

    Args:
      folder: root of the derivatives.
      atlas: label of the input atlas, from `atlas_label`; None if the folder holds results for one atlas only.

    Raises:
      ValueError: there are no results, none for this atlas, or results for several atlases and `atlas` is None; names those found.
    """
    files = [file for file in sorted(Path(folder).glob("sub-*/**/*_atlas-pnet_seg-*_dseg.tsv")) if "_desc-" not in file.name]
    labels = sorted({_seg(file) for file in files})
    if atlas is None and len(labels) > 1:
        raise ValueError(f"{folder}: holds networks for {len(labels)} atlases ({', '.join(labels)}): choose one by its label")
    found = [file for file in files if atlas in (None, _seg(file))]
    if not found:
        expected = "networks" if atlas is None else f"networks of atlas {atlas}"
        said = f"only networks of {', '.join(labels)}: give the atlas that they were constructed with" if labels else "none"
        raise ValueError(f"{folder}: expected {expected} that `pnet construct` wrote, found {said}")
    return found


def _seg(file: Path) -> str:
    return file.name.partition("_seg-")[2].partition("_")[0]
