"""What the commands have in common: parsers that say which option was meant, the choice of scans, progress bars."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import resource
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from pnet_jax.config import nearest
from pnet_jax.errors import SettingsError

LINE_SECONDS = 30.0  # between lines of progress without a terminal


class Parser(ArgumentParser):
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


def make_parser(command: str, about: str) -> Parser:
    return Parser(prog=f"pnet {command}", description=about, parser_mode="toml", allow_abbrev=False)


def selection_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--mask", type=str | None, metavar="FILE", help="brain mask, instead of the one beside each scan")
    add("--confounds", type=str | None, metavar="FILE", help="confounds table of the scan, instead of the one beside it")
    add("--participant-label", nargs="+", type=str, metavar="LABEL", help="use these subjects only, e.g. 01 02 or sub-01,sub-02")
    add("--session-label", nargs="+", type=str, metavar="LABEL", help="use these sessions only, e.g. 1 2 or ses-1,ses-2")
    add("--task", type=str | None, help="this task only")
    add("--space", type=str | None, help="files in this space only; for files without a space entity, the space they are in")
    add("--tr", type=float | None, metavar="SECONDS", help="repetition time, where the files do not say it")
    add("--native-to-mni", type=str | None, metavar="FILE", help="4 x 4 matrix in a text file: native mm to MNI mm; nothing is resampled")
    add("--atlas", type=str | None, metavar="FILE", help="where the ROIs of a table are: dseg image or table with x, y, z")
    add("--surfaces", nargs=2, type=str, metavar="GIFTI", help="left and right surface in MNI mm, for CIFTI files with vertices")


def execution_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--shard",
        type=str | None,
        metavar="I/N",
        help="construct only part I of N of the subjects, e.g. 3/20 in an array job; auto: one part per process of this job. A subject's "
        "part depends on its label alone, so subjects added later change no other's part; with few subjects, parts can be very unequal "
        "(2 parts of 6 subjects may have 1 and 5)",
    )
    add(
        "--cluster",
        type=str | None,
        metavar="KIND",
        help="construct scans on a cluster: slurm, pbs, sge, lsf, mpi, or local for Dask workers here",
    )
    add("--jobs", type=int | None, help="largest number of cluster jobs at a time")
    add("--scheduler", type=str | None, metavar="ADDRESS", help="address of a running Dask scheduler, e.g. tcp://node1:8786")


def shard_of(text: str | None) -> tuple[int, int] | None:
    """Parse the value of `--shard`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise SettingsError(f"--shard: expected I/N, e.g. 3/20, or auto, got {text!r}")
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def executor_of(args: Namespace) -> Iterator[Executor | None]:
    """Open the cluster's workers, if a cluster was requested."""
    if args.cluster is None and args.scheduler is None:
        yield None
        return
    if args.shard is not None:
        raise SettingsError("--shard cannot be combined with --cluster or --scheduler: the cluster's scheduler distributes the scans")
    from pnet_jax.execution import cluster

    with cluster(args.cluster, scheduler=args.scheduler, jobs=args.jobs) as executor:
        yield executor


def parse(parser: Parser, config_class: type | None, arguments: Sequence[str]) -> tuple[Any, Namespace]:
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
    with refusing(parser, config_class):
        made = parser.instantiate(args)
        return config_class(**{field.name: made[field.name] for field in dataclasses.fields(config_class)}), args


@contextlib.contextmanager
def refusing(parser: Parser, config_class: type) -> Iterator[None]:
    """A configuration's complaint about a value becomes the parser's, which names the option and ends with status 2."""
    try:
        yield
    except ValueError as error:
        found = re.fullmatch(r"(\w+Config)(?:\.(\w+))?: (.*)", str(error), re.DOTALL)
        if not found:
            raise
        made, field, said = found.groups()
        prefix = _groups(config_class).get(made, "")
        parser.error(f"--{prefix}{field}: {said}" if field else said)


def _groups(config_class: type, prefix: str = "") -> dict[str, str]:
    """What stands before the options of each class in a configuration: `CleaningConfig` is `cleaning.`."""
    out = {config_class.__name__: prefix}
    for name, kind in get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            out |= _groups(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return out


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


def sources_of(args: Namespace, files: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the scans of an input, and further arguments of `load_scan`."""
    from pnet_jax.ingest import find_scans

    chosen = {"participant_labels": args.participant_label, "session_labels": args.session_label, "task": args.task}
    load = {name: getattr(args, name) for name in ("tr", "native_to_mni", "atlas", "surfaces", "space")}
    load = {name: value for name, value in load.items() if value is not None}
    about_files = load | {name: getattr(args, name) for name in ("mask", "confounds") if getattr(args, name) is not None}
    if (Path(files) / "manifest.json").is_file():
        from pnet_jax.records.source import is_store, stored_scans  # imports ArrayRecord

        if is_store(files):
            if about_files:
                raise SettingsError(f"{files} is a store of cleaned scans: --{next(iter(about_files)).replace('_', '-')} does not apply")
            return stored_scans(files, **chosen), {}
    space = args.space if Path(files).is_dir() else None
    return find_scans(files, **chosen, space=space, mask=args.mask, confounds=args.confounds), load


def _enable_compilation_cache() -> None:
    """Compiled steps of an earlier run are read back: seconds less at every start. JAX's own setting wins."""
    import jax

    from pnet_jax.demo import cache_folder

    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class Bar:
    """Progress on standard error: a bar on a terminal, otherwise a line at regular intervals."""

    def __init__(self, total: int, what: str, unit: str = "scan"):
        from tqdm import tqdm

        self.what, self.unit, self.terminal = what, unit, sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=not self.terminal)
        self.begun = self.told = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        self.of_scans(label, done, 0, total)

    def of_scans(self, label: str, done: int, failed: int, total: int) -> None:
        """Report progress of a loop in which scans may fail: the numbers done, failed among these, and in total."""
        said = ", ".join(filter(None, (f"{failed} failed" if failed else "", label)))
        if self.terminal:
            self.bar.total = total
            self.bar.set_postfix_str(said)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            rate = done / (self.told - self.begun)
            left = f", about {_duration((total - done) / rate)} left" if done and total else ""
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            counted = f"{done} of {total or '?'} {self.unit}s" + (f", {said}" if said else "")
            self.say(f"{counted}; {3600 * rate:.0f} per hour{left}; peak memory {memory:.1f} GiB")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.clear()
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
