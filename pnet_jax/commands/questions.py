"""`pnet evaluate QUESTION COHORT OUT`: the options of each evaluation, the function it calls, and what is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from pnet_jax.commands.options import Bar, Parser, make_parser, parse
from pnet_jax.errors import InputError, SettingsError

Add = Callable[..., Any]
Run = Callable[[Any, Namespace, Any], Any]


class Question(NamedTuple):
    """An evaluation of a cohort.

    Attributes:
      about: one sentence for `--help`.
      options: adds its options to a parser.
      run: cohort, arguments and progress -> Answer.
    """

    about: str
    options: Callable[[Add], None]
    run: Run


def questions() -> dict[str, Question]:
    """Return all evaluations of a cohort by name."""
    return {
        "consistency": Question(
            "Whether repeated scans of a participant give the same network, beside noise and other participants.",
            _repeat_options,
            _consistency,
        ),
        "parcellation": Question(
            "Quality of the parcels, and their agreement within and between participants.", _no_options, _parcellation
        ),
        "identifiability": Question(
            "Whether a participant is recognised among others from labels and from edges.", _layer_options, _identifiability
        ),
        "motion": Question("How much head motion is left in the edges.", _motion_options, _motion),
        "diagnosis": Question(
            "How well networks tell two groups of participants apart, in participants and sites that were held out.",
            _class_options,
            _diagnosis,
        ),
        "prediction": Question(
            "How well networks predict a number such as age, in participants and sites that were held out.", _number_options, _prediction
        ),
        "circuits": Question(
            "Which edges, networks and nodes differ between groups or go with a number, with family-wise error.",
            _circuit_options,
            _circuits,
        ),
        "modulation": Question(
            "What a dynamic model predicts for interventions in patients, or whether it predicts a measured stimulation.",
            _modulation_options,
            _modulation,
        ),
    }


def evaluate_cohort(name: str, arguments: Sequence[str]) -> int:
    """Evaluate a cohort by one question, and write tables, JSON and a page."""
    question = questions()[name]
    parser = _parser(f"evaluate {name}", question.about)
    question.options(parser.add_argument)
    _, args = parse(parser, None, arguments)
    cohort = _load(args.cohort, args)
    with Bar(0, f"evaluate {name}", "fit") as bar:
        answer = question.run(cohort, args, bar)
    _written([answer], {}, cohort, args, name)
    return 0


def evaluate_all(arguments: Sequence[str]) -> int:
    """Evaluate a cohort by every question that it has data for."""
    parser = _parser("evaluate all", "Evaluates COHORT by every question that it has data for; the others are listed with the reason.")
    _common(parser.add_argument)
    add = parser.add_argument
    add("--diagnosis", type=str | None, metavar="COLUMN", help="column with two classes, for diagnosis and circuits")
    add("--prediction", type=str | None, metavar="COLUMN", help="column with numbers, for prediction")
    _, args = parse(parser, None, arguments)
    cohort = _load(args.cohort, args)
    answers, left_out = [], {}
    for name, question in questions().items():
        try:
            given = _defaults(name, question, args)
            with Bar(0, f"evaluate {name}", "fit") as bar:
                answers.append(question.run(cohort, given, bar))
        except (InputError, SettingsError) as error:
            left_out[name] = str(error).removeprefix(f"{name}: ")
            print(f"{name} was not evaluated: {left_out[name]}", file=sys.stderr)
    if not answers:
        raise InputError("no evaluation was possible: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    _written(answers, left_out, cohort, args, "evaluation")
    return 0


def _parser(command: str, about: str) -> Parser:
    parser = make_parser(command, about)
    add = parser.add_argument
    add("cohort", type=str, metavar="COHORT", help="store of pnet collect or pnet import, or a folder of results of pnet construct")
    add("out", type=str, metavar="OUT", help="folder for tables, JSON and the page")
    add("--atlas", type=str | None, metavar="LABEL", help="atlas label, if a folder holds results for several atlases")
    add("--participants", type=str | None, metavar="FILE", help="table with participant_id and covariates, for a folder of results")
    add("--seed", type=int, default=0, help="seed of folds, bootstrap draws and permutations")
    add("--report", type=bool, default=True, help="write the HTML page")
    return parser


def _common(add: Add) -> None:
    add("--baseline", type=str | None, metavar="COHORT", help="the same scans in a fixed atlas, as the plain connectome")
    add("--site", type=str, default="site", metavar="COLUMN", help="column of the sites")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns that are held constant or that form the baseline")
    add("--permutations", type=int, default=1000, help="number of permutations; 0 leaves them out")


def _fold_options(add: Add) -> None:
    from pnet_jax.evaluate.compare import DEFAULT, FEATURES

    _common(add)
    add("--features", nargs="+", type=str, default=list(DEFAULT), metavar="NAME", help=f"of {' '.join(FEATURES)}, or edge layers")
    add("--leave-out", type=str, default="auto", metavar="WHAT", help="site, subject, or auto: sites if there are three or more")
    add("--folds", type=int, default=5, help="number of folds if subjects are left out")
    add("--repeats", type=int, default=5, help="number of repeats with other random folds")
    add("--fold-list", type=str | None, metavar="FILE", help="TSV with participant_id and fold: fixed folds, so that results compare")
    add("--learning", nargs="+", type=float, default=[0.25, 0.5, 0.75], metavar="SHARE", help="shares of the training participants")


def _no_options(add: Add) -> None:
    """Add nothing."""


def _layer_options(add: Add) -> None:
    add("--layers", nargs="+", type=str, metavar="NAME", help="edges to evaluate; all of the cohort by default")


def _modulation_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with patients and controls, or OFF and ON with --measured")
    add("--positive", type=str | None, metavar="CLASS", help="class of the patients, or of scans with stimulation; the last by default")
    add("--kind", type=str, default="coupling", help="coupling (gain of a node's links), local (its decay) or forcing (a periodic input)")
    add("--cap", type=float, default=0.2, metavar="ENERGY", help="largest energy, relative to the power of one node's own drift")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns that are removed from the edges")
    add("--max-patients", type=int, default=100, help="number of patients that are scored")
    add(
        "--measured",
        type=str | None,
        metavar="COLUMN",
        help="protocol for measured stimulation, two scans OFF and two ON of each patient: column that names the stimulated site",
    )


def _repeat_options(add: Add) -> None:
    _layer_options(add)
    add(
        "--reference",
        type=str | None,
        metavar="COHORT",
        help="other scans of the same participants, e.g. longer ones, or the truth of a simulation",
    )


def _motion_options(add: Add) -> None:
    _layer_options(add)
    add("--fd", type=str, default="mean_fd", metavar="COLUMN", help="column with mean framewise displacement in mm")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns that are held constant")


def _circuit_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with two classes, e.g. the diagnosis, or numbers")
    add("--positive", type=str | None, metavar="CLASS", help="class that counts as 1; the last in order by default")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns that are held constant, e.g. age and mean_fd")
    add("--layer", type=str, default="pearson", help="measure of the edges; shrunk and guided edges are refused")
    add("--site", type=str, default="site", metavar="COLUMN", help="column of the sites, within which participants are permuted")
    add("--tail", type=str, default="both", help="both, greater or less")
    add("--permutations", type=int, default=5000, help="number of permutations")


def _class_options(add: Add) -> None:
    from pnet_jax.evaluate.models import MODELS

    add("--target", type=str, required=True, metavar="COLUMN", help="column with two classes, e.g. the diagnosis")
    add("--positive", type=str | None, metavar="CLASS", help="class that counts as 1, e.g. patient; the last in order by default")
    _fold_options(add)
    add("--models", nargs="+", type=str, default=list(MODELS), metavar="NAME", help=f"of {' '.join(MODELS)}, for the plain connectome")
    add("--minutes", nargs="+", type=float, default=[], metavar="MIN", help="scan lengths of a second learning curve")


def _number_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with numbers, e.g. age")
    _fold_options(add)


def _consistency(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.consistency import consistency

    reference = _load(args.reference, args) if args.reference else None
    return consistency(cohort, args.layers, reference=reference, seed=args.seed)


def _parcellation(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.parcellation import parcellation

    return parcellation(cohort, seed=args.seed)


def _identifiability(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.identifiability import identifiability

    return identifiability(cohort, args.layers, seed=args.seed)


def _motion(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.motion import motion

    return motion(cohort, args.layers, fd=args.fd, covariates=args.covariates or (), seed=args.seed)


def _circuits(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.circuits import circuits

    chosen = {"layer": args.layer, "site": args.site, "tail": args.tail, "permutations": args.permutations}
    return circuits(cohort, args.target, covariates=args.covariates or (), positive=args.positive, seed=args.seed, **chosen)


def _modulation(cohort: Any, args: Namespace, progress: Any) -> Any:
    if args.measured:
        from pnet_jax.evaluate.modulation_measured import measured_modulation, runs_of

        return measured_modulation(runs_of(cohort, args.target, args.measured, on=args.positive), seed=args.seed)
    from pnet_jax.evaluate.modulation import modulation

    chosen = {"kind": args.kind, "cap": args.cap, "max_patients": args.max_patients, "covariates": args.covariates or ()}
    return modulation(cohort, args.target, positive=args.positive, seed=args.seed, **chosen)


def _diagnosis(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.diagnosis import diagnosis

    return diagnosis(
        cohort,
        args.target,
        positive=args.positive,
        models=args.models,
        minutes=args.minutes,
        progress=progress,
        **_fold_arguments(args),
    )


def _prediction(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate.prediction import prediction

    return prediction(cohort, args.target, progress=progress, **_fold_arguments(args))


def _fold_arguments(args: Namespace) -> dict[str, Any]:
    return {
        "baseline": _load(args.baseline, args) if args.baseline else None,
        "features": args.features,
        "covariates": args.covariates,
        "site": args.site,
        "leave_out": args.leave_out,
        "folds": args.folds,
        "repeats": args.repeats,
        "held_out": _fold_list(args.fold_list) if args.fold_list else None,
        "permutations": args.permutations,
        "learning": args.learning,
        "seed": args.seed,
    }


def _fold_list(file: str) -> list[list[str]]:
    """Return the subjects that each fold holds out, in the order of the folds' names.

    Raises:
      InputError: the table lacks a column, or a subject is in two folds.
    """
    from pnet_jax.outputs.tables import read_rows

    rows = read_rows(file)
    if not rows or not {"participant_id", "fold"} <= set(rows[0]):
        raise InputError(f"{file}: expected columns participant_id and fold, found {', '.join(rows[0]) if rows else 'no rows'}")
    folds: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for row in rows:
        subject, fold = row["participant_id"].removeprefix("sub-"), row["fold"]
        if seen.setdefault(subject, fold) != fold:
            raise InputError(f"{file}: expected every subject in one fold, found sub-{subject} in folds {seen[subject]} and {fold}")
        folds.setdefault(fold, []).append(subject)
    return [folds[name] for name in sorted(folds)]


def _defaults(name: str, question: Question, args: Namespace) -> Namespace:
    """Return the arguments of a question in `evaluate all`: its defaults, and what was given.

    Raises:
      SettingsError: it needs a column that was not given.
    """
    target = {"diagnosis": "diagnosis", "circuits": "diagnosis", "modulation": "diagnosis", "prediction": "prediction"}.get(name)
    words = [args.cohort, args.out]
    if target is not None:
        if getattr(args, target) is None:
            raise SettingsError(f"it needs a column: --{target} COLUMN")
        words += ["--target", getattr(args, target)]
    parser = _parser(f"evaluate {name}", question.about)
    question.options(parser.add_argument)
    given = parser.parse_args(words)
    for key, value in vars(args).items():
        # Circuits need more permutations than a prediction, and have their own default.
        if key in given and value is not None and key not in ("cohort", "out") and (name, key) != ("circuits", "permutations"):
            given[key] = value
    return given


def _load(path: str, args: Namespace) -> Any:
    from pnet_jax.outputs import load_cohort

    cohort = load_cohort(path, atlas=args.atlas, participants=args.participants)
    for scan, reason in list(cohort.provenance.get("left_out", {}).items())[:20]:
        print(f"left out: {scan}: {reason}", file=sys.stderr)
    return cohort


def _written(answers: Sequence[Any], left_out: dict[str, str], cohort: Any, args: Namespace, name: str) -> None:
    import pnet_jax
    from pnet_jax.outputs.evaluation import write_answer

    about = {"cohort": str(args.cohort), "scans": len(cohort), "participants": len(cohort.subjects), "version": pnet_jax.__version__}
    files = [file for answer in answers for file in write_answer(answer, args.out, about)]
    if args.report:
        from pnet_jax.report.evaluation import write_evaluation

        head = {"Scans": f"{len(cohort):,}", "Participants": f"{len(cohort.subjects):,}", "Parcels": f"{cohort.n_parcels:,}"}
        page = Path(args.out) / f"{name}.html"
        files.append(write_evaluation(answers, page, title=Path(args.cohort).name, about=head, left_out=left_out))
    for answer in answers:
        for sentence in answer.sentences:
            print(sentence)
        for warning in answer.warnings:
            print(f"Note: {warning}", file=sys.stderr)
    print(f"{len(files)} files in {args.out}, first {files[-1].name if args.report else files[0].name}")
