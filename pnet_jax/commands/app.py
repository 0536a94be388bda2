"""Command line: names of the commands, common options, help, and usage errors."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnusedCliTokensError
from cyclopts.config import Dict

from pnet_jax import __version__
from pnet_jax.commands.help import Help
from pnet_jax.commands.options import Bar, Done

ABOUT = "Individual parcellations and functional networks from resting-state fMRI.\n\nRun pnet COMMAND --help for the options of a command."
GENERAL = Group("Options of every command", sort_key=9)
# Name, function and summary; modules are imported when their command is run.
NETWORKS = {
    "demo": ("networks:demo", "Construct a network from one public scan, from download to report."),
    "construct": ("networks:construct", "Construct networks from scans: one, a list, or an fMRIPrep folder."),
    "status": ("networks:status", "Show the state of every scan in a results folder."),
    "report": ("networks:report", "Write the HTML pages of existing results."),
}
COHORTS = {
    "collect": ("cohorts:collect", "Collect the results of many scans in a cohort store."),
    "export": ("cohorts:export", "Export a cohort to the formats of other programs."),
    "import": ("cohorts:import_", "Import connectomes or ROI series of other programs into a cohort store."),
}
MODELS = {
    "fit-group": ("training:fit_group", "Learn a group model from the networks of a cohort."),
    "personalize": ("training:personalize", "Fine-tune individual parameters on every scan of a store."),
    "prepare": ("training:prepare", "Store cleaned scans as records for pre-training."),
    "pretrain": ("training:pretrain", "Pre-train a model on many scans."),
    "simulate": ("training:simulate", "Simulate a cohort with known truth."),
}
QUESTIONS = {
    "consistency": ("questions:consistency", "Similarity of networks from repeated scans."),
    "parcellation": ("questions:parcellation", "Quality and agreement of parcels."),
    "identifiability": ("questions:identifiability", "Identification of participants across scans."),
    "motion": ("questions:motion", "Residual association of edges with head motion."),
    "diagnosis": ("questions:diagnosis", "Classify two groups from their networks."),
    "prediction": ("questions:prediction", "Predict a continuous variable, e.g. age."),
    "circuits": ("questions:circuits", "Edges, networks and nodes that differ or are associated with a number."),
    "modulation": ("questions:modulation", "Predicted effects of interventions."),
    "all": ("questions:all_", "Every evaluation for which the cohort has data."),
    "encoder": ("evaluation:encoder", "Comparison of pre-trained models on held-out participants."),
}
TOOLS = {"doctor": ("tools:doctor", "Show devices, memory, versions and what works on this machine.")}
SECTIONS = {"Networks": NETWORKS, "Cohorts": COHORTS, "Models": MODELS}
_given: list[str] = []  # arguments of the running command


class UsageError(Exception):
    """Invalid command line; the program ends with exit code 2."""


def make_app() -> App:
    """Make the command line without importing the modules of commands."""
    common = Parameter(consume_multiple=True, allow_repeating=True, negative_iterable=(), show_default=_shown)
    app = App(
        name="pnet",
        help=ABOUT,
        version=f"pnet {__version__}",
        default_parameter=common,
        help_formatter=Help(),
        help_format="plaintext",
    )
    app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # cli.main reports the interruption
    for number, (title, commands) in enumerate(SECTIONS.items()):
        group = Group(title, sort_key=number)
        for place, (name, (where, about)) in enumerate(commands.items()):
            app.command(f"pnet_jax.commands.{where}", name=name, help=about, group=group, sort_key=place)
    evaluate = App(
        name="evaluate",
        help="Evaluate a cohort: consistency, diagnosis, prediction, circuits and more.",
        group=Group("Evaluation", sort_key=4),
    )
    for number, (name, (where, about)) in enumerate(QUESTIONS.items()):
        evaluate.command(f"pnet_jax.commands.{where}", name=name, help=about, sort_key=number)
    app.command(evaluate)
    tools = Group("Tools", sort_key=5)
    for name, (where, about) in TOOLS.items():
        app.command(f"pnet_jax.commands.{where}", name=name, help=about, group=tools)
    app.command(_bench, name="bench", help="Measure the speed of the kernels on this device.", group=tools, help_flags=())
    app.register_install_completion_command(add_to_startup=False, group=GENERAL)
    for flag in ("--help", "--version"):
        app[flag].group = GENERAL
    app.group_parameters = app.meta.group_parameters = Group("Options", sort_key=1)

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[tuple[str, ...], Parameter(consume_multiple=False, group=GENERAL)] = (),
        print_config: Annotated[bool, Parameter(negative=(), group=GENERAL)] = False,
        verbose: Annotated[bool, Parameter(negative=(), group=GENERAL)] = False,
        quiet: Annotated[bool, Parameter(negative=(), group=GENERAL)] = False,
        json: Annotated[bool, Parameter(negative=(), group=GENERAL)] = False,
    ) -> int:
        """Parse the options that all commands have, then run the command.

        Args:
          tokens: Command and its options.
          config: TOML file with settings of the command; options take precedence, and later files over earlier ones.
          print_config: Print the settings as a TOML file, and do nothing else.
          verbose: Print the settings in effect, and the traceback of an error.
          quiet: Print neither progress nor the summary; errors and warnings are printed.
          json: Print the summary as a JSON object on standard output.
        """
        chain = app.parse_commands([one for one in tokens if not one.startswith("-")])[0]
        app.config = [_file(name, chain) for name in reversed(config)]
        with _usage(app, tokens):
            command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        kind = _config_class(command)
        settings = bound.arguments.get("config") or (kind() if kind else None)
        if print_config:
            print(as_toml(settings) if settings is not None else "", end="")
            return 0
        if verbose and settings is not None:
            Bar(0, "settings").say("\n" + as_toml(settings))
        Bar.quiet = quiet
        done = command(*bound.args, **bound.kwargs)
        return _reported(done, quiet, json) if isinstance(done, Done) else int(done or 0)

    return app


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Raises:
      UsageError: If the command, an option or a settings file is invalid.
    """
    app = make_app()
    _given[:] = arguments
    with _usage(app, arguments):
        return int(app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value") or 0)


def given() -> list[str]:
    """Return the arguments of the running command, with the name of the command and the settings files."""
    return list(_given)


def _reported(done: Done, quiet: bool, as_json: bool) -> int:
    if as_json:
        print(json.dumps(dict(done.data), indent=1, default=str))
    elif not quiet and done.text:
        print(done.text)
    return done.code


def _bench(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    from pnet_jax.bench.program import main

    return main(tokens)


def _shown(default: Any) -> str:
    """Format a default value as it would be typed on the command line."""
    if isinstance(default, tuple | list):
        return " ".join(map(str, default)) or "none"
    return str(default)


# Errors


@contextlib.contextmanager
def _usage(app: App, tokens: Sequence[str]) -> Iterator[None]:
    """Convert errors of the parser, and of the validation of settings, to usage errors."""
    try:
        yield
    except CycloptsError as error:
        raise UsageError(_plainly(error)) from error
    except ValueError as error:
        found = re.fullmatch(r"(\w+Config)(?:\.(\w+))?: (.*)", str(error), re.DOTALL)
        if not found:
            raise
        made, field, said = found.groups()
        command = app.parse_commands([one for one in tokens if not one.startswith("-")])[1][-1].default_command
        prefix = _prefixes(_config_class(command)).get(made, "") if command is not None else ""
        raise UsageError(f"--{prefix}{field.replace('_', '-')}: {said}" if field else said) from error


def _plainly(error: CycloptsError) -> str:
    """Return a cyclopts error on one line, in the wording of the package."""
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument: {' '.join(error.unused_tokens or ())}"
    said = re.sub(r" Available commands:.*", " Run pnet --help for all commands.", " ".join(str(error).split()))
    if isinstance(error, MissingArgumentError):
        return re.sub(r'^(?:Command "[^"]*" )?parameter (\S+) requires an argument\.?', r"\1 is missing; see --help", said)
    return said[0].lower() + said[1:]


def _config_class(command: Callable[..., Any]) -> type | None:
    """Return the settings class of a command, or None."""
    if "config" not in inspect.signature(command).parameters:
        return None
    return get_type_hints(command)["config"]


def _prefixes(config: type | None, prefix: str = "") -> dict[str, str]:
    """Return the option prefix of each settings class, e.g. `cleaning.` for `CleaningConfig`."""
    if config is None:
        return {}
    out = {config.__name__: prefix}
    for name, kind in get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            out |= _prefixes(kind, f"{prefix}{name.replace('_', '-')}.")  # type: ignore[arg-type]
    return out


# Settings files


def _file(name: str, chain: Sequence[str]) -> Dict:
    """Read settings of the command `chain` from a TOML file; unlike cyclopts, name a missing or damaged file in errors."""
    try:
        settings = tomllib.loads(Path(name).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"config file {name}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise UsageError(f"config file {name} is not valid TOML: {error}") from error
    for command in reversed(chain):  # unless nested, keys named like a command, e.g. `report`, would be lost
        settings = {command: settings}
    return Dict(settings, allow_unknown=False, source=name)


def as_toml(config: Any) -> str:
    """Return settings as TOML for `--config`; None, which TOML cannot represent, is left out."""
    import tomli_w

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items() if one is not None}
        return [plain(one) for one in value] if isinstance(value, tuple | list) else value

    return tomli_w.dumps(plain(dataclasses.asdict(config)))
