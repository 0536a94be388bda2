"""Construction of many networks: the host loop that loads, constructs, saves and reports, and that one bad scan does not stop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, Ready, finish, resolve
from pnet_jax.construction.step import Outputs
from pnet_jax.edges.inverse import ledoit_wolf
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.finetune.person import Personal
from pnet_jax.ingest import ScanSource, load_scan
from pnet_jax.network import Network
from pnet_jax.outputs import (
    Atlas,
    append_status,
    atlas_label,
    check_atlas,
    check_status,
    check_writable,
    load_network,
    order_status,
    page_name,
    read_status,
    remove_result,
    save,
    save_edges,
)
from pnet_jax.personalization import find_personal
from pnet_jax.report import check_installed, write_index, write_report

Progress = Callable[[str, int, int], None]
ACCELERATOR_WAVE = 8  # scans that a device takes at a time where none is asked for
MOST_WAITING = 2  # waves' scans that wait for others of their shapes


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
      resume: leave out scans that are complete and were made by the same configuration, checkpoint, prior and group.
      progress: called with the scan's label, how many are done and how many there are.

    Returns:
      The status row of each scan of this call, in order.

    Raises:
      SettingsError: no scan, unknown measures, a prior or checkpoint that cannot be used, or another command's results in the folder.
      OSError: the folder cannot be written.
    """
    config = config or ConstructConfig()
    if not sources:
        raise SettingsError("expected at least one scan, got none")
    if config.report:
        check_installed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = resolve(config, cohort=True)
    notes = [str(one.message) for one in caught if one.category is UserWarning]  # of the atlas's file: they belong to every result
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if plan.group is not None and plan.group.guide is not None and len(plan.group.guide.mean) > 1:
        config = dataclasses.replace(config, cleaning=dataclasses.replace(config.cleaning, wide=True))
    folder = check_writable(folder)
    check_status(folder / "status.tsv", "pnet construct")
    atlas = Atlas(atlas_label(plan.atlas.source, plan.atlas.n_parcels), plan.atlas.source, plan.atlas.digest, plan.atlas.n_parcels)
    check_atlas(folder, atlas)
    group = "" if plan.group is None else plan.group.digest
    job = _job([_deciding(config), load, plan.model.digest, plan.atlas.digest, group])
    done = {row["scan"]: row for row in read_status(folder / "status.tsv") if row.get("atlas") == atlas.label} if resume else {}
    rows: dict[int, dict[str, Any]] = {}
    loop = _Loop(folder, config, Builder(plan), notes, atlas.label)
    waiting: dict[Hashable, list[_Waiting]] = {}

    def write(made: Sequence[tuple[int, dict[str, Any]]]) -> None:
        for number, row in made:
            rows[number] = row | {"job": job}
        append_status(folder / "status.tsv", [rows[number] for number, _ in made])

    for number, source in enumerate(sources):
        if progress is not None:
            progress(source.label, len(rows), len(sources))
        earlier = done.get(source.label, {})
        if earlier.get("status") == "ok" and earlier.get("job") == job and (folder / earlier["dseg"]).exists():
            rows[number] = dict(earlier)
            continue
        one = loop.load(number, source, load or {})
        if not isinstance(one, _Waiting):
            write([(number, one)])
            continue
        waiting.setdefault(one.ready.shape, []).append(one)
        fullest = max(waiting, key=lambda shape: len(waiting[shape]))
        # Scans in native space have a shape each: without a limit all of them would wait, and be held, until the end.
        if len(waiting[fullest]) == loop.wave or sum(map(len, waiting.values())) > MOST_WAITING * loop.wave:
            write(loop.take(waiting.pop(fullest)))
    while waiting:
        write(loop.take(waiting.pop(next(iter(waiting)))))
    ordered = [rows[number] for number in range(len(sources))]
    order_status(folder / "status.tsv", ordered)
    if "tangent" in plan.edges and any(row not in done.values() for row in ordered):
        _write_tangent(folder, ordered)
    if config.report:
        write_index(folder)
    if progress is not None:
        progress("", len(sources), len(sources))
    return ordered


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    """A scan that was read and waits for others of its shape."""

    number: int
    source: ScanSource
    row: dict[str, Any]
    ready: Ready
    personal: Personal | None
    notes: list[str]
    begun: float
    loaded: float


class _Loop:
    """What the loop over scans does with one of them, and with a wave."""

    def __init__(self, folder: Path, config: ConstructConfig, builder: Builder, notes: Sequence[str], atlas: str):
        self.folder, self.config, self.builder, self.notes, self.atlas = folder, config, builder, list(notes), atlas
        self.wave = config.wave or builder.mesh.shape["subject"] * (1 if jax.devices()[0].platform == "cpu" else ACCELERATOR_WAVE)
        self._compiled: set[Hashable] = set()  # shapes of which a whole wave went through

    def load(self, number: int, source: ScanSource, options: dict[str, Any]) -> _Waiting | dict[str, Any]:
        """A scan on its way to a wave, or the row that says why it failed."""
        begun = time.perf_counter()
        row: dict[str, Any] = {"scan": source.label, "subject": source.subject, "atlas": self.atlas, "source": str(source.bold)}
        try:
            if source.problem:
                raise InputError(source.problem)
            entities = {"sub": source.subject, **source.entities}
            cleaning = self.config.cleaning
            scan = load_scan(source.bold, mask=source.mask, confounds=source.confounds, entities=entities, cleaning=cleaning, **options)
            personal, notes = None, list(self.notes)
            if self.config.personal is not None and self.config.dynamics:
                plan = self.builder.plan
                personal, said = find_personal(self.config.personal, scan, plan, self.config.personalize)
                notes += said
            ready = self.builder.ready(scan)
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            return self.failed(row, source, error, begun)
        return _Waiting(number, source, row, ready, personal, notes, begun, time.perf_counter() - begun)

    def take(self, wave: Sequence[_Waiting]) -> list[tuple[int, dict[str, Any]]]:
        """Rows of a wave; where it fails as a whole, each of its scans is tried on its own.

        The last scans of a shape fill up a wave that was compiled before, rather than have one compiled for their number.
        """
        shape, start = wave[0].ready.shape, time.perf_counter()
        try:
            found = self.builder.run([one.ready for one in wave], self.wave if shape in self._compiled else 1)
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            self._compiled.discard(shape)
            if len(wave) == 1:
                return [(wave[0].number, self.failed(wave[0].row, wave[0].source, error, wave[0].begun))]
            return [row for one in wave for row in self.take([one])]
        if len(wave) == self.wave:
            self._compiled.add(shape)
        each = (time.perf_counter() - start) / len(wave)
        return [(one.number, self.made(one, outputs, each)) for one, outputs in zip(wave, found, strict=True)]

    def made(self, one: _Waiting, outputs: Outputs, seconds: float) -> dict[str, Any]:
        """The row of a scan that went through the step, its files written."""
        try:
            network = finish(one.ready, outputs, self.builder, one.personal, seconds)
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            return self.failed(one.row, one.source, error, one.begun)
        return self.write(one, network)

    def write(self, one: _Waiting, network: Network) -> dict[str, Any]:
        """Files of a network, and its row."""
        source, before = one.source, time.perf_counter()
        qc = network.qc.warn(*one.notes)
        network = dataclasses.replace(network, qc=dataclasses.replace(qc, seconds={"load": round(one.loaded, 3)} | qc.seconds))
        try:
            files = save(network, self.folder, probabilities=self.config.probabilities)
            if self.config.report:
                write_report(network, self.folder / page_name(source.label, self.atlas))
        except Exception as error:  # noqa: BLE001  whatever it is, the other scans go on
            return self.failed(one.row, source, error, one.begun)
        seconds = network.qc.seconds | {"save and report": round(time.perf_counter() - before, 3)}
        return one.row | {
            "status": "ok",
            "error": "",
            "seconds": round(sum(seconds.values()), 2),
            "n_frames": network.qc.n_frames,
            "minutes": round(network.qc.minutes or 0.0, 2),
            "n_absent": len(network.qc.absent),
            "parcels": network.qc.selection.decision,
            "dseg": str(files[-1].relative_to(self.folder)),
            "qc_warnings": "; ".join(text for text in network.qc.warnings if text not in self.notes),
            "stages": json.dumps(seconds),
        }

    def failed(self, row: dict[str, Any], source: ScanSource, error: Exception, begun: float) -> dict[str, Any]:
        """The row of a scan that failed.

        A recording that is refused now must not leave an older result behind. Everything else (a file that is away, a full disk, too
        little memory, a device that is lost, a fault of the program) says nothing about the recording: results of it stay.
        """
        if isinstance(error, InputError) and not source.problem:
            _forget(source, self.folder, self.builder.plan.atlas.n_parcels, self.atlas)
        # Errors of the program's own name the place; of others the type says more than the text.
        message = str(error) if isinstance(error, InputError | OSError) and str(error) else f"{type(error).__name__}: {error}"
        where = "" if source.label in message else f"{source.label} ({source.bold}): "
        seconds = round(time.perf_counter() - begun, 2)
        return row | {"status": "failed", "error": " ".join(f"{where}{message}".split()), "seconds": seconds}


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
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ("report", "probabilities", "wave", "parallel")}


def _job(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, default=str, sort_keys=True).encode()).hexdigest()[:12]
