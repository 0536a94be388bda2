"""Personalisation: individual parameters for every recording in a store, fitted in waves."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pnet_jax import parallel
from pnet_jax.checkpoint import load_arrays, load_metadata, save_arrays
from pnet_jax.config import ConstructConfig, PersonalizeConfig
from pnet_jax.construction import Builder, resolve
from pnet_jax.construction.informed import tunable
from pnet_jax.construction.resolve import Plan
from pnet_jax.dynamics.fit import DynamicsPrior
from pnet_jax.dynamics.linear_stochastic import Params
from pnet_jax.dynamics.spectra import TooShortError
from pnet_jax.encoder.adapter import Adapter
from pnet_jax.encoder.model import Model
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.finetune import FinetuneSubject, IndividualParameters, Tuned, fine_tune, shape_of, stacked
from pnet_jax.finetune.person import Personal, Verdict, dynamics_prior, judge
from pnet_jax.group.fit import Group
from pnet_jax.outputs import check_writable, read_record, read_records, write_record, write_table
from pnet_jax.outputs.lock import only_here
from pnet_jax.outputs.status import check_command, record_file
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.spatial import AtlasOnSpace
from pnet_jax.records import Store, read_scan
from pnet_jax.scan import Scan

COMMAND = "pnet personalize"
WAVES, KIND = "adapters", "adapters"
FINE_TUNED = "fine-tuned"
SHARE_OF_MEMORY = 0.5  # largest share of an accelerator's memory for a wave
CPU_WAVE_BYTES = 2**29  # on CPUs, where a wave is not faster than its recordings one by one
MOST_WAITING = 2  # number of waves' worth of recordings that may wait for others of the same shape
_COPIES = 4  # copies of a subject's arrays held by its gradient computation

Progress = Callable[[str, int, int], None]


def personalize(
    store: Store,
    folder: str | Path,
    config: PersonalizeConfig | None = None,
    *,
    model: Model,
    atlas: Atlas,
    group: Group,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Fine-tune model, parcels and dynamics on every recording of a store.

    Recordings pass through one compiled step in waves that are distributed over the devices. If one fails, its error is recorded and the
    others continue. Up-to-date recordings are skipped; damaged parameters are fitted again, with a warning.

    Memory is that of constructing one network plus the recordings of one wave, independent of the size of the store.

    Args:
      store: Store written by `pnet prepare`.
      folder: Output folder, for `adapters/` (one folder per wave, with arrays whose first axis is the subject) and `status.tsv`.
      config: Settings; see `PersonalizeConfig`.
      model: Encoder to adapt.
      atlas: Starting parcels.
      group: Group model of the same parcels, with dynamics.
      mesh: Device mesh over which a wave is distributed, along "subject"; all devices by default.
      progress: Called with the key of a recording, the number of completed recordings, and the total.
      say: Called with the size of the waves before they start.

    Returns:
      Status row of each recording.

    Raises:
      SettingsError: If the group model has other parcels or no dynamics, or the folder contains results of other settings or commands.
      OSError: If the folder cannot be written.
    """
    config = config or PersonalizeConfig()
    folder = check_writable(folder)
    check_command(folder, COMMAND)
    with only_here(folder, COMMAND):
        plan = resolve(ConstructConfig(dynamics=True), atlas=atlas, model=model, group=group)
        builder = Builder(plan)
        hierarchy = plan.group.hierarchy if plan.group is not None else None
        assert hierarchy is not None
        own_prior = dynamics_prior(hierarchy, atlas, config)
        settings = _settings(plan, config)
        done = _done(folder, settings)
        rows, left = [done[r.key] for r in store.records if r.key in done], [i for i, r in enumerate(store.records) if r.key not in done]
        mesh = parallel.make_mesh() if mesh is None else mesh
        step = parallel.over_subjects(lambda same, subject: fine_tune(same, subject, config), mesh, shared=1)
        number = 1 + max((int(path.name.removeprefix("wave-")) for path in (folder / WAVES).glob("wave-*")), default=-1)
        for size, wave in _waves(store, left, builder, config, mesh.shape["subject"], rows, folder, progress, say):
            name, told = f"wave-{number:05d}", _counting(progress, len(rows), len(store))
            rows += _take(wave, size, own_prior, model, step, config, folder / WAVES / name, settings, told)
            _note(folder, rows[-len(wave) :])
            wave.clear()  # frees memory before the next recordings are read
            number += 1
        write_table(folder)
        if progress is not None:
            progress("", len(store), len(store))
    return rows


def _note(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        write_record(folder, row, {}, COMMAND)


def _read(store: Store, number: int) -> Scan:
    """Read a recording from a store that may contain damaged ones.

    Raises:
      InputError, OSError: If the recording is damaged or missing; names the file.
    """
    if said := store.damaged.get(store.records[number].key):
        raise InputError(said)
    return read_scan(store, number)


# waves


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    """A recording that waits for others of its shape; only those of its signals that are still needed."""

    row: dict[str, Any]
    scan: Scan
    placed: AtlasOnSpace
    subject: FinetuneSubject
    personalised: bool


def _waves(
    store: Store,
    numbers: Sequence[int],
    builder: Builder,
    config: PersonalizeConfig,
    devices: int,
    rows: list[dict[str, Any]],
    folder: Path,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Iterator[tuple[int, list[_Waiting]]]:
    """Group recordings of one shape into waves as large as possible; recordings that cannot be used become rows at once.

    At most `MOST_WAITING` waves' worth of recordings wait at a time; with many shapes, the fullest wave starts early.
    """
    waiting: dict[Any, list[_Waiting]] = {}
    sizes: dict[Any, int] = {}
    for number in numbers:
        record = store.records[number]
        if progress is not None:
            progress(record.key, len(rows), len(store))
        row = {"scan": record.key, "subject": record.subject, "source": record.source}
        try:
            one = _ready(_read(store, number), row, builder, config)
        except Exception as error:  # noqa: BLE001  whatever the error, the others continue
            said = str(error) if isinstance(error, InputError | TooShortError | OSError) else f"{type(error).__name__}: {error}"
            rows.append(row | {"status": "failed", "error": " ".join((said or type(error).__name__).split())})
            _note(folder, rows[-1:])
            continue
        shape = shape_of(one.subject)
        if shape not in sizes:
            sizes[shape] = wave_size(one.subject, devices, min(config.wave, len(numbers)))
            say(f"waves of {sizes[shape]}: {memory_of(one.subject) / 2**20:.0f} MB per recording of {len(one.subject.x)} locations")
        waiting.setdefault(shape, []).append(one)
        del one  # a finished wave must not be kept in memory here
        fullest = max(waiting, key=lambda name: len(waiting[name]))
        if len(waiting[shape]) == sizes[shape]:
            yield sizes[shape], waiting.pop(shape)
        elif sum(map(len, waiting.values())) > MOST_WAITING * sizes[fullest]:
            yield sizes[fullest], waiting.pop(fullest)
    yield from ((sizes[shape], wave) for shape, wave in waiting.items())


def _ready(scan: Scan, row: dict[str, Any], builder: Builder, config: PersonalizeConfig) -> _Waiting:
    """Prepare a recording for a wave, and add the digest of its signals to its row."""
    row["signals"] = signals_digest(scan)
    ready = builder.ready(scan)
    start, subject = tunable(ready, builder, config)
    return _Waiting(row, dataclasses.replace(scan, halves=None, wide=None), ready.placed, subject, bool(start.personalised))


def memory_of(subject: FinetuneSubject) -> int:
    """Estimate the memory for fine-tuning one recording, in bytes."""
    return _COPIES * sum(leaf.nbytes for leaf in jax.tree.leaves(subject))


def wave_size(subject: FinetuneSubject, devices: int, most: int) -> int:
    """Compute the size of a wave: as many recordings as fit into its memory, a multiple of the devices, at most `most`."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    room = SHARE_OF_MEMORY * limit if limit else CPU_WAVE_BYTES / devices
    fit = max(1, int(room // memory_of(subject)))
    return devices * max(1, min(fit, most // devices))


def _take(
    wave: list[_Waiting],
    size: int,
    prior: DynamicsPrior,
    model: Model,
    step: Callable[..., Tuned],
    config: PersonalizeConfig,
    folder: Path,
    settings: dict[str, Any],
    told: Callable[[str, int], None],
) -> list[dict[str, Any]]:
    """Fine-tune one wave, write its parameters to a folder, and return its rows."""
    told(f"{folder.name}, {len(wave)} recordings", 0)
    full = wave + [wave[-1]] * (size - len(wave))  # one compiled step for all waves, including the last
    found: Tuned = jax.tree.map(np.asarray, step(prior, stacked([one.subject for one in full])))
    rows, verdicts = [], dict[str, Any]()
    for at, one in enumerate(wave):
        tuned: Tuned = jax.tree.map(lambda leaf, at=at: leaf[at], found)
        told(one.row["scan"], at)
        if not tuned.ok:
            rows.append(one.row | {"status": "failed", "error": f"{one.row['scan']}: fine-tuning diverged; its parameters are discarded"})
            continue
        verdict = judge(one.scan, one.placed, model, one.subject, prior, tuned, config)
        verdict = verdict._replace(kept=verdict.kept and one.personalised)
        finite = {name: value if value == value else None for name, value in verdict._asdict().items()}  # JSON has no NaN
        verdicts[one.row["scan"]] = {"signals": one.row["signals"], "round": int(tuned.round), **finite}
        rows.append(
            one.row
            | {
                "status": "ok",
                "error": "",
                "wave": folder.name,
                "place": at,
                "round": int(tuned.round),
                # As in `dynamics.fit.Fit`: the dynamics depend strongly on the group prior.
                "regularised": bool(len(prior.mean.coupling) > 2 * one.subject.counted.sum()),
                "parcels": FINE_TUNED if verdict.kept else "as before",
                "reason": verdict.reason,
                "held_out_score": round(verdict.score, 5),
                "score_before": round(verdict.without, 5),
                "representation": round(float(tuned.curve[tuned.round, 0] - tuned.curve[0, 0]), 5),
                "dynamics": round(float(tuned.curve[tuned.round, 1] - tuned.curve[0, 1]), 5),
            }
        )
    own = jax.tree.map(lambda leaf: leaf[: len(wave)], found.own)
    arrays = {"adapter": own.adapter._asdict(), "dynamics": own.dynamics._asdict()}
    about = settings | {"scans": [one.row["scan"] for one in wave], "verdicts": verdicts}
    save_arrays(arrays, folder, kind=KIND, metadata=about)
    return rows


def _counting(progress: Progress | None, before: int, total: int) -> Callable[[str, int], None]:
    """Report progress within a wave: label, and number of completed recordings of the wave."""
    return lambda label, done: None if progress is None else progress(label, before + done, total)


def load_personal(folder: str | Path, scan: str) -> Personal:
    """Read one recording's parameters, and whether its parcels are kept, from a folder written by `pnet personalize`.

    Args:
      folder: Output folder of `pnet personalize`.
      scan: Key of the recording in the store.

    Raises:
      SettingsError: If there are no parameters for the recording, or a file was changed; names the file.
    """
    record = read_record(folder, scan)
    if record.get("status") != "ok":
        said = f"it failed: {record['error']}" if record else "its record is missing or damaged"
        raise SettingsError(f"{record_file(folder, scan)}: expected the parameters of {scan}; {said}")
    return _personal(folder, record)[0]


def _personal(folder: str | Path, row: Mapping[str, Any]) -> tuple[Personal, dict[str, Any]]:
    """Return the parameters of a row and the metadata of its wave; only scan and wave are read from the record, which has no digest."""
    wave, scan = Path(folder) / WAVES / str(row.get("wave") or ""), row["scan"]
    if not wave.name.startswith("wave-") or not wave.is_dir():
        raise SettingsError(f"{record_file(folder, scan)} is damaged: expected the parameters of {scan} in {wave}, found no such folder")
    arrays, about = load_arrays(wave, kind=KIND)
    if scan not in about["verdicts"]:
        raise SettingsError(
            f"{record_file(folder, scan)} is damaged: expected the parameters of {scan} in {wave}, found those of {about['scans']}"
        )
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[about["scans"].index(scan)]), arrays)
    said = about["verdicts"][scan]
    after, before = (float("nan") if said[name] is None else said[name] for name in ("score", "without"))
    verdict = Verdict(said["kept"], after, before, said["reason"])
    return Personal(IndividualParameters(Adapter(**own["adapter"]), Params(**own["dynamics"])), said["round"], verdict), about


def find_personal(folder: str | Path, scan: Scan, plan: Plan, config: PersonalizeConfig) -> tuple[Personal | None, list[str]]:
    """Find a recording's parameters (`load_personal`) by its signals; if it must be fine-tuned again, return warnings that explain why.

    Args:
      folder: Output folder of `pnet personalize`.
      scan: The recording, which is identified by its signals, not by its name or file path.
      plan, config: Settings with which it must have been fine-tuned.
    """
    signals = signals_digest(scan)
    rows = [row for row in read_records(folder) if row["status"] == "ok"]
    for row in rows:
        if row.get("signals") == signals:
            personal, about = _personal(folder, row)
            if about["verdicts"][row["scan"]]["signals"] != signals:  # the status table was changed
                continue
            settings = _settings(plan, config)
            if differing := [f"{name} {was} there, {now} now" for name, was, now in _differing(about, settings)]:
                return None, [f"{scan.label} is fine-tuned again: {folder} contains it with other settings ({'; '.join(differing)})"]
            return personal, []
    if any(row["scan"].rpartition("/")[2] == scan.label for row in rows):
        return None, [f"{scan.label} is fine-tuned again: {folder} contains a recording with this name but other signals"]
    return None, []


def signals_digest(scan: Scan) -> str:
    """Digest of 16 letters, equal for recordings whose cleaned signals agree to the precision of a store."""
    return hashlib.sha256(np.ascontiguousarray(scan.y.astype(np.float16)).tobytes()).hexdigest()[:16]


def _settings(plan: Plan, config: PersonalizeConfig) -> dict[str, Any]:
    deciding = {name: value for name, value in dataclasses.asdict(config).items() if name != "wave"}
    group = "" if plan.group is None else plan.group.digest
    return {"model": plan.model.digest, "atlas": plan.atlas.digest, "group": group, "config": deciding}


def _differing(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of every setting that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in now:
            yield from _differing(was.get(key), now[key], f"{name}.{key}" if name else key)
    elif was != now:
        yield name, was, now


def _done(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of up-to-date recordings; those of a damaged wave are omitted and fine-tuned again.

    Raises:
      SettingsError: If the folder contains results of other settings.
    """
    rows = {row["scan"]: row for row in read_records(folder) if row["status"] == "ok"}
    whole: dict[str, set[str]] = {}
    for wave in sorted({str(row.get("wave") or "") for row in rows.values()}):
        try:
            found = load_metadata(folder / WAVES / wave, kind=KIND)
        except SettingsError as error:
            warnings.warn(f"{error} (its recordings are fine-tuned again)", stacklevel=3)
            continue
        if differing := [f"{name}: {was} there, {now} now" for name, was, now in _differing(found, settings)]:
            raise SettingsError(
                f"{folder} contains results of other settings ({'; '.join(differing)}); use the same settings, or a new folder"
            )
        whole[wave] = set(found["verdicts"])
    return {scan: dict(row) for scan, row in rows.items() if scan in whole.get(row.get("wave", ""), ())}
