"""What a run would do: scans, settings, memory and time, without writing anything."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pnet_jax.batch.earlier import failed_before, standing
from pnet_jax.batch.job import job_of
from pnet_jax.batch.run import Shard, bounds_for, checked_shard, describe_bounds, describe_share, resolved
from pnet_jax.bench.roofline import matmul_rate
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder
from pnet_jax.errors import InputError
from pnet_jax.execution import duration
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.memory import size_of
from pnet_jax.outputs.status import read_records

# Operations of the step per location, and per location and frame: fitted to the counts of `benchmarks/construct_step.py` for
# 28,144 locations with 120 frames (42.7 GFLOP) and 64,292 with 1,200 (337 GFLOP).
PER_LOCATION, PER_VALUE = 1.1e6, 3.5e3
REACHED = 0.2  # throughput of the step relative to large matrix products (same benchmark)
LOOKED_AT = 8  # scans whose headers are read
PRODUCTS = (1024,)  # size of the matrix product used to benchmark the device


class DryRun(NamedTuple):
    """Description of a run that was not executed.

    Attributes:
      lines: Text for the terminal.
      data: The same information as data.
    """

    lines: list[str]
    data: dict[str, Any]


def dry_run(
    sources: Sequence[ScanSource],
    folder: str | Path,
    config: ConstructConfig,
    *,
    load: dict[str, Any] | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    shard: Shard | tuple[int, int] | None = None,
) -> DryRun:
    """Describe what `construct_cohort` would do with the same arguments.

    Args:
      sources, folder, config, load, resume, retry_failed, shard: As for `construct_cohort`.

    Returns:
      Numbers of scans, settings, memory limits, and duration. The duration is based on the results in the folder; without any, it is
      estimated from the sizes of the first scans and the measured matrix-product throughput, to within a factor of about 2.

    Raises:
      SettingsError: As for `construct_cohort`.
    """
    plan, notes = resolved(config, load or {})
    job = job_of(Path(folder), config, plan, load or {}, notes)
    part, lines = checked_shard(shard), []
    if retry_failed:
        sources, _, said = failed_before(job, sources)
        lines.append(said)
    mine = list(sources) if part is None else [one for one in sources if part.has(one)]
    readable = [one for one in mine if not one.problem]
    if part is not None:
        lines.append(describe_share(part, mine, sources))
    lines.append(f"{len(mine)} scans of {len({one.subject for one in mine})} participants; results would be written to {folder}")
    lines += [f"cannot be read: {one.problem}" for one in mine if one.problem][:LOOKED_AT]
    if resume and Path(folder).is_dir():
        lines.append(standing(job, mine))
    lines.append(
        f"Atlas: {plan.atlas.source}, {plan.atlas.n_parcels} parcels. Model: {plan.model.name}. Edges: {', '.join(plan.edges) or 'none'}. "
        f"Labels: {config.labels}."
    )
    bounds = bounds_for(readable, job, Builder(plan))
    lines.append(describe_bounds(bounds, len(mine)))
    seconds, how = _seconds(readable, folder)
    if seconds is not None:
        total = seconds * len(readable)
        lines.append(f"about {seconds:.1f} s per scan, {duration(total)} in all ({how})")
    data = {
        "scans": len(mine),
        "unreadable": len(mine) - len(readable),
        "atlas": plan.atlas.source,
        "parcels": plan.atlas.n_parcels,
        "model": plan.model.name,
        "edges": list(plan.edges),
        "wave": bounds.wave,
        "processes": bounds.processes,
        "memory_bytes": bounds.scans * bounds.each,
        "seconds_per_scan": seconds,
    }
    return DryRun([*lines, "Nothing was written."], data)


def _seconds(sources: Sequence[ScanSource], folder: str | Path) -> tuple[float | None, str]:
    earlier = [record["seconds"] for record in read_records(folder) if record.get("seconds")] if Path(folder).is_dir() else []
    if earlier:
        return statistics.median(earlier), f"median of {len(earlier)} results in the folder"
    sizes = []
    for one in sources[:LOOKED_AT]:
        with contextlib.suppress(InputError, OSError):  # the run itself reports the error
            sizes.append(size_of(one))
    if not sizes:
        return None, ""
    operations = statistics.mean(one.locations * (PER_LOCATION + PER_VALUE * one.frames) for one in sizes)
    device = jax.devices()[0].device_kind
    return operations / (REACHED * matmul_rate("float32", PRODUCTS, 3)), f"estimated for {device}, without input and reports"
