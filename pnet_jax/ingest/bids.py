"""Find the scans in an input: one file, a list of files, or a folder of BIDS derivatives."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from pnet_jax.config import nearest
from pnet_jax.errors import SettingsError
from pnet_jax.ingest import naming
from pnet_jax.ingest.folder import in_folder
from pnet_jax.ingest.reading import reading
from pnet_jax.ingest.source import ScanSource, source_of
from pnet_jax.ingest.tables import NOT_TEXT, SEPARATORS, brief, first_lines, layout_of, number, plural, read_table, shortlist

LONGEST_PART, LONGEST_PATH = 255, 4095  # limits of file systems, in bytes


def find_scans(
    input: str | Path,
    *,
    participant_labels: Sequence[str] | None = None,
    session_labels: Sequence[str] | None = None,
    task: str | None = None,
    space: str | None = None,
    mask: str | Path | None = None,
    confounds: str | Path | None = None,
) -> list[ScanSource]:
    """Find the scans of an input, sorted by label.

    A recording that cannot be read is returned with its `problem`: it is in an unsupported space, its file in a list is missing, it has
    the same name as another, or the folder of a subject has no recording. A batch records it as failed and continues.

    Args:
      input: A recording; a list of recordings (.txt with one path per line and # comments, or .tsv or .csv with the column `bold` and
        optionally `mask`, `confounds`, `subject` and `session`; paths are relative to the list); or a folder of BIDS derivatives,
        searched at any depth. One file is used for each run in a folder: volumes are preferred to surfaces, MNI152NLin2009cAsym to
        MNI152NLin6Asym to other MNI spaces, and preprocessed to denoised files. If a folder has no recordings, tables of ROI series
        (`sub-*_timeseries.tsv`, .1D, .txt) are used.
      participant_labels: Subjects to keep, with or without `sub-`; a string may hold several labels, separated by commas.
      session_labels: Sessions to keep, with or without `ses-`, in the same form.
      task: Task to keep.
      space: Space of the files to use; `"fsLR"` selects CIFTI files.
      mask: Brain mask for every scan, instead of the mask beside each.
      confounds: Confounds table, instead of the one beside the recording; for an input with a single scan.

    Returns:
      One source for each scan.

    Raises:
      SettingsError: If no recording was found, or a requested label is not among those found.
      FileNotFoundError: If the input does not exist.
    """
    path = Path(input)
    if not path.exists():
        raise FileNotFoundError(f"input {path}: no such file or folder")
    if path.is_dir():
        sources = in_folder(path, space)
    elif _is_list(path):
        sources = _in_list(path)
    else:
        sources = [source_of(path)]
    sources, chosen = _selected(sources, path, participant_labels, session_labels, task)
    if not path.is_dir() and space is not None:
        chosen = _select(chosen, lambda s: s.entities.get("space", space), [space], "space", "space", path)
    chosen = _override(chosen, mask, confounds, path)
    if path.is_dir():
        _say_what_is_odd(path, sources, chosen, task)
    return sorted(_told_apart(chosen, path), key=lambda s: s.label)


def select_scans(
    sources: list[ScanSource], path: Path, participant_labels: Sequence[str] | None, session_labels: Sequence[str] | None, task: str | None
) -> list[ScanSource]:
    """Select the scans of some subjects, sessions and a task, sorted by label; see `find_scans`."""
    return sorted(_selected(sources, path, participant_labels, session_labels, task)[1], key=lambda s: s.label)


def _selected(
    sources: list[ScanSource], path: Path, participant_labels: Sequence[str] | None, session_labels: Sequence[str] | None, task: str | None
) -> tuple[list[ScanSource], list[ScanSource]]:
    """Return the scans of some subjects and sessions: those of all tasks, and those of the requested task."""
    sources = _select(sources, lambda s: s.subject, participant_labels, "sub", "participant", path)
    sources = _select(sources, lambda s: s.entities.get("ses"), session_labels, "ses", "session", path)
    return sources, _select(sources, lambda s: s.entities.get("task"), None if task is None else [task], "task", "task", path)


def _say_what_is_odd(folder: Path, found: list[ScanSource], chosen: list[ScanSource], task: str | None) -> None:
    """Warn of mixed tasks, of subjects without the requested task, and of scans without confounds if others have them."""
    tasks = collections.Counter(s.entities["task"] for s in chosen if "task" in s.entities and not s.problem)
    if task is None and len(tasks) > 1:
        counts = shortlist([f"{name} ({plural(n, 'scan')})" for name, n in sorted(tasks.items())])
        resting = [name for name in sorted(tasks) if "rest" in name.lower()]
        warnings.warn(
            f"folder {folder}: the scans are of several tasks: {counts}; all are read; --task {(resting or sorted(tasks))[0]} selects one",
            stacklevel=3,
        )
    lost = sorted({s.subject for s in found} - {s.subject for s in chosen})
    if lost:
        warnings.warn(f"folder {folder}: no scan of task {task} for {plural(len(lost), 'subject')}: {shortlist(lost)}", stacklevel=3)
    cleaned = [s for s in chosen if not s.problem and naming.suffix_of(s.bold) == "bold" and s.entities.get("desc") != "denoised"]
    without = [s.label for s in cleaned if s.confounds is None]
    if 0 < len(without) < len(cleaned):
        warnings.warn(
            f"folder {folder}: no confounds table found for {len(without)} of {plural(len(cleaned), 'scan')}; nothing is regressed out of "
            f"these: {shortlist(without)}",
            stacklevel=3,
        )


def _is_list(path: Path) -> bool:
    """Return whether a file is a list of files; a table of ROI series may have the same extension, so the first lines decide."""
    extension = path.suffix.lower()
    if extension == ".txt":
        lines = [line.split("#", 1)[0] for line in first_lines(path, f"input {path}")]
        top = [re.split(r"[\s,;]+", line.strip()) for line in lines if line.strip()][:2]  # possibly a header, and a row
        return not any(all(number(field) is not None for field in fields) for fields in top)
    if extension not in SEPARATORS:
        return False
    return "bold" in [field.lower() for field in layout_of(path, f"input {path}").fields]


def _in_list(path: Path) -> list[ScanSource]:
    if path.suffix.lower() == ".txt":
        with reading(f"list {path}: {NOT_TEXT}"):
            lines = [_entry(line, path) for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = [(i + 1, {"bold": line}) for i, line in enumerate(lines) if line]
    else:
        table = read_table(path, f"list {path}", dtype=str).rename(columns=lambda c: str(c).lower())  # "01" stays "01"
        rows = [(i + 2, {k: str(v).strip() for k, v in row.items() if pd.notna(v)}) for i, row in enumerate(table.to_dict("records"))]
    rows = [(number, row) for number, row in rows if row]  # spreadsheets leave rows that hold only separators
    if not rows:
        raise SettingsError(f"list {path}: expected one path per line, found no recording")
    return [_listed(path, number, row) for number, row in rows]


def _listed(listing: Path, number: int, row: dict[str, str]) -> ScanSource:
    if row.get("bold", "n/a") in ("", "n/a"):
        raise SettingsError(f"list {listing}, line {number}: the column 'bold' is empty")
    present = [column for column in ("bold", "mask", "confounds") if row.get(column, "n/a") not in ("", "n/a")]
    for column in present:
        if max(len(part.encode()) for part in Path(row[column]).parts or ("",)) > LONGEST_PART or len(row[column].encode()) > LONGEST_PATH:
            raise SettingsError(
                f"list {listing}, line {number}: the value in column {column!r} is too long for a file path: {brief(row[column])}"
            )
    files = {column: _resolve(row[column], listing) for column in present}
    given = {key: row[name] for key, name in (("sub", "subject"), ("ses", "session")) if row.get(name, "n/a") != "n/a"}
    source = source_of(files["bold"], **given)
    missing = [
        f"{column} file {file} {'is not a file' if file.exists() else 'does not exist'}"
        for column, file in files.items()
        if not file.is_file()
    ]
    problem = f"{source.label}: list {listing}, line {number}: {'; '.join(missing)}" if missing else ""
    mask, confounds = files.get("mask", source.mask), files.get("confounds", source.confounds)
    return dataclasses.replace(source, mask=mask, confounds=confounds, problem=problem)


def _entry(line: str, listing: Path) -> str:
    """Strip a line of a list: the quotes that Windows adds to copied paths, and a comment unless # is part of an existing name."""
    whole = line.strip().strip('"')
    return whole if _resolve(whole, listing).is_file() else line.split("#", 1)[0].strip().strip('"')


def _resolve(name: str, listing: Path) -> Path:
    """Resolve a path relative to the list or, if no such file exists, to the working folder; if neither exists, to the list.

    Backslashes are accepted as separators, and `~` as the home folder.
    """
    if name.startswith("~"):
        return Path(name).expanduser()
    for spelled in (name, name.replace("\\", "/")):
        for file in (listing.parent / spelled, Path(spelled)):
            if spelled and len(os.fsencode(spelled)) <= LONGEST_PATH and file.is_file():
                return file
    return listing.parent / name


def _select(
    sources: list[ScanSource], of: Callable[[ScanSource], str | None], wanted: Sequence[str] | None, key: str, what: str, path: Path
) -> list[ScanSource]:
    if wanted is None:
        return sources
    given = [label for labels in ([wanted] if isinstance(wanted, str) else wanted) for label in str(labels).split(",")]
    labels = [naming.bare_label(label, key) for label in given if label.strip()]
    nowhere = [s for s in sources if s.problem and not s.entities and key != "sub"]  # keep subjects without a recording in the table
    there = sorted({of(s) or "none" for s in sources if s not in nowhere})
    unknown = [f"{label}{_meant(label, there)}" for label in labels if label not in there]
    if unknown:
        raise SettingsError(f"{path}: unknown {what} {', '.join(unknown)}; found: {shortlist(there, 20)}")
    return [s for s in sources if of(s) in labels or s in nowhere]


def _meant(label: str, there: list[str]) -> str:
    """Suggest the label that was probably meant: one that differs in case, leading zeros or a few letters."""
    plain = label.lower().replace("_", "-").removeprefix("sub-").removeprefix("ses-")
    same = [one for one in there if one.lower() == plain or one.lower().lstrip("0") == plain.lstrip("0")]
    return f" (did you mean {same[0]!r}?)" if same else f" ({said.removeprefix('; ')})" if (said := nearest(label, there)) else ""


def _override(sources: list[ScanSource], mask: str | Path | None, confounds: str | Path | None, path: Path) -> list[ScanSource]:
    for name, file in (("mask", mask), ("confounds", confounds)):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{path}: {name} file {file} does not exist")
    if mask is not None:
        sources = [dataclasses.replace(s, mask=Path(mask)) for s in sources]
    if confounds is not None:
        if len(sources) != 1:
            raise SettingsError(
                f"{path}: one confounds file ({confounds}) for {len(sources)} scans; list each scan's own in a table with the columns bold "
                "and confounds"
            )
        sources = [dataclasses.replace(sources[0], confounds=Path(confounds))]
    return sources


def _told_apart(sources: list[ScanSource], path: Path) -> list[ScanSource]:
    """Return one source for each label; recordings with the same label become one source with a problem and do not stop the others."""
    named: dict[str, list[ScanSource]] = {}
    for source in sources:
        named.setdefault(source.label, []).append(source)
    out = []
    for label, same in named.items():
        first = same[0]
        if len({(os.path.realpath(s.bold), s.mask, s.confounds) for s in same}) == 1:
            if len(same) > 1:
                warnings.warn(f"{path}: {first.bold} is listed {len(same)} times; it is read once", stacklevel=3)
            out.append(first)
            continue
        files = shortlist([str(s.bold) for s in same], 3)
        problem = (
            f"{label}: expected one recording of this name, found {len(same)}: {files}; list them in a table with the columns bold, "
            "subject and session"
        )
        out.append(dataclasses.replace(first, problem=problem))
    return out
