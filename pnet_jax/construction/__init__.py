"""Construction: settings → `resolve` → `step` over `wave`s of scans → `assemble` → Network. `construct` is a wave of one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pnet_jax.config import ConstructConfig
from pnet_jax.construction.assemble import assemble
from pnet_jax.construction.resolve import resolve
from pnet_jax.construction.step import Outputs
from pnet_jax.construction.wave import Builder, Ready
from pnet_jax.encoder.model import Model
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.scan import Scan

if TYPE_CHECKING:
    from pnet_jax.finetune.person import Personal
    from pnet_jax.group.fit import Group

__all__ = ["Builder", "Ready", "build", "construct", "finish", "resolve"]


def construct(
    scan: Scan,
    *,
    atlas: Atlas | str | Path | None = None,
    parcels: int | None = None,
    model: Model | str | Path | None = None,
    edges: Sequence[str] | None = None,
    group: Group | str | Path | None = None,
    personal: Personal | None = None,
    config: ConstructConfig | None = None,
) -> Network:
    """A participant's personalised parcellation and network.

    The scan's locations are embedded by the model, softly clustered around the atlas's parcels with κ and β chosen by the held-out
    predictive density between the scan's halves, made hard, averaged into parcel signals and related by the edge measures. Where the
    scan cannot show that its own parcels predict more than parcels that see no data, the atlas is returned and
    `network.qc.selection` says why and what would help.

    Args:
      scan: one recording.
      atlas: atlas to start from: a `Atlas`, or a dseg/dlabel file; the model's own for `parcels` if not given.
      parcels: K; 200 if neither it nor an atlas is given.
      model: a `Model`, a shipped model's name or a checkpoint folder.
      edges: measures, `("pearson",)` if not given.
      group: what a cohort of the same atlas taught (`fit_group`), or a folder with it: the spatial prior, the shrunk and guided layers of
        Pearson's edges, and what `config.dynamics` begins with.
      personal: what `personalize` found for this recording (`load_personal`); with dynamics, it is fine-tuned here if not given.
      config: everything else; the arguments above win over it.

    Raises:
      ValueError: no overlap of scan and atlas, an unknown measure or one that needs a cohort, a K that atlas or model do not have,
        dynamics without a group or of another atlas's parcels.
    """
    plan = resolve(config or ConstructConfig(), atlas=atlas, parcels=parcels, model=model, edges=edges, group=group)
    builder = Builder(plan)
    return build([builder.ready(scan)], builder, personal=[personal])[0]


def build(wave: Sequence[Ready], builder: Builder, *, personal: Sequence[Personal | None] | None = None) -> list[Network]:
    """Networks of the scans of a wave.

    Args:
      wave: scans of one shape.
      builder: of the plan.
      personal: what fine-tuning found for each, or None.
    """
    start = time.perf_counter()
    found = builder.run(wave)
    each = (time.perf_counter() - start) / len(wave)
    known: Sequence[Personal | None] = [None] * len(wave) if personal is None else personal
    return [finish(one, outputs, builder, own, each) for one, outputs, own in zip(wave, found, known, strict=True)]


def finish(one: Ready, outputs: Outputs, builder: Builder, personal: Personal | None = None, seconds: float = 0.0) -> Network:
    """A scan's network from what the step found.

    Args:
      one: the scan.
      outputs: of the step.
      builder: of the plan.
      personal: what fine-tuning found for it, or None.
      seconds: that the step took, for the record.
    """
    begun = time.perf_counter()
    network = assemble(one.scan, one.placed, builder.plan, one.subject, outputs)
    if builder.plan.group is not None:
        from pnet_jax.construction.informed import inform  # with optax, which only groups and dynamics need

        network = inform(network, one, outputs, builder, personal)
    stages = {"step": round(seconds, 3), "assemble": round(time.perf_counter() - begun, 3)}
    return dataclasses.replace(network, qc=dataclasses.replace(network.qc, seconds=stages))
