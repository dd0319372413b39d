"""The command line: finds the command that the arguments name, runs it, and prints an error as one sentence."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tenfold.spec.errors import TenfoldError, stopped

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """Run `tenfold`. The exit status is 1 after an error, 2 after wrong usage, and 128 + N after signal N."""
    try:
        with _signals_raise():
            _run()
    except KeyboardInterrupt as stop:
        for number in (signal.SIGINT, *ENDING) if _in_main_thread() else ():
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        by, kept = stopped(stop)
        sentence = f"Stopped by {'Ctrl-C' if by == signal.SIGINT else by.name}" + (kept and f": {kept}")
        print(f"tenfold: {sentence}.", file=sys.stderr)
        sys.exit(128 + by)


def _run() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no valid UTF-8, and terminals may lack letters
    try:
        from tenfold.cli.commands import run
        from tenfold.spec.threads import set_waiting_policy

        set_waiting_policy()  # before any command loads PyTorch
        try:
            run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except (TenfoldError, OSError) as error:
        if os.environ.get("TENFOLD_DEBUG"):
            raise
        # An OSError without a file name may come from writing to standard output: discard what is buffered, or Python's own flush
        # at exit fails again.
        if isinstance(error, OSError) and error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # the reader, such as `head`, has closed the pipe: nothing to report
            print(f"tenfold: {_sentence(error)}", file=sys.stderr)
        sys.exit(_status(error))


def _sentence(error: TenfoldError | OSError) -> str:
    if isinstance(error, TenfoldError):
        return str(error)
    from tenfold.spec.files import reason

    why = reason(error)
    return f"{error.filename}: {why}." if error.filename else f"{why[:1].upper()}{why[1:]}."


def _status(error: Exception) -> int:
    from tenfold.cli.options import UsageError

    return 2 if isinstance(error, UsageError) else 1


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does, so that it can clean up.

    Signals that the caller ignores stay ignored. Python drops an exception that is raised within a destructor or a callback
    (`sys.unraisablehook`), so a signal that arrives there is sent again.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number))

    def send_again(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            threading.Timer(0.1, os.kill, (os.getpid(), stopped(lost.exc_value)[0])).start()
        else:
            sys.__unraisablehook__(lost)

    found = [number for number in ENDING if _in_main_thread() and signal.getsignal(number) == signal.SIG_DFL]
    for number in found:
        signal.signal(number, stop)
    before, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in found:
            signal.signal(number, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
