"""Resolution of settings into everything that a construction needs; all errors in them are raised here, before the first scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.construction.step import Settings
from pnet_jax.encoder.model import Model
from pnet_jax.errors import SettingsError
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.choose import BETAS, KAPPAS

if TYPE_CHECKING:
    from pnet_jax.group.fit import Group
    from pnet_jax.ingest.surfaces import SurfaceInput

OF_DYNAMICS = ("coupling", "effective")
OF_COHORT = ("tangent",)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A construction with its settings resolved.

    Attributes:
      model: Encoder and its shipped atlases.
      atlas: Starting atlas with K parcels.
      edges: Names of all edge measures.
      settings: Settings that are compiled into the step.
      kappas, betas: Grids of κ and β; a single value fixes the parameter.
      group: Group model, or None.
      config: All other settings.
    """

    model: Model
    atlas: Atlas
    edges: tuple[str, ...]
    settings: Settings
    kappas: tuple[float, ...]
    betas: tuple[float, ...]
    group: Group | None
    config: ConstructConfig


def resolve(
    config: ConstructConfig,
    *,
    atlas: Atlas | str | Path | None = None,
    parcels: int | None = None,
    model: Model | str | Path | None = None,
    edges: Sequence[str] | None = None,
    group: Group | str | Path | None = None,
    cohort: bool = False,
    surfaces: SurfaceInput = None,
) -> Plan:
    """Load the model, atlas, edge measures and group model named by a configuration or by the arguments, which take precedence.

    Args:
      config: Settings.
      atlas, parcels, model, edges, group: As for `construct`.
      cohort: Whether several scans are constructed, so that cohort measures are available.
      surfaces: Left and right GIFTI meshes of the scans, for an atlas file with vertices (`load_atlas`).

    Raises:
      SettingsError: If one of them does not exist, or if they are incompatible.
    """
    chosen = _model(model or config.checkpoint)
    names = tuple(edges if edges is not None else config.edges)
    for name in names:
        measures.measure(name)
        if name in OF_DYNAMICS and not config.dynamics:
            raise SettingsError(f'edge measure "{name}" requires fitted dynamics; add --dynamics')
        if name in OF_COHORT and not cohort:
            raise SettingsError(
                f'edge measure "{name}" requires several scans; use `construct_cohort` or `pnet construct` on several scans, or '
                "`pnet_jax.edges.tangent` on existing networks"
            )
    atlas = _atlas(atlas if atlas is not None else config.atlas, parcels or config.parcels, chosen, surfaces)
    if "effective" in names:
        from pnet_jax.finetune.person import refuse_directed  # imports optax, which only dynamics need

        refuse_directed(atlas)
    settings = Settings(
        n_parcels=atlas.n_parcels,
        labels=config.labels,
        edges=tuple(name for name in names if measures.measure(name).masked is not None),
    )
    used = dataclasses.replace(config, parcels=atlas.n_parcels, atlas=atlas.source, checkpoint=chosen.name, edges=names)
    kappas = KAPPAS if config.kappa is None else (float(config.kappa),)
    betas = BETAS if config.beta is None else (float(config.beta),)
    return Plan(chosen, atlas, names, settings, kappas, betas, _group(config, atlas, group), used)


def _group(config: ConstructConfig, atlas: Atlas, group: Group | str | Path | None) -> Group | None:
    """Return the group model of a construction, or None if there is none."""
    group = group if group is not None else config.group
    if group is None:
        if not config.dynamics:
            return None
        raise SettingsError(
            "dynamics require a group model of the same parcels; give the folder written by `pnet fit-group --dynamics` (--group)"
        )
    from pnet_jax.group.fit import Group  # imports optax, which only groups need

    source = ""
    if not isinstance(group, Group):
        from pnet_jax.checkpoint import load_group

        source, group = f" {group}", load_group(group)
    if group.atlas != atlas.digest:
        raise SettingsError(
            f"group{source} was fitted with another atlas: expected {atlas.digest} ({atlas.source}), found {group.atlas}; give "
            "the atlas with which it was fitted (--atlas)"
        )
    if config.dynamics and group.hierarchy is None:
        raise SettingsError(f"group{source} was fitted without dynamics; refit it with `pnet fit-group --dynamics`")
    return group


def _model(model: Model | str | Path) -> Model:
    if isinstance(model, Model):
        return model
    from pnet_jax.checkpoint import load_model

    return load_model(model)


def _atlas(atlas: Atlas | str | Path | None, parcels: int | None, model: Model, surfaces: SurfaceInput = None) -> Atlas:
    if atlas is None:
        parcels = parcels or (200 if 200 in model.atlases else min(model.atlases, default=200))
        if parcels not in model.atlases:
            raise SettingsError(
                f"checkpoint {model.name!r} has atlases with {sorted(model.atlases)} parcels, but {parcels} were requested; "
                "choose one of these, or give an atlas file (--atlas)"
            )
        return model.atlases[parcels]
    if not isinstance(atlas, Atlas):
        from pnet_jax.ingest import load_atlas

        atlas = load_atlas(atlas, surfaces=surfaces)
    if parcels is not None and parcels != atlas.n_parcels:
        more = "more than it has" if parcels > atlas.n_parcels else "fewer than it has"
        raise SettingsError(f"atlas {atlas.source} has {atlas.n_parcels} parcels but {parcels} were requested, {more}; omit --parcels")
    if atlas.n_parcels < 2:
        raise SettingsError(f"atlas {atlas.source}: expected at least 2 parcels, found 1; the file may be a brain mask")
    return atlas
