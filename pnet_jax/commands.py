"""One function a command of `pnet`: its options, the stage it calls, and what it prints."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from pnet_jax.config import ConstructConfig, PrepareConfig, PretrainConfig, SimulateConfig, nearest

EVALUATIONS = ("encoder",)
MOST_WARNED = 20  # scans whose warnings are printed; status.tsv has all


def construct(arguments: Sequence[str]) -> int:
    """Networks of a scan, a list of scans or a folder."""
    parser = _parser("construct", "Networks of the scans in INPUT, written to OUT as BIDS derivatives.")
    parser.add_argument(
        "input", type=str, metavar="INPUT", help="a NIfTI, CIFTI or ROI table file, a list of files, or a BIDS-derivatives folder"
    )
    parser.add_argument("out", type=str, metavar="OUT", help="derivatives folder to write to")
    _selection_options(parser)
    parser.add_argument("--resume", action="store_true", help="leave out scans that are complete and made by the same settings")
    config, args = _parse(parser, ConstructConfig, arguments)
    from pnet_jax.cohort import construct_cohort

    sources, load = _sources(args, args.input)
    with _Bar(len(sources), "construct") as bar:
        rows = construct_cohort(sources, args.out, config, load=load, resume=args.resume, progress=bar)
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed:
        print(f"failed: {row['error']}", file=sys.stderr)
    warned = [row for row in rows if row["status"] == "ok" and row.get("qc_warnings")]
    for row in warned[:MOST_WARNED]:
        print(f"warning: {row['scan']}: {row['qc_warnings']}", file=sys.stderr)
    if len(warned) > MOST_WARNED:
        print(f"warnings of {len(warned) - MOST_WARNED} more scans: column qc_warnings of {Path(args.out) / 'status.tsv'}", file=sys.stderr)
    kept = sum(str(row.get("used_prior")).lower() == "true" for row in rows)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} scans done, {len(failed)} failed, {kept} kept the prior's parcels. "
        f"{Path(args.out) / 'status.tsv'} has a row for each."
    )
    if config.report and len(failed) < len(rows):
        print(f"Report: {Path(args.out) / 'index.html'}")
    return 1 if failed else 0


def report(arguments: Sequence[str]) -> int:
    """Pages of results that stand already."""
    parser = _parser("report", "Makes the HTML pages and the index of a folder that `pnet construct` wrote.")
    parser.add_argument("folder", type=str, metavar="FOLDER", help="derivatives folder")
    _, args = _parse(parser, None, arguments)
    from pnet_jax.report import report_folder

    print(f"Report: {report_folder(args.folder)}")
    return 0


def simulate(arguments: Sequence[str]) -> int:
    """A cohort with known truth."""
    parser = _parser("simulate", "Writes a simulated cohort to OUT: BIDS-derivatives NIfTI, confounds, and truth.npz for each subject.")
    parser.add_argument("out", type=str, metavar="OUT", help="folder to write to")
    config, args = _parse(parser, SimulateConfig, arguments)
    from pnet_jax.outputs.simulated import write_cohort

    with _Bar(config.subjects * config.sessions, "simulate") as bar:
        written = write_cohort(args.out, config, progress=lambda done, total: bar("", done, total))
    print(
        f"{config.subjects} subjects with {config.sessions} sessions each in {args.out} ({len(written)} files); "
        "group parcels in group_dseg.nii.gz"
    )
    return 0


def prepare(arguments: Sequence[str]) -> int:
    """Records from scans."""
    parser = _parser(
        "prepare", "Cleans the scans in INPUT and stores them in STORE as records, which pre-training reads. Goes on where it stopped."
    )
    parser.add_argument("input", type=str, metavar="INPUT", help="a file, a list of files, a BIDS-derivatives folder or a simulated cohort")
    parser.add_argument("store", type=str, metavar="STORE", help="folder of records, new or to be added to")
    _selection_options(parser)
    config, args = _parse(parser, PrepareConfig, arguments)
    from pnet_jax.records import prepare as store_scans
    from pnet_jax.records import read_sites

    sources, load = _sources(args, args.input)
    sites = read_sites(args.input if Path(args.input).is_dir() else Path(args.input).parent)
    with _Bar(len(sources), "prepare") as bar:
        done = store_scans(sources, args.store, config, load=load, sites=sites, progress=bar)
    for row in done.skipped:
        print(f"skipped: {row['reason']}", file=sys.stderr)
    print(
        f"{len(done.written)} scans stored, {len(done.kept)} stood there already, {len(done.skipped)} skipped. "
        f"{done.manifest} lists them all."
    )
    return 1 if done.skipped else 0


def pretrain(arguments: Sequence[str]) -> int:
    """A checkpoint from scans (linear encoder) or from a store of records (Perceiver)."""
    parser = _parser(
        "pretrain",
        "Fits a linear encoder to the scans in INPUT and writes the checkpoint folder OUT; or, with encoder = perceiver, trains on the "
        "store INPUT in the folder OUT, where the same command goes on after it was stopped.",
    )
    add = parser.add_argument
    add("source", nargs="?", type=str | None, metavar="INPUT", help="file, list of files, BIDS-derivatives folder, or store of records")
    add("target", nargs="?", type=str | None, metavar="OUT", help="checkpoint folder, new; for a Perceiver the folder of the run")
    add("--store", type=str | None, metavar="STORE", help="INPUT, as an option")
    add("--out", type=str | None, metavar="FOLDER", help="OUT, as an option")
    _selection_options(parser)
    config, args = _parse(parser, PretrainConfig, arguments)
    source, out = args.store or args.source, args.out or args.target
    if not source or not out:
        parser.error("INPUT and OUT are needed: pnet pretrain INPUT OUT, or --store STORE --out FOLDER")
    return (_pretrain_linear if config.encoder == "linear" else _pretrain_neural)(source, Path(out), config, args)


def _pretrain_neural(store: str, out: Path, config: PretrainConfig, args: Namespace) -> int:
    from pnet_jax import parallel
    from pnet_jax.checkpoint import RUN_MODEL, save_model
    from pnet_jax.pretraining.neural import train

    def lost(said: str) -> None:
        print(
            f"pnet pretrain: {said}. This process stops; the same command goes on from the last state saved.", file=sys.stderr, flush=True
        )
        os._exit(1)  # an orderly end would wait for the process that is gone

    parallel.start(config.parallel)
    watched = parallel.watch(config.parallel, lost)
    try:
        finished = train(store, out, config)
    except parallel.ProcessLostError as error:
        lost(str(error))
    watched()
    if finished.model is None:
        print(f"stopped after step {finished.step} of {config.optimiser.steps}; the same command goes on from there")
        return 0
    save_model(finished.model, out / RUN_MODEL, replace=True)
    if finished.leads:
        print(f"{finished.step} steps. Checkpoint: {out / RUN_MODEL}; curves: {out / 'metrics.jsonl'}, tensorboard --logdir {out}")
        print(f"weights digest: {finished.model.sha256}")
    return 0


def _pretrain_linear(source: str, out: Path, config: PretrainConfig, args: Namespace) -> int:
    from pnet_jax.checkpoint import save_model
    from pnet_jax.ingest import load_scan
    from pnet_jax.outputs import check_writable
    from pnet_jax.pretraining import pretrain as fit
    from pnet_jax.records.store import MANIFEST

    if out.exists():
        raise ValueError(f"checkpoint {out} exists already: expected a new folder")
    if (Path(source) / MANIFEST).is_file():
        raise ValueError(f"input {source} is a store of records, which encoder = perceiver reads; encoder = linear expects scans")
    sources, load = _sources(args, source)
    check_writable(out.absolute().parent)
    skipped: dict[str, str] = {}
    with _Bar(len(sources), "pretrain") as bar:

        def scans():
            for number, source in enumerate(sources):
                bar(source.label, number, len(sources))
                try:
                    if source.problem:
                        raise ValueError(source.problem)
                    entities = {"sub": source.subject, **source.entities}
                    yield load_scan(
                        source.bold, mask=source.mask, confounds=source.confounds, entities=entities, cleaning=config.cleaning, **load
                    )
                except (ValueError, OSError) as error:
                    skipped[source.label] = str(error)

        try:
            model = fit(scans, config)
        finally:
            bar.bar.close()
            for error in skipped.values():
                print(f"left out: {error}", file=sys.stderr)
    save_model(model, out)
    print(f"{model.card['scans']} scans of {model.card['subjects']} subjects, {len(skipped)} left out. Checkpoint: {out}")
    print(f"weights digest: {model.sha256}")
    return 1 if skipped else 0


def evaluate(arguments: Sequence[str]) -> int:
    """What a trained thing is worth; the first word says which."""
    given = arguments[0] if arguments else ""
    if given in EVALUATIONS:
        return _evaluate_encoder(arguments[1:])
    known = ", ".join(EVALUATIONS)
    if given in ("-h", "--help"):
        print(f"usage: pnet evaluate <what> [options]\n\nwhat: {known}\n\npnet evaluate <what> --help says more.")
        return 0
    said = f"found {given!r}{nearest(given, EVALUATIONS)}" if given else "found nothing"
    print(f"pnet evaluate: expected one of {known} as the first word, {said}", file=sys.stderr)
    return 2


def _evaluate_encoder(arguments: Sequence[str]) -> int:
    from pnet_jax.evaluate.cases import CONDITIONS, HELD_OUT_SEED

    parser = _parser(
        "evaluate encoder",
        "Compares models on simulated people that none has seen, or on the scans in INPUT: parcels of one recording of a person scored on "
        "another. The first model is the one that others are compared with.",
    )
    add = parser.add_argument
    add(
        "input",
        nargs="?",
        type=str | None,
        metavar="INPUT",
        help="a file, a list of files, or a BIDS-derivatives folder; else simulated people",
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
        help=f"of {' '.join(CONDITIONS)} (default: all; with INPUT all but tr and resolution)",
    )
    add("--prior", type=str | None, metavar="FILE", help="dseg or dlabel file that all models start from")
    add(
        "--parcels",
        type=int | None,
        metavar="K",
        help="parcels of the first model's own prior (default: 200); without INPUT the true ones (100)",
    )
    add("--subjects", type=int, default=3, help="simulated people")
    add("--minutes", type=float, default=10.0, help="length of a simulated session")
    add("--tier", type=str, default="medium", help="easy, medium or hard")
    add("--full", action="store_true", help="unseen resolution of 2 mm and not 3 mm")
    add("--seed", type=int, default=HELD_OUT_SEED, help="of the first simulated person; the next has the next")
    add("--out", type=str | None, metavar="FILE", help="write all rows to this JSON file")
    _selection_options(parser)
    _, args = _parse(parser, None, arguments)
    from pnet_jax.checkpoint import load_model
    from pnet_jax.evaluate import encoder
    from pnet_jax.ingest import load_prior
    from pnet_jax.outputs import check_writable

    if args.out:
        check_writable(Path(args.out).absolute().parent)
    models = [dataclasses.replace(load_model(given), name=name) for given, name in zip(args.models, _short_names(args.models), strict=True)]
    prior = load_prior(args.prior) if args.prior else None
    skipped: dict[str, str] = {}
    cases, total = _recorded(args, models[0], prior, skipped) if args.input else _simulated(args, prior)
    with _Bar(total, "evaluate", "pair") as bar:

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
    print("Parcels of one recording are scored on another of the same person; personalised ones always, to compare encoders.")
    if any(not encoder.same_references(model, models[0]) for model in models):
        print("R² of models with other references is of other fingerprints, and no comparison.")
    for line in encoder.verdicts(summed) if len(models) > 1 else ():
        print(line)
    if args.out:
        _write_evaluation(args, models, rows, summed)
        print(f"Rows: {args.out}")
    return 1 if skipped else 0


def _short_names(given: Sequence[str]) -> list[str]:
    """What a folder is called, unless two are called the same."""
    names = [Path(one).name or one for one in given]
    return names if len(set(names)) == len(names) else list(given)


def _simulated(args: Namespace, prior: Any) -> tuple[Iterator[Any], int]:
    from pnet_jax.evaluate.cases import CONDITIONS, count_simulated, simulated_cases

    for name in ("participant_label", "session_label", "task", "mask", "confounds"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for scans: give INPUT, or leave it out")
    parcels = args.parcels or 100
    config = SimulateConfig(subjects=args.subjects, tier=args.tier, parcels=parcels, minutes=args.minutes, seed=args.seed)
    conditions = args.conditions or CONDITIONS
    return simulated_cases(conditions, config, prior=prior, full=args.full), count_simulated(conditions, config)


def _recorded(args: Namespace, model: Any, prior: Any, skipped: dict[str, str]) -> tuple[Iterator[Any], int]:
    """Cases of scans, and how many there are at most; what could not be read is left in `skipped`."""
    from pnet_jax.construction import resolve
    from pnet_jax.evaluate.cases import RECORDED, scan_cases
    from pnet_jax.ingest import load_scan

    _, prior, _ = resolve(ConstructConfig(), prior=prior, parcels=args.parcels, model=model)
    sources, load = _sources(args, args.input)
    conditions = args.conditions or RECORDED

    def scans():
        for source in sources:
            try:
                if source.problem:
                    raise ValueError(source.problem)
                entities = {"sub": source.subject, **source.entities}
                yield load_scan(source.bold, mask=source.mask, confounds=source.confounds, entities=entities, **load)
            except (ValueError, OSError) as error:
                skipped[source.label] = str(error)

    return scan_cases(scans(), prior, conditions), len(sources) * len(conditions)


def _write_evaluation(args: Namespace, models: Sequence[Any], rows: Sequence[Any], summed: Sequence[Any]) -> None:
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
        "rows": rows,
        "summary": summed,
        "better": encoder.better(summed),
    }
    write_text(args.out, json.dumps(encoder.without_nan(result), indent=2) + "\n")


def demo(arguments: Sequence[str]) -> int:
    """One real scan from download to report."""
    parser = _parser("demo", "Builds one person's network from a public scan (100 MB, fetched once) and opens the way to its report.")
    parser.add_argument("--out", type=str, default="demo", help="folder to write to")
    parser.add_argument("--simulated", action="store_true", help="use a simulated scan and fetch nothing")
    _, args = _parse(parser, None, arguments)
    from pnet_jax.demo import run

    for line in run(Path(args.out), simulated=args.simulated):
        print(line, flush=True)
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Speed of the kernels on this device. `python -m pnet_jax.bench` is the same where only JAX is installed."""
    from pnet_jax.bench.program import main

    return main(arguments)


class _Parser(ArgumentParser):
    """Says which option was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known, message = self.known(), _plainly(message)
        for word in re.findall(r"--([\w.]+)|option '([\w.]+)'|[Kk]ey '?\"?([\w.]+)", message):
            name = next(filter(None, word))
            if name not in known:
                group = re.search(r"Group '([\w.]+)'", message)
                message += nearest(f"{group[1]}.{name}" if group else name, known)
                break
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)

    def known(self) -> list[str]:
        """Names of the options, without dashes."""
        return [option.lstrip("-") for action in self._actions for option in action.option_strings]

    def check_config(self, file: str) -> None:
        """Refuses a configuration file that is missing, no TOML, or has unknown keys; jsonargparse would not name the file."""
        try:
            keys = list(_keys(tomllib.loads(Path(file).read_text("utf-8"))))
        except OSError as error:
            self.error(f"config file {file}: {(error.strerror or str(error)).lower()}")
        except ValueError as error:
            self.error(f"config file {file} is no valid TOML: {error}")
        known = [name.replace("-", "_") for name in self.known()]
        for key in keys:
            if key not in known:
                self.error(f"config file {file}: unknown key {key!r}")  # which adds the nearest


def _keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _plainly(message: str) -> str:
    """jsonargparse's account of a value of the wrong type, in one line."""
    found = re.search(r'Parser key "([\w.]+)":.*(?:Given value|Got value): (.*)', message, re.DOTALL)
    types = dict.fromkeys(re.findall(r"<class '(\w+)'>", message.split("Given value type")[0]))
    if not found or not types:
        return message
    names = " or ".join({"NoneType": "null", "tuple": "list"}.get(name, name) for name in types)
    return f"--{found[1]}: expected {names}, found {found[2].strip()!r}"


def _parser(command: str, about: str) -> _Parser:
    return _Parser(prog=f"pnet {command}", description=about, parser_mode="toml", allow_abbrev=False)


def _selection_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--mask", type=str | None, metavar="FILE", help="brain mask, instead of the one beside each scan")
    add("--confounds", type=str | None, metavar="FILE", help="confounds table of the scan, instead of the one beside it")
    add("--participant-label", nargs="+", type=str, metavar="LABEL", help="these subjects only, with or without sub-")
    add("--session-label", nargs="+", type=str, metavar="LABEL", help="these sessions only, with or without ses-")
    add("--task", type=str | None, help="this task only")
    add("--space", type=str | None, help="files in this space only; for files without a space entity, the space they are in")
    add("--tr", type=float | None, metavar="SECONDS", help="repetition time, where the files do not say it")
    add("--native-to-mni", type=str | None, metavar="FILE", help="4 x 4 matrix in a text file: native mm to MNI mm; nothing is resampled")
    add("--atlas", type=str | None, metavar="FILE", help="where the ROIs of a table are: dseg image or table with x, y, z")
    add("--surfaces", nargs=2, type=str, metavar="GIFTI", help="left and right surface in MNI mm, for CIFTI files with vertices")


def _parse(parser: ArgumentParser, config_class: type | None, arguments: Sequence[str]) -> tuple[Any, Namespace]:
    """The configuration (defaults, then --config files, then options) and the other arguments."""
    if config_class is not None:
        parser.add_argument("--config", action="config", help="TOML file with any of the options below; options win over it")
        parser.add_class_arguments(config_class, None)
    _enable_compilation_cache()
    lists = [f"--{name}" for name in _tuples(config_class)]
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if config_class is not None and (before == "--config" or argument.startswith("--config=")):
            parser.check_config(argument.removeprefix("--config="))
    args = parser.parse_args(_split_lists(arguments, lists))
    if config_class is None:
        return None, args
    made = parser.instantiate(args)
    config = config_class(**{field.name: made[field.name] for field in dataclasses.fields(config_class)})
    return config, args


def _split_lists(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """`--edges pearson,partial` as the list that the parser reads, for the options whose value is a list."""
    out: list[str] = []
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        option, equals, value = argument.partition("=")
        if before in names and not argument.startswith(("[", "--")):
            out.append(_as_list(argument))
        elif option in names and equals and not value.startswith("["):
            out.append(f"{option}={_as_list(value)}")
        else:
            out.append(argument)
    return out


def _as_list(text: str) -> str:
    items: list[Any] = [item.strip() for item in text.split(",") if item.strip()]
    return "[" + ", ".join(item if item.lstrip("-").isdigit() else f'"{item}"' for item in items) + "]"


def _tuples(config_class: type | None, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(config_class) if config_class else ():
        if dataclasses.is_dataclass(field.default_factory):
            found += _tuples(field.default_factory, f"{prefix}{field.name}.")
        elif str(field.type).startswith("tuple"):
            found.append(prefix + field.name)
    return found


def _sources(args: Namespace, files: str) -> tuple[list[Any], dict[str, Any]]:
    from pnet_jax.ingest import find_scans

    sources = find_scans(
        files,
        participant_labels=args.participant_label,
        session_labels=args.session_label,
        task=args.task,
        space=args.space if Path(files).is_dir() else None,
        mask=args.mask,
        confounds=args.confounds,
    )
    load = {name: getattr(args, name) for name in ("tr", "native_to_mni", "atlas", "surfaces", "space")}
    return sources, {name: value for name, value in load.items() if value is not None}


def _enable_compilation_cache() -> None:
    """Compiled steps of an earlier run are read back: seconds less at every start. JAX's own setting wins."""
    import jax

    from pnet_jax.demo import cache_folder

    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class _Bar:
    """Progress on standard error: label, done, total."""

    def __init__(self, total: int, what: str, unit: str = "scan"):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.set_postfix_str(label)
        self.bar.update(done - self.bar.n)
