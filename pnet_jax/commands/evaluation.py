"""Commands that evaluate: models on unseen participants, kernels on this device."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pnet_jax.commands.options import Bar, make_parser, parse, refusing, selection_options, sources_of
from pnet_jax.config import ConstructConfig, SimulateConfig, nearest


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate a cohort by one question or by all, or encoders; the first word says which."""
    from pnet_jax.commands.questions import evaluate_all, evaluate_cohort, questions

    given = arguments[0] if arguments else ""
    asked = questions()
    if given == "encoder":
        return _evaluate_encoder(arguments[1:])
    if given == "all":
        return evaluate_all(arguments[1:])
    if given in asked:
        return evaluate_cohort(given, arguments[1:])
    if given in ("-h", "--help"):
        width = max(map(len, asked)) + 2
        print("usage: pnet evaluate EVALUATION COHORT OUT [options]\n\nevaluations:")
        for name, question in asked.items():
            print(f"  {name:{width}}{question.about}")
        print(f"  {'all':{width}}Every evaluation for which the cohort has data.")
        print(f"  {'encoder':{width}}Comparison of pre-trained models on held-out participants.")
        print("\nFor the options of an evaluation, see pnet evaluate EVALUATION --help.")
        return 0
    known = [*asked, "all", "encoder"]
    said = f"found {given!r}{nearest(given, known)}" if given else "found nothing"
    print(f"pnet evaluate: expected one of {', '.join(known)} as the first word, {said}", file=sys.stderr)
    return 2


def _evaluate_encoder(arguments: Sequence[str]) -> int:
    from pnet_jax.evaluate.cases import CONDITIONS, HELD_OUT_SEED

    parser = make_parser(
        "evaluate encoder",
        "Compares models on unseen simulated participants, or on the scans in INPUT: parcels of one recording are scored on another of the "
        "same participant. The first model is the reference for the others.",
    )
    add = parser.add_argument
    add(
        "input",
        nargs="?",
        type=str | None,
        metavar="INPUT",
        help="a file, a list of files, or a BIDS-derivatives folder; by default, simulated participants",
    )
    add(
        "--models",
        nargs="+",
        type=str,
        default=["pnet-linear"],
        metavar="MODEL",
        help="names, checkpoint folders or folders of training runs",
    )
    add(
        "--conditions",
        nargs="+",
        type=str | None,
        metavar="NAME",
        help=f"conditions to compare, from {' '.join(CONDITIONS)} (default: all; with INPUT, all but tr and resolution)",
    )
    add("--atlas", type=str | None, metavar="FILE", help="dseg or dlabel file of the atlas from which all models start")
    add(
        "--parcels",
        type=int | None,
        metavar="K",
        help="number of parcels of the atlas that the first model contains (default: 200; without INPUT, the true 100 parcels)",
    )
    add("--subjects", type=int, default=3, help="number of simulated participants")
    add("--minutes", type=float, default=10.0, help="length of a simulated session")
    add("--tier", type=str, default="medium", help="easy, medium, hard or real")
    add("--full", action="store_true", help="use a resolution of 2 mm instead of 3 mm for the condition resolution")
    add(
        "--seed",
        type=int,
        default=HELD_OUT_SEED,
        help="seed of the first simulated participant; further participants have consecutive seeds",
    )
    add(
        "--dataset", type=str, default="", metavar="NAME", help="name of the data set of INPUT, if it was given to pnet prepare (--dataset)"
    )
    add("--out", type=str | None, metavar="FILE", help="write all rows to this JSON file")
    selection_options(parser)
    _, args = parse(parser, None, arguments)
    from pnet_jax.checkpoint import load_model
    from pnet_jax.evaluate import encoder
    from pnet_jax.ingest import load_atlas
    from pnet_jax.outputs import check_writable
    from pnet_jax.simulate.cohort import check

    if not args.input:
        with refusing(parser, SimulateConfig):
            check(_cohort(args))
    if args.out:
        check_writable(Path(args.out).absolute().parent)
    models = [dataclasses.replace(load_model(given), name=name) for given, name in zip(args.models, _short_names(args.models), strict=True)]
    atlas = load_atlas(args.atlas) if args.atlas else None
    skipped: dict[str, str] = {}
    cases, total, excluded = _recorded(args, models, atlas, skipped) if args.input else _simulated(args, atlas)
    with Bar(total, "evaluate", "pair") as bar:

        def watched():
            done = 0
            for done, case in enumerate(cases, 1):
                bar(f"{case.name}, {case.subject}", done - 1, max(total, done))
                yield case
            bar("", done, done)

        try:
            rows = encoder.gate(models, watched())
        finally:
            bar.bar.close()
            for error in skipped.values():
                print(f"left out: {error}", file=sys.stderr)
    summed = encoder.summary(rows)
    print("\n".join(encoder.table(summed)))
    print("Personalised parcels of one recording are scored on another of the same participant, even where construct returns the atlas.")
    if any(not encoder.same_references(model, models[0]) for model in models):
        print("R² cannot be compared between models with different references, because their fingerprints differ.")
    for line in encoder.verdicts(summed) if len(models) > 1 else ():
        print(line)
    if args.out:
        _write_evaluation(args, models, rows, summed, excluded)
        print(f"Rows: {args.out}")
    return 1 if skipped else 0


def _short_names(given: Sequence[str]) -> list[str]:
    """What a folder is called, unless two are called the same."""
    names = [Path(one).name or one for one in given]
    return names if len(set(names)) == len(names) else list(given)


def _simulated(args: Namespace, atlas: Any) -> tuple[Iterator[Any], int, dict[str, list[str]]]:
    from pnet_jax.evaluate.cases import CONDITIONS, count_simulated, simulated_cases

    for name in ("dataset", "participant_label", "session_label", "task", "mask", "confounds"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is for scans: give INPUT, or leave it out")
    conditions, config = args.conditions or CONDITIONS, _cohort(args)
    return simulated_cases(conditions, config, atlas=atlas, full=args.full), count_simulated(conditions, config), {}


def _cohort(args: Namespace) -> SimulateConfig:
    parcels = 100 if args.parcels is None else args.parcels
    return SimulateConfig(subjects=args.subjects, tier=args.tier, parcels=parcels, minutes=args.minutes, seed=args.seed)


def _recorded(
    args: Namespace, models: Sequence[Any], atlas: Any, skipped: dict[str, str]
) -> tuple[Iterator[Any], int, dict[str, list[str]]]:
    """Cases of scans, how many there are at most, and who is left out; what could not be read is left in `skipped`."""
    from pnet_jax.config import CleaningConfig
    from pnet_jax.construction import resolve
    from pnet_jax.evaluate.cases import RECORDED, scan_cases
    from pnet_jax.evaluate.encoder import unseen

    atlas = resolve(ConstructConfig(), atlas=atlas, parcels=args.parcels, model=models[0]).atlas
    found, load = sources_of(args, args.input)
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


def _write_evaluation(
    args: Namespace, models: Sequence[Any], rows: Sequence[Any], summed: Sequence[Any], excluded: dict[str, list[str]]
) -> None:
    import json

    import jax

    from pnet_jax.bench.results import describe_versions, today
    from pnet_jax.evaluate import encoder
    from pnet_jax.outputs.atomic import write_text

    result = {
        "program": "pnet evaluate encoder",
        "date": today(),
        "seed": None if args.input else args.seed,
        "versions": describe_versions(),
        "device": jax.devices()[0].device_kind,
        "models": [{"name": m.name, "digest": m.digest, "encoder": type(m.encoder).__name__} for m in models],
        "dataset": args.dataset,
        "excluded": excluded,
        "rows": rows,
        "summary": summed,
        "better": encoder.better(summed),
    }
    write_text(args.out, json.dumps(encoder.without_nan(result), indent=2) + "\n")


def bench(arguments: Sequence[str]) -> int:
    """Speed of the kernels on this device. `python -m pnet_jax.bench` is the same where only JAX is installed."""
    from pnet_jax.bench.program import main

    return main(arguments)
