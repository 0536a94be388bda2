"""Repetition time from the argument, the JSON sidecars or the header, in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.reading import read_json


@dataclasses.dataclass(frozen=True)
class HeaderTime:
    """Repetition time in the header of a recording.

    Attributes:
      seconds: Repetition time in seconds, or None if the header does not state it.
      found: Description of the header, for the error raised if no source states the repetition time.
      note: Warning to give if the header is used, or empty.
    """

    seconds: float | None
    found: str
    note: str = ""


def repetition_time(given: float | None, path: Path | None, header: HeaderTime, where: str, warnings: list[str]) -> float:
    """Return the TR in seconds: the argument, or RepetitionTime of the JSON files that apply to the recording, or its header.

    Args:
      given: Repetition time in seconds, or None.
      path: File of the recording, or None.
      header: Repetition time in its header.
      where: Name of the scan in messages.
      warnings: List that warnings are appended to.

    Raises:
      InputError: If none of them states a repetition time, or the value is not plausible.
    """
    if given is not None:
        return check_tr(given, "tr=", where)
    said = None if path is None else _sidecar_tr(path, where, warnings)
    if said is not None:
        if header.seconds is not None and abs(said - header.seconds) > 2e-3:
            warnings.append(f"RepetitionTime in JSON is {said} s, in the header {header.seconds:g} s: JSON is used")
        return check_tr(said, "RepetitionTime in the JSON file", where)
    if header.seconds is None:
        raise InputError(
            f"{where}: no repetition time: {header.found} and no JSON file that applies to it has RepetitionTime; "
            "give it in seconds with tr= (--tr)"
        )
    if header.note:
        warnings.append(header.note)
    return check_tr(round(header.seconds, 6), "the header's TR", where)


def check_tr(tr: float, what: str, where: str) -> float:
    """Raise unless a repetition time is plausible in seconds."""
    if not 0.05 <= float(tr) <= 30:
        hint = "; that looks like milliseconds" if float(tr) >= 100 else ""
        raise InputError(f"{where}: {what} is {tr}, expected 0.05 to 30 seconds{hint}; give it in seconds with tr= (--tr)")
    return float(tr)


def sidecars(path: Path) -> Iterator[Path]:
    """Yield the JSON files that apply to a recording, nearest first, by the BIDS inheritance principle.

    The file with the name of the recording comes first, followed by files in its folder and each parent folder up to the root of the
    dataset that have the same suffix and only entities of the recording, those with more entities first.
    """
    own = path.with_name(naming.split_name(path)[0] + ".json")
    if own.exists() or own.is_symlink():
        yield own
    if not naming.is_bids(path):
        return
    entities, suffix = naming.entities_of(path), naming.suffix_of(path)
    root = naming.dataset_folder(path, entities["sub"])
    for folder in path.parents:
        names = naming.names_about(folder, entities["sub"])
        names = [name for name in names if name.endswith(f"{suffix}.json") and name != own.name]
        found = [folder / name for name in names if naming.suffix_of(name) == suffix]
        applying = [file for file in found if naming.entities_of(file).items() <= entities.items()]
        yield from sorted(applying, key=lambda file: (-len(naming.entities_of(file)), file.name))
        if not root or folder == Path(root):
            return


def _sidecar_tr(path: Path, where: str, warnings: list[str]) -> float | None:
    for file in sidecars(path):
        try:
            value = read_json(file, where).get("RepetitionTime")
        except FileNotFoundError as error:  # a broken link; other files may contain the value
            warnings.append(f"JSON file not read: {str(error).removeprefix(f'{where}: ')}")
            continue
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InputError(f"{where}: {file} has no valid RepetitionTime: expected seconds, found {value!r:.80}")
        try:
            return float(value)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{where}: {file} has no valid RepetitionTime ({error})") from error
    return None
