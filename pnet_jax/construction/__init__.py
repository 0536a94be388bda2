"""Construction: settings → `resolve` → `step` over a `wave` of scans → `assemble` → Network. `construct` runs a wave of one scan."""

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
    """Construct a participant's individual parcellation and network.

    The model embeds the scan's locations, which are then softly clustered around the atlas's parcels; κ and β are chosen by the held-out
    predictive density between the halves of the scan. Each location is assigned to one parcel, parcel signals are averaged, and the edge
    measures are computed. If the personalised parcels do not predict the other half of the scan better than parcels that ignore its data,
    the atlas parcels are returned; `network.qc.selection` gives the reason and what would help.

    Args:
      scan: One recording.
      atlas: Starting atlas: an `Atlas`, or a dseg or dlabel file. Defaults to the model's atlas with `parcels` parcels.
      parcels: Number of parcels K. Defaults to 200 if no atlas is given.
      model: A `Model`, the name of a shipped model, or a checkpoint folder.
      edges: Edge measures. Defaults to `("pearson",)`.
      group: Group model learned from a cohort with the same atlas (`fit_group`), or its folder. It provides the spatial prior, the shrunk
          and guided Pearson edges, and the priors for `config.dynamics`.
      personal: Individual parameters of this recording (`load_personal`). If dynamics are requested and it is None, it is fine-tuned here.
      config: All other settings. The arguments above take precedence.

    Raises:
      ValueError: If scan and atlas do not overlap, an edge measure is unknown or requires a cohort, the atlas or model does not have K
          parcels, or dynamics are requested without a group model or with one for other parcels.
    """
    plan = resolve(config or ConstructConfig(), atlas=atlas, parcels=parcels, model=model, edges=edges, group=group)
    builder = Builder(plan)
    return build([builder.ready(scan)], builder, personal=[personal])[0]


def build(wave: Sequence[Ready], builder: Builder, *, personal: Sequence[Personal | None] | None = None) -> list[Network]:
    """Construct the networks of all scans in a wave.

    Args:
      wave: Scans of one shape.
      builder: Builder of the plan.
      personal: Individual parameters of each scan from fine-tuning, or None.
    """
    start = time.perf_counter()
    found = builder.run(wave)
    each = (time.perf_counter() - start) / len(wave)
    known: Sequence[Personal | None] = [None] * len(wave) if personal is None else personal
    return [finish(one, outputs, builder, own, each) for one, outputs, own in zip(wave, found, known, strict=True)]


def finish(one: Ready, outputs: Outputs, builder: Builder, personal: Personal | None = None, seconds: float = 0.0) -> Network:
    """Assemble a scan's network from the outputs of the step.

    Args:
      one: The scan.
      outputs: Outputs of the step.
      builder: Builder of the plan.
      personal: Individual parameters from fine-tuning, or None.
      seconds: Duration of the step in seconds, for the record.
    """
    begun = time.perf_counter()
    network = assemble(one.scan, one.placed, builder.plan, one.subject, outputs)
    if builder.plan.group is not None:
        from pnet_jax.construction.informed import inform  # imports optax, which only groups and dynamics need

        network = inform(network, one, outputs, builder, personal)
    stages = {"step": round(seconds, 3), "assemble": round(time.perf_counter() - begun, 3)}
    return dataclasses.replace(network, qc=dataclasses.replace(network.qc, seconds=stages))
