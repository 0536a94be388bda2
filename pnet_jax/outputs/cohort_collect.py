"""Collection of a results folder into the cohort store, or into a Cohort in memory.

The store is written from results on disk, not by the processes that construct them: every result on disk is complete and has a record, so
after a killed run, retried scans or a damaged block, collecting again is sufficient.
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
      scan: Label of the scan.
      file: Its `…_dseg.tsv`; None if it failed.
      error: Reason for the failure.
      digest: Digest of the result files.
      source: File of the recording, if known.
      files: Files in its record, with their fingerprints.
    """

    scan: str
    file: Path | None
    error: str
    digest: str
    source: str
    files: Mapping[str, str]


class _Part(NamedTuple):
    """Part of the scans of a folder; `number` is the position of the part."""

    folder: str
    number: int
    found: Sequence[Found]


class _Block(NamedTuple):
    """A block of a store, and the results in the folder for its scans."""

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
    """Load the results of many scans as arrays and a table.

    Args:
      path: A store written by `pnet collect` (a folder or an fsspec address), or a results folder of `pnet construct` or `save`. Results in
          a folder are read one by one, 30 ms each; collect large folders first.
      atlas: Label of the input atlas, for a folder with results for several atlases.
      participants: Table with covariates, for a results folder; see `collect`.
      edges: Edge measures to read from a store; all by default.
      signals: Whether to read parcel signals from a store.
      labels: Whether to read labels and confidence from a store.

    Returns:
      The scans that succeeded; `provenance["left_out"]` gives the reasons for the others.

    Raises:
      FileNotFoundError: If there is nothing at `path`.
      InputError: If no scan succeeded, or the store is damaged (names array and scan).
      SettingsError: If the folder has results for several atlases, or the store does not contain the requested edges.

    Example:
      >>> cohort = pnet_jax.load_cohort("out/cohort.zarr", signals=False, labels=False)  # doctest: +SKIP
      >>> cohort.edges["pearson"].shape  # doctest: +SKIP
      (1000, 200, 200)
    """
    if "://" in str(path) or (Path(path) / "zarr.json").is_file():
        return read_store(path, edges=edges, signals=signals, labels=labels)
    if not Path(path).is_dir():
        what = "a file" if Path(path).exists() else "nothing"
        raise FileNotFoundError(f"{path}: expected a cohort store or a folder of results, found {what}")
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
    """Write the results of a folder to a cohort store, or update an existing store.

    A block is written if one of its results is new or changed, or if the block is damaged. A failed scan is marked as failed in the store
    until it succeeds. While `pnet construct` is running, the scans finished so far are collected. New scans are appended.

    Args:
      folder: Results of `pnet construct` or `save`.
      path: Path of the store; by default `cohort.zarr` in the folder, or `cohort_seg-<atlas>.zarr` if an atlas is given.
      atlas: Label of the input atlas, if the folder has results for several atlases.
      participants: Table with one row per participant (`participant_id` and covariates); by default `participants.tsv` in the folder, or
          in the dataset of the recordings.
      workers: Number of processes that read results and write blocks.
      block: Number of scans per block of a new store.
      progress: Called with a text, the number of completed blocks, and the total.

    Returns:
      `path`, the numbers of scans `done` and `failed`, of `blocks`, and of blocks `written` by this call, and whether this call updated the
      `covariates` of scans that were already in the store.

    Raises:
      FileNotFoundError: If the folder does not exist.
      SettingsError: If the folder has no results, or results for several atlases, or lacks scans that the store contains.
      InputError: If the store has another atlas, or is damaged outside its blocks; names it.
      OSError: If the store cannot be written.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: results folder not found")
    path = Path(folder) / (f"cohort_seg-{atlas}.zarr" if atlas else "cohort.zarr") if path is None else path
    with waiting_for(Path(folder) / RECORDS / LOCK):
        found = find_scans_in(folder, atlas)
        covariates = _prepare(folder, path, found, participants, block, workers)
        clean(path)
        tasks = _tasks(str(folder), path, found)
        written = 0
        for at, (task, wrote) in enumerate(_each(_fill_block, tasks, workers)):
            written += wrote
            if progress is not None:
                progress(f"block {task.number}", at + 1, len(tasks))
    status = [state for state, _ in stored_results(path).values()]
    done = status.count(DONE)
    counts = {"done": done, "failed": len(found) - done, "blocks": len(tasks), "written": written}
    return {"path": str(path), **counts, "covariates": covariates}


def find_scans_in(folder: str | Path, atlas: str | None = None) -> list[Found]:
    """List the scans of a results folder, by label: those with a record or, without records, the results written by `save`.

    Raises:
      SettingsError: If there are no results, or results for several atlases and `atlas` is not given.
    """
    records = [record for record in read_records(folder) if record.get("atlas")]
    labels = sorted({record["atlas"] for record in records})
    if atlas is None and len(labels) > 1:
        said = f"has results for {len(labels)} atlases ({', '.join(labels)}); choose one with --atlas LABEL, e.g. --atlas {labels[0]}"
        raise SettingsError(f"{folder}: {said}")
    found = [_of_record(folder, record) for record in records if atlas in (None, record["atlas"])]
    if not found:
        try:
            found = [_of_file(file) for file in find_results(folder, atlas)]
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return sorted(found, key=lambda one: one.scan)


def load_entry(folder: str | Path, found: Found) -> Entry:
    """Return the network of a scan, or the reason why there is none."""
    if found.file is None:
        return Entry(None, found.error, found.digest)
    try:
        if changed := missing_files(folder, {"files": found.files}):
            raise InputError(f"{Path(folder) / changed[0]}: missing, or changed after it was written; construct the scan again")
        network = load_network(found.file, brief=True)
        check_network(network)
    except (ValueError, OSError) as error:
        return Entry(None, str(error), found.digest)
    return Entry(network, "", found.digest)


def participants_file(folder: str | Path, found: Sequence[Found], given: str | Path | None = None) -> Path | None:
    """Return the participants table: the given one, or that of the folder or of the dataset of the recordings; None if there is none."""
    if given is not None:
        return Path(given)
    sources = [Path(one.source) for one in found if one.source][:1]
    places = [Path(folder), *(parent for source in sources for parent in source.parents)]
    return next((place / "participants.tsv" for place in places if (place / "participants.tsv").is_file()), None)


def covariates_of(file: Path | None, found: Sequence[Found]) -> dict[str, np.ndarray]:
    """Read the columns of a participants table, one value per scan; unknown numbers are NaN, unknown texts are empty.

    Characters other than letters, digits and `_` are replaced in names; names reserved by a cohort are prefixed with
    `participant_`. `site_id` becomes `site`.

    Raises:
      InputError: If the table has no column `participant_id`, or a participant occurs twice; names the file.
      FileNotFoundError: If the table does not exist.
    """
    if file is None:
        return {}
    rows = read_rows(file)
    if not rows or "participant_id" not in rows[0]:
        raise InputError(f"{file}: expected a table with a column participant_id, found {list(rows[0]) if rows else 'no rows'}")
    by_subject = {row["participant_id"].removeprefix("sub-"): row for row in rows}
    if len(by_subject) < len(rows):
        raise InputError(f"{file}: expected one row per participant_id, found {len(rows)} rows for {len(by_subject)} participants")
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
    """Describe a result without a record, whose files are identified by size and modification time."""
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
) -> bool:
    """Create the store, or make room in it for new results; return whether covariates of its scans were updated."""
    there = stored_results(path) if exists(path) else {}
    if lost := [scan for scan, (state, _) in there.items() if state == DONE and scan not in {one.scan for one in found}]:
        raise SettingsError(f"{path}: contains {lost[0]}, but {folder} has no result for it; choose another path or remove the store")
    new = [one for one in found if one.file is not None and there.get(one.scan, (0, ""))[1] != one.digest]
    parts = [_Part(str(folder), at, part) for at, part in enumerate(in_blocks(new, BLOCK))]
    found_layouts = sorted(_each(_layouts, parts, workers), key=lambda pair: pair[0].number)
    layouts = [one for _, some in found_layouts for one in some]
    if not there and not layouts:
        raise SettingsError(f"{folder}: expected at least one scan that succeeded, found {len(found)} that failed")
    scans = [*there, *(one.scan for one in found if one.scan not in there)]
    by_scan = {one.scan: one for one in found}
    covariates = covariates_of(
        participants_file(folder, found, participants), [by_scan.get(x, Found(x, None, "", "", "", {})) for x in scans]
    )
    if not there:
        create(path, scans, reduce(join_layouts, layouts), covariates, block)
        return False
    updated = not _same(open_store(path), {name: column[: len(there)] for name, column in covariates.items()})
    if new or len(scans) > len(there) or updated:
        extend(path, scans, reduce(join_layouts, layouts, read_layout(open_store(path), brief=True)), covariates)
    return updated


def _same(group: Any, covariates: Mapping[str, np.ndarray]) -> bool:
    """Return whether a store has the same covariates."""
    there = {name: read_array(group, name).tolist() for name in group.attrs["covariates"]}
    return str(there) == str({name: column.tolist() for name, column in covariates.items()})  # as text, in which NaN equals NaN


def _layouts(part: _Part) -> list[Layout]:
    """Return the layouts required by some results, one per Space in their order; unreadable results are skipped."""
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
    """List the blocks of the store with the results in the folder for them."""
    group, stored, by_scan = open_store(path), stored_results(path), {one.scan: one for one in found}
    scans, out = list(stored), []
    for number in range(n_blocks(group)):
        own = {scan: by_scan[scan] for scan in scans[block_rows(group, number)] if scan in by_scan}
        changed = any(stored[scan] not in ((DONE, one.digest), (FAILED, one.digest)) for scan, one in own.items())
        out.append(_Block(folder, path, number, own, changed))
    return out


def _fill_block(block: _Block) -> bool:
    """Write a block if necessary, and return whether it was written."""
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
    """Yield tasks and their results as they finish, in this process or in several."""
    for task, result in run_tasks(function, tasks, workers):
        if isinstance(result, WorkerDiedError):
            raise OSError(f"{result}; run `pnet collect` again, with fewer workers")
        yield task, result
