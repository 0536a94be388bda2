"""Construction of many networks: the host loop that loads, constructs, saves and reports, and that one bad scan does not stop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import construct, resolve, resolve_people
from pnet_jax.edges.inverse import ledoit_wolf
from pnet_jax.encoder.model import Model
from pnet_jax.ingest import ScanSource, load_scan
from pnet_jax.outputs import (
    Atlas,
    append_status,
    atlas_label,
    check_atlas,
    check_status,
    check_writable,
    load_network,
    page_name,
    read_status,
    remove_result,
    save,
    save_edges,
)
from pnet_jax.parcellation.prior import Prior
from pnet_jax.people import People
from pnet_jax.personalization import find_personal
from pnet_jax.report import check_installed, write_index, write_report

Progress = Callable[[str, int, int], None]


def construct_cohort(
    sources: Sequence[ScanSource],
    folder: str | Path,
    config: ConstructConfig | None = None,
    *,
    load: dict[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Networks of many scans, written to a derivatives folder as they are made.

    A scan that fails is written down in `status.tsv` with its error, and the others go on. Where the recording itself is refused, what
    an earlier call wrote for it with the same atlas is removed, its page too. Cohort measures (tangent) follow once every scan is done.

    Args:
      sources: what to construct, from `find_scans`.
      folder: derivatives root.
      config: see `ConstructConfig`.
      load: further arguments of `load_scan`, the same for every scan (`tr`, `native_to_mni`, `atlas`, `surfaces`, `space`).
      resume: leave out scans that are complete and were made by the same configuration, checkpoint and prior.
      progress: called with the scan's label, how many are done and how many there are.

    Returns:
      The status row of each scan of this call, in order.

    Raises:
      ValueError: no scan, unknown measures, a prior or checkpoint that cannot be used, or another command's results in the folder.
      OSError: the folder cannot be written.
    """
    config = config or ConstructConfig()
    if not sources:
        raise ValueError("expected at least one scan, got none")
    if config.report:
        check_installed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, prior, names = resolve(config)
        people = resolve_people(config, prior)
    notes = [str(one.message) for one in caught if one.category is UserWarning]  # of the prior's file: they belong to every result
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if people is not None and people.guide is not None and len(people.guide.mean) > 1:
        config = dataclasses.replace(config, cleaning=dataclasses.replace(config.cleaning, wide=True))
    folder = check_writable(folder)
    check_status(folder / "status.tsv", "pnet construct")
    atlas = atlas_label(prior.source, prior.n_parcels)
    check_atlas(folder, Atlas(atlas, prior.source, prior.digest, prior.n_parcels))
    alone = tuple(name for name in names if name != "tangent")  # which needs the cohort, and follows at the end
    job = _job([_deciding(config), load, model.digest, prior.digest])
    done = {row["scan"]: row for row in read_status(folder / "status.tsv") if row.get("atlas") == atlas} if resume else {}
    rows: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        if progress is not None:
            progress(source.label, number, len(sources))
        earlier = done.get(source.label, {})
        if earlier.get("status") == "ok" and earlier.get("job") == job and (folder / earlier["dseg"]).exists():
            rows.append(dict(earlier))
            continue
        rows.append(_one(source, folder, config, model, prior, people, alone, load or {}, notes) | {"job": job})
        append_status(folder / "status.tsv", rows[-1:])
    if "tangent" in names and any(row not in done.values() for row in rows):
        _write_tangent(folder, rows)
    if config.report:
        write_index(folder)
    if progress is not None:
        progress("", len(sources), len(sources))
    return rows


def _one(
    source: ScanSource,
    folder: Path,
    config: ConstructConfig,
    model: Model,
    prior: Prior,
    people: People | None,
    names: Sequence[str],
    load: dict[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    start = time.perf_counter()
    atlas = atlas_label(prior.source, prior.n_parcels)
    row: dict[str, Any] = {"scan": source.label, "subject": source.subject, "atlas": atlas, "source": str(source.bold)}
    try:
        if source.problem:
            raise ValueError(source.problem)
        entities = {"sub": source.subject, **source.entities}
        scan = load_scan(source.bold, mask=source.mask, confounds=source.confounds, entities=entities, cleaning=config.cleaning, **load)
        loaded = time.perf_counter() - start
        personal = None
        if config.people is not None and config.dynamics:
            personal = find_personal(config.people, scan.label, scan.source, model, prior, config.personalize)
        network = construct(scan, prior=prior, model=model, edges=names, people=people, personal=personal, config=config)
        network.qc["warnings"] += notes
        network.qc["seconds"] = {"load": round(loaded, 3)} | network.qc["seconds"]
        before = time.perf_counter()
        files = save(network, folder, probabilities=config.probabilities)
        if config.report:
            write_report(network, folder / page_name(source.label, atlas))
        network.qc["seconds"]["save and report"] = round(time.perf_counter() - before, 3)
    except (ValueError, OSError, MemoryError, np.linalg.LinAlgError) as error:
        # A recording that is refused now must not leave an older result behind. Trouble of the machine (a file that is away, a full
        # disk, too little memory) says nothing about the recording, and what was made of it before stays.
        if isinstance(error, ValueError) and not source.problem:
            _forget(source, folder, prior.n_parcels, atlas)
        message = str(error) or type(error).__name__
        where = "" if source.label in message else f"{source.label} ({source.bold}): "
        return row | {"status": "failed", "error": " ".join(f"{where}{message}".split()), "seconds": round(time.perf_counter() - start, 2)}
    return row | {
        "status": "ok",
        "error": "",
        "seconds": round(time.perf_counter() - start, 2),
        "n_frames": network.qc["n_frames"],
        "minutes": round(network.qc["minutes"], 2),
        "n_absent": len(network.qc["absent"]),
        "used_prior": network.qc["selection"]["decision"] == "prior",
        "dseg": str(files[-1].relative_to(folder)),
        "qc_warnings": "; ".join(text for text in network.qc["warnings"] if text not in notes),
        "stages": json.dumps(network.qc["seconds"]),
    }


def _forget(source: ScanSource, folder: Path, n_parcels: int, atlas: str) -> None:
    """Removes what an earlier call made of a scan that has now failed; a disk that refuses must not hide why it failed."""
    with contextlib.suppress(OSError):
        (folder / page_name(source.label, atlas)).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        remove_result(folder, source.subject, source.entities, n_parcels, atlas)


def _write_tangent(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Tangent edges of the parcels that every subject has; what one of them lacks is NaN in all."""
    complete = [row for row in rows if row["status"] == "ok"]
    if len(complete) < 2:
        for row in rows:
            row["warnings"] = f"tangent edges need two scans or more of one call, got {len(complete)}; not written"
        append_status(folder / "status.tsv", rows)
        return
    # From disk, one at a time: scans of an earlier call count too, and a large cohort's locations need not be held.
    signals = [load_network(folder / row["dseg"]).signals for row in complete]
    shared = np.logical_and.reduce([np.isfinite(x).all(1) for x in signals])
    tangents, _ = measures.tangent(jnp.stack([ledoit_wolf(jnp.asarray(x[shared])) for x in signals]))
    for row, values in zip(complete, np.asarray(tangents), strict=True):
        network = load_network(folder / row["dseg"])
        matrix = np.full((network.n_parcels,) * 2, np.nan, np.float32)
        matrix[np.ix_(shared, shared)] = values
        save_edges(dataclasses.replace(network, edges={"tangent": matrix}), folder)
        row.pop("warnings", None)  # of an earlier call, in which it was alone
    append_status(folder / "status.tsv", complete)


def _deciding(config: ConstructConfig) -> dict[str, Any]:
    """What decides the numbers; a report more or less does not make a result out of date."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ("report", "probabilities")}


def _job(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, default=str, sort_keys=True).encode()).hexdigest()[:12]
