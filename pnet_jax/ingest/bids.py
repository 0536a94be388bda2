"""What a user points at -> the scans in it: one file, a list of files, or a folder of BIDS derivatives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from pnet_jax.errors import SettingsError
from pnet_jax.ingest import naming
from pnet_jax.ingest.tables import SEPARATORS, first_lines, read_table, shortlist

VOLUMES, DENSE = (".nii.gz", ".nii"), (".dtseries.nii",)
PREFERRED_SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
PREFERRED_DESC = ("preproc", "denoised")  # cleaning is ours where there is a choice
SEARCHED = (
    "*_space-MNI…_desc-preproc_bold.nii.gz (fMRIPrep), *_space-MNI…_desc-denoised_bold.nii.gz (xcp_d) and, without volumes or with "
    "space='fsLR', *_space-fsLR_den-91k_bold.dtseries.nii"
)
SKIPPED_FOLDERS = {"anat", "figures", "log", "logs", "sourcedata", "dwi", "fmap"}


@dataclasses.dataclass(frozen=True)
class ScanSource:
    """One recording to load.

    `load_scan(source.bold, mask=source.mask, confounds=source.confounds, entities={"sub": source.subject, **source.entities})`

    Attributes:
      bold: the recording.
      mask: brain mask, or None.
      confounds: table of confounds, or None.
      subject: label without `sub-`.
      entities: the other BIDS entities.
      problem: why it cannot be read, known before it is opened (in another space, a file that is not there); empty otherwise.
    """

    bold: Path
    mask: Path | None = None
    confounds: Path | None = None
    subject: str = "unknown"
    entities: dict[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Files that the scan is read from."""
        return (self.bold, self.mask, self.confounds, self.bold.with_name(f"{naming.split_name(self.bold)[0]}.json"))

    @property
    def label(self) -> str:
        """`sub-01_ses-1_task-rest_run-1`, the same as the Scan's."""
        return naming.scan_label(self.subject, self.entities)


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
    """The scans of an input, sorted by label.

    A recording that is there in no space that is read, or whose file in a list is missing, comes with its `problem`: a batch writes
    it down as failed and goes on.

    Args:
      input: a recording; a list of recordings (.txt with a path a line and # comments, or a .tsv/.csv with the column `bold` and
        optionally `mask`, `confounds`, `subject`, `session`; relative paths start at the list); or a folder of BIDS
        derivatives, searched at any depth. Of each run in a folder one file is taken: volumes before surfaces,
        MNI152NLin2009cAsym before MNI152NLin6Asym before other MNI spaces, preprocessed before denoised.
      participant_labels: keep these subjects, with or without `sub-`.
      session_labels: keep these sessions, with or without `ses-`.
      task: keep this task.
      space: take files in this space only; `"fsLR"` takes CIFTI files.
      mask: brain mask for every scan, instead of the one beside each.
      confounds: confounds table of the one scan there is, instead of the one beside it.

    Raises:
      SettingsError: nothing was found, a label is not among what was found, or two scans have the same label.
      FileNotFoundError: the input is not there.
    """
    path = Path(input)
    if not path.exists():
        raise FileNotFoundError(f"input {path}: no such file or folder")
    if path.is_dir():
        sources = _in_folder(path, space)
    elif _is_list(path):
        sources = _in_list(path)
    else:
        sources = [_source(path)]
    sources = _select(sources, lambda s: s.subject, participant_labels, "sub", "participant", path)
    sources = _select(sources, lambda s: s.entities.get("ses"), session_labels, "ses", "session", path)
    sources = _select(sources, lambda s: s.entities.get("task"), None if task is None else [task], "task", "task", path)
    if not path.is_dir() and space is not None:
        sources = _select(sources, lambda s: s.entities.get("space", space), [space], "space", "space", path)
    sources = _override(sources, mask, confounds, path)
    _check_unique(sources, path)
    return sorted(sources, key=lambda s: s.label)


def _source(path: Path, **given: str) -> ScanSource:
    subject, entities = naming.identity(path, given)
    extension = naming.split_name(path)[1]
    bids = naming.is_bids(path) and naming.suffix_of(path) == "bold"
    beside = bids and entities.get("desc", "preproc") != "denoised"
    return ScanSource(
        path,
        naming.mask_beside(path) if bids and extension in VOLUMES else None,
        naming.confounds_beside(path) if beside else None,
        subject,
        entities,
    )


def _in_folder(folder: Path, space: str | None) -> list[ScanSource]:
    files = [f for f in _walk(folder) if naming.suffix_of(f) == "bold" and naming.is_bids(f)]
    volumes = [f for f in files if naming.split_name(f)[1] in VOLUMES and naming.entities_of(f).get("desc") in PREFERRED_DESC]
    dense = [f for f in files if naming.split_name(f)[1] in DENSE and naming.entities_of(f).get("desc", "preproc") in PREFERRED_DESC]
    usable = [f for f in volumes if _space_of(f).startswith("MNI")]
    candidates = dense if space == "fsLR" or (space is None and not usable) else usable
    if space is not None:
        candidates = [f for f in candidates if _space_of(f) == space]
    if not candidates:
        seen = sorted({_space_of(f) or "none (native)" for f in volumes + dense})
        there = f"the recordings there are in the spaces {shortlist(seen)}" if seen else f"no such file among {len(files)} *_bold files"
        wanted = f"recordings in space-{space}" if space else "recordings"
        raise SettingsError(f"folder {folder}: no {wanted} found; searched for {SEARCHED}; {there}")
    runs: dict[str, list[Path]] = {}
    for file in candidates:
        runs.setdefault(_run_of(file), []).append(file)
    sources = [_source(min(choices, key=_preference)) for choices in runs.values()]
    expected = f"space-{space}" if space else "space-fsLR" if candidates is dense else "an MNI space (space-MNI…)"
    return sources + _in_other_spaces(volumes + dense, {source.label for source in sources}, expected)


def _in_other_spaces(files: list[Path], taken: set[str], expected: str) -> list[ScanSource]:
    """The recordings of which no file was taken; single echoes have the label of what was combined from them."""
    others: dict[str, list[Path]] = {}
    for file in files:
        others.setdefault(_source(file).label, []).append(file)
    out = []
    for label, choices in others.items():
        if label not in taken:
            found = sorted({f"space-{_space_of(f)}" if _space_of(f) else "native space (no space- entity)" for f in choices})
            source = _source(min(choices, key=_preference))
            problem = f"{label}: subject {source.subject} has no recording in the space that is read: expected {expected}, found "
            out.append(dataclasses.replace(source, problem=problem + shortlist(found)))
    return out


def _walk(folder: Path) -> Iterable[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("."))
        yield from (Path(where) / name for name in sorted(names) if name.startswith("sub-"))


def _space_of(file: Path) -> str:
    return naming.entities_of(file).get("space", "")


def _run_of(file: Path) -> str:
    """What the files of one run have in common."""
    return str(sorted((k, v) for k, v in naming.entities_of(file).items() if k not in ("space", "res", "den", "desc", "cohort")))


def _preference(file: Path) -> tuple[object, ...]:
    entities = naming.entities_of(file)
    space, resolution = entities.get("space", ""), entities.get("res")
    return (
        PREFERRED_SPACES.index(space) if space in PREFERRED_SPACES else len(PREFERRED_SPACES),
        PREFERRED_DESC.index(entities.get("desc", "preproc")),
        space,
        (0, "") if resolution is None else (1, resolution),
        str(file),
    )


def _is_list(path: Path) -> bool:
    """A table of ROI series and a list of files may have the same extension; the header tells."""
    extension = path.suffix.lower()
    if extension == ".txt":
        return True
    if extension not in SEPARATORS:
        return False
    return "bold" in [field.lower() for field in first_lines(path, SEPARATORS[extension], f"input {path}")[0]]


def _in_list(path: Path) -> list[ScanSource]:
    if path.suffix.lower() == ".txt":
        lines = [line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = [(i + 1, {"bold": line}) for i, line in enumerate(lines) if line]
    else:
        table = read_table(path, f"list {path}", dtype=str).rename(columns=lambda c: str(c).lower())  # "01" stays "01"
        rows = [(i + 2, {k: str(v).strip() for k, v in row.items() if pd.notna(v)}) for i, row in enumerate(table.to_dict("records"))]
    if not rows:
        raise SettingsError(f"list {path}: no recording in it, expected a path a line")
    return [_listed(path, number, row) for number, row in rows]


def _listed(listing: Path, number: int, row: dict[str, str]) -> ScanSource:
    if row.get("bold", "n/a") in ("", "n/a"):
        raise SettingsError(f"list {listing}, line {number}: the column 'bold' is empty")
    present = [column for column in ("bold", "mask", "confounds") if row.get(column, "n/a") not in ("", "n/a")]
    files = {column: _resolve(row[column], listing) for column in present}
    given = {key: row[name] for key, name in (("sub", "subject"), ("ses", "session")) if row.get(name, "n/a") != "n/a"}
    source = _source(files["bold"], **given)
    missing = [f"{column} file {file} does not exist" for column, file in files.items() if not file.is_file()]
    problem = f"{source.label}: list {listing}, line {number}: {'; '.join(missing)}" if missing else ""
    mask, confounds = files.get("mask", source.mask), files.get("confounds", source.confounds)
    return dataclasses.replace(source, mask=mask, confounds=confounds, problem=problem)


def _resolve(name: str, listing: Path) -> Path:
    """The file beside the list, else in the working folder; beside the list where it is in neither."""
    beside = listing.parent / name
    return Path(name) if not beside.is_file() and Path(name).is_file() else beside


def _select(
    sources: list[ScanSource], of: Callable[[ScanSource], str | None], wanted: Sequence[str] | None, key: str, what: str, path: Path
) -> list[ScanSource]:
    if wanted is None:
        return sources
    labels = [naming.bare_label(label, key) for label in ([wanted] if isinstance(wanted, str) else wanted)]
    there = sorted({of(s) or "none" for s in sources})
    unknown = [label for label in labels if label not in there]
    if unknown:
        raise SettingsError(f"{path}: unknown {what} {', '.join(unknown)}; found: {shortlist(there, 20)}")
    return [s for s in sources if of(s) in labels]


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


def _check_unique(sources: list[ScanSource], path: Path) -> None:
    first: dict[str, ScanSource] = {}
    for source in sources:
        if source.label in first and source.bold.resolve() == first[source.label].bold.resolve():
            raise SettingsError(f"{path}: {source.bold} is listed twice; list each recording once")
        if source.label in first:
            raise SettingsError(
                f"{path}: two scans are called {source.label}: {first[source.label].bold} and {source.bold}; tell them apart with "
                "a table that has the columns bold, subject and session"
            )
        first[source.label] = source
