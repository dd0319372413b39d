"""The one exception that a person is meant to read, and the nearest-name suggestion it often carries."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TenfoldError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it without a trace."""


class NotInstalled(TenfoldError):
    """An optional package is missing; the sentence says how to install it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


@contextmanager
def when_stopped(sentence: str) -> Iterator[None]:
    """Within it, Ctrl-C or a signal to end is followed by `sentence`: what is kept, and how to go on. The inner one counts."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(sentence)
        raise
