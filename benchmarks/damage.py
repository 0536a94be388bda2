"""Attacks of `reliability.py` on files: one changed byte in records, results, checkpoints, group models and cohort stores."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import numpy as np
from attack import OPTIONS, Attack, Place, one_line, run
from spoilt import flip

import pnet_jax
from pnet_jax.checkpoint import load_group, load_model
from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs import load_cohort
from pnet_jax.outputs.overview import overview
from pnet_jax.outputs.status import read_record_files

FLIPS = 20  # changed bytes per record and list


def flipped(attack: Attack, place: Place) -> None:
    """Change one byte in every record and list, and in every file of a result, a cohort store, a checkpoint and a group model."""
    out = shutil.copytree(place.clean, place.work / "flipped")
    for file in sorted((out / ".pnet").rglob("*.json")):
        whole = file.read_bytes()
        unnoticed = []
        for _ in range(FLIPS):
            at = _other_byte(file, whole)
            listed = file.parent.name == "submissions"
            shown = _warned(out) if listed else [one.reason for one in overview(out) if one.state != "done"]
            if not any(str(file) in text for text in shown) or (not listed and read_record_files(out)[file.name]):
                unnoticed.append(at)
        file.write_bytes(whole)
        attack(f"{FLIPS} bytes of {file.name[-40:]}", not unnoticed, refused=True, said=unnoticed)
    subject = sorted(path for path in (out / "sub-02").rglob("*") if path.is_file())
    for file in subject:
        whole = file.read_bytes()
        _other_byte(file, whole)
        shown = [one.reason for one in overview(out, verify=True) if one.state == "stale"]
        right = len(shown) == 1 and file.name in shown[0]
        attack(f"a byte of …{file.name[-40:]}", right, refused=True, said="" if right else shown)
        file.write_bytes(whole)
    _flipped_store(attack, place, out)
    for file in (next((out / ".pnet").glob("sub-01*.json")), next(path for path in subject if "mean_timeseries.tsv" in path.name)):
        flip(file)
    code, said = run("fit-group", out, place.work / "group-of-flipped", "--parcels", "100")
    named = any("left out" in line and "mean_timeseries.tsv" in line for line in said)
    attack("fit-group of a flipped table", code == 1 and named, refused=True, said=said[-2:])
    attack.same("  and --resume", place, out)
    _flipped_models(attack, place, out)


def _other_byte(file: Path, whole: bytes) -> int:
    """Rewrite a file with one bit changed at a random position, and return the position."""
    other = bytearray(whole)
    other[at := random.randrange(len(whole))] ^= 1 << random.randrange(8)
    file.write_bytes(other)
    return at


def _warned(out: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        overview(out)
    return [str(one.message) for one in caught]


def _flipped_store(attack: Attack, place: Place, out: Path) -> None:
    """Change every file of a cohort store: it must be refused by name, or give the same numbers; then run `pnet collect` again."""
    try:
        import zarr  # noqa: F401
    except ImportError:
        attack.skip("a cohort store", "zarr is not installed")
        return
    store = place.work / "cohort.zarr"
    code, said = run("collect", out, store, "--block", "2")
    assert code == 0, said
    numbers = _numbers(load_cohort(store))
    for file in sorted(path for path in store.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        _other_byte(file, whole)
        try:
            refused, right, text = False, _numbers(load_cohort(store)) == numbers, "other numbers"
        except (InputError, SettingsError) as error:
            refused, right, text = True, str(store) in str(error), str(error)
        attack(f"a byte of {str(file.relative_to(store))[-40:]}", right, refused=refused, said="" if right else text)
        file.write_bytes(whole)
    for name in ("signals", "edges_pearson", "labels"):
        file = next(path for path in sorted((store / name / "c").rglob("*")) if path.is_file())
        flip(file)
        code, said = run("export", store, place.work / "exported", "--to", "npz")
        right = code == 1 and one_line(said) and str(store) in said[-1] and name in said[-1]
        attack(f"pnet export of flipped {name}", right, refused=True, said=said[-1:])
        code, said = run("collect", out, store)
        attack("  and pnet collect again", code == 0 and _numbers(load_cohort(store)) == numbers, said=said[-1:])


def _numbers(cohort: Cohort) -> list[object]:
    """Return the contents of a cohort in a comparable form."""
    arrays = [cohort.coverage, cohort.signals, cohort.frames, cohort.labels, cohort.confidence]
    arrays += [*cohort.edges.values(), *cohort.table.values()]
    rest = [list(cohort.edges), list(cohort.table), *(list(map(str, one)) for one in (cohort.ids, cohort.names, cohort.hemispheres))]
    return rest + [None if one is None else np.asarray(one).tobytes() for one in arrays]


def _flipped_models(attack: Attack, place: Place, out: Path) -> None:
    group, model = place.work / "group", place.work / "model"
    code, said = run("fit-group", out, group, "--parcels", "100")
    assert code == 0, said
    shutil.copytree(Path(pnet_jax.__file__).parent / "checkpoints" / "pnet-linear", model)
    for folder, load, option in ((model, load_model, "--checkpoint"), (group, load_group, "--group")):
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
            whole = file.read_bytes()
            _other_byte(file, whole)
            last = file.read_bytes()
            try:
                load(folder)
                text = "it was used"
            except SettingsError as error:
                text = str(error)
            right = str(folder) in text
            attack(f"a byte of {folder.name}: {file.name[-30:]}", right, refused=True, said="" if right else text)
            file.write_bytes(whole)
        file.write_bytes(last)
        code, said = run("construct", place.cohort, place.work / "of-flipped", *OPTIONS, option, folder)
        attack(f"{option} of that folder", code == 1 and one_line(said) and str(folder) in said[-1], refused=True, said=said[-1:])
