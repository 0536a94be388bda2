"""`pnet <command>`: parses, calls a stage, prints. Holds no logic, and loads nothing heavy before a command needs it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

HELP = """usage: pnet <command> [options]

From a participant's resting-state fMRI to that participant's brain functional network.

commands:
  demo         one real scan from download to report
  construct    networks of a scan, a list of scans or an fMRIPrep folder
  status       progress of the scans in a results folder
  report       HTML pages of existing results
  collect      results of many scans in one cohort store
  export       a cohort in the formats of other programs
  import       a cohort store from connectomes or ROI series of other programs
  simulate     a cohort with known truth, as BIDS derivatives
  prepare      records from scans, for pre-training
  pretrain     a checkpoint from scans
  fit-group    what a cohort's networks teach about one more participant
  personalize  every participant's own parameters, from a store of records
  evaluate     what the networks of a cohort are worth: consistency, diagnosis, prediction, circuits …
  bench        speed of the kernels on this device

pnet <command> --help says more. pnet --version prints the version.
"""
COMMANDS = (
    *("demo", "construct", "status", "report", "collect", "export", "import"),
    *("simulate", "prepare", "pretrain", "fit-group", "personalize", "evaluate", "bench"),
)
RESUMED = ("construct",)  # commands that go on from their finished results with --resume


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 something failed, 2 wrong usage, 128 + n ended by signal n.

    A reader of the output that closes it (`pnet status OUT | head`) ends the command without a message, as with other Unix tools.
    """
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()  # here and not at the interpreter's exit, where the error could not be caught
    except BrokenPipeError:
        if not _unread(sys.stdout) and not _unread(sys.stderr):
            raise
        for stream in filter(_unread, (sys.stdout, sys.stderr)):  # what is still in their buffers goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from pnet_jax import __version__

        print(f"pnet {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        from pnet_jax.config import nearest

        print(
            f"pnet: unknown command {arguments[0]!r}: expected one of {', '.join(COMMANDS)}{nearest(arguments[0], COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    from pnet_jax import commands

    def show(message, category, filename, lineno, file=None, line=None):
        from tqdm import tqdm  # it clears a progress bar that stands on the line

        tqdm.write(f"pnet {arguments[0]}: warning: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings(), _stopped_by_signals():
            warnings.showwarning = show
            return int(getattr(commands, {"import": "import_"}.get(arguments[0], arguments[0].replace("-", "_")))(arguments[1:]))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
            raise
        print(f"pnet {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        name = stop.args[0].name if stop.args else "SIGINT"
        on = "; go on with --resume" if arguments[0] in RESUMED else ""
        print(f"pnet {arguments[0]}: stopped by {name}; finished results are kept{on}", file=sys.stderr)
        return 128 + signal.Signals[name]


def _unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (ValueError, OSError):  # a stream without a file, such as one that captures output
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Makes SIGTERM (a scheduler's time limit, `kill`) and SIGHUP (a closed terminal) end a command cleanly, as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup ignores the signal
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
