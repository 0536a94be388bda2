"""Search for the results in a folder."""

from __future__ import annotations

import os
from pathlib import Path


def find_networks(folder: str | os.PathLike[str], atlas: str) -> dict[str, list[Path]]:
    """Find each participant's first complete result, by name, for one atlas, and the first of another session with the same task.

    Args:
      folder: Root of the derivatives.
      atlas: Label of the input atlas, from `atlas_label`.

    Returns:
      One or two `…_dseg.tsv` by subject label.

    Raises:
      ValueError: If there is none; names the atlases that were found.
    """
    found: dict[str, list[Path]] = {}
    for file in find_results(folder, atlas):
        own = found.setdefault(_entity(file, "sub"), [])
        if not own or (len(own) == 1 and _is_other_session(file, own[0])):
            own.append(file)
    return found


def _is_other_session(file: Path, first: Path) -> bool:
    return _entity(file, "ses") != _entity(first, "ses") and _entity(file, "task") == _entity(first, "task")


def _entity(file: Path, name: str) -> str:
    return next((part.removeprefix(f"{name}-") for part in file.name.split("_") if part.startswith(f"{name}-")), "")


def find_results(folder: str | os.PathLike[str], atlas: str | None = None) -> list[Path]:
    """List the `…_dseg.tsv` of every complete result for one atlas, sorted by name.

    Args:
      folder: Root of the derivatives.
      atlas: Label of the input atlas, from `atlas_label`; None if the folder has results for one atlas only.

    Raises:
      ValueError: If there are no results, none for this atlas, or results for several atlases and `atlas` is None; names those found.
    """
    files = [file for file in sorted(Path(folder).glob("sub-*/**/*_atlas-pnet_seg-*_dseg.tsv")) if "_desc-" not in file.name]
    labels = sorted({_seg(file) for file in files})
    if atlas is None and len(labels) > 1:
        said = f"has networks for {len(labels)} atlases ({', '.join(labels)}); choose one with --atlas LABEL, e.g. --atlas {labels[0]}"
        raise ValueError(f"{folder}: {said}")
    found = [file for file in files if atlas in (None, _seg(file))]
    if not found:
        expected = "networks" if atlas is None else f"networks of atlas {atlas}"
        said = f"only networks of {', '.join(labels)}; give the atlas used to construct them" if labels else "none"
        raise ValueError(f"{folder}: expected {expected} written by `pnet construct`, found {said}")
    return found


def _seg(file: Path) -> str:
    return file.name.partition("_seg-")[2].partition("_")[0]
