"""`pnet evaluate QUESTION COHORT OUT`: options of each evaluation, the function it calls, and the files it writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from pnet_jax.commands import question_inputs as inputs
from pnet_jax.commands.options import Bar, Parser, make_parser, parse
from pnet_jax.errors import InputError

Add = Callable[..., Any]
Run = Callable[[Any, Namespace, Any], Any]
# Option of `evaluate all` that names the column of an evaluation.
COLUMNS = {"diagnosis": "diagnosis", "circuits": "diagnosis", "modulation": "diagnosis", "prediction": "prediction"}


class Question(NamedTuple):
    """An evaluation of a cohort.

    Attributes:
      about: One sentence for `--help`.
      options: Function that adds the options of the evaluation to a parser.
      run: Function of a cohort, arguments and progress that returns an `Answer`.
    """

    about: str
    options: Callable[[Add], None]
    run: Run


def questions() -> dict[str, Question]:
    """Return all evaluations of a cohort by name."""
    return {
        "consistency": Question(
            "Similarity of networks from repeated scans of a participant, compared with noise and other participants.",
            _repeat_options,
            _consistency,
        ),
        "parcellation": Question("Quality of the parcels and their agreement within and between participants.", _no_options, _parcellation),
        "identifiability": Question(
            "Identification of participants across scans from edges and from labels.", _layer_options, _identifiability
        ),
        "motion": Question("Residual association of edges with head motion.", _motion_options, _motion),
        "diagnosis": Question(
            "Classification of two groups from networks of held-out participants and sites.",
            _class_options,
            _diagnosis,
        ),
        "prediction": Question(
            "Prediction of a number such as age from networks of held-out participants and sites.", _number_options, _prediction
        ),
        "circuits": Question(
            "Edges, networks and nodes that differ between groups or are associated with a number, with family-wise error control.",
            _circuit_options,
            _circuits,
        ),
        "modulation": Question(
            "Predictions of a dynamic model for interventions in patients, or a test against measured stimulation.",
            _modulation_options,
            _modulation,
        ),
    }


def evaluate_cohort(name: str, arguments: Sequence[str]) -> int:
    """Run one evaluation of a cohort, and write tables, JSON and a page."""
    question = questions()[name]
    parser = _parser(f"evaluate {name}", question.about)
    question.options(parser.add_argument)
    args = _parsed(parser, arguments)
    cohort = inputs.load(args.cohort, atlas=args.atlas, participants=args.participants)
    with Bar(0, f"evaluate {name}", "fit") as bar:
        answer = question.run(cohort, args, bar)
    _said(answer)
    files = _written(answer, cohort, args)
    _reported([answer], {}, files, cohort, args, name)
    return 0


def evaluate_all(arguments: Sequence[str]) -> int:
    """Run every evaluation for which the cohort has data.

    Returns:
      0, or 1 if an evaluation could not be made. An evaluation of a column that was not named is not requested and does not count.
    """
    parser = _parser(
        "evaluate all",
        "Run every evaluation for which COHORT has data, and list the others with the reason. The exit code is 1 if one could not be made; "
        "evaluations of a column that is not named (--diagnosis, --prediction) do not count.",
    )
    _common(parser.add_argument)
    add = parser.add_argument
    add("--diagnosis", type=str | None, metavar="COLUMN", help="column with two classes, for diagnosis, circuits and modulation")
    add("--prediction", type=str | None, metavar="COLUMN", help="column with numbers, for prediction")
    args = _parsed(parser, arguments)
    cohort = inputs.load(args.cohort, atlas=args.atlas, participants=args.participants)
    answers, left_out, files, failed = [], {}, [], False
    for name, question in questions().items():
        option = COLUMNS.get(name)
        if option is not None and getattr(args, option) is None:
            left_out[name] = f"no column was given (--{option} COLUMN)"
            continue
        try:
            with Bar(0, f"evaluate {name}", "fit") as bar:
                answer = question.run(cohort, _defaults(name, question, args), bar)
        except ValueError as error:  # the others are evaluated
            left_out[name], failed = str(error).removeprefix(f"{name}: "), True
            continue
        answers.append(answer)
        _said(answer)
        files += _written(answer, cohort, args)  # at once, so that nothing is lost if a later one is interrupted
    for name, why in left_out.items():
        print(f"{name} was not evaluated: {why}", file=sys.stderr)
    if not answers:
        raise InputError(f"no evaluation was possible for {args.cohort}; the reasons are listed above")
    _reported(answers, left_out, files, cohort, args, "evaluation")
    return int(failed)


def _parser(command: str, about: str) -> Parser:
    parser = make_parser(command, about)
    add = parser.add_argument
    add("cohort", type=str, metavar="COHORT", help="store written by pnet collect or pnet import, or folder of results of pnet construct")
    add("out", type=str, metavar="OUT", help="output folder for tables, JSON and the page")
    add("--atlas", type=str | None, metavar="LABEL", help="atlas label, if a folder contains results for several atlases")
    add(
        "--participants",
        type=str | None,
        metavar="FILE",
        help="table with the column participant_id and covariates, for a folder of results",
    )
    add("--seed", type=int, default=0, help="seed of folds, bootstrap draws and permutations")
    add("--report", type=bool, default=True, help="write the HTML page")
    return parser


def _parsed(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Parse the arguments, and check what would otherwise fail only after the evaluation."""
    _, args = parse(parser, None, arguments)
    if not 0 <= args.seed < 1 << 32:
        parser.error(f"--seed: expected a whole number from 0 to {(1 << 32) - 1}, got {args.seed}")
    inputs.check_output(args.out)
    return args


def _common(add: Add) -> None:
    add(
        "--beside",
        action="append",
        type=str,
        metavar="NAME=COHORT",
        help="other networks of the same scans, e.g. in a fixed atlas, which are compared in the same folds; may be repeated",
    )
    add("--site", type=str, default="site", metavar="COLUMN", help="column with the site of each scan")
    add(
        "--covariates",
        nargs="+",
        type=str,
        metavar="COLUMN",
        help="columns of the covariates-only baseline; in other evaluations than diagnosis and prediction, covariates",
    )
    add("--permutations", type=int, default=1000, help="number of permutations; 0 for no permutation tests")


def _fold_options(add: Add) -> None:
    from pnet_jax.evaluate.plan import DEFAULT, FEATURES

    _common(add)
    add("--features", nargs="+", type=str, default=list(DEFAULT), metavar="NAME", help=f"any of {' '.join(FEATURES)}, or edge layers")
    add(
        "--leave-out",
        type=str,
        default="auto",
        metavar="WHAT",
        help="what is held out: site, subject, or auto (sites if there are three or more)",
    )
    add("--folds", type=int, default=5, help="number of folds if subjects are held out")
    add("--repeats", type=int, default=5, help="number of repeats with different random folds")
    add("--fold-list", type=str | None, metavar="FILE", help="TSV with the columns participant_id and fold, for fixed folds")
    add(
        "--learning",
        nargs="+",
        type=float,
        default=[0.25, 0.5, 0.75],
        metavar="SHARE",
        help="fractions of the training participants in the learning curve",
    )


def _no_options(add: Add) -> None:
    """Add nothing."""


def _layer_options(add: Add) -> None:
    add("--layers", nargs="+", type=str, metavar="NAME", help="edge layers to evaluate; all layers of the cohort by default")


def _modulation_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with patients and controls, or OFF and ON with --measured")
    add(
        "--positive",
        type=str | None,
        metavar="CLASS",
        help="class of the patients, or of the scans with stimulation; the last in sorted order by default",
    )
    add(
        "--kind",
        type=str,
        default="coupling",
        help="intervention: coupling (gain of a node's links), local (its decay) or forcing (a periodic input)",
    )
    add("--cap", type=float, default=0.2, metavar="ENERGY", help="largest energy, relative to the power of the drift of one node")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns that are regressed out of the edges")
    add("--max-patients", type=int, default=100, help="largest number of patients that are scored")
    add(
        "--measured",
        type=str | None,
        metavar="COLUMN",
        help="column with the stimulated site; runs the protocol for measured stimulation, with two OFF and two ON scans of each patient",
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
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns used as covariates")


def _circuit_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with two classes, e.g. the diagnosis, or numbers")
    add("--positive", type=str | None, metavar="CLASS", help="class coded as 1; the last in sorted order by default")
    add("--covariates", nargs="+", type=str, metavar="COLUMN", help="columns used as covariates, e.g. age and mean_fd")
    add("--layer", type=str, default="pearson", help="edge layer; shrunk and guided edges are not accepted")
    add("--site", type=str, default="site", metavar="COLUMN", help="column with the site; participants are permuted within sites")
    add(
        "--modules",
        type=str | None,
        metavar="WHAT",
        help="networks for the tests between networks: the table of an atlas with the columns name or index and network, or a number of "
        "clusters of the mean network; by default the networks in the names of Schaefer parcels",
    )
    add("--modules-column", type=str, default=inputs.NETWORKS, metavar="COLUMN", help="column of the table of --modules with the networks")
    add("--primary-p", type=float, default=0.001, metavar="P", help="uncorrected p below which an edge can belong to a component (NBS)")
    add("--tail", type=str, default="both", help="tail of the test: both, greater or less")
    add("--permutations", type=int, default=5000, help="number of permutations")


def _class_options(add: Add) -> None:
    from pnet_jax.evaluate.models import MODELS

    add("--target", type=str, required=True, metavar="COLUMN", help="column with two classes, e.g. the diagnosis")
    add("--positive", type=str | None, metavar="CLASS", help="class coded as 1, e.g. patient; the last in sorted order by default")
    _fold_options(add)
    add("--models", nargs="+", type=str, default=list(MODELS), metavar="NAME", help=f"any of {' '.join(MODELS)}, for the plain connectome")
    add("--minutes", nargs="+", type=float, default=[], metavar="MIN", help="scan lengths in minutes for a second learning curve")


def _number_options(add: Add) -> None:
    add("--target", type=str, required=True, metavar="COLUMN", help="column with numbers, e.g. age")
    _fold_options(add)


def _consistency(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import consistency

    reference = inputs.load(args.reference, atlas=None if inputs.is_store(args.reference) else args.atlas) if args.reference else None
    return consistency(cohort, args.layers, reference=reference, seed=args.seed)


def _parcellation(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import parcellation

    return parcellation(cohort, seed=args.seed)


def _identifiability(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import identifiability

    return identifiability(cohort, args.layers, seed=args.seed)


def _motion(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import motion

    return motion(cohort, args.layers, fd=args.fd, covariates=args.covariates or (), seed=args.seed)


def _circuits(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import circuits

    chosen = {"layer": args.layer, "site": args.site, "tail": args.tail, "permutations": args.permutations}
    chosen |= {"primary_p": args.primary_p, "modules": inputs.modules(args.modules, args.modules_column, cohort)}
    return circuits(cohort, args.target, covariates=args.covariates or (), positive=args.positive, seed=args.seed, **chosen)


def _modulation(cohort: Any, args: Namespace, progress: Any) -> Any:
    if args.measured:
        from pnet_jax.evaluate import measured_modulation, runs_of

        return measured_modulation(runs_of(cohort, args.target, args.measured, on=args.positive), seed=args.seed)
    from pnet_jax.evaluate import modulation

    chosen = {"kind": args.kind, "cap": args.cap, "max_patients": args.max_patients, "covariates": args.covariates or ()}
    return modulation(cohort, args.target, positive=args.positive, seed=args.seed, **chosen)


def _diagnosis(cohort: Any, args: Namespace, progress: Any) -> Any:
    from pnet_jax.evaluate import diagnosis

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
    from pnet_jax.evaluate import prediction

    return prediction(cohort, args.target, progress=progress, **_fold_arguments(args))


def _fold_arguments(args: Namespace) -> dict[str, Any]:
    return {
        "beside": inputs.beside(args.beside or ()),
        "features": args.features,
        "covariates": args.covariates,
        "site": args.site,
        "leave_out": args.leave_out,
        "folds": args.folds,
        "repeats": args.repeats,
        "held_out": inputs.fold_list(args.fold_list) if args.fold_list else None,
        "permutations": args.permutations,
        "learning": args.learning,
        "seed": args.seed,
    }


def _defaults(name: str, question: Question, args: Namespace) -> Namespace:
    """Return the arguments of an evaluation in `evaluate all`: its defaults, updated with the arguments given."""
    words = [args.cohort, args.out] + (["--target", getattr(args, COLUMNS[name])] if name in COLUMNS else [])
    parser = _parser(f"evaluate {name}", question.about)
    question.options(parser.add_argument)
    given = parser.parse_args(words)
    for key, value in vars(args).items():
        # Circuits need more permutations than a prediction, and have their own default.
        if key in given and value is not None and key not in ("cohort", "out") and (name, key) != ("circuits", "permutations"):
            given[key] = value
    return given


def _said(answer: Any) -> None:
    """Print the conclusions, and the warnings on standard error."""
    for sentence in answer.sentences:
        print(sentence, flush=True)
    for warning in answer.warnings:
        print(f"Note: {warning}", file=sys.stderr)


def _written(answer: Any, cohort: Any, args: Namespace) -> list[Path]:
    """Write the tables and the JSON file of an answer, and return their paths."""
    import pnet_jax
    from pnet_jax.outputs.evaluation import write_answer

    about = {"cohort": str(args.cohort), "scans": len(cohort), "participants": len(cohort.subjects), "version": pnet_jax.__version__}
    return write_answer(answer, args.out, about)


def _reported(answers: Sequence[Any], left_out: dict[str, str], files: list[Path], cohort: Any, args: Namespace, name: str) -> None:
    """Write the page, and print where the files are."""
    first = files[0].name
    if args.report:
        from pnet_jax.report.evaluation import write_evaluation

        head = {"Scans": f"{len(cohort):,}", "Participants": f"{len(cohort.subjects):,}", "Parcels": f"{cohort.n_parcels:,}"}
        page = Path(args.out) / f"{name}.html"
        files = [*files, write_evaluation(answers, page, title=Path(args.cohort).name, about=head, left_out=left_out)]
        first = page.name
    print(f"{len(files)} files in {args.out}, first {first}")
