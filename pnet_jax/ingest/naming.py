"""File names: BIDS entities, subject, sibling files and template space, and the name of a scan in messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pnet_jax.errors import InputError
from pnet_jax.scan import scan_label as scan_label

EXTENSIONS = (
    *(".dtseries.nii", ".ptseries.nii", ".dlabel.nii", ".nii.gz", ".nii", ".func.gii", ".label.gii", ".surf.gii"),
    *(".tsv", ".csv", ".npy", ".1d", ".txt"),
)
GIFTI_SERIES, GIFTI_LABELS = ".func.gii", ".label.gii"
TABLES = (".tsv", ".csv", ".npy", ".1d", ".txt")  # extensions of tables of ROI series
NATIVE = ("preproc", "optcom")  # desc- of fMRIPrep's preprocessed runs; without a space- entity they are in the native space of the run
MANY_NAMES, KEPT_FOLDERS = 1000, 8
_LARGE_FOLDERS: dict[tuple[str, int], dict[str, list[str]]] = {}  # names by subject, by path and modification time of the folder
VERSIONS = ("space", "res", "den", "desc", "cohort", "hemi")  # entities that differ between files of the same run


def split_name(path: str | Path) -> tuple[str, str]:
    """Split a file name into its stem and its extension in lower case (`".nii.gz"`, `".dtseries.nii"`, …)."""
    name = Path(path).name
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)], extension
    return Path(name).stem, Path(name).suffix.lower()


def entities_of(path: str | Path) -> dict[str, str]:
    """Return the BIDS entities of a file name, including `sub`: `{"sub": "01", "task": "rest", …}`."""
    pairs = [part.split("-", 1) for part in split_name(path)[0].split("_") if "-" in part]
    return {key: value for key, value in pairs if re.fullmatch("[a-z]+", key) and value}


def suffix_of(path: str | Path) -> str:
    """Return the suffix of a BIDS name: `"bold"`, `"mask"`, `"timeseries"`."""
    return split_name(path)[0].rsplit("_", 1)[-1]


def is_bids(path: str | Path) -> bool:
    """Return whether a name has at least a subject and a suffix."""
    return "sub" in entities_of(path) and "-" not in suffix_of(path)


def bare_label(label: str, key: str = "sub") -> str:
    """Return a label without its prefix: `"sub-01"` and `"01"` both give `"01"`."""
    return str(label).strip().removeprefix(f"{key}-")


def identity(path: Path | None, given: Mapping[str, str] | None) -> tuple[str, dict[str, str]]:
    """Return the subject and the other entities; `given` takes precedence over the file name.

    The stem of a name without `sub-` is the subject. The entity `hemi` of a GIFTI file is dropped, because the recording comprises both
    hemispheres.
    """
    entities = entities_of(path) if path is not None else {}
    if path is not None and split_name(path)[1] == GIFTI_SERIES:
        entities.pop("hemi", None)
    entities |= {key: bare_label(value, key) for key, value in (given or {}).items()}
    subject = entities.pop("sub", "")
    if not subject and path is not None:
        subject = re.sub("[^A-Za-z0-9]", "", split_name(path)[0])
    return subject or "unknown", entities


def dataset_folder(path: str | Path, subject: str) -> str:
    """Return the dataset folder of a file, the one that contains `sub-<subject>`; it distinguishes participants with the same label.

    Args:
      path: File of a recording.
      subject: Label without `sub-`.

    Returns:
      The folder; empty if the file is not inside a folder of the subject, so that the dataset is unknown.

    Example:
      >>> dataset_folder("abide/derivatives/sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", "01")
      'abide/derivatives'
      >>> dataset_folder("bold.nii.gz", "01")
      ''
    """
    folders = Path(path).parts[:-1]
    own = f"sub-{subject}"
    return str(Path(*folders[: folders.index(own)])) if own in folders else ""


def sibling(path: Path, suffix: str, extensions: tuple[str, ...], desc: str | None, same: tuple[str, ...] = ()) -> Path | None:
    """Find the file beside `path` that describes the same recording.

    Its entities, apart from `desc`, are among those of `path`; if several files qualify, the one that shares most entities is returned. If
    none does, numbers that differ only in leading zeros (`run-1`, `run-01`) count as equal, provided that exactly one file matches.
    A file whose entities match another recording in the folder better is never returned.

    Args:
      path: File with a BIDS name.
      suffix: BIDS suffix of the sibling, e.g. `"mask"`.
      extensions: Accepted extensions of the sibling.
      desc: `desc-` entity of the sibling, or None if it has none.
      same: Entities that the sibling must have if `path` has them, e.g. `("space", "res")` for a mask.

    Returns:
      The file, or None if there is none.
    """
    subject = entities_of(path).get("sub", "")
    there = [file for file in _of_subject(path.parent, subject, suffix) if split_name(file)[1] in extensions]
    there = [file for file in there if entities_of(file).get("desc") == desc]
    for numbered in (False, True):
        own, best = _without(path, ("desc",), numbered), dict[Path, int]()
        for candidate in there:
            entities = _without(candidate, ("desc",), numbered)
            lacking = any(key in own and key not in entities for key in same)
            if entities.items() <= own.items() and not lacking and not _of_another(candidate, path):
                best[candidate] = len(entities)
        closest = [file for file, shared in best.items() if shared == max(best.values())]
        if closest and (len(closest) == 1 or not numbered):
            return closest[0]
    return None


def run_entities(path: str | Path) -> dict[str, str]:
    """Return the entities that all files of a run share, regardless of space, resolution and processing."""
    return _without(path, VERSIONS)


def _of_another(candidate: Path, path: Path) -> bool:
    """Return whether a file matches another recording in the folder better than the one at `path`."""
    exact = run_entities(candidate)
    if exact == run_entities(path):
        return False
    others = _of_subject(path.parent, exact.get("sub", ""), suffix_of(path))
    return any(run_entities(file) == exact for file in others if split_name(file)[1] != ".json")


def _of_subject(folder: Path, subject: str, suffix: str) -> list[Path]:
    """List a subject's files with one suffix in a folder."""
    names = [name for name in names_about(folder, subject) if name.startswith(f"sub-{subject}") and f"_{suffix}." in name]
    return [folder / name for name in sorted(names) if suffix_of(name) == suffix]


def names_about(folder: Path, subject: str) -> list[str]:
    """List the names in a folder that belong to a subject or to no subject; empty if the folder cannot be listed.

    The names in a folder with thousands of files are cached until the folder changes, because every scan needs them.
    """
    try:
        key = str(folder), os.stat(folder).st_mtime_ns
        groups = _LARGE_FOLDERS.get(key) or _grouped(os.listdir(folder))
    except OSError:
        return []
    if sum(map(len, groups.values())) >= MANY_NAMES and key not in _LARGE_FOLDERS:
        while len(_LARGE_FOLDERS) >= KEPT_FOLDERS:
            _LARGE_FOLDERS.pop(next(iter(_LARGE_FOLDERS)))
        _LARGE_FOLDERS[key] = groups
    return groups.get("", []) + groups.get(subject, [])


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_subject_of(name), []).append(name)
    return groups


def _subject_of(name: str) -> str:
    """Return the text between `sub-` and the next `_` or `.` of a name; empty for other names."""
    return re.split(r"[_.]", name[4:], maxsplit=1)[0] if name.startswith("sub-") else ""


def _without(path: str | Path, keys: tuple[str, ...], numbered: bool = False) -> dict[str, str]:
    kept = {key: value for key, value in entities_of(path).items() if key not in keys}
    return {key: value.lstrip("0") or "0" if numbered and value.isdigit() else value for key, value in kept.items()}


def mask_beside(path: Path) -> Path | None:
    """Find the `desc-brain_mask` of a volume with a BIDS name, in the same space and resolution."""
    return sibling(path, "mask", (".nii.gz", ".nii"), "brain", same=("sub", "ses", "task", "run", "space", "res"))


def confounds_beside(path: Path) -> Path | None:
    """Find the `desc-confounds_timeseries.tsv` of a run (`_regressors.tsv` before fMRIPrep 20.2)."""
    same = ("sub", "ses", "task", "run")
    return sibling(path, "timeseries", (".tsv",), "confounds", same) or sibling(path, "regressors", (".tsv",), "confounds", same)


def mni_name(space: str | None, entities: Mapping[str, str], moved: bool, where: str) -> tuple[str, list[str]]:
    """Return the name of the space of a volume's affine, and warnings.

    Args:
      space: Space given by the user, or None; takes precedence over the `space-` entity of a volume in MNI space.
      entities: BIDS entities of the file name.
      moved: Whether a transform to MNI space is given, so that any space is accepted.
      where: Name of the scan in messages.

    Raises:
      InputError: If the space is not an MNI space and there is no transform. fMRIPrep files without a space entity are in the native space
        of the run.
    """
    if moved:  # the transform does not change the space of the image itself
        return entities.get("space") or space or "native", []
    name = space or entities.get("space")
    if name is None and entities.get("desc") in NATIVE:
        raise InputError(
            f"{where}: wrong space: desc-{entities['desc']} without a space- entity is fMRIPrep's output in the native space of the run, "
            "expected an MNI space (space-MNI152NLin2009cAsym, …); use the run's file in MNI space, name its MNI space with space= "
            "(--space), or pass native_to_mni= (--native-to-mni)"
        )
    if name is None:
        return "unknown", ["the file name has no space- entity and no space was given; its affine is taken to lead to MNI"]
    if name.startswith("MNI"):
        return name, []
    raise InputError(
        f"{where}: wrong space entity: expected an MNI space (space-MNI152NLin2009cAsym, space-MNI152NLin6Asym, …), found "
        f"space-{name}. Take the run's file in MNI space, or pass native_to_mni= (--native-to-mni): a 4 x 4 matrix, mm of {name} to MNI mm"
    )
