"""Comparison of pre-trained models on unseen participants."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pnet_jax.commands.options import Bar, Done, Flat, Selection, sources_of
from pnet_jax.config import ConstructConfig, SimulateConfig
from pnet_jax.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Simulated participants, if there is no INPUT.

    Attributes:
      subjects: Number of simulated participants.
      minutes: Duration of a simulated session in minutes.
      tier: Difficulty of the simulation.
      full: Use a resolution of 2 mm instead of 3 mm for the condition `resolution`.
      seed: Seed of the first simulated participant; further participants have consecutive seeds.
    """

    subjects: int = 3
    minutes: float = 10.0
    tier: Literal["easy", "medium", "hard", "real"] = "medium"
    full: bool = False
    seed: int = 1_000_000  # equals evaluate.cases.HELD_OUT_SEED, whose module imports jax


def encoder(
    input: str | None = None,
    /,
    *,
    models: tuple[str, ...] = ("pnet-linear",),
    conditions: tuple[str, ...] = (),
    atlas: str | None = None,
    parcels: int | None = None,
    dataset: str = "",
    out: str | None = None,
    simulated: Annotated[Simulated, Flat] = Simulated(),
    selection: Annotated[Selection, Flat] = Selection(),
) -> Done:
    """Compare models on unseen simulated participants, or on the scans in INPUT.

    Parcels of one recording are scored on another of the same participant. The first model is the reference for the others.

    Args:
      input: File, list of files, or BIDS-derivatives folder; simulated participants by default.
      models: Names of shipped models, checkpoint folders or folders of training runs.
      conditions: Conditions to compare: full, 6min, 3min, 1min, tr, roi, resolution; by default all, with INPUT all but tr, resolution.
      atlas: dseg or dlabel file of the atlas from which all models start.
      parcels: Number of parcels of the atlas of the first model (200 by default; without INPUT, the true 100 parcels).
      dataset: Name of the dataset of INPUT, if it was given to `pnet prepare`.
      out: JSON file for all rows.
      simulated: Simulated participants.
      selection: Scans and files.
    """
    args = _Asked(input, tuple(models), tuple(conditions), parcels, dataset, simulated, selection)
    from pnet_jax.checkpoint import load_model
    from pnet_jax.evaluate import encoder as comparison
    from pnet_jax.ingest import load_atlas
    from pnet_jax.outputs import check_writable
    from pnet_jax.outputs.atomic import write_text
    from pnet_jax.simulate.cohort import check

    if not input:
        check(_cohort(args))
    if out:
        check_writable(Path(out).absolute().parent)
    loaded = [dataclasses.replace(load_model(given), name=name) for given, name in zip(models, _short_names(models), strict=True)]
    given = load_atlas(atlas, surfaces=selection.surfaces) if atlas else None
    skipped: dict[str, str] = {}
    cases, total, excluded = _recorded(args, loaded, given, skipped) if input else _simulated(args, given)
    with Bar(total, "evaluate", "pair") as bar:

        def watched():
            done = 0
            for done, case in enumerate(cases, 1):
                bar(f"{case.name}, {case.subject}", done - 1, max(total, done))
                yield case
            bar("", done, done)

        try:
            rows = comparison.gate(loaded, watched())
        finally:
            bar.bar.close()
            for error in skipped.values():
                print(f"left out: {error}", file=sys.stderr)
    summed = comparison.summary(rows)
    lines = list(comparison.table(summed))
    lines.append(
        "Personalised parcels of one recording are scored on another of the same participant, even where construct returns the atlas."
    )
    if any(not comparison.same_references(model, loaded[0]) for model in loaded):
        lines.append("R² cannot be compared between models with different references, because their fingerprints differ.")
    lines += comparison.verdicts(summed) if len(loaded) > 1 else ()
    result = _result(args, loaded, rows, summed, excluded)
    if out:
        write_text(out, json.dumps(result, indent=2) + "\n")
        lines.append(f"Rows: {out}")
    return Done("\n".join(lines), result, 1 if skipped else 0)


@dataclasses.dataclass(frozen=True)
class _Asked:
    input: str | None
    models: tuple[str, ...]
    conditions: tuple[str, ...]
    parcels: int | None
    dataset: str
    simulated: Simulated
    selection: Selection


def _short_names(given: Sequence[str]) -> list[str]:
    """Return the names of the folders, or the given paths if two names are equal."""
    names = [Path(one).name or one for one in given]
    return names if len(set(names)) == len(names) else list(given)


def _simulated(args: _Asked, atlas: Any) -> tuple[Iterator[Any], int, dict[str, list[str]]]:
    from pnet_jax.evaluate.cases import CONDITIONS, count_simulated, simulated_cases

    given = {"dataset": args.dataset} | {
        name: getattr(args.selection, name) for name in ("participant_label", "session_label", "task", "mask", "confounds")
    }
    for name, value in given.items():
        if value:
            raise SettingsError(f"--{name.replace('_', '-')} is for scans: give INPUT, or leave it out")
    conditions, config = args.conditions or CONDITIONS, _cohort(args)
    return simulated_cases(conditions, config, atlas=atlas, full=args.simulated.full), count_simulated(conditions, config), {}


def _cohort(args: _Asked) -> SimulateConfig:
    parcels = 100 if args.parcels is None else args.parcels
    made = args.simulated
    return SimulateConfig(subjects=made.subjects, tier=made.tier, parcels=parcels, minutes=made.minutes, seed=made.seed)


def _recorded(args: _Asked, models: Sequence[Any], atlas: Any, skipped: dict[str, str]) -> tuple[Iterator[Any], int, dict[str, list[str]]]:
    """Return the cases of scans, their largest possible number, and the excluded participants; add unreadable scans to `skipped`."""
    from pnet_jax.config import CleaningConfig
    from pnet_jax.construction import resolve
    from pnet_jax.evaluate.cases import RECORDED, scan_cases
    from pnet_jax.evaluate.encoder import unseen

    atlas = resolve(ConstructConfig(), atlas=atlas, parcels=args.parcels, model=models[0], surfaces=args.selection.surfaces).atlas
    found, load = sources_of(args.selection, str(args.input))
    sources, excluded, unlisted, alike = unseen(found, models, args.dataset)
    for line in _said_of_training(found, excluded, unlisted, alike):
        print(line, file=sys.stderr)
    conditions = args.conditions or RECORDED

    def scans():
        for source in sources:
            try:
                if source.problem:
                    raise ValueError(source.problem)
                yield source.load(CleaningConfig(), **load)
            except (ValueError, OSError) as error:
                skipped[source.label] = str(error)

    return scan_cases(scans(), atlas, conditions, args.dataset), len(sources) * len(conditions), excluded


def _said_of_training(
    found: Sequence[Any], excluded: dict[str, list[str]], unlisted: Sequence[str], alike: dict[str, list[str]]
) -> Iterator[str]:
    subjects = len({source.subject for source in found})
    for model in dict.fromkeys(name for names in excluded.values() for name in names):
        count = sum(model in names for names in excluded.values())
        yield f"excluded: {count} of {subjects} participants, because {model} was trained on them"
    for model in unlisted:
        yield f"warning: {model} does not list its training participants, so none could be excluded"
    if alike:
        names = ", ".join(dict.fromkeys(name for one in alike.values() for name in one))
        yield (
            f"note: {len(alike)} participants have the same labels as training participants of other data sets ({names}); if INPUT is one "
            "of these data sets, give --dataset as in pnet prepare"
        )


def _result(
    args: _Asked, models: Sequence[Any], rows: Sequence[Any], summed: Sequence[Any], excluded: dict[str, list[str]]
) -> dict[str, Any]:
    import jax

    from pnet_jax.bench.results import describe_versions, today
    from pnet_jax.evaluate import encoder

    result = {
        "program": "pnet evaluate encoder",
        "date": today(),
        "seed": None if args.input else args.simulated.seed,
        "versions": describe_versions(),
        "device": jax.devices()[0].device_kind,
        "models": [{"name": m.name, "digest": m.digest, "encoder": type(m.encoder).__name__} for m in models],
        "dataset": args.dataset,
        "excluded": excluded,
        "rows": rows,
        "summary": summed,
        "better": encoder.better(summed),
    }
    return encoder.without_nan(result)
