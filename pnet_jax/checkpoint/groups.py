"""Group models on disk."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pnet_jax.checkpoint.arrays import METADATA, load_arrays, save_arrays
from pnet_jax.errors import SettingsError

if TYPE_CHECKING:
    from pnet_jax.group.fit import Group

GROUP = "group model"


def save_group(group: Group, folder: str | pathlib.Path) -> None:
    """Write a group model to a new folder.

    Raises:
      SettingsError, OSError: As for `save_arrays`.
    """
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"atlas": group.atlas, "subjects": list(group.subjects)}
    about |= {"pairs": group.pairs, "n_pairs": group.n_pairs, "motion": {name: _number(value) for name, value in group.motion.items()}}
    if group.spatial is not None:
        arrays["spatial"] = group.spatial._asdict()
        about["resolution"] = arrays["spatial"].pop("resolution")
    if group.shrinkage is not None and group.guide is not None:
        guide = group.guide
        arrays["shrinkage"] = group.shrinkage._asdict()
        arrays["guide"] = guide._asdict() | {"edges": guide.edges._asdict(), "pairs": guide.pairs._asdict()}
    if (h := group.hierarchy) is not None:
        arrays["dynamics"] = {"group": h.group._asdict(), "subgroups": h.subgroups, "variance": h.variance, "error": h.error}
    save_arrays(jax.tree.map(np.asarray, arrays), folder, kind=GROUP, metadata=about)


def load_group(folder: str | pathlib.Path) -> Group:
    """Read the group model in a folder written by `pnet fit-group`.

    Raises:
      SettingsError: If the folder does not exist or contains no group model, or one of its files was changed; names the file.
    """
    from pnet_jax.dynamics.fit import Hierarchy  # imports optax, which only group models need
    from pnet_jax.dynamics.linear_stochastic import Params
    from pnet_jax.edges.guided import Guide, ViewMoments
    from pnet_jax.edges.shrinkage import Shrinkage
    from pnet_jax.group.fit import Group
    from pnet_jax.parcellation.spatial import LearnedPrior

    folder = pathlib.Path(folder)
    if not (folder / METADATA).is_file():
        found = _listing(folder) if folder.is_dir() else "no such folder"
        raise SettingsError(f"group {folder}: expected a folder written by `pnet fit-group`, found {found}")
    arrays, about = load_arrays(folder, kind=GROUP)
    spatial, shrinkage, guide, hierarchy = None, None, None, None
    if "spatial" in arrays:
        spatial = LearnedPrior(**arrays["spatial"], resolution=about["resolution"])
    if "guide" in arrays:
        g = arrays["guide"]
        shrinkage = Shrinkage(**arrays["shrinkage"])
        guide = Guide(g["mean"], g["modes"], ViewMoments(**g["edges"]), ViewMoments(**g["pairs"]), g["weights"], g["scale"])
    if "dynamics" in arrays:
        d = arrays["dynamics"]
        hierarchy = Hierarchy(Params(**d["group"]), d["subgroups"], d["variance"], d["error"])
    motion = {name: float("nan") if value is None else value for name, value in about["motion"].items()}
    return Group(about["atlas"], tuple(about["subjects"]), spatial, shrinkage, guide, hierarchy, about["pairs"], about["n_pairs"], motion)


def _number(value: float) -> float | None:
    """Convert NaN to None, since JSON has no NaN."""
    return value if value == value else None


def _listing(folder: pathlib.Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}" or "an empty folder"
