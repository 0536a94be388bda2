"""`pnet evaluate EVALUATION COHORT OUT`: options of each evaluation, the function it calls, and the files it writes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pnet_jax.commands import question_inputs as inputs
from pnet_jax.commands.options import Bar, Done
from pnet_jax.commands.question_options import (
    Comparison,
    ComparisonOptions,
    EvaluationConfig,
    EvaluationOptions,
    FoldOptions,
    Folds,
    fold_arguments,
)
from pnet_jax.errors import InputError

Layers = tuple[str, ...]


def consistency(
    cohort: str, out: str, /, *, layers: Layers = (), reference: str | None = None, common: EvaluationOptions = EvaluationConfig()
) -> Done:
    """Evaluate the similarity of networks from repeated scans of a participant, compared with noise and other participants.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      layers: Edge layers to evaluate; all layers of the cohort by default.
      reference: Cohort with other scans of the same participants, e.g. longer ones, or the truth of a simulation.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import consistency as ask

    def run(loaded: Any, _: Any) -> Any:
        atlas = None if reference is None or inputs.is_store(reference) else common.atlas
        other = None if reference is None else inputs.load(reference, atlas=atlas)
        return ask(loaded, layers or None, reference=other, seed=common.seed)

    return _one("consistency", cohort, out, common, run)


def parcellation(cohort: str, out: str, /, *, common: EvaluationOptions = EvaluationConfig()) -> Done:
    """Evaluate the quality of the parcels and their agreement within and between participants.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import parcellation as ask

    return _one("parcellation", cohort, out, common, lambda loaded, _: ask(loaded, seed=common.seed))


def identifiability(cohort: str, out: str, /, *, layers: Layers = (), common: EvaluationOptions = EvaluationConfig()) -> Done:
    """Evaluate the identification of participants across scans from edges and from labels.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      layers: Edge layers to evaluate; all layers of the cohort by default.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import identifiability as ask

    return _one("identifiability", cohort, out, common, lambda loaded, _: ask(loaded, layers or None, seed=common.seed))


def motion(
    cohort: str,
    out: str,
    /,
    *,
    layers: Layers = (),
    fd: str = "mean_fd",
    covariates: tuple[str, ...] = (),
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Evaluate the residual association of edges with head motion.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      layers: Edge layers to evaluate; all layers of the cohort by default.
      fd: Column with mean framewise displacement in mm.
      covariates: Columns used as covariates.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import motion as ask

    return _one(
        "motion", cohort, out, common, lambda loaded, _: ask(loaded, layers or None, fd=fd, covariates=covariates, seed=common.seed)
    )


def diagnosis(
    cohort: str,
    out: str,
    /,
    *,
    target: str,
    positive: str | None = None,
    models: tuple[Literal["ridge", "logistic", "svm"], ...] = ("ridge", "logistic", "svm"),
    minutes: tuple[float, ...] = (),
    comparison: ComparisonOptions = Comparison(),
    folds: FoldOptions = Folds(),
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Classify two groups from networks of held-out participants and sites.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      target: Column with two classes, e.g. the diagnosis.
      positive: Class coded as 1, e.g. patient; the last in sorted order by default.
      models: Classifiers for the plain connectome.
      minutes: Scan lengths in minutes for a second learning curve.
      comparison: Comparison.
      folds: Folds and features.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import diagnosis as ask

    def run(loaded: Any, bar: Any) -> Any:
        given = fold_arguments(comparison, folds, common)
        return ask(loaded, target, positive=positive, models=models, minutes=minutes, progress=bar, **given)

    return _one("diagnosis", cohort, out, common, run)


def prediction(
    cohort: str,
    out: str,
    /,
    *,
    target: str,
    comparison: ComparisonOptions = Comparison(),
    folds: FoldOptions = Folds(),
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Predict a continuous variable such as age from networks of held-out participants and sites.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      target: Column with numbers, e.g. age.
      comparison: Comparison.
      folds: Folds and features.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import prediction as ask

    def run(loaded: Any, bar: Any) -> Any:
        return ask(loaded, target, progress=bar, **fold_arguments(comparison, folds, common))

    return _one("prediction", cohort, out, common, run)


def circuits(
    cohort: str,
    out: str,
    /,
    *,
    target: str,
    positive: str | None = None,
    covariates: tuple[str, ...] = (),
    layer: str = "pearson",
    site: str = "site",
    modules: str | None = None,
    modules_column: str = inputs.NETWORKS,
    primary_p: float = 0.001,
    tail: Literal["both", "greater", "less"] = "both",
    permutations: int = 5000,
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Find edges, networks and nodes that differ between groups or are associated with a number, with family-wise error control.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      target: Column with two classes, e.g. the diagnosis, or numbers.
      positive: Class coded as 1; the last in sorted order by default.
      covariates: Columns used as covariates, e.g. age and mean_fd.
      layer: Edge layer; shrunk and guided edges are not accepted.
      site: Column with the site; participants are permuted within sites.
      modules: Networks for the tests between networks: table of an atlas with the columns name or index and network, or number of
        clusters of the mean network; by default the networks in the names of Schaefer parcels.
      modules_column: Column of the table of `--modules` with the networks.
      primary_p: Uncorrected p below which an edge can belong to a component (NBS).
      tail: Tail of the test.
      permutations: Number of permutations.
      common: Cohort and output.
    """
    from pnet_jax.evaluate import circuits as ask

    def run(loaded: Any, _: Any) -> Any:
        chosen: dict[str, Any] = {"layer": layer, "site": site, "tail": tail, "permutations": permutations, "primary_p": primary_p}
        networks = inputs.modules(modules, modules_column, loaded)
        return ask(loaded, target, covariates=covariates, positive=positive, modules=networks, seed=common.seed, **chosen)

    return _one("circuits", cohort, out, common, run)


def modulation(
    cohort: str,
    out: str,
    /,
    *,
    target: str,
    positive: str | None = None,
    kind: Literal["coupling", "local", "forcing"] = "coupling",
    cap: float = 0.2,
    covariates: tuple[str, ...] = (),
    max_patients: int = 100,
    measured: str | None = None,
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Predict the effects of interventions in patients with a dynamic model, or test predictions against measured stimulation.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      target: Column with patients and controls, or OFF and ON with `--measured`.
      positive: Class of the patients, or of the scans with stimulation; the last in sorted order by default.
      kind: Intervention: gain of a node's links (`coupling`), its decay (`local`) or a periodic input (`forcing`).
      cap: Largest energy, relative to the power of the drift of one node.
      covariates: Columns that are regressed out of the edges.
      max_patients: Largest number of patients that are scored.
      measured: Column with the stimulated site; runs the protocol for measured stimulation, with two OFF and two ON scans per patient.
      common: Cohort and output.
    """

    def run(loaded: Any, _: Any) -> Any:
        from pnet_jax import evaluate

        if measured:
            return evaluate.measured_modulation(evaluate.runs_of(loaded, target, measured, on=positive), seed=common.seed)
        chosen: dict[str, Any] = {"kind": kind, "cap": cap, "max_patients": max_patients, "covariates": covariates}
        return evaluate.modulation(loaded, target, positive=positive, seed=common.seed, **chosen)

    return _one("modulation", cohort, out, common, run)


def all_(
    cohort: str,
    out: str,
    /,
    *,
    diagnosis: str | None = None,
    prediction: str | None = None,
    comparison: ComparisonOptions = Comparison(),
    common: EvaluationOptions = EvaluationConfig(),
) -> Done:
    """Run every evaluation for which COHORT has data, and list the others with the reason.

    The exit code is 1 if an evaluation could not be made; evaluations of a column that is not given do not count.

    Args:
      cohort: Store written by `pnet collect` or `pnet import`, or folder of results of `pnet construct`.
      out: Folder for tables, JSON and the page.
      diagnosis: Column with two classes, for diagnosis, circuits and modulation.
      prediction: Column with numbers, for prediction.
      comparison: Comparison.
      common: Cohort and output.
    """
    inputs.check_output(out)
    loaded = inputs.load(cohort, atlas=common.atlas, participants=common.participants)
    answers, left_out, files, failed = [], {}, [], False
    for name, (option, run) in _every(diagnosis, prediction, comparison, common).items():
        if run is None:
            left_out[name] = f"no column was given (--{option} COLUMN)"
            continue
        try:
            with Bar(0, f"evaluate {name}", "fit") as bar:
                answer = run(loaded, bar)
        except ValueError as error:  # continue with the other evaluations
            left_out[name], failed = str(error).removeprefix(f"{name}: "), True
            continue
        answers.append(answer)
        files += _written(answer, loaded, cohort, out)  # written immediately, so that an interruption loses no finished evaluation
    for name, why in left_out.items():
        print(f"{name} was not evaluated: {why}", file=sys.stderr)
    if not answers:
        raise InputError(f"no evaluation was possible for {cohort}; the reasons are listed above")
    return _closed(answers, left_out, files, loaded, cohort, out, common, "evaluation", int(failed))


def _every(
    diagnosis: str | None, prediction: str | None, comparison: Comparison, common: EvaluationConfig
) -> dict[str, tuple[str, Callable[[Any, Any], Any] | None]]:
    """Return the column option and the function of each evaluation; the function is None if its column was not given."""
    from pnet_jax import evaluate as ask

    seed, covariates = common.seed, comparison.covariates
    folds = functools.partial(fold_arguments, comparison, Folds(), common)
    of_two: dict[str, Any] = {"covariates": covariates, "seed": seed}
    every: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
        "consistency": ("", lambda loaded, _: ask.consistency(loaded, seed=seed)),
        "parcellation": ("", lambda loaded, _: ask.parcellation(loaded, seed=seed)),
        "identifiability": ("", lambda loaded, _: ask.identifiability(loaded, seed=seed)),
        "motion": ("", lambda loaded, _: ask.motion(loaded, covariates=covariates, seed=seed)),
        "diagnosis": ("diagnosis", lambda loaded, bar: ask.diagnosis(loaded, str(diagnosis), progress=bar, **folds())),
        "prediction": ("prediction", lambda loaded, bar: ask.prediction(loaded, str(prediction), progress=bar, **folds())),
        "circuits": ("diagnosis", lambda loaded, _: ask.circuits(loaded, str(diagnosis), site=comparison.site, **of_two)),
        "modulation": ("diagnosis", lambda loaded, _: ask.modulation(loaded, str(diagnosis), **of_two)),
    }
    given = {"": True, "diagnosis": diagnosis is not None, "prediction": prediction is not None}
    return {name: (option, run if given[option] else None) for name, (option, run) in every.items()}


def _one(name: str, cohort: str, out: str, common: EvaluationConfig, run: Callable[[Any, Any], Any]) -> Done:
    """Run one evaluation of a cohort, and write its files."""
    inputs.check_output(out)
    loaded = inputs.load(cohort, atlas=common.atlas, participants=common.participants)
    with Bar(0, f"evaluate {name}", "fit") as bar:
        answer = run(loaded, bar)
    return _closed([answer], {}, _written(answer, loaded, cohort, out), loaded, cohort, out, common, name, 0)


def _written(answer: Any, loaded: Any, cohort: str, out: str) -> list[Path]:
    """Write the tables and the JSON file of an answer, and return their paths."""
    import pnet_jax
    from pnet_jax.outputs.evaluation import write_answer

    about = {"cohort": cohort, "scans": len(loaded), "participants": len(loaded.subjects), "version": pnet_jax.__version__}
    return write_answer(answer, out, about)


def _closed(
    answers: Sequence[Any],
    left_out: dict[str, str],
    files: list[Path],
    loaded: Any,
    cohort: str,
    out: str,
    common: EvaluationConfig,
    name: str,
    code: int,
) -> Done:
    """Write the page, and summarise the conclusions and the paths of the files."""
    for warning in (warning for answer in answers for warning in answer.warnings):
        print(f"Note: {warning}", file=sys.stderr)
    first = files[0].name
    if common.report:
        from pnet_jax.report.evaluation import write_evaluation

        head = {"Scans": f"{len(loaded):,}", "Participants": f"{len(loaded.subjects):,}", "Parcels": f"{loaded.n_parcels:,}"}
        page = Path(out) / f"{name}.html"
        files = [*files, write_evaluation(answers, page, title=Path(cohort).name, about=head, left_out=left_out)]
        first = page.name
    sentences = [sentence for answer in answers for sentence in answer.sentences]
    data = {"sentences": sentences, "files": [str(file) for file in files], "not_evaluated": left_out}
    return Done("\n".join([*sentences, f"{len(files)} files in {out}, first {first}"]), data, code)
