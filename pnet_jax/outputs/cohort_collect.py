"""A folder of results -> the cohort store, or a Cohort in memory.

The store is made of results on disk and not by the processes that construct them: each result is written whole and has a record, so a
killed run, a rerun of failed scans or a damaged block costs no more than collecting again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pnet_jax.cohort import Cohort, check_network, cohort_of
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.execution import WorkerDiedError, in_blocks, run_tasks
from pnet_jax.outputs.cohort import (
    BLOCK,
    DONE,
    FAILED,
    Entry,
    Layout,
    block_rows,
    create,
    extend,
    join_layouts,
    layout_of,
    n_blocks,
    read_layout,
    reserved,
    write_block,
)
from pnet_jax.outputs.cohort_arrays import clean, exists, open_store, plain_name, read_array
from pnet_jax.outputs.cohort_reading import check_block, read_store, stored_results
from pnet_jax.outputs.finding import find_results
from pnet_jax.outputs.loading import load_network
from pnet_jax.outputs.lock import waiting_for
from pnet_jax.outputs.reading import read_json, stem_of
from pnet_jax.outputs.status import RECORDS, missing_files, read_records
from pnet_jax.outputs.tables import beside, read_rows
from pnet_jax.scan import label_entities, scan_label
from pnet_jax.space import join_spaces

LOCK = ".collect.lock"
Progress = Callable[[str, int, int], None]


class Found(NamedTuple):
    """A scan in a folder of results.

    Attributes:
      scan: label.
      file: its `…_dseg.tsv`; None where it failed.
      error: why it failed.
      digest: of what the result consists of.
      source: file of the recording, where it is known.
      files: of its record, with their fingerprints.
    """

    scan: str
    file: Path | None
    error: str
    digest: str
    source: str
    files: Mapping[str, str]


class _Part(NamedTuple):
    """Some scans of a folder; `number` orders the parts."""

    folder: str
    number: int
    found: Sequence[Found]


class _Block(NamedTuple):
    """A block of a store, and what the folder has of its scans."""

    folder: str
    path: str | Path
    number: int
    found: Mapping[str, Found]
    changed: bool


def load_cohort(
    path: str | Path,
    *,
    atlas: str | None = None,
    participants: str | Path | None = None,
    edges: Sequence[str] | None = None,
    signals: bool = True,
    labels: bool = True,
) -> Cohort:
    """The results of many scans as arrays and a table.

    Args:
      path: a store that `pnet collect` wrote (a folder, or an address that fsspec knows), or a folder of results of `pnet construct` or
        `save`. A folder is read result by result, 30 ms each; collect a large one first.
      atlas: label of the input atlas, for a folder that holds results of several.
      participants: table with covariates, for a folder of results; see `collect`.
      edges: measures and layers to read from a store; all by default.
      signals: whether to read parcel signals from a store.
      labels: whether to read labels and confidence from a store.

    Returns:
      The scans that succeeded; `provenance["left_out"]` says why others did not.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      InputError: no scan succeeded, or the store is damaged (names array and scan).
      SettingsError: the folder holds several atlases, or the store has no such edges.

    Example:
      >>> cohort = pnet_jax.load_cohort("out/cohort.zarr", signals=False, labels=False)  # doctest: +SKIP
      >>> cohort.edges["pearson"].shape  # doctest: +SKIP
      (1000, 200, 200)
    """
    if "://" in str(path) or (Path(path) / "zarr.json").is_file():
        return read_store(path, edges=edges, signals=signals, labels=labels)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such cohort store or folder of results")
    found = find_scans_in(path, atlas)
    entries = {one.scan: load_entry(path, one) for one in found}
    networks = [entry.network for entry in entries.values() if entry.network is not None]
    if not networks:
        raise InputError(f"{path}: none of {len(found)} scans succeeded: {found[0].scan}: {entries[found[0].scan].error}")
    done = [one for one in found if entries[one.scan].network is not None]
    cohort = cohort_of(networks, covariates_of(participants_file(path, found, participants), done))
    cohort.provenance["left_out"] = {scan: entry.error for scan, entry in entries.items() if entry.network is None}
    return cohort


def collect(
    folder: str | Path,
    path: str | Path | None = None,
    *,
    atlas: str | None = None,
    participants: str | Path | None = None,
    workers: int = 1,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the results of a folder to a cohort store, or brings the store up to date.

    A block is written if a result of it is new or changed, or if the block is damaged. A scan that failed stands in the store as failed
    until it succeeds. While `pnet construct` still runs, the scans that are finished are taken. New scans are appended.

    Args:
      folder: results of `pnet construct`, or of `save`.
      path: the store, by default `cohort.zarr` in the folder, `cohort_seg-<atlas>.zarr` where an atlas is given.
      atlas: label of the input atlas, where the folder holds results of several.
      participants: table with one row a participant (`participant_id` and covariates), by default `participants.tsv` of the folder, or of
        the data set of the recordings.
      workers: processes that read results and write blocks.
      block: scans in a block of a new store.
      progress: called with a text, how many blocks are done and how many there are.

    Returns:
      `path`, and the numbers of scans `done` and `failed`, of `blocks`, and of blocks `written` by this call.

    Raises:
      FileNotFoundError: there is no such folder.
      SettingsError: the folder holds no result or several atlases, or the store holds scans that the folder does not.
      InputError: the store is of another atlas or damaged beyond its blocks; names it.
      OSError: the store cannot be written.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of results")
    path = Path(folder) / (f"cohort_seg-{atlas}.zarr" if atlas else "cohort.zarr") if path is None else path
    with waiting_for(Path(folder) / RECORDS / LOCK):
        found = find_scans_in(folder, atlas)
        _prepare(folder, path, found, participants, block, workers)
        clean(path)
        tasks = _tasks(str(folder), path, found)
        written = 0
        for at, (task, wrote) in enumerate(_each(_fill_block, tasks, workers)):
            written += wrote
            if progress is not None:
                progress(f"block {task.number}", at + 1, len(tasks))
    status = [state for state, _ in stored_results(path).values()]
    done = status.count(DONE)
    return {"path": str(path), "done": done, "failed": len(found) - done, "blocks": len(tasks), "written": written}


def find_scans_in(folder: str | Path, atlas: str | None = None) -> list[Found]:
    """The scans of a folder of results, by label: those with a record; without any record, the results that `save` wrote.

    Raises:
      SettingsError: there is none, or there are results of several atlases and none was given.
    """
    records = [record for record in read_records(folder) if record.get("atlas")]
    labels = sorted({record["atlas"] for record in records})
    if atlas is None and len(labels) > 1:
        raise SettingsError(f"{folder}: holds results of {len(labels)} atlases ({', '.join(labels)}): say which one, by its label")
    found = [_of_record(folder, record) for record in records if atlas in (None, record["atlas"])]
    if not found:
        try:
            found = [_of_file(file) for file in find_results(folder, atlas)]
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return sorted(found, key=lambda one: one.scan)


def load_entry(folder: str | Path, found: Found) -> Entry:
    """The network of a scan, or why there is none."""
    if found.file is None:
        return Entry(None, found.error, found.digest)
    try:
        if changed := missing_files(folder, {"files": found.files}):
            raise InputError(f"{Path(folder) / changed[0]}: missing or changed since it was written; construct the scan again")
        network = load_network(found.file, brief=True)
        check_network(network)
    except (ValueError, OSError) as error:
        return Entry(None, str(error), found.digest)
    return Entry(network, "", found.digest)


def participants_file(folder: str | Path, found: Sequence[Found], given: str | Path | None = None) -> Path | None:
    """The table of participants: the given one, or that of the folder, or of the data set of the recordings; None where there is none."""
    if given is not None:
        return Path(given)
    sources = [Path(one.source) for one in found if one.source][:1]
    places = [Path(folder), *(parent for source in sources for parent in source.parents)]
    return next((place / "participants.tsv" for place in places if (place / "participants.tsv").is_file()), None)


def covariates_of(file: Path | None, found: Sequence[Found]) -> dict[str, np.ndarray]:
    """The columns of a table of participants, one value for each scan: numbers with NaN, or text with empty strings, where unknown.

    Names have letters, digits and `_` only; those of columns that a cohort has anyway begin with `participant_`. `site_id` is `site`.

    Raises:
      InputError: the table has no column `participant_id`, or a participant twice; names the file.
      FileNotFoundError: it is not there.
    """
    if file is None:
        return {}
    rows = read_rows(file)
    if not rows or "participant_id" not in rows[0]:
        raise InputError(f"{file}: expected a table with a column participant_id, found {list(rows[0]) if rows else 'no rows'}")
    by_subject = {row["participant_id"].removeprefix("sub-"): row for row in rows}
    if len(by_subject) < len(rows):
        raise InputError(f"{file}: expected one row for each participant_id, found {len(rows)} rows of {len(by_subject)} participants")
    subjects = [label_entities(one.scan).get("sub", "") for one in found]
    out = {}
    for column in [name for name in rows[0] if name and name != "participant_id"]:
        name = plain_name("site" if column == "site_id" and "site" not in rows[0] else column)
        values = [by_subject.get(subject, {}).get(column) or "" for subject in subjects]
        out[f"participant_{name}" if reserved(name) else name] = _typed(values)
    return out


def _typed(values: Sequence[str]) -> np.ndarray:
    try:
        return np.array([value or "nan" for value in values], np.float64)
    except ValueError:
        return np.array(values, np.str_)


def _of_record(folder: str | Path, record: Mapping[str, Any]) -> Found:
    done = record["status"] == "ok"
    digest = hashlib.sha256(json.dumps([record["status"], record["files"], record.get("error")], sort_keys=True).encode()).hexdigest()[:16]
    file = Path(folder) / record["dseg"] if done else None
    error = "" if done else str(record.get("error") or "failed")
    return Found(record["scan"], file, error, digest, str(record.get("source") or ""), record["files"] if done else {})


def _of_file(file: Path) -> Found:
    """A result without a record: what its files are is told by sizes and times."""
    try:
        about = read_json(beside(stem_of(file), "dseg.json"), "Scan")["Scan"]
        label, there, error = scan_label(about["Subject"], about["Entities"]), True, ""
    except (ValueError, OSError, KeyError) as damage:
        label, there, error = file.name.partition("_atlas-pnet_")[0], False, str(damage)
    stem = file.name.removesuffix("dseg.tsv")
    stats = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(file.parent.glob(f"{stem}*"))]
    return Found(label, file if there else None, error, hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16], "", {})


def _prepare(
    folder: str | Path, path: str | Path, found: Sequence[Found], participants: str | Path | None, block: int, workers: int
) -> None:
    """Creates the store, or makes room in it for what is new."""
    there = stored_results(path) if exists(path) else {}
    if lost := [scan for scan, (state, _) in there.items() if state == DONE and scan not in {one.scan for one in found}]:
        raise SettingsError(f"{path}: holds {lost[0]}, of which {folder} has no result: give another path, or remove the store")
    new = [one for one in found if one.file is not None and there.get(one.scan, (0, ""))[1] != one.digest]
    parts = [_Part(str(folder), at, part) for at, part in enumerate(in_blocks(new, BLOCK))]
    found_layouts = sorted(_each(_layouts, parts, workers), key=lambda pair: pair[0].number)
    layouts = [one for _, some in found_layouts for one in some]
    if not there and not layouts:
        raise SettingsError(f"{folder}: expected a scan that succeeded, found {len(found)} that failed")
    scans = [*there, *(one.scan for one in found if one.scan not in there)]
    by_scan = {one.scan: one for one in found}
    covariates = covariates_of(
        participants_file(folder, found, participants), [by_scan.get(x, Found(x, None, "", "", "", {})) for x in scans]
    )
    if there:
        if new or len(scans) > len(there) or not _same(open_store(path), covariates):
            extend(path, scans, reduce(join_layouts, layouts, read_layout(open_store(path), brief=True)), covariates)
    else:
        create(path, scans, reduce(join_layouts, layouts), covariates, block)


def _same(group: Any, covariates: Mapping[str, np.ndarray]) -> bool:
    """Whether the covariates of a store are these."""
    there = {name: read_array(group, name).tolist() for name in group.attrs["covariates"]}
    return str(there) == str({name: column.tolist() for name, column in covariates.items()})  # as text, in which NaN is NaN


def _layouts(part: _Part) -> list[Layout]:
    """Room for some results: one layout for each Space, in their order; results that cannot be read need none."""
    out: list[Layout] = []
    for one in part.found:
        network = load_entry(part.folder, one).network
        if network is not None:
            layout = layout_of(network)
            at = next((at for at, other in enumerate(out) if join_spaces(other.space or network.space, network.space) is not None), None)
            if at is None:
                out.append(layout)
            else:
                out[at] = join_layouts(out[at], layout)
    return out


def _tasks(folder: str, path: str | Path, found: Sequence[Found]) -> list[_Block]:
    """The blocks of the store with what the folder has of them."""
    group, stored, by_scan = open_store(path), stored_results(path), {one.scan: one for one in found}
    scans, out = list(stored), []
    for number in range(n_blocks(group)):
        own = {scan: by_scan[scan] for scan in scans[block_rows(group, number)] if scan in by_scan}
        changed = any(stored[scan] not in ((DONE, one.digest), (FAILED, one.digest)) for scan, one in own.items())
        out.append(_Block(folder, path, number, own, changed))
    return out


def _fill_block(block: _Block) -> bool:
    """Writes a block if it has to be; returns whether it was."""
    changed = block.changed
    if not changed:
        try:
            check_block(block.path, block.number)
        except InputError:
            changed = True
    if changed:
        write_block(block.path, block.number, {scan: load_entry(block.folder, one) for scan, one in block.found.items()})
    return changed


def _each(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Tasks and their results as they are finished, in this process or in several."""
    for task, result in run_tasks(function, tasks, workers):
        if isinstance(result, WorkerDiedError):
            raise OSError(f"{result}: run `pnet collect` again, with fewer workers")
        yield task, result
