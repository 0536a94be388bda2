"""Recordings in a folder of BIDS derivatives, one file for each run."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from pnet_jax.errors import SettingsError
from pnet_jax.ingest import gifti, naming
from pnet_jax.ingest.source import DENSE, GIFTI, VOLUMES, ScanSource, source_of
from pnet_jax.ingest.tables import plural, shortlist

PREFERRED_SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
TEMPLATES = ("fsaverage5", "fsaverage6", "fsaverage", "fsLR")  # of GIFTI recordings, in order of preference
PREFERRED_DESC = ("preproc", "smoothAROMAnonaggr", "denoised")  # prefer files that are not denoised, because pnet_jax cleans the signals
SEARCHED = (
    "*_space-MNI…_desc-preproc_bold.nii.gz (fMRIPrep), *_space-MNI…_desc-denoised_bold.nii.gz (xcp_d) and, without volumes or with "
    "space='fsLR', *_space-fsLR_den-91k_bold.dtseries.nii; without these, or with the space given, "
    "*_hemi-L_space-fsaverage5_bold.func.gii with hemi-R; without any of them, sub-*_timeseries.tsv, .1D or .txt (tables of ROI series)"
)
RESULTS = ".pnet"  # folder that marks results of pnet_jax
SKIPPED_FOLDERS = {"anat", "figures", "log", "logs", "sourcedata", "dwi", "fmap"}
ROI_NAME = re.compile(r"(^|_)roi(s_|signals)", re.IGNORECASE)  # tables of ABIDE and DPABI


def in_folder(folder: Path, space: str | None) -> list[ScanSource]:
    """Find one source for each run below a folder; runs and subjects without a readable recording are returned with their problem.

    Args:
      folder: Folder of derivatives, searched at any depth; links are followed.
      space: Space of the files to use; None for the preferred space of each run.

    Raises:
      SettingsError: If the folder has no readable recording.
    """
    everything = list(walk(folder))
    files = [f for f in everything if f.name.startswith("sub-") and naming.is_bids(f) and naming.suffix_of(f) == "bold"]
    if not files and (tables := [f for f in everything if _is_roi_table(f)]):
        return [source_of(f) for f in tables]
    volumes = [f for f in files if naming.split_name(f)[1] in VOLUMES and naming.entities_of(f).get("desc") in PREFERRED_DESC]
    dense = [f for f in files if naming.split_name(f)[1] in DENSE and naming.entities_of(f).get("desc", "preproc") in PREFERRED_DESC]
    vertices = [f for f in files if naming.split_name(f)[1] in GIFTI and naming.entities_of(f).get("desc", "preproc") in PREFERRED_DESC]
    surfaces = _pairs(vertices)
    usable = [f for f in volumes if _space_of(f).startswith("MNI")]
    drawn = [f for f in surfaces if _space_of(f) in TEMPLATES]
    chosen = {None: usable or dense or drawn, "fsLR": dense or drawn}
    candidates = chosen.get(space, drawn if space in TEMPLATES else usable)
    if space is not None:
        candidates = [f for f in candidates if _space_of(f) == space]
    if not candidates:
        raise SettingsError(_nothing_found(folder, files, volumes + dense + surfaces, space))
    combined = {_run_of(f) for f in candidates if "echo" not in naming.entities_of(f)}
    runs: dict[str, list[Path]] = {}
    for file in candidates:
        if "echo" not in naming.entities_of(file) or _run_of(file) not in combined:
            runs.setdefault(str(sorted(naming.run_entities(file).items())), []).append(file)
    sources = _preferred(list(runs.values()), folder)
    named = {id(dense): "space-fsLR", id(drawn): f"a surface template ({', '.join(TEMPLATES)})"}
    expected = f"space-{space}" if space else named.get(id(candidates), "an MNI space (space-MNI…)")
    sources += _in_other_spaces(volumes + dense + surfaces, {_run_of(f) for f in candidates}, expected)
    return sources + _without_recordings(sources, folder, everything)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, following links to folders; no folder is visited twice.

    A folder that is named like a recording is yielded as well, so that reading it raises an error.
    """

    def unreadable(error: OSError) -> None:
        warnings.warn(f"folder {error.filename} cannot be read ({error.strerror}): recordings in it are not found", stacklevel=2)

    own, seen = Path(os.path.realpath(folder)), set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = Path(os.path.realpath(where))
        if real in seen or (real != own and own.is_relative_to(real)):  # visited before, or a link to a parent of the folder
            folders[:] = []
            continue
        seen.add(real)
        if RESULTS in folders and real != own:
            warnings.warn(f"folder {where} holds results of pnet, which are not read as recordings", stacklevel=2)
            folders[:] = []
            continue
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("."))
        for link in (Path(where) / name for name in sorted(names) if name.startswith(("ses-", "func"))):
            if link.is_symlink() and not link.exists():
                warnings.warn(f"folder {link} is a broken link: recordings in it are not found", stacklevel=2)
        like_files = [f for f in folders if naming.split_name(f)[1] in VOLUMES + DENSE + GIFTI]
        yield from (Path(where) / name for name in sorted([*names, *like_files]) if not name.startswith("."))


def _pairs(files: list[Path]) -> list[Path]:
    """Return one file for each pair of hemispheres: the left one, or the right one if the left one is missing."""
    known = set(files)
    return [file for file in files if (pair := gifti.pair_of(file)) is None or pair["L"] == file or pair["L"] not in known]


def _is_roi_table(file: Path) -> bool:
    extension, entities = naming.split_name(file)[1], naming.entities_of(file)
    if extension not in naming.TABLES:
        return False
    if naming.is_bids(file) and naming.suffix_of(file) == "timeseries":
        return entities.get("desc") not in ("confounds", "motion")
    return extension in (".1d", ".txt") and bool(ROI_NAME.search(file.name))


def _nothing_found(folder: Path, files: list[Path], readable: list[Path], space: str | None) -> str:
    entities = [naming.entities_of(f) for f in files]
    if files and not any(e.keys() & {"space", "desc"} for e in entities):
        return (
            f"folder {folder}: expected BIDS derivatives, found raw data: none of its {len(files)} *_bold files has a space- or desc- "
            "entity; run fMRIPrep first and give its output folder"
        )
    seen = sorted({_space_of(f) or "none (native)" for f in readable})
    there = f"found recordings in the spaces {shortlist(seen)}" if seen else f"no such file among {len(files)} *_bold files"
    wanted = f"recordings in space-{space}" if space else "recordings"
    return f"folder {folder}: no {wanted} found; searched for {SEARCHED}; {there}"


def _preferred(runs: list[list[Path]], folder: Path) -> list[ScanSource]:
    """Choose one source for each run; warn which dataset is used if several in the folder hold the run."""
    sources, doubled = [], dict[tuple[str, str], int]()
    for choices in runs:
        first = min(choices, key=_preference)
        source, place = source_of(first), _data_set(first)
        equal = [f for f in choices if _preference(f) == _preference(first) and os.path.realpath(f) != os.path.realpath(first)]
        stem = naming.split_name(first)[0]
        if twins := [f.name for f in choices if f.parent == first.parent and f != first and naming.split_name(f)[0] == stem]:
            warnings.warn(f"{source.label}: {first.name} is read, and {shortlist(twins)} beside it is not", stacklevel=4)
        if equal:
            said = f"{source.label}: expected one recording of this name, found {shortlist([str(f) for f in [first, *equal]], 3)}"
            source = dataclasses.replace(source, problem=f"{said}; give the folder of one data set as INPUT")
        elif elsewhere := sorted({_data_set(f) for f in choices} - {place}):
            doubled[place, shortlist(elsewhere)] = doubled.get((place, shortlist(elsewhere)), 0) + 1
        sources.append(source)
    for (place, others), n in doubled.items():
        warnings.warn(f"folder {folder}: several data sets hold {plural(n, 'run')}: read from {place}, not from {others}", stacklevel=4)
    return sources


def _in_other_spaces(files: list[Path], taken: set[str], expected: str) -> list[ScanSource]:
    """Return the runs of which no file was selected; single echoes count as the run combined from them."""
    others: dict[str, list[Path]] = {}
    for file in files:
        others.setdefault(_run_of(file), []).append(file)
    out = []
    for run, choices in others.items():
        if run not in taken:
            found = sorted({f"space-{_space_of(f)}" if _space_of(f) else "native space (no space- entity)" for f in choices})
            source = source_of(min(choices, key=lambda f: ("echo" in naming.entities_of(f), _preference(f))))
            entities = {key: value for key, value in source.entities.items() if key != "echo"}
            source = dataclasses.replace(source, entities=entities)
            problem = f"{source.label}: subject {source.subject} has no recording in a supported space: expected {expected}, found "
            out.append(dataclasses.replace(source, problem=problem + shortlist(found)))
    return out


def _without_recordings(sources: list[ScanSource], folder: Path, everything: list[Path]) -> list[ScanSource]:
    """Return the subjects of the same datasets without a readable recording, with the files found instead."""
    subjects, out = {source.subject for source in sources}, []
    others: dict[Path, list[str]] = {}  # files that resemble recordings, by subject folder
    for file in everything:
        if re.search(r"_bold\b", file.name) and file.suffix not in (".json", ".tsv"):
            own = next((folder for folder in file.parents if folder.name.startswith("sub-")), file.parent)
            others.setdefault(own, []).append(file.name)
    for place in sorted({_data_set(source.bold) for source in sources} - {""}):
        if not Path(place).is_relative_to(folder):
            continue
        for own in sorted(p for p in Path(place).glob("sub-*") if p.is_dir() or (p.is_symlink() and not p.suffix)):
            subject = own.name.removeprefix("sub-")
            if subject not in subjects:
                subjects.add(subject)
                why = "check whether preprocessing failed or only anatomical scans exist" if own.is_dir() else "a broken link"
                if like := others.get(own):
                    kinds = ", ".join(PREFERRED_DESC)
                    why = f"expected .nii.gz, .nii or .dtseries.nii files with a desc- entity of {kinds}, found {shortlist(like, 3)}"
                problem = f"sub-{subject}: no preprocessed BOLD recording in {own}: {why}"
                out.append(ScanSource(own, subject=subject, problem=problem))
    return out


def _data_set(file: Path) -> str:
    return naming.dataset_folder(file, naming.entities_of(file).get("sub", ""))


def _space_of(file: Path) -> str:
    return naming.entities_of(file).get("space", "")


def _run_of(file: Path) -> str:
    """Return a key that all files of a run share, including single echoes."""
    return str(sorted((k, v) for k, v in naming.run_entities(file).items() if k != "echo"))


def _preference(file: Path) -> tuple[object, ...]:
    entities = naming.entities_of(file)
    space, resolution = entities.get("space", ""), entities.get("res")
    return (
        PREFERRED_SPACES.index(space) if space in PREFERRED_SPACES else len(PREFERRED_SPACES),
        TEMPLATES.index(space) if space in TEMPLATES else len(TEMPLATES),
        PREFERRED_DESC.index(entities.get("desc", "preproc")),
        space,
        (0, "") if resolution is None else (1, resolution),
        naming.split_name(file)[1] == ".nii",  # fMRIPrep writes .nii.gz: a .nii beside it may be an incomplete copy
        file.name,
    )
