"""`pnet <command>`: runs a command, and converts signals, closed pipes and errors to messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

RESUMED = ("construct",)  # commands that resume from their finished results with --resume


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 if something failed, 2 for wrong usage, 128 + n after signal n.

    If the reader of the output closes it (`pnet status OUT | head`), the command ends without a message, as other Unix tools do.
    """
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()  # here and not at the interpreter's exit, where the error could not be caught
    except BrokenPipeError:
        if not _unread(sys.stdout) and not _unread(sys.stderr):
            raise
        for stream in filter(_unread, (sys.stdout, sys.stderr)):  # discard the contents of their buffers
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE


def _main(argv: Sequence[str] | None) -> int:
    from pnet_jax.commands.app import UsageError, run

    arguments = list(sys.argv[1:] if argv is None else argv)
    name = _name(arguments)
    _keep_compiled_programs()

    def show(message, category, filename, lineno, file=None, line=None):
        from tqdm import tqdm  # clears a progress bar on the current line

        tqdm.write(f"{name}: warning: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings(), _stopped_by_signals():
            warnings.showwarning = show
            return run(arguments) if arguments not in ([], ["evaluate"]) else run([*arguments, "--help"]) or 2
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
            raise
        if "--verbose" in arguments:
            traceback.print_exc()
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        sent = stop.args[0].name if stop.args else "SIGINT"
        on = "; resume with --resume" if arguments[0] in RESUMED else ""
        print(f"{name}: stopped by {sent}; finished results are kept{on}", file=sys.stderr)
        return 128 + signal.Signals[sent]


def _keep_compiled_programs() -> None:
    """Enable JAX's persistent compilation cache, which saves seconds at every start, unless the user has configured it."""
    if "jax" in sys.modules:  # JAX has already read its environment
        return
    from pnet_jax.execution import cache_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _name(arguments: Sequence[str]) -> str:
    """Return the command as named in messages: `pnet construct`, `pnet evaluate diagnosis`."""
    words = list(arguments[: 2 if arguments[:1] == ["evaluate"] else 1])
    return " ".join(["pnet", *(word for word in words if not word.startswith("-"))])


def _unread(stream: TextIO) -> bool:
    """Return whether a stream is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (ValueError, OSError):  # a stream without a file, such as one that captures output
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM (a scheduler's time limit, `kill`) and SIGHUP (a closed terminal) end a command cleanly, as Ctrl-C does."""

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
